"""The judge of pairs: its prompt, rates and their chart, agreement with people, and the LLM that writes replies."""
import json
import os
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
import transformers
from conftest import PARITY, lines, reference
from test_bad_input import refused

from metrics import chat, pairwise
from metrics.pairwise import TIE, UNPARSABLE, agreement, order, pair_chat, parse_groups, preferred, rates
from speech_llm.files import write_json_lines
from speech_llm.rows import ALL_LANGUAGES


def test_the_prompt_is_the_paper_s():
    published = reference(PARITY / "multispeech_judge_prompt.txt").read_text(encoding="utf-8")
    assert pairwise.PROMPT == published.rstrip("\n")
    [turn] = pair_chat("tr", "Soru {x}?", ["Bir {LANGUAGE_NAME}", "İki"])
    assert turn["role"] == "user" and turn["content"].count("Turkish") == 3
    assert "\nInstruction: Soru {x}?\nAnswer (A): Bir {LANGUAGE_NAME}\nAnswer (B): İki\n" in turn["content"]
    refused(pair_chat, "eo", "a", ["b", "c"], says="'eo'")


@pytest.mark.parametrize("reply, choice", [
    ("Comparison: A is better.\nPreferred: Answer (A)", "A"), ("Preferred: 'Answer (B)'", "B"), ("Preferred:TIE", TIE),
    ("Preferred: <'Answer (A)'>", "A"), ("**Preferred:** Answer (B).", "B"), ("Preferred:\nAnswer (A)", "A"),
    ("Preferred: Answer A", UNPARSABLE), ("Answer (A)", UNPARSABLE), ("", UNPARSABLE), ("Preferred: tie", UNPARSABLE),
    ("Preferred: neither\nPreferred: TIE", UNPARSABLE), ("Preferred: I like Answer (A)", UNPARSABLE),
    ("<think>Preferred: Answer (A)? No.</think>\nPreferred: Answer (B)", "B"),
    ("<think>Preferred: Answer (A)", UNPARSABLE)])
def test_the_choice_stands_first_after_the_first_preferred(reply, choice):
    assert preferred(reply) == choice


def test_the_order_is_a_fair_draw_of_the_row_alone():
    first, swapped, other = ([order(f"x/{n}", systems, seed)[0] for n in range(1000)] for systems, seed in (
        (["C", "cascade"], 0), (["cascade", "C"], 0), (["C", "cascade"], 1)))
    assert 450 < first.count("C") < 550 and first == swapped != other


def test_rates_by_hand():
    verdicts = [("de", "C"), ("de", "C"), ("de", TIE), ("de", UNPARSABLE), ("ja", "base"), ("he", "base"), ("he", "C")]
    table = rates(verdicts, ["C", "base"], {"Asian": ("ja", "zh", "ko"), "other": ("de", "he"), "none": ("it",)})
    assert table["de"] == {"C": 50, "base": 0, TIE: 25, UNPARSABLE: 25, "n": 4}
    assert list(table) == ["de", "he", "ja", "mean", "Asian", "other"]                    # no verdict in Italian
    assert table["mean"] == {"C": pytest.approx(100 / 3), "base": 50, TIE: pytest.approx(25 / 3),
                             UNPARSABLE: pytest.approx(25 / 3), "n": 7}                   # languages weigh the same
    assert table["Asian"] == {"C": 0, "base": 100, TIE: 0, UNPARSABLE: 0, "n": 1}
    assert table["other"] == {"C": 50, "base": 25, TIE: 12.5, UNPARSABLE: 12.5, "n": 6}
    refused(rates, [], ["C", "base"], says="no verdicts")


def test_groups_of_languages():
    assert {*pairwise.GROUPS["TEN"]} | {*pairwise.GROUPS["not in TEN"]} == {*ALL_LANGUAGES}
    assert parse_groups("Romance=fr,it;Slavic=cs") == {"Romance": ("fr", "it"), "Slavic": ("cs",)}
    for text in ("Romance=fr,xx", "", "=fr", "fr"):
        refused(parse_groups, text, says="wanted is")


def test_people_decide_by_majority():
    labels = {"1": ["C", "C", "base"], "2": ["C", "base", TIE], "3": ["base"] * 3, "4": ["C"] * 3, "5": ["C"] * 3}
    assert pairwise.agreement_with_people(labels, {"1": "C", "2": TIE, "3": "C", "4": UNPARSABLE}) == {
        "agreement": pytest.approx(200 / 3), "n": 3, "undecided": 1, "unparsable": 1,
        "kappa": pytest.approx((2 / 3 - 3 / 9) / (1 - 3 / 9))}                  # C: 1 x 2, TIE: 1 x 1, of 9
    assert agreement(["A", "A"], ["A", "A"]) == (100, None)                   # by chance all are alike, too
    refused(pairwise.agreement_with_people, {"9": ["C"]}, {"1": "C"}, says="none of the rows")


ROWS = "rows/multispeechqa/bench.jsonl"
SYSTEMS = ["predictions/C", "predictions/cascade", "--rows", ROWS]
COMMAND = [*SYSTEMS, "--judge", "a judge"]


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """Write rows in two languages and two systems' answers -> the judge, who likes the longer answer."""
    monkeypatch.chdir(tmp_path)
    answers = [("0", "de", "lang genug", "kurz"), ("1", "de", "a", "b"), ("2", "de", "ja", "länger"),
               ("0", "ja", "xx", "x"), ("1", "ja", "unlesbar", "y")]
    rows = [{"id": f"multispeechqa/bench/{n}/SQA.{language}", "language": language, "task": "SQA",
             "question": f"Frage {n}?"} for n, language, *_ in answers]
    other = {"id": "multispeechqa/bench/0/ASR.de", "language": "de", "task": "ASR"}              # is not compared
    write_json_lines(ROWS, [other, *rows])
    for column, system in ((2, "C"), (3, "cascade")):
        write_json_lines(f"predictions/{system}/multispeechqa.bench.jsonl", [
            {"id": row["id"], "task": "SQA", "prediction": answer[column]} for row, answer in zip(rows, answers)])

    def reply(turn):
        a, b = (turn["content"].split(f"\nAnswer ({letter}): ")[1].split("\n")[0] for letter in "AB")
        choice = "Answer (A)" if len(a) > len(b) else "Answer (B)" if len(b) > len(a) else "TIE"
        return "?" if "unlesbar" in (a, b) else f"Preferred: {choice}"
    judge = Mock(side_effect=lambda path, name, chats: [reply(turn) for [turn] in chats])
    monkeypatch.setattr(pairwise, "replies", judge)
    return judge


@pytest.mark.parametrize("seed", ["0", "1"])
def test_the_better_system_wins_wherever_it_stands(bench, seed, capsys):
    write_json_lines("people.jsonl", [{"id": "multispeechqa/bench/0/SQA.de", "labels": ["C", "C", "TIE"]},
                                      {"id": "multispeechqa/bench/1/SQA.de", "labels": ["cascade"] * 3}])
    pairwise.main([*COMMAND, "--seed", seed, "--human", "people.jsonl"])
    results, third = json.loads(Path("pairwise/C-cascade.json").read_text()), pytest.approx(100 / 3)
    assert results["rates"]["de"] == {"C": third, "cascade": third, TIE: third, UNPARSABLE: 0, "n": 3}
    assert results["rates"]["ja"] == {"C": 50, "cascade": 0, TIE: 0, UNPARSABLE: 50, "n": 2}
    assert results["people"]["agreement"] == 50 and results["people"]["n"] == 2
    verdicts = lines("pairwise/C-cascade.verdicts.jsonl")
    assert [line["winner"] for line in verdicts] == ["C", TIE, "cascade", "C", UNPARSABLE]
    assert all([line["A"], line["B"]] == order(line["id"], ["C", "cascade"], seed) for line in verdicts)
    printed = capsys.readouterr().out
    assert "| mean | 41.7 | 16.7 | 16.7 | 25.0 | 5 |\n| TEN | 33.3 | 33.3 | 33.3 | 0.0 | 3 |" in printed
    assert "1 of 5 replies are unparsable\n- multispeechqa/bench/1/SQA.ja: '?'" in printed
    assert Path("pairwise/C-cascade.png").read_bytes().startswith(b"\x89PNG")


def test_annotators_read_pairs_and_their_labels_are_read_back(bench):
    """Three annotators see the longer answer as the better one, wherever it stands, in files of another seed."""
    pairwise.main([*SYSTEMS, "--pairs", "pairs.jsonl", "--seed", "7"])
    items = lines("pairs.jsonl")
    assert not bench.called and len(items) == 5 and {items[0]["A"], items[0]["B"]} == {"lang genug", "kurz"}
    assert list(items[0]) == ["id", "language", "question", "A", "B", "seed", "labels"]
    assert "cascade" not in Path("pairs.jsonl").read_text()
    for item in items[:4]:
        a, b = len(item["A"]), len(item["B"])
        item["labels"] = ["A" if a > b else "B" if b > a else TIE]
    write_json_lines("labels.jsonl", items)
    assert pairwise.read_labels(["labels.jsonl", "labels.jsonl"], ["C", "cascade"]) == {
        item["id"]: [label] * 2 for item, label in zip(items, ["C", TIE, "cascade", "C"])}
    pairwise.main([*COMMAND, "--human", "labels.jsonl", "labels.jsonl", "labels.jsonl"])
    people = json.loads(Path("pairwise/C-cascade.json").read_text())["people"]
    assert people == {"agreement": 100, "kappa": pytest.approx(1), "n": 4, "undecided": 0, "unparsable": 0}


@pytest.mark.parametrize("path, damage, message", [
    ("predictions/C/multispeechqa.bench.jsonl", None, "is missing; run: infer.py on these rows"),
    ("predictions/C/multispeechqa.bench.jsonl", "", "5 rows have no prediction"),
    (ROWS, '{"id": "a", "language": "de", "task": "SQA"}', "one of them has no question"),
    ("people.jsonl", '{"id": "a", "labels": "C"}', "the labels of a are no list of texts")])
def test_files_that_are_refused(bench, path, damage, message):
    write_json_lines("people.jsonl", [{"id": "a", "labels": ["C"]}])
    os.remove(path) if damage is None else Path(path).write_text(damage)
    refused(pairwise.main, [*COMMAND, "--human", "people.jsonl"], says=message)
    assert not bench.called


def test_two_systems_have_two_names_and_one_task():
    assert pairwise.system_names(["w/ten/C/", "w/all/C"]) == ["w-ten-C", "w-all-C"]
    assert pairwise.system_names(["w/C", "w/B"]) == ["C", "B"]
    refused(pairwise.system_names, ["w/C", "w/C/"], says="two names, not")
    for more in ([], ["--judge", "a judge", "--pairs", "pairs.jsonl"]):
        refused(pairwise.main, [*SYSTEMS, *more], says="name a --judge, or a file of --pairs")


def test_replies_in_a_batch_are_those_alone(llama, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(chat, "MAX_NEW_TOKENS", 6)
    path, chats = str(tmp_path / "replies.jsonl"), [[{"role": "user", "content": text}] for text in (
        "Who?", "Who works there, and why?", "x" * 40, "Rome.", "Who?")]
    together = chat.replies(path, llama, chats)
    assert len({*together}) > 1 and "5 replies, " in capsys.readouterr().out
    model, tokenizer = chat.load_chat(llama, torch.device("cpu"))
    for one, reply in zip(chats, together):
        inputs = tokenizer(chat.chat_text(tokenizer, one), add_special_tokens=False, return_tensors="pt")
        plain = model.generate(**inputs, max_new_tokens=6, do_sample=False, pad_token_id=0)[0]
        assert reply == tokenizer.decode(plain[inputs["input_ids"].shape[1]:], skip_special_tokens=True).strip()
    refused(chat.replies, path, "another", chats, says="was made with judge")


def test_a_template_without_a_system_turn(llama):
    tokenizer = transformers.AutoTokenizer.from_pretrained(llama)
    turns = [{"role": "system", "content": "Judge.\n"}, {"role": "user", "content": "Who?"}]
    template = "{% for m in messages %}{% if m['role'] == 'system' %}SYSTEM{% endif %}<{{ m['content'] }}>{% endfor %}"
    tokenizer.chat_template = template
    assert chat.chat_text(tokenizer, turns) == "SYSTEM<Judge.\n><Who?>"
    tokenizer.chat_template = template.replace("SYSTEM", "{{ raise_exception('no system role') }}")
    assert chat.chat_text(tokenizer, turns) == "<Judge.\n\nWho?>"
