"""TODO"""


def word_error_rate(references, hypotheses):
    """Corpus WER in percent: 100 * (substituted + inserted + deleted) / reference words, over all pairs.

    100 times evaluate's fraction, by jiwer 4's rules: only U+0020 separates words; an empty reference adds
    its hypothesis' words to the errors, nothing to the denominator. Can exceed 100. ValueError where no
    reference has a word, or the lists differ in length.
    """
    from jiwer import process_words
    return percent(process_words, references, hypotheses)


def character_error_rate(references, hypotheses):
    """Corpus CER in percent; texts are stripped, inner spaces count. Otherwise as word_error_rate."""
    from jiwer import process_characters
    return percent(process_characters, references, hypotheses)


def percent(align, references, hypotheses):
    if isinstance(references, str) or isinstance(hypotheses, str):
        raise TypeError("references and hypotheses are lists of texts, one per utterance, not one text")
    references, hypotheses = list(references), list(hypotheses)
    if len(references) != len(hypotheses):
        raise ValueError(f"{len(references)} references, {len(hypotheses)} hypotheses")
    if not any(reference.strip() for reference in references):
        raise ValueError("every reference is empty: an error rate would divide by zero")
    a = align(references, hypotheses)
    return 100 * (a.substitutions + a.insertions + a.deletions) / (a.hits + a.substitutions + a.deletions)
