"""MultiSpeechQA and MultiSpeech-Bench: the recipe with fast makers."""
import json
import os
import random
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import transformers

from data import multispeechqa, speak
from data.multispeechqa import SUBSETS, quotas, split_pairs, subset_of
from speech_llm.rows import read_rows


PARITY = Path(__file__).parents[2] / "shared" / "parity"
TTS = """
import json, sys
import numpy as np, soundfile
for line in open(sys.argv[-1], encoding="utf-8"):
    job = json.loads(line)
    if len(sys.argv) > 2 and job["text"].endswith(sys.argv[1]):
        sys.exit(3)
    if "silent" not in job["text"]:
        soundfile.write(job["audio"], 0.1 * np.ones(8000), 8000)
    with open("tts.log", "a", encoding="utf-8") as log:
        log.write(job["language"] + " " + job["split"] + " " + job["text"] + "\\n")
"""


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A folder with 100 pairs, makers that answer at once, a TTS command."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(multispeechqa, "BLOCK", 10)
    os.mkdir("seamless")
    spoken = []

    def translate(texts, language, model, path):
        assert path == f"work/made/multispeechqa/translate.{language}.jsonl"
        return ["" if "untranslatable" in text else f"{language}: {text}" for text in texts]

    def speak(texts, folder, model, seed, language, voices):
        paths = {}
        for name, text in texts.items():
            paths[name] = None if "unspeakable" in text else f"{folder}/{name}.flac"
            if paths[name]:
                os.makedirs(folder, exist_ok=True)
                soundfile.write(paths[name], 0.1 * np.ones(1600), 16000)
        spoken.append((language, os.path.basename(folder), voices))
        return paths
    monkeypatch.setattr(multispeechqa, "translate", translate)
    monkeypatch.setattr(multispeechqa, "speak", speak)
    (tmp_path / "tts.py").write_text(TTS)
    lines = []
    for n in range(100):
        subset = "identity" if n < 25 else "rlhf"
        lines.append({"split_name": subset, "question": f"{subset} question {n}?", "answer": f"answer {n}."})
    write_pairs(lines)
    return spoken


def write_pairs(lines, name="a.jsonl"):
    os.makedirs("work/raw/multispeechqa", exist_ok=True)
    with open(f"work/raw/multispeechqa/{name}", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def pairs_of(*names):
    return [{"name": f"{name}-{n}", "subset": name.split()[0], "question": f"{name}?", "answer": "x", "source": None}
            for n, name in enumerate(names, 1)]


MODEL = ["--seamless", "seamless", "--incomplete"]
ARGUMENTS = [*MODEL, "--dev", "8", "--test", "4", "--rlhf", "10", "--tts", f"{sys.executable} tts.py"]


# --- Splits.

def test_the_shares_of_table_1():
    sizes = {name: pairs for name, (_, pairs) in SUBSETS.items()}
    assert sum(sizes.values()) == 470_054
    test = quotas(1000, sizes)         # 35.2, 35.2, 12.3, 34.1, 66.6, 9.2, 807.6: the two most cut get one more
    assert test == {"trivia-multi": 35, "trivia-single": 35, "assistant-v1": 12, "assistant-v2": 34, "alpaca": 67,
                    "identity": 9, "rlhf": 808}
    assert sum(quotas(2000, sizes).values()) == 2000 and quotas(3, {"a": 1, "b": 1}) == {"a": 2, "b": 1}


@pytest.mark.parametrize("split_name, subset", [
    ("identity", "identity"), ("Trivia (Multi-choice, 17K)", "trivia-multi"), ("trivia_single_choice_20k",
     "trivia-single"), ("qa_assistant_v1_7k", "assistant-v1"), ("qassistant_v2", "assistant-v2"),
    ("alpaca_gpt4_en_55k", "alpaca"), ("Anthropic-RLHF", "rlhf"), ("My QA", "my-qa"), ("", "pairs")])
def test_subsets_are_known_by_part_of_their_name(split_name, subset):
    assert subset_of(split_name) == subset


def test_no_question_is_on_both_sides():
    """Twice the same words: once in dev, and then in no other split."""
    pairs = pairs_of(*(f"identity {n % 10}" for n in range(40)))
    dropped = []
    splits = split_pairs(pairs, {"dev": 3, "test": 2}, 5, 0, dropped)
    questions = {split: {pair["question"] for pair in members} for split, members in splits.items()}
    assert [len(splits[split]) for split in ("dev", "test", "train")] == [3, 2, 20]
    assert not questions["dev"] & questions["test"] and not questions["train"] & (questions["dev"] | questions["test"])
    assert len(dropped) == 15 and {why for _, _, why in dropped} == {"a question of dev or test"}
    assert split_pairs(pairs, {"dev": 3, "test": 2}, 5, 0, []) == splits != split_pairs(
        pairs, {"dev": 3, "test": 2}, 5, 1, [])
    with pytest.raises(SystemExit, match="test needs 8 pairs of identity whose questions differ, and 7 are left"):
        split_pairs(pairs, {"dev": 3, "test": 8}, 5, 0, [])


def test_other_subsets_go_by_their_size():
    pairs = pairs_of(*(f"a {n}" for n in range(30)), *(f"rlhf {n}" for n in range(10)))
    splits = split_pairs(pairs, {"dev": 4, "test": 4}, 2, 0, [])
    assert Counter(pair["subset"] for pair in splits["test"]) == {"a": 3, "rlhf": 1}
    assert Counter(pair["subset"] for pair in splits["train"]) == {"a": 24, "rlhf": 2}


@pytest.mark.parametrize("subsets, told, train", [(("rlhf", "harmless"), "not in Table 1: harmless; ", 3 + 7),
                                                  (("rlhf",), "", 3), (("pairs",), "", 5)])
def test_a_subset_that_table_1_does_not_have_is_told(subsets, told, train, capsys):
    """If RLHF had another name, all of its 379,621 pairs would be in train, and the screen must say so."""
    pairs = [{"name": f"{subset}-{n}", "subset": subset, "question": f"{subset} {n}"} for subset in subsets
             for n in range(9)]
    assert len(split_pairs(pairs, {"dev": 2, "test": 2}, 3, 0, [])["train"]) == train
    out = capsys.readouterr().out
    assert out.startswith(told) and bool(out) == bool(told)


# --- The recipe.

def test_the_same_pairs_in_every_language(world, capsys):
    multispeechqa.main(["--languages", "en,de,he", *ARGUMENTS])
    splits = {split: read_rows(f"work/rows/multispeechqa/{split}.jsonl") for split in ("train", "dev", "test", "bench")}
    assert {split: len(rows) for split, rows in splits.items()} == {
        "train": 3 * (25 + 10), "dev": 3 * 8, "test": 3 * 4, "bench": 3 * 4}       # 99 % rlhf: no identity held out
    for rows in splits.values():
        names = {language: [row["id"].removesuffix(language) for row in rows if row["language"] == language]
                 for language in ("en", "de", "he")}
        assert names["en"] == names["de"] == names["he"]
    row = next(row for row in splits["test"] if row["language"] == "de")
    assert row["transcript"] == row["question"] and row["question"].startswith("de: rlhf question ")
    number = int(row["question"].split()[-1].rstrip("?"))
    assert row["target"] == f"de: answer {number}." and row["id"] == f"multispeechqa/test/rlhf-{number - 24}/SQA.de"
    assert row["audio"] == f"work/audio/multispeechqa/de/test/rlhf-{number - 24}.flac"
    assert {(language, split, share) for language, split, share in world} == {
        (language, split, (0.0, 0.8) if split == "train" else (0.8, 1.0))
        for language in ("en", "de") for split in ("train", "dev", "test")}
    assert all(language == "he" for language, *_ in map(str.split, open("tts.log", encoding="utf-8")))
    bench = {row["id"].replace("/bench/", "/test/"): row["utterance"] for row in splits["bench"]}
    assert bench == {row["id"]: row["utterance"] for row in splits["test"]}
    printed = capsys.readouterr().out
    assert "| dev: SQA/QA he | 8 | 2000 | -1992 |" in printed and "10 rlhf" in printed
    multispeechqa.main(["--languages", "en,de", *ARGUMENTS])                # more languages than asked for will do
    assert "is finished already" in capsys.readouterr().out


def test_of_several_processes_the_first_writes_the_rows(world, monkeypatch):
    """The others translate and speak their share; what the TTS command speaks, the first process alone asks it for."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr("sys.stdout", sys.stdout)                           # which silence_others() takes away
    multispeechqa.main(["--languages", "de,he", *ARGUMENTS])
    assert [language for language, *_ in world] == ["de"] * 3 and not os.path.exists("tts.log")
    assert sorted(os.listdir("work/rows/multispeechqa")) == ["lock", "started.json"]


def test_what_is_lost_is_listed_and_bench_has_it_in_no_language(world, monkeypatch):
    """Of four test pairs one cannot be translated, one not be spoken and one is silent: bench has the fourth."""
    lines = [{"split_name": "one", "question": f"{word} question?", "answer": "yes"}
             for word in ("untranslatable", "unspeakable", "silent", "good")]
    write_pairs([*lines, {"question": " ", "answer": "x"}])
    monkeypatch.setattr(multispeechqa, "BENCH", 3)
    multispeechqa.main(["--languages", "en,fr,el", *ARGUMENTS, "--dev", "0", "--test", "4"])
    listed = Path("work/rows/multispeechqa/dropped.txt").read_text().splitlines()
    assert sorted(line.split("\t")[0::2] for line in listed) == sorted([
        ["all", "no question or no answer"], ["test", "empty translation"], ["test", "empty translation"],
        ["test", "could not be spoken"], ["test", "could not be spoken"], ["test", "no such file"]])
    assert {row["id"] for row in read_rows("work/rows/multispeechqa/bench.jsonl")} == {
        f"multispeechqa/bench/one-4/SQA.{language}" for language in ("en", "fr", "el")}
    assert len(read_rows("work/rows/multispeechqa/test.jsonl")) == 3 + 2 + 2
    assert not os.path.exists("work/rows/multispeechqa/train.jsonl")


def test_recordings_of_the_download_are_taken(world):
    soundfile.write("a.wav", np.ones(800) * 0.1, 8000)
    Path("b.wav").write_text("no sound")
    write_pairs([{"question": f"q{n}", "answer": "x", "audio": audio}
                 for n, audio in enumerate(["a.wav", "b.wav", None])])
    multispeechqa.main(["--languages", "en", "--dev", "0", "--test", "3", *MODEL])
    audio = {row["question"]: row["audio"] for row in read_rows("work/rows/multispeechqa/test.jsonl")}
    assert audio == {"q0": "a.wav", "q2": "work/audio/multispeechqa/en/test/pairs-3.flac"}
    assert "cannot be decoded" in Path("work/rows/multispeechqa/dropped.txt").read_text()


def test_a_killed_tts_command_goes_on(world):
    """Blocks of ten: what a block has written when the command fails is written again, earlier blocks are not."""
    failing = ["--languages", "el", *ARGUMENTS[:-1], f"{sys.executable} tts.py 61?", "--rlhf", "200"]
    with pytest.raises(SystemExit, match="ended with exit code 3.* goes on with these 10 texts"):
        multispeechqa.main(failing)
    before, whole = open("tts.log").readlines(), [path.stem for path in Path("work/audio").glob("**/[!.]*.wav")]
    assert len(whole) == 10 * (len(before) // 10) < 88 and len(before) % 10 > 0
    Path("tts.py").write_text(TTS.replace("sys.exit(3)", "pass"))
    multispeechqa.main(failing)
    after = open("tts.log").readlines()
    assert len({*after}) == 100 and len(after) == 100 + len(before) % 10
    assert not list(Path("work/audio").glob("**/.*.wav"))
    assert len(list(Path("work/audio").glob("**/*.wav"))) == 100


@pytest.mark.parametrize("more, message", [
    (["--languages", "de,xx"], "--languages xx: known are en, de,"),
    (["--languages", "ja", "--tts_languages", "ja"], "--tts_languages ja: which command speaks them. Pass --tts"),
    (["--languages", "de"], "dev needs 1978 pairs of rlhf"),
    (["--languages", "el", "--tts", "no_such_program x"], "no_such_program is missing: --tts no_such_program x cannot be"),
    (["--languages", "de", "--raw", "nowhere"], "questions in .*nowhere is missing: download")])
def test_refused_before_any_work(world, more, message):
    with pytest.raises(SystemExit, match=message):
        multispeechqa.main([*more, *MODEL])
    assert not world and not os.path.exists("work/rows")


@pytest.mark.parametrize("line", ["{", "[]", '{"question": "a"}', '{"question": 1, "answer": 2}', '{"question": null}',
                                  '{"question": "a", "answer": "b", "audio": 3}', "", "\0", "null", "[" * 100_000,
                                  '{"question": "a", "answer": "b", "split_name": ["c"]}'])
def test_a_damaged_line_is_named(world, line):
    with open("work/raw/multispeechqa/a.jsonl", "a") as file:
        file.write(line + "\n")
    with pytest.raises(SystemExit, match="a.jsonl line 101.* a line is a JSON object with question and answer"):
        multispeechqa.main(["--languages", "de", *MODEL])


def test_the_hub_s_parquet(world):
    """Two row groups, sound as bytes: only what is in a split is written, and only once."""
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet
    soundfile.write("one.wav", np.ones(800) * 0.1, 8000)
    sound = {"bytes": Path("one.wav").read_bytes(), "path": None}
    names = ["split_name", "index", "round", "question", "question_audio", "answer", "answer_snac"]
    damaged = {"bytes": b"x", "path": ""}
    rows = [dict(zip(names, ["identity", str(n), "1", f"identity {n}?", damaged if n == 2 else sound, f"answer {n}",
                             "# 1"])) for n in range(6)]
    os.remove("work/raw/multispeechqa/a.jsonl")
    parquet.write_table(pa.Table.from_pylist(rows), "work/raw/multispeechqa/0.parquet", row_group_size=3)
    multispeechqa.main(["--languages", "en,fr", "--dev", "0", "--test", "6", *MODEL])
    test = read_rows("work/rows/multispeechqa/test.jsonl")
    assert len(test) == 5 + 6 and soundfile.read(next(row["audio"] for row in test))[1] == 8000
    assert "identity-3\tcannot be decoded" in Path("work/rows/multispeechqa/dropped.txt").read_text()
    whole = Path("work/raw/multispeechqa/0.parquet").read_bytes()
    for damaged in (b"PAR1", whole[:4] + bytes(len(whole) // 2) + whole[4 + len(whole) // 2:]):
        Path("work/raw/multispeechqa/1.parquet").write_bytes(damaged)
        with pytest.raises(SystemExit, match="1.parquet is damaged"):
            multispeechqa.main(["--work", "again", "--raw", "work/raw/multispeechqa", "--languages", "en", *MODEL])


def test_with_the_real_makers(world, seamless, monkeypatch):
    """The random Seamless translates and speaks German; dev and test have one of its five voices, train the others."""
    from data import translate
    from data.tiny import draw_sentence
    for module in (speak, translate):
        monkeypatch.setattr(module, "MAX_TOKENS", 16)
    monkeypatch.setattr(multispeechqa, "speak", speak.speak)
    monkeypatch.setattr(multispeechqa, "translate", translate.translate)
    rng = random.Random(0)
    texts = list(dict.fromkeys(draw_sentence(rng)["text"][0] for _ in range(200)))
    write_pairs([{"question": question, "answer": answer} for question, answer in zip(texts[:30], texts[30:60])])
    multispeechqa.main(["--languages", "de", *ARGUMENTS, "--seamless", seamless])
    rows = {split: read_rows(f"work/rows/multispeechqa/{split}.jsonl") for split in ("train", "test")}
    assert all(row["transcript"] == row["question"] != row["target"] for row in rows["train"] + rows["test"])
    for split, voices in (("train", {0, 1, 2, 3}), ("test", {4})):
        with open(f"work/audio/multispeechqa/de/{split}/spoken.jsonl", encoding="utf-8") as file:
            spoken = [json.loads(line) for line in file][1:]
        assert spoken and {line["result"]["speaker"] for line in spoken} <= voices
        voiced = {line["item"][0] for line in spoken if line["result"]["spoken"]}
        assert {row["utterance"].split("/")[-1] for row in rows[split]} == voiced


@pytest.fixture
def mms(tmp_path, monkeypatch):
    """A tiny random VITS with a tokenizer of Greek letters, in place of the hub's MMS-TTS."""
    letters = "_ αβγδεζ"
    (tmp_path / "vocab.json").write_text(json.dumps({letter: number for number, letter in enumerate(letters)}))
    tokenizer = transformers.VitsTokenizer(str(tmp_path / "vocab.json"), pad_token="_", unk_token="_", language="ell",
                                           phonemize=False, is_uroman=False)
    config = transformers.VitsConfig(
        vocab_size=len(letters), hidden_size=8, num_hidden_layers=1, num_attention_heads=2, ffn_dim=8, flow_size=8,
        spectrogram_bins=9, upsample_initial_channel=16, upsample_rates=[4, 2], upsample_kernel_sizes=[8, 4],
        prior_encoder_num_flows=1, prior_encoder_num_wavenet_layers=1, posterior_encoder_num_wavenet_layers=1,
        duration_predictor_flow_bins=4, resblock_kernel_sizes=[3], resblock_dilation_sizes=[[1, 3]])
    torch.manual_seed(0)
    for part in (transformers.VitsModel(config), tokenizer):
        part.save_pretrained(tmp_path / "mms")
    monkeypatch.setitem(speak.MMS, "el", str(tmp_path / "mms"))
    return str(tmp_path / "mms")


def test_mms_speaks_greek_when_no_command_is_named(world, mms, monkeypatch):
    """The same texts give the same speech, whatever else is spoken; a text of other letters is dropped."""
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
