"""
MultiSpeechQA: questions to a voice assistant in 23 languages, asked by synthetic voices (multilingual listeners paper,
section 3).

    python -m data.multispeechqa --tts "python my_tts.py"       # or --raw folder, where the download lies elsewhere
    python -m data.multispeechqa --languages en,de,it           # these only; no --tts needed

download into <work>/raw/multispeechqa
    *.parquet       https://huggingface.co/datasets/gpt-omni/VoiceAssistant-400K, apache-2.0, 219 GB, 470,054 pairs;
                    any part of it will do (pip install pyarrow). Or any other questions with answers, as
    *.jsonl         lines of {"question", "answer"}, and where known "split_name", the subset, and "audio", a recording

reads   these, and from the Hugging Face hub: SeamlessM4T (translates and speaks)
writes  <work>/rows/multispeechqa/{train,dev,test,bench}.jsonl, counts.md, dropped.txt, config.json last,
        <work>/audio/multispeechqa/<language>/<split>/, and in <work>/made/multispeechqa/ what was translated: a killed
        run goes on. Seamless speaks one text at a time, and each language has 91,000: to share them out, run this with
        some --languages in a --work of their own, copy audio/ and made/ together, and run it with all

A row is SQA whose question is what is heard: transcript and question are the same text, and the model reads nothing
else (A.6). The same pairs are held out in every language: dev of 2,000 and test of 1,000, whose subsets have the shares
of the paper's Table 1; bench is 200 of the test pairs, those of MultiSpeech-Bench in size, and the same in every
language, but translated by a model and corrected by nobody. train is the rest, of RLHF 1,000 pairs only, the paper's
training mixture (A.6); --rlhf 379621 keeps all 10.8 million rows. A question of dev or test is not in train (our
choice).

Voices: Seamless speaks 21 of the languages, in 200 voices, 160 of them in train and the others in dev and test. Greek
and Hebrew it can translate and not speak; there, and in the languages of --tts_languages, --tts does: a command that is
called with one more word, a file of up to 1,000 lines {"language", "split", "text", "audio"}, and writes each text's
speech to the path under "audio", wav; which voices it takes for which split is its own affair. The paper takes XTTS for
16 languages and MMS for these two. English keeps the recordings of the download, whose voices are not known; questions
without one are spoken.
"""
import glob
import json
import os
import random
import re
import shlex
import subprocess
from collections import Counter, defaultdict
from contextlib import contextmanager

from tqdm import tqdm

from data.recipe import finish, finished, parser, report, unreadable
from data.speak import speak
from data.translate import CODES, SEAMLESS, translate
from speech_llm.files import replace_file, text_lines
from speech_llm.rows import ALL_LANGUAGES as LANGUAGES
from speech_llm.rows import defect, write_rows


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
        with open(path, "rb") as file:
            for number, line in enumerate(text_lines(file, path), 1):
                try:
                    columns = json.loads(line)
                    "" + columns["question"] + columns["answer"]
                    "" + (columns.get("split_name") or "") + (columns.get("audio") or "")
                except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                    raise SystemExit(f"{path} line {number} has no question and answer as text ({error})") from None
                yield columns, None
        return
    with open_parquet(path) as file:
        for group in range(file.num_row_groups):
            wanted = [name for name in ("split_name", "question", "answer") if name in file.schema_arrow.names]
            for columns in file.read_row_group(group, wanted).to_pylist():
                yield columns, group


@contextmanager
def open_parquet(path):
    """A parquet file with the columns question and answer; SystemExit if it is none, or damaged where it is read."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise SystemExit(f"reading {path} needs the package pyarrow; run: pip install pyarrow") from None
    try:
        with parquet.ParquetFile(path) as file:
            if not {"question", "answer"} <= {*file.schema_arrow.names}:
                raise SystemExit(f"{path} has no columns question and answer; {DOWNLOAD}")
            yield file
    except (ArrowException, OSError) as error:
        raise SystemExit(f"{path} is damaged ({error}); download it again") from None


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
    Pairs -> {"train", "dev", "test": pairs}. sizes: {split: pairs} of dev and test, drawn at random by Table 1's
    shares, or by the subsets' sizes where one is not in Table 1; their questions are in no other split, and there once.
    SystemExit if a subset is too small. Of what is left train has all, but of rlhf only so many.
    """
    by_subset = defaultdict(list)
    for pair in pairs:
        by_subset[pair["subset"]].append(pair)
    strange = sorted({*by_subset} - {*SUBSETS})
    if 0 < len(strange) < len(by_subset):
        print(f"not in Table 1: {', '.join(strange)}; dev and test go by the subsets' sizes, and train has all of them")
    weights = {subset: SUBSETS[subset][1] if not strange else len(some) for subset, some in sorted(by_subset.items())}
    orders = {subset: random.Random(f"{seed} {subset}").sample(by_subset[subset], len(by_subset[subset]))
              for subset in weights}
    splits, taken = {"train": []}, set()
    for split, size in sizes.items():
        splits[split] = []
        for subset, count in quotas(size, weights).items():
            fresh = distinct(orders[subset], taken)
            if len(fresh) < count:
                raise SystemExit(f"{split} needs {count} pairs of {subset} whose questions differ, and {len(fresh)} "
                                 f"are left; {DOWNLOAD}, or pass smaller --dev and --test")
            splits[split] += fresh[:count]
            taken |= {*map(as_key, fresh[:count])}
    held = {pair["name"] for split in sizes for pair in splits[split]}
    for subset, order in orders.items():
        fresh = [pair for pair in order if as_key(pair) not in taken]
        dropped += [("train", f"multispeechqa/{pair['name']}", "a question of dev or test")
                    for pair in order if as_key(pair) in taken and pair["name"] not in held]
        splits["train"] += fresh[:rlhf] if subset == "rlhf" else fresh
    return splits


def distinct(pairs, taken):
    """The first pair of each question that is not `taken`."""
    first = {}
    for pair in pairs:
        if as_key(pair) not in taken:
            first.setdefault(as_key(pair), pair)
    return list(first.values())


def as_key(pair):
    """What makes two questions the same: their words, in any case."""
    return " ".join(re.findall(r"\w+", pair["question"].casefold()))


# --- Speech.

def write_recordings(pairs, folder):
    """{name: path} of the recordings in the download: those in a parquet are written into `folder`, once."""
    paths, todo = {}, defaultdict(dict)
    for pair in pairs:
        if isinstance(pair["source"], str):
            paths[pair["name"]] = pair["source"]
        elif pair["source"]:
            file, group, row = pair["source"]
            path = os.path.join(folder, f"{pair['name']}.wav")
            paths[pair["name"]] = path
            if not os.path.exists(path):
                todo[file, group][row] = pair["name"]
    for (file, group), names in tqdm(todo.items(), desc="write recordings", unit=" row group", disable=not todo):
        with open_parquet(file) as parquet:
            heard = "question_audio" in parquet.schema_arrow.names
            column = heard and parquet.read_row_group(group, ["question_audio"]).column("question_audio")
        for row, name in names.items():
            if not heard:
                del paths[name]
                continue
            with replace_file(paths[name]) as temporary, open(temporary, "wb") as written:
                written.write((column[row].as_py() or {}).get("bytes") or b"")      # an empty one is found later
    return paths


def speak_outside(texts, folder, command, language, split):
    """
    {name: text} -> {name: path}, by the user's TTS command, BLOCK texts at a time; what is there already is kept.
    SystemExit if the command fails. A file that it does not write is missing, and for the caller to notice.
    """
    paths = {name: os.path.join(folder, f"{name}.wav") for name in texts}
    todo = [name for name in texts if not os.path.exists(paths[name])]
    jobs = os.path.join(folder, "jobs.jsonl")
    for first in tqdm(range(0, len(todo), BLOCK), desc=f"{command} {language} {split}", unit=f" x{BLOCK}",
                      disable=not todo):
        # half a file that a kill leaves must not look like a whole one, nor a command that outlives it write in ours
        block = {name: os.path.abspath(os.path.join(folder, f".{os.getpid()}.{name}.wav"))
                 for name in todo[first:first + BLOCK]}
        with replace_file(jobs) as temporary, open(temporary, "w", encoding="utf-8") as file:
            for name, path in block.items():
                job = {"language": language, "split": split, "text": texts[name], "audio": path}
                file.write(json.dumps(job, ensure_ascii=False) + "\n")
        code = subprocess.run([*shlex.split(command), jobs]).returncode
        if code:
            raise SystemExit(f"{command} {jobs} ended with exit code {code}; what it said stands above. Run the same "
                             f"again: it goes on with these {len(block)} texts")
        for name, path in block.items():
            if os.path.exists(path):
                os.replace(path, paths[name])
    return paths


def speech(pairs, texts, language, split, args):
    """{name: path} of what is heard in one split and language; texts: {name: question}. A file may be damaged."""
    folder = os.path.join(args.work, "audio", "multispeechqa", language, split)
    paths = write_recordings([pair for pair in pairs if pair["name"] in texts], folder) if language == "en" else {}
    silent = {name: text for name, text in texts.items() if name not in paths}
    if not silent:
        return paths
    if language in outside(args):
        return paths | speak_outside(silent, folder, args.tts, language, split)
    return paths | speak(silent, folder, model=args.seamless, seed=args.seed, language=language, voices=VOICES[split])


def outside(args):
    """The languages that --tts speaks."""
    return {*UNSPOKEN, *filter(None, args.tts_languages.split(","))}


# --- Rows.

def translations(splits, language, args):
    """{English text: its translation} of all questions and answers; English is left as it is."""
    texts = list(dict.fromkeys(pair[part] for pairs in splits.values() for pair in pairs
                               for part in ("question", "answer")))
    if language == "en":
        return dict(zip(texts, texts))
    kept = os.path.join(args.work, "made", "multispeechqa", f"translate.{language}.jsonl")
    return dict(zip(texts, translate(texts, language, args.seamless, kept)))


def rows_in(language, splits, args, dropped):
    """The rows of all splits in one language, {split: rows}; what has no translation or no speech is dropped."""
    said, found = translations(splits, language, args), {}
    for split, pairs in splits.items():
        texts = {pair["name"]: said[pair["question"]] for pair in pairs
                 if said[pair["question"]] and said[pair["answer"]]}
        paths = speech(pairs, texts, language, split, args)
        broken, found[split] = unreadable(sorted(filter(None, paths.values()))), []
        for pair in pairs:
            utterance = f"multispeechqa/{split}/{language}/{pair['name']}"
            path = paths.get(pair["name"])
            why = ("empty translation" if pair["name"] not in texts else
                   broken.get(path, "") if path else "could not be spoken")
            if why:
                dropped.append((split, utterance, why))
                continue
            question = texts[pair["name"]]
            found[split].append({"id": f"multispeechqa/{split}/{pair['name']}/SQA.{language}", "utterance": utterance,
                                 "audio": path, "task": "SQA", "language": language, "transcript": question,
                                 "question": question, "target": said[pair["answer"]]})
    return found


def bench_rows(rows, languages, seed):
    """BENCH pairs of the test rows, the same in all languages, each of which has them all -> their rows."""
    has = defaultdict(set)
    for row in rows:
        has[row["id"].rpartition(".")[0]].add(row["language"])
    whole = sorted(name for name, found in has.items() if found == {*languages})
    drawn = {*random.Random(f"{seed} bench").sample(whole, min(BENCH, len(whole)))}
    print(f"bench: {len(drawn)} of the {len(whole)} test pairs that all of {len(languages)} languages have")
    return [{**row, "id": row["id"].replace("/test/", "/bench/")} for row in rows
            if row["id"].rpartition(".")[0] in drawn]


def require_support(languages, args):
    """SystemExit, before hours of work, where a language is not one of the 23 or something on the way refuses it."""
    for language in languages:
        row = {"id": "x", "task": "SQA", "language": language, "transcript": "x", "question": "x", "target": "x"}
        why = (f"is none of {', '.join(LANGUAGES)}" if language not in LANGUAGES else
               f"has no row: {defect(row)} (data/rows.py)" if defect(row) else
               "has no name for Seamless in data/translate.py's CODES" if language not in CODES else
               "is not spoken by Seamless; pass --tts, or leave it out of --languages"
               if language in outside(args) and not args.tts else "")
        if why:
            raise SystemExit(f"--languages {language}: it {why}")


def main(argv=None):
    command = parser(__doc__, "multispeechqa")
    command.add_argument("--languages", default=",".join(LANGUAGES), help="comma-separated")
    command.add_argument("--dev", type=int, default=2000, help="pairs; section 3.3")
    command.add_argument("--test", type=int, default=1000, help="pairs; section 3.3")
    command.add_argument("--rlhf", type=int, default=1000, help="pairs of RLHF in train; A.6")
    command.add_argument("--seamless", default=SEAMLESS, help="the model that translates and speaks")
    command.add_argument("--tts", default="", help="a command that speaks what Seamless does not, with its arguments")
    command.add_argument("--tts_languages", default="", help="comma-separated: what it speaks besides el and he")
    command.add_argument("--seed", type=int, default=0, help="of the splits and the voices")
    args = command.parse_args(argv)
    work, raw = args.work, args.raw or os.path.join(args.work, "raw", "multispeechqa")
    languages = args.languages.split(",")
    settings = {name: getattr(args, name) for name in ("languages", "dev", "test", "rlhf", "seamless", "tts",
                                                       "tts_languages", "seed")}
    require_support(languages, args)
    if finished(work, "multispeechqa", settings):
        return

    dropped = []
    pairs = read_pairs(raw, dropped)
    pairs = split_pairs(pairs, {"dev": args.dev, "test": args.test}, args.rlhf, args.seed, dropped)
    for split, some in pairs.items():
        counts = Counter(pair["subset"] for pair in some)
        print(f"{split}: {len(some)} pairs; " + ", ".join(f"{count} {subset}" for subset, count in counts.items()))
    splits = {split: [] for split in pairs}
    for language in languages:
        for split, rows in rows_in(language, pairs, args, dropped).items():
            splits[split] += rows
    splits["bench"] = bench_rows(splits["test"], languages, args.seed)
    for split, rows in splits.items():
        if rows:
            write_rows(os.path.join(work, "rows", "multispeechqa", f"{split}.jsonl"), rows)
    paper = {(split, f"SQA/QA {language}"): count for language in languages
             for split, count in (("train", 90_000), ("dev", 2000), ("test", 1000), ("bench", BENCH))}
    report(work, "multispeechqa", splits, paper, dropped)
    finish(work, "multispeechqa", settings)
    print(f"rows in {work}/rows/multispeechqa\nnext: python extract_features.py --preset listeners")


if __name__ == "__main__":
    main()
