"""
results.json -> Markdown: a table a test set, and the paper's tables with ours beside them.

    table(results, "tiny.test", ["B", "C"])     -> a row a system, a column for every score that one of them has
    beside_paper(results, "Table 2")            -> our row above each of the paper's
    by_language(results, ["cascade", "C"])      -> the listeners: a table a metric, a row a language, a column a system

Several judges are averaged here: the metric "judge" is the mean over the lines judge:<mode>:<LLM>.
"""
from itertools import product

from metrics.paper_tables import ABLATIONS, DE_IT_ZH, EN_DE_IT_ZH, SYSTEMS, TABLES, figures, listeners_figures


ST, QA = ("ST", "MT"), ("SQA", "QA")
ANSWERS = (*QA, "MCQ")
TASKS = ("ASR", *ST, *ANSWERS)
NAMES = {"llm": "LLM, text", "B": "B: LoRA, text", "A.1": "A.1: projector (ASR, ST)",
         "A.2": "A.2: projector (ASR, ST, SQA)", "C": "C: projector + LoRA"}
OFFICIAL = ("ASR-WER", "TRANS-COMET", "QA-BERTScore", "SUM-BERTScore", "QE-accuracy", "QE-format-accuracy")
SHARES = ("language", "capped", "loops", "unparsable")     # of outputs: every output weighs the same


def by_language(metric, tasks, languages):
    return [(f"{metric} {language}", tasks, metric, [language]) for language in languages]


COLUMNS = [  # heading, tasks, metric, languages that are averaged
    ("WER", ["ASR"], "WER", ["en"]), ("CER", ["ASR"], "CER", ["en"]),
    *by_language("BLEU", ST, DE_IT_ZH), ("BLEU mean", ST, "BLEU", DE_IT_ZH),
    *by_language("COMET", ST, DE_IT_ZH), ("COMET mean", ST, "COMET", DE_IT_ZH),
    *by_language("EM", QA, EN_DE_IT_ZH), ("EM mean", QA, "EM", EN_DE_IT_ZH),
    ("contains", QA, "CONTAINS", EN_DE_IT_ZH), ("ROUGE-1", QA, "ROUGE-1", EN_DE_IT_ZH),
    ("EM MCQ", ["MCQ"], "EM", EN_DE_IT_ZH),
    *by_language("judge", QA, EN_DE_IT_ZH), ("judge mean", QA, "judge", EN_DE_IT_ZH),
    ("no verdict", QA, "unparsable", EN_DE_IT_ZH),
    ("BERTScore", QA, "BERTScore", EN_DE_IT_ZH), ("BERTScore xlmr", QA, "BERTScore-xlmr", EN_DE_IT_ZH),
    ("unanswerable", QA, "EM-unanswerable", EN_DE_IT_ZH),
    ("unanswerable BERTScore", QA, "BERTScore-unanswerable", EN_DE_IT_ZH),
    ("unanswerable BERTScore xlmr", QA, "BERTScore-xlmr-unanswerable", EN_DE_IT_ZH),
    ("ASR in English", ["ASR"], "language", EN_DE_IT_ZH), ("ST in its language", ST, "language", EN_DE_IT_ZH),
    ("SQA in its language", QA, "language", EN_DE_IT_ZH),
    ("capped", TASKS, "capped", EN_DE_IT_ZH), ("loops", TASKS, "loops", EN_DE_IT_ZH),
    *((metric, ["official"], metric, EN_DE_IT_ZH) for metric in OFFICIAL),                 # on MCIF alone
]


def mean(results, system, test_set, tasks, metric, languages):
    """The mean over what fits, None if nothing does."""
    found = [r for r in results if r["system"] == system and r["test_set"] == test_set and r["task"] in tasks
             and r["metric"].partition(":")[0] == metric and r["language"] in languages]
    weights = [r["n"] if metric in SHARES else 1 for r in found]
    return sum(w * r["value"] for w, r in zip(weights, found)) / sum(weights) if found else None


def markdown(head, lines):
    lines = ["| " + " | ".join(line) + " |" for line in [head, *lines]]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])


def table(results, test_set, systems):
    """A row a system that has a score on this test set, a cell empty where it has none."""
    lines = {}
    for system in systems:
        values = [(metric, mean(results, system, test_set, tasks, metric, languages))
                  for _, tasks, metric, languages in COLUMNS]
        cells = ["" if value is None else f"{value:.{3 if metric.startswith(('COMET', 'BERT', *OFFICIAL)) else 1}f}"
                 for metric, value in values]
        if any(cells):
            lines[system] = cells
    used = [i for i in range(len(COLUMNS)) if any(cells[i] for cells in lines.values())]
    names = {**NAMES, **SYSTEMS}
    return markdown([test_set, *(COLUMNS[i][0] for i in used)],
                    [[names.get(system, system), *(cells[i] for i in used)] for system, cells in lines.items()])


def beside_paper(results, name):
    """
    One table of the paper, our row above each of its rows, with as many decimals; empty where we have no number. "" if
    we have none at all, or, for a table of ablations, none of an ablated system.
    """
    heads, paper, names, lines, found = TABLES[name][0], figures(name), {**NAMES, **SYSTEMS}, [], set()
    for system, row in paper.items():
        cells = []
        for head in heads:
            test_sets, metric, languages = head[0].split(","), head[1], head[2].split(",")
            if metric == "n":                                   # Table 3: how many questions any system was scored on
                values = [max((r["n"] for r in results if r["test_set"] == head[0] and r["language"] == head[2]
                               and r["metric"] == "EM"), default=None)]
            else:
                values = [mean(results, system, test_set, TASKS, metric, [language])
                          for test_set, language in product(test_sets, languages)]
            decimals = max(len(other[head].partition(".")[2]) for other in paper.values())
            cells.append("" if None in values else f"{sum(values) / len(values):.{decimals}f}")
        if any(cells):
            found.add(system)
        lines += [[names.get(system, system), "ours", *cells], ["", "paper", *row.values()]]
    if not found - (set(NAMES) if name in ABLATIONS else set()):
        return ""
    several = {metric for _, metric, _ in heads if len({t for t, m, _ in heads if m == metric}) > 1}
    titles = [" ".join([test_set.split(".")[0]] * (metric in several) + [metric, language])
              for test_set, metric, language in heads]
    return markdown([f"2025, {name}: {', '.join(dict.fromkeys(head[0] for head in heads))}", "", *titles], lines)


# --- The listeners.

CHARACTERS = ("zh", "ja")                   # their ASR counts in CER, everywhere else in WER (listeners, section 4)
BLOCKS = [  # heading, tasks, metric
    ("WER; CER in zh, ja", ["ASR"], "WER"), ("BLEU", ST, "BLEU"), ("chrF", ST, "chrF"), ("EM", QA, "EM"),
    ("contains", QA, "CONTAINS"), ("capped", TASKS, "capped"), ("loops", TASKS, "loops"),
]


def spoken(result):
    """
    The language of a result's row in the tables: of covost2-<source>_en.test the source, else the result's own; with
    the name of a split that is none of the benchmark's, so that two test sets are never mixed.
    """
    corpus, _, split = result["test_set"].rpartition(".")
    pair = corpus.removeprefix("covost2-")
    language = pair.removesuffix("_en") if pair.endswith("_en") else result["language"]
    return language if split in ("test", "bench") else f"{language}, {split}"


def shown(metric, language):
    """The metric that a language has instead of `metric`."""
    return "CER" if metric == "WER" and language in CHARACTERS else metric


def by_language(results, systems):
    """
    For each metric a table of all test sets: a row a language, a column a system, the paper's Table 3 beside it. The
    last row is the plain mean over the languages, CER among WER, empty for a system that lacks one of them.
    """
    found = []
    for heading, tasks, metric in BLOCKS:
        values, rows, paper = {}, {}, {}
        for r in results:
            if r["task"] in tasks and r["metric"] == shown(metric, r["language"]):
                values.setdefault((r["system"], spoken(r)), []).append(r["value"])
                rows[spoken(r)] = max(r["n"], rows.get(spoken(r), 0))
                if r["test_set"].startswith(("commonvoice.", "covost2-")) and metric in ("WER", "BLEU", "chrF"):
                    paper = listeners_figures(metric)
        ours = [system for system in systems if any(system == known for known, _ in values)]
        if not ours:
            continue
        values = {key: sum(some) / len(some) for key, some in values.items()}
        lines = [[language, str(rows[language]), *(cell(values.get((system, language))) for system in ours),
                  *(figures.get(language, "") for figures in paper.values())] for language in sorted(rows)]
        means = [[values.get((system, language)) for language in rows] for system in ours]
        lines.append(["mean", "", *(cell(None if None in some else sum(some) / len(some)) for some in means),
                      *(figures["mean"] for figures in paper.values())])
        names = {**NAMES, **SYSTEMS}
        found.append(markdown([heading, "rows", *(names.get(system, system) for system in ours),
                               *(f"paper: {system}" for system in paper)], lines))
    return found


def cell(value):
    return "" if value is None else f"{value:.1f}"
