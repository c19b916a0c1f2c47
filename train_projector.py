"""
Stage A: train the speech projector, through the frozen LLM (2025, section 3) or on its embedding table alone
(SpeechMapper; 2026, section 3).

    python train_projector.py                                  # tiny, A.1: ASR and ST; two minutes on 2 cores
    python train_projector.py --mixture A.2 --out projector-A.2         # ASR, ST and SQA
    python train_projector.py --preset iwslt25                 # one A100-80GB; the paper reports 4.6 days
    torchrun --nproc_per_node 4 train_projector.py --preset iwslt26 --accumulate 2     # the paper reports 2 days

reads   <work>/rows/<corpus>/{train,dev}.jsonl, <work>/features/..., the LLM
writes  <work>/<run>/projector/: log.jsonl and resume.pt while it runs; step-NNNNN.pt, the projector at every
        validation; weights.pt, the one that was chosen, and, last, config.json

The definitions that the later stages share live here too: the LLM, the splice, the loss, greedy decoding, the sampler,
a run's folder.
"""
import json
import math
import os
import time
from collections import ChainMap
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from data.draws import choose, draw, draw_frames, pick_validation
from data.prompts import CHAT, TASK_LINES, encode, encode_answer, encode_prompt
from data.rows import corpus_of, differences, lock, read_json, read_json_lines, read_rows, replace_file, writing
from data.translate import load_checkpoint, loading
from extract_features import (configure, features_folder, locate, open_features, pick_device, provenance, require,
                              write_json)
from metrics.dev_scores import best_steps, score_answers
from metrics.normalize import mms_normalize


@dataclass(frozen=True)
class Config:                               # edit here, or pass --name value
    preset: str = "tiny"                    # filled in by configure
    work: str = "work"                      # everything that is written lies below this folder
    run: str = "tiny"                       # filled in by configure; presets of one system share a folder of work
    out: str = "projector"                  # <work>/<run>/<out>
    corpora: str = "tiny"                   # comma-separated folders of work/rows; train.jsonl and dev.jsonl of each
    encoder: str = "models/tiny-seamless"
    mean: int = 3                           # consecutive encoder frames averaged; 2025, section 3
    pad: bool = False                       # whether Whisper's frames are those of its whole window
    llm: str = "models/tiny-llama"
    prompt: str = "2025"                    # whose prompt, a key of data/prompts.py's SUFFIXES
    objective: str = "answers"              # or "embeddings": of the LLM its tokenizer and table alone (SpeechMapper)
    mixture: str = "A.1"                    # a key of MIXTURES
    projector: str = "transformer"          # a key of PROJECTORS
    layers: int = 4                         # 2025, section 3; SpeechMapper: of each block
    heads: int = 4
    ffn: int = 512
    dropout: float = 0.1                    # 2025, section 3
    middle: int = 256                       # SpeechMapper: width between its blocks; Q-Former: width inside
    text_encoder: str = ""                  # Q-Former: the BERT that its layers start from; empty: fresh
    start: str = ""                         # a finished projector to go on from, a folder of <work>/<run>
    sigma: float = 0.0                      # answers: share of the embeddings' MSE in the loss (SpeechMapper, stage 2)
    pad_token: str = "<|file_sep|>"         # whose embedding fills a SpeechMapper's spare slots; 2026, section 6.1
    batch: int = 16                         # rows in a draw; 2025, section 5.1
    batch_sqa: int = 8                      # 2025, appendix C.1
    batch_frames: int = 3000                # frames in a draw, when the objective is embeddings
    accumulate: int = 1                     # draws in one optimizer step
    steps: int = 300                        # optimizer steps; 0: a fresh projector, for merge_sft.py to train
    lr: float = 2e-3
    warmup: int = 20                        # steps
    cosine: bool = True                     # down to 0 at the last step; else constant after the warm-up
    weight_decay: float = 0.01              # the paper is silent; torch's default (our choice)
    clip: float = 0.0                       # largest gradient norm; 0: none
    micro_tokens: int = 4096                # padded positions in one forward pass: memory, not a hyper-parameter
    validate_every: int = 100               # steps; also the checkpoint interval
    validate_rows: int = 24                 # dev rows for each task and language, for the loss and for SQA's score
    decode: str = "tiny"                    # the corpus whose dev split is decoded whole at every validation: ASR, ST
    decode_batch: int = 64                  # rows decoded together
    max_new_tokens: int = 40                # of these answers
    keep: str = "ST"                        # which step becomes weights.pt: best in ST, ASR, SQA or all of them
    seed: int = 0

PRESETS = {                                 # only what differs from the lines above
    "tiny":    {},
    "smoke":   dict(steps=6, validate_every=3, validate_rows=4),
    "digits":  dict(corpora="digits", encoder="models/digits-seamless", llm="models/digits-llama", steps=800,
                    decode="digits"),
    "iwslt25": dict(corpora="covost2,europarlst,spokensquad,acl6060", encoder="facebook/seamless-m4t-v2-large",
                    llm="meta-llama/Llama-3.1-8B-Instruct", heads=8, ffn=2048,                 # section 3
                    accumulate=16, lr=1e-4, warmup=0, cosine=False, steps=15_090,              # 4 epochs; section 5.1
                    micro_tokens=8192, validate_every=250, validate_rows=100, decode="acl6060", max_new_tokens=150),
}
PRESETS["iwslt25-a2"] = dict(PRESETS["iwslt25"], run="iwslt25", mixture="A.2", out="projector-A.2")
PRESETS["iwslt25-short"] = dict(PRESETS["iwslt25"], run="iwslt25")     # fluent or short answers: C only
PRESETS["iwslt25-a2-short"] = PRESETS["iwslt25-a2"]
PRESETS["tiny26"] = dict(corpora="tiny26", encoder="models/tiny26-seamless", mean=2, llm="models/tiny26-qwen3",
                         prompt="2026-zero-shot", objective="embeddings", mixture="ASR", projector="mapper", layers=2,
                         clip=1.0, batch_frames=800, lr=1.5e-3, steps=2400, validate_every=400)
PRESETS["smoke26"] = dict(PRESETS["tiny26"], steps=6, validate_every=3, validate_rows=4)
PRESETS["iwslt26"] = dict(corpora="covost2,europarlst,gigast,librisqa", encoder="facebook/seamless-m4t-v2-large",
                          mean=2, llm="Qwen/Qwen3-4B-Instruct-2507", prompt="2026-zero-shot",
                          objective="embeddings", mixture="ASR",
                          projector="mapper", layers=6, middle=2048, heads=8, ffn=2048,          # 2026, section 4
                          accumulate=8, lr=1e-4, warmup=50_000, steps=500_000,      # section 6.1; 2 on each of 4 GPUs
                          clip=1.0, batch_frames=12_000, micro_tokens=12_000,       # (our choice: the paper is silent)
                          validate_every=5000, validate_rows=500)
PRESETS["iwslt26-setup2"] = dict(PRESETS["iwslt26"], run="iwslt26")        # the two setups differ in C
# The listeners' projector is trained by merge_sft.py, together with LoRA; what is made here is a fresh one
PRESETS["tiny-listeners"] = dict(corpora="tiny-listeners", encoder="models/tiny-whisper", mean=1,
                                 llm="models/tiny-cohere", prompt="listeners", mixture="ASR", decode="tiny-listeners",
                                 keep="ASR", projector="qformer", layers=2, middle=128, ffn=256,
                                 text_encoder="models/tiny-bert", steps=0)
PRESETS["listeners"] = dict(corpora="multispeechqa", encoder="openai/whisper-large-v3", mean=1,
                            llm="CohereLabs/aya-expanse-8b", prompt="listeners", mixture="ASR", decode="multispeechqa",
                            keep="ASR", projector="qformer", layers=2, heads=12, middle=768, ffn=3072,
                            text_encoder="google-bert/bert-base-multilingual-cased", steps=0)
for name in ("tiny-listeners-align", "smoke-listeners", "smoke-listeners-align"):
    PRESETS[name] = dict(PRESETS["tiny-listeners"], run=name.removesuffix("-align"))
for name in ("listeners-align", "listeners-ast", "listeners-ten-align", "listeners-ten", "listeners-ten-ast"):
    PRESETS[name] = dict(PRESETS["listeners"], run="listeners")

MIXTURES = {  # task: (share, {language: share}), SQA languages (valid, invalid); 2025, section 5.1 and Table 13
    "ASR": {"ASR": (1.0, {"en": 1.0})},
    "A.1": {"ASR": (0.4, {"en": 1.0}),
            "ST": (0.6, {"de": 0.3, "it": 0.3, "zh": 0.4})},   # the text; Table 13 has it 0.4, zh 0.3 (our choice)
    "A.2": {"ASR": (0.4, {"en": 1.0}),
            "ST": (0.35, {"de": 0.3, "it": 0.3, "zh": 0.4}),
            "SQA": (0.25, {"en": (0.2, 0.2), "de": (0.15, 0.15), "it": (0.15, 0.15)})},
}
CORPUS_SHARES = {  # (task, corpus); where a task has no shares, its corpora go by size (section 5.1)
    ("ASR", "covost2"): 0.8, ("ASR", "europarlst"): 0.2,               # section 5.1
    ("SQA", "spokensquad"): 1.0,                                       # the short answers; Table 12
}

# B batch   T frames   W encoder width   L sequence   D LLM width   V vocabulary   N answer tokens


# ---------------------------------------------------------------------------------------------------------------------
# the projector and the frozen LLM
def beyond(x, lengths):
    """(B, T) -> True where a position lies beyond its sample's length."""
    return torch.arange(x.shape[1], device=x.device) >= lengths[:, None]


def encoder_layers(count, width, heads, ffn, dropout):
    """Pre-norm Transformer encoder layers with ReLU, torch's own."""
    return nn.ModuleList(nn.TransformerEncoderLayer(width, heads, ffn, dropout, batch_first=True, norm_first=True)
                         for _ in range(count))


class Projector(nn.Module):
    """Pre-norm Transformer encoder over the averaged frames, then a linear map to the LLM's width (2025, section 3)."""

    def __init__(self, width=1024, llm_width=4096, layers=4, heads=8, ffn=2048, dropout=0.1):
        super().__init__()
        # ReLU, no positions (the frames carry them), a closing LayerNorm: the paper is silent (our choice)
        self.layers = encoder_layers(layers, width, heads, ffn, dropout)
        for layer in self.layers:                # every layer starts as the identity: frames reach the LLM from step 1
            nn.init.zeros_(layer.self_attn.out_proj.weight)                                        # (our choice)
            nn.init.zeros_(layer.linear2.weight)
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, llm_width)

    @staticmethod
    def slots(frames):
        """Output vectors of so many frames."""
        return frames

    def forward(self, frames, lengths):
        """frames (B, T, W), lengths (B,) -> (B, T, D); what lies beyond a sample's length changes nothing."""
        for layer in self.layers:
            frames = layer(frames, src_key_padding_mask=beyond(frames, lengths))
        return self.output(self.norm(frames))                                                   # (B, T, D)


class Block(nn.Module):
    """Half of a SpeechMapper: convolution, self-attention, projection to a larger width (2026, section 4)."""

    def __init__(self, width, out, stride, layers, heads, ffn, dropout):
        super().__init__()
        # kernel 6 as in the original; padding, GELU, LayerNorm, sinusoidal positions: the paper is silent (our choice)
        self.stride, self.dropout = stride, nn.Dropout(dropout)
        self.convolution = nn.Conv1d(width, width, 6, stride, padding=3)
        self.first_norm = nn.LayerNorm(width)
        self.layers = encoder_layers(layers, width, heads, ffn, dropout)
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, out)

    def forward(self, x, lengths):
        """x (B, T, W), lengths (B,) -> (B, T // stride + 1, out), its lengths (B,)."""
        x = x.masked_fill(beyond(x, lengths)[..., None], 0)            # the convolution looks across a sample's end
        x = F.gelu(self.convolution(x.transpose(1, 2))).transpose(1, 2)
        lengths = lengths // self.stride + 1
        x = self.dropout(self.first_norm(x) + sinusoids(x.shape[1], x.shape[2], x.device))
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=beyond(x, lengths))
        return self.output(self.norm(x)), lengths


def sinusoids(length, width, device):
    """Positions of the original Transformer -> (length, width): sines, then cosines."""
    angle = torch.arange(length, device=device)[:, None] / 10_000 ** (torch.arange(0, width, 2, device=device) / width)
    return torch.cat([angle.sin(), angle.cos()], 1)


class SpeechMapper(nn.Module):
    """
    Frames -> what the transcript's embeddings would be, one token a slot from the first slot on, then the pad token's
    (2026, section 3). 25 frames a second; block 1 keeps the rate, for the CTC head; block 2 makes 6.25 slots a second.
    """

    def __init__(self, width=1024, llm_width=2560, layers=6, heads=8, ffn=2048, dropout=0.1, middle=2048):
        super().__init__()
        self.first = Block(width, middle, 1, layers, heads, ffn, dropout)
        self.second = Block(middle, llm_width, 4, layers, heads, ffn, dropout)

    @staticmethod
    def slots(frames):
        """Output vectors of so many frames."""
        return (frames + 1) // 4 + 1

    def forward(self, frames, lengths):
        """frames (B, T, W), lengths (B,) -> (B, slots(T), D); what lies beyond a sample's length changes nothing."""
        return self.second(*self.first(frames, lengths))[0]


class QFormer(nn.Module):
    """
    Window-level Q-Former (listeners, section 6; as in SALMONN): one learned query reads every window of frames apart,
    through two BERT layers with cross-attention; then a linear map to the LLM's width. 3 slots a second.
    """
    WINDOW = 17                                  # Whisper frames, no overlap: 1/3 s; listeners, A.6; as in SALMONN

    def __init__(self, width=1280, llm_width=4096, layers=2, heads=12, ffn=3072, dropout=0.1, middle=768):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.query = nn.Parameter(torch.randn(1, middle) * 0.02)
        self.query_norm, self.dropout = nn.LayerNorm(middle, 1e-12), nn.Dropout(dropout)
        # BERT's layer is torch's: post-norm, GELU; between the two its cross-attention, to the encoder's width
        self.layers = nn.ModuleList(nn.TransformerDecoderLayer(middle, heads, ffn, dropout, F.gelu, 1e-12, True)
                                    for _ in range(layers))
        for layer in self.layers:
            layer.multihead_attn = nn.MultiheadAttention(middle, heads, dropout, kdim=width, vdim=width,
                                                         batch_first=True)
            layer.dropout = nn.Identity()        # BERT drops nothing inside its feed-forward part
        for p in self.layers.parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=0.02)     # as BERT starts
        self.output = nn.Linear(middle, llm_width)

    @classmethod
    def slots(cls, frames):
        """Output vectors of so many frames; less than half a window at the end is left out: 88 of 1500, as SALMONN."""
        return max(1, (frames + cls.WINDOW // 2) // cls.WINDOW)

    def forward(self, frames, lengths):
        """frames (B, T, W), lengths (B,) -> (B, slots(T), D); what lies beyond a sample's length changes nothing."""
        windows = self.slots(frames.shape[1])
        short = windows * self.WINDOW - frames.shape[1]                # below 0 where the end is left out
        padding = F.pad(beyond(frames, lengths), (0, short), value=True).view(-1, self.WINDOW).clone()
        padding[:, 0] = False                                          # a window of nothing else would give NaN
        frames = F.pad(self.norm(frames), (0, 0, 0, short)).reshape(-1, self.WINDOW, frames.shape[2])
        x = self.dropout(self.query_norm(self.query)).expand(len(frames), 1, -1)                 # (B * slots, 1, M)
        for layer in self.layers:
            x = layer(x, frames, memory_key_padding_mask=padding)
        return self.output(x.view(len(lengths), windows, -1))                                    # (B, slots, D)


@torch.no_grad()
def start_from_bert(qformer, path):
    """
    Copy the first layers of a BERT into the query's own path, self-attention and feed-forward, wherever shapes agree;
    cross-attention stays fresh (our choice) -> how many of the Q-Former's tensors are loaded, how many fresh.
    """
    from transformers import BertModel
    bert, own = BertModel.from_pretrained(path, add_pooling_layer=False).state_dict(), qformer.state_dict()
    parts = {"self_attn.out_proj": "attention.output.dense", "norm1": "attention.output.LayerNorm",
             "linear1": "intermediate.dense", "linear2": "output.dense", "norm3": "output.LayerNorm"}
    found = {f"query_norm.{kind}": bert[f"embeddings.LayerNorm.{kind}"] for kind in ("weight", "bias")}
    for n in range(min(len(qformer.layers), 1 + max(int(name.split(".")[2]) for name in bert if ".layer." in name))):
        for kind in ("weight", "bias"):
            source = f"encoder.layer.{n}."
            found |= {f"layers.{n}.{ours}.{kind}": bert[f"{source}{theirs}.{kind}"] for ours, theirs in parts.items()}
            found[f"layers.{n}.self_attn.in_proj_{kind}"] = torch.cat(
                [bert[f"{source}attention.self.{name}.{kind}"] for name in ("query", "key", "value")])
    fit = {name: tensor for name, tensor in found.items() if own[name].shape == tensor.shape}
    qformer.load_state_dict(fit, strict=False)
    return len(fit), len(own) - len(fit)


PROJECTORS = {"transformer": Projector, "mapper": SpeechMapper, "qformer": QFormer}


def make_projector(kind, **sizes):
    """A fresh projector of one of PROJECTORS."""
    return choose(PROJECTORS, kind)(**sizes)


def load_projector(folder, device):
    """The projector of a finished stage folder, rebuilt from its own config.json."""
    sizes = read_config(folder)["sizes"]
    try:
        projector = make_projector(**sizes)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise SystemExit(f"{folder}/config.json: no projector has these sizes ({error}); train it again") from None
    fill_projector(projector, folder)
    return projector.to(device)


def fill_projector(projector, folder):
    """Copy a finished stage's projector into one of the same sizes."""
    try:
        projector.load_state_dict(load_weights(folder, "projector"))
    except RuntimeError as error:
        raise SystemExit(f"{folder}/weights.pt is of a projector of other sizes ({error}); choose another, or train it "
                         "again") from None


def load_llm(path, device):
    """
    (LLM, tokenizer): frozen, in eval mode; bfloat16 on a GPU, float32 on the CPU. Of Qwen2.5-Omni it is the text part
    of the thinker, which is a Qwen2; what hears, sees and speaks there is not loaded, and not supported.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, Qwen2Config
    names = {}
    with loading(path):
        config = AutoConfig.from_pretrained(path)
    if config.model_type == "qwen2_5_omni":
        text = config.thinker_config.text_config.to_dict()
        theta = text.pop("rope_parameters")["rope_theta"]              # without pictures its positions are Qwen2's
        config = Qwen2Config(**{**text, "model_type": "qwen2"}, rope_parameters={"rope_type": "default",
                                                                                 "rope_theta": theta})
        names = {r"^thinker\.": ""}
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    llm = load_checkpoint(AutoModelForCausalLM, path, config=config, key_mapping=names, dtype=dtype).to(device)
    return llm, load_tokenizer(path)


def load_tokenizer(path):
    """The LLM's tokenizer."""
    from transformers import AutoTokenizer
    with loading(path):
        return AutoTokenizer.from_pretrained(path)


# ---------------------------------------------------------------------------------------------------------------------
# one sample, one micro-batch, its loss
def prompts_of(tokenizer, model_type, prompt):
    """{task, language and how it is read: the turn as text}: what a stage is trained on and infer.py compares."""
    row = {"id": "example", "question": "QUESTION", "transcript": "TRANSCRIPT"}
    turns = {(task, language, text): encode_prompt(tokenizer, model_type, {**row, "task": task, "language": language},
                                                   text, prompt)
             for task, language in [*TASK_LINES, ("SQA", "en")] for text in (False, True)}
    return {f"{task} {language} {'text' if text else 'speech'}": "SPEECH".join(map(tokenizer.decode, turn))
            for (task, language, text), turn in turns.items()}


def encode_sample(row, text, tokenizer, model_type, features, prompt="2025", slots=Projector.slots):
    """
    One row as the LLM reads and answers it: token ids before and after the speech, the frames, the answer's ids.
    slots: how many vectors the projector makes of so many frames.
    """
    before, after = encode_prompt(tokenizer, model_type, row, text, prompt)
    frames = None if text else features[row["utterance"]]                                       # (T, W)
    answer = encode_answer(tokenizer, model_type, row)
    heard = 0 if text else slots(len(frames))
    return {"id": row["id"], "before": before, "frames": frames, "slots": heard, "after": after, "answer": answer,
            "length": len(before) + heard + len(after) + len(answer), "counts": (len(answer),)}


def pad_frames(samples, device):
    """((B, T, W) float32, lengths (B,)) of the samples that have frames."""
    spoken = [torch.tensor(s["frames"]).float() for s in samples if s["frames"] is not None]
    lengths = torch.tensor([len(f) for f in spoken], device=device)
    return nn.utils.rnn.pad_sequence(spoken, batch_first=True).to(device, non_blocking=True), lengths


def splice(llm, projector, samples):
    """List of (L, D): [before | speech | after | answer] of each sample in the LLM's embeddings (2025, section 4)."""
    table = llm.get_input_embeddings()
    ids = [torch.tensor(s["before"] + s["after"] + s["answer"]) for s in samples]
    embedded = table(torch.cat(ids).to(table.weight.device, non_blocking=True)).split([len(i) for i in ids])
    if any(s["frames"] is not None for s in samples):
        speech = iter(projector(*pad_frames(samples, table.weight.device)).to(table.weight.dtype))   # (B, slots, D)
    sequences = []
    for sample, tokens in zip(samples, embedded):
        if sample["frames"] is not None:
            n = len(sample["before"])
            tokens = torch.cat([tokens[:n], next(speech)[:sample["slots"]], tokens[n:]])             # (L, D)
        sequences.append(tokens)
    return sequences


def answer_loss(llm, projector, samples):
    """
    Summed cross-entropy of a micro-batch over its answers' tokens; logits are made for these N positions only.
    Right padding needs no mask: attention is causal, so no real position ever looks at padding.
    """
    device = next(llm.parameters()).device
    # position i predicts token i + 1
    where = [(b, i) for b, s in enumerate(samples) for i in range(s["length"] - len(s["answer"]) - 1, s["length"] - 1)]
    row, column = torch.tensor(where).to(device, non_blocking=True).unbind(1)
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        inputs = nn.utils.rnn.pad_sequence(splice(llm, projector, samples), batch_first=True)        # (B, L, D)
        hidden = llm.model(inputs_embeds=inputs, use_cache=False).last_hidden_state                  # (B, L, D)
        logits = llm.lm_head(hidden[row, column])                                                    # (N, V)
    logits = logits.float() * getattr(llm.config, "logit_scale", 1.0)                                # Cohere only
    target = torch.tensor([token for s in samples for token in s["answer"]]).to(device, non_blocking=True)
    return F.cross_entropy(logits, target, reduction="sum")[None]                                    # (1,)


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


# ---------------------------------------------------------------------------------------------------------------------
# SpeechMapper: four losses on the LLM's embedding table, and no LLM (2026, section 3.1)
LOSSES = {"L1": 1.0, "cosine": 1.0, "softmax": 0.1, "CTC": 1.0}        # weights in the total; section 3.1
LETTERS = " 'abcdefghijklmnopqrstuvwxyz0123456789"                     # CTC labels 1.. ; 0 is the blank (our choice)
CHUNK = 512                                                            # slots scored against all V rows at once
FAR = 100                  # times between the RMS of a projector's output and of the embeddings: a warning (our choice)


def load_table(path, device):
    """The LLM's embedding table, (V, D) float32; of the checkpoint nothing else is read."""
    from safetensors import safe_open
    from transformers.utils import cached_file
    name, file = "model.embed_tokens.weight", "model.safetensors"
    index = cached_file(path, f"{file}.index.json", _raise_exceptions_for_missing_entries=False)
    try:
        if index:                                                      # a checkpoint of several files
            file = read_json(index, f"get {path} again")["weight_map"][name]
        with safe_open(cached_file(path, file), "pt") as weights:
            return weights.get_tensor(name).float().to(device)
    except Exception as error:                                         # a library's own for every kind of damage
        raise ValueError(f"the checkpoint {path} has no {name} that can be read ({error}); get it again") from error


def encode_slots(row, tokenizer, pad, features, slots):
    """
    One row as a SpeechMapper learns it: the frames, a token id for every slot - the normalised transcript's, then the
    pad's - and the letters for CTC. None if the transcript has more tokens than there are slots.
    """
    frames = features[row["utterance"]]                                                         # (T, W)
    text = mms_normalize(row["transcript"], "en", remove_numbers=False)                         # (our choice)
    tokens, count = encode(tokenizer, text), slots(len(frames))
    if len(tokens) > count:
        return None
    letters = [LETTERS.index(letter) + 1 for letter in text if letter in LETTERS]
    return {"id": row["id"], "frames": frames, "slots": count, "target": tokens + [pad] * (count - len(tokens)),
            "letters": letters, "length": len(frames), "counts": (count, count, count, 1)}


class RowLoss(torch.autograd.Function):
    """
    Summed cross-entropy of cosines: said (N, D) and unit (V, D) of length one, target (N,). Its gradient is made with
    it, CHUNK slots at a time, so that (N, V) scores are neither kept nor made twice.
    """

    @staticmethod
    def forward(ctx, said, target, unit):
        total, gradient = said.new_zeros(()), torch.zeros_like(said)
        for rows, right, its in zip(said.split(CHUNK), target.split(CHUNK), gradient.split(CHUNK)):
            scores = rows @ unit.T                                                                   # (CHUNK, V)
            whole = scores.logsumexp(1, keepdim=True)
            total += (whole - scores.gather(1, right[:, None])).sum()
            if ctx.needs_input_grad[0]:
                its.copy_(scores.sub_(whole).exp_() @ unit - unit[right])
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx, outer):
        return ctx.saved_tensors[0] * outer, None, None


def embedding_losses(mapper, head, table, unit, samples):
    """
    The sums (4,) of L1, cosine and softmax over a micro-batch's slots and of CTC over its utterances. unit: the table's
    rows at length one.
    """
    frames, lengths = pad_frames(samples, table.device)
    with torch.autocast(table.device.type, torch.bfloat16, enabled=table.device.type == "cuda"):
        middle, middle_lengths = mapper.first(frames, lengths)                                       # (B, T', M)
        output, lengths = mapper.second(middle, middle_lengths)                                      # (B, slots, D)
        labels = head(middle)                                                                        # (B, T', labels)
    said = output.float()[~beyond(output, lengths)]                                                  # (N, D)
    target = torch.tensor([token for s in samples for token in s["target"]], device=table.device)    # (N,)
    wanted, direction = table[target], F.normalize(said)
    softmax = RowLoss.apply(direction, target, unit)
    letters = torch.tensor([len(s["letters"]) for s in samples], device=table.device)
    spelled = torch.tensor([letter for s in samples for letter in s["letters"]], device=table.device)
    ctc = F.ctc_loss(labels.float().log_softmax(-1).transpose(0, 1), spelled, middle_lengths, letters,
                     reduction="none", zero_infinity=True) / letters.clamp(min=1)
    return torch.stack([(said - wanted).abs().mean(1).sum(), (1 - F.cosine_similarity(said, wanted)).sum(), softmax,
                        ctc.sum()])


@torch.no_grad()
def inspect_slots(projector, table, samples, micro_tokens, unit=None):
    """
    {"RMS", "table RMS"}: sizes of what the projector says to samples with frames and of the LLM's embeddings; with
    `unit` also "nearest", % of slots whose nearest row is the right one. Dropout is off while it lasts.
    """
    projector.eval()
    squares, right, count = 0.0, 0, sum(s["slots"] for s in samples)
    for micro in micro_batches(samples, micro_tokens):
        output = projector(*pad_frames(micro, table.device))
        said = output[~beyond(output, torch.tensor([s["slots"] for s in micro], device=table.device))]
        squares += said.square().mean(1).sum().item()
        if unit is not None:
            target = torch.tensor([token for s in micro for token in s["target"]], device=table.device)
            right += sum((F.normalize(a) @ unit.T).argmax(1).eq(b).sum().item()
                         for a, b in zip(said.split(CHUNK), target.split(CHUNK)))
    projector.train()
    sizes = {"RMS": (squares / count) ** 0.5,
             "table RMS": (torch.linalg.vector_norm(table, dtype=torch.float32) / table.numel() ** 0.5).item()}
    return sizes if unit is None else {**sizes, "nearest": 100 * right / count}


def mixed_loss(llm, projector, table, samples):
    """Sums (2,): cross-entropy over the answers' tokens, squared error of the embeddings over slots (second stage)."""
    heard = []

    def listen(frames, lengths):
        heard.append(projector(frames, lengths))
        return heard[0]
    entropy = answer_loss(llm, listen, samples)
    said = torch.cat([slots[:s["slots"]] for slots, s in zip(heard[0].float(), samples)])            # (N, D)
    target = torch.tensor([token for s in samples for token in s["target"]], device=table.device)
    return torch.cat([entropy, (said - table[target]).square().mean(1).sum()[None]])


# ---------------------------------------------------------------------------------------------------------------------
# greedy decoding
PREFILL = 2048                               # positions of prompts that are read at once (our choice)


def attend(module, query, key, value, mask, **given):
    """
    transformers' SDPA, which under a mask copies shared keys and values for every head. Not so for one new token: the
    heads (B, H, 1, d) that share a key become its queries (B, keys, H / keys, d).
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    if query.shape[2] > 1:
        return sdpa_attention_forward(module, query, key, value, mask, **given)
    shared = query.reshape(len(query), key.shape[1], -1, query.shape[3])
    read = F.scaled_dot_product_attention(shared, key, value, attn_mask=mask, scale=given["scaling"])
    return read.reshape(query.transpose(1, 2).shape), None


def read_prompts(llm, prompts):
    """
    List of (L, D) prompt embeddings, read in groups of like length -> (their numbers in the order of what follows, mask
    (B, L), hidden states of the last positions (B, D), cache). Within a group prompts are padded on the right, which
    needs no mask; in the cache on the left, so that every row's last position is its newest token.
    """
    from transformers import DynamicCache
    order, hidden, parts, cache = [], [], [], DynamicCache(config=llm.config)
    for group in micro_batches([{"number": n, "length": len(p)} for n, p in enumerate(prompts)], PREFILL):
        own, part = [prompts[s["number"]] for s in group], DynamicCache(config=llm.config)
        states = llm.model(inputs_embeds=nn.utils.rnn.pad_sequence(own, batch_first=True), past_key_values=part,
                           use_cache=True).last_hidden_state                                         # (b, l, D)
        order, parts = order + [s["number"] for s in group], parts + [part]
        hidden += [row[len(p) - 1] for row, p in zip(states, own)]
    lengths, longest = [len(prompts[n]) for n in order], max(map(len, prompts))

    def joined(tensors):                     # (b, heads, l, head_dim) of each group -> (B, heads, L, head_dim)
        return torch.stack([F.pad(row[:, :length], (0, 0, longest - length, 0))
                            for row, length in zip(chain(*tensors), lengths)])
    for number, layer in enumerate(zip(*parts)):
        keys, values, *_ = zip(*layer)
        cache.update(joined(keys), joined(values), number)
    mask = [[0] * (longest - length) + [1] * length for length in lengths]
    return order, torch.tensor(mask, device=hidden[0].device), torch.stack(hidden), cache


@torch.no_grad()
def generate(llm, prompts, max_new_tokens, stop_ids):
    """
    Greedy decoding of a batch: list of (L, D) prompt embeddings -> list of new token ids, the stop token left out.
    A row that reaches max_new_tokens has that many ids. A finished row leaves the batch, so that one that loops does
    not hold up the others.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask
    AttentionInterface.register("attend", attend)
    AttentionMaskInterface.register("attend", sdpa_mask)
    llm.set_attn_implementation("attend")
    generated, (alive, mask, hidden, cache) = [[] for _ in prompts], read_prompts(llm, prompts)
    for left in reversed(range(max_new_tokens)):
        tokens = llm.lm_head(hidden).argmax(-1)                                                      # (B,)
        going = [n for n, token in enumerate(tokens.tolist()) if token not in stop_ids]
        if len(going) < len(alive):
            alive = [alive[n] for n in going]
            keep = torch.tensor(going, dtype=torch.long, device=tokens.device)
            tokens, mask = tokens[keep], mask[keep]
            if not alive:
                break
            cache.batch_select_indices(keep)
        for row, token in zip(alive, tokens.tolist()):
            generated[row].append(token)
        if left:
            mask = torch.cat([mask, mask.new_ones(len(alive), 1)], 1)
            hidden = llm.model(input_ids=tokens[:, None], position_ids=mask.sum(1, keepdim=True) - 1,
                               attention_mask=mask, past_key_values=cache, use_cache=True).last_hidden_state[:, -1]
    return generated


def stop_ids(llm, tokenizer):
    """Every id that ends a turn: the chat format's own and those of the checkpoint's generation config."""
    ends = llm.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    return {*ends, tokenizer.convert_tokens_to_ids(CHAT[llm.config.model_type][2])} - {None}


def answer(llm, tokenizer, projector, samples, max_new_tokens):
    """Samples of encode_sample -> list of new token ids each; the sample's own answer is not shown to the model."""
    device = next(llm.parameters()).device
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        prompts = splice(llm, projector, [{**s, "answer": []} for s in samples])
        return generate(llm, prompts, max_new_tokens, stop_ids(llm, tokenizer))


def decode_text(tokenizer, ids):
    """Token ids -> text, without special tokens."""
    return tokenizer.decode(ids, skip_special_tokens=True).strip()


# ---------------------------------------------------------------------------------------------------------------------
# the rows of a stage
def load_rows(c, split, made=None):
    """
    (rows, {utterance: frames (T, W)}) of one split over all corpora that have it. `made` holds the encoder and the mean
    of the frames; speech rows without frames are left out and counted. Without `made` no frames are opened.
    """
    rows, found, missing = [], [], 0
    for corpus in c.corpora.split(","):
        path = os.path.join(c.work, "rows", corpus, f"{split}.jsonl")
        if not os.path.exists(path):
            require(os.path.dirname(path), f"python data/{corpus}.py")
            continue                                                   # an evaluation corpus has no train.jsonl
        own = read_rows(path)
        if made and any("utterance" in row for row in own):
            found.append(open_features(features_folder(c.work, made["encoder"], made["mean"], corpus, split), made))
            heard = [row for row in own if "utterance" not in row or row["utterance"] in found[-1]]
            missing, own = missing + len(own) - len(heard), heard
        rows += own
    if not rows or made and not found:
        wanted = "speech in the " if rows else ""
        raise SystemExit(f"no {wanted}{split} rows of {c.corpora}; run: python data/{c.corpora.split(',')[0]}.py")
    print(f"{split}: {len(rows)} rows" + (f", {missing} without frames left out" if missing else ""))
    return rows, ChainMap(*found)


# ---------------------------------------------------------------------------------------------------------------------
# one optimizer step, validation
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


def decode_all(llm, tokenizer, projector, samples, batch, max_new_tokens):
    """The answers to samples, decoded in batches of like length -> texts in the samples' order; dropout is off."""
    order, texts = sorted(range(len(samples)), key=lambda i: samples[i]["length"]), [""] * len(samples)
    projector.eval()
    for first in range(0, len(order), batch):
        some = order[first:first + batch]
        for i, ids in zip(some, answer(llm, tokenizer, projector, [samples[i] for i in some], max_new_tokens)):
            texts[i] = decode_text(tokenizer, ids)
    projector.train()
    return texts


# ---------------------------------------------------------------------------------------------------------------------
# a run's folder
def read_config(folder):
    """config.json of a finished stage: its constants, what it was made from, versions."""
    path = require(os.path.join(folder, "config.json"), "bash run_all.sh, which makes the stages in order")
    return read_json(path, f"remove {folder} and train it again")


def load_tensors(path, redo):
    """A file of tensors and plain values; SystemExit if it is cut short, or holds anything else: code never runs."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:                                         # whatever a damaged file sets off
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise SystemExit(f"{path} is damaged or no file of tensors ({why}); {redo}") from None


def load_weights(folder, section):
    """{name: tensor} of one section of a finished stage's weights.pt, "projector" or "lora"."""
    redo = f"remove {folder} and train it again"
    weights = load_tensors(os.path.join(folder, "weights.pt"), redo)
    found = weights.get(section) if isinstance(weights, dict) else None
    if not found or not isinstance(found, dict) or not all(isinstance(one, torch.Tensor) for one in found.values()):
        raise SystemExit(f"{folder}/weights.pt holds no {section}; {redo}")
    return found


class Run:
    """
    One stage's folder. `trained` maps a section of weights.pt to the callable that gives its tensors and the one that
    loads them; `frozen` is the model of which nothing else trains. A killed run goes on from resume.pt, written with
    every validation, to the same weights: draws and dropout depend on the seed, the step and the process alone. Of
    several processes the first writes.
    """

    def __init__(self, c, trained, optimizers, frozen=None, **facts):
        self.folder = os.path.join(c.work, c.run, c.out)
        self.c, self.trained, self.optimizers = c, trained, optimizers
        self.facts, self.log_path = {**asdict(c), **facts}, os.path.join(self.folder, "log.jsonl")
        self.step, (self.rank, self.world) = 0, processes()
        # another number of processes draws other rows for a step, and other dropout
        self.constants, self.lock = {**asdict(c), "processes": self.world}, lock(self.folder)
        own = {id(p) for o in optimizers for group in o.param_groups for p in group["params"]}
        self.frozen = [(name, p) for name, p in (frozen.named_parameters() if frozen else []) if id(p) not in own]
        path = os.path.join(self.folder, "resume.pt")
        if os.path.exists(path):
            state = load_tensors(path, f"remove {self.folder} to begin again")
            refuse_other_constants(self.folder, state["constants"], self.constants)
            for name, (_, load) in trained.items():
                load(state["trained"][name])
            for optimizer, saved in zip(optimizers, state["optimizers"]):
                optimizer.load_state_dict(saved)
            self.step = state["step"]
            print(f"resuming {self.folder} at step {self.step}")
        if self.rank == 0:
            kept = [line for line in self.lines() if line["step"] <= self.step] if self.step else []
            with replace_file(self.log_path) as name, open(name, "w") as log:
                log.writelines(json.dumps(line) + "\n" for line in kept)   # lines of steps that will be done again go
        self.bar = tqdm(total=c.steps, initial=self.step, desc=c.out, unit=" step", mininterval=1.0,
                        disable=self.rank > 0)
        self.started = time.time()
        self.reseed()

    def reseed(self):
        torch.manual_seed((self.c.seed * 1_000_003 + self.step) * 1009 + self.rank)

    def mine(self, draws):
        """This process's draws of one optimizer step: c.accumulate of them, every world-th of what is drawn."""
        return [next(draws) for _ in range(self.c.accumulate * self.world)][self.rank::self.world]

    def skip(self, draws):
        """After a kill: pass over the draws already trained on."""
        for _ in range(self.step):
            self.mine(draws)

    def update(self, samples, loss_of, weights=(1.0,), clip=0.0):
        """update's step; stops with a list of its rows where it is not finite, and for a frozen tensor that learns."""
        try:
            losses, norm = update(self.optimizers, samples, loss_of, self.c.micro_tokens, weights, clip)
        except FloatingPointError as error:
            path = os.path.join(self.folder, f"not-finite-{self.rank}.txt")
            with replace_file(path) as name, open(name, "w", encoding="utf-8") as file:
                file.writelines(f"{row_id}\n" for row_id in error.args[1])
            raise SystemExit(f"{self.folder}, step {self.step + 1}: {error.args[0]}. The step is not made; the ids of "
                             f"its rows are in {path}: look at their audio and text, or at --lr") from None
        learning = [name for name, p in self.frozen if p.grad is not None]
        if learning:
            raise SystemExit(f"{self.folder}: {len(learning)} frozen tensors of the LLM have a gradient, such as "
                             f"{learning[0]}; none may, load_llm freezes them")
        return losses, norm

    def lines(self):
        """log.jsonl: a dict a step, and one a validation."""
        return read_json_lines(self.log_path, f"remove {self.folder} to begin again")

    def log(self, **values):
        """One step is done: its line in log.jsonl and on the bar."""
        self.step += 1
        self.reseed()
        self.write(step=self.step, seconds=round(time.time() - self.started, 2), **values)
        self.bar.set_postfix({k: f"{v:.3g}" for k, v in values.items()}, refresh=False)
        self.bar.update()

    def write(self, **values):
        if self.rank == 0:
            with writing(self.log_path), open(self.log_path, "a") as log:
                log.write(json.dumps(values) + "\n")
                if "validation_loss" in values:                        # A's weights are chosen by it: down to the disk
                    log.flush()
                    os.fsync(log.fileno())

    def validated(self, loss, keep=False, **scores):
        """A validation: logged; with `keep` the weights stay as step-NNNNN.pt; then resume.pt."""
        self.write(step=self.step, validation_loss=loss, **scores)
        tensors = {name: state() for name, (state, _) in self.trained.items()}
        self.refuse_untrained(tensors)
        if "RMS" in scores and not 1 / FAR < scores["RMS"] / scores["table RMS"] < FAR:
            tqdm.write(f"warning: the projector's output has an RMS of {scores['RMS']:.3g}, the LLM's embeddings of "
                       f"{scores['table RMS']:.3g}: more than {FAR} times apart")
        if keep:
            self.save(f"step-{self.step:05d}.pt", tensors)
        self.save("resume.pt", {"step": self.step, "trained": tensors, "constants": self.constants,
                                "optimizers": [o.state_dict() for o in self.optimizers]})
        if self.rank == 0:
            tqdm.write(f"{self.c.out} step {self.step}/{self.c.steps}: validation loss {loss:.4f}"
                       + "".join(f", {name} {score:.3g}" for name, score in scores.items()))

    def refuse_untrained(self, tensors):
        """SystemExit for tensors that no gradient has reached by now, and for adapters whose B is still zero."""
        reached = {p.data_ptr() for o in self.optimizers for p, state in o.state.items() if state}
        still = [name for section in tensors.values() for name, tensor in section.items()
                 if tensor.data_ptr() not in reached or name.endswith("lora_B") and not tensor.any()]
        if still:
            raise SystemExit(f"{self.folder}: {len(still)} tensors are not trained after {self.step} steps, such as "
                             f"{still[0]}: what the loss is made from is not what is saved, or the rate is 0")

    def save(self, name, value):
        if self.rank == 0:                   # an open file: torch would write the temporary name into the archive
            with replace_file(os.path.join(self.folder, name)) as temporary, open(temporary, "wb") as file:
                torch.save(value, file)

    def finish(self, next_command, step=None, **facts):
        """weights.pt, the last or those of `step`; config.json makes the folder a finished stage."""
        self.bar.close()
        tensors = {name: state() for name, (state, _) in self.trained.items()}
        if step is not None and self.rank == 0:
            path = os.path.join(self.folder, f"step-{step:05d}.pt")
            tensors = load_tensors(path, f"remove {self.folder} to begin again")
        self.save("weights.pt", tensors)
        if self.rank == 0:
            write_json(os.path.join(self.folder, "config.json"),
                       {**self.facts, "trained": list(self.trained), "kept_step": step or self.step, **facts,
                        **provenance()})
            Path(self.folder, "resume.pt").unlink(missing_ok=True)
            print(f"weights of step {step or self.step} in {self.folder}/weights.pt, losses in log.jsonl\n"
                  f"next: {next_command}")
        if dist.is_initialized():
            dist.destroy_process_group()
        self.lock.close()


def refuse_other_constants(folder, old, new):
    """A folder belongs to one set of constants, but for how it was called, where it lies and what fits into memory."""
    free = ("preset", "work", "micro_tokens", "decode_batch")
    told = differences(old, {key: value for key, value in new.items() if key not in free})
    if told:
        raise SystemExit(f"{folder} was made with {told}; remove it, or choose another --out")


def finished(c):
    """Whether this stage's folder is complete, with these constants."""
    folder = os.path.join(c.work, c.run, c.out)
    if not os.path.exists(os.path.join(folder, "config.json")):
        return False
    refuse_other_constants(folder, read_config(folder), asdict(c))
    Path(folder, "resume.pt").unlink(missing_ok=True)                  # a kill may have come before this
    print(f"{folder} is finished already")
    return True


def row_encoder(c, llm, tokenizer, pad, slots):
    """encode(row, text, features) -> a sample of what is trained on; None if its tokens outnumber its slots."""
    def to_answer(row, text, features):
        return encode_sample(row, text, tokenizer, llm.config.model_type, features, c.prompt, slots)

    def to_slots(row, text, features):
        return encode_slots(row, tokenizer, pad, features, slots)

    def to_both(row, text, features):
        target, sample = to_slots(row, text, features), to_answer(row, text, features)
        return target and {**sample, "target": target["target"], "counts": (len(sample["answer"]), sample["slots"])}
    return to_slots if llm is None else to_both if c.sigma else to_answer


def rows_to_decode(c, dev_rows, picked, mixture):
    """The dev rows decoded at every validation: ASR and ST of one corpus, all of it, and the SQA rows of the loss."""
    rows = [row for row in dev_rows if corpus_of(row) == c.decode and "utterance" in row
            and row["task"] in ("ASR", "ST") and row["task"] in mixture]
    rows += [row for row in picked if row["task"] == "SQA"]
    if c.keep not in best_steps([{"step": 0, **score_answers(rows, [""] * len(rows))}]):
        raise SystemExit(f"--keep {c.keep}: the dev rows of {c.decode} that the mixture trains on do not score that")
    return rows


def main(argv=None):
    c = configure(Config, PRESETS, argv)
    if finished(c):
        return
    mixture, device = choose(MIXTURES, c.mixture), pick_device()
    processes()
    torch.manual_seed(c.seed)

    # 1. rows and frames of stage 0
    made = {"encoder": c.encoder, "mean": c.mean, "pad": c.pad}
    (rows, features), (dev_rows, dev_features) = load_rows(c, "train", made), load_rows(c, "dev", made)

    # 2. the frozen LLM, or its table alone, and a projector from the encoder's width to the LLM's
    path, on_table = locate(c.work, c.llm), c.objective == "embeddings"
    if on_table:
        llm, tokenizer, table = None, load_tokenizer(path), load_table(path, device)
    else:
        llm, tokenizer = load_llm(path, device)
        table = llm.get_input_embeddings().weight
    sizes = dict(kind=c.projector, width=features.maps[0].config["width"], llm_width=table.shape[1], layers=c.layers,
                 heads=c.heads, ffn=c.ffn, dropout=c.dropout)
    if c.projector in ("mapper", "qformer"):
        sizes["middle"] = c.middle
    projector = make_projector(**sizes)
    if c.text_encoder:
        loaded, fresh = start_from_bert(projector, locate(c.work, c.text_encoder))
        print(f"{loaded} tensors of the Q-Former from {c.text_encoder}, {fresh} fresh")
    if c.start:
        fill_projector(projector, os.path.join(c.work, c.run, c.start))
    modules = {"projector": projector.to(device)}
    pad = tokenizer.convert_tokens_to_ids(c.pad_token)                 # SpeechMapper only
    if c.projector == "mapper" and pad in (None, tokenizer.unk_token_id):
        raise SystemExit(f"--pad_token {c.pad_token}: the tokenizer of {c.llm} has no such token")

    # 3. what a row is encoded to, and the losses with their weights
    encode_row = row_encoder(c, llm, tokenizer, pad, projector.slots)
    if on_table:
        modules["ctc_head"] = nn.Linear(c.middle, len(LETTERS) + 1).to(device)          # 39 labels with the blank
        unit, weights = F.normalize(table), LOSSES
        if device.type == "cuda":            # TF32 for scores: an A100 has 156 TFLOP/s of it, of float32 19.5
            torch.set_float32_matmul_precision("high")
        loss_of = partial(embedding_losses, projector, modules["ctc_head"], table, unit)
    elif c.sigma:
        loss_of, weights = partial(mixed_loss, llm, projector, table), {"entropy": 1 - c.sigma, "embedding": c.sigma}
    else:
        loss_of, weights = partial(answer_loss, llm, projector), {"entropy": 1.0}

    optimizer = torch.optim.AdamW([p for module in modules.values() for p in module.parameters()], lr=c.lr,
                                  weight_decay=c.weight_decay)
    trained = {name: (module.state_dict, module.load_state_dict) for name, module in modules.items()}
    facts = {"prompts": prompts_of(tokenizer, llm.config.model_type, c.prompt)} if llm else {}
    run = Run(c, trained, [optimizer], llm, sizes=sizes, **facts)
    if not c.steps:                                                    # it will be trained together with LoRA
        run.finish(f"python merge_sft.py --preset {c.preset}")
        return
    if on_table:
        heard = [row for row in rows if row["task"] == "ASR" and row.get("utterance") in features]
        draws = draw_frames(heard, features, c.batch_frames, c.seed)
    else:
        draws = draw(rows, mixture, CORPUS_SHARES, c.batch, c.batch_sqa, c.seed)
    run.skip(draws)
    picked = pick_validation(dev_rows, mixture, c.validate_rows)
    dev = [sample for sample in (encode_row(row, False, dev_features) for row in picked) if sample]
    if not dev:
        raise SystemExit("no dev transcript has as few tokens as its speech has slots: look at --mean and --llm")
    decoded = [] if on_table else rows_to_decode(c, dev_rows, picked, mixture)
    questions = [encode_row(row, False, dev_features) for row in decoded]
    decoded, questions = [row for row, q in zip(decoded, questions) if q], [q for q in questions if q]

    # 4. train
    while run.step < c.steps:
        samples = [encode_row(row, text, features) for rows_drawn, text in run.mine(draws) for row in rows_drawn]
        samples, dropped = [s for s in samples if s], samples.count(None)     # more tokens than slots
        for group in optimizer.param_groups:
            group["lr"] = c.lr * rate(run.step, c.steps, c.warmup, c.cosine)
        losses, norm = run.update(samples, loss_of, [*weights.values()], c.clip)
        run.log(loss=total_loss(losses, weights), norm=norm, lr=optimizer.param_groups[0]["lr"],
                **(dict(zip(weights, losses), dropped=dropped) if len(weights) > 1 else {}))
        if run.step % c.validate_every == 0 or run.step == c.steps:
            losses = validate([*modules.values()], dev, loss_of, c.micro_tokens)
            if on_table:
                scores = {**dict(zip(weights, losses)), **inspect_slots(projector, table, dev, c.micro_tokens, unit)}
            else:
                scores = score_answers(decoded, decode_all(llm, tokenizer, projector, questions, c.decode_batch,
                                                           c.max_new_tokens))
                scores |= inspect_slots(projector, table, dev, c.micro_tokens)
            run.validated(total_loss(losses, weights), keep=not on_table, **scores)

    # 5. the step that did best on the dev set (2025, section 5.1 A: in ST); without an LLM the last
    lines = run.lines() if run.rank == 0 else []                       # others may come before it is written
    if len(weights) > 1:
        print(f"{sum(line.get('dropped', 0) for line in lines)} samples dropped: more tokens than slots")
    scored = [line for line in lines if {"BLEU", "WER", "SQA"} & line.keys()]
    steps = best_steps(scored) if scored else {}
    if steps:
        print("best steps: " + ", ".join(f"{name} {step}" for name, step in steps.items()))
    run.finish(f"python train_lora.py --preset {c.preset}", steps.get(c.keep), best_steps=steps)


if __name__ == "__main__":
    main()
