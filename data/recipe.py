"""
What the recipes and makers in data/ share: checked reading, the rows of one utterance, work that a kill does not lose,
work over several processes, and the table of counts that ends every recipe.

    results = resumable("work/made/acl6060/translate.it.jsonl", settings, texts, make, batch=64)
    report("work", "acl6060", {"eval": rows}, {("eval", "ST/MT de"): 416}, [("eval", "acl6060/eval/7", "no audio")])
"""
import argparse
import fcntl
import json
import multiprocessing
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.pool import ThreadPool

from tqdm import tqdm

from data.rows import corpus_of, differences, finish, replace_file, write_rows, writing

SLICE = 64                                  # jobs that one process does before a fresh one takes over
READERS = 16                                # threads that look at audio files: they wait for the disk (our choice)


def parser(doc, corpus=""):
    """The command line of a recipe: --work, --raw where its corpus is downloaded, and its docstring as the help."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--work", default="work", help="root folder of everything that is written")
    if corpus:
        made.add_argument("--raw", default="", help=f"folder of the download; <work>/raw/{corpus} if not given")
    return made


def need(path, what):
    """`path` if it exists; else stop and say what belongs there and where it comes from."""
    if not os.path.exists(path):
        raise SystemExit(f"{path} is missing: {what}")
    return path


def text_lines(file, path):
    """The lines of a file opened for bytes, as text with their ends; SystemExit names the line that is not UTF-8."""
    for number, line in enumerate(file, 1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise SystemExit(f"{path} line {number} is not UTF-8 ({error}); download it again") from None


def unreadable(paths):
    """{path: why} of the audio files that are missing or empty, or that libsndfile cannot open."""
    import soundfile

    def why(path):
        if not os.path.isfile(path):
            return "no such file"
        if not os.path.getsize(path):
            return "empty file"
        try:
            return "" if soundfile.info(path).frames else "no samples"
        except (soundfile.SoundFileError, TypeError) as error:       # TypeError: its name ends in .raw
            return f"cannot be decoded: {error}"
    with ThreadPool(READERS) as pool:
        reasons = list(tqdm(pool.imap(why, paths, chunksize=64), total=len(paths), desc="check audio", unit=" files"))
    return {path: reason for path, reason in zip(paths, reasons) if reason}


def speech_rows(utterance, source, transcript, translations):
    """The ASR row of one utterance and its ST rows. source: audio, and start and end of a slice;
    translations: {language: text}."""
    base = {"utterance": utterance, **source, "transcript": transcript}
    targets = [("ASR", "en", transcript), *(("ST", language, text) for language, text in translations.items())]
    return [{"id": f"{utterance}/{task}.{language}", **base, "task": task, "language": language, "target": target}
            for task, language, target in targets]


def resumable(path, settings, items, make, batch, desc="", size=len):
    """
    make([item]) -> [result], over all items in batches of like size -> results in the items' order.
    Items and results are JSON values; equal items are made once. Every batch is appended to `path` when it is done, so
    that a killed run loses one batch; batches are cut from all items, so that they are the same after a kill.
    settings: what the results depend on; a file made with others is refused, and so is a second run on one file.
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
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)           # the system lets go of it when the process ends
        except BlockingIOError:
            raise SystemExit(f"{path}: another process adds to it; wait for it, or end it") from None
        done = read_kept(path, settings)
        batches = [b for b in batches if any(key(item) not in done for item in b)]
        bar = tqdm(total=sum(map(len, batches)), desc=desc or os.path.basename(path), unit="item",
                   disable=not batches)
        if not os.path.getsize(path):
            add_lines(file, [{"settings": settings}])
        for items_now in batches:
            results = make(items_now)
            if len(results) != len(items_now):
                raise RuntimeError(f"{len(results)} results for {len(items_now)} items")
            # of a batch that a kill has halved only what is missing
            new = [(item, result) for item, result in zip(items_now, results) if key(item) not in done]
            add_lines(file, [{"item": item, "result": result} for item, result in new])
            done |= {key(item): result for item, result in new}
            bar.update(len(items_now))
        bar.close()
    return [done[key(item)] for item in items]


def add_lines(file, values):
    """
    Append values, a JSON line each, down to the disk; OSError as writing has it. file: open for bytes without a buffer,
    which would be written again when the file is closed.
    """
    text = "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values).encode()
    with writing(file.name):
        while text:                                      # a full disk takes a part
            text = text[file.write(text):]
        os.fsync(file.fileno())


def read_kept(path, settings):
    """{item as JSON: result} that earlier runs left in `path`; a line cut short by a kill is cut off."""
    if not os.path.exists(path):
        return {}
    done, good = {}, 0
    with open(path, "rb+") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                break
            try:
                entry = json.loads(line.decode("utf-8"))
                if number == 1:
                    told = differences(entry["settings"], settings)
                    if told:
                        raise SystemExit(f"{path} was made with {told}; remove it, or set them back")
                else:
                    done[json.dumps(entry["item"], ensure_ascii=False)] = entry["result"]
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                raise SystemExit(f"{path} line {number} is damaged; remove the file and run the same command again"
                                 ) from None
            good += len(line)
        file.truncate(good)
    return done


def in_processes(function, jobs, desc):
    """
    function(job) for every job, over all cores. Each slice of jobs has a process of its own, so that what a library
    remembers from job to job is the same in every run. RuntimeError if one of them fails.
    """
    spawn = multiprocessing.get_context("spawn")

    def run(jobs_now):
        process = spawn.Process(target=run_slice, args=(function, jobs_now), daemon=True)
        process.start()
        process.join()
        return process.exitcode
    slices = [jobs[i:i + SLICE] for i in range(0, len(jobs), SLICE)]
    with ThreadPoolExecutor(os.cpu_count()) as pool, tqdm(total=len(jobs), desc=desc, unit=" utt") as bar:
        for jobs_now, code in zip(slices, pool.map(run, slices)):
            if code:
                pool.shutdown(cancel_futures=True)
                raise RuntimeError(f"{desc}: a process ended with exit code {code}; what it said stands above")
            bar.update(len(jobs_now))


def run_slice(function, jobs):
    for job in jobs:
        function(job)


# --- The worlds: small corpora with models of their own.

def world_settings(doc, presets, argv):
    """(work, settings) from the command line of a world: --preset, the first if not given, --work and --seed."""
    command = parser(doc)
    command.add_argument("--preset", choices=list(presets), default=next(iter(presets)))
    command.add_argument("--seed", type=int, default=0)
    args = command.parse_args(argv)
    return args.work, {"preset": args.preset, "seed": args.seed, **presets[args.preset]}


def write_recorded(work, corpus, splits, record, jobs, desc):
    """The audio of every job, over all cores, then the rows of {split: rows}."""
    in_processes(record, jobs, desc)
    for split, rows in splits.items():
        write_rows(os.path.join(work, "rows", corpus, f"{split}.jsonl"), rows)


def finish_world(work, corpus, settings, splits):
    """A world is complete: say where it lies and what is next."""
    finish(work, corpus, settings)
    print(f"{corpus} world in {work}/rows/{corpus}: "
          + ", ".join(f"{len(rows)} {split} rows" for split, rows in splits.items()))
    print(f"next: python extract_features.py --preset {settings['preset']}")


# --- The table of counts.

def kind(row):
    """What the paper's table of data counts a row as: "ASR en", "ST/MT de", "MT de", "SQA/QA en invalid", "QA it"."""
    text = {"ASR": "ASR", "ST": "MT", "SQA": "QA", "MCQ": "QA"}[row["task"]]
    task = row["task"] + "/" + text if "utterance" in row and row["task"] != "ASR" else text
    return f"{task} {row['language']}" + ("" if row.get("answerable", True) else " invalid")


def report(work, corpus, splits, paper, dropped):
    """
    Print and keep (counts.md, dropped.txt) what a recipe made beside what the paper counts.
    splits: {split: rows}; paper: {(split, kind): count}, a part of the corpus by its name, such as
    ("train", "spokensquad-fluent SQA/QA en"); dropped: [(split, id, reason)]. SystemExit if there are no rows at all.
    """
    ours = Counter()
    for split, rows in splits.items():
        for row in rows:
            part = "" if corpus_of(row) == corpus else corpus_of(row) + " "
            ours[split, part + kind(row)] += 1
    lines = [f"| {corpus} | ours | paper | difference |", "|---|---|---|---|"]
    for split, name in sorted({*ours, *paper}):
        count, known = ours[split, name], paper.get((split, name))
        beside = "| |" if known is None else f"{known} | {count - known:+} |"
        lines.append(f"| {split}: {name} | {count} | {beside}")
    lines += ["", f"dropped: {len(dropped)}" + (", listed in dropped.txt" if dropped else "")]
    for (split, reason), count in Counter((split, reason.split(":")[0]) for split, _, reason in dropped).most_common():
        lines.append(f"  {count} in {split}: {reason}")
    dropped = [[" ".join(part.split()) for part in entry] for entry in dropped]      # one line each
    folder = os.path.join(work, "rows", corpus)
    for name, text in (("counts.md", "\n".join(lines) + "\n"),
                       ("dropped.txt", "".join("\t".join(entry) + "\n" for entry in dropped))):
        with replace_file(os.path.join(folder, name)) as temporary, open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
    print("\n".join(lines))
    if not ours:
        raise SystemExit(f"{corpus}: everything was dropped, see {folder}/dropped.txt")
