"""
Predictions of one system on one test set: decoded batch by batch, kept after a kill, shared out over processes.

A system answers a test set by (jobs, decode). There is one Job(row, task, size, item) for every row that the system has
to answer: `task` is the name of the row's task, `item` is what `decode` takes, and jobs of like `size` share a batch.
decode takes a list of items and returns the new token ids of each. An item, or its ids, are None where the audio cannot
be read.

writes  <folder>/<corpus>.<split>.jsonl             {"id", "task", "prediction", "tokens", "capped", "loops"} a line, in
                                                    the rows' order; "unheard": true where the audio cannot be read
        <folder>/<corpus>.<split>.made.json         the weights, prompt, caps and scale of a run
        <folder>/<corpus>.<split>.jsonl.partial.N   of process N while it decodes; a killed run goes on from there
"""
import glob
import os
from collections import namedtuple
from contextlib import suppress
from pathlib import Path

from tqdm import tqdm

from speech_llm.draws import TEXT_TASK
from speech_llm.files import add_lines, differences, lock, read_json, read_json_lines, write_json, write_json_lines
from speech_llm.llm import decode_text
from speech_llm.resumable import rank_and_world
from speech_llm.rows import HALF, TASKS

OFFICIAL_TESTS = ("mcif.test", "iwslt26.test")  # of the shared task: an XML is submitted and the organisers score
COPIES, LONGEST, SHORTEST = 4, 32, 16       # a loop: 4 copies of at most 32 tokens, 16 or more in all (our choice)
BUILT_IN = ("llm", "cascade", "seamless", "seamless-text")               # systems without a trained stage
AGAIN = "remove it and run the same command again"

Job = namedtuple("Job", "row task size item")


def parse_system(entry):
    """
    Return (name, folder of a stage, model of the hub) of an entry of --systems; a part that is not given is "".
    "llm" is a name, "C:merged" a name and a stage, "hub:Qwen/Qwen2-Audio-7B-Instruct" a model with its own name.
    """
    name, _, rest = entry.partition(":")
    return (model_name(rest), "", rest) if name == "hub" and rest else (name, rest, "")


def model_name(model):
    """Return the last part of a model's name, without a revision: "model" of "owner/model@revision"."""
    return os.path.basename(model.partition("@")[0].rstrip("/"))


def tasks_answered(system, text, test_set):
    """
    Return the tasks of the rows that a system answers on a test set; `text`: it reads transcripts in place of speech.
    Text has no ASR, OFFICIAL_TESTS have no transcripts, and SeamlessM4T-v2 answers no questions.
    """
    if text and test_set in OFFICIAL_TESTS:
        return ()
    if system in ("seamless", "seamless-text"):
        return ("ST",) if text else ("ASR", "ST")
    return tuple(TEXT_TASK) if text else TASKS


def find_loop(ids):
    """
    Return (end of the first copy, length of the unit) of the first unit of at most LONGEST ids that stands COPIES times
    in a row, SHORTEST ids or more in all; None if nothing loops (2025, appendix B.1).
    """
    for start in range(len(ids)):
        for n in range(1, LONGEST + 1):
            copies = max(COPIES, -(-SHORTEST // n))
            end = start + copies * n
            if end <= len(ids) and ids[start:end - n] == ids[start + n:end]:
                return start + n, n
    return None


def read_partial(path):
    """Return {id: prediction} that the processes of this and of killed runs have written, without half a last line."""
    done = {}
    for part in glob.glob(glob.escape(path) + ".partial*"):
        with suppress(FileNotFoundError):                   # another process has just joined the parts
            done |= {p["id"]: p for p in read_json_lines(part, AGAIN)}
    return done


def remove_partial(path):
    """Remove the parts of finished predictions."""
    for part in glob.glob(glob.escape(path) + ".partial*"):
        Path(part).unlink(missing_ok=True)


def read_finished(path, redo):
    """
    Return {id: prediction} of a finished file. SystemExit, which says `redo`, for a line that is not a prediction and
    for an id that is there twice.
    """
    predictions = {}
    for number, line in enumerate(read_json_lines(path, redo, complete=True), 1):
        if type(line["id"]) is not str or type(line["prediction"]) is not str or HALF.search(line["prediction"]):
            raise SystemExit(f"{path} line {number} is not a prediction; {redo}")
        if line["id"] in predictions:
            raise SystemExit(f"{path} line {number}: id {line['id']!r} is there twice; {redo}")
        predictions[line["id"]] = line
    return predictions


def already_predicted(path, origin):
    """
    Return whether the predictions at `path` are finished. `origin` is what they are made from, a JSON object; it is
    written beside them. SystemExit if predictions of another origin lie there: the two must not be mixed.
    """
    origin_path, folder = path[:-len("jsonl")] + "made.json", os.path.dirname(path)
    if os.path.exists(origin_path):
        old = read_json(origin_path, f"remove {folder} and run the same command again")
        if different := differences(old, origin):
            raise SystemExit(f"{path} was made with {different}; remove {folder} and run the same command again, or "
                             "choose another --out")
    if os.path.exists(path):
        remove_partial(path)                                # a kill may have come just before this line
        print(f"{path} is finished already; to make it again, remove {folder}")
        return True
    write_json(origin_path, origin)
    return False


def predict(path, desc, tokenizer, jobs, decode, batch, max_new_tokens, trim_loops):
    """
    Decode all jobs and write the predictions to `path`; return them, or None if other processes have still to finish.

    Of several processes each decodes every world-th batch, and the last one that is done joins the parts. Batches are
    cut from all jobs, so they are the same after a kill; a batch that lacks a row is decoded again.
    """
    rank, world = rank_and_world()
    with lock(os.path.dirname(path)):
        done, part = read_partial(path), f"{path}.partial.{rank}"
        if os.path.exists(path):                            # the other processes have decoded everything
            return None
        write_json_lines(part, read_json_lines(part, AGAIN) if os.path.exists(part) else [])       # without half a line
        readable = sorted((job for job in jobs if job.item is not None), key=lambda job: -job.size)     # longest first
        batches = [readable[i:i + batch] for i in range(0, len(readable), batch)][rank::world]
        batches = [jobs_now for jobs_now in batches if any(job.row["id"] not in done for job in jobs_now)]
        bar = tqdm(total=sum(map(len, batches)), desc=desc, unit=" row", disable=rank > 0)
        with open(part, "ab", buffering=0) as file, bar:
            for jobs_now in batches:
                answers = decode([job.item for job in jobs_now])
                add_lines(file, [prediction(tokenizer, job.row, job.task, ids, max_new_tokens, trim_loops)
                                 for job, ids in zip(jobs_now, answers)])
                bar.update(len(jobs_now))
        done = read_partial(path)
        if any(job.row["id"] not in done for job in readable):
            print(f"{path}: this process is done; the last process to finish joins the answers")
            return None
        return join(path, jobs, done, max_new_tokens)


def prediction(tokenizer, row, task, ids, max_new_tokens, trim_loops):
    """Return the JSON object of one answer. ids: its token ids, or None if the audio cannot be read."""
    if ids is None:
        return {"id": row["id"], "unheard": True}
    loop = find_loop(ids)
    return {"id": row["id"], "task": task, "tokens": len(ids), "capped": len(ids) >= max_new_tokens,
            "loops": loop is not None,
            "prediction": decode_text(tokenizer, ids[:loop[0]] if loop and trim_loops else ids)}


def join(path, jobs, done, max_new_tokens):
    """Write the predictions of all jobs out of {id: prediction}, in the rows' order; an unreadable one is empty."""
    answered = {name: p for name, p in done.items() if "unheard" not in p}
    empty = {"prediction": "", "tokens": 0, "capped": False, "loops": False, "unheard": True}
    predictions = [answered.get(row["id"], {"id": row["id"], "task": task, **empty}) for row, task, *_ in jobs]
    write_json_lines(path, predictions)
    remove_partial(path)
    unread = sum(row["id"] not in answered for row, *_ in jobs)
    capped, loops = (100 * sum(p[key] for p in predictions) / max(1, len(predictions)) for key in ("capped", "loops"))
    print(f"{path}: {len(predictions)} rows, {capped:.1f} % stopped by the cap of {max_new_tokens} tokens, "
          f"{loops:.1f} % loop"
          + (f"; the audio of {unread} cannot be read: their answers are empty and count as wrong" if unread else ""))
    return predictions
