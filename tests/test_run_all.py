"""Everything once: `bash run_all.sh smoke`, `smoke26` and `smoke-listeners`; the first again, with the sweep."""
import json
import os
import subprocess
import sys

NAMES = ["LLM, text", "B: LoRA, text", "A.1: projector (ASR, ST)", "A.2: projector (ASR, ST, SQA)",
         "C: projector + LoRA"]
SYSTEMS = ["llm", "B", "A.1", "A.2", "C"]
PROJECT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def run_all(work, *words):
    """What one run printed; an error shows its last lines."""
    path = os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"]
    done = subprocess.run(["bash", os.path.join(PROJECT, "run_all.sh"), *words], capture_output=True, text=True,
                          env={**os.environ, "PATH": path, "WORK": str(work), "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


def written(folder):
    """{file: when it was written} of everything below a folder that a run must not make twice."""
    paths = [os.path.join(where, name) for where, _, names in os.walk(folder) for name in names]
    return {path: os.stat(path).st_mtime_ns for path in paths
            if not os.path.basename(path).startswith(("results.", "loss-", "lock"))}


def test_run_all_from_nothing_and_again(tmp_path):
    printed = run_all(tmp_path, "smoke")
    folder = tmp_path / "smoke"
    for stage in ("projector", "projector-A.2", "lora", "merged"):
        names = set(os.listdir(folder / stage))
        assert {"weights.pt", "config.json", "log.jsonl"} <= names and "resume.pt" not in names
        assert (folder / f"loss-{stage}.png").stat().st_size > 5000
    lines = (folder / "results.md").read_text(encoding="utf-8").splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == NAMES
    assert all(line in printed for line in lines)
    results = json.loads((folder / "results.json").read_text())
    found = {(r["system"], r["task"], r["language"], r["metric"]) for r in results}
    for system in SYSTEMS:
        translation, answers = ("MT", "QA") if system in ("llm", "B") else ("ST", "SQA")
        assert ((system, "ASR", "en", "WER") in found) is (translation == "ST")     # from text there is no ASR
        assert all((system, translation, language, "BLEU") in found for language in ("de", "it", "zh"))
        assert all((system, answers, language, metric) in found for language in ("en", "de", "it", "zh")
                   for metric in ("EM", "CONTAINS", "EM-unanswerable"))
    assert all(r["n"] > 0 and r["value"] >= 0 for r in results)

    before = written(tmp_path)
    assert not [path for path in before if os.path.basename(path).startswith(".")]      # nothing temporary is left
    printed = run_all(tmp_path, "smoke", "sweep")
    after = written(tmp_path)
    assert {path: after[path] for path in before} == before                # finished: nothing is made twice
    assert printed.count("is finished already") == 1 + 4 + len(NAMES) + 1  # the world, the stages, predictions; C again
    assert (folder / "scale-C.png").stat().st_size > 5000
    scored = (folder / "speech_ifeval" / "results.md").read_text(encoding="utf-8")
    for system in ("llm", "A.1", "B", "C", "C@0", "C@0.125", "C@0.25", "C@0.5", "C@0.75"):
        assert f"| {system} |" in scored


def test_the_2026_system_from_nothing(tmp_path):
    """SpeechMapper on the table, a tiny Qwen3, multiple choice: every system is scored, and prompts are 2026's."""
    printed = run_all(tmp_path, "smoke26")
    results = json.loads((tmp_path / "smoke26" / "results.json").read_text())
    found = {(r["system"], r["task"], r["metric"]) for r in results}
    for system in ("llm", "B", "A", "C"):
        assert {(system, "MCQ", "EM"), (system, "ST" if system in "AC" else "MT", "BLEU")} <= found
    assert ("A", "ASR", "WER") in found and "samples dropped: more tokens than slots" in printed
    for stage, prompt in (("projector", "2026-zero-shot"), ("lora", "2026"), ("merged", "2026")):
        assert json.loads((tmp_path / "smoke26" / stage / "config.json").read_text())["prompt"] == prompt
    with open(tmp_path / "smoke26" / "projector" / "log.jsonl") as file:
        assert {"L1", "cosine", "softmax", "CTC", "nearest", "RMS"} <= json.loads(file.readlines()[-1]).keys()


def test_the_listeners_from_nothing(tmp_path):
    """Whisper, window Q-Former, a tiny Cohere LLM: both of merge_sft.py's stages, the cascade, four spoken languages."""
    run_all(tmp_path, "smoke-listeners")
    folder = tmp_path / "smoke-listeners"
    for stage, trained in (("projector", ["projector"]), ("aligned", ["projector", "lora"]),
                           ("merged", ["projector", "lora"])):
        assert json.loads((folder / stage / "config.json").read_text())["trained"] == trained
    results = json.loads((folder / "results.json").read_text())
    found = {(r["system"], r["task"], r["language"], r["metric"]) for r in results}
    for system in ("cascade", "C"):
        for language in ("en", "de", "it", "zh"):
            assert {(system, "ASR", language, "CER"), (system, "SQA", language, "EM")} <= found
        assert (system, "ST", "en", "BLEU") in found
