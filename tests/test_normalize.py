"""Normal forms of texts and error rates: worked examples, then the vectors that the reference code gave."""
import json
import re

import pytest
from references import PARITY, reference, vectors

from metrics.error_rates import cer, character_error_rate, wer, word_error_rate
from speech_llm import normalize
from speech_llm.normalize import mms_normalize, nfc


@pytest.mark.parametrize("text, expected", [
    ("Hello, World!", "hello world"),
    ("well-known: it's C:\\ `x`", "well-known it's c \\ `x`"),   # ' - \ ` stay
    ("a\u2013b\u2014c 5\u20ac", "a\u2013b\u2014c"),   # dashes stay, the euro goes, then the lone 5
    ("rock\u2019n\u2019roll", "rock n'roll"),   # only the last curly apostrophe of a word
    ("2020", "2020"), ("2020.", ""), ("in 2020", "in"),   # digits alone survive, digit words do not
    ("1st b2b 1-800 3.14", "1st b2b 1-800"),
    ("\u0663 x", "\u0663 x"),   # Arabic-Indic digits are not in the class
    ("(laughs) hello (aged 20)", "laughs hello"),
    ("\u201cquoted\u201d  and\u00a0spaced\n", "quoted and spaced"),
    ("a &lt;b&gt; c&nbsp;d", "a b c d"),
    ("zero\u200bwidth soft\u00adhyphen", "zerowidth soft\u00adhyphen"),
    ("\u0671", "\u0627"),
    ("", ""),
])
def test_worked_examples(text, expected):
    assert mms_normalize(text) == expected


def test_options_and_languages():
    text = mms_normalize("(laughs) Hello 5 x", remove_brackets=True, lower_case=False, remove_numbers=False)
    assert text == "Hello 5 x"
    alef_with_vowel = "\u05d0\u05b0\u05d1"
    assert mms_normalize(alef_with_vowel, "he") == mms_normalize(alef_with_vowel, "heb") == "\u05d0\u05d1"
    assert mms_normalize(alef_with_vowel, "en") == alef_with_vowel
    assert mms_normalize("你好，世界。", "zh") == "你好 世界"           # not split into characters
    assert nfc("u\u0308") == "ü" and mms_normalize("U\u0308") == "ü"


def test_normalisation_agrees_with_mms():
    """Mongolian, Thai and Javanese have rules that none of the 23 languages of the rows needs."""
    for v in vectors("mms_norm.jsonl"):
        if v["iso_code"] not in ("mon", "khk", "tha", "jav"):
            assert mms_normalize(v["text"], v["iso_code"], **v["kwargs"]) == v["expected"], v["text"]


def test_classes_hold_the_code_points_mms_resolves():
    sets = json.loads(reference(PARITY / "mms_charsets.json").read_text(encoding="utf-8"))
    classes = {"punc_set": normalize.PUNCTUATION, "del_set": normalize.DELETED, "digit_set": normalize.DIGITS}
    for name, ours in classes.items():
        wanted = set()
        for part in sets[name]["ranges"]:
            first, last = (part, part) if isinstance(part, str) else part
            wanted |= set(range(int(first, 16), int(last, 16) + 1))
        assert {n for n in range(0x10000) if re.fullmatch(f"[{ours}]", chr(n))} == wanted


# --- Error rates.


def test_rates_of_normalised_texts():
    references = ["The cat sat on the mat.", "Anna has three books!"]       # 6 + 4 words
    predictions = ["the cat sits on mat", "anna has three new books"]        # 1 substituted, 1 deleted; 1 inserted
    assert wer(references, predictions, "en") == pytest.approx(30.0)
    assert wer(references, ["THE CAT, sat on; the mat?", "Anna has three books"], "en") == 0.0
    assert wer(references, ["", ""], "en") == 100.0
    # 22 + 20 characters: sat -> sits 2, "the " 4, "new " 4
    assert cer(references, predictions, "en") == pytest.approx(100 * 10 / 42)
    assert cer(["ab"], ["AB, abc"], "en") == 200.0                           # spaces count
    assert cer(["你好，世界"], ["你好世"], "zh") == 25.0 and cer(["今日は。 雨"], ["今日は雨"], "ja") == 0    # not here


@pytest.mark.parametrize("reference, prediction, language", [
    ("2008年", "2008 年", "zh"), ("他在 IBM 工作", "他在IBM工作", "zh"), ("，2008，", "2008", "zh"),
    ("第 3 回", "第3回", "ja"), ("3 4 5", "3, 4, 5.", "en"), ("3 4 5", "3 4 5", "de"), ("u\u0308ber", "über", "de")])
def test_a_space_a_comma_or_another_normal_form_is_no_error(reference, prediction, language):
    assert cer([reference], [prediction], language) == 0
    assert language in ("zh", "ja") or wer([reference], [prediction], language) == 0


def test_a_reference_of_numbers_only_keeps_them():
    """MMS removes words of digits; a reference would be empty without them."""
    assert wer(["3 4 5"], ["3 4 6"], "en") == pytest.approx(100 / 3)
    assert wer(["in 1990"], ["in 1991"], "en") == 0                          # here there is another word
    assert wer(["in 1990", "7."], ["in", "8"], "en") == 50


def test_a_reference_without_a_word_is_not_scored():
    assert wer(["...", "a b"], ["x y z", "a c"], "en") == 50 and cer(["?!", "ab"], ["x", "ab"], "en") == 0
    assert wer(["..."], ["x"], "en") is None is cer([], [], "en")
    for references, predictions in [(["", " "], ["a", "b"]), ([], []), (["a"], [])]:
        with pytest.raises(ValueError):
            word_error_rate(references, predictions)
    for score in (character_error_rate, lambda *texts: wer(*texts, "en")):
        with pytest.raises(TypeError, match="lists"):
            score("abc", "abd")


def test_rates_agree_with_evaluate():
    for v in vectors("wer_cer.jsonl"):
        pairs = v["references"], v["predictions"]
        assert word_error_rate(*pairs) == pytest.approx(100 * v["wer"], abs=1e-9), v["name"]
        assert character_error_rate(*pairs) == pytest.approx(100 * v["cer"], abs=1e-9), v["name"]
