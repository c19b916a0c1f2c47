"""
Make the rows of LibriSQA: questions about LibriSpeech's audiobooks, open ones (Part I) and ones with four options
(Part II), made multilingual and unanswerable (2026, section 2.1 and appendix A.1).

    python -m data.librisqa                         # or --raw FOLDER, where the download is elsewhere
    torchrun --nproc_per_node=4 -m data.librisqa    # translates and asks on four GPUs
    python -m data.librisqa --english --download --hours 5        # no translation, no LLM; fetches what is not there

download into <work>/raw/librisqa, or pass --download: no account is needed
    LibriSQA-PartI-{train,test}.json, LibriSQA-PartII-{train,test}.json, in any folder there
        https://huggingface.co/datasets/ZihanZhao/LibriSQA, some 100 MB; no licence is stated there
download into <work>/raw/librispeech, or name its folder with --librispeech, or pass --download
    train-clean-360 and test-clean of LibriSpeech, 23.3 GB, as data/librispeech.py says

reads   these, and from the Hugging Face hub: SeamlessM4T (translates), CometKiwi (scores), Qwen3 (makes questions up),
        a MiniLM (compares questions with transcripts; the only one that --english needs)
writes  <work>/rows/librisqa/{train,dev,test}.jsonl, counts.md, dropped.txt, config.json last; in <work>/made/librisqa/
        the models' results, from which a killed run continues

An entry is a question of one part. train and dev, in four languages: an ASR row of each utterance; SQA rows of Part I
and MCQ rows of Part II; MT rows without speech of Part I's questions and answers; unanswerable rows from questions put
to other utterances and, in train only, from questions that the LLM made up. LibriSQA has no dev set: dev is what eight
speakers of the training set read (our choice). test, in English: the answerable rows. With --english train and dev are
English, too, without made-up questions. With --hours train has so many hours of utterances, drawn at random, and dev at
most a tenth as many.
"""
import functools
import glob
import json
import os
import random
import re
from collections import Counter

from data.fakacl import read_list
from data.librispeech import PARTS, draw_hours, fetch_parts, find_part
from data.librispeech import missing as missing_parts
from data.quality import KIWI, good_translations
from data.recipe import (begin, download, finish, finished, limited, missing_models, paper_counts, parser,
                         refuse_missing, report, speech_rows, spread, unreadable, write_splits)
from data.rewrite import generate
from data.translate import SEAMLESS
from metrics.comet import ENCODERS
from speech_llm.constants import pick_device
from speech_llm.prompts import NOT_ANSWERABLE
from speech_llm.resumable import is_first, resumable, silence_others
from speech_llm.rows import LANGUAGES


REPOSITORY = "ZihanZhao/LibriSQA"                       # a data set on the hub
SOURCE = f"download it from https://huggingface.co/datasets/{REPOSITORY}, or pass --download"
SPOKEN = ("train-clean-360", "test-clean")              # the parts of LibriSpeech that the questions are about
LLM, MINILM = "Qwen/Qwen3-4B-Instruct-2507", "sentence-transformers/multi-qa-MiniLM-L6-cos-v1"
DEV_SPEAKERS = 8                                        # of the 921 in train-clean-360 (our choice)
UNLIKE = 0.1                                            # cosine; 2026, section 2.1, footnote 3
TOPICS, WORDS, QUESTIONS = 413, 30, 62_040              # in all, of a topic, in all; 2026, appendix A.1
ASK_TOPICS = "List about 1000 conversation topics, without numbering or adding any comment of explanation."
ASK_WORDS = "Generate 30 words related to {}. Produce a comma-separated list of words, without any explanation."
ASK_QUESTIONS = ("Ask 25 different questions about {}. Do not repeat the question, include no comments, and output "
                 "only the questions, one per line.")
PAPER = paper_counts({                                  # 2026, Table 5, which counts Part II among SQA/QA
    ("train", "ASR {}"): {"en": 104_014},
    ("train", "MT {}"): {"de": 36_707, "it": 75_378, "zh": 22_211},
    ("train", "SQA/QA {}"): {"en": 208_038, "de": 59_274, "it": 127_295, "zh": 29_385},
    ("train", "SQA/QA {} invalid"): {"en": 169_068, "de": 79_578, "it": 123_632, "zh": 58_092},
})
SPEECH = re.compile(rf"({'|'.join(PARTS)})/(\d+)/(\d+)/(\d+-\d+-\d+)\.\w+$")      # part, speaker, chapter, utterance
FILES = [f"LibriSQA-Part{numeral}-{split}.json" for numeral in ("I", "II") for split in ("train", "test")]
OPTION = r"([ABCD]) ?[.:)、．。：）]\s*"                 # "A. ", and what translations make of it


def missing(work, raw="", librispeech="", english=False, models=(SEAMLESS, KIWI, ENCODERS["unified"], LLM, MINILM)):
    """Return [(what is missing, how to mend it)]; empty if the recipe can run. `models` end in the MiniLM."""
    raw = download(work, raw, "librisqa")
    absent = [(os.path.join(raw, name), SOURCE) for name in FILES if not find_file(raw, name)]
    absent += missing_parts(work, librispeech, SPOKEN)
    return absent + missing_models(*models[-1:] if english else models)


def find_file(raw, name):
    """Return the path of a file anywhere below `raw`; None if it is not there."""
    return next(iter(sorted(glob.glob(os.path.join(glob.escape(raw), "**", name), recursive=True))), None)


def fetch_files(raw):
    """Download the questions that are not there. SystemExit if the hub cannot be reached."""
    from huggingface_hub import hf_hub_download
    absent = [name for name in FILES if not find_file(raw, name)]
    if absent:
        print(f"downloads {', '.join(absent)} into {raw}: at most 0.1 GB")
    for name in absent:
        try:
            hf_hub_download(REPOSITORY, f"{name.rpartition('-')[0]}/{name}", repo_type="dataset", local_dir=raw)
        except OSError as error:
            raise SystemExit(f"{name} cannot be downloaded ({error}); run the same command later") from None


# --- Entries: a question about an utterance.

def read_options(text):
    """
    Return (question, {letter: option}) of "What? A. one B. two C. three D. four", on one or several lines; None unless
    A, B, C and D stand there once each, in this order, and none is empty. "Question:" and "Options:" are left out.
    """
    for before in (r"^\s*", r"(?<![A-Za-zÀ-ÿ0-9.'])"):            # at the start of a line; or else after any word
        marks = list(re.finditer(before + OPTION, text, re.MULTILINE))
        if [mark[1] for mark in marks] == ["A", "B", "C", "D"]:
            ends = [*(mark.start() for mark in marks[1:]), len(text)]
            options = {mark[1]: " ".join(text[mark.end():end].split()) for mark, end in zip(marks, ends)}
            question = " ".join(text[:marks[0].start()].split())
            question = re.sub(r"^question ?: ?| ?options ?:$", "", question, flags=re.IGNORECASE)
            return (question, options) if question and all(options.values()) else None
    return None


def join_options(question, options, between=" "):
    """Return a question with its options: "\n" between them for the translator, a space for the prompt (Table 7)."""
    return between.join([question, *(f"{letter}. {option}" for letter, option in options.items())])


def read_item(item, task):
    """Return one item of LibriSQA as an entry without its audio, each text on one line. ValueError if malformed."""
    texts = {key: " ".join(value.split()) for key, value in item.items() if isinstance(value, str)}
    place = SPEECH.search(texts.get("speech_path", ""))
    if not place:
        raise ValueError(f"speech_path {item.get('speech_path')!r}")
    part, speaker, chapter, key = place.groups()
    entry = {"task": task, "part": part, "speaker": speaker, "key": key, "transcript": texts.get("text", ""),
             "path": os.path.join(speaker, chapter, f"{key}.flac")}
    if task == "SQA":
        if not texts.get("question") or not texts.get("answer"):
            raise ValueError("no question or no answer")
        return {**entry, "question": texts["question"], "answer": texts["answer"]}
    asked = read_options(str(item.get("question_and_option")))
    letter = re.match(r"(?:Option )?([A-D])(?:[.:)]|$)", texts.get("answer", "")) or \
        re.search(r"\b[Oo]ption ([A-D])\b", texts.get("answer_and_analysis", ""))
    if not asked or not letter:
        raise ValueError("no options A to D" if not asked else f"answer {item.get('answer')!r}")
    return {**entry, "question": join_options(*asked, between="\n"), "answer": letter[1]}


def read_entries(raw, split, dropped):
    """
    Return the entries of both parts of a split, "train" or "test"; malformed items go to `dropped`.
    SystemExit if a file is no list of JSON objects.
    """
    entries = []
    for numeral, task in (("I", "SQA"), ("II", "MCQ")):
        name = f"LibriSQA-Part{numeral}-{split}.json"
        path = find_file(raw, name)
        try:
            with open(path, encoding="utf-8-sig") as file:
                items = json.load(file)
            if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
                raise ValueError("no list of objects")
        except (ValueError, RecursionError) as error:       # JSON that ends too early, bytes that are not UTF-8
            raise SystemExit(f"{path} is damaged ({error}); {SOURCE}") from None
        for number, item in enumerate(items, 1):
            try:
                entries.append(read_item(item, task))
            except ValueError as error:
                dropped.append((split, f"{name} item {number}", f"malformed: {error}"))
    return entries


def hold_out(entries, seed):
    """Return the training entries as (train, dev); dev is what DEV_SPEAKERS speakers, drawn at random, read."""
    speakers = sorted({entry["speaker"] for entry in entries})
    drawn = set(random.Random(f"{seed} dev").sample(speakers, min(DEV_SPEAKERS, len(speakers) // 2)))
    return ([entry for entry in entries if entry["speaker"] not in drawn],
            [entry for entry in entries if entry["speaker"] in drawn])


def add_recordings(split, entries, speech, hours, seed, dropped):
    """
    Return the entries whose recording can be read, with utterance, audio and label: the task, and a number from an
    utterance's second question on. All entries of an utterance get its first transcript.
    speech: LibriSpeech's folder; hours: so many are drawn, 0 for all.
    """
    paths = {e["key"]: os.path.join(find_part(speech, e["part"]) or os.path.join(speech, e["part"]), e["path"])
             for e in entries}
    transcripts = {e["key"]: e["transcript"] for e in reversed(entries) if e["transcript"]}
    broken, numbers, usable = unreadable(sorted(paths.values())), Counter(), []
    for e in entries:
        key, task = e["key"], e["task"]
        numbers[key, task] += 1
        label = task if numbers[key, task] == 1 else f"{task}-{numbers[key, task]}"
        utterance = f"librisqa/{split}/{key}"
        why = broken.get(paths[key]) or ("" if key in transcripts else "no transcript")
        if why:
            dropped.append((split, f"{utterance}/{label}", why))
        else:
            usable.append({**e, "utterance": utterance, "label": label, "audio": paths[key],
                           "transcript": transcripts[key]})
    drawn = draw_hours([e["audio"] for e in usable], hours, f"{seed} {split}")
    return [e for e in usable if e["audio"] in drawn]


# --- Questions that have no answer.

def similarity(pairs, path, model=MINILM, batch=64):
    """Return the cosine of the sentence embeddings of each [text, question]; equal pairs are compared once."""
    import torch
    from transformers import AutoModel, AutoTokenizer
    device = pick_device()
    loaded = functools.cache(lambda: (AutoModel.from_pretrained(model).to(device).eval(),
                                      AutoTokenizer.from_pretrained(model)))

    @torch.no_grad()
    def compare_batch(batch_pairs):
        net, tokenizer = loaded()
        inputs = tokenizer([text for pair in batch_pairs for text in pair], padding=True, truncation=True,
                           max_length=512, return_tensors="pt").to(device)
        states, mask = net(**inputs).last_hidden_state, inputs["attention_mask"][..., None]      # (2B, L, D)
        mean = (states * mask).sum(1) / mask.sum(1)             # as this model's card says: the mean over all tokens
        return torch.cosine_similarity(mean[0::2], mean[1::2]).tolist()
    return resumable(path, {"model": model}, pairs, compare_batch, batch, "similarity",
                     size=lambda pair: sum(map(len, pair)))


def mismatched(split, entries, path, args, dropped):
    """
    Put questions to other utterances, at random within each part, and return [(entry whose speech it is, label, task,
    question)] of the questions that are unlike the transcript. The options of Part II are compared, too (our choice).
    """
    asked, pairs, unlike = {(e["key"], e["question"]) for e in entries}, [], []
    for task in ("SQA", "MCQ"):
        speech = [entry for entry in entries if entry["task"] == task]
        questions = list(speech)
        random.Random(f"{args.seed} {split} {task}").shuffle(questions)
        pairs += zip(speech, questions)
    cosines = similarity([[one["transcript"], other["question"]] for one, other in pairs], path, args.minilm)
    for (one, other), cosine in zip(pairs, cosines):
        label = f"{one['label']}-invalid"
        answered = one["key"] == other["key"] or (one["key"], other["question"]) in asked
        why = ("a question about this utterance" if answered else
               f"question like the transcript: {cosine:.3f}" if cosine > UNLIKE else "")
        if why:
            dropped.append((split, f"{one['utterance']}/{label}.en", why))
        else:
            unlike.append((one, label, one["task"], other["question"]))
    sizes = Counter(task for _, _, task, _ in unlike)
    print(f"{split}: unlike their transcript are {sizes['SQA']} questions of Part I (paper, train: 48346) and "
          f"{sizes['MCQ']} of Part II (58682)")
    return unlike


def distinct(items):
    """Return the items that are not empty, each once, upper and lower case apart."""
    return list({item.casefold(): item for item in items if item}.values())


def made_up_questions(folder, args):
    """
    Return the LLM's questions on everyday topics (2026, appendix A.1). 413 topics, 30 words and 25 questions make up to
    309,750, of which the paper has 62,040 without saying how: so many are drawn at random (our choice).
    """
    def ask(prompts, name, tokens):
        return generate(prompts, args.llm, os.path.join(folder, f"{name}.jsonl"), max_new_tokens=tokens)
    [answer] = ask([ASK_TOPICS], "topics", 8192)
    topics = distinct(read_list(answer if "\n" in answer else answer.replace(",", "\n")))[:args.limit or TOPICS]
    answers = ask([ASK_WORDS.format(topic) for topic in topics], "words", 300)
    words = distinct([word.strip(" .") for text in answers for word in re.split(r"\s*[,\n]\s*", text)[:WORDS]])
    answers = ask([ASK_QUESTIONS.format(word) for word in words], "questions", 1024)
    questions = distinct([line for text in answers for line in read_list(text) if line.endswith("?")])
    print(f"made up: {len(topics)} topics (paper: {TOPICS}), {len(words)} words, {len(questions)} questions "
          f"({QUESTIONS})")
    return random.Random(f"{args.seed} questions").sample(questions, min(QUESTIONS, len(questions)))


# --- Rows.

def english_rows(entries, invalid):
    """
    Return the rows of the questions in English. The question of an MCQ row is on several lines, so that its options can
    be read again in another language; its target is the letter, and `answerable` is false, so that only the question is
    translated.
    """
    asked = [(e, e["label"], e["task"], e["question"], e["answer"]) for e in entries]
    asked += [(*one, NOT_ANSWERABLE["en"]) for one in invalid]
    return [{"id": f"{e['utterance']}/{label}.en", "utterance": e["utterance"], "audio": e["audio"], "task": task,
             "language": "en", "answerable": task == "SQA" and target != NOT_ANSWERABLE["en"],
             "transcript": e["transcript"], "question": question, "target": target}
            for e, label, task, question, target in asked]


def finish_mcq(row, letter):
    """Return an MCQ row, its question on one line, its target the letter and the option; None if A to D are lost."""
    asked = read_options(row["question"])
    if asked and letter in asked[1]:
        row = {**row, "answerable": True, "target": f"{letter} {asked[1][letter]}"}
    return asked and {**row, "question": join_options(*asked)}


def rows_in(language, split, english, folder, args, dropped):
    """
    Return the rows of english_rows in a language, as they are written, and for the other languages MT rows without
    speech: Part I's questions and answers where both are translated well, each text once (our choice).
    """
    good, source, rows, mt = english, {row["id"].removesuffix("en"): row for row in english}, [], {}
    if language != "en":
        good, bad = good_translations(english, language, folder, args.seamless, args.kiwi)
        dropped += [(split, row_id, why) for row_id, why in bad]
    for row in good:
        before = source[row["id"].removesuffix(language)]
        done = finish_mcq(row, before["target"]) if row["task"] == "MCQ" else row
        if not done:
            dropped.append((split, row["id"], "options A to D lost in translation"))
            continue
        rows.append(done)
        if language != "en" and row["task"] == "SQA" and row["answerable"]:
            for kind in ("question", "target"):
                mt.setdefault(before[kind], {
                    "id": f"{row['id'].rpartition('.')[0].replace('/SQA', '/MT')}-{kind}.{language}",
                    "task": "ST", "language": language, "transcript": before[kind], "target": row[kind]})
    return rows + list(mt.values())


def make_rows(entries, folder, args, dropped):
    """Return {split: rows} of {split: entries}. folder: where the models' results are."""
    path = os.path.join(folder, "similarity.jsonl")
    invalid = {split: mismatched(split, entries[split], path, args, dropped) for split in ("dev", "train")}
    if not args.english:
        rng = random.Random(f"{args.seed} speech")
        invalid["train"] += [(rng.choice(entries["train"]), f"SQA-made-up-{number}", "SQA", question)
                             for number, question in enumerate(made_up_questions(folder, args), 1)]
    splits = {"test": rows_in("en", "test", english_rows(entries["test"], []), folder, args, dropped)}
    for split in invalid:
        english, first = english_rows(entries[split], invalid[split]), {e["utterance"]: e for e in entries[split]}
        splits[split] = [row for name, e in first.items()
                         for row in speech_rows(name, {"audio": e["audio"]}, e["transcript"], {})]
        for language in LANGUAGES[:1] if args.english else LANGUAGES:
            splits[split] += rows_in(language, split, english, folder, args, dropped)
    return splits


def parse_arguments(argv):
    """Return the arguments of the command line."""
    command = parser(__doc__, "librisqa", models=[
        ("seamless", SEAMLESS, "translates"), ("kiwi", KIWI, "scores translations"),
        ("llm", LLM, "makes questions up"), ("minilm", MINILM, "compares questions with transcripts")])
    command.add_argument("--librispeech", default="", help="folder of LibriSpeech; <work>/raw/librispeech if not given")
    command.add_argument("--seed", type=int, default=0, help="of the dev speakers, hours and unanswerable questions")
    command.add_argument("--hours", type=float, default=0, help="so much of the training split, at random; 0: all")
    command.add_argument("--english", action="store_true", help="English rows only: no translation, no LLM")
    command.add_argument("--download", action="store_true", help="fetch what is not there and needs no account")
    return command.parse_args(argv)


def main(argv=None):
    args = parse_arguments(argv)
    silence_others()
    work, raw = args.work, download(args.work, args.raw, "librisqa")
    speech = download(work, args.librispeech, "librispeech")
    names = "seamless", "kiwi", "llm", "minilm", "seed", "hours", "english"
    settings = {name: getattr(args, name) for name in names} | limited(args)
    if finished(work, "librisqa", settings):
        return
    if args.download and is_first() and not args.check:
        fetch_files(raw)
        fetch_parts(speech, SPOKEN)
    models = args.seamless, args.kiwi, ENCODERS["unified"], args.llm, args.minilm
    absent = missing(work, raw, speech, args.english, models)
    refuse_missing("librisqa", [(what, how) for what, how in absent if not args.download or "--download" not in how],
                   args.check)
    begin(work, "librisqa", settings)

    dropped = []
    entries = {split: read_entries(raw, split, dropped) for split in ("train", "test")}
    entries["train"], entries["dev"] = hold_out(entries["train"], args.seed)
    for split, part in entries.items():
        keys = {*spread(dict.fromkeys(entry["key"] for entry in part), args.limit)}
        entries[split] = [entry for entry in part if entry["key"] in keys]
    hours = {"train": args.hours, "dev": args.hours / 10, "test": 0}
    entries = {split: add_recordings(split, part, speech, hours[split], args.seed, dropped)
               for split, part in entries.items()}
    paper = {name: count for name, count in PAPER.items()
             if not args.hours and not args.limit and (not args.english or name[1].startswith(("ASR en", "SQA/QA en")))}
    if not entries["train"]:
        report(work, "librisqa", {}, paper, dropped)            # lists why, and exits

    splits = make_rows(entries, os.path.join(work, "made", "librisqa"), args, dropped)
    if not is_first():                      # this process only helped with the models
        return
    write_splits(work, "librisqa", splits)
    counted = {split: ({**row, "task": row["task"].replace("MCQ", "SQA")} for row in rows)     # as Table 5 counts
               for split, rows in splits.items()}
    report(work, "librisqa", counted, paper, dropped, args.incomplete)
    finish(work, "librisqa", settings, preset="small" if args.english else "iwslt26")


if __name__ == "__main__":
    main()
