"""
Evaluation: predictions -> one table a test set, and the loss curves.

    python eval.py                        # tiny; seconds
    python eval.py --preset iwslt25

reads   <work>/<preset>/predictions/<system>/<corpus>.<split>.jsonl, <work>/rows/<corpus>/<split>.jsonl, and the
        stages' log.jsonl
writes  <work>/<preset>/results.json, results.md, loss-<stage>.png

results.json is a list of {"system", "test_set", "task", "language", "metric", "value", "n"}; values are percentages.
WER: corpus level, after MMS normalisation. BLEU: sacrebleu, 13a, zh for Chinese. EM: equal to the reference after the
same normalisation; CONTAINS: the reference is somewhere in the answer; EM-unanswerable: on questions without an answer.
"""
import glob
import json
import os
from collections import defaultdict
from dataclasses import dataclass

from data.rows import LANGUAGES, read_rows, replace_file
from extract_features import configure, require, write_json
from metrics.normalize import mms_normalize, word_error_rate


@dataclass(frozen=True)
class Config:                               # edit here, or pass --name value
    preset: str = "tiny"                    # filled in by configure
    work: str = "work"
    systems: str = "llm,B,A.1,A.2,C"        # the rows of the table, folders of <work>/<preset>/predictions
    test_sets: str = "tiny.test"

PRESETS = {                                 # only what differs from the lines above
    "tiny":    {},
    "smoke":   {},
    "digits":  dict(test_sets="digits.test"),
    "iwslt25": dict(systems="llm,B,A.1,C", test_sets="acl6060.eval,covost2.test,europarlst.test,spokensquad.test"),
}

NAMES = {"llm": "LLM, text", "B": "B: LoRA, text", "A.1": "A.1: projector (ASR, ST)",
         "A.2": "A.2: projector (ASR, ST, SQA)", "C": "C: projector + LoRA"}


# ---------------------------------------------------------------------------------------------------------------------
# scores: (predictions, references, language) -> percent
def wer(predictions, references, language):
    """Word errors, insertions + deletions + substitutions, over reference words; MMS-normalised (2025, section 4)."""
    return word_error_rate([mms_normalize(r, language) for r in references],
                           [mms_normalize(p, language) for p in predictions])


def bleu(predictions, references, language):
    """Corpus BLEU, nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp, tok:zh for Chinese (2025, section 4)."""
    from sacrebleu.metrics import BLEU
    return BLEU(tokenize="zh" if language == "zh" else "13a").corpus_score(predictions, [references]).score


def plain(text, language):
    """Lower case, no punctuation; numbers stay, an answer may be one."""
    return mms_normalize(text, language, remove_numbers=False)


def exact_match(predictions, references, language):
    """Share of answers that equal the reference after normalisation."""
    same = [plain(p, language) == plain(r, language) for p, r in zip(predictions, references)]
    return 100 * sum(same) / len(same)


def contains(predictions, references, language):
    """Share of answers in which the reference occurs: a right answer in a whole sentence counts too."""
    found = [plain(r, language) in plain(p, language) for p, r in zip(predictions, references)]
    return 100 * sum(found) / len(found)


METRICS = {  # task: {metric: (score, which rows by `answerable`)}
    "ASR": {"WER": (wer, True)},
    "ST": {"BLEU": (bleu, True)}, "MT": {"BLEU": (bleu, True)},
    "SQA": {"EM": (exact_match, True), "CONTAINS": (contains, True), "EM-unanswerable": (exact_match, False)},
}
METRICS["QA"] = METRICS["MCQ"] = METRICS["SQA"]


def read_predictions(path, rows, preset):
    """{id: prediction} of one system on one test set; every id must be one of the rows', once."""
    redo = f"remove it and run: python infer.py --preset {preset}"
    known, predictions = {row["id"] for row in rows}, {}
    with open(require(path, f"python infer.py --preset {preset}"), encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                prediction = json.loads(line)
                name, _, _ = prediction["id"], prediction["prediction"] + "", METRICS[prediction["task"]]
            except (ValueError, KeyError, TypeError):
                raise SystemExit(f"{path} line {number} is not a prediction; {redo}") from None
            if name in predictions or name not in known:
                wrong = "there twice" if name in known else "no row"
                raise SystemExit(f"{path} line {number}: id {name!r} is {wrong}; {redo}")
            predictions[name] = prediction
    text = any(p["task"] in ("MT", "QA") for p in predictions.values())    # a text system reads all rows but ASR
    wanted = {row["id"] for row in rows if (row["task"] != "ASR" if text else "utterance" in row)}
    if wanted - predictions.keys():
        raise SystemExit(f"{path}: {len(wanted - predictions.keys())} rows have no prediction, "
                         f"first {min(wanted - predictions.keys())}; {redo}")
    return predictions


def score(system, test_set, rows, predictions):
    """All results of one system on one test set -> list of the dicts of results.json."""
    groups = defaultdict(list)
    for row in rows:
        if row["id"] in predictions:
            groups[predictions[row["id"]]["task"], row["language"]].append(row)
    results = []
    for (task, language), group in sorted(groups.items()):
        for metric, (function, answerable) in METRICS[task].items():
            kept = [row for row in group if row["answerable"] is answerable]
            if kept:
                said = [predictions[row["id"]]["prediction"] for row in kept]
                value = function(said, [row["target"] for row in kept], language)
                results.append({"system": system, "test_set": test_set, "task": task, "language": language,
                                "metric": metric, "value": value, "n": len(kept)})
    return results


# ---------------------------------------------------------------------------------------------------------------------
# the table and the curves
COLUMNS = [  # heading: (tasks, metric, languages that are averaged)
    ("WER", ("ASR",), "WER", ("en",)),
    *[(f"BLEU {language}", ("ST", "MT"), "BLEU", (language,)) for language in LANGUAGES[1:]],
    ("BLEU mean", ("ST", "MT"), "BLEU", LANGUAGES[1:]),
    *[(f"EM {language}", ("SQA", "QA"), "EM", (language,)) for language in LANGUAGES],
    ("EM mean", ("SQA", "QA"), "EM", LANGUAGES),
    ("contains", ("SQA", "QA"), "CONTAINS", LANGUAGES),
    ("unanswerable", ("SQA", "QA"), "EM-unanswerable", LANGUAGES),
]


def table(results, test_set, systems):
    """Markdown: a row a system, a cell the mean over the column's languages, empty where there is no score."""
    lines = ["| " + " | ".join([test_set, *(heading for heading, *_ in COLUMNS)]) + " |",
             "|---" * (len(COLUMNS) + 1) + "|"]
    for system in systems:
        cells = []
        for _, tasks, metric, languages in COLUMNS:
            values = [r["value"] for r in results if r["system"] == system and r["test_set"] == test_set
                      and r["task"] in tasks and r["metric"] == metric and r["language"] in languages]
            cells.append(f"{sum(values) / len(values):.1f}" if values else "")
        lines.append(f"| {NAMES.get(system, system)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot_losses(folder):
    """loss-<stage>.png beside results.json for every stage that has a log; returns the paths."""
    import matplotlib
    matplotlib.use("Agg")                                   # no screen
    import matplotlib.pyplot as plt
    paths = []
    for log in sorted(glob.glob(os.path.join(glob.escape(folder), "*", "log.jsonl"))):
        with open(log) as file:
            lines = [json.loads(line) for line in file]
        stage = os.path.basename(os.path.dirname(log))
        figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
        for key, style in (("loss", dict(linewidth=0.8, label="training")),
                           ("validation_loss", dict(marker="o", label="validation"))):
            axes.plot([p["step"] for p in lines if key in p], [p[key] for p in lines if key in p], **style)
        axes.set(title=stage, xlabel="optimizer step", ylabel="nats per answer token", yscale="log")
        axes.legend()
        paths.append(os.path.join(folder, f"loss-{stage}.png"))
        with replace_file(paths[-1]) as name:
            figure.savefig(name, dpi=120)
        plt.close(figure)
    return paths


def main(argv=None):
    c = configure(Config, PRESETS, argv)
    folder, systems, results, tables = os.path.join(c.work, c.preset), c.systems.split(","), [], []
    for test_set in c.test_sets.split(","):
        corpus, split = test_set.rsplit(".", 1)
        rows = read_rows(os.path.join(c.work, "rows", corpus, f"{split}.jsonl"))
        for system in systems:
            path = os.path.join(folder, "predictions", system, f"{test_set}.jsonl")
            results += score(system, test_set, rows, read_predictions(path, rows, c.preset))
        tables.append(table(results, test_set, systems))
    write_json(os.path.join(folder, "results.json"), results)
    with replace_file(os.path.join(folder, "results.md")) as name, open(name, "w", encoding="utf-8") as file:
        file.write("\n\n".join(tables) + "\n")
    paths = plot_losses(folder)
    print("\n\n".join(tables))
    print(f"\nall scores are percentages; they are in {folder}/results.md and results.json, the loss curves in\n"
          + "\n".join(paths))


if __name__ == "__main__":
    main()
