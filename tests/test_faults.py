"""
A full disk, a folder that cannot be written, a folder that goes, too few file handles: a clear error, earlier results as
they were, and the same command continues once the cause is gone.

Disks: a small tmpfs is mounted where that is allowed (root); everywhere else, and for every kind of writer, the process
may write files up to a size only (RLIMIT_FSIZE), and is told that nothing is free. Root writes into folders of mode 555,
so a folder that cannot be written is a tmpfs mounted read-only, or, without the right to mount, mode 555.
"""
import contextlib
import os
import resource
import shutil
import subprocess
import types

import data.rows
import numpy as np
import pytest
import soundfile
import torch

import extract_features
import train_projector
from data import digits
from speech_llm.files import replace_file
from speech_llm.resumable import resumable
from speech_llm.rows import write_rows


@contextlib.contextmanager
def limit(kind, value):
    """A soft limit of this process while the block lasts."""
    soft, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (value, hard))
    try:
        yield
    finally:
        resource.setrlimit(kind, (soft, hard))


@contextlib.contextmanager
def full_disk(size):
    """No file grows beyond so many bytes, and nothing is free."""
    real = shutil.disk_usage
    data.rows.shutil = types.SimpleNamespace(disk_usage=lambda folder: types.SimpleNamespace(free=0))
    try:
        with limit(resource.RLIMIT_FSIZE, size):
            yield
    finally:
        data.rows.shutil = shutil
        assert shutil.disk_usage is real


def mount(folder, *options):
    """A tmpfs at `folder`; False where this process may not mount."""
    if os.getuid() or not shutil.which("mount"):
        return False
    return not subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", str(folder)], capture_output=True).returncode


def temporary(folder):
    return [name for _, _, names in os.walk(folder) for name in names if name.startswith(".")]


FULL = "cannot be written: the disk is full; what was there is as it was, and the same command goes on"


# --- A full disk.

WRITERS = {
    "torch": lambda path: train_projector.torch.save({"a": torch.zeros(10_000)}, path),
    "numpy": lambda path: np.save(path, np.zeros(10_000)),
    "sound": lambda path: soundfile.write(path, np.random.default_rng(0).uniform(-1, 1, 40_000), 16000, format="FLAC"),
    "safetensors": lambda path: __import__("safetensors.torch").torch.save_file({"a": torch.zeros(10_000)}, path),
    "text": lambda path: open(path, "w").write("x" * 10_000),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_no_writer_leaves_half_a_file_or_hides_that_the_disk_is_full(writer, tmp_path, capsys):
    path = tmp_path / "file.npy"
    path.write_text("from earlier")
    with full_disk(5000), pytest.raises(OSError, match=f"{path} {FULL}"), replace_file(str(path)) as name:
        WRITERS[writer](name)
    assert path.read_text() == "from earlier" and os.listdir(tmp_path) == ["file.npy"]


def test_a_mistake_on_a_disk_with_room_stays_what_it_is(tmp_path):
    with pytest.raises(ValueError, match="^mine$"), replace_file(str(tmp_path / "file")):
        raise ValueError("mine")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("script, out", [("train_lora", "lora"), ("train_projector", "projector")])
def test_training_goes_on_where_the_disk_was_full(after_training, run_stage, monkeypatch, capsys, script, out):
    folder = f"work/tiny/{out}"
    with open(f"{folder}/weights.pt", "rb") as file:
        unbroken = file.read()
    shutil.rmtree(folder)
    validated, steps = train_projector.Run.validated, []

    def until_it_is_full(run, *arguments, **scores):
        steps.append(run.step)
        with full_disk(5000) if run.step == 4 and len(steps) == 2 else contextlib.nullcontext():
            return validated(run, *arguments, **scores)
    monkeypatch.setattr(train_projector.Run, "validated", until_it_is_full)
    with pytest.raises(OSError, match=FULL):
        run_stage(script)
    assert torch.load(f"{folder}/resume.pt", weights_only=True)["step"] == 2 and not temporary(folder)
    capsys.readouterr()
    run_stage(script)
    assert "at step 2" in capsys.readouterr().out and steps == [2, 4, 4, 6]
    with open(f"{folder}/weights.pt", "rb") as file:
        assert file.read() == unbroken


def test_inference_goes_on_where_the_disk_was_full(after_training, run_stage, capsys):
    folder = "work/tiny/predictions/C"
    run_stage("infer", "--systems", "C:merged")
    with open(f"{folder}/tiny.test.jsonl", "rb") as file:
        unbroken = file.read()
    os.remove(f"{folder}/tiny.test.jsonl")
    with full_disk(3000), pytest.raises(OSError, match=f"tiny.test.jsonl.partial.0 {FULL}"):
        run_stage("infer", "--systems", "C:merged")
    assert os.path.getsize(f"{folder}/tiny.test.jsonl.partial.0") == 3000              # one line of them is cut
    run_stage("infer", "--systems", "C:merged")
    with open(f"{folder}/tiny.test.jsonl", "rb") as file:
        assert file.read() == unbroken
    assert sorted(os.listdir(folder)) == ["lock", "tiny.test.jsonl", "tiny.test.made.json"]


def test_a_maker_goes_on_where_the_disk_was_full(tmp_path, capsys):
    path, items, made = str(tmp_path / "kept.jsonl"), [f"item {n}" for n in range(40)], []

    def make(some):
        made.extend(some)
        return [item.upper() for item in some]
    with full_disk(1000), pytest.raises(OSError, match=f"{path} {FULL}"):
        resumable(path, {}, items, make, 4)
    lost = len(made)
    assert resumable(path, {}, items, make, 4) == [item.upper() for item in items]
    assert 4 < lost < 40 and len(made) - len(items) <= 4                               # one batch is made again


@pytest.fixture
def split(seamless, tmp_path, monkeypatch):
    """A folder with rows of six recordings, two in a block and a block in a shard -> the folder of its features."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(extract_features, "BLOCK", 2)
    os.makedirs("work/models")
    os.symlink(seamless, "work/models/tiny-seamless")
    noise, rows = np.random.default_rng(0), []
    for n in range(6):
        soundfile.write(f"{n}.wav", 0.1 * noise.standard_normal(8000 + 800 * n), 16000)
        rows.append({"id": f"tiny/{n}/ASR", "utterance": f"tiny/{n}", "audio": f"{n}.wav", "task": "ASR",
                     "language": "en", "transcript": "Yes.", "target": "Yes."})
    write_rows("work/rows/tiny/test.jsonl", rows)
    return "work/features/tiny-seamless-mean3/tiny/test"


def shards(folder):
    return {name: open(f"{folder}/{name}", "rb").read() for name in sorted(os.listdir(folder))
            if name.startswith("frames-")}


def test_extraction_goes_on_where_the_disk_was_full(split, monkeypatch, capsys):
    command = ["--shard_frames", "1"]
    extract_features.main(command)
    unbroken = shards(split)
    assert len(unbroken) == 6
    shutil.rmtree(split)
    write_shard = extract_features.write_shard

    def until_it_is_full(folder, name, frames, facts):
        with full_disk(1000) if name == "frames-00001" else contextlib.nullcontext():
            write_shard(folder, name, frames, facts)
    with monkeypatch.context() as patch, pytest.raises(OSError, match=f"frames-00001.npy {FULL}"):
        patch.setattr(extract_features, "write_shard", until_it_is_full)
        extract_features.main(command)
    assert shards(split) == {name: unbroken[name] for name in ("frames-00000.json", "frames-00000.npy")}
    assert not temporary(split)
    extract_features.main(command)
    assert shards(split) == unbroken


def test_a_disk_that_is_really_full(before_training, run_stage, tmp_path, capsys):
    """Stage B on a tmpfs of half a megabyte that something else fills, and then leaves."""
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
    """read_only(folder) makes it so, with what is in it; and makes it writable again when called with False."""
    mounted = []

    def make(folder, really=True):
        mode = "ro" if really else "rw"
        if os.getuid():
            os.chmod(folder, 0o555 if really else 0o755)
        elif not mounted:
            shutil.copytree(folder, tmp_path / "kept", dirs_exist_ok=True)
            if not mount(folder):
                pytest.skip("root writes into any folder, and this process may not mount a read-only one")
            mounted.append(folder)
            shutil.copytree(tmp_path / "kept", folder, dirs_exist_ok=True)
        if mounted:
            subprocess.run(["mount", "-o", f"remount,{mode}", str(folder)], check=True)
    yield make
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("script, folder, more", [
    ("train_lora", "work/tiny", ["--out", "again"]), ("merge_sft", "work/tiny", ["--out", "again"]),
    ("infer", "work/tiny", ["--systems", "C:merged"])])
def test_a_folder_that_cannot_be_written_is_named(after_training, run_stage, read_only, script, folder, more):
    read_only(folder)
    with pytest.raises(OSError, match=f"{folder}/.* cannot be written: .*(Read-only|Permission denied)"):
        run_stage(script, *more)
    read_only(folder, False)
    run_stage(script, *more)


def test_features_that_cannot_be_written_are_named(split, read_only):
    os.makedirs("work/features")
    read_only("work/features")
    with pytest.raises(OSError, match="work/features/.* cannot be written: .*(Read-only|Permission denied)"):
        extract_features.main([])
    read_only("work/features", False)
    extract_features.main([])
    assert len(extract_features.open_features(split)) == 6


# --- A folder that goes.

def test_a_folder_that_goes_while_a_stage_runs_in_it(before_training, run_stage, monkeypatch):
    update = train_projector.update

    def gone(*arguments):
        shutil.rmtree("work/tiny/lora")
        return update(*arguments)
    with monkeypatch.context() as patch, pytest.raises(FileNotFoundError, match="work/tiny/lora/log.jsonl"):
        patch.setattr(train_projector, "update", gone)
        run_stage("train_lora")
    run_stage("train_lora")
    assert os.path.exists("work/tiny/lora/config.json")


def test_audio_that_goes_while_it_is_read_is_a_drop(split, capsys):
    os.remove("3.wav")
    extract_features.main([])
    assert "5 utterances, 1 dropped" in capsys.readouterr().out


def test_half_a_clone_of_the_digits_is_no_corpus(tmp_path, monkeypatch):
    monkeypatch.delenv("FSDD", raising=False)
    killed = True

    def run(command, **_):
        os.makedirs(os.path.join(command[-1], "recordings"))
        (tmp_path / command[-1] / "recordings" / "0_theo_0.wav").write_text("")
        if killed:
            raise KeyboardInterrupt
        (tmp_path / command[-1] / "recordings" / "1_theo_0.wav").write_text("")
        return types.SimpleNamespace(returncode=0)
    monkeypatch.setattr(digits, "subprocess", types.SimpleNamespace(run=run))
    with pytest.raises(KeyboardInterrupt):
        digits.find_recordings(str(tmp_path))
    killed = False
    assert sorted(os.listdir(digits.find_recordings(str(tmp_path)))) == ["0_theo_0.wav", "1_theo_0.wav"]


# --- Too few file handles.

def test_a_cache_of_many_shards_names_the_limit_and_stays_as_it_is(split, capsys):
    """Every shard stays open: GigaST's 10,000 hours are some 450. The damage is not the cache's, and is not said to be."""
    extract_features.main(["--shard_frames", "1"])
    before = shards(split)
    open_now = len(os.listdir("/proc/self/fd"))
    with limit(resource.RLIMIT_NOFILE, open_now + 1), pytest.raises(OSError) as error:
        extract_features.open_features(split)
    assert "Too many open files" in str(error.value) and "ulimit -n" in str(error.value)
    assert "damaged" not in str(error.value) and shards(split) == before
    assert len(extract_features.open_features(split)) == 6


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
    with replace_file(str(path)) as name, open(name, "w") as file:
        file.write("new")
    assert path.read_text() == "new"
