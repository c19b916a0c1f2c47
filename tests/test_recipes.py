"""The recipes of the three released corpora, on small downloads made here and on real files, and what recipes share."""
import collections
import csv
import io
import json
import os
import subprocess
import sys
import tarfile
import types

import numpy as np
import pytest
import soundfile

from data import acl6060, covost2, europarlst, recipe
from speech_llm.rows import read_rows


RECIPES = {"covost2": covost2, "europarlst": europarlst, "acl6060": acl6060}


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def refused(function, *arguments):
    """What a function says when it stops with a user error."""
    with pytest.raises(SystemExit) as error:
        function(*arguments)
    return str(error.value)


def content(folder):
    """{file name: its bytes} of a rows folder."""
    return {name: (folder / name).read_bytes() for name in sorted(os.listdir(folder))}


# --- data/recipe.py: work that a kill does not lose.

SETTINGS = {"model": "m", "beam": 5}
ITEMS = ["ccc", "a", "bb", "a", "dddd", "ee", "fffff"]


class Maker:
    """make() whose result shows which batch an item was in; raises in place of its `kill`-th batch."""
    def __init__(self, kill=None):
        self.batches, self.kill = [], kill

    def __call__(self, items):
        self.batches.append(items)
        if len(self.batches) == self.kill:
            raise KeyboardInterrupt
        return [f"{item} of {'+'.join(items)}" for item in items]


def test_items_come_back_in_order_made_once_and_batched_by_size(tmp_path):
    make = Maker()
    results = recipe.resumable(str(tmp_path / "new" / "x.jsonl"), SETTINGS, ITEMS, make, batch=2)
    assert make.batches == [["a", "bb"], ["ee", "ccc"], ["dddd", "fffff"]]
    assert results[:4] == ["ccc of ee+ccc", "a of a+bb", "bb of a+bb", "a of a+bb"]


@pytest.mark.parametrize("kill, cut", [(1, 0), (2, 0), (3, 0), (3, 1), (3, 30), (3, 70), (None, 5)])
def test_a_killed_run_goes_on_to_the_results_of_an_unbroken_one(tmp_path, kill, cut):
    """`kill`: the batch in which it dies; `cut`: bytes of the last lines that never reached the disk."""
    path, first, second = str(tmp_path / "x.jsonl"), Maker(kill), Maker()
    unbroken = recipe.resumable(str(tmp_path / "unbroken.jsonl"), SETTINGS, ITEMS, Maker(), batch=2)
    try:
        recipe.resumable(path, SETTINGS, ITEMS, first, batch=2)
    except KeyboardInterrupt:
        pass
    os.truncate(path, os.path.getsize(path) - cut)
    assert recipe.resumable(path, SETTINGS, ITEMS, second, batch=2) == unbroken
    done = [batch for batch in first.batches[:kill and kill - 1] if batch not in second.batches]
    assert len(done) == 3 - len(second.batches) and (cut or len(done) == (kill or 4) - 1)    # nothing is made again
    nothing = Maker()
    assert recipe.resumable(path, SETTINGS, ITEMS, nothing, batch=2) == unbroken and not nothing.batches
    for line in open(path, encoding="utf-8"):
        json.loads(line)


def test_a_batch_is_on_disk_before_the_next_one_starts(tmp_path):
    path, lines = tmp_path / "x.jsonl", []

    def make(items):
        lines.append(path.read_text().count("\n"))
        return items
    recipe.resumable(str(path), SETTINGS, ITEMS, make, batch=2)
    assert lines[1:] == [1 + 2, 1 + 4]                       # the settings, and two lines a batch


def test_results_of_other_settings_are_refused(tmp_path):
    path = str(tmp_path / "x.jsonl")
    recipe.resumable(path, SETTINGS, ITEMS, Maker(), batch=2)
    told = refused(recipe.resumable, path, {**SETTINGS, "beam": 1}, ITEMS, Maker(), 2)
    assert path in told and "beam 5 (now 1)" in told


@pytest.mark.parametrize("line", [b"{nonsense", b'"\xff"', b'{"item": "a"}', b"[1]"])
@pytest.mark.parametrize("place", [0, 2])
def test_a_damaged_line_is_named(tmp_path, line, place):
    path = str(tmp_path / "x.jsonl")
    recipe.resumable(path, SETTINGS, ITEMS, Maker(), batch=2)
    lines = open(path, "rb").read().split(b"\n")
    lines[place] = line
    open(path, "wb").write(b"\n".join(lines))
    assert f"{path} line {place + 1} is damaged" in refused(recipe.resumable, path, SETTINGS, ITEMS, Maker(), 2)


def test_a_maker_that_loses_an_item_is_caught(tmp_path):
    with pytest.raises(RuntimeError, match="1 results for 2 items"):
        recipe.resumable(str(tmp_path / "x.jsonl"), SETTINGS, ["a", "b"], lambda items: items[:1], batch=2)


def note_process(path):
    with open(path, "w") as file:
        file.write(str(os.getpid()))


def test_every_slice_of_jobs_has_its_own_process(tmp_path, monkeypatch):
    monkeypatch.setattr(recipe, "SLICE", 2)
    paths = [str(tmp_path / str(n)) for n in range(5)]
    recipe.in_processes(note_process, paths, "jobs")
    pids = [open(path).read() for path in paths]
    assert pids[0] == pids[1] and pids[2] == pids[3] and len(set(pids)) == 3 and str(os.getpid()) not in pids


def fail_on_three(path):
    if path.endswith("3"):
        raise SystemExit("three is no good")


def test_a_process_that_fails_ends_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(recipe, "SLICE", 2)
    with pytest.raises(RuntimeError, match="jobs: a process ended with exit code 1"):
        recipe.in_processes(fail_on_three, [str(tmp_path / str(n)) for n in range(6)], "jobs")


# --- data/recipe.py: reading, rows, counts.

def test_text_lines_names_the_line_that_is_not_utf8():
    assert list(recipe.text_lines(io.BytesIO("\ufeffa\r\né\u2028b".encode()), "x")) == ["a\r\n", "é\u2028b"]
    assert "x.txt line 2 is not UTF-8" in refused(list, recipe.text_lines(io.BytesIO(b"a\n\xff\n"), "x.txt"))


def test_unreadable_says_why(tmp_path):
    soundfile.write(tmp_path / "good.wav", np.zeros(1600), 16000)
    soundfile.write(tmp_path / "silent.wav", np.zeros(0), 16000)
    (tmp_path / "zero.wav").touch()
    (tmp_path / "text.mp3").write_text("not audio")
    names = ["good.wav", "silent.wav", "zero.wav", "text.mp3", "none.wav"]
    found = recipe.unreadable([str(tmp_path / name) for name in names])
    assert [found.get(str(tmp_path / name), "").split(":")[0] for name in names] == [
        "", "no samples", "empty file", "cannot be decoded", "no such file"]


def test_kinds_are_those_of_the_papers_table():
    rows = recipe.speech_rows("c/1", {"audio": "1.wav"}, "Hello.", {"de": "Hallo."})
    assert [(row["id"], row["target"], recipe.kind(row)) for row in rows] == [
        ("c/1/ASR.en", "Hello.", "ASR en"), ("c/1/ST.de", "Hallo.", "ST/MT de")]
    text = {"task": "ST", "language": "it"}
    assert recipe.kind(text) == "MT it"
    assert recipe.kind({**text, "task": "SQA", "utterance": "c/1", "answerable": False}) == "SQA/QA it invalid"
    assert recipe.kind({**text, "task": "MCQ"}) == "QA it"


def test_report_counts_beside_the_paper(tmp_path, capsys):
    rows = [{"id": f"c/{n}", "task": "ST", "language": "de", "utterance": "u"} for n in range(3)]
    rows += [{"id": "c-fluent/0", "task": "SQA", "language": "en"}]
    dropped = [("train", "c/7", "broken: first\nline"), ("train", "c/8", "broken: second"), ("dev", "c/9", "empty")]
    recipe.report(str(tmp_path), "c", {"train": rows}, {("train", "ST/MT de"): 5, ("test", "ASR en"): 2}, dropped)
    table = (tmp_path / "rows" / "c" / "counts.md").read_text()
    assert table == capsys.readouterr().out
    assert table.splitlines() == [
        "| c | ours | paper | difference |", "|---|---|---|---|", "| test: ASR en | 0 | 2 | -2 |",
        "| train: ST/MT de | 3 | 5 | -2 |", "| train: c-fluent QA en | 1 | | |", "",
        "dropped: 3, listed in dropped.txt", "  2 in train: broken", "  1 in dev: empty"]
    listed = (tmp_path / "rows" / "c" / "dropped.txt").read_text()
    assert listed == "train\tc/7\tbroken: first line\ntrain\tc/8\tbroken: second\ndev\tc/9\tempty\n"
    assert "everything was dropped" in refused(recipe.report, str(tmp_path), "c", {"train": []}, {}, dropped)


# --- What holds for every recipe.

@pytest.mark.parametrize("name, told", [
    ("covost2", ("dl.fbaipublicfiles.com/covost", "cv-corpus-4", "41.4 GB", "CC0")),
    ("europarlst", ("mllp.upv.es/europarl-st/v1.1.tar.gz", "20 GB", "CC BY-NC 4.0")),
    ("acl6060", ("aclanthology.org/attachments/2023.iwslt-1.2.dataset.zip", "CC BY 4.0"))])
def test_help_says_what_to_download(name, told, capsys):
    with pytest.raises(SystemExit) as stop:
        RECIPES[name].main(["--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0 and all(word in text for word in told), text


@pytest.mark.parametrize("name, missing", [
    ("covost2", ("raw/covost2/covost_v2.en_de.tsv.tar.gz", "https://dl.fbaipublicfiles.com/covost/covost_v2.en_de")),
    ("europarlst", ("raw/europarlst/v1.1/en", "https://www.mllp.upv.es/europarl-st/v1.1.tar.gz")),
    ("acl6060", ("raw/acl6060/2/acl_6060", "https://aclanthology.org/attachments/2023.iwslt-1.2.dataset.zip"))])
def test_a_missing_download_is_named(name, missing, tmp_path):
    """As a script, from another folder: its imports start at the project's folder all the same."""
    done = subprocess.run([sys.executable, RECIPES[name].__file__], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr and all(part in done.stderr for part in missing)


# --- CoVoST 2.

TSV = "path\ttranslation\tsplit\n"


@pytest.mark.parametrize("written, read", [
    (b'"Oh!"', '"Oh!"'), (b'a "b', 'a "b'), (b'""', '""'),                   # quotes are characters
    (rb'\"Oh!\"', '"Oh!"'), (rb"a\\b", "a\\b"), (rb"a\nb", "anb"),           # a backslash goes, the next one stays
    (b"a\\\tb", "a\tb"), (b"a\\\nb", "a\nb"),                                # ... even a tab or a line's end
    (b"NA", "NA"), (b"None", "None"), (b"007", "007"), (b" a ", " a "), (b"", ""),
    ("é\u2028\x85".encode(), "é\u2028\x85")])
def test_quotes_and_escapes_read_as_in_get_covost_splits(tmp_path, written, read):
    path = write(tmp_path / "x.tsv", b"split\tpath\tmore\ttranslation\r\ntest\ta.mp3\t1\t" + written + b"\r\n\r\n")
    assert covost2.read_translations(path) == {"a.mp3": (read, "test")}


@pytest.mark.parametrize("text, told", [
    ("path\tsplit\n", "line 1: no column translation"), ("", "line 1: no column path, translation, split"),
    (TSV + "a.mp3\tA\ttest\nb.mp3\tB", "line 3: 2 fields, expected 3"),
    (TSV + "a.mp3\tA\tB\ttest\n", "line 2: 4 fields"), (TSV + "a.mp3\tA\tte", "line 2: unknown split 'te'"),
    (TSV + "../a.mp3\tA\ttest\n", "line 2: '../a.mp3' is no file"),
    (TSV.encode() + b"a.mp3\t\xff\ttest\n", "line 2 is not UTF-8"), (TSV + "a.mp3\tA\rB\ttest\n", "line 2: new-line"),
    (TSV + "a.mp3\t" + "A" * 200_000 + "\ttest\n", "line 2: field larger")])
def test_a_damaged_tsv_is_named_with_its_line(tmp_path, text, told):
    path = write(tmp_path / "x.tsv", text)
    message = refused(covost2.read_translations, path)
    assert path in message and told in message and "download it again" in message


def test_the_first_line_of_a_clip_stays(tmp_path, capsys):
    path = write(tmp_path / "x.tsv", TSV + "a.mp3\tA\ttest\na.mp3\tB\tdev\n")
    assert covost2.read_translations(path) == {"a.mp3": ("A", "test")}
    assert "1 lines name a clip a second time" in capsys.readouterr().out


MARKS = {"zh": dict(train=7079, dev=4843, test=4898, train_covost=6, dev_covost=11, test_covost=10, dev_dup=9,
                    test_dup=42),
         "pt": dict(train=6014, dev=3318, test=4023, train_covost=3144, dev_covost=275, test_covost=233, dev_dup=2456,
                    test_dup=2668)}


@pytest.mark.parametrize("source, splits, removed", [("zh", [7079 + 6, 4843, 4898], 0),
                                                     ("pt", [6014 + 3144, 3318 - 3, 4023 - 2], 9)])
def test_released_translations(real, source, splits, removed):
    found = covost2.read_translations(os.path.join(real, "covost2", "raw_tsv", f"covost_v2.{source}_en.tsv"))
    assert collections.Counter(mark for _, mark in found.values()) == MARKS[source]
    assert sum("[TO REMOVE]" in text for text, _ in found.values()) == removed
    ours, dropped = covost2.split_translations(found)
    assert [len(ours[split]) for split in ("train", "dev", "test")] == splits
    assert len(dropped) == (5 if removed else 0)             # the other four are in no split
    assert all(why == "translation marked [TO REMOVE]" for _, _, why in dropped)


def test_the_english_test_set_survives_the_join(real, tmp_path):
    """15,531 sentences, a fifth of them in double quotes, as Common Voice's own writer escapes them."""
    with open(os.path.join(real, "covost2", "manifests", "en-test.source-only.jsonl"), encoding="utf-8") as file:
        entries = [json.loads(line) for line in file]
    sentences = {f"common_voice_en_{entry['sample_id']}.mp3": entry["src_ref"] for entry in entries}
    lines = io.StringIO()
    writer = csv.writer(lines, delimiter="\t", quoting=csv.QUOTE_NONE, escapechar="\\", lineterminator="\n")
    writer.writerow(["client_id", "path", "sentence", "up_votes", "down_votes", "age", "gender", "accent"])
    writer.writerows(["c", clip, sentence, 2, 0, "", "", ""] for clip, sentence in sentences.items())
    assert lines.getvalue().count('\\"') >= 2 * 2968
    found = covost2.read_sentences(write(tmp_path / "validated.tsv", lines.getvalue()), set(sentences))
    assert found == sentences and len(found) == 15_531
    assert sum(text.startswith('"') and text.endswith('"') for text in found.values()) == 2968


def pack(path, members):
    """A .tar.gz of {member name: text}; a member whose text is None is a link to /etc/passwd."""
    with tarfile.open(path, "w:gz") as tar:
        for name, text in members.items():
            member = tarfile.TarInfo(name)
            if text is None:
                member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            member.size = len(text or "")
            tar.addfile(member, io.BytesIO((text or "").encode()))


def test_a_packed_tsv_is_read_without_unpacking(tmp_path):
    text, path = TSV + "a.mp3\tA\ttest\n", tmp_path / "covost_v2.en_de.tsv"
    archive = tmp_path / "covost_v2.en_de.tsv.tar.gz"
    pack(archive, {"../escaped": "x", "links/covost_v2.en_de.tsv": None, "./covost_v2.en_de.tsv": text})
    assert covost2.read_translations(str(path)) == {"a.mp3": ("A", "test")}
    assert os.listdir(tmp_path) == [archive.name] and not (tmp_path.parent / "escaped").exists()
    pack(archive, {"covost_v2.en_fr.tsv": text})
    assert f"{archive} holds no covost_v2.en_de.tsv" in refused(covost2.read_translations, str(path))
    pack(archive, {path.name: TSV + "".join(f"{n}.mp3\t{hash(str(n))}\ttest\n" for n in range(5000))})
    archive.write_bytes(archive.read_bytes()[:20_000])
    assert f"{archive} is damaged" in refused(covost2.read_translations, str(path))
    write(path, text)                                        # unpacked, it is what is read
    assert covost2.read_translations(str(path)) == {"a.mp3": ("A", "test")}


def covost_download(raw):
    """Nine clips: two for training, one each for dev and test, the others with a defect."""
    german = ["a\tHallo.\ttrain", "b\t\"Ja\"\ttrain_covost", "c\tNein.\tdev", "d\tGut.\ttest",
              "e\t[TO REMOVE]\ttrain", "f\tFehlt.\ttrain", "g\tLeer.\ttrain", "h\tKaputt.\ttest",
              "i\tUnbekannt.\tdev", "d2\tGut.\ttest_dup"]
    chinese = ["a\t你好。\ttrain", "b\t\ttrain_covost", "c\t不。\tdev", "d\t好。\ttest", "e\t好。\ttrain", "c2\t不。\tdev"]
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
    arguments = ["--work", str(work), "--raw", str(raw)]
    covost2.main(arguments)
    folder = work / "rows" / "covost2"
    rows = {split: read_rows(folder / f"{split}.jsonl") for split in ("train", "dev", "test")}
    assert {split: [row["id"] for row in found] for split, found in rows.items()} == {
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
    assert told.endswith("next: python extract_features.py --preset iwslt25\n")
    before = content(folder)
    covost2.main(arguments)
    assert capsys.readouterr().out == f"{folder} is finished already\n" and content(folder) == before
    covost2.main(["--work", str(work), "--raw", str(tmp_path)])             # wherever the download lies by now
    assert "is finished already" in capsys.readouterr().out and content(folder) == before


def test_covost2_names_each_missing_part(tmp_path):
    covost_download(tmp_path)
    for name, told in (("en/validated.tsv", "Common Voice corpus 4"), ("en/clips", "Common Voice corpus 4"),
                       ("covost_v2.en_zh-CN.tsv", f"{covost2.URL}covost_v2.en_zh-CN.tsv.tar.gz")):
        (tmp_path / name).rename(tmp_path / "away")
        message = refused(covost2.make_rows, str(tmp_path))
        assert str(tmp_path / name) in message and told in message
        (tmp_path / "away").rename(tmp_path / name)


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
                                   "../en.1 0.0 1.0", "", "0.0 1.0"])
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
    os.remove(tmp_path / "segments.en")
    message = refused(europarlst.read_segments, str(tmp_path), "de")
    assert f"{tmp_path}/segments.en is missing" in message and europarlst.DOWNLOAD in message


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
    european = tmp_path / "v1.1" / "en"
    europarl_download(european, **{leak: [("en.new 0.0 1.0", "Yes.", "Sì."), ("en.train 7.0 8.0", "Yes.", "Sì.")]})
    message = refused(europarlst.main, ["--work", str(tmp_path / "work"), "--raw", str(tmp_path)])
    assert f"speech en.train is in train and in {leak[3:]}" in message


def test_europarlst_decodes_each_speech_once(tmp_path, capsys, monkeypatch):
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
    europarlst.main(["--work", str(work), "--raw", str(tmp_path)])

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
    assert told.endswith("next: python extract_features.py --preset iwslt25\n")
    listed = (work / "rows" / "europarlst" / "dropped.txt").read_text()
    assert "en.gone/0.0-0.5/ST.de\tspeech without audio: no such file\n" in listed and listed.count("be decoded (") == 2
    before = content(work / "rows" / "europarlst")
    os.remove(work / "rows" / "europarlst" / "config.json")                  # as if killed before its last file
    decoded = []
    monkeypatch.setattr(europarlst, "decode_av", lambda path: decoded.append(os.path.basename(path)) or 1 / 0)
    europarlst.main(["--work", str(work), "--raw", str(tmp_path)])
    assert sorted(decoded) == ["en.cut.m4a", "en.junk.m4a"]                  # the others are there
    after = content(work / "rows" / "europarlst")
    before.pop("dropped.txt"), after.pop("dropped.txt")                      # there the reason is another one now
    assert after == before


def test_decoding_loses_nothing_at_the_end(tmp_path):
    pytest.importorskip("av")
    soundfile.write(tmp_path / "a.wav", np.full((44100, 2), 0.25), 44100)
    wave = europarlst.decode_av(str(tmp_path / "a.wav"))
    assert wave.dtype == np.int16 and wave.shape == (16000,) and abs(wave[8000] - 0.25 * 2**15) < 4


def test_without_pyav_the_program_ffmpeg_decodes(tmp_path, monkeypatch):
    """A stand-in for ffmpeg: gives four samples, fails on a file named bad.m4a."""
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "pip install av" in refused(europarlst.find_decoder)
    write(tmp_path / "ffmpeg", f"#!{sys.executable}\nimport sys\n"
          "if 'bad.m4a' in sys.argv[sys.argv.index('-i') + 1]: sys.exit('moov atom not found')\n"
          "assert sys.argv[sys.argv.index('-ar') + 1] == '16000' and sys.argv[sys.argv.index('-ac') + 1] == '1'\n"
          "sys.stdout.buffer.write(bytes([1, 0, 255, 255, 0, 1, 7, 0]))\n")
    os.chmod(tmp_path / "ffmpeg", 0o755)
    (tmp_path / "good one.m4a").touch()
    (tmp_path / "bad.m4a").touch()
    found = europarlst.decode_speeches(["good one", "bad", "gone"], str(tmp_path), str(tmp_path / "flac"))
    assert found == {"good one": (str(tmp_path / "flac" / "good one.flac"), 4 / 16000),
                     "bad": "cannot be decoded (moov atom not found\n)", "gone": "no such file"}
    assert soundfile.read(tmp_path / "flac" / "good one.flac", dtype="int16")[0].tolist() == [1, -1, 256, 7]


def test_the_real_test_sets_of_europarlst(real, tmp_path, capsys):
    """Lists rebuilt from the complete test sets; every speech is one recording of 20 minutes, there already."""
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
    europarlst.main(["--work", str(work), "--raw", str(tmp_path)])
    told = capsys.readouterr().out
    assert "| test: ST/MT de | 1253 |" in told and "| test: ST/MT it | 1130 |" in told
    assert "| test: ASR en | 1345 |" in told and "dropped: 0\n" in told
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


BOMB = '<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]>'


@pytest.mark.parametrize("change, told", [
    (lambda text: text[:-30], "no element found: line 8"), (lambda text: "", "no element found: line 1"),
    (lambda text: text.replace("<mteval>", BOMB + "<mteval>"), "document type"),
    (lambda text: text.replace("<mteval>", "<!entity a 'b'><mteval>"), "document type"),
    (lambda text: text.replace('id="2"', 'id="1"'), "segment id '1' is no number, or there twice"),
    (lambda text: text.replace(' id="2"', ""), "segment id '' is no number"),
    (lambda text: text.replace("</seg>", "", 1), "mismatched tag: line 9")])
def test_a_damaged_xml_is_named(tmp_path, change, told):
    path = write(tmp_path / "x.xml", change(talks_xml({"t.1": {"1": "A", "2": "B"}})))
    message = refused(acl6060.read_segments, path)
    assert path in message and told in message


@pytest.mark.parametrize("german", [{"t.1": {"1": "A"}}, {"t.1": {"1": "A", "2": "B", "3": "C"}},
                                    {"t.1": {"1": "A"}, "t.2": {"2": "B"}}])
def test_segments_must_agree_over_the_languages(tmp_path, german):
    for language in ("en", "de", "zh"):
        write(tmp_path / "text" / "xml" / f"ACL.6060.dev.en-xx.{language}.xml",
              talks_xml(german if language == "de" else {"t.1": {"1": "A", "2": "B"}}))
    message = refused(acl6060.read_split, str(tmp_path), "dev")
    assert "en-xx.en.xml" in message and "en-xx.de.xml differ in segment" in message


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
    found = acl6060.read_segments(str(folder / "eval" / "text" / "xml" / "ACL.6060.eval.en-xx.en.xml"))
    assert collections.Counter(talk for talk, _ in found.values()) == {
        f"2022.acl-long.{n}": size for n, size in ((410, 100), (468, 84), (567, 56), (597, 91), (111, 85))}

    os.remove(folder / "dev" / "segmented_wavs" / "gold" / "sent_7.wav")
    os.remove(folder / "eval" / "segmented_wavs" / "gold" / "sent_416.wav")
    write(folder / "eval" / "segmented_wavs" / "gold" / "sent_416.wav", "not audio")
    asked = []

    def translate(texts, language, **more):
        asked.append((len(texts), language, more))
        return [text.replace("Hi everyone.", "Ciao a tutti.") for text in texts]
    monkeypatch.setitem(sys.modules, "data.translate", types.SimpleNamespace(translate=translate))
    acl6060.main(["--work", str(tmp_path / "work"), "--raw", str(tmp_path), "--seamless", "models/s"])
    kept = str(tmp_path / "work" / "made" / "acl6060" / "translate.it.jsonl")
    assert asked == [(468 - 1 + 416 - 1, "it", {"model": "models/s", "kept": kept})]
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
    acl6060.main(["--work", str(tmp_path / "work"), "--raw", str(tmp_path), "--seamless", "models/s"])
    assert "is finished already" in capsys.readouterr().out and len(asked) == 1
