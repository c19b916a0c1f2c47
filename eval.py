"""
Evaluation: predictions -> one table a test set, the 2025 paper's tables with ours beside them, and the loss curves.

    python eval.py                                                          # tiny; seconds
    python eval.py --preset iwslt25 --judges google/gemma-3-12b-it,google/gemma-3-27b-it

reads   <work>/<run>/predictions/<system>/<corpus>.<split>.jsonl, <work>/rows/<corpus>/<split>.jsonl, the stages'
        log.jsonl, and <work>/<run>/speech_ifeval/<system>.json where metrics/speech_ifeval.py wrote it
writes  <work>/<run>/results.json, results.md, loss-<stage>.png; scale-<system>.png of a system that infer.py ran at
        several --lora_scale: what it obeys and what it knows; below scores/ what a model (COMET, BERTScore, a judge)
        said of each answer: a second run asks only about answers that are new, a killed one goes on

results.json is a list of {"system", "test_set", "task", "language", "metric", "value", "n"}. COMET and BERTScore are on
their own scales, all other values are percentages; every table is made from that list alone.

WER, CER        corpus level, after MMS normalisation
BLEU, chrF      sacrebleu, 13a, zh for Chinese, MeCab for Japanese and Korean; chrF2
COMET           wmt22-comet-da, the mean over the rows
EM, CONTAINS    the answer equals the reference after the same normalisation; the reference is somewhere in the answer
ROUGE-1         recall, the mean over the answers
judge           mean over the LLMs of how many answers each finds right; in text mode also those that give no verdict
BERTScore       F1, rescaled: the organisers' models; BERTScore-xlmr: xlm-roberta-large
language        share of outputs in the language that was asked for
capped, loops   share of outputs that infer.py stopped at its cap; that repeat themselves
EM-unanswerable and BERTScore-unanswerable are on questions without an answer, which no other score of answers counts.
A metric whose model or package is not here is left out, with a line that says how to get it. The listeners have a table
a metric, a row a language; pairs of their answers are judged by a script of its own, metrics/pairwise.py.
"""
import glob
import json
import os
from collections import defaultdict
from dataclasses import dataclass
from functools import cache, partial

from metrics import bertscore, comet, judge, mcif
from metrics.bleu import bleu, chrf
from metrics.error_rates import character_error_rate, word_error_rate
from metrics.exact import contains, exact_match
from metrics.paper_tables import SYSTEMS, TABLES
from metrics.rouge import rouge1_recall
from metrics.speech_ifeval import plot_curve, point
from metrics.tables import ANSWERS, CHARACTERS, NAMES, ST, TASKS, beside_paper, by_language, shown, table
from speech_llm.constants import command, configure, pick_device, read_page, require
from speech_llm.draws import TEXT_TASK
from speech_llm.files import read_json, read_json_lines, replace_file, write_json
from speech_llm.normalize import mms_normalize
from speech_llm.predictions import tasks_answered
from speech_llm.resumable import resumable
from speech_llm.rows import LANGUAGES, not_made, read_rows


@dataclass(frozen=True)
class Config:                               # the 2025 paper's values; a page of config/ or --name value changes them
    preset: str = "tiny"                    # a page of config/, or the path of a page
    work: str = "work"                      # everything that is written lies below this folder
    run: str = ""                           # the system's folder below work; the page names it
    predictions: str = "predictions"        # folder of <work>/<run>, infer.py's --out
    systems: str = "llm,B,seamless,seamless-text,A.1,C"             # folders of predictions; "name:folder" is its name
    test_sets: str = "acl6060.dev,acl6060.eval,covost2.test,europarlst.test,spokensquad.test"     # <corpus>.<split>
    metrics: str = "WER,CER,BLEU,EM,CONTAINS,ROUGE-1,capped,loops,COMET,judge,BERTScore,BERTScore-xlmr,language"
    table_rows: str = "systems"             # a table a test set with a row a system, or "languages": a table a metric
    tables: str = ""                        # the papers' tables to print with ours beside them: "Table 2,Table 7"
    comet: str = "models/wmt22-comet-da"    # a folder below work, any other folder, or a file of weights
    judges: str = ("utter-project/EuroLLM-9B-Instruct,google/gemma-3-12b-it,google/gemma-3-27b-it,"
                   "meta-llama/Llama-3.1-70B-Instruct")             # section 4; folders or hub names
    judge_mode: str = "probability"         # of Yes against No; or text: what the judge writes (our choice)
    references: str = "raw/mcif"            # MCIF's, a folder below work or any other

BATCH = 32                                  # answers that a model scores together


# ---------------------------------------------------------------------------------------------------------------------
# scores of texts: (references, predictions, language) -> percent
def wer(references, predictions, language):
    """Word errors, insertions + deletions + substitutions, over reference words; MMS-normalised (2025, section 4)."""
    return word_error_rate([mms_normalize(r, language) for r in references],
                           [mms_normalize(p, language) for p in predictions])


def cer(references, predictions, language):
    """The same of characters, of which a space is one; not in zh and ja, where it was punctuation (our choice)."""
    references, predictions = ([mms_normalize(text, language) for text in texts] for texts in (references, predictions))
    if language in CHARACTERS:
        references, predictions = ([text.replace(" ", "") for text in texts] for texts in (references, predictions))
    return character_error_rate(references, predictions)


def in_language(_, predictions, language):
    """Share of outputs in the language that was asked for (2025, section 6)."""
    from metrics.language import available, share_in_language
    if not available():
        raise ImportError("the package py3langid is missing; run: pip install py3langid")
    return share_in_language(predictions, language)


METRICS = {  # name: (score of texts, None for another kind; tasks; which rows by `answerable`, None for all)
    "WER": (wer, ["ASR"], [True]), "CER": (cer, ["ASR"], [True]),
    "BLEU": (bleu, ST, [True]), "chrF": (chrf, ST, [True]), "COMET": (None, ST, [True]),
    "EM": (exact_match, ANSWERS, [True, False]), "CONTAINS": (contains, ANSWERS, [True]),
    "ROUGE-1": (rouge1_recall, ANSWERS, [True]), "judge": (None, ANSWERS, [True]),
    "BERTScore": (None, ANSWERS, [True, False]), "BERTScore-xlmr": (None, ANSWERS, [True, False]),
    "language": (in_language, TASKS, [None]), "capped": (None, TASKS, [None]), "loops": (None, TASKS, [None]),
}


def result(*values):
    """One entry of results.json."""
    return dict(zip(("system", "test_set", "task", "language", "metric", "value", "n"), values, strict=True))


def groups(metric, rows, predictions):
    """Which predicted rows are scored together: [((task, language, metric or metric-unanswerable), rows)]."""
    _, tasks, which = METRICS[metric]
    found = defaultdict(list)
    for row in rows:
        task = predictions.get(row["id"], {}).get("task")
        task = "MCQ" if task and row["task"] == "MCQ" else task        # a text system calls it QA
        for answerable in which:
            if task in tasks and answerable in (None, row["answerable"]):
                found[task, row["language"], metric + "-unanswerable" * (answerable is False)].append(row)
    return sorted(found.items())


def score(system, test_set, rows, predictions, metric, notes):
    """Results of one system on one test set, by a metric that needs no model; where it lacks a package, a note."""
    results, function = [], METRICS[metric][0]
    for (task, language, name), kept in groups(metric, rows, predictions):
        answers = [predictions[row["id"]] for row in kept]
        if function:
            try:
                value = function([row["target"] for row in kept], [a["prediction"] for a in answers], language)
            except ImportError as error:
                notes.append(f"{metric} is left out: {error}")
                continue
        elif all(metric in a for a in answers):            # capped and loops, as infer.py marks them
            value = 100 * sum(a[metric] for a in answers) / len(answers)
        else:
            continue
        results.append(result(system, test_set, task, language, name, value, len(kept)))
    return results


# ---------------------------------------------------------------------------------------------------------------------
# scores by a model, answer by answer
def load_comet(c):
    """COMET -> a function from [source, translation, reference] items to their scores."""
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
    """(metric, name of its scores, languages, load) of every model; load() -> a function from items to scores."""
    if "COMET" in metrics:
        yield "COMET", f"COMET:{c.comet}", LANGUAGES, partial(load_comet, c)
    for llm in filter(None, c.judges.split(",") if "judge" in metrics else []):
        path = os.path.join(c.work, llm)
        yield ("judge", f"judge:{c.judge_mode}:{llm}", LANGUAGES,
               partial(judge.load_judge, path if os.path.isdir(path) else llm, c.judge_mode, pick_device()))
    for metric in [metric for metric in metrics if metric.startswith("BERTScore")]:
        for language in LANGUAGES:
            model, layer = bertscore.ORGANISERS[language] if metric == "BERTScore" else bertscore.XLMR
            yield (metric, f"{metric}:{language}:{model}", [language],
                   partial(bertscore.load_bertscore, language, model, layer, str(pick_device())))


ITEMS = {  # what a model reads: of the row, of the same question's English row, and the prediction
    "COMET": lambda row, english, said: [row["transcript"], said, row["target"]],
    "judge": lambda row, english, said: [row["question"], english["target"], said],      # 2025, section 4
    "BERTScore": lambda row, english, said: [said, row["target"]],
    "BERTScore-xlmr": lambda row, english, said: [said, row["target"]],
}


def model_scores(c, outputs, metric, name, languages, load):
    """Results of one model on all outputs; it is loaded for the first answer that has no score yet."""
    results, load = [], cache(load)
    for (system, test_set), (rows, predictions) in outputs.items():
        found = [(key, kept) for key, kept in groups(metric, rows, predictions) if key[1] in languages]
        by_id, items = {row["id"]: row for row in rows}, []
        for row in (row for _, kept in found for row in kept):
            # its questions are translations; of other corpora, or without an English row, this one (our choice)
            twin = row["id"].removesuffix("." + row["language"]) + ".en"
            english = by_id.get(twin, row) if test_set == "spokensquad.test" else row
            items.append(ITEMS[metric](row, english, predictions[row["id"]]["prediction"]))
        if not items:
            continue
        path = os.path.join(c.work, c.run, "scores", c.predictions, system,
                            f"{test_set}.{name.replace(':', '-').replace(os.sep, '-')}.jsonl")
        scores = iter(resumable(path, {"scores": name}, items, lambda some: load()(some), BATCH,
                                f"{name}, {system}, {test_set}", size=lambda texts: sum(map(len, texts))))
        for (task, language, metric_), kept in found:
            some = [next(scores) for _ in kept]
            values = {metric_: sum(some) / len(some)}
            if metric == "judge":
                values = dict(zip([name, "unparsable" + name.removeprefix("judge")], judge.accuracy(some)))
            results += [result(system, test_set, task, language, *pair, len(kept)) for pair in values.items()]
    return results


def official_results(c, outputs, notes):
    """The organisers' scores on MCIF (metrics/mcif.py), a language at a time; fractions, as they give them."""
    results, folder = [], c.references if os.path.isdir(c.references) else os.path.join(c.work, c.references)
    for system, test_set in outputs:
        output = os.path.join(c.work, c.run, c.predictions, system, f"{test_set}.xml")
        for language in LANGUAGES:
            found = glob.glob(os.path.join(glob.escape(folder), "**", f"*short.{language}.ref.xml*"), recursive=True)
            if not found:
                notes.append(f"{test_set} in {language} is not scored: no *short.{language}.ref.xml* below {folder}")
                continue
            scores, absent = mcif.official_scores(
                output, found[0], language, load_comet=partial(load_comet, c),
                load_bertscore=partial(bertscore.load_bertscore, language, *bertscore.ORGANISERS[language],
                                       str(pick_device())))
            notes += [f"{metric} on {test_set} is left out: {why}" for metric, why in absent.items()]
            results += [result(system, test_set, "official", language, *pair, None) for pair in scores.items()]
    return results


# ---------------------------------------------------------------------------------------------------------------------
# predictions
def system_names(c):
    """Return (names of --systems, {name: folder of its stage} of these and of the page's, whether they are the page's)."""
    page = {"systems": Config.systems, **read_page(c.preset).get("common", {})}["systems"]
    folders = dict(entry.split(":") for entry in f"{page},{c.systems}".split(",") if ":" in entry)
    return [entry.partition(":")[0] for entry in c.systems.split(",")], folders, c.systems == page


def reads_text(c, system, folders):
    """Return whether a system reads transcripts: the LLM, SeamlessM4T's text model, a stage without a projector."""
    folder = folders.get(system.partition("@")[0])
    path = os.path.join(c.work, c.run, folder or "", "config.json")
    if not folder or not os.path.exists(path):
        return system in ("llm", "seamless-text")
    return "projector" not in read_json(path, f"remove {os.path.dirname(path)} and train it again")["trained"]


def read_predictions(path, rows, system, command):
    """
    Return {id: prediction} of one system on one test set; `command` makes the predictions.
    SystemExit if a line is no prediction, if its id is not a row's or there twice, and if a row has none.
    """
    redo = f"remove it and run: {command}"
    known, predictions = {row["id"]: row["task"] for row in rows}, {}
    with open(require(path, command), "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                prediction = json.loads(line)
                name, _, task = prediction["id"] + "", prediction["prediction"] + "", prediction["task"]
                marks = {type(prediction.get(mark, False)) for mark in ("capped", "loops")}
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                raise SystemExit(f"{path} line {number} is not a prediction; {redo}") from None
            if name in predictions or name not in known:
                wrong = "there twice" if name in known else "no row"
                raise SystemExit(f"{path} line {number}: id {name!r} is {wrong}; {redo}")
            if task not in (known[name], TEXT_TASK.get(known[name])) or marks != {bool}:
                raise SystemExit(f"{path} line {number}: id {name!r} is {known[name]}, its prediction of {task!r}, or "
                                 f"its marks are not true or false; {redo}")
            predictions[name] = prediction
    text = {p["task"] in TEXT_TASK.values() for p in predictions.values()}
    if len(text) > 1:
        raise SystemExit(f"{path} mixes predictions from speech and from text; {redo}")
    text = True in text
    tasks = tasks_answered(system, text, os.path.basename(path))
    wanted = {row["id"] for row in rows if row["task"] in tasks and (text or "utterance" in row)}
    if wanted - predictions.keys():
        raise SystemExit(f"{path}: {len(wanted - predictions.keys())} rows have no prediction, "
                         f"first {min(wanted - predictions.keys())}; {redo}")
    return predictions


def read_test_sets(c, folder, notes):
    """Return {test set: rows}; [] where neither rows nor predictions exist. A set that no recipe could make is noted."""
    rows_of = {}
    for test_set in c.test_sets.split(","):
        path = os.path.join(c.work, "rows", *test_set.rsplit(".", 1)) + ".jsonl"
        if not_made(c.work, test_set):
            notes.append(f"{test_set} is left out: its recipe could not make it, see {os.path.dirname(path)}/counts.md")
        elif os.path.exists(path) or glob.glob(os.path.join(glob.escape(folder), "*", f"{test_set}.jsonl")):
            rows_of[test_set] = read_rows(path)
        else:
            rows_of[test_set] = []
    return rows_of


def read_outputs(c, notes):
    """
    Return {(system, test set): (rows, predictions)}. Test sets without a task of the system are left out.
    Systems of the page may lack predictions, which is noted; a system that --systems names may not. The papers' other
    systems are added if they have predictions, because pages share a folder and its tables.
    """
    folder, decode = os.path.join(c.work, c.run, c.predictions), command("infer", c)
    systems, folders, usual = system_names(c)
    others = [s for s in (*NAMES, *SYSTEMS) if usual and s not in systems and os.path.isdir(os.path.join(folder, s))]
    others += sorted(set(glob.glob("*@*", root_dir=folder)) - {*systems}) if usual else []     # at a scale of LoRA
    rows_of, outputs = read_test_sets(c, folder, notes), {}
    for system in systems + others:
        absent, idle, text = [], [], reads_text(c, system, folders)
        for test_set, rows in rows_of.items():
            path = os.path.join(folder, system, f"{test_set}.jsonl")
            if rows and not {row["task"] for row in rows} & {*tasks_answered(system, text, test_set)}:
                idle.append(test_set)
            elif usual and not os.path.exists(path):
                absent.append(test_set)
            else:
                outputs[system, test_set] = rows, read_predictions(path, rows, system, decode)
        if absent:
            notes.append(f"{system} is left out on {', '.join(absent)}: no predictions"
                         + (f"; run: {decode}" if system in systems else ""))
        if idle:
            notes.append(f"{system} is left out on {', '.join(idle)}: it has no task there")
    if not outputs:
        raise SystemExit(f"{folder} has no predictions; run: {decode}")
    return outputs


# ---------------------------------------------------------------------------------------------------------------------
def plot_losses(folder):
    """loss-<stage>.png beside results.json for every stage that has a log; returns the paths."""
    import matplotlib
    matplotlib.use("Agg")                                   # no screen
    import matplotlib.pyplot as plt
    paths = []
    for log in sorted(glob.glob(os.path.join(glob.escape(folder), "*", "log.jsonl"))):
        lines = read_json_lines(log, "remove its folder and train it again")
        if not lines:                                       # it has just begun
            continue
        stage = os.path.basename(os.path.dirname(log))
        figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
        for key, style in (("loss", dict(linewidth=0.8, label="training")),
                           ("validation_loss", dict(marker="o", label="validation"))):
            axes.plot([p["step"] for p in lines if key in p], [p[key] for p in lines if key in p], **style)
        unit = "four losses, weighted" if "L1" in lines[0] else "nats per answer token"
        axes.set(title=stage, xlabel="optimizer step", ylabel=unit, yscale="log")
        axes.legend()
        paths.append(os.path.join(folder, f"loss-{stage}.png"))
        with replace_file(paths[-1]) as name:
            figure.savefig(name, dpi=120)
        plt.close(figure)
    return paths


def plot_scales(folder, results, systems, notes):
    """scale-<system>.png for every system that infer.py also ran as <system>@<scale>, of LoRA; returns the paths."""
    paths = []
    for base in dict.fromkeys(name.partition("@")[0] for name in systems if "@" in name):
        points = []
        for name in (name for name in systems if name.partition("@")[0] == base):
            path = os.path.join(folder, "speech_ifeval", f"{name}.json")
            redo = "run metrics/speech_ifeval.py, of which it is a result"
            obeyed = point(read_json(path, f"remove it and {redo}")) if os.path.exists(path) else {}
            notes += [] if obeyed else [f"scale-{base}.png lacks {path}; {redo}"]
            known = {metric: [r["value"] for r in results if r["system"] == name
                              and r["metric"] == shown(metric, r["language"])] for metric in ("WER", "BLEU", "EM")}
            points.append({"scale": float(name.partition("@")[2] or 1), **obeyed,
                           **{metric: sum(some) / len(some) for metric, some in known.items() if some}})
        paths.append(os.path.join(folder, f"scale-{base}.png"))
        plot_curve(points, paths[-1], base)
    return paths


def main(argv=None):
    c = configure(Config, "eval", argv)
    folder, metrics, notes = os.path.join(c.work, c.run), c.metrics.split(","), []
    if not {*metrics} <= {*METRICS} or c.judge_mode not in ("probability", "text"):
        raise SystemExit(f"--metrics are some of {','.join(METRICS)}; --judge_mode is probability or text")

    # 1. scores of the texts, then of the models, each of which is in memory alone
    outputs = read_outputs(c, notes)
    official = {key: outputs.pop(key) for key in list(outputs) if key[1].startswith("mcif.")}
    results = official_results(c, official, notes)
    for metric in [metric for metric in metrics if metric not in ITEMS]:
        for (system, test_set), (rows, predictions) in outputs.items():
            results += score(system, test_set, rows, predictions, metric, notes)
    for metric, name, *job in model_jobs(c, metrics):
        try:
            results += model_scores(c, outputs, metric, name, *job)
        except (ImportError, FileNotFoundError) as error:
            notes.append(f"{metric} is left out: {error}")
    if "judge" in metrics and not c.judges:
        notes.append(f"judge is left out: no LLM is named; run: {command('eval', c)} --judges {Config.judges}")

    # 2. the tables, from the results alone
    systems = list(dict.fromkeys(system for system, _ in [*outputs, *official]))
    made = {test_set for _, test_set in [*outputs, *official]}
    scored = [test_set for test_set in c.test_sets.split(",") if test_set in made]
    tables = (by_language(results, systems) if c.table_rows == "languages"
              else [table(results, test_set, systems) for test_set in scored])
    tables += filter(None, (beside_paper(results, name) for name in c.tables.split(",") if name in TABLES))
    scales = plot_scales(folder, results, systems, notes)
    judges = sorted({r["metric"].removeprefix("judge:") for r in results if r["metric"].startswith("judge:")})
    notes = [f"judge: the mean over {', '.join(judges)}"] * bool(judges) + list(dict.fromkeys(notes))
    text = "\n\n".join(tables + ["\n".join(f"- {note}" for note in notes)] * bool(notes))
    stem = os.path.join(folder, c.predictions.replace("predictions", "results"))
    write_json(f"{stem}.json", results)
    with replace_file(f"{stem}.md") as name, open(name, "w", encoding="utf-8") as file:
        file.write(text + "\n")
    print(f"{text}\n\nall scores but COMET and BERTScore are percentages; they are in {stem}.md and "
          f"{os.path.basename(stem)}.json, the loss curves in\n" + "\n".join(plot_losses(folder))
          + "\nthe curves over LoRA's scale in\n" * bool(scales) + "\n".join(scales))


if __name__ == "__main__":
    main()
