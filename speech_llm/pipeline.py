"""
All commands of a system, in order: what `bash run_all.sh` runs.

    python -m speech_llm.pipeline tiny                     # rows, features, training, answers, scores
    python -m speech_llm.pipeline tiny ablations           # after it: the variants of C
    python -m speech_llm.pipeline tiny sweep               # after it: Speech-IFEval; C's adapters at several strengths
    python -m speech_llm.pipeline listeners pairwise       # a judge compares pairs of systems, the last step of all
    python -m speech_llm.pipeline iwslt25 rehearse         # before it: all of it in miniature, see data/rehearse.py
    python -m speech_llm.pipeline iwslt25 --dry            # print the commands, run nothing

The lists come from the system's page in config/: `world` or `recipes`, `stages`, `pairwise`, `ablations`, `sweep`.
Entries of `stages` in one tuple need nothing of each other; without a GPU they run side by side and share the cores.
Environment variables: NPROC is the largest number of processes of a stage, one GPU each (a training stage has as many
as can share its `accumulate` equally); TTS is the speech synthesis command of data/multispeechqa.py; JUDGE replaces the
page's judges of `pairwise` and `sweep`.
"""
import argparse
import glob
import math
import os
import shlex
import signal
import subprocess
import sys
import time

from speech_llm.constants import STAGES, pick_device, read_page, refuse_unknown, stage_constants, stage_groups
from speech_llm.predictions import model_name, parse_system
from speech_llm.rows import PROJECT

TRAINING_STAGES = ("train_projector", "train_lora", "merge_sft")


def stage_command(entry, preset, work, seed, *more):
    """Return the command of a stage as a list. `entry` is the stage's name and, after it, arguments of its own."""
    stage, *words = entry.split()
    page = words[words.index("--preset") + 1] if "--preset" in words else preset
    processes = max(1, int(os.environ.get("NPROC", 1)))
    if stage in TRAINING_STAGES:             # the processes share the draws of a step equally
        processes = math.gcd(processes, stage_constants(stage, read_page(page))["accumulate"])
    launcher = (["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
                if processes > 1 and stage != "eval" else [])
    seeded = ["--seed", str(seed)] if stage in TRAINING_STAGES else []
    words = words if "--preset" in words else ["--preset", preset, *words]
    return [*launcher, f"{stage}.py", *words, "--work", work, *seeded, *more]


def refuse_entries(page, part):
    """Exit if an entry of the page's stages is not a stage, or if the page that an entry names has another `run`."""
    stages = [entry for group in stage_groups(page["stages"]) for entry in group]
    for entry in [*stages, *(page.get("ablation_stages", {}).values() if part == "ablations" else [])]:
        stage, *words = entry.split()
        if stage not in STAGES:
            raise SystemExit(f"{page['file']}: {stage} is not one of the stages {', '.join(STAGES)}")
        if "--preset" in words and (run := read_page(words[words.index("--preset") + 1])["run"]) != page["run"]:
            raise SystemExit(f"{page['file']}: the entry {entry!r} would write into the folder {run}, this system has "
                             f"{page['run']}; write a page with this page as `base`, and name it in the entry")


def recipe_commands(page, part, work):
    """Return the commands of the page's recipes, or of those of its `sweep`."""
    recipes = {"": page.get("recipes", []), "sweep": page.get("sweep", {}).get("recipes", [])}.get(part, [])
    commands = [["-m", f"data.{recipe.split()[0]}", *recipe.split()[1:], "--work", work] for recipe in recipes]
    for command in commands:
        if command[1] == "data.multispeechqa" and os.environ.get("TTS"):
            command += ["--tts", os.environ["TTS"]]
    return commands


def check_command(page, part, preset, work):
    """Return [the command that says at once what a real run lacks]; [] for a toy, which needs nothing."""
    if "recipes" not in page or part == "pairwise":
        return []
    return [["-m", "data.check", preset, *[part] * bool(part), "--work", work]]


def one_by_one(commands):
    """Return the groups of commands of which each needs the one before it."""
    return [[[command]] for command in commands]


def run_commands(page, preset, work, seed):
    """
    Return the groups of the whole system. A group is a list of lanes, which may run side by side; a lane is a list of
    commands. In a toy world, features are extracted in the lane of the audio and its encoder, beside that of the LLM.
    """
    groups = [[[stage_command(entry, preset, work, seed)] for entry in group] for group in stage_groups(page["stages"])]
    if "world" in page:
        world, llm = (["-m", f"data.{maker}", "--preset", preset, "--work", work, "--seed", str(seed)]
                      for maker in (page["world"]["recipe"], "tiny_llm"))
        (extraction,), *later = groups
        groups = [[[world, *extraction]] + [[llm]] * ("family" in page["world"]), *later]
    return [*one_by_one(recipe_commands(page, "", work)), *groups, *pairwise_commands(page, preset, work, seed)]


def pairwise_commands(page, preset, work, seed):
    """
    Return the commands of the page's `pairwise`, [] without it: a judge compares two systems, which the page names as
    "first second", and eval.py adds the rates to its tables; "run/system" is a system of another page. A pair is left
    out if one of its systems is not of this page and has no predictions.
    """
    settings, commands = page.get("pairwise", {"pairs": []}), []
    systems = {entry.partition(":")[0] for entry in page.get("common", {}).get("systems", "").split(",")}
    for pair in settings["pairs"]:
        places = [("/" + name).rpartition("/") for name in pair.split()]
        folders = [os.path.join(work, run.strip("/") or page["run"], "predictions", name) for run, _, name in places]
        if all(not run and name in systems or os.path.isdir(folder) for (run, _, name), folder in zip(places, folders)):
            rows = os.path.join(work, "rows", *settings["test_set"].split(".")) + ".jsonl"
            judge = os.environ.get("JUDGE") or settings["judge"]
            commands.append(["-m", "metrics.pairwise", *folders, "--judge", judge, "--rows", rows])
    if commands:
        commands.append(stage_command("eval", preset, work, seed))
    return one_by_one(commands)


def ablation_commands(page, preset, work, seed):
    """
    Return the commands of the page's `ablations`: train each variant of C, decode all, score. `ablation_stages` are
    stages that are trained and decoded beside them, {"name:folder": stage}.
    """
    names, stages = list(page["ablations"]), page.get("ablation_stages", {})
    decoding = ["--systems", ",".join([*stages, *(f"C-{name}:merged-{name}" for name in names)]),
                "--test_sets", page["ablation_test_sets"]]
    trainings = [stage_command(entry, preset, work, seed) for entry in stages.values()]
    trainings += [stage_command("merge_sft", preset, work, seed, "--ablation", name) for name in names]
    return one_by_one([*trainings, stage_command("infer", preset, work, seed, *decoding),
                       stage_command("eval", preset, work, seed)])


def sweep_commands(page, preset, work, seed):
    """
    Return the commands of the page's `sweep`: Speech-IFEval of the text LLM and of trained systems, and of the last of
    them with its adapters at every strength. Forgetting rates are computed against each system of `reference`.
    """
    sweep = page["sweep"]
    rows = recipe_commands(page, "sweep", work) if "recipes" in sweep else []
    features = [stage_command("extract_features", preset, work, seed, "--corpora", recipe)
                for recipe in sweep.get("recipes", [])]
    cap = ["--max_new_tokens", str(sweep["max_new_tokens"])] if "max_new_tokens" in sweep else []
    scaled, scales = sweep["scaled"], [float(scale) for scale in sweep["scales"].split(",")]
    tests = ",".join(filter(None, (sweep.get("test_sets"), sweep["constraint_sets"])))
    references = sweep["reference"].split(",")
    names = [entry.partition(":")[0] for entry in sweep["systems"].split(",") if entry not in references]
    names += [scaled.partition(":")[0] + ("" if scale == 1 else f"@{scale:g}") for scale in scales]
    folder = os.path.join(work, page["run"], "predictions")
    return one_by_one([
        *rows, *features,
        stage_command("infer", preset, work, seed, "--systems", sweep["systems"],
                      "--test_sets", sweep["constraint_sets"], *cap),
        stage_command("infer", preset, work, seed, "--systems", scaled, "--lora_scale", sweep["scales"],
                      "--test_sets", tests, *cap),
        ["-m", "metrics.speech_ifeval", *(os.path.join(folder, name) for name in names),
         "--reference", *(os.path.join(folder, name) for name in references), "--corpus", sweep["corpus"],
         "--judge", os.environ.get("JUDGE") or sweep["judge"]],
        stage_command("eval", preset, work, seed)])


def decoding_commands(run):
    """
    Return [(command, names of systems, test sets)]: what decodes which systems on which test sets, of all pages of
    config/ that write to the folder `run`. A variant's page, which repeats what its base has, comes after its base.
    """
    decoding = []
    for path in sorted(glob.glob(os.path.join(PROJECT, "config", "*.py"))):
        name = os.path.basename(path)[:-len(".py")]
        page = read_page(name)
        if page["run"] != run or "recipes" not in page:
            continue
        for entry in (entry.split() for group in stage_groups(page["stages"]) for entry in group):
            options = dict(zip(entry[1::2], entry[2::2]))
            if entry[0] == "infer":
                c = stage_constants("infer", read_page(options.get("--preset", name)))
                systems, tests = (options.get(f"--{key}", c[key]).split(",") for key in ("systems", "test_sets"))
                decoding.append((f"bash run_all.sh {name}", [parse_system(system)[0] for system in systems], tests))
        for system in page.get("hub", []):
            decoding.append((f"python infer.py --preset {name} --systems hub:{system}", [model_name(system)], tests))
        if "ablations" in page:
            decoding.append((f"bash run_all.sh {name} ablations", [f"C-{ablation}" for ablation in page["ablations"]],
                             page["ablation_test_sets"].split(",")))
    return decoding


def run_side_by_side(lanes):
    """
    Run lanes of commands at the same time, or one after the other where there is a GPU, and print each command.
    SystemExit with the exit code of the first one that fails; the others are ended.
    """
    together = min(len(lanes), os.cpu_count()) if len(lanes) > 1 and pick_device().type == "cpu" else 1
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, os.cpu_count() // together))} if together > 1 else None
    waiting, running = [[*lane] for lane in lanes], {}                       # running: {number of a lane: process}
    try:
        while running or any(waiting):
            for number, commands in enumerate(waiting):
                if commands and number not in running and len(running) < together:
                    print("+ " + shlex.join(["python", *commands[0]]), flush=True)
                    running[number] = subprocess.Popen([sys.executable, *commands.pop(0)], env=environment)
            time.sleep(0.2)
            for number in [number for number, process in running.items() if process.poll() is not None]:
                process = running.pop(number)
                if process.returncode:
                    print(f"failed with exit code {process.returncode}: {shlex.join(['python', *process.args[1:]])}")
                    raise SystemExit(max(process.returncode, 1))
    finally:
        for process in running.values():
            process.terminate()
            process.wait()


PARTS = {"": run_commands, "pairwise": pairwise_commands, "ablations": ablation_commands, "sweep": sweep_commands}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", nargs="?", default="tiny", help="a page of config/, or the path of a page")
    parser.add_argument("part", nargs="?", default="", choices=[*PARTS, "rehearse"], help="empty for the system itself")
    parser.add_argument("of", nargs="?", default="", choices=list(PARTS), help="after rehearse: the part to rehearse")
    parser.add_argument("--work", default="work", help="root folder of everything that is written")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dry", action="store_true", help="print the commands and run nothing")
    args = parser.parse_args(argv)
    if args.of and args.part != "rehearse":
        parser.error(f"{args.part} and {args.of} are two runs; run one after the other")
    page = read_page(args.preset)
    part = args.of if args.part == "rehearse" else args.part
    if part and part not in page:
        raise SystemExit(f"{page['file']} has no {part}")
    refuse_unknown(page)
    refuse_entries(page, part)
    if args.part == "rehearse":
        groups = one_by_one([["-m", "data.rehearse", args.preset, *[part] * bool(part), "--work", args.work,
                              "--seed", str(args.seed)]])
    else:
        groups = [*one_by_one(check_command(page, part, args.preset, args.work)),
                  *PARTS[part](page, args.preset, args.work, args.seed)]
    for lanes in groups:
        if args.dry:
            print("\n".join(shlex.join(["python", *command]) for lane in lanes for command in lane))
        else:
            run_side_by_side(lanes)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):                   # run_side_by_side then ends its commands
        signal.signal(number, lambda received, _: sys.exit(128 + received))
    main()
