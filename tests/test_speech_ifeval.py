"""Speech-IFEval: the published outputs scored again, the judge's steps, and its files through infer.py."""
import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from data import speech_ifeval as recipe
from metrics import chat, speech_ifeval
from metrics.error_rates import word_error_rate
from metrics.ifeval import follows
from metrics.speech_ifeval import GROUPS, judge_chat, normalize, questions_folder, scores, verdict
from speech_llm.cache import features_folder
from speech_llm.prompts import TASK_LINES, user_turn
from speech_llm.rows import read_rows


PARITY = Path(__file__).parents[2] / "shared" / "parity" / "speech_ifeval_llm_step.jsonl"
DESTA = "speech_ifeval/reference_outputs/DeSTA-ntu--DeSTA2-8B-beta"


def lines(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


# --- The published system.

def test_the_published_outputs_give_the_published_scores(real, tmp_path, capsys):
    """Table 2 of the paper, and what its code gives for Table 4 on the stored replies."""
    speech_ifeval.main([f"{real}/{DESTA}", "--out", str(tmp_path)])
    scored = json.loads((tmp_path / "DeSTA-ntu--DeSTA2-8B-beta.json").read_text())
    assert [round(scored[name], 2) for name in ("closed", "creative", "cot")] == [83.71, 91.75, 91.50]
    assert round(scored["IFrate"], 2) == 88.99
    constrained, plain = scored["tasks"]["closed"], scored["tasks"]["plain"]
    assert [round(constrained[task], 2) for task in ("ASR", "SER", "GR", "MMAU")] == [8.92, 58.5, 85.0, 46.55]
    assert [round(plain[task], 2) for task in ("ASR", "SER", "GR", "MMAU")] == [4.87, 64.5, 85.5, 45.35]
    assert scored["constraints"]["CC"][1] == 250 and scored["constraints"]["LN"][1] == 200
    assert "| DeSTA-ntu--DeSTA2-8B-beta | 83.71 | 91.75 | 91.50 | 88.99 |" in capsys.readouterr().out


def test_the_judge_reads_what_the_paper_s_judge_read(real):
    """Each system and user turn that is stored, byte for byte: the question without its constraint."""
    stored = lines(f"{real}/{DESTA}/reports/llm_eval@closed_ended_questions.jsonl")
    assert len(stored) == 933 and {item["metric"] for item in stored} == {"accuracy", "wer"}
    for item in stored:
        assert judge_chat(item) == item["messages"]


def test_every_stored_verdict_comes_out_the_same(real):
    for name in ("closed_ended_questions", "closed_ended_questions-woprompt", "chain-of-thought"):
        for item in lines(f"{real}/{DESTA}/reports/llm_eval@{name}.jsonl"):
            if item["metric"] == "wer":
                ours = word_error_rate([normalize(item["label"])], [normalize(item["eval_response"])])
                assert ours == pytest.approx(100 * item["correct"]), item["id"]
            else:
                assert verdict(item["eval_response"]) is item["correct"]


def test_the_judge_s_steps_agree_with_the_reference():
    if not PARITY.exists():
        pytest.skip(f"no reference vectors at {PARITY}")
    for v in lines(PARITY):
        if v["kind"] == "extract_result":
            assert verdict(v["text"]) is (v["expected"] and v["expected"].lower() == "yes"), v
        elif v["kind"] == "normalize_text":
            assert normalize(v["text"]) == v["expected"]
        else:
            assert normalize(v["label"]) == v["norm_label"] and normalize(v["eval_response"]) == v["norm_hyp"]
            assert word_error_rate([v["norm_label"]], [v["norm_hyp"]]) == pytest.approx(100 * v["wer"])


# --- Scores by hand.

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
    assert set(scored["tasks"]) == {"closed"} and "SER" not in tasks


def test_without_a_judge_there_is_no_ifrate():
    bare = {group: [{key: value for key, value in one.items() if key != "eval_response"} for one in items]
            for group, items in SMALL.items()}
    scored = scores(bare)
    assert scored["closed"] == 80 and scored["tasks"] == {} and not {"cot", "IFrate", "unparsable"} & scored.keys()


def test_what_the_judge_adds_to_a_transcript_is_counted():
    changed = [item("hello there", reply="hello my friend", **SPOKEN), item("hi", reply="", **SPOKEN)]
    assert speech_ifeval.task_scores(changed)["altered"] == 50


@pytest.mark.parametrize("rate, reference, published", [(36.89, 74.07, -50.20), (68.06, 74.07, -8.11),
                                                        (89.23, 92.53, -3.57), (29.19, 64.73, -54.90)])
def test_the_published_forgetting_rates(rate, reference, published):
    assert speech_ifeval.forgetting_rate(rate, reference) == pytest.approx(published, abs=0.006)


@pytest.mark.parametrize("reply, expected", [
    ("It reasons.\nResult: yes", True), ("RESULT:\nNO. Result: YES", False), ("Result:  YES", None), ("YES", None),
    ("Result:YES", None), ("Result: maybe", None), ("<think>Result: no?</think>Result: yes", True),
    ("<think>Result: no", None)])
def test_verdicts_by_hand(reply, expected):
    assert verdict(reply) is expected


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
    assert first["IFrate"] == pytest.approx((80 + 100 + 50) / 3) and last["IFrate"] == pytest.approx(60)
    assert first["accuracy"] == 75 and "WER" not in first                    # MMAU 50, GR 100, without a constraint
    assert last["accuracy"] == 50 and last["WER"] == 62.5                    # with one: there is nothing else
    assert speech_ifeval.point(scores({"creative": SMALL["creative"]})) == {"creative": 50}
    drawn = []
    for points in ([{"scale": 0.125, **first}, {"scale": 1, **last}], [{"scale": 0, "closed": 50}]):
        speech_ifeval.plot_curve(points, str(tmp_path / "curve.png"), "C")
        drawn.append((tmp_path / "curve.png").read_bytes())
        assert drawn[-1][:4] == b"\x89PNG" and os.listdir(tmp_path) == ["curve.png"]
    assert drawn[0] != drawn[1]


def test_salmonn_stands_at_an_eighth_of_its_training(tmp_path, monkeypatch):
    """alpha 4 of 32; the legend says whose figures they are."""
    from matplotlib.axes import Axes
    plotted, plot = [], Axes.plot

    def note(axes, *xy, **style):
        plotted.append((xy, style))
        return plot(axes, *xy, **style)
    monkeypatch.setattr(Axes, "plot", note)
    speech_ifeval.plot_curve([{"scale": 1, "IFrate": 60}, {"scale": 0, "IFrate": 80}], str(tmp_path / "curve.png"))
    (ours, _), (paper, style) = plotted
    assert ours == ([0, 1], [80, 60]) and paper == ((4 / 32, 1), (68.06, 36.89)) and style["label"].startswith("paper")


# --- The questions of the toy worlds.

WORLD = [{"id": f"tiny/test-{n}/{task}.{language}{invalid}", "utterance": f"tiny/test-{n}", "audio": f"{n}.flac",
          "task": task, "language": language, "answerable": not invalid, "transcript": f"Anna has {n} cats.",
          "target": f"Anna has {n} cats." if task == "ASR" else "Anna",
          **({"question": "Who has cats?"} if task == "SQA" else {})}
         for n in range(8)
         for task, language, invalid in (("ASR", "en", ""), ("ST", "de", ""), ("SQA", "en", ""),
                                         ("SQA", "en", "-invalid"), ("SQA", "it", ""))]


@pytest.mark.parametrize("constraint", recipe.CONSTRAINTS, ids=lambda constraint: constraint[1])
def test_what_a_tiny_llm_is_taught_obeys_its_constraint_and_no_other(constraint):
    row = recipe.constrained(WORLD[2], constraint)
    assert row["question"] == f"Who has cats?\n{constraint[0]}" and row["task"] == "SQA" and "Anna" in row["target"]
    for _, verifier, arguments, _ in recipe.CONSTRAINTS:
        quoted = (constraint[1], verifier) == ("startend:quotation", "detectable_format:json_format")    # a bare string
        assert follows(verifier, arguments, row["target"]) is (verifier == constraint[1] or quoted)
        assert not follows(verifier, arguments, "Anna is the answer.")
    assert recipe.constrained(WORLD[0], constraint)["question"].startswith(TASK_LINES["ASR", "en"] + "\n")


def test_the_questions_of_a_small_world(tmp_path, monkeypatch, capsys):
    """Of every utterance the transcript and one answer, every constraint equally often; answers in form obey all."""
    monkeypatch.chdir(tmp_path)
    recipe.write_world("work", "tiny", WORLD)
    rows = {group: read_rows(f"work/rows/tiny/{group}.jsonl") for group in ("closed", "plain")}
    assert [row["id"] for row in rows["closed"]] == [f"tiny/closed/{n}" for n in range(16)]
    assert [row["question"].split("\n")[0] for row in rows["closed"]] == [row["question"] for row in rows["plain"]]
    assert [row["target"] for row in rows["plain"]] == [row["target"] for row in WORLD
                                                        if row["id"].endswith(("ASR.en", "SQA.en"))]
    asked = Counter(row["question"].split("\n")[1] for row in rows["closed"])
    assert asked == {words: 4 for words, *_ in recipe.CONSTRAINTS}

    plain = {row["id"]: row["target"] for row in rows["plain"]}
    for system, answer in (("C", lambda row: plain[row["id"].replace("closed", "plain")]),
                         ("llm", lambda row: row["target"])):
        os.makedirs(f"work/tiny/predictions/{system}")
        for group in rows:
            with open(f"work/tiny/predictions/{system}/tiny.{group}.jsonl", "w") as file:
                file.writelines(json.dumps({"id": row["id"], "prediction": answer(row)}) + "\n" for row in rows[group])
    speech_ifeval.main(["work/tiny/predictions/C", "--reference", "work/tiny/predictions/llm", "--corpus", "tiny",
                        "--judge", "contains"])
    printed = capsys.readouterr().out
    scored = {system: json.loads(Path(f"work/tiny/speech_ifeval/{system}.json").read_text()) for system in ("C", "llm")}
    assert scored["C"]["closed"] == 0 and scored["llm"]["closed"] == 100 and "IFrate" not in scored["C"]
    assert "| system | closed | forgetting, closed |\n|---|---|---|\n| C | 0.00 | -100.00 |\n" in printed
    assert "| BP |" not in printed and "no IFrate" not in printed
    assert scored["C"]["tasks"] == {group: {"ASR": 0, "altered": 0, "SQA": 100, "unparsable": 0} for group in rows}
    assert scored["llm"]["tasks"]["closed"]["SQA"] == 100
    assert scored["llm"]["tasks"]["closed"]["ASR"] == 100 * 6 / 32        # "Well", "Over" and "answer" twice each


# --- From the download to the scores, with the tiny systems.

def benchmark(raw):
    """A small benchmark: five closed-ended questions, two stories, two of reasoning; three recordings, one missing."""
    audio = ["Gender_recognition/a.wav", "MMAU/b.flac", "MMAU/gone.wav"]
    noise = np.random.default_rng(0)
    for path in audio[:2]:
        (raw / "audios" / path).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(raw / "audios" / path, 0.1 * noise.standard_normal(20000), 16000)
    (raw / "eval_data").mkdir()
    closed = [{**item(""), "id": n, "audio_filepath": audio[n % 3], "dataset": "MMAU", "instruction":
               "Who speaks?\nUse capital letters only."} for n in range(5)]
    plain = [{**one, "instruction": "Who speaks?"} for one in closed]
    story = {**SMALL["creative"][0], "instruction": "Tell a story with a cat.", "audio_filepath": audio[0]}
    items_of = {"closed": closed, "plain": plain, "creative": [{**story, "id": 934 + n} for n in range(2)],
            "cot": [{**item("", metric="cot", instruction="Why?\nThink."), "audio_filepath": audio[n]} for n in (0, 1)]}
    needless = {"plain": ("instruction_id_list", "kwargs"), "cot": ("instruction_id_list", "kwargs", "label"),
                "creative": ("label",), "closed": ()}
    for group, items in items_of.items():
        with open(raw / "eval_data" / f"{GROUPS[group][0]}.jsonl", "w", encoding="utf-8") as file:
            for one in items:
                whole = {key: value for key, value in one.items() if key not in ("response", *needless[group])}
                file.write(json.dumps(whole) + "\n")
    return items_of


def test_the_rows_and_what_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    raw = tmp_path / "work" / "raw" / "speech_ifeval"
    with pytest.raises(SystemExit, match="audios is missing: unpack audios.tar"):
        recipe.main([])
    benchmark(raw)
    recipe.main(["--incomplete"])
    printed = capsys.readouterr().out
    assert "gone.wav: no such file" in printed and "1 recordings cannot be read" in printed
    assert "| closed: SQA/QA en | 5 | 933 | -928 |" in printed
    rows = {group: read_rows(f"work/rows/speech_ifeval/{group}.jsonl") for group in GROUPS}
    assert [row["id"] for row in rows["closed"]] == [f"speech_ifeval/closed/{n}" for n in range(5)]
    assert [row["id"] for row in rows["creative"]] == ["speech_ifeval/creative/934", "speech_ifeval/creative/935"]
    assert [row["id"] for row in rows["cot"]] == ["speech_ifeval/cot/0", "speech_ifeval/cot/1"]
    assert [row["target"] for group in GROUPS for row in rows[group]] == ["Al"] * 10 + ["-"] * 4
    row = rows["closed"][1]
    assert row["utterance"] == "speech_ifeval/MMAU/b" and row["audio"].endswith("speech_ifeval/audios/MMAU/b.flac")
    assert user_turn(row)[1].startswith("</speech>\nQuestion: Who speaks? Use capital letters only.\n")
    assert user_turn(row, text=True)[0].startswith("Content: <text>[0 - 1] Hi.</text>\nQuestion: Who speaks? Use")

    with open(raw / "eval_data" / "chain-of-thought.jsonl", "a") as file:
        file.write('{"instruction": "Why?"}\n')
    with pytest.raises(SystemExit, match="chain-of-thought.jsonl line 3 has no 'metric'"):
        recipe.main(["--work", "other", "--raw", str(raw)])


def test_the_real_files_have_the_published_numbers(real, tmp_path, capsys):
    (tmp_path / "audios").mkdir()
    os.symlink(f"{real}/speech_ifeval/eval_data", tmp_path / "eval_data")
    arguments = ["--work", str(tmp_path / "work"), "--raw", str(tmp_path)]
    with pytest.raises(SystemExit, match="recordings: 933 of 933 cannot be read"):
        recipe.main(arguments)
    recipe.main([*arguments, "--incomplete"])
    assert capsys.readouterr().out.count("| +0 |") == 2 * 4
    rows = [row for group in GROUPS for row in read_rows(str(tmp_path / f"work/rows/speech_ifeval/{group}.jsonl"))]
    assert len(rows) == 2466 and len({row["utterance"] for row in rows}) == 933


@pytest.mark.parametrize("place", [".", "data", "Speech-IFEval/data"])
def test_the_questions_lie_in_the_download_or_in_a_clone(tmp_path, place):
    (tmp_path / place / "eval_data").mkdir(parents=True)
    assert os.path.normpath(questions_folder(str(tmp_path))) == os.path.normpath(tmp_path / place)


def test_closed_and_plain_questions_share_their_frames():
    folders = {split: features_folder("work", "e", 3, "speech_ifeval", split) for split in GROUPS}
    assert folders["closed"] == folders["plain"] and len({*folders.values()}) == 3


def test_infer_runs_its_files_and_they_are_scored(after_training, run_stage, monkeypatch, capsys):
    """Audio and instruction in, scores of C beside those of the text LLM out; the silent recording obeys nothing."""
    from data.tiny_models import seamless_config
    from transformers import SeamlessM4Tv2Model
    torch.manual_seed(0)
    SeamlessM4Tv2Model(seamless_config()).save_pretrained("work/models/tiny-seamless")
    items_of = benchmark(Path("work/raw/speech_ifeval"))
    recipe.main(["--incomplete"])
    import extract_features
    extract_features.main(["--corpora", "speech_ifeval"])
    tests = ",".join(f"speech_ifeval.{group}" for group in GROUPS)
    run_stage("infer", "--systems", "llm,C:merged", "--test_sets", tests)
    folders = [f"work/tiny/predictions/{system}" for system in ("C", "llm")]

    asked = []

    def reply(llm, tokenizer, chats):
        asked.extend(chats)
        return [{"reply": "Result: YES", "capped": False} for _ in chats]
    monkeypatch.setattr(chat, "MAX_NEW_TOKENS", 6)
    speech_ifeval.main([folders[0], "--judge", "work/models/tiny-llama", "--out", "work/untrained"])
    assert json.loads(Path("work/untrained/C.json").read_text())["unparsable"] == 100          # it knows no verdicts
    assert len(lines("work/untrained/C.replies.jsonl")) > 1

    monkeypatch.setattr(chat, "load_chat", lambda name, device: (None, None))
    monkeypatch.setattr(chat, "write_replies", reply)
    arguments = [folders[0], "--reference", folders[1], "--judge", "a judge"]
    speech_ifeval.main(arguments)
    printed = capsys.readouterr().out
    scored = {system: json.loads(Path(f"work/tiny/speech_ifeval/{system}.json").read_text()) for system in ("C", "llm")}
    answers = {p["id"]: p["prediction"] for p in lines(f"{folders[0]}/speech_ifeval.closed.jsonl")}
    assert list(answers) == [f"speech_ifeval/closed/{n}" for n in range(5)] and answers["speech_ifeval/closed/2"] == ""
    assert any(answers.values())
    assert scored["C"]["closed"] == 100 * sum(text.isupper() for text in answers.values()) / 5
    assert scored["C"]["cot"] == 100 and scored["C"]["constraints"]["CC"][1] == 5
    parts = [scored["C"][group] for group in ("closed", "creative", "cot")]
    assert scored["C"]["IFrate"] == pytest.approx(sum(parts) / 3)
    change = 100 * (scored["C"]["IFrate"] - scored["llm"]["IFrate"]) / scored["llm"]["IFrate"]
    assert f"| {scored['C']['IFrate']:.2f} | {change:.2f} |" in printed
    question = f"Question: {items_of['plain'][0]['instruction']}\nGround Truth Answer: Al\nModel's Response: "
    assert {one[1]["content"] for one in asked} >= {question + text for text in answers.values()}

    before = len(asked)
    speech_ifeval.main(arguments)                                            # a second run asks nothing
    assert len(asked) == before
    with open(f"{folders[0]}/speech_ifeval.cot.jsonl", encoding="utf-8") as file:
        first = file.readline()
    Path(f"{folders[0]}/speech_ifeval.cot.jsonl").write_text(first)
    with pytest.raises(SystemExit, match="1 items of .*chain-of-thought.jsonl have no prediction"):
        speech_ifeval.main(arguments)


def test_what_the_scores_refuse(tmp_path):
    with pytest.raises(SystemExit, match="holds no responses; run infer.py"):
        speech_ifeval.main([str(tmp_path), "--out", str(tmp_path / "out")])
    for name in ("a/C", "b/C"):
        (tmp_path / name).mkdir(parents=True)
    with pytest.raises(SystemExit, match="two systems have one name"):
        speech_ifeval.main([str(tmp_path / "a/C"), str(tmp_path / "b/C"), "--out", str(tmp_path / "out")])
    (tmp_path / "a/C/creative_writing.jsonl").write_text("{}\n")
    with pytest.raises(SystemExit, match="creative_writing.jsonl line 1 has no 'instruction'; its name"):
        speech_ifeval.main([str(tmp_path / "a/C"), "--out", str(tmp_path / "out")])
    (tmp_path / "a/C/creative_writing.jsonl").write_text("{")
    with pytest.raises(SystemExit, match="creative_writing.jsonl line 1 is damaged"):
        speech_ifeval.main([str(tmp_path / "a/C"), "--out", str(tmp_path / "out")])
    told = item("x", metric="cot", reply="Result: YES")
    (tmp_path / "b/C/reports").mkdir()
    (tmp_path / "b/C/chain-of-thought.jsonl").write_text(json.dumps(told) + "\n")
    (tmp_path / "b/C/reports/llm_eval@chain-of-thought.jsonl").write_text(json.dumps({**told, "response": "y"}) + "\n")
    with pytest.raises(SystemExit, match="judges other responses"):
        speech_ifeval.main([str(tmp_path / "b/C"), "--out", str(tmp_path / "out")])
