"""TODO"""
import math
import os

import torch
import torch.distributed as dist
from torch import nn

from speech_llm.batches import micro_batches
from speech_llm.constants import pick_device


def rate(step, steps, warmup, cosine):
    """The share of the peak learning rate at a step: linear warm-up, then constant or half a cosine down to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))) if cosine else 1.0


def processes():
    """(rank, number of processes); more than one under torchrun, which then talk to each other from here on."""
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        if torch.cuda.is_available():
            torch.cuda.set_device(pick_device())
    return rank, world


def sum_over_processes(tensors):
    """Replace each tensor by its sum over all processes, in one message."""
    if dist.is_initialized() and tensors:
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors])):
            tensor.copy_(part.view_as(tensor))


def update(optimizers, samples, loss_of, micro_tokens, weights=(1.0,), clip=0.0):
    """
    One step of every optimizer over a window of samples -> (each loss per its count, gradient norm).
    loss_of(micro-batch) gives sums, a sample's "counts" what each is divided by: the window's sum is divided by the
    window's count, over all processes, so how it is cut into micro-batches and shared out changes nothing.
    """
    parameters = [p for o in optimizers for group in o.param_groups for p in group["params"]]
    device = parameters[0].device
    counts = torch.tensor([s["counts"] for s in samples], dtype=torch.float32).reshape(-1, len(weights)).sum(0)
    counts = counts.to(device)                                                                       # (K,)
    sum_over_processes([counts])
    scale, total = torch.tensor(weights, device=device) / counts, torch.zeros_like(counts)
    for micro in micro_batches(samples, micro_tokens):
        sums = loss_of(micro)                                                                        # (K,)
        (sums * scale).sum().backward()
        total += sums.detach()
    if dist.is_initialized():                                          # a projector that heard nothing has no gradient
        had = torch.tensor([float(p.grad is not None) for p in parameters], device=device)
        sum_over_processes([had])
        for p, processes_with in zip(parameters, had.tolist()):
            if p.grad is None and processes_with:
                p.grad = torch.zeros_like(p)
    gradients = [p.grad for p in parameters if p.grad is not None]
    sum_over_processes([total, *gradients])
    norm = nn.utils.get_total_norm(gradients)
    if clip:
        nn.utils.clip_grads_with_norm_(parameters, clip, norm)
    *losses, norm = torch.cat([total / counts, norm.to(total)[None]]).tolist()                       # the only wait
    if not math.isfinite(sum(losses) + norm):
        raise FloatingPointError(f"losses {losses}, gradient norm {norm}", [s["id"] for s in samples])
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return losses, norm


def total_loss(losses, weights):
    """The weighted sum that the gradient is of."""
    return sum(loss * weight for loss, weight in zip(losses, weights.values()))


@torch.no_grad()
def validate(modules, samples, loss_of, micro_tokens):
    """Each loss per its count over fixed dev samples; dropout off while it lasts."""
    for module in modules:
        module.eval()
    total = sum(loss_of(micro) for micro in micro_batches(samples, micro_tokens))
    for module in modules:
        module.train()
    return (total.cpu() / torch.tensor([s["counts"] for s in samples]).sum(0)).tolist()
