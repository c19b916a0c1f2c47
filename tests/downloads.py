"""Downloads of the corpora in their real layouts, a few utterances each, and random checkpoints under hub names."""
import gzip
import json
import os
import shutil
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import soundfile
from test_bad_input import write
from test_speech_ifeval import benchmark

from data.covost2 import INTO_ENGLISH, LOCALES
from speech_llm.rows import ALL_LANGUAGES, read_rows

ANIMALS = "cat dog fox bird mouse horse cow sheep".split()
TOWNS = "Rome Paris Oslo Milan Bonn Lyon Graz Bern".split()
FIXED = {  # MCIF's instructions, by the organisers
    "en": ("Transcribe the English content.", "Answer the following question concisely given the English content: "),
    "de": ("Übersetze den englischem Inhalt nach Deutsch.",
           "Beantworte die folgende Frage kurz und bündig basierend auf dem englischen Inhalt: "),
    "it": ("Traduci il contenuto inglese in italiano.",
           "Rispondi in modo conciso alla seguente domanda dato il contenuto inglese: "),
    "zh": ("将英文内容翻译成中文。", "根据所给的英文内容，简要回答以下问题： "),
}


def sentence(n):
    """Return the n-th of 64 sentences."""
    return f"The {ANIMALS[n % 8]} sleeps in {TOWNS[n // 8 % 8]}."


def sound(path, seconds=2.0, rate=16_000, **how):
    """Write noise, the same in every file, so that nothing depends on it; return the path."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(int(seconds * rate)), rate, **how)
    return path


def read_corpus(work, corpus):
    """Return ({split: rows}, [[split, name, why it is dropped]]) of what a recipe made of a download."""
    folder = Path(work, "rows", corpus)
    return ({path.stem: read_rows(path) for path in sorted(folder.glob("*.jsonl"), key=lambda path: path.stem)},
            [line.split("\t") for line in (folder / "dropped.txt").read_text(encoding="utf-8").splitlines()])


def m4a(path, seconds):
    """Write stereo AAC at 44.1 kHz, 440 Hz at a level of 0.5 and 0.25."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=44100, layout="stereo")
        wave = 0.5 * np.sin(2 * np.pi * 440 * np.arange(int(seconds * 44100)) / 44100).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(np.stack([wave, wave / 2]), format="fltp", layout="stereo")
        frame.sample_rate = 44100
        for piece in (frame, None):
            container.mux(stream.encode(piece))


# --- The files of a corpus.

def talks_xml(talks):
    """Return the texts of ACL 60/60, {talk: {segment id: text}}, as a file as released, raw & and all."""
    lines = ['<?xml version="1.0" encoding="UTF-8"?>', "<mteval>", '<srcset setid="s" srclang="English">']
    for talk, texts in talks.items():
        lines += [f'<doc docid="{talk}" genre="presentations">', f"<talkid>{talk}</talkid>",
                  "<abstract>V&L models</abstract>", *(f'<seg id="{n}">{text}</seg>' for n, text in texts.items()),
                  "</doc>"]
    return "\n".join([*lines, "</srcset>", "</mteval>", ""])


def covost_tsv(raw, pair, lines):
    """Write covost_v2.<pair>.tsv of [(clip, translation, split)]; return its path."""
    return write(f"{raw}/covost_v2.{pair}.tsv", "path\ttranslation\tsplit\n" + "".join(
        "\t".join(line) + "\n" for line in lines))


def common_voice(folder, clip, **splits):
    """Write <split>.tsv of each {split: "name speaker sentence" lines}; all clips are links to one recording."""
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    for split, lines in splits.items():
        fields = [line.split(" ", 2) for line in lines]
        write(folder / f"{split}.tsv", "client_id\tpath\tsentence_id\tsentence\tlocale\n" + "".join(
            f"{speaker}\t{name}.mp3\t0\t{sentence}\t{folder.name}\n" for name, speaker, sentence in fields))
        for name, _, _ in fields:
            if not (folder / "clips" / f"{name}.mp3").exists():
                os.link(clip, folder / "clips" / f"{name}.mp3")


def squad(themes, spoken):
    """Return SQuAD's file of [[(paragraph, ASR, [(id, question, ASR's answers: text or (text, place), human's)])]]."""
    def answers(context, texts):
        pairs = [text if isinstance(text, tuple) else (text, context.index(text)) for text in texts]
        return [{"text": text, "answer_start": place} for text, place in pairs]
    return {"version": "1.1", "data": [{"title": f"Theme_{n}", "paragraphs": [
        {"context": asr if spoken else text, "qas": [
            {"id": key, "question": question, "answers": answers(asr, ours) if spoken else answers(text, theirs)}
            for key, question, ours, theirs in questions if spoken or theirs]}
        for text, asr, questions in theme]} for n, theme in enumerate(themes)]}


def squad_files(raw, train, test):
    """Write Spoken-SQuAD's two files and the two of SQuAD."""
    for name, themes, spoken in (("spoken_train", train, True), ("spoken_test", test, True), ("train", train, False),
                                 ("dev", test, False)):
        write(f"{raw}/{name}-v1.1.json", squad(themes, spoken))


def definition(path, samples, track="short"):
    """Write [(language, id, recording, instruction)] as MCIF's organisers do."""
    root, tasks = ElementTree.Element("testset", name="MCIF0.2"), {}
    for language, number, recording, instruction in samples:
        if language not in tasks:
            tasks[language] = ElementTree.SubElement(root, "task", track=track, text_lang=language)
        sample = ElementTree.SubElement(tasks[language], "sample", id=number)
        ElementTree.SubElement(sample, "audio_path").text = recording
        ElementTree.SubElement(sample, "instruction").text = instruction
    return write(path, ElementTree.tostring(root, encoding="utf-8", xml_declaration=True))


def reference(path, samples, track="short", language="de"):
    """Write [(ids, task, recordings, reference, transcript, qa_type)] as MCIF's organisers do, gzipped."""
    root = ElementTree.Element("testset", name="MCIF0.2")
    task = ElementTree.SubElement(root, "task", track=track, text_lang=language)
    for n, (ids, kind, recordings, text, transcript, qa_type) in enumerate(samples):
        more = {"qa_type": qa_type} if qa_type else {}
        sample = ElementTree.SubElement(task, "sample", id=ids, iid=f"{kind}_{n}", task=kind, **more)
        ElementTree.SubElement(sample, "audio_path").text = recordings
        ElementTree.SubElement(sample, "reference").text = text
        if transcript:
            ElementTree.SubElement(ElementTree.SubElement(sample, "metadata"), "transcript").text = transcript
    return write(path, gzip.compress(ElementTree.tostring(root, encoding="utf-8")))


def make_part(raw, part, texts):
    """Write {"10-20-0000": TEXT} as one part of LibriSpeech, a FLAC of half a second for each."""
    for utterance, text in texts.items():
        speaker, chapter, _ = utterance.split("-")
        folder = f"{raw}/{part}/{speaker}/{chapter}"
        sound(f"{folder}/{utterance}.flac", 0.5)
        with open(f"{folder}/{speaker}-{chapter}.trans.txt", "a") as file:
            file.write(f"{utterance} {text}\n")


def recording(name, *segments, seconds=None):
    """Return a recording of GigaSpeech.json with its segments (number, start, end, TEXT, subsets ...)."""
    return {"aid": name, "path": f"audio/podcast/P0001/{name}.opus", "duration": seconds, "segments": [
        {"sid": f"{name}_S{n}", "speaker": "N/A", "begin_time": start, "end_time": end, "text_tn": text,
         "subsets": subsets or ["{XL}"]} for n, start, end, text, *subsets in segments]}


def gigast_files(raw, recordings, translated):
    """Write GigaSpeech.json and GigaST.<language>.json of each {language: [(segment, translation)]}."""
    write(f"{raw}/GigaSpeech.json", {"dataset": "GigaSpeech", "audios": recordings})
    for language, texts in translated.items():
        write(f"{raw}/GigaST.{language}.json", {"dataset": "GigaST", "audios": [
            {"segments": [{"sid": sid, "text_raw": text}]} for sid, text in texts]})


# --- Whole corpora. raw: the folder of one corpus; count: utterances of a split.

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
    clips = {f"common_voice_{locale}_{n}": split for n, split in enumerate(["train", "dev", "test"] * count)}
    for source, target in pairs:
        covost_tsv(raw, f"{source}_{target}", [(f"{clip}.mp3", f"{target[:2]}: {sentence(n)}", split)
                                               for n, (clip, split) in enumerate(clips.items())])
    common_voice(Path(raw, locale), sound(f"{raw}/clip.mp3", rate=48_000, format="MP3"),
                 validated=[f"{clip} x {sentence(n)}" for n, clip in enumerate(clips)])


def europarlst(raw, count=4, **segments):
    """The speeches are wav files under the names of m4a: rehearsing.py reads them. segments: {"it_test": [...]}."""
    for split in ("train", "dev", "test"):
        for target in ("de", "it"):
            lines = segments.get(f"{target}_{split}") or [
                (f"en.{split} {n * 2.0:.1f} {n * 2.0 + 1.9:.1f}", sentence(n), f"{target}: {sentence(n)}")
                for n in range(count)]
            for kind, texts in zip(("lst", "en", target), zip(*lines)):
                write(f"{raw}/v1.1/en/{target}/{split}/segments.{kind}", "\n".join(texts))
        sound(f"{raw}/v1.1/en/audios/en.{split}.m4a", 2.0 * count, format="WAV")


def spokensquad(raw, train=26, test=3):
    """A theme has one paragraph of two sentences with a question about each; the first 20 themes of train are dev."""
    def theme(split, n):
        text, town = f"{sentence(n)} It eats {TOWNS[n % 8]} bread {n}.", TOWNS[n // 8 % 8]
        return [(text, text.lower(), [(f"{split}{n}a", f"Where is animal {n}?", [town.lower()], [town]),
                                      (f"{split}{n}b", f"What does number {n} eat?", ["bread"], ["bread"])])]
    squad_files(raw, [theme("train", n) for n in range(train)], [theme("test", n) for n in range(test)])
    for n in range(test):
        for number in (0, 1):
            sound(f"{raw}/Spoken-SQuAD_audio/dev_wav/{n}_0_{number}.wav")


def mcif(raw, count=3, choices=()):
    """choices: languages with a question of the surprise task of 2026, too."""
    text = "\n".join(sentence(n) for n in range(count))
    names, wavs = ([form.format(n) for n in range(count)] for form in ("{}", "{}.wav"))
    for language, (ask, answer) in FIXED.items():
        samples = [(language, name, wav, ask) for name, wav in zip(names, wavs)]
        samples += [(language, f"10{name}", wav, answer + "Who speaks?") for name, wav in zip(names, wavs)]
        references = [(f"10{name}", "QA", wav, "Anna.", "", "A") for name, wav in zip(names, wavs)]
        if language in choices:
            samples.append((language, "900", "0.wav", "Welche ist besser?\nA: Ja.\nB: Nein."))
            references.append(("900", "QE", "0.wav", "A", "", ""))
        references.append((",".join(names), "ASR" if language == "en" else "TRANS", ",".join(wavs), text, text, ""))
        definition(f"{raw}/MCIF0.2.IF.short.{language}.src.fixedprompts.xml", samples)
        reference(f"{raw}/MCIF.short.{language}.ref.xml.gz", references, language=language)
    for wav in wavs:
        sound(f"{raw}/MCIF_DATA/SHORT_AUDIOS/{wav}")


def iwslt26(raw):
    mcif(raw, choices=("de", "zh"))


def librispeech(raw, count=3, speakers=10):
    for part, people in (("test-clean", 1), ("test-other", 1), ("train-clean-360", speakers)):
        make_part(f"{raw}/LibriSpeech", part, {f"{speaker}-7-000{n}": sentence(n).upper().strip(".")
                                               for speaker in range(1, people + 1) for n in range(count)})


def librisqa(raw, count=3, speakers=10):
    for split, part, people in (("train", "train-clean-360", speakers), ("test", "test-clean", 1)):
        parts = {"I": [], "II": []}
        for speaker in range(1, people + 1):
            for n in range(count):
                item = {"speech_path": f"{part}/{speaker}/7/{speaker}-7-000{n}.flac",
                        "text": f"speech {n} of {speaker}"}
                parts["I"].append({**item, "question": f"Who is {n} of {speaker}?", "answer": f"Cat {n} of {speaker}."})
                parts["II"].append({**item, "answer": "ABCD"[n % 4], "question_and_option":
                                    f"Question: What is {n} of {speaker}?\nOptions:\nA. a {n}\nB. b\nC. c\nD. d"})
        for numeral, items in parts.items():
            write(f"{raw}/LibriSQA-Part{numeral}/LibriSQA-Part{numeral}-{split}.json", items)


def gigast(raw, count=6):
    names = [f"POD{n}" for n in range(count)]
    gigast_files(raw, [recording(name, (1, 0, 1.9, sentence(n).upper().replace(".", " <PERIOD>")), seconds=2.0)
                       for n, name in enumerate(names)],
                 {code: [(f"{name}_S1", f"{code[:2]}: {sentence(n)}") for n, name in enumerate(names)]
                  for code in ("de", "zh.cn")})
    for name in names:
        sound(f"{raw}/audio/podcast/P0001/{name}.opus", 2.0, 48_000, format="OGG", subtype="OPUS")


def speech_ifeval(raw):
    os.makedirs(raw)
    benchmark(Path(raw))


def commonvoice(raw, count=3):
    clip = sound(f"{raw}/clip.mp3", format="MP3")
    for language in ALL_LANGUAGES:
        common_voice(Path(raw, "cv-corpus-21.0-2025-03-14", LOCALES.get(language, language)), clip, **{
            split: [f"common_voice_{language}_{split}{n} {split} {language}: {split} {sentence(n)}"
                    for n in range(count)] for split in ("train", "dev", "test")})


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
    """Write a random LLM of one narrow layer. tokenizer: a folder with the real one; else a small one is trained."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from data.tiny_llm import FAMILIES, make_tokenizer
    if os.path.isdir(tokenizer):
        tokenizer = AutoTokenizer.from_pretrained(tokenizer)
    else:
        tokenizer = make_tokenizer([sentence(n) for n in range(64)], 400, family)
    names = [name for name in FAMILIES[family][2] if name in tokenizer.get_vocab()]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(
        family, vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, tie_word_embeddings=True, initializer_range=0.2,
        max_position_embeddings=2048, bos_token_id=tokenizer.bos_token_id, pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.convert_tokens_to_ids(names), **({} if family == "cohere" else {"head_dim": 8})))
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
