"""
One optimizer step, the learning rate, validation, and several processes that work as one.

An objective makes training samples of rows and computes their losses. AnswerObjective and MixedObjective
(train_projector.py) compute them through the LLM, TableObjective (speech_llm/speechmapper.py) and TokenObjective
(speech_llm/token_objective.py) from the LLM's embedding table alone. An objective has

    losses                            {name: weight} of the K losses
    sample(row, text)                 a sample, a dict with "id" and "frames"; None for a row that cannot be used
    batches(samples)                  micro-batches (speech_llm/batches.py)
    counts(samples)                   (K,) float32: how many terms each loss has over the samples
    loss(batch)                       (K,): the sum of each loss over a micro-batch
    report(samples, losses)           {name: figure} of the validation samples, whose losses validate() returns
"""
import math
import queue
import threading

import torch
import torch.distributed as dist
from torch import nn

from speech_llm.constants import pick_device
from speech_llm.resumable import rank_and_world


def learning_rate(peak, step, steps, warmup, cosine):
    """Return the learning rate of a step: linear warm-up to `peak`, then constant or half a cosine down to 0."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))) if cosine else peak


def set_rate(optimizer, rate):
    """Set the learning rate of an optimizer's next step."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def optimizer_step(optimizers, objective, samples, batches, clip=0.0):
    """
    Make the loss, its gradient and one step of every optimizer -> (each loss per term, gradient norm).

    The sums of all micro-batches and processes are divided by the step's count of terms, so the cut into micro-batches
    and the share of each process change nothing. Return None without a step if no process has a sample.
    FloatingPointError, with the ids of the samples, if a loss or the gradient is not finite.
    """
    parameters = [p for o in optimizers for group in o.param_groups for p in group["params"]]
    device, weights = parameters[0].device, torch.tensor([*objective.losses.values()])
    counts = objective.counts(samples).to(device)                                                    # (K,)
    sum_over_processes([counts])
    if not counts.any():
        return None
    scale, sums = weights.to(device) / counts, torch.zeros_like(counts)
    for batch in batches:
        losses = objective.loss(batch)                                                               # (K,)
        (losses * scale).sum().backward()
        sums += losses.detach()
    gradients = share_gradients(parameters, sums)
    norm = nn.utils.get_total_norm(gradients)
    if clip:
        nn.utils.clip_grads_with_norm_(parameters, clip, norm)
    *losses, norm = torch.cat([sums / counts, norm.to(sums)[None]]).tolist()   # the step's one host synchronisation
    if not math.isfinite(sum(losses) + norm):
        raise FloatingPointError(f"losses {losses}, gradient norm {norm}", [s["id"] for s in samples])
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return losses, norm


def share_gradients(parameters, sums):
    """
    Sum the gradients and the losses' sums (K,) over all processes, in place; return the list of gradients.
    A process that drew only text has no gradient for the projector: zeros take its place where another process has one.
    """
    if dist.is_initialized():
        present = torch.tensor([float(p.grad is not None) for p in parameters], device=sums.device)
        sum_over_processes([present])
        for p, processes_with_gradient in zip(parameters, present.tolist()):
            if p.grad is None and processes_with_gradient:
                p.grad = torch.zeros_like(p)
    gradients = [p.grad for p in parameters if p.grad is not None]
    sum_over_processes([sums, *gradients])
    return gradients


def total_loss(losses, weights):
    """Return the weighted sum of the losses, of which the gradient is taken. weights: {name: weight}."""
    return sum(loss * weight for loss, weight in zip(losses, weights.values()))


@torch.no_grad()
def validate(modules, objective, samples):
    """Return each loss per term, a list of K floats, over the validation samples. Dropout is off meanwhile."""
    for module in modules:
        module.eval()
    sums = sum(objective.loss(batch) for batch in objective.batches(samples))
    for module in modules:
        module.train()
    return (sums.cpu() / objective.counts(samples)).tolist()


# ---------------------------------------------------------------------------------------------------------------------
def processes():
    """Return (rank, number of processes). Under torchrun the processes connect to each other at the first call."""
    rank, world = rank_and_world()
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


def in_background(iterator):
    """
    Yield what an iterator yields; the next item is made in a thread while the caller works with this one.
    An error of the iterator is raised here. The thread ends when the caller stops, for whatever reason.
    """
    ready, stop, end = queue.Queue(maxsize=1), threading.Event(), object()

    def put(item):
        while not stop.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                pass

    def work():
        try:
            for item in iterator:
                put((item, None))
                if stop.is_set():
                    return
            put((end, None))
        except BaseException as error:                   # whatever it is, the caller has to see it
            put((end, error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is end:
                return
            yield item
    finally:
        stop.set()
        thread.join()
