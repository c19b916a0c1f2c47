"""TODO"""
import errno
import glob
import json
import os
from collections import ChainMap
from dataclasses import asdict

import numpy as np

from speech_llm.constants import provenance, require
from speech_llm.files import read_json, replace_file, write_json
from speech_llm.rows import read_rows, remake, rows_file


def features_folder(work, encoder, mean, corpus, split):
    """
    Return where the frames of one split lie.
    Speech-IFEval asks its plain questions on the recordings of the closed ones: both splits share one cache.
    """
    name = os.path.basename(encoder.rstrip("/"))
    return os.path.join(work, "features", f"{name}-mean{mean}", corpus, "closed" if split == "plain" else split)


class Features(dict):
    """{utterance: float16 (frames, W)}, read-only views of the files; `config` says what made them."""


def open_features(folder, expect=None):
    """
    A finished cache, as Features; nothing is read before it is used. ValueError if a shard is damaged.
    expect: what a stage counts on, such as {"encoder": name, "mean": 3}; a cache made otherwise is refused.
    """
    corpus, split = os.path.normpath(folder).split(os.sep)[-2:]
    redo = f"python extract_features.py --preset PRESET --corpora {corpus} --splits {split}"
    features = Features()
    remove = f"remove {folder} and run: {redo}"
    features.config = read_json(require(os.path.join(folder, "config.json"), redo), remove)
    for index in read_indices(folder, expect or {}):
        if not index["lengths"]:                         # all of its utterances were dropped
            continue
        path, total = os.path.join(folder, index["data"]), sum(index["lengths"].values())
        try:
            frames = np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)
            if frames.shape != (total, features.config["width"]) or frames.dtype != np.float16:
                raise ValueError(f"{frames.dtype} of shape {frames.shape}, but its index says {total} frames")
            if index.get("begin", begin_of(frames)) != begin_of(frames):
                raise ValueError("it is another shard")
        except Exception as error:                       # np.load refuses a file shorter than its header says
            if getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
                raise OSError(error.errno, f"{path} cannot be opened: {error.strerror}. A cache keeps every shard "
                              "open: allow more files (ulimit -n 65536) and run the same command again") from None
            raise ValueError(f"{path} is damaged: {error}; {remove}") from None
        ends = np.cumsum(list(index["lengths"].values())).tolist()
        for utterance, first, end in zip(index["lengths"], [0, *ends], ends):
            features[utterance] = frames[first:end]
    if len(features) != features.config["utterances"]:
        raise ValueError(f"{folder} holds {len(features)} utterances, its config.json says "
                         f"{features.config['utterances']}: a shard is gone, or there twice; {remove}")
    return features


def read_indices(folder, expect):
    """The indices of the committed shards, in order; ValueError if one was not made as expected."""
    indices = []
    for path in sorted(glob.glob(os.path.join(glob.escape(folder), "frames-*.json"))):
        remove = f"remove {folder} and run extract_features.py"
        index = read_json(path, remove)
        made, lengths = index["made"], index["lengths"]
        if index["data"] != os.path.basename(path)[:-len("json")] + "npy" or type(made) is not dict or (
                type(lengths) is not dict or any(type(n) is not int or n < 1 for n in lengths.values())):
            raise ValueError(f"{path} is damaged, or the index of another shard; {remove}")
        for key, value in expect.items():
            if made.get(key) != value:
                raise ValueError(f"{folder} was made with {key} {made.get(key)!r}, expected is "
                                 f"{value!r}; set it back, or remove the folder and run extract_features.py")
        indices.append(index)
    return indices


def write_shard(folder, name, frames, facts):
    """The data, then the index: what has an index is committed."""
    lengths = {utterance: len(value) for utterance, value in frames.items()}
    if frames:                           # none where all were dropped
        facts = {**facts, "begin": begin_of(next(iter(frames.values())))}
        with replace_file(os.path.join(folder, f"{name}.npy")) as path:
            np.save(path, np.concatenate(list(frames.values())))
    write_json(os.path.join(folder, f"{name}.json"), {"data": f"{name}.npy", "lengths": lengths, **facts})


def begin_of(frames):
    """By which a shard is known: 8 numbers of its first frame."""
    return frames[0, :8].tobytes().hex()


def committed(folder, made):
    """What the shards hold -> ({utterance: frames}, {utterance: entry of dropped.jsonl}, hours)."""
    lengths, dropped, seconds = {}, {}, 0.0
    for index in read_indices(folder, made):
        lengths |= index["lengths"]
        dropped |= {entry["utterance"]: entry for entry in index["dropped"]}
        seconds += index["seconds"]
    return lengths, {name: entry for name, entry in dropped.items() if name not in lengths}, seconds / 3600


def finish_cache(c, made, width, folder, rows):
    """dropped.jsonl, then config.json, once every utterance is in a shard or dropped; else False."""
    lengths, dropped, hours = committed(folder, made)
    if rows.keys() - lengths.keys() - dropped.keys():
        return False
    if not lengths:
        raise ValueError(f"{folder}: all {len(dropped)} utterances were dropped, the first for this reason: "
                         f"{next(iter(dropped.values()))['reason']}")
    with replace_file(os.path.join(folder, "dropped.jsonl")) as name, open(name, "wb") as file:
        file.writelines((json.dumps(entry, ensure_ascii=False) + "\n").encode() for entry in dropped.values())
    write_json(os.path.join(folder, "config.json"), {
        **made, "width": width, "utterances": len(lengths), "frames": sum(lengths.values()), "hours": hours,
        "dropped": len(dropped), "config": asdict(c), **provenance()})
    return True


def load_rows(c, split, made=None):
    """
    Return (rows, {utterance: frames (T, W)}) of one split over all corpora that have it, and print the rows per corpus.
    `made` holds the encoder and the mean of the frames; speech rows without frames are left out and counted. Without
    `made` no frames are opened. SystemExit for a corpus that is not finished, and if two corpora share an utterance.
    """
    rows, caches, missing, counts = [], {}, 0, {}
    for corpus in c.corpora.split(","):
        path = rows_file(c.work, corpus, split)
        if not os.path.exists(path):
            continue                                                   # an evaluation corpus has no train.jsonl
        corpus_rows = read_rows(path)
        if made and any("utterance" in row for row in corpus_rows):
            folder = features_folder(c.work, made["encoder"], made["mean"], corpus, split)
            features = open_features(folder, made)
            for other, names in caches.items():
                if shared := sorted(features.keys() & names.keys()):
                    raise SystemExit(f"the corpora {other} and {corpus} share {len(shared)} utterances, such as "
                                     f"{shared[0]!r}; one would get the frames of the other. Let the utterances in "
                                     f"{path} begin with {corpus}/, remove {folder} and extract it again")
            caches[corpus] = features
            with_frames = [row for row in corpus_rows if "utterance" not in row or row["utterance"] in features]
            missing, corpus_rows = missing + len(corpus_rows) - len(with_frames), with_frames
        counts[corpus] = len(corpus_rows)
        rows += corpus_rows
    if not rows or made and not caches:
        wanted = "speech in the " if rows else ""
        raise SystemExit(f"no {wanted}{split} rows of {c.corpora}; run: "
                         f"{remake(rows_file(c.work, c.corpora.split(',')[0], split))}")
    print(f"{split}: {len(rows)} rows (" + ", ".join(f"{corpus} {count}" for corpus, count in counts.items()) + ")"
          + (f", {missing} without frames left out" if missing else ""))
    return rows, ChainMap(*caches.values())
