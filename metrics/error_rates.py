"""
Word and character error rates over a corpus: errors are insertions, deletions and substitutions, counted by jiwer.

    wer(["The cat sat."], ["the cat sits"], "en")           -> 33.3, after MMS normalisation (2025, section 4)
    cer(["2008年"], ["2008 年"], "zh")                       -> 0.0
    word_error_rate(["the cat sat"], ["the cat sits"])      -> 33.3, of texts that are normalised already
"""
from metrics.exact import plain_pair
from metrics.texts import CHARACTERS, comparable
from speech_llm.normalize import mms_normalize


def wer(references, predictions, language):
    """Return the corpus WER in percent after MMS normalisation; None if no reference has a word."""
    pairs = comparable(references, predictions, language, mms_pair)
    return word_error_rate(*zip(*pairs)) if pairs else None


def cer(references, predictions, language):
    """
    Return the corpus CER in percent after MMS normalisation; None if no reference has a character.
    A space counts as a character. In Chinese and Japanese spaces do not count and numbers stay, because there a space
    beside a number is a matter of style (our choice).
    """
    pairs = comparable(references, predictions, language, character_pair)
    return character_error_rate(*zip(*pairs)) if pairs else None


def mms_pair(reference, prediction, language):
    """
    Return the MMS form of both texts.
    MMS removes words of digits. If the reference has no other words, both texts keep their numbers (our choice).
    """
    words = mms_normalize(reference, language)
    if words:
        return words, mms_normalize(prediction, language)
    return plain_pair(reference, prediction, language)


def character_pair(reference, prediction, language):
    """Return both texts as `cer` compares them."""
    if language not in CHARACTERS:
        return mms_pair(reference, prediction, language)
    return plain_pair(reference, prediction, language)


def word_error_rate(references, predictions):
    """
    Return the corpus WER in percent: 100 * (substituted + inserted + deleted) / reference words, over all pairs.
    It is 100 times evaluate's fraction, by jiwer 4's rules: only U+0020 separates words; an empty reference adds the
    words of its prediction to the errors. WER can exceed 100. ValueError if no reference has a word, or if the lists
    differ in length.
    """
    from jiwer import process_words
    return error_rate(process_words, references, predictions)


def character_error_rate(references, predictions):
    """Return the corpus CER in percent: as word_error_rate of stripped texts, whose inner spaces are characters."""
    from jiwer import process_characters
    return error_rate(process_characters, references, predictions)


def error_rate(align, references, predictions):
    """Return errors over the units of the references in percent; `align` is jiwer's, by words or by characters."""
    if isinstance(references, str) or isinstance(predictions, str):
        raise TypeError("references and predictions are lists of texts, one per utterance, not one text")
    references, predictions = list(references), list(predictions)
    if len(references) != len(predictions):
        raise ValueError(f"{len(references)} references, {len(predictions)} predictions")
    if not any(reference.strip() for reference in references):
        raise ValueError("every reference is empty: an error rate would divide by zero")
    a = align(references, predictions)
    return 100 * (a.substitutions + a.insertions + a.deletions) / (a.hits + a.substitutions + a.deletions)
