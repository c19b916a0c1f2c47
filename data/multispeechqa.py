"""
Make the rows of MultiSpeechQA: questions to a voice assistant in 23 languages, asked by synthetic voices (multilingual
listeners paper, section 3).

    python -m data.multispeechqa                                # or --raw folder, where the download is elsewhere
    python -m data.multispeechqa --languages en,de,it           # some of the languages
    python -m data.multispeechqa --tts "python my_tts.py"       # Greek and Hebrew by another TTS

download into <work>/raw/multispeechqa (or --raw); data/README.md says more
    *.parquet       https://huggingface.co/datasets/gpt-omni/VoiceAssistant-400K or a part of it (pip install pyarrow).
                    Or any other questions with answers, as
    *.jsonl         lines of {"question", "answer"} and, if known, "split_name", the subset, and "audio", a recording

reads   these, and from the Hugging Face hub: SeamlessM4T (translates and speaks), MMS-TTS (speaks Greek and Hebrew)
writes  <work>/rows/multispeechqa/{train,dev,test,bench}.jsonl, counts.md, dropped.txt, config.json last,
        <work>/audio/multispeechqa/<language>/<split>/, and in <work>/made/multispeechqa/ the translations: a killed run
        goes on

A row is SQA: transcript and question are the same text, and the model reads no other question (A.6). The same pairs are
held out in every language: dev of 2,000 and test of 1,000, whose subsets have the shares of the paper's Table 1. bench
is 200 of the test pairs, as many as MultiSpeech-Bench has, the same in every language, but no person corrected its
translations. train is the rest, with 1,000 pairs of RLHF (A.6; --rlhf 379621 takes all). A question of dev or test is
not in train (our choice).

Voices: Seamless speaks 21 of the languages in 200 voices, 160 of them in train and the others in dev and test. MMS-TTS
speaks Greek and Hebrew, as in the paper, in one voice each. With --tts a command speaks these two and the languages of
--tts_languages: it is called with one more word, a file of up to 1,000 lines {"language", "split", "text", "audio"},
and writes each text's speech to the path under "audio", wav, in voices of its choice. English keeps the recordings of
the download, whose voices are not known; a question without a recording is spoken.
"""
import glob
import os
import random
import re
import shlex
import shutil
import subprocess
from collections import Counter, defaultdict
from contextlib import contextmanager

from tqdm import tqdm

from data.recipe import (begin, download, finish, finished, limited, missing_models, missing_packages, parser,
                         refuse_missing, report, spread, unreadable, write_splits)
from data.speak import MMS, speak, speak_mms
from data.translate import SEAMLESS, translate
from speech_llm.files import JsonObject, replace_file, text_lines, write_json_lines
from speech_llm.normalize import nfc
from speech_llm.resumable import is_first, silence_others
from speech_llm.rows import ALL_LANGUAGES


DOWNLOAD = "download https://huggingface.co/datasets/gpt-omni/VoiceAssistant-400K there, or a part of it"
SUBSETS = {  # name: (what its split_name contains, pairs); Table 1
    "trivia-multi": ("multi", 16_528), "trivia-single": ("single", 16_529), "assistant-v1": ("v1", 5_769),
    "assistant-v2": ("v2", 16_008), "alpaca": ("alpaca", 31_293), "identity": ("identity", 4_306),
    "rlhf": ("rlhf", 379_621),
}
VOICES = {"train": (0.0, 0.8), "dev": (0.8, 1.0), "test": (0.8, 1.0)}     # shares of Seamless' voices (our choice)
BENCH = 200                         # section 3.3
BLOCK = 1000                        # texts that the TTS command gets at a time (our choice)


# --- Input: pairs of a question and an answer.

def find_files(raw):
    """Return the paths of the parquet files and then the JSON lines below `raw`, sorted by path."""
    return sorted(path for ending in ("parquet", "jsonl")
                  for path in glob.glob(os.path.join(glob.escape(raw), "**", f"*.{ending}"), recursive=True))


def missing(work, raw="", languages=ALL_LANGUAGES, seamless=SEAMLESS, tts=""):
    """Return [(what is missing, how to mend it)]."""
    raw = download(work, raw, "multispeechqa")
    paths, program = find_files(raw), (shlex.split(tts) or [""])[0]
    lacking = [] if paths else [(f"questions in *.parquet or *.jsonl below {raw}", DOWNLOAD)]
    if any(path.endswith(".parquet") for path in paths):
        lacking += missing_packages("pyarrow")
    if program and not shutil.which(program):
        lacking.append((program, f"--tts {tts} cannot be run; name a command that can"))
    return lacking + missing_models(seamless, *(MMS[language] for language in languages if language in MMS and not tts))


def subset_of(split_name):
    """Return the subset of Table 1 that a split_name means; another name is returned in lower case."""
    name = re.sub(r"[^a-z0-9]+", "-", split_name.lower()).strip("-")
    return next((subset for subset, (part, _) in SUBSETS.items() if part in name), name) or "pairs"


def read_lines(path):
    """Yield (columns, row group) of a file: those of the parquet without the sound, or a JSON line and None."""
    if path.endswith(".jsonl"):
        with open(path, "rb") as file:
            for number, line in enumerate(text_lines(file, path), 1):
                columns = JsonObject(line, f"{path} line {number}", "a line is a JSON object with question and answer")
                for key in ("question", "answer", *(key for key in ("split_name", "audio") if columns.get(key))):
                    columns.text(key)
                yield columns, None
        return
    with open_parquet(path) as file:
        for group in range(file.num_row_groups):
            wanted = [name for name in ("split_name", "question", "answer") if name in file.schema_arrow.names]
            for columns in file.read_row_group(group, wanted).to_pylist():
                yield columns, group


@contextmanager
def open_parquet(path):
    """Yield a parquet file with the columns question and answer. SystemExit if the file is another or damaged."""
    from pyarrow import ArrowException, parquet
    try:
        with parquet.ParquetFile(path) as file:
            if not {"question", "answer"} <= {*file.schema_arrow.names}:
                raise SystemExit(f"{path} has no columns question and answer; {DOWNLOAD}")
            yield file
    except (ArrowException, OSError) as error:
        raise SystemExit(f"{path} is damaged ({error}); download it again") from None


def read_pairs(raw, dropped):
    """
    Return all pairs below `raw`: [{"name", "subset", "question", "answer", "source"}]. A name is a number within the
    subset, in the files' order; a source is (file, row group, row), the path of a recording, or None.
    """
    pairs, counts = [], Counter()
    for path in tqdm(find_files(raw), desc="read questions", unit=" file"):
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
    return pairs


# --- Splits.

def quotas(total, weights):
    """Return {subset: number of pairs}, `total` in all, for {subset: weight}, by the largest remainders."""
    exact = {subset: total * weight / sum(weights.values()) for subset, weight in weights.items()}
    whole = {subset: int(share) for subset, share in exact.items()}
    most_cut = sorted(exact, key=lambda subset: (whole[subset] - exact[subset], subset))
    for subset in most_cut[:total - sum(whole.values())]:
        whole[subset] += 1
    return whole


def split_pairs(pairs, sizes, rlhf, seed, dropped):
    """
    Return {"train", "dev", "test": pairs}. sizes: {split: number of pairs} of dev and test, which are drawn at random
    by Table 1's shares, or by the subsets' sizes if a subset is not in Table 1. A question of dev or test is there once
    and in no other split. train has all other pairs, but at most `rlhf` of rlhf. SystemExit if a subset is too small.
    """
    by_subset = defaultdict(list)
    for pair in pairs:
        by_subset[pair["subset"]].append(pair)
    strange = sorted({*by_subset} - {*SUBSETS})
    if 0 < len(strange) < len(by_subset):
        print(f"not in Table 1: {', '.join(strange)}; dev and test go by the subsets' sizes, and train has all of them")
    weights = {subset: len(members) if strange else SUBSETS[subset][1] for subset, members in sorted(by_subset.items())}
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
    held_out = {pair["name"] for split in sizes for pair in splits[split]}
    for subset, order in orders.items():
        fresh = [pair for pair in order if as_key(pair) not in taken]
        dropped += [("train", f"multispeechqa/{pair['name']}", "a question of dev or test")
                    for pair in order if as_key(pair) in taken and pair["name"] not in held_out]
        splits["train"] += fresh[:rlhf] if subset == "rlhf" else fresh
    return splits


def distinct(pairs, taken):
    """Return the first pair of each question that is not in `taken`."""
    first = {}
    for pair in pairs:
        if as_key(pair) not in taken:
            first.setdefault(as_key(pair), pair)
    return list(first.values())


def as_key(pair):
    """Return a question's words in lower case: two questions with the same words are the same."""
    return " ".join(re.findall(r"\w+", nfc(pair["question"]).casefold()))


# --- Speech.

def write_recordings(pairs, folder):
    """Return {name: path} of the recordings in the download; those in a parquet are written into `folder`, once."""
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
            has_audio = "question_audio" in parquet.schema_arrow.names
            column = has_audio and parquet.read_row_group(group, ["question_audio"]).column("question_audio")
        for row, name in names.items():
            if not has_audio:
                del paths[name]
                continue
            with replace_file(paths[name]) as temporary, open(temporary, "wb") as recording:
                recording.write((column[row].as_py() or {}).get("bytes") or b"")    # rows_in drops an empty recording
    return paths


def speak_outside(texts, folder, command, language, split):
    """
    Speak {name: text} by the user's TTS command, BLOCK texts at a time, and return {name: path}. A file that is there
    already stays. SystemExit if the command fails; a file that the command does not write is missing.
    """
    paths = {name: os.path.join(folder, f"{name}.wav") for name in texts}
    todo = [name for name in texts if not os.path.exists(paths[name])]
    jobs = os.path.join(folder, "jobs.jsonl")
    for first in tqdm(range(0, len(todo), BLOCK), desc=f"{command} {language} {split}", unit=f" x{BLOCK}",
                      disable=not todo):
        # under other names until the command is done, so that a kill leaves no half file that looks whole
        block = {name: os.path.abspath(os.path.join(folder, f".{os.getpid()}.{name}.wav"))
                 for name in todo[first:first + BLOCK]}
        write_json_lines(jobs, [{"language": language, "split": split, "text": texts[name], "audio": path}
                                for name, path in block.items()])
        code = subprocess.run([*shlex.split(command), jobs]).returncode
        if code:
            raise SystemExit(f"{command} {jobs} ended with exit code {code}; its message stands above. Run the "
                             f"same command again: it goes on with these {len(block)} texts")
        for name, path in block.items():
            if os.path.exists(path):
                os.replace(path, paths[name])
    return paths


def speech(pairs, texts, language, split, args):
    """
    Return {name: path or None} of the speech in one split and language; texts: {name: question}.
    Of several processes only the first runs the TTS command.
    """
    folder = os.path.join(args.work, "audio", "multispeechqa", language, split)
    paths = write_recordings([pair for pair in pairs if pair["name"] in texts], folder) if language == "en" else {}
    silent = {name: text for name, text in texts.items() if name not in paths}
    if not silent:
        return paths
    if args.tts and language in (*MMS, *args.tts_languages.split(",")):
        return paths | (speak_outside(silent, folder, args.tts, language, split) if is_first() else {})
    if language in MMS:
        return paths | speak_mms(silent, folder, language, args.seed)
    return paths | speak(silent, folder, model=args.seamless, seed=args.seed, language=language, voices=VOICES[split])


# --- Rows.

def translations(splits, language, args):
    """Return {English text: its translation} of all questions and answers; English stays as it is."""
    texts = list(dict.fromkeys(pair[part] for pairs in splits.values() for pair in pairs
                               for part in ("question", "answer")))
    if language == "en":
        return dict(zip(texts, texts))
    path = os.path.join(args.work, "made", "multispeechqa", f"translate.{language}.jsonl")
    return dict(zip(texts, translate(texts, language, args.seamless, path)))


def rows_in(language, splits, args, dropped):
    """Return {split: rows} of one language; pairs without a translation or speech are added to `dropped`."""
    translated, rows = translations(splits, language, args), {}
    for split, pairs in splits.items():
        texts = {pair["name"]: translated[pair["question"]] for pair in pairs
                 if translated[pair["question"]] and translated[pair["answer"]]}
        paths = speech(pairs, texts, language, split, args)
        broken, rows[split] = unreadable(sorted(filter(None, paths.values()))), []
        for pair in pairs:
            utterance = f"multispeechqa/{split}/{language}/{pair['name']}"
            path = paths.get(pair["name"])
            why = ("empty translation" if pair["name"] not in texts else
                   broken.get(path, "") if path else "could not be spoken")
            if why:
                dropped.append((split, utterance, why))
                continue
            question = texts[pair["name"]]
            rows[split].append({"id": f"multispeechqa/{split}/{pair['name']}/SQA.{language}", "utterance": utterance,
                                "audio": path, "task": "SQA", "language": language, "transcript": question,
                                "question": question, "target": translated[pair["answer"]]})
    return rows


def bench_rows(rows, languages, seed):
    """Return the test rows of BENCH pairs, drawn from those that have a row in every language."""
    languages_of = defaultdict(set)
    for row in rows:
        languages_of[row["id"].rpartition(".")[0]].add(row["language"])
    whole = sorted(name for name, present in languages_of.items() if present == {*languages})
    drawn = {*random.Random(f"{seed} bench").sample(whole, min(BENCH, len(whole)))}
    print(f"bench: {len(drawn)} of the {len(whole)} test pairs that all of {len(languages)} languages have")
    return [{**row, "id": row["id"].replace("/test/", "/bench/")} for row in rows
            if row["id"].rpartition(".")[0] in drawn]


def require_support(languages, args):
    """Exit, before hours of work, for a language that the rows do not know, or --tts_languages without --tts."""
    for language in languages:
        if language not in ALL_LANGUAGES:
            raise SystemExit(f"--languages {language}: known are {', '.join(ALL_LANGUAGES)}")
    if args.tts_languages and not args.tts:
        raise SystemExit(f"--tts_languages {args.tts_languages}: which command speaks them? Pass --tts")


def main(argv=None):
    command = parser(__doc__, "multispeechqa", models=[("seamless", SEAMLESS, "translates and speaks")])
    command.add_argument("--languages", default=",".join(ALL_LANGUAGES), help="comma-separated")
    command.add_argument("--dev", type=int, default=2000, help="pairs; section 3.3")
    command.add_argument("--test", type=int, default=1000, help="pairs; section 3.3")
    command.add_argument("--rlhf", type=int, default=1000, help="pairs of RLHF in train; A.6")
    command.add_argument("--tts", default="", help="a command that speaks Greek and Hebrew, with its arguments")
    command.add_argument("--tts_languages", default="", help="comma-separated: what --tts speaks besides el and he")
    command.add_argument("--seed", type=int, default=0, help="of the splits and the voices")
    args = command.parse_args(argv)
    silence_others()
    work, languages = args.work, args.languages.split(",")
    settings = {name: getattr(args, name) for name in ("languages", "dev", "test", "rlhf", "seamless", "tts",
                                                       "tts_languages", "seed")} | limited(args)
    require_support(languages, args)
    if finished(work, "multispeechqa", settings):
        return
    refuse_missing("multispeechqa", missing(work, args.raw, languages, args.seamless, args.tts), args.check)

    dropped = []
    pairs = read_pairs(download(work, args.raw, "multispeechqa"), dropped)
    pairs = split_pairs(pairs, {"dev": args.dev, "test": args.test}, args.rlhf, args.seed, dropped)
    pairs = {split: spread(members, args.limit) for split, members in pairs.items()}
    for split, members in pairs.items():
        counts = Counter(pair["subset"] for pair in members)
        print(f"{split}: {len(members)} pairs; " + ", ".join(f"{count} {subset}" for subset, count in counts.items()))
    begin(work, "multispeechqa", settings)
    splits = {split: [] for split in pairs}
    for language in languages:
        for split, rows in rows_in(language, pairs, args, dropped).items():
            splits[split] += rows
    if not is_first():                      # this process only helps to translate and to speak
        return
    splits["bench"] = bench_rows(splits["test"], languages, args.seed)
    write_splits(work, "multispeechqa", splits)
    paper = {(split, f"SQA/QA {language}"): count for language in languages if not args.limit
             for split, count in (("train", 90_000), ("dev", 2000), ("test", 1000), ("bench", BENCH))}
    report(work, "multispeechqa", splits, paper, dropped, args.incomplete)
    finish(work, "multispeechqa", settings, "listeners")


if __name__ == "__main__":
    main()
