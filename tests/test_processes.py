"""
Several processes work as one: training gives the same bytes, inference is shared without gap or overlap, and when one
process is killed all end and the same command goes on, with any number of processes. That several processes share an
extraction is in test_extract_features.py, that they lock a folder together in test_guards.py.
"""
import glob
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from conftest import ON_TABLE, PROJECT, read_log, shorten_transcripts, start_stages

from speech_llm.rows import read_rows


PREDICTIONS = "work/tiny/predictions/C/tiny.test.jsonl"
# One row a draw and one a micro-batch: then two processes add the same two gradients, and a sum of two has one result
ONE_ROW = ["--steps", "3", "--validate_every", "3", "--warmup", "0", "--accumulate", "2", "--batch", "1",
           "--micro_tokens", "1", "--validate_rows", "1"]
PROJECTOR = ["--layers", "1", "--heads", "2", "--ffn", "32", "--dropout", "0", "--batch_sqa", "1", "--max_new_tokens",
             "2"]


def content(path):
    with open(path, "rb") as file:
        return file.read()


def free_port():
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return str(found.getsockname()[1])


def test_two_processes_train_to_the_bytes_of_one(before_training):
    """A, A' on the table, B and C, each with two draws a step; C's second draw is often its paired text alone."""
    shorten_transcripts()
    stages = {"A": ("train_projector", [*ONE_ROW, *PROJECTOR]),
              "A-table": ("train_projector", [*ON_TABLE, *ONE_ROW, "--batch_frames", "1"]),
              "B": ("train_lora", ONE_ROW), "C": ("merge_sft", [*ONE_ROW, "--projector", "A", "--lora", "B"])}
    for out, (stage, arguments) in stages.items():
        importlib.import_module(stage).main([*arguments, "--out", out])
    launches = [{"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": free_port()} for _ in stages]
    processes = [start_stages(".", [(stage, [*arguments, "--out", f"{out}-two"], {**launch, "RANK": str(rank)})
                                    for (out, (stage, arguments)), launch in zip(stages.items(), launches)])
                 for rank in range(2)]
    for process in processes:
        printed = process.communicate(timeout=120)[0]
        assert process.returncode == 0, printed[-3000:]
    for out in stages:
        one, two = f"work/tiny/{out}", f"work/tiny/{out}-two"
        assert content(f"{one}/weights.pt") == content(f"{two}/weights.pt"), out
        assert [{**line, "seconds": 0} for line in read_log(one)] == [{**line, "seconds": 0} for line in read_log(two)]


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
    end = time.monotonic() + 60
    while not os.path.exists(f"{folder}/resume.pt"):
        assert launch.poll() is None and time.monotonic() < end, launch.communicate()[1][-2000:]
        time.sleep(0.01)
    with open(f"/proc/{launch.pid}/task/{launch.pid}/children") as file:
        both = [int(pid) for pid in file.read().split()]
    os.kill(both[1], signal.SIGKILL)
    errors = launch.communicate(timeout=60)[1]
    assert len(both) == 2 and launch.returncode == 1 and f"Signal 9 (SIGKILL) received by PID {both[1]}" in errors
    assert not any(os.path.exists(f"/proc/{pid}") for pid in both)
    assert not os.path.exists(f"{folder}/config.json") and 2 <= len(read_log(folder)) < 60

    with pytest.raises(SystemExit, match="accumulate 2 .now 4."):
        run_stage("train_lora", *more, "--accumulate", "4")
    run_stage("train_lora", *more)
    assert [line["step"] for line in read_log(folder) if "loss" in line] == list(range(1, 41))
    run_stage("train_lora", *more, "--out", "unbroken")
    assert content(f"{folder}/weights.pt") == content("work/tiny/unbroken/weights.pt")


# --- Inference.

def partial_ids():
    """Return {rank: ids of the rows that this process has answered}."""
    parts = {}
    for path in glob.glob(f"{PREDICTIONS}.partial.*"):
        with open(path) as file:
            parts[int(path.rpartition(".")[2])] = [json.loads(line)["id"] for line in file]
    return parts


def infer_as(run_stage, monkeypatch, rank, world):
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", str(world))
    run_stage("infer", "--systems", "C:merged")


def test_each_process_decodes_its_share_and_the_last_one_joins(after_training, run_stage, monkeypatch, capsys):
    """48 rows are 6 batches of 8, two batches for each of three processes."""
    infer_as(run_stage, monkeypatch, 0, 1)
    unbroken, rows = content(PREDICTIONS), read_rows("work/rows/tiny/test.jsonl")
    assert [json.loads(line)["id"] for line in unbroken.splitlines()] == [row["id"] for row in rows]
    os.remove(PREDICTIONS)
    for rank, shares in ((2, {2: 16}), (0, {0: 16, 2: 16})):
        capsys.readouterr()
        infer_as(run_stage, monkeypatch, rank, 3)
        assert "the last process to finish joins the answers" in capsys.readouterr().out
        parts = partial_ids()
        assert {rank: len(ids) for rank, ids in parts.items()} == shares and len({*sum(parts.values(), [])}) == sum(
            shares.values()) and not os.path.exists(PREDICTIONS)
    infer_as(run_stage, monkeypatch, 1, 3)
    assert content(PREDICTIONS) == unbroken and not partial_ids()


def test_what_three_processes_left_two_go_on_with(after_training, run_stage, monkeypatch):
    """Two of three, then two of two; no row is answered twice."""
    infer_as(run_stage, monkeypatch, 0, 1)
    unbroken, ids = content(PREDICTIONS), []
    os.remove(PREDICTIONS)
    for rank, world in ((0, 3), (2, 3), (1, 2)):
        infer_as(run_stage, monkeypatch, rank, world)
        ids = [name for part in partial_ids().values() for name in part]
        assert len(ids) == len({*ids})
    infer_as(run_stage, monkeypatch, 0, 2)
    assert content(PREDICTIONS) == unbroken and 16 < len(ids) < 48
