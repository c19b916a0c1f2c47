"""Normal forms of texts and error rates: worked examples, then the vectors that the reference code gave."""
import pytest
from references import vectors
from test_bad_input import refused

from metrics.error_rates import cer, character_error_rate, wer, word_error_rate
from speech_llm.normalize import mms_normalize, nfc


@pytest.mark.parametrize("text, language, expected", [
    ("well-known: it's C:\\ `x`", "en", "well-known it's c \\ `x`"),             # ' - \ ` stay
    ("a\u2013b\u2014c 5\u20ac", "en", "a\u2013b\u2014c"),                        # dashes stay, the euro and the 5 go
    ("rock\u2019n\u2019roll", "en", "rock n'roll"),                              # a word's last curly apostrophe alone
    ("2020", "en", "2020"), ("2020.", "en", ""), ("in 2020", "en", "in"),        # only a text of digits keeps its word
    ("1st b2b 1-800 3.14", "en", "1st b2b 1-800"),
    ("(laughs) hello (aged 20)", "en", "laughs hello"),
    ("\u201cquoted\u201d  and\u00a0spaced\n", "en", "quoted and spaced"), ("a &lt;b&gt; c&nbsp;d", "en", "a b c d"),
    ("\u05d0\u05b0\u05d1", "he", "\u05d0\u05d1"), ("\u05d0\u05b0\u05d1", "en", "\u05d0\u05b0\u05d1"),    # a vowel
    ("你好，世界。", "zh", "你好 世界"), ("U\u0308", "en", "ü")])                      # not split into characters
def test_normal_forms_by_hand(text, language, expected):
    assert mms_normalize(text, language) == expected


def test_numbers_stay_where_they_are_asked_for():
    assert mms_normalize("Hello, 5 x", remove_numbers=False) == "hello 5 x" and nfc("u\u0308") == "ü"


def test_normalisation_agrees_with_mms():
    """Javanese has rules that none of the 23 languages of the rows needs."""
    for v in vectors("mms_norm.jsonl", kwargs={}):
        assert v["iso_code"] == "jav" or mms_normalize(v["text"], v["iso_code"]) == v["expected"], v["text"]


def test_error_rates_by_hand():
    references = ["The cat sat on the mat.", "Anna has three books!"]       # 6 + 4 words
    predictions = ["the cat sits on mat", "anna has three new books"]       # 1 substituted, 1 deleted; 1 inserted
    assert wer(references, predictions, "en") == pytest.approx(30) and wer(references, ["", ""], "en") == 100
    assert wer(references, ["THE CAT, sat on; the mat?", "Anna has three books"], "en") == 0
    # 22 + 20 characters: sat -> sits 2, "the " 4, "new " 4
    assert cer(references, predictions, "en") == pytest.approx(100 * 10 / 42)
    assert cer(["ab"], ["AB, abc"], "en") == 200                            # spaces count ...
    assert cer(["你好，世界"], ["你好世"], "zh") == 25 and cer(["今日は。 雨"], ["今日は雨"], "ja") == 0    # not here


@pytest.mark.parametrize("reference, prediction, language", [
    ("2008年", "2008 年", "zh"), ("他在 IBM 工作", "他在IBM工作", "zh"), ("，2008，", "2008", "zh"),
    ("第 3 回", "第3回", "ja"), ("3 4 5", "3, 4, 5.", "en"), ("u\u0308ber", "über", "de")])
def test_a_space_a_comma_or_another_normal_form_is_no_error(reference, prediction, language):
    assert cer([reference], [prediction], language) == 0
    assert language in ("zh", "ja") or wer([reference], [prediction], language) == 0


def test_a_reference_of_numbers_only_keeps_them_and_one_without_a_word_is_not_scored():
    """MMS removes words of digits; a reference would be empty without them."""
    assert wer(["3 4 5"], ["3 4 6"], "en") == pytest.approx(100 / 3)
    assert wer(["in 1990", "7."], ["in 1991", "8"], "en") == 50                    # in the first pair no number counts
    assert wer(["...", "a b"], ["x y z", "a c"], "en") == 50 and cer(["?!", "ab"], ["x", "ab"], "en") == 0
    assert wer(["..."], ["x"], "en") is None is cer([], [], "en")
    for references, predictions in [(["", " "], ["a", "b"]), ([], []), (["a"], [])]:
        refused(word_error_rate, references, predictions)
    for score in (character_error_rate, lambda *texts: wer(*texts, "en")):
        with pytest.raises(TypeError, match="lists"):
            score("abc", "abd")
