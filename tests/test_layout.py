"""The shape of the project: which files there are, who imports whom, and that importing does nothing."""
import ast
import glob
import importlib
import os
import subprocess
import sys

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# The six files are the agreed layout, so what two projectors and two papers need stands in the first that needs it
BUDGET = {"extract_features": 560, "train_projector": 1070, "train_lora": 260, "merge_sft": 250, "infer": 450,
          "eval": 410}                                                      # lines
STAGES = list(BUDGET)                                                       # in the pipeline's order
TOP = {"README.md", "LICENSE", "requirements.txt", "run_all.sh", "data", "metrics", "tests",
       *(f"{stage}.py" for stage in STAGES)}
PARTS = sorted(os.path.relpath(path, ROOT) for name in ("data", "metrics") for path in glob.glob(f"{ROOT}/{name}/*.py"))
SOURCES = [f"{stage}.py" for stage in STAGES] + PARTS


def source(path):
    with open(os.path.join(ROOT, path), encoding="utf-8") as file:
        return file.read()


def imports(path):
    """[(module, name)] of every import in a file, wherever it stands; `import module` has the name None."""
    found = []
    for node in ast.walk(ast.parse(source(path))):
        if isinstance(node, ast.ImportFrom):
            found += [(node.module, alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [(alias.name, None) for alias in node.names]
    return found


def test_only_the_agreed_files_at_the_top():
    there = {name for name in os.listdir(ROOT) if not name.startswith(".")} - {"__pycache__", "work"}
    assert there <= TOP, f"not agreed: {sorted(there - TOP)}"
    assert {f"{stage}.py" for stage in STAGES} | {"requirements.txt", "run_all.sh", "data", "metrics", "tests"} <= there


@pytest.mark.parametrize("stage", STAGES)
def test_arrows_point_back_along_the_pipeline(stage):
    earlier = STAGES[:STAGES.index(stage)]
    if stage == "eval":
        earlier = ["extract_features"]                  # configure and its like; eval knows no model
    used = [(module, name) for module, name in imports(f"{stage}.py") if module in STAGES]
    assert all(module in earlier for module, _ in used), used
    assert not [pair for pair in used if pair[1] in (None, "*", "Config", "PRESETS", "main")]


@pytest.mark.parametrize("path", PARTS)
def test_data_and_metrics_import_no_stage(path):
    assert not [module for module, _ in imports(path) if module in STAGES]
    if path.startswith("metrics"):
        assert not [module for module, _ in imports(path) if module.split(".")[0] == "data"]


def test_every_stage_knows_the_same_presets():
    presets = {stage: importlib.import_module(stage).PRESETS for stage in STAGES}
    assert all(names.keys() == presets["eval"].keys() for names in presets.values()), presets
    assert {next(iter(names)) for names in presets.values()} == {"tiny"}                # the default


@pytest.mark.parametrize("stage", STAGES)
def test_budget(stage):
    assert len(source(f"{stage}.py").splitlines()) <= BUDGET[stage]


def test_import_is_quiet(tmp_path):
    """From any folder; it prints nothing, writes nothing, and looks at no command line."""
    modules = [path.removesuffix(".py").replace(os.sep, ".") for path in SOURCES]
    code = f"import sys; sys.path.insert(0, {ROOT!r}); sys.argv = ['x', '--nonsense']; import {', '.join(modules)}"
    done = subprocess.run([sys.executable, "-B", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr, os.listdir(tmp_path)) == (0, "", "", [])


@pytest.mark.parametrize("path", SOURCES + ["run_all.sh"])
def test_lines_fit_a_screen(path):
    long = [number for number, line in enumerate(source(path).splitlines(), 1) if len(line) > 120]
    assert not long, f"{path}: more than 120 characters in lines {long}"
