"""
Make the rows of Common Voice: sentences read aloud by volunteers, in the 23 languages of MultiSpeechQA; 20 hours of
each language for training (multilingual listeners paper, A.6).

    python -m data.commonvoice                      # or --raw folder, where the download is elsewhere
    python -m data.commonvoice --languages en,fr,nl,tr,de,ar,es,ru,id,pl          # the paper's ten

download into <work>/raw/commonvoice (or --raw), from https://datacollective.mozillafoundation.org; data/README.md says
        more, and how to make a supplement
    cv-corpus-<version>/<locale>/   of each language, unpacked: clips/*.mp3, train.tsv, dev.tsv, test.tsv and, if
        train.tsv has less than 20 hours, validated.tsv. <locale> is our name of the language, but zh-CN for zh. Both
        folders may be left out: <locale>/ alone, or only the files if just one language is there
    supplement/<locale>.tsv         for languages that have too little (the paper: vi, he, hi, ko). UTF-8, a tab between
        columns; the first line is "path", a tab, "sentence"; paths start at supplement/. wav, flac, mp3 or ogg

reads   these; of CoVoST 2's translations, if they are in <work>/raw/covost2 or --covost, which clips it tests on
writes  <work>/rows/commonvoice/{train,dev,test}.jsonl, counts.md, dropped.txt, config.json last

A row is ASR in the language that is spoken. train has --hours of each language, whole clips drawn at random: from
train.tsv; if that is too little, from the rest of validated.tsv, without the sentences and the speakers of dev and test
(our choice: the paper does not say which file it takes); if that is too little, from the supplement. dev and test are
--dev and --test clips of each language, drawn at random (our choice: the paper names no number). Clips that CoVoST 2
tests on are not in train: Common Voice is split anew in every version. counts.md has the hours beside the paper's.
"""
import math
import os
import random
from collections import Counter

from data.covost2 import (FROM_ENGLISH, LOCALES, SPLITS, no_file_name, read_translations, read_tsv, release,
                          voice_folder)
from data.recipe import (ENOUGH, begin, download, finish, finished, limited, missing_files, parser, refuse_incomplete,
                         refuse_missing, report, speech_rows, unreadable, write_splits)
from speech_llm.audio import duration
from speech_llm.files import write_text
from speech_llm.normalize import nfc
from speech_llm.rows import ALL_LANGUAGES


DOWNLOAD = "unpack Common Voice there, from https://datacollective.mozillafoundation.org"
HOURS = 20                                                        # of each language; Table 5
SUPPLEMENTS = {"vi": "15 h of Bud500", "he": "18 h of Ivrit.ai", "hi": "14 h of MUCS", "ko": "19 h of Zeroth-Korean"}
PLACES = ("train.tsv", "validated.tsv", "supplement")             # where train comes from, in this order
BLOCK = 20_000                                                    # clips looked at together: some 25 hours


def missing(work, raw="", languages=ALL_LANGUAGES):
    """Return [(what is missing, how to mend it)]. A validated.tsv may turn out to be needed later."""
    raw, lacking = download(work, raw, "commonvoice"), []
    for locale in (LOCALES.get(language, language) for language in languages):
        folder = voice_folder(raw, locale) or os.path.join(raw, "cv-corpus-<version>", locale)
        names = ("train.tsv", "dev.tsv", "test.tsv") if os.path.isdir(folder) else ("",)
        lacking += missing_files([os.path.join(folder, name) for name in names], DOWNLOAD)
    return lacking


# --- Reading a download.

def read_clips(folder, name, dropped):
    """Return {clip: (sentence, speaker)} of a TSV of Common Voice; the first line of a clip counts."""
    path, clips = os.path.join(folder, name), {}
    refuse_missing("commonvoice", missing_files([path], DOWNLOAD))
    for _, (clip, sentence, speaker) in read_tsv(path, ("path", "sentence", "client_id"), dropped,
                                                 lambda clip, *_: no_file_name(clip)):
        clips.setdefault(clip, (nfc(sentence), speaker))
    return clips


def read_supplement(raw, locale, dropped):
    """Return [(its line as a name, path, sentence)] of supplement/<locale>.tsv; nothing if that file is not there."""
    folder = os.path.join(raw, "supplement")
    path, clips = os.path.join(folder, f"{locale}.tsv"), []
    if os.path.exists(path):
        for number, (audio, sentence) in read_tsv(path, ("path", "sentence"), dropped):
            if os.path.isabs(audio) or ".." in audio.split("/"):
                raise SystemExit(f"{path} line {number}: {audio!r} is not below {folder}")
            clips.append((f"supplement-{number}", os.path.join(folder, audio), sentence))
    return clips


def covost_clips(raw, language):
    """Return the clips in dev and test of CoVoST 2's pairs spoken in `language`, as far as their TSVs are there."""
    pairs = [("en", target) for target in FROM_ENGLISH] if language == "en" else [(language, "en")]
    paths = [release(raw, *pair) for pair in pairs]
    return {clip for path in paths if os.path.exists(path) or os.path.exists(f"{path}.tar.gz")
            for clip, (_, mark) in read_translations(path).items() if SPLITS[mark] in ("dev", "test")}


# --- Drawing.

def in_order(clips, folder, seed):
    """Return [(name, path, sentence)] of {clip: (sentence, speaker)}, in random order."""
    return [(clip.removesuffix(".mp3"), os.path.join(folder, "clips", clip), clips[clip][0])
            for clip in random.Random(seed).sample(list(clips), len(clips))]


def draw(clips, language, split, held_out, dropped, seconds=math.inf, count=math.inf):
    """
    Return (rows, seconds) of the first `clips`, [(name, path, sentence)], that open and have a sentence, until they are
    `count`, or `seconds` long. Clips that cannot be used, or are in `held_out`, are added to `dropped`.
    """
    rows, total, block = [], 0.0, int(min(count, BLOCK))
    for first in range(0, len(clips), max(block, 1)):
        if total >= seconds or len(rows) >= count:
            break
        clips_now = clips[first:first + block]
        broken = unreadable([path for _, path, _ in clips_now])
        for name, path, sentence in clips_now:
            if total >= seconds or len(rows) >= count:
                break
            utterance = f"commonvoice/{split}/{language}/{name}"
            why = ("in dev or test of CoVoST 2" if os.path.basename(path) in held_out else
                   broken.get(path) or ("" if sentence.strip() else "empty sentence"))
            if why:
                dropped.append((split, utterance, why))
                continue
            total += duration(path)
            rows += speech_rows(utterance, {"audio": path}, sentence, {}, language)
    return rows, total


def candidates(place, raw, folder, language, dev_and_test, offered, seed, dropped):
    """
    Return [(name, path, sentence)] of one of the PLACES that train comes from, in random order.
    dev_and_test: {clip: (sentence, speaker)} of both; offered: the clips of train.tsv, which validated.tsv repeats.
    """
    if place == "supplement":
        clips = read_supplement(raw, LOCALES.get(language, language), dropped)
        return random.Random(f"{seed} {language} {place}").sample(clips, len(clips))
    clips = read_clips(folder, place, dropped)
    if place == "validated.tsv":
        sentences, speakers = ({entry[part] for entry in dev_and_test} for part in (0, 1))
        clips = {clip: (sentence, speaker) for clip, (sentence, speaker) in clips.items()
                 if clip not in offered and sentence not in sentences and speaker not in speakers}
    offered.update(clips)
    return in_order(clips, folder, f"{seed} {language} {place}")


def make_rows(raw, covost, language, args, dropped):
    """Return {split: rows} and {split, or place that train comes from: seconds} of one language."""
    folder = voice_folder(raw, LOCALES.get(language, language))
    held_out = {split: read_clips(folder, f"{split}.tsv", dropped) for split in ("dev", "test")}
    rows, seconds = {}, Counter()
    for split, clips in held_out.items():
        order = in_order(clips, folder, f"{args.seed} {language} {split}")
        rows[split], seconds[split] = draw(order, language, split, (), dropped,
                                            count=min(getattr(args, split), args.limit or math.inf))
    rows["train"], tested, offered = [], covost_clips(covost, language), set()
    dev_and_test = [entry for clips in held_out.values() for entry in clips.values()]
    for place in PLACES:
        lacking = args.hours * 3600 - train_seconds(seconds)
        if lacking <= 0 or 0 < args.limit <= len(rows["train"]):
            break
        order = candidates(place, raw, folder, language, dev_and_test, offered, args.seed, dropped)
        drawn, seconds[place] = draw(order, language, "train", tested, dropped, seconds=lacking,
                                     count=args.limit - len(rows["train"]) if args.limit else math.inf)
        rows["train"] += drawn
    return rows, seconds


# --- The table of hours.

def hours_table(seconds, hours):
    """Return the lines of a table of {language: {split or place: seconds}}, the paper's hours of train beside ours."""
    columns = [*PLACES, "train", "paper", "dev", "test"]
    lines, short = ["| hours | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"], []
    for language, parts in seconds.items():
        parts = parts + Counter(train=train_seconds(parts))
        cells = {column: f"{parts[column] / 3600:.2f}" for column in columns}
        cells["paper"] = f"{HOURS}" + (f", of them {SUPPLEMENTS[language]}" if language in SUPPLEMENTS else "")
        lines.append(f"| {language} | " + " | ".join(cells.values()) + " |")
        if parts["train"] < 3600 * hours:
            short.append(language)
    if short:
        lines += ["", f"fewer than {hours:g} hours of train: {', '.join(short)}; a supplement/<locale>.tsv adds more"]
    return lines


def train_seconds(parts):
    """Return the seconds of train, from all places."""
    return sum(parts[place] for place in PLACES)


def main(argv=None):
    command = parser(__doc__, "commonvoice")
    command.add_argument("--languages", default=",".join(ALL_LANGUAGES), help="comma-separated")
    command.add_argument("--hours", type=float, default=HOURS, help="of each language in train; A.6")
    command.add_argument("--dev", type=int, default=100, help="clips of each language (our choice)")
    command.add_argument("--test", type=int, default=1000, help="clips of each language (our choice)")
    command.add_argument("--covost", default="", help="folder of CoVoST 2's TSVs; <work>/raw/covost2 if not given")
    command.add_argument("--seed", type=int, default=0, help="of what is drawn")
    args = command.parse_args(argv)
    work, raw = args.work, download(args.work, args.raw, "commonvoice")
    languages = args.languages.split(",")
    for language in languages:
        if language not in ALL_LANGUAGES:
            raise SystemExit(f"--languages {language}: known are {', '.join(ALL_LANGUAGES)}")
    settings = {name: getattr(args, name) for name in ("languages", "hours", "dev", "test", "seed")} | limited(args)
    if finished(work, "commonvoice", settings):
        return
    refuse_missing("commonvoice", missing(work, raw, languages), args.check)      # of all, before the first

    begin(work, "commonvoice", settings)
    splits, seconds, dropped = {"train": [], "dev": [], "test": []}, {}, []
    for language in languages:
        print(f"{language}:")
        rows, seconds[language] = make_rows(raw, download(work, args.covost, "covost2"), language, args, dropped)
        for split, language_rows in rows.items():
            splits[split] += language_rows
    write_splits(work, "commonvoice", splits)
    report(work, "commonvoice", splits, {}, dropped)
    folder, table = os.path.join(work, "rows", "commonvoice"), "\n".join(["", *hours_table(seconds, args.hours), ""])
    path = os.path.join(folder, "counts.md")
    with open(path, encoding="utf-8") as file:
        counts = file.read()
    write_text(path, counts + table)
    print(table)
    refuse_incomplete(folder, [f"{language}: {train_seconds(parts) / 3600:.2f} hours of train, of {args.hours:g}"
                               for language, parts in seconds.items()
                               if train_seconds(parts) < ENOUGH * args.hours * 3600], args.incomplete or args.limit)
    finish(work, "commonvoice", settings, "listeners")


if __name__ == "__main__":
    main()
