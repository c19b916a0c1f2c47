"""
BERTScore F1 of answers, by the package bert-score (0.3.13), in the two settings of the 2025 paper.

    score = load_bertscore("de", *ORGANISERS["de"], "cuda")  # Table 8: the package's own model for the language
    score = load_bertscore("de", *XLMR, "cuda")              # Table 9: one model for all languages
    score([["Sie heißt Elena.", "Elena."]])                  -> [float], one for each [prediction, reference]

Scores are rescaled: 0 is what random pairs of sentences get, 1 is equality. The package has no baseline for Chinese
with xlm-roberta-large; those scores stay raw. The score of a corpus is the mean over its pairs.
"""
import os
from functools import partial

from speech_llm.normalize import nfc


ORGANISERS = {                             # language: (model, layer), the package's choice
    "en": ("roberta-large", 17), "de": ("bert-base-multilingual-cased", 9), "it": ("bert-base-multilingual-cased", 9),
    "zh": ("bert-base-chinese", 8)}
XLMR = ("xlm-roberta-large", 17)
POSITIONS = 512                            # tokens that all of these models can read; the rest of a text is cut off


def load_bertscore(language, model, layer, device):
    """
    Return a function from [prediction, reference] pairs to their F1, with the model in memory.
    ImportError or FileNotFoundError name the command that fetches the package or the model.
    """
    from huggingface_hub import try_to_load_from_cache
    try:
        import bert_score
    except ImportError as error:
        raise ImportError("the package bert-score is missing; run: pip install bert-score==0.3.13") from error
    baseline = os.path.join(os.path.dirname(bert_score.__file__), "rescale_baseline", language, f"{model}.tsv")
    if not os.path.isdir(model) and not isinstance(try_to_load_from_cache(model, "config.json"), str):
        raise FileNotFoundError(f"the model {model} is not here; run: hf download {model}")
    scorer = bert_score.BERTScorer(model, layer, lang=language, device=device,
                                   rescale_with_baseline=os.path.isfile(baseline))
    # a tokenizer without a limit of its own would overflow
    scorer._tokenizer.model_max_length = min(scorer._tokenizer.model_max_length, POSITIONS)
    return partial(f1, scorer)


def f1(scorer, pairs):
    """
    Return the F1 of [prediction, reference] pairs as floats.
    With an empty text on either side F1 is 0 before rescaling, as the package has it; under transformers 5 the package
    would stop there.
    """
    base = scorer.baseline_vals[2].item() if scorer.rescale_with_baseline else 0.0    # of precision, recall, F1
    scores = [(0 - base) / (1 - base)] * len(pairs)
    full = [i for i, pair in enumerate(pairs) if all(text.strip() for text in pair)]
    if full:
        _, _, values = scorer.score([nfc(pairs[i][0]) for i in full], [nfc(pairs[i][1]) for i in full])
        for i, value in zip(full, values.tolist()):
            scores[i] = value
    return scores
