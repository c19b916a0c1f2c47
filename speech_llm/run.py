"""
The folder of one stage: its log, what a killed run goes on from, its weights and constants.

    run = Run(c, {"projector": (projector.state_dict, projector.load_state_dict)}, [optimizer], frozen=llm)

writes <work>/<run>/<out>/  log.jsonl      one line a step and one line a validation
                            resume.pt      with every validation, removed at the end
                            step-NNNNN.pt  the weights at a validation, where the stage chooses among them
                            weights.pt     {"projector": {name: tensor}, "lora": {name: tensor}}
                            config.json    last: a folder with it is a finished stage
"""
import json
import os
import time
from contextlib import suppress
from dataclasses import asdict

import torch
import torch.distributed as dist
from tqdm import tqdm

from speech_llm.constants import gpu_memory, pick_device, provenance
from speech_llm.files import lock, read_json_lines, replace_file, write_json, write_json_lines, write_text, writing
from speech_llm.stage import load_tensors, refuse_other_constants
from speech_llm.training import in_background, optimizer_step, processes, sum_over_processes, total_loss

RMS_RATIO = 100       # a warning where the projector's output and the embeddings differ by more (our choice)


class Run:
    """
    One stage that is being trained, in the folder <work>/<run>/<out>.

    `trained` maps each section of weights.pt to two functions: one returns its tensors, one loads them. `frozen` is the
    LLM; none of its tensors may get a gradient, except those that an optimizer has. `buffers` are the tensors in
    `trained` that are saved but not trained. `facts` are added to config.json. A killed run goes on from resume.pt and
    ends with the same weights, because rows and dropout depend on the seed, the step and the rank alone. Of several
    processes the first one writes.
    """

    def __init__(self, c, trained, optimizers, frozen=None, buffers=(), **facts):
        self.c, self.trained, self.optimizers, self.facts = c, trained, optimizers, facts
        self.folder = os.path.join(c.work, c.run, c.out)
        self.redo = f"remove {self.folder} to begin again"
        self.step, (self.rank, self.world) = 0, processes()
        if c.steps and c.accumulate % self.world:
            raise SystemExit(f"{self.world} processes cannot share the {c.accumulate} draws of a step equally; "
                             "set --accumulate to a multiple of the number of processes")
        self.lock = lock(self.folder)
        learning = {id(p) for o in optimizers for group in o.param_groups for p in group["params"]}
        self.buffers = {tensor.data_ptr() for tensor in buffers}
        self.frozen = [(name, p) for name, p in (frozen.named_parameters() if frozen else []) if id(p) not in learning]
        if os.path.exists(os.path.join(self.folder, "resume.pt")):
            self.resume()
        self.log_path = os.path.join(self.folder, "log.jsonl")
        if self.rank == 0:
            lines = [line for line in self.log_lines() if line["step"] <= self.step] if self.step else []
            write_json_lines(self.log_path, lines)                               # later steps will be made again
        self.bar = tqdm(total=c.steps, initial=self.step, desc=c.out, unit=" step", mininterval=1.0,
                        disable=self.rank > 0)
        self.started = time.time()
        self.seed_dropout()

    def resume(self):
        """Load the weights, the optimizers and the step of a run that was killed."""
        state = load_tensors(os.path.join(self.folder, "resume.pt"), self.redo)
        refuse_other_constants(self.folder, state["constants"], self.c)
        for name, (_, load) in self.trained.items():
            load(state["trained"][name])
        for optimizer, saved in zip(self.optimizers, state["optimizers"]):
            optimizer.load_state_dict(saved)
        self.step = state["step"]
        print(f"resuming {self.folder} at step {self.step}")

    def seed_dropout(self):
        """Seed torch for the next step, so that dropout is the same after a kill."""
        torch.manual_seed((self.c.seed * 1_000_003 + self.step) * 1009 + self.rank)

    # --- the training loop calls these, in this order
    def samples(self, draws, objective):
        """
        Yield (samples, micro-batches, dropped) of every step that is left, made in the background. A step has
        c.accumulate draws, of which this process takes every world-th; `dropped` counts rows that give no sample.
        """
        first = self.step                                # after a kill: the draws of earlier steps are passed over

        def encoded():
            for number in range(self.c.steps):
                window = [next(draws) for _ in range(self.c.accumulate)][self.rank::self.world]
                if number >= first:
                    samples = [objective.sample(row, text) for rows, text in window for row in rows]
                    there = [sample for sample in samples if sample]
                    yield there, objective.batches(there), len(samples) - len(there)
        return in_background(encoded())

    def optimizer_step(self, objective, samples, batches, clip=0.0):
        """
        Make one optimizer_step (speech_llm/training.py) -> (losses, gradient norm); None if no process has a sample.
        SystemExit with the list of the step's rows if it is not finite; SystemExit if a frozen tensor has a gradient.
        """
        try:
            result = optimizer_step(self.optimizers, objective, samples, batches, clip)
        except FloatingPointError as error:
            path = os.path.join(self.folder, f"not-finite-{self.rank}.txt")
            write_text(path, "".join(f"{row_id}\n" for row_id in error.args[1]))
            raise SystemExit(f"{self.folder}, step {self.step + 1}: {error.args[0]}. The step is not made; the ids of "
                             f"its rows are in {path}: look at their audio and text, or at --lr") from None
        learning = [name for name, p in self.frozen if p.grad is not None]
        if learning:
            raise SystemExit(f"{self.folder}: {len(learning)} frozen tensors of the LLM have a gradient, such as "
                             f"{learning[0]}; none may, load_llm freezes them")
        return result

    def log_step(self, objective, result, dropped, **values):
        """
        Write a line to log.jsonl for the step that was just made, and show it on the bar. `result` is optimizer_step's;
        a step without a single sample is counted as "skipped".
        """
        if result is None:
            values |= {"skipped": 1}
        else:
            losses, norm = result
            values = {"loss": total_loss(losses, objective.losses), "norm": norm, **values}
            if len(losses) > 1:
                values |= dict(zip(objective.losses, losses))
        if self.world > 1:
            count = torch.tensor([float(dropped)], device=pick_device())
            sum_over_processes([count])
            dropped = int(count)
        if dropped:
            values["dropped"] = dropped
        self.step += 1
        self.seed_dropout()
        self.write(step=self.step, seconds=round(time.time() - self.started, 2), **values)
        self.bar.set_postfix({name: f"{value:.3g}" for name, value in values.items()}, refresh=False)
        self.bar.update()

    def validation_is_due(self):
        """Return whether the step that was just made ends with a validation."""
        return self.step % self.c.validate_every == 0 or self.step == self.c.steps

    def validated(self, loss, choose_later=False, **figures):
        """
        Log a validation and write resume.pt. With `choose_later` the weights also stay as step-NNNNN.pt.
        Warn if the projector's output and the embeddings have very different sizes ("RMS" and "table RMS").
        """
        self.write(step=self.step, validation_loss=loss, **figures)
        tensors = {name: state() for name, (state, _) in self.trained.items()}
        self.refuse_untrained(tensors)
        if "RMS" in figures and not 1 / RMS_RATIO < figures["RMS"] / figures["table RMS"] < RMS_RATIO:
            tqdm.write(f"warning: the projector's output has an RMS of {figures['RMS']:.3g}, the LLM's embeddings of "
                       f"{figures['table RMS']:.3g}: more than {RMS_RATIO} times apart")
        if choose_later:
            self.save(f"step-{self.step:05d}.pt", tensors)
        self.save("resume.pt", {"step": self.step, "trained": tensors, "constants": asdict(self.c),
                                "optimizers": [o.state_dict() for o in self.optimizers]})
        if self.rank == 0:
            shown = {name: "-" if figure is None else f"{figure:.3g}" for name, figure in figures.items()}
            tqdm.write(f"{self.c.out} step {self.step}/{self.c.steps}: validation loss {loss:.4f}"
                       + "".join(f", {name} {figure}" for name, figure in shown.items()))

    def finish(self, next_command, step=None, **facts):
        """Write weights.pt, of the last step or of `step`; then config.json: the folder is a finished stage."""
        self.bar.close()
        lines = self.log_lines() if self.rank == 0 else []
        if dropped := sum(line.get("dropped", 0) for line in lines):
            print(f"{dropped} samples dropped: their transcripts have more tokens than their speech has slots")
        if lines and not any("loss" in line for line in lines):
            raise SystemExit(f"{self.folder}: every sample was dropped, so nothing was trained: look at --mean, --llm")
        tensors = {name: state() for name, (state, _) in self.trained.items()}
        if step is not None and self.rank == 0:
            tensors = load_tensors(os.path.join(self.folder, f"step-{step:05d}.pt"), self.redo)
        self.save("weights.pt", tensors)
        if self.rank == 0:
            write_json(os.path.join(self.folder, "config.json"),
                       {**asdict(self.c), **self.facts, "trained": list(self.trained), "kept_step": step or self.step,
                        **facts, **gpu_memory(), **provenance()})
            with suppress(FileNotFoundError):
                os.remove(os.path.join(self.folder, "resume.pt"))
            print(f"weights of step {step or self.step} in {self.folder}/weights.pt, losses in log.jsonl\n"
                  f"next: {next_command}")
        if dist.is_initialized():
            dist.destroy_process_group()
        self.lock.close()

    # --- files
    def log_lines(self):
        """Return log.jsonl as a list of JSON objects, one a step and one a validation."""
        return read_json_lines(self.log_path, self.redo)

    def scored_lines(self):
        """Return the lines of the validations that hold scores of decoded answers."""
        return [line for line in self.log_lines() if {"BLEU", "WER", "SQA"} & line.keys()]

    def write(self, **values):
        """Append a line to log.jsonl."""
        if self.rank == 0:
            with writing(self.log_path), open(self.log_path, "a") as log:
                log.write(json.dumps(values) + "\n")
                if "validation_loss" in values:          # A chooses its weights by this line: it must be on the disk
                    log.flush()
                    os.fsync(log.fileno())

    def refuse_untrained(self, tensors):
        """Exit if no gradient has reached a tensor so far, or if the B of an adapter is still zero."""
        reached = {p.data_ptr() for o in self.optimizers for p, state in o.state.items() if state}
        known = reached | self.buffers
        untrained = [name for section in tensors.values() for name, tensor in section.items()
                     if tensor.data_ptr() not in known or name.endswith("lora_B") and not tensor.any()]
        if untrained and reached:
            raise SystemExit(f"{self.folder}: {len(untrained)} tensors are not trained after {self.step} steps, such "
                             f"as {untrained[0]}: the loss is not made from what is saved, or the rate is 0")

    def save(self, name, value):
        """Write a file of tensors in the folder."""
        if self.rank == 0:                   # torch.save writes a path's name into the archive, but not that of a file
            with replace_file(os.path.join(self.folder, name)) as temporary, open(temporary, "wb") as file:
                torch.save(value, file)
