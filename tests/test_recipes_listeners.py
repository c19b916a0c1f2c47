"""The recipes of the multilingual listeners on small downloads made here and on real files: Common Voice, CoVoST 2."""
import json
import os
import re
import shutil
import unicodedata
from collections import Counter

import downloads
import numpy as np
import pytest
import soundfile
from downloads import common_voice, covost_tsv, read_corpus
from test_bad_input import refused, write

from data import commonvoice, covost2

SECONDS = 36                     # of every clip here: 0.01 hours
NO_CLIPS = "client_id\tpath\tsentence\n"


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """An mp3 of 36 s of silence."""
    path = str(tmp_path_factory.mktemp("clip") / "a.mp3")
    soundfile.write(path, np.zeros(SECONDS * 16_000), 16_000, format="MP3")
    return path


@pytest.fixture
def raw(tmp_path, clip):
    """Chinese with a train split of 12 sound clips, and Korean with 2, one more in validated.tsv, and a supplement."""
    raw, cv = tmp_path / "raw", tmp_path / "raw/cv-corpus-21.0-2025-03-14"
    common_voice(cv / "zh-CN", clip, train=[f"z{n} s{n} " + (f"句子{n}。" if n != 5 else " ") for n in range(15)],
                 dev=["d0 x 开发。", "d1 x 开发一。"], test=["t0 y 测试。", "t1 y 测试一。", "t2 y 测试二。"])
    for name in ("z3", "z4"):
        (cv / f"zh-CN/clips/{name}.mp3").unlink()
    write(cv / "zh-CN/clips/z4.mp3", "not audio")
    held, train = {"dev": ["kd x 개발"], "test": ["kt y 시험"]}, ['k0 a "하나"', "k1 b 둘"]
    common_voice(cv / "ko", clip, train=train, **held, validated=[
        *train, *held["dev"], *held["test"], "k2 c 셋",
        "k3 x 넷", "k4 c " + unicodedata.normalize("NFD", "시험")])                     # k3's speaker, k4's sentence
    write(raw / "supplement/ko.tsv", "path\tsentence\n" + "".join(f"ko/{n}.mp3\t제로 {n}\n" for n in range(5)))
    (raw / "supplement/ko").mkdir()
    for n in range(4):
        os.link(clip, raw / f"supplement/ko/{n}.mp3")
    return raw


def make(raw, work, languages, *more):
    commonvoice.main(["--raw", str(raw), "--work", str(work), "--languages", languages, "--hours", "0.05", "--dev", "1",
                      "--test", "2", *more])
    return read_corpus(work, "commonvoice")


def test_commonvoice(raw, tmp_path, capsys):
    """0.05 hours are five clips: five of Chinese; of Korean two, one from validated.tsv, two from the supplement."""
    rows, _ = make(raw, tmp_path / "work", "zh,ko")
    assert {split: Counter(row["language"] for row in split_rows) for split, split_rows in rows.items()} == {
        "train": {"zh": 5, "ko": 5}, "dev": {"zh": 1, "ko": 1}, "test": {"zh": 2, "ko": 1}}
    korean = {row["utterance"].rpartition("/")[2]: row for row in rows["train"] if row["language"] == "ko"}
    assert {"k0", "k1", "k2"} < {*korean}
    assert korean["k0"] == {
        "id": "commonvoice/train/ko/k0/ASR.ko", "utterance": "commonvoice/train/ko/k0", "task": "ASR", "language": "ko",
        "audio": f"{raw}/cv-corpus-21.0-2025-03-14/ko/clips/k0.mp3", "transcript": '"하나"', "target": '"하나"',
        "answerable": True}
    for name in {*korean} - {"k0", "k1", "k2"}:             # line 2 of the TSV is supplement/ko/0.mp3
        number = int(name.removeprefix("supplement-")) - 2
        assert korean[name]["target"] == f"제로 {number}" and korean[name]["audio"] == f"{raw}/supplement/ko/{number}.mp3"

    counts = (tmp_path / "work/rows/commonvoice/counts.md").read_text()
    assert "| train: ASR zh | 5 | | |" in counts and counts[counts.index("| hours |"):].splitlines() == [
        "| hours | train.tsv | validated.tsv | supplement | train | paper | dev | test |",
        "|---|---|---|---|---|---|---|---|",
        "| zh | 0.05 | 0.00 | 0.00 | 0.05 | 20 | 0.01 | 0.02 |",
        "| ko | 0.02 | 0.01 | 0.02 | 0.05 | 20, of them 19 h of Zeroth-Korean | 0.01 | 0.01 |"]


def test_what_cannot_be_used_is_listed_and_the_hours_that_lack_are_told(raw, tmp_path, capsys):
    """Ten hours are more than there are: of 15 Chinese clips 12 are left, of the supplement's 5 those 4 that are."""
    write(raw / "cv-corpus-21.0-2025-03-14/zh-CN/validated.tsv", NO_CLIPS)
    arguments = [raw, tmp_path / "work", "zh,ko", "--hours", "10"]
    assert "--incomplete" in refused(make, *arguments, says="  zh: 0.12 hours of train, of 10")
    rows, dropped = make(*arguments, "--incomplete")
    assert Counter(row["language"] for row in rows["train"]) == {"zh": 12, "ko": 2 + 1 + 4}
    assert sorted((name.removeprefix("commonvoice/train/"), why.split(":")[0]) for _, name, why in dropped) == [
        ("ko/supplement-6", "no such file"), ("zh/z3", "no such file"), ("zh/z4", "cannot be decoded"),
        ("zh/z5", "empty sentence")]
    assert "fewer than 10 hours of train: zh, ko; a supplement/<locale>.tsv adds more" in capsys.readouterr().out


def test_the_draw_is_that_of_its_seed_and_a_finished_corpus_needs_no_download(raw, tmp_path, monkeypatch):
    first, _ = make(raw, tmp_path / "a", "zh")
    monkeypatch.setattr(commonvoice, "BLOCK", 2)                             # however many are looked at together
    assert make(raw, tmp_path / "b", "zh")[0] == first
    other, _ = make(raw, tmp_path / "c", "zh", "--seed", "1")
    assert [row["id"] for row in other["train"]] != [row["id"] for row in first["train"]]
    shutil.rmtree(raw)
    assert make(raw, tmp_path / "a", "zh")[0] == first


def test_a_test_clip_of_covost_2_is_not_trained_on(raw, tmp_path):
    """CoVoST 2's splits are Common Voice 4's: z0 and z1 are held out there, z2 is not. The file has its older name."""
    covost = tmp_path / "covost"
    covost_tsv(covost, "zh_en", [("z0.mp3", "A", "test"), ("z1.mp3", "B", "dev"), ("z2.mp3", "C", "train")])
    write(raw / "cv-corpus-21.0-2025-03-14/zh-CN/validated.tsv", NO_CLIPS)
    rows, dropped = make(raw, tmp_path / "work", "zh", "--hours", "0.2", "--covost", str(covost))
    names = {row["utterance"].rpartition("/")[2] for row in rows["train"]}
    assert len(names) == 10 and "z2" in names and not names & {"z0", "z1"}
    assert sum(why == "in dev or test of CoVoST 2" for _, _, why in dropped) == 2


@pytest.mark.parametrize("damage, languages, told", [
    (lambda raw, cv: None, "zh,xx", "--languages xx: known are en, de,"),
    (lambda raw, cv: shutil.rmtree(cv / "ko"), "zh,ko",
     "cv-corpus-<version>/ko/ is missing: unpack Common Voice there"),
    (lambda raw, cv: shutil.copytree(cv / "ko", raw / "cv-corpus-4-2019-12-10/ko"), "ko", "ko is there in several"),
    (lambda raw, cv: write(raw / "supplement/ko.tsv", "path\tsentence\nko/../../a\tA\n"), "ko",
     "line 2: 'ko/../../a' is not below ")])
def test_a_damaged_download_is_named(raw, tmp_path, damage, languages, told):
    damage(raw, raw / "cv-corpus-21.0-2025-03-14")
    refused(make, raw, tmp_path / "work", languages, says=told)
    assert not (tmp_path / "work/rows/commonvoice/config.json").exists()


def test_pairs_have_folders_of_their_own(tmp_path, capsys):
    """Chinese and Arabic into English, and English into Turkish: one clip a split."""
    raw, work = tmp_path / "raw", tmp_path / "work"
    for source, target in (("zh-CN", "en"), ("ar", "en"), ("en", "tr")):
        downloads.covost2(raw, 1, [(source, target)], source)
    arguments = ["--raw", str(raw), "--work", str(work), "--into-english", "zh,ar", "--from-english", "tr",
                 "--incomplete"]
    covost2.main(arguments)
    assert sorted(os.listdir(work / "rows")) == ["covost2-ar_en", "covost2-en_tr", "covost2-zh_en"]
    rows, _ = read_corpus(work, "covost2-zh_en")
    clip = "common_voice_zh-CN_0"
    assert rows["train"] == [
        {"id": f"covost2-zh_en/train/{clip}/ST.en", "utterance": f"covost2-zh_en/train/{clip}", "task": "ST",
         "audio": f"{raw}/zh-CN/clips/{clip}.mp3", "language": "en", "transcript": "The cat sleeps in Rome.",
         "target": "en: The cat sleeps in Rome.", "answerable": True}]
    [turkish] = read_corpus(work, "covost2-en_tr")[0]["dev"]
    assert (turkish["id"], turkish["language"]) == ("covost2-en_tr/dev/common_voice_en_1/ST.tr", "tr")
    assert "| test: ST/MT en | 1 | 1695 | -1694 |" in capsys.readouterr().out
    covost2.main(arguments)
    assert capsys.readouterr().out.count("is finished already") == 3


def test_pairs_that_there_are_not(tmp_path):
    """What is missing is listed for all pairs at once."""
    for option, language in (("--into-english", "ko"), ("--from-english", "fr"), ("--into-english", "en")):
        refused(covost2.main, [option, f"ar,{language}"], says=f"{option} {language}: ")
    assert refused(covost2.main, ["--into-english", "--work", str(tmp_path)]).count(".tsv.tar.gz is missing") == 13


@pytest.mark.parametrize("source, removed", [("zh", (0, 0, 0)), ("pt", (0, 3, 2))])
def test_the_real_pairs(real, source, removed):
    """Every line of the release; the translations of the test set are the known ones."""
    with open(os.path.join(real, "covost2", "manifests", f"{source}-en.test.jsonl"), encoding="utf-8") as file:
        known = {entry["sample_id"]: entry["tgt_ref"] for entry in map(json.loads, file)}
    path = os.path.join(real, "covost2", "raw_tsv", f"covost_v2.{source}_en.tsv")
    splits, dropped = covost2.split_translations(covost2.read_translations(path))
    assert [len(clips) + n for clips, n in zip(splits.values(), removed)] == list(covost2.INTO_ENGLISH[source])
    assert [why for _, _, why in dropped] == ["translation marked [TO REMOVE]"] * sum(removed)
    assert all(text == known[re.search(r"\d+", clip)[0]] for clip, text in splits["test"].items())
