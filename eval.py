"""
Evaluation: predictions -> one table a test set, the papers' tables with ours beside them, and the curves.

    python eval.py --preset tiny                                    # seconds
    python eval.py --preset iwslt25 --judges google/gemma-3-12b-it,google/gemma-3-27b-it

reads   <work>/<run>/predictions/<system>/<corpus>.<split>.jsonl, <work>/rows/<corpus>/<split>.jsonl, the stages'
        log.jsonl; <work>/<run>/speech_ifeval/<system>.json and <work>/<run>/pairwise/*.md, if metrics/speech_ifeval.py
        and metrics/pairwise.py wrote them; the names of infer.py's pictures of what the LLM hears
writes  <work>/<run>/results.json, results.md with links to the pictures, loss-<stage>.png; scale-<system>.png of a
        system that infer.py ran at several --lora_scale; below scores/ what a model (COMET, BERTScore, a judge) gave
        each answer: a second run asks only about new answers, and a killed run goes on

results.json is a list of {"system", "test_set", "task", "language", "metric", "value", "n"}; every table is made from
that list alone. metrics/README.md says what each score is. A score whose model or package is missing is left out, with
a line that says how to get it. Answers of the listeners are judged in pairs by metrics/pairwise.py.
"""
import glob
import os
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import cache, partial

import torch

from metrics import bertscore, comet, judge, mcif
from metrics.paper_tables import paper_tables, plan, shown_blocks
from metrics.papers import ANSWERS, ST, SYSTEMS
from metrics.scores import TEXT_SCORES, score_texts
from metrics.speech_ifeval import plot_curve, point
from metrics.tables import NAMES, TASKS, example_table, language_tables, shown, system_table
from speech_llm.constants import command, configure, locate, pick_device, read_page, require, stage_constants
from speech_llm.draws import TEXT_TASK
from speech_llm.files import read_json, read_json_lines, write_json, write_text
from speech_llm.pictures import picture
from speech_llm.pipeline import decoding_commands
from speech_llm.predictions import OFFICIAL_TESTS, parse_system, read_finished, tasks_answered
from speech_llm.resumable import resumable
from speech_llm.rows import LANGUAGES, corpus_and_split, lacks_split, read_rows


@dataclass(frozen=True)
class Config:                               # the 2025 paper's values; a page of config/ or --name value changes them
    preset: str = "tiny"                    # a page of config/, or the path of a page
    work: str = "work"                      # everything that is written lies below this folder
    run: str = ""                           # the system's folder below work; the page names it
    predictions: str = "predictions"        # folder of <work>/<run>, infer.py's --out
    systems: str = "llm,B:lora,seamless,seamless-text,A.1:projector,C:merged"      # as infer.py's; a name is a folder
    test_sets: str = "acl6060.dev,acl6060.eval,covost2.test,europarlst.test,spokensquad.test"     # <corpus>.<split>
    metrics: str = "WER,CER,BLEU,EM,CONTAINS,ROUGE-1,capped,loops,COMET,judge,BERTScore,BERTScore-xlmr,language"
    table_rows: str = "systems"             # a table a test set with a row a system, or "languages": a table a metric
    tables: str = ""                        # the papers' tables to print with ours beside them: "2025 Table 2"
    examples: str = ""                      # systems of which reference and generation are shown; 2026, Table 8
    comet: str = "models/wmt22-comet-da"    # a folder below work, any other folder, or a file of weights
    judges: str = ("utter-project/EuroLLM-9B-Instruct,google/gemma-3-12b-it,google/gemma-3-27b-it,"
                   "meta-llama/Llama-3.1-70B-Instruct")             # section 4; folders or hub names
    judge_mode: str = "probability"         # of Yes against No; or text: what the judge writes (our choice)
    references: str = "raw"                 # folder of mcif/ and iwslt26/ with their references, below work or any
    dry: bool = False                       # print which command fills which row of the papers' tables, score nothing

SCORED = {  # metric: (tasks, which rows by `answerable`; None: all rows)
    "WER": (["ASR"], [True]), "CER": (["ASR"], [True]),
    "BLEU": (ST, [True]), "chrF": (ST, [True]), "COMET": (ST, [True]),
    "EM": (ANSWERS, [True, False]), "CONTAINS": (ANSWERS, [True]), "ROUGE-1": (ANSWERS, [True]),
    "judge": (ANSWERS, [True]), "BERTScore": (ANSWERS, [True, False]), "BERTScore-xlmr": (ANSWERS, [True, False]),
    "language": (TASKS, [None]), "capped": (TASKS, [None]), "loops": (TASKS, [None]),
}
BATCH = 32                                  # answers that a model scores together


# ---------------------------------------------------------------------------------------------------------------------
# predictions
def read_predictions(path, rows, system, again):
    """Return {id: prediction} of one system on one test set. SystemExit if an id is missing, unknown or there twice."""
    tasks, redo = {row["id"]: row["task"] for row in rows}, f"remove it and run: {again}"
    predictions = read_finished(require(path, again), redo)
    for number, (name, prediction) in enumerate(predictions.items(), 1):
        where, task = f"{path} line {number}", prediction["task"]
        marks = {type(prediction.get(mark, False)) for mark in ("capped", "loops")}
        if name not in tasks:
            raise SystemExit(f"{where}: id {name!r} is no row; {redo}")
        if task not in (tasks[name], TEXT_TASK.get(tasks[name])) or marks != {bool}:
            raise SystemExit(f"{where}: id {name!r} is {tasks[name]}, its prediction of {task!r}, or its marks are not "
                             f"true or false; {redo}")
    text = {p["task"] in TEXT_TASK.values() for p in predictions.values()}
    if len(text) > 1:
        raise SystemExit(f"{path} mixes predictions from speech and from text; {redo}")
    answered_tasks = tasks_answered(system, True in text, os.path.basename(path))
    answered = {row["id"] for row in rows if row["task"] in answered_tasks and (True in text or "utterance" in row)}
    if answered - predictions.keys():
        raise SystemExit(f"{path}: {len(answered - predictions.keys())} rows have no prediction, "
                         f"first {min(answered - predictions.keys())}; {redo}")
    return predictions


def system_names(c):
    """
    Return (names of --systems; {name: folder of its stage}, for the systems of --systems and of the page; whether
    --systems has the page's value).
    """
    page = {"systems": Config.systems, **read_page(c.preset).get("common", {})}["systems"]
    parsed = [parse_system(entry) for entry in f"{page},{c.systems}".split(",")]
    folders = {name: folder for name, folder, _ in parsed if folder}
    return [parse_system(entry)[0] for entry in c.systems.split(",")], folders, c.systems == page


def reads_text(c, system, folders):
    """Return whether a system reads transcripts: the LLM, SeamlessM4T's text model, a stage without a projector."""
    folder = folders.get(system.partition("@")[0])
    path = os.path.join(c.work, c.run, folder or "", "config.json")
    if not folder or not os.path.exists(path):
        return (folder or system) in ("llm", "seamless-text")
    return "projector" not in read_json(path, f"remove {os.path.dirname(path)} and train it again")["trained"]


def with_shared_test_sets(c):
    """
    Return c with more test sets: those that other pages decode into the same folder and that have predictions there.
    If --test_sets differs from the page's value, nothing is added.
    """
    names, folder = c.test_sets.split(","), glob.escape(os.path.join(c.work, c.run, c.predictions))
    if c.test_sets == stage_constants("eval", read_page(c.preset))["test_sets"]:
        names += [name for *_, decoded in decoding_commands(c.run) for name in decoded
                  if glob.glob(f"{folder}/*/{name}.jsonl")]
    return replace(c, test_sets=",".join(dict.fromkeys(names)))


def read_test_sets(c, folder, notes):
    """Return {test set: rows}; [] without rows and predictions. A test set that a finished corpus lacks is noted."""
    rows_of = {}
    for test_set in c.test_sets.split(","):
        path = os.path.join(c.work, "rows", *corpus_and_split(test_set)) + ".jsonl"
        if lacking := lacks_split(c.work, test_set):
            notes.append(f"{test_set} is left out: {lacking}")
        elif os.path.exists(path) or glob.glob(os.path.join(glob.escape(folder), "*", f"{test_set}.jsonl")):
            rows_of[test_set] = read_rows(path)
        else:
            rows_of[test_set] = []
    return rows_of


def read_outputs(c, notes):
    """
    Return {(system, test set): (rows, predictions)}, without test sets on which the system has no task.
    If --systems has the page's value, systems without predictions are noted and left out, and all other systems with
    predictions in the folder are added. If --systems names other systems, exit if one of them has no predictions.
    """
    folder, decode = os.path.join(c.work, c.run, c.predictions), command("infer", c)
    systems, folders, by_page = system_names(c)
    present = {path.split(os.sep)[0] for path in glob.glob("*/*.jsonl", root_dir=folder)} if by_page else set()
    names = [*NAMES, *SYSTEMS]                           # in the order of the papers' tables, then by name
    others = sorted(present - {*systems}, key=lambda s: (names.index(s) if s in names else len(names), s))
    decoded = stage_constants("infer", read_page(c.preset))["test_sets"].split(",")      # by `decode`
    rows_of, outputs = read_test_sets(c, folder, notes), {}
    for system in systems + others:
        absent, idle, text = [], [], reads_text(c, system, folders)
        for test_set, rows in rows_of.items():
            path = os.path.join(folder, system, f"{test_set}.jsonl")
            if rows and not {row["task"] for row in rows} & {*tasks_answered(system, text, test_set)}:
                idle.append(test_set)
            elif by_page and not os.path.exists(path):
                if system in systems and test_set in decoded:                          # other pages decode the rest
                    absent.append(test_set)
            else:
                predictions = read_predictions(path, rows, system, decode)
                outputs[system, test_set] = rows, predictions
                if unheard := sum("unheard" in answer for answer in predictions.values()):
                    heard = f"{len(predictions) - unheard} of {len(predictions)} rows of {test_set}"
                    notes.append(f"{system} heard {heard}: the audio of {unheard} cannot be read, and their empty "
                                 "answers count as wrong")
        if absent:
            notes.append(f"{system} is left out on {', '.join(absent)}: no predictions; run: {decode}")
        if idle:
            notes.append(f"{system} is left out on {', '.join(idle)}: it has no task there")
    if not outputs:
        raise SystemExit(f"{folder} has no predictions; run: {decode}")
    return outputs


# ---------------------------------------------------------------------------------------------------------------------
# scores of texts
def result(*values):
    """Return one entry of results.json."""
    return dict(zip(("system", "test_set", "task", "language", "metric", "value", "n"), values, strict=True))


def groups(metric, rows, predictions):
    """Return [((task, language, metric or metric-unanswerable), rows)]: the predicted rows that are scored together."""
    tasks, which = SCORED[metric]
    together = defaultdict(list)
    for row in rows:
        task = predictions.get(row["id"], {}).get("task")
        task = "MCQ" if task and row["task"] == "MCQ" else task        # a text system's prediction has QA
        for answerable in which:
            if task in tasks and answerable in (None, row["answerable"]):
                together[task, row["language"], metric + "-unanswerable" * (answerable is False)].append(row)
    return sorted(together.items())


def score(system, test_set, rows, predictions, metric, notes):
    """Return results of one system on one test set by a metric without a model. What is left out becomes a note."""
    results = []
    for (task, language, name), group in groups(metric, rows, predictions):
        answers = [predictions[row["id"]] for row in group]
        if metric in TEXT_SCORES:
            try:
                value, left_out = score_texts(metric, [row["target"] for row in group],
                                              [answer["prediction"] for answer in answers], language)
            except ImportError as error:
                notes.append(f"{metric} is left out: {error}")
                continue
            if left_out:
                notes.append(f"{metric} on {test_set}: {len(left_out)} {task} rows in {language} are not scored: "
                             f"nothing is left of their references: {', '.join(group[n]['id'] for n in left_out[:3])}"
                             + (" ..." if len(left_out) > 3 else ""))
            if value is None:
                continue
            results.append(result(system, test_set, task, language, name, value, len(group) - len(left_out)))
        elif all(metric in answer for answer in answers):      # capped and loops, which infer.py marks
            value = 100 * sum(answer[metric] for answer in answers) / len(answers)
            results.append(result(system, test_set, task, language, name, value, len(group)))
    return results


# ---------------------------------------------------------------------------------------------------------------------
# scores by a model, answer by answer
def load_comet(c):
    """Return COMET as a function from [source, translation, reference] items to their scores."""
    path = c.comet if os.path.exists(c.comet) else os.path.join(c.work, c.comet)
    encoder = comet.ENCODERS["regression"]
    if not os.path.exists(path):
        raise FileNotFoundError(f"no weights at {path}; run: hf download Unbabel/wmt22-comet-da --local-dir {path}")
    try:
        model = comet.load_comet(path, pick_device())
    except OSError as error:
        raise FileNotFoundError(f"{path} is not whole, or {encoder} not here; run: hf download {encoder} config.json "
                                "sentencepiece.bpe.model tokenizer.json tokenizer_config.json") from error
    return lambda items: comet.score(model, [dict(zip(("src", "mt", "ref"), item)) for item in items])


def model_jobs(c, metrics):
    """Yield (metric, name of its scores, languages, load) of every model; load() -> a function from items to scores."""
    if "COMET" in metrics:
        yield "COMET", f"COMET:{c.comet}", LANGUAGES, partial(load_comet, c)
    for llm in filter(None, c.judges.split(",") if "judge" in metrics else []):
        yield ("judge", f"judge:{c.judge_mode}:{llm}", LANGUAGES,
               partial(judge.load_judge, locate(c.work, llm), c.judge_mode, pick_device()))
    for metric in [metric for metric in metrics if metric.startswith("BERTScore")]:
        for language in LANGUAGES:
            model, layer = bertscore.ORGANISERS[language] if metric == "BERTScore" else bertscore.XLMR
            yield (metric, f"{metric}:{language}:{model}", [language],
                   partial(bertscore.load_bertscore, language, model, layer, str(pick_device())))


ITEMS = {  # what a model reads: of the row, of the same question's English row, and the prediction
    "COMET": lambda row, english, prediction: [row["transcript"], prediction, row["target"]],
    "judge": lambda row, english, prediction: [row["question"], english["target"], prediction],      # 2025, section 4
    "BERTScore": lambda row, english, prediction: [prediction, row["target"]],
    "BERTScore-xlmr": lambda row, english, prediction: [prediction, row["target"]],
}


def model_scores(c, outputs, metric, name, languages, load):
    """Return results of one model on all outputs. It is loaded for the first answer that has no score yet."""
    results, load = [], cache(load)
    for (system, test_set), (rows, predictions) in outputs.items():
        together = [(key, group) for key, group in groups(metric, rows, predictions) if key[1] in languages]
        by_id, items = {row["id"]: row for row in rows}, []
        for row in (row for _, group in together for row in group):
            # Spoken-SQuAD's questions are translations: the judge gets the English answer. Of other corpora, and
            # without an English row, it gets the row's own (our choice)
            english_id = row["id"].removesuffix("." + row["language"]) + ".en"
            english = by_id.get(english_id, row) if test_set == "spokensquad.test" else row
            items.append(ITEMS[metric](row, english, predictions[row["id"]]["prediction"]))
        if not items:
            continue
        path = os.path.join(c.work, c.run, "scores", c.predictions, system,
                            f"{test_set}.{name.replace(':', '-').replace(os.sep, '-')}.jsonl")
        scores = iter(resumable(path, {"scores": name}, items, lambda batch: load()(batch), BATCH,
                                f"{name}, {system}, {test_set}", size=lambda texts: sum(map(len, texts))))
        for (task, language, metric_name), group in together:
            values = [next(scores) for _ in group]
            means = {metric_name: sum(values) / len(values)}
            if metric == "judge":
                means = dict(zip([name, "unparsable" + name.removeprefix("judge")], judge.accuracy(values)))
            results += [result(system, test_set, task, language, *mean, len(group)) for mean in means.items()]
    return results


def official_results(c, outputs, notes):
    """Return the organisers' scores of OFFICIAL_TESTS (metrics/mcif.py), language by language; they are fractions."""
    results, load = [], cache(partial(load_comet, c))    # once for all systems and languages
    references = c.references if os.path.isdir(c.references) else os.path.join(c.work, c.references)
    for system, test_set in outputs:
        folder = os.path.join(references, test_set.removesuffix(".test"))
        output = os.path.join(c.work, c.run, c.predictions, system, f"{test_set}.xml")
        for language in LANGUAGES:
            files = glob.glob(os.path.join(glob.escape(folder), "**", f"*short.{language}.ref.xml*"), recursive=True)
            if not files:
                notes.append(f"{test_set} in {language} is not scored: no *short.{language}.ref.xml* below {folder}")
                continue
            scores, absent = mcif.official_scores(
                output, files[0], language, load_comet=load,
                load_bertscore=partial(bertscore.load_bertscore, language, *bertscore.ORGANISERS[language],
                                       str(pick_device())))
            notes += [f"{metric} on {test_set} is left out: {why}" for metric, why in absent.items()]
            results += [result(system, test_set, "official", language, *score, None) for score in scores.items()]
    return results


def all_results(c, metrics, outputs, notes):
    """Return the results of all metrics: scores of texts, then each model's, which is in memory alone."""
    official = {key: output for key, output in outputs.items() if key[1] in OFFICIAL_TESTS}
    others = {key: output for key, output in outputs.items() if key not in official}
    results = official_results(c, official, notes)
    for metric in [metric for metric in metrics if metric not in ITEMS]:
        for (system, test_set), (rows, predictions) in others.items():
            results += score(system, test_set, rows, predictions, metric, notes)
    for metric, name, *job in model_jobs(c, metrics):
        try:
            results += model_scores(c, others, metric, name, *job)
        except (ImportError, FileNotFoundError) as error:
            notes.append(f"{metric} is left out: {error}")
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            notes.append(f"{name} does not fit on this GPU; run the same command on a machine with two GPUs, after "
                         "pip install accelerate")
    if "judge" in metrics and not c.judges:
        notes.append(f"judge is left out: no LLM is named; run: {command('eval', c)} --judges {Config.judges}")
    return results


# ---------------------------------------------------------------------------------------------------------------------
# pictures
def plot_losses(folder):
    """Write loss-<stage>.png for every stage that has a log; return the paths."""
    paths = []
    for log in sorted(glob.glob(os.path.join(glob.escape(folder), "*", "log.jsonl"))):
        lines = read_json_lines(log, "remove its folder and train it again")
        if not lines:                                       # the stage has just begun
            continue
        stage = os.path.basename(os.path.dirname(log))
        curves = {"loss": dict(linewidth=0.8, label="training"),
                  "validation_loss": dict(marker="o", label="validation")}
        if any(line.get("listening") is not None for line in lines):
            curves["listening"] = dict(marker=".", linestyle="--", label="listening")
        keys, unit = {key for line in lines for key in line}, "nats per answer token"
        if keys & {"L1", "embedding"}:                      # SpeechMapper's objectives
            unit = "weighted sum of the losses"
        elif "token errors" in keys:
            unit = "CTC, nats per unit"
        paths.append(os.path.join(folder, f"loss-{stage}.png"))
        with picture(paths[-1], figsize=(6, 3.5)) as axes:
            for key, style in curves.items():
                axes.plot([p["step"] for p in lines if key in p], [p[key] for p in lines if key in p], **style)
            axes.set(title=stage, xlabel="optimizer step", ylabel=unit, yscale="log")
            axes.legend()
    return paths


def plot_scales(folder, results, systems, test_set, notes):
    """
    Write scale-<system>.png for every system that has also run with its adapters at a scale; return the paths.
    Task scores are those of one test set, means over languages.
    """
    paths = []
    for base in dict.fromkeys(name.partition("@")[0] for name in systems if "@" in name):
        points = []
        for name in (name for name in systems if name.partition("@")[0] == base):
            path = os.path.join(folder, "speech_ifeval", f"{name}.json")
            redo = "run python -m metrics.speech_ifeval, which writes it"
            obedience = point(read_json(path, f"remove it and {redo}")) if os.path.exists(path) else {}
            notes += [] if obedience else [f"scale-{base}.png lacks {path}; {redo}"]
            values = {metric: [r["value"] for r in results if r["system"] == name and r["test_set"] == test_set
                               and r["metric"] == shown(metric, r["language"])] for metric in ("WER", "BLEU", "EM")}
            points.append({"scale": float(name.partition("@")[2] or 1), **obedience,
                           **{metric: sum(scores) / len(scores) for metric, scores in values.items() if scores}})
        paths.append(os.path.join(folder, f"scale-{base}.png"))
        plot_curve(points, paths[-1], base)
    return paths


def links_to_pictures(c, systems):
    """Return links, as Markdown, to infer.py's pictures of what the LLM hears in each system."""
    texts = []
    for system in systems:
        names = sorted(glob.glob(f"{c.predictions}/{glob.escape(system)}/*.png", root_dir=os.path.join(c.work, c.run)))
        if names:
            texts.append(f"What the LLM hears in {system}:\n" + "\n".join(f"![{name}]({name})" for name in names))
    return texts


def pairwise_tables(folder):
    """Return the tables that metrics/pairwise.py wrote of a judge's preferences, each with its systems above it."""
    texts = []
    for path in sorted(glob.glob(os.path.join(glob.escape(folder), "pairwise", "*.md"))):
        with open(path, encoding="utf-8") as file:
            texts.append(f"{os.path.basename(path).removesuffix('.md')}: {file.read().strip()}")
    return texts


def main(argv=None):
    c = with_shared_test_sets(configure(Config, "eval", argv))
    folder, metrics, notes = os.path.join(c.work, c.run), c.metrics.split(","), []
    if not {*metrics} <= {*SCORED} or c.judge_mode not in ("probability", "text"):
        raise SystemExit(f"--metrics are of {','.join(SCORED)}; --judge_mode is probability or text")

    papers = list(filter(None, c.tables.split(",")))
    if c.dry:
        print(plan(papers, decoding_commands(c.run)))
        return

    # 1. scores
    outputs = read_outputs(c, notes)
    results = all_results(c, metrics, outputs, notes)

    # 2. the tables, from the results alone
    systems = list(dict.fromkeys(system for system, _ in outputs))
    test_sets = [test_set for test_set in c.test_sets.split(",") if any(test_set == name for _, name in outputs)]
    tables = (language_tables(results, systems, shown_blocks(papers)) if c.table_rows == "languages"
              else [system_table(results, test_set, systems) for test_set in test_sets])
    tables += paper_tables(results, papers) + pairwise_tables(folder)
    tables += filter(None, [example_table(outputs, system) for system in filter(None, c.examples.split(","))])
    tables += links_to_pictures(c, systems)
    scales = plot_scales(folder, results, systems, test_sets[0], notes)
    judges = sorted({r["metric"].removeprefix("judge:") for r in results if r["metric"].startswith("judge:")})
    notes = list(dict.fromkeys(notes))
    if judges:
        notes.insert(0, f"judge: the mean over {', '.join(judges)}")
    if notes:
        tables.append("\n".join(f"- {note}" for note in notes))
    text = "\n\n".join(tables)
    stem = os.path.join(folder, c.predictions.replace("predictions", "results"))       # predictions-mcif: results-mcif
    write_json(f"{stem}.json", results)
    write_text(f"{stem}.md", text + "\n")
    losses = plot_losses(folder)
    print(f"{text}\n\nall scores but COMET and BERTScore are percentages; they are in {stem}.md and "
          f"{os.path.basename(stem)}.json, the loss curves in\n" + "\n".join(losses))
    if scales:
        print("the curves over LoRA's scale in\n" + "\n".join(scales))


if __name__ == "__main__":
    main()
