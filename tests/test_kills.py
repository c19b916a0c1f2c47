"""
SIGKILL at random moments of everything that works for long: the same command goes on, to the bytes of an unbroken run.

Each run is a process of its own, as a user starts it. A moment is drawn from the time that the unbroken run took. The
recipes and the makers share one resumable loop, which is killed here in a process that starts at once, so more often.
"""
import contextlib
import importlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile
from conftest import ARGUMENTS, ON_TABLE, PROJECT, shorten_transcripts, start_stages

from data.tiny import draw_sentence, sentence_rows
from speech_llm.rows import write_rows


LOOP = """
import sys, time
from speech_llm.resumable import resumable

def make(items):
    time.sleep(0.01)
    return [item.upper() for item in items]
resumable(sys.argv[1], {}, [f"item {n}" for n in range(60)], make, 4)
"""
TEMPORARY = re.compile(r"\.\d+\..+")         # of replace_file; no reader ever looks at them
WORLD = """base = "tiny"
run = "killed"
world = dict(recipe="tiny", corpus="killed", family="llama", choices=False, train=8, dev=2, test=2, encoder_steps=1,
             llm_steps=1, hesitate_from=0)
"""


def contents(folder):
    """Return {path below work: bytes}, without temporary files and locks, the log without its times."""
    files = {}
    for where, _, names in os.walk(os.path.join(folder, "work")):
        for name in names:
            if name != "lock" and not TEMPORARY.fullmatch(name):
                path = os.path.join(where, name)
                with open(path, "rb") as file:
                    files[os.path.relpath(path, folder)] = re.sub(rb'"seconds": [\d.]+', b'"seconds": 0', file.read())
    return files


def written(folder):
    """Return {path: when it was last written} of all files below a folder."""
    paths = [os.path.join(where, name) for where, _, names in os.walk(folder) for name in names]
    return {path: os.stat(path).st_mtime_ns for path in paths if os.path.exists(path)}


def kill(folder, steps, place, seconds):
    """
    Start steps of conftest's start_stages in a folder, wait until the last step writes below `place`, kill the process
    at a random moment of the first half of the `seconds` that this step takes, and return the exit code. A run that was
    killed goes on, so that the next kill comes later; in the second half a step may end first on a quieter machine.
    """
    before, process, end = written(place), start_stages(folder, steps), time.monotonic() + 120
    while process.poll() is None and written(place) == before:
        assert time.monotonic() < end
        time.sleep(0.002)
    time.sleep(random.uniform(0, 0.5 * seconds))
    process.kill()
    printed = process.communicate()[0]
    assert process.returncode in (0, -signal.SIGKILL), printed[-3000:]
    return process.returncode


def killed_equals_unbroken(whole, killed, steps, kills):
    """
    Run steps in the folder `whole`, in this process; run them in the folder `killed`, with some kills during each of
    them; compare. steps: [(module, arguments, folder that the step writes)].
    """
    chain, codes = [(module, arguments, {}) for module, arguments, _ in steps], []
    with contextlib.chdir(whole):
        for module, arguments, _ in steps:
            importlib.import_module(module).main(arguments)
    for number, (_, _, folder) in enumerate(steps, 1):
        times = written(whole / folder).values()
        codes += [kill(killed, chain[:number], killed / folder, (max(times) - min(times)) / 1e9) for _ in range(kills)]
    assert codes.count(-signal.SIGKILL) > len(codes) / 2         # the others had finished before their moment came
    process = start_stages(killed, chain)
    printed = process.communicate(timeout=300)[0]
    assert process.returncode == 0, printed[-3000:]
    before, after = contents(whole), contents(killed)
    assert before.keys() == after.keys()
    assert not [path for path in before if before[path] != after[path]]


@pytest.fixture(autouse=True)
def no_commit(monkeypatch):
    """A commit while the test runs is no difference."""
    monkeypatch.setenv("GIT_DIR", os.devnull)


def test_every_stage(untrained, seamless, tmp_path):
    """Extraction of 600 recordings in two shards, A through the LLM, A on the table, B, C and inference."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    shutil.copytree(untrained, whole)
    shorten_transcripts(whole)
    shutil.copytree(seamless, whole / "work" / "models" / "tiny-seamless")
    noise, rows = np.random.default_rng(0), []
    for n in range(600):
        if n != 3:                                       # it will be dropped
            soundfile.write(whole / f"{n}.wav", 0.1 * noise.standard_normal(960 + n), 16_000)
        rows.append({"id": f"sounds/{n}/ASR", "utterance": f"sounds/{n}", "audio": f"{n}.wav", "task": "ASR",
                     "language": "en", "transcript": "Yes.", "target": "Yes."})
    write_rows(str(whole / "work" / "rows" / "sounds" / "test.jsonl"), rows)
    shutil.copytree(whole, killed)
    killed_equals_unbroken(whole, killed, [
        ("extract_features", ["--corpora", "sounds", "--shard_frames", "1"],
         "work/features/tiny-seamless-mean3/sounds/test"),
        ("train_projector", ARGUMENTS["train_projector"], "work/tiny/projector"),
        ("train_projector", [*ON_TABLE, "--out", "table"], "work/tiny/table"),
        ("train_lora", ARGUMENTS["train_lora"], "work/tiny/lora"),
        ("merge_sft", ARGUMENTS["merge_sft"], "work/tiny/merged"),
        ("infer", [*ARGUMENTS["infer"], "--systems", "C:merged"], "work/tiny/predictions/C")], kills=2)


def test_a_world_and_a_maker(seamless, tmp_path):
    """Twelve utterances and two models of one step each; 40 sentences spoken in three batches."""
    rng = random.Random(0)
    rows = [row for n in range(40) for row in sentence_rows(rng, draw_sentence(rng), f"texts/{n}", "none")]
    rows = [{key: value for key, value in row.items() if key not in ("audio", "utterance")} for row in rows]
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "page.py").write_text(WORLD)
        write_rows(str(tmp_path / name / "texts.jsonl"), rows)
    killed_equals_unbroken(tmp_path / "whole", tmp_path / "killed", [
        ("data.tiny", ["--preset", "page.py"], "work/rows/killed"),
        ("data.speak", ["--rows", "texts.jsonl", "--out", "work/spoken.jsonl", "--folder", "work/audio", "--seamless",
                        seamless], "work/audio")], kills=2)


def test_the_resumable_loop(tmp_path):
    """Fifteen batches of a hundredth of a second; killed ten times."""
    path, command = tmp_path / "results.jsonl", [sys.executable, "-c", LOOP, str(tmp_path / "results.jsonl")]
    for _ in range(10):
        process = subprocess.Popen(command, cwd=PROJECT, stderr=subprocess.DEVNULL)
        time.sleep(random.uniform(0.1, 0.4))
        process.kill()
        process.wait()
    subprocess.run(command, cwd=PROJECT, check=True)
    killed = path.read_bytes()
    path.unlink()
    subprocess.run(command, cwd=PROJECT, check=True)
    assert path.read_bytes() == killed
