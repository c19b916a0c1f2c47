"""TODO"""
import json
import os
import time
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed as dist
from tqdm import tqdm

from speech_llm.constants import provenance, require
from speech_llm.files import differences, lock, read_json, read_json_lines, replace_file, write_json, writing
from speech_llm.training import processes, update


FAR = 100                  # times between the RMS of a projector's output and of the embeddings: a warning (our choice)


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
