"""
MultiSpeech-Bench's spoken questions: an LLM decides which of two systems' answers is better (multilingual listeners,
section 4 and appendix A.5).

    python -m metrics.pairwise work/listeners/predictions/C work/listeners/predictions/cascade
        --judge CohereLabs/c4ai-command-a-03-2025 --rows work/rows/multispeechqa/bench.jsonl
    python -m metrics.pairwise FOLDER FOLDER --pairs pairs.jsonl        # for annotators: they fill in "labels"
    python -m metrics.pairwise FOLDER FOLDER --judge LLM --human pairs.jsonl

reads   the SQA rows of --rows, and <system>/<corpus>.<split>.jsonl of both systems, as infer.py writes them; --human,
        one or several files of --pairs with labels, "A", "B" or "TIE" for each annotator; or lines of {"id": a row's,
        "labels": ["C", "TIE", "cascade"]}
writes  <work>/<run>/pairwise/<first>-<second>.md, .json and .png, the rates, which eval.py adds to results.md;
        .verdicts.jsonl, every order, reply and verdict; .replies.jsonl, the judge's replies: a second run asks only
        about new answers. With --pairs the items alone

Which answer is shown as (A) is drawn for each row from --seed and its id, so that each system is both across rows
(A.5). A reply counts for the choice that stands first after its first "Preferred:"; one without a choice is unparsable,
and shown. Rates are percent of all replies in a language, so that wins, ties and unparsable replies sum to 100. Their
means are over languages, which weigh the same: over all, and over the named GROUPS. The paper's judge is Command-A,
with GPT-4o beside it; any local chat LLM can judge here. The paper finds that fine-tuned Qwen2.5-Omni wins 60.6 %
against Qwen2.5-Omni (section 5.1), and models trained with AST 46.8 % against those without (section 6.1).

Agreement with people: the label that most annotators of a row gave, a tie if no label has the most (our choice),
against the verdict. Rows without a verdict are left out, and counted. Kappa is Cohen's. The paper finds 75.6 % and
0.186 for Qwen2.5-Omni, 52.4 % and 0.185 for GPT-Audio, with three annotators in eight languages (A.7).
"""
import argparse
import os
import random
from collections import Counter, defaultdict

from metrics.chat import replies
from metrics.tables import markdown
from speech_llm.constants import require
from speech_llm.files import read_json_lines, write_json, write_json_lines, write_text
from speech_llm.normalize import nfc
from speech_llm.pictures import picture
from speech_llm.predictions import read_finished
from speech_llm.rows import ALL_LANGUAGES
from speech_llm.thoughts import after_thought


PROMPT = """\
You are a helpful following assistant whose goal is to select the preferred (least wrong) output for a given \
instruction in {LANGUAGE_NAME}.

Which of the following answers is the best one for given instruction in {LANGUAGE_NAME}.
A good answer should follow these rules:
1) It should be in {LANGUAGE_NAME}
2) It should answer the request in the instruction
3) It should be factually and semantically comprehensible
4) It should be grammatically correct and fluent.
Instruction: {INSTRUCTION}
Answer (A): {COMPLETION_A}
Answer (B): {COMPLETION_B}
FIRST provide a one-sentence comparison of the two answers, explaining which you prefer and why.
SECOND, on a new line, state only 'Answer (A)' or 'Answer (B)' to indicate your choice.
If the both answers are equally good or bad, state 'TIE'.
Your response should use the format:
Comparison: <one-sentence comparison and explanation>
Preferred: <'Answer (A)' or 'Answer (B)' or 'TIE'>"""       # A.5, the lines of the PDF joined
TIE, UNPARSABLE = "TIE", "unparsable"
SHOWN = 5                   # unparsable replies that are printed; verdicts.jsonl has them all
CHOICES = {"Answer (A)": "A", "Answer (B)": "B", "TIE": TIE}
TEN = ("en", "fr", "nl", "tr", "de", "ar", "es", "ru", "id", "pl")
GROUPS = {  # languages over which a mean is taken beside the mean of all; --groups replaces them
    "TEN": TEN,                                                             # of TEN and TEN+AST (section 6)
    "not in TEN": tuple(language for language in ALL_LANGUAGES if language not in TEN),
    # those that CoVoST 2 has beside English, in either direction; section 6.1
    "CoVoST 2": ("ar", "de", "es", "fa", "fr", "id", "it", "ja", "nl", "pt", "ru", "tr", "zh"),
    "judged by people": ("ar", "de", "he", "hi", "ko", "pt", "tr", "zh"),   # A.7
}


# --- One pair.

def order(row_id, systems, seed):
    """Return the two systems as (A) and (B) of one row: a draw that depends on the seed and the row alone."""
    return random.Random(f"{seed} {row_id}").sample(sorted(systems), 2)


def pair_chat(language, instruction, answers):
    """Return what the judge reads of the answers (A) and (B), one user turn. ValueError for an unknown language."""
    if language not in ALL_LANGUAGES:
        raise ValueError(f"no name for the language {language!r}; known are {', '.join(ALL_LANGUAGES)}")
    return [{"role": "user", "content": PROMPT.format(
        LANGUAGE_NAME=ALL_LANGUAGES[language], INSTRUCTION=instruction, COMPLETION_A=answers[0],
        COMPLETION_B=answers[1])}]


def preferred(reply):
    """Return "A", "B", TIE or UNPARSABLE of a reply. Quotes, < and * before the choice are skipped (our choice)."""
    choice = after_thought(reply).partition("Preferred:")[2].lstrip(" \t\r\n'\"‘“<*`")
    return next((kind for text, kind in CHOICES.items() if choice.startswith(text)), UNPARSABLE)


# --- Rates and agreement.

def rates(verdicts, systems, groups=GROUPS):
    """
    Return {language: {system: percent, ..., TIE: percent, UNPARSABLE: percent, "n": replies}} of verdicts, which are
    (language, the system that wins, TIE or UNPARSABLE). "mean" is the mean over the languages; each of the `groups`
    {name: languages} with a verdict has its mean under its name. ValueError without verdicts.
    """
    if not verdicts:
        raise ValueError("no verdicts to take rates of")
    counts = defaultdict(Counter)
    for language, winner in verdicts:
        counts[language][winner] += 1
    kinds = [*systems, TIE, UNPARSABLE]
    table = {language: {**{kind: 100 * count[kind] / count.total() for kind in kinds}, "n": count.total()}
             for language, count in sorted(counts.items())}
    means = {}
    for name, languages in {"mean": tuple(table), **groups}.items():
        lines = [table[language] for language in languages if language in table]
        if lines:
            means[name] = {kind: sum(line[kind] for line in lines) / len(lines) for kind in kinds}
            means[name]["n"] = sum(line["n"] for line in lines)
    return {**table, **means}


def consensus(labels):
    """Return the label that most annotators gave; None if no label has the most."""
    (label, most), *others = Counter(labels).most_common()
    return None if others and others[0][1] == most else label


def agreement(human, judge):
    """
    Return (percent alike, Cohen's kappa) of two lists of labels; kappa is 0 for chance and at most 1.
    Kappa is None if both lists hold one and the same label throughout. ValueError for lists of unequal length.
    """
    if not human or len(human) != len(judge):
        raise ValueError(f"{len(human)} labels of people and {len(judge)} of the judge")
    n, (first, second) = len(human), (Counter(human), Counter(judge))
    alike = sum(a == b for a, b in zip(human, judge)) / n
    chance = sum(first[label] * second[label] for label in first) / n**2
    return 100 * alike, None if chance == 1 else (alike - chance) / (1 - chance)


def agreement_with_people(labels, winners):
    """
    Return {"agreement", "kappa", "n", "undecided": rows in which no label had the most, "unparsable": rows that people
    labelled and the judge did not} of {id: labels of people} and {id: winner}. SystemExit if they share no row.
    """
    shared = [name for name in labels if winners.get(name, UNPARSABLE) != UNPARSABLE]
    if not shared:
        raise SystemExit("the labels of people are of none of the rows that the judge decided")
    human = [consensus(labels[name]) for name in shared]
    alike, kappa = agreement([label or TIE for label in human], [winners[name] for name in shared])
    return {"agreement": alike, "kappa": kappa, "n": len(shared), "undecided": human.count(None),
            "unparsable": sum(winners.get(name) == UNPARSABLE for name in labels)}


# --- Files.

def read_lines(path, keys, redo):
    """Return a file's JSON objects, which have a text under all `keys`. SystemExit names file, line and `redo`."""
    if not os.path.exists(path):
        raise SystemExit(f"{path} is missing; {redo}")
    lines = read_json_lines(path, redo, complete=True)
    for number, line in enumerate(lines, 1):
        for key in keys:
            if not isinstance(line[key], str) or not line[key]:
                raise SystemExit(f"{path} line {number} has no {key}; {redo}")
    return lines


def read_answers(path, rows):
    """Return {id: prediction} of one system in NFC. SystemExit unless every row has one."""
    redo = "infer.py on these rows"
    lines = read_finished(require(path, redo), f"remove it and run {redo}")
    answers = {name: nfc(line["prediction"]) for name, line in lines.items()}
    lacking = [row["id"] for row in rows if row["id"] not in answers]
    if lacking:
        raise SystemExit(f"{path}: {len(lacking)} rows have no prediction, first {lacking[0]}; run {redo}")
    return answers


def read_labels(paths, systems):
    """
    Return {id: labels of people} of one or several files; a label is the name of a system, or TIE.
    In a file of --pairs "A" and "B" are the systems in the order of the file's seed; rows without labels are left out.
    """
    redo = f'a line is {{"id": ..., "labels": [...]}}, its labels are of {", ".join([*systems, TIE])}, or A and B'
    labels = defaultdict(list)
    for path in paths:
        for line in read_lines(path, ["id"], redo):
            names = dict(zip("AB", order(line["id"], systems, line["seed"]))) if "seed" in line else {}
            if not isinstance(line["labels"], list) or not all(isinstance(label, str) for label in line["labels"]):
                raise SystemExit(f"{path}: the labels of {line['id']} are no list of texts; {redo}")
            labels[line["id"]] += [names.get(label, label) for label in line["labels"]]
            if not {*labels[line["id"]]} <= {*systems, TIE}:
                raise SystemExit(f"{path}: the labels of {line['id']} are {line['labels']!r}; {redo}")
    return {name: given for name, given in labels.items() if given}


def write_pairs(path, rows, answers, seed):
    """Write one item for each row, from which an annotator cannot tell the systems; "labels" is empty."""
    items = []
    for row in rows:
        shown = order(row["id"], list(answers), seed)
        items.append({**{key: row[key] for key in ("id", "language", "question", "audio") if key in row},
                      **{letter: answers[system][row["id"]] for letter, system in zip("AB", shown)},
                      "seed": seed, "labels": []})
    write_json_lines(path, items)
    print(f"{len(items)} pairs in {path}: each annotator adds \"A\", \"B\" or \"{TIE}\" to the labels of an item")


def judge_pairs(rows, answers, judge, seed, path):
    """
    Return [{"id", "language", "A", "B", "reply", "winner"}] of SQA rows and {system: {id: answer}} of two systems.
    A and B are the systems as they were shown; the winner is one of them, TIE or UNPARSABLE. Replies stay in `path`.
    """
    shown = [order(row["id"], list(answers), seed) for row in rows]
    chats = [pair_chat(row["language"], row["question"], [answers[system][row["id"]] for system in two])
             for row, two in zip(rows, shown)]
    verdicts = []
    for row, two, reply in zip(rows, shown, replies(path, judge, chats)):
        choice = preferred(reply)
        names = dict(zip("AB", two))
        verdicts.append({"id": row["id"], "language": row["language"], **names, "reply": reply,
                         "winner": names.get(choice, choice)})
    return verdicts


def system_names(folders):
    """Return the folders' last names; their whole paths if the last names are the same."""
    names = [os.path.basename(os.path.normpath(folder)) for folder in folders]
    if len({*names}) < len(names):
        names = [os.path.normpath(folder).strip(os.sep).replace(os.sep, "-") for folder in folders]
    if len({*names, TIE, UNPARSABLE}) < len(names) + 2:
        raise SystemExit(f"two systems need two names, not {' and '.join(names)}")
    return names


# --- What is shown.

def rates_table(table, systems):
    """Return the rates in Markdown: a row for each language, then the means."""
    kinds = [*systems, TIE, UNPARSABLE]
    return markdown(["language", *kinds, "n"], [[name, *(f"{line[kind]:.1f}" for kind in kinds), str(line["n"])]
                                                for name, line in table.items()])


def plot_rates(table, systems, path, title):
    """Write a PNG with one bar for each language and each mean: wins, ties (grey) and unparsable replies (white)."""
    left = [0.0] * len(table)
    first, second = systems
    with picture(path, figsize=(7, 1.5 + 0.25 * len(table))) as axes:
        for kind, colour in ((first, "tab:blue"), (TIE, "lightgrey"), (UNPARSABLE, "white"), (second, "tab:orange")):
            widths = [line[kind] for line in table.values()]
            axes.barh(list(table), widths, left=left, color=colour, edgecolor="grey", linewidth=0.5, label=kind)
            left = [a + b for a, b in zip(left, widths)]
        axes.set(title=title, xlabel="percent of the judgements", xlim=(0, 100))
        axes.invert_yaxis()                                 # the first language on top
        axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))


def parse_groups(text):
    """Return {name: languages} of "name=de,fr;other=he". SystemExit for a text of another form."""
    groups = dict(part.partition("=")[::2] for part in text.split(";"))
    groups = {name: tuple(languages.split(",")) for name, languages in groups.items()}
    unknown = {language for languages in groups.values() for language in languages} - {*ALL_LANGUAGES}
    if unknown or "" in groups:
        raise SystemExit(f'--groups {text}: wanted is "name=de,fr;other=he"; unknown are {", ".join(sorted(unknown))}')
    return groups


def parse_arguments(argv):
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("systems", nargs=2, help="folders of predictions")
    parser.add_argument("--judge", default="", help="a chat LLM, folder or hub name")
    parser.add_argument("--rows", default="work/rows/multispeechqa/bench.jsonl")
    parser.add_argument("--pairs", default="", help="write the pairs for annotators to this file, and judge nothing")
    parser.add_argument("--human", nargs="*", default=[], help="files with labels of people")
    parser.add_argument("--groups", type=parse_groups, default=GROUPS, help='as in "Romance=fr,it;Slavic=cs,pl"')
    parser.add_argument("--seed", type=int, default=0, help="of which answer is shown first")
    parser.add_argument("--out", default="", help="a folder; else pairwise beside the first system's predictions")
    args = parser.parse_args(argv)
    run = os.path.dirname(os.path.dirname(os.path.abspath(args.systems[0])))       # <work>/<run>
    args.out = args.out or os.path.join(os.path.relpath(run), "pairwise")
    if bool(args.judge) == bool(args.pairs):
        raise SystemExit("name a --judge, or a file of --pairs for annotators")
    return args


def report(verdicts, results, systems):
    """Return the text of the results: the rates, some unparsable replies, the agreement with people."""
    text = f"{results['test_set']}, percent preferred by {results['judge']}\n\n{rates_table(results['rates'], systems)}"
    odd = [line for line in verdicts if line["winner"] == UNPARSABLE]
    text += f"\n\n{len(odd)} of {len(verdicts)} replies are unparsable" + "".join(
        f"\n- {line['id']}: {' '.join(line['reply'].split())[-200:]!r}" for line in odd[:SHOWN])
    if people := results.get("people"):
        kappa = "undefined" if people["kappa"] is None else f"{people['kappa']:.3f}"
        text += (f"\n\nagreement with people on {people['n']} rows: {people['agreement']:.1f} %, kappa {kappa}; "
                 f"{people['undecided']} of them without a label that most gave; left out are {people['unparsable']} "
                 "without a verdict")
    return text


def main(argv=None):
    args = parse_arguments(argv)
    names = system_names(args.systems)
    labels = read_labels(args.human, names)
    redo = "python -m data.multispeechqa writes it"
    rows = [row for row in read_lines(args.rows, ["id", "language", "task"], redo) if row["task"] == "SQA"]
    if not rows or not all(row.get("question") for row in rows):
        raise SystemExit(f"{args.rows}: no SQA rows, or one of them has no question; {redo}")
    corpus, split = os.path.split(os.path.splitext(os.path.abspath(args.rows))[0])
    test_set = f"{os.path.basename(corpus)}.{split}"
    answers = {name: read_answers(os.path.join(folder, f"{test_set}.jsonl"), rows)
               for name, folder in zip(names, args.systems)}
    if args.pairs:
        return write_pairs(args.pairs, rows, answers, args.seed)
    stem = os.path.join(args.out, "-".join(names))
    verdicts = judge_pairs(rows, answers, args.judge, args.seed, f"{stem}.replies.jsonl")
    results = {"judge": args.judge, "seed": args.seed, "test_set": test_set,
               "rates": rates([(line["language"], line["winner"]) for line in verdicts], names, args.groups)}
    if labels:
        results["people"] = agreement_with_people(labels, {line["id"]: line["winner"] for line in verdicts})
    text = report(verdicts, results, names)
    write_json_lines(f"{stem}.verdicts.jsonl", verdicts)
    write_json(f"{stem}.json", results)
    write_text(f"{stem}.md", text + "\n")
    plot_rates(results["rates"], names, f"{stem}.png", f"{test_set}, judged by {args.judge}")
    print(f"{text}\n\nin {stem}.md, a chart in {stem}.png; each verdict in {stem}.verdicts.jsonl")


if __name__ == "__main__":
    main()
