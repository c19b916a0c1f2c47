"""
Inference: greedy decoding of test sets, or of one audio file and an instruction.

    python infer.py                                                          # every system of the preset, tiny
    python infer.py --audio talk.wav --task ASR                              # one file, with the last system (C)
    python infer.py --audio talk.wav --task ST --language de
    python infer.py --audio talk.wav --task SQA --language en --question "Who works there?"

reads   <work>/rows/<corpus>/<split>.jsonl, <work>/features/..., <work>/<preset>/{projector,lora,merged}, the LLM
writes  <work>/<preset>/predictions/<system>/<corpus>.<split>.jsonl: a row's {"id", "task", "prediction", "tokens",
        "capped"} a line, in the rows' order; beside it .made.json, which weights and cap they come from.
        A killed run goes on from the rows that are in <corpus>.<split>.jsonl.partial
"""
import json
import os
from dataclasses import dataclass

import torch
from torch import nn
from tqdm import tqdm

from data.prompts import CHAT, question_line
from data.rows import LANGUAGES, TASKS, read_rows, replace_file
from extract_features import (SAMPLE_RATE, average_frames, configure, encode, features_folder, filterbank, fingerprint,
                              load_encoder, locate, open_features, pick_device, read_audio, require, write_json)
from merge_sft import load_speech_llm
from train_projector import TEXT_TASK, encode_sample, load_llm, read_config, splice


@dataclass(frozen=True)
class Config:                               # edit here, or pass --name value
    preset: str = "tiny"                    # filled in by configure
    work: str = "work"
    systems: str = "llm,B:lora,A.1:projector,A.2:projector-A.2,C:merged"    # name:folder of <work>/<preset>
    test_sets: str = "tiny.test"            # <corpus>.<split>, comma-separated
    llm: str = "models/tiny-llama"          # of the system llm; the other systems know theirs
    batch: int = 64                         # rows decoded together; the papers decode one by one, with the same result
    max_new_tokens: int = 40                # 2025: 300 for the tables, 150 for the submission
    audio: str = ""                         # one file instead of the test sets
    task: str = "ASR"
    language: str = "en"
    question: str = ""

PRESETS = {                                 # only what differs from the lines above
    "tiny":    {},
    "smoke":   dict(max_new_tokens=12),
    "digits":  dict(test_sets="digits.test", llm="models/digits-llama"),
    "iwslt25": dict(systems="llm,B:lora,A.1:projector,C:merged",
                    test_sets="acl6060.eval,covost2.test,europarlst.test,spokensquad.test",
                    llm="meta-llama/Llama-3.1-8B-Instruct", max_new_tokens=300),       # section 4
}


# ---------------------------------------------------------------------------------------------------------------------
# greedy decoding
@torch.no_grad()
def generate(llm, prompts, max_new_tokens, stop_ids):
    """
    Greedy decoding of a batch: list of (L, D) prompt embeddings -> list of new token ids, the stop token left out.
    A row that reaches max_new_tokens has that many ids. Prompts are padded on the left, so that every row's last
    position is its newest token; a finished row leaves the batch, so that one that loops does not hold up the others.
    """
    from transformers import DynamicCache
    device, width = prompts[0].device, max(len(p) for p in prompts)
    inputs = torch.stack([nn.functional.pad(p, (0, 0, width - len(p), 0)) for p in prompts])       # (B, L, D)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)   # (B, L)
    cache, generated, alive = DynamicCache(config=llm.config), [[] for _ in prompts], list(range(len(prompts)))
    feed = {"inputs_embeds": inputs, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    for _ in range(max_new_tokens):
        hidden = llm.model(attention_mask=mask, past_key_values=cache, use_cache=True, **feed).last_hidden_state[:, -1]
        tokens = llm.lm_head(hidden).argmax(-1)                                                    # (B,)
        going = [n for n, token in enumerate(tokens.tolist()) if token not in stop_ids]
        if len(going) < len(alive):
            alive = [alive[n] for n in going]
            keep = torch.tensor(going, dtype=torch.long, device=device)
            tokens, mask = tokens[keep], mask[keep]
            if not alive:
                break
            cache.batch_select_indices(keep)
        for row, token in zip(alive, tokens.tolist()):
            generated[row].append(token)
        mask = torch.cat([mask, mask.new_ones(len(alive), 1)], 1)
        feed = {"input_ids": tokens[:, None], "position_ids": mask.sum(1, keepdim=True) - 1}
    return generated


def stop_ids(llm, tokenizer):
    """Every id that ends a turn: the chat format's own and those of the checkpoint's generation config."""
    ends = llm.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    return {*ends, tokenizer.convert_tokens_to_ids(CHAT[llm.config.model_type][2])} - {None}


def answer(llm, tokenizer, projector, samples, max_new_tokens):
    """Samples of encode_sample -> [(text, number of tokens)]; the sample's answer is not shown to the model."""
    device = next(llm.parameters()).device
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        prompts = splice(llm, projector, [{**s, "answer": []} for s in samples])
        generated = generate(llm, prompts, max_new_tokens, stop_ids(llm, tokenizer))
    return [(tokenizer.decode(ids, skip_special_tokens=True).strip(), len(ids)) for ids in generated]


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
    return os.path.join(c.work, c.preset, "predictions", name, f"{test_set}.jsonl")


def decoded(c, name, folder, test_set):
    """Whether the predictions are there already; predictions of other weights or another cap are never mixed in."""
    path = predictions_path(c, name, test_set)
    made_path = path[:-len("jsonl")] + "made.json"
    made = {"llm": c.llm, "stage": fingerprint(os.path.join(folder, "weights.pt")) if folder else "",
            "max_new_tokens": c.max_new_tokens}
    if os.path.exists(made_path):
        with open(made_path) as file:
            if json.load(file) != made:
                raise SystemExit(f"{path} comes from other weights or another cap; remove {os.path.dirname(path)} "
                                 "and run the same command again")
    if os.path.exists(path):
        print(f"{path} is finished already")
        return True
    write_json(made_path, made)
    return False


def predict(c, name, folder, loaded, test_set):
    """Decode one test set with one system and write its predictions; what a killed run left is kept."""
    llm, tokenizer, projector = loaded
    corpus, split = test_set.rsplit(".", 1)
    rows = read_rows(os.path.join(c.work, "rows", corpus, f"{split}.jsonl"))
    text = projector is None                                # no projector: the transcript is read, and ASR is no task
    if text:
        features = None
        rows = [row for row in rows if row["task"] in TEXT_TASK]
    else:
        config = read_config(folder)
        made = {key: config[key] for key in ("encoder", "mean")}
        features = open_features(features_folder(c.work, made["encoder"], made["mean"], corpus, split), made)
        rows = [row for row in rows if "utterance" in row]
        unheard = sum(row["utterance"] not in features for row in rows)
        if unheard:
            print(f"{name}, {test_set}: {unheard} rows have no frames; their prediction is empty and counts as wrong")

    path = predictions_path(c, name, test_set)
    partial = path + ".partial"
    done = read_partial(partial)
    write_lines(partial, done.values())

    todo = [row for row in rows if row["id"] not in done and (text or row["utterance"] in features)]
    samples = [encode_sample(row, text, tokenizer, llm.config.model_type, features) for row in todo]
    order = sorted(range(len(todo)), key=lambda i: len(samples[i]["answer"]) - samples[i]["length"])  # longest first
    bar = tqdm(total=len(todo), desc=f"{name}, {test_set}", unit=" row")
    with open(partial, "a", encoding="utf-8") as file, bar:
        for i in range(0, len(order), c.batch):
            picked = order[i:i + c.batch]
            answers = answer(llm, tokenizer, projector, [samples[n] for n in picked], c.max_new_tokens)
            for n, (prediction, tokens) in zip(picked, answers):
                row = todo[n]
                done[row["id"]] = {"id": row["id"], "task": TEXT_TASK[row["task"]] if text else row["task"],
                                   "prediction": prediction, "tokens": tokens, "capped": tokens == c.max_new_tokens}
                file.write(json.dumps(done[row["id"]], ensure_ascii=False) + "\n")
            file.flush()
            bar.update(len(picked))
    silent = {"prediction": "", "tokens": 0, "capped": False}
    predictions = [done.get(row["id"], {"id": row["id"], "task": row["task"], **silent}) for row in rows]
    write_lines(path, predictions)
    os.remove(partial)
    capped = 100 * sum(p["capped"] for p in predictions) / len(predictions)
    print(f"{path}: {len(rows)} rows, {capped:.1f} % stopped by the cap of {c.max_new_tokens} tokens")


def write_lines(path, predictions):
    """One JSON object a line, all or nothing."""
    with replace_file(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(prediction, ensure_ascii=False) + "\n" for prediction in predictions)


# ---------------------------------------------------------------------------------------------------------------------
# one file
def answer_file(c, device):
    """Transcribe, translate or answer about one audio file with the preset's last system; prints the answer."""
    if c.task not in TASKS or c.language not in LANGUAGES:
        raise SystemExit(f"--task is one of {', '.join(TASKS)} and --language one of {', '.join(LANGUAGES)}")
    if c.task in ("SQA", "MCQ") and not c.question:
        raise SystemExit(f"--task {c.task} needs --question")
    row = {"id": c.audio, "utterance": c.audio, "task": c.task, "language": c.language, "question": c.question,
           "target": ""}
    try:
        question_line(row)
        wave = read_audio(c.audio)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    if len(wave) > 30 * SAMPLE_RATE:
        raise SystemExit(f"{c.audio} is {len(wave) / SAMPLE_RATE:.0f} s long; the models are trained on at most 30 s: "
                         "cut it")
    folder = os.path.join(c.work, c.preset, c.systems.split(",")[-1].partition(":")[2])
    config = read_config(folder)
    llm, tokenizer, projector = load_speech_llm(c.work, folder, device)
    encoder = load_encoder(locate(c.work, config["encoder"]), device)
    frames = average_frames(encode(encoder, [filterbank(wave)])[0], config["mean"])
    sample = encode_sample(row, False, tokenizer, llm.config.model_type, {c.audio: frames})
    print(answer(llm, tokenizer, projector, [sample], c.max_new_tokens)[0][0])


def main(argv=None):
    c = configure(Config, PRESETS, argv)
    device = pick_device()
    if c.audio:
        answer_file(c, device)
        return
    for test_set in c.test_sets.split(","):
        corpus, split = test_set.rsplit(".", 1)
        require(os.path.join(c.work, "rows", corpus, f"{split}.jsonl"), f"python data/{corpus}.py")
    for system in c.systems.split(","):
        name, _, folder = system.partition(":")
        if not folder and name != "llm":
            raise SystemExit(f"--systems {name}: only llm has no folder; write {name}:<folder of {c.work}/{c.preset}>")
        if folder:
            script = {"B": "train_lora.py", "C": "merge_sft.py"}.get(name, f"train_projector.py --mixture {name}")
            folder = os.path.join(c.work, c.preset, folder)
            require(os.path.join(folder, "config.json"),
                    f"python {script} --preset {c.preset} --out {os.path.basename(folder)}")
        todo = [test_set for test_set in c.test_sets.split(",") if not decoded(c, name, folder, test_set)]
        if todo:                                            # a finished system is not loaded
            loaded = (load_speech_llm(c.work, folder, device) if folder
                      else (*load_llm(locate(c.work, c.llm), device), None))
        for test_set in todo:
            predict(c, name, folder, loaded, test_set)
    print(f"predictions in {c.work}/{c.preset}/predictions\nnext: python eval.py --preset {c.preset}")


if __name__ == "__main__":
    main()
