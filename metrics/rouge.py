"""
ROUGE-1 recall: how many of the reference's words the prediction has (2025, footnote 8).

    rouge1_recall(["the the cat"], ["the cat"], "en")     -> 66.7, two of three words
    rouge1_recall(["无法回答。"], ["不能回答。"], "zh")        -> 50.0, two of four characters

The paper names neither library nor tokeniser. Texts in Latin letters are cut as Google's rouge_score cuts them without
stemming: into runs of a-z and 0-9 in lower case, so that an umlaut or an accent cuts a word in two. This rule leaves
nothing of Chinese, for which the paper reports 79.0 all the same. In other scripts a word is therefore a run of
letters, digits and marks; in scripts without spaces, such as Chinese and Thai, every character is a word (our choice).
"""
import re
import unicodedata
from collections import Counter

from metrics.texts import comparable, mean_percent


LATIN = ("en", "cs", "de", "es", "fr", "id", "it", "nl", "pl", "pt", "ro", "tr", "vi")   # of the 23, by their script
SPACELESS = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
                       "\U00020000-\U0003ffff]")          # Thai, Lao, Burmese, Khmer, kana, Han


def rouge1_recall(references, predictions, language):
    """Return the mean recall over the pairs of two lists of texts, in percent; None if no reference has a word."""
    pairs = comparable(references, predictions, language, word_pair)
    return mean_percent([(wanted & given).total() / wanted.total() for wanted, given in pairs])


def word_pair(reference, prediction, language):
    """Return how often each word stands in the reference and in the prediction, which are cut by the same rule."""
    words = google_words
    if language not in LATIN and not is_latin(reference):
        words = unicode_words
    elif not google_words(reference) and is_latin(reference):      # "Ü" has no letter from a to z
        words = unicode_words
    return Counter(words(reference)), Counter(words(prediction))


def is_latin(text):
    """Return whether all letters of the text are Latin."""
    return all(unicodedata.name(c, "").startswith("LATIN") for c in text if c.isalpha())


def google_words(text):
    """Return the runs of a-z and 0-9 in lower case, as rouge_score has them."""
    return re.findall("[a-z0-9]+", text.lower())


def unicode_words(text):
    """
    Return the runs of letters, marks and digits of any script; every character of a script without spaces alone.
    Wide and narrow forms of a character are the same (NFKC).
    """
    return "".join(f" {c} " if SPACELESS.match(c) and is_word(c) else c if is_word(c) else " "
                   for c in unicodedata.normalize("NFKC", text).lower()).split()


def is_word(character):
    """Return whether a character is a letter, a mark on a letter, or a digit."""
    return unicodedata.category(character)[0] in "LMN"
