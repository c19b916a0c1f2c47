"""
Samples of unlike lengths in one forward pass: micro-batches, padding, and what is padding.

    for batch in micro_batches(samples, size=len, most=8192, padding=256):
        batch.samples                                    # a few of the samples, of like length, longest first
        batch.frames, batch.lengths                      # their speech frames (B, T, W) float32, padded, and (B,)

B batch   T frames   W encoder width
"""
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn


@dataclass
class Batch:
    """
    Samples of one forward pass. `frames` (B, T, W) float32 and `lengths` (B,) are those of the samples that have
    speech, padded with zeros; both are None if none has.
    """
    samples: list
    frames: torch.Tensor | None = None
    lengths: torch.Tensor | None = None

    @classmethod
    def of(cls, samples):
        """Return the samples as one batch, with the frames of their "frames" arrays (T, W) padded."""
        arrays = [torch.from_numpy(np.array(s["frames"], np.float32)) for s in samples if s["frames"] is not None]
        if not arrays:
            return cls(samples)
        frames, lengths = nn.utils.rnn.pad_sequence(arrays, batch_first=True), torch.tensor([len(a) for a in arrays])
        if torch.cuda.is_available():                    # pinned memory is copied to the GPU while the GPU computes
            frames, lengths = frames.pin_memory(), lengths.pin_memory()
        return cls(samples, frames, lengths)


def padding_mask(x, lengths):
    """Return (B, T) bool of x (B, T, ...): True where a position lies beyond its sample's length, (B,)."""
    return torch.arange(x.shape[1], device=x.device) >= lengths[:, None]


def cut_by_length(items, size, most, padding):
    """
    Yield lists of items of like length: `size(item)` sorts them, longest first. In a list, items x longest stays within
    `most`, and what padding adds stays within `padding`, both in the unit of `size`.
    """
    group, added = [], 0
    for item in sorted(items, key=lambda item: -size(item)):
        added += size(group[0]) - size(item) if group else 0
        if group and ((len(group) + 1) * size(group[0]) > most or added > padding):
            yield group
            group, added = [], 0
        group.append(item)
    if group:
        yield group


def micro_batches(samples, size, most, padding):
    """Return the samples as a list of Batches, cut as `cut_by_length` does."""
    return [Batch.of(group) for group in cut_by_length(samples, size, most, padding)]
