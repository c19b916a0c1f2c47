"""
Work on many items that a kill does not lose: every batch of results is appended to a file when it is done.

    results = resumable("work/made/acl6060/translate.it.jsonl", settings, texts, make, batch=64)
"""
import fcntl
import json
import os

from tqdm import tqdm

from speech_llm.files import JsonObject, add_lines, differences, writing


def resumable(path, settings, items, make, batch, desc="", size=len):
    """
    Return make([item]) -> [result] of all items, in the items' order.

    Items and results are JSON values. Equal items are made once. Items of like `size` share a batch, and the batches
    are cut from all items, so that a run that goes on after a kill makes the same batches. `settings` is what the
    results depend on. SystemExit if the file was made with other settings, is damaged, or is in use by another process.
    """
    def key(item):
        return json.dumps(item, ensure_ascii=False)
    order = sorted({key(item): item for item in items}.values(), key=lambda item: (size(item), key(item)))
    batches = [order[i:i + batch] for i in range(0, len(order), batch)]
    with writing(path):
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        file = open(path, "ab", buffering=0)
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)           # the system drops the lock when the process ends
        except BlockingIOError:
            raise SystemExit(f"{path}: another process adds to it; wait for it, or end it") from None
        done = read_results(path, settings)
        batches = [b for b in batches if any(key(item) not in done for item in b)]
        bar = tqdm(total=sum(map(len, batches)), desc=desc or os.path.basename(path), unit="item",
                   disable=not batches)
        if not os.path.getsize(path):
            add_lines(file, [{"settings": settings}])
        for items_now in batches:
            results = make(items_now)
            if len(results) != len(items_now):
                raise RuntimeError(f"{len(results)} results for {len(items_now)} items")
            # a kill may have cut a batch in two: only its missing part is new
            new = [(item, result) for item, result in zip(items_now, results) if key(item) not in done]
            add_lines(file, [{"item": item, "result": result} for item, result in new])
            done |= {key(item): result for item, result in new}
            bar.update(len(items_now))
        bar.close()
    return [done[key(item)] for item in items]


def read_results(path, settings):
    """Return {item as JSON text: result} of earlier runs. A last line without its newline is cut off the file."""
    done, whole, redo = {}, 0, "remove the file and run the same command again"
    with open(path, "rb+") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                break
            entry = JsonObject(line, f"{path} line {number}", redo)
            if number > 1:
                done[json.dumps(entry["item"], ensure_ascii=False)] = entry["result"]
            elif type(entry["settings"]) is not dict:
                raise SystemExit(f"{path} line 1 is damaged; {redo}")
            elif different := differences(entry["settings"], settings):
                raise SystemExit(f"{path} was made with {different}; remove it, or set them back")
            whole += len(line)
        file.truncate(whole)
    return done
