"""
The papers' tables (papers.py) with our results beside the papers' figures.

    paper_tables(results, ["2026 Table 1", "2026 Table 2"])     -> [Markdown]: our row above each row of the paper
    paper_tables(results, ["listeners Table 3"])                -> [Markdown]: a row a language, the paper last
"""
from itertools import product

from metrics.papers import ABLATIONS, FAMILIES, LANGUAGE_TABLES, TABLES, figures, language_figures
from metrics.tables import BLOCKS, NAMES, language_table, markdown, mean, system_name


def paper_tables(results, names):
    """
    Return those of the papers' tables `names` in which we have a figure, in Markdown.
    A table of ablations needs the figure of an ablated system. ValueError for an unknown name.
    """
    tables = []
    for name in names:
        if name in LANGUAGE_TABLES:
            tables += beside_languages(results, name)
        elif name in TABLES:
            tables += filter(None, [beside_systems(results, name)])
        else:
            raise ValueError(f"{name!r} is none of the papers' tables {', '.join([*TABLES, *LANGUAGE_TABLES])}")
    return tables


def plan(names, decoding):
    """
    Return for each of the papers' tables `names` which command fills which row, in Markdown. decoding: [(command,
    systems, test sets)]; a row whose system no command decodes on the table's test sets is a figure of the paper alone.
    """
    lines = ["| table | command | rows |", "|---|---|---|"]
    for name in names:
        rows, tests = {}, set()
        systems = [system for _, systems, _ in decoding for system in systems]         # columns of a language table
        if name in TABLES:
            systems = figures(name)
            tests = {test for column in TABLES[name].columns for test in column.test_sets}
        for system in dict.fromkeys(systems):
            commands = commands_for(system, tests, decoding) or ["any" if system == "rows" else "the paper alone"]
            rows.setdefault(" and ".join(commands), []).append(system)
        lines += [f"| {name} | {command} | {', '.join(systems)} |" for command, systems in rows.items()]
    return "\n".join(lines)


def commands_for(system, tests, decoding):
    """Return the first commands that decode a system on the test sets `tests`; the first of all if `tests` is empty."""
    commands = []
    for command, systems, decoded in decoding:
        if system in systems and (tests & {*decoded} or not tests and not commands):
            commands.append(f"`{command}`")
            tests = tests - {*decoded}
    return commands


def shown_blocks(names):
    """Return the (metric, family of test sets) that the language tables among `names` show."""
    return [(metric, test_sets) for name in names if name in LANGUAGE_TABLES
            for metric, test_sets in FAMILIES.items() if metric in ("WER", *LANGUAGE_TABLES[name][1])]


def beside_languages(results, name):
    """Return a table for each metric of one table whose rows are languages."""
    systems, tables = list(dict.fromkeys(r["system"] for r in results)), []
    for heading, tasks, metric in BLOCKS:
        if (metric, FAMILIES.get(metric)) in shown_blocks([name]):
            tables += language_table(results, systems, f"{name}, {heading}: {FAMILIES[metric]}", tasks, metric,
                                     FAMILIES[metric], language_figures(name, metric))
    return tables


def beside_systems(results, name):
    """Return one table whose rows are systems, our row above each of the paper's; "" if we have no figure for it."""
    columns, paper, lines, ours = TABLES[name].columns, figures(name), [], set()
    for system, row in paper.items():
        cells = []
        for n, column in enumerate(columns):
            decimals = max(len(other[n].partition(".")[2]) for other in paper.values())
            value = our_figure(results, system, column)
            cells.append("" if value is None else f"{value:.{decimals}f}")
        if any(cells):
            ours.add(system)
        lines += [[system_name(system), "ours", *cells], ["", "paper", *row]]
    if not ours - (set(NAMES) if name in ABLATIONS else set()):
        return ""
    test_sets = dict.fromkeys(test_set for column in columns for test_set in column.test_sets)
    text = markdown([f"{name}: {', '.join(test_sets)}", "", *(column.heading for column in columns)], lines)
    return f"{text}\n\n{TABLES[name].note}".strip()


def our_figure(results, system, column):
    """
    Return our figure for one cell in the paper's unit, None if one of its test sets or languages is missing.
    The metric "n" is the largest number of questions that a system answered.
    """
    if column.metric == "n":
        return max((r["n"] for r in results if r["test_set"] in column.test_sets and r["language"] in column.languages
                    and r["metric"] == "EM"), default=None)
    values, weights = [], []
    for test_set, language in product(column.test_sets, column.languages):
        values.append(mean(results, system, test_set, column.tasks, column.metric, [language]))
        weights.append(samples(results, system, test_set, column, language) if column.weighted else 1)
    if None in values:
        return None
    return column.scale * sum(w * value for w, value in zip(weights, values)) / sum(weights)


def samples(results, system, test_set, column, language):
    """Return how many samples a system's score is of; 0 without a score."""
    return max((r["n"] for r in results if r["system"] == system and r["test_set"] == test_set
                and r["task"] in column.tasks and r["language"] == language
                and r["metric"].partition(":")[0] == column.metric), default=0)
