"""The judge of pairs: its prompt, rates and their chart, agreement with people, and the LLM that writes replies."""
import json
import os
from pathlib import Path

import pytest
import torch
import transformers
from references import PARITY, lines, reference, vectors

from metrics import chat, pairwise
from metrics.pairwise import TIE, UNPARSABLE, agreement, order, pair_chat, parse_groups, preferred, rates
from speech_llm.rows import ALL_LANGUAGES


def write_lines(path, values):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")


# --- One pair.

def test_the_prompt_is_the_paper_s():
    published = reference(PARITY / "multispeech_judge_prompt.txt").read_text(encoding="utf-8")
    assert pairwise.PROMPT == published.rstrip("\n")
    [turn] = pair_chat("tr", "Soru {x}?", ["Bir {LANGUAGE_NAME}", "İki"])
    assert turn["role"] == "user" and turn["content"].count("Turkish") == 3
    assert "\nInstruction: Soru {x}?\nAnswer (A): Bir {LANGUAGE_NAME}\nAnswer (B): İki\n" in turn["content"]
    with pytest.raises(ValueError, match="'eo'"):
        pair_chat("eo", "a", ["b", "c"])
    assert len(ALL_LANGUAGES) == 23


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
    first = [order(f"x/{n}", ["C", "cascade"], 0)[0] for n in range(1000)]
    assert 450 < first.count("C") < 550
    assert first == [order(f"x/{n}", ["cascade", "C"], 0)[0] for n in range(1000)]
    assert first != [order(f"x/{n}", ["C", "cascade"], 1)[0] for n in range(1000)]


# --- Rates and agreement.

def test_rates_by_hand():
    verdicts = [("de", "C"), ("de", "C"), ("de", TIE), ("de", UNPARSABLE), ("ja", "base"), ("he", "base"), ("he", "C")]
    table = rates(verdicts, ["C", "base"], {"Asian": ("ja", "zh", "ko"), "other": ("de", "he"), "none": ("it",)})
    assert table["de"] == {"C": 50, "base": 0, TIE: 25, UNPARSABLE: 25, "n": 4}
    assert list(table) == ["de", "he", "ja", "mean", "Asian", "other"]                    # no verdict in Italian
    assert table["mean"] == {"C": pytest.approx(100 / 3), "base": 50, TIE: pytest.approx(25 / 3),
                             UNPARSABLE: pytest.approx(25 / 3), "n": 7}                   # languages weigh the same
    assert table["Asian"] == {"C": 0, "base": 100, TIE: 0, UNPARSABLE: 0, "n": 1}
    assert table["other"] == {"C": 50, "base": 25, TIE: 12.5, UNPARSABLE: 12.5, "n": 6}
    with pytest.raises(ValueError, match="no verdicts"):
        rates([], ["C", "base"])


def test_groups_of_languages():
    assert {*pairwise.GROUPS["TEN"]} | {*pairwise.GROUPS["not in TEN"]} == {*ALL_LANGUAGES}
    assert parse_groups("Romance=fr,it;Slavic=cs") == {"Romance": ("fr", "it"), "Slavic": ("cs",)}
    for text in ("Romance=fr,xx", "", "=fr", "fr"):
        with pytest.raises(SystemExit, match="--groups .*wanted is"):
            parse_groups(text)


def test_kappa_by_hand():
    """Four of five alike; by chance 4/5 x 3/5 + 1/5 x 2/5 = 0.56: kappa = 0.24 / 0.44."""
    alike, kappa = agreement(["B", "B", "B", TIE, "B"], ["B", "B", "B", TIE, TIE])
    assert (alike, kappa) == (80, pytest.approx(6 / 11))
    assert agreement(["A", "B"], ["B", "A"]) == (0, -1) and agreement(["A", "A"], ["A", "A"]) == (100, None)
    assert agreement(["A", "A", "B", "B"], ["A", "B", "A", "B"]) == (50, 0)


def test_kappa_agrees_with_the_reference():
    for v in vectors("kappa.jsonl"):
        assert agreement(v["human"], v["llm"]) == (pytest.approx(100 * v["agreement"]), pytest.approx(v["cohen_kappa"]))


def test_people_decide_by_majority():
    labels = {"1": ["C", "C", "base"], "2": ["C", "base", TIE], "3": ["base"] * 3, "4": ["C"] * 3, "5": ["C"] * 3}
    people = pairwise.agreement_with_people(labels, {"1": "C", "2": TIE, "3": "C", "4": UNPARSABLE})
    assert people["agreement"] == pytest.approx(200 / 3) and people["n"] == 3
    assert (people["undecided"], people["unparsable"]) == (1, 1)
    assert people["kappa"] == pytest.approx((2 / 3 - 3 / 9) / (1 - 3 / 9))      # C: 1 x 2, TIE: 1 x 1, of 9
    with pytest.raises(SystemExit, match="none of the rows"):
        pairwise.agreement_with_people({"9": ["C"]}, {"1": "C"})


# --- From two folders of predictions to the rates.

@pytest.fixture
def bench(tmp_path, monkeypatch):
    """Rows in two languages, answers of two systems, and a judge who likes the longer answer."""
    monkeypatch.chdir(tmp_path)
    answers = {"de": [("lang genug", "kurz"), ("a", "b"), ("ja", "länger")], "ja": [("xx", "x"), ("unlesbar", "y")]}
    rows = [{"id": f"multispeechqa/bench/{n}/SQA.{language}", "language": language, "task": "SQA",
             "question": f"Frage {n}?"} for language in answers for n in range(len(answers[language]))]
    other = {"id": "multispeechqa/bench/0/ASR.de", "language": "de", "task": "ASR"}              # is not compared
    write_lines("rows/multispeechqa/bench.jsonl", [other, *rows])
    pairs = [pair for pairs in answers.values() for pair in pairs]
    for place, system in enumerate(("C", "cascade")):
        write_lines(f"predictions/{system}/multispeechqa.bench.jsonl", [
            {"id": row["id"], "task": "SQA", "prediction": pair[place]} for row, pair in zip(rows, pairs)])
    asked = []

    def judge(llm, tokenizer, chats):
        asked.extend(chats)
        replies = []
        for [turn] in chats:
            a, b = (turn["content"].split(f"\nAnswer ({letter}): ")[1].split("\n")[0] for letter in "AB")
            choice = "Answer (A)" if len(a) > len(b) else "Answer (B)" if len(b) > len(a) else "TIE"
            replies.append({"reply": "?" if "unlesbar" in (a, b) else f"Preferred: {choice}", "capped": False})
        return replies
    monkeypatch.setattr(chat, "load_chat", lambda name, device: (None, None))
    monkeypatch.setattr(chat, "write_replies", judge)
    return asked


SYSTEMS = ["predictions/C", "predictions/cascade", "--rows", "rows/multispeechqa/bench.jsonl"]
COMMAND = [*SYSTEMS, "--judge", "a judge"]


@pytest.mark.parametrize("seed", ["0", "1"])
def test_the_better_system_wins_wherever_it_stands(bench, seed, capsys):
    write_lines("people.jsonl", [{"id": "multispeechqa/bench/0/SQA.de", "labels": ["C", "C", "TIE"]},
                                 {"id": "multispeechqa/bench/1/SQA.de", "labels": ["cascade"] * 3}])
    pairwise.main([*COMMAND, "--seed", seed, "--human", "people.jsonl"])
    results = json.loads(Path("pairwise/C-cascade.json").read_text())
    assert results["rates"]["de"] == {"C": pytest.approx(100 / 3), "cascade": pytest.approx(100 / 3),
                                      TIE: pytest.approx(100 / 3), UNPARSABLE: 0, "n": 3}
    assert results["rates"]["ja"] == {"C": 50, "cascade": 0, TIE: 0, UNPARSABLE: 50, "n": 2}
    assert results["people"]["agreement"] == 50 and results["people"]["n"] == 2
    verdicts = lines("pairwise/C-cascade.verdicts.jsonl")
    assert [line["winner"] for line in verdicts] == ["C", TIE, "cascade", "C", UNPARSABLE]
    assert all({line["A"], line["B"]} == {"C", "cascade"} for line in verdicts)
    assert [line["A"] for line in verdicts] == [order(line["id"], ["C", "cascade"], seed)[0] for line in verdicts]
    printed = capsys.readouterr().out
    assert "| mean | 41.7 | 16.7 | 16.7 | 25.0 | 5 |\n| TEN | 33.3 | 33.3 | 33.3 | 0.0 | 3 |" in printed
    assert "1 of 5 replies are unparsable\n- multispeechqa/bench/1/SQA.ja: '?'" in printed
    assert Path("pairwise/C-cascade.png").read_bytes().startswith(b"\x89PNG")
    before = len(bench)
    pairwise.main([*COMMAND, "--seed", seed])                             # nothing new to ask
    assert before == len(bench) == 5


def test_annotators_read_pairs_and_their_labels_are_read_back(bench):
    """Three annotators see the longer answer as the better one, wherever it stands, in files of another seed."""
    pairwise.main([*SYSTEMS, "--pairs", "pairs.jsonl", "--seed", "7"])
    items = lines("pairs.jsonl")
    assert not bench and len(items) == 5
    assert list(items[0]) == ["id", "language", "question", "A", "B", "seed", "labels"]
    assert {frozenset((item["A"], item["B"])) for item in items} >= {frozenset(("lang genug", "kurz"))}
    assert "cascade" not in Path("pairs.jsonl").read_text()
    for item in items[:4]:
        a, b = len(item["A"]), len(item["B"])
        item["labels"] = ["A" if a > b else "B" if b > a else TIE]
    for name in ("first", "second", "third"):
        write_lines(f"{name}.jsonl", items)
    assert pairwise.read_labels(["first.jsonl", "second.jsonl"], ["C", "cascade"]) == {
        item["id"]: [label] * 2 for item, label in zip(items, ["C", TIE, "cascade", "C"])}
    pairwise.main([*COMMAND, "--human", "first.jsonl", "second.jsonl", "third.jsonl"])
    people = json.loads(Path("pairwise/C-cascade.json").read_text())["people"]
    assert people == {"agreement": 100, "kappa": pytest.approx(1), "n": 4, "undecided": 0, "unparsable": 0}


@pytest.mark.parametrize("path, damage, message", [
    ("predictions/C/multispeechqa.bench.jsonl", None, "is missing; run infer.py on these rows"),
    ("predictions/C/multispeechqa.bench.jsonl", "", "5 rows have no prediction"),
    ("rows/multispeechqa/bench.jsonl", '{"id": "a", "language": "de", "task": "SQA"}', "one of them has no question"),
    ("people.jsonl", '{"id": "a", "labels": "C"}', "the labels of a are no list of texts")])
def test_what_it_refuses(bench, path, damage, message):
    write_lines("people.jsonl", [{"id": "a", "labels": ["C"]}])
    os.remove(path) if damage is None else Path(path).write_text(damage)
    with pytest.raises(SystemExit, match=message):
        pairwise.main([*COMMAND, "--human", "people.jsonl"])
    assert not bench


def test_two_systems_have_two_names_and_one_task():
    assert pairwise.system_names(["w/ten/C/", "w/all/C"]) == ["w-ten-C", "w-all-C"]
    assert pairwise.system_names(["w/C", "w/B"]) == ["C", "B"]
    with pytest.raises(SystemExit, match="two names, not"):
        pairwise.system_names(["w/C", "w/C/"])
    for more in ([], ["--judge", "a judge", "--pairs", "pairs.jsonl"]):
        with pytest.raises(SystemExit, match="name a --judge, or a file of --pairs"):
            pairwise.main([*SYSTEMS, *more])


# --- The LLM that writes.

CHATS = [[{"role": "user", "content": text}] for text in ("Who?", "Who works there, and why?", "x" * 40, "Rome.")]
TEMPLATE = ("{% for m in messages %}{% if m['role'] == 'system' %}SYSTEM{% endif %}<|start_header_id|>"
            "{{ m['content'] }}<|eot_id|>{% endfor %}")


@pytest.fixture
def judge_folder(llama, tmp_path):
    """The tiny Llama with a chat template."""
    folder = str(tmp_path / "judge")
    transformers.AutoModelForCausalLM.from_pretrained(llama).save_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(llama)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def test_replies_in_a_batch_are_those_alone_and_stay_in_a_file(judge_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(chat, "MAX_NEW_TOKENS", 6)
    path = str(tmp_path / "replies.jsonl")
    together = chat.replies(path, judge_folder, CHATS + CHATS[:1])
    assert len({*together}) > 1 and "5 replies, " in capsys.readouterr().out
    model, tokenizer = chat.load_chat(judge_folder, torch.device("cpu"))
    for one, reply in zip(CHATS, together):
        ids = tokenizer(chat.chat_text(tokenizer, one), add_special_tokens=False, return_tensors="pt")["input_ids"]
        plain = model.generate(input_ids=ids, max_new_tokens=6, do_sample=False, pad_token_id=0)[0, ids.shape[1]:]
        assert reply == tokenizer.decode(plain, skip_special_tokens=True).strip()

    whole = Path(path).read_bytes()
    Path(path).write_bytes(whole[:whole.rindex(b'{"item"') + 9])             # killed in the last line
    assert chat.replies(path, judge_folder, CHATS) == together[:4] and Path(path).read_bytes() == whole
    with pytest.raises(SystemExit, match="was made with judge .*; remove it"):
        chat.replies(path, "another", CHATS)


def test_a_template_without_a_system_turn(judge_folder):
    tokenizer = transformers.AutoTokenizer.from_pretrained(judge_folder)
    turns = [{"role": "system", "content": "Judge.\n"}, {"role": "user", "content": "Who?"}]
    assert chat.chat_text(tokenizer, turns).startswith("SYSTEM<|start_header_id|>Judge.")
    tokenizer.chat_template = TEMPLATE.replace("SYSTEM", "{{ raise_exception('no system role') }}")
    assert chat.chat_text(tokenizer, turns) == "<|start_header_id|>Judge.\n\nWho?<|eot_id|>"
    tokenizer.chat_template = "{{ raise_exception('never') }}"
    with pytest.raises(Exception, match="never"):
        chat.chat_text(tokenizer, turns)
