"""
Several processes: inference is shared out without gap or overlap, and one killed process ends all, to be continued.
That two processes train as one with twice the accumulation is in test_mapper.py, that they share an extraction in
test_extract_features.py, that they hold a folder together in test_guards.py.
"""
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import torch
from test_mapper import PROJECT, torchrun

from speech_llm.rows import read_rows


PREDICTIONS = "work/tiny/predictions/C/tiny.test.jsonl"


def predictions():
    with open(PREDICTIONS, "rb") as file:
        return file.read()


def partial_ids():
    found = {}
    for name in sorted(os.listdir(os.path.dirname(PREDICTIONS))):
        if ".partial" in name:
            with open(os.path.join(os.path.dirname(PREDICTIONS), name)) as file:
                found[int(name.rpartition(".")[2])] = [json.loads(line)["id"] for line in file]
    return found


def test_each_process_decodes_its_share_and_the_last_one_joins(after_training, run_stage, monkeypatch, capsys):
    command = ["infer", "--systems", "C:merged"]
    run_stage(*command)
    unbroken, rows = predictions(), read_rows("work/rows/tiny/test.jsonl")
    os.remove(PREDICTIONS)
    monkeypatch.setenv("WORLD_SIZE", "3")
    for rank in (2, 0, 1):
        assert not os.path.exists(PREDICTIONS)
        monkeypatch.setenv("RANK", str(rank))
        capsys.readouterr()
        run_stage(*command)
        said = "this process is done; the last one to be joins the answers" in capsys.readouterr().out
        assert said is (rank != 1)
        if rank == 0:
            found = partial_ids()                                   # 48 rows in 6 batches of 8: two batches each
            assert {rank: len(ids) for rank, ids in found.items()} == {0: 16, 2: 16} and not {*found[0]} & {*found[2]}
    assert predictions() == unbroken and not partial_ids()
    assert [json.loads(line)["id"] for line in unbroken.splitlines()] == [row["id"] for row in rows]


def test_what_three_processes_left_one_or_two_go_on_with(after_training, run_stage, monkeypatch):
    command = ["infer", "--systems", "C:merged"]
    run_stage(*command)
    unbroken = predictions()
    os.remove(PREDICTIONS)
    asked, answer = [], sys.modules["infer"].answer
    monkeypatch.setattr(sys.modules["infer"], "answer", lambda *a: asked.extend(s["id"] for s in a[3]) or answer(*a))
    for rank, world in ((0, 3), (2, 3), (1, 2), (0, 2)):            # two of three, then two of two
        monkeypatch.setenv("RANK", str(rank)), monkeypatch.setenv("WORLD_SIZE", str(world))
        run_stage(*command)
    assert predictions() == unbroken and len(asked) == len(set(asked)) == 48


def test_torchrun_shares_inference(after_training, run_stage):
    run_stage("infer", "--systems", "C:merged", "--batch", "4", "--max_new_tokens", "6")
    unbroken = predictions()
    shutil.rmtree(os.path.dirname(PREDICTIONS))
    torchrun(2, "infer.py", "--systems", "C:merged", "--batch", "4", "--max_new_tokens", "6")
    assert predictions() == unbroken and not partial_ids()


def workers(parent):
    """Process ids of a process's children."""
    with open(f"/proc/{parent}/task/{parent}/children") as file:
        return [int(pid) for pid in file.read().split()]


def test_one_killed_process_ends_all_and_the_run_continues(before_training, run_stage):
    command = ["--steps", "40", "--validate_every", "2", "--validate_rows", "1", "--warmup", "0", "--batch", "3",
               "--lr", "3e-4", "--micro_tokens", "300"]
    path, folder = os.path.join(PROJECT, "train_lora.py"), "work/tiny/lora"
    launch = subprocess.Popen([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
                               path, *command, "--accumulate", "1"], text=True, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"})
    started = time.monotonic()
    while not os.path.exists(f"{folder}/resume.pt"):
        assert launch.poll() is None and time.monotonic() - started < 60, launch.communicate()[1][-2000:]
        time.sleep(0.01)
    both = workers(launch.pid)
    assert len(both) == 2
    os.kill(both[1], signal.SIGKILL)
    _, told = launch.communicate(timeout=60)
    assert launch.returncode == 1 and f"Signal 9 (SIGKILL) received by PID {both[1]}" in told
    assert not any(os.path.exists(f"/proc/{pid}") for pid in both)
    assert not os.path.exists(f"{folder}/config.json")
    killed_at = torch.load(f"{folder}/resume.pt", weights_only=True)["step"]
    assert 2 <= killed_at < 40

    torchrun(2, "train_lora.py", *command, "--accumulate", "1")
    with open(f"{folder}/log.jsonl") as file:
        assert [line["step"] for line in map(json.loads, file) if "loss" in line] == list(range(1, 41))
    resumed = torch.load(f"{folder}/weights.pt", weights_only=True)["lora"]
    run_stage("train_lora", *command, "--accumulate", "2", "--out", "alone")
    alone = torch.load("work/tiny/alone/weights.pt", weights_only=True)["lora"]
    assert max((tensor - alone[name]).abs().max() for name, tensor in resumed.items()) < 1e-5
