"""
BLEU and chrF, by sacrebleu.

BLEU has the 2025 paper's signature (section 4): nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp, and tok:zh for Chinese.
Japanese and Korean are cut into words by MeCab, as sacrebleu recommends. chrF has sacrebleu's own settings (chrF2): the
listeners' paper gives only the names of the two scores.
"""
from metrics.texts import comparable


TOKENIZERS = {"zh": "zh", "ja": "ja-mecab", "ko": "ko-mecab"}      # by the language that is translated into; else 13a


def text_pair(reference, prediction, _):
    """Return both texts as they are."""
    return reference, prediction


def bleu(references, predictions, language):
    """
    Return the corpus BLEU of two lists of texts in percent; None if every reference is empty.
    ImportError if the package that cuts the language into words is missing.
    """
    from sacrebleu.metrics import BLEU
    tokenizer = TOKENIZERS.get(language, "13a")
    try:
        metric = BLEU(tokenize=tokenizer)
    except (ImportError, RuntimeError) as error:        # sacrebleu raises RuntimeError for a missing package
        if not tokenizer.endswith("mecab"):
            raise
        raise ImportError(f"into {language} it needs MeCab; run: pip install 'sacrebleu[{language}]'") from error
    return corpus_score(metric, references, predictions, language)


def chrf(references, predictions, language):
    """Return the corpus chrF2 of two lists of texts in percent; None if every reference is empty."""
    from sacrebleu.metrics import CHRF
    return corpus_score(CHRF(), references, predictions, language)


def corpus_score(metric, references, predictions, language):
    """Return the score of one of sacrebleu's metrics; None if every reference is empty."""
    pairs = comparable(references, predictions, language, text_pair)
    if not pairs:
        return None
    references, predictions = zip(*pairs)
    return metric.corpus_score(list(predictions), [list(references)]).score
