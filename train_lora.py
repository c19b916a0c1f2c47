"""
Stage B: train LoRA on the frozen LLM with text only, translation and question answering (2025, section 5.1 B).

    python train_lora.py                      # tiny; half a minute on 2 cores
    python train_lora.py --preset iwslt25     # one A100-80GB; the paper reports about 4 days

reads   <work>/rows/<corpus>/{train,dev}.jsonl, the LLM; no speech, and nothing of stage A
writes  <work>/<run>/lora/: log.jsonl and resume.pt while it runs; weights.pt, the same adapters as
        adapter_model.safetensors + adapter_config.json, which peft reads, and, last, config.json
"""
import math
import os
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from speech_llm.cache import load_rows
from speech_llm.constants import configure, locate, pick_device
from speech_llm.draws import choose, draw, pick_validation
from speech_llm.files import read_json, replace_file, write_json
from speech_llm.llm import load_llm
from speech_llm.prompts import prompts_of
from speech_llm.run import Run, finished, load_weights, read_config
from speech_llm.training import processes, rate, validate
from train_projector import answer_loss, encode_sample


# attention and feed-forward (2025, section 3): the paper names keys, which torchtune's recipe leaves out
TARGETS = "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj"


@dataclass(frozen=True)
class Config:                               # edit here, or pass --name value
    preset: str = "tiny"                    # filled in by configure
    work: str = "work"
    run: str = "tiny"                       # filled in by configure; presets of one system share a folder of work
    out: str = "lora"                       # <work>/<run>/<out>
    corpora: str = "tiny"
    llm: str = "models/tiny-llama"
    prompt: str = "2025"                    # whose prompt, a key of data/prompts.py's SUFFIXES
    mixture: str = "B"                      # a key of MIXTURES
    r: int = 8                              # 2025, section 3
    alpha: int = 16                         # 2025, section 3
    targets: str = TARGETS                  # the nn.Linear that get adapters, in every layer
    batch: int = 10                         # rows in a draw; 2025, section 5.1
    accumulate: int = 4                     # draws in one optimizer step
    steps: int = 150                        # optimizer steps
    lr: float = 4e-3
    warmup: int = 20                        # steps, then half a cosine down to 0
    weight_decay: float = 0.1               # 2025, section 5.1
    micro_tokens: int = 4096                # padded positions in one forward pass
    validate_every: int = 50                # steps; also the checkpoint interval
    validate_rows: int = 24                 # dev rows for each task, language and validity
    seed: int = 0

PRESETS = {                                 # only what differs from the lines above
    "tiny":    {},
    "smoke":   dict(steps=6, validate_every=3, validate_rows=4),
    "digits":  dict(corpora="digits", llm="models/digits-llama"),
    "iwslt25": dict(corpora="covost2,europarlst,spokensquad,acl6060", llm="meta-llama/Llama-3.1-8B-Instruct",
                    accumulate=8, lr=3e-4, steps=11_117,                               # 1 epoch; section 5.1
                    warmup=100,                                                        # torchtune's recipe (our choice)
                    micro_tokens=8192, validate_every=500, validate_rows=100),
}
for name in ("iwslt25-a2", "iwslt25-short", "iwslt25-a2-short"):           # the same adapters, trained once
    PRESETS[name] = dict(PRESETS["iwslt25"], run="iwslt25")
PRESETS["tiny26"] = dict(corpora="tiny26", llm="models/tiny26-qwen3", prompt="2026", mixture="B26")
PRESETS["smoke26"] = dict(PRESETS["tiny26"], steps=6, validate_every=3, validate_rows=4)
PRESETS["iwslt26"] = dict(PRESETS["iwslt25"], corpora="covost2,europarlst,gigast,librisqa,fakacl", prompt="2026",
                          llm="Qwen/Qwen3-4B-Instruct-2507", mixture="B26", batch=16, steps=30_000)      # section 6.1
PRESETS["iwslt26-setup2"] = dict(PRESETS["iwslt26"], run="iwslt26")
for name in ("tiny-listeners", "smoke-listeners", "listeners", "listeners-ten"):
    PRESETS[f"{name}-align"] = PRESETS[name] = None          # the listeners' adapters are trained by merge_sft.py alone
PRESETS["listeners-ast"] = PRESETS["listeners-ten-ast"] = None

MIXTURES = {  # task: (share, {language: share}), QA languages (valid, invalid); 2025, section 5.1 and Table 13
    "B": {"MT": (0.6, {"de": 0.4, "it": 0.3, "zh": 0.3}),
          "QA": (0.4, {"en": (0.2, 0.05), "de": (0.2, 0.05), "it": (0.2, 0.05), "zh": (0.2, 0.05)})},
    "B26": {"MT": (0.6, {"de": 0.4, "it": 0.3, "zh": 0.3}),                # 2026, section 6.1
            # valid and invalid 4 : 1 (our choice)
            "QA": (0.4, {"en": (0.16, 0.04), "de": (0.24, 0.06), "it": (0.24, 0.06), "zh": (0.16, 0.04)})},
}

# (task, corpus) or (task, language, corpus): share; where a task has none, its corpora go by size
MT26 = {  # by the sizes of the 2026 paper's Table 5, whatever part of GigaST is there; GigaST's share is what to edit
    ("MT", "de", "covost2"): 289_413, ("MT", "de", "europarlst"): 32_628, ("MT", "de", "gigast"): 7_645_641,
    ("MT", "de", "librisqa"): 36_707, ("MT", "de", "fakacl"): 9_722,
    ("MT", "it", "europarlst"): 29_552, ("MT", "it", "gigast"): 3_004_804, ("MT", "it", "librisqa"): 75_378,
    ("MT", "it", "fakacl"): 14_999,
    ("MT", "zh", "covost2"): 289_413, ("MT", "zh", "gigast"): 7_645_641, ("MT", "zh", "librisqa"): 22_211,
    ("MT", "zh", "fakacl"): 4_659,
}
CORPUS_SHARES = {"B": {("QA", "spokensquad"): 1.0},                        # the short answers; 2025, Table 12
                 "B26": MT26}


# ---------------------------------------------------------------------------------------------------------------------
# LoRA
class LoRALinear(nn.Module):
    """y = W x + (alpha / r) B A x. W is frozen; B starts at zero, so the first step sees the base model exactly."""

    def __init__(self, base, r, alpha):
        super().__init__()
        self.base = base.requires_grad_(False)
        device = base.weight.device
        self.lora_A = nn.Parameter(torch.empty(r, base.in_features, device=device))    # float32 whatever W is
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, r, device=device))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        self.scale = self.full_scale = alpha / r                           # scale_lora weakens the first

    def forward(self, x):                                                  # (..., in) -> (..., out)
        low = F.linear(x, self.lora_A.to(x.dtype))                         # (..., r)
        return self.base(x) + self.scale * F.linear(low, self.lora_B.to(x.dtype))


def add_lora(model, targets=TARGETS, r=8, alpha=16):
    """Wrap every nn.Linear that `targets` names, comma-separated -> how many. ValueError for a name without one."""
    names = targets.split(",")
    found = [(parent, name) for parent in model.modules() for name, child in parent.named_children()
             if name in names and isinstance(child, nn.Linear)]
    missing = set(names) - {name for _, name in found}
    if missing:
        raise ValueError(f"no nn.Linear is called {', '.join(sorted(missing))} in {type(model).__name__}")
    for parent, name in found:
        setattr(parent, name, LoRALinear(getattr(parent, name), r, alpha))
    return len(found)


def lora_layers(model):
    """{name: LoRALinear} in the model's order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


def lora_state_dict(model):
    """{"<layer>.lora_A": (r, in), "<layer>.lora_B": (out, r)} of every wrapped layer, and nothing else."""
    return {f"{name}.{part}": getattr(layer, part).detach()
            for name, layer in lora_layers(model).items() for part in ("lora_A", "lora_B")}


def lora_parameters(model):
    """The tensors that train."""
    return [p for layer in lora_layers(model).values() for p in (layer.lora_A, layer.lora_B)]


def load_lora(model, state):
    """Copy adapters into a model that add_lora has wrapped; every name and shape must agree."""
    own = lora_state_dict(model)
    if own.keys() != state.keys():
        raise ValueError(f"the adapters are for other layers: {sorted(own.keys() ^ state.keys())[:4]} ...")
    for name, tensor in own.items():
        if tensor.shape != state[name].shape:
            raise ValueError(f"adapter {name} has shape {tuple(state[name].shape)}, the model {tuple(tensor.shape)}")
        tensor.copy_(state[name])


@torch.no_grad()
def merge_lora(model):
    """Replace every LoRALinear by a plain nn.Linear with W + (alpha / r) B A; returns the model."""
    for name, layer in lora_layers(model).items():
        delta = layer.scale * layer.lora_B @ layer.lora_A                                  # (out, in), float32
        layer.base.weight.copy_((layer.base.weight.float() + delta).to(layer.base.weight.dtype))
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.base)
    return model


def save_peft(folder, state, r, alpha, llm):
    """Adapters in peft's format: adapter_model.safetensors and adapter_config.json."""
    from safetensors.torch import save_file
    tensors = {f"base_model.model.{name}.weight": tensor.cpu().contiguous() for name, tensor in state.items()}
    with replace_file(os.path.join(folder, "adapter_model.safetensors")) as name:
        save_file(tensors, name)
    targets = sorted({name.split(".")[-2] for name in state})
    write_json(os.path.join(folder, "adapter_config.json"),
               {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": llm, "r": r,
                "lora_alpha": alpha, "lora_dropout": 0.0, "bias": "none", "target_modules": targets,
                "fan_in_fan_out": False, "init_lora_weights": True})


def load_peft(folder):
    """Adapters in peft's format -> (state for load_lora, r, alpha, target names)."""
    from safetensors.torch import load_file
    config = read_json(os.path.join(folder, "adapter_config.json"), "save the adapters again")
    if config["peft_type"] != "LORA" or config["bias"] != "none" or config.get("use_rslora") or config.get("use_dora"):
        raise ValueError(f"{folder} holds no plain LoRA: only W + (alpha / r) B A without bias is supported")
    prefix, suffix = "base_model.model.", ".weight"
    path = os.path.join(folder, "adapter_model.safetensors")
    try:
        state = {name[len(prefix):-len(suffix)]: tensor for name, tensor in load_file(path).items()}
    except Exception as error:                                             # a library's own for every kind of damage
        raise ValueError(f"{path} is damaged ({error}); save the adapters again") from None
    return state, config["r"], config["lora_alpha"], config["target_modules"]


def attach_lora(llm, folder):
    """Wrap a fresh LLM as the finished stage `folder` was and load its adapters."""
    config, weights = read_config(folder), load_weights(folder, "lora")
    try:
        add_lora(llm, config["targets"], config["r"], config["alpha"])
        load_lora(llm, weights)
    except (TypeError, ValueError, AttributeError, RuntimeError, ZeroDivisionError) as error:
        raise SystemExit(f"{folder} does not fit the LLM ({error}); choose another, or train it again") from None


def scale_lora(llm, strength):
    """Set the adapters' strength: 0 the base LLM, 1 as trained (Speech-IFEval's test-time scaling)."""
    for layer in lora_layers(llm).values():
        layer.scale = strength * layer.full_scale


def main(argv=None):
    c = configure(Config, PRESETS, argv)
    if finished(c):
        return
    mixture, device = choose(MIXTURES, c.mixture), pick_device()
    processes()
    torch.manual_seed(c.seed)

    # 1. text: the transcripts of the same rows
    rows, dev_rows = load_rows(c, "train")[0], load_rows(c, "dev")[0]

    # 2. the frozen LLM with fresh adapters
    llm, tokenizer = load_llm(locate(c.work, c.llm), device)
    count = add_lora(llm, c.targets, c.r, c.alpha)
    trained = lora_parameters(llm)
    print(f"LoRA on {count} matrices, {sum(p.numel() for p in trained)} parameters")
    optimizer = torch.optim.AdamW(trained, lr=c.lr, weight_decay=c.weight_decay)
    run = Run(c, {"lora": (lambda: lora_state_dict(llm), lambda state: load_lora(llm, state))}, [optimizer],
              llm, prompts=prompts_of(tokenizer, c.prompt))

    def encode_row(row):
        return encode_sample(row, True, tokenizer, None, c.prompt)
    loss_of = partial(answer_loss, llm, None)
    draws = draw(rows, mixture, CORPUS_SHARES[c.mixture], c.batch, c.batch, c.seed)
    run.skip(draws)
    dev = [encode_row(row) for row in pick_validation(dev_rows, mixture, c.validate_rows)]

    # 3. train
    while run.step < c.steps:
        samples = [encode_row(row) for picked, _ in run.mine(draws) for row in picked]
        for group in optimizer.param_groups:
            group["lr"] = c.lr * rate(run.step, c.steps, c.warmup, cosine=True)
        (loss,), norm = run.update(samples, loss_of)
        run.log(loss=loss, norm=norm, lr=optimizer.param_groups[0]["lr"])
        if run.step % c.validate_every == 0 or run.step == c.steps:
            run.validated(*validate([], dev, loss_of, c.micro_tokens))

    # 4. the last weights (2025, section 5.1 B)
    if run.rank == 0:
        save_peft(run.folder, lora_state_dict(llm), c.r, c.alpha, c.llm)
    run.finish(f"python merge_sft.py --preset {c.preset}")


if __name__ == "__main__":
    main()
