"""`bash run_all.sh` on a page of tests/pages, as a user runs it; what follows and other pages in this process."""
import importlib
import json
import os
import subprocess
import sys

import pytest
from conftest import PROJECT, read_log

import train_projector
from speech_llm import pipeline


@pytest.fixture
def run_here(tmp_path, monkeypatch):
    """run_here(page, *words) runs the commands of `run_all.sh page words` below `tmp_path`."""
    def run_one_by_one(lanes):
        for command in (command for lane in lanes for command in lane):
            name, *arguments = command[command[0] == "-m":]
            importlib.import_module(name.removesuffix(".py")).main(arguments)
    monkeypatch.chdir(PROJECT)
    monkeypatch.setattr(pipeline, "run_side_by_side", run_one_by_one)
    return lambda page, *words: pipeline.main([f"tests/pages/{page}.py", *words, "--work", str(tmp_path)])


def written(folder):
    """Return {file: when it was written} of everything below a folder that a run must not make twice."""
    paths = [os.path.join(where, name) for where, _, names in os.walk(folder) for name in names]
    return {path: os.stat(path).st_mtime_ns for path in paths
            if not os.path.basename(path).startswith(("results.", "loss-", "lock"))}


def scored(folder):
    """Return {(system, task, language, metric)} of results.json."""
    results = json.loads((folder / "results.json").read_text())
    assert all(result["n"] > 0 and result["value"] >= 0 for result in results)
    return {(r["system"], r["task"], r["language"], r["metric"]) for r in results}


def test_the_2025_system_its_ablations_and_its_sweep(tmp_path, run_here):
    folder, path = tmp_path / "smoke", os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"]
    done = subprocess.run(["bash", os.path.join(PROJECT, "run_all.sh"), "tests/pages/smoke.py"], capture_output=True,
                          text=True, env={**os.environ, "PATH": path, "WORK": str(tmp_path)})
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    for stage in ("projector", "lora", "merged"):
        names = set(os.listdir(folder / stage))
        assert {"weights.pt", "config.json", "log.jsonl"} <= names and "resume.pt" not in names
        assert (folder / f"loss-{stage}.png").stat().st_size > 5000
    lines = (folder / "results.md").read_text(encoding="utf-8").splitlines()
    pictures = [f"predictions/{system}/tiny.test-{number}.png" for system in ("A.1", "C") for number in (1, 2, 3)]
    assert [line for line in lines if line.startswith("![")] == [f"![{name}]({name})" for name in pictures]
    assert all((folder / name).stat().st_size > 5000 for name in pictures)
    assert [line.split("|")[1].strip() for line in lines[2:] if line.startswith("|")] == [
        "LLM, text", "B: LoRA, text", "A.1: projector (ASR, ST)", "C: projector + LoRA"]
    assert all(line in done.stdout for line in lines)
    scores = scored(folder)
    for systems, translation, answers in ((("llm", "B"), "MT", "QA"), (("A.1", "C"), "ST", "SQA")):
        for system in systems:
            assert ((system, "ASR", "en", "WER") in scores) is (translation == "ST")        # from text there is no ASR
            assert all((system, translation, language, "BLEU") in scores for language in ("de", "it", "zh"))
            assert all((system, answers, language, metric) in scores for language in ("en", "de", "it", "zh")
                       for metric in ("EM", "CONTAINS", "EM-unanswerable"))

    before = written(tmp_path)
    assert not [path for path in before if os.path.basename(path).startswith(".")]          # nothing temporary is left
    run_here("smoke", "ablations")
    for system, out in (("A.2", "projector-A.2"), ("C-no-sqa", "merged-no-sqa")):
        assert (system, "ST", "de", "BLEU") in scored(folder) and (folder / out / "config.json").exists()
    run_here("smoke", "sweep")
    assert (folder / "scale-C.png").stat().st_size > 5000
    table = (folder / "speech_ifeval" / "results.md").read_text(encoding="utf-8")
    assert all(f"| {system} |" in table for system in ("llm", "A.1", "B", "C", "C@0", "C@0.5"))
    after = written(tmp_path)
    assert {path: after[path] for path in before} == before                # finished: nothing is made twice


def test_the_2026_system_and_the_second_stage_of_its_projector(tmp_path, run_here):
    """SpeechMapper on the table, a tiny Qwen3, multiple choice: every system is scored, and prompts are 2026's."""
    run_here("smoke26")
    folder, scores = tmp_path / "smoke26", scored(tmp_path / "smoke26")
    for system in ("llm", "B", "A", "C"):
        assert {(system, "MCQ", "en", "EM"), (system, "ST" if system in "AC" else "MT", "de", "BLEU")} <= scores
    assert ("A", "ASR", "en", "WER") in scores
    for stage, prompt in (("projector", "2026-zero-shot"), ("lora", "2026"), ("merged", "2026")):
        assert json.loads((folder / stage / "config.json").read_text())["prompt"] == prompt
    assert {"L1", "cosine", "softmax", "CTC"} <= read_log(folder / "projector")[0].keys()
    train_projector.main(["--preset", "tests/pages/smoke26_second.py", "--work", str(tmp_path)])
    log = read_log(folder / "projector-second")
    assert log[0]["loss"] == pytest.approx(0.1 * log[0]["cross-entropy"] + 0.9 * log[0]["embedding"])
    assert {"listening", "WER", "RMS"} <= log[-1].keys()


def test_the_listeners(tmp_path, run_here):
    """Whisper, window Q-Former, a tiny Cohere LLM: both stages of merge_sft.py, the cascade, four spoken languages."""
    run_here("smoke_listeners")
    folder = tmp_path / "smoke-listeners"
    for stage, trained in (("projector", ["projector"]), ("aligned", ["projector", "lora"]),
                           ("merged", ["projector", "lora"])):
        assert json.loads((folder / stage / "config.json").read_text())["trained"] == trained
    for system in ("cascade", "C"):
        assert {(system, task, language, metric) for task, metric in (("ASR", "CER"), ("SQA", "EM"))
                for language in ("en", "de", "it", "zh")} <= scored(folder)
        assert (system, "ST", "en", "BLEU") in scored(folder)
    run_here("smoke_listeners", "sweep")
    assert (folder / "scale-C.png").stat().st_size > 5000
    table = (folder / "speech_ifeval" / "results.md").read_text(encoding="utf-8")
    assert all(f"| {system} |" in table for system in ("cascade", "llm", "C-align", "C", "C@0"))


def test_lanes_run_side_by_side_and_a_command_that_fails_ends_all(tmp_path, monkeypatch):
    """The first lane waits for a file of the second; its next command comes after it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    wait = "import os, time\nwhile not os.path.exists('second'): time.sleep(0.05)\nopen('first', 'w')"
    pipeline.run_side_by_side([[["-c", wait], ["-c", "import os; os.rename('first', 'third')"]],
                               [["-c", "open('second', 'w')"]]])
    assert {*os.listdir()} == {"second", "third"}
    with pytest.raises(SystemExit) as failure:
        pipeline.run_side_by_side([[["-c", "import time; time.sleep(600)"]], [["-c", "raise SystemExit(3)"]]])
    assert failure.value.code == 3
