"""
Files that are never half-written: replacing a file in one step, locking a folder, JSON and JSON lines.

    write_text("work/x/results.md", text)
    with replace_file("work/x/weights.npy") as temporary:
        np.save(temporary, weights)
    config = read_json("work/x/config.json", "train it again")      # SystemExit with this advice if it is damaged
    rows = read_json_lines("work/x/log.jsonl", "train it again")
"""
import errno
import fcntl
import glob
import json
import os
import re
import shutil
import socket
from contextlib import contextmanager, suppress

# errors of the disk or the system, not of the code that writes
UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO,
              errno.EMFILE, errno.ENFILE}


class JsonObject(dict):
    """
    A JSON object that was read from a file.
    SystemExit with the file's name and the advice `redo` if the text is not a JSON object, or for a missing key.
    """

    def __init__(self, text, where, redo):
        self.where, self.redo = where, redo
        try:
            value = json.loads(text)
            if type(value) is not dict:
                raise ValueError("not a JSON object")
        except (ValueError, RecursionError) as error:
            raise SystemExit(f"{where} is damaged ({error}); {redo}") from None
        super().__init__(value)

    def __missing__(self, key):
        raise SystemExit(f"{self.where} has no {key!r}; {self.redo}")

    def text(self, key):
        """Return the text under `key`. SystemExit, as for a missing key, if the value is not a text."""
        if not isinstance(self[key], str):
            raise SystemExit(f"{self.where}: {key!r} is not a text; {self.redo}")
        return self[key]


def read_json(path, redo):
    """Return the JsonObject in a file. `redo` says in the error message what to do about a damaged file."""
    with open(path, "rb") as file:
        return JsonObject(file.read(), path, redo)


def read_json_lines(path, redo, complete=False):
    """
    Return the list of JsonObjects in a file with one object a line.
    A last line without its newline is left out, because a killed process had not finished it. In a `complete` file,
    which nobody is adding to, it counts.
    """
    with open(path, "rb") as file:
        return [JsonObject(line, f"{path} line {number}", redo) for number, line in enumerate(file, 1)
                if complete or line.endswith(b"\n")]


def write_text(path, text):
    """Write a text as a file, all or nothing."""
    with replace_file(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)


def write_json(path, value):
    """Write one JSON value as a file, all or nothing."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1))


def write_json_lines(path, values):
    """Write a file with one JSON value a line, all or nothing."""
    with replace_file(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(value, ensure_ascii=False) + "\n" for value in values)


def add_lines(file, values):
    """
    Append JSON values, one a line, and wait until they are on the disk. OSError as `writing` describes it.
    `file` is open for bytes without a buffer: a buffer would be written a second time when the file is closed.
    """
    text = "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values).encode()
    with writing(file.name):
        while text:                                      # a full disk takes only a part
            text = text[file.write(text):]
        os.fsync(file.fileno())


def text_lines(file, path):
    """Yield the lines of a file opened for bytes, as text. SystemExit names a line that is not UTF-8."""
    for number, line in enumerate(file, 1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise SystemExit(f"{path} line {number} is not UTF-8 ({error}); download it again") from None


@contextmanager
def writing(path):
    """
    Raise an OSError that names `path` and the cause if the disk or the system stops the block from writing.
    Libraries raise errors of their own that do not say that the disk is full.
    """
    try:
        yield
    except Exception as error:
        folder = os.path.dirname(os.path.abspath(path))
        full = os.path.isdir(folder) and shutil.disk_usage(folder).free < 2**20
        if not full and getattr(error, "errno", None) not in UNWRITABLE:
            raise
        raise OSError(errno.ENOSPC if full else error.errno, f"{path} cannot be written: "
                      f"{'the disk is full' if full else error}; what was there is unchanged, and the same command "
                      "goes on from there") from error


@contextmanager
def replace_file(path):
    """
    Yield a temporary name beside `path`; move the file onto `path` when the block ends, remove it if the block raises.
    The file is on the disk before it is moved, so a power cut cannot leave half a file under `path`.
    """
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{os.getpid()}.{name}")   # np.save and savefig need the same ending
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
    Return an open file that locks `folder` until it is closed or the process ends; SystemExit if another run has it.
    All processes of one torchrun are one run. Temporary files that a killed run left in the folder are removed.
    """
    path, world = os.path.join(folder, "lock"), int(os.environ.get("WORLD_SIZE", 1))
    run = ("torchrun at " + ":".join(os.environ.get(f"MASTER_{name}", "") for name in ("ADDR", "PORT")) if world > 1
           else f"process {os.getpid()} on {socket.gethostname()}")
    with writing(path):
        os.makedirs(folder, exist_ok=True)
        file = open(path, "a+")
    try:
        with suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)           # we got the lock: no other run is active
            file.truncate(0)
            file.write(run)
            file.flush()
            for name in glob.glob(".*", root_dir=folder):
                if re.fullmatch(r"\.\d+\..+", name):                   # a name that replace_file gives
                    os.remove(os.path.join(folder, name))
        fcntl.flock(file, fcntl.LOCK_SH)     # shared from now on, so that the other processes of this run get it, too
    except OSError as error:
        print(f"{folder} cannot be locked ({error}): make sure that no second run works in it")
        return file
    file.seek(0)
    holder = file.read()
    if holder != run:
        file.close()
        raise SystemExit(f"{folder}: {holder} works in it; wait for it, end it, or choose another folder")
    return file


def differences(old, new):
    """Return in words where the dict `old` disagrees with `new`, for the keys of `new`; "" if nowhere."""
    return ", ".join(f"{key} {old.get(key)!r} (now {value!r})" for key, value in new.items() if old.get(key) != value)
