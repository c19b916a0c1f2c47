"""SpeechMapper (2026, section 3): sizes, slots, its four losses on the embedding table, training without the LLM."""
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from conftest import ON_TABLE, read_log, shorten_transcripts
from safetensors.torch import load_file, save_file
from test_bad_input import refused

import train_projector
from speech_llm.batches import Batch
from speech_llm.rows import read_rows, write_rows
from speech_llm.speechmapper import (CHUNK, LETTERS, SlotTargets, SoftmaxLoss, SpeechMapper, TableObjective,
                                     slot_outputs)
from speech_llm.stage import open_stage
from speech_llm.training import validate


def small_mapper():
    torch.manual_seed(0)
    return SpeechMapper(width=12, llm_width=32, layers=1, heads=2, ffn=24, dropout=0.0, middle=16)


def test_the_mapper_of_the_paper_has_240334336_parameters():
    with torch.device("meta"):
        mapper, head = SpeechMapper(), torch.nn.Linear(2048, len(LETTERS) + 1)
    parts = [getattr(block, part) for part in ("convolution", "layers", "output")
             for block in (mapper.first, mapper.second)]
    sizes = [sum(p.numel() for p in part.parameters()) for part in parts]
    assert sizes == [6_292_480, 25_167_872, 50_401_280 - 2048, 151_121_920 - 4096, 2_099_200, 5_245_440]
    assert sum(p.numel() for p in mapper.parameters()) == 240_334_336
    assert sum(p.numel() for p in head.parameters()) == 79_911          # 39 labels: blank, space, ', a-z, 0-9
    assert SpeechMapper.slots(750) == 188                               # 30 s: 25 frames, 6.25 slots a second


def test_slots_hold_the_normalised_tokens_then_the_pad(llama):
    tokenizer, row = transformers.AutoTokenizer.from_pretrained(llama), {"transcript": "Anna's 3 cats, in Rome!"}
    targets = SlotTargets(tokenizer, "<|finetune_right_pad_id|>", normalize=True)
    tokens = tokenizer("anna's 3 cats in rome", add_special_tokens=False)["input_ids"]
    assert targets(row, len(tokens) + 2) == tokens + [targets.pad] * 2
    assert targets(row, len(tokens)) == tokens and targets(row, len(tokens) - 1) is None
    as_written = SlotTargets(tokenizer, "<|finetune_right_pad_id|>", normalize=False)
    assert tokenizer.decode(as_written(row, 40)).startswith("Anna's 3 cats, in Rome!")
    refused(SlotTargets, tokenizer, "<|file_sep|>", True, says="--pad_token <|file_sep|>: the LLM's tokenizer has no")

    frames = np.zeros((4 * len(tokens), 12), np.float16)                # one slot more than tokens
    objective = TableObjective(small_mapper(), torch.zeros(4, 32), targets, {"u": frames}, 100)
    sample = objective.sample({**row, "id": "x", "utterance": "u"})
    assert sample["slots"] == len(tokens) + 1 and sample["target"] == tokens + [targets.pad]
    assert "".join(LETTERS[letter - 1] for letter in sample["letters"]) == "anna's 3 cats in rome"


def fixed(output, letters=None):
    """Return a mapper with a given output, (B, slots, D), and given scores of the letters, (B, T, labels)."""
    mapper = torch.nn.Module()
    mapper.first = lambda frames, lengths: (letters, lengths + 1)
    mapper.second = lambda middle, lengths: (output, lengths // 4 + 1)
    mapper.forward = lambda frames, lengths: output
    return mapper


def test_losses_and_report_by_hand():
    """Two slots on a table of four rows along the axes: one right but twice too long, one at a right angle."""
    objective = TableObjective(small_mapper(), 2 * torch.eye(4), None, None, 100)
    sample = {"id": "x", "frames": np.zeros((3, 12), np.float16), "slots": 2, "target": [1, 3], "letters": [2]}
    letters = torch.zeros(1, 4, len(LETTERS) + 1)                        # every label equally likely in four frames
    objective.head = torch.nn.Identity()
    objective.mapper = fixed(torch.tensor([[[0.0, 4, 0, 0], [1.0, 0, 0, 0]]]), letters)
    right, wrong = math.log(math.e + 3) - 1, math.log(math.e + 3)        # cosines 1, 0, 0, 0; the right one's is 0
    ctc = -math.log((4 + 3 + 2 + 1) / (len(LETTERS) + 1) ** 4)           # places of one letter in four frames
    sums = objective.loss(Batch.of([sample])).tolist()
    assert sums == pytest.approx([2 / 4 + 3 / 4, 0 + 1, right + wrong, ctc], rel=1e-5)
    assert objective.counts([sample, sample]).tolist() == [4, 4, 4, 2]
    assert objective.report([sample], []) == pytest.approx(
        {"RMS": math.sqrt(17 / 8), "table RMS": 1.0, "nearest": 50.0})
    objective.mapper = fixed(objective.table[[1, 3]][None], letters)
    assert objective.loss(Batch.of([sample]))[:2].tolist() == pytest.approx([0, 0], abs=1e-6)
    longer = fixed(torch.tensor([[[3.0, 0], [0, 1], [9, 9]]]))           # the third slot is beyond the sample's two
    [(slots, _)] = slot_outputs(longer, [Batch.of([sample])], torch.device("cpu"))
    assert slots.tolist() == [[3, 0], [0, 1]]


@pytest.mark.parametrize("slots", [7, 2 * CHUNK + 1])
def test_the_gradient_made_with_the_softmax_loss_is_its_gradient(slots):
    """Against torch's cross-entropy, in float64, of one chunk of slots and of three; and by finite differences."""
    table, target = F.normalize(torch.randn(40, 8, dtype=torch.float64)), torch.randint(40, (slots,))
    output = F.normalize(torch.randn(slots, 8, dtype=torch.float64)).requires_grad_()
    ours, theirs = SoftmaxLoss.apply(output, target, table), F.cross_entropy(output @ table.T, target, reduction="sum")
    (gradient,), (expected,) = torch.autograd.grad(3 * ours, output), torch.autograd.grad(3 * theirs, output)
    assert torch.allclose(ours, theirs) and torch.allclose(gradient, expected)
    if slots < CHUNK:
        assert torch.autograd.gradcheck(lambda x: SoftmaxLoss.apply(x, target, table), output)


def test_a_batch_has_the_losses_of_its_samples():
    """All four losses of a padded batch are the sums over its samples: CTC too sees each sample's length."""
    objective, samples = TableObjective(small_mapper().eval(), torch.randn(50, 32), None, None, 60), []
    for n, frames in enumerate([30, 17, 41, 9]):
        slots = SpeechMapper.slots(frames)
        samples.append({"id": str(n), "frames": torch.randn(frames, 12).numpy(), "slots": slots,
                        "target": [*range(1, slots), 0], "letters": [1 + n, 7]})
    together, alone = objective.loss(Batch.of(samples)), sum(objective.loss(Batch.of([s])) for s in samples)
    assert torch.allclose(together, alone, rtol=1e-5)
    assert [len(batch.samples) for batch in objective.batches(samples)] == [1, 2, 1]       # 41, 30 + 17, 9 frames
    assert validate([], objective, samples) == pytest.approx((together / objective.counts(samples)).tolist(), rel=1e-5)


def test_it_trains_on_the_table_without_the_llm(before_training, capsys):
    """Every fourth transcript has more tokens than its speech has slots. Of the LLM only the table is there."""
    for split in ("train", "dev"):
        path = f"work/rows/tiny/{split}.jsonl"
        write_rows(path, [{**row, "transcript": "a"} if int(row["utterance"].split("-")[-1]) % 4 else row
                          for row in read_rows(path)])
    weights, table = "work/models/tiny-llama/model.safetensors", "model.embed_tokens.weight"
    save_file({table: load_file(weights)[table]}, weights)
    train_projector.main(ON_TABLE)
    lines = read_log("work/tiny/projector")
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6]
    assert all(line["loss"] == pytest.approx(line["L1"] + line["cosine"] + 0.1 * line["softmax"] + line["CTC"])
               for line in steps)
    assert {"RMS", "table RMS", "nearest", "validation_loss"} <= lines[-1].keys()
    dropped = sum(line.get("dropped", 0) for line in steps)
    assert dropped and f"{dropped} samples dropped: their transcripts have more tokens" in capsys.readouterr().out
    train_projector.main([*ON_TABLE, "--start", "projector", "--out", "again", "--lr", "1e-9"])       # begins with it
    first, again = (open_stage(f"work/tiny/{out}").weights for out in ("projector", "again"))
    assert list(first) == ["projector", "ctc_head"]
    torch.testing.assert_close(dict(first["projector"]), dict(again["projector"]), rtol=0, atol=1e-6)


def test_a_step_whose_rows_all_have_too_many_tokens_is_skipped_and_counted(before_training, capsys):
    """One utterance of 24 fits; a step reads about four of them."""
    path, rows = "work/rows/tiny/train.jsonl", read_rows("work/rows/tiny/train.jsonl")
    shorten_transcripts()
    write_rows(path, [{**row, "transcript": "a"} if row["utterance"] == "tiny/train-0" else row for row in rows])
    train_projector.main(ON_TABLE)
    steps = [line for line in read_log("work/tiny/projector") if "validation_loss" not in line]
    skipped = [line for line in steps if "skipped" in line]
    assert len(steps) == 6 and 3 <= len(skipped) < 6
    assert all(line["skipped"] == 1 and line["dropped"] and "loss" not in line for line in skipped)
    assert all(math.isfinite(line["loss"]) for line in steps if line not in skipped)
    write_rows(path, rows)
    with pytest.raises(SystemExit, match="work/tiny/none: every sample was dropped, so nothing was trained"):
        train_projector.main([*ON_TABLE, "--out", "none"])
