"""A stage's constants: the stage's file, then a page of config/ or of one's own, then the command line."""
import glob
import importlib
import os
import re
from dataclasses import asdict, dataclass, field, fields

import pytest
from conftest import PROJECT
from test_bad_input import refused

from speech_llm import pipeline
from speech_llm.constants import STAGES, configure, read_page

PAGES = sorted(os.path.basename(path).removesuffix(".py") for path in glob.glob(f"{PROJECT}/config/*.py"))
TOYS = [page for page in PAGES if "world" in read_page(page)]
REAL = [page for page in PAGES if page not in TOYS]
CONFIGS = {stage: importlib.import_module(stage).Config for stage in STAGES}


# --- How constants are read.

@dataclass(frozen=True)
class Example:
    preset: str = "plain"
    name: str = "x"
    rate: float = 0.5
    steps: int = 10
    quick: bool = False
    mixture: dict = field(default_factory=dict)
    audio: list = field(default_factory=list)


@pytest.fixture
def configure_example(tmp_path, monkeypatch):
    """configure_example(text of the page plain.py, *arguments) -> the Example of stage train_lora."""
    monkeypatch.chdir(tmp_path)

    def run(text, *arguments):
        (tmp_path / "plain.py").write_text(text)
        return configure(Example, "train_lora", ["--preset", "plain.py", *arguments])
    return run


def test_file_then_page_then_command_line(configure_example, capsys):
    page = 'train_lora = dict(quick=True, steps=5, mixture={"ASR": (1.0, {"en": 1})})'
    assert configure_example(page) == Example("plain.py", quick=True, steps=5, mixture={"ASR": [1.0, {"en": 1}]})
    capsys.readouterr()
    given = ["--steps", "7", "--no-quick", "--rate", "2", "--name", "a=b", "--audio", "a", "b"]
    c = configure_example(page, *given)
    assert (c.name, c.rate, c.steps, c.quick, c.audio) == ("a=b", 2.0, 7, False, ["a", "b"]) and type(c.rate) is float
    assert [" ".join(line.split()) for line in capsys.readouterr().err.splitlines()[2:7]] == [
        "* name = 'a=b' command line", "* rate = 2.0 command line", "* steps = 7 command line",
        "quick = False command line", "* mixture = {'ASR': (1.0, {'en': 1})} plain.py"]


def test_a_page_starts_from_its_base_and_a_value_says_where_it_comes_from(configure_example, tmp_path, capsys):
    (tmp_path / "other.py").write_text(
        'run = "shared"\ncommon = dict(name="c", colour="red")\ntrain_lora = dict(steps=4, rate=0.25)')
    c = configure_example('base = "other.py"\ntrain_lora = dict(steps=5)')
    assert (c.name, c.steps, c.rate) == ("c", 5, 0.25)                  # of `common` what the stage has
    assert [line.split()[-1] for line in capsys.readouterr().err.splitlines()[2:6]] == [
        "other.py", "other.py", "plain.py", "train_lora.py"]
    assert read_page("plain.py")["run"] == "shared"


@pytest.mark.parametrize("text, argv, says", [
    ("", "--step 3", "unrecognized arguments: --step 3"), ("", "--steps 3.5", "--steps: invalid int value: '3.5'"),
    ("", "--mixture ASR", "--mixture: invalid parse_dict value: 'ASR'"),
    ("", "--mixture [1]", "--mixture: invalid parse_dict value: '[1]'"),
    ("train_lora = dict(step=5)", "", "plain.py: train_lora has no constant called step"),
    ("train_lora = dict(steps=5.0)", "", "plain.py: train_lora's steps must be int, got 5.0"),
    ("train_lora = dict(steps=True)", "", "train_lora's steps must be int, got True"),
    ("train_lora = None", "", "plain.py: this system has no stage train_lora"),
    ("train_lora = 7", "", "plain.py: train_lora must be a dict of constants")])
def test_what_is_no_constant_is_refused_by_name(configure_example, capsys, text, argv, says):
    with pytest.raises(SystemExit) as error:
        configure_example(text, *argv.split())
    assert says in str(error.value) + capsys.readouterr().err


def test_an_unknown_page_is_refused_with_the_known_ones():
    refused(read_page, "slow", names="--preset slow: there is no file", says=" are digits, ")
    assert read_page("iwslt25-a2") == read_page("iwslt25_a2")           # the spelling of older commands


# --- The pages of config/, one a system.

def constants(stage, *argv):
    return configure(CONFIGS[stage], stage, argv)


@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_every_stage(name):
    """What it says to all stages is a constant of one of them."""
    page = read_page(name)
    assert page.get("common", {}).keys() <= {field.name for stage in STAGES for field in fields(CONFIGS[stage])}
    for stage in STAGES:
        if page.get(stage, {}) is not None:
            assert constants(stage, "--preset", name).preset == name


def test_the_toys_and_the_real_systems():
    assert {"tiny", "tiny26", "tiny_listeners", "digits"} <= {*TOYS} and {"iwslt25", "iwslt26", "listeners"} <= {*REAL}


@pytest.mark.parametrize("name", REAL)
def test_no_real_system_depends_on_a_toy(name):
    page = read_page(name)
    values = [page["recipes"], *(page[key] for key in ("common", *STAGES, "ablations", "sweep") if page.get(key))]
    values += [value for stage in STAGES if page.get(stage, {}) is not None
               for key, value in asdict(constants(stage, "--preset", name)).items()
               if key != "comet"]                          # weights that are downloaded into work/models
    assert page["recipes"] and not re.search("tiny|digits|models/", repr(values))


@pytest.mark.parametrize("text, part, says", [
    ('base = "tiny"\nstages = ["extract_features", "train_loro"]', [], "train_loro is not one of the stages "),
    ('base = "tiny"\ncommon = dict(lm="x")', [], "page.py: common has no constant called lm"),
    ('base = "tiny"\ntrain_lora = dict(rank=16)', [], "page.py: train_lora has no constant called rank"),
    ('base = "tiny"\ntrain_loraa = dict(r=16)', [], "page.py: train_loraa is not a stage; is train_lora meant?"),
    ('base = "listeners"', [], "would write into the folder listeners, this system has page"),
    ('base = "tiny"', ["ablations"], "'train_projector --preset tiny_a2' would write into the folder tiny,")])
def test_an_entry_of_no_stage_or_of_a_page_with_another_folder_is_refused(tmp_path, text, part, says):
    (tmp_path / "page.py").write_text(text)
    refused(pipeline.main, [str(tmp_path / "page.py"), *part, "--dry"], names="page.py: ", says=says)


def test_two_parts_are_two_runs(capsys):
    with pytest.raises(SystemExit):
        pipeline.main(["tiny", "ablations", "sweep", "--dry"])
    assert "ablations and sweep are two runs" in capsys.readouterr().err


def test_a_stage_has_as_many_processes_as_share_its_draws_equally(monkeypatch, capsys):
    """A of 2025 has 16 draws a step, which the page leaves to the stage's file; B has 8."""
    monkeypatch.setenv("NPROC", "6")
    pipeline.main(["iwslt25", "--dry"])
    processes = {line.split(".py")[0].split()[-1]: "nproc_per_node" in line and line.split("nproc_per_node ")[1][0]
                 for line in capsys.readouterr().out.splitlines()}
    assert [processes[stage] for stage in STAGES] == ["6", "2", "2", "2", "6", False]
