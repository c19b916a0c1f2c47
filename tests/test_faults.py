"""
A full disk, a folder that cannot be written, a folder that goes, too few file handles: a clear error, what was there
stays as it was, and the same command goes on once the cause is gone.

Disks: a small tmpfs is mounted where that is allowed (root); everywhere else, and for every kind of writer, the process
may write files up to a size only (RLIMIT_FSIZE), and is told that the disk is full. Root writes into folders of mode
555, so a folder that cannot be written is a tmpfs mounted read-only, or, without the right to mount, mode 555.
"""
import contextlib
import os
import resource
import shutil
import subprocess
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
from speech_llm.files import replace_file
from speech_llm.index import hashes_of
from speech_llm.resumable import resumable
from speech_llm.rows import write_rows


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
    """
    Let no file grow beyond so many bytes, and say that half a megabyte is free. A test that prints inside has the
    fixture capsys, because pytest's own files would be full, too.
    """
    with mock.patch.object(shutil, "disk_usage", lambda folder: SimpleNamespace(free=2**19)):
        with limit(resource.RLIMIT_FSIZE, size):
            yield


def mount(folder, *options):
    """Mount a tmpfs at `folder`; return whether this process may."""
    if os.getuid() or not shutil.which("mount"):
        return False
    return not subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", str(folder)], capture_output=True).returncode


def temporary(folder):
    return [name for _, _, names in os.walk(folder) for name in names if name.startswith(".")]


def content(path):
    with open(path, "rb") as file:
        return file.read()


FULL = "cannot be written: the disk is full; what was there is unchanged, and the same command goes on"


# --- A full disk.

def write_text(path):
    with open(path, "w") as file:
        file.write("x" * 10_000)


@pytest.mark.parametrize("write", [
    lambda path: torch.save({"a": torch.zeros(10_000)}, path), lambda path: np.save(path, np.zeros(10_000)),
    lambda path: soundfile.write(path, np.random.default_rng(0).uniform(-1, 1, 40_000), 16000, format="FLAC"),
    lambda path: save_file({"a": torch.zeros(10_000)}, path), write_text],
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


@pytest.mark.parametrize("stage, out", [("train_lora", "lora"), ("train_projector", "projector")])
def test_training_goes_on_where_the_disk_was_full(after_training, run_stage, monkeypatch, capsys, stage, out):
    folder, validated = f"work/tiny/{out}", run_folder.Run.validated
    unbroken = content(f"{folder}/weights.pt")
    shutil.rmtree(folder)

    def full_at_step_4(run, *arguments, **figures):
        with full_disk(5000) if run.step == 4 else contextlib.nullcontext():
            return validated(run, *arguments, **figures)
    with monkeypatch.context() as patch, pytest.raises(OSError, match=FULL):
        patch.setattr(run_folder.Run, "validated", full_at_step_4)
        run_stage(stage)
    assert torch.load(f"{folder}/resume.pt", weights_only=True)["step"] == 2 and not temporary(folder)
    run_stage(stage)
    assert f"resuming {folder} at step 2" in capsys.readouterr().out
    assert content(f"{folder}/weights.pt") == unbroken


def test_inference_goes_on_where_the_disk_was_full(after_training, run_stage, capsys):
    path = "work/tiny/predictions/C/tiny.test.jsonl"
    run_stage("infer", "--systems", "C:merged")
    unbroken = content(path)
    os.remove(path)
    with full_disk(3000), pytest.raises(OSError, match=f"tiny.test.jsonl.partial.0 {FULL}"):
        run_stage("infer", "--systems", "C:merged")
    assert os.path.getsize(f"{path}.partial.0") == 3000                    # its last line is cut
    run_stage("infer", "--systems", "C:merged")
    assert content(path) == unbroken
    assert sorted(os.listdir(os.path.dirname(path))) == ["lock", "tiny.test.jsonl", "tiny.test.made.json"]


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


@pytest.fixture
def sounds(seamless, tmp_path, monkeypatch):
    """A folder with rows of two splits, a short and a long recording -> {split: folder of its features}."""
    monkeypatch.chdir(tmp_path)
    os.makedirs("work/models")
    os.symlink(seamless, "work/models/tiny-seamless")
    for split, samples in (("dev", 8000), ("test", 32_000)):
        soundfile.write(f"{split}.wav", 0.1 * np.random.default_rng(0).standard_normal(samples), 16_000)
        write_rows(f"work/rows/sounds/{split}.jsonl", [
            {"id": f"sounds/{split}/ASR", "utterance": f"sounds/{split}", "audio": f"{split}.wav", "task": "ASR",
             "language": "en", "transcript": "Yes.", "target": "Yes."}])
    return {split: f"work/features/tiny-seamless-mean3/sounds/{split}" for split in ("dev", "test")}


def shards(sounds):
    return {path: content(path) for folder in sounds.values() if os.path.isdir(folder)
            for path in (f"{folder}/{name}" for name in os.listdir(folder)) if "frames-" in path}


def extract():
    extract_features.main(["--corpora", "sounds"])


def test_extraction_goes_on_where_the_disk_was_full(sounds, capsys):
    """The frames of half a second, 9 x 128 float16, fit into 4,000 bytes, those of two seconds do not."""
    extract()
    unbroken = shards(sounds)
    shutil.rmtree("work/features")
    with full_disk(4000), pytest.raises(OSError, match=f"test/frames-00000.npy {FULL}"):
        extract()
    assert shards(sounds) == {path: data for path, data in unbroken.items() if "/dev/" in path}
    assert not temporary("work/features")
    extract()
    assert shards(sounds) == unbroken and len(unbroken) == 4


def test_a_disk_that_is_really_full(before_training, run_stage, tmp_path):
    """Stage B on a tmpfs of a megabyte that something else fills, and then leaves."""
    (tmp_path / "disk").mkdir()
    if not mount(tmp_path / "disk", "-o", "size=1m"):
        pytest.skip("this process may not mount a tmpfs")
    try:
        os.makedirs("work/tiny", exist_ok=True)
        os.symlink(tmp_path / "disk", "work/tiny/lora")
        with open(tmp_path / "disk" / "others", "wb") as file:
            file.write(bytes(2**20 - 30_000))
        with pytest.raises(OSError, match="work/tiny/lora/.* cannot be written: the disk is full"):
            run_stage("train_lora")
        assert not temporary(tmp_path / "disk")
        os.remove(tmp_path / "disk" / "others")
        run_stage("train_lora")
        assert os.path.exists("work/tiny/lora/weights.pt")
    finally:
        subprocess.run(["umount", str(tmp_path / "disk")], check=True)


# --- A folder that cannot be written.

@pytest.fixture
def read_only(tmp_path):
    """read_only(folder) makes a folder read-only, with what is in it; read_only(folder, False) ends that."""
    mounted = []

    def make(folder, really=True):
        if os.getuid():
            os.chmod(folder, 0o555 if really else 0o755)
        elif not mounted:
            shutil.copytree(folder, tmp_path / "copy-of-folder")
            if not mount(folder):
                pytest.skip("root writes into any folder, and this process may not mount a read-only one")
            mounted.append(folder)
            shutil.copytree(tmp_path / "copy-of-folder", folder, dirs_exist_ok=True)
        if mounted:
            subprocess.run(["mount", "-o", f"remount,{'ro' if really else 'rw'}", str(folder)], check=True)
    yield make
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("stage, more", [("merge_sft", ["--out", "again"]), ("infer", ["--systems", "C:merged"])])
def test_a_folder_that_cannot_be_written_is_named(after_training, run_stage, read_only, stage, more):
    read_only("work/tiny")
    with pytest.raises(OSError, match="work/tiny/.* cannot be written: .*(Read-only|Permission denied)"):
        run_stage(stage, *more)
    read_only("work/tiny", False)
    run_stage(stage, *more)


def test_features_that_cannot_be_written_are_named(sounds, read_only):
    os.makedirs("work/features")
    read_only("work/features")
    with pytest.raises(OSError, match="work/features/.* cannot be written: .*(Read-only|Permission denied)"):
        extract()
    read_only("work/features", False)
    extract()
    assert len(open_features(sounds["test"])) == 1


# --- What goes while somebody works with it.

def test_a_folder_that_goes_while_a_stage_runs_in_it(before_training, run_stage, monkeypatch):
    optimizer_step = run_folder.optimizer_step

    def gone(*arguments):
        shutil.rmtree("work/tiny/lora")
        return optimizer_step(*arguments)
    with monkeypatch.context() as patch, pytest.raises(FileNotFoundError, match="work/tiny/lora/log.jsonl"):
        patch.setattr(run_folder, "optimizer_step", gone)
        run_stage("train_lora")
    run_stage("train_lora")
    assert os.path.exists("work/tiny/lora/config.json")


def test_half_a_clone_of_the_digits_is_no_corpus(tmp_path, monkeypatch):
    """A git that is killed leaves a part of the repository; the next one begins anew."""
    monkeypatch.delenv("FSDD", raising=False)
    calls = []

    def clone(command, **_):
        os.makedirs(os.path.join(command[-1], "recordings"))
        (tmp_path / command[-1] / "recordings" / f"{len(calls)}_theo_0.wav").write_text("")
        calls.append(command)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return SimpleNamespace(returncode=0)
    monkeypatch.setattr(digits.subprocess, "run", clone)
    with pytest.raises(KeyboardInterrupt):
        digits.find_recordings(str(tmp_path))
    assert os.listdir(digits.find_recordings(str(tmp_path))) == ["1_theo_0.wav"]


# --- Too few file handles.

def test_a_cache_of_many_shards_names_the_limit_and_stays_as_it_is(tmp_path, monkeypatch):
    """Every shard stays open: GigaST's 10,000 hours are some 450. The cache is not damaged, and is not called so."""
    monkeypatch.chdir(tmp_path)
    c = configure(extract_features.Config, "extract_features", [])
    made, folder = {"encoder": c.encoder, "mean": c.mean}, features_folder(c.work, c.encoder, c.mean, "tiny", "test")
    frames = {f"tiny/{n}": np.full((3, 8), n, np.float16) for n in range(40)}
    for n, (name, value) in enumerate(frames.items()):
        write_shard(folder, f"frames-{n:05d}", {name: value}, {"made": made, "dropped": [], "seconds": 1.0})
    assert finish_cache(c, made, folder, hashes_of(frames))
    before = shards({"test": folder})
    handles = len(os.listdir("/proc/self/fd"))
    with limit(resource.RLIMIT_NOFILE, handles + 8), pytest.raises(OSError) as error:
        open_features(folder)
    assert "Too many open files" in str(error.value) and "ulimit -n" in str(error.value)
    assert "damaged" not in str(error.value) and shards({"test": folder}) == before
    assert len(open_features(folder)) == 40


def test_too_few_handles_for_a_file_that_is_written(tmp_path):
    path = tmp_path / "file"
    path.write_text("from earlier")
    handles = [open(path) for _ in range(5)]
    with limit(resource.RLIMIT_NOFILE, handles[-1].fileno() + 1):
        with pytest.raises(OSError, match=f"{path} cannot be written: .*Too many open files"):
            with replace_file(str(path)) as name, open(name, "w") as file:
                file.write("new")
    assert path.read_text() == "from earlier" and os.listdir(tmp_path) == ["file"]
    for handle in handles:
        handle.close()
