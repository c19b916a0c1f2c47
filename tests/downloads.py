"""Downloads of the corpora in their real layouts, a few utterances each, and random checkpoints under hub names."""
import json
import os
import shutil
from pathlib import Path

import numpy as np
import soundfile
from test_mcif import FIXED, definition, reference
from test_recipes import split_files, talks_xml
from test_recipes26 import make_part, segment, write_json
from test_speech_ifeval import benchmark

from data.covost2 import INTO_ENGLISH, LOCALES
from speech_llm.rows import ALL_LANGUAGES

ANIMALS = "cat dog fox bird mouse horse cow sheep".split()
TOWNS = "Rome Paris Oslo Milan Bonn Lyon Graz Bern".split()


def sentence(n):
    """Return the n-th of 64 sentences."""
    return f"The {ANIMALS[n % 8]} sleeps in {TOWNS[n // 8 % 8]}."


def write(path, text):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def sound(path, seconds=2.0, rate=16_000, **how):
    """Write noise; the same in every file, so that nothing depends on it."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(int(seconds * rate)), rate, **how)


# --- The corpora. raw: the folder of one corpus; count: utterances of a split.

def acl6060(raw, count=4):
    for split in ("dev", "eval"):
        folder = f"{raw}/2/acl_6060/{split}"
        for language in ("en", "de", "zh"):
            texts = {f"2022.acl-long.{talk}": {str(n): f"{language}: {sentence(n)}" if language != "en" else sentence(n)
                                               for n in range(1, count + 1) if n % 2 == talk} for talk in (0, 1)}
            write(f"{folder}/text/xml/ACL.6060.{split}.en-xx.{language}.xml", talks_xml(texts))
        for n in range(1, count + 1):
            sound(f"{folder}/segmented_wavs/gold/sent_{n}.wav")


def covost2(raw, count=6, pairs=(("en", "de"), ("en", "zh-CN")), locale="en"):
    clips = {f"common_voice_{locale}_{n}.mp3": split for n, split in enumerate(["train", "dev", "test"] * count)}
    for source, target in pairs:
        write(f"{raw}/covost_v2.{source}_{target}.tsv", "path\ttranslation\tsplit\n" + "".join(
            f"{clip}\t{target[:2]}: {sentence(n)}\t{split}\n" for n, (clip, split) in enumerate(clips.items())))
    write(f"{raw}/{locale}/validated.tsv", "client_id\tpath\tsentence\n" + "".join(
        f"x\t{clip}\t{sentence(n)}\n" for n, clip in enumerate(clips)))
    for clip in clips:
        sound(f"{raw}/{locale}/clips/{clip}", rate=48_000, format="MP3")


def europarlst(raw, count=4):
    """The speeches are wav files under the names of m4a: rehearsing.py reads them."""
    for target in ("de", "it"):
        for split in ("train", "dev", "test"):
            folder = Path(raw, "v1.1", "en", target, split)
            folder.mkdir(parents=True)
            split_files(folder, target, [(f"en.{split} {n * 2.0:.1f} {n * 2.0 + 1.9:.1f}", sentence(n),
                                          f"{target}: {sentence(n)}") for n in range(count)])
    for split in ("train", "dev", "test"):
        sound(f"{raw}/v1.1/en/audios/en.{split}.m4a", 2.0 * count, format="WAV")


def spokensquad(raw, train=26, test=3):
    """A theme has one paragraph of two sentences with a question about each; the first 20 themes of train are dev."""
    def file(name, themes, spoken):
        data = []
        for theme in range(themes):
            first, second = sentence(theme), f"It eats {TOWNS[theme % 8]} bread {theme}."
            text = f"{first} {second}"
            context = text.lower() if spoken else text
            questions = [(f"{name}{theme}a", f"Where is animal {theme}?", TOWNS[theme // 8 % 8]),
                         (f"{name}{theme}b", f"What does number {theme} eat?", "bread")]
            data.append({"title": f"T{theme}", "paragraphs": [{"context": context, "qas": [
                {"id": key, "question": question, "answers": [
                    {"text": answer.lower() if spoken else answer,
                     "answer_start": context.index(answer.lower() if spoken else answer)}]}
                for key, question, answer in questions]}]})
        return {"version": "1.1", "data": data}
    for name, themes, source in (("train", train, "train"), ("test", test, "dev")):
        write_json(f"{raw}/spoken_{name}-v1.1.json", file(name, themes, True))
        write_json(f"{raw}/{source}-v1.1.json", file(name, themes, False))
    for theme in range(test):
        for n in (0, 1):
            sound(f"{raw}/Spoken-SQuAD_audio/dev_wav/{theme}_0_{n}.wav")


def mcif(raw, count=3, choices=()):
    """choices: languages with a question of the surprise task of 2026, too."""
    for language in ("en", "de", "it", "zh"):
        ask, answer = FIXED[language]
        samples, references = [], []
        for n in range(count):
            samples += [(language, str(n), f"{n}.wav", ask),
                        (language, str(100 + n), f"{n}.wav", answer + "Who speaks?")]
            references.append((str(100 + n), "QA", f"{n}.wav", "Anna.", "", "A"))
        names, recordings = (",".join(texts) for texts in zip(*((str(n), f"{n}.wav") for n in range(count))))
        text = "\n".join(sentence(n) for n in range(count))
        if language in choices:
            samples.append((language, "900", "0.wav", "Welche ist besser?\nA: Ja.\nB: Nein."))
            references.append(("900", "QE", "0.wav", "A", "", ""))
        references.append((names, "ASR" if language == "en" else "TRANS", recordings, text, text, ""))
        definition(Path(raw, f"MCIF0.2.IF.short.{language}.src.fixedprompts.xml"), samples)
        reference(Path(raw, f"MCIF.short.{language}.ref.xml.gz"), references, language=language)
    for n in range(count):
        sound(f"{raw}/MCIF_DATA/SHORT_AUDIOS/{n}.wav")


def iwslt26(raw):
    mcif(raw, choices=("de", "zh"))


def librispeech(raw, count=3):
    for part, speakers in (("test-clean", 1), ("test-other", 1), ("train-clean-360", 10)):
        make_part(f"{raw}/LibriSpeech", part, {f"{speaker}-7-000{n}": sentence(n).upper().strip(".")
                                               for speaker in range(1, speakers + 1) for n in range(count)})


def librisqa(raw, count=3, speakers=10):
    for split, part, people in (("train", "train-clean-360", speakers), ("test", "test-clean", 1)):
        parts = {"I": [], "II": []}
        for speaker in range(1, people + 1):
            for n in range(count):
                item = {"speech_path": f"{part}/{speaker}/7/{speaker}-7-000{n}.flac", "text": sentence(n).lower()}
                parts["I"].append({**item, "question": f"Where is number {n} of {speaker}?",
                                   "answer": f"In {TOWNS[n]}."})
                parts["II"].append({**item, "answer": "ABCD"[n % 4], "question_and_option":
                                    f"Question: What sleeps?\nOptions:\nA. a {n}\nB. b\nC. c\nD. d"})
        for numeral, items in parts.items():
            write_json(f"{raw}/LibriSQA-Part{numeral}/LibriSQA-Part{numeral}-{split}.json", items)


def gigast(raw, count=6):
    names = [f"POD{n}_S1" for n in range(count)]
    write_json(f"{raw}/GigaSpeech.json", {"dataset": "GigaSpeech", "audios": [
        {"aid": f"POD{n}", "path": f"audio/podcast/P0001/POD{n}.opus", "duration": 2.0, "segments": [
            segment(name, 0, 1.9, sentence(n).upper().replace(".", " <PERIOD>"))]} for n, name in enumerate(names)]})
    for language, code in (("de", "de"), ("zh", "zh.cn")):
        write_json(f"{raw}/GigaST.{code}.json", {"dataset": "GigaST", "audios": [
            {"segments": [{"sid": name, "text_raw": f"{language}: {sentence(n)}"}]} for n, name in enumerate(names)]})
    for n in range(count):
        sound(f"{raw}/audio/podcast/P0001/POD{n}.opus", 2.0, 48_000, format="OGG", subtype="OPUS")


def speech_ifeval(raw):
    os.makedirs(raw)
    benchmark(Path(raw))


def commonvoice(raw, count=3):
    for language in ALL_LANGUAGES:
        folder = f"{raw}/cv-corpus-21.0-2025-03-14/{LOCALES.get(language, language)}"
        for split in ("train", "dev", "test"):
            clips = [f"common_voice_{language}_{split}{n}.mp3" for n in range(count)]
            write(f"{folder}/{split}.tsv", "client_id\tpath\tsentence_id\tsentence\tlocale\n" + "".join(
                f"{split}\t{clip}\t0\t{language}: {split} {sentence(n)}\t{language}\n" for n, clip in enumerate(clips)))
            for clip in clips:
                sound(f"{folder}/clips/{clip}", format="MP3")


def into_english(raw, count=2):
    for language in INTO_ENGLISH:
        locale = LOCALES.get(language, language)
        covost2(raw, count, [(locale, "en")], locale)


def multispeechqa(raw, count=3100):
    write(f"{raw}/questions.jsonl", "".join(json.dumps({"question": f"What is number {n}?", "answer": f"It is {n}."})
                                            + "\n" for n in range(count)))


# --- Checkpoints.

def to_hub(cache, name, folder):
    """Put a checkpoint's folder into a hub's cache under a hub name, as a download would."""
    place = os.path.join(cache, "hub", f"models--{name.replace('/', '--')}")
    os.makedirs(os.path.join(place, "refs"))
    write(os.path.join(place, "refs", "main"), "0" * 40)
    shutil.copytree(folder, os.path.join(place, "snapshots", "0" * 40))


def random_llm(folder, family, tokenizer=""):
    """
    Write a random LLM of one narrow layer. tokenizer: a folder with the real one; without it a small one is trained,
    which has the family's markers.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, CohereConfig, LlamaConfig, Qwen3Config
    from data.tiny_models import FAMILIES, make_tokenizer
    if os.path.isdir(tokenizer):
        tokenizer = AutoTokenizer.from_pretrained(tokenizer)
    else:
        tokenizer = make_tokenizer([sentence(n) for n in range(64)], 400, family)
    names = [name for name in FAMILIES[family][2] if name in tokenizer.get_vocab()]
    config = {"llama": LlamaConfig, "qwen3": Qwen3Config, "cohere": CohereConfig}[family]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, tie_word_embeddings=True, initializer_range=0.2, max_position_embeddings=2048,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.convert_tokens_to_ids(names),
        pad_token_id=tokenizer.pad_token_id, **({} if family == "cohere" else {"head_dim": 8})))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def random_bert(folder, hidden=16):
    """Write a random BERT of two narrow layers."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer
    words = "[PAD] [UNK] [CLS] [SEP] [MASK] the where is in . ?".split() + [word.lower() for word in ANIMALS + TOWNS]
    write(os.path.join(folder, "vocab.txt"), "\n".join(words))
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(words), hidden_size=hidden, num_hidden_layers=2, num_attention_heads=2,
                         intermediate_size=hidden, initializer_range=0.5)).save_pretrained(folder)
    BertTokenizer(os.path.join(folder, "vocab.txt")).save_pretrained(folder)
    return str(folder)
