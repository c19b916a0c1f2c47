"""TODO"""
import torch
from torch import nn


def padding_mask(x, lengths):
    """(B, T) -> True where a position lies padding_mask its sample's length."""
    return torch.arange(x.shape[1], device=x.device) >= lengths[:, None]


def pad_frames(samples, device):
    """((B, T, W) float32, lengths (B,)) of the samples that have frames."""
    spoken = [torch.tensor(s["frames"]).float() for s in samples if s["frames"] is not None]
    lengths = torch.tensor([len(f) for f in spoken], device=device)
    return nn.utils.rnn.pad_sequence(spoken, batch_first=True).to(device, non_blocking=True), lengths
PADDING = 256                                # positions that an A100 computes while a pass is started (predicted, 8B)


def micro_batches(samples, micro_tokens):
    """
    Cut one optimizer step's samples, sorted by length, so that rows x longest stays within micro_tokens and what of it
    is padding within PADDING.
    """
    batch, padding = [], 0
    for sample in sorted(samples, key=lambda s: -s["length"]):
        padding += batch[0]["length"] - sample["length"] if batch else 0
        if batch and ((len(batch) + 1) * batch[0]["length"] > micro_tokens or padding > PADDING):
            yield batch
            batch, padding = [], 0
        batch.append(sample)
    if batch:
        yield batch
