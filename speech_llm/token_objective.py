"""
The third objective of stage A: CTC over a small set of the LLM's own tokens, the units (our choice).

B batch   T frames   W encoder width   D LLM width   U units
"""
import json

import torch
import torch.nn.functional as F
from torch import nn

from speech_llm.batches import micro_batches, padding_mask
from speech_llm.constants import mixed_precision
from speech_llm.speechmapper import FRAME_PADDING, ctc_loss, identity_layers

PENALTY = 5                                  # what the blank's bias is lowered by at the start (our choice)


def settings_of(tokenizer):
    """Return what tokenizer.json says of a byte-pair encoding. SystemExit for a tokenizer of another kind."""
    settings = json.loads(tokenizer.backend_tokenizer.to_str())
    if settings["model"]["type"] != "BPE":
        raise SystemExit("--objective tokens and --merges need a byte-pair encoding; the LLM's tokenizer "
                         f"is a {settings['model']['type']}")
    return settings


def with_merges(tokenizer, count):
    """
    Return the tokenizer of an LLM with the first `count` merges of its byte-pair encoding alone; 0: all. It spells a
    text with few kinds of tokens, "Ġpr", "is", "on", which have the LLM's ids. SystemExit for a count below 0.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast
    if count < 0:
        raise SystemExit(f"--merges {count} is below 0")
    if not count:
        return tokenizer
    settings = settings_of(tokenizer)
    settings["model"] |= {"merges": settings["model"]["merges"][:count], "ignore_merges": False}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(settings)))


def units_of(tokenizer, blank):
    """Return the ids (U,), int64: the blank, then all tokens that the tokenizer's byte-pair encoding can produce."""
    model = settings_of(tokenizer)["model"]
    merged = {first + second for first, second in model["merges"]}
    ids = {number for token, number in model["vocab"].items() if len(token) == 1 or token in merged}
    return torch.tensor([blank, *sorted(ids - {blank})])


class Speller(nn.Module):
    """
    The layers of the 2025 projector, followed by a probability for every unit. A slot is the mean of the units'
    embeddings in the LLM, weighted by the probabilities (LegoSLM, arXiv 2505.11352). As in CTC, a slot is removed if
    its likeliest unit is the blank or equals that of the slot before: its vector becomes zeros, and `splice` leaves out
    vectors of zeros. Speech is then as short as its text (CTC compression, Gaido et al. 2021; our choice).
    """

    def __init__(self, units, width, llm_width, layers, heads, ffn, dropout):
        super().__init__()
        self.layers = identity_layers(layers, width, heads, ffn, dropout)
        self.norm, self.output = nn.LayerNorm(width), nn.Linear(width, units)
        with torch.no_grad():
            self.output.bias[0] -= PENALTY
        self.register_buffer("units", torch.zeros(units, llm_width))     # rows of the LLM's table; the blank's first

    @staticmethod
    def slots(frames):
        """Return the number of output vectors for a number of frames, zeros too."""
        return frames

    def logits(self, frames, lengths):
        """Return the logits of all units, (B, T, U) float32, for frames (B, T, W) and their lengths (B,)."""
        for layer in self.layers:
            frames = layer(frames, src_key_padding_mask=padding_mask(frames, lengths))
        return self.output(self.norm(frames)).float()

    def forward(self, frames, lengths):
        """frames (B, T, W), lengths (B,) -> (B, T, D)."""
        logits = self.logits(frames, lengths)
        best = logits.argmax(-1)
        read = (best != 0) & (best != F.pad(best[:, :-1], (1, 0)))
        return logits.softmax(-1) @ self.units * read[..., None]


class TokenObjective:
    """
    The loss is CTC over the units of the transcript (our choice); the pad token is the blank. CTC lets a unit stand at
    the slot in which it is spoken. SpeechMapper's losses put the n-th token at the n-th slot, whenever it is spoken.
    With few merges every unit is in many transcripts, so that an hour of speech is enough to learn it. See
    speech_llm/training.py for the methods of an objective.
    """
    losses = {"tokens": 1.0}

    def __init__(self, projector, table, targets, features, micro_frames):
        self.projector, self.table, self.targets = projector, table, targets
        self.features, self.micro_frames = features, micro_frames
        units = units_of(targets.tokenizer, targets.pad)
        projector.units.copy_(table[units])
        self.number = {unit: number for number, unit in enumerate(units.tolist())}

    def sample(self, row, text=False):
        """Return a sample: frames and the numbers of the transcript's units; None if CTC needs more slots for them."""
        frames = self.features[row["utterance"]]                                                     # (T, W)
        slots, target = self.projector.slots(len(frames)), [self.number[token] for token in self.targets.tokens(row)]
        repeats = sum(first == second for first, second in zip(target, target[1:]))
        if len(target) + repeats > slots:
            return None
        return {"id": row["id"], "frames": frames, "slots": slots, "target": target}

    def batches(self, samples):
        """Return micro-batches of at most `micro_frames` padded frames."""
        return micro_batches(samples, lambda sample: len(sample["frames"]), self.micro_frames, FRAME_PADDING)

    def counts(self, samples):
        """Return the number of utterances, (1,)."""
        return torch.tensor([float(len(samples))])

    def logits(self, batch):
        """Return the logits (B, slots, U) of a micro-batch."""
        with mixed_precision(self.table.device):
            return self.projector.logits(*batch.speech(self.table.device))

    def loss(self, batch):
        """Return the sum (1,) of CTC a unit over the utterances of a micro-batch."""
        logits = self.logits(batch)
        lengths = torch.tensor([s["slots"] for s in batch.samples], device=logits.device)
        return ctc_loss(logits, lengths, [s["target"] for s in batch.samples], 0)[None]

    @torch.no_grad()
    def report(self, samples, losses):
        """
        Return "token errors", in % of the transcripts' units, of the likeliest units by CTC's rule; "blank", % of slots
        whose likeliest unit is the blank.
        """
        from torchaudio.functional import edit_distance
        self.projector.eval()
        errors = blanks = 0
        for batch in self.batches(samples):
            for sample, logits in zip(batch.samples, self.logits(batch)):
                best = logits[:sample["slots"]].argmax(1)
                blanks += best.eq(0).sum().item()
                errors += edit_distance([unit for unit in best.unique_consecutive().tolist() if unit], sample["target"])
        self.projector.train()
        return {"token errors": 100 * errors / sum(len(s["target"]) for s in samples),
                "blank": 100 * blanks / sum(s["slots"] for s in samples)}
