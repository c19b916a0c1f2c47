"""
Inference: greedy decoding of test sets, or of one audio file and an instruction.

    python infer.py                                                          # every system of the preset, tiny
    python infer.py --audio talk.wav --task ASR                              # one file, with the last system (C)
    python infer.py --audio talk.wav --task ST --language de
    python infer.py --audio talk.wav --task SQA --language en --question "Who works there?"
    python infer.py --systems C:merged --lora_scale 0,0.25,0.5,1             # C@0, C@0.25, C@0.5 and C

reads   <work>/rows/<corpus>/<split>.jsonl, <work>/features/..., <work>/<run>/{projector,lora,merged}, the LLM; the
        systems seamless (ASR, ST) and seamless-text (MT) are SeamlessM4T-v2 itself and read the audio or the
        transcript; in cascade the LLM reads what Whisper hears (listeners, section 4)
writes  <work>/<run>/predictions/<system>/<corpus>.<split>.jsonl: a row's {"id", "task", "prediction", "tokens",
        "capped", "loops"} a line, in the rows' order; beside it .made.json, which weights and cap they come from, and
        of MCIF .xml, to be submitted.
        A killed run goes on from the rows that are in <corpus>.<split>.jsonl.partial.<process>
"""
import glob
import itertools
import math
import os
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from data.translate import BEAMS, CODES, load_seamless
from extract_features import (FRAME, SAMPLE_RATE, average_frames, encode, fill_window, front_end, load_encoder,
                              load_frozen, make_feature, pad_features, read_audio, window_of)
from merge_sft import load_speech_llm
from metrics.mcif import write_output
from speech_llm.cache import features_folder, open_features
from speech_llm.constants import configure, fingerprint, locate, pick_device, require
from speech_llm.draws import TEXT_TASK
from speech_llm.files import add_lines, lock, read_json, read_json_lines, write_json, write_json_lines
from speech_llm.llm import decode_text, load_llm
from speech_llm.prompts import encode_text, user_turn
from speech_llm.rows import ALL_LANGUAGES, TASKS, read_rows, remake, rows_file
from speech_llm.run import read_config
from train_lora import scale_lora
from train_projector import answer, encode_sample


@dataclass(frozen=True)
class Config:                               # edit here, or pass --name value
    preset: str = "tiny"                    # filled in by configure
    work: str = "work"
    run: str = "tiny"                       # filled in by configure; presets of one system share a folder of work
    out: str = "predictions"                # <work>/<run>/<out>
    systems: str = "llm,B:lora,A.1:projector,A.2:projector-A.2,C:merged"    # name:folder of <work>/<run>
    test_sets: str = "tiny.test"            # <corpus>.<split>, comma-separated
    llm: str = "models/tiny-llama"          # of the system llm; the stages' folders know theirs
    prompt: str = "2025"                    # ... and whose prompt it reads; of the cascade, too
    whisper: str = "openai/whisper-large-v3"                                # of the system cascade
    seamless: str = ""                      # of the systems seamless and seamless-text
    batch: int = 64                         # rows decoded together; the papers decode one by one, with the same result
    max_new_tokens: int = 40                # 2025: 300 for the tables, 150 for the submission
    lora_scale: str = "1"                   # strength of the adapters: 0 the base LLM, 1 as trained; 0,0.5,1 several
    trim_loops: bool = False                # keep one copy of what an answer repeats up to the cap
    audio: str = ""                         # one file instead of the test sets
    task: str = "ASR"
    language: str = "en"
    question: str = ""
    pieces: bool = False                    # answer a question on every piece of audio over 30 s, else refuse it

PRESETS = {                                 # only what differs from the lines above
    "tiny":    {},
    "smoke":   dict(max_new_tokens=12),
    "digits":  dict(test_sets="digits.test", llm="models/digits-llama"),
    "iwslt25": dict(systems="llm,B:lora,seamless,seamless-text,A.1:projector,C:merged",
                    test_sets="acl6060.dev,acl6060.eval,covost2.test,europarlst.test,spokensquad.test",
                    llm="meta-llama/Llama-3.1-8B-Instruct", seamless="facebook/seamless-m4t-v2-large",
                    max_new_tokens=300),                                               # section 4
}
for name, systems in {"iwslt25-a2": "A.2:projector-A.2,C-A.2:merged-A.2", "iwslt25-short": "C-short:merged-short",
                      "iwslt25-a2-short": "C-A.2-short:merged-A.2-short"}.items():
    PRESETS[name] = dict(PRESETS["iwslt25"], run="iwslt25", systems=systems)
PRESETS["tiny26"] = dict(systems="llm,B:lora,A:projector,C:merged", test_sets="tiny26.test", llm="models/tiny26-qwen3",
                         prompt="2026-zero-shot")
PRESETS["smoke26"] = dict(PRESETS["tiny26"], max_new_tokens=12)
PRESETS["iwslt26"] = dict(
    systems="llm,B:lora,seamless,seamless-text,A:projector,C:merged", llm="Qwen/Qwen3-4B-Instruct-2507",
    prompt="2026-zero-shot", seamless="facebook/seamless-m4t-v2-large", max_new_tokens=100,           # 2026, section 5
    test_sets="librispeech.test,librispeech.test-other,covost2.test,europarlst.test,librisqa.test,mcif.test")
PRESETS["iwslt26-setup2"] = dict(PRESETS["iwslt26"], run="iwslt26", systems="C-setup2:merged-setup2")
PRESETS["tiny-listeners"] = dict(systems="llm,cascade,C:merged", prompt="listeners", llm="models/tiny-cohere",
                                 test_sets="tiny-listeners.test,tiny-listeners.heard", whisper="models/tiny-whisper")
PRESETS["smoke-listeners"] = dict(PRESETS["tiny-listeners"], max_new_tokens=12)
PRESETS["listeners"] = dict(
    systems="llm,cascade,C:merged", llm="CohereLabs/aya-expanse-8b", prompt="listeners",
    max_new_tokens=300,                                                                # our choice
    test_sets="multispeechqa.bench,commonvoice.test," + ",".join(                      # MultiSpeech-Bench
        f"covost2-{language}_en.test" for language in ("ar", "id", "ja", "tr", "zh")))
for name in ("ast", "ten", "ten-ast", "align", "ten-align"):
    merged = {"align": "aligned", "ten-align": "aligned-ten"}.get(name, f"merged-{name}")
    PRESETS[f"listeners-{name}"] = dict(PRESETS["listeners"], run="listeners", systems=f"C-{name}:{merged}")
for name in ("tiny-listeners", "smoke-listeners"):
    PRESETS[f"{name}-align"] = dict(PRESETS[name], run=name, systems="C-align:aligned")

COPIES, LONGEST, SHORTEST = 4, 32, 16       # a loop: 4 copies of at most 32 tokens, 16 or more in all (our choice)
MAX_SECONDS = 30                            # longer audio is cut at its pauses; Whisper's window too is 30 s
PAUSE = SAMPLE_RATE // 5                    # samples: a cut falls in the quietest 0.2 s of what may be cut


# ---------------------------------------------------------------------------------------------------------------------
# loops (2025, appendix B.1)
def find_loop(ids):
    """
    (end of the first copy, length of the loop's unit) of the first unit of at most LONGEST ids that stands COPIES times
    in a row, SHORTEST ids or more in all; None if nothing loops.
    """
    for start in range(len(ids)):
        for n in range(1, LONGEST + 1):
            copies = max(COPIES, -(-SHORTEST // n))
            end = start + copies * n
            if end <= len(ids) and ids[start:end - n] == ids[start + n:end]:
                return start + n, n
    return None


# ---------------------------------------------------------------------------------------------------------------------
# test sets
def read_partial(path):
    """What the processes of this and of killed runs have so far, a file each, without half-written last lines."""
    done = {}
    for part in glob.glob(glob.escape(path) + ".partial*"):
        with suppress(FileNotFoundError):                   # another process has just joined them
            done |= {p["id"]: p for p in read_json_lines(part, "remove it and run the same command again")}
    return done


def remove_partial(path):
    """The predictions are there, whole."""
    for part in glob.glob(glob.escape(path) + ".partial*"):
        Path(part).unlink(missing_ok=True)


def predictions_path(c, name, test_set):
    """Where the predictions of one system on one test set lie."""
    return os.path.join(c.work, c.run, c.out, name, f"{test_set}.jsonl")


def decoded(c, name, folder, scale, test_set):
    """Whether the predictions are there already; predictions of other weights or another cap are never mixed in."""
    path = predictions_path(c, name, test_set)
    made_path = path[:-len("jsonl")] + "made.json"
    made = {"llm": c.seamless if name.startswith("seamless") else c.llm, "max_new_tokens": c.max_new_tokens,
            "stage": fingerprint(os.path.join(folder, "weights.pt")) if folder else "",
            "trim_loops": c.trim_loops, "lora_scale": scale, **({"whisper": c.whisper} if name == "cascade" else {})}
    if os.path.exists(made_path):
        if read_json(made_path, f"remove {os.path.dirname(path)} and run the same command again") != made:
            raise SystemExit(f"{path} comes from other weights, another cap or scale; remove "
                             f"{os.path.dirname(path)} and run the same command again, or choose another --out")
    if os.path.exists(path):
        remove_partial(path)                                # a kill may have come just before it
        print(f"{path} is finished already")
        return True
    write_json(made_path, made)
    return False


# A system on one test set is (jobs, decode): a job is (row, name of its task, size, item), for every row that it has to
# answer, and decode takes items and gives their new token ids. An item, or its ids, are None where nothing is heard.

def llm_jobs(c, folder, loaded, rows, test_set):
    """Our own systems: speech through the projector, or, without one, the transcript (then ASR is no task)."""
    llm, tokenizer, projector = loaded
    config = read_config(folder) if folder else {"prompt": c.prompt}
    features, text, jobs = {}, projector is None, []
    if not text:
        made, (corpus, split) = {key: config[key] for key in ("encoder", "mean", "pad")}, test_set.rsplit(".", 1)
        features = open_features(features_folder(c.work, made["encoder"], made["mean"], corpus, split), made)
    encode_row = partial(encode_sample, tokenizer=tokenizer, model_type=llm.config.model_type, features=features,
                         prompt=config["prompt"], slots=projector and projector.slots)
    for row in rows:
        if text and row["task"] not in TEXT_TASK or not text and "utterance" not in row:
            continue
        task = TEXT_TASK[row["task"]] if text else row["task"]
        if text or row["utterance"] in features:
            sample = encode_row(row, text)
            jobs.append((row, task, sample["length"] - len(sample["answer"]), sample))
        else:
            jobs.append((row, task, 0, None))
    return jobs, lambda samples: answer(llm, tokenizer, projector, samples, c.max_new_tokens)


def seamless_jobs(c, loaded, rows, text):
    """SeamlessM4T-v2 itself (2025, Table 2): ASR and ST from the audio, MT from the transcript."""
    model, tokenizer = loaded
    jobs = [(row, "MT" if text else row["task"], len(row["transcript"]), row) for row in rows
            if row["task"] == "ST" or row["task"] == "ASR" and not text and "utterance" in row]

    @torch.no_grad()
    def decode(items):
        generated = {}
        for language in sorted({row["language"] for row in items}):        # one target language in a call
            some = [row for row in items if row["language"] == language]
            if text:
                inputs = tokenizer([row["transcript"] for row in some], src_lang="eng", padding=True,
                                   return_tensors="pt").to(model.device)
            else:
                heard = [(row, front_end(model.config, row, float("inf"))[0]) for row in some]
                heard = [(row, feature) for row, feature in heard if feature is not None]
                if not heard:
                    continue
                some = [row for row, _ in heard]
                padded, mask = pad_features([feature for _, feature in heard], next(model.parameters()))
                inputs = {"input_features": padded, "attention_mask": mask}
            ids = model.generate(**inputs, tgt_lang=CODES[language], num_beams=BEAMS,
                                 max_new_tokens=c.max_new_tokens)
            special = {*tokenizer.all_special_ids}
            for row, sequence in zip(some, ids.tolist()):
                generated[row["id"]] = [token for token in sequence if token not in special]
        return [generated.get(row["id"]) for row in items]
    return jobs, decode


@torch.no_grad()
def transcribe(whisper, tokenizer, rows):
    """{utterance: what Whisper hears, greedily, in the language that it takes it for}; without unreadable audio."""
    heard = {row["utterance"]: front_end(whisper.config, row, float("inf"))[0] for row in rows}
    heard = {utterance: feature for utterance, feature in heard.items() if feature is not None}
    if not heard:
        return {}
    mel = fill_window(list(heard.values()), window_of(whisper.config)).to(next(whisper.parameters()))
    ids = whisper.generate(mel, attention_mask=mel.new_ones(mel.shape[::2]), task="transcribe", return_timestamps=False,
                           do_sample=False, num_beams=1)
    return {utterance: decode_text(tokenizer, row) for utterance, row in zip(heard, ids.tolist())}


def cascade_jobs(c, loaded, rows):
    """Whisper's transcript takes the place of the row's, and the text LLM answers; of ASR it is the answer itself."""
    llm, tokenizer, whisper, spelling = loaded
    jobs = [(row, row["task"], len(row["transcript"]), row) for row in rows if "utterance" in row]

    def decode(items):
        said, samples, generated = transcribe(whisper, spelling, items), [], {}
        for row in items:
            text = said.get(row["utterance"])
            if text is not None and row["task"] == "ASR":
                generated[row["id"]] = encode_text(tokenizer, text)[:c.max_new_tokens]
            elif text is not None:
                spoken = {"question": text} if row.get("question") == row["transcript"] else {}
                samples.append(encode_sample({**row, "transcript": text, **spoken}, True, tokenizer,
                                             llm.config.model_type, None, c.prompt))
        if samples:
            generated |= zip([sample["id"] for sample in samples],
                             answer(llm, tokenizer, None, samples, c.max_new_tokens))
        return [generated.get(row["id"]) for row in items]
    return jobs, decode


def predict(c, name, tokenizer, jobs, decode, test_set):
    """
    Decode one test set with one system and write its predictions. Of several processes each decodes every world-th
    batch, and the last to be done joins them. Batches are cut from all jobs, so that they are the same however often
    a run was killed; one of which a row is missing is decoded again.
    """
    path = predictions_path(c, name, test_set)
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))     # torchrun sets them
    with lock(os.path.dirname(path)):
        done, own = read_partial(path), f"{path}.partial.{rank}"
        if os.path.exists(path):                            # the others had it all
            return
        mended = read_json_lines(own, "remove it and run the same command again") if os.path.exists(own) else []
        write_json_lines(own, mended)
        heard = sorted((job for job in jobs if job[3] is not None), key=lambda job: -job[2])       # longest first
        batches = [heard[i:i + c.batch] for i in range(0, len(heard), c.batch)][rank::world]
        batches = [batch for batch in batches if any(job[0]["id"] not in done for job in batch)]
        bar = tqdm(total=sum(map(len, batches)), desc=f"{name}, {test_set}", unit=" row", disable=rank > 0)
        with open(own, "ab", buffering=0) as file, bar:
            for batch in batches:
                made = []
                for (row, task, _, _), ids in zip(batch, decode([item for *_, item in batch])):
                    if ids is None:
                        made.append({"id": row["id"], "unheard": True})
                        continue
                    capped, loop = len(ids) >= c.max_new_tokens, find_loop(ids)
                    text = decode_text(tokenizer, ids[:loop[0]] if loop and c.trim_loops else ids)
                    made.append({"id": row["id"], "task": task, "prediction": text, "tokens": len(ids),
                                 "capped": capped, "loops": loop is not None})
                add_lines(file, made)
                bar.update(len(batch))
        done = read_partial(path)
        if any(job[0]["id"] not in done for job in heard):
            print(f"{path}: this process is done; the last one to be joins the answers")
        else:
            join(c, name, jobs, {key: p for key, p in done.items() if "unheard" not in p}, test_set)


def join(c, name, jobs, done, test_set):
    """Write the predictions of all jobs, in the rows' order, out of {id: prediction}; what is not heard is empty."""
    path = predictions_path(c, name, test_set)
    silent = {"prediction": "", "tokens": 0, "capped": False, "loops": False}
    predictions = [done.get(row["id"], {"id": row["id"], "task": task, **silent}) for row, task, *_ in jobs]
    if test_set.startswith("mcif."):                        # the file that the shared task takes
        answers = {p["id"]: p["prediction"] for p in predictions}
        write_output(path[:-len("jsonl")] + "xml", f"{c.preset}-{name}", answers)
    write_json_lines(path, predictions)
    remove_partial(path)
    unheard = sum(row["id"] not in done for row, *_ in jobs)
    capped, loops = (100 * sum(p[key] for p in predictions) / max(1, len(predictions)) for key in ("capped", "loops"))
    print(f"{path}: {len(predictions)} rows, {capped:.1f} % stopped by the cap of {c.max_new_tokens} tokens, "
          f"{loops:.1f} % loop"
          + (f"; {unheard} cannot be heard: their answer is empty and counts as wrong" if unheard else ""))


# ---------------------------------------------------------------------------------------------------------------------
# one file
def cut_at_pauses(wave, longest):
    """A wave -> pieces of at most `longest` samples, cut in the middle of the quietest PAUSE of their second half."""
    pieces = []
    while len(wave) > longest:
        first, last = longest // 2, min(longest, len(wave) - SAMPLE_RATE)  # at least a second stays
        energy = np.convolve(wave[first:last].astype(np.float64) ** 2, np.ones(PAUSE), "valid")
        cut = first + int(energy.argmin()) + PAUSE // 2
        pieces, wave = [*pieces, wave[:cut]], wave[cut:]
    return [*pieces, wave]


def answer_file(c, device):
    """Transcribe, translate or answer about one audio file with the preset's last system; prints the answer."""
    if c.task not in TASKS or c.language not in ALL_LANGUAGES:
        raise SystemExit(f"--task is one of {', '.join(TASKS)} and --language one of {', '.join(ALL_LANGUAGES)}")
    folder = os.path.join(c.work, c.run, c.systems.split(",")[-1].partition(":")[2])
    config, question = read_config(folder), c.task in ("SQA", "MCQ")
    if question and not c.question and config["prompt"] != "listeners":                # theirs may be what is spoken
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
    llm, tokenizer, projector = load_speech_llm(c.work, folder, device)
    scale_lora(llm, strengths(c)[-1])
    texts = []
    for piece in pieces:
        frames = encode(encoder, [make_feature(encoder.config, piece)], config["pad"])[0]
        frames = average_frames(frames, config["mean"])
        sample = encode_sample(row, False, tokenizer, llm.config.model_type, {c.audio: frames}, config["prompt"],
                               projector.slots)
        texts.append(decode_text(tokenizer, answer(llm, tokenizer, projector, [sample], c.max_new_tokens)[0]))
    if question and len(pieces) > 1:
        ends = np.cumsum([len(piece) for piece in pieces]) / SAMPLE_RATE
        texts = [f"{first:.1f}-{end:.1f} s: {text}" for first, end, text in zip([0, *ends], ends, texts)]
    print(("\n" if question else "" if c.language in ("zh", "ja") else " ").join(texts))


# ---------------------------------------------------------------------------------------------------------------------
def strengths(c):
    """The numbers of --lora_scale."""
    try:
        return [float(scale) for scale in c.lora_scale.split(",")]
    except ValueError:
        raise SystemExit(f"--lora_scale {c.lora_scale}: one number, or several with commas") from None


def load_system(c, name, folder, device):
    """(model, tokenizer, what else the system needs)."""
    from transformers import (AutoTokenizer, SeamlessM4Tv2ForSpeechToText, SeamlessM4Tv2ForTextToText,
                              WhisperForConditionalGeneration)
    if folder:
        return load_speech_llm(c.work, folder, device)
    if name.startswith("seamless"):
        kind = SeamlessM4Tv2ForTextToText if name == "seamless-text" else SeamlessM4Tv2ForSpeechToText
        return load_seamless(kind, locate(c.work, c.seamless))
    loaded = load_llm(locate(c.work, c.llm), device)
    if name == "llm":
        return *loaded, None
    path = locate(c.work, c.whisper)
    return *loaded, load_frozen(WhisperForConditionalGeneration, path, device), AutoTokenizer.from_pretrained(path)


def run_system(c, system, folder, scales, test_sets, device):
    """Decode what is not there yet, at every strength of the adapters; models are loaded once, or not at all."""
    loaded = None
    for scale, test_set in itertools.product(scales, test_sets):
        name = system if scale == 1 else f"{system}@{scale:g}"
        if decoded(c, name, folder, scale, test_set):
            continue
        corpus, split = test_set.rsplit(".", 1)
        rows = read_rows(rows_file(c.work, corpus, split))
        loaded = loaded or load_system(c, name, folder, device)
        if name.startswith("seamless"):
            jobs, decode = seamless_jobs(c, loaded, rows, name == "seamless-text")
        elif name == "cascade":
            jobs, decode = cascade_jobs(c, loaded, rows)
        else:
            scale_lora(loaded[0], scale)
            jobs, decode = llm_jobs(c, folder, loaded, rows, test_set)
        predict(c, name, loaded[1], jobs, decode, test_set)


def main(argv=None):
    c = configure(Config, PRESETS, argv)
    device, test_sets = pick_device(), c.test_sets.split(",")
    if c.audio:
        answer_file(c, device)
        return
    for test_set in list(test_sets):
        if "." not in test_set:
            raise SystemExit(f"--test_sets {test_set}: write <corpus>.<split>, such as tiny.test")
        corpus, split = test_set.rsplit(".", 1)
        folder = os.path.join(c.work, "rows", corpus)
        if os.path.exists(os.path.join(folder, "config.json")) and not os.path.exists(f"{folder}/{split}.jsonl"):
            print(f"{test_set} is left out: its recipe could not make it, see {folder}/counts.md")
            test_sets.remove(test_set)
        else:
            require(os.path.join(folder, f"{split}.jsonl"), remake(os.path.join(folder, f"{split}.jsonl")))
    for system in c.systems.split(","):
        name, _, folder = system.partition(":")
        if not folder and name not in ("llm", "cascade", "seamless", "seamless-text"):
            raise SystemExit(f"--systems {name}: write {name}:<folder of {c.work}/{c.run}>; only llm, cascade, "
                             "seamless and seamless-text have none")
        trained = ()
        if folder:
            script = ("train_lora.py" if name.startswith("B") else "merge_sft.py" if name.startswith("C")
                      else "train_projector.py" + (f" --mixture {name}" if "." in name else ""))
            folder = os.path.join(c.work, c.run, folder)
            require(os.path.join(folder, "config.json"),
                    f"python {script} --preset {c.preset} --out {os.path.basename(folder)}")
            trained = read_config(folder)["trained"]
        hears = "projector" in trained or name == "cascade"               # MCIF has no transcripts to read
        some = [test_set for test_set in test_sets if hears or not test_set.startswith("mcif.")]
        run_system(c, name, folder, strengths(c) if "lora" in trained else [1.0], some, device)
    print(f"predictions in {c.work}/{c.run}/{c.out}\nnext: python eval.py --preset {c.preset}")


if __name__ == "__main__":
    main()
