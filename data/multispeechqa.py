"""
MultiSpeechQA: questions to a voice assistant in 23 languages, asked by synthetic voices (multilingual listeners paper,
section 3).

    python data/multispeechqa.py --tts "python my_tts.py"       # or --raw folder, where the download lies elsewhere
    python data/multispeechqa.py --languages en,de,it           # these only; no --tts needed

download into <work>/raw/multispeechqa
    *.parquet       https://huggingface.co/datasets/gpt-omni/VoiceAssistant-400K, apache-2.0, 219 GB, 470,054 pairs;
                    any part of it will do (pip install pyarrow). Or any other questions with answers, as
    *.jsonl         lines of {"question", "answer"}, and "split_name", the subset, and "audio", a recording, where known

reads   these, and from the Hugging Face hub: SeamlessM4T (translates and speaks)
writes  <work>/rows/multispeechqa/{train,dev,test,bench}.jsonl, counts.md, dropped.txt, config.json last,
        <work>/audio/multispeechqa/<language>/, and in <work>/made/multispeechqa/ what was translated: a killed run goes
        on. Everything is made at once, 25 hours of one GPU for each 100,000 pairs and language (reckoned, at a second
        a question)

A row is SQA whose question is what is heard: transcript and question are the same text, and the model reads nothing
else (A.6). The same pairs are held out in every language: dev of 2,000 and test of 1,000, whose subsets have the shares
of the paper's Table 1; bench is 200 of the test pairs, those of MultiSpeech-Bench in size, and the same in every
language, but translated by a model and corrected by nobody. train is the rest, of RLHF 1,000 pairs only, the paper's
training mixture (A.6); --rlhf 379621 keeps all 10.8 million rows. A question of dev or test is not in train (our
choice).

Voices: Seamless speaks 21 of the languages, in 200 voices, 160 of them in train and the others in dev and test. Greek
and Hebrew it can translate and not speak; there, and in the languages of --tts_languages, --tts does: a command that is
called with one more word, a file of lines {"language", "split", "text", "audio"}, and writes each text's speech to the
path under "audio", wav. Which voices it takes for which split is its own affair. The paper takes XTTS for 16 languages
and MMS for these two. English keeps the recordings of the download, whose voices are not known; what has none is spoken.
"""
import glob
import json
import os
import random
import re
import shlex
import subprocess
import sys
from collections import Counter, defaultdict

if __name__ == "__main__":  # `python data/multispeechqa.py`: imports start at the project's folder, not at data/
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from tqdm import tqdm

from data.recipe import parser, report, unreadable
from data.rows import defect, finish, finished, replace_file, write_rows
from data.speak import speak
from data.translate import CODES, SEAMLESS, translate
from metrics.pairwise import LANGUAGES

DOWNLOAD = "download https://huggingface.co/datasets/gpt-omni/VoiceAssistant-400K there, or a part of it"
SUBSETS = {  # name: (what its split_name contains, pairs); Table 1
    "trivia-multi": ("multi", 16_528), "trivia-single": ("single", 16_529), "assistant-v1": ("v1", 5_769),
    "assistant-v2": ("v2", 16_008), "alpaca": ("alpaca", 31_293), "identity": ("identity", 4_306),
    "rlhf": ("rlhf", 379_621),
}
UNSPOKEN = ("el", "he")             # SeamlessM4T-v2 reads and writes them, and has no speech units for them
VOICES = {"train": (0.0, 0.8), "dev": (0.8, 1.0), "test": (0.8, 1.0)}     # of Seamless' voices, by number (our choice)
BENCH = 200                         # section 3.3
BLOCK = 1000                        # texts that the TTS command gets at a time (our choice)


# --- Input: pairs of a question and an answer.

def subset_of(split_name):
    """The subset of Table 1 that a split_name means; another name in lower case, if it is none of them."""
    name = re.sub(r"[^a-z0-9]+", "-", split_name.lower()).strip("-")
    return next((subset for subset, (part, _) in SUBSETS.items() if part in name), name) or "pairs"


def read_lines(path):
    """Yield (columns, row group) of a file: those of the parquet without the sound, or what a JSON line holds."""
    if path.endswith(".jsonl"):
        with open(path, encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                try:
                    columns = json.loads(line)
                    columns["question"] + columns["answer"]
                except (ValueError, KeyError, TypeError) as error:
                    raise SystemExit(f"{path} line {number} has no question and answer as text ({error})") from None
                yield columns, None
        return
    file = open_parquet(path)
    for group in range(file.num_row_groups):
        table = file.read_row_group(group, [name for name in ("split_name", "question", "answer")
                                            if name in file.schema_arrow.names])
        for columns in table.to_pylist():
            yield columns, group


def open_parquet(path):
    """A parquet file with the columns question and answer; SystemExit if it is none."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise SystemExit(f"reading {path} needs the package pyarrow; run: pip install pyarrow") from None
    try:
        file = parquet.ParquetFile(path)
    except (ArrowException, OSError) as error:
        raise SystemExit(f"{path} is damaged ({error}); download it again") from None
    if not {"question", "answer"} <= {*file.schema_arrow.names}:
        raise SystemExit(f"{path} has no columns question and answer; {DOWNLOAD}")
    return file


def read_pairs(raw, dropped):
    """
    All pairs below `raw` -> [{"name", "subset", "question", "answer", "source": (file, row group, row) or the path of a
    recording}]; names are numbers within the subset, in the files' order. SystemExit if there is none.
    """
    pairs, counts = [], Counter()
    paths = sorted(path for ending in ("parquet", "jsonl")
                   for path in glob.glob(os.path.join(glob.escape(raw), "**", f"*.{ending}"), recursive=True))
    for path in tqdm(paths, desc="read questions", unit=" file"):
        rows = Counter()
        for columns, group in read_lines(path):
            subset = subset_of(columns.get("split_name") or "")
            counts[subset] += 1
            name = f"{subset}-{counts[subset]}"
            question, answer = ((columns[key] or "").strip() for key in ("question", "answer"))
            source = columns.get("audio") if group is None else (path, group, rows[group])
            rows[group] += 1
            if question and answer:
                pairs.append({"name": name, "subset": subset, "question": question, "answer": answer, "source": source})
            else:
                dropped.append(("all", f"multispeechqa/{name}", "no question or no answer"))
    if not pairs:
        raise SystemExit(f"no questions in *.parquet or *.jsonl below {raw}; {DOWNLOAD}")
    return pairs


# --- Splits.

def quotas(total, weights):
    """{subset: weight} -> {subset: whole number of pairs}, `total` in all, by largest remainder."""
    exact = {subset: total * weight / sum(weights.values()) for subset, weight in weights.items()}
    whole = {subset: int(share) for subset, share in exact.items()}
    most_cut = sorted(exact, key=lambda subset: (whole[subset] - exact[subset], subset))
    for subset in most_cut[:total - sum(whole.values())]:
        whole[subset] += 1
    return whole


def split_pairs(pairs, sizes, rlhf, seed, dropped):
    """
    Pairs -> {"train", "dev", "test": pairs}. sizes: {split: pairs} of dev and test, drawn by Table 1's shares, or by the
    subsets' sizes where one of them is not in Table 1; no question is in two of them. SystemExit if a subset is too
    small. Of what is left train has all, but of rlhf only so many.
    """
    by_subset = defaultdict(list)
    for pair in pairs:
        by_subset[pair["subset"]].append(pair)
    known = {*by_subset} <= {*SUBSETS}
    weights = {subset: SUBSETS[subset][1] if known else len(some) for subset, some in by_subset.items()}
    wanted = {split: quotas(size, weights) for split, size in sizes.items()}
    splits, taken = {"train": [], **{split: [] for split in sizes}}, set()
    for subset, some in sorted(by_subset.items()):
        rest = iter(random.Random(f"{seed} {subset}").sample(some, len(some)))
        for split, count in ((split, quota[subset]) for split, quota in wanted.items()):
            found = []
            while len(found) < count:
                pair = next(rest, None)
                if not pair:
                    raise SystemExit(f"{subset} has {len(some)} pairs, too few for {count} in {split} that differ; "
                                     f"{DOWNLOAD}, or pass smaller --dev and --test")
                if as_key(pair) not in taken:
                    taken.add(as_key(pair))
                    found.append(pair)
            splits[split] += found
    held = {pair["name"] for split in sizes for pair in splits[split]}
    drawn = {subset: some for subset, some in by_subset.items()}
    if len(by_subset["rlhf"]) > rlhf:
        left = [pair for pair in by_subset["rlhf"] if pair["name"] not in held and as_key(pair) not in taken]
        drawn["rlhf"] = random.Random(f"{seed} train").sample(left, min(rlhf, len(left)))
    for pair in (pair for some in drawn.values() for pair in some if pair["name"] not in held):
        if as_key(pair) in taken:
            dropped.append(("train", f"multispeechqa/{pair['name']}", "a question of dev or test"))
        else:
            splits["train"].append(pair)
    return splits


def as_key(pair):
    """What makes two questions the same: their words, in any case."""
    return " ".join(re.findall(r"\w+", pair["question"].casefold()))
