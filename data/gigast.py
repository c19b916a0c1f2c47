"""
Make the rows of GigaST: the speech of GigaSpeech, 10,000 hours, with translations to German and Chinese, and ours to
Italian.

    python -m data.gigast                           # or --raw FOLDER, where the download is elsewhere
    python -m data.gigast --hours 300               # recordings drawn at random until there are 300 hours
    torchrun --nproc_per_node=4 -m data.gigast      # translates on four GPUs

download into <work>/raw/gigast
    GigaST.de.json, GigaST.zh*.json     https://lf3-nlp-opensource.bytetos.com/obj/nlp-opensource/datasets/GigaST/
        a few GB; no licence is stated there
    GigaSpeech.json, audio/**/*.opus    the raw release of https://github.com/SpeechColab/GigaSpeech, by its form (not
        the copy on the hub, which is cut into segments); hundreds of GB; for research and education only. Without
        audio/ there are no ASR rows, but all others

reads   these, and from the Hugging Face hub: SeamlessM4T (translates), CometKiwi (scores)
writes  <work>/rows/gigast/train.jsonl, counts.md, dropped.txt, config.json last; in <work>/made/gigast/ the models'
        results, from which a killed run continues. There is no dev and no test split (2026, section 2: neither is used)

A segment that both GigaST files translate has an ASR row with its slice of the recording, and for each language an ST
row without speech, which is MT: the paper trains on GigaST's speech in stage A alone, for ASR (2026, Table 6). Italian
rows score 0.85 or more. Transcripts are upper case; sentences and "I" get their capitals back, names do not: the models
that translate and that are trained know cased text best (our choice).

Disk: an hour of SeamlessM4T's frames at mean 2 takes 184 MB, all 10,000 hours 1.84 TB, and all 26 million rows 6.5 GB.
Memory: 0.5 kB a segment of GigaST, 4 GB in all, in every process and whatever --hours says.
"""
import glob
import json
import os
import random
import re
import tempfile
from itertools import chain, count, islice

from tqdm import tqdm

from data.quality import KIWI, good_translations
from data.recipe import (begin, download, finish, finished, limited, missing_files, missing_models, parser,
                         refuse_missing, report, speech_rows)
from data.translate import SEAMLESS
from metrics.comet import ENCODERS
from speech_llm.files import replace_file
from speech_llm.resumable import is_first, silence_others
from speech_llm.rows import composed, defect


GIGAST = "download it from https://lf3-nlp-opensource.bytetos.com/obj/nlp-opensource/datasets/GigaST/"
GIGASPEECH = "it belongs to the raw release of GigaSpeech, see https://github.com/SpeechColab/GigaSpeech"
MARKS = {"<COMMA>": ",", "<PERIOD>": ".", "<QUESTIONMARK>": "?", "<EXCLAMATIONPOINT>": "!"}
GARBAGE = ("<SIL>", "<MUSIC>", "<NOISE>", "<OTHER>")              # GigaSpeech says that the two lists are complete
HELD_OUT = {"{DEV}", "{TEST}"}                                    # GigaSpeech's evaluation subsets
SLACK = 0.1                             # seconds that a segment may end after its recording (our choice)
PIECE = 1 << 22                         # characters read at a time
LONGEST = 1 << 28                       # characters of one item; a longer one means that the file is damaged
BLOCK = 200_000                         # segments translated together, to limit memory (our choice)
PAPER = {("train", "ASR en"): 7_645_641, ("train", "MT de"): 7_645_641, ("train", "MT zh"): 7_645_641,
         ("train", "MT it"): 3_004_804}                           # 2026, Table 5
MT_ONLY = {name: count for name, count in PAPER.items() if name != ("train", "ASR en")}     # without audio/


def missing(work, raw="", seamless=SEAMLESS, kiwi=KIWI):
    """Return [(what is missing, how to mend it)]; empty if the recipe can run. data/check.py looks at the disk."""
    raw = download(work, raw, "gigast")
    absent = missing_files([os.path.join(raw, "GigaSpeech.json")], GIGASPEECH)
    absent += [(os.path.join(raw, f"GigaST.{language}.json"), GIGAST) for language in ("de", "zh")
               if not gigast_files(raw, language)]
    return absent + missing_models(seamless, kiwi, ENCODERS["unified"])


# --- Reading JSON files that are larger than memory.

class Window:
    """Hold the part of a text file that is being parsed: `text`, and the place `at` in it, which moves on."""

    def __init__(self, file, bar):
        self.file, self.bar, self.text, self.at = file, bar, "", 0
        self.decode, self.space = json.JSONDecoder().raw_decode, re.compile(r"[ \t\n\r]*")

    def read(self):
        """Forget the text before `at`, read a piece more and return whether there was one."""
        piece = self.file.read(PIECE)
        self.bar.update(len(piece))
        self.text, self.at = self.text[self.at:] + piece, 0
        return bool(piece)

    def peek(self):
        """Return the next character that is no white space. ValueError at the end of the file."""
        self.at = self.space.match(self.text, self.at).end()
        while self.at == len(self.text):
            if not self.read():
                raise ValueError("it ends too early")
            self.at = self.space.match(self.text, self.at).end()
        return self.text[self.at]

    def take(self, characters):
        """Return the next character, which must be one of `characters`, and pass it. ValueError for another one."""
        character = self.peek()
        if character not in characters:
            raise ValueError(f"{character!r} where one of {characters} should be")
        self.at += 1
        return character

    def value(self):
        """Return the next JSON value and pass it. ValueError where it is damaged."""
        self.peek()
        while True:
            try:
                value, end = self.decode(self.text, self.at)
            except ValueError:                                    # damaged, or cut by the window's end
                if len(self.text) - self.at > LONGEST or not self.read():
                    raise
                continue
            rest = len(self.text) - end
            if rest > 2 or not self.read():                       # a 1 at the window's end may go on as 12 or 1e-5
                self.at = len(self.text) - rest
                return value


def stream_list(path, key):
    """
    Yield the items of the list under `key` in the object that a JSON file holds, with one item and a piece of the file
    in memory. SystemExit if the file is damaged, cut short, or has no such list.
    """
    passed = 0
    with open(path, encoding="utf-8-sig") as file, \
            tqdm(total=os.path.getsize(path), desc=os.path.basename(path), unit="B", unit_scale=True) as bar:
        window = Window(file, bar)
        try:
            window.take("{")
            while window.value() != key:                          # the members before the list
                window.take(":")
                window.value()
                window.take(",")
            window.take(":")
            window.take("[")
            while window.peek() != "]":
                yield window.value()
                passed += 1
                if window.take(",]") == "]":
                    break
        except (ValueError, RecursionError) as error:             # JSON's errors, too, and bytes that are not UTF-8
            raise SystemExit(f"{path} is damaged after item {passed} of {key!r} ({error}); download it again") from None


def read_audios(path, read, format, source, dropped):
    """
    Yield read(item) of every item of the list "audios" in a file. An item in another format is added to `dropped`.
    SystemExit, naming the source of the file, if all items are.
    """
    number, bad = 0, 0
    for number, item in enumerate(stream_list(path, "audios"), 1):
        try:
            value = read(item)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            bad, why = bad + 1, f"not in {format}'s format ({type(error).__name__}: {error})"
            dropped.append(("train", f"{os.path.basename(path)} item {number}", why))
        else:
            yield value
    if number and bad == number:
        raise SystemExit(f"{path} item {number} is {why}; {source}")


def gigast_files(raw, language):
    """Return GigaST's training files of a language: GigaST.zh.json and GigaST.zh.cn.json are names of the same."""
    return [path for path in sorted(glob.glob(os.path.join(glob.escape(raw), f"GigaST.{language}*.json")))
            if "test" not in os.path.basename(path)]


def read_translations(raw, dropped, limit=0):
    """
    Return {segment: (German, Chinese)} of both GigaST files, or of the first `limit` recordings of each file; None
    stands for a translation that is not there. Recordings in another format are added to `dropped`.
    SystemExit if a file is there twice, or not GigaST's.
    """
    def read(item):
        return [(segment["sid"] + "", segment["text_raw"].strip()) for segment in item["segments"]]
    texts = {}
    for place, language in enumerate(("de", "zh")):
        paths, again = gigast_files(raw, language), 0
        if len(paths) > 1:
            raise SystemExit(f"{' and '.join(paths)}: which is the training set? Keep one")
        items = islice(read_audios(paths[0], read, "GigaST", GIGAST, dropped), limit or None)
        for sid, text in chain.from_iterable(items):
            pair = list(texts.get(sid, (None, None)))
            again += pair[place] is not None
            pair[place] = pair[place] or text                     # of two, the first stays
            texts[sid] = tuple(pair)
        print(f"{paths[0]}: {sum(pair[place] is not None for pair in texts.values())} segments, {again} listed again")
    print(f"in both: {sum(None not in pair for pair in texts.values())} segments")
    return texts


# --- Segments.

def written(text_tn):
    """
    Return GigaSpeech's upper case with tags as a sentence with marks and capitals; "" if it holds no words.
    "I SEE <COMMA> SAID I'M <PERIOD> WHY <QUESTIONMARK>" -> "I see, said I'm. Why?"
    """
    words = []
    for word in text_tn.split():
        if word not in MARKS:
            words += [word.lower()] * (word not in GARBAGE)
        elif words and words[-1][-1] not in MARKS.values():       # a mark before any word, or after a mark, goes
            words[-1] += MARKS[word]
    text = re.sub(r"(?<![\w'-])i(?![\w-])", "I", " ".join(words))
    return re.sub(r"(^|[.?!] )([a-z])", lambda match: match[1] + match[2].upper(), text)


def recordings(raw, dropped):
    """
    Yield (name, path of the audio, seconds, [(sid, start, end, text, subsets)]) of GigaSpeech.json's recordings;
    seconds is 0 where the file does not tell. Recordings in another format are added to `dropped`.
    """
    def read(item):
        segments = [(s["sid"] + "", float(s["begin_time"]), float(s["end_time"]), written(s["text_tn"]),
                     set(s.get("subsets", []))) for s in item["segments"]]
        return item["aid"] + "", os.path.join(raw, item["path"]), float(item.get("duration") or 0), segments
    return read_audios(os.path.join(raw, "GigaSpeech.json"), read, "GigaSpeech", GIGASPEECH, dropped)


def draw_recordings(raw, texts, hours, seed):
    """Return the names of recordings, drawn at random, that have so many hours of segments with both translations."""
    lengths = {name: sum(end - start for sid, start, end, _, _ in segments if None not in texts.get(sid, [None])) / 3600
               for name, _, _, segments in recordings(raw, [])}
    names, drawn, total = sorted(name for name in lengths if lengths[name] > 0), set(), 0.0
    random.Random(seed).shuffle(names)
    for name in names:
        if total < hours:
            drawn.add(name)
            total += lengths[name]
    print(f"drawn with seed {seed}: {len(drawn)} of {len(names)} recordings, {total:.1f} of "
          f"{sum(lengths.values()):.1f} hours")
    return drawn


def reason_to_drop(segment, translations, seconds):
    """Return in words why a segment is dropped, or "". seconds: length of its recording, 0 if it is not known."""
    _, start, end, text, subsets = segment
    tags = re.findall("<[^ ]*>", text)
    return ("listed twice" if translations is None else
            "in GigaSpeech's dev or test set" if subsets & HELD_OUT else
            "not translated to both German and Chinese" if not all(translations) else
            f"unknown tag: {tags[0]}" if tags else
            "only silence, music or noise" if not text else
            f"no slice: from {start} to {end} s" if not 0 <= start < end < float("inf") else
            f"ends after its recording: {end} s of {seconds} s" if seconds and end > seconds + SLACK else "")


def read_segments(raw, texts, drawn, dropped):
    """
    Yield {sid, text, audio, start, end, de, zh} of every segment with both translations, of the recordings in `drawn`
    if that is not None. Segments are taken out of `texts`, so that none comes twice.
    """
    for name, audio, seconds, segments in recordings(raw, dropped):
        segments = [segment for segment in segments if segment[0] in texts and (drawn is None or name in drawn)]
        exists = os.path.isfile(audio) and os.path.getsize(audio) > 0
        if segments and not exists:
            dropped.append(("train", f"gigast/{name}", "recording without audio, MT only"))
        for segment in segments:
            sid, start, end, text, _ = segment
            translations = texts.pop(sid, None)
            why = reason_to_drop(segment, translations, seconds)
            if why:
                dropped.append(("train", f"gigast/{sid}", why))
            else:
                yield {"sid": sid, "text": text, "audio": audio if exists else "", "start": start, "end": end,
                       "de": translations[0], "zh": translations[1]}


# --- Rows.

class Dropped:
    """Hold a list of (split, id, reason) in a temporary file: GigaST drops millions of segments and translations."""

    def __init__(self, folder):
        self.file = tempfile.TemporaryFile("w+", encoding="utf-8", dir=folder)

    def append(self, entry):
        """Write one entry."""
        self.file.write(json.dumps(entry) + "\n")

    def __iter__(self):
        """Yield all entries."""
        self.file.seek(0)
        return map(json.loads, self.file)


def make_rows(segments, folder, args, dropped):
    """
    Yield the rows of all segments, in their order. Italian is translated block by block, the models' results are in
    `folder`, and a killed run continues in the block that it was in.
    """
    for number in count():
        block = list(islice(segments, BLOCK))
        if not block:
            return
        english = [{"id": f"gigast/{s['sid']}/ASR.en", "task": "ASR", "language": "en", "answerable": True,
                    "transcript": s["text"], "target": s["text"]} for s in block]
        good, bad = good_translations(english, "it", folder, args.seamless, args.kiwi, f".{number:03d}")
        for row_id, why in bad:
            dropped.append(("train", row_id, f"Italian {why}"))
        italian = {row["id"]: row["target"] for row in good}
        for s in block:
            name = f"gigast/{s['sid']}"
            if s["audio"]:
                yield from speech_rows(name, {key: s[key] for key in ("audio", "start", "end")}, s["text"], {})
            for language, target in (("de", s["de"]), ("it", italian.get(f"{name}/ST.it")), ("zh", s["zh"])):
                if target:
                    yield {"id": f"{name}/ST.{language}", "task": "ST", "language": language, "transcript": s["text"],
                           "target": target}


def write_stream(path, rows):
    """Write rows as write_rows does, one at a time; read_segments makes sure that no id comes twice."""
    with replace_file(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
        for number, row in enumerate(rows, 1):
            if defect(row):
                raise ValueError(f"{path} line {number}, row {row['id']!r}: {defect(row)}")
            file.write(json.dumps(composed(row), ensure_ascii=False) + "\n")


def main(argv=None):
    command = parser(__doc__, "gigast", models=[("seamless", SEAMLESS, "translates"),
                                                ("kiwi", KIWI, "scores translations")])
    command.add_argument("--hours", type=float, default=0, help="how much of the corpus; 0: all")
    command.add_argument("--seed", type=int, default=0, help="of the draw of the recordings")
    args = command.parse_args(argv)
    silence_others()
    work, raw = args.work, download(args.work, args.raw, "gigast")
    settings = {name: getattr(args, name) for name in ("hours", "seed", "seamless", "kiwi")} | limited(args)
    if finished(work, "gigast", settings):
        return
    refuse_missing("gigast", missing(work, raw, args.seamless, args.kiwi), args.check)
    begin(work, "gigast", settings)
    path = os.path.join(work, "rows", "gigast", "train.jsonl")
    dropped = Dropped(os.path.dirname(path))
    texts = read_translations(raw, dropped, args.limit)
    drawn = draw_recordings(raw, texts, args.hours, args.seed) if args.hours else None
    segments = islice(read_segments(raw, texts, drawn, dropped), args.limit or None)
    rows = make_rows(segments, os.path.join(work, "made", "gigast"), args, dropped)
    if not is_first():
        for _ in rows:                                            # this process only helps to translate
            pass
        return
    write_stream(path, rows)
    if drawn is None and not args.limit:
        print(f"translated, but not in GigaSpeech.json: {len(texts)} segments")
    paper = {} if drawn is not None or args.limit else PAPER if os.path.isdir(os.path.join(raw, "audio")) else MT_ONLY
    with open(path, encoding="utf-8") as file:
        report(work, "gigast", {"train": map(json.loads, file)}, paper, dropped, args.incomplete)
    finish(work, "gigast", settings, preset="iwslt26")


if __name__ == "__main__":
    main()
