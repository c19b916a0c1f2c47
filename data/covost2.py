"""
CoVoST 2: English to German and to Chinese, on recordings of Common Voice 4.

    python data/covost2.py                          # or --raw folder, where the download lies elsewhere

download into <work>/raw/covost2
    covost_v2.en_de.tsv.tar.gz, covost_v2.en_zh-CN.tsv.tar.gz   from https://dl.fbaipublicfiles.com/covost/
        the translations, about 40 MB each when unpacked (reckoned from other pairs), read packed or unpacked;
        CC0 (the copy on the Hugging Face hub says CC BY-NC 4.0)
    en/validated.tsv, en/clips/*.mp3        the English part of Common Voice corpus 4 (cv-corpus-4-2019-12-10), unpacked
        41.4 GB, CC0; https://commonvoice.mozilla.org/datasets; later versions may lack clips

reads   these
writes  <work>/rows/covost2/{train,dev,test}.jsonl, counts.md, dropped.txt, config.json last

The released translations are joined with the recordings by the clip's name, as get_covost_splits.py does it (CoVoST's
repository). The clips are named where they lie and stay mp3. An utterance has its ASR row once, over both languages,
and an ST row for each translation. The release has 289,430 training clips, the paper 289,413 (2025, Table 1): clips
that cannot be decoded, most likely; extract_features.py drops those whose damage shows only then. Double quotes around
a sentence (a fifth of the test set) stay as the release has them (our choice).
"""
import csv
import os
import re
import sys
import tarfile
import zlib

if __name__ == "__main__":  # `python data/covost2.py`: imports start at the project's folder, not at data/
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from data.recipe import need, parser, report, speech_rows, text_lines, unreadable
from data.rows import finish, finished, write_rows

URL = "https://dl.fbaipublicfiles.com/covost/"
COMMON_VOICE = "the English part of Common Voice corpus 4, https://commonvoice.mozilla.org/datasets, unpacked there"
PAIRS = {"de": "en_de", "zh": "en_zh-CN"}
SPLITS = {"train": "train", "train_covost": "train", "dev": "dev", "test": "test",    # version 2's reading of the marks
          "dev_covost": None, "test_covost": None, "train_dup": None, "dev_dup": None, "test_dup": None}
CLIP = re.compile(r"\w[\w.-]*")                                  # a plain file name, never a path
KINDS = ("ASR en", "ST/MT de", "ST/MT zh")
PAPER = {**{("train", kind): 289_413 for kind in KINDS},         # 2025, Table 1
         **{(split, kind): 15_531 for split in ("dev", "test") for kind in KINDS}}      # the release


# --- Reading the released files.

def tsv_lines(path):
    """The lines of a TSV; if it is not there, of that member of path + ".tar.gz". Nothing is unpacked to disk."""
    name = os.path.basename(path)
    if os.path.exists(path):
        with open(path, "rb") as file:
            yield from text_lines(file, path)
        return
    archive = need(f"{path}.tar.gz", f"download it from {URL}{name}.tar.gz")
    try:
        with tarfile.open(archive, "r:gz") as tar:
            member = next((m for m in tar if m.isfile() and os.path.basename(m.name) == name), None)
            if member is None:
                raise SystemExit(f"{archive} holds no {name}; download it again")
            yield from text_lines(tar.extractfile(member), f"{name} in {archive}")
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise SystemExit(f"{archive} is damaged ({error}); download it again") from None


def read_tsv(path, columns):
    """
    Yield (line number, [the fields of `columns`]), columns found by their names in the first line.
    As pandas reads it in get_covost_splits.py (QUOTE_NONE, escapechar, na_filter=False): quotes are characters like
    any other, a backslash goes and the character after it stays, be it a tab or a line's end; "NA" is a text.
    SystemExit, naming file and line, where a line has more or fewer fields than the first.
    """
    reader = csv.reader(tsv_lines(path), delimiter="\t", quoting=csv.QUOTE_NONE, escapechar="\\")
    try:
        header = next(reader, [])
        missing = [column for column in columns if column not in header]
        if missing:
            raise SystemExit(f"{path} line 1: no column {', '.join(missing)}; download it again")
        places = [header.index(column) for column in columns]
        for fields in reader:
            if fields and len(fields) != len(header):
                raise SystemExit(f"{path} line {reader.line_num}: {len(fields)} fields, expected {len(header)}; the "
                                 "file is cut short or damaged, download it again")
            if fields:
                yield reader.line_num, [fields[place] for place in places]
    except csv.Error as error:
        raise SystemExit(f"{path} line {reader.line_num}: {error}; download it again") from None


def read_translations(path):
    """A released covost_v2.<pair>.tsv (or its .tar.gz) -> {clip: (translation, mark)}, mark: a key of SPLITS."""
    found, again = {}, 0
    for number, (clip, translation, mark) in read_tsv(path, ("path", "translation", "split")):
        if mark not in SPLITS:
            raise SystemExit(f"{path} line {number}: unknown split {mark!r}; the file is cut short or damaged, "
                             "download it again")
        if not CLIP.fullmatch(clip):
            raise SystemExit(f"{path} line {number}: {clip!r} is no file name; download it again")
        again += clip in found
        found.setdefault(clip, (translation, mark))
    if again:
        print(f"{path}: {again} lines name a clip a second time; its first line stays")
    return found


def split_translations(translations):
    """
    {clip: (translation, mark)} -> {split: {clip: translation}}, [(split, clip, why it is dropped)].
    train is train and train_covost; dev and test are themselves only; the other marks belong to no split.
    """
    splits, dropped = {"train": {}, "dev": {}, "test": {}}, []
    for clip, (translation, mark) in translations.items():
        split = SPLITS[mark]
        if split and "[TO REMOVE]" in translation:
            dropped.append((split, clip, "translation marked [TO REMOVE]"))
        elif split and not translation.strip():
            dropped.append((split, clip, "empty translation"))
        elif split:
            splits[split][clip] = translation
    return splits, dropped


def read_sentences(path, clips):
    """Common Voice's validated.tsv -> {clip: English sentence} of those in `clips`."""
    return {clip: sentence for _, (clip, sentence) in read_tsv(path, ("path", "sentence")) if clip in clips}


# --- Rows.

def name(split, clip):
    """The key of an utterance: "covost2/test/common_voice_en_699711"."""
    return f"covost2/{split}/{clip.removesuffix('.mp3')}"


def make_rows(raw):
    """The folder of the download -> {split: rows}, [(split, id, why it is dropped)]."""
    translations, dropped = {"train": {}, "dev": {}, "test": {}}, []         # {split: {clip: {language: translation}}}
    for language, pair in PAIRS.items():
        splits, bad = split_translations(read_translations(os.path.join(raw, f"covost_v2.{pair}.tsv")))
        dropped += [(split, f"{name(split, clip)}/ST.{language}", why) for split, clip, why in bad]
        for split, texts in splits.items():
            for clip, text in texts.items():
                translations[split].setdefault(clip, {})[language] = text
    held_out = {*translations["dev"], *translations["test"]}

    folder = need(os.path.join(raw, "en", "clips"), COMMON_VOICE)
    validated = need(os.path.join(raw, "en", "validated.tsv"), COMMON_VOICE)
    sentences = read_sentences(validated, held_out | {*translations["train"]})
    paths = {clip: os.path.join(folder, clip) for clip in sentences}
    broken = unreadable(list(paths.values()))

    rows = {split: [] for split in translations}
    for split, clips in translations.items():
        for clip, texts in clips.items():
            utterance, sentence = name(split, clip), sentences.get(clip)
            if split == "train" and clip in held_out:
                why = "in dev or test of the other language"
            elif sentence is None:
                why = "not in validated.tsv"
            else:
                why = broken.get(paths[clip]) or ("" if sentence.strip() else "empty sentence")
            if why:
                dropped.append((split, utterance, why))
            else:
                rows[split] += speech_rows(utterance, {"audio": paths[clip]}, sentence, texts)
    return rows, dropped


def main(argv=None):
    args = parser(__doc__, "covost2").parse_args(argv)
    raw = args.raw or os.path.join(args.work, "raw", "covost2")
    if finished(args.work, "covost2", {}):
        return
    splits, dropped = make_rows(raw)
    for split, rows in splits.items():
        write_rows(os.path.join(args.work, "rows", "covost2", f"{split}.jsonl"), rows)
    report(args.work, "covost2", splits, PAPER, dropped)
    finish(args.work, "covost2", {})
    print(f"rows in {args.work}/rows/covost2\nnext: python extract_features.py --preset iwslt25")


if __name__ == "__main__":
    main()
