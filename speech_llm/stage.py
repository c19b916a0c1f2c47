"""
A finished stage: opened once, its constants and its weights together.

    stage = open_stage("work/iwslt25/projector")         # Stage(folder, config, weights)
"""
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from speech_llm.constants import require
from speech_llm.files import differences, read_json

# constants that do not change the weights: how a stage was called, where it lies, what fits into memory
MAY_DIFFER = ("preset", "work", "micro_tokens", "decode_batch", "export")


@dataclass(frozen=True)
class Stage:
    """A finished stage: its folder, its config.json and {"projector" or "lora": {name: tensor}}."""
    folder: str
    config: dict
    weights: dict


def open_stage(folder, system="bash run_all.sh"):
    """
    Return the Stage in `folder`. SystemExit, naming `system`, the command that runs the whole system, if the stage is
    not finished; SystemExit, naming the file, if its weights are damaged or are not the tensors that its config.json
    promises.
    """
    command = f"{system}, or the stage that has --out {os.path.basename(folder)}"
    redo = f"remove {folder} and train it again"
    config = read_json(require(os.path.join(folder, "config.json"), command), redo)
    path = os.path.join(folder, "weights.pt")
    weights = load_tensors(path, redo)
    for section in config["trained"]:
        tensors = weights.get(section) if isinstance(weights, dict) else None
        if not isinstance(tensors, dict) or any(type(tensor) is not torch.Tensor for tensor in tensors.values()):
            raise SystemExit(f"{path} holds no {section}; {redo}")
    return Stage(folder, config, weights)


def load_tensors(path, redo):
    """Return what torch.save wrote; SystemExit for a damaged file and for anything but tensors and plain values."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)          # code in the file never runs
    except Exception as error:                           # damage raises errors of many kinds
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise SystemExit(f"{path} is damaged or not a file of tensors ({why}); {redo}") from None


def already_finished(c):
    """Return whether the stage is finished. SystemExit if it was finished with other constants."""
    folder = os.path.join(c.work, c.run, c.out)
    path = os.path.join(folder, "config.json")
    if not os.path.exists(path):
        return False
    refuse_other_constants(folder, read_json(path, f"remove {folder} and train it again"), c)
    Path(folder, "resume.pt").unlink(missing_ok=True)    # a kill may have come between config.json and this line
    print(f"{folder} is finished already; to train it again, remove it or choose another --out")
    return True


def refuse_other_constants(folder, old, c):
    """
    Exit if `folder` was made with other constants than those of `c`, except those in MAY_DIFFER. A constant that `old`
    lacks had the default of the stage's file.
    """
    defaults = json.loads(json.dumps(asdict(type(c)())))                   # tuples become lists, as in `c`
    fixed = {key: value for key, value in asdict(c).items() if key not in MAY_DIFFER}
    different = differences({**defaults, **old}, fixed)
    if different:
        raise SystemExit(f"{folder} was made with {different}; remove it, or choose another --out")
