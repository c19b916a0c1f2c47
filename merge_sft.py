"""
Stage C: the projector of A and the LoRA of B, trained together for a short while (2025, section 5.1 C).

    python merge_sft.py                       # tiny; two minutes on 2 cores
    python merge_sft.py --preset iwslt25      # one A100-80GB; the paper reports about 6 hours

reads   <work>/<run>/{projector,lora}, <work>/rows/<corpus>/{train,dev}.jsonl, <work>/features/..., the LLM
writes  <work>/<run>/merged/: log.jsonl and resume.pt while it runs; weights.pt and, last, config.json

"Merging" is joint training from both starting points; no weights are added up. Every draw of speech translation or
spoken question answering is followed by one of its text twin, so that the LLM keeps what it learned from text.
"""
import os
from dataclasses import dataclass
from functools import partial

import torch

from data.covost2 import INTO_ENGLISH
from speech_llm.cache import load_rows
from speech_llm.constants import configure, locate, pick_device, require
from speech_llm.draws import choose, draw, pick_validation
from speech_llm.files import differences
from speech_llm.llm import load_llm
from speech_llm.prompts import prompts_of
from speech_llm.rows import ALL_LANGUAGES, LANGUAGES
from speech_llm.run import Run, finished, read_config
from speech_llm.speechmapper import inspect_slots
from speech_llm.training import processes, rate, validate
from train_lora import MT26, TARGETS, add_lora, attach_lora, load_lora, lora_parameters, lora_state_dict
from train_projector import answer_loss, encode_sample, load_projector


@dataclass(frozen=True)
class Config:                               # edit here, or pass --name value
    preset: str = "tiny"                    # filled in by configure
    work: str = "work"
    run: str = "tiny"                       # filled in by configure; presets of one system share a folder of work
    out: str = "merged"                     # <work>/<run>/<out>
    projector: str = "projector"            # the finished stages it starts from, folders of <work>/<run>
    lora: str = "lora"                      # or "random": fresh adapters (Table 10), of these three constants
    random_r: int = 8
    random_alpha: int = 16
    random_targets: str = TARGETS
    corpora: str = "tiny"
    mixture: str = "C"                      # a key of MIXTURES
    prompt: str = "2025"                    # "2025", "2026", "listeners"; data/prompts.py
    shares: str = "fluent"                  # a key of CORPUS_SHARES; which matters to the 2025 corpora only
    text: bool = True                       # every draw of ST or SQA is followed by one of its text twin
    batch: int = 16                         # rows in a draw; 2025, section 5.1
    accumulate: int = 2                     # draws in one optimizer step; a draw and its text twin are two (our choice)
    steps: int = 200                        # optimizer steps
    lr_projector: float = 5e-4
    lr_lora: float = 1e-3
    warmup_projector: int = 0               # steps
    warmup: int = 20                        # steps, LoRA
    cosine: bool = True                     # the projector's rate too falls to 0; else it is constant
    decay_projector: float = 0.01           # weight decay, as in A (our choice)
    decay_lora: float = 0.1                 # as in B (our choice)
    micro_tokens: int = 4096                # padded positions in one forward pass
    validate_every: int = 100               # steps; also the checkpoint interval
    validate_rows: int = 16                 # dev rows for each task, language and validity
    seed: int = 0

TEN = ("en", "fr", "nl", "tr", "de", "ar", "es", "ru", "id", "pl")         # listeners, section 6

PRESETS = {                                 # only what differs from the lines above
    "tiny":    {},
    "smoke":   dict(steps=6, validate_every=3, validate_rows=2),
    "digits":  dict(corpora="digits", steps=400),
    "iwslt25": dict(corpora="covost2,europarlst,spokensquad,acl6060",
                    accumulate=16, steps=1000, lr_projector=1e-5, lr_lora=3e-4, cosine=False,      # section 5.1
                    warmup=100,                                                        # torchtune's recipe (our choice)
                    micro_tokens=8192, validate_every=250, validate_rows=50),
}
PRESETS["iwslt25-a2"] = dict(PRESETS["iwslt25"], run="iwslt25", projector="projector-A.2", out="merged-A.2")
PRESETS["iwslt25-short"] = dict(PRESETS["iwslt25"], run="iwslt25", shares="short", out="merged-short")
PRESETS["iwslt25-a2-short"] = dict(PRESETS["iwslt25-a2"], shares="short", out="merged-A.2-short")
PRESETS["tiny26"] = dict(corpora="tiny26", prompt="2026", mixture="C26", shares="2026")
PRESETS["smoke26"] = dict(PRESETS["tiny26"], steps=6, validate_every=3, validate_rows=2)
PRESETS["iwslt26"] = dict(PRESETS["iwslt25"], corpora="covost2,europarlst,gigast,librisqa,fakacl", prompt="2026",
                          mixture="C26", shares="2026", batch=8, accumulate=6, steps=3000,
                          lr_projector=5e-5, lr_lora=1e-5)                              # 2026, section 6.1: setup 1
PRESETS["iwslt26-setup2"] = dict(PRESETS["iwslt26"], run="iwslt26", lr_lora=5e-5, out="merged-setup2")
# The listeners: two stages, ASR and then questions; both train the projector and the adapters (section 6, A.6, Table 5)
ALIGN = dict(prompt="listeners", shares="sizes", text=False, lora="random", random_targets="q_proj,v_proj",
             out="aligned")
ANSWER = dict(projector="aligned", lora="aligned", out="merged")
for name, steps, size in (("tiny-listeners", (600, 900), {}), ("smoke-listeners", (6, 6), dict(validate_every=3))):
    PRESETS[f"{name}-align"] = dict(ALIGN, run=name, corpora="tiny-listeners", mixture="ASR-4", random_r=16,
                                    lr_projector=2e-3, lr_lora=2e-4, warmup_projector=20, steps=steps[0], **size)
    PRESETS[name] = dict(PRESETS[f"{name}-align"], **ANSWER, mixture="FOUR+AST", lr_projector=1e-3, lr_lora=1e-3,
                         steps=steps[1])
LISTENERS = dict(ALIGN, run="listeners", random_r=64, random_alpha=64,
                 lr_projector=1e-5, lr_lora=1e-5, decay_projector=0.05, decay_lora=0.05,      # decay: SALMONN's default
                 micro_tokens=6144, validate_every=500, validate_rows=20)
# 10 epochs of 20 hours a language, were an utterance 5 s (our choice); 3 epochs of 90,000 questions a language
PRESETS["listeners-align"] = dict(LISTENERS, corpora="commonvoice", mixture="ASR-23", accumulate=8,       # batch 128
                                  warmup_projector=800, warmup=800, steps=25_875)
PRESETS["listeners-ten-align"] = dict(PRESETS["listeners-align"], mixture="ASR-10", out="aligned-ten", steps=11_250)
PRESETS["listeners"] = dict(LISTENERS, **ANSWER, corpora="multispeechqa", mixture="ALL", accumulate=16,   # batch 256
                            warmup_projector=400, warmup=400, steps=24_258)
PRESETS["listeners-ast"] = dict(PRESETS["listeners"], mixture="ALL+AST", out="merged-ast", steps=30_322,
                                corpora=",".join(["multispeechqa", *(f"covost2-{name}_en" for name in INTO_ENGLISH)]))
PRESETS["listeners-ten"] = dict(PRESETS["listeners"], mixture="TEN", projector="aligned-ten", lora="aligned-ten",
                                out="merged-ten", steps=10_547)
PRESETS["listeners-ten-ast"] = dict(
    PRESETS["listeners-ten"], mixture="TEN+AST", out="merged-ten-ast", steps=13_184,
    corpora=",".join(["multispeechqa", *(f"covost2-{name}_en" for name in INTO_ENGLISH if name in TEN)]))

ASR = {"en": 1.0}
ST = {"de": 0.4, "it": 0.3, "zh": 0.3}
SQA = {"en": (0.2, 0.05), "de": (0.2, 0.05), "it": (0.2, 0.05), "zh": (0.2, 0.05)}        # (valid, invalid)
IN_23, IN_10, IN_4 = (dict.fromkeys(names, 1 / len(names)) for names in (ALL_LANGUAGES, TEN, LANGUAGES))
INTO_EN = {"en": 1.0}
MIXTURES = {  # task: (share, {language: share}); 2025, Table 13
    "C":               {"ASR": (0.2, ASR), "ST": (0.4, ST), "SQA": (0.4, SQA)},
    "C-no-sqa":        {"ASR": (0.2, ASR), "ST": (0.4, ST)},                # Table 10; the same relation (our choice)
    "C-0.2-0.5-0.3":   {"ASR": (0.2, ASR), "ST": (0.5, ST), "SQA": (0.3, SQA)},             # the others: Table 11
    "C-0.2-0.6-0.2":   {"ASR": (0.2, ASR), "ST": (0.6, ST), "SQA": (0.2, SQA)},
    "C-0.25-0.5-0.25": {"ASR": (0.25, ASR), "ST": (0.5, ST), "SQA": (0.25, SQA)},
    "C-0.3-0.5-0.2":   {"ASR": (0.3, ASR), "ST": (0.5, ST), "SQA": (0.2, SQA)},
    "C26":             {"ASR": (0.3, ASR), "ST": (0.4, {"de": 0.4, "it": 0.4, "zh": 0.2}), "SQA": (0.3, SQA)},   # 2026
    # the listeners: languages alike, at most 20 % translation into English (section 6)
    "ASR-23": {"ASR": (1.0, IN_23)},
    "ASR-10": {"ASR": (1.0, IN_10)},
    "ASR-4":  {"ASR": (1.0, IN_4)},
    "ALL":      {"SQA": (1.0, IN_23)},
    "ALL+AST":  {"SQA": (0.8, IN_23), "ST": (0.2, INTO_EN)},
    "TEN":      {"SQA": (1.0, IN_10)},
    "TEN+AST":  {"SQA": (0.8, IN_10), "ST": (0.2, INTO_EN)},
    "FOUR+AST": {"SQA": (0.8, IN_4), "ST": (0.2, INTO_EN)},
}

# (task, corpus): share; where a task has none, its corpora go by size. The paper is silent on ASR: A's shares, and
# Spoken-SQuAD by its size (our choice). Rows with fluent answers are a corpus beside spokensquad; it has no invalid
# questions, so those come from spokensquad in any case
ASR_SHARES = {("ASR", "covost2"): 0.72, ("ASR", "europarlst"): 0.18, ("ASR", "spokensquad"): 0.10}
FLUENT = {**ASR_SHARES, ("SQA", "spokensquad-fluent"): 1.0, ("QA", "spokensquad-fluent"): 1.0}
CORPUS_SHARES = {
    "fluent": FLUENT,                                                                       # the submitted model
    "short": {**ASR_SHARES, ("SQA", "spokensquad"): 1.0, ("QA", "spokensquad"): 1.0},
    # Table 10: MT from the speech corpora alone, by size (Table 1), and from the translated Spoken-SQuAD alone
    "no-synthetic": {**FLUENT, ("MT", "covost2"): 289_413, ("MT", "europarlst"): 32_628},
    "only-synthetic": {**FLUENT, ("MT", "spokensquad"): 1.0},
    # 2026, Table 6: speech of CoVoST 2 and Europarl-ST alone for ASR (A's shares of 2025, our choice) and ST (by size)
    "2026": {**MT26, ("ASR", "covost2"): 0.8, ("ASR", "europarlst"): 0.2,
             ("ST", "covost2"): 289_413, ("ST", "europarlst"): 32_628},
    "sizes": {},                                                                            # the listeners
}


def load_speech_llm(work, folder, device):
    """(LLM, tokenizer, projector or None) of a finished stage folder: A's projector, B's adapters, or C's both."""
    config = read_config(folder)
    llm, tokenizer = load_llm(locate(work, config["llm"]), device)
    prompts = prompts_of(tokenizer, config["prompt"])
    other = differences(config.get("prompts", prompts), prompts)
    if other:
        raise SystemExit(f"{folder} was trained with other prompts than data/prompts.py makes now: {other}; set them "
                         "back, or train it again")
    projector = load_projector(folder, device).eval() if "projector" in config["trained"] else None
    if "lora" in config["trained"]:
        attach_lora(llm, folder)
    return llm, tokenizer, projector


def main(argv=None):
    c = configure(Config, PRESETS, argv)
    if finished(c):
        return
    mixture, shares, device = choose(MIXTURES, c.mixture), choose(CORPUS_SHARES, c.shares), pick_device()
    processes()
    torch.manual_seed(c.seed)

    # 1. what A and B were made from
    base = os.path.join(c.work, c.run)
    for folder, script in ((c.projector, "train_projector"), (c.lora, "train_lora")):
        if folder != "random":
            require(os.path.join(base, folder, "config.json"), f"bash run_all.sh {c.preset}"
                    if folder.startswith("aligned") else f"python {script}.py --preset {c.preset} --out {folder}")
    stage_a = read_config(os.path.join(base, c.projector))
    stage_b = ({"llm": stage_a["llm"], "r": c.random_r, "alpha": c.random_alpha,
                "targets": c.random_targets} if c.lora == "random" else
               read_config(os.path.join(base, c.lora)))
    if stage_a["llm"] != stage_b["llm"]:
        raise SystemExit(f"{base}/{c.projector} was trained on {stage_a['llm']}, {c.lora} on {stage_b['llm']}")
    made = {key: stage_a[key] for key in ("encoder", "mean", "pad")}
    (rows, features), (dev_rows, dev_features) = load_rows(c, "train", made), load_rows(c, "dev", made)

    # 2. the LLM with the adapters of B, the projector of A; an optimizer and a schedule for each (section 4)
    llm, tokenizer = load_llm(locate(c.work, stage_a["llm"]), device)
    if c.lora == "random":
        add_lora(llm, c.random_targets, c.random_r, c.random_alpha)
    else:
        attach_lora(llm, os.path.join(base, c.lora))
    projector = load_projector(os.path.join(base, c.projector), device).train()
    optimizers = [torch.optim.AdamW(projector.parameters(), lr=c.lr_projector, weight_decay=c.decay_projector),
                  torch.optim.AdamW(lora_parameters(llm), lr=c.lr_lora, weight_decay=c.decay_lora)]
    prompts = prompts_of(tokenizer, c.prompt)
    for folder, stage in ((c.projector, stage_a), (c.lora, stage_b)):
        other = differences(stage.get("prompts", prompts), prompts)        # a SpeechMapper has learned without any
        if other:
            print(f"warning: {folder} was trained with other prompts: {other}")
    facts = {**made, "llm": stage_a["llm"], "sizes": stage_a["sizes"]}
    run = Run(c, {"projector": (projector.state_dict, projector.load_state_dict),
                  "lora": (lambda: lora_state_dict(llm), lambda state: load_lora(llm, state))},
              optimizers, llm, **facts, prompts=prompts, **{key: stage_b[key] for key in ("r", "alpha", "targets")})

    loss_of = partial(answer_loss, llm, projector)
    def encode_row(row, text, features):
        return encode_sample(row, text, tokenizer, features, c.prompt, projector.slots)
    draws = draw(rows, mixture, shares, c.batch, c.batch, c.seed, twin=c.text)
    run.skip(draws)
    dev = [encode_row(row, False, dev_features) for row in pick_validation(dev_rows, mixture, c.validate_rows)]

    # 3. train: a draw of speech, then its text twin
    while run.step < c.steps:
        samples = [encode_row(row, text, features) for picked, text in run.mine(draws) for row in picked]
        rates = (c.lr_projector * rate(run.step, c.steps, c.warmup_projector, c.cosine),
                 c.lr_lora * rate(run.step, c.steps, c.warmup, cosine=True))
        for optimizer, lr in zip(optimizers, rates):
            for group in optimizer.param_groups:
                group["lr"] = lr
        (loss,), norm = run.update(samples, loss_of)
        run.log(loss=loss, norm=norm, lr_projector=rates[0], lr_lora=rates[1])
        if run.step % c.validate_every == 0 or run.step == c.steps:
            run.validated(*validate([projector], dev, loss_of, c.micro_tokens),
                          **inspect_slots(projector, llm.get_input_embeddings().weight, dev, c.micro_tokens))

    # 4. the last weights (2025, section 5.1 C)
    run.finish(f"python infer.py --preset {c.preset}")


if __name__ == "__main__":
    main()
