"""The pages of config/, one a system, and a page of a user's own; constants in general are in test_constants.py."""
import glob
import importlib
import os
import re
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


# --- What stands in a page.

def test_what_a_page_says_to_all_stages_is_a_constant_of_a_stage():
    known = {field.name for stage in STAGES for field in fields(CONFIGS[stage])}
    for name in PAGES:
        assert read_page(name).get("common", {}).keys() <= known, name


def test_the_toys_and_the_real_systems():
    assert {"tiny", "tiny26", "tiny_listeners", "digits"} <= {*TOYS} and {"iwslt25", "iwslt26", "listeners"} <= {*REAL}
    assert all(read_page(name).get("recipes") for name in REAL)


@pytest.mark.parametrize("name", REAL)
def test_no_real_system_depends_on_a_toy(name):
    page = read_page(name)
    values = [page[stage] for stage in ("common", *STAGES, "ablations", "sweep") if page.get(stage)]
    values += [value for stage in STAGES if page.get(stage, {}) is not None
               for key, value in asdict(constants(stage, "--preset", name)).items()
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


def test_a_stage_that_does_not_exist_is_refused(tmp_path):
    (tmp_path / "page.py").write_text('base = "tiny"\nstages = ["extract_features", "train_loro"]\n')
    with pytest.raises(SystemExit, match="page.py: train_loro is not one of the stages extract_features, "):
        pipeline.main([str(tmp_path / "page.py"), "--dry"])
