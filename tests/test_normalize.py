"""MMS normalisation and error rates: worked examples, then the vectors that the reference code gave."""
import json
import re
import sys
from pathlib import Path

import pytest

from metrics import normalize
from metrics.error_rates import character_error_rate, word_error_rate
from speech_llm.normalize import mms_normalize


PARITY = Path(__file__).parents[2] / "shared" / "parity"


def vectors(name):
    if not (PARITY / name).exists():
        pytest.skip(f"no reference vectors at {PARITY / name}")
    return [json.loads(line) for line in open(PARITY / name, encoding="utf-8")]


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
    kept = mms_normalize("(laughs) Hello 5 x", remove_brackets=True, lower_case=False, remove_numbers=False)
    assert kept == "Hello 5 x"
    assert mms_normalize("soft\u00adhyphen", "mon") == "softhyphen"
    assert mms_normalize("\u05d0\u05b0\u05d1", "heb") == "\u05d0\u05d1" != mms_normalize("\u05d0\u05b0\u05d1")
    assert mms_normalize("a\u200db", "tha") == "a b" != mms_normalize("a\u200db")
    assert mms_normalize("\u05d0\u05b0\u05d1", "he") == "\u05d0\u05d1"           # the one of the 23 with a rule of its own
    for short, long in [("en", "eng"), ("de", "deu"), ("it", "ita"), ("zh", "cmn")]:
        text = "Größe，你好。 Città 7 \u2018x\u2019"
        assert mms_normalize(text, short) == mms_normalize(text, long)
    assert mms_normalize("你好，世界。", "zh") == "你好 世界"           # not split into characters


def test_javanese_names_the_missing_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "unidecode", None)
    with pytest.raises(ImportError, match="pip install unidecode"):
        mms_normalize("rawuh", "jav")


def test_normalisation_agrees_with_mms():
    for v in vectors("mms_norm.jsonl"):
        if v["iso_code"] != "jav":         # it has its own test below
            assert mms_normalize(v["text"], v["iso_code"], **v["kwargs"]) == v["expected"], v["text"]


def test_javanese_agrees_with_mms():
    pytest.importorskip("unidecode")
    for v in vectors("mms_norm.jsonl"):
        if v["iso_code"] == "jav":
            assert mms_normalize(v["text"], "jav", **v["kwargs"]) == v["expected"]


def test_classes_hold_the_code_points_mms_resolves():
    vectors("mms_norm.jsonl")
    sets = json.loads((PARITY / "mms_charsets.json").read_text(encoding="utf-8"))
    classes = {"punc_set": normalize.PUNCTUATION, "del_set": normalize.DELETED, "digit_set": normalize.DIGITS}
    for name, ours in classes.items():
        wanted = set()
        for part in sets[name]["ranges"]:
            first, last = (part, part) if isinstance(part, str) else part
            wanted |= set(range(int(first, 16), int(last, 16) + 1))
        assert {n for n in range(0x10000) if re.fullmatch(f"[{ours}]", chr(n))} == wanted


# ----------------------------------------------------------------------------------------------------

def test_rates_by_hand():
    assert word_error_rate(["a b c", "d"], ["a x c", "d e"]) == 50.0          # 1 S + 1 I over 4 words
    assert word_error_rate(["a"], ["b c d e"]) == 400.0                       # can exceed 100
    assert word_error_rate(["a b"], [""]) == 100.0
    assert word_error_rate(["", "a b"], ["x", "a b"]) == 50.0   # an empty reference: insertions only
    assert word_error_rate(["a\tb"], ["a b"]) == 200.0   # a tab is no space: 1 S + 1 I of 1
    assert word_error_rate(["a  b"], [" a b "]) == 0.0
    assert character_error_rate(["東京タワー"], ["東京 タワー"]) == 20.0           # spaces count


def test_rates_refuse():
    for references, hypotheses in [(["", " "], ["a", "b"]), ([], []), (["a"], [])]:
        with pytest.raises(ValueError):
            word_error_rate(references, hypotheses)
    with pytest.raises(TypeError, match="lists"):
        character_error_rate("abc", "abd")


def test_rates_agree_with_evaluate():
    for v in vectors("wer_cer.jsonl"):
        pairs = v["references"], v["predictions"]
        assert word_error_rate(*pairs) == pytest.approx(100 * v["wer"], abs=1e-9), v["name"]
        assert character_error_rate(*pairs) == pytest.approx(100 * v["cer"], abs=1e-9), v["name"]
