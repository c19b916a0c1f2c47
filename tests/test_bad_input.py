"""What is damaged, foreign or hostile is refused with its name. Rows: test_rows.py; predictions: test_eval.py."""
import contextlib
import gzip
import json
import os
import random
import shutil
import signal
import traceback
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import PROJECT, change

import extract_features
import train_lora
import train_projector
from data import acl6060, covost2, europarlst, gigast, librispeech, librisqa, multispeechqa, recipe, spokensquad
from metrics import comet, judge, pairwise, speech_ifeval
from metrics.mcif import read_references
from speech_llm.cache import finish_cache, open_features, write_shard
from speech_llm.constants import configure
from speech_llm.files import read_json_lines
from speech_llm.index import hashes_of
from speech_llm.llm import load_llm, load_table
from speech_llm.predictions import already_predicted, read_partial
from speech_llm.resumable import resumable
from speech_llm.rows import read_rows
from speech_llm.run import Run
from speech_llm.stage import open_stage

DEEP = b"[" * 100_000                                   # more levels than Python counts
PICKLE = b"\x80\x04cos\nsystem\n(S'true'\ntR."           # an old one, which runs a command
CPU = torch.device("cpu")


@contextlib.contextmanager
def at_most(seconds):
    """Raise TimeoutError if the block takes longer: a hang is a failure like any other."""
    def late(*_):
        raise TimeoutError(f"more than {seconds} s")
    signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def refused(action, *arguments, names="", says=""):
    """Return the message of the project's own error that `action` stops with; it must contain `names` and `says`."""
    with at_most(20), pytest.raises((SystemExit, ValueError, FileNotFoundError)) as caught:
        action(*arguments)
    last, message = traceback.extract_tb(caught.tb)[-1], str(caught.value)
    assert caught.type in (SystemExit, recipe.Checked, ValueError, FileNotFoundError), caught.type     # none derived
    assert last.filename.startswith(PROJECT) and not last.filename.startswith(os.path.join(PROJECT, "tests")), last
    assert str(names) in message and says in message, message
    return message


def write(path, content):
    """Write text, bytes or a JSON value; return the path as a text."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(content, (str, bytes)):
        content = json.dumps(content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    return str(path)


def cases(table):
    """Return pytest's parameters of a table of lines (name, ...), under the lines' names."""
    return [pytest.param(*line[1:], id=line[0]) for line in table]


# --- Files of text, JSON, JSON lines and XML: the same damage to each.

TALK = '<mteval><srcset><doc docid="1">{}</doc></srcset></mteval>'                             # of ACL 60/60
TEST = '<testset><task track="short" text_lang="de">{}</task></testset>'                       # of MCIF
REFERENCE = '<sample id="{}" task="QA"><audio_path>a.wav</audio_path><reference>Ja.</reference></sample>'
DAMAGE = {
    "empty": b"", "a NUL": b"\0\n", "not UTF-8": b'"\xff"\n', "UTF-16": '"a"\n'.encode("utf-16"), "text": b"hello\n",
    "half an object": b'{"a": \n', "a list": b"[]\n", "a list of numbers": b"[1, 2]\n", "null": b"null\n",
    "a number": b"7\n", "no key": b"{}\n", "deep": DEEP + b"\n", "a long number": b"1" + b"0" * 5000 + b"\n"}

READERS = {  # file: how it is read in its folder
    "acl6060.xml": lambda folder: acl6060.read_segments(f"{folder}/acl6060.xml"),
    "mcif.xml": lambda folder: read_references(f"{folder}/mcif.xml", "short", "de"),
    "covost.tsv": lambda folder: covost2.read_translations(f"{folder}/covost.tsv"),
    "segments.lst": lambda folder: europarlst.read_segments(folder, "de"),
    "10-20.trans.txt": lambda folder: librispeech.read_transcripts(f"{folder}/10-20.trans.txt"),
    "GigaST.de.json": lambda folder: gigast.read_translations(folder, []),
    "GigaSpeech.json": lambda folder: list(gigast.recordings(folder, [])),
    "LibriSQA-PartI-train.json": lambda folder: librisqa.read_entries(folder, "train", []),
    "spoken_test-v1.1.json": lambda folder: spokensquad.read_squad(f"{folder}/spoken_test-v1.1.json", "get it again"),
    "questions.jsonl": lambda folder: list(multispeechqa.read_lines(f"{folder}/questions.jsonl")),
    "speech_ifeval.jsonl": lambda folder: speech_ifeval.read_items(f"{folder}/speech_ifeval.jsonl"),
    "answers.jsonl": lambda folder: pairwise.read_answers(f"{folder}/answers.jsonl", [{"id": "r1"}]),
    "labels.jsonl": lambda folder: pairwise.read_labels([f"{folder}/labels.jsonl"], ["C", "D"]),
    "rows.jsonl": lambda folder: read_rows(f"{folder}/rows.jsonl"),
    "answers.jsonl.partial.0": lambda folder: read_partial(f"{folder}/answers.jsonl"),
    "answers.made.json": lambda folder: already_predicted(f"{folder}/answers.jsonl", {"llm": "x"}),
    "log.jsonl": lambda folder: read_json_lines(f"{folder}/log.jsonl", "train it again"),
    "results.jsonl": lambda folder: resumable(f"{folder}/results.jsonl", {"model": "m"}, [], list, 1),
    "rows/tiny/config.json": lambda folder: recipe.finished(folder, "tiny", {"seed": 0}),
    "rows/tiny/started.json": lambda folder: recipe.finished(folder, "tiny", {"seed": 0}),
    "config.json": open_stage,
    "weights.pt": lambda folder: (write(f"{folder}/config.json", {"trained": ["lora"]}), open_stage(folder)),
}
BESIDE = {"segments.en": "Yes.\n" * 3, "segments.de": "Ja.\n" * 3, "LibriSQA-PartII-train.json": "[]",
          "GigaST.zh.json": '{"audios": []}'}                              # what some of them need
FINE = {"empty": ["10-20.trans.txt", "questions.jsonl", "labels.jsonl", "answers.jsonl.partial.0", "log.jsonl",
                  "results.jsonl"],
        "a list": ["LibriSQA-PartI-train.json"], "no key": ["log.jsonl"]}                # nothing in it, and no damage


def read_beside(folder, name, content):
    """Write a file and what it needs beside it; return the function that reads it, and its folder."""
    for other, text in BESIDE.items():
        write(f"{folder}/x/{other}", text)
    path = write(f"{folder}/x/{name}", content)
    return lambda: READERS[name](f"{folder}/x"), os.path.dirname(path)


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file(tmp_path, name, damage):
    read, folder = read_beside(tmp_path, name, DAMAGE[damage])
    if name in FINE.get(damage, []):
        read()
    else:
        refused(read, names=folder)


TSV = "path\ttranslation\tsplit\n"
TALKS = TALK.format('<seg id="1">A</seg><seg id="2">B</seg>')
LIST, GIGAST, SQUAD = "'audios' (", "is not in GigaST's format", "is not in SQuAD 1.1's format"
DAMAGED = {  # file: [(its content, what is said of it)]
    "acl6060.xml": [(TALKS[:-30], "is damaged: "), *(
        (TALKS.replace('id="2"', f'id="{number}"'), f"segment id {number!r} is no number, or there twice")
        for number in ("1", "../1", "\uff12"))],
    "mcif.xml": [
        (gzip.compress(TEST.encode(), mtime=0)[:-9], "is no test set"),     # a time would be another id in each worker
        (TEST.replace("de", "it"), "has no task short de"),
        (TEST.format("<sample/>"), "sample id None is missing"),
        (TEST.format(2 * REFERENCE.format("1")), "sample id '1' is missing or there twice"),
        *((TEST.format(REFERENCE.format("1").replace(old, new)), "has no reference, no task or not one recording an id")
          for old, new in (("Ja.", ""), ("task", "type"), ('"1"', '"1,2"')))],
    "covost.tsv": [
        ("path\tsplit\n", "line 1: no column translation"), (TSV + "a.mp3\tA\tte", "line 2: unknown split 'te'"),
        (TSV + "a.mp3\tA\ttest\nb.mp3\tB", "line 3: 2 fields, expected 3, and the file ends there"),
        (TSV + "../a.mp3\tA\ttest\n", "line 2: '../a.mp3' is no file name, and no line is better")],
    "segments.lst": [("en.1 0.0 1.0", "segments.lst has 1 lines, "), *(
        (f"en.1 0.0 1.0\n{place}\nen.1 3 4", f"line 2: {place!r} is not 'speech start end'")
        for place in ("en.1 0.0", "en.1 0.0 1.2.3", "../en.1 0.0 1.0"))],
    "10-20.trans.txt": [
        ("10-20-0000 ONE\n10-20-0000", "line 2: a second transcript of 10-20-0000"),
        ("10-21-0 X", "line 1: '10-21-0 X' is no utterance of 10-20")],
    "GigaST.de.json": [
        ({"audios": 7}, "is damaged after item 0 of " + LIST), (b'{"audios": [' + DEEP, LIST),
        (b'{"audios": [{"segments": []} 2]}', "is damaged after item 1 of " + LIST),
        (b'{"audios": [{"segments": []}, ', "is damaged after item 1 of " + LIST + "it ends too early"),
        ({"audios": [{"segments": [{"text_raw": "x"}]}]}, GIGAST + " (KeyError: 'sid')"),
        ({"audios": [{"segments": [{"sid": "a", "text_raw": 7}]}]}, GIGAST)],
    "GigaSpeech.json": [({"audios": [{"aid": "POD1", "path": 7, "segments": []}]},
                         "item 1 is not in GigaSpeech's format (TypeError: ")],
    "spoken_test-v1.1.json": [
        ({"data": [7]}, SQUAD), ({"data": [{"paragraphs": []}, {}]}, SQUAD + " (KeyError: 'paragraphs')"),
        ({"data": [{"paragraphs": [{"context": "", "qas": [{"id": 7, "question": "Who?", "answers": []}]}]}]}, SQUAD)],
    "questions.jsonl": [(line, "line 1") for line in ({"question": "a"}, {"question": "a", "answer": "b", "audio": 3})],
    "speech_ifeval.jsonl": [
        ({"instruction": None, "metric": "cot", "audio_filepath": "a"}, "has no 'instruction'"),
        ({"instruction": "Yes?", "metric": "cot", "audio_filepath": 7}, "has no 'audio_filepath'")],
    "answers.jsonl": [({"id": "r1", "task": "SQA", "prediction": None}, "run infer.py on these rows")],
    "labels.jsonl": [({"id": 7, "labels": ["C"]}, "line 1"), ({"id": "a", "labels": ["Z"]}, "'Z'")],
    "answers.made.json": [({"llm": "y"}, "was made with llm 'y' (now 'x')")]}


@pytest.mark.parametrize("name, content, says", [(name, *case) for name, table in DAMAGED.items() for case in table])
def test_a_value_that_does_not_belong_there(tmp_path, name, content, says):
    read, folder = read_beside(tmp_path, name, content)
    refused(read, names=folder, says=says)


# --- Caches.

MADE = {"encoder": "models/tiny-seamless", "weights": "abc", "mean": 3}
NOISE = np.random.default_rng(0)
FRAMES = {f"tiny/test/{n}": NOISE.standard_normal((4 + n, 8)).astype(np.float16) for n in range(5)}
SHARDS = {"frames-00000": [*FRAMES][:3], "frames-00001": [*FRAMES][3:]}


@pytest.fixture
def cache(tmp_path):
    """Write a finished cache of two shards, of 3 and 2 utterances; return its folder."""
    folder = tmp_path / "tiny" / "test"
    for shard, names in SHARDS.items():
        write_shard(str(folder), shard, {name: FRAMES[name] for name in names},
                    {"made": MADE, "dropped": [], "seconds": 1.0})
    assert finish_cache(extract_features.Config(), MADE, str(folder), hashes_of(FRAMES))
    return folder


def read_cache(folder):
    """Return {utterance: frames} of a cache, all of it read."""
    features = open_features(str(folder), {"encoder": "models/tiny-seamless", "mean": 3})
    assert len(features) == 5
    return {name: np.array(features[name]) for name in FRAMES if name in features}


def cut(folder, name, count):
    (folder / name).write_bytes((folder / name).read_bytes()[:count])


def resave(folder, change):
    np.save(folder / DATA, change(np.load(folder / DATA)), allow_pickle=True)


INDEX, DATA, OTHER, OTHER_DATA = "frames-00000.json", "frames-00000.npy", "frames-00001.json", "frames-00001.npy"
LENGTHS = {"tiny/test/0": 4, "tiny/test/1": 5, "tiny/test/2": 6}
CACHES = [  # name, what is done to the folder, part of the message
    ("cut by a byte", lambda f: cut(f, DATA, -1), DATA), ("no shard", lambda f: (f / DATA).unlink(), DATA),
    ("another shard of the same size", lambda f: shutil.copy(f / OTHER_DATA, f / DATA), DATA),
    ("an index twice", lambda f: shutil.copy(f / INDEX, f / OTHER), OTHER),
    ("an index gone", lambda f: (f / OTHER).unlink(), ""),
    ("no index", lambda f: [(f / name).unlink() for name in (INDEX, OTHER)], "holds 0 utterances"),
    ("an index of another folder's data", lambda f: change(f / INDEX, data="../../x.npy"), INDEX),
    ("float32", lambda f: resave(f, lambda a: a.astype(np.float32)), "float32"),
    ("objects", lambda f: resave(f, lambda a: a.astype(object)), DATA),
    ("another width", lambda f: resave(f, lambda a: a[:, :4]), "shape (15, 4)"),
    ("a length below zero", lambda f: change(f / INDEX, lengths={**LENGTHS, "tiny/test/2": -6}), INDEX),
    ("a list of lengths", lambda f: change(f / INDEX, lengths=[4, 5, 6]), INDEX),
    ("no lengths", lambda f: change(f / INDEX, lengths=...), "has no 'lengths'"),
    ("no config", lambda f: (f / "config.json").unlink(), "config.json is missing"),
    ("a config without the width", lambda f: change(f / "config.json", width=...), "has no 'width'"),
    ("an utterance in two shards", lambda f: change(f / OTHER, lengths={"tiny/test/0": 7, "tiny/test/4": 8}),
     "there twice"),
    ("another encoder", lambda f: change(f / INDEX, made={**MADE, "encoder": "models/x"}),
     "made with encoder 'models/x'"),
    ("another mean", lambda f: change(f / OTHER, made={**MADE, "mean": 2}), "made with mean 2, expected is 3"),
]


@pytest.mark.parametrize("damage, says", cases(CACHES))
def test_a_cache(cache, damage, says):
    sound = read_cache(cache)
    assert all((sound[name] == FRAMES[name]).all() for name in FRAMES)
    damage(cache)
    assert "extract_features.py" in refused(read_cache, cache, names=cache, says=says)             # what to do


# --- Weights and configs of a stage.

SIZES = dict(kind="transformer", width=8, llm_width=16, layers=1, heads=2, ffn=16, dropout=0.0)


class Runs:
    """A pickle that runs code when it is loaded."""

    def __reduce__(self):
        return print, ("code of a pickle ran",)


@pytest.fixture
def stage(tmp_path):
    """Write the folder of a finished stage A, very small."""
    tensors = train_projector.make_projector(**SIZES).state_dict()
    write(tmp_path / "projector" / "config.json", {"sizes": SIZES, "trained": ["projector"], "llm": "models/x"})
    torch.save({"projector": tensors}, tmp_path / "projector" / "weights.pt")
    return tmp_path / "projector"


def load_stage(folder):
    return train_projector.load_projector(open_stage(str(folder)), CPU)


def tensors(change):
    """Return a function that changes the tensors of a folder's weights.pt."""
    def damage(folder):
        weights = torch.load(folder / "weights.pt", weights_only=True)
        for section in weights.values():
            change(section)
        torch.save(weights, folder / "weights.pt")
    return damage


def save(value):
    return lambda folder: torch.save(value, folder / "weights.pt")


def resize(**values):
    return lambda folder: change(folder / "config.json", sizes={**SIZES, **values})


WEIGHTS = [
    ("a key less", tensors(lambda t: t.pop("output.bias")), "Missing key(s) in state_dict: \"output.bias\""),
    ("a key more", tensors(lambda t: t.update(more=torch.zeros(1))), "Unexpected key(s) in state_dict: \"more\""),
    ("another shape", tensors(lambda t: t.update({"output.bias": torch.zeros(3)})), "size mismatch for output.bias"),
    ("another section", save({"lora": {"a": torch.zeros(1)}}), "holds no projector"),
    ("no tensors", save({"projector": {"a": 1}}), "holds no projector"),
    ("a pickle that runs code", save(Runs()), "is damaged or not a file of tensors"),
    ("an old pickle", lambda f: write(f / "weights.pt", PICKLE), "is damaged"),
    ("cut", lambda f: cut(f, "weights.pt", 900), "is damaged"),
    ("sizes of another", resize(layers=2), "weights.pt is of a projector of other sizes"),
    ("a word as size", resize(width="8"), "no projector has such sizes"),
    ("heads that do not fit", resize(heads=3), "--heads 3 does not divide the projector's width 8"),
    ("an unknown kind", resize(kind="rnn"), "rnn is not one of"),
    ("no config", lambda f: (f / "config.json").unlink(), "config.json is missing; run: bash run_all.sh"),
]


@pytest.mark.parametrize("damage, says", cases(WEIGHTS))
def test_a_projector(stage, capsys, damage, says):
    assert load_stage(stage)
    damage(stage)
    message = refused(load_stage, stage, says=says)
    assert "code of a pickle ran" not in capsys.readouterr().out
    assert str(stage) in message or "--heads" in message or "rnn" in message


@pytest.fixture
def adapters(llama, tmp_path):
    """Write the folder of a finished stage B on the tiny LLM; return it, and a function that loads it."""
    llm = load_llm(llama, CPU)[0]
    train_lora.add_lora(llm, "q_proj,v_proj", r=2, alpha=4)
    write(tmp_path / "lora" / "config.json", {"r": 2, "alpha": 4, "targets": "q_proj,v_proj", "trained": ["lora"]})
    torch.save({"lora": train_lora.lora_state_dict(llm)}, tmp_path / "lora" / "weights.pt")
    return tmp_path / "lora", lambda: train_lora.attach_lora(load_llm(llama, CPU)[0], open_stage(f"{tmp_path}/lora"))


A0 = "model.layers.0.self_attn.q_proj.lora_A"
ADAPTERS = [
    ("a key less", tensors(lambda t: t.pop(A0)), "are for other layers"),
    ("another shape", tensors(lambda t: t.update({A0: torch.zeros(2, 3)})), f"adapter {A0} has shape (2, 3)"),
    ("another rank", lambda f: change(f / "config.json", r=3), "has shape (2, 32), the model (3, 32)"),
    ("other layers", lambda f: change(f / "config.json", targets="q_proj,k_proj"), "are for other layers"),
    ("a word as rank", lambda f: change(f / "config.json", r="2"), "does not fit the LLM"),
    ("rank 0", lambda f: change(f / "config.json", r=0), "does not fit the LLM"),
]


@pytest.mark.parametrize("damage, says", cases(ADAPTERS))
def test_adapters(adapters, damage, says):
    folder, load = adapters
    damage(folder)
    refused(load, names=folder, says=says)


# --- Checkpoints of the hub's format.

def parts(change):
    """Return a function that changes the tensors of a checkpoint."""
    def damage(folder):
        tensors = safetensors.torch.load_file(folder / "model.safetensors")
        change(tensors)
        safetensors.torch.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return damage


LOADERS = {"llm": lambda folder: load_llm(folder, CPU), "table": lambda folder: load_table(folder, CPU),
           "judge": lambda folder: judge.load_judge(folder, "text", CPU),
           "comet": lambda folder: comet.load_comet(f"{folder}/comet.pt"),
           "encoder": lambda folder: extract_features.load_encoder(folder, "cpu")}
NORM, TABLE = "model.norm.weight", "model.embed_tokens.weight"
TENSORS, INDEX_OF = "model.safetensors", "model.safetensors.index.json"
CHECKPOINTS = [  # what is loaded, what is done to its folder, part of the message: "" is "cannot be loaded"
    ("llm", parts(lambda t: t.pop(NORM)), NORM), ("llm", parts(lambda t: t.update({NORM: torch.ones(3)})), ""),
    ("llm", lambda f: cut(f, TENSORS, 5000), ""),
    ("llm", lambda f: ((f / TENSORS).unlink(), torch.save(Runs(), f / "pytorch_model.bin")), ""),
    ("llm", lambda f: write(f / "config.json", "{"), ""),
    ("llm", lambda f: change(f / "config.json", model_type="x", auto_map={"AutoModelForCausalLM": "x.X"}), ""),
    ("llm", lambda f: write(f / "tokenizer.json", "{"), ""), ("judge", parts(lambda t: t.pop(NORM)), NORM),
    ("judge", lambda f: cut(f, TENSORS, 5000), ""),
    ("table", parts(lambda t: t.pop(TABLE)), ""), ("table", lambda f: write(f / INDEX_OF, {"weight_map": {}}), ""),
    ("table", lambda f: write(f / INDEX_OF, {"weight_map": {TABLE: "gone.safetensors"}}), ""),
    ("comet", lambda f: write(f / "comet.pt", PICKLE), "comet.pt"),
    ("comet", lambda f: write(f / "comet.pt", b"hello"), "comet.pt"), ("encoder", lambda f: cut(f, TENSORS, 5000), ""),
    ("encoder", lambda f: change(f / "config.json", model_type="llama"), "is a llama"),
    ("encoder", lambda f: change(f / "config.json", hidden_size=24), "")]


@pytest.mark.parametrize("kind, damage, says", CHECKPOINTS)
def test_a_checkpoint(request, tmp_path, capsys, kind, damage, says):
    """A lacking weight, which transformers would leave random, is named; so is a checkpoint of another model."""
    shutil.copytree(request.getfixturevalue("seamless" if kind == "encoder" else "llama"), tmp_path / "model")
    damage(tmp_path / "model")
    refused(LOADERS[kind], str(tmp_path / "model"), names=tmp_path / "model", says=says or "cannot be loaded")
    assert "code of a pickle ran" not in capsys.readouterr().out


RESUME = [
    ("cut", lambda f: cut(f, "resume.pt", 300), "is damaged"),
    ("a pickle that runs code", lambda f: torch.save(Runs(), f / "resume.pt"), "is damaged"),
    ("a damaged log", lambda f: write(f / "log.jsonl", '{"step": 1}\n{\n'), "log.jsonl line 2 is damaged"),
    ("a log without steps", lambda f: write(f / "log.jsonl", '{"loss": 1}\n'), "log.jsonl line 1 has no 'step'"),
]


@pytest.mark.parametrize("damage, says", cases(RESUME))
def test_a_run_that_was_killed(tmp_path, damage, says):
    c = configure(train_projector.Config, "train_projector", ["--work", str(tmp_path)])
    weights = {"projector": (lambda: {}, lambda state: None)}
    folder, run = tmp_path / "tiny" / "projector", Run(c, weights, [])
    run.step = 1
    run.validated(1.0)
    run.lock.close()
    damage(folder)
    refused(Run, c, weights, [], names=folder, says=says)


# --- Fuzz: whole files, changed at random, are read or refused by name.

WORDS = [b"{", b"]", b'"', b"\\", b",", b"\n", b"\0", b"\xff", b"null", b"-1", b"1e999", b"\\ud800", b"<",
         b"</sample>", b"&x;", b"<!DOCTYPE x>", b"../", b"9" * 50]
ROW = {"utterance": "tiny/test/1", "audio": "1.wav", "start": 0, "end": 1.5, "task": "SQA", "language": "de",
       "answerable": False, "transcript": "Anna has a cat.", "question": "Wer? 狗", "target": "Nein."}
TEXTS = {"rows.jsonl": "".join(json.dumps({"id": f"tiny/test/{n}/SQA.de", **ROW}) + "\n" for n in range(3)),
         "acl6060.xml": TALK.format("".join(f'<seg id="{n}">Text &amp; {n}, a<b.</seg>\n' for n in range(1, 6))),
         "mcif.xml": TEST.format("".join(REFERENCE.format(n) for n in range(4)))}


def mutate(rng, whole):
    """Return the bytes with one to five places left out, doubled or overwritten."""
    content = bytearray(whole)
    for _ in range(rng.choice((1, 1, 2, 5))):
        first = rng.randrange(len(content) + 1)
        place = slice(first, first + rng.choice((1, 3, 30)))
        content[place] = rng.choice((b"", content[place] * 2, rng.choice(WORDS), rng.randbytes(3)))
    return bytes(content)


def fuzz(path, read):
    """Change a file 300 times, with a fixed seed: read(folder) returns, or refuses it by name; both happen."""
    rng, whole, refusals = random.Random(0), path.read_bytes(), 0
    for _ in range(300):
        path.write_bytes(mutate(rng, whole))
        try:
            with at_most(10):
                read(str(path.parent))
        except (SystemExit, ValueError, FileNotFoundError) as error:
            assert type(error) in (SystemExit, ValueError, FileNotFoundError), (type(error), path.read_bytes())
            assert str(path.parent) in str(error), (str(error), path.read_bytes())
            refusals += 1
    assert 5 <= refusals <= 295


@pytest.mark.parametrize("name", TEXTS)
def test_fuzz_text(tmp_path, name):
    fuzz(Path(write(tmp_path / name, TEXTS[name])), READERS[name])


@pytest.mark.parametrize("name", [INDEX, DATA])
def test_fuzz_cache(cache, name):
    fuzz(cache / name, read_cache)


def test_fuzz_weights(stage):
    fuzz(stage / "weights.pt", load_stage)
