"""
ROUGE-1 recall: how much of the reference's words the answer has (2025, footnote 8).

    rouge1_recall(["the the cat"], ["the cat"], "en")     -> 66.7, two of three words
    rouge1_recall(["无法回答。"], ["不能回答。"], "zh")        -> 50.0, two of four characters

The paper names neither library nor tokeniser. Ours is that of Google's rouge_score without stemming, to the last digit:
lower case, runs of a-z and 0-9, so that an umlaut or an accent cuts a word in two. It leaves nothing of Chinese, for
which the paper reports 79.0 all the same: there a character, letter or digit is a word (our choice).
"""
import re
from collections import Counter


def rouge1_recall(references, predictions, language):
    """Mean over the pairs of two lists of texts, in percent. A reference without a word counts 0."""
    scores = [recall(r, p, language) for r, p in zip(references, predictions, strict=True)]
    return 100 * sum(scores) / len(scores)


def recall(reference, prediction, language):
    """Share of the reference's words that the prediction has, each as often as it has it: 0 to 1."""
    wanted, said = Counter(words(reference, language)), Counter(words(prediction, language))
    return (wanted & said).total() / max(wanted.total(), 1)


def words(text, language):
    """What is compared: words of ASCII letters and digits, or for zh every letter, digit and character."""
    text = text.lower()
    return [c for c in text if c.isalnum()] if language == "zh" else re.findall("[a-z0-9]+", text)
