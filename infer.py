"""
Inference: greedy decoding of test sets, or of one audio file and an instruction.

    python infer.py                                                          # every system of the preset, tiny
    python infer.py --audio talk.wav --task ASR                              # one file, with the last system (C)
    python infer.py --audio talk.wav --task ST --language de
    python infer.py --audio talk.wav --task SQA --language en --question "Who works there?"
    python infer.py --systems C:merged --lora_scale 0,0.25,0.5,1             # C@0, C@0.25, C@0.5 and C

reads   <work>/rows/<corpus>/<split>.jsonl, <work>/features/..., <work>/<run>/{projector,lora,merged}, the LLM. The
        systems seamless (ASR, ST) and seamless-text (MT) are SeamlessM4T-v2 itself; they read the audio or the
        transcript. In cascade the LLM reads Whisper's transcript (listeners, section 4)
writes  <work>/<run>/predictions/<system>/<corpus>.<split>.jsonl, see speech_llm/predictions.py; for MCIF also .xml, the
        file that the shared task takes
"""
import itertools
import math
import os
from dataclasses import dataclass

import numpy as np
import torch

from data.translate import BEAMS, CODES, load_seamless
from extract_features import (FRAME, SAMPLE_RATE, average_frames, encode, fill_window, front_end, load_encoder,
                              load_frozen, make_feature, pad_features, read_audio, window_of)
from merge_sft import load_speech_llm
from metrics.mcif import write_output
from speech_llm.cache import features_folder, open_features
from speech_llm.constants import command, configure, fingerprint, locate, pick_device, require
from speech_llm.draws import TEXT_TASK
from speech_llm.files import read_json_lines
from speech_llm.llm import decode_text, load_llm
from speech_llm.predictions import already_predicted, predict, tasks_answered
from speech_llm.prompts import user_turn
from speech_llm.rows import ALL_LANGUAGES, TASKS, not_made, read_rows, remake, rows_file, run_all
from speech_llm.stage import open_stage
from speech_llm.turns import encode_text
from train_lora import scale_lora
from train_projector import answer, encode_sample, positions


@dataclass(frozen=True)
class Config:                               # the 2025 paper's values; a page of config/ or --name value changes them
    preset: str = "tiny"                    # a page of config/, or the path of a page
    work: str = "work"                      # everything that is written lies below this folder
    run: str = ""                           # the system's folder below work; the page names it
    out: str = "predictions"                # <work>/<run>/<out>
    systems: str = "llm,B:lora,seamless,seamless-text,A.1:projector,C:merged"        # name:folder of <work>/<run>
    test_sets: str = "acl6060.dev,acl6060.eval,covost2.test,europarlst.test,spokensquad.test"     # <corpus>.<split>
    llm: str = "meta-llama/Llama-3.1-8B-Instruct"         # of the systems llm and cascade
    prompt: str = "2025"                    # whose prompt the systems llm and cascade read
    whisper: str = "openai/whisper-large-v3"              # of the system cascade
    seamless: str = "facebook/seamless-m4t-v2-large"      # of the systems seamless and seamless-text
    batch: int = 64                         # rows decoded together; the papers decode one by one, with the same result
    max_new_tokens: int = 300               # section 4; 150 for the submission
    lora_scale: str = "1"                   # strength of the adapters: 0 the base LLM, 1 as trained; 0,0.5,1 several
    trim_loops: bool = False                # keep one copy of what an answer repeats up to the cap
    audio: str = ""                         # one file instead of the test sets
    task: str = "ASR"
    language: str = "en"
    question: str = ""
    pieces: bool = False                    # answer a question on every piece of audio over 30 s, else refuse it

MAX_SECONDS = 30                            # longer audio is cut at its pauses; Whisper's window too is 30 s
PAUSE = SAMPLE_RATE // 5                    # samples: a cut falls in the quietest 0.2 s of what may be cut


# ---------------------------------------------------------------------------------------------------------------------
# Systems: each returns (jobs, decode) for a test set, see speech_llm/predictions.py
def llm_jobs(c, stage, loaded, rows, test_set):
    """Our systems: speech through the projector, or the transcript if the stage has none (then ASR is no task)."""
    llm, tokenizer, projector = loaded
    prompt, features, text, jobs = stage.config["prompt"] if stage else c.prompt, {}, projector is None, []
    if not text:
        origin = {key: stage.config[key] for key in ("encoder", "mean", "pad")}
        corpus, split = test_set.rsplit(".", 1)
        features = open_features(features_folder(c.work, origin["encoder"], origin["mean"], corpus, split), origin)
    for row in rows:
        if text and row["task"] in TEXT_TASK:
            sample = encode_sample(row, True, tokenizer, None, prompt)
            jobs.append((row, TEXT_TASK[row["task"]], positions(sample), sample))
        elif not text and row.get("utterance") in features:
            sample = encode_sample(row, False, tokenizer, features, prompt, projector.slots)
            jobs.append((row, row["task"], positions(sample) - len(sample["answer"]), sample))
        elif not text and "utterance" in row:
            jobs.append((row, row["task"], 0, None))
    return jobs, lambda samples: answer(llm, tokenizer, projector, samples, c.max_new_tokens)


def seamless_jobs(c, loaded, rows, text):
    """SeamlessM4T-v2 itself (2025, Table 2): ASR and ST from the audio, MT from the transcript."""
    model, tokenizer = loaded
    jobs = [(row, "MT" if text else row["task"], len(row["transcript"]), row) for row in rows
            if row["task"] == "ST" or row["task"] == "ASR" and not text and "utterance" in row]

    @torch.no_grad()
    def decode(batch):
        answers = {}
        for language in sorted({row["language"] for row in batch}):        # generate has one target language
            rows_now = [row for row in batch if row["language"] == language]
            if text:
                inputs = tokenizer([row["transcript"] for row in rows_now], src_lang="eng", padding=True,
                                   return_tensors="pt").to(model.device)
            else:
                features = {row["id"]: front_end(model.config, row, math.inf)[0] for row in rows_now}
                rows_now = [row for row in rows_now if features[row["id"]] is not None]
                if not rows_now:
                    continue
                padded, mask = pad_features([features[row["id"]] for row in rows_now], next(model.parameters()))
                inputs = {"input_features": padded, "attention_mask": mask}
            sequences = model.generate(**inputs, tgt_lang=CODES[language], num_beams=BEAMS,
                                       max_new_tokens=c.max_new_tokens)
            special = {*tokenizer.all_special_ids}
            for row, sequence in zip(rows_now, sequences.tolist()):
                answers[row["id"]] = [token for token in sequence if token not in special]
        return [answers.get(row["id"]) for row in batch]
    return jobs, decode


@torch.no_grad()
def transcribe(whisper, tokenizer, rows):
    """Return {utterance: Whisper's transcript}, greedy, in the language that Whisper detects; no unreadable audio."""
    features = {row["utterance"]: front_end(whisper.config, row, math.inf)[0] for row in rows}
    features = {utterance: feature for utterance, feature in features.items() if feature is not None}
    if not features:
        return {}
    mel = fill_window(list(features.values()), window_of(whisper.config)).to(next(whisper.parameters()))
    ids = whisper.generate(mel, attention_mask=mel.new_ones(mel.shape[::2]), task="transcribe", return_timestamps=False,
                           do_sample=False, num_beams=1)
    return {utterance: decode_text(tokenizer, row) for utterance, row in zip(features, ids.tolist())}


def cascade_jobs(c, loaded, rows):
    """Whisper's transcript takes the place of the row's, and the text LLM answers; for ASR it is the answer."""
    llm, tokenizer, whisper, whisper_tokenizer = loaded
    jobs = [(row, row["task"], len(row["transcript"]), row) for row in rows if "utterance" in row]

    def decode(batch):
        transcripts, samples, answers = transcribe(whisper, whisper_tokenizer, batch), [], {}
        for row in batch:
            text = transcripts.get(row["utterance"])
            if text is not None and row["task"] == "ASR":
                answers[row["id"]] = encode_text(tokenizer, text)[:c.max_new_tokens]
            elif text is not None:
                question = {"question": text} if row.get("question") == row["transcript"] else {}      # it is spoken
                samples.append(encode_sample({**row, "transcript": text, **question}, True, tokenizer, None, c.prompt))
        if samples:
            answers |= zip([sample["id"] for sample in samples],
                           answer(llm, tokenizer, None, samples, c.max_new_tokens))
        return [answers.get(row["id"]) for row in batch]
    return jobs, decode


# ---------------------------------------------------------------------------------------------------------------------
# one file
def cut_at_pauses(wave, longest):
    """Return a wave in pieces of at most `longest` samples, cut in the quietest PAUSE of each piece's second half."""
    pieces = []
    while len(wave) > longest:
        first, last = longest // 2, min(longest, len(wave) - SAMPLE_RATE)  # at least a second stays
        energy = np.convolve(wave[first:last].astype(np.float64) ** 2, np.ones(PAUSE), "valid")
        cut = first + int(energy.argmin()) + PAUSE // 2
        pieces, wave = [*pieces, wave[:cut]], wave[cut:]
    return [*pieces, wave]


def answer_file(c, device):
    """Transcribe, translate or answer about one audio file with the preset's last system; print the answer."""
    if c.task not in TASKS or c.language not in ALL_LANGUAGES:
        raise SystemExit(f"--task is one of {', '.join(TASKS)} and --language one of {', '.join(ALL_LANGUAGES)}")
    stage = open_stage(os.path.join(c.work, c.run, c.systems.split(",")[-1].partition(":")[2]),
                       f"{run_all(c.preset, c.work)}, which trains it")
    config, question = stage.config, c.task in ("SQA", "MCQ")
    if question and not c.question and config["prompt"] != "listeners":      # the listeners' question may be spoken
        raise SystemExit(f"--task {c.task} needs --question")
    row = {"id": c.audio, "utterance": c.audio, "task": c.task, "language": c.language, "question": c.question,
           "transcript": "", "target": ""}
    encoder = load_encoder(locate(c.work, config["encoder"]), device)
    longest = min(MAX_SECONDS * SAMPLE_RATE, window_of(encoder.config) * FRAME or math.inf)
    try:
        user_turn(row, prompt=config["prompt"])
        pieces = cut_at_pauses(read_audio(c.audio), longest)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    if len(pieces) > 1 and question and not c.pieces:
        raise SystemExit(f"{c.audio} is longer than {longest / SAMPLE_RATE:g} s, the most the models are trained on, "
                         "and an answer cannot be joined from pieces; cut it, or pass --pieces to answer on each piece")
    llm, tokenizer, projector = load_speech_llm(c.work, stage, device)
    scale_lora(llm, strengths(c)[-1])
    texts = []
    for piece in pieces:
        frames = encode(encoder, [make_feature(encoder.config, piece)], config["pad"])[0]
        frames = average_frames(frames, config["mean"])
        sample = encode_sample(row, False, tokenizer, {c.audio: frames}, config["prompt"],
                               projector.slots)
        texts.append(decode_text(tokenizer, answer(llm, tokenizer, projector, [sample], c.max_new_tokens)[0]))
    if question and len(pieces) > 1:
        ends = np.cumsum([len(piece) for piece in pieces]) / SAMPLE_RATE
        texts = [f"{first:.1f}-{end:.1f} s: {text}" for first, end, text in zip([0, *ends], ends, texts)]
    print(("\n" if question else "" if c.language in ("zh", "ja") else " ").join(texts))


# ---------------------------------------------------------------------------------------------------------------------
def strengths(c):
    """Return the numbers of --lora_scale."""
    try:
        return [float(scale) for scale in c.lora_scale.split(",")]
    except ValueError:
        raise SystemExit(f"--lora_scale {c.lora_scale}: one number, or several with commas") from None


def load_system(c, name, stage, device):
    """Return (model, tokenizer, what else the system needs)."""
    from transformers import (AutoTokenizer, SeamlessM4Tv2ForSpeechToText, SeamlessM4Tv2ForTextToText,
                              WhisperForConditionalGeneration)
    if stage:
        return load_speech_llm(c.work, stage, device)
    if name.startswith("seamless"):
        kind = SeamlessM4Tv2ForTextToText if name == "seamless-text" else SeamlessM4Tv2ForSpeechToText
        return load_seamless(kind, locate(c.work, c.seamless))
    loaded = load_llm(locate(c.work, c.llm), device)
    if name == "llm":
        return *loaded, None
    path = locate(c.work, c.whisper)
    return *loaded, load_frozen(WhisperForConditionalGeneration, path, device), AutoTokenizer.from_pretrained(path)


def run_system(c, system, stage, scales, test_sets, device):
    """Decode what is not there yet, at every strength of the adapters; models are loaded once, or not at all."""
    loaded = None
    for scale, test_set in itertools.product(scales, test_sets):
        name = system if scale == 1 else f"{system}@{scale:g}"
        path = os.path.join(c.work, c.run, c.out, name, f"{test_set}.jsonl")
        rows = read_rows(rows_file(c.work, *test_set.rsplit(".", 1)))
        text = "projector" not in stage.config["trained"] if stage else name in ("llm", "seamless-text")
        if not {row["task"] for row in rows} & {*tasks_answered(system, text, test_set)}:
            print(f"{name} is left out on {test_set}: it has no task there")
            continue
        origin = {"llm": c.seamless if name.startswith("seamless") else c.llm, "max_new_tokens": c.max_new_tokens,
                  "stage": fingerprint(os.path.join(stage.folder, "weights.pt")) if stage else "",
                  "trim_loops": c.trim_loops, "lora_scale": scale,
                  **({"whisper": c.whisper} if name == "cascade" else {})}
        if not already_predicted(path, origin):
            loaded = loaded or load_system(c, name, stage, device)
            if name.startswith("seamless"):
                jobs, decode = seamless_jobs(c, loaded, rows, name == "seamless-text")
            elif name == "cascade":
                jobs, decode = cascade_jobs(c, loaded, rows)
            else:
                scale_lora(loaded[0], scale)
                jobs, decode = llm_jobs(c, stage, loaded, rows, test_set)
            predict(path, f"{name}, {test_set}", loaded[1], jobs, decode, c.batch, c.max_new_tokens, c.trim_loops)
        if test_set.startswith("mcif.") and os.path.exists(path):          # the file that the shared task takes
            write_output(path[:-len("jsonl")] + "xml", f"{c.preset}-{name}",
                         {p["id"]: p["prediction"] for p in read_json_lines(path, "remove it and run the same again")})


def existing_test_sets(c):
    """Return the test sets whose rows exist, without those that their recipe could not make. Exit if one is missing."""
    names = []
    for test_set in c.test_sets.split(","):
        if "." not in test_set:
            raise SystemExit(f"--test_sets {test_set}: write <corpus>.<split>, such as tiny.test")
        corpus, split = test_set.rsplit(".", 1)
        path = os.path.join(c.work, "rows", corpus, f"{split}.jsonl")
        if not_made(c.work, test_set):
            print(f"{test_set} is left out: its recipe could not make it, see {os.path.dirname(path)}/counts.md")
        else:
            names.append(test_set)
            require(path, remake(path))
    return names


def main(argv=None):
    c = configure(Config, "infer", argv)
    device = pick_device()
    if c.audio:
        answer_file(c, device)
        return
    test_sets = existing_test_sets(c)
    for system in c.systems.split(","):
        name, _, folder = system.partition(":")
        if not folder and name not in ("llm", "cascade", "seamless", "seamless-text"):
            raise SystemExit(f"--systems {name}: write {name}:<folder of {c.work}/{c.run}>; only llm, cascade, "
                             "seamless and seamless-text have none")
        stage = folder and open_stage(os.path.join(c.work, c.run, folder),
                                      f"{run_all(c.preset, c.work)}, which makes {folder} first")
        scales = strengths(c) if stage and "lora" in stage.config["trained"] else [1.0]
        run_system(c, name, stage, scales, test_sets, device)
    print(f"predictions in {c.work}/{c.run}/{c.out}\nnext: {command('eval', c)}")


if __name__ == "__main__":
    main()
