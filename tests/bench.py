"""
Speed and memory of every stage, beside what one writes with transformers, peft or torchtune.

    python tests/bench.py                                   # every stage; real sizes on a GPU, else scaled down
    python tests/bench.py B --seeds 5 --threads 2 --dtype bfloat16 --out bench.md

Weights are random and made where they run; nothing is downloaded. Inputs have the lengths of the papers' corpora. A
seed is one optimizer step, or one batch of utterances: ours, the code that the stages run, and its peers take turns on
it in one process. Their outputs are compared (losses within 1e-3, the same tokens); where they differ, nothing is
reported. Dropout and the learning rate are 0 on both sides, so that every seed can be compared.

Peers: transformers; peft for B and C; torchtune's LoRA recipe for B (pip install --no-deps torchtune==0.6.1
torchao==0.15.0 torchdata==0.11.0, and what they miss). One that is not installed is left out, saying so.

prints  a Markdown table, a row for each stage and peer; --out FILE appends the rows there
"""
import argparse
import copy
import ctypes
import datetime
import gc
import os
import sys
import tempfile
import time
from functools import partial
from importlib.metadata import version
from itertools import chain
from statistics import median
from types import SimpleNamespace
from unittest import mock

if __name__ == "__main__":  # `python tests/bench.py`: imports start at the project's folder, not at tests/
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pad_sequence

import train_projector
from data.draws import draw, draw_frames
from extract_features import FRAME_RATE, SAMPLE_RATE, average_frames, decode_ahead, encode_block, pick_device
from merge_sft import CORPUS_SHARES as SHARES_C
from merge_sft import MIXTURES as MIXTURES_C
from train_lora import CORPUS_SHARES as SHARES_B
from train_lora import MIXTURES as MIXTURES_B
from train_lora import TARGETS, add_lora, lora_parameters, lora_state_dict
from train_projector import (CORPUS_SHARES, LETTERS, LOSSES, MIXTURES, answer, answer_loss, embedding_losses,
                             make_projector, splice, update)

CORPORA = {  # seconds of an utterance: mean (hours / utterances, or the paper's) and deviation, of a gamma (our choice)
    "covost2": (5.35, 1.7), "europarlst": (9.3, 5.0), "spokensquad": (10.0, 4.5), "gigast": (4.4, 3.0)}
ROWS = {  # (corpus, task, language): thousands of rows; 2025, Tables 1 and 3; GigaST: 2026, Table 5
    ("covost2", "ASR", "en"): 289, ("covost2", "ST", "de"): 289, ("covost2", "ST", "zh"): 289,
    ("europarlst", "ASR", "en"): 33, ("europarlst", "ST", "de"): 33, ("europarlst", "ST", "it"): 30,
    ("spokensquad", "MT", "de"): 39, ("spokensquad", "MT", "it"): 55, ("spokensquad", "MT", "zh"): 25,
    ("spokensquad", "SQA", "en"): 34, ("spokensquad", "SQA", "de"): 7, ("spokensquad", "SQA", "it"): 17,
    ("spokensquad", "SQA", "zh"): 7, ("gigast", "ASR", "en"): 7646}
WORDS = 2.4                                 # a second (our choice; LibriSpeech, which is read without haste, has 2.6)
TOKENS = {"en": 1.25, "it": 1.7, "de": 1.85, "zh": 1.35}               # of Llama-3.1, for an English word (our choice)
BEFORE, AFTER = 10, {("ASR", "en"): 24, ("ST", "de"): 30, ("ST", "it"): 29, ("ST", "zh"): 25}    # the prompt; counted

LLAMA = dict(  # Llama-3.1-8B
    vocab_size=128_256, hidden_size=4096, intermediate_size=14_336, num_hidden_layers=32, num_attention_heads=32,
    num_key_value_heads=8, max_position_embeddings=131_072, rms_norm_eps=1e-5, eos_token_id=128_009,
    rope_parameters=dict(rope_type="llama3", rope_theta=500_000.0, factor=8.0, low_freq_factor=1.0,
                         high_freq_factor=4.0, original_max_position_embeddings=8192))
QWEN = dict(  # Qwen3-4B-Instruct-2507
    vocab_size=151_936, hidden_size=2560, intermediate_size=9728, num_hidden_layers=36, num_attention_heads=32,
    num_key_value_heads=8, head_dim=128, max_position_embeddings=262_144, tie_word_embeddings=True,
    rope_parameters=dict(rope_type="default", rope_theta=5_000_000.0))
MID = dict(hidden_size=512, intermediate_size=1792, num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=2,
           head_dim=64)
TOY = dict(MID, hidden_size=64, intermediate_size=128, num_hidden_layers=2, head_dim=8, vocab_size=600, eos_token_id=9)
ENCODER = ("hidden_size", "speech_encoder_layers", "speech_encoder_attention_heads", "speech_encoder_intermediate_size")
SIZES = {  # real: what the presets iwslt25 and iwslt26 have; mid: for two CPU cores; toy: for a test
    "real": dict(llama=LLAMA, qwen=QWEN, encoder={}, width=1024, transformer=dict(heads=8, ffn=2048),
                 mapper=dict(heads=8, ffn=2048, layers=6, middle=2048), draws=dict(A=16, B=8, C=16), micro=8192,
                 frame_draws=(8, 12_000), blocks=(4, 512), batch_seconds=600.0, utterances=64),
    "mid":  dict(llama={**LLAMA, **MID}, qwen={**QWEN, **MID}, encoder=dict(zip(ENCODER, (256, 8, 4, 1024))), width=256,
                 transformer=dict(heads=4, ffn=512), mapper=dict(heads=4, ffn=512, layers=2, middle=512),
                 draws=dict(A=2, B=4, C=2), micro=4096, frame_draws=(2, 1500), blocks=(4, 16), batch_seconds=60.0,
                 utterances=64),
    "toy":  dict(llama={**LLAMA, **TOY}, qwen={**QWEN, **TOY}, encoder=dict(zip(ENCODER, (32, 1, 2, 64))), width=32,
                 transformer=dict(heads=4, ffn=64), mapper=dict(heads=4, ffn=64, layers=1, middle=32),
                 draws=dict(A=1, B=2, C=2), micro=1024, frame_draws=(2, 500), blocks=(2, 3), batch_seconds=20.0,
                 utterances=6),
}
PEAKS = {"A100": 312e12, "H100": 989e12, "H200": 989e12}               # bfloat16, dense; data sheets
R, ALPHA, CAP = 8, 16, 300                  # LoRA, and the longest answer; 2025, sections 3 and 4


# ---------------------------------------------------------------------------------------------------------------------
# inputs
def make_rows():
    """Rows without words, as many of each kind as the corpora have, in thousands."""
    rows = []
    for (corpus, task, language), count in ROWS.items():
        for answerable in (True, False) if task == "SQA" else (True,):
            for n in range(count):
                row = {"id": f"{corpus}/{n}/{task}.{language}.{answerable}", "task": "ST" if task == "MT" else task,
                       "language": language, "answerable": answerable}
                rows.append(row if task == "MT" else {**row, "utterance": f"{corpus}/{n}"})
    return rows


def draw_seconds(rng, corpus):
    """How long an utterance of a corpus is."""
    mean, deviation = CORPORA[corpus]
    return float(np.clip(rng.gamma((mean / deviation) ** 2, deviation ** 2 / mean), 0.5, 30))


def make_sample(rng, row, text, vocabulary, width, mean, slots):
    """What encode_sample gives for such a row: random ids and frames, as many as the row's corpus and task have."""
    seconds, tokens = draw_seconds(rng, row["id"].split("/")[0]), TOKENS[row["language"]]
    after, target = AFTER.get((row["task"], row["language"])), seconds * WORDS * tokens
    if row["task"] == "SQA":                # a question of about 10 words, a short answer of 3 (our choice)
        after, target = 15 + tokens * rng.normal(10, 3), tokens * (1 + rng.poisson(2)) if row["answerable"] else 5

    def ids(count):
        return rng.integers(0, vocabulary, max(1, round(count))).tolist()
    frames = None if text else rng.standard_normal((-(-round(seconds * FRAME_RATE) // mean), width), np.float32)
    before = ids(BEFORE + seconds * WORDS * TOKENS["en"] + after - 2 if text else BEFORE)
    sample = {"id": row["id"], "before": before, "frames": None if text else frames.astype(np.float16),
              "slots": 0 if text else slots(len(frames)), "after": [] if text else ids(after), "answer": ids(target + 1)}
    return {**sample, "counts": (len(sample["answer"]),),
            "length": sample["slots"] + sum(len(sample[part]) for part in ("before", "after", "answer"))}


# ---------------------------------------------------------------------------------------------------------------------
# modules
def make_llm(config, device, dtype):
    """A frozen LLM of random weights whose logits deviate by 3: a token at the wrong place then shows in the loss."""
    from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config
    config = (Qwen3Config if config["vocab_size"] == QWEN["vocab_size"] else LlamaConfig)(
        **config, initializer_range=0.5 / config["hidden_size"] ** 0.5)
    with torch.device(device):
        llm = AutoModelForCausalLM.from_config(config, dtype=dtype)    # the rotary frequencies stay float32
    llm.requires_grad_(False).eval()
    llm.get_input_embeddings().weight.normal_(0, 1)
    llm.lm_head.weight.normal_(0, 3 / config.hidden_size ** 0.5)       # where it is tied, this is the table as well
    return llm


def twin(module):
    """A second module over the same weights, so that a peer needs no memory for its own."""
    return copy.deepcopy(module, {id(tensor): tensor for tensor in chain(module.parameters(), module.buffers())})


def peft_twin(base, adapters):
    """What peft makes of the same LLM, with the same adapters."""
    import peft
    config = peft.LoraConfig(r=R, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=list(TARGETS))
    model = peft.get_peft_model(base, config)
    own = model.state_dict()
    for name, tensor in adapters.items():
        own[f"base_model.model.{name}.default.weight"].copy_(tensor)
    return model


def torchtune_twin(base, adapters):
    """What torchtune's LoRA recipe makes of the same LLM: adapters of the LLM's dtype, no checkpointing."""
    from torchtune.models.convert_weights import hf_to_tune
    from torchtune.models.llama3_1 import lora_llama3_1
    from torchtune.modules.peft import get_adapter_params, set_trainable_params
    from torchtune.training import set_default_dtype
    c, dtype = base.config, base.dtype
    heads = dict(num_heads=c.num_attention_heads, num_kv_heads=c.num_key_value_heads, head_dim=c.head_dim)
    with set_default_dtype(dtype), base.device:
        model = lora_llama3_1(
            ["q_proj", "k_proj", "v_proj", "output_proj"], apply_lora_to_mlp=True, vocab_size=c.vocab_size,
            num_layers=c.num_hidden_layers, num_heads=c.num_attention_heads, num_kv_heads=c.num_key_value_heads,
            embed_dim=c.hidden_size, intermediate_dim=c.intermediate_size, max_seq_len=2048, norm_eps=c.rms_norm_eps,
            rope_base=c.rope_parameters["rope_theta"], lora_rank=R, lora_alpha=ALPHA)
    state = hf_to_tune(base.state_dict(), dim=c.hidden_size, **heads)
    for name, b in adapters.items():
        if name.endswith("lora_B"):         # its rows are permuted as those of the weight are; A has none of them
            (key, b), = hf_to_tune({name.replace("lora_B", "weight"): b}, dim=R, **heads).items()
            key = key.removesuffix("weight")
            state[f"{key}lora_a.weight"] = adapters[name.replace("lora_B", "lora_A")].to(dtype)
            state[f"{key}lora_b.weight"] = b.to(dtype)
    model.load_state_dict({name: tensor.detach().clone() if "lora" in name else tensor
                           for name, tensor in state.items()}, assign=True)
    set_trainable_params(model, get_adapter_params(model))
    return model.eval()


def optional(peers, name, make, *given):
    """peers[name] = make(*given), unless its package cannot be imported: then it is left out, saying so."""
    try:
        peers[name] = make(*given)
    except ImportError as error:
        print(f"{name} is left out: {error}", file=sys.stderr)


# ---------------------------------------------------------------------------------------------------------------------
# what a peer does in one step
def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=0.0)


def finish_step(optimizer, loss):
    """(losses, gradient norm), as update gives them."""
    norm = nn.utils.get_total_norm([p.grad for group in optimizer.param_groups for p in group["params"]
                                    if p.grad is not None])
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return [float(loss)], float(norm)


def labelled(samples):
    """[(L,)] labels of a draw: -100 everywhere but at the answer."""
    return [torch.tensor([-100] * (s["length"] - len(s["answer"])) + s["answer"]) for s in samples]


def transformers_update(llm, projector, optimizer, window):
    """A draw is a batch, padded to its longest; labels and logits at all positions; the model's own loss."""
    device, total, count = llm.device, 0.0, sum(len(s["answer"]) for s in chain(*window))
    for samples in window:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            inputs = pad_sequence(splice(llm, projector, samples), batch_first=True)
            labels = pad_sequence(labelled(samples), batch_first=True, padding_value=-100).to(device)
            mask = pad_sequence([torch.ones(s["length"]) for s in samples], batch_first=True).to(device)
            mean = llm(inputs_embeds=inputs, attention_mask=mask, labels=labels, use_cache=False).loss
        loss = mean * (sum(len(s["answer"]) for s in samples) / count)
        loss.backward()
        total += loss.detach()
    return finish_step(optimizer, total)


def torchtune_update(model, optimizer, loss_of, window):
    """The inner loop of torchtune's single-device LoRA recipe."""
    from torchtune.data import padded_collate_sft
    from torchtune.training import scale_grads
    total, count = 0.0, 0
    for samples in window:
        batch = padded_collate_sft([{"tokens": s["before"] + s["after"] + s["answer"], "labels": labels.tolist()}
                                    for s, labels in zip(samples, labelled(samples))])
        device = next(model.parameters()).device
        labels = F.pad(batch["labels"][:, 1:], (0, 1), value=-100).to(device)
        answers = (labels != -100).sum()
        loss = loss_of(model(batch["tokens"].to(device)), labels) * answers
        loss.backward()
        total, count = total + loss.detach(), count + answers
    scale_grads(model, 1 / count)
    return finish_step(optimizer, total / count)


def transformers_generate(llm, projector, batch, samples, cap=CAP):
    """generate, `batch` utterances at a time in the given order -> the new ids of each, without the stop."""
    device, answers, ends = llm.device, [], set(llm.generation_config.eos_token_id)
    for first in range(0, len(samples), batch):
        some = [{**s, "answer": []} for s in samples[first:first + batch]]
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            prompts = splice(llm, projector, some)
        inputs = pad_sequence(prompts, batch_first=True, padding_side="left")
        mask = pad_sequence([torch.ones(len(p), dtype=torch.long) for p in prompts], batch_first=True,
                            padding_side="left").to(device)
        ids = llm.generate(inputs_embeds=inputs, attention_mask=mask, do_sample=False, max_new_tokens=cap, pad_token_id=0)
        for row in ids.tolist():
            stops = [n for n, token in enumerate(row) if token in ends]
            answers.append(row[:stops[0]] if stops else row)
    return answers


# ---------------------------------------------------------------------------------------------------------------------
# the stages. Each gives draw(seed), a list; arms {name: (run, the module whose positions are counted)}, run(list);
# count(list) -> (samples, useful tokens, positions of theirs, useful FLOPs); differ(ours, peer's) -> what is not the same, or ""
def matrices(*modules):
    """Parameters in matrices, adapters left out."""
    return sum(p.numel() for m in modules for name, p in m.named_parameters() if p.ndim > 1 and "lora_" not in name)


def attention(config, samples, passes):
    """FLOPs of causal attention over these lengths; passes: 1 forward, 3 with the gradient."""
    return 2 * passes * config.num_hidden_layers * config.num_attention_heads * config.head_dim * sum(
        s["length"] ** 2 for s in samples)


def projector_flops(projector, samples):
    """Forward and both gradients of a projector's matrices."""
    if projector is None:
        return 0
    parts = [(projector, 0)] if not hasattr(projector, "first") else [(projector.first, 0), (projector.second, 1)]
    heard = [(len(s["frames"]), s["slots"]) for s in samples if s["frames"] is not None]
    return sum(6 * matrices(part) * sum(positions[which] for positions in heard) for part, which in parts)


def other_losses(tolerance, ours, peer):
    """What is not the same of (losses, gradient norm). The norm, to 5 %, sees what a mean over the losses hides."""
    pairs = [*zip(ours[0], peer[0], [tolerance] * len(ours[0])), (ours[1], peer[1], 0.05)]
    return "" if all(abs(a - b) <= limit * abs(a) for a, b, limit in pairs) else f"(losses, norm) {ours} and {peer}"


def make_window(c, vocabulary, projector, mixture, shares, batch, draws, twin, mean, seed):
    """A step's draws of samples, as the stage draws them."""
    rng, stream = np.random.default_rng(seed), draw(make_rows(), mixture, shares, batch, batch, seed, twin)
    return [[make_sample(rng, row, text, vocabulary, c.width, mean, projector and projector.slots) for row in rows]
            for rows, text in (next(stream) for _ in range(draws))]


def training(c, kind):
    """A, A-mapper, B or C: one optimizer step, through the LLM."""
    config = c.qwen if kind == "A-mapper" else c.llama
    base = make_llm(config, c.device, c.dtype)
    projector, mean, stage = None, 3, kind[0]
    if stage != "B":
        mean, name = (2, "mapper") if kind == "A-mapper" else (3, "transformer")
        projector = make_projector(name, width=c.width, llm_width=base.config.hidden_size, **getattr(c, name))
        for p in projector.parameters():
            if p.ndim > 1:                  # some start at zero
                nn.init.normal_(p, 0, 0.02)
        projector.to(c.device).eval()
    llm, hears = twin(base), projector and copy.deepcopy(projector)
    spoken, heard = ([*p.parameters()] if p else [] for p in (projector, hears))
    peers, adapters = {}, {}
    if stage == "A":
        peers["transformers"] = base
    else:
        add_lora(llm, TARGETS, R, ALPHA)
        adapters = lora_state_dict(llm)
        for name, tensor in adapters.items():
            if name.endswith("lora_B"):
                tensor.normal_(0, 0.02)
        if stage == "B":
            optional(peers, "torchtune", torchtune_twin, base, adapters)
        optional(peers, "transformers + peft", peft_twin, base, adapters)
    trained = spoken + lora_parameters(llm)

    optimizers = [adamw(trained)]
    loss_of = partial(answer_loss, llm, projector)
    arms = {"ours": (lambda window: update(optimizers, [*chain(*window)], loss_of, c.micro), llm.model)}
    for name, model in peers.items():
        optimizer = adamw(heard + [p for p in model.parameters() if p.requires_grad])
        if name == "torchtune":
            from torchtune.modules.loss import CEWithChunkedOutputLoss
            chunked = CEWithChunkedOutputLoss()
            model.set_num_output_chunks(chunked.num_output_chunks)
            arms[name] = partial(torchtune_update, model, optimizer, chunked), model
        else:
            arms[name] = partial(transformers_update, model, hears, optimizer), base.model

    def count(window):
        samples = [*chain(*window)]
        tokens, body = sum(s["length"] for s in samples), matrices(base.model.layers)
        answers = sum(len(s["answer"]) for s in samples) * base.lm_head.weight.numel()
        return len(samples), tokens, tokens, (4 * (body * tokens + answers) + attention(base.config, samples, 3)
                                              + projector_flops(projector, samples)
                                              + 6 * tokens * sum(t.numel() for t in adapters.values()))
    mixture, shares, batch = {"A": (MIXTURES["A.1"], CORPUS_SHARES, 16), "B": (MIXTURES_B["B"], SHARES_B["B"], 10),
                              "C": (MIXTURES_C["C"], SHARES_C["short"], 16)}[stage]
    window = partial(make_window, c, base.config.vocab_size, projector, mixture, shares, batch, c.draws[stage],
                     stage == "C", mean)
    return SimpleNamespace(draw=window, arms=arms, count=count, differ=partial(other_losses, 1e-3))


def mapping(c):
    """A': one step of a SpeechMapper on the embedding table; the peer pads every draw and keeps all its scores."""
    sizes = dict(width=c.width, llm_width=c.qwen["hidden_size"], **c.mapper)
    table = torch.randn(c.qwen["vocab_size"], c.qwen["hidden_size"], device=c.device) * 0.02
    modules = nn.ModuleList([make_projector("mapper", **sizes), nn.Linear(c.mapper["middle"], len(LETTERS) + 1)])
    modules.to(c.device).eval()
    other, unit = copy.deepcopy(modules), F.normalize(table)

    def step(modules, optimizer, window):
        return update([optimizer], [*chain(*window)], partial(embedding_losses, *modules, table, unit),
                      c.frame_draws[1], [*LOSSES.values()], 1.0)

    def plain(window):
        with mock.patch.multiple(train_projector, CHUNK=10 ** 9, checkpoint=lambda loss, *x, **_: loss(*x),
                                 micro_batches=lambda *_: window):
            return step(other, theirs, window)
    ours, theirs = adamw(modules.parameters()), adamw(other.parameters())

    def window(seed):
        rng = np.random.default_rng(seed)
        rows = [row for row in make_rows() if row["task"] == "ASR"]
        seconds = {row["utterance"]: draw_seconds(rng, row["id"].split("/")[0]) for row in rows}
        stream = draw_frames(rows, {name: range(round(25 * s)) for name, s in seconds.items()}, c.frame_draws[1], seed)
        return [[sample(rng, row["id"], seconds[row["utterance"]]) for row in next(stream)[0]]
                for _ in range(c.frame_draws[0])]

    def sample(rng, name, seconds):
        frames = rng.standard_normal((round(25 * seconds), c.width), np.float32).astype(np.float16)
        slots, tokens = modules[0].slots(len(frames)), round(seconds * WORDS * TOKENS["en"])
        target = rng.integers(0, len(table), tokens).tolist() + [0] * (slots - tokens)
        letters = rng.integers(1, len(LETTERS) + 1, round(seconds * WORDS * 5.5)).tolist()        # a word and its space
        return {"id": name, "frames": frames, "slots": slots, "target": target, "letters": letters,
                "length": len(frames), "counts": (slots, slots, slots, 1)}

    def count(window):
        samples = [*chain(*window)]
        slots, frames = sum(s["slots"] for s in samples), sum(s["length"] for s in samples)
        return len(samples), frames, frames, (projector_flops(modules[0], samples) + 4 * slots * table.numel()
                                              + 6 * frames * matrices(modules[1]))
    return SimpleNamespace(draw=window, arms={"ours": (partial(step, modules, ours), modules[0].first),
                                              "plain torch": (plain, other[0].first)},
                           count=count, differ=partial(other_losses, 1e-3))


def decoding(c):
    """Greedy answers of A's model. Every token's successor is fixed by the head, so rows stop at drawn lengths."""
    llm = make_llm(c.llama, c.device, c.dtype)
    table, head, rng = llm.get_input_embeddings().weight, llm.lm_head.weight, np.random.default_rng(0)
    successor = rng.permutation(len(table))
    head[torch.from_numpy(successor).to(c.device)] = table     # the last token's own row outweighs all that layers add
    projector = make_projector("transformer", width=c.width, llm_width=table.shape[1], **c.transformer)
    projector.to(c.device).eval()
    other, nobody = twin(llm), SimpleNamespace(convert_tokens_to_ids=lambda _: None)

    def window(seed):
        draws = -(-c.utterances // 16)
        samples = [*chain(*make_window(c, len(table), projector, MIXTURES["A.1"], CORPUS_SHARES, 16, draws, False, 3,
                                       seed))][:c.utterances]
        ends = set()
        for s in samples:                   # the token that the walk from the prompt's last one reaches at that length
            token = s["after"][-1]
            for _ in s["answer"]:
                token = int(successor[token])
            ends.add(token)
        llm.generation_config.eos_token_id = other.generation_config.eos_token_id = sorted(ends)
        return samples

    def count(samples):
        prompts = [{"length": s["length"] - len(s["answer"])} for s in samples]
        prompt, new = sum(s["length"] for s in prompts), sum(len(s["answer"]) for s in samples)
        real = prompt + new - len(samples)  # the last token is not read
        return len(samples), new, real, (2 * matrices(llm.model.layers) * real + 2 * head.numel() * new
                                         + attention(llm.config, prompts, 1))

    def differ(ours, peer):
        rows = [n for n, (a, b) in enumerate(zip(ours, peer)) if a != b]
        return f"{len(rows)} answers, such as {ours[rows[0]]} and {peer[rows[0]]}" if rows else ""
    arms = {"ours": (lambda samples, cap=CAP: answer(llm, nobody, projector, samples, cap), llm.model)}
    for name, batch in (("generate, batched", c.utterances), ("generate, one by one", 1)):
        arms[name] = partial(transformers_generate, other, projector, batch), other.model

    def context():
        """With a free head a token depends on all that came before; in float32, where ties are rare."""
        llm.float()                         # the other's weights too: they are the same
        head.normal_(0, 1)
        outputs = {name: run(window(0)[:8], cap=16) for name, (run, _) in arms.items()}
        return {name: differ(outputs["ours"], output) for name, output in outputs.items()}
    return SimpleNamespace(draw=window, arms=arms, count=count, differ=differ, context=context)


def extraction(c):
    """Recordings on disk to averaged float16 frames; the peer takes the files in order, in batches of 16."""
    import soundfile
    from transformers import SeamlessM4TFeatureExtractor, SeamlessM4Tv2Config
    from transformers.models.seamless_m4t_v2.modeling_seamless_m4t_v2 import SeamlessM4Tv2SpeechEncoder
    config, extractor = SeamlessM4Tv2Config(**c.encoder), SeamlessM4TFeatureExtractor()
    with torch.device(c.device):
        encoder = SeamlessM4Tv2SpeechEncoder(config).eval().requires_grad_(False)
    encoder.to(torch.float16 if c.device.type == "cuda" else torch.float32)        # as load_encoder has it
    settings, folder = SimpleNamespace(mean=3, batch_seconds=c.batch_seconds), tempfile.TemporaryDirectory()

    def window(seed):
        rng, blocks = np.random.default_rng(seed), []
        for b in range(c.blocks[0]):
            names = [f"{folder.name}/{seed}-{b}-{n}.wav" for n in range(c.blocks[1])]
            for name in names:
                wave = rng.normal(0, 0.1, round(draw_seconds(rng, "covost2") * SAMPLE_RATE))
                soundfile.write(name, wave, SAMPLE_RATE)
            blocks.append([{"utterance": name, "audio": name} for name in names])
        return blocks

    def ours(blocks):
        frames = {}
        for block in decode_ahead(blocks, 30.0, c.threads):
            frames |= encode_block(settings, encoder, {row["utterance"]: feature for row, feature, _, _ in block})
        return frames

    @torch.no_grad()
    def plain(blocks):
        names, frames = [row["utterance"] for row in chain(*blocks)], {}
        for first in range(0, len(names), 16):
            some = names[first:first + 16]
            inputs = extractor([soundfile.read(name, dtype="float32")[0] for name in some], sampling_rate=SAMPLE_RATE,
                               return_tensors="pt").to(c.device)
            hidden = encoder.encoder(encoder.feature_projection(inputs["input_features"]),
                                     attention_mask=inputs["attention_mask"]).float().cpu().numpy()
            for name, row, length in zip(some, hidden, inputs["attention_mask"].sum(1).tolist()):
                frames[name] = average_frames(row[:length], 3).astype(np.float16)
        return frames

    def count(blocks):
        lengths = [int(soundfile.info(row["audio"]).duration * FRAME_RATE) for row in chain(*blocks)]
        body, total = matrices(encoder.feature_projection, encoder.encoder), sum(lengths)
        pairs = 4 * config.speech_encoder_layers * config.hidden_size * sum(t * t for t in lengths)
        return len(lengths), total, total, 2 * body * total + pairs

    def differ(ours, peer):
        a, b = (np.concatenate([frames[name] for name in ours]).astype(np.float32) for frames in (ours, peer))
        error = np.linalg.norm(a - b) / np.linalg.norm(a) if a.shape == b.shape else float("inf")
        return "" if error < 0.01 else f"frames, by {error}"        # float16 on a GPU: 0.005 from padding alone
    return SimpleNamespace(draw=window, arms={"ours": (ours, encoder.encoder), "transformers": (plain, encoder.encoder)},
                           count=count, differ=differ, keep=folder)


STAGES = {"extraction": extraction, "A": partial(training, kind="A"), "A-mapper": partial(training, kind="A-mapper"),
          "A'": mapping, "B": partial(training, kind="B"), "C": partial(training, kind="C"), "decoding": decoding}


# ---------------------------------------------------------------------------------------------------------------------
# measuring
def peak_flops(device, dtype):
    """The data sheet's, for a GPU it is known of; else the best of five products of 2048 x 2048 matrices."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    for model, flops in PEAKS.items():
        if model in name:
            return flops
    a, seconds = torch.randn(2048, 2048, device=device, dtype=dtype), []
    for _ in range(5):
        seconds.append(timed(device, lambda: a @ a)[0])
    return 2 * 2048 ** 3 / min(seconds)


def timed(device, run):
    """(seconds, what it gives)."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    output = run()
    wait()
    return time.perf_counter() - start, output


def forget_peak(device):
    """Start to look for the largest memory anew."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif os.path.exists("/proc/self/clear_refs"):
        ctypes.CDLL(None).malloc_trim(0)    # what the run before left
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")


def peak_gigabytes(device):
    """The largest memory since, weights included: allocated on the GPU, resident of the process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    if not os.path.exists("/proc/self/status"):
        return float("nan")
    with open("/proc/self/status") as file:
        return int(next(line for line in file if line.startswith("VmHWM")).split()[1]) / 1e6


def positions(counter, module, args, kwargs):
    """Hook: count the positions a forward pass computes, padding and all."""
    given = [*args, *(kwargs.get(name) for name in ("inputs_embeds", "input_ids", "tokens"))]
    counter[0] += next(x for x in given if x is not None).shape[:2].numel()


def measure(stage, seeds, device):
    """{arm: its seconds, padding and gigabytes for every seed}, count of every seed, {arm: what differs from ours}."""
    seen = {name: SimpleNamespace(seconds=[], padding=[], gigabytes=[]) for name in stage.arms}
    counts, wrong = [], dict.fromkeys(stage.arms, "")
    for run, _ in stage.arms.values():
        run(stage.draw(seeds[0])[:1])                                  # warm up
    for turn, seed in enumerate(seeds):
        window, names, outputs = stage.draw(seed), [*stage.arms], {}
        counts.append(stage.count(window))
        for name in names[turn % len(names):] + names[:turn % len(names)]:
            (run, body), counter = stage.arms[name], [0]
            hook = body.register_forward_pre_hook(partial(positions, counter), with_kwargs=True)
            forget_peak(device)
            seconds, outputs[name] = timed(device, partial(run, window))
            hook.remove()
            seen[name].seconds.append(seconds)
            seen[name].padding.append(1 - counts[-1][2] / counter[0])
            seen[name].gigabytes.append(peak_gigabytes(device))
            print(f"seed {seed}, {name}: {seconds:.2f} s", file=sys.stderr)
        wrong = {name: wrong[name] or stage.differ(outputs["ours"], outputs[name]) for name in names}
    return seen, counts, wrong


HEADER = ("stage", "samples/s", "tokens/s", "% of peak", "% padding", "GB", "peer", "its samples/s", "% padding", "GB",
          "times faster: min, median, max", "size", "machine", "versions", "date")


def machine(c):
    """The processor and how much of it is used."""
    if c.device.type == "cuda":
        return torch.cuda.get_device_name(c.device)
    name = "CPU"
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            name = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), name)
    return f"{name}, {c.threads} thread" + "s" * (c.threads > 1)


def rows_of(c, name, stage):
    """Measure a stage -> its rows of the table, one for each peer whose outputs are ours."""
    seen, counts, wrong = measure(stage, c.seeds, c.device)
    if hasattr(stage, "context"):
        wrong = {arm: wrong[arm] or difference for arm, difference in stage.context().items()}
    peak, ours, rows = peak_flops(c.device, c.dtype), seen.pop("ours"), []

    def rate(which, arm):
        return median(count[which] / seconds for count, seconds in zip(counts, arm.seconds))
    for peer, its in seen.items():
        if wrong[peer]:
            print(f"{name}: no figure beside {peer}, the outputs differ: {wrong[peer]}", file=sys.stderr)
            continue
        faster = sorted(b / a for a, b in zip(ours.seconds, its.seconds))
        package = {"plain torch": "torch"}.get(peer, peer.split()[-1] if "generate" not in peer else "transformers")
        rows.append([name, f"{rate(0, ours):.2f}", f"{rate(1, ours):.0f}", f"{100 * rate(3, ours) / peak:.0f}",
                     f"{100 * median(ours.padding):.0f}", f"{max(ours.gigabytes):.1f}", peer, f"{rate(0, its):.2f}",
                     f"{100 * median(its.padding):.0f}", f"{max(its.gigabytes):.1f}",
                     f"{faster[0]:.2f}, {median(faster):.2f}, {faster[-1]:.2f}",
                     f"{c.size}, {str(c.dtype).removeprefix('torch.')}, {len(c.seeds)} seeds", machine(c),
                     ", ".join(f"{p} {version(p)}" for p in dict.fromkeys(("torch", "transformers", package))),
                     datetime.date.today().isoformat()])
    return rows, any(wrong.values())


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[1], allow_abbrev=False)
    parser.add_argument("stage", nargs="?", choices=STAGES, help="all of them, where none is named")
    parser.add_argument("--size", choices=SIZES, help="real on a GPU, mid on the CPU")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of the LLM: as load_llm loads it")
    parser.add_argument("--out", help="a file to which the rows are appended")
    options = parser.parse_args(argv)
    device = pick_device()
    gpu = device.type == "cuda"
    torch.set_num_threads(options.threads)
    size, dtype = options.size or ("real" if gpu else "mid"), options.dtype or ("bfloat16" if gpu else "float32")
    c = SimpleNamespace(**SIZES[size], size=size, device=device, dtype=getattr(torch, dtype), threads=options.threads,
                        seeds=range(options.seeds))
    rows, failed = [], False
    for name in [options.stage] if options.stage else STAGES:
        torch.manual_seed(0)
        more, wrong = rows_of(c, name, STAGES[name](c))
        rows, failed = rows + more, failed or wrong
    lines = [f"| {' | '.join(row)} |\n" for row in rows]
    print(f"| {' | '.join(HEADER)} |\n|{'---|' * len(HEADER)}\n" + "".join(lines), end="")
    if options.out:
        with open(options.out, "a", encoding="utf-8") as file:
            file.writelines(lines)
    if failed:
        raise SystemExit("a figure is missing: the outputs of ours and of a peer differ, see above")


if __name__ == "__main__":
    main()
