"""What a stage leaves in its folder, what the next stage takes from it, and what it refuses to begin with."""
import os
import shutil
from pathlib import Path

import pytest
import torch
from conftest import change, read_log
from test_bad_input import refused

from metrics.dev_scores import best_steps
from speech_llm.stage import open_stage
from train_projector import load_projector


STAGES = [("train_projector", "projector"), ("train_lora", "lora"), ("merge_sft", "merged")]


# --- A finished folder.

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


# --- Variants of stage C, each in a folder beside the model (2025, Tables 10 and 11).

@pytest.mark.parametrize("name, fresh, text, tasks", [
    ("random-lora-no-text", True, False, {"ASR", "ST", "SQA"}), ("no-sqa", False, True, {"ASR", "ST"})])
def test_an_ablation_is_one_word(after_training, run_stage, name, fresh, text, tasks):
    """At a rate of almost 0 the adapters stay what they were: fresh ones, B = 0, or those of stage B."""
    run_stage("merge_sft", "--ablation", name, "--lr_lora", "1e-12")
    stage = open_stage(f"work/tiny/merged-{name}")
    assert (stage.config["text"], {*stage.config["mixture"]}) == (text, tasks)
    start = open_stage("work/tiny/lora").weights["lora"]
    for key, tensor in stage.weights["lora"].items():
        if key.endswith("lora_B"):
            assert torch.allclose(tensor, torch.zeros_like(tensor) if fresh else start[key], atol=1e-9)


def test_an_unknown_ablation_is_refused(after_training, run_stage):
    refused(run_stage, "merge_sft", "--ablation", "no-asr", says="config/tiny.py: random-lora-no-text, ")


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


def test_a_score_that_the_dev_rows_cannot_give_is_refused(before_training, run_stage):
    refused(run_stage, "train_projector", "--keep", "SQA", says="--keep SQA: the dev rows of tiny that the mixture")
    refused(run_stage, "train_projector", "--decode", "acl6060", says="--keep ST: the dev rows of acl6060")


def test_rows_whose_frames_were_dropped_are_left_out_and_counted(before_training, run_stage, capsys):
    path = Path("work/features/tiny-seamless-mean3/tiny/train/frames-00000.json")
    path.write_text(path.read_text().replace('"tiny/train-3"', '"tiny/train-x"'))
    run_stage("train_projector", "--steps", "1")
    assert "train: 276 rows (tiny 276), 12 without frames left out" in capsys.readouterr().out
