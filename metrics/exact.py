"""
Answers compared with the reference letter by letter, after MMS normalisation; numbers stay, an answer may be one.

    exact_match(["London"], ["In london!"], "en")    -> 0.0
    contains(["London"], ["In london!"], "en")       -> 100.0
"""
from speech_llm.normalize import mms_normalize


def plain(text, language):
    """Lower case, no punctuation, numbers kept."""
    return mms_normalize(text, language, remove_numbers=False)


def exact_match(references, predictions, language):
    """Share of answers that equal the reference, in percent."""
    same = [plain(r, language) == plain(p, language) for r, p in zip(references, predictions, strict=True)]
    return 100 * sum(same) / len(same)


def contains(references, predictions, language):
    """Share of answers in which the reference occurs, in percent: a right answer in a whole sentence counts too."""
    found = [plain(r, language) in plain(p, language) for r, p in zip(references, predictions, strict=True)]
    return 100 * sum(found) / len(found)
