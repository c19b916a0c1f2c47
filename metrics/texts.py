"""
What all scores of texts share: the texts are compared in NFC, and a pair without a reference is not scored.

    comparable(["Yes.", "..."], ["yes", "no"], "en", plain_pair)      -> [("yes", "yes")]
"""
from speech_llm.normalize import nfc


CHARACTERS = ("zh", "ja")       # languages without spaces between words: their ASR counts in CER, not in WER


def comparable(references, predictions, language, simplify):
    """
    Return simplify(reference, prediction, language) of every pair of two lists of texts, both texts in NFC.
    A pair is left out if nothing is left of its reference: every prediction contains an empty text, and no error rate
    can be divided by its length. ValueError if the lists differ in length.
    """
    if isinstance(references, str) or isinstance(predictions, str):
        raise TypeError("references and predictions are lists of texts, one per utterance, not one text")
    pairs = [simplify(nfc(r), nfc(p), language) for r, p in zip(references, predictions, strict=True)]
    return [pair for pair in pairs if pair[0]]


def mean_percent(shares):
    """Return the mean of shares from 0 to 1 in percent; None if there are none."""
    return 100 * sum(shares) / len(shares) if shares else None
