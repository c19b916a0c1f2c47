"""
CoVoST 2: English to German and to Chinese, on recordings of Common Voice 4; for the listeners also other pairs.

    python -m data.covost2                          # or --raw folder, where the download lies elsewhere
    python -m data.covost2 --into-english           # 13 languages into English; or of them: --into-english ar,id,ja
    python -m data.covost2 --from-english           # English into 7 languages; or of them: --from-english ar,tr

download into <work>/raw/covost2
    covost_v2.en_de.tsv.tar.gz, covost_v2.en_zh-CN.tsv.tar.gz   from https://dl.fbaipublicfiles.com/covost/
        the translations, about 40 MB each when unpacked (reckoned from other pairs), read packed or unpacked;
        CC0 (the copy on the Hugging Face hub says CC BY-NC 4.0); other pairs alike: covost_v2.ar_en.tsv.tar.gz
    en/validated.tsv, en/clips/*.mp3        the English part of Common Voice corpus 4 (cv-corpus-4-2019-12-10), unpacked
        41.4 GB, CC0; https://commonvoice.mozilla.org/datasets; later versions may lack clips. For a pair into English
        it is that language's part, ar/ and so on; Chinese is zh-CN/

reads   these
writes  <work>/rows/covost2/{train,dev,test}.jsonl, counts.md, dropped.txt, config.json last;
        the same in a folder a pair, <work>/rows/covost2-ar_en/ and so on, where pairs are asked for

The released translations are joined with the recordings by the clip's name, as get_covost_splits.py does it (CoVoST's
repository). The clips are named where they lie and stay mp3. An utterance has its ASR row once, over both languages,
and an ST row for each translation. The release has 289,430 training clips, the paper 289,413 (2025, Table 1): clips
that cannot be decoded, most likely; extract_features.py drops those whose damage shows only then. Double quotes around
a sentence (a fifth of the test set) stay as the release has them (our choice).

A pair's folder has ST rows alone. The listeners train on those into English, at most 20 % of their mixture, and are
tested on Arabic, Indonesian, Japanese, Turkish and Chinese (listeners, section 6 and Table 3). dev and test of a pair
are held out of that pair's train.
"""
import csv
import os
import re
import tarfile
import zlib

from data.recipe import finish, finished, need, parser, report, speech_rows, unreadable
from speech_llm.files import text_lines
from speech_llm.rows import write_rows


URL = "https://dl.fbaipublicfiles.com/covost/"
COMMON_VOICE = "it belongs to Common Voice corpus 4, https://commonvoice.mozilla.org/datasets, unpacked there"
LOCALES = {"zh": "zh-CN"}                                        # where Common Voice has another name than we
TARGETS = ("de", "zh")                                           # of the IWSLT papers
SPLITS = {"train": "train", "train_covost": "train", "dev": "dev", "test": "test",    # version 2's reading of the marks
          "dev_covost": None, "test_covost": None, "train_dup": None, "dev_dup": None, "test_dup": None}
CLIP = re.compile(r"\w[\w.-]*")                                  # a plain file name, never a path
KINDS = ("ASR en", "ST/MT de", "ST/MT zh")
PAPER = {**{("train", kind): 289_413 for kind in KINDS},         # 2025, Table 1
         **{(split, kind): 15_531 for split in ("dev", "test") for kind in KINDS}}      # the release
INTO_ENGLISH = {  # of Aya's 23 languages: the release's train, dev and test, [TO REMOVE] included
    "ar": (2_283, 1_758, 1_695), "de": (127_834, 13_511, 13_511), "es": (79_015, 13_221, 13_221),
    "fa": (53_949, 3_445, 3_445), "fr": (207_374, 14_760, 14_760), "id": (1_243, 792, 844),
    "it": (31_698, 8_940, 8_951), "ja": (1_119, 635, 684), "nl": (7_108, 1_699, 1_699), "pt": (9_158, 3_318, 4_023),
    "ru": (12_112, 6_110, 6_300), "tr": (3_966, 1_624, 1_629), "zh": (7_085, 4_843, 4_898),
}
FROM_ENGLISH = dict.fromkeys(("ar", "de", "fa", "id", "ja", "tr", "zh"), (289_430, 15_531, 15_531))


# --- Reading the released files.

def release(raw, source, target):
    """The path of a pair's TSV, which may be packed or not be there; older links write zh for zh-CN."""
    now = f"covost_v2.{LOCALES.get(source, source)}_{LOCALES.get(target, target)}.tsv"
    paths = [os.path.join(raw, now), os.path.join(raw, now.replace("zh-CN", "zh"))]
    return next((path for path in paths if os.path.exists(path) or os.path.exists(f"{path}.tar.gz")), paths[0])


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
    """Common Voice's validated.tsv -> {clip: sentence} of those in `clips`."""
    return {clip: sentence for _, (clip, sentence) in read_tsv(path, ("path", "sentence")) if clip in clips}


# --- Rows.

def name(corpus, split, clip):
    """The key of an utterance: "covost2/test/common_voice_en_699711"."""
    return f"{corpus}/{split}/{clip.removesuffix('.mp3')}"


def make_rows(raw, corpus="covost2", source="en", targets=TARGETS):
    """
    The folder of the download -> {split: rows}, [(split, id, why it is dropped)]: speech in `source`, translations to
    `targets`. Where `corpus` is a pair of its own there are ST rows alone.
    """
    translations, dropped = {"train": {}, "dev": {}, "test": {}}, []         # {split: {clip: {language: translation}}}
    for language in targets:
        splits, bad = split_translations(read_translations(release(raw, source, language)))
        dropped += [(split, f"{name(corpus, split, clip)}/ST.{language}", why) for split, clip, why in bad]
        for split, texts in splits.items():
            for clip, text in texts.items():
                translations[split].setdefault(clip, {})[language] = text
    held_out = {*translations["dev"], *translations["test"]}

    locale = LOCALES.get(source, source)
    folder = need(os.path.join(raw, locale, "clips"), COMMON_VOICE)
    validated = need(os.path.join(raw, locale, "validated.tsv"), COMMON_VOICE)
    sentences = read_sentences(validated, held_out | {*translations["train"]})
    paths = {clip: os.path.join(folder, clip) for clip in sentences}
    broken = unreadable(list(paths.values()))

    rows = {split: [] for split in translations}
    for split, clips in translations.items():
        for clip, texts in clips.items():
            utterance, sentence = name(corpus, split, clip), sentences.get(clip)
            if split == "train" and clip in held_out:
                why = "in dev or test of the other language"
            elif sentence is None:
                why = "not in validated.tsv"
            else:
                why = broken.get(paths[clip]) or ("" if sentence.strip() else "empty sentence")
            if why:
                dropped.append((split, utterance, why))
                continue
            made = speech_rows(utterance, {"audio": paths[clip]}, sentence, texts)
            rows[split] += [row for row in made if corpus == "covost2" or row["task"] == "ST"]
    return rows, dropped


def make_corpus(work, raw, corpus, source, targets, paper, preset):
    """One rows folder, unless it is finished. paper: {(split, kind): count}; preset: the one that trains on it."""
    if finished(work, corpus, {}):
        return
    splits, dropped = make_rows(raw, corpus, source, targets)
    for split, rows in splits.items():
        write_rows(os.path.join(work, "rows", corpus, f"{split}.jsonl"), rows)
    report(work, corpus, splits, paper, dropped)
    finish(work, corpus, {})
    print(f"rows in {work}/rows/{corpus}\nnext: python extract_features.py --preset {preset}")


def chosen(option, languages, known):
    """Comma-separated languages, each of them in `known` -> list; SystemExit names the one that is not."""
    languages = [language for language in languages.split(",") if language]
    for language in languages:
        if language not in known:
            raise SystemExit(f"{option} {language}: the pairs of CoVoST 2 in Aya's languages have {', '.join(known)}")
    return languages


def main(argv=None):
    command = parser(__doc__, "covost2")
    for option, known in (("--into-english", INTO_ENGLISH), ("--from-english", FROM_ENGLISH)):
        command.add_argument(option, nargs="?", const=",".join(known), default="", metavar="LANGUAGES",
                             help=f"pairs in place of the IWSLT papers', comma-separated; all: {','.join(known)}")
    args = command.parse_args(argv)
    raw = args.raw or os.path.join(args.work, "raw", "covost2")
    pairs = [(language, "en") for language in chosen("--into-english", args.into_english, INTO_ENGLISH)]
    pairs += [("en", language) for language in chosen("--from-english", args.from_english, FROM_ENGLISH)]
    if not pairs:
        make_corpus(args.work, raw, "covost2", "en", TARGETS, PAPER, "iwslt25")
    for source, target in pairs:
        sizes = INTO_ENGLISH[source] if target == "en" else FROM_ENGLISH[target]
        paper = {(split, f"ST/MT {target}"): size for split, size in zip(("train", "dev", "test"), sizes)}
        make_corpus(args.work, raw, f"covost2-{source}_{target}", source, (target,), paper, "listeners-ast")


if __name__ == "__main__":
    main()
