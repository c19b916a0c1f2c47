"""SpeechMapper (2026, section 3): sizes, slots, its four losses on the embedding table, training without the LLM."""
import json
import math
import os
import random
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers

import train_projector as stage
from speech_llm.llm import load_table
from speech_llm.rows import read_rows, write_rows
from speech_llm.speechmapper import LETTERS, SpeechMapper, embedding_losses, encode_slots, inspect_slots


PROJECT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
ON_TABLE = ["--objective", "embeddings", "--mixture", "ASR", "--projector", "mapper", "--layers", "1", "--middle", "16",
            "--pad_token", "<|finetune_right_pad_id|>", "--batch_frames", "40", "--dropout", "0", "--clip", "1"]


def small_mapper(dropout=0.0):
    torch.manual_seed(0)
    return SpeechMapper(width=12, llm_width=32, layers=1, heads=2, ffn=24, dropout=dropout, middle=16)


def samples_of(counts, seed=0, vocabulary=50):
    """Made-up samples of so many frames each, with random targets, the last slots filled with the pad, 0."""
    rng, noise, made = random.Random(seed), np.random.default_rng(seed), []
    for n, frames in enumerate(counts):
        slots = SpeechMapper.slots(frames)
        words = [rng.randrange(1, vocabulary) for _ in range(max(1, slots // 2))]
        made.append({"id": str(n), "frames": noise.standard_normal((frames, 12)).astype(np.float16), "slots": slots,
                     "target": words + [0] * (slots - len(words)), "letters": [1 + n % 5, 7], "length": frames,
                     "counts": (slots, slots, slots, 1)})
    return made


def test_the_paper_s_mapper_has_240334336_parameters():
    with torch.device("meta"):
        mapper, head = SpeechMapper(), torch.nn.Linear(2048, len(LETTERS) + 1)
    sizes = [sum(p.numel() for p in part.parameters()) for part in (
        mapper.first.convolution, mapper.second.convolution, mapper.first.layers, mapper.second.layers,
        mapper.first.output, mapper.second.output)]
    assert sizes == [6_292_480, 25_167_872, 50_401_280 - 2048, 151_121_920 - 4096, 2_099_200, 5_245_440]
    assert sum(p.numel() for p in mapper.parameters()) == 240_334_336
    assert sum(p.numel() for p in head.parameters()) == 79_911          # 39 labels: blank, space, ', a-z, 0-9


def test_30_seconds_are_188_slots():
    assert SpeechMapper.slots(750) == 188                                # 25 frames a second, 6.25 slots a second
    mapper = small_mapper().eval()
    for frames in (1, 2, 3, 4, 7, 8, 25, 26, 27, 28):
        assert mapper(torch.randn(1, frames, 12), torch.tensor([frames])).shape == (1, SpeechMapper.slots(frames), 32)


def test_a_batch_of_mixed_lengths_equals_single_samples():
    mapper = small_mapper(dropout=0.1).eval()
    lengths = torch.tensor([23, 1, 8, 12])
    padded = torch.full((4, 23, 12), 1e4)                               # what lies beyond a length must not matter
    singles = [torch.randn(n, 12) for n in lengths]
    for row, one in zip(padded, singles):
        row[:len(one)] = one
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            together = mapper(padded, lengths)
            for row, one in zip(together, singles):
                alone = mapper(one[None], torch.tensor([len(one)]))[0]
                assert torch.allclose(row[:len(alone)], alone, atol=1e-5)


def test_slots_hold_the_normalised_tokens_then_the_pad(llama):
    tokenizer = transformers.AutoTokenizer.from_pretrained(llama)
    row = {"id": "x", "utterance": "u", "transcript": "Anna's 3 cats, in Rome!"}
    tokens = tokenizer("anna's 3 cats in rome", add_special_tokens=False)["input_ids"]
    frames = np.zeros((4 * len(tokens) + 3, 12), np.float16)
    sample = encode_slots(row, tokenizer, 9, {"u": frames}, SpeechMapper.slots)
    assert sample["slots"] == len(tokens) + 2 and sample["target"] == tokens + [9, 9]
    assert "".join(LETTERS[letter - 1] for letter in sample["letters"]) == "anna's 3 cats in rome"
    assert encode_slots(row, tokenizer, 9, {"u": frames[:4 * len(tokens) - 5]}, SpeechMapper.slots)["target"] == tokens
    assert encode_slots(row, tokenizer, 9, {"u": frames[:4 * len(tokens) - 6]}, SpeechMapper.slots) is None


def test_the_pad_is_qwen_s_token_151664(real):
    """2026, section 6.1: a reserved token of the real vocabulary; a tokenizer without it is refused by name."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(os.path.join(real, "tokenizers", "qwen3_4b_instruct_2507"))
    for preset in ("iwslt26", "iwslt26-setup2"):
        assert {**stage.PRESETS[preset]}.get("pad_token", stage.Config.pad_token) == "<|file_sep|>"
    assert tokenizer.convert_tokens_to_ids("<|file_sep|>") == 151664


def test_a_tokenizer_without_the_pad_is_refused(before_training, run_stage):
    with pytest.raises(SystemExit, match="the tokenizer of models/tiny-llama has no such token"):
        run_stage("train_projector", *ON_TABLE, "--pad_token", "<|file_sep|>")


class Exactly(torch.nn.Module):
    """A mapper that says the rows it is given."""

    def __init__(self, rows, middle):
        super().__init__()
        self.rows, self.middle = rows, middle

    def first(self, frames, lengths):
        return self.middle, lengths + 1

    def second(self, middle, lengths):
        return self.rows, lengths // 4 + 1


def test_losses_by_hand():
    """Two slots on a table of four rows along the axes: one right but twice too long, one at a right angle."""
    table = torch.eye(4)
    sample = {"id": "x", "frames": np.zeros((3, 12), np.float16), "slots": 2, "target": [1, 3], "letters": [2],
              "length": 3, "counts": (2, 2, 2, 1)}
    said = torch.tensor([[[0.0, 2, 0, 0], [1.0, 0, 0, 0]]])
    labels = torch.zeros(1, 4, len(LETTERS) + 1)                         # every label equally likely in four frames
    sums = embedding_losses(Exactly(said, labels), torch.nn.Identity(), table, table, [sample])
    right = math.log(math.e + 3) - 1                                     # cosines 1, 0, 0, 0
    wrong = math.log(math.e + 3)                                         # the right row's cosine is 0
    paths = 4 + 3 + 2 + 1                                                # places of one letter in four frames
    ctc = -math.log(paths / (len(LETTERS) + 1) ** 4)
    assert sums.tolist() == pytest.approx([1 / 4 + 2 / 4, 0 + 1, right + wrong, ctc], rel=1e-5)
    exact = embedding_losses(Exactly(table[[1, 3]][None], labels), torch.nn.Identity(), table, table, [sample])
    assert exact[:2].tolist() == pytest.approx([0, 0], abs=1e-6)


def test_softmax_of_cosines_lies_between_its_bounds():
    """At V = 151,936 without a temperature it cannot leave [ln(V) - 2, ln(V) + 2] (cosines lie in [-1, 1])."""
    generator = torch.Generator().manual_seed(0)
    unit = F.normalize(torch.randn(151_936, 8, generator=generator))
    said, target = F.normalize(torch.randn(20, 8, generator=generator)), torch.arange(20)
    losses = torch.stack([stage.RowLoss.apply(one[None], t[None], unit) for one, t in zip(said, target)])
    assert ((9.93 < losses) & (losses < 13.93)).all()


@pytest.mark.parametrize("chunk", [1, 3, 512])
def test_the_gradient_made_with_the_softmax_loss_is_its_gradient(monkeypatch, chunk):
    """Against torch's cross-entropy, in float64; and by finite differences."""
    monkeypatch.setattr(stage, "CHUNK", chunk)
    unit, target = F.normalize(torch.randn(40, 8, dtype=torch.float64)), torch.randint(40, (7,))
    said = F.normalize(torch.randn(7, 8, dtype=torch.float64)).requires_grad_()
    ours, theirs = stage.RowLoss.apply(said, target, unit), F.cross_entropy(said @ unit.T, target, reduction="sum")
    (gradient,), (expected,) = torch.autograd.grad(3 * ours, said), torch.autograd.grad(3 * theirs, said)
    assert torch.allclose(ours, theirs) and torch.allclose(gradient, expected)
    assert torch.autograd.gradcheck(lambda x: stage.RowLoss.apply(x, target, unit), said)


def test_chunks_change_neither_loss_nor_gradient(monkeypatch):
    table = torch.randn(50, 32)
    samples, results = samples_of([30, 17, 41, 9]), []
    for chunk in (3, 512):
        monkeypatch.setattr(stage, "CHUNK", chunk)
        mapper, head = small_mapper(), torch.nn.Linear(16, len(LETTERS) + 1)
        with torch.no_grad():
            head.weight.copy_(torch.linspace(-1, 1, head.weight.numel()).view_as(head.weight)), head.bias.zero_()
        sums = embedding_losses(mapper, head, table, F.normalize(table), samples)
        sums.sum().backward()
        results.append((sums.detach(), [p.grad for p in mapper.parameters()]))
    assert torch.allclose(results[0][0], results[1][0], rtol=1e-6)
    for a, b in zip(results[0][1], results[1][1]):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)


def test_a_batch_loses_what_its_samples_lose():
    """All four losses of a padded batch are the sums over its samples: CTC too sees each sample's length."""
    table, mapper, head = torch.randn(50, 32), small_mapper().eval(), torch.nn.Linear(16, len(LETTERS) + 1)
    samples = samples_of([30, 17, 41, 9])
    together = embedding_losses(mapper, head, table, F.normalize(table), samples)
    alone = sum(embedding_losses(mapper, head, table, F.normalize(table), [s]) for s in samples)
    assert torch.allclose(together, alone, rtol=1e-5)


def test_inspection_by_hand():
    table = 2 * torch.eye(4)
    sample = {"id": "x", "frames": np.zeros((3, 12), np.float16), "slots": 2, "target": [1, 3], "length": 3}

    class Says(torch.nn.Module):
        def forward(self, frames, lengths):
            return torch.tensor([[[0.0, 3, 0, 0], [1.0, 0, 0, 0]]])
    seen = inspect_slots(Says(), table, [sample], 100, F.normalize(table))
    assert seen == pytest.approx({"RMS": math.sqrt(10 / 8), "table RMS": 1.0, "nearest": 50.0})


def test_the_table_is_read_from_one_file_or_several(llama, tmp_path):
    model = transformers.AutoModelForCausalLM.from_pretrained(llama)
    wanted = model.get_input_embeddings().weight
    assert torch.equal(load_table(llama, "cpu"), wanted)
    model.to(torch.bfloat16).save_pretrained(tmp_path, max_shard_size="20KB")
    assert os.path.exists(tmp_path / "model.safetensors.index.json")
    table = load_table(str(tmp_path), "cpu")
    assert table.dtype == torch.float32 and torch.equal(table, wanted.bfloat16().float())


@pytest.fixture
def short_words(before_training):
    """Transcripts of one letter, which fit into the slots of the made-up frames; every fourth utterance's does not."""
    for split in ("train", "dev", "test"):
        path = f"work/rows/tiny/{split}.jsonl"
        rows = read_rows(path)
        for row in rows:
            row["transcript"] = "a" if int(row["utterance"].split("-")[-1]) % 4 else row["transcript"]
        write_rows(path, rows)


def test_it_trains_without_the_llm_and_the_later_stages_take_it(short_words, run_stage, run_killed, monkeypatch,
                                                                capsys):
    """No model is built; the losses are logged; killed and resumed gives the same bytes; C and infer go on from it."""
    from_pretrained = transformers.AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", None)
    run_stage("train_projector", *ON_TABLE)
    with open("work/tiny/projector/log.jsonl") as file:
        lines = [json.loads(line) for line in file]
    steps = [line for line in lines if "loss" in line]
    assert len(steps) == 6 and all(math.isfinite(line[name]) for line in steps for name in stage.LOSSES)
    for line in steps:
        assert line["loss"] == pytest.approx(line["L1"] + line["cosine"] + 0.1 * line["softmax"] + line["CTC"])
    assert {"RMS", "table RMS", "nearest", "validation_loss"} <= lines[-1].keys()
    dropped = sum(line["dropped"] for line in steps)
    assert dropped and f"{dropped} samples dropped: more tokens than slots" in capsys.readouterr().out
    weights = torch.load("work/tiny/projector/weights.pt", weights_only=True)
    assert list(weights) == ["projector", "ctc_head"]

    shutil.rmtree("work/tiny/projector")
    run_killed(3, "train_projector", *ON_TABLE)
    run_stage("train_projector", *ON_TABLE)
    again = torch.load("work/tiny/projector/weights.pt", weights_only=True)
    assert all(torch.equal(tensor, again[part][name]) for part in weights for name, tensor in weights[part].items())

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", from_pretrained)
    run_stage("train_lora")
    run_stage("merge_sft")
    run_stage("infer", "--systems", "A:projector,C:merged")
    assert list(torch.load("work/tiny/merged/weights.pt", weights_only=True)) == ["projector", "lora"]
    for system in ("A", "C"):
        with open(f"work/tiny/predictions/{system}/tiny.test.jsonl") as file:
            assert len(file.readlines()) == 48


def test_the_second_stage_goes_on_through_the_llm(short_words, run_stage):
    """The original variant: cross-entropy with 1 - sigma and the embeddings' squared error with sigma."""
    run_stage("train_projector", *ON_TABLE)
    run_stage("train_projector", *ON_TABLE, "--objective", "answers", "--start", "projector", "--sigma", "0.9",
              "--out", "projector-2", "--keep", "ASR", "--lr", "1e-9")
    with open("work/tiny/projector-2/log.jsonl") as file:
        first = json.loads(file.readline())
    assert first["loss"] == pytest.approx(0.1 * first["entropy"] + 0.9 * first["embedding"])
    one, two = (torch.load(f"work/tiny/{out}/weights.pt", weights_only=True)["projector"]
                for out in ("projector", "projector-2"))
    assert all(torch.allclose(tensor, two[name], atol=1e-6) for name, tensor in one.items())   # it started there


# --- Several processes.

def torchrun(count, script, *more):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count),
               os.path.join(PROJECT, script), *more]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]


TRAINING = ["--steps", "3", "--validate_every", "3", "--validate_rows", "1", "--warmup", "0", "--micro_tokens", "300"]
NARROW = ["--layers", "1", "--heads", "2", "--ffn", "32", "--dropout", "0", "--max_new_tokens", "2"]


@pytest.mark.parametrize("script, out, more", [
    ("train_projector.py", "projector", [*NARROW, "--batch", "3", "--lr", "1e-4"]),         # rates of the papers:
    ("train_projector.py", "projector", [*NARROW, *ON_TABLE, "--lr", "1e-4"]),              # Adam makes whole steps
    ("train_lora.py", "lora", ["--batch", "3", "--lr", "3e-4"]),                            # of rounding errors
    ("merge_sft.py", "merged", ["--batch", "3", "--lr_projector", "1e-5", "--lr_lora", "3e-4"])])
def test_two_processes_are_one_with_twice_the_accumulation(after_training, script, out, more):
    results = []
    for split in ("train", "dev"):
        rows = read_rows(f"work/rows/tiny/{split}.jsonl")
        write_rows(f"work/rows/tiny/{split}.jsonl", [{**row, "transcript": "a"} for row in rows])
    for count, accumulate in ((1, "4"), (2, "2")):
        if script == "merge_sft.py":                # its projector comes from a folder: switch its dropout off
            with open("work/tiny/projector/config.json") as file:
                config = json.load(file)
            config["sizes"]["dropout"] = 0.0
            with open("work/tiny/projector/config.json", "w") as file:
                json.dump(config, file)
        shutil.rmtree(f"work/tiny/{out}")
        torchrun(count, script, *TRAINING, *more, "--accumulate", accumulate)
        results.append(torch.load(f"work/tiny/{out}/weights.pt", weights_only=True))
    for part, tensors in results[0].items():
        for name, tensor in tensors.items():
            assert (tensor - results[1][part][name]).abs().max() < 1e-6, name
