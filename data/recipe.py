"""
What the recipes and makers in data/ share: checked reading, the rows of one utterance, work that a kill does not lose,
work over several processes, and the table of counts that ends every recipe.

    results = resumable("work/made/acl6060/translate.it.jsonl", settings, texts, make, batch=64)
    report("work", "acl6060", {"eval": rows}, {("eval", "ST/MT de"): 416}, [("eval", "acl6060/eval/7", "no audio")])
"""
import argparse
import json
import multiprocessing
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.pool import ThreadPool
from pathlib import Path

from tqdm import tqdm

from speech_llm.files import differences, lock, read_json, replace_file
from speech_llm.rows import corpus_of, remake, write_rows


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

def world_settings(doc, recipe, argv):
    """
    Return (work, settings) from the command line of a toy's recipe: --work, --preset (default: `recipe`) and --seed.
    settings: preset, seed and `world` of the preset's page. SystemExit if another recipe makes the page's world.
    """
    from speech_llm.constants import read_page       # imports torch, which the processes of in_processes do without
    command = parser(doc)
    command.add_argument("--preset", default=recipe, help="a page of config/, or the path of another page")
    command.add_argument("--seed", type=int, default=0)
    args = command.parse_args(argv)
    world = read_page(args.preset).get("world", {})
    if world.get("recipe") != recipe:
        raise SystemExit(f"--preset {args.preset}: the page's world is not made by data.{recipe}; "
                         f"run: bash run_all.sh {args.preset}")
    return args.work, {"preset": args.preset, "seed": args.seed, **world}


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


LOCKS = {}           # of the recipes under way: {rows folder: its lock}


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
