"""
Make the digits world: real voices that say 3 to 6 different digits, from the Free Spoken Digit Dataset (FSDD).

    FSDD=folder/of/recordings python -m data.digits      # {digit}_{speaker}_{take}.wav, mono, 8 kHz
    python -m data.digits                                # fetches the recordings once (git, 21 MB, CC BY-SA 4.0)
    HOLDOUT=theo python -m data.digits                   # the speaker of the test set, never heard in training

reads   `world` in the preset's page, the recordings (https://github.com/Jakobovski/free-spoken-digit-dataset)
writes  <work>/rows/digits/{train,dev,test}.jsonl, <work>/audio/digits/*.flac,
        <work>/models/digits-seamless (data/tiny_models.py), <work>/rows/digits/config.json last

ASR writes the digits as English words, ST as German, Italian or Chinese words. SQA asks for one of the digits or for
their number; a question about anything else is unanswerable. No digit occurs twice in a sequence, because the tiny LLM
does not learn to copy what comes after the second "nine". The whole world is our choice.
"""
import glob
import os
import random
import shutil
import subprocess

import numpy as np
import soundfile

from data.recipe import begin, finish_world, finished, world_settings, write_recorded
from speech_llm.audio import write_flac
from speech_llm.prompts import NOT_ANSWERABLE
from speech_llm.rows import LANGUAGES

REPOSITORY = "https://github.com/Jakobovski/free-spoken-digit-dataset"
RATE = 8000  # Hz, of the recordings
TAKES = {"train": range(10, 50), "dev": range(5, 10), "test": range(50)}  # dev: the speakers of train, other takes

DIGITS = {
    "en": "zero one two three four five six seven eight nine".split(),
    "de": "null eins zwei drei vier fünf sechs sieben acht neun".split(),
    "it": "zero uno due tre quattro cinque sei sette otto nove".split(),
    "zh": "零 一 二 三 四 五 六 七 八 九".split(),
}
ORDINALS = {
    "en": "first second third fourth fifth sixth".split(),
    "de": "erste zweite dritte vierte fünfte sechste".split(),
    "it": "primo secondo terzo quarto quinto sesto".split(),
    "zh": "一 二 三 四 五 六".split(),
}
WHICH = {"en": "What is the {} number?", "de": "Was ist die {} Zahl?", "it": "Qual è il {} numero?",
         "zh": "第{}个数字是什么?"}
HOW_MANY = {"en": "How many numbers are there?", "de": "Wie viele Zahlen sind es?", "it": "Quanti numeri ci sono?",
            "zh": "一共有几个数字?"}
OTHER = {
    "en": ("Who is speaking?", "Which city is it?", "What day is it?", "What colour is it?"),
    "de": ("Wer spricht?", "Welche Stadt ist es?", "Welcher Tag ist es?", "Welche Farbe ist es?"),
    "it": ("Chi parla?", "Quale città è?", "Che giorno è?", "Di che colore è?"),
    "zh": ("谁在说话?", "是哪个城市?", "今天星期几?", "是什么颜色?"),
}


def spoken(digits, language):
    """Return digits as the words of a language."""
    return ("" if language == "zh" else " ").join(DIGITS[language][d] for d in digits)


def draw_question(rng, digits, language, answerable):
    """Return (question, answer) about one of the digits or their number; about something else if not `answerable`."""
    if not answerable:
        return rng.choice(OTHER[language]), NOT_ANSWERABLE[language]
    place = rng.randrange(-1, len(digits))
    if place < 0:
        return HOW_MANY[language], DIGITS[language][len(digits)]
    return WHICH[language].format(ORDINALS[language][place]), DIGITS[language][digits[place]]


def sequence_rows(rng, digits, utterance, audio):
    """
    Yield the twelve rows of one utterance: ASR, ST into three languages, and in each of four languages one SQA with an
    answer and one without.
    """
    base = {"utterance": utterance, "audio": audio, "transcript": spoken(digits, "en")}
    for language in LANGUAGES:
        task = "ASR" if language == "en" else "ST"
        yield {"id": f"{utterance}/{task}.{language}", **base, "task": task, "language": language,
               "answerable": True, "target": spoken(digits, language)}
        for answerable in (True, False):
            question, answer = draw_question(rng, digits, language, answerable)
            kind = "SQA" if answerable else "SQA-invalid"
            yield {"id": f"{utterance}/{kind}.{language}", **base, "task": "SQA", "language": language,
                   "answerable": answerable, "question": question, "target": answer}


def change_speed(wave, factor):
    """Return a wave played faster or slower; pitch and formants change with the speed, as if another voice spoke."""
    places = np.arange(0, len(wave) - 1, factor)
    return np.interp(places, np.arange(len(wave)), wave).astype(np.float32)


def join_one(job):
    """
    Join one utterance's recordings with pauses and light noise and write them as FLAC at 8 kHz.
    job: (path, recordings, speed, seed). ValueError for a recording that is not mono at 8 kHz.
    """
    path, files, speed, seed = job
    rng = np.random.default_rng(seed)
    parts = []
    for file in files:
        wave, rate = soundfile.read(file, dtype="float32")
        if rate != RATE or wave.ndim != 1:
            raise ValueError(f"{file}: expected mono at {RATE} Hz, got {rate} Hz, {wave.ndim} dimensions")
        pause = np.zeros(int(rng.uniform(0.05, 0.3) * RATE))
        parts += [change_speed(wave / max(np.abs(wave).max(), 1e-4), speed), pause]
    wave = 0.5 * np.concatenate(parts)
    snr = rng.uniform(20, 40)  # dB
    wave += rng.standard_normal(len(wave)) * np.sqrt((wave**2).mean()) * 10 ** (-snr / 20)
    write_flac(path, wave, RATE)


def find_recordings(work):
    """Return the folder of recordings: $FSDD, or a clone that the first run makes. SystemExit if there are none."""
    folder = os.environ.get("FSDD", "")
    if not folder:
        clone = os.path.join(work, "downloads", "fsdd")
        folder = os.path.join(clone, "recordings")
        if not os.path.isdir(folder):
            unfinished = clone + ".part"                 # a killed git leaves a part of the repository
            shutil.rmtree(unfinished, ignore_errors=True)
            command = ["git", "clone", "--depth", "1", REPOSITORY, unfinished]
            git = subprocess.run(command, capture_output=True, text=True)
            if git.returncode:
                raise SystemExit(f"could not fetch {REPOSITORY}:\n{git.stderr.strip()}\n"
                                 "fetch it yourself and run: FSDD=folder/of/recordings python -m data.digits")
            os.replace(unfinished, clone)
    if not glob.glob(os.path.join(glob.escape(folder), "*_*_*.wav")):
        raise SystemExit(f"{folder} holds no recording like 7_theo_12.wav; set FSDD to the folder of recordings")
    return folder


def draw_world(work, folder, holdout, sizes, seed):
    """
    Return ({split: rows}, the jobs of join_one that make the audio). Only `holdout` speaks in test, and nowhere else;
    an empty `holdout` means the last speaker by name. SystemExit for an unknown speaker.
    """
    takes = {}          # {speaker: {(digit, take): path}}
    for path in sorted(glob.glob(os.path.join(glob.escape(folder), "*_*_*.wav"))):
        digit, speaker, take = os.path.basename(path)[:-4].split("_")
        takes.setdefault(speaker, {}).setdefault((int(digit), int(take)), path)
    holdout = holdout or sorted(takes)[-1]
    if holdout not in takes or len(takes) < 2:
        raise SystemExit(f"HOLDOUT={holdout}: the speakers in {folder} are {', '.join(sorted(takes))}")
    print(f"training on {', '.join(sorted(takes.keys() - {holdout}))}; testing on {holdout}")

    rng, splits, jobs = random.Random(seed), {}, []
    for split in ("test", "dev", "train"):
        speakers, rows = [holdout] if split == "test" else sorted(takes.keys() - {holdout}), []
        for n in range(sizes[split]):
            digits = rng.sample(range(10), rng.randint(3, 6))
            recordings = takes[rng.choice(speakers)]
            files = [recordings[d, rng.choice([t for t in TAKES[split] if (d, t) in recordings])] for d in digits]
            speed = rng.uniform(0.8, 1.25) if split == "train" else 1.0
            audio = os.path.join(work, "audio", "digits", f"{split}-{n:05d}.flac")
            jobs.append((audio, files, speed, rng.getrandbits(32)))
            rows += sequence_rows(rng, digits, f"digits/{split}-{n:05d}", audio)
        splits[split] = rows
    return splits, jobs


def text_rows(settings):
    """Return draw_rows(rng) of data/tiny_llm.py: a row of a random sequence."""
    from data.tiny_llm import instruction_of

    def draw_rows(rng):
        digits = rng.sample(range(10), rng.randint(3, 6))
        return [instruction_of(list(sequence_rows(rng, digits, "digits/text", "none")), rng)]
    return draw_rows


def main(argv=None):
    work, preset, settings = world_settings(__doc__, "digits", argv)
    settings["holdout"] = os.environ.get("HOLDOUT", "")
    if finished(work, "digits", settings):
        return
    recordings = find_recordings(work)
    begin(work, "digits", settings)
    splits, jobs = draw_world(work, recordings, settings["holdout"], settings, settings["seed"])
    from data.speech_ifeval import write_world               # these import torch, which join_one's processes do without
    from data.tiny_models import make_encoder
    write_recorded(work, "digits", splits, join_one, jobs, "join")
    write_world(work, "digits", splits["test"])
    make_encoder(os.path.join(work, "models", "digits-seamless"), splits["train"], splits["dev"],
                 settings["encoder_steps"], settings["seed"])
    finish_world(work, preset, "digits", settings, splits)


if __name__ == "__main__":
    main()
