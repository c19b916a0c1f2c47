"""
Measure speed and memory of every stage, beside what one writes with transformers, peft or plain torch.

    python -m tests.bench                                   # every stage: real sizes on a GPU, else scaled down
    python -m tests.bench B --seeds 5 --dtype bfloat16 >> bench.md
    python -m tests.bench A --profile                       # the ten operators or kernels that take most

Weights are random; inputs have the lengths of the papers' corpora. A seed is one optimizer step, or one batch of
utterances. Ours, the code that the stages run, and its peers take turns on it in one process. Where their outputs
differ (losses by 1e-3, tokens in float32) there is no figure. Dropout and learning rates are 0. B and C need peft.
"""
import argparse
import copy
import ctypes
import datetime
import gc
import random
import sys
import tempfile
import time
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from unittest import mock

import numpy as np
import soundfile
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torch.profiler import profile
from transformers import (AutoModelForCausalLM, LlamaConfig, Qwen3Config, SeamlessM4TFeatureExtractor,
                          SeamlessM4Tv2Config)
from transformers.models.seamless_m4t_v2.modeling_seamless_m4t_v2 import SeamlessM4Tv2SpeechEncoder

import merge_sft
import train_lora
import train_projector
from extract_features import BLOCK, FRAME_RATE, Config as Config0, average_frames, decode_ahead, encode_block
from speech_llm.audio import SAMPLE_RATE
from speech_llm.batches import Batch
from speech_llm.constants import pick_device, read_page
from speech_llm.draws import draw, draw_frames
from speech_llm.index import Rows
from speech_llm.speechmapper import LETTERS, TableObjective
from speech_llm.training import optimizer_step
from train_lora import TARGETS, add_lora, lora_parameters, lora_state_dict
from train_projector import AnswerObjective, answer, make_projector, positions, splice

CORPORA = {  # seconds of an utterance, gamma: mean (hours / utterances, or the paper's), deviation (our choice)
    "covost2": (5.35, 1.7), "europarlst": (9.3, 5.0), "spokensquad": (10.0, 4.5), "gigast": (4.4, 3.0)}
ROWS = {  # (corpus, task, language): thousands of rows; 2025, Tables 1 and 3; GigaST: 2026, Table 5
    ("covost2", "ASR", "en"): 289, ("covost2", "ST", "de"): 289, ("covost2", "ST", "zh"): 289,
    ("europarlst", "ASR", "en"): 33, ("europarlst", "ST", "de"): 33, ("europarlst", "ST", "it"): 30,
    ("spokensquad", "MT", "de"): 39, ("spokensquad", "MT", "it"): 55, ("spokensquad", "MT", "zh"): 25,
    ("spokensquad", "SQA", "en"): 34, ("spokensquad", "SQA", "de"): 7, ("spokensquad", "SQA", "it"): 17,
    ("spokensquad", "SQA", "zh"): 7, ("gigast", "ASR", "en"): 7646}
WORDS = 2.4                                 # a second; LibriSpeech, read out, has 2.6 (our choice)
TOKENS = {"en": 1.25, "it": 1.7, "de": 1.85, "zh": 1.35}               # of Llama-3.1, for an English word (our choice)
BEFORE, AFTER = 10, {("ASR", "en"): 24, ("ST", "de"): 30, ("ST", "it"): 29, ("ST", "zh"): 25}    # the prompt; counted

LLAMA = dict(vocab_size=128_256, hidden_size=4096, intermediate_size=14_336, num_hidden_layers=32,      # 3.1-8B
             num_attention_heads=32, num_key_value_heads=8, head_dim=128, max_position_embeddings=131_072,
             rms_norm_eps=1e-5, rope_parameters=dict(rope_type="llama3", rope_theta=500_000.0, factor=8.0,
                                                     low_freq_factor=1.0, high_freq_factor=4.0,
                                                     original_max_position_embeddings=8192))
QWEN = dict(vocab_size=151_936, hidden_size=2560, intermediate_size=9728, num_hidden_layers=36,  # 3-4B-Instruct-2507
            num_attention_heads=32, num_key_value_heads=8, head_dim=128, max_position_embeddings=262_144,
            tie_word_embeddings=True, rope_parameters=dict(rope_type="default", rope_theta=5_000_000.0))
MID = dict(hidden_size=512, intermediate_size=1792, num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=2,
           head_dim=64)
TOY = dict(MID, hidden_size=64, intermediate_size=128, num_hidden_layers=2, head_dim=8, vocab_size=600)
ENCODER = ("hidden_size", "speech_encoder_layers", "speech_encoder_attention_heads", "speech_encoder_intermediate_size")
CONSTANTS = {"A": train_projector.Config(), "B": train_lora.Config(), "C": merge_sft.Config()}          # 2025's values
SIZES = {  # real: as the pages iwslt25 and iwslt26; mid: for two CPU cores; toy: for a test
    "real": dict(llama=LLAMA, qwen=QWEN, encoder={}, width=1024, transformer=dict(heads=8, ffn=2048),
                 mapper=dict(heads=8, ffn=2048, layers=6, middle=2048), draws=dict(A=16, B=8, C=16),
                 micro={stage: constants.micro_tokens for stage, constants in CONSTANTS.items()},
                 frame_draws=8, frames=12_000, block=BLOCK, seconds=Config0.batch_seconds,
                 utterances=64),
    "mid":  dict(llama=LLAMA | MID, qwen=QWEN | MID, encoder=dict(zip(ENCODER, (256, 8, 4, 1024))), width=256,
                 transformer=dict(heads=4, ffn=512), mapper=dict(heads=4, ffn=512, layers=2, middle=512),
                 draws=dict(A=2, B=4, C=2), micro=dict(A=2048, B=1024, C=2048), frame_draws=2, frames=1500,
                 block=32, seconds=30.0, utterances=64),
    "toy":  dict(llama=LLAMA | TOY, qwen=QWEN | TOY, encoder=dict(zip(ENCODER, (32, 1, 2, 64))), width=32,
                 transformer=dict(heads=4, ffn=64), mapper=dict(heads=4, ffn=64, layers=1, middle=32),
                 draws=dict(A=1, B=2, C=2), micro=dict.fromkeys("ABC", 1024), frame_draws=2, frames=500,
                 block=3, seconds=20.0, utterances=6)}
SHARES = {**{stage: constants.shares for stage, constants in CONSTANTS.items()},       # of the corpora
          "C": read_page("iwslt25_short")["merge_sft"]["shares"]}                      # short answers
PEER_BATCH = {"A": 16, "B": 10, "C": 8}     # the papers'; C: what fits into 80 GB with peft (2026 has 8, too)
PEAKS = {"A100": 312e12, "H100": 989e12, "H200": 989e12}               # FLOP/s, bfloat16, dense; data sheets
R, ALPHA, CAP = 8, 16, 300                  # LoRA, and the longest answer; 2025, sections 3 and 4


# --- inputs

def make_rows():
    """Return rows without words, as many of each kind as the corpora have, in thousands."""
    return [{"id": f"{corpus}/{n}/{task}.{language}.{valid}", "task": "ST" if task == "MT" else task,
             "language": language, "answerable": valid, **({} if task == "MT" else {"utterance": f"{corpus}/{n}"})}
            for (corpus, task, language), count in ROWS.items()
            for valid in ((True, False) if task == "SQA" else (True,)) for n in range(count)]


def draw_seconds(rng, corpus):
    """Return the seconds of an utterance of a corpus."""
    mean, deviation = CORPORA[corpus]
    return float(np.clip(rng.gamma((mean / deviation) ** 2, deviation ** 2 / mean), 0.5, 30))


def make_sample(rng, row, text, vocabulary, width, mean, slots):
    """Return a sample of AnswerObjective and TableObjective: random ids and frames, as many as the row's kind has."""
    def ids(count, below=vocabulary):
        return rng.integers(1, below, max(1, round(count))).tolist()
    seconds, tokens = draw_seconds(rng, row["id"].split("/")[0]), TOKENS[row["language"]]
    words = seconds * WORDS
    after, target = AFTER.get((row["task"], row["language"])), words * tokens
    if row["task"] == "SQA":                # a question of about 10 words, an answer of about 3 (our choice)
        after, target = 15 + tokens * rng.normal(10, 3), tokens * (1 + rng.poisson(2)) if row["answerable"] else 5
    if text:
        part = {"before": ids(BEFORE + words * TOKENS["en"] + after - 2), "frames": None, "slots": 0, "after": []}
    else:
        frames = rng.standard_normal((-(-round(seconds * FRAME_RATE) // mean), width), np.float32).astype(np.float16)
        part = {"before": ids(BEFORE), "frames": frames, "slots": slots(len(frames)), "after": ids(after)}
    spoken = ids(words * TOKENS["en"])[:part["slots"]]
    return {**part, "id": row["id"], "answer": ids(target + 1), "target": spoken + [0] * (part["slots"] - len(spoken)),
            "letters": ids(5.5 * words, len(LETTERS) + 1)}             # a word and its space


# --- modules

def make_llm(config, device, dtype):
    """Return a frozen LLM of random weights whose logits deviate by 3: a wrong token then shows in the loss."""
    config = (Qwen3Config if config.get("tie_word_embeddings") else LlamaConfig)(
        **config, initializer_range=0.5 / config["hidden_size"] ** 0.5)
    with torch.device(device):
        llm = AutoModelForCausalLM.from_config(config, dtype=dtype)    # the rotary frequencies stay float32
    llm.requires_grad_(False).eval()
    llm.get_input_embeddings().weight.normal_(0, 1)
    llm.lm_head.weight.normal_(0, 3 / config.hidden_size ** 0.5)       # where it is tied, this is the table as well
    return llm


def make_encoder(c):
    """Return SeamlessM4T's speech encoder, frozen, of random weights."""
    with torch.device(c.device):
        encoder = SeamlessM4Tv2SpeechEncoder(SeamlessM4Tv2Config(**c.encoder)).eval().requires_grad_(False)
    return encoder.to(torch.float16 if c.device.type == "cuda" else torch.float32)              # as load_encoder has it


def same_weights(module):
    """Return a second module over the same weights, so that a peer needs no memory for weights."""
    return copy.deepcopy(module, {id(tensor): tensor for tensor in chain(module.parameters(), module.buffers())})


def peft_model(base, adapters):
    """Return what peft makes of the same LLM, with the same adapters."""
    import peft
    config = peft.LoraConfig(r=R, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=TARGETS.split(","))
    model = peft.get_peft_model(base, config)
    state = model.state_dict()
    for name, tensor in adapters.items():
        state[f"base_model.model.{name}.default.weight"].copy_(tensor)
    return model


# --- what a peer does

def labels_of(samples):
    """Return (B, L) labels: -100 at all positions but the answers'."""
    rows = [torch.tensor([-100] * (positions(s) - len(s["answer"])) + s["answer"]) for s in samples]
    return pad_sequence(rows, batch_first=True, padding_value=-100)


def transformers_step(llm, projector, batches):
    """Make the gradient of the mean over all answer tokens, return the mean; the loss is the model's own."""
    device, total, count = llm.device, 0.0, sum(len(s["answer"]) for s in chain(*batches))
    for samples in batches:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            inputs = pad_sequence(splice(llm, projector, Batch.of(samples)), batch_first=True)
            mask = pad_sequence([torch.ones(positions(s)) for s in samples], batch_first=True).to(device)
            mean = llm(inputs_embeds=inputs, attention_mask=mask, labels=labels_of(samples).to(device),
                       use_cache=False).loss
        loss = mean * (sum(len(s["answer"]) for s in samples) / count)
        loss.backward()
        total += loss.detach()
    return total


def peer_update(step, optimizer, rows, samples):
    """Make a peer's optimizer step over samples, shuffled, `rows` in a batch; return what optimizer_step returns."""
    samples = random.Random(0).sample(samples, len(samples))           # as a DataLoader does
    loss = step([samples[i:i + rows] for i in range(0, len(samples), rows)])
    norm = nn.utils.get_total_norm([p.grad for p in optimizer.param_groups[0]["params"] if p.grad is not None])
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return [float(loss)], float(norm)


def transformers_generate(llm, projector, batch, samples, cap=CAP):
    """Return generate's new ids of each sample, without the stop; `batch` utterances at a time, as they come."""
    device, answers, ends = llm.device, [], llm.generation_config.eos_token_id
    for first in range(0, len(samples), batch):
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            prompts = splice(llm, projector, Batch.of([{**s, "answer": []} for s in samples[first:first + batch]]))
        mask = [torch.ones(len(p), dtype=torch.long, device=device) for p in prompts]
        inputs, mask = (pad_sequence(x, batch_first=True, padding_side="left") for x in (prompts, mask))
        for ids in llm.generate(inputs_embeds=inputs, attention_mask=mask, do_sample=False, max_new_tokens=cap,
                                pad_token_id=0).tolist():
            answers.append(ids[:min((n for n, token in enumerate(ids) if token in ends), default=len(ids))])
    return answers


# --- the stages -> draw(seed), a list; arms {name: (run(list), the module whose positions are counted)};
# count(list) -> (samples, useful tokens, positions that these are, useful FLOPs); differ(ours, peer's), "" if the same
def matrices(*modules):
    """Return the number of parameters in matrices, without adapters."""
    return sum(p.numel() for m in modules for name, p in m.named_parameters() if p.ndim > 1 and "lora_" not in name)


def attention_flops(config, lengths):
    """Return the FLOPs of causal attention, forward."""
    return 2 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * sum(n * n for n in lengths)


def projector_flops(projector, samples):
    """Return the FLOPs of a projector's matrices, forward and both gradients."""
    frames, slots = (sum(n) for n in zip(*((len(s["frames"]), s["slots"]) for s in samples if s["slots"])))
    if hasattr(projector, "first"):         # a SpeechMapper
        return 6 * (matrices(projector.first) * frames + matrices(projector.second) * slots)
    return 6 * matrices(projector) * frames


def other_losses(ours, peer):
    """Return where (losses, gradient norm) differ; the norm, to 5 %, shows what a mean of losses hides."""
    pairs = [*((a, b, 1e-3) for a, b in zip(ours[0], peer[0])), (ours[1], peer[1], 0.05)]
    return "" if all(abs(a - b) <= limit * abs(a) for a, b, limit in pairs) else f"losses and norm {ours}, {peer}"


def make_window(c, vocabulary, projector, stage, draws, mean, seed):
    """Return the samples of so many draws, as the stage draws them; C: of ST or SQA, each with its paired text draw."""
    constants, rng = CONSTANTS[stage], np.random.default_rng(seed)
    rows = [row for row in make_rows() if not row["id"].startswith("gigast/")]       # the corpora of 2025
    stream = draw(Rows.of(rows), constants.mixture, SHARES[stage], constants.batch, constants.batch, seed,
                  stage == "C")
    return [make_sample(rng, row, text, vocabulary, c.width, mean, projector and projector.slots)
            for rows, text in (next(stream) for _ in range(draws)) for row in rows]


def training(c, kind):
    """Return stage A, A-mapper, B or C: one optimizer step through the LLM."""
    stage, (name, mean) = kind[0], ("mapper", 2) if kind == "A-mapper" else ("transformer", 3)
    base, projector = make_llm(c.qwen if name == "mapper" else c.llama, c.device, c.dtype), None
    if stage != "B":
        projector = make_projector(name, width=c.width, llm_width=base.config.hidden_size, **getattr(c, name))
        for p in projector.parameters():
            nn.init.normal_(p, 0, 0.02)     # some start at zero
        projector.to(c.device).eval()
    llm, peer_projector = same_weights(base), copy.deepcopy(projector)
    peer, peer_llm = "transformers", base
    if stage != "A":
        add_lora(llm, TARGETS, R, ALPHA)
        adapters = lora_state_dict(llm)
        for tensor in adapters.values():
            tensor.normal_(0, 0.02)
        peer, peer_llm = "peft", peft_model(base, adapters)

    def adamw(model, projector):
        return torch.optim.AdamW([p for m in (model, projector) if m for p in m.parameters() if p.requires_grad], lr=0)
    optimizers, objective = [adamw(llm, projector)], AnswerObjective(llm, None, projector, "", None, c.micro[stage])

    def step(samples):
        return optimizer_step(optimizers, objective, samples, objective.batches(samples))
    peer_step = partial(peer_update, partial(transformers_step, peer_llm, peer_projector),
                        adamw(peer_llm, peer_projector), PEER_BATCH[stage])
    arms = {"ours": (step, llm.model), peer: (peer_step, base.model)}

    def count(samples):
        tokens, answers = (sum(n) for n in zip(*((positions(s), len(s["answer"])) for s in samples)))
        lora = sum(p.numel() for p in lora_parameters(llm))
        flops = (4 * (matrices(base.model.layers) * tokens + base.lm_head.weight.numel() * answers) + 6 * lora * tokens
                 + 3 * attention_flops(base.config, map(positions, samples))
                 + (projector_flops(projector, samples) if projector else 0))
        return len(samples), tokens, tokens, flops
    return SimpleNamespace(draw=partial(make_window, c, base.config.vocab_size, projector, stage, c.draws[stage], mean),
                           arms=arms, count=count, differ=other_losses)


def mapping(c):
    """Return A': one step of a SpeechMapper on the table. The peer takes a draw as one batch, all scores at once."""
    table = torch.randn(c.qwen["vocab_size"], c.qwen["hidden_size"], device=c.device) * 0.02
    mapper = make_projector("mapper", width=c.width, llm_width=table.shape[1], **c.mapper).to(c.device).eval()
    ours = TableObjective(mapper, table, None, None, c.frames)
    peer = copy.deepcopy(ours, {id(table): table, id(ours.directions): ours.directions})

    def window(seed):
        rng, needed = np.random.default_rng(seed), c.frame_draws * c.frames // 50
        rows = random.Random(seed).sample([row for row in make_rows() if row["task"] == "ASR"], needed)
        samples = {row["id"]: make_sample(rng, row, False, len(table), c.width, 2, mapper.slots) for row in rows}
        stream = draw_frames(Rows.of([{**row, "utterance": row["id"]} for row in rows],
                                     {name: sample["frames"] for name, sample in samples.items()}), c.frames, seed)
        return [[samples[row["id"]] for row in next(stream)[0]] for _ in range(c.frame_draws)]

    def step(objective, optimizer, window):
        samples = [*chain(*window)]
        return optimizer_step([optimizer], objective, samples, objective.batches(samples), 1.0)

    all_at_once = SimpleNamespace(apply=lambda output, target, directions: F.cross_entropy(
        output @ directions.T, target, reduction="sum"))

    def plain(objective, optimizer, window):
        with mock.patch("speech_llm.speechmapper.SoftmaxLoss", all_at_once):
            return optimizer_step([optimizer], objective, [*chain(*window)], [Batch.of(draw) for draw in window], 1.0)
    arms = {}
    for name, run, objective in (("ours", step, ours), ("plain torch", plain, peer)):
        optimizer = torch.optim.AdamW([*objective.mapper.parameters(), *objective.head.parameters()], lr=0)
        arms[name] = partial(run, objective, optimizer), objective.mapper.first

    def count(window):
        samples = [*chain(*window)]
        slots, frames = sum(s["slots"] for s in samples), sum(len(s["frames"]) for s in samples)
        return len(samples), frames, frames, (projector_flops(mapper, samples) + 4 * slots * table.numel()
                                              + 6 * frames * matrices(ours.head))
    return SimpleNamespace(draw=window, arms=arms, count=count, differ=other_losses)


def decoding(c):
    """Return greedy decoding of A's model. The head fixes every token's successor, so rows stop at drawn lengths."""
    llm = make_llm(c.llama, c.device, c.dtype)
    table, head, successor = llm.get_input_embeddings().weight, llm.lm_head.weight, random.Random(0)
    successor = successor.sample(range(len(table)), len(table))
    head[torch.tensor(successor, device=c.device)] = table             # what the layers add does not outweigh the token
    projector = make_projector("transformer", width=c.width, llm_width=table.shape[1], **c.transformer)
    projector.to(c.device).eval()
    other = same_weights(llm)

    def window(seed):
        samples = make_window(c, len(table), projector, "A", -(-c.utterances // 16), 3, seed)[:c.utterances]
        ends = set()
        for s in samples:
            token = s["after"][-1]
            for _ in s["answer"]:
                token = successor[token]
            ends.add(token)
        llm.generation_config.eos_token_id = other.generation_config.eos_token_id = sorted(ends)
        return samples

    def count(samples):
        new = sum(len(s["answer"]) for s in samples)
        prompts = [positions(s) - len(s["answer"]) for s in samples]
        read = sum(prompts) + new - len(samples)                       # the LLM does not read the last token
        return len(samples), new, read, (2 * matrices(llm.model.layers) * read + 2 * head.numel() * new
                                         + attention_flops(llm.config, prompts))

    def differ(ours, peer):
        rows = [n for n, (a, b) in enumerate(zip(ours, peer, strict=True)) if a != b]
        return f"{len(rows)} answers, such as {ours[rows[0]]} and {peer[rows[0]]}" if rows else ""

    def ours(samples, cap=CAP):
        with mock.patch("train_projector.stop_ids", lambda llm, _: {*llm.generation_config.eos_token_id}):
            return answer(llm, None, projector, samples, cap)
    arms = {"ours": (ours, llm.model),
            "generate, batched": (partial(transformers_generate, other, projector, c.utterances), other.model),
            "generate, one by one": (partial(transformers_generate, other, projector, 1), other.model)}

    def context():
        """Return what differs under a free head, where a token depends on all before it; in float32 ties are rare."""
        llm.float()                         # the peer has the same weights
        head.normal_(0, 1)
        outputs = {name: run(window(0)[:8], cap=16) for name, (run, _) in arms.items()}
        return {name: differ(outputs["ours"], output) for name, output in outputs.items()}
    return SimpleNamespace(draw=window, arms=arms, count=count, differ=differ, context=context)


def extraction(c):
    """Return stage 0, from recordings to averaged frames; the peer takes the files as they come, 16 at a time."""
    encoder, extractor = make_encoder(c), SeamlessM4TFeatureExtractor()
    config = encoder.config
    settings, folder = SimpleNamespace(mean=3, pad=False, batch_seconds=c.seconds), tempfile.TemporaryDirectory()

    def window(seed):
        rng, blocks = np.random.default_rng(seed), []
        for name in [f"{folder.name}/{n}.wav" for n in range(4 * c.block)]:
            soundfile.write(name, rng.normal(0, 0.1, round(draw_seconds(rng, "covost2") * SAMPLE_RATE)), SAMPLE_RATE)
            blocks.append({"utterance": name, "audio": name})
        return [blocks[i:i + c.block] for i in range(0, len(blocks), c.block)]

    def ours(blocks):
        frames = {}
        for block in decode_ahead(config, blocks, 30.0, 30.0, torch.get_num_threads()):
            frames |= encode_block(settings, encoder, {row["utterance"]: features for row, features, *_ in block})[0]
        return frames

    @torch.no_grad()
    def plain(blocks):
        names, frames = [row["utterance"] for row in chain(*blocks)], {}
        for first in range(0, len(names), 16):
            batch = names[first:first + 16]
            inputs = extractor([soundfile.read(name, dtype="float32")[0] for name in batch], sampling_rate=SAMPLE_RATE,
                               return_tensors="pt").to(c.device)
            mask = inputs["attention_mask"]
            hidden = encoder.encoder(encoder.feature_projection(inputs["input_features"]), attention_mask=mask)
            for name, row, length in zip(batch, hidden.float().cpu().numpy(), mask.sum(1).tolist()):
                frames[name] = average_frames(row[:length], 3).astype(np.float16)
        return frames

    def count(blocks):
        lengths = [int(soundfile.info(row["audio"]).duration * FRAME_RATE) for row in chain(*blocks)]
        pairs = 4 * config.speech_encoder_layers * config.hidden_size * sum(n * n for n in lengths)
        body = matrices(encoder.feature_projection, encoder.encoder)
        return len(lengths), sum(lengths), sum(lengths), 2 * body * sum(lengths) + pairs

    def differ(ours, peer):
        a, b = (np.concatenate([frames[name] for name in ours]).astype(np.float32) for frames in (ours, peer))
        error = np.linalg.norm(a - b) / np.linalg.norm(a) if a.shape == b.shape else np.inf
        return "" if error < 0.01 else f"frames, by {error}"           # float16: 0.005 where a batch is padded
    arms = {"ours": (ours, encoder.encoder), "transformers": (plain, encoder.encoder)}
    return SimpleNamespace(draw=window, arms=arms, count=count, differ=differ)


STAGES = {"extraction": extraction, "A": partial(training, kind="A"), "A-mapper": partial(training, kind="A-mapper"),
          "A'": mapping, "B": partial(training, kind="B"), "C": partial(training, kind="C"), "decoding": decoding}


# --- measuring

def timed(device, run, *inputs):
    """Return (seconds, what `run` returns)."""
    wait = torch.cuda.synchronize if device.type == "cuda" else int
    wait()
    start = time.perf_counter()
    output = run(*inputs)
    wait()
    return time.perf_counter() - start, output


def peak_flops(device, dtype):
    """Return the FLOP/s of a known GPU's data sheet, else of the best of five products of 2048 x 2048 matrices."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    a = torch.randn(2048, 2048, device=device, dtype=dtype)
    known = [flops for model, flops in PEAKS.items() if model in name]
    return known[0] if known else 2 * 2048 ** 3 / min(timed(device, a.matmul, a)[0] for _ in range(5))


def peak_gigabytes(device, forget=False):
    """Return the largest memory since `forget`, weights included: allocated on a GPU, else resident; in GB."""
    if device.type == "cuda":
        return torch.cuda.reset_peak_memory_stats(device) if forget else torch.cuda.max_memory_allocated(device) / 1e9
    if not sys.platform.startswith("linux"):
        return float("nan")
    if forget:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)    # what the run before has left
        Path("/proc/self/clear_refs").write_text("5")
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1e6


def measure(stage, seeds, device):
    """Return ({arm: [(seconds, padding, GB) of every seed]}, count of every seed, {arm: what differs from ours})."""
    figures, counts, wrong = {name: [] for name in stage.arms}, [], dict.fromkeys(stage.arms, "")
    for run, _ in stage.arms.values():      # warm up: a GPU's memory pool takes the whole of it
        run(stage.draw(0)[:None if device.type == "cuda" else 1])
    for seed in range(seeds):
        window, names, outputs = stage.draw(seed), [*stage.arms], {}
        counts.append(stage.count(window))
        for name in names[seed % len(names):] + names[:seed % len(names)]:
            (run, body), processed = stage.arms[name], []

            def look(_, args, options):
                inputs = [*args, options.get("inputs_embeds"), options.get("input_ids")]
                processed.append(next(x for x in inputs if x is not None).shape[:2].numel())
            hook = body.register_forward_pre_hook(look, with_kwargs=True)
            peak_gigabytes(device, forget=True)
            seconds, outputs[name] = timed(device, run, window)
            hook.remove()
            figures[name].append((seconds, 1 - counts[-1][2] / sum(processed), peak_gigabytes(device)))
            print(f"seed {seed}, {name}: {seconds:.2f} s", file=sys.stderr)
        wrong = {name: wrong[name] or stage.differ(outputs["ours"], outputs[name]) for name in names}
    return figures, counts, wrong


# tokens: real ones through the LLM; for extraction and A' frames of 50 and 25 Hz, for decoding the new ones
HEADER = ("stage", "samples/s", "tokens/s", "% of peak", "% padding", "GB", "peer", "its samples/s", "% padding", "GB",
          "times faster: min, median, max")


def table(c, name, stage):
    """Measure a stage; return (rows of the table, one for each peer with our outputs; whether a peer differs)."""
    figures, counts, wrong = measure(stage, c.seeds, c.device)
    if hasattr(stage, "context"):
        wrong = {arm: wrong[arm] or difference for arm, difference in stage.context().items()}

    def rate(arm, which):
        return median(count[which] / seconds for count, (seconds, *_) in zip(counts, figures[arm]))

    def room(arm):
        _, padding, gigabytes = zip(*figures[arm])
        return f"{100 * median(padding):.0f}", f"{max(gigabytes):.1f}"
    if c.profile:
        with profile() as profiler:
            timed(c.device, stage.arms["ours"][0], stage.draw(0))
        kind = "device" if c.device.type == "cuda" else "cpu"
        print(profiler.key_averages().table(sort_by=f"self_{kind}_time_total", row_limit=10), file=sys.stderr)
    peak, rows = peak_flops(c.device, c.dtype), []
    for peer in list(figures)[1:]:
        if wrong[peer]:
            print(f"{name}: no figure, ours and {peer} differ: {wrong[peer]}", file=sys.stderr)
            continue
        faster = sorted(its[0] / ours[0] for ours, its in zip(figures["ours"], figures[peer]))
        rows.append([name, f"{rate('ours', 0):.2f}", f"{rate('ours', 1):.0f}", f"{100 * rate('ours', 3) / peak:.1f}",
                     *room("ours"), peer, f"{rate(peer, 0):.2f}", *room(peer),
                     f"{faster[0]:.2f}, {median(faster):.2f}, {faster[-1]:.2f}"])
    return rows, any(wrong.values())


def machine(device):
    """Return the name of the GPU, or of the processor with the number of threads that torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo").read_text() if sys.platform == "linux" else ""
    name = next((line.split(":")[1].strip() for line in info.splitlines() if line.startswith("model name")), "CPU")
    return f"{name}, threads: {torch.get_num_threads()}"


def print_row(cells):
    """Print one row of a Markdown table."""
    print(f"| {' | '.join(cells)} |", flush=True)


def main(argv=None):
    parser = argparse.ArgumentParser(allow_abbrev=False, description="Speed and memory of every stage, beside a peer's")
    parser.add_argument("stage", nargs="?", choices=STAGES, help="every stage where none is named")
    device = pick_device()
    size, dtype = ("real", "bfloat16") if device.type == "cuda" else ("mid", "float32")
    parser.add_argument("--size", choices=SIZES, default=size)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default=dtype, help="of the LLM")
    parser.add_argument("--profile", action="store_true", help="also what one more run of ours spends its time on")
    o = parser.parse_args(argv)
    c = SimpleNamespace(**SIZES[o.size], device=device, dtype=getattr(torch, o.dtype), seeds=o.seeds, profile=o.profile)
    packages = [package for package in ("torch", "transformers", "peft") if find_spec(package)]
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    print(f"{o.size}, {o.dtype}, {o.seeds} seeds, {machine(device)}, {versions}, {datetime.date.today()}\n")
    print_row(HEADER)
    print_row(["---"] * len(HEADER))
    failed = []
    for name in [o.stage] if o.stage else STAGES:
        torch.manual_seed(0)
        rows, wrong = table(c, name, STAGES[name](c))
        gc.collect()                        # the weights of this stage, before the next makes its own
        for row in rows:
            print_row(row)
        failed += [name] * wrong
    if failed:
        raise SystemExit(f"no figure where the outputs of ours and a peer differ, see above: {', '.join(failed)}")


if __name__ == "__main__":
    main()
