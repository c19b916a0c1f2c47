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
import os
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from metrics.dev_scores import best_steps, score_answers
from speech_llm.batches import padding_mask, pad_frames
from speech_llm.cache import load_rows
from speech_llm.constants import configure, locate, pick_device
from speech_llm.decode import generate
from speech_llm.draws import choose, draw, draw_frames, pick_validation
from speech_llm.llm import decode_text, load_llm, load_table, load_tokenizer, stop_ids
from speech_llm.prompts import encode_answer, encode_prompt, prompts_of
from speech_llm.qformer import QFormer, start_from_bert
from speech_llm.rows import corpus_of
from speech_llm.run import Run, finished, load_weights, read_config
from speech_llm.speechmapper import (LETTERS, LOSSES, SpeechMapper, embedding_losses, encode_slots, encoder_layers,
                                     inspect_slots)
from speech_llm.training import processes, rate, total_loss, validate


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
            frames = layer(frames, src_key_padding_mask=padding_mask(frames, lengths))
        return self.output(self.norm(frames))                                                   # (B, T, D)


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


# ---------------------------------------------------------------------------------------------------------------------
# one sample, one micro-batch, its loss


def encode_sample(row, text, tokenizer, features, prompt="2025", slots=Projector.slots):
    """
    One row as the LLM reads and answers it: token ids before and after the speech, the frames, the answer's ids.
    slots: how many vectors the projector makes of so many frames.
    """
    before, after = encode_prompt(tokenizer, row, text, prompt)
    frames = None if text else features[row["utterance"]]                                       # (T, W)
    answer = encode_answer(tokenizer, row)
    heard = 0 if text else slots(len(frames))
    return {"id": row["id"], "before": before, "frames": frames, "slots": heard, "after": after, "answer": answer,
            "length": len(before) + heard + len(after) + len(answer), "counts": (len(answer),)}


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


# ---------------------------------------------------------------------------------------------------------------------
# SpeechMapper: four losses on the LLM's embedding table, and no LLM (2026, section 3.1)


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


def answer(llm, tokenizer, projector, samples, max_new_tokens):
    """Samples of encode_sample -> list of new token ids each; the sample's own answer is not shown to the model."""
    device = next(llm.parameters()).device
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        prompts = splice(llm, projector, [{**s, "answer": []} for s in samples])
        return generate(llm, prompts, max_new_tokens, stop_ids(llm, tokenizer))


# ---------------------------------------------------------------------------------------------------------------------
# the rows of a stage


# ---------------------------------------------------------------------------------------------------------------------
# one optimizer step, validation


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


def row_encoder(c, llm, tokenizer, pad, slots):
    """encode(row, text, features) -> a sample of what is trained on; None if its tokens outnumber its slots."""
    def to_answer(row, text, features):
        return encode_sample(row, text, tokenizer, features, c.prompt, slots)

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
    facts = {"prompts": prompts_of(tokenizer, c.prompt)} if llm else {}
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
