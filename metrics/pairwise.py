"""
MultiSpeech-Bench's spoken questions: an LLM says which of two systems' answers is the better one (multilingual
listeners paper, section 4 and appendix A.5).

    python -m metrics.pairwise work/listeners/predictions/C work/listeners/predictions/cascade
        --judge CohereLabs/c4ai-command-a-03-2025 --rows work/rows/multispeechqa/bench.jsonl

reads   the SQA rows of --rows, and <system>/<corpus>.<split>.jsonl of both systems, as infer.py writes them; --human,
        the labels of people, lines of {"id": a row's, "labels": ["C", "TIE", "cascade"]}, a label an annotator
writes  <out>/<first>-<second>.md and .json, the rates; .verdicts.jsonl, every order, reply and verdict; .replies.jsonl,
        what the judge replied: a second run asks only what is new

Which answer is shown as (A) is drawn for each row from --seed and its id, so that each system is both across rows
(A.5). A reply counts for what stands first after its first "Preferred:"; one without a verdict is unparsable, and
shown. Rates are percent of all replies in a language, so that wins, ties and unparsable sum to 100; their mean is over
languages, which weigh the same. The paper's judge is Command-A, and GPT-4o beside it; any local chat LLM can be ours.

Agreement with people: the label that most annotators of a row gave, a tie where no label has the most (our choice),
against the verdict; rows without a verdict are left out, and counted. Kappa is Cohen's. The paper finds 75.6 % and
0.186 for Qwen2.5-Omni, 52.4 % and 0.185 for GPT-Audio, with three annotators in eight languages (A.7).
"""
import argparse
import json
import os
import random
from collections import Counter, defaultdict


LANGUAGES = {  # the 23 languages of Aya Expanse (Table 2), as the prompt names them
    "ar": "Arabic", "zh": "Chinese", "cs": "Czech", "nl": "Dutch", "en": "English", "fr": "French", "de": "German",
    "el": "Greek", "he": "Hebrew", "hi": "Hindi", "id": "Indonesian", "it": "Italian", "ja": "Japanese",
    "ko": "Korean", "fa": "Farsi", "pl": "Polish", "pt": "Portuguese", "ro": "Romanian", "ru": "Russian",
    "es": "Spanish", "tr": "Turkish", "uk": "Ukrainian", "vi": "Vietnamese",
}
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


# --- One pair.

def order(row_id, systems, seed):
    """The two systems as (A) and (B) of one row: a draw that depends on seed and row alone."""
    return random.Random(f"{seed} {row_id}").sample(sorted(systems), 2)


def pair_chat(language, instruction, answers):
    """What the judge reads, in one user turn; answers: those of (A) and (B). ValueError for an unknown language."""
    if language not in LANGUAGES:
        raise ValueError(f"no name for the language {language!r}; known are {', '.join(LANGUAGES)}")
    return [{"role": "user", "content": PROMPT.format(LANGUAGE_NAME=LANGUAGES[language], INSTRUCTION=instruction,
                                                      COMPLETION_A=answers[0], COMPLETION_B=answers[1])}]


def preferred(reply):
    """A reply -> "A", "B", TIE or UNPARSABLE. Quotes, < and * before the choice are passed over (our choice)."""
    choice = reply.partition("Preferred:")[2].lstrip(" \t\r\n'\"‘“<*`")
    return next((kind for text, kind in CHOICES.items() if choice.startswith(text)), UNPARSABLE)


# --- Rates and agreement.

def rates(verdicts, systems):
    """
    [(language, the system that wins, TIE or UNPARSABLE)] -> {language: {system: percent, ..., "n": replies}}, and under
    "mean" the mean over the languages. ValueError without verdicts.
    """
    if not verdicts:
        raise ValueError("no verdicts to take rates of")
    found = defaultdict(Counter)
    for language, winner in verdicts:
        found[language][winner] += 1
    kinds = [*systems, TIE, UNPARSABLE]
    table = {language: {**{kind: 100 * counts[kind] / counts.total() for kind in kinds}, "n": counts.total()}
             for language, counts in sorted(found.items())}
    mean = {kind: sum(line[kind] for line in table.values()) / len(table) for kind in kinds}
    return {**table, "mean": {**mean, "n": len(verdicts)}}


def consensus(labels):
    """The label that most annotators gave; None where no label has the most."""
    (label, most), *others = Counter(labels).most_common()
    return None if others and others[0][1] == most else label


def agreement(human, judge):
    """
    Two lists of labels -> (percent alike, Cohen's kappa: how far that is from chance to certain, 1 at most). Kappa is
    None where both give one and the same label throughout: chance is certain then. ValueError for unequal lists.
    """
    if not human or len(human) != len(judge):
        raise ValueError(f"{len(human)} labels of people and {len(judge)} of the judge")
    n, (first, second) = len(human), (Counter(human), Counter(judge))
    alike = sum(a == b for a, b in zip(human, judge)) / n
    chance = sum(first[label] * second[label] for label in first) / n**2
    return 100 * alike, None if chance == 1 else (alike - chance) / (1 - chance)


def agreement_with_people(labels, winners):
    """
    {id: labels of people} and {id: winner} -> {"agreement", "kappa", "n", "undecided": rows in which no label had the
    most, "unparsable": rows that people labelled and the judge did not}. SystemExit where they share no row.
    """
    shared = [name for name in labels if winners.get(name, UNPARSABLE) != UNPARSABLE]
    if not shared:
        raise SystemExit("the labels of people are of none of the rows that the judge decided")
    human = [consensus(labels[name]) for name in shared]
    alike, kappa = agreement([label or TIE for label in human], [winners[name] for name in shared])
    return {"agreement": alike, "kappa": kappa, "n": len(shared), "undecided": human.count(None),
            "unparsable": sum(winners.get(name) == UNPARSABLE for name in labels)}


# --- Files.

def read_lines(path, keys, source):
    """A file's JSON objects, all of which have the `keys` -> list of dict; SystemExit names file, line and source."""
    if not os.path.exists(path):
        raise SystemExit(f"{path} is missing; {source}")
    lines = []
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                lines.append(json.loads(line))
                lacking = [key for key in keys if not lines[-1][key]
                           or not isinstance(lines[-1][key], list if key == "labels" else str)]
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise SystemExit(f"{path} line {number} is damaged or lacks {error}; {source}") from None
            if lacking:
                raise SystemExit(f"{path} line {number} has no {lacking[0]}; {source}")
    return lines


def read_answers(path, rows):
    """{id: prediction} of one system; SystemExit unless every row has one."""
    source = "run infer.py on these rows"
    answers = {}
    for line in read_lines(path, ["id", "task"], source):
        if line["id"] in answers or not isinstance(line.get("prediction"), str):
            raise SystemExit(f"{path}: {line['id']} is there twice, or its prediction is no text; {source}")
        answers[line["id"]] = line["prediction"]
    lacking = [row["id"] for row in rows if row["id"] not in answers]
    if lacking:
        raise SystemExit(f"{path}: {len(lacking)} rows have no prediction, first {lacking[0]}; {source}")
    return answers


def read_labels(path, systems):
    """{id: labels of people}; a label is the name of a system, or TIE."""
    source = f'a line is {{"id": ..., "labels": [...]}}, its labels are of {", ".join([*systems, TIE])}'
    labels = {line["id"]: line["labels"] for line in read_lines(path, ["id", "labels"], source)}
    for name, some in labels.items():
        if not isinstance(some, list) or not {*some} <= {*systems, TIE}:
            raise SystemExit(f"{path}: the labels of {name} are {some!r}; {source}")
    return labels


def judge_pairs(rows, answers, judge, seed, kept):
    """
    SQA rows and {system: {id: answer}} of two systems -> [{"id", "language", "A", "B", "reply", "winner"}]; A and B are
    the systems as they were shown, the winner one of them, TIE or UNPARSABLE.
    """
    from metrics.chat import kept_replies
    shown = [order(row["id"], list(answers), seed) for row in rows]
    chats = [pair_chat(row["language"], row["question"], [answers[system][row["id"]] for system in two])
             for row, two in zip(rows, shown)]
    found = []
    for row, two, reply in zip(rows, shown, kept_replies(kept, judge, chats)):
        choice = preferred(reply)
        names = dict(zip("AB", two))
        found.append({"id": row["id"], "language": row["language"], **names, "reply": reply,
                      "winner": names.get(choice, choice)})
    return found


def markdown(table, systems):
    """The table of rates in Markdown, the mean last."""
    kinds = [*systems, TIE, UNPARSABLE]
    lines = [["language", *kinds, "n"]] + [
        [language, *(f"{line[kind]:.1f}" for kind in kinds), str(line["n"])] for language, line in table.items()]
    lines = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([lines[0], "|---" * (len(kinds) + 2) + "|", *lines[1:]])


def system_names(folders):
    """The folders' last names; their whole paths where those are the same."""
    names = [os.path.basename(os.path.normpath(folder)) for folder in folders]
    if len({*names}) < len(names):
        names = [os.path.normpath(folder).strip(os.sep).replace(os.sep, "-") for folder in folders]
    if len({*names, TIE, UNPARSABLE}) < len(names) + 2:
        raise SystemExit(f"two systems need two names, not {' and '.join(names)}")
    return names


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("systems", nargs=2, help="folders of predictions")
    parser.add_argument("--judge", required=True, help="a chat LLM, folder or hub name")
    parser.add_argument("--rows", default="work/rows/multispeechqa/bench.jsonl")
    parser.add_argument("--human", default="", help="labels of people")
    parser.add_argument("--seed", type=int, default=0, help="of which answer is shown first")
    parser.add_argument("--out", default="work/pairwise")
    args = parser.parse_args(argv)
    names = system_names(args.systems)
    labels = read_labels(args.human, names) if args.human else {}
    source = "python -m data.multispeechqa writes it"
    rows = [row for row in read_lines(args.rows, ["id", "language", "task"], source) if row["task"] == "SQA"]
    if not rows or not all(row.get("question") for row in rows):
        raise SystemExit(f"{args.rows}: no SQA rows, or one of them has no question; {source}")
    corpus, split = os.path.split(os.path.splitext(os.path.abspath(args.rows))[0])
    test_set = f"{os.path.basename(corpus)}.{split}"
    answers = {name: read_answers(os.path.join(folder, f"{test_set}.jsonl"), rows)
               for name, folder in zip(names, args.systems)}
    os.makedirs(args.out, exist_ok=True)
    stem = os.path.join(args.out, "-".join(names))
    found = judge_pairs(rows, answers, args.judge, args.seed, f"{stem}.replies.jsonl")
    results = {"judge": args.judge, "seed": args.seed, "test_set": test_set,
               "rates": rates([(line["language"], line["winner"]) for line in found], names)}
    text = f"{test_set}, percent preferred by {args.judge}\n\n{markdown(results['rates'], names)}"
    odd = [line for line in found if line["winner"] == UNPARSABLE]
    text += f"\n\n{len(odd)} of {len(found)} replies are unparsable" + "".join(
        f"\n- {line['id']}: {' '.join(line['reply'].split())[-200:]!r}" for line in odd[:SHOWN])
    if labels:
        results["people"] = agreement_with_people(labels, {line["id"]: line["winner"] for line in found})
        people = results["people"]
        kappa = "undefined" if people["kappa"] is None else f"{people['kappa']:.3f}"
        text += (f"\n\nagreement with people on {people['n']} rows: {people['agreement']:.1f} %, kappa {kappa}; "
                 f"{people['undecided']} of them without a label that most gave; left out are {people['unparsable']} "
                 "without a verdict")
    for ending, content in (("verdicts.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in found)),
                            ("json", json.dumps(results, indent=1) + "\n"), ("md", text + "\n")):
        with open(f"{stem}.{ending}.part", "w", encoding="utf-8") as file:
            file.write(content)
        os.replace(f"{stem}.{ending}.part", f"{stem}.{ending}")
    print(f"{text}\n\nin {stem}.md; each verdict in {stem}.verdicts.jsonl")


if __name__ == "__main__":
    main()
