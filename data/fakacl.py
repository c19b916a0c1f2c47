"""
Make the rows of fakACL: talks that an LLM writes for papers that do not exist, spoken, with questions about them (2026,
appendix A.2).

    python -m data.fakacl                           # all that the paper has
    torchrun --nproc_per_node=4 -m data.fakacl      # the same on four GPUs
    python -m data.fakacl --titles 50               # fifty of the talks, for a first look

reads   from the Hugging Face hub: Qwen3 (writes), SeamlessM4T (speaks, translates), CometKiwi (scores); spaCy's English
        model (splits sentences): pip install spacy && python -m spacy download en_core_web_sm
writes  <work>/rows/fakacl/{train,dev}.jsonl, counts.md, dropped.txt, config.json last; <work>/audio/fakacl/; in
        <work>/made/fakacl/ the models' results, from which a killed run continues

topics -> titles -> scripts -> sentences -> numbers and symbols in words -> speech -> questions -> translations.
Each sentence is an utterance. An utterance has, in every language whose translation is good, an ASR or ST row, two SQA
rows, and two SQA rows with a question of another talk. The authors read their scripts and answers and corrected them by
hand; here only rules do. dev is one talk in a hundred (our choice, the paper has none).
"""
import functools
import os
import random
import re

from data.quality import KIWI, good_translations
from data.recipe import (begin, finish, finished, limited, missing_models, missing_packages, paper_counts, parser,
                         refuse_missing, report, write_splits)
from data.rewrite import generate
from data.speak import speak
from data.translate import SEAMLESS
from metrics.comet import ENCODERS
from speech_llm.prompts import NOT_ANSWERABLE
from speech_llm.resumable import is_first, silence_others
from speech_llm.rows import LANGUAGES


LLM = "Qwen/Qwen3-4B-Instruct-2507"
SPACY = "en_core_web_sm"                    # the paper names spaCy, not its model (our choice)
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
FIRST, LAST = 3, 2                          # nothing is asked about the first 3 and the last 2 sentences of a script
PAIRS = 2                                   # of question and answer, about each other sentence
DEV = 100                                   # of so many talks one is held out
MADE = {"topics": 56, "titles": 2_527, "scripts": 2_497}
# 2026, Table 5. The paper contradicts itself: section 2.1 speaks of chunks of two to three sentences, appendix A.2.2 of
# 21,400 sentences. Its figures are those of sentences (our choice): 38,968 pairs are two for each of 19,484 units, or
# 7.8 units for each of 2,497 scripts, which is a script of 12.8 sentences without the five that nothing is asked about;
# 8.6 s is the length of one sentence; the example of Table 3 asks about one.
PAPER = paper_counts({
    ("train", "ASR {}"): {"en": 21_400},
    ("train", "ST/MT {}"): {"de": 9_722, "it": 14_999, "zh": 4_659},
    ("train", "SQA/QA {}"): {"en": 38_968, "de": 8_763, "it": 22_290, "zh": 5_341},
    ("train", "SQA/QA {} invalid"): {"en": 38_968, "de": 21_192, "it": 31_333, "zh": 19_549},
})


def missing(work, raw="", models=(LLM, SEAMLESS, KIWI, ENCODERS["unified"])):
    """Return [(what is missing, how to mend it)]; empty if the recipe can run."""
    absent = missing_packages("spacy")
    if not absent and missing_packages(SPACY):
        absent = [(f"spaCy's model {SPACY}", f"python -m spacy download {SPACY}")]
    return absent + missing_models(*models)


# --- Numbers and symbols in words. The paper has one example, "30%" -> "thirty percent"; all else is our choice.

ONES = ("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen").split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
SCALES = ((10**12, "trillion"), (10**9, "billion"), (10**6, "million"), (1000, "thousand"), (100, "hundred"))
ORDINALS = {"one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth",
            "twelve": "twelfth"}
NUMBER = r"[0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?"


def cardinal(n):
    """Return a number in words: 105 -> "one hundred five"."""
    for scale, name in SCALES:
        if n >= scale:
            return f"{cardinal(n // scale)} {name}" + (f" {cardinal(n % scale)}" if n % scale else "")
    return ONES[n] if n < 20 else TENS[n // 10 - 2] + (f"-{ONES[n % 10]}" if n % 10 else "")


def ordinal(n):
    """Return the word for a place: 21 -> "twenty-first"."""
    head, last = re.fullmatch("(.*[ -])?(.*)", cardinal(n)).groups(default="")
    return head + ORDINALS.get(last, (last[:-1] + "ie" if last.endswith("y") else last) + "th")


def number(text):
    """
    Return digits in words: "1,024" -> "one thousand twenty-four", "0.85" -> "zero point eight five". Four digits that
    may be a year are read as one: "2019" -> "twenty nineteen". Digits are read one by one after a leading zero, and
    where there are more than fifteen.
    """
    def one_by_one(digits):
        return " ".join(ONES[int(digit)] for digit in digits)
    whole, _, fraction = text.partition(".")
    digits = whole.replace(",", "")
    if len(digits) > 15 or len(digits) > 1 and digits[0] == "0":
        words = one_by_one(digits)
    elif re.fullmatch("1[1-9][0-9]{2}|20[1-9][0-9]", text):
        year = int(text[2:])
        words = f"{cardinal(int(text[:2]))} {'hundred' if not year else 'oh ' * (year < 10) + cardinal(year)}"
    else:
        words = cardinal(int(digits))
    return words + (f" point {one_by_one(fraction)}" if fraction else "")


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
    """Return a text as it is spoken: without digits and the symbols above, with single spaces."""
    for pattern, replacement in RULES:
        text = re.sub(pattern, replacement, text)
    return " ".join(text.split())


# --- Lists, sentences and pairs in what an LLM wrote.

def bare(line):
    """Return a line without bullet, number, heading marks and emphasis."""
    return re.sub(r"^(?:[-–•>\s]|[0-9]+[.)]\s)+", "", re.sub("[*`#]|__", "", line)).strip()


def read_list(text):
    """Return the items of a list with one item a line. A line that ends in a colon announces the list."""
    lines = [bare(line).strip("\"“”") for line in text.split("\n")]
    return [line for line in lines if any(map(str.isalpha, line)) and not line.endswith(":")]


@functools.cache
def load_spacy():
    """Return spaCy's English model, which finds sentences. SystemExit without spaCy or the model."""
    try:
        import spacy
        # the parser finds the sentences
        return spacy.load(SPACY, exclude=["ner", "tagger", "lemmatizer", "attribute_ruler"])
    except (ImportError, OSError) as error:
        raise SystemExit(f"splitting scripts into sentences needs spaCy and its model {SPACY} ({error}); run: pip "
                         f"install spacy && python -m spacy download {SPACY}") from None


def split_sentences(text):
    """Return the sentences of an English text (2026, appendix A.2.2)."""
    return [sentence.text.strip() for sentence in load_spacy()(text).sents if sentence.text.strip()]


def read_script(text):
    """
    Return the sentences of a script, as they are spoken. Left out, in place of the authors' manual processing (our
    choice), are the title, lines that end no sentence (headings), who speaks, directions in brackets, quotation marks.
    Numbers are spelled out in whole sentences, because spaCy finds the end of a sentence best in written text.
    """
    lines = [bare(re.sub(r"\[[^\]]*\]", "", line)) for line in text.split("\n")]
    lines = [re.sub(r"^(?:Speaker|Presenter|Slide|Sentence)\s?[0-9]*:\s*", "", line) for line in lines]
    spoken = [line for line in lines
              if re.search(r"[.!?…][\"”’')]*$", line) and not re.fullmatch(r"\(.*\)|Title:.*", line)]
    return [spell_out(sentence) for sentence in split_sentences(re.sub("[\"“”]", "", " ".join(spoken)))]


def read_pairs(text):
    """Return [(question, answer)] of lines with the prefixes Q: and A:, however decorated; each question once."""
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
    """Return the LLM's answers to one step's prompt, filled with each text."""
    prompt, tokens = PROMPTS[step]
    return generate([prompt.format(text) for text in texts], args.llm,
                    os.path.join(args.work, "made", "fakacl", f"{step}.jsonl"), max_new_tokens=tokens)


def write_talks(args, dropped):
    """
    Let the LLM write topics, titles and scripts, and return {number of the title: sentences of its script}. Print how
    many there are of each. SystemExit if the LLM names no title.
    """
    topics = read_list(ask("topics", [""], args)[0])
    titles = [title for text in ask("titles", topics, args) for title in read_list(text)]
    distinct = list(dict.fromkeys(titles))             # the same title would be the same script (our choice)
    if not distinct:
        raise SystemExit(f"{args.llm} named {len(topics)} topics and no titles; it must be an LLM that obeys prompts")
    numbers = range(len(distinct))
    if args.titles or args.limit:
        wanted = min(args.titles or args.limit, len(numbers))
        numbers = sorted(random.Random(f"{args.seed} titles").sample(numbers, wanted))
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
    """
    Return the sentences of all talks, {split, name, text, asked} of each: asked is whether questions are asked about
    the sentence. Short sentences and all but the first of equal ones go to `dropped`.
    """
    held_out = random.Random(f"{seed} dev").sample(sorted(talks), max(len(talks) // DEV, int(len(talks) > 1)))
    units, texts = [], set()
    for talk, script in talks.items():
        split = "dev" if talk in held_out else "train"
        for n, text in enumerate(script):
            name = f"{talk:04d}-{n:02d}"
            if len(text) < CHARACTERS or len(text.split()) < WORDS:
                dropped.append((split, name, f"under {CHARACTERS} characters or {WORDS} words: {text}"))
            elif text in texts:             # "Thank you all for your attention." (our choice)
                dropped.append((split, name, f"the same sentence as before: {text}"))
            else:
                units.append({"split": split, "name": name, "text": text, "asked": FIRST <= n < len(script) - LAST})
                texts.add(text)
    return units


def english_rows(units, paths, pairs, dropped):
    """Return the ASR rows of the units that could be spoken and the SQA rows of their pairs."""
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
    """
    Return for each SQA row a row that asks about its utterance what was asked in another talk of the split, drawn anew
    for each row (our choice).
    """
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


def add_translations(english, args, dropped):
    """Return {split: rows} of the English rows and of those translations that are good."""
    splits = {"train": [], "dev": []}
    for language in LANGUAGES:
        rows = english
        if language != "en":
            rows, bad = good_translations(english, language, os.path.join(args.work, "made", "fakacl"), args.seamless,
                                          args.kiwi)
            dropped += [(row_id.split("/")[1], row_id, why) for row_id, why in bad]
        for row in rows:
            splits[row["id"].split("/")[1]].append(row)
    return splits


def main(argv=None):
    command = parser(__doc__, "fakacl", raw=False, models=[
        ("llm", LLM, "writes"), ("seamless", SEAMLESS, "speaks and translates"), ("kiwi", KIWI, "scores translations")])
    command.add_argument("--titles", type=int, default=0, help="so many of the titles, drawn at random; 0: all of them")
    command.add_argument("--seed", type=int, default=0, help="of voices, held-out talks and unanswerable questions")
    args = command.parse_args(argv)
    silence_others()
    settings = {name: getattr(args, name) for name in ("titles", "llm", "seamless", "kiwi", "seed")} | limited(args)
    if finished(args.work, "fakacl", settings):
        return
    refuse_missing("fakacl", missing(args.work, models=(args.llm, args.seamless, args.kiwi, ENCODERS["unified"])),
                   args.check)
    begin(args.work, "fakacl", settings)
    dropped = []
    units = cut_talks(write_talks(args, dropped), args.seed, dropped)
    asked = [unit for unit in units if unit["asked"]]
    pairs = dict(zip([unit["name"] for unit in asked],
                     map(read_pairs, ask("pairs", [unit["text"] for unit in asked], args))))
    paths = speak({unit["name"]: unit["text"] for unit in units}, os.path.join(args.work, "audio", "fakacl"),
                  model=args.seamless, seed=args.seed)
    english = english_rows(units, paths, pairs, dropped)
    english += invalid_rows(english, args.seed, dropped)
    splits = add_translations(english, args, dropped)
    if not is_first():                          # this process only helped with the models
        return
    write_splits(args.work, "fakacl", splits)
    report(args.work, "fakacl", splits, {} if args.titles or args.limit else PAPER, dropped, args.incomplete)
    finish(args.work, "fakacl", settings, preset="iwslt26")


if __name__ == "__main__":
    main()
