"""data/gigast.py, data/librispeech.py and data/librisqa.py: every format in miniature, row by row; downloads."""
import contextlib
import functools
import hashlib
import http.server
import io
import itertools
import json
import os
import re
import tarfile
import threading
from collections import Counter

import numpy as np
import pytest
import soundfile
import test_metrics
import torch
import transformers
from tqdm import tqdm

from data import fakacl, gigast, librispeech, librisqa
from extract_features import read_audio
from speech_llm.prompts import NOT_ANSWERABLE, question_line
from speech_llm.rows import read_rows


bert = test_metrics.bert                       # the fixture of a random BERT
DEEP = b"[" * 100_000                        # more levels than Python counts


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
    loses them; what holds "poor" scores 0.84; options of what holds "lost" lose their B. No model is missing.
    """

    def __init__(self, monkeypatch):
        monkeypatch.setattr("data.translate.translate", self.translate)
        monkeypatch.setattr("data.quality.quality", self.quality)
        for recipe in (fakacl, gigast, librisqa):
            monkeypatch.setattr(recipe, "missing_models", lambda *names: [])

    def translate(self, texts, language, model, path):
        texts = [(text, f"{language}: {' '.join(text.split())}") for text in texts]
        return [new.replace("B. ", "") if "lost" in text else new for text, new in texts]

    def quality(self, pairs, model, path):
        return [0.84 if "poor" in source else 0.85 for source, _ in pairs]


# --- Reading JSON piece by piece.

AWKWARD = {"dataset": 'a "audios": [{ in \\ a string', "ende\u0301": "\u00e9\u4e2d\U0001f600", "number": -1.5e-3,
           "zero": 0,
           "nested": {"audios": [[1, {"audios": [2]}]]}, "whole": 12,
           "audios": [{"a": 'q"}]\\', "b": [1, 2, {}]}, 12, 1.25, -3e-7, True, None, "]\n\u2028", [], {}, "\U0001f600"],
           "after": "it"}


@pytest.mark.parametrize("how", [{}, {"ensure_ascii": False, "indent": "\t"}])
def test_a_file_is_read_alike_wherever_its_pieces_are_cut(tmp_path, monkeypatch, how):
    path = str(tmp_path / "x.json")
    write_json(path, AWKWARD, **how)
    for piece in (*range(1, 40), 1 << 22):
        monkeypatch.setattr(gigast, "PIECE", piece)
        assert list(gigast.stream_list(path, "audios")) == AWKWARD["audios"]


def test_a_list_may_be_empty_and_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "x.json").write_text('\ufeff {"audios" : [ ] }', encoding="utf-8")
    assert list(gigast.stream_list(str(tmp_path / "x.json"), "audios")) == []


def test_a_file_that_is_cut_short_is_refused(tmp_path):
    whole = json.dumps(AWKWARD)
    for cut in range(0, whole.index(', "after"'), 9):
        (tmp_path / "x.json").write_text(whole[:cut])
        with pytest.raises(SystemExit, match=r"x.json is damaged after item \d+ of 'audios' .*; download it again"):
            list(gigast.stream_list(str(tmp_path / "x.json"), "audios"))


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


def segment(sid, start, end, text, *subsets):
    return {"sid": sid, "speaker": "N/A", "begin_time": start, "end_time": end, "text_tn": text,
            "subsets": list(subsets) or ["{XL}"]}


def make_gigast(raw):
    """Two recordings and one without audio; they sound at 300 Hz, and from 2 s to 3 s at 1,200 Hz."""
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
    time = np.arange(4 * 48_000) / 48_000
    wave = np.sin(2 * np.pi * time * np.where((time >= 2) & (time < 3), 1200, 300)) / 3
    for path in ("podcast/P0001/POD1.opus", "youtube/P0002/YOU2.opus"):
        os.makedirs(os.path.dirname(f"{raw}/audio/{path}"))
        soundfile.write(f"{raw}/audio/{path}", wave, 48_000, format="OGG", subtype="OPUS")


def run_gigast(folder, *more):
    gigast.main(["--raw", f"{folder}/raw", "--work", f"{folder}/work", "--incomplete", *more])
    return read_rows(f"{folder}/work/rows/gigast/train.jsonl")


def test_gigast_row_by_row(tmp_path, monkeypatch, capsys):
    make_gigast(tmp_path / "raw")
    Makers(monkeypatch)
    monkeypatch.setattr(gigast, "BLOCK", 2)
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
    assert sorted(line.split("\t")[1:] for line in dropped) == sorted([
        ["gigast/POD1_S3", "only silence, music or noise"],
        ["gigast/POD1_S4", "ends after its recording: 9.5 s of 4.0 s"],
        ["gigast/POD1_S5", "not translated to both German and Chinese"],
        ["gigast/POD1_S6", "in GigaSpeech's dev or test set"], ["gigast/POD1_S7", "no slice: from 3.5 to 3.5 s"],
        ["gigast/POD1_S8", "unknown tag: <unk>"], ["gigast/POD1_S1", "listed twice"],
        ["gigast/AUD3", "recording without audio, MT only"],
        ["gigast/POD1_S2/ST.it", "Italian below 0.85: target 0.840"]])
    wave = read_audio(audio, rows[4]["start"], rows[4]["end"])                 # the slice at 1,200 Hz, at 16 kHz
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
        gigast.main(["--raw", f"{tmp_path}/raw", "--work", f"{tmp_path}/{name}", "--hours", "0.38", "--seed", seed])
        rows = read_rows(f"{tmp_path}/{name}/rows/gigast/train.jsonl")
        assert Counter(row["language"] for row in rows) == {"de": 40, "it": 40, "zh": 40}       # 10 recordings of 4
        drawn.append({row["id"].split("_")[0] for row in rows})
    assert drawn[0] == drawn[1] != drawn[2] and all(len(names) == 10 for names in drawn)
    assert "drawn with seed 1: 10 of 50 recordings, 0.4 of 2.0 hours" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="hours 0.38 \\(now 1.0\\)"):
        gigast.main(["--raw", f"{tmp_path}/raw", "--work", f"{tmp_path}/a", "--hours", "1"])


def test_gigast_names_all_that_is_missing_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(gigast, "missing_models", lambda *names: [(name, "accept its licence") for name in names])
    os.makedirs(tmp_path / "raw/audio")
    with pytest.raises(SystemExit) as error:
        run_gigast(tmp_path, "--hours", "1000")
    for what in ("GigaSpeech.json", "GigaST.de.json", "GigaST.zh.json", gigast.SEAMLESS, gigast.KIWI):
        assert re.search(f"{what} is missing: ", str(error.value)), what
    assert not os.path.exists(tmp_path / "work")


@pytest.mark.parametrize("content, says", [
    (b"[]", "is damaged after item 0"), (b'{"other": []}', "is damaged"), (b'{"audios": 7}', "is damaged"),
    (b'{"audios": [{"segments": []} 2]}', "is damaged after item 1"),
    (b'{"audios": ["\xff"]}', "is damaged"), (b'{"audios": [' + DEEP, "is damaged"),
    (b'{"audios": [1' + b"0" * 5000 + b"]}", "is damaged"), (b'{"audios": [7]}', "is not in GigaST's format"),
    (b'{"audios": [{"segments": [{"text_raw": "x"}]}]}', "KeyError: 'sid'"),
    (b'{"audios": [{"segments": [{"sid": "a", "text_raw": 7}]}]}', "is not in GigaST's format")])
def test_a_damaged_file_of_gigast_is_named(tmp_path, content, says):
    (tmp_path / "GigaST.de.json").write_bytes(content)
    with pytest.raises(SystemExit, match=f"GigaST.de.json {says}|GigaST.de.json is not in GigaST's format .{says}"):
        gigast.read_translations(str(tmp_path))


@pytest.mark.parametrize("recording, says", [
    ({"path": "x", "segments": []}, "KeyError: 'aid'"), ({"aid": "POD1", "path": 7, "segments": []}, "TypeError"),
    ({"aid": "POD1", "path": "x", "segments": [segment("POD1_S1", 0, "late", "HELLO")]}, "ValueError"),
    ({"aid": "POD1", "path": "x", "segments": [segment("POD1_S1", 0, 1.5, 7)]}, "AttributeError")])
def test_a_malformed_recording_of_gigaspeech_is_named(tmp_path, recording, says):
    write_json(f"{tmp_path}/GigaSpeech.json", {"audios": [recording]})
    with pytest.raises(SystemExit, match=f"GigaSpeech.json item 1 is not in GigaSpeech's format .{says}"):
        list(gigast.recordings(str(tmp_path)))


@pytest.mark.parametrize("start, end", [(2, 1.5), (-1, 1.5), (0, "nan"), (0, "inf")])
def test_times_that_are_no_slice_are_dropped(tmp_path, start, end):
    write_json(f"{tmp_path}/GigaSpeech.json", {"audios": [{"aid": "POD1", "path": "x", "segments": [
        segment("POD1_S1", start, end, "HELLO")]}]})
    dropped = []
    assert list(gigast.read_segments(str(tmp_path), {"POD1_S1": ("Ja.", "是。")}, None, dropped)) == []
    assert dropped[-1][:2] == ("train", "gigast/POD1_S1") and dropped[-1][2].startswith("no slice")


def test_gigast_refuses_two_files_of_a_language(tmp_path):
    for name in ("GigaST.de.json", "GigaST.zh.json", "GigaST.zh-CN.json"):
        write_json(f"{tmp_path}/{name}", {"audios": []})
    with pytest.raises(SystemExit, match="GigaST.zh-CN.json and .*GigaST.zh.json: which"):
        gigast.read_translations(str(tmp_path))


# --- LibriSpeech.

def run_librispeech(raw, work, *more):
    librispeech.main(["--raw", str(raw), "--work", str(work), "--incomplete", *more])
    return {name[:-6]: read_rows(f"{work}/rows/librispeech/{name}") for name in os.listdir(f"{work}/rows/librispeech")
            if name.endswith(".jsonl")}


def test_the_real_mini_librispeech(tmp_path, real, capsys):
    splits = run_librispeech(os.path.join(real, "librispeech_mini"), tmp_path, "--parts", "test-clean")
    assert list(splits) == ["test"] and len(splits["test"]) == 4
    assert [row["transcript"] for row in splits["test"]][1:3] == ["stuff it into you his belly counselled him",
                                                                  "he could wait no longer"]
    assert splits["test"][1]["id"] == "librispeech/test/1089-134686-0001/ASR.en"
    assert len(read_audio(splits["test"][2]["audio"])) == soundfile.info(splits["test"][2]["audio"]).frames
    assert "| test: ASR en | 4 | 2620 | -2616 |" in capsys.readouterr().out


def make_part(raw, part, texts):
    """Write {"10-20-0000": TEXT} as one part, a FLAC of half a second for each."""
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
        make_part(raw, part, {f"{len(part)}-1-0000": "FOUR"})                  # beside LibriSpeech/
    chapter = raw / "LibriSpeech/train-clean-360/10/20"
    (chapter / "10-20-0001.flac").write_bytes(b"")
    write_flac(f"{chapter}/10-20-0003.flac")
    with open(chapter / "10-20.trans.txt", "a") as file:
        file.write("10-20-0004 FIVE")                                          # no line's end, and no recording
    parts = "train-clean-100,train-clean-360,dev-clean,dev-other,test-clean,test-other"
    splits = run_librispeech(raw, tmp_path / "work", "--parts", parts)
    assert {split: [row["target"] for row in rows] for split, rows in splits.items()} == {
        "train": ["three", "it's  one"], "dev": ["four"], "dev-other": ["four"], "test": ["four"],
        "test-other": ["four"]}
    assert "| train: ASR en | 2 | 132553 |" in capsys.readouterr().out
    assert (tmp_path / "work/rows/librispeech/dropped.txt").read_text() == (
        "train\tlibrispeech/train/10-20-0001\tempty file\ntrain\tlibrispeech/train/10-20-0002\tno transcript\n"
        "train\tlibrispeech/train/10-20-0003\tno transcript\ntrain\tlibrispeech/train/10-20-0004\tno such file\n")
    assert list(run_librispeech(raw, tmp_path / "tests")) == ["test", "test-other"]      # by default no training part


def test_a_part_by_hours(tmp_path):
    """Nine utterances of half a second: 1.2 s are three of them, drawn by the seed from the training part alone."""
    make_part(tmp_path, "train-clean-100", {f"1-1-000{n}": "YES" for n in range(9)})
    make_part(tmp_path, "dev-clean", {f"2-1-000{n}": "NO" for n in range(9)})
    drawn = []
    for work, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        splits = run_librispeech(tmp_path, tmp_path / work, "--parts", "train-clean-100,dev-clean", "--hours",
                                 str(1.2 / 3600), "--seed", seed)
        assert len(splits["dev"]) == 9 and len(splits["train"]) == 3
        drawn.append([row["id"] for row in splits["train"]])
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("line, why", [
    ("10-20-0000", "a second transcript of 10-20-0000"), ("HELLO", "'HELLO' is no utterance"),
    ("10-21-0000 X", "'10-21-0000 X' is no utterance of 10-20"), ("\udcff", "line 2 is not UTF-8")])
def test_a_malformed_transcript_is_named(tmp_path, line, why):
    make_part(tmp_path, "dev-clean", {"10-20-0000": "ONE"})
    with open(tmp_path / "dev-clean/10/20/10-20.trans.txt", "a", errors="surrogateescape") as file:
        file.write(line + "\n")
    with pytest.raises(SystemExit, match=f"10-20.trans.txt line 2.*{why}" if "UTF" not in why else why):
        run_librispeech(tmp_path, tmp_path / "work", "--parts", "dev-clean")


def test_a_part_that_is_unknown_or_not_there(tmp_path):
    with pytest.raises(SystemExit) as error:
        run_librispeech(tmp_path, tmp_path / "work")
    for part in ("test-clean", "test-other"):
        assert f"{part} is missing: unpack https://www.openslr.org/resources/12/{part}.tar.gz" in str(error.value)
    with pytest.raises(SystemExit, match="--parts test: LibriSpeech has train-clean-100, "):
        run_librispeech(tmp_path, tmp_path / "work", "--parts", "test")


# --- Downloads.

class Server(http.server.SimpleHTTPRequestHandler):
    """A server of files that breaks off after `most` bytes, and that sends the rest of a file that is asked for."""
    most, asked = 10**9, []

    def do_GET(self):
        with open(self.translate_path(self.path), "rb") as file:
            whole = file.read()
        start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        self.asked.append(start)
        self.send_response(206 if start < len(whole) else 416)
        self.send_header("Content-Length", str(len(whole[start:])))
        self.end_headers()
        self.wfile.write(whole[start:][:self.most])

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serve(folder):
    """Yield the address of a server of a folder."""
    server = http.server.ThreadingHTTPServer(("localhost", 0), functools.partial(Server, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://localhost:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_download_is_continued_checked_and_unpacked(tmp_path, monkeypatch, capsys):
    from torchaudio.datasets.librispeech import _CHECKSUMS
    make_part(tmp_path / "LibriSpeech", "test-clean", {"1-1-0000": "YES"})
    with tarfile.open(tmp_path / "test-clean.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "LibriSpeech", "LibriSpeech")
    whole, raw = (tmp_path / "test-clean.tar.gz").read_bytes(), tmp_path / "work/raw/librispeech"
    command = ["--work", str(tmp_path / "work"), "--parts", "test-clean", "--download", "--incomplete"]
    monkeypatch.setattr(Server, "most", 2000)
    monkeypatch.setattr(Server, "asked", [])
    assert len(whole) > 4000
    with serve(tmp_path) as address:
        monkeypatch.setattr(librispeech, "URL", address)
        monkeypatch.setitem(_CHECKSUMS, f"{address}/test-clean.tar.gz", "0" * 64)
        for size in (2000, 4000):
            with pytest.raises(SystemExit, match="the download stopped .*the same command continues it"):
                librispeech.main(command)
            assert (raw / "test-clean.tar.gz.part").read_bytes() == whole[:size]
        Server.most = len(whole)
        with pytest.raises(SystemExit, match="is damaged .SHA-256 .* and was removed"):
            librispeech.main(command)
        _CHECKSUMS[f"{address}/test-clean.tar.gz"] = hashlib.sha256(whole).hexdigest()
        (raw / "test-clean.tar.gz.part").write_bytes(whole)                    # killed before it was moved into place
        librispeech.main(command)
    assert Server.asked == [0, 2000, 4000, len(whole)]
    assert os.listdir(raw) == ["LibriSpeech"]
    assert len(read_rows(f"{tmp_path}/work/rows/librispeech/test.jsonl")) == 1
    assert "downloads test-clean into" in (told := capsys.readouterr().out) and ": 0.3 GB, and as much again" in told


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
        assert librisqa.read_options(librisqa.join_options(*expected, "\n")) == expected


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


PART2 = {"speech_path": "LibriSpeech/train-clean-360/10/20/10-20-0000.flac", "answer": "B",
         "question_and_option": "Question: What?\nOptions:\nA. one\nB. two words\nC. three\nD. four",
         "answer_and_analysis": "The answer is Option B because ..."}


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


@pytest.mark.parametrize("content", [b'[{"text": "', b"{}", b"[1, 2]", b'["\xff"]', DEEP])
def test_a_damaged_file_of_librisqa_is_named(tmp_path, content):
    (tmp_path / "LibriSQA-PartI-train.json").write_bytes(content)
    with pytest.raises(SystemExit, match="LibriSQA-PartI-train.json is damaged .*; download it from https://hugging"):
        librisqa.read_entries(str(tmp_path), "train", [])


PLACE = "x/train-clean-360/14/208/14-208-0000.flac"


@pytest.mark.parametrize("change", [
    {"speech_path": None}, {"speech_path": "a.flac"}, {"speech_path": "train-clean-360/../../etc/passwd"},
    {"speech_path": PLACE.replace("/208/", "\uff0f208/")}, {"speech_path": PLACE.replace("0000", "0x00")},
    {"question": " "}, {"question": 7}, {"answer": None}])
def test_a_malformed_item_of_librisqa_is_dropped(tmp_path, change):
    item = {"speech_path": PLACE, "text": "YES", "question": "Who?", "answer": "Anna"}
    write_json(f"{tmp_path}/LibriSQA-PartI-train.json", [{**item, **change}, item])
    write_json(f"{tmp_path}/LibriSQA-PartII-train.json", [])
    dropped = []
    assert len(librisqa.read_entries(str(tmp_path), "train", dropped)) == 1
    assert [name for _, name, _ in dropped] == ["LibriSQA-PartI-train.json item 1"]


# --- LibriSQA: the questions that have no answer.


def test_similarity_is_the_cosine_of_mean_token_states_whatever_the_padding(bert, tmp_path):
    net = transformers.AutoModel.from_pretrained(bert).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(bert)
    pairs = [["the bird sang", "who sang ?"], ["rome", "where is rome ? where is the bird ? who is the bird ?"],
             ["the bird", "the bird"], ["who sang " * 400, "the bird"]]        # the last is longer than 512 tokens

    def alone(text):
        ids = tokenizer(text, return_tensors="pt", truncation=True, max_length=512)["input_ids"]
        with torch.no_grad():
            mean = net(input_ids=ids).last_hidden_state[0].mean(0).numpy()
        return mean / np.linalg.norm(mean)
    cosines = librisqa.similarity(pairs, str(tmp_path / "results"), bert)
    assert cosines == pytest.approx([alone(one) @ alone(other) for one, other in pairs], abs=1e-5)
    assert cosines[2] == pytest.approx(1) and max(cosines[:2]) < 0.99


def test_what_the_llm_made_up(tmp_path, monkeypatch, capsys):
    answers = {librisqa.ASK_TOPICS: "1. Rain\n- Cats\n\n* rain\n• Dogs\nToo many"}
    for topic, words in (("rain", "cloud, Drop,\nwind."), ("Cats", "paw, Cloud, tail, claw"), ("Dogs", "bark")):
        answers[librisqa.ASK_WORDS.format(topic)] = words
    for word in ("Cloud", "Drop", "wind", "paw", "tail", "bark"):
        answers[librisqa.ASK_QUESTIONS.format(word)] = f"1. Is it {word}?\nWhy?\nSure!\n2) is it {word}?\n\nCut off in"
    asked = []

    def generate(prompts, model, path, max_new_tokens):
        asked.append((os.path.basename(path), len(prompts)))
        return [answers[prompt] for prompt in prompts]
    monkeypatch.setattr(librisqa, "generate", generate)
    for name, value in (("TOPICS", 3), ("WORDS", 3), ("QUESTIONS", 5)):
        monkeypatch.setattr(librisqa, name, value)
    args = type("Args", (), {"llm": "x", "seed": 0, "limit": 0})
    questions = librisqa.made_up_questions(str(tmp_path), args)
    assert asked == [("topics.jsonl", 1), ("words.jsonl", 3), ("questions.jsonl", 6)]        # claw is Cats' fourth word
    assert len(questions) == len(set(questions)) == 5
    assert set(questions) < {"Why?", *(f"is it {word}?" for word in ("Cloud", "Drop", "wind", "paw", "tail", "bark"))}
    assert "made up: 3 topics (paper: 3), 6 words, 7 questions (5)" in capsys.readouterr().out
    answers[librisqa.ASK_TOPICS] = "rain, Cats, Dogs"
    assert librisqa.made_up_questions(str(tmp_path), args) == questions


# --- LibriSQA: the whole.

def make_librisqa(folder):
    """
    Speakers 1 to 6: two utterances each, with a question of each part; and one utterance of the test set. Texts that
    hold "poor" are translated badly, options that hold "lost" lose their B.
    """
    parts = {"I": [], "II": []}
    for speaker, n in itertools.product(range(1, 7), range(2)):
        name, mark = f"{speaker}-7-000{n}", {(1, 0): " poor", (2, 0): " lost"}.get((speaker, n), "")
        make_part(f"{folder}/raw/librispeech/LibriSpeech", "train-clean-360", {name: "SAID"})
        item = {"speech_path": f"train-clean-360/{speaker}/7/{name}.wav", "duration": 0.5}
        parts["I"].append({**item, "text": f"speech {name}", "question": f"Who {name}?", "answer": f"He {name}{mark}."})
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


def run_librisqa(folder, monkeypatch):
    """Return the command on a made-up download; Part I's questions are unlike any transcript but that of 1-7-0001."""
    Makers(monkeypatch)
    monkeypatch.setattr(librisqa, "DEV_SPEAKERS", 1)
    monkeypatch.setattr(librisqa, "similarity", lambda pairs, path, model: [
        0.101 if "1-7-0001" in text else 0.1 for text, _ in pairs])
    monkeypatch.setattr(librisqa, "made_up_questions", lambda *_: ["Is it fun?", "Is it poor?"])
    return ["--raw", f"{folder}/raw/librisqa", "--librispeech", f"{folder}/raw/librispeech", "--work", f"{folder}/work",
            "--incomplete"]


def librisqa_splits(folder, work="work"):
    """Return ({split: rows}, dropped.txt's lines) of a finished LibriSQA."""
    rows = folder / work / "rows/librisqa"
    return ({split: read_rows(str(rows / f"{split}.jsonl")) for split in ("train", "dev", "test")},
            (rows / "dropped.txt").read_text().splitlines())


@pytest.fixture
def librisqa_rows(tmp_path, monkeypatch):
    """The miniature LibriSQA, speaker 4 held out."""
    make_librisqa(tmp_path)
    monkeypatch.setattr(librisqa.random.Random, "sample", lambda self, names, count: ["4"])
    librisqa.main(run_librisqa(tmp_path, monkeypatch))
    monkeypatch.undo()
    return librisqa_splits(tmp_path)


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
    assert question_line(rows["test/30-7-0000/MCQ.en"]) == "Question: What? A. one B. two C. three D. four\n"


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
    assert "1-7-0000/MT-question.de" not in ids                    # both are good, or neither is taken
    assert "2-7-0000/MT-question.de" in ids and "2-7-0000/MT-target.de" in ids
    texts = Counter((row["transcript"], row["language"]) for row in splits["train"] if "utterance" not in row)
    assert set(texts.values()) == {1}


def test_unanswerable_questions_come_from_other_utterances(librisqa_rows):
    splits, dropped = librisqa_rows
    for split in ("train", "dev"):
        asked = {(row["utterance"], row["question"]) for row in splits[split] if row["task"] in ("SQA", "MCQ")
               and row["answerable"]}
        invalid = [row for row in splits[split] if not row["answerable"]]
        assert {row["language"] for row in invalid} == {"en", "de", "it", "zh"}
        assert {row["task"] for row in invalid} == {"SQA", "MCQ"}
        for row in invalid:
            assert row["target"] == NOT_ANSWERABLE[row["language"]] and "\n" not in row["question"]
            assert (row["utterance"], row["question"]) not in asked
    invalid = {row["id"] for row in splits["train"] if not row["answerable"]}
    assert not any("/1-7-0001/" in row_id and "made-up" not in row_id for row_id in invalid)  # alike: cosine 0.101
    assert "train\tlibrisqa/train/1-7-0001/SQA-invalid.en\tquestion like the transcript: 0.101" in dropped
    assert any(line.endswith("-invalid.en\ta question about this utterance") for line in dropped)
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
    command = run_librisqa(tmp_path, monkeypatch)
    with pytest.raises(SystemExit, match="is far from whole:\n  train: ASR en has 9 rows, the paper 104014"):
        librisqa.main([option for option in command if option != "--incomplete"])
    rows = read_rows(str(tmp_path / "work/rows/librisqa/train.jsonl"))
    valid = sum(row["task"] in ("SQA", "MCQ") and row["answerable"] and row["language"] == "en" for row in rows)
    out = capsys.readouterr().out
    assert "MCQ" not in out and f"| train: SQA/QA en | {valid} | 208038 |" in out and "| train: MT zh |" in out


def test_the_english_part_needs_no_maker_and_is_that_of_the_whole(tmp_path, monkeypatch, librisqa_rows):
    command = run_librisqa(tmp_path, monkeypatch)
    monkeypatch.setattr(librisqa.random.Random, "sample", lambda self, names, count: ["4"])
    for maker in ("good_translations", "made_up_questions"):
        monkeypatch.setattr(librisqa, maker, None)
    librisqa.main([*command, "--work", f"{tmp_path}/english", "--english"])
    splits, _ = librisqa_splits(tmp_path, "english")
    for split, rows in librisqa_rows[0].items():
        assert splits[split] == [row for row in rows if row["language"] == "en" and "made-up" not in row["id"]]
    librisqa.main([*command, "--work", f"{tmp_path}/hours", "--english", "--hours", str(1.2 / 3600)])
    rows, _ = librisqa_splits(tmp_path, "hours")
    utterances = {split: {row["utterance"] for row in rows[split]} for split in rows}
    assert [len(utterances[split]) for split in ("train", "dev", "test")] == [3, 1, 1]         # of 8, 2 and 1
    assert {row["task"] for row in rows["train"]} == {"ASR", "SQA", "MCQ"}


def test_the_questions_are_downloaded_from_the_hub(tmp_path, monkeypatch):
    """The four files go where they are looked for; a file that is there is not fetched again."""
    write_json(f"{tmp_path}/LibriSQA-PartI/LibriSQA-PartI-train.json", [])
    fetched = []

    def hf_hub_download(repository, name, repo_type, local_dir):
        fetched.append((repository, name, repo_type))
        write_json(os.path.join(local_dir, name), [])
    monkeypatch.setattr("huggingface_hub.hf_hub_download", hf_hub_download)
    librisqa.fetch_files(str(tmp_path))
    assert fetched == [("ZihanZhao/LibriSQA", name, "dataset") for name in (
        "LibriSQA-PartI/LibriSQA-PartI-test.json", "LibriSQA-PartII/LibriSQA-PartII-train.json",
        "LibriSQA-PartII/LibriSQA-PartII-test.json")]
    assert all(librisqa.find_file(str(tmp_path), name) for name in librisqa.FILES)


def test_librisqa_names_what_is_missing_before_any_model_is_loaded(tmp_path, monkeypatch):
    make_librisqa(tmp_path)
    command = run_librisqa(tmp_path, monkeypatch)
    os.rename(tmp_path / "raw/librispeech/test-clean", tmp_path / "test-clean")
    os.remove(tmp_path / "raw/librisqa/LibriSQA-PartII/LibriSQA-PartII-train.json")
    with pytest.raises(SystemExit, match="(?s)LibriSQA-PartII-train.json is missing: download it from https://hugg.*"
                                         "test-clean is missing: unpack https://www.openslr.org/.*test-clean.tar.gz"):
        librisqa.main(command)
