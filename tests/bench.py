"""
Speed and memory of every stage, beside what one writes with transformers, peft or torchtune.

    python tests/bench.py                                   # every stage: real sizes on a GPU, else scaled down
    python tests/bench.py B --seeds 5 --threads 2 --dtype bfloat16 --out bench.md
    python tests/bench.py A --profile                       # the ten kernels that take most, and the idle share
    python tests/bench.py front-end                         # what comes before the encoder, and how many cores it needs

Weights are random and made where they run; nothing is downloaded. Inputs have the lengths of the papers' corpora. A
seed is one optimizer step, or one batch of utterances; ours, the code that the stages run, and its peers take turns on
it in one process. Their outputs are compared (losses within 1e-3, the same tokens in float32); where they differ there
is no figure. Dropout and learning rates are 0 on both sides, so that every seed can be compared.

Peers: transformers alone, with peft, or torchtune's LoRA recipe (0.6.1, whose torchao 0.15.0 no peft takes: install the
two in turn, torchtune with --no-deps). One that cannot be imported is left out, saying so.

prints  a Markdown table, a row for each stage and peer; --out FILE appends the rows there
"""
import argparse
import copy
import ctypes
import datetime
import gc
import os
import random
import sys
import tempfile
import time
from functools import partial
from importlib.metadata import version
from itertools import chain
from statistics import median
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import DeviceType
from torch.nn.utils.rnn import pad_sequence
from torch.profiler import ProfilerActivity, profile

import train_projector
from extract_features import (BLOCK, FRAME_RATE, Config as Config0, average_frames, decode_ahead, encode_block,
                              filterbank, log_mel)
from merge_sft import CORPUS_SHARES as SHARES_C, MIXTURES as MIXTURES_C, PRESETS as PRESETS_C
from speech_llm.audio import SAMPLE_RATE, read_audio
from speech_llm.constants import pick_device
from speech_llm.draws import draw, draw_frames
from speech_llm.speechmapper import LETTERS, LOSSES, embedding_losses
from speech_llm.training import update
from train_lora import (CORPUS_SHARES as SHARES_B, MIXTURES as MIXTURES_B, PRESETS as PRESETS_B, TARGETS, add_lora,
                        lora_parameters, lora_state_dict)
from train_projector import CORPUS_SHARES, MIXTURES, PRESETS, answer, answer_loss, make_projector, splice


if __name__ == "__main__":  # `python tests/bench.py`: imports start at the project's folder, not at tests/
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


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
SIZES = {  # real: as the presets iwslt25 and iwslt26; mid: for two CPU cores; toy: for a test
    "real": dict(llama=LLAMA, qwen=QWEN, encoder={}, width=1024, transformer=dict(heads=8, ffn=2048),
                 mapper=dict(heads=8, ffn=2048, layers=6, middle=2048), draws=dict(A=16, B=8, C=16),
                 micro={stage: presets["iwslt25"]["micro_tokens"] for stage, presets in
                        (("A", PRESETS), ("B", PRESETS_B), ("C", PRESETS_C))},
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
DRAWN = {  # mixture, shares of the corpora, rows in a draw; C: each draw of ST or SQA with its twin in text
    "A": (MIXTURES["A.1"], CORPUS_SHARES, 16), "B": (MIXTURES_B["B"], SHARES_B["B"], 10),
    "C": (MIXTURES_C["C"], SHARES_C["short"], 16)}
PEER_BATCH = {"A": 16, "B": 10, "C": 8}     # the papers'; C: what fits into 80 GB with peft (2026 has 8, too)
PEAKS = {"A100": 312e12, "H100": 989e12, "H200": 989e12}               # FLOP/s, bfloat16, dense; data sheets
R, ALPHA, CAP = 8, 16, 300                  # LoRA, and the longest answer; 2025, sections 3 and 4


# ---------------------------------------------------------------------------------------------------------------------
# inputs
def make_rows():
    """Rows without words, as many of each kind as the corpora have, in thousands."""
    return [{"id": f"{corpus}/{n}/{task}.{language}.{valid}", "task": "ST" if task == "MT" else task,
             "language": language, "answerable": valid, **({} if task == "MT" else {"utterance": f"{corpus}/{n}"})}
            for (corpus, task, language), count in ROWS.items()
            for valid in ((True, False) if task == "SQA" else (True,)) for n in range(count)]


def draw_seconds(rng, corpus):
    """How long an utterance of a corpus is."""
    mean, deviation = CORPORA[corpus]
    return float(np.clip(rng.gamma((mean / deviation) ** 2, deviation ** 2 / mean), 0.5, 30))


def make_sample(rng, row, text, vocabulary, width, mean, slots):
    """What encode_sample and encode_slots give: random ids and frames, as many as the row's corpus and task have."""
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
    said = ids(words * TOKENS["en"])[:part["slots"]]
    sample = {**part, "id": row["id"], "answer": ids(target + 1), "target": said + [0] * (part["slots"] - len(said)),
              "letters": ids(5.5 * words, len(LETTERS) + 1)}           # a word and its space
    length = part["slots"] + sum(len(sample[name]) for name in ("before", "after", "answer"))
    return {**sample, "length": length, "counts": (len(sample["answer"]),)}


# ---------------------------------------------------------------------------------------------------------------------
# modules
def make_llm(config, device, dtype):
    """A frozen LLM of random weights whose logits deviate by 3: a token at a wrong place then shows in the loss."""
    from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config
    config = (Qwen3Config if config.get("tie_word_embeddings") else LlamaConfig)(
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
    config = peft.LoraConfig(r=R, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=TARGETS.split(","))
    model = peft.get_peft_model(base, config)
    own = model.state_dict()
    for name, tensor in adapters.items():
        own[f"base_model.model.{name}.default.weight"].copy_(tensor)
    return model


def torchtune_twin(base, adapters):
    """What torchtune's LoRA recipe makes of the same LLM: adapters of the LLM's type; no checkpointing, as ours."""
    from torchtune.models.convert_weights import hf_to_tune
    from torchtune.models.llama3_1 import lora_llama3_1
    from torchtune.modules.peft import get_adapter_params, set_trainable_params
    from torchtune.training import set_default_dtype
    c = base.config
    heads = dict(num_heads=c.num_attention_heads, num_kv_heads=c.num_key_value_heads, head_dim=c.head_dim)
    with set_default_dtype(base.dtype), base.device:
        model = lora_llama3_1(
            ["q_proj", "k_proj", "v_proj", "output_proj"], apply_lora_to_mlp=True, vocab_size=c.vocab_size,
            num_layers=c.num_hidden_layers, num_heads=c.num_attention_heads, num_kv_heads=c.num_key_value_heads,
            embed_dim=c.hidden_size, intermediate_dim=c.intermediate_size, max_seq_len=2048, norm_eps=c.rms_norm_eps,
            rope_base=c.rope_parameters["rope_theta"], lora_rank=R, lora_alpha=ALPHA)
    state = hf_to_tune(base.state_dict(), dim=c.hidden_size, **heads)
    for name in [name for name in adapters if name.endswith("lora_B")]:
        a, b = (adapters[name[:-1] + part].to(base.dtype, copy=True) for part in "AB")
        (key, b), = hf_to_tune({name.replace("lora_B", "weight"): b}, dim=R, **heads).items()    # B's rows move as W's
        state |= {key.replace("weight", "lora_a.weight"): a, key.replace("weight", "lora_b.weight"): b}
    model.load_state_dict(state, assign=True)
    set_trainable_params(model, get_adapter_params(model))
    return model


# ---------------------------------------------------------------------------------------------------------------------
# what a peer does
def labels_of(samples):
    """(B, L) labels at all positions: -100 but at the answers."""
    rows = [torch.tensor([-100] * (s["length"] - len(s["answer"])) + s["answer"]) for s in samples]
    return pad_sequence(rows, batch_first=True, padding_value=-100)


def transformers_step(llm, projector, batches):
    """Gradient of the mean over all answer tokens -> the mean; each batch is padded, the loss is the model's own."""
    device, total, count = llm.device, 0.0, sum(len(s["answer"]) for s in chain(*batches))
    for samples in batches:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            inputs = pad_sequence(splice(llm, projector, samples), batch_first=True)
            mask = pad_sequence([torch.ones(s["length"]) for s in samples], batch_first=True).to(device)
            mean = llm(inputs_embeds=inputs, attention_mask=mask, labels=labels_of(samples).to(device),
                       use_cache=False).loss
        loss = mean * (sum(len(s["answer"]) for s in samples) / count)
        loss.backward()
        total += loss.detach()
    return total


def torchtune_step(model, batches):
    """The same, as torchtune's single-device LoRA recipe does it."""
    from torchtune.data import padded_collate_sft
    from torchtune.modules.loss import CEWithChunkedOutputLoss
    from torchtune.training import scale_grads
    loss_of, total, count, device = CEWithChunkedOutputLoss(), 0.0, 0, next(model.parameters()).device
    model.set_num_output_chunks(loss_of.num_output_chunks)
    for samples in batches:
        rows = [s["before"] + s["after"] + s["answer"] for s in samples]
        batch = padded_collate_sft([{"tokens": tokens, "labels": labels[:len(tokens)]}
                                    for tokens, labels in zip(rows, labels_of(samples).tolist())])
        labels = F.pad(batch["labels"][:, 1:], (0, 1), value=-100).to(device)
        answers = (labels != -100).sum()
        loss = loss_of(model(batch["tokens"].to(device)), labels) * answers
        loss.backward()
        total, count = total + loss.detach(), count + answers
    scale_grads(model, 1 / count)
    return total / count


def peer_update(step, optimizer, rows, window):
    """A peer's optimizer step over a window, shuffled, `rows` in a batch -> (losses, gradient norm), as update."""
    samples = [*chain(*window)]
    random.Random(0).shuffle(samples)                                  # as a DataLoader does
    loss = step([samples[i:i + rows] for i in range(0, len(samples), rows)])
    norm = nn.utils.get_total_norm([p.grad for p in optimizer.param_groups[0]["params"] if p.grad is not None])
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return [float(loss)], float(norm)


def transformers_generate(llm, projector, batch, samples, cap=CAP):
    """generate, `batch` utterances at a time as they come -> the new ids of each, without the stop."""
    device, answers, ends = llm.device, [], llm.generation_config.eos_token_id
    for first in range(0, len(samples), batch):
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            prompts = splice(llm, projector, [{**s, "answer": []} for s in samples[first:first + batch]])
        mask = [torch.ones(len(p), dtype=torch.long, device=device) for p in prompts]
        inputs, mask = (pad_sequence(x, batch_first=True, padding_side="left") for x in (prompts, mask))
        for ids in llm.generate(inputs_embeds=inputs, attention_mask=mask, do_sample=False, max_new_tokens=cap,
                                pad_token_id=0).tolist():
            answers.append(ids[:min((n for n, token in enumerate(ids) if token in ends), default=len(ids))])
    return answers


# ---------------------------------------------------------------------------------------------------------------------
# the stages -> draw(seed), a list; arms {name: (run(list), the module whose positions are counted)};
# count(list) -> (samples, useful tokens, positions that these are, useful FLOPs); differ(ours, peer's), "" if the same
def matrices(*modules):
    """Parameters in matrices, adapters left out."""
    return sum(p.numel() for m in modules for name, p in m.named_parameters() if p.ndim > 1 and "lora_" not in name)


def attention_flops(config, lengths):
    """Causal attention, forward."""
    return 2 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * sum(n * n for n in lengths)


def projector_flops(projector, samples):
    """A projector's matrices, forward and both gradients."""
    frames, slots = (sum(n) for n in zip(*((len(s["frames"]), s["slots"]) for s in samples if s["slots"])))
    if hasattr(projector, "first"):         # a SpeechMapper
        return 6 * (matrices(projector.first) * frames + matrices(projector.second) * slots)
    return 6 * matrices(projector) * frames


def other_losses(ours, peer):
    """What is not the same of (losses, gradient norm); the norm, to 5 %, sees what a mean of losses hides."""
    pairs = [*((a, b, 1e-3) for a, b in zip(ours[0], peer[0])), (ours[1], peer[1], 0.05)]
    return "" if all(abs(a - b) <= limit * abs(a) for a, b, limit in pairs) else f"losses and norm {ours}, {peer}"


def make_window(c, vocabulary, projector, stage, draws, mean, seed):
    """So many draws of samples, as the stage draws them."""
    mixture, shares, batch = DRAWN[stage]
    rng, stream = np.random.default_rng(seed), draw(make_rows(), mixture, shares, batch, batch, seed, stage == "C")
    return [[make_sample(rng, row, text, vocabulary, c.width, mean, projector and projector.slots) for row in rows]
            for rows, text in (next(stream) for _ in range(draws))]


def training(c, kind):
    """A, A-mapper, B or C: one optimizer step through the LLM."""
    stage, (name, mean) = kind[0], ("mapper", 2) if kind == "A-mapper" else ("transformer", 3)
    base, projector = make_llm(c.qwen if name == "mapper" else c.llama, c.device, c.dtype), None
    if stage != "B":
        projector = make_projector(name, width=c.width, llm_width=base.config.hidden_size, **getattr(c, name))
        for p in projector.parameters():
            nn.init.normal_(p, 0, 0.02)     # some start at zero
        projector.to(c.device).eval()
    llm, heard = twin(base), copy.deepcopy(projector)
    adapters, steps = {}, {"transformers": (base, partial(transformers_step, base, heard), base.model)}
    if stage != "A":
        add_lora(llm, TARGETS, R, ALPHA)
        adapters, steps = lora_state_dict(llm), {}
        for b in adapters.values():
            b.normal_(0, 0.02)
        for package, make in {"torchtune": torchtune_twin, "peft": peft_twin}.items():
            if stage == "B" or package == "peft":
                try:
                    model = make(base, adapters)
                    steps[package] = ((model, partial(transformers_step, model, heard), base.model)
                                      if package == "peft" else (model, partial(torchtune_step, model), model))
                except ImportError as error:
                    print(f"{package} is left out: {error}", file=sys.stderr)

    def adamw(model, projector):
        return torch.optim.AdamW([p for m in (model, projector) if m for p in m.parameters() if p.requires_grad], lr=0)
    optimizers = [adamw(llm, projector)]
    arms = {"ours": (lambda window: update(optimizers, [*chain(*window)], partial(answer_loss, llm, projector),
                                           c.micro[stage]), llm.model)}
    for peer, (model, step, body) in steps.items():
        arms[peer] = partial(peer_update, step, adamw(model, heard), PEER_BATCH[stage]), body

    def count(window):
        samples = [*chain(*window)]
        tokens, answers = (sum(n) for n in zip(*((s["length"], len(s["answer"])) for s in samples)))
        lora = sum(p.numel() for p in lora_parameters(llm))
        flops = (4 * (matrices(base.model.layers) * tokens + base.lm_head.weight.numel() * answers) + 6 * lora * tokens
                 + 3 * attention_flops(base.config, [s["length"] for s in samples])
                 + (projector_flops(projector, samples) if projector else 0))
        return len(samples), tokens, tokens, flops
    return SimpleNamespace(draw=partial(make_window, c, base.config.vocab_size, projector, stage, c.draws[stage], mean),
                           arms=arms, count=count, differ=other_losses)


def mapping(c):
    """A': one step of a SpeechMapper on the table; the peer takes a draw as one batch, all of its scores at once."""
    table = torch.randn(c.qwen["vocab_size"], c.qwen["hidden_size"], device=c.device) * 0.02
    mapper = make_projector("mapper", width=c.width, llm_width=table.shape[1], **c.mapper)
    modules = nn.ModuleList([mapper, nn.Linear(c.mapper["middle"], len(LETTERS) + 1)]).to(c.device).eval()
    other, unit = copy.deepcopy(modules), F.normalize(table)

    def window(seed):
        rng, needed = np.random.default_rng(seed), c.frame_draws * c.frames // 50
        rows = random.Random(seed).sample([row for row in make_rows() if row["task"] == "ASR"], needed)
        made = {row["id"]: make_sample(rng, row, False, len(table), c.width, 2, mapper.slots) for row in rows}
        for s in made.values():
            s |= {"length": len(s["frames"]), "counts": (s["slots"], s["slots"], s["slots"], 1)}
        stream = draw_frames([{**row, "utterance": row["id"]} for row in rows],
                             {name: s["frames"] for name, s in made.items()}, c.frames, seed)
        return [[made[row["id"]] for row in next(stream)[0]] for _ in range(c.frame_draws)]

    def step(modules, optimizer, window):
        return update([optimizer], [*chain(*window)], partial(embedding_losses, *modules, table, unit), c.frames,
                      [*LOSSES.values()], 1.0)

    def all_at_once(said, target, unit):
        return F.cross_entropy(said @ unit.T, target, reduction="sum")

    def plain(modules, optimizer, window):
        with mock.patch.multiple(train_projector, RowLoss=SimpleNamespace(apply=all_at_once),
                                 micro_batches=lambda *_: window):
            return step(modules, optimizer, window)
    arms = {name: (partial(run, own, torch.optim.AdamW(own.parameters(), lr=0)), own[0].first)
            for name, run, own in (("ours", step, modules), ("plain torch", plain, other))}

    def count(window):
        samples = [*chain(*window)]
        slots, frames = (sum(s[key] for s in samples) for key in ("slots", "length"))
        return len(samples), frames, frames, (projector_flops(mapper, samples) + 4 * slots * table.numel()
                                              + 6 * frames * matrices(modules[1]))
    return SimpleNamespace(draw=window, arms=arms, count=count, differ=other_losses)


def decoding(c):
    """Greedy answers of A's model. The head fixes every token's successor, so that rows stop at drawn lengths."""
    llm = make_llm(c.llama, c.device, c.dtype)
    table, head, successor = llm.get_input_embeddings().weight, llm.lm_head.weight, random.Random(0)
    successor = successor.sample(range(len(table)), len(table))
    head[torch.tensor(successor, device=c.device)] = table             # what the layers add does not outweigh the token
    projector = make_projector("transformer", width=c.width, llm_width=table.shape[1], **c.transformer)
    projector.to(c.device).eval()
    other, no_tokenizer = twin(llm), SimpleNamespace(convert_tokens_to_ids=lambda _: None)

    def window(seed):
        samples = [*chain(*make_window(c, len(table), projector, "A", -(-c.utterances // 16), 3, seed))]
        samples = samples[:c.utterances]
        ends = set()
        for s in samples:
            token = s["after"][-1]
            for _ in s["answer"]:
                token = successor[token]
            ends.add(token)
        llm.generation_config.eos_token_id = other.generation_config.eos_token_id = sorted(ends)
        return samples

    def count(samples):
        prompts, new = [s["length"] - len(s["answer"]) for s in samples], sum(len(s["answer"]) for s in samples)
        read = sum(prompts) + new - len(samples)                       # nobody reads the last token
        return len(samples), new, read, (2 * matrices(llm.model.layers) * read + 2 * head.numel() * new
                                         + attention_flops(llm.config, prompts))

    def differ(ours, peer):
        rows = [n for n, (a, b) in enumerate(zip(ours, peer, strict=True)) if a != b]
        return f"{len(rows)} answers, such as {ours[rows[0]]} and {peer[rows[0]]}" if rows else ""
    arms = {"ours": (lambda samples, cap=CAP: answer(llm, no_tokenizer, projector, samples, cap), llm.model),
            "generate, batched": (partial(transformers_generate, other, projector, c.utterances), other.model),
            "generate, one by one": (partial(transformers_generate, other, projector, 1), other.model)}

    def context():
        """What differs under a free head: then a token depends on all before it. In float32, where ties are rare."""
        llm.float()                         # the other's weights, too: they are the same
        head.normal_(0, 1)
        outputs = {name: run(window(0)[:8], cap=16) for name, (run, _) in arms.items()}
        return {name: differ(outputs["ours"], output) for name, output in outputs.items()}
    return SimpleNamespace(draw=window, arms=arms, count=count, differ=differ, context=context)


def extraction(c):
    """Recordings on disk to averaged frames; the peer takes the files as they come, 16 at a time."""
    import soundfile
    from transformers import SeamlessM4TFeatureExtractor, SeamlessM4Tv2Config
    from transformers.models.seamless_m4t_v2.modeling_seamless_m4t_v2 import SeamlessM4Tv2SpeechEncoder
    config, extractor = SeamlessM4Tv2Config(**c.encoder), SeamlessM4TFeatureExtractor()
    with torch.device(c.device):
        encoder = SeamlessM4Tv2SpeechEncoder(config).eval().requires_grad_(False)
    encoder.to(torch.float16 if c.device.type == "cuda" else torch.float32)        # as load_encoder has it
    settings, folder = SimpleNamespace(mean=3, pad=False, batch_seconds=c.seconds), tempfile.TemporaryDirectory()

    def window(seed):
        rng, blocks = np.random.default_rng(seed), []
        for name in [f"{folder.name}/{n}.wav" for n in range(4 * c.block)]:
            soundfile.write(name, rng.normal(0, 0.1, round(draw_seconds(rng, "covost2") * SAMPLE_RATE)), SAMPLE_RATE)
            blocks.append({"utterance": name, "audio": name})
        return [blocks[i:i + c.block] for i in range(0, len(blocks), c.block)]

    def ours(blocks):
        frames = {}
        for block in decode_ahead(config, blocks, 30.0, 30.0, c.threads):
            frames |= encode_block(settings, encoder, {row["utterance"]: features for row, features, *_ in block})[0]
        return frames

    @torch.no_grad()
    def plain(blocks):
        names, frames = [row["utterance"] for row in chain(*blocks)], {}
        for first in range(0, len(names), 16):
            some = names[first:first + 16]
            inputs = extractor([soundfile.read(name, dtype="float32")[0] for name in some], sampling_rate=SAMPLE_RATE,
                               return_tensors="pt").to(c.device)
            mask = inputs["attention_mask"]
            hidden = encoder.encoder(encoder.feature_projection(inputs["input_features"]), attention_mask=mask)
            for name, row, length in zip(some, hidden.float().cpu().numpy(), mask.sum(1).tolist()):
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
    return SimpleNamespace(draw=window, arms=arms, count=count, differ=differ, folder=folder)


STAGES = {"extraction": extraction, "A": partial(training, kind="A"), "A-mapper": partial(training, kind="A-mapper"),
          "A'": mapping, "B": partial(training, kind="B"), "C": partial(training, kind="C"), "decoding": decoding}


def front_end(c):
    """
    Rows of a table: audio seconds a second on one thread for each part before the encoder, transformers' extractor
    beside ours, and how many cores keep up with SeamlessM4T's encoder (58 GFLOP an audio second) at half a card's peak.
    """
    import soundfile
    import torchaudio
    from transformers import SeamlessM4TFeatureExtractor, WhisperFeatureExtractor
    threads, rng = torch.get_num_threads(), np.random.default_rng(0)
    torch.set_num_threads(1)
    waves = [rng.normal(0, 0.1, round(draw_seconds(rng, "covost2") * SAMPLE_RATE)).astype(np.float32)
             for _ in range(40)]
    seconds = sum(map(len, waves)) / SAMPLE_RATE

    def rate(function, inputs):
        """The median over the seeds, after one that warms up."""
        function(inputs[0])
        return seconds / median(timed(c.device, lambda: [function(x) for x in inputs])[0] for _ in c.seeds)
    reading = {}
    with tempfile.TemporaryDirectory() as folder:
        for ending, hertz in (("wav", SAMPLE_RATE), ("flac", SAMPLE_RATE), ("mp3", 48_000), ("opus", 48_000)):
            names = [f"{folder}/{n}.{ending}" for n in range(len(waves))]
            kind = dict(format="OGG", subtype="OPUS") if ending == "opus" else {}
            for name, wave in zip(names, waves):
                wave = torchaudio.functional.resample(torch.from_numpy(wave), SAMPLE_RATE, hertz).numpy()
                soundfile.write(name, wave.clip(-1, 1), hertz, **kind)
            reading[ending, hertz] = rate(read_audio, names)
    kwargs = dict(sampling_rate=SAMPLE_RATE, return_tensors="pt")
    seamless, whisper = SeamlessM4TFeatureExtractor(), WhisperFeatureExtractor()
    fbank, mel = rate(filterbank, waves), rate(partial(log_mel, bins=80, window=1500), waves)
    resample = partial(torchaudio.functional.resample, orig_freq=48_000, new_freq=SAMPLE_RATE)
    tripled = [torch.from_numpy(wave.repeat(3)) for wave in waves]
    rows = [["resampling from 48000 Hz", rate(resample, tripled), None, ""],
            ["filterbank of SeamlessM4T", fbank, rate(lambda wave: seamless(wave, **kwargs), waves), ""],
            ["log mel of Whisper, without its silence", mel, rate(lambda wave: whisper(wave, **kwargs), waves), ""]]
    for (ending, hertz), read in reading.items():
        cores = [flops / 2 / 58e9 * (1 / read + 1 / fbank) for flops in (PEAKS["A100"], PEAKS["H200"])]
        rows.append([f"read_audio, {ending} of {hertz} Hz", read, None, "{:.0f}, {:.0f}".format(*cores)])
    torch.set_num_threads(threads)
    where, date = machine(torch.device("cpu"), 1), datetime.date.today().isoformat()
    return [[name, f"{ours:.0f}", f"{its:.0f}" if its else "", cores, where, date] for name, ours, its, cores in rows]


# ---------------------------------------------------------------------------------------------------------------------
# measuring
def timed(device, run, *inputs):
    """(seconds, what it gives)."""
    wait = torch.cuda.synchronize if device.type == "cuda" else int
    wait()
    start = time.perf_counter()
    output = run(*inputs)
    wait()
    return time.perf_counter() - start, output


def peak_flops(device, dtype):
    """FLOP/s of the data sheet, of a known GPU; else of the best of five products of 2048 x 2048 matrices."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    a = torch.randn(2048, 2048, device=device, dtype=dtype)
    known = [flops for model, flops in PEAKS.items() if model in name]
    return known[0] if known else 2 * 2048 ** 3 / min(timed(device, a.matmul, a)[0] for _ in range(5))


def peak_gigabytes(device, forget=False):
    """The largest memory since `forget`, weights included: allocated on a GPU, else resident of the process."""
    if device.type == "cuda":
        return torch.cuda.reset_peak_memory_stats(device) if forget else torch.cuda.max_memory_allocated(device) / 1e9
    if not sys.platform.startswith("linux"):
        return float("nan")
    if forget:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)    # what the run before has left
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    with open("/proc/self/status") as file:
        return int(next(line for line in file if line.startswith("VmHWM")).split()[1]) / 1e6


def measure(stage, seeds, device):
    """({arm: its seconds, padding and gigabytes of every seed}, count of every seed, {arm: what differs from ours})."""
    seen = {name: SimpleNamespace(seconds=[], padding=[], gigabytes=[]) for name in stage.arms}
    counts, wrong = [], dict.fromkeys(stage.arms, "")
    for run, _ in stage.arms.values():      # warm up: a GPU's memory pool takes the whole of it
        run(stage.draw(seeds[0])[:None if device.type == "cuda" else 1])
    for turn, seed in enumerate(seeds):
        window, names, outputs = stage.draw(seed), [*stage.arms], {}
        counts.append(stage.count(window))
        for name in names[turn % len(names):] + names[:turn % len(names)]:
            (run, body), processed = stage.arms[name], []

            def look(_, args, given):
                inputs = [*args, given.get("inputs_embeds"), given.get("input_ids")]
                processed.append(next(x for x in inputs if x is not None).shape[:2].numel())
            hook = body.register_forward_pre_hook(look, with_kwargs=True)
            peak_gigabytes(device, forget=True)
            seconds, outputs[name] = timed(device, run, window)
            hook.remove()
            print(f"seed {seed}, {name}: {seconds:.2f} s", file=sys.stderr)
            for values, value in zip(vars(seen[name]).values(),
                                     (seconds, 1 - counts[-1][2] / sum(processed), peak_gigabytes(device))):
                values.append(value)
        wrong = {name: wrong[name] or stage.differ(outputs["ours"], outputs[name]) for name in names}
    return seen, counts, wrong


def profiled(device, run, window):
    """Where the time of one more run goes: the ten operators, or a GPU's kernels, that take most; what none takes."""
    gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]) as seen:
        seconds, _ = timed(device, run, window)
    shares = [((e.self_device_time_total if gpu else e.self_cpu_time_total) / 1e4 / seconds, e.count, e.key)
              for e in seen.key_averages() if not gpu or e.device_type == DeviceType.CUDA]
    print(f"of {seconds:.2f} s {100 - sum(share for share, *_ in shares):.1f} % idle", file=sys.stderr)
    for share, count, name in sorted(shares, reverse=True)[:10]:
        print(f"{share:5.1f} %, {count} x {name}", file=sys.stderr)


# tokens: real ones through the LLM; for extraction and A' frames of 50 and 25 Hz, for decoding the new ones
HEADER = ("stage", "samples/s", "tokens/s", "% of peak", "% padding", "GB", "peer", "its samples/s", "% padding", "GB",
          "times faster: min, median, max", "size", "machine", "versions", "date")
FRONT_END = ("part", "audio s/s on one thread", "transformers", "cores for an A100, an H200", "machine", "date")


def table(c, name, stage):
    """Measure a stage -> its rows of the table, one for each peer; one whose outputs differ is named instead."""
    seen, counts, wrong = measure(stage, c.seeds, c.device)
    if c.profile:
        profiled(c.device, stage.arms["ours"][0], stage.draw(c.seeds[0]))
    if hasattr(stage, "context"):
        wrong = {arm: wrong[arm] or difference for arm, difference in stage.context().items()}
    ours, peak, rows = seen.pop("ours"), peak_flops(c.device, c.dtype), []

    def rate(which, seconds):
        return median(count[which] / s for count, s in zip(counts, seconds))
    for peer, its in seen.items():
        if wrong[peer]:
            print(f"{name}: no figure, ours and {peer} differ: {wrong[peer]}", file=sys.stderr)
            continue
        faster = sorted(b / a for a, b in zip(ours.seconds, its.seconds))
        packages = ["torch", "transformers", *(p for p in ("peft", "torchtune") if p == peer)]
        rows.append([name, f"{rate(0, ours.seconds):.2f}", f"{rate(1, ours.seconds):.0f}",
                     f"{100 * rate(3, ours.seconds) / peak:.1f}", f"{100 * median(ours.padding):.0f}",
                     f"{max(ours.gigabytes):.1f}", peer, f"{rate(0, its.seconds):.2f}",
                     f"{100 * median(its.padding):.0f}", f"{max(its.gigabytes):.1f}",
                     f"{faster[0]:.2f}, {median(faster):.2f}, {faster[-1]:.2f}",
                     f"{c.size}, {str(c.dtype).removeprefix('torch.')}, {len(c.seeds)} seeds", c.machine,
                     ", ".join(f"{package} {version(package)}" for package in packages),
                     datetime.date.today().isoformat()])
    return rows, any(wrong.values())


def machine(device, threads):
    """The GPU, or the processor and how many threads run on it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = "CPU"
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            name = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), name)
    return f"{name}, threads: {threads}"


def main(argv=None):
    parser = argparse.ArgumentParser(allow_abbrev=False, description="Speed and memory of every stage, beside a peer's")
    parser.add_argument("stage", nargs="?", choices=[*STAGES, "front-end"], help="every stage where none is named")
    parser.add_argument("--size", choices=SIZES, help="real on a GPU, mid on the CPU")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of the LLM; as load_llm loads it")
    parser.add_argument("--profile", action="store_true", help="also what one more run of ours spends its time on")
    parser.add_argument("--out", help="a file that the rows are appended to")
    o, device = parser.parse_args(argv), pick_device()
    torch.set_num_threads(o.threads)
    size, dtype = ("real", "bfloat16") if device.type == "cuda" else ("mid", "float32")
    size, dtype = o.size or size, getattr(torch, o.dtype or dtype)
    c = SimpleNamespace(**SIZES[size], size=size, device=device, dtype=dtype, threads=o.threads, seeds=range(o.seeds),
                        profile=o.profile, machine=machine(device, o.threads))
    header = FRONT_END if o.stage == "front-end" else HEADER
    print(f"| {' | '.join(header)} |\n|{'---|' * len(header)}", flush=True)
    failed = []
    for name in [o.stage] if o.stage else STAGES:
        torch.manual_seed(0)
        rows, wrong = (front_end(c), False) if name == "front-end" else table(c, name, STAGES[name](c))
        gc.collect()                        # the weights of this stage, before the next makes its own
        lines = "".join(f"| {' | '.join(row)} |\n" for row in rows)
        print(lines, end="", flush=True)
        if o.out:
            with open(o.out, "a", encoding="utf-8") as file:
                file.write(lines)
        failed += [name] * wrong
    if failed:
        raise SystemExit(f"no figure where the outputs of ours and a peer differ, see above: {', '.join(failed)}")


if __name__ == "__main__":
    main()
