"""Speech-IFEval's verifiers: worked examples, then the verdicts of the reference code."""
import json
from pathlib import Path

import pytest

from metrics.ifeval import CLOSED, CREATIVE, follows, rates

SHARED = Path(__file__).parents[2] / "shared"
DESTA = SHARED / "real" / "speech_ifeval" / "reference_outputs" / "DeSTA-ntu--DeSTA2-8B-beta" / "reports"


@pytest.mark.parametrize("instruction, arguments, yes, no", [
    ("change_case:english_capital", {}, ["HELLO 2!", "ÀB"], ["Hello", "123", " "]),
    ("change_case:english_lowercase", {}, ["it's ok"], ["It's ok", "?"]),
    ("detectable_format:json_format", {},
     ['{"a": 1}', '```json\n{"a": 1}\n```', '"x"', "3", "NaN", '``` {"a": 1}'],
     ["a", '{"a": 1', 'Here: {"a": 1}', "[1,]", "[" * 99999]),
    ("startend:quotation", {}, ['"a"', ' "a" and "b" '], ['"', '"a', "“a”", "'a'"]),
    ("detectable_format:title", {}, ["<<a>>", "<<<x>>> then text"], ["<<>>", "<< >>", "<a>", "<<a\nb>>"]),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Answer:"},
     ["answer: 5", '"Answer:" 5', "'\"Answer: 5"], ["The answer: 5"]),
    ("startend:end_checker", {"end_phrase": "Bye."},
     ["ok bye.", 'ok "Bye."', "ok Bye.\n"], ["Bye.'", "Bye. ok"]),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2},
     ["* a\n* b", "- a\n- b", "1. a\n2. b", "• a\\n• b", "text\n* a\n\n  - b"],
     ["* a", "**a**\n**b**", "* a\n* b\n3 c"]),
    ("keywords:existence", {"keywords": ["spicy", "walnut"]}, ["SPICY walnuts"], ["spicy"]),
    ("keywords:forbidden_words", {"forbidden_words": ["water"]}, ["Waterfall"], ["no WATER!", ""]),
    ("length_constraints:number_words", {"num_words": 3, "relation": "at least"},
     ["a b c", "it's ok"], ["a b"]),
    ("length_constraints:number_words", {"num_words": 3, "relation": "less than"},
     ["a b"], ["a b c", ""]),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "at least"},
     ["Yes. No!", "It cost 3.5 million. He paid.", "What?! Yes.", "“A.” “B.”", "1. The cat\n2. The dog"],
     ["Mr. Smith came.", "Mr. Smith met Prof. J. Bach at 5 p.m. in the U.S. capital.", "no final mark"]),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2},
     ["a\nb", "a\n\n\nb", "a *** b", "***a***b***"], ["a", "a\n***\n***\nb"]),
])
def test_verifiers_by_hand(instruction, arguments, yes, no):
    for response in yes:
        assert follows(instruction, arguments, response) is True, response
    for response in no:
        assert follows(instruction, arguments, response) is False, response


def test_refusals_name_what_is_known():
    with pytest.raises(ValueError, match="startend:quotation"):
        follows("startend:quotes", {}, "a")
    with pytest.raises(ValueError, match="at least"):
        follows("length_constraints:number_words", {"num_words": 3, "relation": "more than"}, "a")
    with pytest.raises(KeyError):
        follows("detectable_format:number_bullet_lists", {}, "* a")
    with pytest.raises(ValueError, match="one group"):
        rates([{"id": 7, "instruction_id_list": [], "kwargs": [], "response": "a"}])


def test_rates_are_percent_of_rows():
    row = {"instruction_id_list": ["change_case:english_capital"], "kwargs": [{}]}
    rows = [dict(row, response=r) for r in ["A", "B", "c", ""]]
    assert rates(rows) == {"closed": 50.0}
    row = {"instruction_id_list": ["keywords:existence"], "kwargs": [{"keywords": ["x"]}]}
    rows.append(dict(row, response="x"))
    assert rates(rows) == {"closed": 50.0, "creative": 100.0}
    assert not set(CLOSED) & set(CREATIVE)


# --- Against the reference code.

def test_agrees_with_the_reference_vectors():
    path = SHARED / "parity" / "ifeval_verifiers.jsonl"
    if not path.exists():
        pytest.skip(f"no reference vectors at {path}")
    for line in open(path, encoding="utf-8"):
        v = json.loads(line)
        assert follows(v["instruction_id"], v["kwargs"], v["response"]) is v["expected"], v


def test_reproduces_every_published_desta2_verdict():
    if not DESTA.exists():
        pytest.skip(f"no published outputs at {DESTA}")
    rows = [json.loads(line) for part in ("closed_ended_questions", "creative_writing")
            for line in open(DESTA / f"rule_eval@{part}.jsonl.jsonl", encoding="utf-8")]
    assert len(rows) == 1333
    for row in rows:
        ours = [follows(i, k, row["response"]) for i, k in zip(row["instruction_id_list"], row["kwargs"])]
        assert ours == row["follow_instruction_list"], row["id"]
    percent = rates(rows)
    assert round(percent["closed"], 2) == 83.71 and round(percent["creative"], 2) == 91.75   # the paper's Table 2
