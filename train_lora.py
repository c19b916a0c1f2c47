"""
Stage B: train LoRA on the frozen LLM with text alone: translation and question answering (2025, section 5.1 B).

    python train_lora.py --preset tiny        # half a minute on 2 cores
    python train_lora.py --preset iwslt25     # one A100-80GB; the paper reports about 4 days

reads   <work>/rows/<corpus>/{train,dev}.jsonl, the LLM; no speech, and nothing of stage A
writes  <work>/<run>/lora/: see speech_llm/run.py; the adapters also as adapter_model.safetensors and
        adapter_config.json, which peft reads
"""
import math
import os
from collections import Counter
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn

from speech_llm.cache import load_rows
from speech_llm.constants import configure, locate, next_command, pick_device
from speech_llm.draws import draw, pick_validation
from speech_llm.files import replace_file, write_json
from speech_llm.llm import load_llm
from speech_llm.prompts import prompts_of
from speech_llm.run import Run
from speech_llm.stage import already_finished
from speech_llm.training import learning_rate, processes, set_rate, validate
from train_projector import AnswerObjective

# attention and feed-forward (2025, section 3); the paper lists keys (k_proj), which torchtune's recipe leaves out
TARGETS = "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj"


@dataclass(frozen=True)
class Config:                               # the 2025 paper's values; a page of config/ or --name value changes them
    preset: str = "tiny"                    # a page of config/, or the path of a page
    work: str = "work"                      # everything that is written lies below this folder
    run: str = ""                           # the system's folder below work; the page names it
    out: str = "lora"                       # <work>/<run>/<out>
    corpora: str = "covost2,europarlst,spokensquad,acl6060"          # folders of work/rows; train and dev of each
    llm: str = "meta-llama/Llama-3.1-8B-Instruct"
    prompt: str = "2025"                    # whose prompt; speech_llm/prompts.py
    mixture: dict = field(default_factory=lambda: {                  # section 5.1, Table 13; QA: (valid, invalid)
        "MT": (0.6, {"de": 0.4, "it": 0.3, "zh": 0.3}),
        "QA": (0.4, {"en": (0.2, 0.05), "de": (0.2, 0.05), "it": (0.2, 0.05), "zh": (0.2, 0.05)})})
    shares: dict = field(default_factory=lambda: {"QA": {"spokensquad": 1.0}})       # the short answers; Table 12
    r: int = 8                              # section 3
    alpha: int = 16                         # section 3
    targets: str = TARGETS                  # the nn.Linear that get adapters, in every layer
    batch: int = 10                         # rows in a draw; section 5.1
    accumulate: int = 8                     # draws in one optimizer step, over all processes; section 5.1
    steps: int = 11_117                     # optimizer steps: 1 epoch of 889,350 rows; section 5.1. The paper's 4 days
                                            # are near A's 4.6 for 3.9 million rows: its epoch may be longer
    lr: float = 3e-4                        # section 5.1
    warmup: int = 100                       # steps; section 5.1 B. Then half a cosine down to 0 (our choice)
    weight_decay: float = 0.1               # section 5.1
    micro_tokens: int = 8192                # padded positions in one forward pass
    validate_every: int = 500               # steps between validations, which are also the checkpoints (our choice)
    validate_rows: int = 100                # dev rows for each task, language and validity (our choice)
    seed: int = 0


# ---------------------------------------------------------------------------------------------------------------------
# LoRA
class LoRALinear(nn.Module):
    """y = W x + (alpha / r) B A x. W is frozen. B starts at zero, so the first step sees the base model exactly."""

    def __init__(self, base, r, alpha):
        super().__init__()
        self.base = base.requires_grad_(False)
        device = base.weight.device
        self.lora_A = nn.Parameter(torch.empty(r, base.in_features, device=device))    # float32, also if W is bfloat16
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, r, device=device))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        self.scale = self.full_scale = alpha / r                           # scale_lora changes self.scale

    def forward(self, x):                                                  # (..., in) -> (..., out)
        low = F.linear(x, self.lora_A.to(x.dtype))                         # (..., r)
        return self.base(x) + self.scale * F.linear(low, self.lora_B.to(x.dtype))


def add_lora(model, targets=TARGETS, r=8, alpha=16):
    """Wrap every nn.Linear that the comma-separated `targets` name; return how many. ValueError for an unknown name."""
    names = targets.split(",")
    places = [(parent, name) for parent in model.modules() for name, child in parent.named_children()
              if name in names and isinstance(child, nn.Linear)]
    missing = set(names) - {name for _, name in places}
    if missing:
        raise ValueError(f"no nn.Linear is called {', '.join(sorted(missing))} in {type(model).__name__}")
    for parent, name in places:
        setattr(parent, name, LoRALinear(getattr(parent, name), r, alpha))
    return len(places)


def lora_layers(model):
    """Return {name: LoRALinear} in the model's order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


def lora_state_dict(model):
    """Return {"<layer>.lora_A": (r, in), "<layer>.lora_B": (out, r)} of every wrapped layer, and nothing else."""
    return {f"{name}.{part}": getattr(layer, part).detach()
            for name, layer in lora_layers(model).items() for part in ("lora_A", "lora_B")}


def lora_parameters(model):
    """Return the trainable tensors: A and B of every wrapped layer."""
    return [p for layer in lora_layers(model).values() for p in (layer.lora_A, layer.lora_B)]


def load_lora(model, state):
    """Copy adapters into a model that add_lora has wrapped. ValueError if a name or a shape differs."""
    adapters = lora_state_dict(model)
    if adapters.keys() != state.keys():
        raise ValueError(f"the adapters are for other layers: {sorted(adapters.keys() ^ state.keys())[:4]} ...")
    for name, tensor in adapters.items():
        if tensor.shape != state[name].shape:
            raise ValueError(f"adapter {name} has shape {tuple(state[name].shape)}, the model {tuple(tensor.shape)}")
        tensor.copy_(state[name])


def attach_lora(llm, stage):
    """Wrap a fresh LLM as the LLM of a finished stage was, and load the stage's adapters."""
    config = stage.config
    if "lora" not in stage.weights:
        raise SystemExit(f"{stage.folder} holds no adapters; choose a folder of stage B or C")
    try:
        add_lora(llm, config["targets"], config["r"], config["alpha"])
        load_lora(llm, stage.weights["lora"])
    except (TypeError, ValueError, AttributeError, RuntimeError, ZeroDivisionError) as error:
        raise SystemExit(f"{stage.folder} does not fit the LLM ({error}); choose another, or train it again") from None


def scale_lora(llm, strength):
    """Set the strength of the adapters: 0 is the base LLM, 1 is as trained (test-time scaling of Speech-IFEval)."""
    for layer in lora_layers(llm).values():
        layer.scale = strength * layer.full_scale


@torch.no_grad()
def merge_lora(model):
    """
    Replace every LoRALinear by a plain nn.Linear with W + (alpha / r) B A; return the model.
    SystemExit, naming the layer, if W is another layer's, too, as a tied lm_head's is: merging would change both.
    """
    uses = Counter(id(module.base.weight if isinstance(module, LoRALinear) else getattr(module, "weight", None))
                   for module in model.modules())
    for name, layer in lora_layers(model).items():
        if uses[id(layer.base.weight)] > 2:                                # its own nn.Linear and the LoRALinear
            tied = layer.base.weight is model.get_input_embeddings().weight
            raise SystemExit(f"{name} shares its weight with {'the input embeddings' if tied else 'another layer'}, so "
                             "its adapter cannot be merged")
    for name, layer in lora_layers(model).items():
        delta = layer.scale * layer.lora_B @ layer.lora_A                                  # (out, in), float32
        layer.base.weight.copy_((layer.base.weight.float() + delta).to(layer.base.weight.dtype))
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.base)
    return model


def save_peft(folder, state, r, alpha, llm):
    """Write adapters in peft's format: adapter_model.safetensors and adapter_config.json."""
    from safetensors.torch import save_file
    tensors = {f"base_model.model.{name}.weight": tensor.cpu().contiguous() for name, tensor in state.items()}
    with replace_file(os.path.join(folder, "adapter_model.safetensors")) as temporary:
        save_file(tensors, temporary)
    targets = sorted({name.split(".")[-2] for name in state})
    write_json(os.path.join(folder, "adapter_config.json"),
               {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": llm, "r": r,
                "lora_alpha": alpha, "lora_dropout": 0.0, "bias": "none", "target_modules": targets,
                "fan_in_fan_out": False, "init_lora_weights": True})


def main(argv=None):
    c = configure(Config, "train_lora", argv)
    if already_finished(c):
        return
    device = pick_device()
    processes()
    torch.manual_seed(c.seed)

    # 1. text: the transcripts of the rows, without any frames
    rows, dev_rows = load_rows(c, "train")[0], load_rows(c, "dev")[0]

    # 2. the frozen LLM with fresh adapters
    llm, tokenizer = load_llm(locate(c.work, c.llm), device)
    count = add_lora(llm, c.targets, c.r, c.alpha)
    trained = lora_parameters(llm)
    print(f"LoRA on {count} matrices, {sum(p.numel() for p in trained)} parameters")
    optimizer = torch.optim.AdamW(trained, lr=c.lr, weight_decay=c.weight_decay)
    run = Run(c, {"lora": (lambda: lora_state_dict(llm), lambda state: load_lora(llm, state))}, [optimizer], llm,
              prompts=prompts_of(tokenizer, c.prompt))
    objective = AnswerObjective(llm, tokenizer, None, c.prompt, None, c.micro_tokens)
    draws = draw(rows, c.mixture, c.shares, c.batch, c.batch, c.seed)
    dev = [objective.sample(row, True) for row in pick_validation(dev_rows, c.mixture, c.shares, c.validate_rows)]

    # 3. train
    for samples, batches, dropped in run.samples(draws, objective):
        set_rate(optimizer, learning_rate(c.lr, run.step, c.steps, c.warmup, cosine=True))
        result = run.optimizer_step(objective, samples, batches)             # loss, backward, step of the optimizer
        run.log_step(objective, result, dropped, lr=optimizer.param_groups[0]["lr"])
        if run.validation_is_due():
            run.validated(*validate([], objective, dev))

    # 4. the last weights (2025, section 5.1 B)
    if run.rank == 0:
        save_peft(run.folder, lora_state_dict(llm), c.r, c.alpha, c.llm)
    run.finish(next_command("train_lora", c))


if __name__ == "__main__":
    main()
