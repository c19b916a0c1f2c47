"""
Rehearse several systems in one process: python tests/rehearsing.py WORK LIMIT "iwslt25" "iwslt25 ablations" ...

Every command's main is called here, in small sizes. The makers are replaced: a translation begins with its language,
every translation is good, the speech is noise, and the LLM's texts are fixed.
"""
import functools
import importlib.util
import os
import sys
import traceback
from contextlib import redirect_stderr, redirect_stdout, suppress

import numpy as np
import soundfile
import transformers

sys.path[:0] = [os.path.dirname(os.path.dirname(os.path.abspath(__file__))), os.path.dirname(os.path.abspath(__file__))]

from data import (acl6060, europarlst, fakacl, gigast, librisqa, multispeechqa, quality, rehearse,  # noqa: E402
                  rewrite, spokensquad, translate)
from metrics import language as languages  # noqa: E402

TRAINING = ["--batch", "2", "--accumulate", "2", "--micro_tokens", "600"]
SIZES = {
    "train_projector": [*TRAINING, "--batch_sqa", "2", "--batch_frames", "60", "--layers", "1", "--heads", "2",
                        "--ffn", "16", "--middle", "16", "--max_new_tokens", "4"],
    "train_lora": TRAINING, "merge_sft": TRAINING, "infer": ["--max_new_tokens", "4", "--batch", "16"]}


def run_here(command, log):
    """Call a command's main with its output in a file; return its exit code."""
    with open(log, "w", encoding="utf-8") as file, redirect_stdout(file), redirect_stderr(file):
        try:
            name = rehearse.name_of(command)
            words = command[command.index(f"{name}.py" if f"{name}.py" in command else name) + 1:]
            importlib.import_module(name).main([*words, *SIZES.get(name, [])])
        except SystemExit as stop:
            print(stop.code if stop.code is not None else "")
            return 1 if stop.code else 0
        except Exception:
            traceback.print_exc()
            return 1
    return 0


def speak(texts, folder, *_, **__):
    """Write noise of two seconds for every text; return {name: path}."""
    paths = {name: os.path.join(folder, f"{name}.flac") for name in texts}
    for path in paths.values():
        os.makedirs(os.path.dirname(path), exist_ok=True)
        soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(32_000), 16_000)
    return paths


def answer(prompt):
    """Write topics, titles, scripts and questions as fakACL and LibriSQA ask for them."""
    if prompt in (librisqa.ASK_TOPICS, fakacl.PROMPTS["topics"][0]):
        return "1. Rain\n2. Cats\n3. Dogs\n4. Mice"
    if prompt.startswith("Generate 30 words"):
        return "cloud, drop, wind"
    if prompt.startswith("Ask 25"):
        return "Is it a cloud?\nIs it a drop?"
    subject = next((word for word in ("Rain", "Cats", "Dogs", "Mice") if word in prompt), "Things")
    if prompt == fakacl.PROMPTS["titles"][0].format(subject):
        return f"1. The first of {subject}\n2. The second of {subject}"
    if any(prompt == fakacl.PROMPTS["scripts"][0].format(f"The {n} of {subject}") for n in ("first", "second")):
        number = "first" if "first" in prompt else "second"
        return " ".join(f"This is sentence number {n} of the {number} talk about many {subject}." for n in
                        ("one", "two", "three", "four", "five", "six", "seven", "eight"))
    return f"Q: What is {subject}?\nA: It is good.\nQ: Why is {subject}?\nA: Because of it."


def replace_makers(put=setattr):
    """Put the makers of this file in place of those with models. put: a test's own setattr, which is undone."""
    def translated(texts, target, *_):
        return [f"{target}: {' '.join(text.split())}" for text in texts]
    for module in (acl6060, fakacl, gigast, librisqa, multispeechqa, spokensquad, translate):
        if hasattr(module, "translate"):
            put(module, "translate", translated)
    put(quality, "quality", lambda pairs, model, path: [0.9] * len(pairs))
    for module in (fakacl, spokensquad, multispeechqa):
        put(module, "speak", speak)
    put(multispeechqa, "speak_mms", speak)
    put(rewrite, "rewrite", lambda items, model, path: [f"{text} is it." for _, _, text in items])
    for module in (fakacl, librisqa):
        put(module, "generate", lambda prompts, model, path, max_new_tokens: list(map(answer, prompts)))
    put(librisqa, "similarity", lambda pairs, path, model: [0.0] * len(pairs))
    put(languages, "identify", lambda texts, *_: [text[:2] if text[2:3] == ":" else "en" for text in texts])
    put(fakacl, "split_sentences", lambda text: [f"{part.strip()}." for part in text.split(".") if part.strip()])
    put(importlib.util, "find_spec", lambda name, find=importlib.util.find_spec: (
        True if name in ("spacy", "en_core_web_sm", "py3langid") else find(name)))
    put(europarlst, "find_decoder", lambda: lambda path: soundfile.read(path, dtype="int16")[0])


def main(work, limit, *runs):
    rehearse.run_command = run_here
    transformers.AutoTokenizer.from_pretrained = functools.cache(transformers.AutoTokenizer.from_pretrained)
    replace_makers()
    for run in runs:
        with suppress(SystemExit):                       # what fails is told in what it prints
            rehearse.main([*run.split(), "--work", work, "--limit", limit])


if __name__ == "__main__":
    main(*sys.argv[1:])
