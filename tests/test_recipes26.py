"""data/gigast.py, data/librispeech.py and data/librisqa.py: every format in miniature, row by row, and killed runs."""
import json
import os
from collections import Counter

import numpy as np
import pytest
import soundfile
import torch
import transformers

from data import gigast, librispeech, librisqa
from extract_features import read_audio
from speech_llm.prompts import NOT_ANSWERABLE, question_line
from speech_llm.resumable import resumable
from speech_llm.rows import read_rows


def write_json(path, value, **how):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        json.dump(value, file, **how)


def write_flac(path, seconds=0.5):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    soundfile.write(path, np.sin(np.arange(int(16_000 * seconds)) / 10) / 2, 16_000, format="FLAC")


class Makers:
    """
    Stand for Seamless and CometKiwi. "de: " before a text is its translation, and line breaks go, as the real tokenizer
    loses them; what holds "poor" scores 0.84; options of what holds "lost" lose their B. `done` counts what each made;
    with `left` the machine dies after so many batches.
    """

    def __init__(self, monkeypatch, left=10**6):
        self.done, self.left = Counter(), left
        monkeypatch.setattr("data.translate.translate", self.translate)
        monkeypatch.setattr("data.quality.quality", self.quality)

    def make(self, kept, name, items, one):
        def some(items):
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
            self.done.update((name, str(item)) for item in items)
            return [one(item) for item in items]
        return resumable(kept, {"name": name}, items, some, 2)

    def translate(self, texts, language, model, kept):
        def one(text):
            new = f"{language}: {' '.join(text.split())}"
            return new.replace("B. ", "") if "lost" in text else new
        return self.make(kept, language, texts, one)

    def quality(self, pairs, model, kept):
        return self.make(kept, "quality", pairs, lambda pair: 0.84 if "poor" in pair[0] else 0.85)


# --- Reading JSON piece by piece.

AWKWARD = {"dataset": 'a "audios": [{ in \\ a string', "ende\u0301": "\u00e9\u4e2d\U0001f600", "number": -1.5e-3,
           "zero": 0,
           "nested": {"audios": [[1, {"audios": [2]}]]}, "whole": 12,
           "audios": [{"a": 'q"}]\\', "b": [1, 2, {}]}, 12, 1.25, -3e-7, True, None, "]\n\u2028", [], {}, "\U0001f600"],
           "after": "it"}


@pytest.mark.parametrize("how", [{}, {"indent": 2}, {"ensure_ascii": False}, {"ensure_ascii": False, "indent": "\t"}])
def test_a_file_is_read_alike_wherever_its_pieces_are_cut(tmp_path, monkeypatch, how):
    path = str(tmp_path / "x.json")
    write_json(path, AWKWARD, **how)
    with open(path, encoding="utf-8") as file:
        expected = json.load(file)["audios"]
    for piece in (*range(1, 40), 1 << 22):
        monkeypatch.setattr(gigast, "PIECE", piece)
        assert list(gigast.stream_list(path, "audios")) == expected == AWKWARD["audios"]


def test_a_list_may_be_empty_and_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "x.json").write_text('\ufeff {"audios" : [ ] }', encoding="utf-8")
    assert list(gigast.stream_list(str(tmp_path / "x.json"), "audios")) == []


@pytest.mark.parametrize("cut", [0, 1, 30, 121, 170, 190, 215])
def test_a_file_that_is_cut_short_is_refused(tmp_path, cut):
    whole = json.dumps(AWKWARD)
    assert cut < whole.index(', "after"')
    (tmp_path / "x.json").write_text(whole[:cut])
    with pytest.raises(SystemExit, match=r"x.json is damaged after item \d+ of 'audios' .*; download it again"):
        list(gigast.stream_list(str(tmp_path / "x.json"), "audios"))


@pytest.mark.parametrize("text, why", [
    (b'[{"audios": []}]', "'\\[' where one of {"), (b'{"a": 1}', "'}' where one of ,"),
    (b'{"audios": {}}', "'{' where one of \\["), (b'{"audios": [1 2]}', "after item 1 .*'2' where"),
    (b'{"audios": [1, {"a": \xff}]}', "after item 0 .*utf-8"), (b'{"audios": [1, {"a" 2}, 3]}', "after item 1 .*':'")])
def test_a_file_in_another_shape_is_refused(tmp_path, text, why):
    (tmp_path / "x.json").write_bytes(text)
    with pytest.raises(SystemExit, match=why):
        list(gigast.stream_list(str(tmp_path / "x.json"), "audios"))


def test_damage_does_not_pull_the_rest_of_the_file_into_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(gigast, "PIECE", 10)
    monkeypatch.setattr(gigast, "LONGEST", 50)
    (tmp_path / "x.json").write_text('{"audios": [{"a" 2}' + " " * 100_000)
    sizes, loads = [], json.JSONDecoder().raw_decode
    decoder = type("Decoder", (), {"raw_decode": lambda self, text, at: sizes.append(len(text)) or loads(text, at)})
    monkeypatch.setattr(gigast.json, "JSONDecoder", decoder)
    with pytest.raises(SystemExit):
        list(gigast.stream_list(str(tmp_path / "x.json"), "audios"))
    assert 50 < max(sizes) < 100


# --- GigaST.

@pytest.mark.parametrize("spoken, text", [
    ("FOUR O'CLOCK <COMMA> SAID WILLIAMS <PERIOD>", "Four o'clock, said williams."),
    ("I THINK I'M <COMMA> WELL <QUESTIONMARK> YES <EXCLAMATIONPOINT> I", "I think I'm, well? Yes! I"),
    ("HI TECH I-95 HAWAI'I SKI I'D", "Hi tech i-95 hawai'i ski I'd"),
    ("<COMMA> SO <COMMA> <PERIOD> <NOISE> IT IS", "So, it is"),                # a mark after a mark goes
    ("<MUSIC>", ""), ("<SIL> <PERIOD>", ""), ("", ""), ("U S A <PERIOD> ONE", "U s a. One")])
def test_upper_case_with_tags_becomes_a_sentence(spoken, text):
    assert gigast.written(spoken) == text


def segment(sid, start, end, text, *subsets):
    return {"sid": sid, "speaker": "N/A", "begin_time": start, "end_time": end, "text_tn": text,
            "subsets": list(subsets) or ["{XL}"]}


def make_gigast(raw, opus=True):
    """Two recordings and one without audio; opus: the first sounds at 300 Hz, and from 2 s to 3 s at 1,200 Hz."""
    write_json(f"{raw}/GigaSpeech.json", {"dataset": "GigaSpeech", "audios": [
        {"aid": "POD1", "path": "audio/podcast/P0001/POD1.opus", "duration": 4.0, "segments": [
            segment("POD1_S1", 0, 1.5, "HELLO <COMMA> I AM HERE <PERIOD>"), segment("POD1_S2", 2.0, 3.0, "A POOR DAY"),
            segment("POD1_S3", 2.0, 2.5, "<MUSIC>"), segment("POD1_S4", 9.0, 9.5, "TOO LATE"),
            segment("POD1_S5", 3.0, 3.5, "NO CHINESE"), segment("POD1_S6", 3.0, 3.5, "A TEST", "{TEST}"),
            segment("POD1_S7", 3.5, 3.5, "NO TIME"), segment("POD1_S8", 3.0, 3.5, "AN <UNK> TAG"),
            segment("POD1_S1", 0, 1.5, "HELLO AGAIN"), segment("POD1_S9", 0, 1, "OF NO CONCERN")]},
        {"aid": "YOU2", "path": "audio/youtube/P0002/YOU2.opus", "segments": [       # without its length
            segment("YOU2_S1", 0.5, 99.0, "WHO KNOWS <QUESTIONMARK>")]},
        {"aid": "AUD3", "path": "audio/audiobook/P0003/AUD3.opus", "duration": 4.0, "segments": [
            segment("AUD3_S1", 1, 2.5, "THE END")]}]}, indent=1)
    names = [f"POD1_S{n}" for n in range(1, 9)] + ["YOU2_S1", "AUD3_S1", "POD7_S1"]
    for language, code in (("de", "de"), ("zh", "zh.cn")):
        left = [name for name in names if (name, language) != ("POD1_S5", "zh")]
        write_json(f"{raw}/GigaST.{code}.json", {"dataset": "GigaST", "audios": [
            {"segments": [{"sid": name, "text_raw": f" {language} é {name}", "extra": {"alignment_score": 8.2}}]}
            for name in [*left, "YOU2_S1"]]})
    write_json(f"{raw}/GigaST.zh.test.json", {"audios": []})
    if opus:
        time = np.arange(4 * 48_000) / 48_000
        wave = np.sin(2 * np.pi * time * np.where((time >= 2) & (time < 3), 1200, 300)) / 3
        for path in ("podcast/P0001/POD1.opus", "youtube/P0002/YOU2.opus"):
            os.makedirs(os.path.dirname(f"{raw}/audio/{path}"))
            soundfile.write(f"{raw}/audio/{path}", wave, 48_000, format="OGG", subtype="OPUS")


def run_gigast(folder, *more):
    gigast.main(["--raw", f"{folder}/raw", "--work", f"{folder}/work", *more])
    return read_rows(f"{folder}/work/rows/gigast/train.jsonl")


def test_gigast_row_by_row(tmp_path, monkeypatch, capsys):
    make_gigast(tmp_path / "raw")
    Makers(monkeypatch)
    rows = run_gigast(tmp_path)
    assert [row["id"].removeprefix("gigast/") for row in rows] == [
        "POD1_S1/ASR.en", "POD1_S1/ST.de", "POD1_S1/ST.it", "POD1_S1/ST.zh",
        "POD1_S2/ASR.en", "POD1_S2/ST.de", "POD1_S2/ST.zh",                   # Italian scores below 0.85
        "YOU2_S1/ASR.en", "YOU2_S1/ST.de", "YOU2_S1/ST.it", "YOU2_S1/ST.zh",
        "AUD3_S1/ST.de", "AUD3_S1/ST.it", "AUD3_S1/ST.zh"]
    audio = f"{tmp_path}/raw/audio/podcast/P0001/POD1.opus"
    assert rows[0] == {"id": "gigast/POD1_S1/ASR.en", "utterance": "gigast/POD1_S1", "audio": audio, "start": 0.0,
                       "end": 1.5, "task": "ASR", "language": "en", "answerable": True,
                       "transcript": "Hello, I am here.", "target": "Hello, I am here."}
    assert rows[3] == {"id": "gigast/POD1_S1/ST.zh", "task": "ST", "language": "zh", "answerable": True,
                       "transcript": "Hello, I am here.", "target": "zh é POD1_S1"}
    assert rows[2]["target"] == "it: Hello, I am here."
    out = capsys.readouterr().out
    assert "| train: ASR en | 3 | 7645641 | -7645638 |" in out and "| train: MT it | 3 | 3004804 |" in out
    assert "11 segments, 1 listed again" in out and "in both: 10 segments" in out
    assert "translated, but not in GigaSpeech.json: 1 segments" in out
    dropped = (tmp_path / "work/rows/gigast/dropped.txt").read_text().splitlines()
    assert [line.split("\t")[1:] for line in dropped] == [
        ["gigast/POD1_S3", "only silence, music or noise"],
        ["gigast/POD1_S4", "ends after its recording: 9.5 s of 4.0 s"],
        ["gigast/POD1_S5", "not translated to both German and Chinese"],
        ["gigast/POD1_S6", "in GigaSpeech's dev or test set"], ["gigast/POD1_S7", "no slice: from 3.5 to 3.5 s"],
        ["gigast/POD1_S8", "unknown tag: <unk>"], ["gigast/POD1_S1", "listed twice"],
        ["gigast/AUD3", "recording without audio, MT only"],
        ["gigast/POD1_S2/ST.it", "Italian below 0.85: target 0.840"]]
    assert "is finished already" not in out
    run_gigast(tmp_path)
    assert "is finished already" in capsys.readouterr().out


def test_without_audio_gigast_is_text_only(tmp_path, monkeypatch, capsys):
    make_gigast(tmp_path / "raw", opus=False)
    Makers(monkeypatch)
    rows = run_gigast(tmp_path)
    assert not any("utterance" in row or row["task"] == "ASR" for row in rows) and len(rows) == 11
    assert "3 in train: recording without audio, MT only" in capsys.readouterr().out


def test_the_slice_of_an_opus_file_is_the_segment(tmp_path, monkeypatch):
    make_gigast(tmp_path / "raw")
    Makers(monkeypatch)
    row = next(row for row in run_gigast(tmp_path) if row["id"] == "gigast/POD1_S2/ASR.en")
    wave = read_audio(row["audio"], row["start"], row["end"])                  # 16 kHz
    loudest = [np.abs(np.fft.rfft(part)).argmax() * 16_000 / len(part) for part in np.array_split(wave[800:-800], 3)]
    assert len(wave) == 16_000 and np.allclose(loudest, 1200, atol=10)


def test_hours_draw_whole_recordings_by_the_seed(tmp_path, monkeypatch, capsys):
    audios = [{"aid": f"POD{n}", "path": f"{n}.opus", "segments": [
        segment(f"POD{n}_S{k}", 60 * k, 60 * k + 36, "YES") for k in range(4)]} for n in range(50)]    # 0.04 h each
    write_json(f"{tmp_path}/raw/GigaSpeech.json", {"audios": audios})
    for language in ("de", "zh"):
        write_json(f"{tmp_path}/raw/GigaST.{language}.json", {"audios": [{"segments": [
            {"sid": s["sid"], "text_raw": "ja"} for s in audio["segments"]]} for audio in audios]})
    Makers(monkeypatch)
    drawn = []
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        rows = read_rows(run_hours(tmp_path, name, seed))
        assert Counter(row["language"] for row in rows) == {"de": 40, "it": 40, "zh": 40}       # 10 recordings of 4
        drawn.append({row["id"].split("_")[0] for row in rows})
    assert drawn[0] == drawn[1] != drawn[2] and all(len(names) == 10 for names in drawn)
    assert "drawn with seed 1: 10 of 50 recordings, 0.4 of 2.0 hours" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="hours 0.38 \\(now 1.0\\)"):
        gigast.main(["--raw", f"{tmp_path}/raw", "--work", f"{tmp_path}/a", "--hours", "1"])


def run_hours(folder, name, seed):
    gigast.main(["--raw", f"{folder}/raw", "--work", f"{folder}/{name}", "--hours", "0.38", "--seed", seed])
    return f"{folder}/{name}/rows/gigast/train.jsonl"


def test_a_killed_run_of_gigast_translates_nothing_twice(tmp_path, monkeypatch):
    make_gigast(tmp_path / "raw", opus=False)
    monkeypatch.setattr(gigast, "BLOCK", 3)
    makers = Makers(monkeypatch, left=3)
    with pytest.raises(KeyboardInterrupt):
        run_gigast(tmp_path)
    assert sorted(os.listdir(tmp_path / "work/rows/gigast")) == ["lock", "started.json"]
    makers.left = 10**6
    rows = run_gigast(tmp_path)
    texts = {row["transcript"] for row in rows}
    assert {item for name, item in makers.done if name == "it"} == texts and set(makers.done.values()) == {1}
    assert len(makers.done) == 2 * len(texts) == 8
    assert sorted(os.listdir(tmp_path / "work/made/gigast")) == [
        "quality.it.000.jsonl", "quality.it.001.jsonl", "translate.it.000.jsonl", "translate.it.001.jsonl"]
    make_gigast(tmp_path / "unbroken/raw", opus=False)
    assert run_gigast(tmp_path / "unbroken") == rows


@pytest.mark.parametrize("name, change, why", [
    ("GigaSpeech.json", lambda item: item["segments"][0].pop("text_tn"), "item 1 is not in GigaSpeech's format .*tn'"),
    ("GigaSpeech.json", lambda item: item.pop("path"), "item 1 is not in GigaSpeech's format .*'path'"),
    ("GigaSpeech.json", lambda item: item["segments"][1].update(begin_time="?"), "item 1 is not .*could not convert"),
    ("GigaST.de.json", lambda item: item["segments"][0].pop("sid"), "GigaST.de.json is not in GigaST's format .*'sid'"),
    ("GigaST.de.json", lambda item: item["segments"][0].update(text_raw=None), "GigaST.de.json is not in GigaST's")])
def test_a_malformed_entry_of_gigast_stops_by_name(tmp_path, monkeypatch, name, change, why):
    make_gigast(tmp_path / "raw", opus=False)
    Makers(monkeypatch)
    with open(tmp_path / "raw" / name, encoding="utf-8") as file:
        whole = json.load(file)
    change(whole["audios"][0])
    write_json(f"{tmp_path}/raw/{name}", whole)
    with pytest.raises(SystemExit, match=why):
        run_gigast(tmp_path)


def test_gigast_names_what_is_missing_or_there_twice(tmp_path):
    for name in ("GigaSpeech.json", "GigaST.de.json", "GigaST.zh.json"):
        with pytest.raises(SystemExit, match=f"{name} is missing"):
            run_gigast(tmp_path)
        write_json(f"{tmp_path}/raw/{name}", {"audios": []})
    with pytest.raises(SystemExit, match="everything was dropped"):
        run_gigast(tmp_path)
    write_json(f"{tmp_path}/raw/GigaST.zh-CN.json", {"audios": []})
    with pytest.raises(SystemExit, match="GigaST.zh-CN.json and .*GigaST.zh.json: which"):
        run_gigast(tmp_path)


# --- LibriSpeech.

def run_librispeech(raw, work):
    librispeech.main(["--raw", str(raw), "--work", str(work)])
    return {name[:-6]: read_rows(f"{work}/rows/librispeech/{name}") for name in os.listdir(f"{work}/rows/librispeech")
            if name.endswith(".jsonl")}


def test_the_real_mini_librispeech(tmp_path, real, capsys):
    splits = run_librispeech(os.path.join(real, "librispeech_mini"), tmp_path)
    assert list(splits) == ["test"] and len(splits["test"]) == 4
    assert [row["transcript"] for row in splits["test"]][1:3] == ["stuff it into you his belly counselled him",
                                                                  "he could wait no longer"]
    assert splits["test"][1]["target"] == splits["test"][1]["transcript"]
    assert splits["test"][1]["id"] == "librispeech/test/1089-134686-0001/ASR.en"
    assert len(read_audio(splits["test"][2]["audio"])) == soundfile.info(splits["test"][2]["audio"]).frames
    assert "| test: ASR en | 4 | 2620 | -2616 |" in capsys.readouterr().out


def make_part(raw, part, texts):
    """{"10-20-0000": TEXT} -> the folder of one part, a FLAC for each."""
    for utterance, text in texts.items():
        speaker, chapter, _ = utterance.split("-")
        write_flac(f"{raw}/{part}/{speaker}/{chapter}/{utterance}.flac")
        with open(f"{raw}/{part}/{speaker}/{chapter}/{speaker}-{chapter}.trans.txt", "a") as file:
            file.write(f"{utterance} {text}\n")


def test_every_part_has_its_split_and_what_is_unusable_is_listed(tmp_path, capsys):
    raw = tmp_path / "raw"
    texts = {"10-20-0000": "IT'S  ONE", "10-20-0001": "TWO", "10-20-0002": ""}
    make_part(raw / "LibriSpeech", "train-clean-360", texts)
    make_part(raw / "LibriSpeech", "train-clean-100", {"11-20-0000": "THREE"})
    for part in ("dev-clean", "dev-other", "test-clean", "test-other"):
        make_part(raw, part, {f"{len(part)}-1-0000": "FOUR"})                  # found beside LibriSpeech/ too
    chapter = raw / "LibriSpeech/train-clean-360/10/20"
    (chapter / "10-20-0001.flac").write_bytes(b"")
    write_flac(f"{chapter}/10-20-0003.flac")
    with open(chapter / "10-20.trans.txt", "a") as file:
        file.write("10-20-0004 FIVE")                                          # no line's end, and no recording
    splits = run_librispeech(raw, tmp_path / "work")
    assert {split: [row["target"] for row in rows] for split, rows in splits.items()} == {
        "train": ["three", "it's  one"], "dev": ["four"], "dev-other": ["four"], "test": ["four"],
        "test-other": ["four"]}
    assert "| train: ASR en | 2 | 132553 |" in capsys.readouterr().out
    assert (tmp_path / "work/rows/librispeech/dropped.txt").read_text() == (
        "train\tlibrispeech/train/10-20-0001\tempty file\ntrain\tlibrispeech/train/10-20-0002\tno transcript\n"
        "train\tlibrispeech/train/10-20-0003\tno transcript\ntrain\tlibrispeech/train/10-20-0004\tno such file\n")
    make_part(raw, "train-other-500", {"12-1-0000": "SIX"})
    with pytest.raises(SystemExit, match="was made with parts"):               # not silently without it
        run_librispeech(raw, tmp_path / "work")


@pytest.mark.parametrize("line, why", [
    ("10-20-0000", "a second transcript of 10-20-0000"), ("HELLO", "'HELLO' is no utterance"), ("", "is no utterance"),
    ("10-21-0000 X", "'10-21-0000 X' is no utterance of 10-20"), ("\udcff", "line 2 is not UTF-8")])
def test_a_malformed_transcript_is_named(tmp_path, line, why):
    make_part(tmp_path, "dev-clean", {"10-20-0000": "ONE"})
    with open(tmp_path / "dev-clean/10/20/10-20.trans.txt", "a", errors="surrogateescape") as file:
        file.write(line + "\n")
    with pytest.raises(SystemExit, match=f"10-20.trans.txt line 2.*{why}" if "UTF" not in why else why):
        run_librispeech(tmp_path, tmp_path / "work")


def test_no_part_at_all(tmp_path):
    with pytest.raises(SystemExit, match="has none of train-clean-100, .*unpack https://www.openslr.org"):
        run_librispeech(tmp_path, tmp_path / "work")


# --- LibriSQA: reading.

OPTIONS = {"A": "one", "B": "two words", "C": "three", "D": "four"}


@pytest.mark.parametrize("text, expected", [
    ("Question: What?\nOptions:\nA. one\nB. two words\nC. three\nD. four", ("What?", OPTIONS)),
    ("What?\n A) one\n\n B) two\n words\n C: three\nD . four\n", ("What?", OPTIONS)),
    ("question : What? options: A. one B. two words C. three D. four", ("What?", OPTIONS)),
    ("Was? A. one B. two words C. three D. four", ("Was?", OPTIONS)),
    ("什么?A、一。B、二C．三D。四", ("什么?", {"A": "一。", "B": "二", "C": "三", "D": "四"})),
    ("What did John A. Smith do?\nA. one\nB. two words\nC. three\nD. four", ("What did John A. Smith do?", OPTIONS)),
    ("What did John A. Smith do? A. one B. two words C. three D. four", None),       # which A is the first option?
    ("What? A. one B. two words D. four", None), ("What? A. one B. two C. three D. four E. A. five", None),
    ("What? B. one A. two C. three D. four", None), ("What? A. one B. C. three D. four", None),
    ("A. one\nB. two\nC. three\nD. four", None), ("What?", None), ("", None)])
def test_options_are_read_on_lines_and_on_one(text, expected):
    assert librisqa.read_options(text) == expected
    if expected:
        assert librisqa.read_options(librisqa.one_line(*expected, "\n")) == expected


def test_the_real_examples_are_read(real):
    for name, task, keys in (("partI_demo.json", "SQA", {"answer": "system_answer"}),
                             ("partII_demo.json", "MCQ", {"answer_and_analysis": "system_answer_and_analysis"})):
        with open(os.path.join(real, "librisqa_examples", name), encoding="utf-8") as file:
            items = json.load(file)
        for item in items:
            item |= {"speech_path": "test-clean/5639/40744/5639-40744-0001.wav"}     # the figures do not show it
            entry = librisqa.read_item({**item, **{key: item[other] for key, other in keys.items()}}, task)
            assert entry["transcript"] == item["text"] and entry["key"] == "5639-40744-0001"
            if task == "SQA":
                assert (entry["question"], entry["answer"]) == (item["question"], item["system_answer"])
                continue
            question, options = librisqa.read_options(entry["question"])
            assert list(options) == ["A", "B", "C", "D"]
            assert item["question_and_option"].startswith(f"Question: {question}\n")
            assert all(f"{letter}. {option}" in item["question_and_option"] for letter, option in options.items())
            assert entry["answer"] == item["system_answer_and_analysis"].split()[4]      # "The answer is Option B ..."


PART1 = {"speech_path": "train-clean-360/10/20/10-20-0000.wav", "text": "one\ntwo", "question": "What? ",
         "answer": "One.", "duration": 1.0}
PART2 = {"speech_path": "LibriSpeech/train-clean-360/10/20/10-20-0000.flac", "answer": "B",
         "question_and_option": "Question: What?\nOptions:\nA. one\nB. two words\nC. three\nD. four",
         "answer_and_analysis": "The answer is Option B because ..."}


def test_an_item_of_each_part():
    place = {"part": "train-clean-360", "speaker": "10", "key": "10-20-0000", "path": "10/20/10-20-0000.flac"}
    assert librisqa.read_item(PART1, "SQA") == {**place, "task": "SQA", "transcript": "one two", "question": "What?",
                                                "answer": "One."}
    assert librisqa.read_item(PART2, "MCQ") == {
        **place, "task": "MCQ", "transcript": "", "answer": "B",
        "question": "What?\nA. one\nB. two words\nC. three\nD. four"}


@pytest.mark.parametrize("answer, analysis, letter", [
    ("C", "", "C"), ("C.", "", "C"), ("Option C", "", "C"), ("C. three", "", "C"), (None, "It is Option D, for", "D"),
    ("", "option A", "A"), ("Cats", "", None), ("A dog", "", None), ("E", "Option E", None), (3, None, None)])
def test_the_letter_of_the_answer(answer, analysis, letter):
    item = {**PART2, "answer": answer, "answer_and_analysis": analysis}
    if letter:
        assert librisqa.read_item(item, "MCQ")["answer"] == letter
    else:
        with pytest.raises(ValueError, match="answer"):
            librisqa.read_item(item, "MCQ")


@pytest.mark.parametrize("task, change, why", [
    ("SQA", {"speech_path": None}, "speech_path None"), ("SQA", {"speech_path": "10/20/10-20-0000.wav"}, "speech_path"),
    ("SQA", {"speech_path": "train-clean-360/../../10-20-0000.wav"}, "speech_path"),
    ("SQA", {"question": " "}, "no question or no answer"), ("SQA", {"answer": None}, "no question or no answer"),
    ("MCQ", {"question_and_option": "What?\nA. one\nB. two"}, "no options A to D"),
    ("MCQ", {"question_and_option": None}, "no options A to D")])
def test_a_malformed_item_says_why(task, change, why):
    with pytest.raises(ValueError, match=why):
        librisqa.read_item({**(PART1 if task == "SQA" else PART2), **change}, task)


# --- LibriSQA: the questions that have no answer.

@pytest.fixture(scope="module")
def minilm(tmp_path_factory):
    """A random BERT of two narrow layers -> its folder."""
    folder = tmp_path_factory.mktemp("minilm")
    words = "[PAD] [UNK] [CLS] [SEP] [MASK] who sang the bird where is rome ?".split()
    (folder / "vocab.txt").write_text("\n".join(words))
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                                     intermediate_size=16, initializer_range=0.5)
    transformers.BertModel(config).save_pretrained(folder)
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return str(folder)


def test_similarity_is_the_cosine_of_mean_token_states_whatever_the_padding(minilm, tmp_path):
    net = transformers.AutoModel.from_pretrained(minilm).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    pairs = [["the bird sang", "who sang ?"], ["rome", "where is rome ? where is the bird ? who is the bird ?"],
             ["the bird", "the bird"], ["who sang " * 400, "the bird"]]        # the last is longer than 512 tokens

    def alone(text):
        ids = tokenizer(text, return_tensors="pt", truncation=True, max_length=512)["input_ids"]
        with torch.no_grad():
            mean = net(input_ids=ids).last_hidden_state[0].mean(0).numpy()
        return mean / np.linalg.norm(mean)
    found = librisqa.similarity(pairs, str(tmp_path / "kept"), minilm)
    assert found == pytest.approx([alone(one) @ alone(other) for one, other in pairs], abs=1e-5)
    assert found[2] == pytest.approx(1) and max(found[:2]) < 0.99
    assert librisqa.similarity(pairs, str(tmp_path / "kept"), minilm) == found       # from the file
    assert len((tmp_path / "kept").read_text().splitlines()) == 1 + len(pairs)


def test_what_the_llm_made_up(tmp_path, monkeypatch, capsys):
    answers = {librisqa.ASK_TOPICS: "1. Rain\n- Cats\n\n* rain\n• Dogs\nToo many"}
    for topic, words in (("rain", "cloud, Drop,\nwind."), ("Cats", "paw, Cloud, tail, claw"), ("Dogs", "bark")):
        answers[librisqa.ASK_WORDS.format(topic)] = words
    for word in ("Cloud", "Drop", "wind", "paw", "tail", "bark"):
        answers[librisqa.ASK_QUESTIONS.format(word)] = f"1. Is it {word}?\nWhy?\nSure!\n2) is it {word}?\n\nCut off in"
    asked = []

    def generate(prompts, model, kept, max_new_tokens):
        asked.append((os.path.basename(kept), len(prompts)))
        return [answers[prompt] for prompt in prompts]
    monkeypatch.setattr(librisqa, "generate", generate)
    for name, value in (("TOPICS", 3), ("WORDS", 3), ("QUESTIONS", 5)):
        monkeypatch.setattr(librisqa, name, value)
    args = type("Args", (), {"llm": "x", "seed": 0})
    found = librisqa.made_up_questions(str(tmp_path), args)
    assert asked == [("topics.jsonl", 1), ("words.jsonl", 3), ("questions.jsonl", 6)]        # claw is Cats' fourth word
    assert len(found) == len(set(found)) == 5
    assert set(found) < {"Why?", *(f"is it {word}?" for word in ("Cloud", "Drop", "wind", "paw", "tail", "bark"))}
    assert found == librisqa.made_up_questions(str(tmp_path), args)
    assert "made up: 3 topics (paper: 3), 6 words, 7 questions (5)" in capsys.readouterr().out
    answers[librisqa.ASK_TOPICS] = "rain, Cats, Dogs"
    assert librisqa.made_up_questions(str(tmp_path), args) == found


# --- LibriSQA: the whole.

def make_librisqa(folder, speakers=6):
    """
    Speakers 1, 2, ...: two utterances each, with a question of each part; and one utterance of the test set. Texts that
    hold "poor" are translated badly, options that hold "lost" lose their B.
    """
    parts = {"I": [], "II": []}
    for speaker in range(1, speakers + 1):
        for n in range(2):
            name, mark = f"{speaker}-7-000{n}", {(1, 0): " poor", (2, 0): " lost"}.get((speaker, n), "")
            make_part(f"{folder}/raw/librispeech/LibriSpeech", "train-clean-360", {name: "SAID"})
            item = {"speech_path": f"train-clean-360/{speaker}/7/{name}.wav", "duration": 0.5}
            parts["I"].append({**item, "text": f"speech {name}", "question": f"Who {name}?",
                               "answer": f"He {name}{mark}."})
            parts["II"].append({**item, "answer": "ABCD"[speaker % 4], "question_and_option":
                                f"Question: What {name}{mark}?\nOptions:\nA. one\nB. two\nC. three\nD. four"})
    parts["I"][3] |= {"text": ""}                                              # neither part has 2-7-0001's transcript
    for n in (0, 9):                                                           # a second question, the same
        parts["I"].append({**parts["I"][n], "question": "And who else?", "answer": "She."})
    parts["II"].append({"speech_path": "train-clean-360/9/7/9-7-0000.wav", "answer": "A"})   # malformed
    for numeral, items in parts.items():
        write_json(f"{folder}/raw/librisqa/LibriSQA-Part{numeral}/LibriSQA-Part{numeral}-train.json", items)
    make_part(f"{folder}/raw/librispeech", "test-clean", {"30-7-0000": "SAID"})
    item = {"speech_path": "LibriSpeech/test-clean/30/7/30-7-0000.wav", "text": "the test"}
    write_json(f"{folder}/raw/librisqa/LibriSQA-PartI-test.json", [{**item, "question": "Who?", "answer": "He."}])
    write_json(f"{folder}/raw/librisqa/LibriSQA-PartII-test.json", [
        {**item, "question_and_option": "What?\nA. one\nB. two\nC. three\nD. four", "answer": "D"}])
    os.remove(f"{folder}/raw/librispeech/LibriSpeech/train-clean-360/6/7/6-7-0001.flac")


def run_librisqa(folder, monkeypatch, **makers):
    """The recipe on a made-up download: Part I's questions are unlike any transcript but that of 1-7-0001."""
    made = Makers(monkeypatch, **makers)
    monkeypatch.setattr(librisqa, "DEV_SPEAKERS", 1)
    monkeypatch.setattr(librisqa, "similarity", lambda pairs, kept, model: made.make(
        kept, "similarity", pairs, lambda pair: 0.101 if "1-7-0001" in pair[0] else 0.1))
    monkeypatch.setattr(librisqa, "made_up_questions", lambda *_: ["Is it fun?", "Is it poor?"])
    return made, ["--raw", f"{folder}/raw/librisqa", "--librispeech", f"{folder}/raw/librispeech", "--work",
                  f"{folder}/work"]


@pytest.fixture
def librisqa_rows(tmp_path, monkeypatch):
    """({split: rows}, dropped.txt's lines) of the miniature LibriSQA, speaker 4 held out."""
    make_librisqa(tmp_path)
    monkeypatch.setattr(librisqa.random.Random, "sample", lambda self, names, count: ["4"])
    librisqa.main(run_librisqa(tmp_path, monkeypatch)[1])
    monkeypatch.undo()
    rows = tmp_path / "work/rows/librisqa"
    return ({split: read_rows(str(rows / f"{split}.jsonl")) for split in ("train", "dev", "test")},
            (rows / "dropped.txt").read_text().splitlines())


def test_librisqa_row_by_row(librisqa_rows):
    splits, _ = librisqa_rows
    rows = {row["id"].removeprefix("librisqa/"): row for split in splits.values() for row in split}
    base = {"utterance": "librisqa/train/3-7-0000", "audio": rows["train/3-7-0000/ASR.en"]["audio"], "language": "en",
            "answerable": True, "transcript": "speech 3-7-0000"}
    assert base["audio"].endswith("raw/librispeech/LibriSpeech/train-clean-360/3/7/3-7-0000.flac")
    options = "A. one B. two C. three D. four"
    for name, row in {
            "ASR.en": {"task": "ASR", "target": "speech 3-7-0000"},
            "SQA.en": {"task": "SQA", "question": "Who 3-7-0000?", "target": "He 3-7-0000."},
            "MCQ.en": {"task": "MCQ", "question": f"What 3-7-0000? {options}", "target": "D four"},
            "SQA.de": {"task": "SQA", "language": "de", "question": "de: Who 3-7-0000?", "target": "de: He 3-7-0000."},
            "MCQ.zh": {"task": "MCQ", "language": "zh", "question": f"zh: What 3-7-0000? {options}",
                       "target": "D four"},
    }.items():
        assert rows[f"train/3-7-0000/{name}"] == {**base, "id": f"librisqa/train/3-7-0000/{name}", **row}
    for kind, text in (("question", "Who 3-7-0000?"), ("target", "He 3-7-0000.")):
        name = f"librisqa/train/3-7-0000/MT-{kind}.it"
        assert rows[name.removeprefix("librisqa/")] == {
            "id": name, "task": "ST", "language": "it", "answerable": True, "transcript": text, "target": f"it: {text}"}
    assert rows["train/1-7-0000/SQA-2.it"]["question"] == "it: And who else?"        # a second question of Part I
    assert rows["train/1-7-0000/SQA-2-invalid.en"]["target"] == "Not answerable."
    assert question_line(rows["test/30-7-0000/MCQ.en"]) == "Question: What? A. one B. two C. three D. four\n"
    assert rows["train/3-7-0001/SQA.en"]["transcript"] == "speech 3-7-0001"


def test_what_is_not_translated_well_is_in_english_only(librisqa_rows):
    splits, dropped = librisqa_rows
    ids = {row["id"].removeprefix("librisqa/train/") for row in splits["train"]}
    for name, english_only in (("1-7-0000/SQA", True), ("1-7-0000/MCQ", True), ("2-7-0000/MCQ", True),
                               ("2-7-0000/SQA", False), ("3-7-0000/SQA", False)):
        assert {language for language in ("en", "de", "it", "zh") if f"{name}.{language}" in ids} == (
            {"en"} if english_only else {"en", "de", "it", "zh"}), name
    assert "train\tlibrisqa/train/1-7-0000/SQA.de\tbelow 0.85: target 0.840" in dropped
    assert "train\tlibrisqa/train/1-7-0000/MCQ.zh\tbelow 0.85: question 0.840" in dropped
    assert "train\tlibrisqa/train/2-7-0000/MCQ.it\toptions A to D lost in translation" in dropped
    assert "1-7-0000/MT-question.de" not in ids                    # both are good, or neither is kept
    assert "2-7-0000/MT-question.de" in ids and "2-7-0000/MT-target.de" in ids
    texts = Counter((row["transcript"], row["language"]) for row in splits["train"] if "utterance" not in row)
    assert set(texts.values()) == {1}


def test_unanswerable_questions_come_from_other_utterances(librisqa_rows):
    splits, dropped = librisqa_rows
    for split in ("train", "dev"):
        own = {(row["utterance"], row["question"]) for row in splits[split] if row["task"] in ("SQA", "MCQ")
               and row["answerable"]}
        invalid = [row for row in splits[split] if not row["answerable"]]
        assert {row["language"] for row in invalid} == {"en", "de", "it", "zh"}
        assert {row["task"] for row in invalid} == {"SQA", "MCQ"}
        for row in invalid:
            assert row["target"] == NOT_ANSWERABLE[row["language"]] and "\n" not in row["question"]
            assert (row["utterance"], row["question"]) not in own
    invalid = {row["id"] for row in splits["train"] if not row["answerable"]}
    assert not any("/1-7-0001/" in row_id and "made-up" not in row_id for row_id in invalid)  # alike: cosine 0.101
    assert "train\tlibrisqa/train/1-7-0001/SQA-invalid.en\tquestion like the transcript: 0.101" in dropped
    assert any(line.endswith("-invalid.en\tthe utterance's own question") for line in dropped)
    made_up = Counter(row["question"] for row in splits["train"] if "made-up" in row["id"])
    assert made_up == {"Is it fun?": 1, "Is it poor?": 1, **{f"{language}: Is it fun?": 1 for language in
                                                             ("de", "it", "zh")}}


def test_dev_is_other_speakers_and_test_is_english_and_answerable(librisqa_rows):
    splits, dropped = librisqa_rows
    speakers = {split: {row["utterance"].split("/")[2].split("-")[0] for row in rows if "utterance" in row}
                for split, rows in splits.items()}
    assert speakers == {"train": {"1", "2", "3", "5", "6"}, "dev": {"4"}, "test": {"30"}}
    assert {row["task"] for row in splits["dev"]} == {"ASR", "SQA", "MCQ", "ST"}
    assert [(row["task"], row["language"], row["answerable"], row["target"]) for row in splits["test"]] == [
        ("SQA", "en", True, "He."), ("MCQ", "en", True, "D four")]
    assert not any("made-up" in row["id"] for row in splits["dev"])
    assert sum(row["task"] == "ASR" for row in splits["train"]) == 8           # of 10, less the two below
    for line in ("train\tlibrisqa/train/6-7-0001/SQA\tno such file",
                 "train\tlibrisqa/train/2-7-0001/MCQ\tno transcript",
                 "train\tLibriSQA-PartII-train.json item 13\tmalformed: no options A to D"):
        assert line in dropped


def test_librisqa_counts_as_table_5_does(tmp_path, monkeypatch, capsys):
    make_librisqa(tmp_path)
    librisqa.main(run_librisqa(tmp_path, monkeypatch)[1])
    out = capsys.readouterr().out
    assert "MCQ" not in out and "(paper, train: 48346)" in out
    rows = read_rows(str(tmp_path / "work/rows/librisqa/train.jsonl"))
    valid = sum(row["task"] in ("SQA", "MCQ") and row["answerable"] and row["language"] == "en" for row in rows)
    assert f"| train: SQA/QA en | {valid} | 208038 |" in out and "| train: MT zh |" in out
    assert sum(librisqa.COUNTS["SQA/QA {} invalid"].values()) == 430_370 and len(librisqa.PAPER) == 12


def test_a_killed_run_of_librisqa_makes_nothing_twice(tmp_path, monkeypatch):
    make_librisqa(tmp_path / "a")
    makers, command = run_librisqa(tmp_path / "a", monkeypatch, left=40)
    with pytest.raises(KeyboardInterrupt):
        librisqa.main(command)
    before = len(makers.done)
    makers.left = 10**6
    librisqa.main(command)
    assert set(makers.done.values()) == {1} and len(makers.done) > before > 0
    make_librisqa(tmp_path / "b")
    librisqa.main(run_librisqa(tmp_path / "b", monkeypatch)[1])
    files = [(tmp_path / run / "work/rows/librisqa" / name).read_text().replace(f"{tmp_path}/{run}", "")
             for name in ("train.jsonl", "dev.jsonl", "dropped.txt") for run in "ab"]
    assert files[0::2] == files[1::2]


def test_librisqa_names_what_is_missing_or_damaged(tmp_path, monkeypatch, capsys):
    make_librisqa(tmp_path)
    command = run_librisqa(tmp_path, monkeypatch)[1]
    os.rename(tmp_path / "raw/librispeech/test-clean", tmp_path / "test-clean")
    with pytest.raises(SystemExit, match="test-clean is missing: unpack https://www.openslr.org/.*test-clean.tar.gz"):
        librisqa.main(command)
    os.rename(tmp_path / "test-clean", tmp_path / "raw/librispeech/test-clean")
    os.rename(tmp_path / "raw/librispeech/LibriSpeech/train-clean-360/1", tmp_path / "1")
    path = tmp_path / "raw/librisqa/LibriSQA-PartII/LibriSQA-PartII-train.json"
    whole = path.read_text()
    for text, why in ((whole[:200], "Unterminated|Expecting"), ('{"data": []}', "no list"), ("[1]", "no list")):
        path.write_text(text)
        with pytest.raises(SystemExit, match=f"LibriSQA-PartII-train.json is damaged .*({why})"):
            librisqa.main(command)
    os.remove(path)
    with pytest.raises(SystemExit, match="LibriSQA-PartII-train.json is missing: download it from https://hugg"):
        librisqa.main(command)
    path.write_text("[]")
    for n in range(2, 7):
        os.rename(tmp_path / f"raw/librispeech/LibriSpeech/train-clean-360/{n}", tmp_path / f"{n}")
    with pytest.raises(SystemExit, match="everything was dropped"):                      # before any model is loaded
        librisqa.main(command)
    assert "no such file" in capsys.readouterr().out
