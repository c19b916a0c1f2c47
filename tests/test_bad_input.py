"""
What is damaged, foreign or hostile is refused with the file's name and what to do, or dropped and counted; never a
traceback out of a library, a wrong score or a hang. A line of a table is a case; rows have theirs in test_rows.py.
"""
import collections
import contextlib
import dataclasses
import fractions
import io
import json
import os
import random
import shutil
import signal
import struct
import traceback

import numpy as np
import pytest
import safetensors.torch
import soundfile
import torch

import extract_features
import infer
import train_lora
import train_projector
from data import acl6060, recipe, rows
from data.tiny_models import seamless_config
from eval import plot_losses, read_predictions
from metrics import chat, comet, judge, pairwise, speech_ifeval
from metrics.mcif import read_references

PROJECT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
DEEP = b"[" * 100_000                                   # more levels than Python counts


# --- What every case is held to.

@contextlib.contextmanager
def at_most(seconds):
    """An error where the block takes longer: a hang is a failure like any other."""
    def late(*_):
        raise TimeoutError(f"more than {seconds} s")
    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def refused(action, *arguments, names="", says=""):
    """
    The message that `action` stops with. The error is the project's own: of a kind that it uses, raised by a line of
    its own, naming what is wrong.
    """
    with at_most(20), pytest.raises((SystemExit, ValueError, FileNotFoundError)) as caught:
        action(*arguments)
    last = traceback.extract_tb(caught.tb)[-1]
    assert caught.type in (SystemExit, ValueError, FileNotFoundError), caught.type        # not one derived from these
    assert last.filename.startswith(PROJECT) and not last.filename.startswith(os.path.join(PROJECT, "tests")), last
    message = str(caught.value)
    assert str(names) in message and says in message, message
    return message


def write(path, content):
    """Text, bytes or a JSON value -> a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(content, (str, bytes)):
        content = json.dumps(content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    return str(path)


def change(path, **values):
    """Change keys of a JSON file; ... takes one away."""
    with open(path) as file:
        content = {**json.load(file), **values}
    with open(path, "w") as file:
        json.dump({key: value for key, value in content.items() if value is not ...}, file)


def cases(table):
    """A table of lines (name, ...) -> pytest's parameters, under the lines' names."""
    return [pytest.param(*line[1:], id=line[0]) for line in table]


# --- JSON lines: Speech-IFEval, predictions and labels of the pairwise judge.

IFEVAL = {"instruction": "Say yes.", "metric": "cot", "audio_filepath": "a.wav"}
IFEVALS = [("empty", b"", "is empty"), ("no JSON", b"{\n", "line 1 is no item"),
           ("not UTF-8", b'"\xff"\n', "line 1 is no"),
           ("a list", b"[7]\n", "line 1 is no item"), ("deep", DEEP, "line 1 is no item"),
           ("null", b"null\n", "line 1 is no"),
           ("no instruction", {**IFEVAL, "instruction": None}, "line 1 has no 'instruction'"),
           ("a number as path", {**IFEVAL, "audio_filepath": 7}, "line 1 has no 'audio_filepath'")]


@pytest.mark.parametrize("content, says", cases(IFEVALS))
def test_a_file_of_speech_ifeval(tmp_path, content, says):
    refused(speech_ifeval.read_items, write(tmp_path / "x.jsonl", content), names="x.jsonl", says=says)


SAID = [("no JSON", b"{"), ("not UTF-8", b'"\xff"'), ("deep", DEEP), ("a list", b"[]"), ("null", b"null"),
        ("no id", {}),
        ("a list as id", {"id": [], "task": "SQA", "prediction": "a"}),
        ("null answer", {"id": "a", "prediction": None}),
        ("twice", {"id": "r1", "task": "SQA", "prediction": "b"})]


@pytest.mark.parametrize("content", cases(SAID))
def test_a_line_of_the_pairwise_judge_s_predictions(tmp_path, content):
    line = content if isinstance(content, bytes) else json.dumps(content).encode()
    first = json.dumps({"id": "r1", "task": "SQA", "prediction": "a"}).encode()
    path = write(tmp_path / "m.bench.jsonl", first + b"\n" + line + b"\n")
    refused(pairwise.read_answers, path, [{"id": "r1"}], names=path, says="run infer.py on these rows")
    refused(speech_ifeval.read_predictions, path, "speech_ifeval", "cot", str(tmp_path), names=f"{path} line 2")


LABELS = [("no label", {"id": "a", "labels": []}), ("a word", {"id": "a", "labels": "C"}), ("no id", {"labels": ["C"]}),
          ("another system", {"id": "a", "labels": ["Z"]}), ("a number as id", {"id": 7, "labels": ["C"]})]


@pytest.mark.parametrize("content", cases(LABELS))
def test_labels_of_people(tmp_path, content):
    refused(pairwise.read_labels, write(tmp_path / "labels.jsonl", content), ["C", "D"], names="labels.jsonl")


# --- Audio: a reason for each, and the run goes on.

CONFIG = seamless_config()
NOISE = 0.1 * np.random.default_rng(0).standard_normal((16_000, 1))                           # 1 s at 16 kHz


def sound(wave, rate=16_000, format="WAV", subtype=None):
    """An audio file as bytes."""
    file = io.BytesIO()
    soundfile.write(file, wave, rate, format=format, subtype=subtype)
    return file.getvalue()


def wav_header(rate, seconds, channels=1):
    """The head of a 16-bit WAV (RF64 where it is larger than 4 GB) that says it is so long."""
    size = rate * seconds * channels * 2
    form = struct.pack("<HHIIHH", 1, channels, rate, rate * channels * 2 % 2**32, channels * 2, 16)
    sizes = b"" if size < 2**32 - 100 else b"ds64" + struct.pack("<IQQQI", 28, size + 80, size, size // 2, 0)
    short = min(size, 2**32 - 1)
    return ((b"RF64" if sizes else b"RIFF") + struct.pack("<I", min(size + 36, 2**32 - 1)) + b"WAVE" + sizes + b"fmt "
            + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", short))


def not_finite(value):
    wave = NOISE.copy()
    wave[7] = value
    return sound(wave, subtype="FLOAT")


AUDIO_DROPPED = [
    ("empty", "a.wav", b"", "cannot be decoded"), ("text", "a.wav", b"hello\n" * 99, "cannot be decoded"),
    ("zeros", "a.wav", bytes(9999), "cannot be decoded"),
    ("a header alone", "a.wav", wav_header(16_000, 1), "truncated"),
    ("a cut header", "a.wav", sound(NOISE)[:30], "cannot be decoded"),
    ("cut", "a.wav", sound(NOISE)[:9999], "truncated"),
    ("a cut FLAC", "a.flac", sound(NOISE, format="FLAC")[:5000], "a.flac: "),
    ("a FLAC of zeros", "a.flac", sound(NOISE, format="FLAC")[:4000] + bytes(20_000), "a.flac: "),
    ("a cut OGG", "a.ogg", sound(NOISE, format="OGG")[:600], "a.ogg: "),
    ("bytes without a head", "a.raw", bytes(9999), "cannot be decoded"),
    ("one sample", "a.wav", sound(NOISE[:1]), "shorter than 0.04 s"),
    ("no sample", "a.wav", sound(NOISE[:0]), "shorter"),
    ("not a number", "a.wav", not_finite(np.nan), "samples that are not finite"),
    ("infinite", "a.wav", not_finite(np.inf), "samples that are not finite"),
    ("31 s", "a.wav", sound(np.zeros((31 * 8000, 1)), 8000), "31.0 s, longer than 30.0 s"),
    ("an hour", "a.flac", sound(np.zeros((3600 * 1000, 1)), 1000, "FLAC"), "3600.0 s, longer than 30.0 s"),
    ("a rate that no recorder has", "a.wav", sound(NOISE, 44_101), "a sample rate of 44101 Hz"),
    ("a rate of gigahertz", "a.wav", sound(NOISE, 2**31 - 1), "a sample rate of 2147483647 Hz"),
]


@pytest.mark.parametrize("name, content, says", cases(AUDIO_DROPPED))
def test_audio_is_dropped_with_its_reason(tmp_path, name, content, says):
    path = write(tmp_path / name, content)
    with at_most(10):
        feature, seconds, reason = extract_features.front_end(CONFIG, {"audio": path}, 30.0)
    assert feature is None and seconds == 0 and path in reason and says in reason


@pytest.mark.parametrize("rate, channels", [(16_000, 1), (192_000, 8)])
def test_an_hour_is_refused_by_its_head(tmp_path, rate, channels):
    """The file is one hole on the disk, up to 11 GB of it: reading it would show."""
    path = write(tmp_path / "a.wav", wav_header(rate, 3600, channels))
    os.truncate(path, os.path.getsize(path) + rate * 3600 * channels * 2)
    with at_most(2):
        reason = extract_features.front_end(CONFIG, {"audio": path}, 30.0)[2]
    assert reason == f"{path}: 3600.0 s, longer than 30.0 s"


PLACES = [("a folder", "folder", "no such file"), ("nothing", "nothing.wav", "no such file"),
          ("no name", "", "no such"),
          ("a NUL", "a\0.wav", "no such file"), ("a long name", "a" * 5000, "no such file"),
          ("a pipe", "pipe", "no such")]


@pytest.mark.parametrize("name, says", cases(PLACES))
def test_audio_that_is_no_file(tmp_path, name, says):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")                                                   # whose reader would wait for ever
    path = str(tmp_path / name)
    with at_most(10):
        assert says in extract_features.front_end(CONFIG, {"audio": path}, 30.0)[2]
        assert recipe.unreadable([path]) == {path: "no such file"}


SLICES = [("beyond the end", (0.5, 2.0), "the file ends at 1.00 s"), ("past the end", (5.0, 6.0), "the file ends at"),
          ("no length", (0.5, 0.5), "shorter than 0.04 s"), ("years", (0.0, 1e15), "the file ends at 1.00 s"),
          ("a number beyond floats", (0, 10**400), "the file ends at")]


@pytest.mark.parametrize("place, says", cases(SLICES))
def test_a_slice_that_is_not_there(tmp_path, place, says):
    row = {"audio": write(tmp_path / "a.wav", sound(NOISE)), "start": place[0], "end": place[1]}
    assert says in extract_features.front_end(CONFIG, row, 30.0)[2]


WAVE = np.repeat(NOISE, 8, axis=1)
AUDIO_READ = [
    ("24 bits", "a.wav", sound(NOISE, subtype="PCM_24"), 50), ("8 bits", "a.wav", sound(NOISE, subtype="PCM_U8"), 50),
    ("64 bits", "a.wav", sound(NOISE, subtype="DOUBLE"), 50), ("8 channels", "a.wav", sound(WAVE), 50),
    ("192 kHz, 8 channels", "a.wav", sound(np.repeat(WAVE, 12, 0), 192_000), 50),
    ("1 kHz", "a.wav", sound(NOISE[:1000], 1000), 50), ("silence", "a.wav", sound(np.zeros((16_000, 1))), 50),
    ("FLAC called wav", "a.wav", sound(NOISE, format="FLAC"), 50), ("WAV called mp3", "a.mp3", sound(NOISE), 50),
    ("OGG without an ending", "a", sound(NOISE, format="OGG"), 50), ("too loud", "a.wav", sound(NOISE * 99), 50),
    ("bytes after its end", "a.wav", sound(NOISE) + b"LIST" + bytes(999), 50),
    ("a size of 4 GB, as from a pipe", "a.wav", wav_header(16_000, 1)[:40] + b"\xff" * 4 + sound(NOISE)[44:], 50),
]


@pytest.mark.parametrize("name, content, frames", cases(AUDIO_READ))
def test_audio_of_any_kind_is_read(tmp_path, name, content, frames):
    feature, seconds, reason = extract_features.front_end(CONFIG, {"audio": write(tmp_path / name, content)}, 30.0)
    assert reason is None and abs(seconds - 1) < 0.01 and abs(len(feature) - frames) <= 1
    assert torch.isfinite(feature).all()


# --- Caches.

MADE = {"encoder": "models/tiny-seamless", "weights": "abc", "mean": 3}
WIDTH = 8


@pytest.fixture(scope="module")
def whole_cache(tmp_path_factory):
    """A finished cache of two shards, of 3 and 2 utterances."""
    folder, noise = tmp_path_factory.mktemp("caches") / "tiny" / "test", np.random.default_rng(0)
    names = [f"tiny/test/{n}" for n in range(5)]
    frames = {name: noise.standard_normal((4 + n, WIDTH)).astype(np.float16) for n, name in enumerate(names)}
    for number, some in enumerate((names[:3], names[3:])):
        extract_features.write_shard(str(folder), f"frames-{number:05d}", {name: frames[name] for name in some},
                                     {"made": MADE, "dropped": [], "seconds": 1.0})
    assert extract_features.finish(extract_features.Config(), MADE, WIDTH, str(folder), frames)
    return folder, frames


@pytest.fixture
def cache(whole_cache, tmp_path):
    shutil.copytree(whole_cache[0], tmp_path / "tiny" / "test")
    return tmp_path / "tiny" / "test"


def opened(folder, **expect):
    """All frames of a cache, read."""
    return {name: np.array(frames) for name, frames in extract_features.open_features(str(folder), expect).items()}


def test_the_cache_itself_is_whole(whole_cache, cache):
    found = opened(cache, encoder="models/tiny-seamless", mean=3)
    assert found.keys() == whole_cache[1].keys()
    assert all((found[name] == frames).all() for name, frames in whole_cache[1].items())


def swap(folder, first, second):
    a, b = (folder / first).read_bytes(), (folder / second).read_bytes()
    (folder / first).write_bytes(b)
    (folder / second).write_bytes(a)


def cut(folder, name, count):
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[:count])


def resave(folder, name, change):
    np.save(folder / name, change(np.load(folder / name)), allow_pickle=True)


INDEX, DATA, OTHER, OTHER_DATA = "frames-00000.json", "frames-00000.npy", "frames-00001.json", "frames-00001.npy"
LENGTHS = {"tiny/test/0": 4, "tiny/test/1": 5, "tiny/test/2": 6}
CACHES = [  # name, what is done to the folder, what is told of
    ("cut by a byte", lambda f: cut(f, DATA, -1), DATA), ("half a shard", lambda f: cut(f, DATA, 200), DATA),
    ("a cut header", lambda f: cut(f, DATA, 20), DATA), ("an empty shard", lambda f: cut(f, DATA, 0), DATA),
    ("no shard", lambda f: (f / DATA).unlink(), DATA), ("text", lambda f: write(f / DATA, "hello"), DATA),
    ("a zip", lambda f: write(f / DATA, b"PK\x03\x04" + bytes(99)), DATA),
    ("a folder", lambda f: ((f / DATA).unlink(), (f / DATA).mkdir()), DATA),
    ("swapped shards", lambda f: swap(f, DATA, OTHER_DATA), DATA),
    ("swapped indices", lambda f: swap(f, INDEX, OTHER), INDEX),
    ("an index twice", lambda f: shutil.copy(f / INDEX, f / OTHER), OTHER),
    ("an index gone", lambda f: (f / OTHER).unlink(), ""),
    ("an index of another folder's data", lambda f: change(f / INDEX, data="../../x.npy"), INDEX),
    ("float32", lambda f: resave(f, DATA, lambda a: a.astype(np.float32)), "float32"),
    ("whole numbers", lambda f: resave(f, DATA, lambda a: a.astype(np.int16)), "int16"),
    ("objects", lambda f: resave(f, DATA, lambda a: a.astype(object)), DATA),
    ("another width", lambda f: resave(f, DATA, lambda a: a[:, :4]), "shape (15, 4)"),
    ("one dimension", lambda f: resave(f, DATA, lambda a: a.ravel()), DATA),
    ("a frame less", lambda f: resave(f, DATA, lambda a: a[1:]), "shape (14, 8), but its index says 15 frames"),
    ("lengths that do not sum", lambda f: change(f / INDEX, lengths={**LENGTHS, "tiny/test/2": 7}), "says 16 frames"),
    ("a length below zero", lambda f: change(f / INDEX, lengths={**LENGTHS, "tiny/test/2": -6}), INDEX),
    ("a length of words", lambda f: change(f / INDEX, lengths={**LENGTHS, "tiny/test/2": "6"}), INDEX),
    ("a list of lengths", lambda f: change(f / INDEX, lengths=[4, 5, 6]), INDEX),
    ("no lengths", lambda f: change(f / INDEX, lengths=...), "has no 'lengths'"),
    ("no made", lambda f: change(f / INDEX, made=...), "has no 'made'"),
    ("an index that is no JSON", lambda f: write(f / INDEX, "{"), INDEX),
    ("an empty index", lambda f: write(f / INDEX, ""), INDEX),
    ("an index that is a list", lambda f: write(f / INDEX, "[]"), INDEX),
    ("a deep index", lambda f: write(f / INDEX, DEEP), INDEX),
    ("an index not in UTF-8", lambda f: write(f / INDEX, b'"\xff"'), INDEX),
    ("no config", lambda f: (f / "config.json").unlink(), "config.json is missing"),
    ("a config that is no JSON", lambda f: write(f / "config.json", "width"), "config.json"),
    ("a config without the width", lambda f: change(f / "config.json", width=...), "has no 'width'"),
    ("an utterance in two shards", lambda f: change(f / OTHER, lengths={"tiny/test/0": 7, "tiny/test/4": 8}),
     "there twice"),
    ("another encoder", lambda f: change(f / INDEX, made={**MADE, "encoder": "models/x"}),
     "made with encoder 'models/x'"),
    ("another mean", lambda f: change(f / OTHER, made={**MADE, "mean": 2}), "made with mean 2, expected is 3"),
    ("an unknown encoder", lambda f: change(f / INDEX, made={"mean": 3}), "made with encoder None"),
]


@pytest.mark.parametrize("damage, says", cases(CACHES))
def test_a_cache(cache, damage, says):
    damage(cache)
    message = refused(lambda: opened(cache, encoder="models/tiny-seamless", mean=3), names=cache, says=says)
    assert "extract_features.py" in message                                                        # what to do


# --- Weights and configs of a stage.

SIZES = dict(kind="transformer", width=8, llm_width=16, layers=1, heads=2, ffn=16, dropout=0.0)


class Runs:
    """What a hostile pickle would do."""

    def __reduce__(self):
        return print, ("code of a pickle ran",)


@pytest.fixture
def stage(tmp_path):
    """The folder of a finished stage A, very small."""
    tensors = train_projector.make_projector(**SIZES).state_dict()
    write(tmp_path / "projector" / "config.json", {"sizes": SIZES, "trained": ["projector"], "llm": "models/x"})
    torch.save({"projector": tensors}, tmp_path / "projector" / "weights.pt")
    return tmp_path / "projector"


def tensors(change, section="projector"):
    """A change of one section of weights.pt, as a function of the folder."""
    def damage(folder):
        weights = torch.load(folder / "weights.pt", weights_only=True)
        change(weights[section])
        torch.save(weights, folder / "weights.pt")
    return damage


def save(value):
    return lambda folder: torch.save(value, folder / "weights.pt")


WEIGHTS = [
    ("a key less", tensors(lambda t: t.pop("output.bias")), "Missing key(s) in state_dict: \"output.bias\""),
    ("a key more", tensors(lambda t: t.update(more=torch.zeros(1))), "Unexpected key(s) in state_dict: \"more\""),
    ("another shape", tensors(lambda t: t.update({"output.bias": torch.zeros(3)})), "size mismatch for output.bias"),
    ("another section", save({"lora": {"a": torch.zeros(1)}}), "holds no projector"), ("a list", save([1]), "holds no"),
    ("no tensors", save({"projector": {"a": 1}}), "holds no projector"),
    ("an empty section", save({"projector": {}}), "holds no"),
    ("a pickle that runs code", save(Runs()), "is damaged or no file of tensors"),
    ("a class in the pickle", save({"projector": fractions.Fraction(1)}), "is damaged or no file of tensors"),
    ("empty", lambda f: write(f / "weights.pt", b""), "is damaged"),
    ("text", lambda f: write(f / "weights.pt", "x"), "damaged"),
    ("cut", lambda f: cut(f, "weights.pt", 900), "is damaged"),
    ("cut by a byte", lambda f: cut(f, "weights.pt", -1), "is damaged"),
    ("no file", lambda f: (f / "weights.pt").unlink(), "is damaged or no file"),
    ("zeros", lambda f: write(f / "weights.pt", bytes(5000)), "is damaged"),
    ("an old pickle", lambda f: write(f / "weights.pt", b"\x80\x04cos\nsystem\n(S'true'\ntR."), "is damaged"),
    ("sizes of another", lambda f: change(f / "config.json", sizes={**SIZES, "layers": 2}),
     "weights.pt is of a projector of other"),
    ("a word as size", lambda f: change(f / "config.json", sizes={**SIZES, "width": "8"}),
     "no projector has these sizes"),
    ("heads that do not fit", lambda f: change(f / "config.json", sizes={**SIZES, "heads": 3}),
     "no projector has these sizes"),
    ("an unknown size", lambda f: change(f / "config.json", sizes={**SIZES, "colour": 1}),
     "no projector has these sizes"),
    ("an unknown kind", lambda f: change(f / "config.json", sizes={**SIZES, "kind": "rnn"}), "'rnn' is not one of"),
    ("no sizes", lambda f: change(f / "config.json", sizes=...), "has no 'sizes'"),
    ("a config that is no JSON", lambda f: write(f / "config.json", "{"), "config.json is damaged"),
    ("an empty config", lambda f: write(f / "config.json", ""), "config.json is damaged"),
    ("a config that is a list", lambda f: write(f / "config.json", "[]"), "config.json is damaged"),
    ("a deep config", lambda f: write(f / "config.json", DEEP), "config.json is damaged"),
    ("no config", lambda f: (f / "config.json").unlink(), "config.json is missing; run: bash run_all.sh"),
]


@pytest.mark.parametrize("damage, says", cases(WEIGHTS))
def test_a_projector(stage, capsys, damage, says):
    assert train_projector.load_projector(str(stage), torch.device("cpu"))
    damage(stage)
    message = refused(train_projector.load_projector, str(stage), torch.device("cpu"), says=says)
    assert "code of a pickle ran" not in capsys.readouterr().out
    assert str(stage) in message or "rnn" in message


@pytest.fixture
def adapters(llama, tmp_path):
    """The folder of a finished stage B on the tiny LLM -> (folder, a function that loads it onto a fresh LLM)."""
    def load():
        return train_lora.attach_lora(train_projector.load_llm(llama, torch.device("cpu"))[0], str(tmp_path / "lora"))
    llm = train_projector.load_llm(llama, torch.device("cpu"))[0]
    train_lora.add_lora(llm, "q_proj,v_proj", r=2, alpha=4)
    write(tmp_path / "lora" / "config.json", {"r": 2, "alpha": 4, "targets": "q_proj,v_proj", "trained": ["lora"]})
    torch.save({"lora": train_lora.lora_state_dict(llm)}, tmp_path / "lora" / "weights.pt")
    train_lora.save_peft(str(tmp_path / "lora"), train_lora.lora_state_dict(llm), 2, 4, "models/x")
    return tmp_path / "lora", load


A0 = "model.layers.0.self_attn.q_proj.lora_A"
ADAPTERS = [
    ("a key less", tensors(lambda t: t.pop(A0), "lora"), "are for other layers"),
    ("a key more", tensors(lambda t: t.update(x=torch.zeros(1)), "lora"), "are for other layers: ['x']"),
    ("another shape", tensors(lambda t: t.update({A0: torch.zeros(2, 3)}), "lora"), f"adapter {A0} has shape (2, 3)"),
    ("a projector", save({"projector": {"a": torch.zeros(1)}}), "holds no lora"),
    ("a pickle that runs code", save(Runs()), "is damaged"),
    ("empty", lambda f: write(f / "weights.pt", b""), "is damaged"),
    ("another rank", lambda f: change(f / "config.json", r=3), "has shape (2, 32), the model (3, 32)"),
    ("other layers", lambda f: change(f / "config.json", targets="q_proj,k_proj"), "are for other layers"),
    ("layers that are not there", lambda f: change(f / "config.json", targets="query"), "no nn.Linear is called query"),
    ("a word as rank", lambda f: change(f / "config.json", r="2"), "does not fit the LLM"),
    ("rank 0", lambda f: change(f / "config.json", r=0), "does not fit the LLM"),
    ("a rank below 0", lambda f: change(f / "config.json", r=-2), "does not fit the LLM"),
    ("a number as layers", lambda f: change(f / "config.json", targets=7), "does not fit the LLM"),
    ("no rank", lambda f: change(f / "config.json", r=...), "has no 'r'"),
]


@pytest.mark.parametrize("damage, says", cases(ADAPTERS))
def test_adapters(adapters, damage, says):
    folder, load = adapters
    damage(folder)
    refused(load, names=folder, says=says)


PEFT = [("a cut file", lambda f: cut(f, "adapter_model.safetensors", 99), "is damaged"),
        ("an empty file", lambda f: write(f / "adapter_model.safetensors", b""), "is damaged"),
        ("a pickle", lambda f: torch.save(Runs(), f / "adapter_model.safetensors"), "is damaged"),
        ("no JSON", lambda f: write(f / "adapter_config.json", "{"), "is damaged"),
        ("no type", lambda f: change(f / "adapter_config.json", peft_type=...), "has no 'peft_type'"),
        ("another type", lambda f: change(f / "adapter_config.json", peft_type="LOHA"), "holds no plain LoRA")]


@pytest.mark.parametrize("damage, says", cases(PEFT))
def test_adapters_in_peft_s_format(adapters, damage, says):
    folder, _ = adapters
    assert len(train_lora.load_peft(str(folder))[0]) == 8
    damage(folder)
    refused(train_lora.load_peft, str(folder), names=folder, says=says)


# --- Checkpoints of the hub's format.

def weights_of(change):
    """A change of a checkpoint's tensors."""
    def damage(folder):
        found = safetensors.torch.load_file(folder / "model.safetensors")
        change(found)
        safetensors.torch.save_file(found, folder / "model.safetensors", {"format": "pt"})
    return damage


NORM, TABLE = "model.norm.weight", "model.embed_tokens.weight"
CHECKPOINTS = [
    ("a key less", weights_of(lambda t: t.pop(NORM)), NORM),
    ("another shape", weights_of(lambda t: t.update({NORM: torch.ones(3)})), "cannot be loaded"),
    ("cut", lambda f: cut(f, "model.safetensors", 5000), "cannot be loaded"),
    ("empty", lambda f: write(f / "model.safetensors", b""), "cannot be loaded"),
    ("text", lambda f: write(f / "model.safetensors", "x" * 99), "cannot be loaded"),
    ("no weights", lambda f: (f / "model.safetensors").unlink(), "cannot be loaded"),
    ("a pickle that runs code",
     lambda f: ((f / "model.safetensors").unlink(), torch.save(Runs(), f / "pytorch_model.bin")),
     "cannot be loaded"),
    ("a config that is no JSON", lambda f: write(f / "config.json", "{"), "cannot be loaded"),
    ("an empty config", lambda f: write(f / "config.json", "{}"), "cannot be loaded"),
    ("code of its own", lambda f: change(f / "config.json", model_type="x", auto_map={"AutoModelForCausalLM": "x.X"}),
     "cannot be"),
    ("a tokenizer that is no JSON", lambda f: write(f / "tokenizer.json", "{"), "cannot be loaded"),
]


@pytest.mark.parametrize("damage, says", cases(CHECKPOINTS))
def test_an_llm(llama, tmp_path, capsys, damage, says):
    shutil.copytree(llama, tmp_path / "llm")
    damage(tmp_path / "llm")
    refused(train_projector.load_llm, str(tmp_path / "llm"), torch.device("cpu"), names=tmp_path / "llm", says=says)
    assert "code of a pickle ran" not in capsys.readouterr().out


ENCODERS = [
    ("a key less", weights_of(lambda t: t.pop("speech_encoder.encoder.layer_norm.weight")),
     "is not complete: 1 weights"),
    ("cut", lambda f: cut(f, "model.safetensors", 9000), "cannot be loaded"),
    ("empty", lambda f: write(f / "model.safetensors", b""), "cannot be loaded"),
    ("a config that is no JSON", lambda f: write(f / "config.json", "{"), "cannot be loaded"),
    ("another model's config", lambda f: change(f / "config.json", model_type="llama"), "is a llama; speech encoders"),
    ("another size", lambda f: change(f / "config.json", hidden_size=24), "cannot be loaded"),
]


@pytest.mark.parametrize("damage, says", cases(ENCODERS))
def test_a_speech_encoder(seamless, tmp_path, damage, says):
    shutil.copytree(seamless, tmp_path / "encoder")
    damage(tmp_path / "encoder")
    refused(extract_features.load_encoder, str(tmp_path / "encoder"), "cpu", names=tmp_path / "encoder", says=says)


def test_a_judge(llama, tmp_path):
    """It must be whole, too: a random one has an opinion on everything."""
    for name, damage in (("less", weights_of(lambda t: t.pop(NORM))),
                         ("cut", lambda f: cut(f, "model.safetensors", 5000))):
        shutil.copytree(llama, tmp_path / name)
        damage(tmp_path / name)
        refused(judge.load_judge, str(tmp_path / name), "text", torch.device("cpu"), names=tmp_path / name,
                says=NORM if name == "less" else "cannot be loaded")


TABLES_OF = [("no table", weights_of(lambda t: t.pop(TABLE))), ("cut", lambda f: cut(f, "model.safetensors", 5000)),
             ("an index that is no JSON", lambda f: write(f / "model.safetensors.index.json", "{")),
             ("an index without it", lambda f: write(f / "model.safetensors.index.json", {"weight_map": {}})),
             ("an index of what is not there", lambda f: write(f / "model.safetensors.index.json", {
                 "weight_map": {TABLE: "gone.safetensors"}}))]


@pytest.mark.parametrize("damage", cases(TABLES_OF))
def test_an_llm_s_table(llama, tmp_path, damage):
    shutil.copytree(llama, tmp_path / "llm")
    damage(tmp_path / "llm")
    refused(train_projector.load_table, str(tmp_path / "llm"), torch.device("cpu"), names=tmp_path / "llm")


COMETS = [("empty", "c.pt", b""), ("text", "c.pt", b"hello"), ("zeros", "c.pt", bytes(999)),
          ("text", "c.safetensors", b"x" * 99),
          ("an old pickle that runs code", "c.pt", b"\x80\x04cos\nsystem\n(S'true'\ntR."),
          ("empty", "c.safetensors", b"")]


@pytest.mark.parametrize("name, content", cases(COMETS))
def test_weights_of_comet(tmp_path, name, content):
    refused(comet.load_comet, write(tmp_path / name, content), names=tmp_path / name)


# --- Constants, and folders of other ones.

ARGUMENTS = [("unknown", ["--colour", "red"], "unrecognized arguments: --colour"),
             ("another preset", ["--preset", "mine"], "invalid choice: 'mine'"),
             ("a word as number", ["--steps", "many"], "--steps: invalid int value: 'many'"),
             ("a point in a whole number", ["--steps", "1.5"], "invalid int value"),
             ("half a name", ["--step", "5"], "unrecognized arguments"),
             ("no value", ["--steps"], "expected one argument"),
             ("a value for a flag", ["--cosine=7"], "ignored explicit argument")]


@pytest.mark.parametrize("argv, says", cases(ARGUMENTS))
def test_constants_on_the_command_line(capsys, argv, says):
    with pytest.raises(SystemExit) as stopped:
        extract_features.configure(train_projector.Config, train_projector.PRESETS, argv)
    assert stopped.value.code == 2 and says in capsys.readouterr().err


FINISHED = [("another preset's", dict(lr=0.5), "was made with lr 0.5 (now 0.002)"),
            ("another LLM's", dict(llm="models/x"), "was made with llm 'models/x'"),
            ("another type", dict(steps="300"), "steps '300'"),
            ("an older one", dict(prompt=...), "was made with prompt None")]


@pytest.mark.parametrize("values, says", cases(FINISHED))
def test_a_folder_of_other_constants(tmp_path, values, says):
    c = train_projector.Config(work=str(tmp_path))
    write(tmp_path / "tiny" / "projector" / "config.json", dataclasses.asdict(c))
    assert train_projector.finished(c)
    change(tmp_path / "tiny" / "projector" / "config.json", **values)
    refused(train_projector.finished, c, names=tmp_path, says=says)


STARTED = [("another seed", '{"seed": 1}', "was made with seed 1 (now 0)"), ("no JSON", "{", "is damaged"),
           ("a list", "[]", "damaged"),
           ("empty", "", "is damaged"), ("not UTF-8", b'"\xff"', "is damaged"), ("deep", DEEP, "is damaged")]


@pytest.mark.parametrize("name", ["config.json", "started.json"])
@pytest.mark.parametrize("content, says", cases(STARTED))
def test_settings_of_a_recipe(tmp_path, name, content, says):
    write(tmp_path / "rows" / "tiny" / name, content)
    refused(rows.finished, str(tmp_path), "tiny", {"seed": 0}, names=tmp_path, says=says)


RESUME = [
    ("cut", lambda f: cut(f, "resume.pt", 300), "is damaged"),
    ("empty", lambda f: cut(f, "resume.pt", 0), "is damaged"),
    ("a pickle that runs code", lambda f: torch.save(Runs(), f / "resume.pt"), "is damaged"),
    ("other constants", lambda f: torch.save({"constants": {"lr": 1.0}}, f / "resume.pt"), "was made with"),
    ("a damaged log", lambda f: write(f / "log.jsonl", '{"step": 1}\n{\n'), "log.jsonl line 2 is damaged"),
    ("a log without steps", lambda f: write(f / "log.jsonl", '{"loss": 1}\n'), "log.jsonl line 1 has no 'step'"),
]


@pytest.mark.parametrize("damage, says", cases(RESUME))
def test_a_run_that_was_killed(tmp_path, damage, says):
    c, weights = train_projector.Config(work=str(tmp_path)), {"projector": (lambda: {}, lambda state: None)}
    folder, run = tmp_path / "tiny" / "projector", train_projector.Run(c, weights, [])
    run.log(loss=1.0)
    run.validated(1.0)
    run.lock.close()
    damage(folder)
    refused(train_projector.Run, c, weights, [], names=folder, says=says)


# --- Predictions, and what makers and judges keep.

ROWS = [{"id": f"tiny/test/{n}/{task}.de", "task": task, "language": "de", "utterance": f"tiny/test/{n}",
         "answerable": True}
        for n in range(2) for task in ("ST", "SQA")]
SAID_OF = [{"id": row["id"], "task": row["task"], "prediction": "Ja.", "tokens": 1, "capped": False,
            "loops": False} for row in ROWS]


def said(number, **values):
    """The predictions, one of them changed."""
    lines = [dict(line) for line in SAID_OF]
    lines[number].update(values)
    lines[number] = {key: value for key, value in lines[number].items() if value is not ...}
    return "".join(json.dumps(line) + "\n" for line in lines)


ALL = said(0)
PREDICTIONS = [
    ("empty", "", "4 rows have no prediction, first tiny/test/0/SQA.de"),
    ("one missing", ALL[:ALL[:-1].rindex("\n") + 1], "1 rows have no"),
    ("one twice", ALL + ALL[:ALL.index("\n") + 1], "line 5: id 'tiny/test/0/ST.de' is there twice"),
    ("another test set's", said(1, id="other/test/1/ST.de"), "line 2: id 'other/test/1/ST.de' is no row"),
    ("cut in a line", ALL[:-20], "line 4 is not a prediction"),
    ("not UTF-8", ALL.encode() + b'"\xff"\n', "line 5 is not a"),
    ("no JSON", ALL + "{\n", "line 5 is not a prediction"), ("a blank line", ALL + "\n", "line 5 is not a prediction"),
    ("deep", ALL.encode() + DEEP, "line 5 is not a prediction"), ("a list", ALL + "[]\n", "line 5 is not a prediction"),
    ("null", "null\n", "line 1 is not a prediction"), ("no id", said(2, id=...), "line 3 is not a prediction"),
    ("a list as id", said(2, id=["a"]), "line 3 is not a prediction"),
    ("no task", said(2, task=...), "line 3 is not a prediction"),
    ("null answer", said(0, prediction=None), "line 1 is not a prediction"),
    ("a number as answer", said(0, prediction=7), "line 1 is not a prediction"),
    ("another task", said(0, task="ASR"), "line 1: id 'tiny/test/0/ST.de' is ST, its prediction of 'ASR'"),
    ("the wrong text task", said(0, task="QA"), "is ST, its prediction of 'QA'"),
    ("an unknown task", said(0, task="TTS"), "its prediction of 'TTS'"),
    ("a list as task", said(0, task=[]), "its prediction of []"),
    ("some from text", said(0, task="MT"), "mixes predictions from speech and from text"),
    ("a word as mark", said(0, capped="yes"), "its marks are not true or false"),
    ("a number as mark", said(0, loops=1), "its marks are not true or false"),
]


@pytest.mark.parametrize("content, says", cases(PREDICTIONS))
def test_predictions(tmp_path, content, says):
    path = write(tmp_path / "A" / "tiny.test.jsonl", content)
    message = refused(read_predictions, path, ROWS, "A", "tiny", names=path, says=says)
    assert message.endswith("remove it and run: python infer.py --preset tiny")


def test_whole_predictions_are_read(tmp_path):
    found = read_predictions(write(tmp_path / "tiny.test.jsonl", ALL), ROWS, "A", "tiny")
    assert list(found.values()) == SAID_OF


PARTIAL = [("no JSON", "{\n", "line 1 is damaged"), ("a list", "[]\n", "line 1 is damaged"),
           ("no id", "{}\n", "line 1 has no 'id'"),
           ("not UTF-8", b'"\xff"\n', "line 1 is damaged"), ("deep", DEEP + b"\n", "line 1 is damaged")]


@pytest.mark.parametrize("content, says", cases(PARTIAL))
def test_predictions_of_a_killed_run(tmp_path, content, says):
    path = write(tmp_path / "x.jsonl.partial", content)
    refused(infer.read_partial, path.removesuffix(".partial"), names=path, says=says)


@pytest.mark.parametrize("content, says", cases(PARTIAL[:2] + PARTIAL[3:]))
def test_a_log_that_is_drawn(tmp_path, content, says):
    path = write(tmp_path / "lora" / "log.jsonl", content)
    refused(plot_losses, str(tmp_path), names=path, says=says)
    write(tmp_path / "lora" / "log.jsonl", '{"step": 1, "lo')                     # the first line of a run under way
    assert plot_losses(str(tmp_path)) == []


MADE_WITH = [("no JSON", "{", "is damaged"), ("another LLM", "{}", "comes from other weights"),
             ("a list", "[]", "is damaged"), ("empty", "", "is damaged")]


@pytest.mark.parametrize("content, says", cases(MADE_WITH))
def test_what_predictions_were_made_with(tmp_path, content, says):
    c = infer.Config(work=str(tmp_path))
    write(tmp_path / "tiny" / "predictions" / "llm" / "tiny.test.made.json", content)
    refused(infer.decoded, c, "llm", "", 1.0, "tiny.test", names=tmp_path, says=says)


KEPT = [("no JSON", b"{\n"), ("a list", b"[]\n"), ("null", b"null\n"), ("not UTF-8", b'"\xff"\n'),
        ("deep", DEEP + b"\n"),
        ("no settings", b"{}\n")]


@pytest.mark.parametrize("content", cases(KEPT))
def test_what_a_maker_or_a_judge_kept(tmp_path, content):
    path = write(tmp_path / "kept.jsonl", content)
    refused(recipe.read_kept, path, {"model": "m"}, names=path)
    refused(chat.read_kept, path, {"judge": "m"}, names=path)
    write(tmp_path / "kept.jsonl", b'{"settings": {"model": "m"}}\n' + content)
    refused(recipe.read_kept, path, {"model": "m"}, names=f"{path} line 2", says="is damaged")
    write(tmp_path / "kept.jsonl", b'{"judge": "m"}\n' + content)
    refused(chat.read_kept, path, {"judge": "m"}, names=f"{path} line 2", says="is damaged")


# --- Fuzz: whole files, changed at random. What is read holds to the checks; all else is refused by name.

SECONDS = 3                                             # for each reader
WORDS = [b"{", b"}", b"[", b"]", b'"', b"\\", b":", b",", b"\n", b"\0", b"\xff", b"null", b"-1", b"1e999", b"NaN",
         b"\\ud800",
         b"<", b">", b"</sample>", b"<seg id='1'>", b"&", b"&x;", b"<![CDATA[", b"<!DOCTYPE x>", b"../", b"9" * 50,
         b"\xef\xbb\xbf"]


def mutate(rng, whole):
    """Some bytes flipped, deleted, doubled, moved or put in."""
    found = bytearray(whole)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        place, end = sorted(rng.randrange(len(found) + 1) for _ in range(2))
        end = min(end, place + rng.choice((1, 3, 30, len(found))))
        found[place:end] = rng.choice((
            lambda part: bytes(byte ^ 1 << rng.randrange(8) for byte in part[:3]) + part[3:], lambda part: b"",
            lambda part: part * 2, lambda part: rng.choice(WORDS) + part, lambda part: rng.choice(WORDS),
            lambda part: bytes(rng.randrange(256) for _ in part[:9])))(bytes(found[place:end]))
    return bytes(found)


def fuzz(path, whole, read, check):
    """For SECONDS, with a fixed seed: read(path) of a changed file passes check(result), or is refused and names it."""
    import time
    rng, begin, counts = random.Random(0), time.monotonic(), collections.Counter()
    while time.monotonic() - begin < SECONDS and counts.total() < 20_000:
        path.write_bytes(mutate(rng, whole))
        try:
            with at_most(10):
                found = read()
        except (SystemExit, ValueError, FileNotFoundError) as error:
            assert type(error) in (SystemExit, ValueError, FileNotFoundError), (type(error), path.read_bytes())
            assert str(path.parent) in str(error), (str(error), path.read_bytes())
            counts["refused"] += 1
        else:
            check(found)
            counts["read"] += 1
    assert min(counts["read"], counts["refused"]) >= 10, counts
    return counts


def test_fuzz_rows(tmp_path):
    good = [{"id": f"tiny/test/{n}/SQA.de", "utterance": f"tiny/test/{n}", "audio": f"{n}.wav", "start": 0, "end": 1.5,
             "task": "SQA", "language": "de", "answerable": False, "transcript": "Anna has a cat.",
             "question": "Wer? 狗",
             "target": "Nein."} for n in range(3)]
    whole = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in good).encode()

    def check(found):
        rows.write_rows(tmp_path / "again.jsonl",
                        found)                          # which checks them, and can be encoded
        assert rows.read_rows(tmp_path / "again.jsonl") == found
        for row in found:
            assert os.path.realpath(tmp_path / row["id"]).startswith(f"{os.path.realpath(tmp_path)}/")
    fuzz(tmp_path / "x.jsonl", whole, lambda: rows.read_rows(tmp_path / "x.jsonl"), check)


TALK = '<mteval><srcset><doc docid="1">{}</doc></srcset></mteval>'
TEST = '<testset><task track="short" text_lang="de">{}</task></testset>'
REFERENCE = '<sample id="{}" task="{}"><audio_path>{}</audio_path><reference>{}</reference></sample>'


def test_fuzz_xml_of_acl6060(tmp_path):
    whole = TALK.format("".join(f'<seg id="{n}">Text &amp; {n}, a<b.</seg>\n' for n in range(1, 6))).encode()

    def check(found):
        assert all(number.isascii() and number.isdigit() and isinstance(text, str) for number,
                   (_, text) in found.items())
    fuzz(tmp_path / "x.xml", whole, lambda: acl6060.read_segments(str(tmp_path / "x.xml")), check)


def test_fuzz_xml_of_mcif(tmp_path):
    whole = TEST.format("".join(REFERENCE.format(n, "QA", "a.wav", "Ja.") for n in range(4))).encode()

    def check(found):
        assert found and all(len(one["ids"]) == len(one["audio"]) and one["reference"].strip() for one in found)
    fuzz(tmp_path / "x.xml", whole, lambda: read_references(str(tmp_path / "x.xml"), "short", "de"), check)


@pytest.mark.parametrize("name", [INDEX, DATA, "config.json"])
def test_fuzz_cache(whole_cache, cache, name):
    whole = (cache / name).read_bytes()

    def check(found):
        """Which numbers the frames are cannot be told, their places can."""
        assert len(found) == 5 and all(frames.ndim == 2 and frames.dtype == np.float16 for frames in found.values())
        assert name == INDEX or [len(frames) for frames in found.values()] == [4, 5, 6, 7, 8]
    fuzz(cache / name, whole, lambda: opened(cache, encoder="models/tiny-seamless", mean=3), check)


def test_fuzz_weights(stage):
    whole = (stage / "weights.pt").read_bytes()
    fuzz(stage / "weights.pt", whole,
         lambda: train_projector.load_projector(str(stage), torch.device("cpu")).state_dict(),
         lambda found: None)
