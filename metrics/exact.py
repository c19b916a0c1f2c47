"""
Answers compared with the reference letter by letter, after MMS normalisation; numbers stay, since an answer may be one.

    exact_match(["London"], ["In london!"], "en")    -> 0.0
    contains(["London"], ["In london!"], "en")       -> 100.0
"""
import re

from metrics.texts import CHARACTERS, comparable, mean_percent
from speech_llm.normalize import mms_normalize


def plain(text, language):
    """Return the text in lower case without punctuation; in Chinese and Japanese without spaces, too."""
    text = mms_normalize(re.sub("[()（）]", " ", text), language, remove_numbers=False)     # MMS drops "(1990)" whole
    return text.replace(" ", "") if language in CHARACTERS else text


def plain_pair(reference, prediction, language):
    """Return both texts in their plain form."""
    return plain(reference, language), plain(prediction, language)


def exact_match(references, predictions, language):
    """Return the share of predictions that equal their reference, in percent; None if every reference is empty."""
    pairs = comparable(references, predictions, language, plain_pair)
    return mean_percent([reference == prediction for reference, prediction in pairs])


def contains(references, predictions, language):
    """
    Return the share of predictions in which the reference occurs, in percent; None if every reference is empty.
    A right answer inside a longer sentence counts as right.
    """
    pairs = comparable(references, predictions, language, plain_pair)
    return mean_percent([reference in prediction for reference, prediction in pairs])
