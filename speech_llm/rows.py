"""TODO"""
import json
import math
import os
import re

from speech_llm.files import replace_file


PROJECT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TASKS = ("ASR", "ST", "SQA", "MCQ")      # in text mode ST is MT and SQA is QA: a row without its speech
LANGUAGES = ("en", "de", "it", "zh")     # of the IWSLT tasks: of target and question; the speech is English
ALL_LANGUAGES = (*LANGUAGES, "ar", "cs", "el", "es", "fa", "fr", "he", "hi", "id", "ja", "ko", "nl", "pl", "pt", "ro",
                 "ru", "tr", "uk", "vi")          # of any row: those of Aya Expanse, MultiSpeechQA's too
REQUIRED = ("id", "task", "language", "transcript", "target")
OPTIONAL = ("utterance", "audio", "start", "end", "answerable", "question")
HALF = re.compile("[\ud800-\udfff]")
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\ud800-\udfff]")     # also what turns a line around
LONGEST = 200                            # bytes between two "/" of a name: 255 with an ending and replace_file's prefix


def read_rows(path):
    """All rows of one file, checked -> list of dict; ValueError names file, line, row and next command."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path} is missing; run: {remake(path)}")
    rows = []
    with open(path, "rb") as file:       # bytes: broken UTF-8 is then the defect of one line
        for number, line in enumerate(file, 1):
            try:
                rows.append(json.loads(line.decode("utf-8")))
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path} line {number}: not JSON ({error}); run: {remake(path)}") from None
    if not rows:
        raise ValueError(f"{path} has no rows; run: {remake(path)}")
    check(rows, path)
    return [{"answerable": True, **row} for row in rows]


def write_rows(path, rows):
    """Check rows as read_rows would, then write them all or nothing."""
    rows = list(rows)
    check(rows, path)
    with replace_file(path) as name, open(name, "w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def corpus_of(row):
    """The corpus a row belongs to: the first component of its id."""
    return row["id"].split("/")[0]


def check(rows, path):
    """ValueError for the first defect: in a row, an id used twice, one utterance with two recordings."""
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
            name = row.get("id") if isinstance(row, dict) else None
            raise ValueError(f"{path} line {number}, row {name!r}: {wrong}; run: {remake(path)}")


def defect(row):
    """What is wrong with one row, in words; an empty string if nothing is."""
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
    if row["task"] in ("SQA", "MCQ") and "question" not in row:
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
    """What is wrong with a name that may become a path below a folder, in words; an empty string if nothing is."""
    if name.startswith("/") or "\\" in name or "\0" in name or ".." in name.split("/"):
        return f"{name!r} would leave its folder as a path"
    if CONTROL.search(name) or max(len(part.encode()) for part in name.split("/")) > LONGEST:
        return f"holds a control character or a part of over {LONGEST} bytes, so it is no name of a file"
    return ""


def remake(path):
    """The command that writes the rows at `path` anew."""
    corpus = os.path.basename(os.path.dirname(os.path.abspath(path)))
    for option, pairs in (("--into-english", r"covost2-(\w+)_en"), ("--from-english", r"covost2-en_(\w+)")):
        if pair := re.fullmatch(pairs, corpus):
            return f"python -m data.covost2 {option} {pair[1]}"
    recipe = corpus.replace("-", "_")
    exists = os.path.exists(os.path.join(PROJECT, "data", f"{recipe}.py"))
    return f"python -m data.{recipe}" if exists else f"bash run_all.sh {corpus}"                     # tiny26
