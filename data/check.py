"""
List all that a system needs and that is not there, in seconds: the first command of every real run.

    python -m data.check iwslt26                  # before bash run_all.sh iwslt26
    python -m data.check iwslt26 sweep            # before bash run_all.sh iwslt26 sweep

Two lists are printed, each entry with the command, the address or the licence that mends it. Without an entry of the
first list the run stops: downloads of the recipes, packages, models of the stages, disk; the exit code is then 1.
An entry of the second list costs a score (a judge, COMET, BERTScore) or time (a small GPU), and the run goes on.
Nothing is downloaded, nothing is written, no model is loaded.

The pages state `hours` = {corpus: hours of speech} and `gpu_gb`, the memory of the GPU that they count on.
"""
import argparse
import glob
import importlib
import io
import os
from contextlib import redirect_stderr, redirect_stdout

from data.recipe import Checked, missing_disk, missing_models, missing_packages
from metrics.bertscore import ORGANISERS, XLMR
from metrics.comet import ENCODERS
from speech_llm.cache import features_folder
from speech_llm.constants import locate, read_page, stage_constants, stage_groups
from speech_llm.files import read_json
from speech_llm.pipeline import recipe_commands
from speech_llm.predictions import OFFICIAL_TESTS

FRAME_RATE = 50                              # Hz, of the encoders before averaging
OMNI = "Qwen/Qwen2.5-Omni-7B"                # its audio encoder has half as many frames
WIDTHS = {"facebook/seamless-m4t-v2-large": 1024, "openai/whisper-large-v3": 1280, "openai/whisper-base": 512,
          OMNI: 3584}
SPOKEN = ("europarlst", "spokensquad", "fakacl", "multispeechqa")      # recipes that write audio
AUDIO = 0.1152                               # GB an hour: 16,000 samples a second of 2 bytes
PACKAGES = {"bert_score": "bert-score==0.3.13", "whisper_normalizer": "whisper-normalizer==0.1.0"}
COMET = "Unbabel/wmt22-comet-da"


# --- What the run needs.

def stages_of(page):
    """Return [(stage, the page of its constants)] of a page's `stages`."""
    entries = [entry for group in stage_groups(page["stages"]) for entry in group]
    words = [entry.split() for entry in entries]
    return [(stage, read_page(more[more.index("--preset") + 1]) if "--preset" in more else page)
            for stage, *more in words]


def needed_models(page, part, work):
    """Return {model, a hub name or a folder: the stage that loads it}."""
    models = {}
    for stage, page_now in stages_of(page):
        c = stage_constants(stage, page_now)
        systems = c.get("systems", "") if part != "sweep" else f"{page['sweep']['systems']},{page['sweep']['scaled']}"
        names = [entry.partition(":")[0] for entry in systems.split(",")]
        loaded = {"extract_features": ["encoder"], "train_projector": ["llm", "text_encoder"], "train_lora": ["llm"],
                  "infer": ["llm"] * any(not name.startswith("seamless") for name in names)
                           + ["seamless"] * any(name.startswith("seamless") for name in names)
                           + ["whisper"] * ("cascade" in names)}.get(stage, [])
        for constant in loaded:
            if c[constant]:
                models.setdefault(locate(work, c[constant]), stage)
    return models


def missing_of_recipes(page, part, preset, work):
    """Return [(recipe, what is missing, how to mend it)] of all recipes; those that are finished need nothing."""
    lacking = []
    for _, module, *words in recipe_commands(page, part, work):
        recipe = module.removeprefix("data.")
        try:
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                importlib.import_module(module).main([*words, "--check"])
        except Checked as stop:
            lacking += [(recipe, what, how) for what, how in stop.missing]
        except SystemExit as stop:                       # rows of other settings, an unknown language
            lacking.append((recipe, "its rows", str(stop)))
    return lacking


def width_of(work, encoder):
    """Return the width of an encoder's frames: of WIDTHS, or from its config.json if it is here; 0: unknown."""
    from huggingface_hub import try_to_load_from_cache
    if encoder in WIDTHS:
        return WIDTHS[encoder]
    path = os.path.join(locate(work, encoder), "config.json")
    if not os.path.isfile(path) and "models/" not in encoder:
        path = try_to_load_from_cache(encoder, "config.json")
    if isinstance(path, str) and os.path.isfile(path):
        config = read_json(path, "download it again")
        return config.get("hidden_size") or config.get("d_model") or 0
    return 0


def hours_of(page):
    """Return {corpus: hours of speech}: the page's `hours`, or fewer where its recipe has the option --hours."""
    hours = dict(page.get("hours", {}))
    for recipe, *words in (entry.split() for entry in page.get("recipes", [])):
        if "--hours" in words and recipe != "commonvoice":             # its hours are those of each language
            hours[recipe] = float(words[words.index("--hours") + 1])
    return hours


def frames_gb(page, width):
    """Return {corpus: GB of its frames}: 50 / mean frames a second, `width` numbers of 2 bytes each."""
    c = stage_constants("extract_features", page)
    rate = FRAME_RATE / c["mean"] / (2 if c["encoder"] == OMNI else 1)
    return {corpus: hours * 3600 * rate * width * 2 / 1e9 for corpus, hours in hours_of(page).items()}


def missing_space(page, work):
    """Return [(disk, how to mend it)] if there is too little for the frames or for the audio that the recipes write."""
    c = stage_constants("extract_features", page)
    frames = frames_gb(page, width_of(work, c["encoder"]))
    folder = {corpus: features_folder(work, c["encoder"], c["mean"], corpus, "*") for corpus in frames}
    todo = [corpus for corpus in frames if not glob.glob(os.path.join(folder[corpus], "config.json"))]
    audio = sum(AUDIO * hours for corpus, hours in hours_of(page).items() if corpus in SPOKEN and not os.path.exists(
        os.path.join(work, "rows", corpus, "config.json")))
    mend = "free some, or let this folder be a link to a larger disk"
    return (missing_disk(os.path.join(work, "features"), sum(frames[corpus] for corpus in todo),
                         f"frames of {', '.join(todo)} in {work}/features", mend)
            + missing_disk(os.path.join(work, "audio"), audio, f"audio that recipes write in {work}/audio", mend))


# --- What costs a score or time.

def package(name):
    """Return [(the optional package, how to install it)], [] if it is installed."""
    return [(what, f"pip install {PACKAGES.get(name, name)}") for what, _ in missing_packages(name)]


def missing_of_scores(page, work):
    """Return [(score: what is missing for it, how to mend it)] of eval.py."""
    from huggingface_hub import try_to_load_from_cache
    c = stage_constants("eval", page)
    metrics, mcif, lacking = c["metrics"].split(","), {*OFFICIAL_TESTS} & {*c["test_sets"].split(",")}, []
    if "language" in metrics:
        lacking += [(f"language: {what}", how) for what, how in package("py3langid")]
    if mcif:
        lacking += [(f"MCIF's WER: {what}", how) for what, how in package("whisper_normalizer")]
    if "COMET" in metrics or mcif:
        path = os.path.join(work, c["comet"])
        if not os.path.exists(c["comet"]) and not os.path.exists(path):
            lacking.append((f"COMET: {path}", f"hf download {COMET} --local-dir {path}"))
        lacking += [(f"COMET: {what}", how) for what, how in missing_models(ENCODERS["regression"])]
    models = {model for metric, pairs in (("BERTScore", ORGANISERS.values()), ("BERTScore-xlmr", [XLMR]))
              if metric in metrics or mcif and metric == "BERTScore" for model, _ in pairs}
    if models:
        lacking += [(f"BERTScore: {what}", how) for what, how in package("bert_score")]
        lacking += [(f"BERTScore: {model}", f"hf download {model}") for model in sorted(models)
                    if not isinstance(try_to_load_from_cache(model, "config.json"), str)]
    judges = [*filter(None, c["judges"].split(","))] if "judge" in metrics else []
    judges += [os.environ.get("JUDGE") or page["pairwise"]["judge"]] if "pairwise" in page else []
    return lacking + [(f"judge: {what}", how) for what, how in missing_models(*(locate(work, llm) for llm in judges))]


def missing_gpu(page):
    """Return [(GPU, how to mend it)] if it has too little memory for the sizes of the page."""
    import torch
    wanted = page.get("gpu_gb", 0)
    memory = torch.cuda.get_device_properties(0).total_memory / 1e9 if torch.cuda.is_available() else 0
    if memory >= wanted:
        return []
    return [(f"a GPU of {wanted} GB ({f'this one has {memory:.0f} GB' if memory else 'there is none'})",
             "use a larger one, or lower micro_tokens, batch and decode_batch; on a CPU a run takes weeks")]


# ---------------------------------------------------------------------------------------------------------------------
def check(preset, part, work):
    """Return two lists of (what is missing, how to mend it): what the run needs, and what costs a score or time."""
    page = read_page(preset)
    for key in ("recipes", part):
        if key and key not in page:
            raise SystemExit(f"{page['file']} has no {key} to check or to rehearse; run: bash run_all.sh {preset}")
    models = needed_models(page, part, work)
    stops = missing_of_recipes(page, part, preset, work)
    stops += [(models[name], name, how) for name, how in missing_models(*models)]
    if part == "sweep":
        judge = os.environ.get("JUDGE") or page["sweep"]["judge"]
        stops += [("the judge of the sweep", what, how + "; JUDGE=... names another") for what, how in
                  missing_models(*[locate(work, judge)] * (judge != "contains"))]
    users = {}
    for user, what, how in stops:
        users.setdefault((what, how), []).append(user)
    stops = [(f"{what}, for {', '.join(names)}", how) for (what, how), names in users.items()]
    return stops + (missing_space(page, work) if not part else []), missing_of_scores(page, work) + missing_gpu(page)


def report(preset, stops, costs):
    """Return both lists in Markdown."""
    parts = [f"{preset} has all that its run needs." if not stops else
             "\n".join([f"Without these the run of {preset} stops:", "", *(f"- {what}: {how}" for what, how in stops)])]
    if costs:
        parts.append("\n".join(["Without these the run goes on, with fewer scores or slower:", "",
                                *(f"- {what}: {how}" for what, how in costs)]))
    return "\n\n".join(parts)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", help="a page of config/, or the path of a page")
    parser.add_argument("part", nargs="?", default="", choices=["", "ablations", "sweep"])
    parser.add_argument("--work", default="work", help="root folder of everything that is written")
    args = parser.parse_args(argv)
    stops, costs = check(args.preset, args.part, args.work)
    print(report(args.preset, stops, costs))
    if stops:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
