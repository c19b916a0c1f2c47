"""BLEU with the 2025 paper's signature (section 4): nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp; Chinese tok:zh."""


def bleu(references, predictions, language):
    """Corpus BLEU in percent, by sacrebleu; two lists of equal length."""
    from sacrebleu.metrics import BLEU
    return BLEU(tokenize="zh" if language == "zh" else "13a").corpus_score(predictions, [references]).score
