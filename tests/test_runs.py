"""What a stage leaves in its folder, what it refuses to begin with, and what would spoil a run and stops it by name."""
import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import change, read_log
from safetensors.torch import load_file, save_file
from test_bad_input import refused

import train_lora
from data.recipe import begin, finish, finished
from metrics.dev_scores import best_steps
from speech_llm.batches import Batch
from speech_llm.constants import configure
from speech_llm.files import lock
from speech_llm.resumable import resumable
from speech_llm.rows import read_rows
from speech_llm.run import Run
from speech_llm.stage import open_stage
from train_projector import load_projector

STAGES = [("train_projector", "projector"), ("train_lora", "lora"), ("merge_sft", "merged")]


@pytest.mark.parametrize("script, out", STAGES)
def test_a_finished_stage_does_nothing_and_refuses_other_constants(after_training, run_stage, capsys, script, out):
    folder = f"work/tiny/{out}"
    run_stage(script, "--micro_tokens", "200")                             # memory changes no weights
    assert f"{folder} is finished already" in capsys.readouterr().out
    refused(run_stage, script, "--seed", "3", says=f"{folder} was made with seed 0 (now 3); remove it, or choose")
    change(f"{folder}/config.json", prompt=...)                            # of a version without this constant
    run_stage(script)
    assert f"{folder} is finished already" in capsys.readouterr().out      # it had what is the default now
    refused(run_stage, script, "--prompt", "2026", says=f"{folder} was made with prompt '2025' (now '2026')")


@pytest.mark.parametrize("out", ["projector", "lora", "merged"])
def test_a_keeps_the_best_step_and_b_and_c_the_last(finished_stages, out):
    """A: the step with the best mean BLEU of the decoded dev set; every validated step is beside weights.pt."""
    stage = open_stage(str(finished_stages / "work" / "tiny" / out))
    log, config = read_log(stage.folder), stage.config
    assert [line["step"] for line in log if "loss" in line] == [1, 2, 3, 4, 5, 6]
    validations = [line for line in log if "validation_loss" in line]
    assert [line["step"] for line in validations] == [2, 4, 6]
    assert all(("listening" in line) is (out != "lora") for line in validations)
    assert config["seed"] == 0 and config["commit"] and config["torch"] and config["llm"] == "models/tiny-llama"
    assert list(stage.weights) == config["trained"]
    checkpoints = sorted(name for name in os.listdir(stage.folder) if name.startswith("step-"))
    if out != "projector":
        assert config["kept_step"] == 6 and not checkpoints
        return
    assert checkpoints == ["step-00002.pt", "step-00004.pt", "step-00006.pt"]
    assert config["best_steps"] == best_steps(validations)
    assert config["kept_step"] == config["best_steps"]["ST"] == max(validations, key=lambda v: v["BLEU"])["step"]
    best = torch.load(f"{stage.folder}/step-{config['kept_step']:05d}.pt", weights_only=True)["projector"]
    projector = load_projector(stage, torch.device("cpu")).state_dict()
    assert all(torch.equal(best[name], tensor) and torch.equal(best[name], projector[name])
               for name, tensor in stage.weights["projector"].items())


@pytest.mark.parametrize("name, fresh, paired_text, tasks", [
    ("random-lora-no-text", True, False, {"ASR", "ST", "SQA"}), ("no-sqa", False, True, {"ASR", "ST"})])
def test_an_ablation_is_one_word(after_training, run_stage, name, fresh, paired_text, tasks):
    """2025, Tables 10 and 11. At a rate of almost 0 adapters stay what they were: fresh, B = 0, or those of stage B."""
    run_stage("merge_sft", "--ablation", name, "--lr_lora", "1e-12")
    stage = open_stage(f"work/tiny/merged-{name}")
    assert (stage.config["paired_text"], {*stage.config["mixture"]}) == (paired_text, tasks)
    start = open_stage("work/tiny/lora").weights["lora"]
    for key, tensor in stage.weights["lora"].items():
        if key.endswith("lora_B"):
            assert torch.allclose(tensor, torch.zeros_like(tensor) if fresh else start[key], atol=1e-9)


# --- Before it begins.

@pytest.mark.parametrize("script, gone, message", [
    ("train_projector", "rows/tiny/config.json", "work/rows/tiny is not finished: "),
    ("train_projector", "features", "is missing; run: python extract_features.py --preset tiny --corpora tiny"),
    ("train_projector", "models/tiny-llama", "work/models/tiny-llama is missing; run: bash run_all.sh PRESET"),
    ("train_lora", "rows/tiny", "work/rows/tiny is missing; run: python -m data.tiny"),
    ("merge_sft", "tiny/lora", "work/tiny/lora/config.json is missing; run: bash run_all.sh tiny"),
    ("infer", "tiny/merged", "work/tiny/merged/config.json is missing; run: bash run_all.sh tiny")])
def test_a_stage_before_its_predecessor_names_the_command(after_training, run_stage, script, gone, message):
    for path in (f"work/{gone}", *(f"work/tiny/{out}" for name, out in STAGES if name == script)):
        if os.path.isdir(path):
            shutil.rmtree(path)
        else:
            os.remove(path)
    refused(run_stage, script, says=message)


def test_what_the_page_or_the_dev_rows_do_not_have_is_refused(before_training, run_stage):
    refused(run_stage, "merge_sft", "--ablation", "no-asr", says="config/tiny.py: random-lora-no-text, ")
    refused(run_stage, "train_projector", "--keep", "SQA", says="--keep SQA: the dev rows of tiny that the mixture")
    refused(run_stage, "train_projector", "--text_encoder", "bert", says="only a qformer starts from a BERT")
    refused(run_stage, "train_projector", "--decode", "acl6060", says="--keep ST: the dev rows of acl6060")


def test_rows_whose_frames_were_dropped_are_left_out_and_counted(before_training, run_stage, capsys):
    path = Path("work/features/tiny-seamless-mean3/tiny/train/frames-00000.json")
    path.write_text(path.read_text().replace('"tiny/train-3"', '"tiny/train-x"'))
    run_stage("train_projector", "--steps", "1")
    assert "train: 276 rows (tiny 276), 12 without frames left out" in capsys.readouterr().out


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


def test_sizes_and_listening_are_logged_and_sizes_far_apart_are_a_warning(before_training, run_stage, capsys):
    run_stage("train_projector", "--validate_rows", "2")                  # of one utterance there is no listening
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
