"""
Stage A: train the speech projector through the frozen LLM (2025, section 3).

    python train_projector.py                                  # tiny, A.1: ASR and ST; two minutes on 2 cores
    python train_projector.py --mixture A.2 --out projector-A.2         # ASR, ST and SQA
    python train_projector.py --preset iwslt25                 # one A100-80GB; the paper reports 4.6 days

reads   <work>/rows/<corpus>/{train,dev}.jsonl, <work>/features/..., the LLM
writes  <work>/<run>/projector/: log.jsonl and resume.pt while it runs; step-NNNNN.pt, the projector at every
        validation; weights.pt, the one that was chosen, and, last, config.json

The definitions that the later stages share live here too: the LLM, the splice, the loss, greedy decoding, the sampler,
a run's folder.
"""
import json
import math
import os
import random
import time
from collections import ChainMap
from dataclasses import asdict, dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from data.prompts import CHAT, encode_answer, encode_prompt
from data.rows import corpus_of, differences, read_rows, replace_file
from extract_features import (configure, features_folder, locate, open_features, pick_device, provenance, require,
                              write_json)
from metrics.bleu import bleu
from metrics.normalize import mms_normalize, word_error_rate


@dataclass(frozen=True)
class Config:                               # edit here, or pass --name value
    preset: str = "tiny"                    # filled in by configure
    work: str = "work"                      # everything that is written lies below this folder
    run: str = "tiny"                       # filled in by configure; presets of one system share a folder of work
    out: str = "projector"                  # <work>/<run>/<out>
    corpora: str = "tiny"                   # comma-separated folders of work/rows; train.jsonl and dev.jsonl of each
    encoder: str = "models/tiny-seamless"
    mean: int = 3                           # consecutive encoder frames averaged; 2025, section 3
    llm: str = "models/tiny-llama"
    mixture: str = "A.1"                    # a key of MIXTURES
    layers: int = 4                         # 2025, section 3
    heads: int = 4
    ffn: int = 512
    dropout: float = 0.1                    # 2025, section 3
    batch: int = 16                         # rows in a draw; 2025, section 5.1
    batch_sqa: int = 8                      # 2025, appendix C.1
    accumulate: int = 1                     # draws in one optimizer step
    steps: int = 300                        # optimizer steps
    lr: float = 2e-3
    warmup: int = 20                        # steps
    cosine: bool = True                     # down to 0 at the last step; else constant after the warm-up
    weight_decay: float = 0.01              # the paper is silent; torch's default (our choice)
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
    "digits":  dict(corpora="digits", encoder="models/digits-seamless", llm="models/digits-llama", steps=800),
    "iwslt25": dict(corpora="covost2,europarlst,spokensquad,acl6060", encoder="facebook/seamless-m4t-v2-large",
                    llm="meta-llama/Llama-3.1-8B-Instruct", heads=8, ffn=2048,                 # section 3
                    accumulate=16, lr=1e-4, warmup=0, cosine=False, steps=15_090,              # 4 epochs; section 5.1
                    micro_tokens=8192, validate_every=250, validate_rows=100, decode="acl6060", max_new_tokens=150),
}
PRESETS["iwslt25-a2"] = dict(PRESETS["iwslt25"], run="iwslt25", mixture="A.2", out="projector-A.2")
PRESETS["iwslt25-short"] = dict(PRESETS["iwslt25"], run="iwslt25")     # fluent or short answers: C only
PRESETS["iwslt25-a2-short"] = PRESETS["iwslt25-a2"]

MIXTURES = {  # task: (share, {language: share}), SQA languages (valid, invalid); 2025, section 5.1 and Table 13
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
TEXT_TASK = {"ST": "MT", "SQA": "QA", "MCQ": "QA"}                     # a task's name when the transcript is read

# B batch   T frames   W encoder width   L sequence   D LLM width   V vocabulary   N answer tokens


# ---------------------------------------------------------------------------------------------------------------------
# the projector and the frozen LLM
class Projector(nn.Module):
    """Pre-norm Transformer encoder over the averaged frames, then a linear map to the LLM's width (2025, section 3)."""

    def __init__(self, width=1024, llm_width=4096, layers=4, heads=8, ffn=2048, dropout=0.1):
        super().__init__()
        # ReLU, no positions (the frames carry them), a closing LayerNorm: the paper is silent (our choice)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, heads, ffn, dropout, batch_first=True, norm_first=True)
            for _ in range(layers))
        for layer in self.layers:                # every layer starts as the identity: frames reach the LLM from step 1
            nn.init.zeros_(layer.self_attn.out_proj.weight)                                        # (our choice)
            nn.init.zeros_(layer.linear2.weight)
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, llm_width)

    def forward(self, frames, lengths):
        """frames (B, T, W), lengths (B,) -> (B, T, D); what lies beyond a sample's length changes nothing."""
        padding = torch.arange(frames.shape[1], device=frames.device) >= lengths[:, None]       # (B, T)
        for layer in self.layers:
            frames = layer(frames, src_key_padding_mask=padding)
        return self.output(self.norm(frames))                                                   # (B, T, D)


def load_projector(folder, device):
    """The projector of a finished stage folder, rebuilt from its own config.json."""
    projector = Projector(**read_config(folder)["sizes"])
    projector.load_state_dict(load_weights(folder)["projector"])
    return projector.to(device)


def load_llm(path, device):
    """(LLM, tokenizer): frozen, in eval mode; bfloat16 on a GPU, float32 on the CPU."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    llm = AutoModelForCausalLM.from_pretrained(path, dtype=dtype).to(device)
    return llm.requires_grad_(False).eval(), AutoTokenizer.from_pretrained(path)


# ---------------------------------------------------------------------------------------------------------------------
# one sample, one micro-batch, its loss
def encode_sample(row, text, tokenizer, model_type, features):
    """One row as the LLM reads and answers it: token ids before and after the speech, the frames, the answer's ids."""
    before, after = encode_prompt(tokenizer, model_type, row, text)
    frames = None if text else features[row["utterance"]]                                       # (T, W)
    answer = encode_answer(tokenizer, model_type, row)
    return {"id": row["id"], "before": before, "frames": frames, "after": after, "answer": answer,
            "length": len(before) + (0 if text else len(frames)) + len(after) + len(answer)}


def splice(llm, projector, samples):
    """List of (L, D): [before | speech | after | answer] of each sample in the LLM's embeddings (2025, section 4)."""
    table = llm.get_input_embeddings()
    device = table.weight.device
    ids = [torch.tensor(s["before"] + s["after"] + s["answer"]) for s in samples]
    embedded = table(torch.cat(ids).to(device, non_blocking=True)).split([len(i) for i in ids])
    spoken = [torch.tensor(s["frames"]).float() for s in samples if s["frames"] is not None]
    if spoken:
        lengths = torch.tensor([len(f) for f in spoken], device=device)
        frames = nn.utils.rnn.pad_sequence(spoken, batch_first=True).to(device, non_blocking=True)   # (B, T, W)
        speech = iter(projector(frames, lengths).to(table.weight.dtype))                             # (B, T, D)
    sequences = []
    for sample, tokens in zip(samples, embedded):
        if sample["frames"] is not None:
            n = len(sample["before"])
            tokens = torch.cat([tokens[:n], next(speech)[:len(sample["frames"])], tokens[n:]])       # (L, D)
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
    return F.cross_entropy(logits, target, reduction="sum")


def micro_batches(samples, micro_tokens):
    """Cut one optimizer step's samples, sorted by length, so that rows x longest stays within micro_tokens."""
    batch = []
    for sample in sorted(samples, key=lambda s: -s["length"]):
        if batch and (len(batch) + 1) * batch[0]["length"] > micro_tokens:
            yield batch
            batch = []
        batch.append(sample)
    yield batch


# ---------------------------------------------------------------------------------------------------------------------
# greedy decoding
@torch.no_grad()
def generate(llm, prompts, max_new_tokens, stop_ids):
    """
    Greedy decoding of a batch: list of (L, D) prompt embeddings -> list of new token ids, the stop token left out.
    A row that reaches max_new_tokens has that many ids. Prompts are padded on the left, so that every row's last
    position is its newest token; a finished row leaves the batch, so that one that loops does not hold up the others.
    """
    from transformers import DynamicCache
    device, width = prompts[0].device, max(len(p) for p in prompts)
    inputs = torch.stack([F.pad(p, (0, 0, width - len(p), 0)) for p in prompts])                     # (B, L, D)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)     # (B, L)
    cache, generated, alive = DynamicCache(config=llm.config), [[] for _ in prompts], list(range(len(prompts)))
    feed = {"inputs_embeds": inputs, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    for _ in range(max_new_tokens):
        hidden = llm.model(attention_mask=mask, past_key_values=cache, use_cache=True, **feed).last_hidden_state[:, -1]
        tokens = llm.lm_head(hidden).argmax(-1)                                                      # (B,)
        going = [n for n, token in enumerate(tokens.tolist()) if token not in stop_ids]
        if len(going) < len(alive):
            alive = [alive[n] for n in going]
            keep = torch.tensor(going, dtype=torch.long, device=device)
            tokens, mask = tokens[keep], mask[keep]
            if not alive:
                break
            cache.batch_select_indices(keep)
        for row, token in zip(alive, tokens.tolist()):
            generated[row].append(token)
        mask = torch.cat([mask, mask.new_ones(len(alive), 1)], 1)
        feed = {"input_ids": tokens[:, None], "position_ids": mask.sum(1, keepdim=True) - 1}
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
# sampling: rows -> draws
def choose(table, name):
    """One of a stage's literal tables, by the name given as --mixture or --shares."""
    if name not in table:
        raise SystemExit(f"{name!r} is not one of {', '.join(table)}")
    return table[name]


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


def cells(mixture):
    """[(task, language, answerable, share within the task)] of a mixture."""
    return [(task, language, answerable, share) for task, (_, languages) in mixture.items()
            for language, shares in languages.items()
            for answerable, share in zip((True, False), shares if isinstance(shares, tuple) else (shares,)) if share]


def draw(rows, mixture, corpus_shares, batch, batch_sqa, seed, twin=False):
    """
    Endless draws, each (rows, text) of one task, language, validity and corpus (2025, section 3 and Table 13): the
    task by its share, then language and validity, then the corpus, then the next rows of that pool's shuffled order.
    With `twin` a draw of ST or SQA is followed by one of its text task, MT or QA, drawn independently (section 5.1 C).
    """
    pools = {}
    for row in rows:
        for task in ([row["task"]] if "utterance" in row else []) + [TEXT_TASK.get(row["task"])]:
            pool = pools.setdefault((task, row["language"], row["answerable"]), {})
            pool.setdefault(corpus_of(row), []).append(row)
    every = cells(mixture)
    for task, language, answerable, _ in every:
        for name in (task, TEXT_TASK.get(task)) if twin else (task,):
            if name and (name, language, answerable) not in pools:
                raise SystemExit(f"the mixture wants {name} in {language}, {'' if answerable else 'un'}answerable, "
                                 "but no row is of that kind")
    rng, orders = random.Random(seed), {}

    def pick(key):
        corpora = pools[key]
        shares = [corpus_shares.get((key[0], corpus), 0) for corpus in corpora]
        corpus = rng.choices(list(corpora), shares if any(shares) else [len(r) for r in corpora.values()])[0]
        order, picked = orders.setdefault((key, corpus), []), []
        while len(picked) < (batch_sqa if key[0] in ("SQA", "MCQ") else batch):
            if not order:                                              # every row once before any row twice
                order.extend(rng.sample(range(len(corpora[corpus])), len(corpora[corpus])))
            picked.append(corpora[corpus][order.pop()])
        return picked

    while True:
        task = rng.choices(list(mixture), [share for share, _ in mixture.values()])[0]
        choices = [cell for cell in every if cell[0] == task]
        _, language, answerable, _ = rng.choices(choices, [cell[3] for cell in choices])[0]
        yield pick((task, language, answerable)), task in TEXT_TASK.values()
        if twin and task in TEXT_TASK:
            yield pick((TEXT_TASK[task], language, answerable)), True


# ---------------------------------------------------------------------------------------------------------------------
# one optimizer step, validation
def rate(step, steps, warmup, cosine):
    """The share of the peak learning rate at a step: linear warm-up, then constant or half a cosine down to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))) if cosine else 1.0


def update(optimizers, samples, loss_of, micro_tokens):
    """
    One step of every optimizer over a window of samples -> (loss per answer token, gradient norm).
    The window's sum is divided by the window's tokens: how it is cut into micro-batches changes nothing.
    """
    tokens, total = sum(len(s["answer"]) for s in samples), 0.0
    for micro in micro_batches(samples, micro_tokens):
        loss = loss_of(micro) / tokens
        loss.backward()
        total += loss.detach()
    gradients = [p.grad for o in optimizers for group in o.param_groups for p in group["params"] if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    total, norm = torch.stack([total, norm.to(total)]).tolist()        # the step's only wait for the GPU
    if not math.isfinite(total + norm):
        raise FloatingPointError(f"loss {total}, gradient norm {norm}; rows: {' '.join(s['id'] for s in samples)}")
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return total, norm


def pick_validation(rows, mixture, count):
    """The same `count` dev rows for each task, language and validity of the mixture in every run -> list of rows."""
    picked = []
    for task, language, answerable, _ in cells(mixture):
        kind = [row for row in rows if (row["language"], row["answerable"]) == (language, answerable)
                and task in (row["task"] if "utterance" in row else "", TEXT_TASK.get(row["task"]))]
        picked += random.Random(0).sample(kind, min(count, len(kind)))
    if not picked:
        raise SystemExit(f"the dev rows hold nothing for {', '.join(mixture)}")
    return picked


@torch.no_grad()
def validate(modules, samples, loss_of, micro_tokens):
    """Loss per answer token over fixed dev samples; dropout off while it lasts."""
    for module in modules:
        module.eval()
    total = sum(loss_of(micro).item() for micro in micro_batches(samples, micro_tokens))
    for module in modules:
        module.train()
    return total / sum(len(s["answer"]) for s in samples)


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


def score_answers(rows, answers):
    """
    {"WER", "BLEU <language>", "BLEU" (their mean), "SQA"} in percent, for the tasks that the rows hold. SQA: the share
    of answers in which the reference occurs after normalisation (our choice: the paper's judge is no training tool).
    """
    groups, scores = {}, {}
    for row, text in zip(rows, answers):
        groups.setdefault((row["task"], row["language"]), []).append((row["target"], text))
    for (task, language), pairs in sorted(groups.items()):
        if task == "ASR":
            scores["WER"] = word_error_rate(*zip(*[[mms_normalize(t, language) for t in pair] for pair in pairs]))
        elif task == "ST":
            scores[f"BLEU {language}"] = bleu(*map(list, zip(*pairs)), language)
    each = [score for name, score in scores.items() if name.startswith("BLEU")]
    if each:
        scores["BLEU"] = sum(each) / len(each)
    asked = [[mms_normalize(t, row["language"], remove_numbers=False) for t in (row["target"], text)]
             for row, text in zip(rows, answers) if row["task"] in ("SQA", "MCQ")]
    if asked:
        scores["SQA"] = 100 * sum(target in text for target, text in asked) / len(asked)
    return scores


# ---------------------------------------------------------------------------------------------------------------------
# which checkpoint of A is kept (2025, appendix C.1)
BEST = {  # name: what is largest at that step
    "ST": lambda scores: scores["BLEU"], "ASR": lambda scores: -scores["WER"], "SQA": lambda scores: scores["SQA"],
    "all": lambda scores: scores.get("BLEU", 0) - scores.get("WER", 0) + scores.get("SQA", 0),      # our choice
}


def best_steps(validations):
    """Lines of log.jsonl that hold scores -> {"ST": step, "ASR": step, "SQA": step, "all": step}; ties: the first."""
    needs = {"ST": "BLEU", "ASR": "WER", "SQA": "SQA"}
    return {name: max(validations, key=best)["step"] for name, best in BEST.items()
            if needs.get(name, "step") in validations[0]}


# ---------------------------------------------------------------------------------------------------------------------
# a run's folder
def read_config(folder):
    """config.json of a finished stage: its constants, what it was made from, versions."""
    with open(require(os.path.join(folder, "config.json"), "bash run_all.sh, which makes the stages in order")) as file:
        return json.load(file)


def load_weights(folder):
    """weights.pt of a finished stage: {"projector": tensors} or {"lora": tensors} or both."""
    return torch.load(os.path.join(folder, "weights.pt"), map_location="cpu", weights_only=True)


class Run:
    """
    One stage's folder. `trained` maps a section of weights.pt to the callable that gives its tensors and the one that
    loads them. A killed run goes on from resume.pt, written with every validation, to the same weights.
    """

    def __init__(self, c, trained, optimizers, **facts):
        self.folder = os.path.join(c.work, c.run, c.out)
        self.c, self.trained, self.optimizers = c, trained, optimizers
        self.facts, self.log_path = {**asdict(c), **facts}, os.path.join(self.folder, "log.jsonl")
        self.step = 0
        os.makedirs(self.folder, exist_ok=True)
        path = os.path.join(self.folder, "resume.pt")
        if os.path.exists(path):
            state = torch.load(path, map_location="cpu", weights_only=True)
            refuse_other_constants(self.folder, state["constants"], asdict(c))
            for name, (_, load) in trained.items():
                load(state["trained"][name])
            for optimizer, saved in zip(optimizers, state["optimizers"]):
                optimizer.load_state_dict(saved)
            torch.set_rng_state(state["rng"])
            if torch.cuda.is_available():
                torch.cuda.set_rng_state(state["cuda_rng"])
            self.step = state["step"]
            print(f"resuming {self.folder} at step {self.step}")
        kept = [line for line in self.lines() if line["step"] <= self.step] if self.step else []
        with replace_file(self.log_path) as name, open(name, "w") as log:
            log.writelines(json.dumps(line) + "\n" for line in kept)  # lines of steps that will be done again go
        self.bar = tqdm(total=c.steps, initial=self.step, desc=c.out, unit=" step", mininterval=1.0)
        self.started = time.time()

    def lines(self):
        """log.jsonl: a dict a step, and one a validation."""
        with open(self.log_path) as log:
            return [json.loads(line) for line in log if line.endswith("\n")]

    def log(self, **values):
        """One step is done: its line in log.jsonl and on the bar."""
        self.step += 1
        self.write(step=self.step, seconds=round(time.time() - self.started, 2), **values)
        self.bar.set_postfix({k: f"{v:.3g}" for k, v in values.items()}, refresh=False)
        self.bar.update()

    def write(self, **values):
        with open(self.log_path, "a") as log:
            log.write(json.dumps(values) + "\n")

    def validated(self, loss, **scores):
        """A validation: logged; with scores of decoded answers the weights are kept as step-NNNNN.pt; resume.pt."""
        self.write(step=self.step, validation_loss=loss, **scores)
        tqdm.write(f"{self.c.out} step {self.step}/{self.c.steps}: validation loss {loss:.4f}"
                   + "".join(f", {name} {score:.1f}" for name, score in scores.items()))
        tensors = {name: state() for name, (state, _) in self.trained.items()}
        if scores:
            self.save(f"step-{self.step:05d}.pt", tensors)
        cuda_rng = torch.cuda.get_rng_state() if torch.cuda.is_available() else torch.empty(0)
        self.save("resume.pt", {"step": self.step, "trained": tensors, "constants": asdict(self.c),
                                "optimizers": [o.state_dict() for o in self.optimizers],
                                "rng": torch.get_rng_state(), "cuda_rng": cuda_rng})

    def save(self, name, value):
        with replace_file(os.path.join(self.folder, name)) as temporary:
            torch.save(value, temporary)

    def finish(self, next_command, step=None, **facts):
        """weights.pt, the last or those of `step`; config.json makes the folder a finished stage."""
        self.bar.close()
        tensors = {name: state() for name, (state, _) in self.trained.items()}
        if step is not None:
            path = os.path.join(self.folder, f"step-{step:05d}.pt")
            tensors = torch.load(path, map_location="cpu", weights_only=True)
        self.save("weights.pt", tensors)
        write_json(os.path.join(self.folder, "config.json"),
                   {**self.facts, "trained": list(self.trained), "kept_step": step or self.step, **facts,
                    **provenance()})
        os.remove(os.path.join(self.folder, "resume.pt"))
        print(f"weights of step {step or self.step} in {self.folder}/weights.pt, losses in log.jsonl\n"
              f"next: {next_command}")


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
    print(f"{folder} is finished already")
    return True


def main(argv=None):
    c = configure(Config, PRESETS, argv)
    if finished(c):
        return
    mixture, device = choose(MIXTURES, c.mixture), pick_device()
    torch.manual_seed(c.seed)

    # 1. rows and frames of stage 0
    made = {"encoder": c.encoder, "mean": c.mean}
    (rows, features), (dev_rows, dev_features) = load_rows(c, "train", made), load_rows(c, "dev", made)

    # 2. the frozen LLM, and a projector from the encoder's width to its own
    llm, tokenizer = load_llm(locate(c.work, c.llm), device)
    model_type = llm.config.model_type
    sizes = dict(width=features.maps[0].config["width"], llm_width=llm.config.hidden_size, layers=c.layers,
                 heads=c.heads, ffn=c.ffn, dropout=c.dropout)
    projector = Projector(**sizes).to(device)
    optimizer = torch.optim.AdamW(projector.parameters(), lr=c.lr, weight_decay=c.weight_decay)
    run = Run(c, {"projector": (projector.state_dict, projector.load_state_dict)}, [optimizer], sizes=sizes)

    loss_of = partial(answer_loss, llm, projector)
    draws = draw(rows, mixture, CORPUS_SHARES, c.batch, c.batch_sqa, c.seed)
    for _ in range(run.step * c.accumulate):                           # after a kill: the draws already trained on
        next(draws)
    picked = pick_validation(dev_rows, mixture, c.validate_rows)
    dev = [encode_sample(row, False, tokenizer, model_type, dev_features) for row in picked]
    # decoded at every validation: ASR and ST of one corpus, all of it, and the SQA rows of the loss
    heard = [row for row in dev_rows if corpus_of(row) == c.decode and "utterance" in row
             and row["task"] in ("ASR", "ST") and row["task"] in mixture]
    heard += [row for row in picked if row["task"] == "SQA"]
    decoded = [encode_sample(row, False, tokenizer, model_type, dev_features) for row in heard]
    if c.keep not in best_steps([{"step": 0, **score_answers(heard, [""] * len(heard))}]):
        raise SystemExit(f"--keep {c.keep}: the dev rows of {c.decode} that the mixture trains on do not score that")

    # 3. train
    while run.step < c.steps:
        samples = [encode_sample(row, text, tokenizer, model_type, features)
                   for picked, text in (next(draws) for _ in range(c.accumulate)) for row in picked]
        for group in optimizer.param_groups:
            group["lr"] = c.lr * rate(run.step, c.steps, c.warmup, c.cosine)
        loss, norm = update([optimizer], samples, loss_of, c.micro_tokens)
        run.log(loss=loss, norm=norm, lr=optimizer.param_groups[0]["lr"])
        if run.step % c.validate_every == 0 or run.step == c.steps:
            loss = validate([projector], dev, loss_of, c.micro_tokens)
            texts = decode_all(llm, tokenizer, projector, decoded, c.decode_batch, c.max_new_tokens)
            run.validated(loss, **score_answers(heard, texts))

    # 4. the step that did best on the dev set (section 5.1 A: in ST)
    steps = best_steps([line for line in run.lines() if "validation_loss" in line])
    print("best steps: " + ", ".join(f"{name} {step}" for name, step in steps.items()))
    run.finish(f"python train_lora.py --preset {c.preset}", steps[c.keep], best_steps=steps)


if __name__ == "__main__":
    main()
