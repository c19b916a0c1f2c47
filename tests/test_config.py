"""The pages of config/, one a system: each stage reads every page, and every command of a system can be begun."""
import glob
import importlib
import itertools
import os
import re
import shlex
from dataclasses import asdict, fields

import pytest
from conftest import PROJECT, read_log

from speech_llm import pipeline
from speech_llm.constants import STAGES, configure, read_page


PAGES = sorted(os.path.basename(path)[:-len(".py")] for path in glob.glob(f"{PROJECT}/config/*.py"))
TOYS = [page for page in PAGES if "world" in read_page(page)]
REAL = [page for page in PAGES if page not in TOYS]
CONFIGS = {stage: importlib.import_module(stage).Config for stage in STAGES}


def constants(stage, *argv):
    return configure(CONFIGS[stage], stage, argv)


def stages_of(page):
    """Return the stages that a page's system has."""
    return [stage for stage in STAGES if page.get(stage, {}) is not None]


# --- What stands in a page.

@pytest.mark.parametrize("name", PAGES)
def test_every_stage_reads_every_page(name):
    """Each constant is one of a stage, of its type; each ablation changes constants of stage C."""
    page = read_page(name)
    for stage in stages_of(page):
        c = constants(stage, "--preset", name)
        assert stage == "extract_features" or c.run == page["run"]
    known = {field.name for stage in STAGES for field in fields(CONFIGS[stage])}
    assert page.get("common", {}).keys() <= known
    for ablation in page.get("ablations", {}):
        assert constants("merge_sft", "--preset", name, "--ablation", ablation).out == f"merged-{ablation}"
    a = constants("train_projector", "--preset", name)
    assert a.decode in a.corpora.split(",") or a.objective == "embeddings" and not a.decode


def test_the_toys_and_the_real_systems():
    assert {"tiny", "tiny26", "tiny_listeners", "digits"} <= {*TOYS} and {"iwslt25", "iwslt26", "listeners"} <= {*REAL}
    assert all(read_page(name).get("recipes") for name in REAL)


@pytest.mark.parametrize("name", REAL)
def test_no_real_system_depends_on_a_toy(name):
    page = read_page(name)
    values = [page[stage] for stage in ("common", *STAGES, "ablations", "sweep") if page.get(stage)]
    values += [value for stage in stages_of(page) for key, value in asdict(constants(stage, "--preset", name)).items()
               if key != "comet"]                          # weights that are downloaded into work/models
    assert not re.search("tiny|digits|models/", repr(values))


def test_variants_share_the_folder_of_their_base_and_differ_where_the_paper_does():
    variants = ["iwslt25", "iwslt25_a2", "iwslt25_short", "iwslt25_a2_short"]
    c_s = [constants("merge_sft", "--preset", name) for name in variants]
    assert {c.run for c in c_s} == {"iwslt25"}
    assert [c.out for c in c_s] == ["merged", "merged-A.2", "merged-short", "merged-A.2-short"]
    assert [{*c.shares["SQA"]} for c in c_s] == [{"spokensquad-fluent"}] * 2 + [{"spokensquad"}] * 2
    assert [c.projector for c in c_s] == ["projector", "projector-A.2"] * 2
    assert [{*constants("train_projector", "--preset", name).mixture} for name in variants] == [
        {"ASR", "ST"}, {"ASR", "ST", "SQA"}] * 2
    second = constants("train_projector", "--preset", "iwslt26_second")
    assert (second.start, second.objective, second.sigma, second.keep) == ("projector", "answers", 0.9, "ASR")


# --- A page of a user's own.

PAGE = 'base = "tiny"\nrun = "mine"\ncommon = dict(seed=5)\ntrain_lora = dict(steps=2, validate_every=1, lr=0.01)\n'


def test_a_page_elsewhere_runs_a_stage_and_every_value_says_where_it_comes_from(before_training, run_stage, capsys):
    """train_lora.py's r, tiny's weight of the corpora, the page's lr; the command line last of all."""
    (before_training / "mine.py").write_text(PAGE)
    importlib.import_module("train_lora").main(["--preset", "mine.py", "--batch", "2"])
    printed = capsys.readouterr().err
    places = {line[2:].split(" = ")[0]: (line[0], line.split()[-1]) for line in printed.splitlines() if " = " in line}
    assert places["r"] == (" ", "train_lora.py") and places["lr"] == ("*", "mine.py") == places["seed"] == places["run"]
    assert places["corpora"] == ("*", os.path.join(PROJECT, "config", "tiny.py")) == places["accumulate"]
    assert places["batch"] == ("*", "line")                                # "command line"
    assert len(read_log("work/mine/lora")) == 2 + 2


def test_a_page_starts_from_another_one_beside_it(tmp_path):
    (tmp_path / "mine.py").write_text(PAGE)
    (tmp_path / "variant.py").write_text('base = "mine.py"\ntrain_lora = dict(r=2)\n')
    c = constants("train_lora", "--preset", str(tmp_path / "variant.py"))
    assert (c.run, c.r, c.lr, c.steps, c.seed, c.llm) == ("mine", 2, 0.01, 2, 5, "models/tiny-llama")


def test_the_spelling_with_hyphens_is_the_same_page():
    assert asdict(constants("merge_sft", "--preset", "iwslt25-a2-short")) == {
        **asdict(constants("merge_sft", "--preset", "iwslt25_a2_short")), "preset": "iwslt25-a2-short"}


@pytest.mark.parametrize("page, argv, message", [
    ("train_lora = dict(stepz=2)", [], "page.py: train_lora has no constant called stepz"),
    ("train_lora = dict(steps=2.5)", [], "page.py: train_lora's steps must be int, got 2.5"),
    ("train_lora = [2]", [], "page.py: train_lora must be a dict of constants, or None"),
    ("train_lora = None", [], "page.py: this system has no stage train_lora"),
    ("", ["--preset", "tinny"], "--preset tinny: there is no file .*tinny.py; the pages of config/ are digits, ")])
def test_a_page_with_a_mistake_is_refused_by_name(tmp_path, page, argv, message):
    (tmp_path / "page.py").write_text(f'base = "tiny"\n{page}\n')
    with pytest.raises(SystemExit, match=message):
        constants("train_lora", "--preset", str(tmp_path / "page.py"), *argv)


# --- Commands.

LAUNCHER = re.compile(r"python$|torchrun|bash|-m$|torch\.distributed\.run|--|\d+$")


def begin(words, capsys):
    """
    Take a command as far as it goes without models: the constants of a stage, the commands of a system, the options of
    another module, all of which its --help has to know.
    """
    name, *arguments = [*itertools.dropwhile(LAUNCHER.match, words)]
    if name == "run_all.sh":
        pipeline.main([*arguments, "--dry"] if arguments else ["--dry"])
    elif name.endswith(".py"):
        constants(name.removesuffix(".py"), *arguments)
    else:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            importlib.import_module(name).main([*arguments, "--help"])
        options = {word for word in arguments if word.startswith("--")}
        printed = capsys.readouterr()
        assert end.value.code == 0 and options <= {*re.findall(r"--[a-z_-]+", printed.out)}, (words, printed.err)


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("part", list(pipeline.PARTS))
def test_the_commands_of_every_system(name, part, capsys, monkeypatch):
    """--dry prints them; each is one that its stage takes, with several processes, too."""
    page = read_page(name)
    if part and part not in page:
        with pytest.raises(SystemExit, match=f"{name}.py has no {part}"):
            pipeline.main([name, part, "--dry"])
        return
    monkeypatch.setenv("NPROC", "2")
    pipeline.main([*filter(None, [name, part]), "--dry", "--work", "w", "--seed", "3"])
    commands = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert commands or part == "pairwise"                  # of systems of other pages, which have no predictions here
    for command in commands:
        begin(command, capsys)


def test_a_stage_that_does_not_exist_is_refused(tmp_path):
    (tmp_path / "page.py").write_text('base = "tiny"\nstages = ["extract_features", "train_loro"]\n')
    with pytest.raises(SystemExit, match="page.py: train_loro is not one of the stages extract_features, "):
        pipeline.main([str(tmp_path / "page.py"), "--dry"])


def shown_commands():
    """Return the whole commands of this project that its documents, docstrings and comments show."""
    paths = [f"{PROJECT}/run_all.sh", *(path for ending in ("md", "py") for folder in ("", "*/")
                                        for path in glob.glob(f"{PROJECT}/{folder}*.{ending}"))]
    pattern = re.compile(r"(?:(?<=    )|(?<=`)|(?<=^# ))(?:[A-Z]+=\S+ )*((?:python |torchrun --|bash run_all)[^`#\n\\]*)", re.M)
    commands = set()
    for path in paths:
        if not path.startswith(f"{PROJECT}/tests/"):
            with open(path, encoding="utf-8") as file:
                commands |= {command.split("  ")[0].strip() for command in pattern.findall(file.read())}
    return sorted(command for command in commands if not re.search(r"[{<$]|\.\.\.|[A-Z]{4}|pytest|spacy", command))


@pytest.mark.parametrize("command", shown_commands())
def test_a_command_that_the_documents_show(command, capsys, monkeypatch):
    monkeypatch.chdir(PROJECT)
    begin(shlex.split(command.replace("mine.py", "tests/pages/smoke.py")), capsys)
