"""
Make the rows of CoVoST 2: English to German and Chinese, read from Common Voice 4; for the listeners also other pairs.

    python -m data.covost2                          # or --raw folder, where the download is elsewhere
    python -m data.covost2 --into-english           # 13 languages into English; or some: --into-english ar,id,ja
    python -m data.covost2 --from-english           # English into 7 languages; or some: --from-english ar,tr

download into <work>/raw/covost2 (or --raw); data/README.md says more
    covost_v2.<source>_<target>.tsv[.tar.gz]    the translations, https://dl.fbaipublicfiles.com/covost/
    <language>/{validated.tsv,clips/*.mp3}      Common Voice corpus 4 of the spoken language, en/ for the IWSLT papers.
        The folder may also lie in cv-corpus-4-2019-12-10/, and is not needed where only one language is there

reads   these
writes  <work>/rows/covost2/{train,dev,test}.jsonl, counts.md, dropped.txt, config.json last;
        the same in <work>/rows/covost2-ar_en/ and so on, a folder for each pair that is asked for

The translations are joined with the recordings by the clip's name, as get_covost_splits.py of CoVoST's repository does.
An utterance has one ASR row and an ST row for each translation; a pair's folder has ST rows alone. Double quotes around
a sentence (a fifth of the test set) stay as released (our choice). dev and test of a pair are held out of its train.
"""
import glob
import os
import re
import tarfile
import zlib

from data.recipe import (begin, download, finish, finished, limited, missing_files, parser, refuse_missing, report,
                         speech_rows, spread, unreadable, write_splits)


URL = "https://dl.fbaipublicfiles.com/covost/"
COMMON_VOICE = "it belongs to Common Voice corpus 4, https://commonvoice.mozilla.org/datasets, unpacked there"
LOCALES = {"zh": "zh-CN"}                                        # where Common Voice has another name than we
TARGETS = ("de", "zh")                                           # of the IWSLT papers
SPLITS = {"train": "train", "train_covost": "train", "dev": "dev", "test": "test",    # how CoVoST 2 reads the marks
          "dev_covost": None, "test_covost": None, "train_dup": None, "dev_dup": None, "test_dup": None}
CLIP = re.compile(r"\w[\w.-]*")                                  # a plain file name, never a path
KINDS = ("ASR en", "ST/MT de", "ST/MT zh")
PAPER = {**{("train", kind): 289_413 for kind in KINDS},         # 2025, Table 1; the release has 289,430
         **{(split, kind): 15_531 for split in ("dev", "test") for kind in KINDS}}      # the release
INTO_ENGLISH = {  # of Aya's 23 languages: the release's train, dev and test, [TO REMOVE] included
    "ar": (2_283, 1_758, 1_695), "de": (127_834, 13_511, 13_511), "es": (79_015, 13_221, 13_221),
    "fa": (53_949, 3_445, 3_445), "fr": (207_374, 14_760, 14_760), "id": (1_243, 792, 844),
    "it": (31_698, 8_940, 8_951), "ja": (1_119, 635, 684), "nl": (7_108, 1_699, 1_699), "pt": (9_158, 3_318, 4_023),
    "ru": (12_112, 6_110, 6_300), "tr": (3_966, 1_624, 1_629), "zh": (7_085, 4_843, 4_898),
}
FROM_ENGLISH = dict.fromkeys(("ar", "de", "fa", "id", "ja", "tr", "zh"), (289_430, 15_531, 15_531))


# --- Where a download has its files.

def release(raw, source, target):
    """Return the path of a pair's TSV, which may be packed or missing; older links write zh for zh-CN."""
    name = f"covost_v2.{LOCALES.get(source, source)}_{LOCALES.get(target, target)}.tsv"
    paths = [os.path.join(raw, name), os.path.join(raw, name.replace("zh-CN", "zh"))]
    return next((path for path in paths if os.path.exists(path) or os.path.exists(f"{path}.tar.gz")), paths[0])


def locale_of(clips):
    """Return the language that Common Voice writes into the names of its clips: "en" of common_voice_en_1.mp3."""
    with os.scandir(clips) as entries:
        match = next(filter(None, (re.fullmatch(r"common_voice_(.+)_\d+\.mp3", entry.name) for entry in entries)), None)
    return match[1] if match else ""


def voice_folder(raw, locale):
    """
    Return the folder of one language of Common Voice, the one with clips/; "" if there is none.
    Releases unpack to <locale>/, to cv-corpus-<version>/<locale>/, or without a folder of the language, which the names
    of the clips tell then. SystemExit if there are several.
    """
    tops = [raw, *sorted(glob.glob(os.path.join(glob.escape(raw), "cv-corpus-*")))]
    places = [os.path.join(top, locale) for top in tops]
    places += [top for top in tops if os.path.isdir(os.path.join(top, "clips"))
               and locale_of(os.path.join(top, "clips")) == locale]
    places = [place for place in places if os.path.isdir(os.path.join(place, "clips"))]
    if len(places) > 1:
        raise SystemExit(f"{locale} is there in several versions: {', '.join(places)}; leave one of them in {raw}")
    return places[0] if places else ""


def missing(work, raw="", pairs=tuple(("en", target) for target in TARGETS)):
    """Return [(what is missing, how to mend it)] for pairs of a spoken and a written language."""
    raw, lacking = download(work, raw, "covost2"), []
    for source, target in pairs:
        path = release(raw, source, target)
        if not os.path.exists(path):
            archive = f"{path}.tar.gz"
            lacking += missing_files([archive], f"download it from {URL}{os.path.basename(archive)}")
    for locale in dict.fromkeys(LOCALES.get(source, source) for source, _ in pairs):
        folder = voice_folder(raw, locale) or os.path.join(raw, locale)
        lacking += missing_files([os.path.join(folder, name) for name in ("clips", "validated.tsv")], COMMON_VOICE)
    return lacking


# --- Reading the released files.

def tsv_bytes(path):
    """Yield the lines of a TSV as bytes; without the file, those of its copy in the archive path + ".tar.gz"."""
    name = os.path.basename(path)
    if os.path.exists(path):
        with open(path, "rb") as file:
            yield from file
        return
    archive = f"{path}.tar.gz"
    try:
        with tarfile.open(archive, "r:gz") as tar:
            member = next((m for m in tar if m.isfile() and os.path.basename(m.name) == name), None)
            if member is None:
                raise SystemExit(f"{archive} holds no {name}; download it again")
            yield from tar.extractfile(member)
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise SystemExit(f"{archive} is damaged ({error}); download it again") from None


def read_tsv(path, columns, dropped=None, wrong=lambda *fields: ""):
    """
    Yield (line number, [the fields of `columns`]); the first line names the columns.
    Neither quotes nor backslashes mean anything, as Common Voice writes its files; a stray carriage return becomes a
    space. A line with more or fewer fields than the first, in another encoding than UTF-8, or with a reason from
    `wrong(*fields)`, is left out, counted on the screen and added to `dropped` as (split, place, why). SystemExit
    without the columns, for a cut-off file, and if all lines are left out.
    """
    header, bad, good, name = None, [], 0, os.path.basename(path)
    for number, line in enumerate(tsv_bytes(path), 1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            if header is None:
                raise SystemExit(f"{path} line 1 is not UTF-8 ({error}); download it again") from None
            bad.append((number, "not UTF-8"))
            continue
        fields = text.removesuffix("\n").removesuffix("\r").replace("\r", " ").split("\t")
        if header is None:
            header = fields
            if lacking := [column for column in columns if column not in header]:
                raise SystemExit(f"{path} line 1: no column {', '.join(lacking)}; download it again")
            places = [header.index(column) for column in columns]
            continue
        values = [fields[place] for place in places] if len(fields) == len(header) else []
        why = wrong(*values) if values else f"{len(fields)} fields, expected {len(header)}"
        if not why:
            good += 1
            yield number, values
        elif not text.endswith("\n") and len(fields) <= len(header):
            raise SystemExit(f"{path} line {number}: {why}, and the file ends there; download it again")
        elif text.strip():
            bad.append((number, why))
    if header is None:
        raise SystemExit(f"{path} is empty: no column {', '.join(columns)}; download it again")
    if bad and not good:
        raise SystemExit(f"{path} line {bad[0][0]}: {bad[0][1]}, and no line is better; download it again")
    if bad:
        print(f"{path}: {len(bad)} lines are left out, the first is line {bad[0][0]}: {bad[0][1]}")
    if dropped is not None:
        dropped += [("all", f"{name} line {number}", f"bad line: {why}") for number, why in bad]


def no_file_name(clip):
    """Return why the name of a clip may not be used; "" for a plain file name."""
    return "" if CLIP.fullmatch(clip) else f"{clip!r} is no file name"


def read_translations(path, dropped=None):
    """
    Return {clip: (translation, mark)} of a released covost_v2.<pair>.tsv or its .tar.gz; mark: a key of SPLITS.
    In these files a backslash goes and the character after it stays, as in get_covost_splits.py (escapechar).
    """
    translations, again = {}, 0

    def wrong(clip, _, mark):
        return no_file_name(clip) if mark in SPLITS else f"unknown split {mark!r}"
    for _, (clip, translation, mark) in read_tsv(path, ("path", "translation", "split"), dropped, wrong):
        again += clip in translations
        translations.setdefault(clip, (re.sub(r"\\(.)", r"\1", translation), mark))
    if again:
        print(f"{path}: {again} lines name a clip a second time; its first line stays")
    return translations


def split_translations(translations):
    """
    Return ({split: {clip: translation}}, [(split, clip, why it is dropped)]) of {clip: (translation, mark)}.
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


def read_sentences(path, clips, dropped=None):
    """Return {clip: sentence} of Common Voice's validated.tsv, for those in `clips`."""
    return {clip: sentence for _, (clip, sentence) in read_tsv(path, ("path", "sentence"), dropped) if clip in clips}


# --- Rows.

def utterance_name(corpus, split, clip):
    """Return the key of an utterance: "covost2/test/common_voice_en_699711"."""
    return f"{corpus}/{split}/{clip.removesuffix('.mp3')}"


def join_translations(raw, corpus, source, targets, dropped):
    """Return {split: {clip: {language: translation}}} of all pairs; unusable translations are added to `dropped`."""
    translations = {"train": {}, "dev": {}, "test": {}}
    for language in targets:
        splits, bad = split_translations(read_translations(release(raw, source, language), dropped))
        dropped += [(split, f"{utterance_name(corpus, split, clip)}/ST.{language}", why) for split, clip, why in bad]
        for split, texts in splits.items():
            for clip, text in texts.items():
                translations[split].setdefault(clip, {})[language] = text
    return translations


def make_rows(raw, corpus="covost2", source="en", targets=TARGETS, limit=0):
    """
    Return ({split: rows}, [(split, id, why it is dropped)]) of a download: speech in `source`, translations to
    `targets`. A `corpus` that is a pair of its own has ST rows alone. limit: clips of every split; 0: all.
    """
    dropped = []
    translations = join_translations(raw, corpus, source, targets, dropped)
    held_out = {*translations["dev"], *translations["test"]}
    translations = {split: dict(spread(clips.items(), limit)) for split, clips in translations.items()}
    folder = voice_folder(raw, LOCALES.get(source, source))
    clips = {clip for texts in translations.values() for clip in texts}
    sentences = read_sentences(os.path.join(folder, "validated.tsv"), clips, dropped)
    paths = {clip: os.path.join(folder, "clips", clip) for clip in sentences}
    broken = unreadable(list(paths.values()))

    rows = {split: [] for split in translations}
    for split, clips in translations.items():
        for clip, texts in clips.items():
            utterance, sentence = utterance_name(corpus, split, clip), sentences.get(clip)
            if split == "train" and clip in held_out:
                why = "in dev or test of the other language"
            elif sentence is None:
                why = "not in validated.tsv"
            else:
                why = broken.get(paths[clip]) or ("" if sentence.strip() else "empty sentence")
            if why:
                dropped.append((split, utterance, why))
                continue
            utterance_rows = speech_rows(utterance, {"audio": paths[clip]}, sentence, texts)
            rows[split] += [row for row in utterance_rows if corpus == "covost2" or row["task"] == "ST"]
    return rows, dropped


def make_corpus(args, corpus, source, targets):
    """Write one rows folder: English to the IWSLT papers' languages, or one pair of the listeners."""
    begin(args.work, corpus, limited(args))
    splits, dropped = make_rows(download(args.work, args.raw, "covost2"), corpus, source, targets, args.limit)
    write_splits(args.work, corpus, splits)
    paper = PAPER
    if corpus != "covost2":
        sizes = FROM_ENGLISH[targets[0]] if source == "en" else INTO_ENGLISH[source]
        paper = {(split, f"ST/MT {targets[0]}"): size for split, size in zip(("train", "dev", "test"), sizes)}
    report(args.work, corpus, splits, {} if args.limit else paper, dropped, args.incomplete)
    finish(args.work, corpus, limited(args), "iwslt25" if corpus == "covost2" else "listeners_ast")


def chosen(option, languages, known):
    """Return the list of comma-separated languages. SystemExit names one that is not in `known`."""
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
    pairs = [(language, "en") for language in chosen("--into-english", args.into_english, INTO_ENGLISH)]
    pairs += [("en", language) for language in chosen("--from-english", args.from_english, FROM_ENGLISH)]
    corpora = {f"covost2-{source}_{target}": (source, (target,)) for source, target in pairs} or {
        "covost2": ("en", TARGETS)}
    todo = {corpus: pair for corpus, pair in corpora.items() if not finished(args.work, corpus, limited(args))}
    if todo:
        pairs = [(source, target) for source, targets in todo.values() for target in targets]
        refuse_missing("covost2", missing(args.work, args.raw, pairs), args.check)         # of all, before the first
    for corpus, (source, targets) in todo.items():
        make_corpus(args, corpus, source, targets)


if __name__ == "__main__":
    main()
