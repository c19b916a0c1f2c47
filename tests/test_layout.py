"""The shape of the project: which files there are, how long they may be, who imports whom; importing is quiet."""
import ast
import glob
import os
import re
import subprocess
import sys
from pathlib import Path

from conftest import PROJECT

from speech_llm.constants import STAGES

ORDER = ["config", "speech_llm", "metrics", "data", *STAGES[:-1]]            # each imports from those before it only
TOP = {"README.md", "LICENSE", "requirements.txt", "run_all.sh", "config", "speech_llm", "data", "metrics", "tests",
       *(f"{stage}.py" for stage in STAGES)}
SOURCES = sorted(str(path.relative_to(PROJECT)) for folder in ("", "config", "speech_llm", "data", "metrics")
                 for path in Path(PROJECT, folder).glob("*.py"))
TESTS = [f"tests/{name}" for name in glob.glob("**/*.py", root_dir=f"{PROJECT}/tests", recursive=True)]
RIDDLES = re.compile(r"\b(found|made|own|some|kept|said|heard)\b")


def source(path):
    return Path(PROJECT, path).read_text(encoding="utf-8")


def project_imports(path):
    """Return [(module, name)] of all imports of the project's own modules; `import module` has the name None."""
    nodes = [*ast.walk(ast.parse(source(path)))]
    pairs = [(node.module, alias.name) for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names]
    pairs += [(alias.name, None) for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    return [(module, name) for module, name in pairs if module.split(".")[0] in {*ORDER, "eval"}]


def test_only_the_agreed_files_at_the_top():
    names = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=PROJECT,
                           capture_output=True, text=True, check=True).stdout.splitlines()
    there = {name.split("/")[0] for name in names if not name.startswith(".")}
    assert there <= TOP and TOP - {"README.md", "LICENSE"} <= there


def test_arrows_point_one_way():
    """config <- speech_llm <- metrics <- data <- extract_features <- ... <- infer; eval: data, metrics, speech_llm."""
    wrong = []
    for path in SOURCES:
        place = path.split("/")[0].removesuffix(".py")
        earlier = ["speech_llm", "metrics", "data"] if place == "eval" else ORDER[:ORDER.index(place)]
        allowed = {*earlier, *([place] if "/" in path else [])}
        wrong += [(path, module) for module, _ in project_imports(path) if module.split(".")[0] not in allowed]
    assert not wrong


def test_a_stage_takes_functions_of_another_stage_and_never_its_constants():
    assert not [(stage, pair) for stage in STAGES for pair in project_imports(f"{stage}.py")
                if pair[0] in STAGES and pair[1] in (None, "*", "Config", "main")]


def test_no_circle_of_modules():
    """Take away modules that import nothing but what is taken away already, until none is left."""
    left = {}
    for path in SOURCES:         # `from data import recipe` imports data.recipe
        used = {name for module, member in project_imports(path) for name in (module, f"{module}.{member}")}
        left[path.removesuffix(".py").replace("/", ".")] = used
    while free := {module for module, used in left.items() if not used & left.keys() - {module}}:
        left = {module: used for module, used in left.items() if module not in free}
    assert not left


def test_sizes_of_files():
    sizes = {path: source(path).count("\n") for path in SOURCES}
    stages = [sizes[f"{stage}.py"] for stage in STAGES]
    assert max(stages) <= 450 and sum(stages) <= 2300, stages
    assert not [path for path, size in sizes.items() if path.startswith("speech_llm/") and size > 250]


def test_sizes_of_functions():
    sizes = {(path, node.name): node.end_lineno - node.lineno + 1 for path in SOURCES
             for node in ast.walk(ast.parse(source(path))) if isinstance(node, ast.FunctionDef)}
    assert not {where: size for where, size in sizes.items() if size > (80 if where[1] == "main" else 60)}


def test_lines_fit_a_screen():
    assert not [f"{path}:{number}" for path in [*SOURCES, *TESTS, "run_all.sh"]
                for number, line in enumerate(source(path).splitlines(), 1) if len(line) > 120]


def test_words_of_several_meanings_are_rare():
    """A variable is called after what it holds."""
    counts = {path: len(RIDDLES.findall(source(path))) for path in SOURCES}
    assert sum(counts.values()) < 150, sorted(counts.items(), key=lambda item: -item[1])[:12]


def test_import_is_quiet(tmp_path):
    """From any folder; it prints nothing, writes nothing, and looks at no command line."""
    modules = [path.removesuffix(".py").replace(os.sep, ".") for path in SOURCES if not path.endswith("__init__.py")]
    code = f"import sys; sys.argv = ['x', '--nonsense']; import {', '.join(modules)}"
    done = subprocess.run([sys.executable, "-B", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr, os.listdir(tmp_path)) == (0, "", "", [])
