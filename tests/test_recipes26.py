"""data/gigast.py, data/librispeech.py and data/librisqa.py: every format in miniature, row by row; downloads."""
import hashlib
import io
import json
import os
import re
import tarfile
import urllib.error
from collections import Counter
from pathlib import Path
from unittest.mock import MagicMock

import downloads
import numpy as np
import pytest
import torch
import transformers
from conftest import replaced_makers
from downloads import gigast_files, make_part, read_corpus, recording, sound
from test_bad_input import refused, write
from tqdm import tqdm

from data import gigast, librispeech, librisqa, quality, translate
from speech_llm.prompts import NOT_ANSWERABLE, question_line
from speech_llm.rows import LANGUAGES, read_rows


# --- Reading JSON piece by piece.

AWKWARD = {"dataset": 'a "audios": [{ in \\ a string', "ende\u0301": "\u00e9\u4e2d\U0001f600", "number": -1.5e-3,
           "nested": {"audios": [[1, {"audios": [2]}]]}, "whole": 12,
           "audios": [{"a": 'q"}]\\', "b": [1, 2, {}]}, 12, -3e-7, True, None, "]\n\u2028", [], {}, "\U0001f600"],
           "after": "it"}


@pytest.mark.parametrize("text, items", [
    (json.dumps(AWKWARD), AWKWARD["audios"]), (json.dumps(AWKWARD, ensure_ascii=False, indent="\t"), AWKWARD["audios"]),
    ('\ufeff {"audios" : [ ] }', [])])                                           # a byte order mark, an empty list
def test_a_file_is_read_alike_wherever_its_pieces_are_cut(tmp_path, monkeypatch, text, items):
    path = write(tmp_path / "x.json", text)
    for piece in (*range(1, 40), 1 << 22):
        monkeypatch.setattr(gigast, "PIECE", piece)
        assert list(gigast.stream_list(path, "audios")) == items


def test_damage_does_not_pull_the_rest_of_the_file_into_memory(monkeypatch):
    monkeypatch.setattr(gigast, "PIECE", 10)
    monkeypatch.setattr(gigast, "LONGEST", 50)
    window = gigast.Window(io.StringIO('{"a" 2}' + " " * 100_000), tqdm(disable=True))
    with pytest.raises(ValueError):
        window.value()
    assert 50 < len(window.text) < 100


# --- GigaST.

@pytest.mark.parametrize("spoken, text", [
    ("FOUR O'CLOCK <COMMA> SAID WILLIAMS <PERIOD>", "Four o'clock, said williams."),
    ("I THINK I'M <COMMA> WELL <QUESTIONMARK> YES <EXCLAMATIONPOINT> I", "I think I'm, well? Yes! I"),
    ("HI TECH I-95 HAWAI'I SKI I'D", "Hi tech i-95 hawai'i ski I'd"),
    ("<COMMA> SO <COMMA> <PERIOD> <NOISE> IT IS", "So, it is"),                # a mark after a mark goes
    ("<MUSIC>", ""), ("<SIL> <PERIOD>", ""), ("", ""), ("U S A <PERIOD> ONE", "U s a. One")])
def test_upper_case_with_tags_becomes_a_sentence(spoken, text):
    assert gigast.written(spoken) == text


def test_gigast_row_by_row(tmp_path, makers, capsys):
    """Of two recordings and one without audio most segments have a defect."""
    raw = tmp_path / "raw"
    pod = [(1, 0, 1.5, "HELLO <COMMA> I AM HERE <PERIOD>"), (2, 2.0, 3.0, "A POOR DAY"), (3, 2.0, 2.5, "<MUSIC>"),
           (4, 9.0, 9.5, "TOO LATE"), (5, 3.0, 3.5, "NO CHINESE"), (6, 3.0, 3.5, "A TEST", "{TEST}"),
           (7, 3.5, 3.5, "NO TIME"), (8, 3.0, 3.5, "AN <UNK> TAG"), (1, 0, 1.5, "HELLO AGAIN"), (9, 0, 1, "OF NO USE")]
    names = [f"POD1_S{n}" for n in range(1, 9)] + ["YOU2_S1", "AUD3_S1", "POD7_S1", "YOU2_S1"]
    gigast_files(raw, [recording("POD1", *pod, seconds=4.0), recording("YOU2", (1, 0.5, 99.0, "WHO KNOWS")),
                       {"aid": "POD9", "path": "POD9.opus", "segments": [{"sid": "POD9_S1"}]},
                       recording("AUD3", (1, 1, 2.5, "THE END"), seconds=4.0)],
                 {"de": [(name, f" de é {name}") for name in names],
                  "zh.cn": [(name, f" zh é {name}") for name in names if name != "POD1_S5"], "zh.test": []})
    for name in ("POD1", "YOU2"):
        sound(f"{raw}/audio/podcast/P0001/{name}.opus", 4.0, 48_000, format="OGG", subtype="OPUS")
    content = json.loads((raw / "GigaST.de.json").read_text())
    content["audios"].insert(1, {"segments": [{"sid": "POD9_S1"}]})
    write(raw / "GigaST.de.json", content)
    makers.setattr(quality, "quality", lambda pairs, *_: [0.84 if "poor" in text else 0.85 for text, _ in pairs])
    makers.setattr(gigast, "BLOCK", 2)
    gigast.main(["--raw", str(raw), "--work", f"{tmp_path}/work", "--incomplete"])
    splits, dropped = read_corpus(tmp_path / "work", "gigast")
    rows = splits["train"]
    assert [row["id"].removeprefix("gigast/") for row in rows] == [
        "POD1_S1/ASR.en", "POD1_S1/ST.de", "POD1_S1/ST.it", "POD1_S1/ST.zh",
        "POD1_S2/ASR.en", "POD1_S2/ST.de", "POD1_S2/ST.zh",                   # Italian scores below 0.85
        "YOU2_S1/ASR.en", "YOU2_S1/ST.de", "YOU2_S1/ST.it", "YOU2_S1/ST.zh",
        "AUD3_S1/ST.de", "AUD3_S1/ST.it", "AUD3_S1/ST.zh"]
    text = "Hello, I am here."
    assert rows[0] == {"id": "gigast/POD1_S1/ASR.en", "utterance": "gigast/POD1_S1", "start": 0.0, "end": 1.5,
                       "audio": f"{raw}/audio/podcast/P0001/POD1.opus", "task": "ASR", "language": "en",
                       "answerable": True, "transcript": text, "target": text}
    assert rows[3] == {"id": "gigast/POD1_S1/ST.zh", "task": "ST", "language": "zh", "answerable": True,
                       "transcript": text, "target": "zh é POD1_S1"}
    assert rows[2]["target"] == f"it: {text}"
    told = capsys.readouterr().out
    assert "| train: ASR en | 3 | 7645641 | -7645638 |" in told and "in both: 10 segments" in told
    assert "11 segments, 1 listed again" in told and "translated, but not in GigaSpeech.json: 1 segments" in told
    assert sorted(line[1:] for line in dropped) == sorted([
        ["gigast/POD1_S3", "only silence, music or noise"],
        ["gigast/POD1_S4", "ends after its recording: 9.5 s of 4.0 s"],
        ["gigast/POD1_S5", "not translated to both German and Chinese"],
        ["gigast/POD1_S6", "in GigaSpeech's dev or test set"], ["gigast/POD1_S7", "no slice: from 3.5 to 3.5 s"],
        ["gigast/POD1_S8", "unknown tag: <unk>"], ["gigast/POD1_S1", "listed twice"],
        ["gigast/AUD3", "recording without audio, MT only"],
        ["GigaSpeech.json item 3", "not in GigaSpeech's format (KeyError: 'begin_time')"],
        ["GigaST.de.json item 2", "not in GigaST's format (KeyError: 'text_raw')"],
        ["gigast/POD1_S2/ST.it", "Italian below 0.85: target 0.840"]])


def test_hours_draw_whole_recordings_by_the_seed(tmp_path, makers):
    """Ten of 50 recordings, of 4 segments of 0.01 hours each, are 0.4 hours."""
    audios = [recording(f"POD{n}", *((k, 60 * k, 60 * k + 36, "YES") for k in range(4))) for n in range(50)]
    segments = [(f"POD{n}_S{k}", "ja") for n in range(50) for k in range(4)]
    gigast_files(tmp_path / "raw", audios, {"de": segments, "zh": segments})
    drawn = []
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        gigast.main(["--raw", f"{tmp_path}/raw", "--work", f"{tmp_path}/{name}", "--hours", "0.38", "--seed", seed])
        rows = read_rows(f"{tmp_path}/{name}/rows/gigast/train.jsonl")
        drawn.append(Counter(row["id"].split("_")[0] for row in rows))
    assert drawn[0] == drawn[1] != drawn[2] and [*drawn[0].values()] == [4 * 3] * 10
    write(tmp_path / "raw" / "GigaST.zh-CN.json", {})
    refused(gigast.read_translations, f"{tmp_path}/raw", [], says="GigaST.zh.json: which is the training set?")


# --- LibriSpeech; downloads.

def run_librispeech(raw, work, *more):
    librispeech.main(["--raw", str(raw), "--work", str(work), "--incomplete", *more])
    return read_corpus(work, "librispeech")


def test_every_part_has_its_split_and_what_is_unusable_is_listed(tmp_path, makers, capsys):
    raw = tmp_path / "raw"
    for part, texts in (("train-clean-360", {"10-20-0000": "IT'S  ONE", "10-20-0001": "TWO", "10-20-0002": ""}),
                        ("train-clean-100", {"11-20-0000": "THREE"})):
        make_part(raw / "LibriSpeech", part, texts)
    for part in ("dev-other", "test-clean"):
        make_part(raw, part, {"1-1-0000": "FOUR"})                             # beside LibriSpeech/
    chapter = raw / "LibriSpeech/train-clean-360/10/20"
    (chapter / "10-20-0001.flac").write_bytes(b"")
    sound(chapter / "10-20-0003.flac")
    with open(chapter / "10-20.trans.txt", "a") as file:
        file.write("10-20-0004 FIVE")                                          # no line's end, and no recording
    parts = ["--parts", "train-clean-100,train-clean-360,dev-other,test-clean"]
    splits, dropped = run_librispeech(raw, tmp_path / "work", *parts)
    assert {split: [row["target"] for row in rows] for split, rows in splits.items()} == {
        "train": ["three", "it's  one"], "dev-other": ["four"], "test": ["four"]}
    assert "| train: ASR en | 2 | 132553 |" in capsys.readouterr().out
    assert dropped == [["train", f"librispeech/train/10-20-000{n}", why] for n, why in (
        (1, "empty file"), (2, "no transcript"), (3, "no transcript"), (4, "no such file"))]
    splits, _ = run_librispeech(raw, tmp_path / "hours", *parts, "--hours", str(0.1 / 3600))       # of train alone
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 1, "dev-other": 1, "test": 1}
    paths = [str(n) for n in range(9)]
    makers.setattr(librispeech, "duration", lambda path: 0.5)
    first, again, other = (librispeech.draw_hours(paths, 1.2 / 3600, seed) for seed in (0, 0, 1))
    assert len(first) == len(other) == 3 and first == again != other
    refused(run_librispeech, raw, tmp_path, says="test-other")                 # by default no training part
    refused(run_librispeech, raw, tmp_path, "--parts", "test", says="--parts test: LibriSpeech has train-clean-")


def test_a_download_is_continued_checked_and_unpacked(tmp_path, monkeypatch):
    """The server breaks off after 2,000 bytes; the checksum is wrong at first."""
    from torchaudio.datasets.librispeech import _CHECKSUMS
    make_part(tmp_path / "LibriSpeech", "test-clean", {"1-1-0000": "YES"})
    with tarfile.open(tmp_path / "test-clean.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "LibriSpeech", "LibriSpeech")
    whole, raw = (tmp_path / "test-clean.tar.gz").read_bytes(), tmp_path / "work/raw/librispeech"
    part, asked, most = raw / "test-clean.tar.gz.part", [], 2000

    def urlopen(request):
        asked.append(int(request.headers["Range"].removeprefix("bytes=").removesuffix("-")))
        rest = whole[asked[-1]:]
        if not rest:
            raise urllib.error.HTTPError(request.full_url, 416, "nothing is left", {}, None)
        response = MagicMock(status=206, headers={"Content-Length": str(len(rest))})
        response.__enter__.return_value, response.read = response, io.BytesIO(rest[:most]).read
        return response
    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    checksum = f"{librispeech.URL}/test-clean.tar.gz".replace("https", "http")
    monkeypatch.setitem(_CHECKSUMS, checksum, "0" * 64)
    command = ["--work", str(tmp_path / "work"), "--parts", "test-clean", "--download", "--incomplete"]
    refused(librispeech.main, command, says="; the same command continues it")
    assert part.read_bytes() == whole[:2000]
    most = len(whole)
    refused(librispeech.main, command, says=" and was removed; run the same command again")
    _CHECKSUMS[checksum] = hashlib.sha256(whole).hexdigest()
    part.write_bytes(whole)                                                    # killed before it was moved into place
    librispeech.main(command)
    assert asked == [0, 2000, len(whole)] and os.listdir(raw) == ["LibriSpeech"]
    assert len(read_corpus(tmp_path / "work", "librispeech")[0]["test"]) == 1


def test_the_questions_are_downloaded_from_the_hub(tmp_path, monkeypatch):
    """The four files go where they are looked for; a file that is there is not fetched again."""
    write(tmp_path / "LibriSQA-PartI/LibriSQA-PartI-train.json", "there")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda repository, name, repo_type, local_dir: write(
        f"{local_dir}/{name}", repository))
    librisqa.fetch_files(str(tmp_path))
    assert [Path(librisqa.find_file(str(tmp_path), name)).read_text() for name in librisqa.FILES] == [
        "there", *["ZihanZhao/LibriSQA"] * 3]


# --- LibriSQA: reading.

PLACE = "x/train-clean-360/14/208/14-208-0000.flac"
PART_I = {"speech_path": PLACE, "text": "YES", "question": "Who?", "answer": "Anna"}
PART_II = {"speech_path": PLACE, "text": "YES", "question_and_option": "What?\nA. one\nB. two\nC. three\nD. four"}
OPTIONS = {"A": "one", "B": "two words", "C": "three", "D": "four"}


@pytest.mark.parametrize("text, expected", [
    ("Question: What?\nOptions:\nA. one\nB. two words\nC. three\nD. four", ("What?", OPTIONS)),
    ("What?\n A) one\n\n B) two\n words\n C: three\nD . four\n", ("What?", OPTIONS)),
    ("Was? A. one B. two words C. three D. four", ("Was?", OPTIONS)),
    ("什么?A、一。B、二C．三D。四", ("什么?", {"A": "一。", "B": "二", "C": "三", "D": "四"})),
    ("What did John A. Smith do?\nA. one\nB. two words\nC. three\nD. four", ("What did John A. Smith do?", OPTIONS)),
    ("What did John A. Smith do? A. one B. two words C. three D. four", None),       # which A is the first option?
    ("What? A. one B. two words D. four", None), ("What? B. one A. two C. three D. four", None),
    ("What? A. one B. C. three D. four", None), ("A. one\nB. two\nC. three\nD. four", None)])
def test_options_are_read_on_lines_and_on_one(text, expected):
    assert librisqa.read_options(text) == expected
    if expected:
        assert librisqa.read_options(librisqa.join_options(*expected, "\n")) == expected


def test_the_real_examples_are_read(real):
    """The paper's figures, which do not show the place of the recording."""
    for part, task, given in (("I", "SQA", "answer"), ("II", "MCQ", "answer_and_analysis")):
        text = Path(real, f"librisqa_examples/part{part}_demo.json").read_text(encoding="utf-8")
        for item in json.loads(text):
            answer = item["system_answer" if task == "SQA" else "system_answer_and_analysis"]
            entry = librisqa.read_item({**item, "speech_path": PLACE, given: answer}, task)
            assert entry["answer"] == (answer if task == "SQA" else answer.split()[4])     # "The answer is Option B"
            assert task == "SQA" or [*librisqa.read_options(entry["question"])[1]] == ["A", "B", "C", "D"]


@pytest.mark.parametrize("answer, analysis, letter", [
    ("C.", "", "C"), ("Option C", "", "C"), ("C. three", "", "C"), (None, "It is Option D, for", "D")])
def test_the_letter_of_the_answer(answer, analysis, letter):
    assert librisqa.read_item({**PART_II, "answer": answer, "answer_and_analysis": analysis}, "MCQ")["answer"] == letter


@pytest.mark.parametrize("part, item", [
    *(("I", {**PART_I, **change}) for change in (
        {"speech_path": "train-clean-360/../../etc/passwd"}, {"question": " "}, {"answer": None})),
    *(("II", {**PART_II, "answer": answer}) for answer in ("Cats", "A dog", "E", 3))])
def test_a_malformed_item_of_librisqa_is_dropped(tmp_path, part, item):
    dropped = []
    for numeral, good in (("I", PART_I), ("II", {**PART_II, "answer": "A"})):
        write(tmp_path / f"LibriSQA-Part{numeral}-train.json", [item, good] if numeral == part else [good])
    assert len(librisqa.read_entries(str(tmp_path), "train", dropped)) == 2
    assert [name for _, name, _ in dropped] == [f"LibriSQA-Part{part}-train.json item 1"]


def test_similarity_is_the_cosine_of_mean_token_states_whatever_the_padding(tmp_path):
    bert = downloads.random_bert(str(tmp_path / "bert"))
    net = transformers.AutoModel.from_pretrained(bert).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(bert)
    pairs = [["the bird is in rome", "where is the cat ?"], ["rome", "where is rome ? where is the bird ?"],
             ["the bird", "the bird"], ["the fox . " * 400, "the bird"]]       # the last is longer than 512 tokens

    def alone(text):
        ids = tokenizer(text, return_tensors="pt", truncation=True, max_length=512)["input_ids"]
        with torch.no_grad():
            mean = net(input_ids=ids).last_hidden_state[0].mean(0).numpy()
        return mean / np.linalg.norm(mean)
    cosines = librisqa.similarity(pairs, str(tmp_path / "results"), bert)
    assert cosines == pytest.approx([alone(one) @ alone(other) for one, other in pairs], abs=1e-5)
    assert cosines[2] == pytest.approx(1) and max(cosines[:2]) < 0.99


def test_what_the_llm_made_up(tmp_path, makers, capsys):
    """Of three topics the last comes fourth, of three words a topic "claw"; five questions are drawn from seven."""
    words = {"rain": "cloud, Drop,\nwind.", "Cats": "paw, Cloud, tail, claw", "Dogs": "bark"}
    answers = {librisqa.ASK_TOPICS: "1. Rain\n- Cats\n\n* rain\n• Dogs\nToo many",
               **{librisqa.ASK_WORDS.format(topic): text for topic, text in words.items()}}
    for word in ("Cloud", "Drop", "wind", "paw", "tail", "bark"):
        answers[librisqa.ASK_QUESTIONS.format(word)] = f"1. Is it {word}?\nWhy?\nSure!\n2) is it {word}?\n\nCut off in"
    makers.setattr(librisqa, "generate", lambda prompts, *_, **__: [answers[prompt] for prompt in prompts])
    for name, value in (("TOPICS", 3), ("WORDS", 3), ("QUESTIONS", 5)):
        makers.setattr(librisqa, name, value)
    questions = librisqa.made_up_questions(str(tmp_path), librisqa.parse_arguments([]))
    assert len(questions) == len(set(questions)) == 5
    assert set(questions) < {"Why?", *(f"is it {word}?" for word in ("Cloud", "Drop", "wind", "paw", "tail", "bark"))}
    assert "made up: 3 topics (paper: 3), 6 words, 7 questions (5)" in capsys.readouterr().out


# --- LibriSQA: the whole.

def run_librisqa(folder, work, *more):
    """Make the rows; speaker 4 is dev. Three texts are translated badly, a question loses its B, one is too like."""
    def translated(texts, language, *_):
        return [f"{language}: {' '.join(text.split())}".replace("B. ", "" if "0 of 2?\n" in text else "B. ")
                for text in texts]
    with replaced_makers() as patch:
        patch.setattr(translate, "translate", translated)
        patch.setattr(quality, "quality", lambda pairs, *_: [
            0.84 if re.match("(Cat|What is) 0 of 1|.*drop", source) else 0.85 for source, _ in pairs])
        patch.setattr(librisqa, "similarity", lambda pairs, *_: [
            0.101 if text == "speech 1 of 1" else 0.1 for text, _ in pairs])
        patch.setattr(librisqa, "DEV_SPEAKERS", 1)                             # by seed 14 this is speaker 4
        librisqa.main(["--raw", f"{folder}/librisqa", "--librispeech", f"{folder}/librispeech", "--work", str(work),
                       "--incomplete", "--seed", "14", *more])
    splits, dropped = read_corpus(work, "librisqa")
    return splits, ["\t".join(line) for line in dropped]


@pytest.fixture(scope="module")
def librisqa_rows(tmp_path_factory):
    """Return ({split: rows}, dropped.txt's lines, the download's folder) of two utterances each of seven speakers."""
    folder = tmp_path_factory.mktemp("librisqa")
    downloads.librispeech(folder / "librispeech", 2, speakers=6)
    downloads.librisqa(folder / "librisqa", 2, speakers=6)
    os.remove(folder / "librispeech/LibriSpeech/train-clean-360/6/7/6-7-0001.flac")
    paths = [folder / f"librisqa/LibriSQA-Part{part}/LibriSQA-Part{part}-train.json" for part in ("I", "II")]
    one, two = (json.loads(path.read_text()) for path in paths)
    one[3]["text"] = two[3]["text"] = ""                                       # of speaker 2's second utterance
    write(paths[0], one + [{**one[n], "question": "And who else?", "answer": "She."} for n in (0, 9)])    # again
    write(paths[1], two + [{"speech_path": "train-clean-360/9/7/9-7-0000.wav", "answer": "A"}])     # malformed
    return *run_librisqa(folder, folder / "work"), folder


def test_librisqa_row_by_row(librisqa_rows):
    rows = {row["id"].removeprefix("librisqa/"): row for split in librisqa_rows[0].values() for row in split}
    base = {"utterance": "librisqa/train/3-7-0000", "audio": rows["train/3-7-0000/ASR.en"]["audio"], "language": "en",
            "answerable": True, "transcript": "speech 0 of 3"}
    options = "A. a 0 B. b C. c D. d"
    for name, row in {
            "ASR.en": {"task": "ASR", "target": "speech 0 of 3"},
            "SQA.en": {"task": "SQA", "question": "Who is 0 of 3?", "target": "Cat 0 of 3."},
            "MCQ.en": {"task": "MCQ", "question": f"What is 0 of 3? {options}", "target": "A a 0"},
            "SQA.de": {"task": "SQA", "language": "de", "question": "de: Who is 0 of 3?", "target": "de: Cat 0 of 3."},
            "MCQ.zh": {"task": "MCQ", "language": "zh", "question": f"zh: What is 0 of 3? {options}",
                       "target": "A a 0"},
    }.items():
        assert rows[f"train/3-7-0000/{name}"] == {**base, "id": f"librisqa/train/3-7-0000/{name}", **row}
    for kind, text in (("question", "Who is 0 of 3?"), ("target", "Cat 0 of 3.")):
        name = f"librisqa/train/3-7-0000/MT-{kind}.it"
        assert rows[name.removeprefix("librisqa/")] == {
            "id": name, "task": "ST", "language": "it", "answerable": True, "transcript": text, "target": f"it: {text}"}
    assert rows["train/5-7-0001/SQA-2.it"]["question"] == "it: And who else?"          # a second question of Part I
    assert question_line(rows["test/1-7-0000/MCQ.en"]) == "Question: What is 0 of 1? A. a 0 B. b C. c D. d\n"


def test_what_is_not_translated_well_is_in_english_only(librisqa_rows):
    splits, dropped, _ = librisqa_rows
    ids = {row["id"].removeprefix("librisqa/train/") for row in splits["train"]}
    for name, languages in (("1-7-0000/SQA", ["en"]), ("1-7-0000/MCQ", ["en"]), ("2-7-0000/MCQ", ["en"]),
                            ("2-7-0000/SQA", LANGUAGES), ("3-7-0000/SQA", LANGUAGES)):
        assert [language for language in LANGUAGES if f"{name}.{language}" in ids] == list(languages), name
    for line in ("1-7-0000/SQA.de\tbelow 0.85: target 0.840", "1-7-0000/MCQ.zh\tbelow 0.85: question 0.840",
                 "2-7-0000/MCQ.it\toptions A to D lost in translation"):
        assert f"train\tlibrisqa/train/{line}" in dropped
    assert "1-7-0000/MT-question.de" not in ids                    # both are good, or neither is taken
    assert "2-7-0000/MT-question.de" in ids and "2-7-0000/MT-target.de" in ids


def test_unanswerable_questions_come_from_other_utterances(librisqa_rows):
    splits, dropped, _ = librisqa_rows
    for split in ("train", "dev"):
        rows = [row for row in splits[split] if row["task"] in ("SQA", "MCQ")]
        asked = {(row["utterance"], row["question"]) for row in rows if row["answerable"]}
        invalid = [row for row in rows if not row["answerable"]]
        assert {(row["task"], row["language"]) for row in invalid} == {
            (task, language) for task in ("SQA", "MCQ") for language in LANGUAGES}
        for row in invalid:
            assert row["target"] == NOT_ANSWERABLE[row["language"]] and "\n" not in row["question"]
            assert (row["utterance"], row["question"]) not in asked
    assert "train\tlibrisqa/train/1-7-0001/SQA-invalid.en\tquestion like the transcript: 0.101" in dropped
    assert any(line.endswith("-invalid.en\ta question about this utterance") for line in dropped)
    made_up = [row["question"] for row in splits["train"] if "made-up" in row["id"]]
    assert sorted(made_up) == ["Is it a cloud?", "Is it a drop?", "de: Is it a cloud?", "it: Is it a cloud?",
                               "zh: Is it a cloud?"]


def test_dev_is_other_speakers_and_test_is_english_and_answerable(librisqa_rows):
    splits, dropped, folder = librisqa_rows
    speakers = {split: {row["utterance"].split("/")[2].split("-")[0] for row in rows if "utterance" in row}
                for split, rows in splits.items()}
    assert speakers == {"train": {"1", "2", "3", "5", "6"}, "dev": {"4"}, "test": {"1"}}
    assert [(row["task"], row["language"], row["answerable"], row["target"]) for row in splits["test"]] == [
        ("SQA", "en", True, "Cat 0 of 1."), ("SQA", "en", True, "Cat 1 of 1."), ("MCQ", "en", True, "A a 0"),
        ("MCQ", "en", True, "B b")]
    for line in ("train\tlibrisqa/train/6-7-0001/SQA\tno such file",
                 "train\tlibrisqa/train/2-7-0001/MCQ\tno transcript",
                 "train\tLibriSQA-PartII-train.json item 13\tmalformed: no options A to D"):
        assert line in dropped
    counts = (folder / "work/rows/librisqa/counts.md").read_text()    # as Table 5 counts: MCQ is SQA there
    assert "MCQ" not in counts and "| train: ASR en | 8 | 104014 |" in counts and "| train: MT zh |" in counts


def test_the_english_part_needs_no_maker_and_is_that_of_the_whole(tmp_path, monkeypatch, librisqa_rows):
    whole, _, folder = librisqa_rows
    for maker in ("good_translations", "made_up_questions"):
        monkeypatch.setattr(librisqa, maker, None)
    splits, _ = run_librisqa(folder, tmp_path / "english", "--english")
    assert splits == {split: [row for row in rows if row["language"] == "en" and "made-up" not in row["id"]]
                      for split, rows in whole.items()}
    rows, _ = run_librisqa(folder, tmp_path / "hours", "--english", "--hours", str(1.2 / 3600))
    assert {row["task"] for row in rows["train"]} == {"ASR", "SQA", "MCQ"}
    assert {split: len({row["utterance"] for row in rows[split]}) for split in rows} == {        # of 8, 2 and 2
        "train": 3, "dev": 1, "test": 2}
