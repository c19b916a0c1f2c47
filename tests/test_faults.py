"""A full disk, a folder that cannot be written or goes, too few file handles: an error; the same command goes on."""
import contextlib
import os
import resource
import shutil
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import save_file

import extract_features
from data import digits
from speech_llm import run as run_folder
from speech_llm.cache import features_folder, finish_cache, open_features, write_shard
from speech_llm.constants import configure
from speech_llm.files import lock, replace_file, write_json
from speech_llm.index import hashes_of
from speech_llm.resumable import resumable
from speech_llm.rows import write_rows

FULL = "cannot be written: the disk is full; what was there is unchanged, and the same command goes on"


@contextlib.contextmanager
def limit(kind, value):
    """Set a soft limit of this process while the block lasts."""
    soft, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (value, hard))
    try:
        yield
    finally:
        resource.setrlimit(kind, (soft, hard))


@contextlib.contextmanager
def full_disk(size):
    """Let no file grow beyond so many bytes. A test that prints needs capsys: the disk is full for pytest, too."""
    with mock.patch.object(shutil, "disk_usage", lambda folder: SimpleNamespace(free=2**19)):
        with limit(resource.RLIMIT_FSIZE, size):
            yield


def goes_on(run, folder, files, fault, message):
    """Run without a fault, with it, and again: to the same files (a pattern). Return those that the fault left."""
    def there():
        return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob(files)}
    run()
    unbroken = there()
    shutil.rmtree(folder)
    with fault, pytest.raises(OSError, match=message):
        run()
    left = {*there()}
    assert not [*Path(folder).rglob(".*")]                                 # nothing temporary
    run()
    assert there() == unbroken
    return left


@pytest.mark.parametrize("write", [
    lambda path: torch.save({"a": torch.zeros(10_000)}, path), lambda path: np.save(path, np.zeros(10_000)),
    lambda path: soundfile.write(path, np.random.default_rng(0).uniform(-1, 1, 40_000), 16000, format="FLAC"),
    lambda path: save_file({"a": torch.zeros(10_000)}, path), lambda path: Path(path).write_text("x" * 10_000)],
    ids=["torch", "numpy", "sound", "safetensors", "text"])
def test_no_writer_leaves_half_a_file_or_hides_that_the_disk_is_full(write, tmp_path):
    path = tmp_path / "file.npy"
    path.write_text("from earlier")
    with full_disk(5000), pytest.raises(OSError, match=f"{path} {FULL}"), replace_file(str(path)) as name:
        write(name)
    assert path.read_text() == "from earlier" and os.listdir(tmp_path) == ["file.npy"]


def test_a_mistake_on_a_disk_with_room_stays_what_it_is(tmp_path):
    with pytest.raises(ValueError, match="^mine$"), replace_file(str(tmp_path / "file")):
        raise ValueError("mine")
    assert not os.listdir(tmp_path)


def test_training_goes_on_where_the_disk_was_full(after_training, run_stage, capsys):
    validated = run_folder.Run.validated

    def full_at_step_4(run, *arguments, **figures):
        with full_disk(5000) if run.step == 4 else contextlib.nullcontext():
            return validated(run, *arguments, **figures)
    fault = mock.patch.object(run_folder.Run, "validated", full_at_step_4)
    goes_on(lambda: run_stage("train_projector"), "work/tiny/projector", "weights.pt", fault, FULL)
    assert "resuming work/tiny/projector at step 2" in capsys.readouterr().out


def test_a_maker_goes_on_where_the_disk_was_full(tmp_path, capsys):
    path, items, made = str(tmp_path / "results.jsonl"), [f"item {n}" for n in range(40)], []

    def make(batch):
        made.extend(batch)
        return [item.upper() for item in batch]
    with full_disk(1000), pytest.raises(OSError, match=f"{path} {FULL}"):
        resumable(path, {}, items, make, 4)
    before = len(made)
    assert resumable(path, {}, items, make, 4) == [item.upper() for item in items]
    assert 4 < before < 40 and len(made) - len(items) <= 4                 # one batch is made again


def test_extraction_goes_on_where_the_disk_was_full(seamless, tmp_path, monkeypatch, capsys):
    """The frames of half a second, 9 x 128 float16, fit into 4,000 bytes, those of two seconds do not."""
    monkeypatch.chdir(tmp_path)
    os.makedirs("work/models")
    os.symlink(seamless, "work/models/tiny-seamless")
    for split, samples in (("dev", 8000), ("test", 32_000)):
        soundfile.write(f"{split}.wav", 0.1 * np.random.default_rng(0).standard_normal(samples), 16_000)
        write_rows(f"work/rows/sounds/{split}.jsonl", [
            {"id": f"sounds/{split}/ASR", "utterance": f"sounds/{split}", "audio": f"{split}.wav", "task": "ASR",
             "language": "en", "transcript": "Yes.", "target": "Yes."}])
    left = goes_on(lambda: extract_features.main(["--corpora", "sounds"]), "work/features/tiny-seamless-mean3/sounds",
                   "frames-*", full_disk(4000), f"test/frames-00000.npy {FULL}")
    assert left == {"dev/frames-00000.npy", "dev/frames-00000.json"}


@pytest.mark.parametrize("write", [lambda: lock("/sys/lora"), lambda: write_json("/sys/lora/config.json", {})])
def test_a_folder_that_cannot_be_written_is_named(write):
    """Root writes into folders of mode 555, but nobody makes a folder in /sys."""
    with pytest.raises(OSError, match="/sys/.* cannot be written: .*(Read-only|Permission denied|not permitted)"):
        write()


def test_a_folder_that_goes_while_a_stage_runs_in_it(before_training, run_stage):
    optimizer_step = run_folder.optimizer_step

    def gone(*arguments):
        shutil.rmtree("work/tiny/lora")
        return optimizer_step(*arguments)
    with mock.patch.object(run_folder, "optimizer_step", gone):
        with pytest.raises(FileNotFoundError, match="work/tiny/lora/log.jsonl"):
            run_stage("train_lora")
    run_stage("train_lora")
    assert os.path.exists("work/tiny/lora/config.json")


def test_half_a_clone_of_the_digits_is_no_corpus(tmp_path, monkeypatch):
    """A git that is killed leaves a part of the repository; the next one begins anew."""
    monkeypatch.delenv("FSDD", raising=False)
    half = tmp_path / "downloads" / "fsdd.part" / "recordings"
    half.mkdir(parents=True)
    (half / "0_theo_0.wav").touch()

    def clone(command, **_):
        os.makedirs(f"{command[-1]}/recordings")
        Path(command[-1], "recordings", "1_theo_0.wav").touch()
        return SimpleNamespace(returncode=0)
    monkeypatch.setattr(digits.subprocess, "run", clone)
    assert os.listdir(digits.find_recordings(str(tmp_path))) == ["1_theo_0.wav"]


def test_a_cache_of_many_shards_names_the_limit_and_stays_as_it_is(tmp_path, monkeypatch):
    """Every shard stays open: GigaST's 10,000 hours are some 450. The cache is not called damaged."""
    monkeypatch.chdir(tmp_path)
    c = configure(extract_features.Config, "extract_features", [])
    made, folder = {"encoder": c.encoder, "mean": c.mean}, features_folder(c.work, c.encoder, c.mean, "tiny", "test")
    frames = {f"tiny/{n}": np.full((3, 8), n, np.float16) for n in range(40)}
    for n, (name, value) in enumerate(frames.items()):
        write_shard(folder, f"frames-{n:05d}", {name: value}, {"made": made, "dropped": [], "seconds": 1.0})
    assert finish_cache(c, made, folder, hashes_of(frames))
    handles = len(os.listdir("/proc/self/fd"))
    with limit(resource.RLIMIT_NOFILE, handles + 8), pytest.raises(OSError, match="Too many open files.*ulimit -n"):
        open_features(folder)
    assert len(open_features(folder)) == 40
