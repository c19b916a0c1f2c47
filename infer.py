"""
Inference: greedy decoding of test sets, or of one audio file and an instruction.

    python infer.py --preset tiny                                            # every system of the page
    python infer.py --audio talk.wav memo.mp3 --task ASR                     # files, with the page's last system (C)
    python infer.py --audio talk.wav --task ST --language de
    python infer.py --audio talk.wav --task SQA --language en --question "Who works there?"
    python infer.py --audio talk.wav --show picture.png                      # the nearest token of every slot
    python infer.py --systems C:merged --lora_scale 0,0.25,0.5,1             # C@0, C@0.25, C@0.5 and C
    python infer.py --systems hub:Qwen/Qwen2-Audio-7B-Instruct               # a speech LLM of the hub

reads   <work>/rows/<corpus>/<split>.jsonl, <work>/features/..., <work>/<run>/{projector,lora,merged}, the LLM. The
        systems seamless (ASR, ST) and seamless-text (MT) are SeamlessM4T-v2 itself; they read the audio or the
        transcript. In cascade the LLM reads Whisper's transcript (listeners, section 4)
writes  <work>/<run>/predictions/<system>/<corpus>.<split>.jsonl, see speech_llm/predictions.py; for MCIF and the
        official test of 2026 also .xml, the file that the shared task takes; <corpus>.<split>-1.png and so on, what the
        LLM hears of the first utterances of the test set `pictures`
"""
import itertools
import math
import os
import sys
import time
import traceback
from contextlib import redirect_stdout
from dataclasses import dataclass, field

import numpy as np
import torch
from tqdm import tqdm

from data.translate import BEAMS, CODES, load_seamless
from extract_features import (FRAME, average_frames, encode, fill_window, front_end, load_encoder, load_frozen,
                              make_feature, pad_features, window_of)
from merge_sft import load_speech_llm
from metrics.mcif import write_output
from metrics.texts import CHARACTERS
from speech_llm.audio import QUIETEST, SAMPLE_RATE, cut_at_pauses, read_audio
from speech_llm.cache import features_folder, open_features
from speech_llm.constants import command, configure, fingerprint, locate, next_command, pick_device, require
from speech_llm.draws import TEXT_TASK
from speech_llm.files import read_json_lines
from speech_llm.hub_system import hub_jobs, load_hub
from speech_llm.llm import decode_text, load_llm
from speech_llm.pictures import draw_slots, nearest_tokens
from speech_llm.predictions import (BUILT_IN, OFFICIAL_TESTS, Job, already_predicted, parse_system, predict,
                                    tasks_answered)
from speech_llm.prompts import SPOKEN_PROMPTS, user_turn
from speech_llm.resumable import is_first, rank_and_world
from speech_llm.rows import (ALL_LANGUAGES, QUESTION_TASKS, TASKS, composed, corpus_and_split, lacks_split, read_rows,
                             remake, rows_file, run_all, source_language)
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
    # name:folder of <work>/<run>, hub:owner/model, or one of BUILT_IN, also under another name: iwslt25-llm:llm
    systems: str = "llm,B:lora,seamless,seamless-text,A.1:projector,C:merged"
    test_sets: str = "acl6060.dev,acl6060.eval,covost2.test,europarlst.test,spokensquad.test"     # <corpus>.<split>
    llm: str = "meta-llama/Llama-3.1-8B-Instruct"         # of the systems llm and cascade
    prompt: str = "2025"                    # whose prompt the systems llm, cascade and hub:... read
    whisper: str = "openai/whisper-large-v3"              # of the system cascade
    seamless: str = "facebook/seamless-m4t-v2-large"      # of the systems seamless and seamless-text
    batch: int = 64                         # rows decoded together; the papers decode one by one, with the same result
    max_new_tokens: int = 300               # section 4; 150 for the submission
    lora_scale: str = "1"                   # strength of the adapters: 0 the base LLM, 1 as trained; 0,0.5,1 several
    trim_loops: bool = False                # keep one copy of what an answer repeats up to the cap
    audio: list = field(default_factory=list)             # files instead of the test sets, for the last of `systems`
    show: str = ""                          # with --audio: a picture, the first 30 s and each slot's nearest token
    pictures: str = ""                      # a test set: such pictures of its first utterances, beside the predictions
    task: str = "ASR"
    language: str = "en"
    question: str = ""
    pieces: bool = False                    # answer a question on every piece of audio over 30 s, else refuse it
    submission: dict = field(default_factory=dict)        # {system: <team>_IWSLT26_IF_<track>_<condition>_<type>}

MAX_SECONDS = 30                            # longer audio is cut at its pauses; Whisper's window too is 30 s
QUIET = 0.01                                # a recording with a lower peak, -40 dB, is nearly silent (our choice)
PICTURES = 3                                # of a test set


# ---------------------------------------------------------------------------------------------------------------------
# Systems: each returns (jobs, decode) for a test set, see speech_llm/predictions.py
def llm_jobs(c, stage, loaded, rows, test_set):
    """
    Return (jobs, decode) of a stage, or of the text LLM if `stage` is None. The LLM reads speech through the projector;
    without a projector it reads the transcript, and ASR is no task.
    """
    llm, tokenizer, projector = loaded
    prompt, features, text, jobs = stage.config["prompt"] if stage else c.prompt, {}, projector is None, []
    if not text:
        origin = {key: stage.config[key] for key in ("encoder", "mean", "pad")}
        folder = features_folder(c.work, origin["encoder"], origin["mean"], *corpus_and_split(test_set))
        features = open_features(folder, origin, command("extract_features", c))
    for row in rows:
        if text and row["task"] in TEXT_TASK:
            sample = encode_sample(row, True, tokenizer, None, prompt)
            jobs.append(Job(row, TEXT_TASK[row["task"]], positions(sample), sample))
        elif not text and "utterance" in row and row["utterance"] in features:
            sample = encode_sample(row, False, tokenizer, features, prompt, projector.slots)
            jobs.append(Job(row, row["task"], positions(sample) - len(sample["answer"]), sample))
        elif not text and "utterance" in row:
            jobs.append(Job(row, row["task"], 0, None))
    return jobs, lambda samples: answer(llm, tokenizer, projector, samples, c.max_new_tokens)


def zero_padding(speech_encoder, mask):
    """
    Return hooks that give the adapter of a SeamlessM4T zeros beyond each sample's end, mask (B, T), as in a batch of
    one. Without them its strided convolutions read what the padding became in the layers before.
    """
    def masked(convolution, arguments):
        return (arguments[0] * mask[:, None].to(arguments[0]),)                                      # (B, W, T)
    layer = speech_encoder.adapter.layers[0]
    return [conv.register_forward_pre_hook(masked) for conv in (layer.residual_conv, layer.self_attn_conv)]


def seamless_jobs(c, loaded, rows, text):
    """Return (jobs, decode) of SeamlessM4T-v2 itself (2025, Table 2): ASR and ST of the audio, MT of the transcript."""
    model, tokenizer = loaded
    jobs = [Job(row, "MT" if text else row["task"], len(row["transcript"]), row) for row in rows
            if row["task"] == "ST" or row["task"] == "ASR" and not text and "utterance" in row]

    @torch.no_grad()
    def decode(batch):
        answers = {}
        languages = {row["id"]: (source_language(row), row["language"]) for row in batch}
        for source, language in sorted({*languages.values()}):             # generate has one target language
            same = [row for row in batch if languages[row["id"]] == (source, language)]
            names, hooks = [row["id"] for row in same], []
            if text:
                # split_special_tokens: "</s>" or "__deu__" inside a text stays ordinary text
                inputs = tokenizer([row["transcript"] for row in same], src_lang=CODES[source], padding=True,
                                   split_special_tokens=True, return_tensors="pt").to(model.device)
            else:
                pieces = [(row["id"], feature) for row in same
                          for feature in front_end(model.config, row, piece_seconds=MAX_SECONDS)[0] or ()]
                if not pieces:
                    continue
                names, features = zip(*pieces)
                padded, mask = pad_features(features, next(model.parameters()))
                inputs = {"input_features": padded, "attention_mask": mask}
                hooks = zero_padding(model.speech_encoder, mask)
            sequences = model.generate(**inputs, tgt_lang=CODES[language], num_beams=BEAMS,
                                       max_new_tokens=c.max_new_tokens)
            for hook in hooks:
                hook.remove()
            special = {*tokenizer.all_special_ids}
            for name, sequence in zip(names, sequences.tolist()):      # the answers to the pieces of a row are joined
                answers.setdefault(name, []).extend(token for token in sequence if token not in special)
        return [answers.get(row["id"]) for row in batch]
    return jobs, decode


@torch.no_grad()
def transcribe(whisper, tokenizer, rows):
    """
    Return {utterance: Whisper's transcript} without unreadable audio; greedy, in the language that Whisper detects
    (our choice: the listeners' paper names no language to Whisper, nor that it names none).
    """
    pieces = [(utterance, feature) for utterance, row in {row["utterance"]: row for row in rows}.items()
              for feature in front_end(whisper.config, row)[0] or ()]
    texts = {utterance: [] for utterance, _ in pieces}
    for first in range(0, len(pieces), len(rows)):       # long audio has several windows
        utterances, features = zip(*pieces[first:first + len(rows)])
        mel = fill_window(features, window_of(whisper.config)).to(next(whisper.parameters()))
        ids = whisper.generate(mel, attention_mask=mel.new_ones(mel.shape[::2]), task="transcribe",
                               return_timestamps=False, do_sample=False, num_beams=1)
        for utterance, row in zip(utterances, ids.tolist()):
            texts[utterance].append(decode_text(tokenizer, row))
    return {utterance: " ".join(parts) for utterance, parts in texts.items()}


def cascade_jobs(c, loaded, rows):
    """Return (jobs, decode) of the cascade: Whisper's transcript is the answer to ASR, or what the text LLM reads."""
    llm, tokenizer, whisper, whisper_tokenizer = loaded
    jobs = [Job(row, row["task"], len(row["transcript"]), row) for row in rows if "utterance" in row]

    def decode(batch):
        transcripts, samples, answers = transcribe(whisper, whisper_tokenizer, batch), [], {}
        for row in batch:
            text = transcripts.get(row["utterance"])
            if text is not None and row["task"] == "ASR":
                answers[row["id"]] = encode_text(tokenizer, text)[:c.max_new_tokens]
            elif text is not None:
                question = {"question": text} if row.get("question") == row["transcript"] else {}      # spoken
                samples.append(encode_sample({**row, "transcript": text, **question}, True, tokenizer, None, c.prompt))
        if samples:
            answers |= zip([sample["id"] for sample in samples],
                           answer(llm, tokenizer, None, samples, c.max_new_tokens))
        return [answers.get(row["id"]) for row in batch]
    return jobs, decode


# ---------------------------------------------------------------------------------------------------------------------
# audio files
def answer_files(c, device):
    """Yield a text for each file of --audio: its transcript, its translation or an answer, by the last of `systems`."""
    if c.task not in TASKS or c.language not in ALL_LANGUAGES:
        raise SystemExit(f"--task is one of {', '.join(TASKS)} and --language one of {', '.join(ALL_LANGUAGES)}")
    name, folder, model = parse_system(c.systems.split(",")[-1])
    print(f"{name} answers")
    stage = folder and open_stage(os.path.join(c.work, c.run, folder), run_all(c.preset, c.work))
    if not (stage and "projector" in stage.config["trained"] or model and not c.show):
        raise SystemExit(f"{name} has no projector, which {'--show' if model else '--audio'} needs; name a system with "
                         "one, such as --systems C:merged")
    prompt = stage.config["prompt"] if stage else c.prompt
    if c.task in QUESTION_TASKS and not c.question and prompt not in SPOKEN_PROMPTS:
        raise SystemExit(f"--task {c.task} needs --question")              # the listeners' question may be spoken
    try:
        user_turn(file_row(c, "--audio"), prompt=prompt)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    if model:
        yield from answer_files_by_hub(c, model, device)
        return
    encoder = load_encoder(locate(c.work, stage.config["encoder"]), device)
    waves = [read_pieces(c, path, encoder) for path in c.audio]            # before the LLM is loaded
    loaded = load_speech_llm(c.work, stage, device)
    scale_lora(loaded[0], strengths(c)[-1])
    for path, pieces in zip(c.audio, waves):
        yield answer_pieces(c, stage.config, encoder, loaded, path, pieces)


def file_row(c, path):
    """Return the row of an audio file, with the instruction of the command line."""
    return composed({"id": path, "utterance": path, "audio": path, "task": c.task, "language": c.language,
                     "question": c.question, "transcript": "", "target": ""})


def answer_files_by_hub(c, model, device):
    """Yield the answer of a speech LLM of the hub to each file of --audio."""
    for path in c.audio:
        read_file(path)
    loaded = load_hub(locate(c.work, model), device)
    _, decode = hub_jobs(loaded, [], c.prompt, c.max_new_tokens)
    for path in c.audio:
        yield decode_text(loaded[1], decode([file_row(c, path)])[0])


def read_file(path):
    """Return the wave of an audio file. A warning if it is nearly silent; SystemExit if it cannot be read."""
    try:
        wave = read_audio(path)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    if (peak := np.abs(wave).max()) < QUIET:
        print(f"warning: {path} is nearly silent, its loudest sample is at {20 * math.log10(max(peak, QUIETEST)):.0f} "
              "dB of full scale: the answer may be invented")
    return wave


def read_pieces(c, path, encoder):
    """Return the audio of a file in pieces that the models can read. SystemExit for a question about several pieces."""
    longest = min(MAX_SECONDS * SAMPLE_RATE, window_of(encoder.config) * FRAME or math.inf)
    pieces = cut_at_pauses(read_file(path), longest)
    if len(pieces) > 1 and c.task in QUESTION_TASKS and not c.pieces:
        raise SystemExit(f"{path} is longer than {longest / SAMPLE_RATE:g} s, the most the models are trained on, "
                         "and an answer cannot be joined from pieces; cut it, or pass --pieces to answer on each piece")
    return pieces


def answer_pieces(c, config, encoder, loaded, path, pieces):
    """Return the answer to one file: the texts of its pieces, joined, or a line with its time for each question."""
    llm, tokenizer, projector = loaded
    row, texts, question = file_row(c, path), [], c.task in QUESTION_TASKS
    for number, piece in enumerate(tqdm(pieces, desc=path, unit=" piece", disable=len(pieces) == 1)):
        feature = make_feature(encoder.config, piece)
        frames = average_frames(encode(encoder, [feature], config["pad"])[0], config["mean"])
        sample = encode_sample(row, False, tokenizer, {path: frames}, config["prompt"], projector.slots)
        texts.append(decode_text(tokenizer, answer(llm, tokenizer, projector, [sample], c.max_new_tokens)[0]))
        if c.show and number == 0:
            draw_slots(c.show, piece, *nearest_tokens(llm, tokenizer, projector, frames), texts[0])
    if question and len(pieces) > 1:
        ends = np.cumsum([len(piece) for piece in pieces]) / SAMPLE_RATE
        texts = [f"{first:.1f}-{end:.1f} s: {text}" for first, end, text in zip([0, *ends], ends, texts)]
    return ("\n" if question else "" if c.language in CHARACTERS else " ").join(texts)


# ---------------------------------------------------------------------------------------------------------------------
# test sets
def draw_first(loaded, jobs, decode, stem):
    """Draw what the LLM hears of the first PICTURES utterances of a test set, ASR first, as `stem`-1.png and so on."""
    llm, tokenizer, projector = loaded
    first = {}
    for row, _, _, sample in sorted(jobs, key=lambda job: job.row["task"] != "ASR"):
        if sample and sample["frames"] is not None:
            first.setdefault(row["utterance"], (row, sample))
    for number, (row, sample) in enumerate(itertools.islice(first.values(), PICTURES), 1):
        try:
            wave = read_audio(row["audio"], row.get("start"), row.get("end"))
        except ValueError as error:
            print(f"no picture of {row['id']}: {error}")
            continue
        tokens, cosines = nearest_tokens(llm, tokenizer, projector, sample["frames"])
        draw_slots(f"{stem}-{number}.png", wave, tokens, cosines, decode_text(tokenizer, decode([sample])[0]))


def strengths(c):
    """Return the numbers of --lora_scale."""
    try:
        return [float(scale) for scale in c.lora_scale.split(",")]
    except ValueError:
        raise SystemExit(f"--lora_scale {c.lora_scale}: one number, or several with commas") from None


def load_system(c, source, stage, model, device):
    """Return (model, tokenizer, what else the system needs). Without `stage` and `model`, source is one of BUILT_IN."""
    if stage:
        return load_speech_llm(c.work, stage, device)
    if model:
        return load_hub(locate(c.work, model), device)
    from transformers import (AutoTokenizer, SeamlessM4Tv2ForSpeechToText, SeamlessM4Tv2ForTextToText,
                              WhisperForConditionalGeneration)
    if source.startswith("seamless"):
        model = SeamlessM4Tv2ForTextToText if source == "seamless-text" else SeamlessM4Tv2ForSpeechToText
        return load_seamless(model, locate(c.work, c.seamless))
    loaded = load_llm(locate(c.work, c.llm), device)
    if source == "llm":
        return *loaded, None
    path = locate(c.work, c.whisper)
    return *loaded, load_frozen(WhisperForConditionalGeneration, path, device), AutoTokenizer.from_pretrained(path)


def run_system(c, system, source, stage, model, rows_of, device):
    """
    Decode the test sets that have no predictions yet, at every strength of the adapters. Return the paths of all
    predictions. The models are loaded once, and only if something is left to decode. A system has a finished `stage`,
    or a `model` of the hub, or is one of BUILT_IN, which is then its `source`.
    """
    loaded, weights, paths = None, fingerprint(os.path.join(stage.folder, "weights.pt")) if stage else "", []
    text = "projector" not in stage.config["trained"] if stage else source in ("llm", "seamless-text")
    scales = strengths(c) if stage and "lora" in stage.config["trained"] else [1.0]
    for scale, (test_set, rows) in itertools.product(scales, rows_of.items()):
        name = system if scale == 1 else f"{system}@{scale:g}"
        path = os.path.join(c.work, c.run, c.out, name, f"{test_set}.jsonl")
        if not {row["task"] for row in rows} & {*tasks_answered(source, text, test_set)}:
            print(f"{name} is left out on {test_set}: it has no task there")
            continue
        paths.append(path)
        origin = {"llm": model or (c.seamless if source.startswith("seamless") else c.llm),
                  "max_new_tokens": c.max_new_tokens,
                  "stage": weights, "trim_loops": c.trim_loops, "lora_scale": scale,
                  **({} if stage or source.startswith("seamless") else {"prompt": c.prompt}),
                  **({"whisper": c.whisper} if source == "cascade" else {})}
        if not already_predicted(path, origin):
            loaded = loaded or load_system(c, source, stage, model, device)
            if model:
                jobs, decode = hub_jobs(loaded, rows, c.prompt, c.max_new_tokens)
            elif source.startswith("seamless"):
                jobs, decode = seamless_jobs(c, loaded, rows, source == "seamless-text")
            elif source == "cascade":
                jobs, decode = cascade_jobs(c, loaded, rows)
            else:
                scale_lora(loaded[0], scale)
                jobs, decode = llm_jobs(c, stage, loaded, rows, test_set)
                if test_set == c.pictures and scale == 1 and is_first():
                    draw_first(loaded, jobs, decode, path.removesuffix(".jsonl"))  # before the set is finished
            predict(path, f"{name}, {test_set}", loaded[1], jobs, decode, c.batch, c.max_new_tokens, c.trim_loops)
        if test_set in OFFICIAL_TESTS and os.path.exists(path):            # the file that the shared task takes
            answers = {p["id"]: p["prediction"] for p in read_json_lines(path, "remove it and run the same again")}
            submission = c.submission.get(name, f"{c.preset}-{name}")
            files = [test_set, submission] if name in c.submission and test_set != "mcif.test" else [test_set]
            for file in files:
                write_output(os.path.join(os.path.dirname(path), f"{file}.xml"), submission, answers)
    return paths


def read_test_sets(c):
    """Return {test set: rows}, without those that a finished corpus lacks. Exit if one is missing or none is left."""
    rows_of = {}
    for test_set in c.test_sets.split(","):
        path = rows_file(c.work, *corpus_and_split(test_set))
        if lacking := lacks_split(c.work, test_set):
            print(f"{test_set} is left out: {lacking}")
        else:
            rows_of[test_set] = read_rows(require(path, remake(path)))
    if not rows_of:
        raise SystemExit(f"--test_sets {c.test_sets}: no test set is left")
    return rows_of


def named_systems(c):
    """Return [(name, source, model of the hub)] of --systems; source: one of BUILT_IN, or a folder of <work>/<run>."""
    systems = []
    for name, folder, model in map(parse_system, c.systems.split(",")):
        if not model and not folder and name not in BUILT_IN:
            raise SystemExit(f"--systems {name}: write {name}:<folder of {c.work}/{c.run}>; only "
                             f"{', '.join(BUILT_IN)} have none. hub:<owner/model> is a speech LLM of the hub")
        systems.append((name, folder or name, model))
    return systems


def main(argv=None):
    c = configure(Config, "infer", argv)
    device = pick_device()
    if c.show and len(c.audio) != 1:
        raise SystemExit("--show draws one recording; give --audio one file")
    if c.audio:
        stdout = sys.stdout                  # it gets the answers alone, so that a shell can pipe them
        with redirect_stdout(sys.stderr):
            for text in answer_files(c, device):
                print(text, file=stdout, flush=True)
        return
    systems, rows_of, paths, refused = named_systems(c), read_test_sets(c), [], []
    strengths(c)                             # a text that is no number exits before a model is loaded
    for name, source, model in systems:
        try:
            stage = None if model or source in BUILT_IN else open_stage(
                os.path.normpath(os.path.join(c.work, c.run, source)), run_all(c.preset, c.work))
            paths += run_system(c, name, source, stage, model, rows_of, device)
        except (SystemExit, ValueError) as error:        # this system cannot run; the others do
            if not isinstance(error, SystemExit):
                traceback.print_exc()
            refused.append(f"{name} is left out: {error}")
            print(refused[-1], flush=True)
    if refused:
        while rank_and_world()[1] > 1 and not all(map(os.path.exists, paths)):   # torchrun ends all when one fails
            time.sleep(1)
        raise SystemExit("\n".join([*refused, "the other systems are decoded"] if paths else refused))
    print(f"predictions in {c.work}/{c.run}/{c.out}\nnext: {next_command('infer', c)}")


if __name__ == "__main__":
    main()
