"""data/spokensquad.py: the real test file's counts, where paragraphs are cut, a miniature corpus row by row."""
import contextlib
import io
import os
import random
import shutil
import zipfile
from collections import Counter

import pytest
from conftest import replaced_makers
from downloads import read_corpus, sound, squad_files
from test_bad_input import refused, write

from data import spokensquad
from data.recipe import kind
from speech_llm.prompts import NOT_ANSWERABLE

# --- Where Spoken-SQuAD cuts: paragraph, answer, (number, text) of its recording.

CUTS = [
    ("Dr. Lane met Eve. They left.", "Lane", (1, "Lane met Eve.")),
    ("The mayor was J.B. Cole. He won.", "Cole", (1, "Cole.")),
    ("The U.S.-built mint opened. It shut.", "mint", (0, "The U.S.-built mint opened.")),
    ("Who came? Nobody came. It rained.", "Nobody", (0, "Who came? Nobody came.")),
    ("It fell in 1974.[note] It rose again. Good.", "rose", (0, "It fell in 1974.[note] It rose again.")),
    ("It was odd . . . very odd. Later it was not.", "Later", (2, "Later it was not.")),   # nothing is not spoken
    ("One.\nTwo  more. Three.", "Two", (0, "One. Two more.")),
    ("The mayor was J. B. Cole.", "J. B. Cole", None),
    ("It opened. It shut.", " It shut", None),                                             # begins between two
]


@pytest.mark.parametrize("paragraph, answer, expected", CUTS)
def test_recording(paragraph, answer, expected):
    assert spokensquad.recording(paragraph, paragraph.index(answer), answer) == expected


@pytest.mark.parametrize("answer, number, expected", [
    ("gold", 2, 0), ("ore", 1, 1), ("ore", 2, 2), ("ore", 0, 1), ("eighteen sixty", 2, 2), ("eighteen fifty", 0, 0),
    ("something", 7, 0)])
def test_a_human_answer_with_the_same_letters_counts_first_then_one_in_the_recording_of_ASR(answer, number, expected):
    text = "Gold was found in 1850. The town of Ore grew. By 1860 gold and Ore were gone."
    original = {"context": text, "answers": [("Gold", 0), ("1850", 18), ("Ore", 36), ("1860", 49), ("Ore", 63)]}
    assert spokensquad.reference(original, answer, number)[0] == expected


def test_counts_of_the_real_test_file(real, capsys):
    """2025, Table 3: 8,026 of 8,031 without duplicates. The original SQuAD is not at hand: ASR stands for it."""
    questions = spokensquad.read_squad(os.path.join(real, "spoken_squad", "spoken_test-v1.1.json"), spokensquad.SPOKEN)
    dropped = []
    entries = spokensquad.make_entries("test", questions, {one["id"]: one for one in questions}, dropped)
    assert "5351 questions, 15875 answers, 8031 without duplicates, 8026 entries" in capsys.readouterr().out
    assert len(entries) == spokensquad.PAPER["test", "SQA/QA en"] == 8026
    assert Counter(why for _, _, why in dropped) == {"empty answer": 3, "answer in more than one recording": 2}
    assert all(e["answer"] in e["transcript"] for e in entries) and len({e["theme"] for e in entries}) == 48


# --- A miniature corpus: original paragraphs, their ASR, and (id, question, ASR's answers, original answers).

RIVER = ("The Alder is a river. It ends in Lake Tarn.", "the all there is a river. it ends in lake tarn.",
         [("r1", "Where does the Alder end?", ["lake tarn"], ["Lake Tarn"])])
MILL = ("Dr. Ash built a mill. It was golden. The roof was of gold!",
        "doctor. ash built a mill. it was golden. the roof was of gold.",
        [("m1", "Who built the mill? ", ["ash"], ["Ash"]),
         ("m2", "What was the roof made of?", ["gold"], [("gold", 53)]),             # ASR's place: in "golden"
         ("m3", "Unknown to SQuAD?", ["mill"], None)])
FOXES = ("Foxes hunt at night. They eat mice.", "foxes hunt at night. they eat mice.",
         [("f1", "When do foxes hunt?", ["night"], ["night"]), ("f2", "What do foxes eat?", ["mice"], ["mice"]),
          ("f3", "Who hunts?", [" they"], ["They"])])                                # begins before its sentence
CLOCK = ("The clock strikes nine. It rang at night. Tick is all it says.",
         "the clock strikes nine. it rang at night. tick is all it says.",
         [("c1", "What does the clock strike?", ["nine"], ["nine"]), ("c2", "What does it say?", ["tick"], ["Tick"]),
          ("c3", "When did it ring?", ["night"], ["night"])])
COOK = ("The cook is Eva B. Stone. She bakes bread daily.", "the cook is eva b. stone. she bakes bread daily.",
        [("k1", "Who is the cook?", ["stone", "stone", ""], ["Eva B. Stone", "Stone", "The cook"]),
         ("k2", "What does she bake?", ["bread", "bread ", "she"], ["bread", "bread", "She"])])
SHIP = ("Nobody sails the ship.", "nobody sails the ship.", [("s1", "Who sails the ship?", ["nobody"], ["Nobody"])])
LOST = ("The key was never found.", "the key was never found.",
        [("l1", "What was lost?", ["key"], ["key"]), ("l2", " ", ["found"], ["found"])])
TRAIN, TEST = [[RIVER], [MILL], [FOXES], [CLOCK]], [[COOK, LOST], [SHIP]]

BAD = {("de", "mice"), ("it", "When do foxes hunt?"), ("it", "What do foxes eat?"), ("it", "night"),
       ("it", "stone"), ("zh", "What do foxes eat?"), ("zh", "It rang at night.")}     # translations below 0.85


def download(folder):
    """Write the four files and the recordings of three of four test sentences below a folder."""
    squad_files(f"{folder}/work/raw/spokensquad", TRAIN, TEST)
    for name in ("test_wav/0_0_1", "test_wav/0_0_2", "test_wav/1_0_0", "train_wav/0_0_1"):
        sound(f"{folder}/work/raw/spokensquad/zip/{name}.wav", 0.01)


def make(folder, *more):
    """Run the recipe in a folder; dev is the first two themes. Return {split: {id: row}}, dropped.txt, the output."""
    with replaced_makers() as patch, contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()) as told:
        patch.setattr("data.quality.quality", lambda pairs, *_: [
            0.8 if (translation[:2], source) in BAD else 0.85 for source, translation in pairs])
        patch.setattr("data.rewrite.rewrite", lambda triples, *_: [
            {"de: nine": "It is\tnine.", "nine": ""}.get(answer, f"{answer} is it.") for _, _, answer in triples])
        patch.setattr(spokensquad, "speak", lambda texts, folder, model, seed: {
            name: None if "Tick" in text else write(f"{folder}/{name}.flac", f"{text} {seed}")
            for name, text in texts.items()})
        patch.setattr(spokensquad, "DEV_THEMES", 2)
        spokensquad.main([*more])
        splits, dropped = read_corpus("work", "spokensquad")
    return {split: {row["id"]: row for row in rows} for split, rows in splits.items()}, dropped, told.getvalue()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return what `make` does, which has far less than the paper, and its folder."""
    folder = tmp_path_factory.mktemp("spokensquad")
    download(folder)
    return *make(folder, "--incomplete"), folder


def english_answers(rows):
    """Return [(name, target, transcript)] of the answerable English questions."""
    return [(row_id.split("/")[2], row["target"], row["transcript"]) for row_id, row in rows.items()
            if row_id.startswith("spokensquad/") and row_id.endswith("/SQA.en")]


def kinds(rows):
    """Return how many rows there are of each kind."""
    return Counter(("fluent " if "fluent" in row_id else "") + kind(row) for row_id, row in rows.items())


def test_the_test_split_row_by_row(made):
    """"Eva B. Stone" would need two recordings; "bread " stays, as in the paper's count, which heeds its space."""
    rows = made[0]["test"]
    assert kinds(rows) == {"SQA/QA en": 5, "SQA/QA de": 5, "SQA/QA it": 4, "SQA/QA zh": 5,        # it: "stone" is bad
                           **{f"SQA/QA {language} invalid": 5 for language in ("en", "de", "it", "zh")}}
    base = {"utterance": "spokensquad/test/0_0_1", "audio": "work/raw/spokensquad/zip/test_wav/0_0_1.wav",
            "task": "SQA", "transcript": "Stone."}
    assert rows["spokensquad/test/k1-1/SQA.de"] == {
        "id": "spokensquad/test/k1-1/SQA.de", **base, "language": "de", "question": "de: Who is the cook?",
        "target": "de: stone", "answerable": True}
    assert rows["spokensquad/test/k1-1/SQA-invalid.it"] == {
        "id": "spokensquad/test/k1-1/SQA-invalid.it", **base, "language": "it", "answerable": False,
        "question": "it: Who sails the ship?", "target": NOT_ANSWERABLE["it"]}         # the other theme's only question
    assert english_answers(rows) == [
        ("k1-1", "stone", "Stone."), ("k2-1", "bread", "She bakes bread daily."),
        ("k2-2", "bread", "She bakes bread daily."), ("k2-3", "she", "She bakes bread daily."),
        ("s1", "nobody", "Nobody sails the ship.")]


def test_the_train_split_row_by_row(made):
    """f3 begins before its sentence; c2 ("Tick ...") could not be spoken; f1, f2, c1 and c3 remain."""
    rows = made[0]["train"]
    assert kinds(rows) == {
        "ASR en": 4, "SQA/QA en": 4, "SQA/QA de": 3, "SQA/QA it": 1, "SQA/QA zh": 3, "SQA/QA en invalid": 4,
        "SQA/QA de invalid": 3, "SQA/QA zh invalid": 3, "fluent SQA/QA en": 3, "fluent SQA/QA de": 2,
        "fluent SQA/QA it": 1, "fluent SQA/QA zh": 3, "MT de": 8, "MT it": 6, "MT zh": 6}
    base = {"utterance": "spokensquad/train/c3", "audio": "work/audio/spokensquad/c3.flac",
            "transcript": "It rang at night.", "answerable": True}
    question = {"task": "SQA", "language": "de", "question": "de: When did it ring?"}
    for row_id, row in {
            "spokensquad/train/c3/ASR.en": {**base, "task": "ASR", "language": "en", "target": "It rang at night."},
            "spokensquad/train/c3/SQA.de": {**base, **question, "target": "de: night"},
            "spokensquad-fluent/train/c3/SQA.de": {**base, **question, "target": "de: night is it."},
            "spokensquad/train/c3/MT-sentence.de": {
                "task": "ST", "language": "de", "transcript": "It rang at night.", "target": "de: It rang at night.",
                "answerable": True}}.items():
        assert rows[row_id] == {"id": row_id, **row}
    assert rows["spokensquad/train/c3/SQA-invalid.zh"]["question"] == "zh: When do foxes hunt?"
    assert (made[3] / base["audio"]).read_text() == "It rang at night. 0"              # the text and the seed


def test_the_dev_split_is_the_first_themes_with_the_right_sentences(made):
    assert english_answers(made[0]["dev"]) == [
        ("r1", "lake tarn", "It ends in Lake Tarn."), ("m1", "ash", "Ash built a mill."),
        ("m2", "gold", "The roof was of gold!")]
    assert "of 2 answers that ASR has in one sentence only, 2 stand in the same sentence of the original" in made[2]


def test_everything_dropped_is_listed_and_counted(made):
    _, dropped, told, _ = made
    assert sorted((name.removeprefix("spokensquad"), why) for _, name, why in dropped) == sorted([
        ("/test/k1-2", "empty answer"), ("/test/k1-1/SQA.it", "below 0.85: target 0.800"),
        ("/test/l1", "no recording: 0_1_0.wav is not there"), ("/test/l2", "empty question"),
        ("/dev/m3", "question not in the original SQuAD"), ("/train/f3", "answer in more than one recording"),
        ("/train/c2", "could not be spoken"), ("/train/f2/SQA.de", "below 0.85: target 0.800"),
        ("/train/f1/SQA.it", "below 0.85: question 0.800, target 0.800"),
        ("/train/f2/SQA.it", "below 0.85: question 0.800"), ("/train/c3/SQA.it", "below 0.85: target 0.800"),
        ("/train/f1/MT-question.it", "below 0.85: target 0.800"),
        ("/train/f2/MT-question.it", "below 0.85: target 0.800"),
        ("/train/c1/SQA.it", "no question of another theme for an invalid row"),
        ("/train/f2/SQA.zh", "below 0.85: question 0.800"), ("/train/f2/MT-question.zh", "below 0.85: target 0.800"),
        ("/train/c3/MT-sentence.zh", "below 0.85: target 0.800"),
        ("-fluent/train/c1/SQA.en", "empty answer in en"), ("-fluent/train/c1/SQA.de", "not in de: en: It is nine.")])
    assert "| train: MT de | 8 | 39362 | -39354 |" in told and "| test: SQA/QA zh invalid | 5 | 8026 | -8021 |" in told
    assert "| train: spokensquad-fluent SQA/QA en | 3 | 32320 | -32317 |" in told


def test_an_invalid_question_is_of_another_theme_and_the_seed_draws_it():
    """60 rows of 6 themes: never one's own theme, and every other theme is asked from."""
    valid = [{"id": f"spokensquad/train/{n}/SQA.it", "language": "it", "question": str(n % 6)} for n in range(60)]
    theme_of = {f"spokensquad/train/{n}": n % 6 for n in range(60)}

    def draw(seed):
        return spokensquad.invalid_rows(valid, valid, theme_of, random.Random(seed), "train", [])
    pairs = {(n % 6, int(row["question"])) for seed in range(20) for n, row in enumerate(draw(seed))}
    assert pairs == {(a, b) for a in range(6) for b in range(6) if a != b}
    assert draw(3) == draw(3) != draw(4)


def test_the_zip_of_the_download_is_unpacked_and_a_broken_recording_costs_its_rows(tmp_path):
    """Spoken-SQuAD_audio.zip holds train_wav.zip and dev_wav.zip; dev_wav.zip holds the test recordings."""
    download(tmp_path)
    raw, names = tmp_path / "work/raw/spokensquad", ("0_0_1", "0_0_2", "1_0_0")
    write(raw / "zip/test_wav/1_0_0.wav", "RIFF")
    for part in ("train", "dev"):
        with zipfile.ZipFile(tmp_path / f"{part}_wav.zip", "w") as archive:
            for name in names:
                archive.write(raw / f"zip/test_wav/{name}.wav", f"{part}_wav/{name}.wav")
            archive.writestr("../escaped_0_0_0.wav", "x")
    shutil.copytree(raw / "zip/test_wav", raw / "zip/test_wav_noise")
    refused(make, tmp_path, "--incomplete", says="two test recordings of one name")
    for name in ("test_wav", "test_wav_noise"):                                        # train_wav/0_0_1.wav stays
        shutil.rmtree(raw / "zip" / name)
    refused(make, tmp_path, says="raw/spokensquad/Spoken-SQuAD_audio.zip is missing: download http://speech.ee.ntu.edu")
    assert make(tmp_path, "--incomplete")[0].keys() == {"train", "dev"}
    shutil.rmtree(tmp_path / "work/rows")
    with zipfile.ZipFile(raw / "Spoken-SQuAD_audio.zip", "w") as archive:
        for part in ("train", "dev"):
            archive.write(tmp_path / f"{part}_wav.zip", f"Spoken-SQuAD_audio/{part}_wav.zip")
    folder = "work/audio/spokensquad/test"
    assert {(row["utterance"], row["audio"]) for row in make(tmp_path, "--incomplete")[0]["test"].values()} == {
        (f"spokensquad/test/{name}", f"{folder}/{name}.wav") for name in names[:2]}
    assert sorted(os.listdir(tmp_path / folder)) == [f"{name}.wav" for name in names]
    refused(spokensquad.unpack_recordings, write(raw / "dev_wav.zip", "PK"), "new", says="dev_wav.zip is damaged (")
