"""
BLEU and chrF, by sacrebleu.

BLEU with the 2025 paper's signature (section 4): nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp; Chinese tok:zh. Japanese
and Korean are cut into words by MeCab, as sacrebleu has it for them. chrF with sacrebleu's own settings (chrF2): the
listeners' paper gives only the names.
"""


TOKENIZERS = {"zh": "zh", "ja": "ja-mecab", "ko": "ko-mecab"}      # by the language that is translated into; else 13a


def bleu(references, predictions, language):
    """Corpus BLEU in percent; two lists of equal length. ImportError where the language's word cutter is not here."""
    from sacrebleu.metrics import BLEU
    tokenizer = TOKENIZERS.get(language, "13a")
    try:
        metric = BLEU(tokenize=tokenizer)
    except (ImportError, RuntimeError) as error:        # RuntimeError: sacrebleu's word for a missing package
        if not tokenizer.endswith("mecab"):
            raise
        raise ImportError(f"into {language} it needs MeCab; run: pip install 'sacrebleu[{language}]'") from error
    return metric.corpus_score(predictions, [references]).score


def chrf(references, predictions, _):
    """Corpus chrF2 in percent; two lists of equal length."""
    from sacrebleu.metrics import CHRF
    return CHRF().corpus_score(predictions, [references]).score
