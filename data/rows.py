"""
The row: what every recipe in data/ writes and every stage reads, one JSON object a line, in

    work/rows/<corpus>/<split>.jsonl

{"id": "tiny/test/7/ST.de", "utterance": "tiny/test/7", "audio": "work/audio/tiny/7.wav", "task": "ST",
 "language": "de", "transcript": "Anna has three cats.", "target": "Anna hat drei Katzen."}

utterance   key of the frames, and audio the file they come from; both absent from a text-only row
start, end  seconds, only where the utterance is a slice of the file
question    SQA and MCQ only
answerable  true where absent; read_rows fills it in
"""
import json
import math
import os
from contextlib import contextmanager, suppress

TASKS = ("ASR", "ST", "SQA", "MCQ")      # in text mode ST is MT and SQA is QA: a row without its speech
LANGUAGES = ("en", "de", "it", "zh")     # of the IWSLT tasks: of target and question; the speech is English
ALL_LANGUAGES = (*LANGUAGES, "ar", "cs", "el", "es", "fa", "fr", "he", "hi", "id", "ja", "ko", "nl", "pl", "pt", "ro",
                 "ru", "tr", "uk", "vi")          # of any row: those of Aya Expanse, MultiSpeechQA's too
REQUIRED = ("id", "task", "language", "transcript", "target")
OPTIONAL = ("utterance", "audio", "start", "end", "answerable", "question")


def read_rows(path):
    """All rows of one file, checked -> list of dict; ValueError names file, line, row and next command."""
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path} is missing; run: {remake(path)}")
    rows = []
    with open(path, "rb") as file:       # bytes: broken UTF-8 is then the defect of one line
        for number, line in enumerate(file, 1):
            try:
                rows.append(json.loads(line.decode("utf-8")))
            except ValueError as error:
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


@contextmanager
def replace_file(path):
    """A temporary name beside `path`: moved onto it when the block ends well, removed when it raises."""
    folder, name = os.path.split(path)
    os.makedirs(folder or ".", exist_ok=True)
    temporary = os.path.join(folder, f".{os.getpid()}.{name}")   # same ending: np.save and savefig look at it
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


def differences(old, new):
    """What two sets of settings disagree on, in words; an empty string if on nothing that `new` names."""
    return ", ".join(f"{key} {old.get(key)!r} (now {value!r})" for key, value in new.items() if old.get(key) != value)


def finished(work, corpus, settings):
    """Whether a recipe is done with these settings; begun or done with others, it stops rather than mix the two."""
    folder = os.path.join(work, "rows", corpus)
    for name in ("config.json", "started.json"):
        path = os.path.join(folder, name)
        if os.path.exists(path):
            with open(path, encoding="utf-8") as file:
                old = json.load(file)
            if old != settings:
                raise SystemExit(f"{folder} was made with {differences(old, settings)}; choose another --work, or "
                                 "remove it, its models and its features")
            if name == "config.json":
                print(f"{folder} is finished already")
            return name == "config.json"
    with replace_file(path) as name, open(name, "w") as file:
        json.dump(settings, file, indent=1)
    return False


def finish(work, corpus, settings):
    """The last file of a recipe: its settings. A rows folder with config.json is complete."""
    folder = os.path.join(work, "rows", corpus)
    with replace_file(os.path.join(folder, "config.json")) as name, open(name, "w") as file:
        json.dump(settings, file, indent=1)
    with suppress(FileNotFoundError):
        os.remove(os.path.join(folder, "started.json"))


# --- What makes a row wrong.

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
            if type(value) not in (int, float) or not math.isfinite(value):
                return f"{key} must be a number of seconds, got {value!r}"
        elif key == "answerable":
            if type(value) is not bool:
                return f"answerable must be true or false, got {value!r}"
        elif not isinstance(value, str) or not value.strip():
            return f"{key} must be a text that is not empty, got {value!r}"
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
        name = row.get(key, "")
        if name.startswith("/") or "\\" in name or "\0" in name or ".." in name.split("/"):
            return f"{key} {name!r} would leave its folder as a path"
    return ""


def remake(path):
    """The command that writes the rows at `path` anew."""
    return f"python data/{os.path.basename(os.path.dirname(os.path.abspath(path)))}.py"
