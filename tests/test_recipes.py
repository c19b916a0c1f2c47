"""data/recipe.py; CoVoST 2, Europarl-ST and ACL 60/60 on small downloads made here and on real files."""
import collections
import gzip
import importlib
import json
import os
import shutil
import sys
import tarfile
from types import SimpleNamespace
from unittest.mock import Mock

import downloads
import httpx
import pytest
import soundfile
from downloads import common_voice, covost_tsv, read_corpus, sound, talks_xml
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from test_bad_input import refused, write

from data import acl6060, covost2, europarlst, recipe
from data.recipe import begin, finish, finished
from speech_llm.cache import load_rows
from speech_llm.rows import remake, rows_file

RECIPES = ("acl6060", "commonvoice", "covost2", "europarlst", "gigast", "librispeech", "librisqa", "mcif",
           "multispeechqa", "small_cpu", "speech_ifeval", "spokensquad")


# --- data/recipe.py: processes, audio, rows, counts.

def test_every_slice_of_jobs_has_its_own_process_and_a_failing_one_ends_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(recipe, "SLICE", 2)
    recipe.in_processes(os.system, [f"echo $PPID > {tmp_path}/{n}" for n in range(3)], "jobs")
    first, second, third = ((tmp_path / str(n)).read_text() for n in range(3))
    assert first == second != third
    with pytest.raises(RuntimeError, match="jobs: a process ended with exit code 1"):
        recipe.in_processes(int, ["1", "two", "3"], "jobs")


def test_report_counts_beside_the_paper_and_stops_below_half_of_it(tmp_path, capsys):
    rows = [{"id": f"c/{n}", "task": "ST", "language": "de", "utterance": "u"} for n in range(3)]
    rows += [{"id": "c-fluent/0", "task": "SQA", "language": "en"}]
    dropped = [("train", "c/7", "broken: first\nline"), ("train", "c/8", "broken: second"), ("dev", "c/9", "empty")]
    recipe.report(str(tmp_path), "c", {"train": rows}, {("train", "ST/MT de"): 6}, dropped)
    assert capsys.readouterr().out.splitlines() == [
        "| c | ours | paper | difference |", "|---|---|---|---|", "| train: ST/MT de | 3 | 6 | -3 |",
        "| train: c-fluent QA en | 1 | | |", "",
        "dropped: 3, listed in dropped.txt", "  2 in train: broken", "  1 in dev: empty"]
    assert (tmp_path / "rows" / "c" / "dropped.txt").read_text() == (
        "train\tc/7\tbroken: first line\ntrain\tc/8\tbroken: second\ndev\tc/9\tempty\n")

    paper = {("train", "ST/MT de"): 7, ("test", "ASR en"): 2}
    message = refused(recipe.report, str(tmp_path), "c", {"train": rows}, paper, dropped, says="--incomplete")
    assert "train: ST/MT de has 3 rows, the paper 7" in message and "test: ASR en has 0 rows, the paper 2" in message
    recipe.report(str(tmp_path), "c", {"train": rows}, paper, dropped, incomplete=True)
    refused(recipe.report, str(tmp_path), "c", {"train": []}, {}, dropped, True, says="everything was dropped")


# --- From the first look to the last file.

def test_a_first_look_settles_nothing_and_begun_work_keeps_its_settings(tmp_path):
    work, folder = str(tmp_path), tmp_path / "rows" / "c"
    assert not finished(work, "c", {"seed": 0}) and not folder.exists()
    begin(work, "c", {"seed": 1})
    refused(finished, work, "c", {"seed": 0}, says="c was made with seed 1 (now 0)")
    finish(work, "c", {"seed": 1, "languages": "en,de,it"}, "iwslt25")
    assert finished(work, "c", {"seed": 1, "languages": "it,en"})            # of three languages
    refused(finished, work, "c", {"seed": 0, "languages": "en"}, says="c was made with seed 1 (now 0)")
    refused(finished, work, "c", {"seed": 1, "languages": "en,fr"}, says="with languages 'en,de,it' (now 'en,fr')")


def test_rows_of_a_recipe_that_did_not_finish_are_refused(tmp_path):
    """A user's own corpus, which no recipe makes, needs no config.json."""
    work = str(tmp_path)
    paths = {name: write(tmp_path / "rows" / name / "train.jsonl", "") for name in ("fakacl", "mine")}
    assert rows_file(work, "mine", "train") == paths["mine"]
    refused(rows_file, work, "fakacl", "train", says=f"run: python -m data.fakacl --work {work}")
    write(tmp_path / "rows" / "fakacl" / "config.json", "{}")
    assert rows_file(work, "fakacl", "train") == paths["fakacl"]
    begin(work, "mine", {})
    refused(rows_file, work, "mine", "train", says="rows/mine is not finished")


@pytest.mark.parametrize("path, command", [
    ("work/rows/covost2-zh_en/test.jsonl", "python -m data.covost2 --into-english zh"),
    ("work/rows/covost2-en_ar/test.jsonl", "python -m data.covost2 --from-english ar"),
    ("my work/rows/covost2/test.jsonl", "python -m data.covost2 --work 'my work'"),
    ("w/rows/tiny26/test.jsonl", "WORK=w bash run_all.sh tiny26"),
    ("work/rows/mine/dev.jsonl", "your command that writes work/rows/mine/dev.jsonl")])
def test_commands_to_make_rows_carry_the_work_folder(path, command):
    assert remake(path) == command


def test_two_corpora_with_one_utterance_are_refused_by_name(before_training):
    """Otherwise the second corpus would train on the frames of the first."""
    [features] = (before_training / "work" / "features").iterdir()
    for folder in (features, before_training / "work" / "rows"):
        shutil.copytree(folder / "tiny", folder / "yours")
    c = SimpleNamespace(preset="tiny", work="work", corpora="tiny,yours")
    refused(load_rows, c, "train", json.loads((features / "tiny/train/frames-00000.json").read_text())["made"],
            says="the corpora tiny and yours share the names of 24 utterances")


# --- What is missing for a recipe.

def test_models_that_the_hub_does_not_give_are_told_before_any_work(tmp_path, monkeypatch):
    response = httpx.Response(403, request=httpx.Request("GET", "https://x"))
    monkeypatch.setattr("huggingface_hub.auth_check", Mock(side_effect=[
        GatedRepoError("no", response=response), RepositoryNotFoundError("no", response=response),
        httpx.ConnectError("no network"), None]))
    for says in ("accept its licence at https://huggingface.co/some/model and run: hf auth login",
                 "neither a folder nor a model of the hub has this name", "no network); run: hf download some/model"):
        [(name, how)] = recipe.missing_models(str(tmp_path), "some/model")
        assert name == "some/model" and says in how
    assert recipe.missing_models("some/model") == []
    assert recipe.missing_packages("json", "no_such_package") == [
        ("the package no_such_package", "pip install no_such_package")]


@pytest.mark.parametrize("name", RECIPES)
def test_everything_missing_is_listed_at_once_before_any_work(name, tmp_path, monkeypatch):
    """An empty download: the list names files and where they come from, as main does; nothing is written."""
    monkeypatch.setattr("huggingface_hub.auth_check", lambda name: None)
    module, work = importlib.import_module(f"data.{name}"), str(tmp_path / "work")
    lacking = module.missing(work)
    assert any("https://" in how for _, how in lacking) and os.path.join("work", "raw", name) in lacking[0][0]
    message = refused(module.main, ["--work", work])
    assert all(f"  {what} is missing: {how}" in message for what, how in lacking) and not os.path.exists(work)
    assert module.missing(work, str(tmp_path / "elsewhere"))[0][0].count(str(tmp_path / "elsewhere")) == 1


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


def test_a_packed_tsv_is_read_without_unpacking(tmp_path):
    path, archive = tmp_path / "covost_v2.en_de.tsv", tmp_path / "covost_v2.en_de.tsv.tar.gz"
    write(path, TSV + "".join(f"{n}.mp3\t{n * n % 9973}\ttest\n" for n in range(5000)))
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(path, f"./{path.name}")
    path.unlink()
    assert covost2.read_translations(str(path))["7.mp3"] == ("49", "test")
    assert os.listdir(tmp_path) == [archive.name]
    whole = archive.read_bytes()
    for damaged in (whole[:9000], whole[:9000] + bytes(100), b"hello", gzip.compress(b"hello" * 999)):
        write(archive, damaged)
        refused(covost2.read_translations, str(path), says=f"{archive} is damaged")


def test_covost2(tmp_path, capsys):
    """Of nine clips two are for training, one each for dev and test; the others have a defect."""
    raw, work = tmp_path / "download", tmp_path / "work"
    covost_tsv(raw, "en_de", [
        ("a.mp3", "Hallo.", "train"), ("b.mp3", '"Ja"', "train_covost"), ("c.mp3", "Nein.", "dev"),
        ("d.mp3", "Gut.", "test"), ("e.mp3", "[TO REMOVE]", "train"), ("f.mp3", "Fehlt.", "train"),
        ("g.mp3", "Leer.", "train"), ("h.mp3", "Kaputt.", "test"), ("i.mp3", "Unbekannt.", "dev"),
        ("d2.mp3", "Gut.", "test_dup"), ("a.mp3", "Servus.", "dev"), ("k.mp3", "Falsch.", "trian")])
    covost_tsv(raw, "en_zh-CN", [
        ("a.mp3", "你好。", "train"), ("b.mp3", "", "train_covost"), ("c.mp3", "不。", "dev"), ("d.mp3", "好。", "test"),
        ("e.mp3", "好。", "train")])
    common_voice(raw / "en", sound(f"{raw}/a.mp3", 0.1, 48_000, format="MP3"),
                 validated=[f"{name} x Sentence {name}." for name in "dcbaefgh"])
    for name in "fgh":
        (raw / f"en/clips/{name}.mp3").unlink()                              # the clips are links to one file
    write(raw / "en/clips/g.mp3", b"")
    write(raw / "en/clips/h.mp3", b"not audio")
    arguments = ["--work", str(work), "--raw", str(raw)]
    refused(covost2.main, arguments, says="train: ASR en has 3 rows, the paper 289413")
    covost2.main([*arguments, "--incomplete"])
    rows, dropped = read_corpus(work, "covost2")
    assert {split: [row["id"].removeprefix(f"covost2/{split}/") for row in rows[split]] for split in rows} == {
        "train": ["a/ASR.en", "a/ST.de", "a/ST.zh", "b/ASR.en", "b/ST.de",           # b's Chinese is empty
                  "e/ASR.en", "e/ST.zh"],                                            # e's German is to be removed
        "dev": ["c/ASR.en", "c/ST.de", "c/ST.zh"], "test": ["d/ASR.en", "d/ST.de", "d/ST.zh"]}
    assert rows["train"][4] == {
        "id": "covost2/train/b/ST.de", "utterance": "covost2/train/b", "audio": str(raw / "en" / "clips" / "b.mp3"),
        "transcript": "Sentence b.", "task": "ST", "language": "de", "target": '"Ja"', "answerable": True}
    assert sorted((name.removeprefix("covost2/"), why.split(":")[0]) for _, name, why in dropped) == [
        ("covost_v2.en_de.tsv line 13", "bad line"), ("dev/i", "not in validated.tsv"), ("test/h", "cannot be decoded"),
        ("train/b/ST.zh", "empty translation"),
        ("train/e/ST.de", "translation marked [TO REMOVE]"), ("train/f", "no such file"), ("train/g", "empty file")]
    told = capsys.readouterr().out
    assert "| train: ASR en | 3 | 289413 | -289410 |" in told and "1 lines name a clip a second time" in told
    covost2.main(["--work", str(work), "--raw", str(tmp_path)])             # wherever the download is by then
    assert f"remove it and run: python -m data.covost2 --work {work}\n" in capsys.readouterr().out

    covost_tsv(raw, "en_zh-CN", [("a.mp3", "你好。", "test")])                # held out for Chinese: no German training
    rows, dropped = covost2.make_rows(str(raw))
    assert [row["id"] for row in rows["test"]][-2:] == ["covost2/test/a/ASR.en", "covost2/test/a/ST.zh"]
    assert ("train", "covost2/train/a", "in dev or test of the other language") in dropped

    write(tmp_path / "clips" / "common_voice_en_7.mp3", "")                  # no folder en
    assert covost2.voice_folder(str(tmp_path), "en") == str(tmp_path) and not covost2.voice_folder(str(tmp_path), "ar")


# --- Europarl-ST.

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
    assert [(name.removeprefix("europarlst/"), why) for _, name, why in dropped] == [
        ("en.1/4.0-4.0/ST.de", "ends before it starts"), ("en.1/9.0-10.11/ST.de", "ends after its audio: 10.00 s"),
        ("en.2/0.0-1.0/ST.de", "speech without audio: cannot be decoded (noise: white)"),
        ("en.1/2.0-4.0/ST.it", "transcript differs over the targets, the first stays"),
        ("en.1/2.0-4.0/ST.it", "segment listed twice"), ("en.1/6.0-7.0/ST.it", "empty text"),
        ("en.1/0.0-2.0/ST.it", "empty text")]


@pytest.mark.parametrize("leak", ["it_test", "de_dev"])
def test_a_speech_of_training_in_dev_or_test_is_refused(tmp_path, makers, leak):
    segments = [("en.new 0.0 1.0", "Yes.", "Sì."), ("en.train 7.0 8.0", "Yes.", "Sì.")]
    downloads.europarlst(tmp_path, 1, **{leak: segments})
    refused(europarlst.main, ["--work", str(tmp_path / "work"), "--raw", str(tmp_path)],
            says=f"speech en.train is in train and in {leak[3:]}")


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
    for name in ("good one", "bad"):
        (tmp_path / f"{name}.m4a").touch()
    path = f"{tmp_path}/flac/good one.flac"
    assert europarlst.decode_speeches(["good one", "bad", "gone"], str(tmp_path), f"{tmp_path}/flac") == {
        "good one": (path, 4 / 16000), "bad": "cannot be decoded (moov atom not found\n)", "gone": "no such file"}
    assert soundfile.read(path, dtype="int16")[0].tolist() == [1, -1, 256, 7]


def test_the_real_test_sets_of_europarlst(real):
    """The complete lists; a recording lasts 20 minutes here. 1,038 have both languages."""
    segments = {"train": {"de": [], "it": []}, "dev": {"de": [], "it": []}, "test": {"de": [], "it": []}}
    for target, part in segments["test"].items():
        with open(os.path.join(real, "europarl_st", "manifests", f"en-{target}.test.jsonl"), encoding="utf-8") as file:
            for entry in map(json.loads, file):
                speech, start, end = os.path.basename(entry["src_audio"]).removesuffix(".wav").split("_")
                part.append((speech, float(start), float(end), entry["src_ref"], entry["tgt_ref"]))
    speeches = {segment[0] for part in segments["test"].values() for segment in part}
    splits, dropped = europarlst.join(segments, {speech: ("x.flac", 20 * 60.0) for speech in speeches})
    assert not dropped and collections.Counter(map(recipe.kind, splits["test"])) == {
        kind: europarlst.PAPER["test", kind] for kind in ("ASR en", "ST/MT de", "ST/MT it")}
    rows_of = collections.Counter(row["utterance"] for row in splits["test"])
    assert collections.Counter(rows_of.values())[3] == 1038


# --- ACL 60/60.

def test_texts_that_are_not_well_formed_are_read(tmp_path):
    path = write(tmp_path / "x.xml", talks_xml({"t.1": {"1": "Q&A", "2": " R&amp;D &#228; &lt;s> &nbsp; a<b <s> x < 5"},
                                                "t.2": {"3": "\u4e2d\u2028\u6587"}}))
    assert acl6060.read_segments(path) == {"1": ("t.1", "Q&A"), "2": ("t.1", "R&D ä <s> &nbsp; a<b <s> x < 5"),
                                           "3": ("t.2", "\u4e2d\u2028\u6587")}


def test_segments_must_agree_over_the_languages(tmp_path):
    for language, second in (("en", "t.1"), ("de", "t.2"), ("zh", "t.1")):
        write(tmp_path / "dev" / "text" / "xml" / f"ACL.6060.dev.en-xx.{language}.xml",
              talks_xml({"t.1": {"1": "A"}, second + " ": {"2": "B"}}))
    refused(acl6060.read_split, str(tmp_path), "dev", names="en-xx.en.xml", says="en-xx.de.xml differ in segment 2")


def test_the_real_texts_of_acl6060(real):
    """The test set as released: 416 segments of five talks."""
    english, german = (acl6060.read_segments(f"{real}/acl6060/eval/text/xml/ACL.6060.eval.en-xx.{language}.xml")
                       for language in ("en", "de"))
    assert len(english) == 416 and len({talk for talk, _ in english.values()}) == 5
    assert english.keys() == german.keys() and german["1"][1].startswith("Hallo zusammen. Heute werde ich")


def test_acl6060(tmp_path, makers, capsys):
    """Of four segments a split, dev has one without a recording and eval a broken one; 2 has no translation."""
    work, folder = str(tmp_path / "work"), tmp_path / "raw/2/acl_6060"
    downloads.acl6060(tmp_path / "raw")
    (folder / "dev/segmented_wavs/gold/sent_3.wav").unlink()
    write(folder / "eval/segmented_wavs/gold/sent_4.wav", "not audio")
    makers.setattr(acl6060, "translate", lambda texts, language, model, path: [
        "" if "fox" in text else f"{language} {path.removeprefix(work)}" for text in texts])
    acl6060.main(["--work", work, "--raw", str(tmp_path / "raw"), "--incomplete"])
    told, (splits, dropped) = capsys.readouterr().out, read_corpus(work, "acl6060")
    assert "| dev: ASR en | 3 | 468 | -465 |" in told and "| eval: ST/MT zh | 3 | 416 | -413 |" in told
    assert [(name, why.split(":")[0]) for _, name, why in dropped] == [
        ("acl6060/dev/3", "no such file"), ("acl6060/eval/4", "cannot be decoded"),
        ("acl6060/dev/2/ST.it", "empty translation"), ("acl6060/eval/2/ST.it", "empty translation")]
    wav = str(folder / "eval/segmented_wavs/gold/sent_1.wav")
    assert [(row["id"], row["audio"], row["target"]) for row in splits["eval"][3:7]] == [
        (f"acl6060/eval/1/{task}", wav, target) for task, target in (
            ("ASR.en", "The dog sleeps in Rome."), ("ST.de", "de: The dog sleeps in Rome."),
            ("ST.it", "it /made/acl6060/translate.it.jsonl"), ("ST.zh", "zh: The dog sleeps in Rome."))]
