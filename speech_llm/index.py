"""
Rows through an index: a file of 26 million rows is opened in seconds, and a row is read when it is drawn.

    rows, missing = open_rows({"covost2": "work/rows/covost2/train.jsonl"})
    rows.of_kind                    # {Kind(task, language, answerable, corpus, speech): numbers (N,) of its rows}
    rows[rows.of_kind[kind][0]]     # a row, as speech_llm/rows.py describes it
    rows.drawn([7, 5])              # a sequence of rows, each read from its file when it is accessed

Beside <split>.jsonl lie <split>.jsonl.index.npy, 18 bytes a row, memory-mapped, and, written after it, .index.json with
the kinds and with the size and time of the file that was indexed. Another size or time makes the index anew.
"""
import hashlib
import json
import os
from array import array
from collections import namedtuple
from collections.abc import Sequence
from contextlib import suppress

import numpy as np

from speech_llm.files import replace_file, write_json
from speech_llm.rows import corpus_of, defect, parse_row, refuse_row

FIELDS = np.dtype([("offset", "<u8"), ("utterance", "<u8"), ("kind", "<u2")])       # in bytes; a hash or 0; a number
KINDS = 2**16 - 1
Kind = namedtuple("Kind", "task language answerable corpus speech")
Utterances = namedtuple("Utterances", "hashes numbers read")           # read(number) -> a row of the utterance


def hash_of(name):
    """Return a 64-bit hash of a text, never 0."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little") or 1


def hashes_of(names):
    """Return the hashes of texts, (N,)."""
    return np.fromiter(map(hash_of, names), np.uint64, len(names))


def kind_of(row):
    """Return the Kind of a row."""
    return Kind(row["task"], row["language"], row["answerable"], corpus_of(row), "utterance" in row)


# ---------------------------------------------------------------------------------------------------------------------
class LazyRows(Sequence):
    """Rows, each read from its file when it is accessed, so that a resumed run skips draws without reading rows."""

    def __init__(self, read, numbers):
        self.read, self.numbers = read, numbers

    def __len__(self):
        return len(self.numbers)

    def __getitem__(self, place):
        return self.read(self.numbers[place])


class Rows:
    """
    Rows that are read one by one. of_kind: {Kind: numbers (N,)}; read(number) -> a row; frames: {Kind: (N,)}, the
    number of frames of each row, for speech whose cache is open.
    """

    def __init__(self, of_kind, read, frames=None):
        self.of_kind, self.read, self.frames = of_kind, read, frames or {}

    @classmethod
    def of(cls, rows, features=None):
        """Return a list of rows as Rows. features: {utterance: frames (T, W)} of rows that all have speech."""
        numbers = {}
        for number, row in enumerate(rows):
            numbers.setdefault(kind_of(row), []).append(number)
        return cls({kind: np.array(of_kind, np.uint32) for kind, of_kind in numbers.items()}, rows.__getitem__,
                   {kind: np.array([len(features[rows[number]["utterance"]]) for number in of_kind], np.uint32)
                    for kind, of_kind in numbers.items()} if features else None)

    def drawn(self, numbers):
        """Return the rows of these numbers as a sequence."""
        return LazyRows(self.read, numbers)

    def __len__(self):
        return sum(map(len, self.of_kind.values()))

    def __getitem__(self, number):
        return self.read(number)

    def __iter__(self):
        """Yield all rows in the order of the files."""
        for number in np.sort(np.concatenate([np.empty(0, np.uint32), *self.of_kind.values()])):
            yield self.read(number)


class RowFiles:
    """read(number) over several files of rows, whose indices are joined one after the other."""

    def __init__(self, paths, indices):
        self.files, self.paths, self.indices = [None] * len(paths), paths, indices
        self.starts = np.cumsum([0, *map(len, indices)])

    def __call__(self, number):
        """Return a row. SystemExit if its line has been damaged since the file was indexed."""
        which = int(np.searchsorted(self.starts, number, "right")) - 1
        if self.files[which] is None:
            self.files[which] = open(self.paths[which], "rb")
        inside = int(number - self.starts[which])
        self.files[which].seek(int(self.indices[which]["offset"][inside]))
        return parse_row(self.files[which].readline(), self.paths[which], inside + 1)


def open_rows(paths, features=None):
    """
    Return (Rows of several files, number of speech rows without frames). paths: {corpus: file}. features: {corpus:
    Features}; with it, speech rows without frames are left out, else no frames are looked for.
    """
    indices, tables = zip(*[open_index(path) for path in paths.values()])
    files, of_kind, frames, missing = RowFiles(list(paths.values()), indices), {}, {}, 0
    for corpus, index, table, start in zip(paths, indices, tables, files.starts):
        usable = np.ones(len(index), bool)
        if features is not None:
            speech, lengths = np.flatnonzero(index["utterance"]), np.zeros(len(index), np.uint32)
            if corpus in features:
                lengths[speech] = features[corpus].lengths(index["utterance"][speech])
            usable[speech] = lengths[speech] > 0
            missing += int((~usable).sum())
        for number, kind in enumerate(table):
            rows = np.flatnonzero((index["kind"] == number) & usable)
            if len(rows):
                earlier = of_kind.get(kind, np.empty(0, np.uint32))
                of_kind[kind] = np.concatenate([earlier, (rows + start).astype(np.uint32)])
                if features is not None and kind.speech:
                    frames[kind] = np.concatenate([frames.get(kind, np.empty(0, np.uint32)), lengths[rows]])
    return Rows(of_kind, files, frames), missing


def open_utterances(path):
    """Return the Utterances of a file of rows, in the order of the file."""
    index, _ = open_index(path)
    hashes, numbers = np.unique(index["utterance"], return_index=True)
    order = np.argsort(numbers[hashes > 0])              # 0 stands for rows of text
    return Utterances(hashes[hashes > 0][order], numbers[hashes > 0][order], RowFiles([path], [index]))


# ---------------------------------------------------------------------------------------------------------------------
def open_index(path):
    """Return (index (N,) of FIELDS, memory-mapped; [Kind]) of a file of rows. A missing index is made."""
    state = os.stat(path)
    with suppress(OSError, ValueError, KeyError, TypeError):           # missing, damaged or of another file: made anew
        with open(f"{path}.index.json", encoding="utf-8") as file:
            facts = json.load(file)
        index = np.load(f"{path}.index.npy", mmap_mode="r", allow_pickle=False)
        if [facts["size"], facts["time"], len(index)] == [state.st_size, state.st_mtime_ns, facts["rows"]]:
            return index, [Kind(*kind) for kind in facts["kinds"]]
    index, kinds = make_index(path)
    with replace_file(f"{path}.index.npy") as temporary:
        np.save(temporary, index)
    write_json(f"{path}.index.json", {"size": state.st_size, "time": state.st_mtime_ns, "rows": len(index),
                                      "kinds": kinds})
    return np.load(f"{path}.index.npy", mmap_mode="r", allow_pickle=False), kinds


def make_index(path):
    """
    Read and check every row of a file; return (index, [Kind]). ValueError for a defect in a row, an id that is used
    twice, an utterance with two recordings.
    """
    kinds, columns = {}, [array(code) for code in "QQHqq"]             # offset, utterance, kind, id, recording
    offset = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            row = parse_row(line, path, number)
            if wrong := defect(row):
                refuse_row(path, number, row, wrong)
            utterance = hash_of(row["utterance"]) if "utterance" in row else 0
            recording = hash((row.get("audio"), row.get("start"), row.get("end")))       # 64 bits, of this process
            kind = kinds.setdefault(kind_of(row), len(kinds))
            if kind > KINDS:
                refuse_row(path, number, row, f"over {KINDS} kinds of rows: does every id begin with its corpus?")
            for column, value in zip(columns, (offset, utterance, kind, hash(row["id"]), recording)):
                column.append(value)
            offset += len(line)
    offsets, utterances, kind_numbers, ids, recordings = (np.frombuffer(column, column.typecode) for column in columns)
    if not len(ids):
        refuse_row(path, 0, None, "the file has no rows")
    ordered = np.sort(ids)                               # half the memory of argsort, which only an error needs
    if (ordered[1:] == ordered[:-1]).any():
        order = np.argsort(ids, kind="stable")
        later = order[1:][ids[order[1:]] == ids[order[:-1]]].min()
        refuse_row(path, int(later) + 1, read_line(path, offsets[later]), "duplicate id")
    order = np.flatnonzero(utterances)
    order = order[np.lexsort([recordings[order], utterances[order]])]
    same = utterances[order[1:]] == utterances[order[:-1]]
    other = order[1:][same & (recordings[order[1:]] != recordings[order[:-1]])]
    if len(other):
        refuse_row(path, int(other[0]) + 1, read_line(path, offsets[other[0]]),
                   "another row of its utterance has another audio, start or end")
    del columns, column, ids, ordered, recordings        # 26 bytes a row
    index = np.empty(len(offsets), FIELDS)
    index["offset"], index["utterance"], index["kind"] = offsets, utterances, kind_numbers
    return index, list(kinds)


def read_line(path, offset):
    """Return the JSON value of the line that begins at a byte of a file."""
    with open(path, "rb") as file:
        file.seek(int(offset))
        return json.loads(file.readline())
