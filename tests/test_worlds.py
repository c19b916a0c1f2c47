"""The tiny world and the digits world: what is said, in which voice, and what a question about it should be answered."""
import json
import os
import random
import re

import pytest
import soundfile

from data import digits, tiny
from data.prompts import NOT_ANSWERABLE
from data.rows import finish, finished, read_rows

SIZES = {"train": 12, "dev": 4, "test": 4}


def test_a_sentence_and_its_translations_by_hand():
    slots = {"name": ("Anna",) * 3 + ("安娜",), "number": tiny.NUMBERS[1], "thing": ("books", "Bücher", "libri", "书"),
             "measure": ("", "", "", "本"), "city": tiny.CITIES[1]}
    said = [form.format(**{slot: words[i] for slot, words in slots.items()})
            for i, form in enumerate(tiny.FRAMES["buy"][0])]
    assert said == ["Anna bought three books in Rome.", "Anna kaufte drei Bücher in Rom.",
                    "Anna ha comprato tre libri a Roma.", "安娜在罗马买了三本书。"]
    sentence = {"frame": "buy", "slots": slots}
    answers = {tiny.draw_question(random.Random(n), sentence, "en", True) for n in range(60)}
    assert answers == {("Who bought something?", "Anna"), ("What was bought?", "books"),
                       ("How many things were bought?", "three"), ("Where were the things bought?", "Rome")}


def test_every_frame_has_four_languages_and_answerable_questions():
    assert len(tiny.FRAMES) >= 8
    rng = random.Random(0)
    for _ in range(500):
        sentence = tiny.draw_sentence(rng)
        assert len(sentence["text"]) == 4 and not any(re.search("[{}]", text) for text in sentence["text"])
        for i, language in enumerate(tiny.LANGUAGES):
            _, answer = tiny.draw_question(rng, sentence, language, True)
            assert answer in sentence["text"][i]                           # every answer is a span of the sentence
            question, answer = tiny.draw_question(rng, sentence, language, False)
            assert answer == NOT_ANSWERABLE[language]
            own = [q[i] for q in tiny.FRAMES[sentence["frame"]][1].values()]
            assert question not in own                                     # it asks about another kind of sentence


def test_voices_of_dev_and_test_are_not_heard_in_training():
    train, dev, test = (set(tiny.VOICES[split]) for split in ("train", "dev", "test"))
    assert len(train) >= 12 and test and dev
    assert not train & test and not train & dev and not dev & test


def test_the_tiny_world_is_spoken_and_its_splits_share_no_sentence(tmp_path):
    splits = tiny.make_world(str(tmp_path), SIZES, seed=0)
    texts = {split: {row["transcript"] for row in rows} for split, rows in splits.items()}
    assert [len(texts[split]) for split in SIZES] == list(SIZES.values())
    assert not texts["train"] & texts["test"] and not texts["train"] & texts["dev"]
    rows = read_rows(os.path.join(tmp_path, "rows", "tiny", "test.jsonl"))
    assert len(rows) == 12 * SIZES["test"] and len({row["id"] for row in rows}) == len(rows)
    for row in rows[::12]:
        wave, rate = soundfile.read(row["audio"])
        assert rate == 16000 and wave.ndim == 1 and 0.5 < len(wave) / rate < 6 and abs(wave).max() > 0.2
    again = tiny.make_world(str(tmp_path / "again"), SIZES, seed=0)
    assert [r["transcript"] for r in again["train"]] == [r["transcript"] for r in splits["train"]]
    for name in os.listdir(tmp_path / "audio" / "tiny"):                    # the sound too, to the byte
        first, second = ((folder / "audio" / "tiny" / name).read_bytes() for folder in (tmp_path, tmp_path / "again"))
        assert first == second, name


def test_multiple_choice_by_hand():
    """Four different options on the question's line, the target is the right one's letter and text."""
    for seed in range(40):
        rng = random.Random(seed)
        sentence = tiny.draw_sentence(rng)
        for language in tiny.LANGUAGES:
            question, target = tiny.draw_choice(rng, sentence, language)
            options = dict(re.findall(r"([ABCD])\. (.*?)(?= [BCD]\. |$)", question))
            assert "\n" not in question and list(options) == list("ABCD") and len(set(options.values())) == 4
            assert options[target[0]] == target[2:] and target[1] == " "
            said = sentence["text"][tiny.LANGUAGES.index(language)]
            assert target[2:].split()[-1][:3].lower() in said.lower()
    rows = list(tiny.sentence_rows(random.Random(0), tiny.draw_sentence(random.Random(0)), "tiny26/x", "a.wav", True))
    assert [row["id"] for row in rows if row["task"] == "MCQ"] == [f"tiny26/x/MCQ.{la}" for la in tiny.LANGUAGES]


def test_digits_as_words_and_questions_by_hand():
    assert [digits.spoken([7, 0, 2], language) for language in digits.LANGUAGES] == [
        "seven zero two", "sieben null zwei", "sette zero due", "七零二"]
    asked = {digits.draw_question(random.Random(n), [7, 0, 2], "en", True) for n in range(80)}
    assert asked == {("What is the first number?", "seven"), ("What is the second number?", "zero"),
                     ("What is the third number?", "two"), ("How many numbers are there?", "three")}
    assert digits.draw_question(random.Random(0), [7], "it", False)[1] == "Non è possibile rispondere."


def test_digits_of_real_voices_with_one_speaker_held_out(tmp_path, real, monkeypatch):
    folder = os.path.join(real, "fsdd", "recordings")
    if not os.path.isdir(folder):
        pytest.skip(f"no recordings at {folder}")
    jobs = []
    whole = digits.join_one
    monkeypatch.setattr(digits, "in_processes", lambda function, given, desc: [
        (jobs.append(job), whole(job) if "test" in job[0] else None) for job in given])
    splits = digits.make_world(str(tmp_path), folder, "george", SIZES, seed=0)
    speakers = {}
    for path, files, speed, _ in jobs:
        split = os.path.basename(path).split("-")[0]
        speakers.setdefault(split, set()).update(os.path.basename(file).split("_")[1] for file in files)
        assert len({os.path.basename(file).split("_")[1] for file in files}) == 1      # one voice an utterance
        assert 3 <= len(files) <= 6 and (speed == 1.0 or split == "train")
    assert speakers["test"] == {"george"} and "george" not in speakers["train"] | speakers["dev"]
    row = splits["test"][0]
    said = [os.path.basename(file)[0] for file in jobs[0][1]]
    assert row["transcript"].split() == [digits.DIGITS["en"][int(d)] for d in said]
    wave, rate = soundfile.read(row["audio"])
    assert rate == 8000 and len(wave) / rate > 0.3 * len(said)


def test_digits_refuses_a_speaker_who_is_not_there(tmp_path):
    soundfile.write(tmp_path / "1_anna_0.wav", [0.1] * 100, 8000)
    with pytest.raises(SystemExit, match="HOLDOUT=bert: the speakers in .* are anna"):
        digits.make_world(str(tmp_path), str(tmp_path), "bert", SIZES, seed=0)


def test_a_recipe_refuses_to_mix_two_settings(tmp_path):
    settings = {"preset": "tiny", "seed": 0}
    assert not finished(str(tmp_path), "tiny", settings)
    finish(str(tmp_path), "tiny", settings)
    assert json.loads((tmp_path / "rows" / "tiny" / "config.json").read_text()) == settings
    assert finished(str(tmp_path), "tiny", settings)
    with pytest.raises(SystemExit, match=r"was made with seed 0 \(now 1\)"):
        finished(str(tmp_path), "tiny", {"preset": "tiny", "seed": 1})
