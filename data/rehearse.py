"""
Rehearse a real run in miniature: every command, with the system's page and models, on a few utterances of every split.

    bash run_all.sh iwslt26 rehearse                      # the evening before bash run_all.sh iwslt26
    bash run_all.sh iwslt26 rehearse sweep                # after it: those of the sweep; or of the ablations

reads   the downloads in <work>/raw and the models; both may be incomplete
writes  <work>/rehearsal/: rows, features, stages, predictions and tables of the miniature; in the system's folder
        rehearsal.md, the report; rehearsal-<preset>.md of a variant, rehearsal-sweep.md of the sweep; logs/ with the
        output of every command

A recipe takes LIMIT utterances of every split, a training stage makes STEPS optimizer steps of the full size, and
eval.py gives every score that is installed. A command that fails stops nothing: later ones do without its corpora and
systems. The report says what ran, what is missing and what mends it, how long the full run will take, and which command
fills which row of the papers' tables. A second rehearsal makes only what the first one could not; to measure anew,
remove <work>/rehearsal. The scores mean nothing.
"""
import argparse
import glob
import os
import shlex
import subprocess
import sys
import time

from data.check import check, frames_gb, hours_of, report, stages_of, width_of
from metrics.paper_tables import plan
from speech_llm.cache import features_folder
from speech_llm.constants import STAGES, read_page, stage_constants
from speech_llm.files import read_json, read_json_lines, write_text
from speech_llm.pipeline import PARTS, TRAINING_STAGES, decoding_commands
from speech_llm.predictions import BUILT_IN

LIMIT, STEPS = 24, 2


# --- The commands of the real run, made small.

def name_of(command):
    """Return the stage or the module of a command: "merge_sft", "data.covost2"."""
    return next(word for word in command if word.endswith(".py") or word.startswith(("data.", "metrics."))
                ).removesuffix(".py")


def option(command, name):
    """Return the value of an option of a command; "" without it."""
    return command[command.index(name) + 1] if name in command else ""


def smaller(command, page, work, limit):
    """Return a command of the real run in the sizes of a rehearsal, without corpora and systems that are not there."""
    name, more = name_of(command), []
    if name.startswith("data."):
        return [*command, "--limit", str(limit)]
    if name == "metrics.speech_ifeval":
        return [*command, "--data", os.path.join(work, "made", "speech_ifeval", "eval_data")]
    if name not in STAGES:
        return command
    page = read_page(option(command, "--preset")) if "--preset" in command else page
    c = stage_constants(name, page) | {key: option(command, f"--{key}") for key in ("corpora", "systems", "test_sets")
                                       if f"--{key}" in command}
    if name in TRAINING_STAGES and c["steps"]:
        more += ["--steps", str(STEPS), "--validate_every", str(STEPS), "--validate_rows", "4"]
    finished = {key: [entry for entry in c.get(key, "").split(",") if is_there(key, entry, work, page)]
                for key in ("corpora", "test_sets")}
    if name == "infer":
        finished["systems"] = [entry for entry in c["systems"].split(",") if is_there("systems", entry, work, page)]
    for key, entries in finished.items():
        if entries and ",".join(entries) != c.get(key, ""):
            more += [f"--{key}", ",".join(entries)]
    return [*command, *more]


def is_there(key, entry, work, page):
    """Return whether a corpus or test set has rows, or whether the stage of a system is finished."""
    folder = os.path.join(work, "rows", entry.partition(".")[0])         # an entry is a corpus or one of its splits
    if key == "systems":
        folder = os.path.normpath(os.path.join(work, page["run"], entry.partition(":")[2]))    # or ../iwslt25/merged
        if entry.rpartition(":")[2] in BUILT_IN:
            return True
    return os.path.exists(os.path.join(folder, "config.json"))


def run_command(command, log):
    """Run a command with its output in the file `log`; return its exit code."""
    with open(log, "w", encoding="utf-8") as file:
        return subprocess.run([sys.executable, *command], stdout=file, stderr=subprocess.STDOUT).returncode


def run_all(commands, page, work, logs, limit):
    """Run the commands one after the other -> [(command, exit code, seconds, path of its output)]."""
    results = []
    os.makedirs(logs, exist_ok=True)
    for number, command in enumerate(commands, 1):
        command, began = smaller(command, page, work, limit), time.time()
        log = os.path.join(logs, f"{number:02d}-{name_of(command)}.txt")
        print(f"+ {shlex.join(['python', *command])}", flush=True)
        code = run_command(command, log)
        results.append((command, code, time.time() - began, log))
        print(f"  {'done' if code == 0 else f'FAILED, see {log}'} in {results[-1][2]:.0f} s", flush=True)
    return results


# --- What the miniature says about the full run.

def step_seconds(folder):
    """Return the seconds of the last optimizer step of a stage; 0 if there are not two."""
    path = os.path.join(folder, "log.jsonl")
    lines = read_json_lines(path, f"remove {folder}") if os.path.exists(path) else []
    times = [line["seconds"] for line in lines if "seconds" in line]
    return times[-1] - times[-2] if len(times) > 1 else 0.0


def pace(paths, amount):
    """
    Return the seconds for one unit of `amount`(path), from the times at which files were finished one after the other;
    0 with fewer than two files. The first file, which waits for the model, is left out.
    """
    paths = sorted(paths, key=os.path.getmtime)
    units = sum(map(amount, paths[1:]))
    return (os.path.getmtime(paths[-1]) - os.path.getmtime(paths[0])) / units if units else 0.0


def time_table(page, work):
    """Return the table of seconds, hours, disk and memory of the full run, stage by stage, as lines of Markdown."""
    c = stage_constants("extract_features", page)
    lines = ["| stage | measured | full run | hours | disk, GB | GPU, GB |", "|---|---|---|---|---|---|"]
    caches = glob.glob(os.path.join(features_folder(work, c["encoder"], c["mean"], "*", "*"), "config.json"))
    hours = sum(hours_of(page).values())
    rate = pace(caches, lambda path: read_json(path, "remove it")["hours"])
    disk = sum(frames_gb(page, width_of(work, c["encoder"])).values())
    lines.append(f"| extract_features | {rate:.1f} s an hour of speech | {hours:,.0f} h of speech "
                 f"| {rate * hours / 3600:.1f} | {disk:,.0f} | |")
    stages = [(stage, stage_constants(stage, page_now)) for stage, page_now in stages_of(page)
              if stage in TRAINING_STAGES]
    for stage, constants in stages:
        folder = os.path.join(work, page["run"], constants["out"])
        path = os.path.join(folder, "config.json")
        memory = read_json(path, "remove it").get("peak_gb", 0) if os.path.exists(path) else 0
        seconds = step_seconds(folder)
        lines.append(f"| {constants['out']} | " + (f"{seconds:.2f} s a step | {constants['steps']:,} steps | "
                     f"{seconds * constants['steps'] / 3600:.1f}" if seconds else "| |")
                     + f" | | {f'{memory:.1f}' if memory else ''} |")
    for folder in sorted(glob.glob(os.path.join(work, page["run"], "predictions", "*"))):
        rate = pace(glob.glob(os.path.join(folder, "*.jsonl")), count_lines)
        if rate:
            lines.append(f"| infer, {os.path.basename(folder)} | {rate:.2f} s an answer | 1,000 answers | "
                         f"{1000 * rate / 3600:.2f} | | |")
    return "\n".join([*lines, "", "Steps have the page's full batches; validations are not in the hours. The disk is "
                      "that of the frames, by the formula."])


def count_lines(path):
    """Return the number of lines of a file."""
    with open(path, "rb") as file:
        return sum(1 for _ in file)


def last_words(log):
    """Return the last line of a failed command's output that says something."""
    with open(log, encoding="utf-8", errors="replace") as file:
        lines = [line.strip() for line in file.read().replace("\r", "\n").splitlines() if line.strip()]
    return lines[-1][:500] if lines else "no output"


def write_report(path, preset, page, work, results, missing):
    """Write rehearsal.md. missing: the lists of data/check.py."""
    failed = [(command, log) for command, code, _, log in results if code]
    tables = os.path.join(work, page["run"], "results.md")
    ran = [f"| `{shlex.join(['python', *command])}` | {seconds:.0f} | {'failed' if code else 'done'} |"
           for command, code, seconds, _ in results]
    parts = [f"# Rehearsal of {preset}", "## What is missing", missing]
    if failed:
        parts += ["## What failed", "\n".join(f"- `{name_of(command)}`: {last_words(log)} ({log})"
                                              for command, log in failed)]
    parts += ["## What ran", "\n".join(["| command | seconds | |", "|---|---|---|", *ran]),
              "## The full run", time_table(page, work),
              "## Which command fills which row", plan(list(filter(None, stage_constants("eval", page)["tables"].split(
                  ","))), decoding_commands(page["run"])),
              "## The tables of the miniature", "The scores mean nothing; what counts is that no cell is missing."]
    if os.path.exists(tables):
        with open(tables, encoding="utf-8") as file:
            parts.append(file.read().strip())
    write_text(path, "\n\n".join(parts) + "\n")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", help="a page of config/ with recipes, or the path of a page")
    parser.add_argument("part", nargs="?", default="", choices=["", "ablations", "sweep"])
    parser.add_argument("--work", default="work", help="root folder of the real run, with raw/ and models/")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, default=LIMIT, help="utterances of every split")
    args = parser.parse_args(argv)
    page, work = read_page(args.preset), os.path.join(args.work, "rehearsal")
    stops, costs = check(args.preset, args.part, args.work)
    missing = report(args.preset, stops, costs)
    print(missing, flush=True)
    os.makedirs(work, exist_ok=True)
    for name in ("raw", "models"):                       # the downloads are those of the real run
        link = os.path.join(work, name)
        os.makedirs(os.path.join(args.work, name), exist_ok=True)
        if not os.path.lexists(link):
            os.symlink(os.path.join("..", name), link)
    commands = [command for lanes in PARTS[args.part](page, args.preset, work, args.seed) for lane in lanes
                for command in lane]
    name = os.path.basename(args.preset).removesuffix(".py")
    name = "-".join(["rehearsal", *[name] * (name != page["run"]), *[args.part] * bool(args.part)])
    results = run_all(commands, page, work, os.path.join(work, page["run"], "logs", name), args.limit)
    path = os.path.join(work, page["run"], f"{name}.md")
    write_report(path, args.preset, page, work, results, missing)
    failed = sum(code != 0 for _, code, *_ in results)
    print(f"{len(results) - failed} of {len(results)} commands ran; the report is {path}")
    if failed or stops:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
