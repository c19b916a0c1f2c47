"""
Inference: greedy decoding of test sets, or of one audio file and an instruction.

    python infer.py                                                          # every system of the preset, tiny
    python infer.py --audio talk.wav --task ASR                              # one file, with the last system (C)
    python infer.py --audio talk.wav --task ST --language de
    python infer.py --audio talk.wav --task SQA --language en --question "Who works there?"

reads   <work>/rows/<corpus>/<split>.jsonl, <work>/features/..., <work>/<run>/{projector,lora,merged}, the LLM; the
        systems seamless (ASR, ST) and seamless-text (MT) are SeamlessM4T-v2 itself and read the audio or the transcript
writes  <work>/<run>/predictions/<system>/<corpus>.<split>.jsonl: a row's {"id", "task", "prediction", "tokens",
        "capped", "loops"} a line, in the rows' order; beside it .made.json, which weights and cap they come from, and
        of MCIF .xml, to be submitted.
        A killed run goes on from the rows that are in <corpus>.<split>.jsonl.partial
"""
import json
import os
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from tqdm import tqdm

from data.draws import TEXT_TASK
from data.prompts import question_line
from data.rows import LANGUAGES, TASKS, read_rows, replace_file
from data.translate import BEAMS, CODES, load_seamless
from extract_features import (SAMPLE_RATE, average_frames, configure, encode, features_folder, filterbank, fingerprint,
                              front_end, load_encoder, locate, open_features, pad_features, pick_device, read_audio,
                              require, write_json)
from merge_sft import load_speech_llm
from metrics.mcif import write_output
from train_projector import answer, decode_text, encode_sample, load_llm, read_config


@dataclass(frozen=True)
class Config:                               # edit here, or pass --name value
    preset: str = "tiny"                    # filled in by configure
    work: str = "work"
    run: str = "tiny"                       # filled in by configure; presets of one system share a folder of work
    out: str = "predictions"                # <work>/<run>/<out>
    systems: str = "llm,B:lora,A.1:projector,A.2:projector-A.2,C:merged"    # name:folder of <work>/<run>
    test_sets: str = "tiny.test"            # <corpus>.<split>, comma-separated
    llm: str = "models/tiny-llama"          # of the system llm; the stages' folders know theirs
    prompt: str = "2025"                    # ... and whose prompt it reads
    seamless: str = ""                      # of the systems seamless and seamless-text
    batch: int = 64                         # rows decoded together; the papers decode one by one, with the same result
    max_new_tokens: int = 40                # 2025: 300 for the tables, 150 for the submission
    lora_scale: float = 1.0                 # strength of the adapters at test time: 0 the base LLM, 1 as trained
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

COPIES, LONGEST, SHORTEST = 4, 32, 16       # a loop: 4 copies of at most 32 tokens, 16 or more in all (our choice)
MAX_SECONDS = 30                            # longer audio is cut at its pauses
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
    """Predictions that a killed run left, without a half-written last line."""
    if not os.path.exists(path):
        return {}
    with open(path, encoding="utf-8") as file:
        lines = [line for line in file if line.endswith("\n")]
    return {p["id"]: p for p in map(json.loads, lines)}


def predictions_path(c, name, test_set):
    """Where the predictions of one system on one test set lie."""
    return os.path.join(c.work, c.run, c.out, name, f"{test_set}.jsonl")


def decoded(c, name, folder, test_set):
    """Whether the predictions are there already; predictions of other weights or another cap are never mixed in."""
    path = predictions_path(c, name, test_set)
    made_path = path[:-len("jsonl")] + "made.json"
    made = {"llm": c.seamless if name.startswith("seamless") else c.llm, "max_new_tokens": c.max_new_tokens,
            "stage": fingerprint(os.path.join(folder, "weights.pt")) if folder else "",
            "trim_loops": c.trim_loops, "lora_scale": c.lora_scale}
    if os.path.exists(made_path):
        with open(made_path) as file:
            if json.load(file) != made:
                raise SystemExit(f"{path} comes from other weights, another cap or scale; remove "
                                 f"{os.path.dirname(path)} and run the same command again, or choose another --out")
    if os.path.exists(path):
        print(f"{path} is finished already")
        return True
    write_json(made_path, made)
    return False


# A system on one test set is (jobs, decode): a job is (row, name of its task, size, item), for every row that it has to
# answer, and decode takes items and gives their new token ids. An item is None where there is nothing to hear.

def llm_jobs(c, folder, loaded, rows, test_set):
    """Our own systems: speech through the projector, or, without one, the transcript (then ASR is no task)."""
    llm, tokenizer, projector = loaded
    config = read_config(folder) if folder else {"prompt": c.prompt}
    features, text, jobs = {}, projector is None, []
    if not text:
        made, (corpus, split) = {key: config[key] for key in ("encoder", "mean")}, test_set.rsplit(".", 1)
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
                heard = [(row, front_end(row, float("inf"))[0]) for row in some]
                heard = [(row, feature) for row, feature in heard if feature is not None]     # else an empty answer
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
        return [generated.get(row["id"], []) for row in items]
    return jobs, decode


def predict(c, name, tokenizer, jobs, decode, test_set):
    """Decode one test set with one system and write its predictions; what a killed run left is kept."""
    path = predictions_path(c, name, test_set)
    partial = path + ".partial"
    done = read_partial(partial)
    write_lines(partial, done.values())
    todo = [job for job in jobs if job[0]["id"] not in done and job[3] is not None]
    todo.sort(key=lambda job: -job[2])                                     # longest first
    bar = tqdm(total=len(todo), desc=f"{name}, {test_set}", unit=" row")
    with open(partial, "a", encoding="utf-8") as file, bar:
        for first in range(0, len(todo), c.batch):
            picked = todo[first:first + c.batch]
            for (row, task, _, _), ids in zip(picked, decode([item for *_, item in picked])):
                capped, loop = len(ids) >= c.max_new_tokens, find_loop(ids)
                text = decode_text(tokenizer, ids[:loop[0]] if loop and c.trim_loops else ids)
                done[row["id"]] = {"id": row["id"], "task": task, "prediction": text, "tokens": len(ids),
                                   "capped": capped, "loops": loop is not None}
                file.write(json.dumps(done[row["id"]], ensure_ascii=False) + "\n")
            file.flush()
            bar.update(len(picked))

    silent = {"prediction": "", "tokens": 0, "capped": False, "loops": False}
    predictions = [done.get(row["id"], {"id": row["id"], "task": task, **silent}) for row, task, *_ in jobs]
    if test_set.startswith("mcif."):                        # the file that the shared task takes
        answers = {p["id"]: p["prediction"] for p in predictions}
        write_output(path[:-len("jsonl")] + "xml", f"{c.preset}-{name}", answers)
    write_lines(path, predictions)
    os.remove(partial)
    unheard = sum(item is None for *_, item in jobs)
    capped, loops = (100 * sum(p[key] for p in predictions) / max(1, len(predictions)) for key in ("capped", "loops"))
    print(f"{path}: {len(predictions)} rows, {capped:.1f} % stopped by the cap of {c.max_new_tokens} tokens, "
          f"{loops:.1f} % loop"
          + (f"; {unheard} have no frames: their answer is empty and counts as wrong" if unheard else ""))


def write_lines(path, predictions):
    """One JSON object a line, all or nothing."""
    with replace_file(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(prediction, ensure_ascii=False) + "\n" for prediction in predictions)


# ---------------------------------------------------------------------------------------------------------------------
# one file
def cut_at_pauses(wave):
    """A wave -> pieces of at most MAX_SECONDS, each cut in the middle of the quietest PAUSE of its second half."""
    pieces, longest = [], MAX_SECONDS * SAMPLE_RATE
    while len(wave) > longest:
        first, last = longest // 2, min(longest, len(wave) - SAMPLE_RATE)  # at least a second stays
        energy = np.convolve(wave[first:last].astype(np.float64) ** 2, np.ones(PAUSE), "valid")
        cut = first + int(energy.argmin()) + PAUSE // 2
        pieces, wave = [*pieces, wave[:cut]], wave[cut:]
    return [*pieces, wave]


def answer_file(c, device):
    """Transcribe, translate or answer about one audio file with the preset's last system; prints the answer."""
    if c.task not in TASKS or c.language not in LANGUAGES:
        raise SystemExit(f"--task is one of {', '.join(TASKS)} and --language one of {', '.join(LANGUAGES)}")
    question = c.task in ("SQA", "MCQ")
    if question and not c.question:
        raise SystemExit(f"--task {c.task} needs --question")
    row = {"id": c.audio, "utterance": c.audio, "task": c.task, "language": c.language, "question": c.question,
           "target": ""}
    try:
        question_line(row)
        pieces = cut_at_pauses(read_audio(c.audio))
    except ValueError as error:
        raise SystemExit(str(error)) from None
    if len(pieces) > 1 and question and not c.pieces:
        raise SystemExit(f"{c.audio} is longer than {MAX_SECONDS} s, the most the models are trained on, and an answer "
                         "cannot be joined from pieces; cut it, or pass --pieces for an answer to each piece")
    folder = os.path.join(c.work, c.run, c.systems.split(",")[-1].partition(":")[2])
    config = read_config(folder)
    llm, tokenizer, projector = load_speech_llm(c.work, folder, device, c.lora_scale)
    encoder = load_encoder(locate(c.work, config["encoder"]), device)
    texts = []
    for piece in pieces:
        frames = average_frames(encode(encoder, [filterbank(piece)])[0], config["mean"])
        sample = encode_sample(row, False, tokenizer, llm.config.model_type, {c.audio: frames}, config["prompt"],
                               projector.slots)
        texts.append(decode_text(tokenizer, answer(llm, tokenizer, projector, [sample], c.max_new_tokens)[0]))
    if question and len(pieces) > 1:
        ends = np.cumsum([len(piece) for piece in pieces]) / SAMPLE_RATE
        texts = [f"{first:.1f}-{end:.1f} s: {text}" for first, end, text in zip([0, *ends], ends, texts)]
    print(("\n" if question else "" if c.language == "zh" else " ").join(texts))


def main(argv=None):
    from transformers import SeamlessM4Tv2ForSpeechToText, SeamlessM4Tv2ForTextToText
    c = configure(Config, PRESETS, argv)
    device, test_sets = pick_device(), c.test_sets.split(",")
    if c.audio:
        answer_file(c, device)
        return
    for test_set in list(test_sets):
        corpus, split = test_set.rsplit(".", 1)
        folder = os.path.join(c.work, "rows", corpus)
        if os.path.exists(os.path.join(folder, "config.json")) and not os.path.exists(f"{folder}/{split}.jsonl"):
            print(f"{test_set} is left out: its recipe could not make it, see {folder}/counts.md")
            test_sets.remove(test_set)
        else:
            require(os.path.join(folder, f"{split}.jsonl"), f"python data/{corpus}.py")
    for system in c.systems.split(","):
        name, _, folder = system.partition(":")
        if not folder and name not in ("llm", "seamless", "seamless-text"):
            raise SystemExit(f"--systems {name}: write {name}:<folder of {c.work}/{c.run}>; only llm, seamless and "
                             "seamless-text have none")
        if folder:
            script = ("train_lora.py" if name.startswith("B") else "merge_sft.py" if name.startswith("C")
                      else "train_projector.py" + (f" --mixture {name}" if "." in name else ""))
            folder = os.path.join(c.work, c.run, folder)
            require(os.path.join(folder, "config.json"),
                    f"python {script} --preset {c.preset} --out {os.path.basename(folder)}")
        hears = folder and "projector" in read_config(folder)["trained"]
        todo = [test_set for test_set in test_sets
                if (hears or not test_set.startswith("mcif.")) and not decoded(c, name, folder, test_set)]
        loaded = None                                       # MCIF has no transcripts to read
        for test_set in todo:                               # a finished system is not loaded
            corpus, split = test_set.rsplit(".", 1)
            rows = read_rows(os.path.join(c.work, "rows", corpus, f"{split}.jsonl"))
            if name.startswith("seamless"):
                text = name == "seamless-text"
                loaded = loaded or load_seamless(SeamlessM4Tv2ForTextToText if text else SeamlessM4Tv2ForSpeechToText,
                                                 locate(c.work, c.seamless))
                jobs, decode = seamless_jobs(c, loaded, rows, text)
            else:
                loaded = loaded or (load_speech_llm(c.work, folder, device, c.lora_scale) if folder
                                    else (*load_llm(locate(c.work, c.llm), device), None))
                jobs, decode = llm_jobs(c, folder, loaded, rows, test_set)
            predict(c, name, loaded[1], jobs, decode, test_set)
    print(f"predictions in {c.work}/{c.run}/{c.out}\nnext: python eval.py --preset {c.preset}")


if __name__ == "__main__":
    main()
