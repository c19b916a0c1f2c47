"""MultiSpeechQA and MultiSpeech-Bench: the recipe with fast makers."""
import json
import os
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import transformers
from test_bad_input import refused

from data import multispeechqa, speak
from data.multispeechqa import SUBSETS, quotas, split_pairs, subset_of
from speech_llm.files import write_json_lines
from speech_llm.rows import read_rows

TTS = """
import json, sys, wave                                # nothing that takes long to import
for line in open(sys.argv[-1], encoding="utf-8"):
    job = json.loads(line)
    if len(sys.argv) > 2 and job["text"].endswith(sys.argv[1]):
        sys.exit(3)
    if "silent" not in job["text"]:
        with wave.open(job["audio"], "wb") as file:
            file.setparams((1, 2, 8000, 0, "NONE", ""))
            file.writeframes(b"ab" * 8000)
    with open("tts.log", "a", encoding="utf-8") as log:
        log.write(job["language"] + " " + job["split"] + " " + job["text"] + "\\n")
"""


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Enter a folder with 100 pairs; the makers answer at once -> what is spoken: [(language, split, voices)]."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(multispeechqa, "BLOCK", 40)
    os.mkdir("seamless")
    spoken = []

    def translate(texts, language, model, path):
        return ["" if "untranslatable" in text else f"{language}: {text}" for text in texts]

    def speak(texts, folder, model, seed, language, voices):
        os.makedirs(folder, exist_ok=True)
        spoken.append((language, os.path.basename(folder), voices))
        paths = {name: None if "unspeakable" in text else f"{folder}/{name}.flac" for name, text in texts.items()}
        for path in filter(None, paths.values()):
            soundfile.write(path, 0.1 * np.ones(1600), 16000)
        return paths
    monkeypatch.setattr(multispeechqa, "translate", translate)
    monkeypatch.setattr(multispeechqa, "speak", speak)
    (tmp_path / "tts.py").write_text(TTS)
    subsets = ["identity"] * 25 + ["rlhf"] * 75
    write_pairs([{"split_name": subset, "question": f"{subset} question {n}?", "answer": f"answer {n}."}
                 for n, subset in enumerate(subsets)])
    return spoken


def write_pairs(lines):
    write_json_lines("work/raw/multispeechqa/a.jsonl", lines)


def pairs_of(*names):
    return [{"name": f"{name}-{n}", "subset": name.split()[0], "question": f"{name}?", "answer": "x", "source": None}
            for n, name in enumerate(names, 1)]


MODEL = ["--seamless", "seamless", "--incomplete"]
ARGUMENTS = [*MODEL, "--dev", "8", "--test", "4", "--rlhf", "10", "--tts", f"{sys.executable} tts.py"]


def test_subsets_and_their_shares_of_table_1():
    assert [subset_of(split_name) for split_name in (
        "identity", "Trivia (Multi-choice, 17K)", "trivia_single_choice_20k", "qa_assistant_v1_7k", "Anthropic-RLHF",
        "My QA", "")] == ["identity", "trivia-multi", "trivia-single", "assistant-v1", "rlhf", "my-qa", "pairs"]
    sizes = {name: pairs for name, (_, pairs) in SUBSETS.items()}
    # 35.2, 35.2, 12.3, 34.1, 66.6, 9.2, 807.6 of 1000: the two most cut get one more
    assert sum(sizes.values()) == 470_054 and quotas(1000, sizes) == {
        "trivia-multi": 35, "trivia-single": 35, "assistant-v1": 12, "assistant-v2": 34, "alpaca": 67, "identity": 9,
        "rlhf": 808}


def test_no_question_is_on_both_sides(capsys):
    """Of four pairs with the same words, in two Unicode forms, one is in dev, and then none in another split."""
    pairs, dropped = pairs_of(*(f"identity {form} {n % 10}" for form in ("è", "e\u0300") for n in range(20))), []
    splits = split_pairs(pairs, {"dev": 3, "test": 2}, 5, 0, dropped)
    dev, test, train = ([pair["question"] for pair in splits[split]] for split in ("dev", "test", "train"))
    assert (len(dev), len(test), len(train)) == (3, 2, 20)
    assert not {*dev} & {*test} and not {*train} & {*dev, *test}
    assert len(dropped) == 15 and {why for _, _, why in dropped} == {"a question of dev or test"}
    again, other_seed = (split_pairs(pairs, {"dev": 3, "test": 2}, 5, seed, []) for seed in (0, 1))
    assert again == splits != other_seed
    refused(split_pairs, pairs, {"dev": 3, "test": 8}, 5, 0, [],
            says="test needs 8 pairs of identity whose questions differ, and 7 are left")

    # by size; if RLHF had another name, all of its 379,621 pairs would be in train, and the screen must say so
    pairs = pairs_of(*(f"harmless {n}" for n in range(30)), *(f"rlhf {n}" for n in range(10)))
    splits = split_pairs(pairs, {"dev": 4, "test": 4}, 2, 0, [])
    assert Counter(pair["subset"] for pair in splits["test"]) == {"harmless": 3, "rlhf": 1}
    assert Counter(pair["subset"] for pair in splits["train"]) == {"harmless": 24, "rlhf": 2}
    assert "not in Table 1: harmless; " in capsys.readouterr().out


def test_the_same_pairs_in_every_language(world, capsys):
    """Of the 12 held-out pairs 99 % are rlhf. The maker speaks English and German, the TTS command Hebrew."""
    multispeechqa.main(["--languages", "en,de,he", *ARGUMENTS])
    splits = {split: read_rows(f"work/rows/multispeechqa/{split}.jsonl") for split in ("train", "dev", "test", "bench")}
    for split, count in (("train", 25 + 10), ("dev", 8), ("test", 4), ("bench", 4)):
        english, german, hebrew = ([row["id"].removesuffix(language) for row in splits[split]
                                    if row["language"] == language] for language in ("en", "de", "he"))
        assert english == german == hebrew and len(english) == count
    row = next(row for row in splits["test"] if row["language"] == "de")
    number = int(row["target"].removeprefix("de: answer ").rstrip("."))
    name = f"rlhf-{number - 24}"
    assert row == {"id": f"multispeechqa/test/{name}/SQA.de", "utterance": f"multispeechqa/test/de/{name}",
                   "audio": f"work/audio/multispeechqa/de/test/{name}.flac", "task": "SQA", "language": "de",
                   "transcript": f"de: rlhf question {number}?", "question": f"de: rlhf question {number}?",
                   "target": f"de: answer {number}.", "answerable": True}
    assert {*world} == {(language, split, (0.0, 0.8) if split == "train" else (0.8, 1.0))
                        for language in ("en", "de") for split in ("train", "dev", "test")}
    assert all(line.startswith("he ") for line in open("tts.log", encoding="utf-8"))
    assert {row["id"].replace("/bench/", "/test/"): row["utterance"] for row in splits["bench"]} == {
        row["id"]: row["utterance"] for row in splits["test"]}
    multispeechqa.main(["--languages", "en,de", *ARGUMENTS])                # more languages than asked for will do
    assert "is finished already" in capsys.readouterr().out


def test_of_several_processes_the_first_alone_asks_the_tts_command_and_writes_the_rows(world, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr("sys.stdout", sys.stdout)                           # which silence_others() takes away
    multispeechqa.main(["--languages", "de,he", *ARGUMENTS])
    assert [language for language, *_ in world] == ["de"] * 3 and not os.path.exists("tts.log")
    assert sorted(os.listdir("work/rows/multispeechqa")) == ["lock", "started.json"]


def test_what_is_lost_is_listed_and_bench_has_it_in_no_language(world, monkeypatch):
    """Of five test pairs four are lost in some language. English takes the recordings of the download."""
    soundfile.write("a.wav", np.ones(800) * 0.1, 8000)
    Path("b.wav").write_text("no sound")
    recordings = {"untranslatable": None, "unspeakable": None, "silent": None, "good": "a.wav", "broken": "b.wav"}
    write_pairs([{"question": f"{word}?", "answer": "yes", "audio": audio} for word, audio in recordings.items()]
                + [{"question": " ", "answer": "x"}])
    monkeypatch.setattr(multispeechqa, "BENCH", 3)
    multispeechqa.main(["--languages", "en,fr,el", *ARGUMENTS, "--dev", "0", "--test", "5"])
    listed = [line.split("\t") for line in Path("work/rows/multispeechqa/dropped.txt").read_text().splitlines()]
    assert {(name.removeprefix("multispeechqa/"), why.split(":")[0]) for _, name, why in listed} == {
        ("pairs-6", "no question or no answer"), ("test/fr/pairs-1", "empty translation"),
        ("test/el/pairs-1", "empty translation"), ("test/en/pairs-2", "could not be spoken"),
        ("test/fr/pairs-2", "could not be spoken"), ("test/el/pairs-3", "no such file"),
        ("test/en/pairs-5", "cannot be decoded")}
    test, bench = (read_rows(f"work/rows/multispeechqa/{split}.jsonl") for split in ("test", "bench"))
    assert len(test) == 3 * 3 and not os.path.exists("work/rows/multispeechqa/train.jsonl")
    assert [(row["id"], row["audio"]) for row in bench] == [
        ("multispeechqa/bench/pairs-4/SQA.en", "a.wav"),
        ("multispeechqa/bench/pairs-4/SQA.fr", "work/audio/multispeechqa/fr/test/pairs-4.flac"),
        ("multispeechqa/bench/pairs-4/SQA.el", "work/audio/multispeechqa/el/test/pairs-4.wav")]


def test_a_killed_tts_command_goes_on(world):
    """Blocks of forty: what a block has written when the command fails is written again, earlier blocks are not."""
    failing = ["--languages", "el", *ARGUMENTS[:-1], f"{sys.executable} tts.py 61?", "--rlhf", "200"]
    refused(multispeechqa.main, failing, says="goes on with these 40 texts")
    before = open("tts.log").readlines()
    assert 0 < len(before) % 40 and len(before) < 100
    Path("tts.py").write_text(TTS.replace("sys.exit(3)", "pass"))
    multispeechqa.main(failing)
    after = open("tts.log").readlines()
    assert len({*after}) == 100 and len(after) == 100 + len(before) % 40
    assert len([path for path in Path("work/audio").rglob("*.wav") if path.name[0] != "."]) == 100


@pytest.mark.parametrize("more, says", [
    (["--languages", "de,xx"], "--languages xx: known are en, de,"),
    (["--languages", "ja", "--tts_languages", "ja"], "--tts_languages ja: which command speaks them? Pass --tts"),
    (["--languages", "de"], "dev needs 1978 pairs of rlhf"),
    (["--languages", "el", "--tts", "no_such x"], "no_such is missing: --tts no_such x cannot be")])
def test_refused_before_any_work(world, more, says):
    refused(multispeechqa.main, [*more, *MODEL], says=says)
    assert not world and not os.path.exists("work/rows")


def test_the_hub_s_parquet(world):
    """Two row groups, sound as bytes: only what is in a split is written, and only once."""
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet
    soundfile.write("one.wav", np.ones(800) * 0.1, 8000)
    rows = [{"split_name": "identity", "question": f"identity {n}?", "answer": f"answer {n}", "question_audio": {
        "bytes": b"x" if n == 2 else Path("one.wav").read_bytes(), "path": None}} for n in range(6)]
    os.remove("work/raw/multispeechqa/a.jsonl")
    parquet.write_table(pa.Table.from_pylist(rows), "work/raw/multispeechqa/0.parquet", row_group_size=3)
    multispeechqa.main(["--languages", "en,fr", "--dev", "0", "--test", "6", *MODEL])
    test = read_rows("work/rows/multispeechqa/test.jsonl")
    assert len(test) == 5 + 6 and soundfile.read(next(row["audio"] for row in test))[1] == 8000
    assert "identity-3\tcannot be decoded" in Path("work/rows/multispeechqa/dropped.txt").read_text()
    Path("work/raw/multispeechqa/1.parquet").write_bytes(b"PAR1")
    refused(multispeechqa.main, ["--work", "again", "--raw", "work/raw/multispeechqa", "--languages", "en", *MODEL],
            says="1.parquet is damaged")


def test_mms_speaks_greek_when_no_command_is_named(world, monkeypatch):
    """By a tiny random VITS: a text has the same speech, whatever else is spoken; one of other letters is dropped."""
    Path("vocab.json").write_text(json.dumps(dict(zip("_ αβγ", range(5)))))
    tokenizer = transformers.VitsTokenizer("vocab.json", pad_token="_", unk_token="_", language="ell", phonemize=False,
                                           is_uroman=False)
    config = transformers.VitsConfig(
        vocab_size=5, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, ffn_dim=8, flow_size=8,
        spectrogram_bins=9, upsample_initial_channel=16, upsample_rates=[4, 2], upsample_kernel_sizes=[8, 4],
        prior_encoder_num_flows=1, prior_encoder_num_wavenet_layers=1, posterior_encoder_num_wavenet_layers=1,
        duration_predictor_flow_bins=4, resblock_kernel_sizes=[3], resblock_dilation_sizes=[[1, 3]])
    torch.manual_seed(0)
    for part in (transformers.VitsModel(config), tokenizer):
        part.save_pretrained("mms")
    monkeypatch.setitem(speak.MMS, "el", "mms")
    monkeypatch.setattr(multispeechqa, "translate", lambda texts, *more: [
        "Latin" if n == 0 else "αβγ " * (n % 3 + 1) for n, _ in enumerate(texts)])
    write_pairs([{"question": f"q{n}", "answer": "x"} for n in range(4)])
    multispeechqa.main(["--languages", "el", *MODEL, "--dev", "0", "--test", "4"])
    rows = read_rows("work/rows/multispeechqa/test.jsonl")
    assert len(rows) == 3 and not world
    assert "pairs-1\tcould not be spoken" in Path("work/rows/multispeechqa/dropped.txt").read_text()
    wave, rate = soundfile.read(rows[0]["audio"])
    assert rate == 16000 and len(wave) > 100 and 0 < np.abs(wave).max() <= 1
    name = rows[0]["utterance"].rpartition("/")[2]
    again = speak.speak_mms({name: rows[0]["transcript"]}, "again", "el")[name]
    assert np.array_equal(soundfile.read(again)[0], wave)
