"""Guards: what would spoil a run silently stops it by name, or warns where it is seen; nobody works in a folder twice."""
import json
import os
import signal
import subprocess
import sys

import data.prompts
import numpy as np
import pytest
import torch

import merge_sft
import train_lora
import train_projector
from data.recipe import LOCKS, finish, finished
from speech_llm.files import lock
from speech_llm.resumable import resumable
from speech_llm.rows import read_rows


PROJECT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


# --- A loss or a gradient that is not finite.

def test_frames_that_are_not_finite_stop_the_run_and_its_rows_are_listed(before_training, run_stage):
    cache = "work/features/tiny-seamless-mean3/tiny/train"
    with open(f"{cache}/frames-00000.json") as file:
        lengths = json.load(file)["lengths"]
    frames = np.load(f"{cache}/frames-00000.npy", mmap_mode="r+")
    begin, end = (sum(list(lengths.values())[:n]) for n in (5, 9))
    names, good = list(lengths)[5:9], frames[begin:end].copy()
    frames[begin:end] = np.inf
    frames.flush()
    with pytest.raises(SystemExit, match=r"work/tiny/projector, step \d+: losses \[nan\].* are in work/.*not-finite-0"):
        run_stage("train_projector")
    with open("work/tiny/projector/not-finite-0.txt") as file:
        listed = file.read().split()
    assert len(listed) <= 2 * 4 and {os.path.dirname(row_id) for row_id in listed} & set(names)  # one step's rows
    assert set(listed) <= {row["id"] for row in read_rows("work/rows/tiny/train.jsonl")}
    assert not os.path.exists("work/tiny/projector/config.json")
    with open("work/tiny/projector/log.jsonl") as file:
        assert all(np.isfinite(json.loads(line).get("loss", 0)) for line in file)
    frames[begin:end] = good                                                    # mended: the same command continues
    frames.flush()
    run_stage("train_projector")


def test_a_gradient_that_is_not_finite_stops_the_run_too(before_training, run_stage, monkeypatch):
    answer_loss = train_lora.answer_loss

    def spoiled(llm, projector, samples):
        weight = train_lora.lora_parameters(llm)[1].flatten()[:1]
        return answer_loss(llm, projector, samples) + (weight - weight.detach()).abs().sqrt()    # 0, its slope is not
    monkeypatch.setattr(train_lora, "answer_loss", spoiled)
    with pytest.raises(SystemExit, match=r"work/tiny/lora, step 1: losses \[\d.*\], gradient norm nan"):
        run_stage("train_lora")
    with open("work/tiny/lora/not-finite-0.txt") as file:
        assert len(file.readlines()) == 8


# --- What trains, and what must not.

def test_a_frozen_tensor_with_a_gradient_stops_the_run(before_training, run_stage, monkeypatch):
    load_llm = train_projector.load_llm

    def thawed(path, device):
        llm, tokenizer = load_llm(path, device)
        llm.model.norm.weight.requires_grad_(True)
        return llm, tokenizer
    monkeypatch.setattr(train_projector, "load_llm", thawed)
    with pytest.raises(SystemExit, match="1 frozen tensors of the LLM have a gradient, such as model.norm.weight"):
        run_stage("train_projector")


def test_adapters_that_do_not_move_are_an_error_at_the_first_validation(before_training, run_stage):
    with pytest.raises(SystemExit, match=r"lora: 14 tensors are not trained after 2 steps, such as .*lora_B"):
        run_stage("train_lora", "--lr", "0")
    assert not os.path.exists("work/tiny/lora/resume.pt")


def test_adapters_that_are_loaded_but_not_trained_are_an_error(after_training, run_stage, monkeypatch):
    """The optimizer has copies of them, so that the loaded ones have gradients and nobody who follows these."""
    monkeypatch.setattr(merge_sft, "lora_parameters", lambda llm: [
        torch.nn.Parameter(p.detach().clone()) for p in train_lora.lora_parameters(llm)])
    with pytest.raises(SystemExit, match="28 frozen tensors of the LLM have a gradient, such as .*lora_A"):
        run_stage("merge_sft", "--out", "other")
    assert not os.path.exists("work/tiny/other/resume.pt")


def test_a_tensor_that_no_gradient_reaches_is_an_error():
    run, module = object.__new__(train_projector.Run), torch.nn.Linear(2, 2)
    run.folder, run.step, run.optimizers = "folder", 5, [torch.optim.AdamW(module.parameters())]
    module(torch.ones(2)).sum().backward()
    module.bias.grad = None
    run.optimizers[0].step()
    with pytest.raises(SystemExit, match="folder: 1 tensors are not trained after 5 steps, such as bias"):
        run.refuse_untrained({"projector": module.state_dict()})
    module(torch.ones(2)).sum().backward()
    run.optimizers[0].step()
    run.refuse_untrained({"projector": module.state_dict()})


# --- The prompt.

def test_another_prompt_at_inference_is_refused_and_in_c_a_warning(after_training, run_stage, monkeypatch, capsys):
    monkeypatch.setitem(data.prompts.TASK_LINES, ("ST", "de"), "Bitte übersetzen.")
    for system in ("A.1:projector", "B:lora", "C:merged"):
        with pytest.raises(SystemExit, match="was trained with other prompts .*Können Sie.*Bitte übersetzen"):
            run_stage("infer", "--systems", system)
    run_stage("merge_sft", "--out", "other")
    printed = capsys.readouterr().out
    assert "warning: projector was trained with other prompts" in printed and "warning: lora was" in printed
    run_stage("infer", "--systems", "C:other")                              # what it was trained with is what it gets


def test_config_json_shows_the_prompts_as_the_llm_reads_them(after_training):
    with open("work/tiny/merged/config.json") as file:
        prompts = json.load(file)["prompts"]
    assert prompts["ASR en speech"] == (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nContent: <speech>SPEECH</speech>\n"
        "Question: Can you transcribe the Speech content into English text?\nYour answer:"
        "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n")
    assert "Content: <text>TRANSCRIPT</text>\nQuestion: QUESTION\nYour answer:" in prompts["SQA en text"]
    assert len(prompts) == 10


# --- The size of what the LLM hears.

def test_sizes_are_logged_and_far_apart_they_are_a_warning(before_training, run_stage, monkeypatch, capsys):
    run_stage("train_projector")
    assert "warning" not in capsys.readouterr().out
    with open("work/tiny/projector/log.jsonl") as file:
        line = json.loads(file.readlines()[-1])
    assert 1 < line["RMS"] / line["table RMS"] < 10
    load_llm = train_projector.load_llm

    def quiet(path, device):
        llm, tokenizer = load_llm(path, device)
        llm.get_input_embeddings().weight.mul_(1e-3)
        return llm, tokenizer
    monkeypatch.setattr(train_projector, "load_llm", quiet)
    run_stage("train_projector", "--out", "loud")
    printed = capsys.readouterr().out
    assert printed.count("warning: the projector's output has an RMS of 0.5") == 3                # every validation
    assert "the LLM's embeddings of 0.0002: more than 100 times apart" in printed.replace("0.000199", "0.0002")


def test_the_size_by_hand():
    class Says(torch.nn.Module):
        def forward(self, frames, lengths):
            return torch.tensor([[[3.0, 0], [0, 1], [9, 9]]])
    sample = {"id": "x", "frames": np.zeros((3, 12), np.float16), "slots": 2, "length": 3}       # the third is no slot
    sizes = train_projector.inspect_slots(Says(), torch.tensor([[2.0, 0], [0, 2]]), [sample], 100)
    assert sizes == pytest.approx({"RMS": (10 / 4) ** 0.5, "table RMS": 2 ** 0.5})


# --- A second run in one folder.

HOLD = """
import os, sys
sys.path.insert(0, sys.argv[1])
os.makedirs(sys.argv[2], exist_ok=True)
from data.rows import lock
held = lock(sys.argv[2])
print("in", flush=True)
sys.stdin.read()
"""


class Elsewhere:
    """Another process that holds a folder while the block lasts; it ends by SIGKILL."""

    def __init__(self, folder, **environment):
        self.process = subprocess.Popen([sys.executable, "-c", HOLD, PROJECT, folder], text=True, stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                        env={**os.environ, **environment})
        self.said = self.process.stdout.readline()

    def __enter__(self):
        assert self.said == "in\n", self.process.stderr.read()
        return self.process

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()


TWICE = {"A": ("train_projector", "work/tiny/again", ["--out", "again"]),
         "B": ("train_lora", "work/tiny/again", ["--out", "again"]),
         "C": ("merge_sft", "work/tiny/again", ["--out", "again"]),
         "infer": ("infer", "work/tiny/predictions/C", ["--systems", "C:merged"])}


@pytest.mark.parametrize("name", TWICE)
def test_a_stage_is_refused_where_it_runs_already(after_training, run_stage, name):
    script, folder, more = TWICE[name]
    with Elsewhere(folder) as process:
        with pytest.raises(SystemExit, match=f"{folder}: process {process.pid} on .* works in it"):
            run_stage(script, *more)
        assert not {"log.jsonl", "resume.pt", "config.json", "tiny.test.jsonl"} & set(os.listdir(folder))
    run_stage(script, *more)                                        # a lock ends with its process, however it ended


def test_extraction_is_refused_where_it_runs_already(seamless, tmp_path, monkeypatch):
    import extract_features
    import soundfile
    from speech_llm.rows import write_rows
    monkeypatch.chdir(tmp_path)
    os.makedirs("work/models")
    os.symlink(seamless, "work/models/tiny-seamless")
    soundfile.write("a.wav", 0.1 * np.random.default_rng(0).standard_normal(8000), 16000)
    write_rows("work/rows/tiny/test.jsonl", [{"id": "tiny/a/ASR", "utterance": "tiny/a", "audio": "a.wav", "task": "ASR",
                                              "language": "en", "transcript": "Yes.", "target": "Yes."}])
    folder = "work/features/tiny-seamless-mean3/tiny/test"
    with Elsewhere(folder) as process, pytest.raises(SystemExit, match=f"{folder}: process {process.pid} on"):
        extract_features.main([])
    extract_features.main([])
    assert os.path.exists(f"{folder}/config.json")


def test_a_recipe_is_refused_where_it_runs_already_begun_or_not(tmp_path):
    folder = str(tmp_path / "rows" / "x")
    for _ in range(2):                                              # not begun, and begun
        with Elsewhere(folder) as process, pytest.raises(SystemExit, match=f"process {process.pid} on"):
            finished(str(tmp_path), "x", {})
        assert not finished(str(tmp_path), "x", {})
        LOCKS.pop(folder).close()                                   # as if it had been killed
    finish(str(tmp_path), "x", {})
    with Elsewhere(folder):
        assert finished(str(tmp_path), "x", {})                     # to look at what is finished needs no lock


def test_a_maker_is_refused_on_a_file_that_another_one_adds_to(tmp_path):
    path = str(tmp_path / "kept.jsonl")

    def make(items):
        code = ("import sys; sys.path.insert(0, sys.argv[1]); from data.recipe import resumable\n"
                "resumable(sys.argv[2], {}, ['b'], lambda items: items, 1)")
        second = subprocess.run([sys.executable, "-c", code, PROJECT, path], capture_output=True, text=True)
        assert second.returncode == 1 and f"{path}: another process adds to it" in second.stderr
        return items
    assert resumable(path, {}, ["a"], make, 1) == ["a"]
    assert resumable(path, {}, ["b"], lambda items: items, 1) == ["b"]


def test_the_processes_of_one_torchrun_are_one_run(tmp_path, monkeypatch):
    launch = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29511"}
    folder = str(tmp_path)
    for name, value in launch.items():
        monkeypatch.setenv(name, value)
    with Elsewhere(folder, **launch):
        (tmp_path / ".77.weights.pt").write_text("being written by the first process")
        with lock(folder):
            assert os.path.exists(f"{folder}/.77.weights.pt")
            monkeypatch.setenv("MASTER_PORT", "29512")
            with pytest.raises(SystemExit, match="torchrun at localhost:29511 works in it"):
                lock(folder)
    with lock(folder):                                              # the first is gone: so is what it left half-done
        assert os.listdir(folder) == ["lock"]


def test_another_number_of_processes_does_not_go_on_from_a_kill(before_training, run_stage, run_killed):
    run_killed(3, "train_lora")
    path = "work/tiny/lora/resume.pt"
    state = torch.load(path, weights_only=True)
    state["constants"]["processes"] = 4
    torch.save(state, path)
    with pytest.raises(SystemExit, match=r"work/tiny/lora was made with processes 4 \(now 1\)"):
        run_stage("train_lora")
