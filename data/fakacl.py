"""
fakACL: talks that an LLM wrote for papers that do not exist, spoken, with questions about them (2026, appendix A.2).

    python -m data.fakacl                           # everything the paper has
    python -m data.fakacl --titles 50               # fifty of the talks: a look at it, on one GPU

reads   from the Hugging Face hub: Qwen3 (writes), SeamlessM4T (speaks, translates), CometKiwi (scores)
writes  <work>/rows/fakacl/{train,dev}.jsonl, counts.md, dropped.txt, config.json last, <work>/audio/fakacl/, and in
        <work>/made/fakacl/ what the models made: a killed run goes on

topics -> titles -> scripts -> numbers and symbols in words -> sentences -> speech -> questions -> translations.
Each sentence is an utterance. The paper speaks of sentences and of chunks of two or three; its figures are those of
sentences (our choice): 38,968 pairs are two for each of 19,484 = 2,497 x 7.8 units, which is a script of 12.8 less the
five that are not asked about; 8.6 s is the length of one; and its example asks about one. Rows of an utterance, in
every language that passed the filter: ASR or ST, two SQA, two SQA with a question of another talk. The authors looked
their scripts and answers through by hand; here only rules do. dev: one talk in a hundred (our choice, it has none).
"""
import argparse
import os
import random
import re

import punkt

from data.quality import KIWI, good_rows
from data.recipe import finish, finished, report
from data.rewrite import generate
from data.speak import speak
from data.translate import SEAMLESS, translate_rows
from speech_llm.prompts import NOT_ANSWERABLE
from speech_llm.rows import LANGUAGES, write_rows


LLM = "Qwen/Qwen3-4B-Instruct-2507"
PROMPTS = {  # 2026, appendix A.2, and the tokens of an answer: twice what was asked for (our choice)
    "topics": ("List 60 sub-fields related to ACL/NLP conferences, one subfield per line.", 1024),
    "titles": ("List 40 paper titles from ACL conferences related to: {}. Output only the paper titles, one per line. "
               "Nothing else.", 2048),
    "scripts": ("Write a 12 sentences oral script for presenting the ACL paper entitled: {}.", 1024),
    "pairs": ('Generate 2 pairs of question and very short answer. Generate the question in one line, the answer in '
              'the next line, prefix the question by "Q:" and the answer by "A:". Generate strictly and solely based '
              'on the content: {}.', 256),
}
CHARACTERS, WORDS = 10, 6                   # a shorter sentence is dropped
FIRST, LAST, PAIRS = 3, 2, 2                # sentences of a script that nothing is asked about; pairs of each other one
DEV = 100                                   # of so many talks one is held out
MADE = {"topics": 56, "titles": 2_527, "scripts": 2_497}
COUNTS = {  # 2026, Table 5
    "ASR {}": {"en": 21_400},
    "ST/MT {}": {"de": 9_722, "it": 14_999, "zh": 4_659},
    "SQA/QA {}": {"en": 38_968, "de": 8_763, "it": 22_290, "zh": 5_341},
    "SQA/QA {} invalid": {"en": 38_968, "de": 21_192, "it": 31_333, "zh": 19_549},
}
PAPER = {("train", name.format(language)): count for name, counts in COUNTS.items()
         for language, count in counts.items()}


# --- Numbers and symbols in words. The paper has one example, "30%" -> "thirty percent"; all else is our choice.

ONES = ("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen").split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
SCALES = ((10**12, "trillion"), (10**9, "billion"), (10**6, "million"), (1000, "thousand"), (100, "hundred"))
ORDINALS = {"one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth",
            "twelve": "twelfth"}
NUMBER = r"[0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?"


def cardinal(n):
    """105 -> "one hundred five"."""
    for scale, name in SCALES:
        if n >= scale:
            return f"{cardinal(n // scale)} {name}" + (f" {cardinal(n % scale)}" if n % scale else "")
    return ONES[n] if n < 20 else TENS[n // 10 - 2] + (f"-{ONES[n % 10]}" if n % 10 else "")


def ordinal(n):
    """21 -> "twenty-first"."""
    head, last = re.fullmatch("(.*[ -])?(.*)", cardinal(n)).groups(default="")
    return head + ORDINALS.get(last, (last[:-1] + "ie" if last.endswith("y") else last) + "th")


def number(text):
    """
    "1,024" -> "one thousand twenty-four", "0.85" -> "zero point eight five"; four digits are read as a year where they
    may be one: "2019" -> "twenty nineteen"; one by one where there is a leading zero, or more than fifteen.
    """
    def one_by_one(digits):
        return " ".join(ONES[int(digit)] for digit in digits)
    whole, _, fraction = text.partition(".")
    digits = whole.replace(",", "")
    if len(digits) > 15 or len(digits) > 1 and digits[0] == "0":
        said = one_by_one(digits)
    elif re.fullmatch("1[1-9][0-9]{2}|20[1-9][0-9]", text):
        year = int(text[2:])
        said = f"{cardinal(int(text[:2]))} {'hundred' if not year else 'oh ' * (year < 10) + cardinal(year)}"
    else:
        said = cardinal(int(digits))
    return said + (f" point {one_by_one(fraction)}" if fraction else "")


RULES = [  # in this order
    (rf"\$\s?({NUMBER}(?:[KkMB]\b| (?:thousand|million|billion|trillion)\b)?)", r"\1 dollars"),
    (rf"(?<![\w.-])({NUMBER}\s?%?)\s?[-–—]\s?(?=[0-9])", r"\1 to "), (r"\s?%", " percent"),
    (r"(?<=[0-9])\s?[x×]\s?(?=[0-9])", " by "), (r"(?<=[0-9])[x×](?!\w)", " times"),
    (r"(?<=[0-9])[Kk]\b", " thousand"), (r"(?<=[0-9])M\b", " million"), (r"(?<=[0-9])B\b", " billion"),
    (r"(?<![\w.])[-−](?=[0-9])", "minus "), (r"[~≈]\s?(?=[0-9])", "about "), (r"(?<=[0-9]):(?=[0-9])", " to "),
    *((rf"\s*{sign}\s*", f" {name} ") for sign, name in (
        ("&", "and"), (r"\+", "plus"), ("=", "equals"), ("×", "times"), ("±", "plus or minus"), ("<", "less than"),
        (">", "greater than"), ("≤", "at most"), ("≥", "at least"), ("@", "at"))),
    (r"\b([0-9]+)(?:st|nd|rd|th)\b", lambda match: ordinal(int(match[1]))),
    (r"\b([0-9]+0)s\b", lambda match: re.sub("y$", "ie", number(match[1])) + "s"),       # "1990s"
    (r"(?<=[^\W\d_])(?=[0-9])|(?<=[0-9])(?=[^\W\d_])", " "),                # "F1", "3D"
    (NUMBER, lambda match: number(match[0])),
]


def spell_out(text):
    """Text as it is spoken: no digits, none of the symbols above, single spaces."""
    for pattern, replacement in RULES:
        text = re.sub(pattern, replacement, text)
    return " ".join(text.split())


# --- What an LLM wrote -> lists, sentences, pairs.

def bare(line):
    """A line without bullet, number, heading marks and emphasis."""
    return re.sub(r"^(?:[-–•>\s]|[0-9]+[.)]\s)+", "", re.sub("[*`#]|__", "", line)).strip()


def read_list(text):
    """The items of a list, one a line; a line that ends in a colon only announces it."""
    lines = [bare(line).strip("\"“”") for line in text.split("\n")]
    return [line for line in lines if any(map(str.isalpha, line)) and not line.endswith(":")]


def read_script(text):
    """
    A script -> its sentences, as they are spoken. Not spoken, in place of the authors' manual processing (our choice):
    the title, lines that end no sentence (headings), who speaks, directions in brackets, quotation marks.
    """
    lines = [bare(re.sub(r"\[[^\]]*\]", "", line)) for line in text.split("\n")]
    lines = [re.sub(r"^(?:Speaker|Presenter|Slide|Sentence)\s?[0-9]*:\s*", "", line) for line in lines]
    spoken = [line for line in lines
              if re.search(r"[.!?…][\"”’')]*$", line) and not re.fullmatch(r"\(.*\)|Title:.*", line)]
    return punkt.sent_tokenize(spell_out(re.sub("[\"“”]", "", " ".join(spoken))))


def read_pairs(text):
    """[(question, answer)] of lines with the prefixes Q: and A:, however they are decorated; a question counts once."""
    parts = re.split(r"(?:^|(?<=\?))[\W\d_]*(Q|A)(?:uestion|nswer)?[\s\d*_]*:[\s*_]*", text, flags=re.MULTILINE | re.I)
    pairs, question = {}, ""
    for kind, content in zip(parts[1::2], parts[2::2]):
        line = content.strip().split("\n")[0].strip(" *_")
        if kind in "Qq":
            question = line
        elif any(map(str.isalpha, question)) and any(map(str.isalnum, line)):
            pairs.setdefault(question, line)
            question = ""
    return list(pairs.items())


# --- Talks, utterances, rows.

def ask(step, texts, args):
    """The LLM's answers to one step's prompt, filled with each text."""
    prompt, tokens = PROMPTS[step]
    return generate([prompt.format(text) for text in texts], model=args.llm, max_new_tokens=tokens,
                    kept=os.path.join(args.work, "made", "fakacl", f"{step}.jsonl"))


def write_talks(args, dropped):
    """Topics, titles, scripts -> {number of the title: sentences of its script}; prints how many there are of each."""
    topics = read_list(ask("topics", [""], args)[0])
    titles = [title for text in ask("titles", topics, args) for title in read_list(text)]
    distinct = list(dict.fromkeys(titles))             # the same title would be the same script (our choice)
    if not distinct:
        raise SystemExit(f"{args.llm} named {len(topics)} topics and no titles; it must be an LLM that obeys prompts")
    numbers = range(len(distinct))
    if args.titles:
        numbers = sorted(random.Random(f"{args.seed} titles").sample(numbers, min(args.titles, len(numbers))))
    scripts = map(read_script, ask("scripts", [distinct[n] for n in numbers], args))
    talks = {}
    for n, script in zip(numbers, scripts):
        if len(script) > FIRST + LAST:
            talks[n] = script
        else:
            dropped.append(("talks", f"{n:04d}", f"script of {FIRST + LAST} sentences or less: {distinct[n]}"))
    print(f"{len(topics)} topics (paper: {MADE['topics']}), {len(titles)} titles ({MADE['titles']}), {len(distinct)} "
          f"distinct, {len(numbers)} of these asked for, {len(talks)} scripts ({MADE['scripts']})")
    return talks


def cut_talks(talks, seed, dropped):
    """Talks -> [{split, name, text, asked: whether questions are asked about it}], a sentence each, and each once."""
    held_out = random.Random(f"{seed} dev").sample(sorted(talks), max(len(talks) // DEV, int(len(talks) > 1)))
    units, said = [], set()
    for talk, script in talks.items():
        split = "dev" if talk in held_out else "train"
        for n, text in enumerate(script):
            name = f"{talk:04d}-{n:02d}"
            if len(text) < CHARACTERS or len(text.split()) < WORDS:
                dropped.append((split, name, f"under {CHARACTERS} characters or {WORDS} words: {text}"))
            elif text in said:              # "Thank you all for your attention." (our choice)
                dropped.append((split, name, f"said before: {text}"))
            else:
                units.append({"split": split, "name": name, "text": text, "asked": FIRST <= n < len(script) - LAST})
                said.add(text)
    return units


def english_rows(units, paths, pairs, dropped):
    """ASR rows of the units that could be spoken, SQA rows of their pairs."""
    rows = []
    for unit in units:
        name, split = unit["name"], unit["split"]
        utterance = f"fakacl/{split}/{name}"
        if not paths[name]:
            dropped.append((split, utterance, "could not be spoken"))
            continue
        base = {"utterance": utterance, "audio": paths[name], "language": "en", "answerable": True,
                "transcript": unit["text"]}
        rows.append({"id": f"{utterance}/ASR.en", **base, "task": "ASR", "target": unit["text"]})
        if unit["asked"]:
            rows += [{"id": f"{utterance}/SQA-{n}.en", **base, "task": "SQA", "question": question, "target": answer}
                     for n, (question, answer) in enumerate(pairs[name][:PAIRS], 1)]
            dropped += [(split, f"{utterance}/SQA-{n}.en", "the LLM gave no such question and answer")
                        for n in range(len(pairs[name]) + 1, PAIRS + 1)]
    return rows


def invalid_rows(rows, seed, dropped):
    """For each SQA row one that asks of its utterance what was asked in another talk, drawn anew (our choice)."""
    invalid = []
    for split in ("train", "dev"):
        rng = random.Random(f"{seed} {split} invalid")
        valid = [row for row in rows if row["task"] == "SQA" and row["id"].split("/")[1] == split]
        talks = [row["utterance"].rpartition("-")[0] for row in valid]
        if len(set(talks)) == 1:
            dropped += [(split, row["id"], "no other talk to take an unanswerable question from") for row in valid]
            continue
        for row, talk in zip(valid, talks):
            row_id = row["id"].removesuffix(".en") + "-invalid.en"
            other = rng.randrange(len(valid))
            while talks[other] == talk:
                other = rng.randrange(len(valid))
            invalid.append({**row, "id": row_id, "answerable": False, "question": valid[other]["question"],
                            "target": NOT_ANSWERABLE["en"]})
    return invalid


def main(argv=None):
    command = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("--work", default="work", help="root folder of everything that is written")
    command.add_argument("--titles", type=int, default=0, help="so many of the titles, drawn at random; 0: all of them")
    command.add_argument("--llm", default=LLM, help="the model that writes")
    command.add_argument("--seamless", default=SEAMLESS, help="the model that speaks and translates")
    command.add_argument("--kiwi", default=KIWI, help="the model that scores translations")
    command.add_argument("--seed", type=int, default=0, help="of voices, held-out talks and unanswerable questions")
    args = command.parse_args(argv)
    settings = {name: getattr(args, name) for name in ("titles", "llm", "seamless", "kiwi", "seed")}
    if finished(args.work, "fakacl", settings):
        return
    dropped = []
    units = cut_talks(write_talks(args, dropped), args.seed, dropped)
    asked = [unit for unit in units if unit["asked"]]
    pairs = dict(zip([unit["name"] for unit in asked],
                     map(read_pairs, ask("pairs", [unit["text"] for unit in asked], args))))
    paths = speak({unit["name"]: unit["text"] for unit in units}, os.path.join(args.work, "audio", "fakacl"),
                  model=args.seamless, seed=args.seed)
    english = english_rows(units, paths, pairs, dropped)
    english += invalid_rows(english, args.seed, dropped)

    splits = {"train": [], "dev": []}
    for language in LANGUAGES:
        rows = english
        if language != "en":
            kept = [os.path.join(args.work, "made", "fakacl", f"{maker}.{language}.jsonl")
                    for maker in ("translate", "quality")]
            rows, empty = translate_rows(english, language, args.seamless, kept[0])
            rows, bad = good_rows(rows, english, args.kiwi, kept[1])
            dropped += [(row_id.split("/")[1], row_id, why) for row_id, why in empty + bad]
        for row in rows:
            splits[row["id"].split("/")[1]].append(row)
    for split, rows in splits.items():
        if rows:
            write_rows(os.path.join(args.work, "rows", "fakacl", f"{split}.jsonl"), rows)
    report(args.work, "fakacl", splits, PAPER, dropped)
    finish(args.work, "fakacl", settings)
    print(f"rows in {args.work}/rows/fakacl\nnext: python extract_features.py --preset iwslt26")


if __name__ == "__main__":
    main()
