"""
Stage C: train the projector of A and the LoRA of B together for a short while (2025, section 5.1 C).

    python merge_sft.py --preset tiny         # two minutes on 2 cores
    python merge_sft.py --preset iwslt25      # one A100-80GB; the paper reports about 6 hours
    python merge_sft.py --preset tiny --ablation random-lora        # an entry of the page's `ablations`
    python merge_sft.py --preset tiny --export work/tiny/llm        # the LLM with C's adapters merged, as on the hub

reads   <work>/<run>/{projector,lora}, <work>/rows/<corpus>/{train,dev}.jsonl, <work>/features/..., the LLM
writes  <work>/<run>/merged/: see speech_llm/run.py; the adapters also in peft's format

"Merging" is joint training from both starting points; no weights are added up. Every draw of speech translation or
spoken question answering is followed by a paired text draw, so that the LLM does not lose what it learned from text.
"""
import os
from dataclasses import dataclass, field

import torch

from speech_llm.cache import load_rows
from speech_llm.constants import configure, locate, next_command, pick_device
from speech_llm.draws import draw, pick_validation
from speech_llm.files import differences
from speech_llm.llm import load_llm
from speech_llm.prompts import prompts_of
from speech_llm.rows import run_all
from speech_llm.run import Run
from speech_llm.stage import already_finished, open_stage
from speech_llm.training import learning_rate, processes, set_rate, validate
from train_lora import (TARGETS, add_lora, attach_lora, load_lora, lora_parameters, lora_state_dict, merge_lora,
                        save_peft)
from train_projector import AnswerObjective, load_projector


@dataclass(frozen=True)
class Config:                               # the 2025 paper's values; a page of config/ or --name value changes them
    preset: str = "tiny"                    # a page of config/, or the path of a page
    work: str = "work"                      # everything that is written lies below this folder
    run: str = ""                           # the system's folder below work; the page names it
    out: str = "merged"                     # <work>/<run>/<out>
    ablation: str = ""                      # an entry of the page's `ablations`: what it changes, and its own `out`
    projector: str = "projector"            # the finished stages that training starts from, folders of <work>/<run>
    lora: str = "lora"                      # or "random": fresh adapters (Table 10) with the next three constants
    random_r: int = 8
    random_alpha: int = 16
    random_targets: str = TARGETS
    corpora: str = "covost2,europarlst,spokensquad,acl6060"          # folders of work/rows; train and dev of each
    prompt: str = "2025"                    # whose prompt; speech_llm/prompts.py
    mixture: dict = field(default_factory=lambda: {                  # section 5.1, Table 13; SQA: (valid, invalid)
        "ASR": (0.2, {"en": 1.0}),
        "ST": (0.4, {"de": 0.4, "it": 0.3, "zh": 0.3}),
        "SQA": (0.4, {"en": (0.2, 0.05), "de": (0.2, 0.05), "it": (0.2, 0.05), "zh": (0.2, 0.05)})})
    # The paper is silent on ASR: A's shares, and Spoken-SQuAD by its size (our choice). Rows with fluent answers, those
    # of the submitted model, are a corpus of their own; it has no invalid questions, so these come from spokensquad
    shares: dict = field(default_factory=lambda: {
        "ASR": {"covost2": 0.72, "europarlst": 0.18, "spokensquad": 0.10},
        "SQA": {"spokensquad-fluent": 1.0}, "QA": {"spokensquad-fluent": 1.0}})
    paired_text: bool = True                # every draw of ST or SQA is followed by a paired text draw; section 5.1
    mixed: bool = False                     # draw the language of each row of a draw by itself (the listeners)
    batch: int = 16                         # rows in a draw; section 5.1
    accumulate: int = 16                    # draws in one step, over all processes, text draws too; section 5.1
    steps: int = 1000                       # optimizer steps; section 5.1
    lr_projector: float = 1e-5              # section 5.1
    lr_lora: float = 3e-4                   # section 5.1
    warmup_projector: int = 0               # steps
    warmup: int = 100                       # steps of LoRA, as in B (our choice), then half a cosine down to 0
    cosine: bool = False                    # the projector's rate, too, falls to 0; else it is constant (our choice)
    decay_projector: float = 0.01           # weight decay, as in A (our choice)
    decay_lora: float = 0.1                 # weight decay, as in B (our choice)
    micro_tokens: int = 8192                # padded positions in one forward pass
    validate_every: int = 250               # steps between validations, which are also the checkpoints (our choice)
    validate_rows: int = 50                 # dev rows for each task, language and validity (our choice)
    export: str = ""                        # a folder for the LLM with the adapters merged, as a hub checkpoint
    seed: int = 0


def other_prompts(stage, prompts):
    """Return, in words, which prompts of a finished stage differ from `prompts`; "" if none does."""
    trained = stage.config.get("prompts", prompts)             # stage A without the LLM has no prompts to compare
    return differences(trained, {task: prompt for task, prompt in prompts.items() if task in trained})


def load_speech_llm(work, stage, device):
    """Return (LLM, tokenizer, projector or None) of a finished stage: A's projector, B's adapters, or both of C."""
    llm, tokenizer = load_llm(locate(work, stage.config["llm"]), device)
    if different := other_prompts(stage, prompts_of(tokenizer, stage.config["prompt"])):
        raise SystemExit(f"{stage.folder} was trained with other prompts than speech_llm/prompts.py makes: {different}"
                         "; set them back, or train it again")
    projector = load_projector(stage, device).eval() if "projector" in stage.config["trained"] else None
    if "lora" in stage.config["trained"]:
        attach_lora(llm, stage)
    return llm, tokenizer, projector


def export_llm(work, stage, folder):
    """Write the LLM of a finished stage with its adapters merged, and its tokenizer, as a hub checkpoint."""
    llm, tokenizer, _ = load_speech_llm(work, stage, pick_device())
    merge_lora(llm).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    print(f"the LLM of {stage.folder} with its adapters merged is in {folder}; its projector stays in {stage.folder}")


def open_starting_points(c):
    """Return the stages (A, B) that training starts from; B is None for fresh adapters. Exit if their LLMs differ."""
    base = os.path.join(c.work, c.run)
    system = run_all(c.preset, c.work)
    stage_a = open_stage(os.path.join(base, c.projector), system)
    stage_b = None if c.lora == "random" else open_stage(os.path.join(base, c.lora), system)
    if stage_b and stage_a.config["llm"] != stage_b.config["llm"]:
        raise SystemExit(f"{stage_a.folder} was trained on {stage_a.config['llm']}, "
                         f"{stage_b.folder} on {stage_b.config['llm']}")
    return stage_a, stage_b


def train(c):
    """Train the projector and the adapters together."""
    device = pick_device()
    processes()
    torch.manual_seed(c.seed)

    # 1. the stages A and B, rows, and the frames that A was trained on
    stage_a, stage_b = open_starting_points(c)
    origin = {key: stage_a.config[key] for key in ("encoder", "mean", "pad")}
    (rows, features), (dev_rows, dev_features) = load_rows(c, "train", origin), load_rows(c, "dev", origin)

    # 2. the LLM with the adapters of B, the projector of A; an optimizer and a schedule for each (section 4)
    llm, tokenizer = load_llm(locate(c.work, stage_a.config["llm"]), device)
    if stage_b:
        attach_lora(llm, stage_b)
        adapters = {key: stage_b.config[key] for key in ("r", "alpha", "targets")}
    else:
        adapters = {"r": c.random_r, "alpha": c.random_alpha, "targets": c.random_targets}
        add_lora(llm, **adapters)
    projector = load_projector(stage_a, device).train()
    # a list of groups, because AdamW refuses an empty list of parameters: the projector "identity" has none
    optimizers = [torch.optim.AdamW([{"params": [*projector.parameters()]}], lr=c.lr_projector,
                                    weight_decay=c.decay_projector),
                  torch.optim.AdamW(lora_parameters(llm), lr=c.lr_lora, weight_decay=c.decay_lora)]
    prompts = prompts_of(tokenizer, c.prompt)
    for stage in filter(None, (stage_a, stage_b)):
        if different := other_prompts(stage, prompts):
            print(f"warning: {stage.folder} was trained with other prompts: {different}")
    run = Run(c, {"projector": (projector.state_dict, projector.load_state_dict),
                  "lora": (lambda: lora_state_dict(llm), lambda state: load_lora(llm, state))},
              optimizers, llm, projector.buffers(), **origin, llm=stage_a.config["llm"], sizes=stage_a.config["sizes"],
              prompts=prompts, **adapters)
    draws = draw(rows, c.mixture, c.shares, c.batch, c.batch, c.seed, paired_text=c.paired_text, mixed=c.mixed)
    objective = AnswerObjective(llm, tokenizer, projector, c.prompt, dev_features, c.micro_tokens)
    dev = [objective.sample(row, False) for row in pick_validation(dev_rows, c.mixture, c.shares, c.validate_rows)]

    # 3. train: a draw of speech, then its paired text draw
    objective.features = features            # an utterance of dev may have the name of one of train
    for samples, batches, dropped in run.samples(draws, objective):
        rates = (learning_rate(c.lr_projector, run.step, c.steps, c.warmup_projector, c.cosine),
                 learning_rate(c.lr_lora, run.step, c.steps, c.warmup, cosine=True))
        for optimizer, rate in zip(optimizers, rates):
            set_rate(optimizer, rate)
        result = run.optimizer_step(objective, samples, batches)             # loss, backward, step of both optimizers
        run.log_step(objective, result, dropped, lr_projector=rates[0], lr_lora=rates[1])
        if run.validation_is_due():
            losses = validate([projector], objective, dev)
            run.validated(*losses, **objective.report(dev, losses))

    # 4. the last weights (2025, section 5.1 C)
    if run.rank == 0:
        save_peft(run.folder, lora_state_dict(llm), adapters["r"], adapters["alpha"], stage_a.config["llm"])
    run.finish(next_command("merge_sft", c))


def main(argv=None):
    c = configure(Config, "merge_sft", argv)
    if not already_finished(c):
        train(c)
    if c.export:
        export_llm(c.work, open_stage(os.path.join(c.work, c.run, c.out)), c.export)


if __name__ == "__main__":
    main()
