"""Guards: what would spoil a run stops it by name or is a warning; two runs never work in one folder."""
import contextlib
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import read_log
from safetensors.torch import load_file, save_file
from test_bad_input import refused

import train_lora
from data.recipe import begin, finish, finished
from speech_llm.batches import Batch
from speech_llm.constants import configure
from speech_llm.files import lock
from speech_llm.resumable import resumable
from speech_llm.rows import read_rows
from speech_llm.run import Run


# --- A loss or a gradient that is not finite.

def test_frames_that_are_not_finite_stop_the_run_and_its_rows_are_listed(before_training, run_stage):
    frames = np.load("work/features/tiny-seamless-mean3/tiny/train/frames-00000.npy", mmap_mode="r+")
    good = frames.copy()
    frames[50:] = np.inf                                                    # a cache is known by its first frames
    refused(run_stage, "train_projector", names="losses [nan]", says="not-finite-0")
    listed = Path("work/tiny/projector/not-finite-0.txt").read_text().split()
    assert {*listed} <= {row["id"] for row in read_rows("work/rows/tiny/train.jsonl")} and 2 <= len(listed) <= 2 * 4
    assert not os.path.exists("work/tiny/projector/config.json")
    frames[50:] = good[50:]                                                   # mended: the same command continues
    run_stage("train_projector")


# --- What trains, and what must not.

def weight(value):
    module = torch.nn.Embedding(1, 1)
    torch.nn.init.constant_(module.weight, value)
    return module


def run_of(work, trained, learning, frozen=None):
    """Return a Run in the folder work/tiny/lora. trained: {name: module}; learning: modules in the optimizer."""
    c = configure(train_lora.Config, "train_lora", ["--work", str(work)])
    optimizer = torch.optim.AdamW([module.weight for module in learning])
    return Run(c, {name: (m.state_dict, m.load_state_dict) for name, m in trained.items()}, [optimizer], frozen)


def one_step(run, first, second):
    """Make a step on the loss first * sqrt(second)."""
    product = SimpleNamespace(losses={"product": 1.0}, counts=lambda samples: torch.tensor([1.0]),
                              loss=lambda batch: (first.weight * second.weight.sqrt())[0])
    run.optimizer_step(product, [{"id": "tiny/a"}], [Batch([])])


def test_a_gradient_that_is_not_finite_stops_the_run_too(tmp_path):
    """The loss is 1 * sqrt(0) = 0; its slope is infinite."""
    first, second = weight(1.0), weight(0.0)
    run = run_of(tmp_path, {"lora": second}, [second])
    refused(one_step, run, first, second, says="lora, step 1: losses [0.0], gradient norm inf. The step is not made")
    assert Path(run.folder, "not-finite-0.txt").read_text() == "tiny/a\n"
    assert second.weight.item() == 0


def test_a_frozen_tensor_with_a_gradient_stops_the_run(tmp_path):
    first, second = weight(1.0), weight(1.0)
    run = run_of(tmp_path, {"lora": second}, [second], frozen=first)
    refused(one_step, run, first, second, says="1 frozen tensors of the LLM have a gradient, such as weight")
    frozen = weight(1.0).requires_grad_(False)
    one_step(run_of(tmp_path, {"lora": second}, [second], frozen), frozen, second)


def test_a_tensor_that_no_gradient_reaches_stops_the_run_at_its_first_validation(tmp_path):
    first, second, forgotten = weight(1.0), weight(1.0), weight(1.0)
    run = run_of(tmp_path, {"projector": second, "lora": forgotten}, [first, second, forgotten])
    one_step(run, first, second)
    refused(run.validated, 0.0, says="lora: 1 tensors are not trained after 0 steps, such as weight")
    assert not os.path.exists(os.path.join(run.folder, "resume.pt"))


def test_adapters_that_do_not_move_stop_the_run_at_its_first_validation(before_training, run_stage):
    refused(run_stage, "train_lora", "--lr", "0", names="lora_B", says="lora: 14 tensors are not trained after 2 steps")
    assert not os.path.exists("work/tiny/lora/resume.pt")


# --- The prompt.

def test_another_prompt_at_inference_is_refused_and_in_c_a_warning(after_training, run_stage, capsys):
    """As if the three stages had been trained when the prompt said something else."""
    for out in ("projector", "lora", "merged"):
        config = Path(f"work/tiny/{out}/config.json")
        config.write_text(config.read_text(encoding="utf-8").replace("Können Sie", "Können wir"), encoding="utf-8")
    for system in ("A.1:projector", "B:lora", "C:merged"):
        refused(run_stage, "infer", "--systems", system, names="was trained with other prompts", says="Können wir")
    run_stage("merge_sft", "--out", "other")
    printed = capsys.readouterr().out
    assert all(f"warning: work/tiny/{out} was trained with other prompts" in printed for out in ("projector", "lora"))


# --- The size of the projector's output.

def test_sizes_and_listening_are_logged_and_sizes_far_apart_are_a_warning(before_training, run_stage, capsys):
    run_stage("train_projector")
    assert "warning" not in capsys.readouterr().out
    assert all(1 < line["RMS"] / line["table RMS"] < 10 and np.isfinite(line["listening"])
               for line in read_log("work/tiny/projector") if "validation_loss" in line)
    path = "work/models/tiny-llama/model.safetensors"
    tensors = load_file(path)
    tensors["model.embed_tokens.weight"] *= 1e-3
    save_file(tensors, path, {"format": "pt"})
    run_stage("train_projector", "--out", "loud")
    printed = capsys.readouterr().out                                     # at every validation
    assert printed.count("warning: the projector's output has an RMS of 0.") == printed.count("100 times apart") == 3


# --- A second run in one folder.

HOLD = ("import sys; from speech_llm.files import lock; held = lock(sys.argv[1]); print('in', flush=True); "
        "sys.stdin.read()")


@contextlib.contextmanager
def elsewhere(folder, **environment):
    """Let another process lock a folder while the block lasts; it ends by SIGKILL. Yield its id."""
    with subprocess.Popen([sys.executable, "-c", HOLD, folder], text=True, stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, env={**os.environ, **environment}) as process:
        assert process.stdout.readline() == "in\n"
        yield process.pid
        process.kill()


@pytest.mark.parametrize("stage, folder, more", [
    ("extract_features", "features/whole-mean3/tiny/dev", ["--encoder", "models/whole"]),
    ("train_lora", "tiny/again", ["--out", "again"]), ("infer", "tiny/predictions/C", ["--systems", "C:merged"])])
def test_a_stage_is_refused_where_it_runs_already(after_training, seamless, run_stage, stage, folder, more):
    os.symlink(seamless, "work/models/whole")
    folder = f"work/{folder}"
    with elsewhere(folder) as pid:
        refused(run_stage, stage, *more, names=f"{folder}: process {pid} on", says="works in it")
        assert os.listdir(folder) == ["lock"] or "predictions" in folder
    lock(folder).close()                                            # a lock ends with its process, however it ended


def test_a_recipe_is_refused_where_it_runs_already(tmp_path):
    work, folder = str(tmp_path), str(tmp_path / "rows" / "x")
    with elsewhere(folder) as pid:
        refused(begin, work, "x", {}, says=f"process {pid} on")
    begin(work, "x", {})
    assert not finished(work, "x", {})
    finish(work, "x", {})
    with elsewhere(folder):
        assert finished(work, "x", {})                              # to look at what is finished needs no lock


def test_a_maker_is_refused_on_a_file_that_another_one_adds_to(tmp_path):
    path = str(tmp_path / "results.jsonl")

    def make(items):
        code = ("import sys; from speech_llm.resumable import resumable\n"
                "resumable(sys.argv[1], {}, ['b'], lambda items: items, 1)")
        second = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
        assert second.returncode == 1 and f"{path}: another process adds to it" in second.stderr
        return items
    assert resumable(path, {}, ["a"], make, 1) == ["a"]
    assert resumable(path, {}, ["b"], lambda items: items, 1) == ["b"]


def test_the_processes_of_one_torchrun_are_one_run(tmp_path, monkeypatch):
    launch, folder = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29511"}, str(tmp_path)
    for name, value in launch.items():
        monkeypatch.setenv(name, value)
    with elsewhere(folder, **launch):
        (tmp_path / ".77.weights.pt").write_text("being written by the first process")
        with lock(folder):
            assert os.path.exists(f"{folder}/.77.weights.pt")
            monkeypatch.setenv("MASTER_PORT", "29512")
            refused(lock, folder, says="torchrun at localhost:29511 works in it")
    with lock(folder):                                              # the first is gone, and so are its temporary files
        assert os.listdir(folder) == ["lock"]
