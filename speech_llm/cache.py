"""
The frame cache: float16 frames of a split in shards, each committed by an index that is written after its data.

    write_shard(folder, "frames-00000", {utterance: frames}, {"made": origin, "dropped": [], "seconds": 9.5})
    finish_cache(c, origin, folder, hashes)          # once every utterance is in a shard or dropped
    features = open_features(folder, {"encoder": "openai/whisper-large-v3", "mean": 1})
    frames = features["tiny/test/1"]                 # float16 (T, W), a view of a memory-mapped file

`made` in frames-NNNNN.json is the origin of the frames: the encoder and all constants that they depend on. A cache of
another origin is refused.
"""
import errno
import glob
import itertools
import os
from collections import ChainMap, Counter
from dataclasses import asdict, dataclass

import numpy as np

from speech_llm.constants import command, provenance, require
from speech_llm.files import read_json, replace_file, write_json, write_json_lines
from speech_llm.index import Rows, hash_of, hashes_of, open_index, open_rows
from speech_llm.rows import remake, rows_file


PLACE = np.dtype([("shard", "<u2"), ("first", "<u4"), ("length", "<u4")])                 # of an utterance


def features_folder(work, encoder, mean, corpus, split):
    """
    Return where the frames of one split lie.
    Speech-IFEval asks its plain questions on the recordings of the closed ones: both splits share one cache.
    """
    name = os.path.basename(encoder.rstrip("/"))
    return os.path.join(work, "features", f"{name}-mean{mean}", corpus, "closed" if split == "plain" else split)


class Features:
    """
    {utterance: float16 (frames, W)}: read-only views of memory-mapped files. An utterance takes 18 bytes of memory:
    the hash of its name, its shard, its first frame and its number of frames. `config` is the cache's config.json.
    """

    def __init__(self, config, shards, hashes, places):
        order = np.argsort(hashes)
        self.config, self.shards, self.hashes, self.places = config, shards, hashes[order], places[order]

    def __len__(self):
        return len(self.hashes)

    def lengths(self, hashes):
        """Return (N,) uint32: the number of frames of each utterance, by their hashes (N,); 0 for one without."""
        numbers = np.minimum(np.searchsorted(self.hashes, hashes), len(self.hashes) - 1)
        return np.where(self.hashes[numbers] == hashes, self.places["length"][numbers], np.uint32(0))

    def __contains__(self, utterance):
        return bool(self.lengths(np.array([hash_of(utterance)], np.uint64))[0])

    def __getitem__(self, utterance):
        number = np.searchsorted(self.hashes, np.uint64(hash_of(utterance)))
        if number == len(self.hashes) or self.hashes[number] != hash_of(utterance):
            raise KeyError(utterance)
        shard, first, length = self.places[number].tolist()
        return self.shards[shard][first:first + length]


def open_features(folder, expect=None, again="python extract_features.py"):
    """
    Return a finished cache as Features; no frame is read before it is used. ValueError if a shard is damaged.
    expect: what a stage counts on, such as {"encoder": name, "mean": 3}; a cache made otherwise is refused. again: the
    command that makes the caches of the system.
    """
    corpus, split = os.path.normpath(folder).split(os.sep)[-2:]
    redo = f"{again} --corpora {corpus} --splits {split}"
    remove = f"remove {folder} and run: {redo}"
    config = read_json(require(os.path.join(folder, "config.json"), redo), remove)
    shards, hashes, places = [], [np.empty(0, np.uint64)], [np.empty(0, PLACE)]
    for index in read_indices(folder, expect or {}):
        if not index["lengths"]:                         # all of its utterances were dropped
            continue
        lengths = np.fromiter(index["lengths"].values(), np.uint32, len(index["lengths"]))
        place = np.empty(len(lengths), PLACE)
        place["shard"], place["first"], place["length"] = len(shards), np.cumsum(lengths) - lengths, lengths
        shards.append(open_shard(os.path.join(folder, index["data"]), int(lengths.sum()), config["width"],
                                 index.get("begin"), remove))
        hashes.append(hashes_of(index["lengths"]))
        places.append(place)
    features = Features(config, shards, np.concatenate(hashes), np.concatenate(places))
    if len(features) != config["utterances"] or (features.hashes[1:] == features.hashes[:-1]).any():
        raise ValueError(f"{folder} holds {len(features)} utterances, its config.json says {config['utterances']}: a "
                         f"shard is gone, or there twice; {remove}")
    return features


def open_shard(path, total, width, begin, remove):
    """Return the frames (total, width) of a shard, memory-mapped. ValueError if it is damaged or another shard."""
    try:
        frames = np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)
        if frames.shape != (total, width) or frames.dtype != np.float16:
            raise ValueError(f"{frames.dtype} of shape {frames.shape}, but its index says {total} frames")
        if begin not in (None, begin_of(frames)):
            raise ValueError("it is another shard")
    except Exception as error:                           # np.load refuses a file shorter than its header says
        if getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise OSError(error.errno, f"{path} cannot be opened: {error.strerror}. A cache keeps every shard "
                          "open: allow more files (ulimit -n 65536) and run the same command again") from None
        raise ValueError(f"{path} is damaged: {error}; {remove}") from None
    return frames


def read_indices(folder, expect):
    """Yield the indices of the committed shards, in order; ValueError if one is damaged or of another origin."""
    for path in sorted(glob.glob(os.path.join(glob.escape(folder), "frames-*.json"))):
        remove = f"remove {folder} and run extract_features.py"
        index = read_json(path, remove)
        origin, lengths = index["made"], index["lengths"]
        if index["data"] != os.path.basename(path)[:-len("json")] + "npy" or type(origin) is not dict or (
                type(lengths) is not dict or any(type(n) is not int or n < 1 for n in lengths.values())):
            raise ValueError(f"{path} is damaged, or the index of another shard; {remove}")
        for key, value in expect.items():
            if origin.get(key) != value:
                raise ValueError(f"{folder} was made with {key} {origin.get(key)!r}, expected is "
                                 f"{value!r}; set it back, or remove the folder and run extract_features.py")
        yield index


def write_shard(folder, name, frames, entries):
    """Write the frames of a shard, then its index with `entries`: a shard with an index is committed."""
    lengths = {utterance: len(value) for utterance, value in frames.items()}
    if frames:                           # none where all were dropped
        entries = {**entries, "begin": begin_of(next(iter(frames.values())))}
        with replace_file(os.path.join(folder, f"{name}.npy")) as path:
            np.save(path, np.concatenate(list(frames.values())))
    write_json(os.path.join(folder, f"{name}.json"), {"data": f"{name}.npy", "lengths": lengths, **entries})


def begin_of(frames):
    """Return 8 numbers of a shard's first frame, as hexadecimal digits: they tell it from other shards."""
    return frames[0, :8].tobytes().hex()


@dataclass(frozen=True)
class Committed:
    """What the shards of a folder hold: sorted hashes of utterances, their frames and seconds, what is dropped."""
    hashes: np.ndarray                   # (N,)
    frames: int
    seconds: float
    silent: int                          # utterances
    dropped: dict                        # {utterance: its entry in dropped.jsonl}

    def lacks(self, hashes):
        """Return whether any of `hashes` (M,) is neither in a shard nor dropped."""
        return not np.isin(hashes, np.concatenate([self.hashes, hashes_of(self.dropped)])).all()


def committed(folder, origin):
    """Return what the shards in a folder hold; ValueError if they are damaged or of another origin."""
    hashes, frames, seconds, silent, dropped = [np.empty(0, np.uint64)], 0, 0.0, 0, {}
    for index in read_indices(folder, origin):
        hashes.append(hashes_of(index["lengths"]))
        frames, seconds = frames + sum(index["lengths"].values()), seconds + index["seconds"]
        silent += index.get("silent", 0)
        dropped |= {entry["utterance"]: entry for entry in index["dropped"]}
    hashes = np.sort(np.concatenate(hashes))
    later = np.isin(hashes_of(dropped), hashes)          # could be used after all
    dropped = {name: entry for (name, entry), used in zip(dropped.items(), later) if not used}
    return Committed(hashes, frames, seconds, silent, dropped)


def finish_cache(c, origin, folder, hashes):
    """
    Write dropped.jsonl, then config.json, and return what the shards hold; return None if any of the utterances with
    these `hashes` is neither in a shard nor dropped. ValueError if all of them are dropped.
    """
    state = committed(folder, origin)
    if state.lacks(hashes):
        return None
    if not len(state.hashes):
        raise ValueError(f"{folder}: all {len(state.dropped)} utterances were dropped, the first for this reason: "
                         f"{next(iter(state.dropped.values()))['reason']}")
    data = next(index["data"] for index in read_indices(folder, origin) if index["lengths"])
    width = np.load(os.path.join(folder, data), mmap_mode="r", allow_pickle=False).shape[1]
    write_json_lines(os.path.join(folder, "dropped.jsonl"), state.dropped.values())
    write_json(os.path.join(folder, "config.json"), {
        **origin, "width": width, "utterances": len(state.hashes), "frames": state.frames,
        "hours": state.seconds / 3600, "silent": state.silent, "dropped": len(state.dropped), "config": asdict(c),
        **provenance()})
    return state


def load_rows(c, split, origin=None):
    """
    Return (Rows, {utterance: frames (T, W)}) of one split over all corpora that have it, and print the rows per corpus.
    `origin` holds the encoder and the mean of the frames; speech rows without frames are left out and counted. Without
    it no frames are opened. SystemExit for a corpus that is not finished, and if two corpora share an utterance.
    """
    paths = {corpus: rows_file(c.work, corpus, split) for corpus in c.corpora.split(",")}
    paths = {corpus: path for corpus, path in paths.items() if os.path.exists(path)}       # a test corpus has no train
    caches = {}
    for corpus, path in paths.items() if origin else ():
        if any(kind.speech for kind in open_index(path)[1]):
            folder = features_folder(c.work, origin["encoder"], origin["mean"], corpus, split)
            caches[corpus] = open_features(folder, origin, command("extract_features", c))
    refuse_shared(caches)
    rows, missing = open_rows(paths, caches if origin else None) if paths else (Rows({}, None), 0)
    if not len(rows) or origin and not caches:
        raise SystemExit(f"no {'speech in the ' if len(rows) else ''}{split} rows of {c.corpora}; run: "
                         f"{remake(rows_file(c.work, c.corpora.split(',')[0], split))}")
    counts = Counter()
    for kind, numbers in rows.of_kind.items():
        counts[kind.corpus] += len(numbers)
    print(f"{split}: {len(rows)} rows (" + ", ".join(f"{corpus} {count}" for corpus, count in counts.items()) + ")"
          + (f", {missing} without frames left out" if missing else ""))
    return rows, ChainMap(*caches.values())


def refuse_shared(caches):
    """Exit if an utterance has frames in two corpora: one corpus would be trained on the frames of the other."""
    for (first, features), (second, others) in itertools.combinations(caches.items(), 2):
        shared = np.intersect1d(features.hashes, others.hashes)
        if len(shared):
            raise SystemExit(f"the corpora {first} and {second} share the names of {len(shared)} utterances; one would "
                             f"get the frames of the other. Let the utterances of {second} begin with {second}/, "
                             "remove its features and extract them again")
