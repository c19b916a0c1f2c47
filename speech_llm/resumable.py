"""
Work on many items that a kill does not lose: the results of a batch are appended to a file as soon as they are there.

    results = resumable("work/made/acl6060/translate.it.jsonl", settings, texts, translate_batch, batch=64)

Under torchrun every process makes the same call. Process r of n takes every n-th batch, beginning with batch r, and
appends to a file of its own: process 0 to `path`, process 3 to `path`.3. All processes return all results. The next run
may have another number of processes, because every run reads all these files.
"""
import fcntl
import glob
import json
import os
import sys
import time

from tqdm import tqdm

from speech_llm.files import add_lines, differences, read_json_lines, writing


WAIT = 2.0                                   # seconds between two looks at the files of the other processes


def rank_and_world():
    """Return (the number of this process, how many there are), as torchrun sets them; (0, 1) without torchrun."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def is_first():
    """Return whether this process writes what all processes of a torchrun know; true without torchrun."""
    return rank_and_world()[0] == 0


def silence_others():
    """Switch off the standard output of every process but the first, whose output says the same."""
    if not is_first():
        sys.stdout = None                    # print() then does nothing


def resumable(path, settings, items, make, batch, desc="", size=len):
    """
    Return make([item]) -> [result] of all items, in the items' order.

    Items and results are JSON values. Equal items are made once. Items of like `size` share a batch, and the batches
    are cut from all items, so that a run that continues after a kill makes the same batches. `settings` is what the
    results depend on. SystemExit if a file was made with other settings, is damaged, or is in use by another process.
    """
    rank, world = rank_and_world()
    order = sorted({key(item): item for item in items}.values(), key=lambda item: (size(item), key(item)))
    batches = [order[i:i + batch] for i in range(0, len(order), batch)][rank::world]
    with open_locked(f"{path}.{rank}" if rank else path) as file:
        done = read_results(path, settings)
        batches = [b for b in batches if any(key(item) not in done for item in b)]
        bar = tqdm(total=sum(map(len, batches)), desc=desc or os.path.basename(path), unit="item",
                   disable=not batches or rank > 0)
        if not os.path.getsize(file.name):
            add_lines(file, [{"settings": settings}])
        for batch_items in batches:
            results = make(batch_items)
            if len(results) != len(batch_items):
                raise RuntimeError(f"{len(results)} results for {len(batch_items)} items")
            # a kill may have cut a batch in two: only its missing part is new
            new = [(item, result) for item, result in zip(batch_items, results) if key(item) not in done]
            add_lines(file, [{"item": item, "result": result} for item, result in new])
            done |= {key(item): result for item, result in new}
            bar.update(len(batch_items))
        bar.close()
    while any(key(item) not in done for item in order):
        time.sleep(WAIT)                     # torchrun ends this process, too, if one of the others fails
        done = read_results(path, settings)
    return [done[key(item)] for item in items]


def key(item):
    """Return an item as the JSON text by which its result is looked up."""
    return json.dumps(item, ensure_ascii=False)


def open_locked(path):
    """
    Return `path` opened for adding lines, without a line that a kill left unfinished at its end.
    SystemExit if another process adds to the file.
    """
    with writing(path):
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        file = open(path, "ab+", buffering=0)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)           # the system drops the lock when the process ends
    except BlockingIOError:
        file.close()
        raise SystemExit(f"{path}: another process adds to it; wait for it, or end it") from None
    file.seek(0)
    file.truncate(file.read().rfind(b"\n") + 1)
    return file


def read_results(path, settings):
    """Return {item as JSON text: result} of `path` and of the files beside it that other processes wrote."""
    redo, done = "remove the file and run the same command again", {}
    for name in [path, *sorted(glob.glob(f"{glob.escape(path)}.[0-9]*"))]:
        lines = read_json_lines(name, redo) if os.path.exists(name) else []
        for head in lines[:1]:
            if type(head["settings"]) is not dict:
                raise SystemExit(f"{name} line 1 is damaged; {redo}")
            if different := differences(head["settings"], settings):
                raise SystemExit(f"{name} was made with {different}; remove it, or set them back")
        done |= {key(line["item"]): line["result"] for line in lines[1:]}
    return done
