"""
Samples of unlike lengths in one forward pass: micro-batches, padding, and what is padding.

    for batch in micro_batches(samples, size=len, most=8192, padding=256):
        batch.samples                                    # a few of the samples, of like length, longest first
        frames, lengths = batch.speech("cuda")           # their speech frames (B, T, W) float32, padded, and (B,)

B batch   T frames   W encoder width
"""
from dataclasses import dataclass

import torch

# Positions of padding that a micro-batch may hold. One more forward pass costs the start of its kernels: on an A100 as
# long as 256 positions of an 8B LLM take to compute (predicted). Less padding than that is cheaper than another pass.
PADDING = 256


@dataclass
class Batch:
    """
    Samples of one forward pass. `frames` (B, T, W) and `lengths` (B,) are those of the samples that have speech, padded
    with zeros, in the type of the cache; both are None if none has.
    """
    samples: list
    frames: torch.Tensor | None = None
    lengths: torch.Tensor | None = None

    @classmethod
    def of(cls, samples):
        """Return the samples as one batch, with the frames of their "frames" arrays (T, W) padded."""
        arrays = [s["frames"] for s in samples if s["frames"] is not None]
        if not arrays:
            return cls(samples)
        lengths, pinned = [len(array) for array in arrays], torch.cuda.is_available()
        frames = torch.zeros(len(arrays), max(lengths), arrays[0].shape[1], pin_memory=pinned,
                             dtype=getattr(torch, str(arrays[0].dtype)))
        for row, array in zip(frames.numpy(), arrays):
            row[:len(array)] = array
        return cls(samples, frames, torch.tensor(lengths, pin_memory=pinned))

    def speech(self, device):
        """
        Return (frames (B, T, W) float32, lengths (B,)) on a device. Pinned memory is copied while a GPU computes, and
        float16 in half the time of float32.
        """
        return self.frames.to(device, non_blocking=True).float(), self.lengths.to(device, non_blocking=True)


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
