"""Every command that a document or a docstring shows fits its module's options, its page and what both say together."""
import argparse
import glob
import importlib
import os
import re
import shlex
import sys
from unittest import mock

import pytest
from test_config import CONFIGS, PAGES

import eval as evaluation
import infer
import train_projector
from metrics.paper_tables import paper_tables
from speech_llm import constants, pipeline
from speech_llm.prompts import user_turn
from speech_llm.rows import PROJECT, TASKS, recipe_of

COMMAND = re.compile(r"(?:[A-Z]+=\S+ +)*(?:(?:python|torchrun) \S|bash run_all\.sh)")
INLINE = re.compile(r"(?<!`)`([^`\n]+(?:\n[^`\n]+)?)`(?!`)")                # code inside a sentence, on one line or two
PLACEHOLDER = re.compile(r"(?:data\.|metrics\.)?NAME|SYSTEM|PRESET|STAGE|<.*>|NPROC=\D.*|SEED=\D.*")
SPEECH = {"MT": "ST", "QA": "SQA"}                     # a task of text: the task of its rows


def commands():
    """Return [(file, command)] of all documents and docstrings, without what follows two spaces or "..."."""
    shown = []
    for path in sorted(glob.glob("**/*", root_dir=PROJECT, recursive=True)):
        if not path.endswith((".md", ".py", "run_all.sh")) or path.startswith(("work", "tests/test_")):
            continue
        with open(os.path.join(PROJECT, path), encoding="utf-8") as file:
            text = re.sub(r"\\\n\s*", "", file.read())                      # a command on two lines
        lines = [re.split(r"\s{2,}", line.strip("# "))[0] for line in text.splitlines()]
        code = [line for line in lines if not {*line} & {*"`{"}] + [" ".join(c.split()) for c in INLINE.findall(text)]
        for line in code:
            for command in filter(COMMAND.match, line.split(" && ")):
                shown.append((path, re.split(r"\s*\.\.\.|\s+[|>]+ ", command)[0]))
    return list(dict.fromkeys(shown))


COMMANDS = commands()


def test_the_documents_show_commands_of_every_kind():
    stages = {f"python {stage}.py" for stage in constants.STAGES}
    for start in (*stages, "torchrun", "bash run_all.sh", "python -m data.", "python -m metrics.", "python -m tests."):
        assert any(command.startswith(start) for _, command in COMMANDS), start


class Parsed(Exception):
    """The options of a command, whose module goes no further."""


PARSE_ARGS = argparse.ArgumentParser.parse_args


def parse(module, arguments):
    """Run a module's main until its options are parsed; return them, or None for --help."""
    def stop(parser, *given, **more):
        raise Parsed(PARSE_ARGS(parser, *given, **more))
    try:
        with mock.patch.object(argparse.ArgumentParser, "parse_args", stop):
            importlib.import_module(module).main(arguments)
    except Parsed as parsed:
        return parsed.args[0]
    except SystemExit as stopped:                      # a sentence may name a command that needs options
        assert stopped.code == 0 or not arguments, stopped


def rows_of(mixture, corpora):
    """Return one row of every task, language and validity of a mixture for every corpus."""
    return [{"id": f"{corpus}/dev/{task}.{language}", "utterance": f"{corpus}/dev/1", "task": SPEECH.get(task, task),
             "language": language, "transcript": "x", "question": "x", "target": "x", "answerable": True}
            for corpus in corpora for task, (_, languages) in mixture.items() for language in languages]


def check_corpora(corpora, page):
    for corpus in corpora:
        assert recipe_of(corpus) or corpus == page.get("world", {}).get("corpus"), f"no recipe makes {corpus}"


def check_training(c, page, processes):
    """The mixture has prompts, shares are of the corpora, rates reach their peak, processes can share a step."""
    corpora = c.corpora.split(",")
    check_corpora(corpora, page)
    assert 0 < sum(share for share, _ in c.mixture.values()) < 1.001   # ablations leave tasks out
    for row in rows_of(c.mixture, ["x"]):
        for text in (False, True):
            if not text or row["task"] != "ASR":
                user_turn(row, text, c.prompt)
    for key, shares in c.shares.items():
        assert key.split()[0] in {*c.mixture, *TASKS, *SPEECH}, key
        assert all(corpus.startswith(tuple(corpora)) for corpus in shares), (key, shares)
    for name in ("warmup", "warmup_projector"):
        assert not c.steps or getattr(c, name, 0) < c.steps, f"--{name} takes all of the {c.steps} steps"
    assert not c.steps or c.accumulate % processes == 0, f"{processes} processes cannot share {c.accumulate} draws"


def check_stage(stage, arguments, processes):
    """Configure one stage as its command does, and check the constants against the page and each other."""
    c = constants.configure(CONFIGS[stage], stage, arguments)
    page = constants.read_page(c.preset)
    if stage in ("train_projector", "train_lora", "merge_sft"):
        check_training(c, page, processes)
    if stage == "extract_features":
        check_corpora((corpus.partition(".")[0] for corpus in c.corpora.split(",")), page)
    elif stage == "train_projector":
        assert c.objective in ("answers", *train_projector.TABLE_OBJECTIVES)
        assert c.projector in train_projector.PROJECTORS
        if c.steps and c.objective == "answers":       # SystemExit if --keep and --decode do not fit the mixture
            rows = rows_of(c.mixture, c.corpora.split(","))
            train_projector.rows_to_decode(c, rows, rows)
    elif stage == "infer":
        for entry in c.systems.split(","):
            assert ":" in entry or entry in ("llm", "cascade", "seamless", "seamless-text"), entry
        assert infer.strengths(c) and (not c.audio or c.task in TASKS)
        assert c.task not in ("SQA", "MCQ") or c.question or page.get("common", {}).get("prompt") == "listeners"
    elif stage == "eval":
        assert {*c.metrics.split(",")} <= {*evaluation.SCORED} and c.judge_mode in ("probability", "text")
        assert c.table_rows in ("systems", "languages")
        paper_tables([], list(filter(None, c.tables.split(","))))      # ValueError for a table that no paper has
    if stage in ("infer", "eval"):
        check_corpora((test_set.rsplit(".", 1)[0] for test_set in c.test_sets.split(",")), page)


def check_python(words, processes=1):
    """Check the words after `python`."""
    if words[:2] == ["-m", "torch.distributed.run"]:
        options = " ".join(words[2:])
        count, rest = re.fullmatch(r"(?:--standalone )?--nproc_per_node[ =](\d+) (.*)", options).groups()
        return check_python(rest.split(), int(count))
    if words[0] == "-m" and words[1].split(".")[0] in ("data", "metrics", "speech_llm", "tests"):
        assert os.path.exists(os.path.join(PROJECT, *words[1].split(".")) + ".py"), words[1]
        options = parse(words[1], words[2:])
        if {"preset", "seed"} <= vars(options or argparse.Namespace()).keys() and words[1] != "data.rehearse":
            assert words[1] in (f"data.{constants.read_page(options.preset)['world']['recipe']}", "data.tiny_llm")
    elif words[0].endswith(".py"):
        stage = words[0].removesuffix(".py").replace("/", ".")
        assert os.path.exists(os.path.join(PROJECT, words[0])), words[0]
        if stage in constants.STAGES:
            return check_stage(stage, words[1:], processes)
        parse(stage, words[1:])
    else:
        assert words[0] == "-m" and words[1] in ("pytest", "venv", "spacy"), words


def check_system(arguments, capsys):
    """Check all commands that run_all.sh would run with these arguments."""
    capsys.readouterr()
    pipeline.main([*arguments, "--dry"])
    lines = capsys.readouterr().out.splitlines()
    assert lines or arguments[1:] == ["pairwise"]      # which leaves out pairs without predictions
    for line in lines:
        check_python(shlex.split(line)[1:])


def is_pattern(words):
    """Return whether a command has a placeholder, such as NAME, or a page that the reader is to write."""
    pages = [word for before, word in zip(["", *words], words) if before in ("--preset", "run_all.sh")]
    return any(PLACEHOLDER.fullmatch(word) for word in words) or any(
        word.endswith(".py") and not word.startswith("config/") and not os.path.exists(os.path.join(PROJECT, word))
        for word in pages)


@pytest.mark.parametrize("path, command", COMMANDS, ids=[f"{path}: {command}" for path, command in COMMANDS])
def test_a_command(path, command, monkeypatch, capsys):
    monkeypatch.chdir(PROJECT)
    monkeypatch.setattr(sys, "argv", ["test"])
    words = shlex.split(command, comments=True)
    if is_pattern(words):
        return
    while "=" in words[0]:
        name, _, value = words.pop(0).partition("=")
        monkeypatch.setenv(name, value)
    if words[0] == "torchrun":
        words = ["python", "-m", "torch.distributed.run", *words[1:]]
    if words[:3] == ["python", "-m", "speech_llm.pipeline"]:
        words = words[1:]
    if words[0] == "python":
        return check_python(words[1:])
    check_system(words[2:], capsys)             # bash run_all.sh ...


@pytest.mark.parametrize("processes", ["1", "4"])
@pytest.mark.parametrize("part", pipeline.PARTS)
@pytest.mark.parametrize("page", PAGES)
def test_all_commands_of_a_page(page, part, processes, monkeypatch, capsys):
    monkeypatch.chdir(PROJECT)
    monkeypatch.setenv("NPROC", processes)
    if not part or constants.read_page(page).get(part):
        check_system([page, part], capsys)
