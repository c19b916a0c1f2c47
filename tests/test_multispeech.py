"""MultiSpeechQA and MultiSpeech-Bench: the recipe with fast makers, the judge of pairs, agreement with people."""
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
from metrics import chat, pairwise
from metrics.pairwise import LANGUAGES, TIE, UNPARSABLE, agreement, order, pair_chat, preferred, rates
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
                                  '{"question": "a", "answer": "b", "audio": 3}'])
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
        heard = {line["item"][0] for line in spoken if line["result"]["heard"]}
        assert {row["utterance"].split("/")[-1] for row in rows[split]} == heard


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


# --- The judge of pairs.

def test_the_prompt_is_the_paper_s():
    if not PARITY.exists():
        pytest.skip(f"no reference prompt at {PARITY}")
    assert pairwise.PROMPT == (PARITY / "multispeech_judge_prompt.txt").read_text(encoding="utf-8").rstrip("\n")
    [turn] = pair_chat("tr", "Soru {x}?", ["Bir {LANGUAGE_NAME}", "İki"])
    assert turn["role"] == "user" and turn["content"].count("Turkish") == 3
    assert "\nInstruction: Soru {x}?\nAnswer (A): Bir {LANGUAGE_NAME}\nAnswer (B): İki\n" in turn["content"]
    with pytest.raises(ValueError, match="'eo'"):
        pair_chat("eo", "a", ["b", "c"])
    assert len(LANGUAGES) == 23


@pytest.mark.parametrize("reply, choice", [
    ("Comparison: A is better.\nPreferred: Answer (A)", "A"), ("Preferred: 'Answer (B)'", "B"), ("Preferred:TIE", TIE),
    ("Preferred: <'Answer (A)'>", "A"), ("**Preferred:** Answer (B).", "B"), ("Preferred:\nAnswer (A)", "A"),
    ("Preferred: Answer A", UNPARSABLE), ("Answer (A)", UNPARSABLE), ("", UNPARSABLE), ("Preferred: tie", UNPARSABLE),
    ("Preferred: neither\nPreferred: TIE", UNPARSABLE), ("Preferred: I like Answer (A)", UNPARSABLE)])
def test_the_choice_stands_first_after_the_first_preferred(reply, choice):
    assert preferred(reply) == choice


def test_the_order_is_a_fair_draw_of_the_row_alone():
    first = [order(f"x/{n}", ["C", "cascade"], 0)[0] for n in range(1000)]
    assert 450 < first.count("C") < 550
    assert first == [order(f"x/{n}", ["cascade", "C"], 0)[0] for n in range(1000)]
    assert first != [order(f"x/{n}", ["C", "cascade"], 1)[0] for n in range(1000)]


def test_rates_by_hand():
    verdicts = [("de", "C"), ("de", "C"), ("de", TIE), ("de", UNPARSABLE), ("ja", "base")]
    table = rates(verdicts, ["C", "base"])
    assert table["de"] == {"C": 50, "base": 0, TIE: 25, UNPARSABLE: 25, "n": 4}
    assert table["mean"] == {"C": 25, "base": 50, TIE: 12.5, UNPARSABLE: 12.5, "n": 5}     # languages weigh the same
    with pytest.raises(ValueError, match="no verdicts"):
        rates([], ["C", "base"])


def test_kappa_by_hand():
    """Four of five alike; by chance 4/5 x 3/5 + 1/5 x 2/5 = 0.56: kappa = 0.24 / 0.44."""
    alike, kappa = agreement(["B", "B", "B", TIE, "B"], ["B", "B", "B", TIE, TIE])
    assert (alike, kappa) == (80, pytest.approx(6 / 11))
    assert agreement(["A", "B"], ["B", "A"]) == (0, -1) and agreement(["A", "A"], ["A", "A"]) == (100, None)
    assert agreement(["A", "A", "B", "B"], ["A", "B", "A", "B"]) == (50, 0)
    with pytest.raises(ValueError, match="2 labels of people and 1 of the judge"):
        agreement(["A", "B"], ["A"])


def test_kappa_agrees_with_the_reference():
    if not PARITY.exists():
        pytest.skip(f"no reference vectors at {PARITY}")
    for line in open(PARITY / "kappa.jsonl"):
        v = json.loads(line)
        assert agreement(v["human"], v["llm"]) == (pytest.approx(100 * v["agreement"]), pytest.approx(v["cohen_kappa"]))


def test_people_decide_by_majority():
    labels = {"1": ["C", "C", "base"], "2": ["C", "base", TIE], "3": ["base"] * 3, "4": ["C"] * 3, "5": ["C"] * 3}
    found = pairwise.agreement_with_people(labels, {"1": "C", "2": TIE, "3": "C", "4": UNPARSABLE})
    assert found["agreement"] == pytest.approx(200 / 3) and found["n"] == 3
    assert (found["undecided"], found["unparsable"]) == (1, 1)
    assert found["kappa"] == pytest.approx((2 / 3 - 3 / 9) / (1 - 3 / 9))      # C: 1 x 2, TIE: 1 x 1, of 9
    with pytest.raises(SystemExit, match="none of the rows"):
        pairwise.agreement_with_people({"9": ["C"]}, {"1": "C"})


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """Rows in two languages, answers of two systems, and a judge who likes the longer answer."""
    monkeypatch.chdir(tmp_path)
    answers = {"de": [("lang genug", "kurz"), ("a", "b"), ("ja", "länger")], "ja": [("xx", "x"), ("unlesbar", "y")]}
    rows = [{"id": f"multispeechqa/bench/{n}/SQA.{language}", "language": language, "task": "SQA",
             "question": f"Frage {n}?"} for language in answers for n in range(len(answers[language]))]
    os.makedirs("rows/multispeechqa")
    other = {"id": "multispeechqa/bench/0/ASR.de", "language": "de", "task": "ASR"}              # is not compared
    Path("rows/multispeechqa/bench.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [other, *rows]))
    pairs = [pair for some in answers.values() for pair in some]
    for place, system in enumerate(("C", "cascade")):
        os.makedirs(f"predictions/{system}")
        with open(f"predictions/{system}/multispeechqa.bench.jsonl", "w") as file:
            file.writelines(json.dumps({"id": row["id"], "task": "SQA", "prediction": pair[place]}) + "\n"
                            for row, pair in zip(rows, pairs))
    asked = []

    def judge(llm, tokenizer, chats):
        asked.extend(chats)
        replies = []
        for [turn] in chats:
            a, b = (turn["content"].split(f"\nAnswer ({letter}): ")[1].split("\n")[0] for letter in "AB")
            choice = "Answer (A)" if len(a) > len(b) else "Answer (B)" if len(b) > len(a) else "TIE"
            replies.append({"reply": "?" if "unlesbar" in (a, b) else f"Preferred: {choice}", "capped": False})
        return replies
    monkeypatch.setattr(chat, "load_chat", lambda name: (None, None))
    monkeypatch.setattr(chat, "write", judge)
    return asked


COMMAND = ["predictions/C", "predictions/cascade", "--judge", "a judge", "--rows", "rows/multispeechqa/bench.jsonl"]


@pytest.mark.parametrize("seed", ["0", "1", "2"])
def test_the_better_system_wins_wherever_it_stands(bench, seed, capsys):
    people = {"multispeechqa/bench/0/SQA.de": ["C", "C", "TIE"], "multispeechqa/bench/1/SQA.de": ["cascade"] * 3}
    Path("people.jsonl").write_text("".join(json.dumps({"id": name, "labels": some}) + "\n"
                                            for name, some in people.items()))
    pairwise.main([*COMMAND, "--seed", seed, "--human", "people.jsonl"])
    found = json.loads(Path("work/pairwise/C-cascade.json").read_text())
    assert found["rates"]["de"] == {"C": pytest.approx(100 / 3), "cascade": pytest.approx(100 / 3),
                                    TIE: pytest.approx(100 / 3), UNPARSABLE: 0, "n": 3}
    assert found["rates"]["ja"] == {"C": 50, "cascade": 0, TIE: 0, UNPARSABLE: 50, "n": 2}
    assert found["people"]["agreement"] == 50 and found["people"]["n"] == 2
    verdicts = [json.loads(line) for line in open("work/pairwise/C-cascade.verdicts.jsonl")]
    assert [line["winner"] for line in verdicts] == ["C", TIE, "cascade", "C", UNPARSABLE]
    assert all({line["A"], line["B"]} == {"C", "cascade"} for line in verdicts)
    assert [line["A"] for line in verdicts] == [order(line["id"], ["C", "cascade"], seed)[0] for line in verdicts]
    printed = capsys.readouterr().out
    assert "| mean | 41.7 | 16.7 | 16.7 | 25.0 | 5 |" in printed
    assert "1 of 5 replies are unparsable\n- multispeechqa/bench/1/SQA.ja: '?'" in printed
    before = len(bench)
    pairwise.main([*COMMAND, "--seed", seed])                             # nothing new to ask
    assert before == len(bench) == 5


@pytest.mark.parametrize("damage, message", [
    (lambda: os.remove("predictions/C/multispeechqa.bench.jsonl"), "is missing; run infer.py on these rows"),
    (lambda: Path("predictions/C/multispeechqa.bench.jsonl").write_text("{"), "line 1 is damaged"),
    (lambda: Path("predictions/C/multispeechqa.bench.jsonl").write_text(""), "5 rows have no prediction"),
    (lambda: Path("rows/multispeechqa/bench.jsonl").write_text('{"id": "a", "language": "de"}'), "lacks 'task'"),
    (lambda: Path("rows/multispeechqa/bench.jsonl").write_text('{"id": "a", "language": "de", "task": "SQA"}'),
     "one of them has no question"),
    (lambda: Path("people.jsonl").write_text('{"id": "a", "labels": ["A"]}'), "the labels of a are .'A'.; a line is")])
def test_what_it_refuses(bench, damage, message):
    Path("people.jsonl").write_text('{"id": "a", "labels": ["C"]}')
    damage()
    with pytest.raises(SystemExit, match=message):
        pairwise.main([*COMMAND, "--human", "people.jsonl"])
    assert not bench


def test_two_systems_have_two_names():
    assert pairwise.system_names(["w/ten/C/", "w/all/C"]) == ["w-ten-C", "w-all-C"]
    assert pairwise.system_names(["w/C", "w/B"]) == ["C", "B"]
    with pytest.raises(SystemExit, match="two names, not"):
        pairwise.system_names(["w/C", "w/C/"])


# --- The LLM that writes.

CHATS = [[{"role": "user", "content": text}] for text in ("Who?", "Who works there, and why?", "x" * 40, "Rome.")]
TEMPLATE = ("{% for m in messages %}{% if m['role'] == 'system' %}SYSTEM{% endif %}<|start_header_id|>"
            "{{ m['content'] }}<|eot_id|>{% endfor %}")


@pytest.fixture
def judge_folder(llama, tmp_path):
    """The tiny Llama with a chat template."""
    folder = str(tmp_path / "judge")
    transformers.AutoModelForCausalLM.from_pretrained(llama).save_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(llama)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def test_replies_in_a_batch_are_those_alone_and_a_killed_run_goes_on(judge_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(chat, "MAX_NEW_TOKENS", 6)
    monkeypatch.setattr(chat, "BATCH", 1)
    alone = chat.kept_replies(str(tmp_path / "alone"), judge_folder, CHATS)
    monkeypatch.setattr(chat, "BATCH", 3)
    path = str(tmp_path / "kept")
    assert chat.kept_replies(path, judge_folder, CHATS + CHATS[:1]) == alone + alone[:1]
    assert len({*alone}) > 1 and "5 replies, " in capsys.readouterr().out
    model, tokenizer = chat.load_chat(judge_folder)
    ids = tokenizer(chat.chat_text(tokenizer, CHATS[1]), add_special_tokens=False, return_tensors="pt")["input_ids"]
    plain = model.generate(input_ids=ids, max_new_tokens=6, do_sample=False, pad_token_id=0)[0, ids.shape[1]:]
    assert alone[1] == tokenizer.decode(plain, skip_special_tokens=True).strip()

    whole = Path(path).read_bytes()
    Path(path).write_bytes(whole[:whole.rindex(b'{"chat"') + 9])             # killed in the last line
    asked, write = [], chat.write
    monkeypatch.setattr(chat, "write", lambda *a: asked.append(len(a[2])) or write(*a))
    assert chat.kept_replies(path, judge_folder, CHATS) == alone and asked == [1]
    with pytest.raises(SystemExit, match="was made with .*; remove it, or choose another --out"):
        chat.kept_replies(path, "another", CHATS)
    Path(path).write_bytes(whole.replace(b'"reply"', b'"said"', 1))
    with pytest.raises(SystemExit, match="kept line 2 is damaged"):
        chat.kept_replies(path, judge_folder, CHATS)


def test_a_template_without_a_system_turn(judge_folder):
    tokenizer = transformers.AutoTokenizer.from_pretrained(judge_folder)
    turns = [{"role": "system", "content": "Judge.\n"}, {"role": "user", "content": "Who?"}]
    assert chat.chat_text(tokenizer, turns).startswith("SYSTEM<|start_header_id|>Judge.")
    tokenizer.chat_template = TEMPLATE.replace("SYSTEM", "{{ raise_exception('no system role') }}")
    assert chat.chat_text(tokenizer, turns) == "<|start_header_id|>Judge.\n\nWho?<|eot_id|>"
    tokenizer.chat_template = "{{ raise_exception('never') }}"
    with pytest.raises(Exception, match="never"):
        chat.chat_text(tokenizer, turns)
