"""
What 26 million rows cost a training process, how steps are cut, and what reading audio costs.

    python -m tests.scale rows --rows 5000000        # seconds and memory up to the first draw; 2 GB below --work
    python -m tests.scale steps --tokenizers FOLDER  # micro-batches, padding, CPU time; FOLDER holds two tokenizers
    python -m tests.scale front-end                  # reading audio and making filterbanks

rows: rows like GigaST's; the files of frames have holes in place of numbers. Every figure is of a fresh process: memory
is its peak, with torch and the pages of the index that it shares. A file of a hundredth gives the cost of a row.
steps: rows of the papers' corpora, made of common words, in the steps of 2025 and 2026.
"""
import argparse
import datetime
import multiprocessing
import os
import random
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import chain, count, islice
from statistics import mean
from types import SimpleNamespace
from unittest import mock

import numpy as np
import soundfile
import torch
import torchaudio

import train_projector
from extract_features import filterbank
from speech_llm.audio import SAMPLE_RATE, read_audio
from speech_llm.batches import PADDING, cut_by_length
from speech_llm.cache import features_folder, load_rows
from speech_llm.draws import draw, draw_frames
from speech_llm.files import write_json, write_json_lines
from speech_llm.index import open_index
from speech_llm.llm import load_tokenizer
from speech_llm.run import Run
from speech_llm.speechmapper import SlotTargets, TableObjective
from tests.bench import (CONSTANTS, SHARES, TOKENS, WORDS, draw_seconds, machine, make_rows, peak_gigabytes,
                         print_row)
from train_projector import AnswerObjective, make_projector, positions

ALL = 26_000_000                            # rows of GigaST; 2026, Table 5
COMMON = "the of and to in is that it was for on are with as they at be this have from or one had by word".split()
SHARD = 18_000                              # utterances: 2 million frames of GigaST
WIDTH = 1024                                # of SeamlessM4T's frames
CPU, STEPS = torch.device("cpu"), 5
A100 = 312e12 / 2 / 58e9                    # audio s/s: half of its peak, 58 GFLOP an audio second in SeamlessM4T


def write_corpus(work, corpus, rows, lengths, k):
    """Write the rows of a corpus and the cache of its frames, means of k. lengths: {utterance: frames}, in order."""
    folder = os.path.join(work, "rows", corpus)
    write_json_lines(os.path.join(folder, "train.jsonl"), rows)
    write_json(os.path.join(folder, "config.json"), {})
    origin = {"encoder": "facebook/seamless-m4t-v2-large", "mean": k, "pad": False}
    folder, items = features_folder(work, origin["encoder"], k, corpus, "train"), iter(lengths.items())
    for number in range(-(-len(lengths) // SHARD)):
        shard, name = dict(islice(items, SHARD)), os.path.join(folder, f"frames-{number:05d}")
        write_json(f"{name}.json", {"made": origin, "lengths": shard, "data": f"{os.path.basename(name)}.npy"})
        np.lib.format.open_memmap(f"{name}.npy", "w+", np.float16, (sum(shard.values()), WIDTH))
    write_json(os.path.join(folder, "config.json"), {"width": WIDTH, "utterances": len(lengths)})


def words(rng, number):
    """Return a text of a number of words."""
    return " ".join(rng.choices(COMMON, k=max(1, round(number))))


# --- rows

def write_gigast(work, number):
    """Write rows like GigaST's: for each segment ASR with speech, German, Chinese and, for 2 of 5, Italian text."""
    rng = random.Random(0)

    def rows():
        for segment in count():
            name, text = f"gigast/POD{segment // 100:010d}_S{segment % 100:07d}", words(rng, 10.6)
            start = round(rng.uniform(0, 3000), 2)
            audio = f"{work}/raw/gigast/audio/podcast/P{segment // 10_000:04d}/POD{segment // 100:010d}.opus"
            yield {"id": f"{name}/ASR.en", "utterance": name, "audio": audio, "start": start,
                   "end": start + 4.4, "transcript": text, "task": "ASR", "language": "en", "target": text}
            for language in ("de", "zh", "it")[:3 if segment % 5 < 2 else 2]:
                yield {"id": f"{name}/ST.{language}", "task": "ST", "language": language, "transcript": text,
                       "target": words(rng, 10.6)}
    segments = -(-number * 5 // 17)                                    # 5 segments have 17 rows
    lengths = {f"gigast/POD{n // 100:010d}_S{n % 100:07d}": 110 for n in range(segments)}
    write_corpus(work, "gigast", islice(rows(), number), lengths, 2)


def first_draw(work, stage):
    """Return (CPU seconds, peak GB) of this process up to the first draw of a stage, or for the index alone."""
    start, c = time.process_time(), train_projector.Config(work=work, corpora="gigast", mean=2)
    if stage == "index":
        open_index(os.path.join(work, "rows", "gigast", "train.jsonl"))
    else:
        origin = {"encoder": c.encoder, "mean": c.mean, "pad": c.pad} if stage != "B" else None
        rows, features = load_rows(c, "train", origin)
        mixture = {"MT": (1.0, {"de": 0.4, "it": 0.3, "zh": 0.3})} if stage == "B" else {"ASR": (1.0, {"en": 1.0})}
        next(draw_frames(rows, 12_000, 0) if stage == "A'" else draw(rows, mixture, {}, 16, 8, 0))
    return time.process_time() - start, peak_gigabytes(CPU)


def rows_table(o):
    """Yield the lines of the table: what making the index and the first draws cost."""
    stages, figures = ("index", "A", "A'", "B"), []
    for number in (o.rows // 100, o.rows):
        with tempfile.TemporaryDirectory(dir=o.work) as work:
            write_gigast(work, number)
            for stage in stages:             # the index is there when the stages begin
                with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                    figures.append((number, *pool.submit(first_draw, work, stage).result()))
    yield f"until the first draw|CPU s, {o.rows:,} rows|GB|µs a row|bytes a row|CPU s, {ALL:,} rows|GB"
    for stage, (few, *small), (many, *large) in zip(stages, figures, figures[len(stages):]):
        (seconds, second), (memory, byte) = ((b, (b - a) / (many - few)) for a, b in zip(small, large))
        yield (f"{'making the index' if stage == 'index' else stage}|{seconds:.1f}|{memory:.2f}|{1e6 * second:.2f}|"
               f"{1e9 * byte:.0f}|{seconds + second * (ALL - many):.0f}|{memory + byte * (ALL - many):.2f}")


# --- steps

def write_papers(work, corpora, k):
    """Write a thousandth of the papers' rows, with texts and frames of the corpora's lengths."""
    rng, generator = random.Random(0), np.random.default_rng(0)
    for corpus in corpora:
        rows, seconds, transcripts = [row for row in make_rows() if row["id"].startswith(f"{corpus}/")], {}, {}
        for row in rows:
            name, ratio = row["id"].rpartition("/")[0], TOKENS[row["language"]] / TOKENS["en"]
            number = WORDS * seconds.setdefault(name, draw_seconds(generator, corpus))
            row["transcript"] = transcripts.setdefault(name, words(rng, number))
            row["target"] = words(rng, ratio * (3 if row["task"] == "SQA" else number))
            row |= {"question": words(rng, 10 * ratio)} if row["task"] == "SQA" else {}
            row |= {"audio": f"{name}.wav"} if "utterance" in row else {}
        names = dict.fromkeys(row["utterance"] for row in rows if "utterance" in row)
        write_corpus(work, corpus, rows, {name: -(-round(50 * seconds[name]) // k) for name in names}, k)


def objective_of(stage, tokenizers, features):
    """Return the objective of a stage without an LLM: it can make samples, but no loss."""
    name = "qwen3_4b_instruct_2507" if stage == "A'" else "llama3_1_hf"
    tokenizer = load_tokenizer(os.path.join(tokenizers, name))
    if stage != "A'":
        return AnswerObjective(None, tokenizer, SimpleNamespace(slots=lambda frames: frames), "2025", features, 8192)
    with torch.device("meta"):
        mapper = make_projector("mapper", width=WIDTH, llm_width=2560, heads=8, middle=2048)
        return TableObjective(mapper, torch.empty(1, 2560), SlotTargets(tokenizer, "<|file_sep|>", True), features,
                              12_000)


def run_steps(stage, draws, objective):
    """Yield (samples, micro-batches, CPU seconds) of every step but the first; A' is the first of four processes."""
    world, accumulate = (4, 8) if stage == "A'" else (1, 16)
    run = SimpleNamespace(c=SimpleNamespace(steps=STEPS + 1, accumulate=accumulate), step=0, rank=0, world=world)
    with mock.patch("speech_llm.run.in_background", lambda iterator: iterator):
        stream = Run.samples(run, draws, objective)
        for number in range(STEPS + 1):
            start = time.process_time()
            samples, batches, _ = next(stream)
            if number:
                yield samples, [batch.samples for batch in batches], time.process_time() - start


def steps_table(o):
    """Yield the lines of the table: how a step is cut, and what it takes to make its samples."""
    yield ("stage|rows a step|micro-batches|% padding|with the LLM's limit of padding: micro-batches|% padding|"
           "CPU ms to make the samples")
    for stage, corpora, k in (("A", "covost2,europarlst", 3), ("A'", "gigast,covost2,europarlst", 2),
                              ("C", "covost2,europarlst,spokensquad", 3)):
        with tempfile.TemporaryDirectory(dir=o.work) as work:
            write_papers(work, corpora.split(","), k)
            c = train_projector.Config(work=work, corpora=corpora, mean=k)
            rows, features = load_rows(c, "train", {"encoder": c.encoder, "mean": k, "pad": False})
            constants, (size, most) = CONSTANTS[stage[0]], (positions, 8192)
            draws = draw(rows, constants.mixture, SHARES[stage[0]], 16, 16, 0, paired_text=stage == "C")
            if stage == "A'":
                draws, size, most = draw_frames(rows, 12_000, 0), lambda sample: len(sample["frames"]), 12_000
            windows, cuts, seconds = zip(*run_steps(stage, draws, objective_of(stage, o.tokenizers, features)))
            others = [[*cut_by_length(samples, size, most, PADDING)] for samples in windows]
            used = sum(size(sample) for sample in chain(*windows))

            def padding(groups):
                return 100 * (1 - used / sum(len(group) * size(group[0]) for group in chain(*groups)))
            yield (f"{stage}|{mean(map(len, windows)):.0f}|{mean(map(len, cuts)):.1f}|{padding(cuts):.0f}|"
                   f"{mean(map(len, others)):.1f}|{padding(others):.0f}|{1e3 * mean(seconds):.0f}")


# --- front end

def front_end_table(o):
    """Yield the lines of the table: audio seconds a CPU second from files and waves to what the encoder reads."""
    yield "part|audio s a CPU s|cores for an A100's encoder"
    rng = np.random.default_rng(0)
    lengths = [round(SAMPLE_RATE * draw_seconds(rng, "covost2")) for _ in range(64)]
    waves = [rng.normal(0, 0.1, length).astype(np.float32) for length in lengths]

    def rate(function, items):
        function(items[0])                                             # warm up
        start = time.process_time()
        for item in items:
            function(item)
        return sum(lengths) / SAMPLE_RATE / (time.process_time() - start)
    filterbanks = rate(filterbank, waves)
    yield f"filterbank of SeamlessM4T|{filterbanks:.0f}|"
    with tempfile.TemporaryDirectory(dir=o.work) as folder:
        for ending, hertz in (("flac", SAMPLE_RATE), ("mp3", 48_000), ("opus", 48_000)):
            names = [f"{folder}/{n}.{ending}" for n in range(len(waves))]
            for name, wave in zip(names, waves):
                wave = torchaudio.functional.resample(torch.from_numpy(wave), SAMPLE_RATE, hertz).numpy()
                kind = dict(format="OGG", subtype="OPUS") if ending == "opus" else {}
                soundfile.write(name, wave.clip(-1, 1), hertz, **kind)
            reading = rate(read_audio, names)
            yield f"read_audio, {ending} of {hertz} Hz|{reading:.0f}|{A100 * (1 / reading + 1 / filterbanks):.0f}"


def main(argv=None):
    parser = argparse.ArgumentParser(allow_abbrev=False, description="What rows, steps and audio cost")
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--tokenizers", default="../shared/real/tokenizers")
    parser.add_argument("--work", help="a folder for the temporary files; else the system's")
    o = parser.parse_args(argv)
    torch.set_num_threads(1)
    header, *rows = TABLES[o.table](o)
    print(f"{machine(CPU)}, {datetime.date.today().isoformat()}")
    for line in (header, "|".join(["---"] * len(header.split("|"))), *rows):
        print_row(line.split("|"))


TABLES = {"rows": rows_table, "steps": steps_table, "front-end": front_end_table}

if __name__ == "__main__":
    main()
