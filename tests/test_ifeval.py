"""Speech-IFEval's verifiers: worked examples, then the verdicts of the reference code."""
import pytest
from references import SHARED, lines, vectors
from test_bad_input import refused

from metrics.ifeval import CLOSED, CREATIVE, follows, rates

DESTA = SHARED / "real" / "speech_ifeval" / "reference_outputs" / "DeSTA-ntu--DeSTA2-8B-beta" / "reports"


@pytest.mark.parametrize("instruction, arguments, yes, no", [
    ("change_case:english_capital", {}, "HELLO 2!", "Hello"), ("change_case:english_lowercase", {}, "it's ok", "?"),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', "[" * 99999),
    ("startend:quotation", {}, ' "a" and "b" ', "“a”"),
    ("detectable_format:title", {}, "<<<x>>> then text", "<< >>"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Answer:"}, '"Answer:" 5', "The answer: 5"),
    ("startend:end_checker", {"end_phrase": "Bye."}, 'ok "Bye."', "Bye. ok"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "text\n* a\n\n  - b", "**a**\n**b**"),
    ("keywords:existence", {"keywords": ["spicy", "walnut"]}, "SPICY walnuts", "spicy"),
    ("keywords:forbidden_words", {"forbidden_words": ["water"]}, "Waterfall", "no WATER!"),
    ("length_constraints:number_words", {"num_words": 3, "relation": "at least"}, "it's ok", "a b"),
    ("length_constraints:number_words", {"num_words": 3, "relation": "less than"}, "a b", ""),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "at least"},
     "It cost 3.5 million. He paid.", "Mr. Smith met Prof. J. Bach at 5 p.m. in the U.S. capital."),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "a *** b", "a\n***\n***\nb")])
def test_verifiers_by_hand(instruction, arguments, yes, no):
    assert follows(instruction, arguments, yes) is True and follows(instruction, arguments, no) is False


def test_refusals_name_what_is_known():
    refused(follows, "startend:quotes", {}, "a", says="startend:quotation")
    refused(follows, "length_constraints:number_words", {"num_words": 3, "relation": "more than"}, "a", says="at least")
    with pytest.raises(KeyError):
        follows("detectable_format:number_bullet_lists", {}, "* a")
    refused(rates, [{"id": 7, "instruction_id_list": [], "kwargs": [], "response": "a"}], says="one group")


def test_rates_are_percent_of_rows():
    row = {"instruction_id_list": ["change_case:english_capital"], "kwargs": [{}]}
    rows = [dict(row, response=r) for r in ["A", "B", "c", ""]]
    assert rates(rows) == {"closed": 50.0}
    row = {"instruction_id_list": ["keywords:existence"], "kwargs": [{"keywords": ["x"]}]}
    rows.append(dict(row, response="x"))
    assert rates(rows) == {"closed": 50.0, "creative": 100.0}
    assert not set(CLOSED) & set(CREATIVE)


def test_agrees_with_the_reference_vectors():
    for v in vectors("ifeval_verifiers.jsonl"):
        assert follows(v["instruction_id"], v["kwargs"], v["response"]) is v["expected"], v


def test_reproduces_every_published_desta2_verdict():
    rows = [row for part in ("closed_ended_questions", "creative_writing")
            for row in lines(DESTA / f"rule_eval@{part}.jsonl.jsonl")]
    assert len(rows) == 1333
    for row in rows:
        ours = [follows(i, k, row["response"]) for i, k in zip(row["instruction_id_list"], row["kwargs"])]
        assert ours == row["follow_instruction_list"], row["id"]
    percent = rates(rows)
    assert round(percent["closed"], 2) == 83.71 and round(percent["creative"], 2) == 91.75   # the paper's Table 2
