"""Speech-IFEval: its verifiers, the published outputs scored again, the judge's steps, its files through infer.py."""
import json
import os
from collections import Counter
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import soundfile
import torch
from conftest import lines
from test_bad_input import refused
from transformers import SeamlessM4Tv2Model

import extract_features
from data import speech_ifeval as recipe
from data.tiny_models import seamless_config
from metrics import speech_ifeval
from metrics.ifeval import CLOSED, CREATIVE, follows, rates
from metrics.speech_ifeval import GROUPS, judge_chat, scores, verdict
from speech_llm.cache import features_folder
from speech_llm.files import write_json_lines
from speech_llm.prompts import user_turn
from speech_llm.rows import read_rows

DESTA = "speech_ifeval/reference_outputs/DeSTA-ntu--DeSTA2-8B-beta"


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


def test_constraints_that_cannot_be_verified():
    assert not {*CLOSED} & {*CREATIVE}
    refused(follows, "startend:quotes", {}, "a", says="startend:quotation")
    refused(follows, "length_constraints:number_words", {"num_words": 3, "relation": "more than"}, "a", says="at least")
    refused(rates, [{"id": 7, "instruction_id_list": [], "kwargs": [], "response": "a"}], says="one group")
    with pytest.raises(KeyError):
        follows("detectable_format:number_bullet_lists", {}, "* a")


def test_the_published_outputs_give_the_published_scores(real, tmp_path, capsys):
    """Table 2 of the paper, what its code gives for Table 4 on the stored replies, and what the judge was asked."""
    speech_ifeval.main([f"{real}/{DESTA}", "--out", str(tmp_path)])
    scored = json.loads((tmp_path / "DeSTA-ntu--DeSTA2-8B-beta.json").read_text())
    assert [round(scored[name], 2) for name in ("closed", "creative", "cot")] == [83.71, 91.75, 91.50]
    assert round(scored["IFrate"], 2) == 88.99
    for group, published in (("closed", [8.92, 58.5, 85.0, 46.55]), ("plain", [4.87, 64.5, 85.5, 45.35])):
        assert [round(scored["tasks"][group][task], 2) for task in ("ASR", "SER", "GR", "MMAU")] == published
    assert scored["constraints"]["CC"][1] == 250 and scored["constraints"]["LN"][1] == 200
    assert "| DeSTA-ntu--DeSTA2-8B-beta | 83.71 | 91.75 | 91.50 | 88.99 |" in capsys.readouterr().out
    stored = lines(f"{real}/{DESTA}/reports/llm_eval@closed_ended_questions.jsonl")
    assert len(stored) == 933 and all(judge_chat(item) == item["messages"] for item in stored)


def item(response, constraint="change_case:english_capital", reply=None, **more):
    """An item of the benchmark with a response; `more` replaces what it holds."""
    values = {"audio_filepath": "MMAU/a.wav", "textual_audio": "[0 - 1] Hi.", "instruction": "Who?\nBe loud.",
            "dataset": "MMAU", "metric": "accuracy", "instruction_id_list": [constraint], "kwargs": [{}], "label": "Al",
            "response": response, **more}
    return values if reply is None else {**values, "eval_response": reply}


SPOKEN = dict(dataset="Automatic_speech_recognition", metric="wer", label="a b c d")
SMALL = {
    "closed": [item("AL", reply="Result: YES"), item("Bo", reply="Result: NO"), item("AL", reply="no idea"),
               item("A B X", reply="A B X", **SPOKEN), item('"A"', "startend:quotation", "A", **SPOKEN)],
    "creative": [item("a cat", "keywords:existence", kwargs=[{"keywords": ["cat"]}], metric="open"),
                 item("a dog", "keywords:existence", kwargs=[{"keywords": ["cat"]}], metric="open")],
    "cot": [item("So it is.", reply="Result: YES", metric="cot"), item("It.", reply="Result: NO", metric="cot"),
            item("It.", reply="Result: <YES>", metric="cot")],
}


def test_scores_by_hand():
    scored = scores(SMALL)
    assert scored["closed"] == 80 and scored["creative"] == 50 and scored["cot"] == 50      # one YES of two verdicts
    assert scored["IFrate"] == pytest.approx(60) and scored["unparsable"] == pytest.approx(100 / 3)
    assert scored["constraints"] == {"change_case:english_capital": (75, 4), "startend:quotation": (100, 1),
                                    "keywords:existence": (50, 2), "CC": (75, 4), "WR": (100, 1), "KW": (50, 2)}
    tasks = scored["tasks"]["closed"]
    assert tasks["ASR"] == 100 * 5 / 8 and tasks["altered"] == 0             # c, d -> x and nothing; b, c, d are gone
    assert tasks["MMAU"] == 50 and tasks["unparsable"] == pytest.approx(100 / 3)
    changed = [item("hello there", reply="hello my friend", **SPOKEN), item("hi", reply="", **SPOKEN)]
    assert speech_ifeval.task_scores(changed)["altered"] == 50               # "my" and "friend" are the judge's words
    bare = scores({group: [{key: one[key] for key in one if key != "eval_response"} for one in items]
                   for group, items in SMALL.items()})                       # without a judge
    assert bare["closed"] == 80 and not {"cot", "IFrate", "unparsable"} & bare.keys()


@pytest.mark.parametrize("reply, expected", [
    ("It reasons.\nResult: yes", True), ("RESULT:\nNO. Result: YES", False), ("Result:  YES", None), ("YES", None),
    ("Result:YES", None), ("Result: maybe", None), ("<think>Result: no?</think>Result: yes", True),
    ("<think>Result: no", None)])
def test_verdicts_by_hand(reply, expected):
    assert verdict(reply) is expected


def test_the_published_forgetting_rates():
    for rate, reference, published in ((36.89, 74.07, -50.20), (68.06, 74.07, -8.11), (29.19, 64.73, -54.90)):
        assert speech_ifeval.forgetting_rate(rate, reference) == pytest.approx(published, abs=0.006)


def test_the_judge_sees_neither_constraint_nor_too_much():
    system, user = judge_chat(item("IT IS AL"))
    assert user["content"] == "Question: Who?\nGround Truth Answer: Al\nModel's Response: IT IS AL"
    plain = {key: value for key, value in item("a {label}").items() if key not in ("instruction_id_list", "kwargs")}
    assert "Who?\nBe loud." in judge_chat({**plain, "metric": "cot"})[1]["content"]
    assert judge_chat(plain)[1]["content"].endswith("Model's Response: a {label}")
    assert judge_chat(item("x", metric="open")) is None


def test_the_points_of_a_curve_over_lora_s_scale(tmp_path):
    half = {**SMALL, "creative": SMALL["creative"][:1], "plain": [item("AL", reply="Result: YES", dataset=dataset)
            for dataset in ("MMAU", "Gender_recognition")] + [item("x", reply="Result: NO", dataset="MMAU")]}
    first, last = speech_ifeval.point(scores(half)), speech_ifeval.point(scores(SMALL))
    assert first["accuracy"] == 75 and "WER" not in first                    # MMAU 50, GR 100, without a constraint
    assert last["accuracy"] == 50 and last["WER"] == 62.5                    # with one: there is nothing else
    speech_ifeval.plot_curve([{"scale": 0.125, **first}, {"scale": 1, **last}], str(tmp_path / "curve.png"), "C")
    assert (tmp_path / "curve.png").read_bytes()[:4] == b"\x89PNG" and os.listdir(tmp_path) == ["curve.png"]


WORLD = [{"id": f"tiny/test-{n}/{task}.{language}{invalid}", "utterance": f"tiny/test-{n}", "audio": f"{n}.flac",
          "task": task, "language": language, "answerable": not invalid, "transcript": f"Anna has {n} cats.",
          "target": f"Anna has {n} cats." if task == "ASR" else "Anna",
          **({"question": "Who has cats?"} if task == "SQA" else {})}
         for n in range(8)
         for task, language, invalid in (("ASR", "en", ""), ("ST", "de", ""), ("SQA", "en", ""),
                                         ("SQA", "en", "-invalid"), ("SQA", "it", ""))]


def results_of_toy():
    """Return {system: its scores} of C and the text LLM."""
    return {system: json.loads(Path(f"work/tiny/speech_ifeval/{system}.json").read_text()) for system in ("C", "llm")}


def test_the_questions_of_a_small_world(tmp_path, monkeypatch, capsys):
    """Of every utterance the transcript and one answer, every constraint equally often; answers in form obey all."""
    monkeypatch.chdir(tmp_path)
    recipe.write_world("work", "tiny", WORLD)
    rows = {group: read_rows(f"work/rows/tiny/{group}.jsonl") for group in ("closed", "plain")}
    assert [row["question"].split("\n")[0] for row in rows["closed"]] == [row["question"] for row in rows["plain"]]
    plain = [row["target"] for row in rows["plain"]]
    assert plain == [row["target"] for row in WORLD if row["id"].endswith(("ASR.en", "SQA.en"))]
    asked = Counter(row["question"].split("\n")[1] for row in rows["closed"])
    assert asked == {words: 4 for words, *_ in recipe.CONSTRAINTS}

    for group in rows:                       # C gives the right answers in plain form, the LLM in the form asked for
        for system, answers in (("C", plain), ("llm", [row["target"] for row in rows[group]])):
            write_json_lines(f"work/tiny/predictions/{system}/tiny.{group}.jsonl", [
                {"id": row["id"], "prediction": answer} for row, answer in zip(rows[group], answers)])
    speech_ifeval.main(["work/tiny/predictions/C", "--reference", "work/tiny/predictions/llm", "--corpus", "tiny",
                        "--judge", "contains"])
    printed, scored = capsys.readouterr().out, results_of_toy()
    assert "| system | closed | forgetting, closed |\n|---|---|---|\n| C | 0.00 | -100.00 |\n" in printed
    assert scored["llm"]["closed"] == scored["llm"]["tasks"]["closed"]["SQA"] == 100
    assert scored["C"]["tasks"] == {group: {"ASR": 0, "altered": 0, "SQA": 100, "unparsable": 0} for group in rows}


def test_a_spoken_question_is_asked_with_its_constraint_alone():
    """The listeners hear the question; beside it only the constraint is written, or the words for a transcript."""
    spoken, constraint = {**WORLD[2], "transcript": "Who has cats?"}, recipe.CONSTRAINTS[0]
    assert recipe.constrained(spoken, constraint, "listeners")["question"] == constraint[0]
    assert recipe.plain(spoken, "listeners") == spoken
    assert recipe.constrained(WORLD[0], constraint, "listeners")["question"] == (
        f"Transcribe this utterance\n{constraint[0]}")


def benchmark(raw):
    """Write five closed-ended questions, two stories, two of reasoning; three recordings, of which one is missing."""
    audio = ["Gender_recognition/a.wav", "MMAU/b.flac", "MMAU/gone.wav"]
    noise = np.random.default_rng(0)
    for path in audio[:2]:
        (raw / "audios" / path).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(raw / "audios" / path, 0.1 * noise.standard_normal(20000), 16000)
    closed = [item("", id=n, audio_filepath=audio[n % 3], instruction="Who speaks?\nUse capital letters only.")
              for n in range(5)]
    stories = [item("", "keywords:existence", kwargs=[{"keywords": ["cat"]}], id=934 + n, metric="open",
                    audio_filepath=audio[0], instruction="Tell a story with a cat.") for n in range(2)]
    reasons = [item("", metric="cot", instruction="Why?\nThink.", audio_filepath=path) for path in audio[:2]]
    plain = [{**one, "instruction": "Who speaks?"} for one in closed]
    needless = {"closed": (), "creative": ("label",), "plain": ("instruction_id_list", "kwargs"), "cot": ("label",)}
    for (group, keys), items in zip(needless.items(), (closed, stories, plain, reasons)):
        write_json_lines(raw / "eval_data" / f"{GROUPS[group][0]}.jsonl", [
            {key: one[key] for key in one if key not in ("response", *keys)} for one in items])


def test_the_real_files_have_the_published_numbers(real, tmp_path, capsys):
    os.makedirs(tmp_path / "data" / "audios")
    os.symlink(f"{real}/speech_ifeval/eval_data", tmp_path / "data" / "eval_data")               # as in the clone
    arguments = ["--work", str(tmp_path / "work"), "--raw", str(tmp_path)]
    refused(recipe.main, arguments, says="recordings: 933 of 933 cannot be read")
    recipe.main([*arguments, "--incomplete"])
    assert capsys.readouterr().out.count("| +0 |") == 2 * 4
    rows = [row for group in GROUPS for row in read_rows(str(tmp_path / f"work/rows/speech_ifeval/{group}.jsonl"))]
    assert len(rows) == 2466 and len({row["utterance"] for row in rows}) == 933


def test_rows_go_through_infer_and_are_scored(after_training, run_stage, monkeypatch, capsys):
    """Audio and instruction in, scores of C beside those of the text LLM out; the silent recording obeys nothing."""
    torch.manual_seed(0)
    SeamlessM4Tv2Model(seamless_config()).save_pretrained("work/models/tiny-seamless")
    benchmark(Path("work/raw/speech_ifeval"))
    recipe.main(["--incomplete"])
    printed = capsys.readouterr().out
    assert "gone.wav: no such file" in printed and "1 recordings cannot be read" in printed
    assert "| closed: SQA/QA en | 5 | 933 | -928 |" in printed
    rows = {group: read_rows(f"work/rows/speech_ifeval/{group}.jsonl") for group in GROUPS}
    assert {group: [row["id"].rpartition("/")[2] for row in rows[group]] for group in rows} == {
        "closed": [*"01234"], "plain": [*"01234"], "creative": ["934", "935"], "cot": ["0", "1"]}
    row = rows["closed"][1]
    assert row["utterance"] == "speech_ifeval/MMAU/b" and row["audio"].endswith("speech_ifeval/audios/MMAU/b.flac")
    assert user_turn(row)[1].startswith("</speech>\nQuestion: Who speaks? Use capital letters only.\n")
    assert user_turn(row, text=True)[0].startswith("Content: <text>[0 - 1] Hi.</text>\nQuestion: Who speaks? Use")

    extract_features.main(["--corpora", "speech_ifeval"])        # closed and plain questions share their frames
    folders = {split: features_folder("work", "e", 3, "speech_ifeval", split) for split in GROUPS}
    assert folders["closed"] == folders["plain"] and len({*folders.values()}) == 3
    tests = ",".join(f"speech_ifeval.{group}" for group in GROUPS)
    run_stage("infer", "--systems", "llm,C:merged", "--test_sets", tests)
    ours, llm = (f"work/tiny/predictions/{system}" for system in ("C", "llm"))
    judge = Mock(side_effect=lambda path, name, chats: ["Result: YES" for _ in chats])
    monkeypatch.setattr(speech_ifeval, "replies", judge)
    speech_ifeval.main([ours])
    assert "no IFrate without closed, creative and a judge" in capsys.readouterr().out
    arguments = [ours, "--reference", llm, "--judge", "a judge"]
    speech_ifeval.main(arguments)
    printed, scored = capsys.readouterr().out, results_of_toy()
    answers = {p["id"]: p["prediction"] for p in lines(f"{ours}/speech_ifeval.closed.jsonl")}
    assert list(answers) == [row["id"] for row in rows["closed"]] and answers["speech_ifeval/closed/2"] == ""
    assert scored["C"]["closed"] == 100 * sum(text.isupper() for text in answers.values()) / 5
    assert scored["C"]["IFrate"] == pytest.approx((scored["C"]["closed"] + scored["C"]["creative"] + 100) / 3)
    change = 100 * (scored["C"]["IFrate"] - scored["llm"]["IFrate"]) / scored["llm"]["IFrate"]
    assert f"| {scored['C']['IFrate']:.2f} | {change:.2f} |" in printed
    question = "Question: Who speaks?\nGround Truth Answer: Al\nModel's Response: "
    asked = {chat[1]["content"] for call in judge.call_args_list for chat in call.args[2]}
    assert asked >= {question + text for text in answers.values()}
    Path(f"{ours}/speech_ifeval.cot.jsonl").write_text("")
    refused(speech_ifeval.main, arguments, names="2 items of", says="chain-of-thought.jsonl have no prediction")


def test_folders_of_responses_that_cannot_be_scored(tmp_path):
    told = item("x", metric="cot", reply="Result: YES")
    write_json_lines(tmp_path / "b/C/chain-of-thought.jsonl", [told])
    write_json_lines(tmp_path / "b/C/reports/llm_eval@chain-of-thought.jsonl", [{**told, "response": "y"}])
    (tmp_path / "a/C").mkdir(parents=True)
    for systems, says in ((["a"], "holds no responses; run infer.py"), (["a/C", "b/C"], "two systems have one name"),
                          (["b/C"], "judges other responses")):
        folders = [str(tmp_path / system) for system in systems]
        refused(speech_ifeval.main, [*folders, "--out", str(tmp_path)], says=says)
