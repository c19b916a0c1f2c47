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
import errno
import fcntl
import glob
import json
import math
import os
import re
import shutil
import socket
from contextlib import contextmanager, suppress
from pathlib import Path

TASKS = ("ASR", "ST", "SQA", "MCQ")      # in text mode ST is MT and SQA is QA: a row without its speech
LANGUAGES = ("en", "de", "it", "zh")     # of the IWSLT tasks: of target and question; the speech is English
ALL_LANGUAGES = (*LANGUAGES, "ar", "cs", "el", "es", "fa", "fr", "he", "hi", "id", "ja", "ko", "nl", "pl", "pt", "ro",
                 "ru", "tr", "uk", "vi")          # of any row: those of Aya Expanse, MultiSpeechQA's too
REQUIRED = ("id", "task", "language", "transcript", "target")
OPTIONAL = ("utterance", "audio", "start", "end", "answerable", "question")

# a disk's or a system's no, not a mistake in the block
UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO,
              errno.EMFILE, errno.ENFILE}
LOCKS = {}           # of the recipes under way: {rows folder: its lock}
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


class Facts(dict):
    """A JSON object out of a file: text that is none, and a key that it lacks, stop with `where` and what to do."""

    def __init__(self, text, where, redo):
        self.where, self.redo = where, redo
        try:
            value = json.loads(text)
            if type(value) is not dict:
                raise ValueError("no JSON object")
        except (ValueError, RecursionError) as error:
            raise SystemExit(f"{where} is damaged ({error}); {redo}") from None
        super().__init__(value)

    def __missing__(self, key):
        raise SystemExit(f"{self.where} has no {key!r}; {self.redo}")


def read_json(path, redo):
    """A file that holds one JSON object -> Facts. redo: what to do if it is damaged."""
    with open(path, "rb") as file:
        return Facts(file.read(), path, redo)


def read_json_lines(path, redo):
    """A file with a JSON object a line -> list of Facts; a last line without its end, as a kill leaves it, is none."""
    with open(path, "rb") as file:
        return [Facts(line, f"{path} line {number}", redo) for number, line in enumerate(file, 1)
                if line.endswith(b"\n")]


def corpus_of(row):
    """The corpus a row belongs to: the first component of its id."""
    return row["id"].split("/")[0]


@contextmanager
def writing(path):
    """What keeps the block from writing `path` is told with its name; a library's own words do not say `disk full`."""
    try:
        yield
    except Exception as error:
        folder = os.path.dirname(os.path.abspath(path))
        full = os.path.isdir(folder) and shutil.disk_usage(folder).free < 2**20
        if not full and getattr(error, "errno", None) not in UNWRITABLE:
            raise
        raise OSError(errno.ENOSPC if full else error.errno, f"{path} cannot be written: "
                      f"{'the disk is full' if full else error}; what was there is as it was, and the same command "
                      "goes on from there") from error


@contextmanager
def replace_file(path):
    """
    A temporary name beside `path`: moved onto it when the block ends well, removed when it raises. It is on the disk
    before it gets its name, so that not even a power cut leaves half a file under it. OSError as writing has it.
    """
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{os.getpid()}.{name}")   # same ending: np.save and savefig look at it
    try:
        with writing(path):
            os.makedirs(folder or ".", exist_ok=True)
            yield temporary
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        with suppress(OSError):
            os.remove(temporary)


def lock(folder):
    """
    A file object: until it is closed, or its process ends in any way, a second run is refused in `folder`. Processes
    of one torchrun are one run. What a killed run left half-written goes.
    """
    path, world = os.path.join(folder, "lock"), int(os.environ.get("WORLD_SIZE", 1))
    run = ("torchrun at " + ":".join(os.environ.get(f"MASTER_{name}", "") for name in ("ADDR", "PORT")) if world > 1
           else f"process {os.getpid()} on {socket.gethostname()}")
    with writing(path):
        os.makedirs(folder, exist_ok=True)
        file = open(path, "a+")
    try:
        with suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)           # nobody is here
            file.truncate(0)
            file.write(run)
            file.flush()
            for name in glob.glob(".*", root_dir=folder):
                if re.fullmatch(r"\.\d+\..+", name):                  # replace_file's
                    os.remove(os.path.join(folder, name))
        fcntl.flock(file, fcntl.LOCK_SH)     # others may look in, and come in where they belong to this run
    except OSError as error:
        print(f"{folder} cannot be locked ({error}): see to it that no second run works in it")
        return file
    file.seek(0)
    other = file.read()
    if other != run:
        file.close()
        raise SystemExit(f"{folder}: {other} works in it; wait for it, end it, or choose another folder")
    return file


def differences(old, new):
    """What two sets of settings disagree on, in words; an empty string if on nothing that `new` names."""
    return ", ".join(f"{key} {old.get(key)!r} (now {value!r})" for key, value in new.items() if old.get(key) != value)


def finished(work, corpus, settings):
    """Whether a recipe is done with these settings; begun or done with others, it stops rather than mix the two."""
    folder = os.path.join(work, "rows", corpus)
    for name in ("config.json", "started.json"):
        path = os.path.join(folder, name)
        if os.path.exists(path):
            old = read_json(path, f"remove it and run: {remake(path)}")
            if old != settings:
                raise SystemExit(f"{folder} was made with {differences(old, settings)}; choose another --work, or "
                                 "remove it, its models and its features")
            if name == "config.json":
                Path(folder, "started.json").unlink(missing_ok=True)       # a kill may have come before this
                print(f"{folder} is finished already")
                return True
    LOCKS[folder] = lock(folder)
    with replace_file(path) as name, open(name, "w") as file:
        json.dump(settings, file, indent=1)
    return False


def finish(work, corpus, settings):
    """The last file of a recipe: its settings. A rows folder with config.json is complete."""
    folder = os.path.join(work, "rows", corpus)
    with replace_file(os.path.join(folder, "config.json")) as name, open(name, "w") as file:
        json.dump(settings, file, indent=1)
    Path(folder, "started.json").unlink(missing_ok=True)
    if folder in LOCKS:
        LOCKS.pop(folder).close()


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
            return f"python data/covost2.py {option} {pair[1]}"
    script = f"{corpus.replace('-', '_')}.py"
    there = os.path.exists(os.path.join(os.path.dirname(os.path.abspath(__file__)), script))
    return f"python data/{script}" if there else f"bash run_all.sh {corpus}"                         # tiny26
