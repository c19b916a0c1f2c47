"""
A stage's constants: the stage's file, then a page of config/, then the command line; the later one wins.

    c = configure(Config, "train_lora", ["--preset", "iwslt25", "--steps", "100"])
    page = read_page("iwslt25")              # {"recipes": [...], "train_lora": {...}, ...}

A page is a Python file that sets names to literals and to expressions of other names, which it may import from another
page. `--preset` takes the name of a page in config/ or the path of any other file.
A page with `base` starts from another page: constants of a stage are added to the base's, all else replaces it.
`common` holds constants for every stage that has them. `run` is the folder below --work where the stages write; a page
without `run` has that of a base in its own folder, else its own name.
"""
import argparse
import ast
import glob
import hashlib
import json
import os
import platform
import runpy
import shlex
import subprocess
import sys
from contextlib import suppress
from dataclasses import MISSING, fields
from difflib import get_close_matches
from importlib.metadata import version

from speech_llm.rows import PROJECT, work_option

STAGES = ("extract_features", "train_projector", "train_lora", "merge_sft", "infer", "eval")


def read_page(preset):
    """
    Return {name: value} of a page, with its base's values, the key "file", the path of the page, and the key "places",
    {stage: {constant: path of the page that states it}}.
    SystemExit if there is no such page or if a stage's constants are not a dict.
    """
    path = preset if preset.endswith(".py") else os.path.join(PROJECT, "config", preset.replace("-", "_") + ".py")
    if not os.path.isfile(path):
        names = sorted(os.path.basename(name)[:-len(".py")] for name in glob.glob(f"{PROJECT}/config/*.py"))
        raise SystemExit(f"--preset {preset}: there is no file {path}; the pages of config/ are {', '.join(names)}")
    page = {name: value for name, value in runpy.run_path(path).items() if not name.startswith("__")}
    if page.get("base", "").endswith(".py"):
        page["base"] = os.path.join(os.path.dirname(path), page["base"])     # the path of a page starts at this page
    base = read_page(page["base"]) if "base" in page else {"run": os.path.basename(path)[:-len(".py")], "places": {}}
    if "base" in page and os.path.dirname(os.path.abspath(base["file"])) != os.path.dirname(os.path.abspath(path)):
        base["run"] = os.path.basename(path)[:-len(".py")]       # a user's page does not write into its base's folder
    file, places = min(os.path.relpath(path), path, key=len), {}
    for stage in ("common", *STAGES):
        if not isinstance(page.get(stage, {}), (dict, type(None))):
            raise SystemExit(f"{path}: {stage} must be a dict of constants, or None for a system without this stage")
        places[stage] = {**base["places"].get(stage, {}), **dict.fromkeys(page.get(stage) or (), file)}
        if page.get(stage) and base.get(stage):
            page[stage] = {**base[stage], **page[stage]}
    return {**base, **page, "file": file, "places": places}


def read_config(stage):
    """Return {name: syntax tree of its value} of the constants in a stage's Config, without an import of the stage."""
    with open(os.path.join(PROJECT, f"{stage}.py"), encoding="utf-8") as file:
        classes = {node.name: node for node in ast.parse(file.read()).body if isinstance(node, ast.ClassDef)}
    return {node.target.id: node.value for node in classes["Config"].body if isinstance(node, ast.AnnAssign)}


def stage_constants(stage, page):
    """Return {name: value} of a stage under a page, of the constants that the stage's file gives as literals."""
    values = {name: node.value for name, node in read_config(stage).items() if isinstance(node, ast.Constant)}
    common = {name: value for name, value in {"run": page["run"], **page.get("common", {})}.items() if name in values}
    return {**values, **common, **(page.get(stage) or {})}


def refuse_unknown(page):
    """Exit if a page states a constant that its stage, or for `common` every stage, lacks, or misspells a stage."""
    for name in page:
        if name not in STAGES and (close := get_close_matches(name, STAGES, cutoff=0.8)):
            raise SystemExit(f"{page['file']}: {name} is not a stage; is {close[0]} meant?")
    known = {stage: {*read_config(stage)} for stage in STAGES}
    known["common"] = set().union(*known.values())
    for part, names in known.items():
        for name in page.get(part) or {}:
            if name not in names:
                raise SystemExit(f"{page['places'][part][name]}: {part} has no constant called {name}")


def parse_dict(text):
    """Return the dict that `text` holds as a Python literal; ValueError if the text is anything else."""
    value = ast.literal_eval(text)
    if not isinstance(value, dict):
        raise ValueError(f"{text} is no dict")
    return value


def configure(Config, stage, argv=None):
    """
    Return the Config of one stage and print every constant with the place that its value comes from.
    Constants are bool, int, float, str, a list of str or a dict and keep their type; dicts are JSON objects, so tuples
    become lists. The print goes to standard error, so that standard output holds results alone.
    `preset` and `run` are filled in; `ablation`, where a stage has it, names an entry of the page's `ablations`.
    SystemExit for an unknown page, constant or ablation and for a value of another type.
    """
    defaults = {field.name: field.default if field.default is not MISSING else field.default_factory()
                for field in fields(Config)}
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for name, default in defaults.items():
        if type(default) is bool:
            parser.add_argument(f"--{name}", action=argparse.BooleanOptionalAction)
        elif type(default) is list:
            parser.add_argument(f"--{name}", nargs="+", metavar="str")
        else:
            kind = parse_dict if type(default) is dict else type(default)
            parser.add_argument(f"--{name}", type=kind, metavar=type(default).__name__)
    typed = {name: value for name, value in vars(parser.parse_args(argv)).items() if value is not None}
    preset = typed.get("preset", defaults["preset"])
    page = read_page(preset)
    if page.get(stage, {}) is None:
        raise SystemExit(f"{page['file']}: this system has no stage {stage}; see its `stages`")
    common, places = {"run": page["run"], **page.get("common", {})}, page["places"]
    given = [(name, value, places["common"].get(name, page["file"])) for name, value in common.items()
             if name in defaults]
    given += [(name, value, places[stage][name]) for name, value in page.get(stage, {}).items()]
    if typed.get("ablation"):
        given += [(name, value, page["file"]) for name, value in ablation_of(page, typed["ablation"]).items()]
    given += [(name, value, "command line") for name, value in typed.items()]
    values, source = dict(defaults), dict.fromkeys(defaults, f"{stage}.py")
    for name, value, place in given:
        if name not in defaults:
            raise SystemExit(f"{place}: {stage} has no constant called {name}")
        wanted = type(defaults[name])
        value = float(value) if wanted is float and type(value) is int else value
        if type(value) is not wanted:
            raise SystemExit(f"{place}: {stage}'s {name} must be {wanted.__name__}, got {value!r}")
        values[name], source[name] = value, place
    print(f"{stage}, preset {preset} (* differs from {stage}.py)", file=sys.stderr)
    for name, value in values.items():
        print(f"{'*' if value != defaults[name] else ' '} {f'{name} = {value!r}':60} {source[name]}", file=sys.stderr)
    return Config(**{name: json.loads(json.dumps(value)) for name, value in values.items()})


def ablation_of(page, name):
    """Return the constants of one entry of a page's `ablations`, with its own output folder."""
    if name not in page.get("ablations", {}):
        raise SystemExit(f"--ablation {name} is not one of {page['file']}: {', '.join(page.get('ablations', {}))}")
    return {"out": f"merged-{name}", **page["ablations"][name]}


def command(stage, c):
    """Return the command of another stage of the same system, for a message."""
    return f"python {stage}.py --preset {shlex.quote(c.preset)}{work_option(c.work)}"


def stage_groups(stages):
    """Return a page's `stages` as tuples: the entries of one tuple need nothing of each other."""
    return [(group,) if isinstance(group, str) else group for group in stages]


def next_command(stage, c):
    """
    Return the command of the stage that follows `stage` in the page's `stages`, for a message. Where the page names no
    stages, or does not name this one, it is the next of STAGES. Entries that decode a part of the systems are skipped.
    After an --out that is not the page's, it is the stage that reads this folder, with the option that names it.
    """
    page, this = read_page(c.preset), c.preset.replace("-", "_")
    out = getattr(c, "out", "")                          # extract_features has none
    name = out.partition("-")[2] or out
    readers = {"train_projector": ("merge_sft", "--projector", out, "--out", f"merged-{name}"),
               "train_lora": ("merge_sft", "--lora", out, "--out", f"merged-{name}"),
               "merge_sft": ("infer", "--systems", f"C-{name}:{out}"), "infer": ("eval", "--predictions", out)}
    if stage in readers and out != stage_constants(stage, page)["out"]:
        reader, *options = readers[stage]
        return f"{command(reader, c)} {shlex.join(options)}"
    entries = [entry.split() for group in stage_groups(page.get("stages", STAGES[:-1])) for entry in group
               if "--systems" not in entry]
    entries.append(["eval"])
    by_name = [stage, "--preset", this]                  # an entry of another page, such as listeners_align
    place = next((n for entry in (by_name, [stage]) for n, words in enumerate(entries) if words == entry), None)
    if place is None:
        return command(STAGES[min(STAGES.index(stage) + 1, len(STAGES) - 1)], c)
    name, *words = entries[place + 1]
    if "--preset" not in words:
        words = ["--preset", page["base"] if entries[place] == by_name else c.preset, *words]
    return f"python {name}.py {shlex.join(words)}{work_option(c.work)}"


def require(path, command):
    """Return `path` if it exists; else exit and name the command that makes it."""
    if not os.path.exists(path):
        raise SystemExit(f"{path} is missing; run: {command}")
    return path


def locate(work, name):
    """Return where a model is: the folder `name` below `work` if it exists, else `name`, a folder or a hub name."""
    below = os.path.join(work, name)
    if name.startswith("models/") and not os.path.isdir(name):           # a toy world makes these
        return require(below, "bash run_all.sh PRESET, with the preset whose models these are")
    return below if os.path.isdir(below) else name


def pick_device():
    """Return this process's GPU, or the CPU on a machine without one."""
    import torch                         # recipes read pages without it
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))    # torchrun sets LOCAL_RANK
    return torch.device("cpu")


def in_bfloat16(device):
    """
    Return whether matrices are multiplied in bfloat16: on a GPU, and on a CPU with BF16=1 in the environment. Where the
    CPU has instructions for it (AVX512_BF16, AMX) it is 2.5 times as fast; without them it is slower (our choice).
    """
    return device.type == "cuda" or os.environ.get("BF16") == "1"


def mixed_precision(device):
    """Return the context in which float32 tensors are multiplied in bfloat16, where `in_bfloat16` says so."""
    import torch
    return torch.autocast(device.type, torch.bfloat16, enabled=in_bfloat16(device))


def gpu_memory():
    """Return {"peak_gb": the most memory of the GPU that this process has held}; {} without a GPU."""
    import torch
    return {"peak_gb": torch.cuda.max_memory_allocated() / 1e9} if torch.cuda.is_available() else {}


def provenance():
    """Return the git commit and the versions of the libraries, for the config.json of every stage."""
    commit = ""
    with suppress(FileNotFoundError):    # git is not installed
        git = ["git", "-C", PROJECT, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    libraries = {name: version(name) for name in ("torch", "torchaudio", "transformers", "numpy")}
    return {"commit": commit or "unknown", "python": platform.python_version(), **libraries}


def fingerprint(path):
    """
    Return 16 hexadecimal digits of the SHA-256 of a file, or of model.safetensors in a model's folder.
    Return "" for a hub name and for a checkpoint of several files.
    """
    path = os.path.join(path, "model.safetensors") if os.path.isdir(path) else path
    if not os.path.isfile(path):
        return ""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
