"""A stage's constants: the stage's file, then a page of config/, then the command line."""
import glob
import os
from dataclasses import dataclass, field

import pytest

import extract_features
import infer
import merge_sft
import train_lora
import train_projector
import eval as evaluation
from speech_llm.constants import PROJECT, configure, read_page


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
def page(tmp_path):
    """page(text, **more) writes pages named plain.py and by the keywords, and returns the path of plain.py."""
    def write(text, **more):
        for name, content in {"plain": text, **more}.items():
            (tmp_path / f"{name}.py").write_text(content)
        return str(tmp_path / "plain.py")
    return write


def test_file_then_page_then_command_line(page, capsys):
    path = page('train_lora = dict(quick=True, steps=5, mixture={"ASR": (1.0, {"en": 1})})')
    assert configure(Example, "train_lora", ["--preset", path]) == Example(
        preset=path, quick=True, steps=5, mixture={"ASR": [1.0, {"en": 1}]})
    capsys.readouterr()
    given = ["--preset", path, "--steps", "7", "--no-quick", "--rate", "2", "--name", "a=b", "--audio", "a", "b"]
    c = configure(Example, "train_lora", given)
    assert (c.name, c.rate, c.steps, c.quick, c.audio) == ("a=b", 2.0, 7, False, ["a", "b"]) and type(c.rate) is float
    assert [line.split() for line in capsys.readouterr().err.splitlines()[2:7]] == [
        ["*", "name", "=", "'a=b'", "command", "line"], ["*", "rate", "=", "2.0", "command", "line"],
        ["*", "steps", "=", "7", "command", "line"], ["quick", "=", "False", "command", "line"],
        ["*", "mixture", "=", "{'ASR':", "(1.0,", "{'en':", "1})}", path]]


def test_a_page_starts_from_its_base(page):
    path = page('base = "other.py"\ntrain_lora = dict(steps=5)\nablations = {"slow": dict(rate=0.1)}',
                other='run = "shared"\ncommon = dict(name="c", colour="red")\ntrain_lora = dict(steps=4, rate=0.25)')
    assert read_page(path)["run"] == "shared"
    c = configure(Example, "train_lora", ["--preset", path])
    assert (c.name, c.steps, c.rate) == ("c", 5, 0.25)                  # of `common` what the stage has


@pytest.mark.parametrize("text, argv, says", [
    ("", ["--step", "3"], "unrecognized arguments: --step 3"), ("", ["--steps", "3.5"], "--steps: invalid int value"),
    ("", ["--mixture", "[1]"], "--mixture: invalid parse_dict value: '[1]'"), ("", ["--quick", "1"], "arguments: 1"),
    ("train_lora = dict(step=5)", [], "plain.py: train_lora has no constant called step"),
    ("train_lora = dict(steps=5.0)", [], "plain.py: train_lora's steps must be int, got 5.0"),
    ("train_lora = dict(steps=True)", [], "train_lora's steps must be int, got True"),
    ("train_lora = None", [], "plain.py: this system has no stage train_lora"),
    ("train_lora = 7", [], "plain.py: train_lora must be a dict of constants")])
def test_what_is_no_constant_is_refused_by_name(page, capsys, text, argv, says):
    with pytest.raises(SystemExit) as error:
        configure(Example, "train_lora", ["--preset", page(text), *argv])
    assert says in str(error.value) + capsys.readouterr().err


def test_an_unknown_page_is_refused_with_the_known_ones():
    with pytest.raises(SystemExit, match="--preset slow: there is no file .*config/slow.py; .* are digits, .*iwslt25,"):
        read_page("slow")
    assert read_page("iwslt25-a2") == read_page("iwslt25_a2")           # the spelling of older commands


STAGES = {"extract_features": extract_features, "train_projector": train_projector, "train_lora": train_lora,
          "merge_sft": merge_sft, "infer": infer, "eval": evaluation}


@pytest.mark.parametrize("path", sorted(glob.glob(os.path.join(PROJECT, "config", "*.py"))), ids=os.path.basename)
def test_every_page_fits_every_stage(path):
    page = read_page(path)
    for name, stage in STAGES.items():
        if page.get(name, {}) is not None:
            assert configure(stage.Config, name, ["--preset", path]).preset == path
    for ablation in page.get("ablations", {}):
        assert configure(merge_sft.Config, "merge_sft", ["--preset", path, "--ablation", ablation]).out
