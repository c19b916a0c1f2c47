"""
Tables in Markdown from results.json, which is a list of {"system", "test_set", "task", "language", "metric", "value",
"n"}.

    system_table(results, "tiny.test", ["B", "C"])        -> a row a system, a column a score
    language_tables(results, ["cascade", "C"])            -> a table a metric, a row a language, a column a system
    example_table(outputs, "A")                           -> references and generations of one system

Several judges are averaged here: the metric "judge" is the mean over the metrics judge:<mode>:<LLM>.
"""
import re

from metrics.error_rates import mms_pair, word_error_rate
from metrics.papers import ANSWERS, QA, ST, SYSTEMS
from metrics.texts import CHARACTERS
from speech_llm.normalize import nfc
from speech_llm.rows import ALL_LANGUAGES


TASKS = ("ASR", *ST, *ANSWERS)
NAMES = {"llm": "LLM, text", "B": "B: LoRA, text", "A.1": "A.1: projector (ASR, ST)",
         "A.2": "A.2: projector (ASR, ST, SQA)", "C": "C: projector + LoRA"}
OFFICIAL_METRICS = ("ASR-WER", "TRANS-COMET", "QA-BERTScore", "SUM-BERTScore", "QE-accuracy", "QE-format-accuracy")
SHARES = ("language", "capped", "loops", "unparsable")     # of outputs: every output weighs the same
THREE_DECIMALS = ("COMET", "BERT", *OFFICIAL_METRICS)      # fractions; all other scores are percentages

COLUMNS = [  # heading, tasks, metric, whether each language has a column beside the mean
    ("WER", ["ASR"], "WER", True), ("CER", ["ASR"], "CER", True),
    ("BLEU", ST, "BLEU", True), ("chrF", ST, "chrF", True), ("COMET", ST, "COMET", True),
    ("EM", QA, "EM", True), ("contains", QA, "CONTAINS", False), ("ROUGE-1", QA, "ROUGE-1", False),
    ("EM MCQ", ["MCQ"], "EM", False), ("judge", QA, "judge", True), ("judge MCQ", ["MCQ"], "judge", False),
    ("no verdict", ANSWERS, "unparsable", False),
    ("BERTScore", QA, "BERTScore", False), ("BERTScore xlmr", QA, "BERTScore-xlmr", False),
    ("unanswerable", QA, "EM-unanswerable", False), ("unanswerable BERTScore", QA, "BERTScore-unanswerable", False),
    ("unanswerable BERTScore xlmr", QA, "BERTScore-xlmr-unanswerable", False),
    ("ASR in English", ["ASR"], "language", False), ("ST in its language", ST, "language", False),
    ("SQA in its language", QA, "language", False),
    ("capped", TASKS, "capped", False), ("loops", TASKS, "loops", False),
    *((metric, ["official"], metric, False) for metric in OFFICIAL_METRICS),                # on MCIF alone
]


def mean(results, system, test_set, tasks, metric, languages):
    """Return the mean over the results that fit, None if none does; a share weighs by its outputs."""
    fitting = [r for r in results if r["system"] == system and r["test_set"] == test_set and r["task"] in tasks
               and r["metric"].partition(":")[0] == metric and r["language"] in languages]
    weights = [r["n"] if metric in SHARES else 1 for r in fitting]
    return sum(w * r["value"] for w, r in zip(weights, fitting)) / sum(weights) if fitting else None


def markdown(head, lines):
    """Return a table in Markdown."""
    lines = ["| " + " | ".join(line) + " |" for line in [head, *lines]]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])


def cell(value, metric=""):
    """Return a value as the text of a cell, "" for None."""
    return "" if value is None else f"{value:.{3 if metric.startswith(THREE_DECIMALS) else 1}f}"


def system_name(system):
    """Return what a row or column says of a system."""
    return {**NAMES, **SYSTEMS}.get(system, system)


# --- A test set: a row a system.

def columns_of(results, test_set):
    """
    Return [(heading, tasks, metric, languages)] for the languages in which a test set is scored.
    English needs no name where it is the only language of ASR. WER has no columns for zh and ja, whose ASR is CER.
    """
    columns = []
    for heading, tasks, metric, each in COLUMNS:
        present = {r["language"] for r in results if r["test_set"] == test_set and r["task"] in tasks
                   and r["metric"].partition(":")[0] == metric}
        languages = [la for la in ALL_LANGUAGES if la in present and not (metric == "WER" and la in CHARACTERS)]
        if each and (languages != ["en"] or tasks != ["ASR"]):
            columns += [(f"{heading} {language}", tasks, metric, [language]) for language in languages]
            if len(languages) > 1:
                columns.append((f"{heading} mean", tasks, metric, languages))
        else:
            columns.append((heading, tasks, metric, languages))
    return columns


def system_table(results, test_set, systems):
    """Return a table with a row for each system that has a score on this test set, and no empty column."""
    columns, lines = columns_of(results, test_set), {}
    for system in systems:
        cells = [cell(mean(results, system, test_set, tasks, metric, languages), metric)
                 for _, tasks, metric, languages in columns]
        if any(cells):
            lines[system] = cells
    filled = [i for i in range(len(columns)) if any(cells[i] for cells in lines.values())]
    return markdown([test_set, *(columns[i][0] for i in filled)],
                    [[system_name(system), *(cells[i] for i in filled)] for system, cells in lines.items()])


# --- Languages: a row a language.

BLOCKS = [  # heading, tasks, metric
    ("WER; CER in zh, ja", ["ASR"], "WER"), ("BLEU", ST, "BLEU"), ("chrF", ST, "chrF"), ("EM", QA, "EM"),
    ("contains", QA, "CONTAINS"), ("capped", TASKS, "capped"), ("loops", TASKS, "loops"),
]
PAIRS = [(r"covost2-(\w+)_en\.", "covost2-X_en."), (r"covost2-en_(\w+)\.", "covost2-en_X.")]      # a corpus a language


def family(test_set):
    """Return the test sets that make one table: a test set, or CoVoST 2's of all languages in one direction."""
    for pattern, name in PAIRS:
        test_set = re.sub(pattern, name, test_set)
    return test_set


def spoken(result):
    """Return the language of a result's row: the source of covost2-<source>_en, else the language of the result."""
    source = re.match(PAIRS[0][0], result["test_set"])
    return source[1] if source else result["language"]


def shown(metric, language):
    """Return the metric that a language has in place of `metric`."""
    return "CER" if metric == "WER" and language in CHARACTERS else metric


def language_tables(results, systems, leave_out=()):
    """
    Return a table for each metric and each family of test sets: a row for each language, a column for each system.
    The last row is the mean over the languages, CER among WER. It is empty for a system that lacks one of them.
    `leave_out` holds (metric, family) of tables that are shown elsewhere.
    """
    tables = []
    for heading, tasks, metric in BLOCKS:
        for name in dict.fromkeys(family(r["test_set"]) for r in results):
            if (metric, name) not in leave_out:
                tables += language_table(results, systems, f"{heading}: {name}", tasks, metric, name)
    return tables


def language_table(results, systems, heading, tasks, metric, name, paper=None):
    """
    Return [a table of one metric on one family of test sets], [] without a score.
    `paper` is {system of a paper: {language or "mean": what the paper prints}}, a column each.
    """
    fitting = [r for r in results if family(r["test_set"]) == name and r["task"] in tasks and r["system"] in systems
               and r["metric"] == shown(metric, r["language"])]
    ours = [system for system in systems if any(r["system"] == system for r in fitting)]
    if not ours:
        return []
    rows, values = {}, {}
    for r in fitting:
        rows[spoken(r)] = max(r["n"] or 0, rows.get(spoken(r), 0))
        values[r["system"], spoken(r)] = mean(fitting, r["system"], r["test_set"], tasks, r["metric"], [r["language"]])
    paper = paper or {}
    lines = [[language, str(rows[language]), *(cell(values.get((system, language))) for system in ours),
              *(figures.get(language, "") for figures in paper.values())] for language in sorted(rows)]
    means = [[values.get((system, language)) for language in rows] for system in ours]
    lines.append(["mean", "", *(cell(None if None in column else sum(column) / len(column)) for column in means),
                  *(figures["mean"] for figures in paper.values())])
    return [markdown([heading, "rows", *map(system_name, ours), *(f"paper: {system}" for system in paper)], lines)]


# --- Examples.

def example_table(outputs, system):
    """
    Return a table of generations beside their references, as the 2026 paper's Table 8; "" without any.

    `outputs` is {(system, test set): (rows, {id: {"prediction", "task"}})}. For each test set and task it is the answer
    with the median word error rate among those that differ from their reference (our choice).
    """
    lines = []
    for (name, test_set), (rows, predictions) in outputs.items():
        tasks = dict.fromkeys(row["task"] for row in rows if row["id"] in predictions) if name == system else ()
        for task in tasks:
            wrong = []
            for row in rows:
                if row["task"] == task and row["id"] in predictions:
                    reference, prediction = nfc(row["target"]), nfc(predictions[row["id"]]["prediction"])
                    words = mms_pair(reference, prediction, row["language"])
                    errors = word_error_rate([words[0]], [words[1]]) if words[0] else 0
                    wrong += [(errors, row["id"], reference, prediction)] * (errors > 0)
            if wrong:
                texts = [" ".join(text.replace("|", "\\|").split()) for text in sorted(wrong)[len(wrong) // 2][2:]]
                lines.append([f"{test_set} {task}", *texts])
    return markdown([f"{system_name(system)}: examples", "reference", "generation"], lines) if lines else ""
