"""
Common Voice: sentences read aloud by volunteers, in the 23 languages of MultiSpeechQA; 20 hours of each for training
(multilingual listeners paper, A.6).

    python -m data.commonvoice                      # or --raw folder, where the download lies elsewhere
    python -m data.commonvoice --languages en,fr,nl,tr,de,ar,es,ru,id,pl          # the paper's ten

download into <work>/raw/commonvoice
    cv-corpus-<version>/<locale>/   one folder a language, unpacked; https://datacollective.mozillafoundation.org, CC0.
        <locale> is our name of the language, but zh-CN for zh. Of it are read clips/*.mp3, train.tsv, dev.tsv,
        test.tsv, and, where train.tsv is short of 20 hours, validated.tsv. Any version; the paper names none
    supplement/<locale>.tsv         only for languages that are still short then; the paper has vi, he, hi and ko.
        UTF-8, a tab between columns, no quoting; the first line is "path", a tab, "sentence"; paths start at
        supplement/. wav, flac, mp3 or ogg, at most 30 s each. A backslash in a sentence is written twice

    The supplement's corpora have other forms; take their training parts:
    vi  Bud500, https://huggingface.co/datasets/linhtran92/viet_bud500: parquet with the columns audio and
        transcription. Write the bytes of each audio to supplement/vi/<number>.wav, and the transcription beside it
    he  Ivrit.ai, https://huggingface.co/ivrit-ai (behind a licence to accept): parquet with audio and text, done alike.
        The paper does not say which of its sets
    hi  MUCS, https://www.openslr.org/resources/103/Hindi_train.zip: unpack to supplement/hi/; each line of its
        transcription file is an utterance's name, a space, the sentence: path is the wav of that name
    ko  Zeroth-Korean, https://www.openslr.org/resources/40/zeroth_korean.tar.gz (CC BY 4.0): unpack to supplement/ko/;
        each line of a *.trans.txt is a name, a space, the sentence: path is the flac of that name beside it

reads   these; of CoVoST 2's translations, if they are in <work>/raw/covost2 or --covost, which clips it tests on
writes  <work>/rows/commonvoice/{train,dev,test}.jsonl, counts.md, dropped.txt, config.json last

A row is ASR in the language that is spoken; clips are named where they lie. train has --hours of each language, whole
clips drawn at random, their lengths from their headers: from train.tsv; where that is short, from the rest of
validated.tsv, without the sentences and the speakers of dev and test (our choice: the paper does not say which file it
takes); where that is short too, from the supplement. dev and test are --dev and --test clips of each language, drawn at
random: the paper does not say how many it tests on (our choice). counts.md has the hours beside the paper's.

Common Voice is split anew in every version: clips of CoVoST 2's dev and test, which come from version 4, may be in a
later train.tsv. Those that CoVoST 2's files name are dropped from train, whether or not data/covost2.py has run.
"""
import glob
import math
import os
import random
from collections import Counter

from data.covost2 import CLIP, FROM_ENGLISH, LOCALES, SPLITS, read_translations, read_tsv, release
from data.recipe import finish, finished, need, parser, report, unreadable
from speech_llm.files import replace_file
from speech_llm.rows import ALL_LANGUAGES as LANGUAGES
from speech_llm.rows import write_rows


DOWNLOAD = "unpack Common Voice there, from https://datacollective.mozillafoundation.org"
HOURS = 20                                                        # of each language; Table 5
SUPPLEMENTS = {"vi": "15 h of Bud500", "he": "18 h of Ivrit.ai", "hi": "14 h of MUCS", "ko": "19 h of Zeroth-Korean"}
PLACES = ("train.tsv", "validated.tsv", "supplement")             # where train comes from, in this order
BLOCK = 20_000                                                    # clips looked at together: some 25 hours


# --- Reading a download.

def find_folder(raw, locale):
    """The folder of a language; SystemExit if there is none, or one in each of several versions."""
    found = [folder for folder in sorted(glob.glob(os.path.join(glob.escape(raw), "cv-corpus-*", locale)))
             if os.path.isdir(folder)]
    if len(found) > 1:
        raise SystemExit(f"{locale} is there in several versions: {', '.join(found)}; leave one of them in {raw}")
    return found[0] if found else need(os.path.join(raw, "cv-corpus-<version>", locale), DOWNLOAD)


def read_clips(folder, name):
    """A TSV of Common Voice -> {clip: (sentence, speaker)}; of a clip that is named twice the first line stays."""
    path, found = need(os.path.join(folder, name), DOWNLOAD), {}
    for number, (clip, sentence, speaker) in read_tsv(path, ("path", "sentence", "client_id")):
        if not CLIP.fullmatch(clip):
            raise SystemExit(f"{path} line {number}: {clip!r} is no file name; download it again")
        found.setdefault(clip, (sentence, speaker))
    return found


def read_supplement(raw, locale):
    """supplement/<locale>.tsv -> [(its line as a name, path, sentence)]; nothing if it is not there."""
    folder = os.path.join(raw, "supplement")
    path, found = os.path.join(folder, f"{locale}.tsv"), []
    if os.path.exists(path):
        for number, (audio, sentence) in read_tsv(path, ("path", "sentence")):
            if os.path.isabs(audio) or ".." in audio.split("/"):
                raise SystemExit(f"{path} line {number}: {audio!r} is not below {folder}")
            found.append((f"supplement-{number}", os.path.join(folder, audio), sentence))
    return found


def covost_clips(raw, language):
    """The clips in dev and test of CoVoST 2's pairs that are spoken in `language`, as far as their TSVs are there."""
    pairs = [("en", target) for target in FROM_ENGLISH] if language == "en" else [(language, "en")]
    paths = [release(raw, *pair) for pair in pairs]
    return {clip for path in paths if os.path.exists(path) or os.path.exists(f"{path}.tar.gz")
            for clip, (_, mark) in read_translations(path).items() if SPLITS[mark] in ("dev", "test")}


# --- Drawing.

def in_order(clips, folder, seed):
    """{clip: (sentence, speaker)} -> [(name, path, sentence)] in random order."""
    return [(clip.removesuffix(".mp3"), os.path.join(folder, "clips", clip), clips[clip][0])
            for clip in random.Random(seed).sample(list(clips), len(clips))]


def draw(clips, language, split, held_out, dropped, seconds=math.inf, count=math.inf):
    """
    The first of `clips` [(name, path, sentence)] that can be heard and have a sentence, until they are `count`, or
    `seconds` long -> (rows, seconds). What is passed over on the way is dropped, as are clips in `held_out`.
    """
    import soundfile
    rows, total, block = [], 0.0, min(count, BLOCK)
    for first in range(0, len(clips), max(block, 1)):
        if total >= seconds or len(rows) >= count:
            break
        some = clips[first:first + block]
        broken = unreadable([path for _, path, _ in some])
        for name, path, sentence in some:
            if total >= seconds or len(rows) >= count:
                break
            utterance = f"commonvoice/{split}/{language}/{name}"
            why = ("in dev or test of CoVoST 2" if os.path.basename(path) in held_out else
                   broken.get(path) or ("" if sentence.strip() else "empty sentence"))
            if why:
                dropped.append((split, utterance, why))
                continue
            total += soundfile.info(path).duration
            rows.append({"id": f"{utterance}/ASR.{language}", "utterance": utterance, "audio": path, "task": "ASR",
                         "language": language, "transcript": sentence, "target": sentence})
    return rows, total


def make_rows(raw, covost, language, args, dropped):
    """One language -> {split: rows}, {split, or place that train comes from: seconds}."""
    locale = LOCALES.get(language, language)
    folder = find_folder(raw, locale)
    held = {split: read_clips(folder, f"{split}.tsv") for split in ("dev", "test")}
    rows, seconds = {}, Counter()
    for split, clips in held.items():
        order = in_order(clips, folder, f"{args.seed} {language} {split}")
        rows[split], seconds[split] = draw(order, language, split, (), dropped, count=getattr(args, split))

    rows["train"], tested, offered = [], covost_clips(covost, language), {}
    for place in PLACES:
        missing = args.hours * 3600 - sum(seconds[part] for part in PLACES)
        if missing <= 0:
            break
        if place == "supplement":
            order = read_supplement(raw, locale)
            order = random.Random(f"{args.seed} {language} {place}").sample(order, len(order))
        else:
            clips = read_clips(folder, place)
            if place == "validated.tsv":
                sentences, speakers = ({entry[part] for some in held.values() for entry in some.values()}
                                       for part in (0, 1))
                clips = {clip: (sentence, speaker) for clip, (sentence, speaker) in clips.items()
                         if clip not in offered and sentence not in sentences and speaker not in speakers}
            offered = clips
            order = in_order(clips, folder, f"{args.seed} {language} {place}")
        drawn, seconds[place] = draw(order, language, "train", tested, dropped, seconds=missing)
        rows["train"] += drawn
    return rows, seconds


# --- The table of hours.

def hours_table(seconds, hours):
    """{language: {split or place: seconds}} -> the lines of a table, the paper's hours of train beside ours."""
    columns = [*PLACES, "train", "paper", "dev", "test"]
    lines, short = ["| hours | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"], []
    for language, found in seconds.items():
        found = found + Counter(train=sum(found[place] for place in PLACES))
        cells = {column: f"{found[column] / 3600:.2f}" for column in columns}
        cells["paper"] = f"{HOURS}" + (f", of them {SUPPLEMENTS[language]}" if language in SUPPLEMENTS else "")
        lines.append(f"| {language} | " + " | ".join(cells.values()) + " |")
        if found["train"] < 3600 * hours:
            short.append(language)
    if short:
        lines += ["", f"fewer than {hours:g} hours of train: {', '.join(short)}; a supplement/<locale>.tsv adds more"]
    return lines


def main(argv=None):
    command = parser(__doc__, "commonvoice")
    command.add_argument("--languages", default=",".join(LANGUAGES), help="comma-separated")
    command.add_argument("--hours", type=float, default=HOURS, help="of each language in train; A.6")
    command.add_argument("--dev", type=int, default=100, help="clips of each language (our choice)")
    command.add_argument("--test", type=int, default=1000, help="clips of each language (our choice)")
    command.add_argument("--covost", default="", help="folder of CoVoST 2's TSVs; <work>/raw/covost2 if not given")
    command.add_argument("--seed", type=int, default=0, help="of what is drawn")
    args = command.parse_args(argv)
    work, raw = args.work, args.raw or os.path.join(args.work, "raw", "commonvoice")
    covost = args.covost or os.path.join(work, "raw", "covost2")
    languages = args.languages.split(",")
    for language in languages:
        if language not in LANGUAGES:
            raise SystemExit(f"--languages {language}: known are {', '.join(LANGUAGES)}")
    settings = {name: getattr(args, name) for name in ("languages", "hours", "dev", "test", "seed")}
    if not os.path.exists(os.path.join(work, "rows", "commonvoice", "config.json")):
        for language in languages:                          # all of them, before the work on the first
            find_folder(raw, LOCALES.get(language, language))
    if finished(work, "commonvoice", settings):
        return

    splits, seconds, dropped = {"train": [], "dev": [], "test": []}, {}, []
    for language in languages:
        print(f"{LANGUAGES[language]}:")
        rows, seconds[language] = make_rows(raw, covost, language, args, dropped)
        for split, some in rows.items():
            splits[split] += some
    for split, rows in splits.items():
        if rows:
            write_rows(os.path.join(work, "rows", "commonvoice", f"{split}.jsonl"), rows)
    report(work, "commonvoice", splits, {}, dropped)
    table = "\n".join(["", *hours_table(seconds, args.hours), ""])
    path = os.path.join(work, "rows", "commonvoice", "counts.md")
    with open(path, encoding="utf-8") as file:
        counts = file.read()
    with replace_file(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(counts + table)
    print(table)
    finish(work, "commonvoice", settings)
    print(f"rows in {work}/rows/commonvoice\nnext: python extract_features.py --preset listeners-align")


if __name__ == "__main__":
    main()
