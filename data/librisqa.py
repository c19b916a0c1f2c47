"""
LibriSQA: questions about LibriSpeech's audiobooks, open ones (Part I) and ones with four options (Part II), made
multilingual and unanswerable (2026, section 2.1 and appendix A.1).

    python -m data.librisqa                         # or --raw folder, where the download lies elsewhere

download into <work>/raw/librisqa
    LibriSQA-PartI-{train,test}.json, LibriSQA-PartII-{train,test}.json, in any folder there
        https://huggingface.co/datasets/ZihanZhao/LibriSQA, some 100 MB; no licence is stated there
download into <work>/raw/librispeech, or name its folder with --librispeech
    train-clean-360 and test-clean of LibriSpeech, as data/librispeech.py says

reads   these, and from the Hugging Face hub: SeamlessM4T (translates), CometKiwi (scores), Qwen3 (makes questions up),
        a MiniLM (compares questions with transcripts)
writes  <work>/rows/librisqa/{train,dev,test}.jsonl, counts.md, dropped.txt, config.json last; and in
        <work>/made/librisqa/ what the models made: a killed run goes on

An entry is a question of one part. train and dev, in four languages: an ASR row of each utterance; SQA rows of Part I
and MCQ rows of Part II; MT rows without speech of Part I's questions and answers; unanswerable rows from questions put
to other utterances and, in train only, from questions that the LLM made up. LibriSQA has no dev set: dev is what eight
speakers of the training set read (our choice). test, in English: the answerable rows.
"""
import functools
import glob
import json
import os
import random
import re
from collections import Counter

from data.fakacl import read_list
from data.librispeech import PARTS, URL, find_part
from data.quality import KIWI, good_rows
from data.recipe import finish, finished, need, parser, report, speech_rows, unreadable
from data.rewrite import generate
from data.translate import SEAMLESS, translate_rows
from speech_llm.prompts import NOT_ANSWERABLE
from speech_llm.resumable import resumable
from speech_llm.rows import LANGUAGES, write_rows


SOURCE = "download it from https://huggingface.co/datasets/ZihanZhao/LibriSQA"
LLM, MINILM = "Qwen/Qwen3-4B-Instruct-2507", "sentence-transformers/multi-qa-MiniLM-L6-cos-v1"
DEV_SPEAKERS = 8                                        # of the 921 in train-clean-360 (our choice)
UNLIKE = 0.1                                            # cosine; 2026, section 2.1, footnote 3
TOPICS, WORDS, QUESTIONS = 413, 30, 62_040              # in all, of a topic, in all; 2026, appendix A.1
ASK_TOPICS = "List about 1000 conversation topics, without numbering or adding any comment of explanation."
ASK_WORDS = "Generate 30 words related to {}. Produce a comma-separated list of words, without any explanation."
ASK_QUESTIONS = ("Ask 25 different questions about {}. Do not repeat the question, include no comments, and output "
                 "only the questions, one per line.")
COUNTS = {                                              # 2026, Table 5, which counts Part II among SQA/QA
    "ASR {}": {"en": 104_014},
    "MT {}": {"de": 36_707, "it": 75_378, "zh": 22_211},
    "SQA/QA {}": {"en": 208_038, "de": 59_274, "it": 127_295, "zh": 29_385},
    "SQA/QA {} invalid": {"en": 169_068, "de": 79_578, "it": 123_632, "zh": 58_092},
}
PAPER = {("train", name.format(language)): count for name, counts in COUNTS.items()
         for language, count in counts.items()}
SPEECH = re.compile(rf"({'|'.join(PARTS)})/(\d+)/(\d+)/(\d+-\d+-\d+)\.\w+$")      # part, speaker, chapter, utterance
OPTION = r"([ABCD]) ?[.:)、．。：）]\s*"                 # "A. ", and what translations make of it


# --- Entries: a question about an utterance.

def read_options(text):
    """
    "What? A. one B. two C. three D. four", on lines or on one -> (question, {letter: option}); None unless there are
    A, B, C and D, once each and in this order, and none is empty. "Question:" and "Options:" may stand before them.
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


def one_line(question, options, between=" "):
    """A question with its options; "\\n" between them for the translator, a space for the prompt (2026, Table 7)."""
    return between.join([question, *(f"{letter}. {option}" for letter, option in options.items())])


def read_item(item, task):
    """One item of LibriSQA -> an entry without its audio, all texts on one line; ValueError says what is malformed."""
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
    found = read_options(str(item.get("question_and_option")))
    letter = re.match(r"(?:Option )?([A-D])(?:[.:)]|$)", texts.get("answer", "")) or \
        re.search(r"\b[Oo]ption ([A-D])\b", texts.get("answer_and_analysis", ""))
    if not found or not letter:
        raise ValueError("no options A to D" if not found else f"answer {item.get('answer')!r}")
    return {**entry, "question": one_line(*found, between="\n"), "answer": letter[1]}


def read_entries(raw, split, dropped):
    """Both parts of a split, "train" or "test" -> its entries. A malformed item is dropped; SystemExit if a file is."""
    entries = []
    for numeral, task in (("I", "SQA"), ("II", "MCQ")):
        name = f"LibriSQA-Part{numeral}-{split}.json"
        path = next(iter(sorted(glob.glob(os.path.join(glob.escape(raw), "**", name), recursive=True))), None)
        path = path or need(os.path.join(raw, name), SOURCE)
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
    """Training entries -> (train, dev): dev is what DEV_SPEAKERS speakers, drawn at random, read."""
    speakers = sorted({entry["speaker"] for entry in entries})
    drawn = set(random.Random(f"{seed} dev").sample(speakers, min(DEV_SPEAKERS, len(speakers) // 2)))
    return ([entry for entry in entries if entry["speaker"] not in drawn],
            [entry for entry in entries if entry["speaker"] in drawn])


def give_recordings(split, entries, speech, dropped):
    """
    The entries whose recording is in `speech`, LibriSpeech's folder, with utterance, audio, and label: the task, and a
    number from an utterance's second question on. All entries of an utterance get its first transcript.
    """
    folders = {part: find_part(speech, part) or need(os.path.join(speech, part), f"unpack {URL}/{part}.tar.gz there")
               for part in sorted({e["part"] for e in entries})}
    paths = {e["key"]: os.path.join(folders[e["part"]], e["path"]) for e in entries}
    transcripts = {e["key"]: e["transcript"] for e in reversed(entries) if e["transcript"]}
    broken, seen, kept = unreadable(sorted(paths.values())), Counter(), []
    for e in entries:
        key, task = e["key"], e["task"]
        seen[key, task] += 1
        utterance, label = f"librisqa/{split}/{key}", task if seen[key, task] == 1 else f"{task}-{seen[key, task]}"
        why = broken.get(paths[key]) or ("" if key in transcripts else "no transcript")
        if why:
            dropped.append((split, f"{utterance}/{label}", why))
        else:
            kept.append({**e, "utterance": utterance, "label": label, "audio": paths[key],
                         "transcript": transcripts[key]})
    return kept


# --- Questions that have no answer.

def similarity(pairs, kept, model=MINILM, batch=64):
    """[text, question] pairs -> cosines of their sentence embeddings, as floats; equal pairs are compared once."""
    import torch
    from transformers import AutoModel, AutoTokenizer
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded = functools.cache(lambda: (AutoModel.from_pretrained(model).to(device).eval(),
                                      AutoTokenizer.from_pretrained(model)))

    @torch.no_grad()
    def make(some):
        net, tokenizer = loaded()
        inputs = tokenizer([text for pair in some for text in pair], padding=True, truncation=True, max_length=512,
                           return_tensors="pt").to(device)
        states, mask = net(**inputs).last_hidden_state, inputs["attention_mask"][..., None]      # (2B, L, D)
        mean = (states * mask).sum(1) / mask.sum(1)             # as this model's card says: the mean over all tokens
        return torch.cosine_similarity(mean[0::2], mean[1::2]).tolist()
    return resumable(kept, {"model": model}, pairs, make, batch, "similarity", size=lambda pair: sum(map(len, pair)))


def mismatched(split, entries, kept, args, dropped):
    """
    Questions put to other utterances, at random within each part -> [(entry that is heard, label, task, question)] of
    those unlike enough. Of Part II the options are compared too (our choice).
    """
    own, pairs, found = {(e["key"], e["question"]) for e in entries}, [], []
    for task in ("SQA", "MCQ"):
        heard = [entry for entry in entries if entry["task"] == task]
        asked = list(heard)
        random.Random(f"{args.seed} {split} {task}").shuffle(asked)
        pairs += zip(heard, asked)
    cosines = similarity([[one["transcript"], other["question"]] for one, other in pairs], kept, args.minilm)
    for (one, other), cosine in zip(pairs, cosines):
        label = f"{one['label']}-invalid"
        mine = one["key"] == other["key"] or (one["key"], other["question"]) in own
        why = ("the utterance's own question" if mine else
               f"question like the transcript: {cosine:.3f}" if cosine > UNLIKE else "")
        if why:
            dropped.append((split, f"{one['utterance']}/{label}.en", why))
        else:
            found.append((one, label, one["task"], other["question"]))
    sizes = Counter(task for _, _, task, _ in found)
    print(f"{split}: unlike their transcript are {sizes['SQA']} questions of Part I (paper, train: 48346) and "
          f"{sizes['MCQ']} of Part II (58682)")
    return found


def distinct(items):
    """Without what is empty or, upper and lower case apart, there twice."""
    return list({item.casefold(): item for item in items if item}.values())


def made_up_questions(made, args):
    """
    The LLM's questions on everyday topics (2026, appendix A.1). 413 topics, 30 words and 25 questions make up to
    309,750, of which the paper has 62,040 without saying how: so many are drawn at random (our choice).
    """
    def ask(prompts, name, tokens):
        return generate(prompts, model=args.llm, kept=os.path.join(made, f"{name}.jsonl"), max_new_tokens=tokens)
    [answer] = ask([ASK_TOPICS], "topics", 8192)
    topics = distinct(read_list(answer if "\n" in answer else answer.replace(",", "\n")))[:TOPICS]
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
    The questions in English. MCQ: on several lines, so that they can be read again in another language; the target is
    the letter, and `answerable` is false, so that nothing but the question is translated.
    """
    asked = [(e, e["label"], e["task"], e["question"], e["answer"]) for e in entries]
    asked += [(*one, NOT_ANSWERABLE["en"]) for one in invalid]
    return [{"id": f"{e['utterance']}/{label}.en", "utterance": e["utterance"], "audio": e["audio"], "task": task,
             "language": "en", "answerable": task == "SQA" and target != NOT_ANSWERABLE["en"],
             "transcript": e["transcript"], "question": question, "target": target}
            for e, label, task, question, target in asked]


def finish_mcq(row, letter):
    """The question of an MCQ row on one line, its target the letter and the option's text; None if A to D are lost."""
    found = read_options(row["question"])
    if found and letter in found[1]:
        row = {**row, "answerable": True, "target": f"{letter} {found[1][letter]}"}
    return found and {**row, "question": one_line(*found)}


def rows_in(language, split, english, made, args, dropped):
    """
    The rows of english_rows in a language, as they are written, and but for English MT rows without speech: Part I's
    questions and answers where both are translated well, each text once (our choice).
    """
    good, source, rows, mt = english, {row["id"].removesuffix("en"): row for row in english}, [], {}
    if language != "en":
        kept = [os.path.join(made, f"{maker}.{language}.jsonl") for maker in ("translate", "quality")]
        good, empty = translate_rows(english, language, args.seamless, kept[0])
        good, bad = good_rows(good, english, args.kiwi, kept[1])
        dropped += [(split, row_id, why) for row_id, why in empty + bad]
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


def main(argv=None):
    command = parser(__doc__, "librisqa")
    command.add_argument("--librispeech", default="", help="folder of LibriSpeech; <work>/raw/librispeech if not given")
    command.add_argument("--seamless", default=SEAMLESS, help="the model that translates")
    command.add_argument("--kiwi", default=KIWI, help="the model that scores translations")
    command.add_argument("--llm", default=LLM, help="the model that makes questions up")
    command.add_argument("--minilm", default=MINILM, help="the model that compares questions with transcripts")
    command.add_argument("--seed", type=int, default=0, help="of the dev speakers and the unanswerable questions")
    args = command.parse_args(argv)
    work, raw = args.work, args.raw or os.path.join(args.work, "raw", "librisqa")
    speech, made = args.librispeech or os.path.join(work, "raw", "librispeech"), os.path.join(work, "made", "librisqa")
    settings = {name: getattr(args, name) for name in ("seamless", "kiwi", "llm", "minilm", "seed")}
    if finished(work, "librisqa", settings):
        return

    dropped = []
    entries = {split: read_entries(raw, split, dropped) for split in ("train", "test")}
    entries["train"], entries["dev"] = hold_out(entries["train"], args.seed)
    entries = {split: give_recordings(split, part, speech, dropped) for split, part in entries.items()}

    if not entries["train"]:
        report(work, "librisqa", {}, PAPER, dropped)            # lists why, and stops

    kept = os.path.join(made, "similarity.jsonl")
    pairs = {split: mismatched(split, entries[split], kept, args, dropped) for split in ("dev", "train")}
    rng = random.Random(f"{args.seed} speech")
    pairs["train"] += [(rng.choice(entries["train"]), f"SQA-made-up-{number}", "SQA", question)
                       for number, question in enumerate(made_up_questions(made, args), 1)]

    splits = {"test": rows_in("en", "test", english_rows(entries["test"], []), made, args, dropped)}
    for split in pairs:
        english, first = english_rows(entries[split], pairs[split]), {e["utterance"]: e for e in entries[split]}
        splits[split] = [row for name, e in first.items()
                         for row in speech_rows(name, {"audio": e["audio"]}, e["transcript"], {})]
        for language in LANGUAGES:
            splits[split] += rows_in(language, split, english, made, args, dropped)
    for split, rows in splits.items():
        if rows:
            write_rows(os.path.join(work, "rows", "librisqa", f"{split}.jsonl"), rows)
    counted = {split: ({**row, "task": row["task"].replace("MCQ", "SQA")} for row in rows)     # as Table 5 counts
               for split, rows in splits.items()}
    report(work, "librisqa", counted, PAPER, dropped)
    finish(work, "librisqa", settings)
    print(f"rows in {work}/rows/librisqa\nnext: python extract_features.py --preset iwslt26")


if __name__ == "__main__":
    main()
