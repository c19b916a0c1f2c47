"""data/recipe.py and the recipes of the three released corpora, on small downloads made here and on real files."""
import collections
import gzip
import importlib
import io
import json
import os
import sys
import tarfile

import httpx
import numpy as np
import pytest
import soundfile
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from data import acl6060, covost2, europarlst, recipe
from data.recipe import begin, finish, finished
from speech_llm.cache import features_folder, load_rows, write_shard
from speech_llm.files import write_json
from speech_llm.rows import read_rows, remake, rows_file, write_rows

RECIPES = ("acl6060", "commonvoice", "covost2", "europarlst", "multispeechqa", "speech_ifeval", "spokensquad")


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def refused(function, *arguments):
    """Return the message with which a function exits."""
    with pytest.raises(SystemExit) as error:
        function(*arguments)
    return str(error.value)


# --- data/recipe.py: processes, audio, rows, counts.

def test_every_slice_of_jobs_has_its_own_process_and_a_failing_one_ends_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(recipe, "SLICE", 2)
    paths = [tmp_path / str(n) for n in range(5)]
    recipe.in_processes(os.system, [f"echo $PPID > {path}" for path in paths], "jobs")
    pids = [path.read_text() for path in paths]
    assert pids[0] == pids[1] and pids[2] == pids[3] and len(set(pids)) == 3 and f"{os.getpid()}\n" not in pids
    with pytest.raises(RuntimeError, match="jobs: a process ended with exit code 1"):
        recipe.in_processes(int, ["1", "2", "three", "4"], "jobs")


def test_report_counts_beside_the_paper_and_stops_below_half_of_it(tmp_path, capsys):
    rows = [{"id": f"c/{n}", "task": "ST", "language": "de", "utterance": "u"} for n in range(3)]
    rows += [{"id": "c-fluent/0", "task": "SQA", "language": "en"}]
    dropped = [("train", "c/7", "broken: first\nline"), ("train", "c/8", "broken: second"), ("dev", "c/9", "empty")]
    recipe.report(str(tmp_path), "c", {"train": rows}, {("train", "ST/MT de"): 6}, dropped)
    table = (tmp_path / "rows" / "c" / "counts.md").read_text()
    assert table == capsys.readouterr().out
    assert table.splitlines() == [
        "| c | ours | paper | difference |", "|---|---|---|---|", "| train: ST/MT de | 3 | 6 | -3 |",
        "| train: c-fluent QA en | 1 | | |", "",
        "dropped: 3, listed in dropped.txt", "  2 in train: broken", "  1 in dev: empty"]
    listed = (tmp_path / "rows" / "c" / "dropped.txt").read_text()
    assert listed == "train\tc/7\tbroken: first line\ntrain\tc/8\tbroken: second\ndev\tc/9\tempty\n"

    paper = {("train", "ST/MT de"): 7, ("test", "ASR en"): 2}
    message = refused(recipe.report, str(tmp_path), "c", {"train": rows}, paper, dropped)
    assert "train: ST/MT de has 3 rows, the paper 7" in message and "test: ASR en has 0 rows, the paper 2" in message
    assert "--incomplete" in message
    recipe.report(str(tmp_path), "c", {"train": rows}, paper, dropped, incomplete=True)
    assert "everything was dropped" in refused(recipe.report, str(tmp_path), "c", {"train": []}, {}, dropped, True)


# --- From the first look to the last file.

def test_a_first_look_settles_nothing_and_begun_work_keeps_its_settings(tmp_path, capsys):
    work, folder = str(tmp_path), tmp_path / "rows" / "c"
    assert not finished(work, "c", {"seed": 0}) and not folder.exists()
    assert not finished(work, "c", {"seed": 1})
    begin(work, "c", {"seed": 1})
    assert "c was made with seed 1 (now 0)" in refused(finished, work, "c", {"seed": 0})
    finish(work, "c", {"seed": 1}, "iwslt25")
    assert capsys.readouterr().out == (f"rows in {folder}\nnext: python extract_features.py --preset iwslt25 "
                                       f"--work {work}\n")
    assert finished(work, "c", {"seed": 1})
    assert "c was made with seed 1 (now 0)" in refused(finished, work, "c", {"seed": 0})
    assert f"{folder} is finished already; to make it again, remove it and run: " in capsys.readouterr().out


def test_more_languages_than_asked_for_are_finished(tmp_path):
    finish(str(tmp_path), "c", {"languages": "en,de,it", "seed": 0})
    assert finished(str(tmp_path), "c", {"languages": "it,en", "seed": 0})
    message = refused(finished, str(tmp_path), "c", {"languages": "en,fr", "seed": 0})
    assert "c was made with languages 'en,de,it' (now 'en,fr')" in message


def test_commands_to_make_rows_carry_the_work_folder(tmp_path):
    assert remake("work/rows/covost2-zh_en/test.jsonl") == "python -m data.covost2 --into-english zh"
    assert remake("work/rows/covost2-en_ar/test.jsonl") == "python -m data.covost2 --from-english ar"
    assert remake("work/rows/tiny-listeners/test.jsonl") == "python -m data.tiny_listeners"
    assert remake("my work/rows/covost2/test.jsonl") == "python -m data.covost2 --work 'my work'"
    assert remake("w/rows/tiny26/test.jsonl") == "WORK=w bash run_all.sh tiny26"


def test_rows_of_a_recipe_that_did_not_finish_are_refused(tmp_path):
    """A user's own corpus, which no recipe makes, needs no config.json."""
    work, row = str(tmp_path), {"id": "x/1", "task": "ST", "language": "de", "transcript": "a", "target": "b"}
    for corpus in ("fakacl", "mine"):
        write_rows(tmp_path / "rows" / corpus / "train.jsonl", [row])
    assert read_rows(rows_file(work, "mine", "train"))[0]["target"] == "b"
    message = refused(rows_file, work, "fakacl", "train")
    assert "rows/fakacl is not finished" in message and f"python -m data.fakacl --work {work}" in message
    finish(work, "fakacl", {})
    assert rows_file(work, "fakacl", "train") == str(tmp_path / "rows" / "fakacl" / "train.jsonl")
    begin(work, "mine", {})
    assert "rows/mine is not finished" in refused(rows_file, work, "mine", "train")
    assert "rows/gigast is missing; run: python -m data.gigast" in refused(rows_file, work, "gigast", "train")


def test_two_corpora_with_one_utterance_are_refused_by_name(tmp_path, capsys):
    """Otherwise the second corpus would train on the frames of the first."""
    c = collections.namedtuple("Config", "preset work corpora")("tiny", str(tmp_path), "mine,yours")
    made = {"encoder": "e", "mean": 3}
    for corpus, name in (("mine", "0001"), ("yours", "0001"), ("theirs", "theirs/0001")):
        write_rows(tmp_path / "rows" / corpus / "train.jsonl", [
            {"id": f"{corpus}/0001/ASR.en", "utterance": name, "audio": f"{corpus}.wav", "task": "ASR",
             "language": "en", "transcript": corpus, "target": corpus}])
        folder = features_folder(str(tmp_path), "e", 3, corpus, "train")
        write_shard(folder, "frames-00000", {name: np.zeros((4, 8), np.float16)},
                    {"made": made, "dropped": [], "seconds": 1.0})
        write_json(os.path.join(folder, "config.json"), {**made, "width": 8, "utterances": 1})
    assert "the corpora mine and yours share the names of 1 utterances" in refused(load_rows, c, "train", made)
    rows, features = load_rows(c._replace(corpora="mine,theirs"), "train", made)
    assert len(rows) == 2 and len(features["0001"]) == len(features["theirs/0001"]) == 4
    assert capsys.readouterr().out == "train: 2 rows (mine 1, theirs 1)\n"


# --- What a recipe lacks.

def test_models_that_the_hub_does_not_give_are_told_before_any_work(tmp_path, monkeypatch):
    errors = {"meta/gated": GatedRepoError, "nobody/nothing": RepositoryNotFoundError}

    def auth_check(name):
        if name in errors:
            raise errors[name]("no", response=httpx.Response(403, request=httpx.Request("GET", "https://x")))
        if name == "some/model":
            raise httpx.ConnectError("no network")
    monkeypatch.setattr("huggingface_hub.auth_check", auth_check)
    lacking = dict(recipe.missing_models(str(tmp_path), "meta/gated", "nobody/nothing", "some/model", "open/model"))
    assert list(lacking) == ["meta/gated", "nobody/nothing", "some/model"]
    assert "accept its licence at https://huggingface.co/meta/gated and run: hf auth login" in lacking["meta/gated"]
    assert "no network" in lacking["some/model"] and "hf download some/model" in lacking["some/model"]
    assert recipe.missing_packages("json", "no_such_package") == [
        ("the package no_such_package", "pip install no_such_package")]


@pytest.mark.parametrize("name", RECIPES)
def test_everything_that_lacks_is_listed_at_once_before_any_work(name, tmp_path, monkeypatch, capsys):
    """An empty download: the list names files and where they come from, as main does; nothing is written."""
    monkeypatch.setattr("huggingface_hub.auth_check", lambda name: None)
    module, work = importlib.import_module(f"data.{name}"), str(tmp_path / "work")
    lacking = module.missing(work)
    assert lacking and any("https://" in how for _, how in lacking)
    assert os.path.join("work", "raw", name) in lacking[0][0]
    message = refused(module.main, ["--work", work])
    assert all(f"  {what} is missing: {how}" in message for what, how in lacking) and not os.path.exists(work)
    assert module.missing(work, str(tmp_path / "elsewhere"))[0][0].count(str(tmp_path / "elsewhere")) == 1
    with pytest.raises(SystemExit):
        module.main(["--help"])
    assert "--raw" in (text := capsys.readouterr().out) and "https://" in text


# --- CoVoST 2.

TSV = "path\ttranslation\tsplit\n"


@pytest.mark.parametrize("written, read", [
    (b'"Oh!"', '"Oh!"'), (b'a "b', 'a "b'),                                  # quotes are characters
    (rb'\"Oh!\"', '"Oh!"'), (rb"a\\b", "a\\b"), (rb"a\nb", "anb"),           # a backslash goes, the next one stays
    (b"NA", "NA"), (b"007", "007"), (b" a ", " a "), (b"", ""), ("é\u2028\x85".encode(), "é\u2028\x85")])
def test_translations_read_as_in_get_covost_splits(tmp_path, written, read):
    path = write(tmp_path / "x.tsv", b"split\tpath\tmore\ttranslation\r\ntest\ta.mp3\t1\t" + written + b"\r\n\r\n")
    assert covost2.read_translations(path) == {"a.mp3": (read, "test")}


@pytest.mark.parametrize("written, read", [
    (rb"ends with " + b"\\", "ends with \\"), (rb"C:\new", r"C:\new"), (rb"\\", r"\\"), (b'"Oh!"', '"Oh!"'),
    (b"Hello\rworld", "Hello world"), (b"a\ttab", None), (b"\xff", None), (b"a\nb", None)])
def test_one_bad_sentence_of_common_voice_stops_nothing(tmp_path, written, read, capsys):
    """Common Voice writes no escapes. A line that cannot be read is left out and listed; the next one is read."""
    path = write(tmp_path / "x.tsv", b"path\tsentence\tx\na.mp3\t" + written + b"\t1\nb.mp3\tnext\t1\n")
    dropped = []
    sentences = covost2.read_sentences(path, {"a.mp3", "b.mp3"}, dropped)
    assert sentences == {**({} if read is None else {"a.mp3": read}), "b.mp3": "next"}
    assert [name for _, name, _ in dropped] == [f"x.tsv line {n}" for n in ((2, 3) if b"\n" in written else
                                                                            (2,) if read is None else ())]
    assert ("lines are left out, the first is line 2: " in capsys.readouterr().out) == bool(dropped)


@pytest.mark.parametrize("text, told", [
    ("path\tsplit\n", "line 1: no column translation"), ("", "no column path, translation, split"),
    ("path,translation,split\n", "line 1: no column"), (TSV.encode("utf-16"), "line 1 is not UTF-8"),
    (TSV + "a.mp3\tA\ttest\nb.mp3\tB", "line 3: 2 fields, expected 3, and the file ends there"),
    (TSV + "a.mp3\tA\tte", "line 2: unknown split 'te'"),
    *((TSV + f"{name}\tA\ttest\n", f"line 2: {name!r} is no file name")
      for name in ("../a.mp3", "a\\b.mp3", "", "a\0.mp3", "a\u2215b.mp3"))])
def test_a_damaged_tsv_is_named_with_its_line(tmp_path, text, told):
    path = write(tmp_path / "x.tsv", text)
    message = refused(covost2.read_translations, path)
    assert path in message and told in message and "download it again" in message


def test_one_bad_line_of_a_release_stops_nothing(tmp_path):
    path, dropped = write(tmp_path / "x.tsv", TSV + "a.mp3\tA\ttrian\n../b.mp3\tB\ttest\nc.mp3\tC\ttest\n"), []
    assert covost2.read_translations(path, dropped) == {"c.mp3": ("C", "test")}
    assert dropped == [("all", "x.tsv line 2", "bad line: unknown split 'trian'"),
                       ("all", "x.tsv line 3", "bad line: '../b.mp3' is no file name")]


def test_the_first_line_of_a_clip_stays(tmp_path, capsys):
    path = write(tmp_path / "x.tsv", TSV + "a.mp3\tA\ttest\na.mp3\tB\tdev\n")
    assert covost2.read_translations(path) == {"a.mp3": ("A", "test")}
    assert "1 lines name a clip a second time" in capsys.readouterr().out


def test_the_english_test_set_survives_the_join(real, tmp_path):
    """15,531 sentences, a fifth of them in double quotes."""
    with open(os.path.join(real, "covost2", "manifests", "en-test.source-only.jsonl"), encoding="utf-8") as file:
        entries = [json.loads(line) for line in file]
    sentences = {f"common_voice_en_{entry['sample_id']}.mp3": entry["src_ref"] for entry in entries}
    path = write(tmp_path / "validated.tsv", "client_id\tpath\tsentence\tup_votes\n" + "".join(
        f"c\t{clip}\t{sentence}\t2\n" for clip, sentence in sentences.items()))
    found = covost2.read_sentences(path, set(sentences))
    assert found == sentences and len(found) == 15_531
    assert sum(text.startswith('"') and text.endswith('"') for text in found.values()) == 2968


def pack(path, members):
    """A .tar.gz of {member name: text}."""
    with tarfile.open(path, "w:gz") as tar:
        for name, text in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))


def test_a_packed_tsv_is_read_without_unpacking(tmp_path):
    text, path = TSV + "a.mp3\tA\ttest\n", tmp_path / "covost_v2.en_de.tsv"
    archive = tmp_path / "covost_v2.en_de.tsv.tar.gz"
    pack(archive, {"../escaped": "x", "./covost_v2.en_de.tsv": text})
    assert covost2.read_translations(str(path)) == {"a.mp3": ("A", "test")}
    assert os.listdir(tmp_path) == [archive.name] and not (tmp_path.parent / "escaped").exists()
    pack(archive, {path.name: TSV + "".join(f"{n}.mp3\t{hash(str(n))}\ttest\n" for n in range(5000))})
    for damaged in (archive.read_bytes()[:20_000], archive.read_bytes()[:20_000] + bytes(100), b"hello",
                    gzip.compress(b"hello" * 999)):
        archive.write_bytes(damaged)
        assert f"{archive} is damaged" in refused(covost2.read_translations, str(path))
    write(path, text)                                        # unpacked, it is what is read
    assert covost2.read_translations(str(path)) == {"a.mp3": ("A", "test")}


def covost_download(raw):
    """Nine clips: two for training, one each for dev and test, the others with a defect."""
    german = ["a\tHallo.\ttrain", "b\t\"Ja\"\ttrain_covost", "c\tNein.\tdev", "d\tGut.\ttest",
              "e\t[TO REMOVE]\ttrain", "f\tFehlt.\ttrain", "g\tLeer.\ttrain", "h\tKaputt.\ttest",
              "i\tUnbekannt.\tdev", "d2\tGut.\ttest_dup"]
    chinese = ["a\t你好。\ttrain", "b\t\ttrain_covost", "c\t不。\tdev", "d\t好。\ttest", "e\t好。\ttrain",
               "c2\t不。\tdev"]
    for pair, lines in (("en_de", german), ("en_zh-CN", chinese)):
        write(raw / f"covost_v2.{pair}.tsv", TSV + "".join(line.replace("\t", ".mp3\t", 1) + "\n" for line in lines))
    write(raw / "en" / "validated.tsv", "client_id\tpath\tsentence\n" + "".join(
        f"x\t{name}.mp3\tSentence {name}.\n" for name in ("d", "c", "b", "a", "e", "f", "g", "h", "unused")))
    soundfile.write(raw / "a.mp3", np.zeros(4800), 48000, format="MP3")
    (raw / "en" / "clips").mkdir()
    for name in "abcde":
        os.link(raw / "a.mp3", raw / "en" / "clips" / f"{name}.mp3")
    write(raw / "en" / "clips" / "g.mp3", "")
    write(raw / "en" / "clips" / "h.mp3", "not audio")


def test_covost2(tmp_path, capsys):
    raw, work = tmp_path / "download", tmp_path / "work"
    covost_download(raw)
    arguments = ["--work", str(work), "--raw", str(raw), "--incomplete"]
    message = refused(covost2.main, arguments[:-1])
    assert "train: ASR en has 3 rows, the paper 289413" in message and not (work / "rows/covost2/config.json").exists()
    covost2.main(arguments)
    folder = work / "rows" / "covost2"
    rows = {split: read_rows(folder / f"{split}.jsonl") for split in ("train", "dev", "test")}
    assert {split: [row["id"] for row in split_rows] for split, split_rows in rows.items()} == {
        "train": ["covost2/train/a/ASR.en", "covost2/train/a/ST.de", "covost2/train/a/ST.zh",
                  "covost2/train/b/ASR.en", "covost2/train/b/ST.de",                 # its Chinese is empty
                  "covost2/train/e/ASR.en", "covost2/train/e/ST.zh"],                # its German is to be removed
        "dev": ["covost2/dev/c/ASR.en", "covost2/dev/c/ST.de", "covost2/dev/c/ST.zh"],
        "test": ["covost2/test/d/ASR.en", "covost2/test/d/ST.de", "covost2/test/d/ST.zh"]}
    assert rows["train"][4] == {
        "id": "covost2/train/b/ST.de", "utterance": "covost2/train/b", "audio": str(raw / "en" / "clips" / "b.mp3"),
        "transcript": "Sentence b.", "task": "ST", "language": "de", "target": '"Ja"', "answerable": True}
    dropped = [line.split("\t") for line in (folder / "dropped.txt").read_text().splitlines()]
    assert sorted((name, why.split(":")[0]) for _, name, why in dropped) == [
        ("covost2/dev/c2", "not in validated.tsv"), ("covost2/dev/i", "not in validated.tsv"),
        ("covost2/test/h", "cannot be decoded"), ("covost2/train/b/ST.zh", "empty translation"),
        ("covost2/train/e/ST.de", "translation marked [TO REMOVE]"), ("covost2/train/f", "no such file"),
        ("covost2/train/g", "empty file")]
    told = capsys.readouterr().out
    assert "| train: ASR en | 3 | 289413 | -289410 |" in told and "dropped: 7" in told
    assert told.endswith(f"next: python extract_features.py --preset iwslt25 --work {work}\n")
    covost2.main(["--work", str(work), "--raw", str(tmp_path)])             # wherever the download is by then
    assert f"remove it and run: python -m data.covost2 --work {work}\n" in capsys.readouterr().out


@pytest.mark.parametrize("place", ["en", ".", "cv-corpus-4-2019-12-10", "cv-corpus-4-2019-12-10/en"])
def test_common_voice_with_and_without_the_folders_of_language_and_version(tmp_path, place):
    write(tmp_path / place / "clips" / "common_voice_en_7.mp3", "")
    assert os.path.normpath(covost2.voice_folder(str(tmp_path), "en")) == os.path.normpath(tmp_path / place)
    assert covost2.voice_folder(str(tmp_path), "ar") == ""
    write(tmp_path / "cv-corpus-9" / "en" / "clips" / "common_voice_en_7.mp3", "")
    assert "en is there in several versions" in refused(covost2.voice_folder, str(tmp_path), "en")


def test_a_clip_held_out_for_one_language_is_no_training_data_for_the_other(tmp_path):
    covost_download(tmp_path)
    write(tmp_path / "covost_v2.en_zh-CN.tsv", TSV + "a.mp3\t你好。\ttest\n")
    rows, dropped = covost2.make_rows(str(tmp_path))
    assert [row["id"] for row in rows["test"]][-2:] == ["covost2/test/a/ASR.en", "covost2/test/a/ST.zh"]
    assert ("train", "covost2/train/a", "in dev or test of the other language") in dropped
    assert not [row for row in rows["train"] if row["utterance"] == "covost2/train/a"]


# --- Europarl-ST.

def m4a(path, seconds, front=False):
    """Stereo AAC at 44.1 kHz, 440 Hz at a level of 0.5 and 0.25; front: its index before its data."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"} if front else {}) as container:
        stream = container.add_stream("aac", rate=44100, layout="stereo")
        wave = 0.5 * np.sin(2 * np.pi * 440 * np.arange(int(seconds * 44100)) / 44100).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(np.stack([wave, wave / 2]), format="fltp", layout="stereo")
        frame.sample_rate = 44100
        for piece in (frame, None):
            container.mux(stream.encode(piece))


def split_files(folder, target, segments):
    """segments.{lst,en,<target>} of [(place, transcript, translation)]; the list has no final newline."""
    for kind, lines in zip(("lst", "en", target), zip(*segments)):
        write(folder / f"segments.{kind}", "\n".join(lines) + ("" if kind == "lst" else "\n"))


def europarl_download(english, **segments):
    """Six splits with one segment each, of a speech of its own; segments: {"it_test": [...]} instead."""
    for target in ("de", "it"):
        for split in ("train", "dev", "test"):
            split_files(english / target / split, target,
                        segments.get(f"{target}_{split}", [(f"en.{split} 0.0 0.5", "Yes.", f"{target}: Yes.")]))
    (english / "audios").mkdir()


def test_read_segments_of_the_released_dev_folder(real):
    segments = europarlst.read_segments(os.path.join(real, "europarl_st", "v1.1", "en", "de", "dev"), "de")
    assert len(segments) == 19 and {speech for speech, *_ in segments} == {"en.20080924.31.3-243"}
    assert segments[0][:3] == ("en.20080924.31.3-243", 0.0, 10.77) and segments[18][1:3] == (138.64, 150.34)
    assert segments[0][3].startswith("Madam President,") and segments[0][4].startswith("Frau Präsidentin!")


@pytest.mark.parametrize("place", ["en.1 0.0", "en.1 0.0 1.0 2.0", "en.1 0.0 1.2.3", "en.1 -1.0 2.0", "en.1 nan 1.0",
                                   "../en.1 0.0 1.0", "en\0.1 0.0 1.0", ""])
def test_a_damaged_list_is_named_with_its_line(tmp_path, place):
    segments = [("en.1 0.0 1.0", "Yes.", "Ja."), (place, "No.", "Nein."), ("en.1 3 4", "No.", "Nein.")]
    split_files(tmp_path, "de", segments)
    message = refused(europarlst.read_segments, str(tmp_path), "de")
    assert f"{tmp_path}/segments.lst line 2: {place!r} is not 'speech start end'" in message


def test_files_of_different_length_are_refused_with_the_counts(tmp_path):
    split_files(tmp_path, "de", [("en.1 0.0 1.0", "Yes.", "Ja."), ("en.1 1.0 2.0", "No.", "Nein.")])
    assert len(europarlst.read_segments(str(tmp_path), "de")) == 2
    write(tmp_path / "segments.de", "Ja.\n")
    message = refused(europarlst.read_segments, str(tmp_path), "de")
    assert all(f"segments.{kind} has {count} lines" in message for kind, count in (("lst", 2), ("en", 2), ("de", 1)))
    write(tmp_path / "segments.de", b"J\xe4.\n")
    assert "segments.de line 1 is not UTF-8" in refused(europarlst.read_segments, str(tmp_path), "de")


def test_segments_join_into_utterances():
    s, audio = "en.1", {"en.1": ("1.flac", 10.0), "en.2": "cannot be decoded (noise: white)"}
    none = {"de": [], "it": []}
    german = [(s, 0.0, 2.0, "One.", "Eins."), (s, 2.0, 4.0, "Two.", "Zwei."), (s, 4.0, 4.0, "Three.", "Drei."),
              (s, 9.0, 10.1, "Late.", "Spät."), (s, 9.0, 10.11, "Later.", "Später."),
              ("en.2", 0.0, 1.0, "Lost.", "Weg.")]
    italian = [(s, 2.0, 4.0, "Two!", "Due."), (s, 2.0, 4.0, "Two.", "Due."), (s, 4.0, 6.0, "Only.", "Solo."),
               (s, 6.0, 7.0, "", "Niente."), (s, 0.0, 2.0, "One.", "")]
    splits, dropped = europarlst.join({"train": {"de": german, "it": italian}, "dev": none, "test": none}, audio)
    rows = splits["train"]
    assert [(row["id"].removeprefix("europarlst/en.1/"), row["transcript"], row["target"]) for row in rows] == [
        ("0.0-2.0/ASR.en", "One.", "One."), ("0.0-2.0/ST.de", "One.", "Eins."),
        ("2.0-4.0/ASR.en", "Two.", "Two."), ("2.0-4.0/ST.de", "Two.", "Zwei."), ("2.0-4.0/ST.it", "Two.", "Due."),
        ("9.0-10.1/ASR.en", "Late.", "Late."), ("9.0-10.1/ST.de", "Late.", "Spät."),     # 0.1 s after the end: kept
        ("4.0-6.0/ASR.en", "Only.", "Only."), ("4.0-6.0/ST.it", "Only.", "Solo.")]
    assert rows[4] == {
        "id": "europarlst/en.1/2.0-4.0/ST.it", "utterance": "europarlst/en.1/2.0-4.0", "audio": "1.flac", "start": 2.0,
        "end": 4.0, "transcript": "Two.", "task": "ST", "language": "it", "target": "Due."}
    assert [(name, why) for _, name, why in dropped] == [
        ("europarlst/en.1/4.0-4.0/ST.de", "ends before it starts"),
        ("europarlst/en.1/9.0-10.11/ST.de", "ends after its audio: 10.00 s"),
        ("europarlst/en.2/0.0-1.0/ST.de", "speech without audio: cannot be decoded (noise: white)"),
        ("europarlst/en.1/2.0-4.0/ST.it", "transcript differs over the targets, the first stays"),
        ("europarlst/en.1/2.0-4.0/ST.it", "segment listed twice"),
        ("europarlst/en.1/6.0-7.0/ST.it", "empty text"), ("europarlst/en.1/0.0-2.0/ST.it", "empty text")]


@pytest.mark.parametrize("leak", ["it_test", "de_dev"])
def test_a_speech_of_training_in_dev_or_test_is_refused(tmp_path, leak):
    pytest.importorskip("av")                  # Europarl-ST is not started without PyAV
    european = tmp_path / "v1.1" / "en"
    europarl_download(european, **{leak: [("en.new 0.0 1.0", "Yes.", "Sì."), ("en.train 7.0 8.0", "Yes.", "Sì.")]})
    message = refused(europarlst.main, ["--work", str(tmp_path / "work"), "--raw", str(tmp_path)])
    assert f"speech en.train is in train and in {leak[3:]}" in message


def test_europarlst_decodes_each_speech_once(tmp_path, capsys):
    english, work = tmp_path / "v1.1" / "en", tmp_path / "work"
    german = [(f"en.{name} 0.0 0.5", "Yes.", "Ja.") for name in ("cut", "junk", "gone")]
    german += [("en.train 0.0 1.0", "Yes.", "Ja."), ("en.train 1.0 2.2", "No.", "Nein.")]
    europarl_download(english, de_train=german)
    m4a(english / "audios" / "en.train.m4a", 2.0)
    m4a(english / "audios" / "en.dev.m4a", 0.5)
    m4a(english / "audios" / "en.cut.m4a", 20.0, front=True)
    os.truncate(english / "audios" / "en.cut.m4a", os.path.getsize(english / "audios" / "en.cut.m4a") // 2)
    write(english / "audios" / "en.junk.m4a", "junk" * 100)
    (work / "audio" / "europarlst").mkdir(parents=True)
    soundfile.write(work / "audio" / "europarlst" / "en.test.flac", np.zeros(8000), 16000)     # from an earlier run
    europarlst.main(["--work", str(work), "--raw", str(tmp_path), "--incomplete"])

    wave, rate = soundfile.read(work / "audio" / "europarlst" / "en.train.flac")
    assert rate == 16000 and wave.ndim == 1 and abs(len(wave) - 2 * 16000) < 1024
    assert np.argmax(np.abs(np.fft.rfft(wave[8000:24000]))) == 440           # Hz, in a second of it
    assert abs(np.abs(wave[8000:24000]).max() - 0.375) < 0.02                # the mean of 0.5 and 0.25
    assert sorted(os.listdir(work / "audio" / "europarlst")) == ["en.dev.flac", "en.test.flac", "en.train.flac"]
    rows = read_rows(work / "rows" / "europarlst" / "train.jsonl")
    assert [row["id"] for row in rows] == [
        "europarlst/en.train/0.0-1.0/ASR.en", "europarlst/en.train/0.0-1.0/ST.de",
        "europarlst/en.train/0.0-0.5/ASR.en", "europarlst/en.train/0.0-0.5/ST.it"]
    told = capsys.readouterr().out
    assert "speeches without audio: 3 of 6" in told and "| train: ST/MT de | 1 | 32628 | -32627 |" in told
    assert "3 in train: speech without audio" in told and "1 in train: ends after its audio" in told
    listed = (work / "rows" / "europarlst" / "dropped.txt").read_text()
    assert "en.gone/0.0-0.5/ST.de\tspeech without audio: no such file\n" in listed and listed.count("be decoded (") == 2


def test_without_pyav_the_program_ffmpeg_decodes(tmp_path, monkeypatch):
    """A stand-in for ffmpeg: gives four samples, fails on a file named bad.m4a."""
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert europarlst.missing("work", str(tmp_path))[-1] == (
        "a decoder of m4a", "pip install av, or apt-get install ffmpeg")
    write(tmp_path / "ffmpeg", f"#!{sys.executable}\nimport sys\n"
          "if 'bad.m4a' in sys.argv[sys.argv.index('-i') + 1]: sys.exit('moov atom not found')\n"
          "assert sys.argv[sys.argv.index('-ar') + 1] == '16000' and sys.argv[sys.argv.index('-ac') + 1] == '1'\n"
          "sys.stdout.buffer.write(bytes([1, 0, 255, 255, 0, 1, 7, 0]))\n")
    os.chmod(tmp_path / "ffmpeg", 0o755)
    (tmp_path / "good one.m4a").touch()
    (tmp_path / "bad.m4a").touch()
    assert europarlst.decode_speeches(["good one", "bad", "gone"], str(tmp_path), str(tmp_path / "flac")) == {
        "good one": (str(tmp_path / "flac" / "good one.flac"), 4 / 16000),
        "bad": "cannot be decoded (moov atom not found\n)", "gone": "no such file"}
    assert soundfile.read(tmp_path / "flac" / "good one.flac", dtype="int16")[0].tolist() == [1, -1, 256, 7]


def test_the_real_test_sets_of_europarlst(real, tmp_path, capsys):
    """Lists rebuilt from the complete test sets; every speech is one recording of 20 minutes, there already."""
    pytest.importorskip("av")                  # Europarl-ST is not started without PyAV
    segments, work = {}, tmp_path / "work"
    for target in ("de", "it"):
        with open(os.path.join(real, "europarl_st", "manifests", f"en-{target}.test.jsonl"), encoding="utf-8") as file:
            entries = [json.loads(line) for line in file]
        names = [os.path.basename(entry["src_audio"]).removesuffix(".wav").replace("_", " ") for entry in entries]
        segments[f"{target}_test"] = [(name, e["src_ref"], e["tgt_ref"]) for name, e in zip(names, entries)]
    keys = {split: [place for place, _, _ in found] for split, found in segments.items()}
    europarl_download(tmp_path / "v1.1" / "en", **segments)
    audio = work / "audio" / "europarlst"
    audio.mkdir(parents=True)
    soundfile.write(tmp_path / "long.flac", np.zeros(20 * 60 * 16000, np.int16), 16000)
    for speech in {place.split()[0] for places in keys.values() for place in places} | {"en.train", "en.dev"}:
        os.link(tmp_path / "long.flac", audio / f"{speech}.flac")
    europarlst.main(["--work", str(work), "--raw", str(tmp_path), "--incomplete"])        # three splits are made up
    told = capsys.readouterr().out
    assert "| test: ST/MT de | 1253 | 1253 | +0 |" in told and "| test: ST/MT it | 1130 | 1130 | +0 |" in told
    assert "| test: ASR en | 1345 | 1345 | +0 |" in told and "dropped: 0\n" in told
    rows = read_rows(work / "rows" / "europarlst" / "test.jsonl")
    languages = collections.defaultdict(set)
    for row in rows:
        languages[row["utterance"]].add(row["language"])
    assert sum(found == {"en", "de", "it"} for found in languages.values()) == 1038
    assert len({row["audio"] for row in rows}) == 127        # 126 of German, one more of Italian


# --- ACL 60/60.

XML = '<?xml version="1.0" encoding="UTF-8"?>\n<mteval>\n<srcset setid="s" srclang="English">\n{}</srcset>\n</mteval>\n'
TALK = '<doc docid="{}" genre="presentations">\n<talkid>{}</talkid>\n<abstract>V&L models</abstract>\n{}</doc>\n'


def talks_xml(talks):
    """{talk: {segment id: text}} -> a file as released, raw & and all."""
    text = ""
    for talk, texts in talks.items():
        text += TALK.format(talk, talk, "".join(f'<seg id="{n}">{text}</seg>\n' for n, text in texts.items()))
    return XML.format(text)


def test_texts_that_are_not_well_formed_are_read(tmp_path):
    path = write(tmp_path / "x.xml", talks_xml({"t.1": {"1": "Q&A", "2": " R&amp;D &#228; &lt;s> &nbsp; a<b <s> x < 5"},
                                                "t.2": {"3": "\u4e2d\u2028\u6587"}}))
    assert acl6060.read_segments(path) == {"1": ("t.1", "Q&A"), "2": ("t.1", "R&D ä <s> &nbsp; a<b <s> x < 5"),
                                           "3": ("t.2", "\u4e2d\u2028\u6587")}


@pytest.mark.parametrize("change, told", [
    (lambda text: text[:-30], "no element found: line 8"),
    (lambda text: text.replace('id="2"', 'id="1"'), "segment id '1' is no number, or there twice"),
    (lambda text: text.replace(' id="2"', ""), "segment id '' is no number"),
    *((lambda text, number=number: text.replace('id="2"', f'id="{number}"'), f"segment id {number!r} is no number")
      for number in ("one", "../1", "\uff12"))])
def test_a_damaged_xml_is_named(tmp_path, change, told):
    path = write(tmp_path / "x.xml", change(talks_xml({"t.1": {"1": "A", "2": "B"}})))
    message = refused(acl6060.read_segments, path)
    assert path in message and told in message


@pytest.mark.parametrize("german", [{"t.1": {"1": "A"}}, {"t.1": {"1": "A", "2": "B", "3": "C"}},
                                    {"t.1": {"1": "A"}, "t.2": {"2": "B"}}])
def test_segments_must_agree_over_the_languages(tmp_path, german):
    for language in ("en", "de", "zh"):
        write(tmp_path / "dev" / "text" / "xml" / f"ACL.6060.dev.en-xx.{language}.xml",
              talks_xml(german if language == "de" else {"t.1": {"1": "A", "2": "B"}}))
    message = refused(acl6060.read_split, str(tmp_path), "dev")
    assert "en-xx.en.xml" in message and "en-xx.de.xml differ in segment" in message


@pytest.mark.parametrize("place", ["2/acl_6060", "acl_6060", "."])
def test_where_the_zip_may_be_unpacked(tmp_path, place):
    (tmp_path / place / "eval").mkdir(parents=True)
    assert os.path.normpath(acl6060.find_folder(str(tmp_path))) == os.path.normpath(tmp_path / place)


def test_acl6060_with_the_real_texts(real, tmp_path, capsys, monkeypatch):
    """The official layout, eval as released; dev from its segment list and translations, its English made up."""
    folder, source = tmp_path / "2" / "acl_6060", os.path.join(real, "acl6060")
    soundfile.write(tmp_path / "1.wav", np.zeros(1600), 16000)
    for split, size in (("dev", 468), ("eval", 416)):
        (folder / split / "segmented_wavs" / "gold").mkdir(parents=True)
        for number in range(1, size + 1):
            os.link(tmp_path / "1.wav", folder / split / "segmented_wavs" / "gold" / f"sent_{number}.wav")
    with open(os.path.join(source, "dev", "acl6060.dev.yaml"), encoding="utf-8") as file:
        talks = [line.split("speaker_id: ")[1].split(",")[0] for line in file]
    for language in ("en", "de", "zh"):
        lines = [f"Sentence {n}." for n in range(468)]
        if language != "en":
            with open(os.path.join(source, "dev", f"tgt_segments.{language}.txt"), encoding="utf-8") as file:
                lines = file.read().splitlines()
        texts = collections.defaultdict(dict)
        for number, (talk, line) in enumerate(zip(talks, lines, strict=True), 1):
            texts[talk][str(number)] = line
        assert list(texts) == [f"2022.acl-long.{n}" for n in (110, 117, 268, 367, 590)]
        write(folder / "dev" / "text" / "xml" / f"ACL.6060.dev.en-xx.{language}.xml", talks_xml(texts))
        name = f"ACL.6060.eval.en-xx.{language}.xml"
        with open(os.path.join(source, "eval", "text", "xml", name), "rb") as file:
            write(folder / "eval" / "text" / "xml" / name, file.read())
    segments = acl6060.read_segments(str(folder / "eval" / "text" / "xml" / "ACL.6060.eval.en-xx.en.xml"))
    assert collections.Counter(talk for talk, _ in segments.values()) == {
        f"2022.acl-long.{n}": size for n, size in ((410, 100), (468, 84), (567, 56), (597, 91), (111, 85))}

    os.remove(folder / "dev" / "segmented_wavs" / "gold" / "sent_7.wav")
    os.remove(folder / "eval" / "segmented_wavs" / "gold" / "sent_416.wav")
    write(folder / "eval" / "segmented_wavs" / "gold" / "sent_416.wav", "not audio")
    asked, model = [], str(tmp_path / "seamless")
    os.mkdir(model)

    def translate(texts, *more):
        asked.append((len(texts), *more))
        return [text.replace("Hi everyone.", "Ciao a tutti.") for text in texts]
    monkeypatch.setattr(acl6060, "translate", translate)
    acl6060.main(["--work", str(tmp_path / "work"), "--raw", str(tmp_path), "--seamless", model])
    results = tmp_path / "work" / "made" / "acl6060" / "translate.it.jsonl"
    assert asked == [(468 - 1 + 416 - 1, "it", model, str(results))]
    told = capsys.readouterr().out
    for kind in ("ASR en", "ST/MT de", "ST/MT it", "ST/MT zh"):
        assert f"| dev: {kind} | 467 | 468 | -1 |" in told and f"| eval: {kind} | 415 | 416 | -1 |" in told
    assert "1 in dev: no such file" in told and "1 in eval: cannot be decoded" in told
    rows = read_rows(tmp_path / "work" / "rows" / "acl6060" / "eval.jsonl")
    assert [row["id"] for row in rows[:4]] == [f"acl6060/eval/1/{x}" for x in ("ASR.en", "ST.de", "ST.it", "ST.zh")]
    assert rows[1]["target"].startswith("Hallo zusammen. Heute werde ich")
    assert rows[2]["target"].startswith("Ciao a tutti. Today I'm going")
    assert rows[3]["audio"] == str(folder / "eval" / "segmented_wavs" / "gold" / "sent_1.wav")
    assert len(read_rows(tmp_path / "work" / "rows" / "acl6060" / "dev.jsonl")) == 4 * 467
