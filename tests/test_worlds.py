"""The toy worlds: sentences, voices, questions and answers, and the tiny models in the hub's format."""
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import torch
from conftest import reference
from test_bad_input import refused
from transformers import AutoFeatureExtractor, AutoTokenizer, WhisperForConditionalGeneration

from data import digits, recipe, tiny, tiny_listeners, tiny_llm
from data.tiny_llm import answer_loss, llm_model, make_tokenizer
from data.tiny_models import WINDOW, pad_mel, read_mel
from speech_llm.prompts import NOT_ANSWERABLE
from speech_llm.rows import LANGUAGES, PROJECT, read_rows


def is_speech(path):
    """Return whether a file is 0.5 to 6 s of audible mono sound at 16 kHz."""
    wave, rate = soundfile.read(path)
    return rate == 16000 and wave.ndim == 1 and 0.5 < len(wave) / rate < 6 and abs(wave).max() > 0.2


def test_sentences_translations_questions_and_answers_of_the_tiny_world():
    """One sentence by hand; then 500 at random, in each of which every answer is a span of its sentence."""
    slots = {"name": ("Anna",) * 3 + ("安娜",), "number": tiny.NUMBERS[1], "thing": ("books", "Bücher", "libri", "书"),
             "measure": ("", "", "", "本"), "city": tiny.CITIES[1]}
    texts = [form.format(**{slot: words[i] for slot, words in slots.items()})
             for i, form in enumerate(tiny.FRAMES["buy"][0])]
    assert texts == ["Anna bought three books in Rome.", "Anna kaufte drei Bücher in Rom.",
                     "Anna ha comprato tre libri a Roma.", "安娜在罗马买了三本书。"]
    sentence = {"frame": "buy", "slots": slots}
    answers = {tiny.draw_question(random.Random(n), sentence, "en", True) for n in range(60)}
    assert answers == {("Who bought something?", "Anna"), ("What was bought?", "books"),
                       ("How many things were bought?", "three"), ("Where were the things bought?", "Rome")}

    rng = random.Random(0)
    for sentence in (tiny.draw_sentence(rng) for _ in range(500)):
        for i, language in enumerate(LANGUAGES):
            assert not re.search("[{}]", sentence["text"][i])
            assert tiny.draw_question(rng, sentence, language, True)[1] in sentence["text"][i]
            question, answer = tiny.draw_question(rng, sentence, language, False)
            assert answer == NOT_ANSWERABLE[language]
            assert question not in [q[i] for q in tiny.FRAMES[sentence["frame"]][1].values()]


def test_the_tiny_world_is_spoken_and_its_splits_share_neither_sentence_nor_voice(tmp_path):
    world = {"train": 8, "dev": 2, "test": 2, "corpus": "tiny", "choices": False}
    splits, jobs = tiny.draw_world(str(tmp_path), world, seed=0)
    recipe.write_recorded(str(tmp_path), "tiny", splits, tiny.speak_one, jobs, "speak")
    texts = [row["transcript"] for rows in splits.values() for row in rows if row["task"] == "ASR"]
    voices = [voice for split in ("train", "dev", "test") for voice in tiny.VOICES[split]]
    assert len(set(texts)) == len(texts) == 12 and len(set(voices)) == len(voices) == 62
    rows = read_rows(f"{tmp_path}/rows/tiny/test.jsonl")
    assert len(rows) == 12 * 2 and all(is_speech(row["audio"]) for row in rows[::12])
    assert tiny.draw_world(str(tmp_path), world, seed=0) == (splits, jobs)
    tiny.speak_one((f"{tmp_path}/again.flac", *jobs[0][1:]))                # the same sound, to the byte
    assert (tmp_path / "again.flac").read_bytes() == Path(jobs[0][0]).read_bytes()


def test_multiple_choice_by_hand():
    """Four different options on the question's line, the target is the right one's letter and text."""
    for seed in range(40):
        rng = random.Random(seed)
        sentence = tiny.draw_sentence(rng)
        for language, text in zip(LANGUAGES, sentence["text"]):
            question, target = tiny.draw_choice(rng, sentence, language)
            options = dict(re.findall(r"([ABCD])\. (.*?)(?= [BCD]\. |$)", question))
            assert "\n" not in question and list(options) == list("ABCD") and len(set(options.values())) == 4
            assert options[target[0]] == target[2:] and target[2:].split()[-1][:3].lower() in text.lower()
    rows = list(tiny.sentence_rows(random.Random(0), tiny.draw_sentence(random.Random(0)), "tiny26/x", "a.wav", True))
    assert [row["id"] for row in rows if row["task"] == "MCQ"] == [f"tiny26/x/MCQ.{la}" for la in LANGUAGES]


def test_digits_as_words_and_questions_by_hand(tmp_path):
    assert [digits.spoken([7, 0, 2], language) for language in LANGUAGES] == [
        "seven zero two", "sieben null zwei", "sette zero due", "七零二"]
    questions = {digits.draw_question(random.Random(n), [7, 0, 2], "en", True) for n in range(80)}
    assert questions == {("What is the first number?", "seven"), ("What is the second number?", "zero"),
                         ("What is the third number?", "two"), ("How many numbers are there?", "three")}
    assert digits.draw_question(random.Random(0), [7], "it", False)[1] == "Non è possibile rispondere."
    soundfile.write(tmp_path / "1_anna_0.wav", [0.1] * 100, 8000)
    refused(digits.draw_world, str(tmp_path), str(tmp_path), "bert", {}, 0, says="HOLDOUT=bert: the speakers in")


def test_digits_of_real_voices_with_one_speaker_held_out(tmp_path, real):
    folder = reference(f"{real}/fsdd/recordings")
    splits, jobs = digits.draw_world(str(tmp_path), folder, "george", {"train": 12, "dev": 4, "test": 4}, seed=0)
    for path, files, speed, _ in jobs:
        (speaker,) = {os.path.basename(file).split("_")[1] for file in files}         # one voice an utterance
        split = os.path.basename(path).split("-")[0]
        assert (speaker == "george") == (split == "test") and (speed == 1.0 or split == "train")
    row, names = splits["test"][0], [os.path.basename(file)[0] for file in jobs[0][1]]
    assert row["transcript"].split() == [digits.DIGITS["en"][int(name)] for name in names]
    digits.join_one(jobs[0])
    wave, rate = soundfile.read(row["audio"])
    assert rate == 8000 and len(wave) / rate > 0.3 * len(names)


def test_the_processes_that_record_do_without_torch():
    """A new process records every 64 utterances; each would import torch for two seconds."""
    code = "import sys, data.tiny, data.tiny_listeners, data.digits; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT).returncode == 0


def test_the_loss_on_the_answers_of_the_tiny_llm_is_the_mean_over_their_tokens():
    torch.manual_seed(0)
    model = llm_model(make_tokenizer(["a text"], 300), "llama").eval()
    examples = [([5, 6, 1], [7]), (list(range(9, 200)), [8, 9]), ([5], [6])]         # two micro-batches
    log_probabilities = [model(input_ids=torch.tensor([prompt + answer])).logits[0].log_softmax(-1)[place, token]
                         for prompt, answer in examples for place, token in enumerate(answer, len(prompt) - 1)]
    assert torch.allclose(answer_loss(model, examples), -torch.stack(log_probabilities).mean(), atol=1e-5)


def test_spoken_questions_and_answers_by_hand():
    ask = tiny_listeners.ask
    assert [ask(("after", "Sunday"), language) for language in LANGUAGES] == [
        ("The day after Sunday?", "Monday"), ("Der Tag nach Sonntag?", "Montag"),
        ("Il giorno dopo domenica?", "lunedì"), ("星期日的后一天?", "星期一")]
    assert ask(("plus", "five", "four"), "de") == ("Fünf plus vier?", "neun")
    assert ask(("word", "dog", "German"), "it") == ("Cane in tedesco?", "Hund")
    assert ask(("opposite", "cold"), "de") == ("Das Gegenteil von kalt?", "heiß")
    assert ask(("greet", "good morning", "Peter"), "de") == ("Sag Peter guten Morgen.", "Guten Morgen, Peter")
    assert tiny_listeners.languages_of(("word", "dog", "German")) == ["en", "it", "zh"]


def test_every_fact_has_one_answer_and_no_sentence_without_a_meaning_holds_a_fact():
    answers, rng = {}, random.Random(0)
    for fact in tiny_listeners.FACTS:
        for language in tiny_listeners.languages_of(fact):
            question, answer = tiny_listeners.ask(fact, language)
            assert answers.setdefault((language, question), answer) == answer, question
            assert not re.search("[{}]", question + answer)
    sentences = [tiny_listeners.draw_sentence(rng) for _ in range(300)]
    assert sentences[1] == ["Good morning in Chinese?", "Guten Morgen auf Chinesisch?", "Buongiorno in cinese?",
                            "早上好的中文是什么?"]
    assert not answers.keys() & {pair for texts in sentences for pair in zip(LANGUAGES, texts)}


def test_no_fact_of_test_is_spoken_in_training_but_its_words_are():
    splits, jobs = tiny_listeners.draw_world("work", dict(train=1800, sentences=40, dev=60, test=320), seed=0)
    facts = {tiny_listeners.ask(fact, language)[0]: fact for fact in tiny_listeners.FACTS
             for language in tiny_listeners.languages_of(fact)}
    questions = {split: [row for row in rows if row["task"] == "SQA"] for split, rows in splits.items()}
    spoken = {split: {facts[row["transcript"]] for row in rows} for split, rows in questions.items()}
    assert not spoken["test"] & spoken["train"] and not spoken["dev"] & (spoken["train"] | spoken["test"])
    assert {fact[0] for fact in spoken["test"]} == set(tiny_listeners.KINDS) and spoken["heard"] <= spoken["train"]
    words = {split: {(row["language"], word) for row in questions[split] for word in facts[row["transcript"]][1:]}
             for split in ("train", "test")}
    assert words["test"] <= words["train"]
    for path, _, timbre, *_ in jobs:
        split = os.path.basename(path).split("-")[0].replace("sentence", "train")
        assert timbre in tiny.VOICES["test" if split == "heard" else split]


SMALL_LISTENERS = {"recipe": "tiny_listeners", "train": 16, "dev": 4, "test": 4, "sentences": 4, "whisper_steps": 2,
                   "llm_steps": 2, "family": "cohere", "like_speech_from": 0}


@pytest.fixture(scope="module")
def listeners(tmp_path_factory):
    """Return the work folder of a small listeners' world that a page of the test's own describes."""
    folder = tmp_path_factory.mktemp("listeners")
    (folder / "small.py").write_text(f"world = {SMALL_LISTENERS}\ncommon = dict(llm='models/tiny-cohere')")
    for maker in (tiny_listeners, tiny_llm):
        maker.main(["--preset", str(folder / "small.py"), "--work", str(folder)])
    return str(folder)


def test_rows_of_spoken_questions_and_sentences(listeners, capsys):
    """Each of the four languages has a quarter of the questions, and of the sentences without a meaning in train."""
    for split, questions, sentences in (("train", 16, 4), ("dev", 4, 0), ("test", 4, 0)):
        rows = read_rows(f"{listeners}/rows/tiny-listeners/{split}.jsonl")
        spoken = {row["utterance"]: row["language"] for row in rows if row["task"] == "ASR"}
        count = questions + sentences
        assert sorted(spoken.values()) == sorted(LANGUAGES * (count // 4))
        assert len(rows) == count + questions + 3 * count // 4              # ASR; SQA; ST of all but English
        for row in rows:
            language = spoken[row["utterance"]]
            assert is_speech(row["audio"])
            if row["task"] == "SQA":
                assert row["question"] == row["transcript"] and row["language"] == language
            if row["task"] == "ST":
                assert row["language"] == "en" != language and row["target"].isascii()
    arguments = ["--preset", f"{listeners}/small.py", "--work", listeners]
    tiny_listeners.main(arguments)
    assert "is finished already" in capsys.readouterr().out
    refused(tiny.main, arguments, says="the page has no world that data.tiny makes; run: bash run_all.sh")
    refused(tiny_llm.main, [*arguments, "--seed", "1"], says="tiny-cohere was made with seed 0 (now 1)")
    refused(tiny_llm.main, ["--preset", "small_cpu", "--work", listeners], says="no world that data.tiny_llm makes")


def test_the_tiny_whisper_is_a_whole_whisper(listeners):
    """Loaded by transformers alone: it detects the language and writes after the tokens of Whisper's own prompt."""
    folder = f"{listeners}/models/tiny-whisper"
    model = WhisperForConditionalGeneration.from_pretrained(folder)
    extractor, tokenizer = AutoFeatureExtractor.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    audio = read_rows(f"{listeners}/rows/tiny-listeners/test.jsonl")[0]["audio"]
    wave, rate = soundfile.read(audio, dtype="float32")
    mel = extractor(wave, sampling_rate=rate, return_tensors="pt").input_features
    assert mel.shape == (1, 80, 500) and model.config.max_source_positions == 250
    assert tokenizer.decode(model.detect_language(mel)) in [f"<|{language}|>" for language in LANGUAGES]
    assert 1 <= len(model.generate(mel, task="transcribe", language=["zh"], max_new_tokens=8)[0]) <= 8 + 4
    text = "Was heißt Hund auf Chinesisch? 狗用德语怎么说?"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
    tokenizer.set_prefix_tokens(language="it", task="transcribe")           # the real one's order of the languages
    assert tokenizer.convert_ids_to_tokens(tokenizer.prefix_tokens) == [
        "<|startoftranscript|>", "<|it|>", "<|transcribe|>", "<|notimestamps|>"]

    # the mel that it learns from is the extractor's; the first two frames after the end still hold speech
    ours, end = pad_mel([read_mel(extractor, audio)], 50 * WINDOW), 2 * -(-len(wave) // 320)
    assert ours.shape == mel.shape and (ours[..., :end] == mel[..., :end]).all()
    assert abs(ours[..., end + 2:] - mel[..., end + 2:]).max() < 1e-6
