"""SIGKILL of all that works for long, and several processes that work as one; recipes' loop: test_resumable.py."""
import contextlib
import importlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import ARGUMENTS, ON_TABLE, PROJECT, read_log, shorten_transcripts, start

from speech_llm.rows import read_rows, write_rows

TEMPORARY = re.compile(r"\.\d+\..+")         # of replace_file; no reader ever looks at them
WORLD = """base = "tiny"
run = "killed"
world = dict(recipe="tiny", corpus="killed", family="llama", choices=False, train=8, dev=2, test=2, encoder_steps=1,
             llm_steps=1, like_speech_from=0)
"""


def contents(work):
    """Return {path: bytes} of what a run writes: no temporary files, locks and times (of the log, of rows' indices)."""
    return {path.relative_to(work): re.sub(rb'"seconds": [\d.]+', b"", path.read_bytes()) for path in work.rglob("*")
            if path.is_file() and path.name != "lock" and not path.name.endswith(".index.json")
            and not TEMPORARY.fullmatch(path.name)}


def run_killed(folder, module, arguments, seconds):
    """Start a stage that takes so many seconds, kill it twice, then let it end; return the exit codes."""
    codes = []
    for moment in (random.uniform(0, seconds / 2), random.uniform(0, seconds / 2), None):
        process = start(folder, module, arguments)
        process.join(moment)
        process.kill()
        process.join()
        codes.append(process.exitcode)
    assert {*codes} <= {0, -signal.SIGKILL} and codes[-1] == 0, (folder / "printed.txt").read_text()[-3000:]
    return codes


def killed_equals_unbroken(folder, stages):
    """Run stages, [(module, arguments)], in this process in `folder`/whole, killed in `folder`/killed; compare."""
    codes = []
    shutil.copytree(folder / "whole", folder / "killed")
    for module, arguments in stages:
        began = time.monotonic()
        with contextlib.chdir(folder / "whole"):
            importlib.import_module(module).main(arguments)
        codes += run_killed(folder / "killed", module, arguments, time.monotonic() - began)
    assert codes.count(-signal.SIGKILL) >= len(stages)           # some had ended before their moment came
    before, after = contents(folder / "whole" / "work"), contents(folder / "killed" / "work")
    assert before.keys() == after.keys()
    assert not [path for path in before if before[path] != after[path]]


@pytest.fixture(autouse=True)
def no_commit(monkeypatch):
    """A commit while the test runs is no difference."""
    monkeypatch.setenv("GIT_DIR", os.devnull)


def test_every_stage(untrained, seamless, tmp_path):
    """Extraction of 600 recordings in two shards, A through the LLM, A on the table, B, C and inference."""
    whole = shutil.copytree(untrained, tmp_path / "whole")
    shorten_transcripts(whole)
    shutil.copytree(seamless, whole / "work" / "models" / "tiny-seamless")
    noise, rows = np.random.default_rng(0), []
    for n in range(600):
        if n != 3:                                       # it will be dropped
            soundfile.write(whole / f"{n}.wav", 0.1 * noise.standard_normal(960 + n), 16_000)
        rows.append({"id": f"sounds/{n}/ASR", "utterance": f"sounds/{n}", "audio": f"{n}.wav", "task": "ASR",
                     "language": "en", "transcript": "Yes.", "target": "Yes."})
    write_rows(str(whole / "work" / "rows" / "sounds" / "test.jsonl"), rows)
    killed_equals_unbroken(tmp_path, [
        ("extract_features", ["--corpora", "sounds", "--shard_frames", "1"]),
        ("train_projector", ARGUMENTS["train_projector"]), ("train_projector", [*ON_TABLE, "--out", "table"]),
        ("train_lora", ARGUMENTS["train_lora"]), ("merge_sft", ARGUMENTS["merge_sft"]),
        ("infer", [*ARGUMENTS["infer"], "--systems", "C:merged"])])


def test_a_world_and_a_maker(seamless, tmp_path):
    """Twelve utterances and two models of one step each; 40 sentences spoken in three batches."""
    rows = [{"id": f"texts/{n}/ASR.en", "task": "ASR", "language": "en", "transcript": f"Anna bought {n} books.",
             "target": "Yes."} for n in range(40)]
    write_rows(str(tmp_path / "whole" / "texts.jsonl"), rows)
    (tmp_path / "whole" / "page.py").write_text(WORLD)
    killed_equals_unbroken(tmp_path, [
        ("data.tiny", ["--preset", "page.py"]),
        ("data.speak", ["--rows", "texts.jsonl", "--out", "work/spoken.jsonl", "--folder", "work/audio", "--seamless",
                        seamless])])


# --- Several processes.

PREDICTIONS = Path("work/tiny/predictions/C/tiny.test.jsonl")
# One row a draw and one a micro-batch: then two processes add the same two gradients, and a sum of two has one result
ONE_ROW = ["--steps", "3", "--validate_every", "3", "--warmup", "0", "--accumulate", "2", "--batch", "1",
           "--micro_tokens", "1", "--validate_rows", "1"]
PROJECTOR = ["--layers", "1", "--heads", "2", "--ffn", "32", "--dropout", "0", "--batch_sqa", "1", "--max_new_tokens",
             "2"]


def weights(out):
    return Path(f"work/tiny/{out}/weights.pt").read_bytes()


def test_two_processes_train_to_the_bytes_of_one(before_training):
    """A, A' on the table, B and C, each with two draws a step; C's second draw is often its paired text alone."""
    shorten_transcripts()
    path = "work/rows/tiny/train.jsonl"                          # A' drops every third utterance
    write_rows(path, [row if int(row["utterance"].split("-")[-1]) % 3 else {**row, "transcript": "cats " * 50}
                      for row in read_rows(path)])
    stages = {"A": ("train_projector", [*ONE_ROW, *PROJECTOR]),
              "A-table": ("train_projector", [*ON_TABLE, *ONE_ROW, "--batch_frames", "1"]),
              "B": ("train_lora", ONE_ROW), "C": ("merge_sft", [*ONE_ROW, "--projector", "A", "--lora", "B"])}
    for out, (stage, arguments) in stages.items():
        importlib.import_module(stage).main([*arguments, "--out", out])
        with socket.create_server(("localhost", 0)) as server:   # a port that is free
            port = str(server.getsockname()[1])
        processes = [start(".", stage, [*arguments, "--out", "two"], RANK=str(rank), WORLD_SIZE="2", MASTER_PORT=port,
                           MASTER_ADDR="localhost") for rank in range(2)]
        for process in processes:
            process.join()
            assert process.exitcode == 0, Path("printed.txt").read_text()[-3000:]
        assert weights(out) == weights("two"), out
        one, other = ([{**line, "seconds": 0} for line in read_log(f"work/tiny/{name}")] for name in (out, "two"))
        assert one == other
        shutil.rmtree("work/tiny/two")


def test_draws_that_the_processes_cannot_share_equally_are_refused(before_training, run_stage, monkeypatch):
    monkeypatch.setattr("speech_llm.run.processes", lambda: (0, 2))
    with pytest.raises(SystemExit, match="2 processes cannot share the 3 draws of a step equally; set --accumulate to"):
        run_stage("train_lora", "--accumulate", "3")


def test_one_killed_process_ends_all_and_the_run_goes_on_with_one(before_training, run_stage):
    """Killed after the first checkpoint; other constants are refused meanwhile; the bytes are an unbroken run's."""
    more, folder = [*ONE_ROW, "--steps", "40", "--validate_every", "2"], "work/tiny/lora"
    launch = subprocess.Popen([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
                               os.path.join(PROJECT, "train_lora.py"), *more], text=True, stderr=subprocess.PIPE,
                              stdout=subprocess.DEVNULL)
    end = time.monotonic() + 300
    while not os.path.exists(f"{folder}/resume.pt"):
        assert launch.poll() is None and time.monotonic() < end, launch.communicate()[1][-2000:]
        time.sleep(0.01)
    with open(f"/proc/{launch.pid}/task/{launch.pid}/children") as file:
        both = [int(pid) for pid in file.read().split()]
    os.kill(both[1], signal.SIGKILL)
    errors = launch.communicate(timeout=300)[1]
    assert len(both) == 2 and launch.returncode == 1 and f"Signal 9 (SIGKILL) received by PID {both[1]}" in errors
    assert not any(os.path.exists(f"/proc/{pid}") for pid in both)
    assert not os.path.exists(f"{folder}/config.json") and 2 <= len(read_log(folder)) < 60

    with pytest.raises(SystemExit, match="accumulate 2 .now 4."):
        run_stage("train_lora", *more, "--accumulate", "4")
    run_stage("train_lora", *more)
    assert [line["step"] for line in read_log(folder) if "loss" in line] == list(range(1, 41))
    run_stage("train_lora", *more, "--out", "unbroken")
    assert weights("lora") == weights("unbroken")


def infer_as(run_stage, monkeypatch, rank, world):
    """Run inference as one of several processes; return the ids of the rows that wait for the last process."""
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", str(world))
    run_stage("infer", "--systems", "C:merged")
    return [json.loads(line)["id"] for path in PREDICTIONS.parent.glob(f"{PREDICTIONS.name}.partial.*")
            for line in path.read_text().splitlines()]


def test_each_process_decodes_its_share_and_the_last_one_joins(after_training, run_stage, monkeypatch):
    """48 rows are 6 batches of 8, two for each of three processes; what two of them leave, two processes go on with."""
    assert infer_as(run_stage, monkeypatch, 0, 1) == []
    unbroken, rows = PREDICTIONS.read_bytes(), read_rows("work/rows/tiny/test.jsonl")
    assert [json.loads(line)["id"] for line in unbroken.splitlines()] == [row["id"] for row in rows]
    PREDICTIONS.unlink()
    for rank, world, count in ((2, 3, 16), (0, 3, 32), (1, 2, 40)):
        ids = infer_as(run_stage, monkeypatch, rank, world)
        assert len(ids) == len({*ids}) == count and not PREDICTIONS.exists()      # no row is answered twice
    assert infer_as(run_stage, monkeypatch, 0, 2) == [] and PREDICTIONS.read_bytes() == unbroken
