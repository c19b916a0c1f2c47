"""
Read, check and write rows. A row is a training or test example: one JSON object a line of
<work>/rows/<corpus>/<split>.jsonl.

    {"id": "europarlst/en.1/0.0-10.77/ST.de",         unique over all rows; begins with the corpus
     "utterance": "europarlst/en.1/0.0-10.77",        names its frames, unique over all corpora; absent from text rows
     "audio": "path", "start": 0.0, "end": 10.77,     start and end only where the utterance is a slice, in seconds
     "task": "ST", "language": "de", "answerable": true, "transcript": "...", "question": "...", "target": "..."}
"""
import glob
import json
import math
import os
import re
import shlex

from speech_llm.files import write_json_lines
from speech_llm.normalize import nfc


PROJECT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TASKS = ("ASR", "ST", "SQA", "MCQ")      # in text mode ST is MT and SQA is QA: a row without its speech
QUESTION_TASKS = ("SQA", "MCQ")          # tasks whose rows have a question
LANGUAGES = ("en", "de", "it", "zh")     # of the IWSLT tasks: of target and question; the speech is English
ALL_LANGUAGES = {  # of any row: the 23 of Aya Expanse and MultiSpeechQA, as the listeners' Table 2 names them
    "en": "English", "de": "German", "it": "Italian", "zh": "Chinese", "ar": "Arabic", "cs": "Czech", "el": "Greek",
    "es": "Spanish", "fa": "Farsi", "fr": "French", "he": "Hebrew", "hi": "Hindi", "id": "Indonesian",
    "ja": "Japanese", "ko": "Korean", "nl": "Dutch", "pl": "Polish", "pt": "Portuguese", "ro": "Romanian",
    "ru": "Russian", "tr": "Turkish", "uk": "Ukrainian", "vi": "Vietnamese",
}
TEXTS = ("transcript", "question", "target")
REQUIRED = ("id", "task", "language", "transcript", "target")
OPTIONAL = ("utterance", "audio", "start", "end", "answerable", "question")
HALF = re.compile("[\ud800-\udfff]")
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\ud800-\udfff]")     # also what turns a line around
LONGEST = 200                            # bytes between two "/" of a name: 255 with an ending and replace_file's prefix


def read_rows(path):
    """Return all rows of one file, checked, their texts as NFC. ValueError names file, line, row and next command."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path} is missing; run: {remake(path)}")
    with open(path, "rb") as file:       # bytes, so that broken UTF-8 is the defect of one line
        rows = [parse_row(line, path, number) for number, line in enumerate(file, 1)]
    if not rows:
        raise ValueError(f"{path} has no rows; run: {remake(path)}")
    check(rows, path)
    return rows


def parse_row(line, path, number):
    """Return the row of a line of a file, with `answerable`, its texts as NFC. ValueError if the line is not JSON."""
    try:
        row = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} line {number}: not JSON ({error}); run: {remake(path)}") from None
    return {"answerable": True, **composed(row)} if isinstance(row, dict) else row


def write_rows(path, rows):
    """Check rows as read_rows would, then write them all or nothing; their texts become NFC."""
    rows = list(rows)
    check(rows, path)
    write_json_lines(path, map(composed, rows))


def composed(row):
    """Return a row with its texts in Unicode's composed form (NFC): the same letters are then the same tokens."""
    return {key: nfc(value) if key in TEXTS and isinstance(value, str) else value for key, value in row.items()}


def rows_file(work, corpus, split):
    """
    Return the path of a split's rows. SystemExit if the recipe of the corpus did not finish.
    Rows that no recipe makes, a user's own, need no config.json.
    """
    folder = os.path.join(work, "rows", corpus)
    path = os.path.join(folder, f"{split}.jsonl")
    if not os.path.isdir(folder):
        raise SystemExit(f"{folder} is missing; run: {remake(path)}")
    begun = os.path.exists(os.path.join(folder, "started.json"))
    if (begun or recipe_of(corpus)) and not os.path.exists(os.path.join(folder, "config.json")):
        raise SystemExit(f"{folder} is not finished: its recipe was ended early or failed; run: {remake(path)}")
    return path


def corpus_and_split(test_set):
    """Return (corpus, split) of the name of a test set, <corpus>.<split>. SystemExit for a name without a split."""
    if "." not in test_set:
        raise SystemExit(f"--test_sets {test_set}: write <corpus>.<split>, such as tiny.test")
    return test_set.rsplit(".", 1)


def lacks_split(work, test_set):
    """Return in words that a finished corpus has no such split, with those that it has; "" if the corpus has it."""
    corpus, split = corpus_and_split(test_set)
    folder = os.path.join(work, "rows", corpus)
    splits = sorted(name.removesuffix(".jsonl") for name in glob.glob("*.jsonl", root_dir=folder))
    if split in splits or not os.path.exists(os.path.join(folder, "config.json")):
        return ""
    return f"the finished corpus in {folder} has no split {split}; its splits: {', '.join(splits) or 'none'}"


def corpus_of(row):
    """Return the corpus that a row belongs to: the first component of its id."""
    return row["id"].split("/")[0]


def source_language(row):
    """Return the language of a translation row's speech: that of the corpus covost2-<language>_en, else English."""
    pair = re.fullmatch(r"covost2-(\w+)_en", corpus_of(row))
    return pair[1] if pair else "en"


def check(rows, path):
    """Raise ValueError for the first defect: in a row, an id used twice, one utterance with two recordings."""
    ids, sources = set(), {}
    for number, row in enumerate(rows, 1):
        wrong = defect(row)
        if not wrong:
            source = [row.get(key) for key in ("audio", "start", "end")]
            if row["id"] in ids:
                wrong = "duplicate id"
            elif "utterance" in row and sources.setdefault(row["utterance"], source) != source:
                wrong = f"utterance {row['utterance']!r} has another audio, start or end in an earlier row"
            ids.add(row["id"])
        if wrong:
            refuse_row(path, number, row, wrong)


def refuse_row(path, number, row, wrong):
    """Raise a ValueError that names the file, the line, the row and the command that writes the rows anew."""
    name = row.get("id") if isinstance(row, dict) else None
    raise ValueError(f"{path} line {number}, row {name!r}: {wrong}; run: {remake(path)}")


def defect(row):
    """Return what is wrong with one row, in words; "" if nothing is."""
    if not isinstance(row, dict):
        return "not a JSON object"
    for key, value in row.items():
        if key not in REQUIRED + OPTIONAL:
            return f"unknown key {key!r}"
        if key in ("start", "end"):
            if type(value) not in (int, float) or not -math.inf < value < math.inf:      # an int may be beyond a float
                return f"{key} must be a number of seconds, got {value!r}"
        elif key == "answerable":
            if type(value) is not bool:
                return f"answerable must be true or false, got {value!r}"
        elif not isinstance(value, str) or not value.strip():
            return f"{key} must be a text that is not empty, got {value!r}"
        elif HALF.search(value):
            return f"{key} holds half a character (a lone surrogate), which no file can"
    missing = [key for key in REQUIRED if key not in row]
    if missing:
        return f"no {missing[0]}"
    if row["task"] not in TASKS:
        return f"unknown task {row['task']!r}, known are {', '.join(TASKS)}"
    if row["language"] not in ALL_LANGUAGES:
        return f"unknown language {row['language']!r}, known are {', '.join(ALL_LANGUAGES)}"
    if row["task"] in QUESTION_TASKS and "question" not in row:
        return f"{row['task']} without a question"
    if ("utterance" in row) != ("audio" in row):
        return "utterance without audio" if "utterance" in row else "audio without utterance"
    if ("start" in row) != ("end" in row) or ("start" in row and "audio" not in row):
        return "start and end come together, and with audio"
    if "start" in row and not 0 <= row["start"] < row["end"]:
        return f"start {row['start']} and end {row['end']} are no slice"
    for key in ("id", "utterance"):      # both may become paths below a folder
        wrong = name_defect(row.get(key, ""))
        if wrong:
            return f"{key} {wrong}"
    return ""


def name_defect(name):
    """Return what is wrong with a name that may become a path below a folder, in words; "" if nothing is."""
    if name.startswith("/") or "\\" in name or "\0" in name or ".." in name.split("/"):
        return f"{name!r} would leave its folder as a path"
    if CONTROL.search(name) or max(len(part.encode()) for part in name.split("/")) > LONGEST:
        return f"holds a control character or a part of over {LONGEST} bytes, so it is no name of a file"
    return ""


def recipe_of(corpus):
    """Return the recipe that makes a corpus, such as "data.covost2 --into-english ar"; "" if there is none."""
    for option, pairs in (("--into-english", r"covost2-(\w+)_en"), ("--from-english", r"covost2-en_(\w+)")):
        if pair := re.fullmatch(pairs, corpus):
            return f"data.covost2 {option} {pair[1]}"
    if corpus == "iwslt26":
        return "data.mcif --corpus iwslt26"
    recipe = corpus.replace("-", "_")
    return f"data.{recipe}" if os.path.exists(os.path.join(PROJECT, "data", f"{recipe}.py")) else ""


def work_option(work):
    """Return " --work WORK" for a printed command, or "" if it is the default."""
    return "" if os.path.normpath(work) == "work" else f" --work {shlex.quote(os.path.normpath(work))}"


def run_all(preset, work):
    """Return the command that runs a whole system below `work`."""
    work = os.path.normpath(work)
    return ("" if work == "work" else f"WORK={shlex.quote(work)} ") + f"bash run_all.sh {shlex.quote(preset)}"


def remake(path):
    """
    Return the command that writes the rows at `path`, <work>/rows/<corpus>/<split>.jsonl, anew; for a user's corpus say
    in words that it is the user's command.
    """
    folder, corpus = os.path.split(os.path.dirname(path) or os.getcwd())
    work = os.path.dirname(folder) or "." if os.path.basename(folder) == "rows" else "work"
    if recipe := recipe_of(corpus):
        return f"python -m {recipe}{work_option(work)}"
    page = os.path.join(PROJECT, "config", corpus.replace("-", "_") + ".py")
    return run_all(corpus, work) if os.path.exists(page) else f"your command that writes {path}"
