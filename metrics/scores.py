"""
All scores of texts under their names in results.json, and which references a score leaves out.

    score_texts("CONTAINS", ["Rome", "..."], ["In Rome.", "x"], "en")     -> (100.0, [1]): the second has no reference

A score is a function of references, predictions and the language of the references; it returns percent.
"""
from metrics.bleu import bleu, chrf, text_pair
from metrics.error_rates import cer, character_pair, mms_pair, wer
from metrics.exact import contains, exact_match, plain_pair
from metrics.rouge import rouge1_recall, word_pair
from speech_llm.normalize import nfc


def in_language(_, predictions, language):
    """Return the share of predictions in the language that was asked for, in percent (2025, section 6)."""
    from metrics.language import available, share_in_language
    if not available():
        raise ImportError("the package py3langid is missing; run: pip install py3langid")
    return share_in_language(predictions, language)


TEXT_SCORES = {  # name: (score, what it compares of a reference and a prediction; None: no reference)
    "WER": (wer, mms_pair), "CER": (cer, character_pair),
    "BLEU": (bleu, text_pair), "chrF": (chrf, text_pair),
    "EM": (exact_match, plain_pair), "CONTAINS": (contains, plain_pair), "ROUGE-1": (rouge1_recall, word_pair),
    "language": (in_language, None),
}


def score_texts(name, references, predictions, language):
    """
    Return (percent, positions of the references of which nothing is left and which are therefore not scored).
    The percent is None if no reference is left. ImportError if the score needs a package that is missing.
    """
    score, simplify = TEXT_SCORES[name]
    left_out = [n for n, reference in enumerate(references)
                if simplify and not simplify(nfc(reference), "", language)[0]]
    return score(references, predictions, language), left_out
