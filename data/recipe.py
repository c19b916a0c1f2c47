"""
Share what every recipe in data/ does: its command line, checks before any work, the rows of one utterance, work over
several processes, the table of counts at its end.

    if finished("work", "acl6060", settings):                  # made already: say so and how to make it again
        return
    refuse_missing("acl6060", missing("work", "download"), args.check)     # one list of all files, packages, models
    begin("work", "acl6060", settings)                         # lock the rows folder; no other settings from here on
    ...
    report("work", "acl6060", {"eval": rows}, {("eval", "ST/MT de"): 416}, [("eval", "acl6060/eval/7", "no audio")])
    finish("work", "acl6060", settings, preset="iwslt25")

Every recipe has missing(work, raw="") at its top level, which returns [(what is missing, how to mend it)].
"""
import argparse
import glob
import importlib.util
import multiprocessing
import os
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.pool import ThreadPool
from pathlib import Path

from tqdm import tqdm

from speech_llm.audio import duration
from speech_llm.constants import read_page
from speech_llm.draws import TEXT_TASK
from speech_llm.files import differences, lock, read_json, replace_file, write_json, write_text
from speech_llm.index import open_index
from speech_llm.rows import corpus_of, remake, work_option, write_rows

SLICE = 64                                  # jobs that one process does before a fresh one takes over
READERS = 16                                # threads that open audio files: they wait for the disk (our choice)
ENOUGH = 0.5                                # of the paper's count; a recipe that makes less stops (our choice)
LOCKS = {}                                  # {rows folder: its lock} of the recipes under way


class Checked(SystemExit):
    """End a recipe at its check. `missing` is [(what is missing, how to mend it)], empty where --check asked for it."""

    def __init__(self, corpus, missing):
        lines = [f"{corpus} cannot be made:", *(f"  {what} is missing: {how}" for what, how in missing)]
        super().__init__("\n".join(lines) if missing else None)
        self.missing = missing


def parser(doc, corpus="", raw=True, models=()):
    """
    Return a recipe's command line: its docstring as the help, --work, and for a corpus --incomplete, --limit, --check
    and, if it has a download, --raw. models: (option, the model's name on the hub, what it does) of each.
    """
    command = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("--work", default="work", help="root folder of everything that is written")
    if corpus and raw:
        command.add_argument("--raw", default="", help=f"folder of the download; <work>/raw/{corpus} if not given")
    if corpus:
        command.add_argument("--incomplete", action="store_true",
                             help="finish with less than half of what the paper counts")
        command.add_argument("--limit", type=int, default=0,
                             help="so many utterances of every split, for a rehearsal; 0: all")
        command.add_argument("--check", action="store_true", help="say what is missing and stop")
    for option, name, task in models:
        command.add_argument(f"--{option}", default=name, help=f"the model that {task}")
    return command


def spread(items, limit):
    """Return `limit` of the items, evenly spread from the first to the last, in their order; 0 stands for all."""
    items = list(items)
    if not 0 < limit < len(items):
        return items
    return [items[n * len(items) // limit] for n in range(limit)]


def limited(args):
    """Return {"limit": number} for the settings of a recipe that makes a part of its corpus, else {}."""
    return {"limit": args.limit} if args.limit else {}


def paper_counts(counts):
    """Return {(split, kind): count} of {(split, "kind {}"): {language: count}}, as `report` reads it."""
    return {(split, kind.format(language)): count
            for (split, kind), by_language in counts.items() for language, count in by_language.items()}


def download(work, raw, corpus):
    """Return the folder of a corpus's download: `raw`, or <work>/raw/<corpus> if `raw` is empty."""
    return raw or os.path.join(work, "raw", corpus)


# --- What is missing, before any work: [(what, how to mend it)].

def missing_files(paths, how):
    """Return (path, how) for each path that does not exist."""
    return [(path, how) for path in paths if not os.path.exists(path)]


def missing_packages(*names):
    """Return (package, how to mend it) for each optional package that is not installed."""
    return [(f"the package {name}", f"pip install {name}") for name in names if not importlib.util.find_spec(name)]


def missing_models(*names):
    """
    Return (model, how to mend it) for each model that cannot be loaded: a name that is no folder, is not in the hub's
    cache, and that the hub does not give to this user. It costs one request a model, no download.
    """
    names = list(dict.fromkeys(names))
    if not names:
        return []
    with ThreadPool(len(names)) as pool:                 # the requests wait at the same time
        return [(name, mend) for name, mend in zip(names, pool.map(mend_model, names)) if mend]


def mend_model(name):
    """Return how to get a model that cannot be loaded; "" for one that can."""
    import httpx
    from huggingface_hub import auth_check, snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
    if os.path.isdir(name):
        return ""
    try:
        snapshot_download(name, local_files_only=True)
        return ""
    except (OSError, ValueError):
        pass                                             # not in the cache: the hub decides
    try:
        auth_check(name)
    except GatedRepoError:
        return (f"accept its licence at https://huggingface.co/{name} and run: hf auth login; or name a folder that "
                "holds it")
    except (RepositoryNotFoundError, ValueError):
        return "neither a folder nor a model of the hub has this name; name another one"
    except (OSError, httpx.HTTPError) as error:
        return f"the hub cannot be reached ({error}); run: hf download {name}, or name a folder that holds it"
    return ""


def missing_disk(folder, gigabytes, use, mend):
    """
    Return the disk and how to mend it if the disk of `folder` has less than so many gigabytes free; the folder need not
    exist. use: what is written there, in words; mend: what the user can do about it.
    """
    folder = os.path.realpath(folder)
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    free = shutil.disk_usage(folder).free / 1e9
    what = f"disk ({use} takes {gigabytes:,.1f} GB, {folder} has {free:,.1f} GB free)"
    return [] if free >= gigabytes else [(what, mend)]


def refuse_missing(corpus, missing, check=False):
    """Exit with one list of all that is missing, if anything is or if the recipe is only to be checked."""
    if missing or check:
        raise Checked(corpus, missing)


def unreadable(paths):
    """Return {path: why} for the audio files that are missing or empty, or that cannot be opened."""
    def why(path):
        if not os.path.isfile(path):
            return "no such file"
        if not os.path.getsize(path):
            return "empty file"
        try:
            return "" if duration(path) else "no samples"
        except ValueError as error:
            return str(error).removeprefix(f"{path}: ")
    with ThreadPool(READERS) as pool:
        reasons = list(tqdm(pool.imap(why, paths, chunksize=64), total=len(paths), desc="check audio", unit=" files"))
    return {path: reason for path, reason in zip(paths, reasons) if reason}


def print_unreadable(paths):
    """Return unreadable(paths) of a test set, whose rows stay. Print how many there are, and the first ten."""
    broken = unreadable(paths)
    for path in sorted(broken)[:10]:
        print(f"  {path}: {broken[path]}")
    print(f"{len(broken)} recordings cannot be read; their rows stay, and get empty answers")
    return broken


def speech_rows(utterance, source, transcript, translations, spoken="en"):
    """
    Return the ASR row of one utterance and its ST rows.
    source: audio, and start and end of a slice in seconds; translations: {language: text}; spoken: the language of the
    transcript.
    """
    base = {"utterance": utterance, **source, "transcript": transcript}
    targets = [("ASR", spoken, transcript), *(("ST", language, text) for language, text in translations.items())]
    return [{"id": f"{utterance}/{task}.{language}", **base, "task": task, "language": language, "target": target}
            for task, language, target in targets]


def write_splits(work, corpus, splits):
    """Write the rows of {split: rows}. A split without rows has no file."""
    for split, rows in splits.items():
        if rows:
            write_rows(os.path.join(work, "rows", corpus, f"{split}.jsonl"), rows)


def in_processes(function, jobs, desc):
    """
    Run function(job) for every job, over all cores. RuntimeError if one of them fails.
    Each slice of jobs has a process of its own, so that what a library remembers from job to job is the same in every
    run.
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
                raise RuntimeError(f"{desc}: a process ended with exit code {code}; its message stands above")
            bar.update(len(jobs_now))


def run_slice(function, jobs):
    """Run function(job) for every job of one process."""
    for job in jobs:
        function(job)


# --- The worlds: small corpora with models of their own.

def world_settings(doc, recipe, argv):
    """
    Return (work, preset, settings) from the command line of a maker of toy worlds: --work, --preset (default: `recipe`)
    and --seed. settings: the seed and `world` of the preset's page. recipe: the name of the maker's module in data/, or
    "" for data/tiny_llm.py.
    """
    command = parser(doc)
    command.add_argument("--preset", default=recipe or "tiny", help="a page of config/, or the path of another page")
    command.add_argument("--seed", type=int, default=0)
    args = command.parse_args(argv)
    return args.work, args.preset, {"seed": args.seed, **world_of(args.preset, recipe)}


def world_of(preset, recipe):
    """
    Return `world` of a page. SystemExit if the page has none, or one of another recipe; the recipe "" stands for all
    whose LLM data/tiny_llm.py makes.
    """
    world = read_page(preset).get("world", {})
    if not (world.get("recipe") == recipe if recipe else "family" in world):
        raise SystemExit(f"--preset {preset}: the page has no world that data.{recipe or 'tiny_llm'} makes; "
                         f"run: bash run_all.sh {preset}")
    return world


def write_recorded(work, corpus, splits, record, jobs, desc):
    """Write the audio of every job, over all cores, then the rows of {split: rows}."""
    in_processes(record, jobs, desc)
    write_splits(work, corpus, splits)


def finish_world(work, preset, corpus, settings, splits):
    """Finish a world: write its config.json, print where its rows are and the next commands."""
    finish(work, corpus, settings)
    print(f"{corpus} world in {work}/rows/{corpus}: "
          + ", ".join(f"{len(rows)} {split} rows" for split, rows in splits.items()))
    options = f"--preset {preset}{work_option(work)}"
    llm = f", and beside it the LLM: python -m data.tiny_llm {options}" if "family" in settings else ""
    print(f"next: python extract_features.py {options}{llm}")


# --- The table of counts.

def kind(row):
    """Return how the paper's table of data names a row: "ASR en", "ST/MT de", "MT de", "SQA/QA en invalid", "QA it"."""
    text = TEXT_TASK.get(row["task"], "ASR")
    task = row["task"] + "/" + text if "utterance" in row and row["task"] != "ASR" else text
    return f"{task} {row['language']}" + ("" if row.get("answerable", True) else " invalid")


def report(work, corpus, splits, paper, dropped, incomplete=False):
    """
    Print the counts of a corpus beside the paper's and write them to counts.md, and the dropped rows to dropped.txt.
    splits: {split: rows}; paper: {(split, kind): count}, where a part of the corpus goes by its name, such as
    ("train", "spokensquad-fluent SQA/QA en"); dropped: (split, id, reason) of each, read once.
    SystemExit without any row, and with less than ENOUGH of a count of the paper unless `incomplete`.
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
    folder, reasons = os.path.join(work, "rows", corpus), Counter()
    with replace_file(os.path.join(folder, "dropped.txt")) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for split, row_id, reason in dropped:
            reasons[split, reason.split(":")[0]] += 1
            file.write("\t".join(" ".join(part.split()) for part in (split, row_id, reason)) + "\n")
    lines += ["", f"dropped: {reasons.total()}" + (", listed in dropped.txt" if reasons else "")]
    lines += [f"  {count} in {split}: {reason}" for (split, reason), count in reasons.most_common()]
    write_text(os.path.join(folder, "counts.md"), "\n".join(lines) + "\n")
    print("\n".join(lines))
    if not ours:
        raise SystemExit(f"{corpus}: everything was dropped, see {folder}/dropped.txt")
    refuse_incomplete(folder, [f"{split}: {name} has {ours[split, name]} rows, the paper {known}"
                               for (split, name), known in sorted(paper.items()) if ours[split, name] < ENOUGH * known],
                      incomplete)


def refuse_incomplete(folder, short, incomplete):
    """Exit if parts of a corpus are far from whole, unless `incomplete`. short: a sentence about each such part."""
    if short and not incomplete:
        raise SystemExit("\n".join([
            f"{folder} is not finished, because it is far from whole:", *(f"  {part}" for part in short),
            f"{folder}/dropped.txt says what was dropped. Mend the download and run the same command again, or add "
            "--incomplete"]))


# --- From the first look to the last file.

def finished(work, corpus, settings):
    """
    Return whether the rows of a corpus are finished with these settings; nothing is written.
    SystemExit if they were finished or begun with other settings. Rows of more `languages` than are asked for will do.
    """
    folder = os.path.join(work, "rows", corpus)
    for name in ("config.json", "started.json"):
        path = os.path.join(folder, name)
        if not os.path.exists(path):
            continue
        old = read_json(path, f"remove it and run: {remake(path)}")
        wanted, languages = dict(settings), {*old.get("languages", "").split(",")}
        if name == "config.json" and {*wanted.get("languages", "").split(",")} <= languages:
            wanted.pop("languages", None)
        if different := differences(old, wanted):
            raise SystemExit(f"{folder} was made with {different}; choose another --work, or remove it, its models and "
                             "its features")
        if name == "config.json":
            print(f"{folder} is finished already; to make it again, remove it and run: {remake(path)}")
            return True
    return False


def begin(work, corpus, settings):
    """
    Lock the rows folder of a corpus and write the settings to started.json, which forbids other settings until the
    folder is removed. SystemExit if another process works in the folder.
    """
    folder = os.path.join(work, "rows", corpus)
    LOCKS[folder] = lock(folder)
    write_json(os.path.join(folder, "started.json"), settings)


def finish(work, corpus, settings, preset=""):
    """
    Write the last files of a recipe: the index of each split, then config.json. A rows folder with it is complete.
    preset: the system whose first stage is printed as the next command; a recipe without it prints its own.
    """
    folder = os.path.join(work, "rows", corpus)
    for path in glob.glob(os.path.join(glob.escape(folder), "*.jsonl")):
        open_index(path)
    write_json(os.path.join(folder, "config.json"), settings)
    Path(folder, "started.json").unlink(missing_ok=True)
    if folder in LOCKS:
        LOCKS.pop(folder).close()
    if preset:
        print(f"rows in {folder}\nnext: python extract_features.py --preset {preset}{work_option(work)}")
