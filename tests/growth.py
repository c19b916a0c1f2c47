"""
How time and memory grow, and what fits into a card.

    python -m tests.growth            # writes tests/figures/growth.png and prints the table of what fits where

Time: seconds of one step of B against its tokens and the vocabulary, and of stage 0 against the audio's length; the
fastest of four. Memory: what a micro-batch of A keeps for its backward pass. Sizes and random weights are those of
tests/bench.py: real on a GPU, else scaled down. A dashed line grows in proportion.

The table is computed, not measured on a card: frozen weights in bfloat16; trained ones in float32 with gradient and
Adam's two moments, 16 bytes each; what a layer keeps for the backward pass, counted at the real width on the CPU; 16
bytes a logit of the answers, ANSWER of all tokens. A tenth of the card is left to the allocator.
"""
import argparse
import os
from functools import partial

import numpy as np
import torch
from torch import nn

from extract_features import FRAME_RATE, MEL_BINS, STACK, encode
from speech_llm.constants import pick_device
from speech_llm.files import replace_file
from speech_llm.batches import Batch
from speech_llm.training import optimizer_step
from tests.bench import ALPHA, LLAMA, QWEN, R, SIZES, machine, make_encoder, make_llm, print_row, timed
from train_lora import TARGETS, add_lora, lora_parameters
from train_projector import AnswerObjective, answer_loss, make_projector

AYA = dict(LLAMA, vocab_size=256_000, tie_word_embeddings=True)    # Cohere's layers are parallel; Llama's keep more
SYSTEMS = {  # LLM, projector, LoRA, the stages that go through the LLM
    "iwslt25": (LLAMA, dict(kind="transformer", width=1024, llm_width=4096, heads=8), dict(r=8, alpha=16), "ABC"),
    "iwslt26": (QWEN, dict(kind="mapper", width=1024, llm_width=2560, heads=8, middle=2048), dict(r=8, alpha=16), "BC"),
    "listeners": (AYA, dict(kind="qformer", width=1280, llm_width=4096, heads=12, middle=768),
                  dict(r=64, alpha=64, targets="q_proj,v_proj"), "C"),
}
CARDS = (24, 48, 80)                        # GB
ANSWER = 0.3                                # our choice: CoVoST 2's ASR and ST rows have a fifth to a third
TOKENS = 512                                # on which a layer's saved tensors are counted


def make_samples(rng, count, length, answer, vocabulary, frames=None):
    """Return `count` samples of one length, as encode_sample makes them; each frame of (T, W) is a slot."""
    slots = 0 if frames is None else len(frames)

    def ids(n):
        return rng.integers(1, vocabulary, n).tolist()
    return [{"id": str(n), "before": ids(length - answer - slots), "frames": frames, "slots": slots, "after": [],
             "answer": ids(answer)} for n in range(count)]


def saved_bytes(run, model):
    """Return the bytes that run() stores for its backward pass, each tensor once, without the model's weights."""
    weights, stored = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}

    def pack(tensor):
        stored[tensor.untyped_storage().data_ptr()] = tensor              # alive, so that no address comes twice
        return tensor
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = run()
    del output
    return sum(tensor.untyped_storage().nbytes() for address, tensor in stored.items() if address not in weights)


# --- curves

def step_seconds(c, config, count, length):
    """Return the seconds of one step of B, LoRA on a frozen LLM, on `count` samples."""
    llm = make_llm(config, c.device, c.dtype)
    add_lora(llm, TARGETS, R, ALPHA)
    samples = make_samples(np.random.default_rng(0), count, length, round(ANSWER * length), config["vocab_size"])
    optimizer = torch.optim.AdamW(lora_parameters(llm), lr=0)
    objective = AnswerObjective(llm, None, None, "", None, 10 ** 9)
    run = partial(optimizer_step, [optimizer], objective, samples, [Batch.of(samples)])
    return min(timed(c.device, run)[0] for _ in range(4))


def encoder_seconds(c, seconds):
    """Return the seconds of one recording through the speech encoder, without decoding and filterbank."""
    encoder = make_encoder(c)
    features = [torch.randn(seconds * FRAME_RATE, STACK * MEL_BINS)]
    return min(timed(c.device, encode, encoder, features)[0] for _ in range(4))


def kept_megabytes(c, rows):
    """Return the megabytes that a micro-batch of A, rows of 190 tokens, stores for the backward pass."""
    llm = make_llm(c.llama, c.device, c.dtype)
    projector = make_projector("transformer", width=c.width, llm_width=c.llama["hidden_size"], **c.transformer)
    frames = np.zeros((90, c.width), np.float16)                       # 5.4 s
    samples = make_samples(np.random.default_rng(0), rows, 190, 40, c.llama["vocab_size"], frames)
    both = nn.ModuleList([llm, projector.to(c.device)])
    return saved_bytes(lambda: answer_loss(llm, projector, Batch.of(samples)), both) / 1e6


def curves(c):
    """Return [(title, x axis, xs, ys)] of the four figures."""
    tokens, vocabularies = [2 ** n for n in range(7, 13)], [2 ** n for n in range(10, 18)]
    audio, rows = [1, 2, 4, 8, 15, 30], [1, 2, 4, 8, 16]
    return [
        ("B: seconds a step", "tokens, in rows of 128", tokens,
         [step_seconds(c, c.llama, n // 128, 128) for n in tokens]),
        ("stage 0: seconds a recording", "seconds of audio", audio, [encoder_seconds(c, n) for n in audio]),
        ("B: seconds a step of 1,024 tokens", "vocabulary", vocabularies,
         [step_seconds(c, {**c.llama, "vocab_size": n}, 8, 128) for n in vocabularies]),
        ("A: MB kept for the backward pass", "rows of 190 tokens in a micro-batch", rows,
         [kept_megabytes(c, n) for n in rows]),
    ]


def plot(figures, path, title):
    """Draw the four figures in one PNG, log-log, each with a line in proportion to x through its last point."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    figure, axes = pyplot.subplots(2, 2, figsize=(9, 7))
    for axis, (name, label, xs, ys) in zip(axes.flat, figures):
        axis.loglog(xs, ys, "o-")
        axis.loglog(xs, [ys[-1] * x / xs[-1] for x in xs], "k--", linewidth=0.7)
        axis.set(title=name, xlabel=label)
        axis.grid(True, which="both", linewidth=0.3)
    figure.suptitle(title, fontsize=9)
    figure.tight_layout()
    with replace_file(path) as temporary:
        figure.savefig(temporary, dpi=80)
    pyplot.close(figure)


# --- what fits where

def layer_bytes(config, lora):
    """Return the bytes that one layer at its real width stores for a token; with `lora` its adapters' inputs, too."""
    stored = []
    for layers in (1, 2):
        llm = make_llm({**config, "num_hidden_layers": layers, "vocab_size": 64}, torch.device("cpu"), torch.bfloat16)
        if lora:
            add_lora(llm, **lora)
        x = torch.randn(1, TOKENS, config["hidden_size"], dtype=torch.bfloat16, requires_grad=True)
        stored.append(saved_bytes(lambda: llm.model(inputs_embeds=x, use_cache=False).last_hidden_state, llm))
    return (stored[1] - stored[0]) / TOKENS


def fits(name):
    """Return the rows of the table for one system: the largest micro-batch, in tokens, of each stage on each card."""
    config, sizes, lora, stages = SYSTEMS[name]
    with torch.device("meta"):
        llm = make_llm(config, torch.device("meta"), torch.bfloat16)
        frozen = sum(p.numel() for p in llm.parameters())
        add_lora(llm, **lora)
        adapters = sum(p.numel() for p in lora_parameters(llm))
        projector = sum(p.numel() for p in make_projector(**sizes).parameters())
    stored = {adapted: layer_bytes(config, lora if adapted else None) for adapted in {s != "A" for s in stages}}
    rows = []
    for stage in stages:
        fixed = 2 * frozen + 16 * {"A": projector, "B": adapters, "C": projector + adapters}[stage]
        token = stored[stage != "A"] * config["num_hidden_layers"] + ANSWER * 16 * config["vocab_size"]
        room = [max(0, int((0.9e9 * card - fixed) / token) // 100 * 100) for card in CARDS]
        rows.append([name, stage, f"{2 * frozen / 1e9:.1f}", f"{(fixed - 2 * frozen) / 1e9:.2f}", f"{token / 1e6:.2f}",
                     *(f"{n:,}" if n else "no" for n in room)])
    return rows


def main(argv=None):
    argparse.ArgumentParser(description="How time and memory grow; what fits into a card").parse_args(argv)
    device, path = pick_device(), os.path.join(os.path.dirname(__file__), "figures", "growth.png")
    size = "real" if device.type == "cuda" else "mid"
    c = argparse.Namespace(**SIZES[size], device=device, dtype=torch.bfloat16)
    figures = curves(c)
    for name, label, xs, ys in figures:
        print(f"{name}, {label}: " + ", ".join(f"{x} {y:.3g}" for x, y in zip(xs, ys)))
    plot(figures, path, f"{size} sizes, {machine(device)}, torch {torch.__version__}")
    header = ["system", "stage", "weights, GB", "trained, GB", "MB a token", *(f"tokens in {n} GB" for n in CARDS)]
    for row in (header, ["---"] * len(header), *(row for name in SYSTEMS for row in fits(name))):
        print_row(row)
    print(f"figure in {path}")


if __name__ == "__main__":
    main()
