"""
GigaST: GigaSpeech's 10,000 hours with machine translations to German and Chinese, and ours to Italian.

    python -m data.gigast                           # or --raw folder, where the download lies elsewhere
    python -m data.gigast --hours 300               # whole recordings drawn by --seed, until there are 300 hours

download into <work>/raw/gigast
    GigaST.de.json, GigaST.zh*.json     https://lf3-nlp-opensource.bytetos.com/obj/nlp-opensource/datasets/GigaST/
        a few GB; no licence is stated there
    GigaSpeech.json, audio/**/*.opus    the raw release of https://github.com/SpeechColab/GigaSpeech, by its form (not
        the copy cut into segments on the hub); hundreds of GB; for research and education only. Without audio/ there
        are no ASR rows, all others are made all the same

reads   these, piece by piece, and from the Hugging Face hub: SeamlessM4T (translates), CometKiwi (scores)
writes  <work>/rows/gigast/train.jsonl, counts.md, dropped.txt, config.json last; and in <work>/made/gigast/ what the
        models made: a killed run goes on. There is no dev and no test split (2026, section 2: neither is used)

A segment that both GigaST files translate has an ASR row with its slice of the recording, and an ST row without speech
for each language, which is MT: the paper trains on GigaST's speech in stage A alone, for ASR (2026, Table 6).
Italian is kept where it scores 0.85 or more. Transcripts are upper case; sentences and "I" get their capitals back,
names do not: what translates and what is trained know cased text best (our choice).

Memory: this recipe takes 0.5 kB a segment of GigaST, 4 GB in all, whatever --hours says. A stage that loads the rows
takes 1.4 kB a row: 1.1 GB for 300 hours, 37 GB for all 26 million rows, 6.5 GB on disk (reckoned from 1.4 million
made-up rows of the corpus's mean length).
"""
import glob
import json
import os
import random
import re
from itertools import count, islice

from tqdm import tqdm

from data.quality import KIWI, good_rows
from data.recipe import finish, finished, need, parser, report, speech_rows
from data.translate import SEAMLESS, translate_rows
from speech_llm.files import replace_file
from speech_llm.rows import defect


GIGAST = "download it from https://lf3-nlp-opensource.bytetos.com/obj/nlp-opensource/datasets/GigaST/"
GIGASPEECH = "it belongs to the raw release of GigaSpeech, see https://github.com/SpeechColab/GigaSpeech"
MARKS = {"<COMMA>": ",", "<PERIOD>": ".", "<QUESTIONMARK>": "?", "<EXCLAMATIONPOINT>": "!"}
GARBAGE = ("<SIL>", "<MUSIC>", "<NOISE>", "<OTHER>")              # the two lists are complete, says GigaSpeech
HELD_OUT = {"{DEV}", "{TEST}"}                                    # GigaSpeech's evaluation subsets
SLACK = 0.1                                                       # s, beyond the recording's end (our choice)
PIECE = 1 << 22                                                   # characters read at a time
LONGEST = 1 << 28                                                 # characters of one item; beyond, the file is damaged
BLOCK = 200_000                                                   # segments translated together: memory (our choice)
PAPER = {("train", "ASR en"): 7_645_641, ("train", "MT de"): 7_645_641, ("train", "MT zh"): 7_645_641,
         ("train", "MT it"): 3_004_804}                           # 2026, Table 5


# --- Reading JSON files that are larger than memory.

def stream_list(path, key):
    """
    Yield the items of the list under `key` in the object that a JSON file holds; no more than one item and a piece of
    the file are in memory. SystemExit where the file is damaged, cut short, or has no such list.
    """
    decode, space = json.JSONDecoder().raw_decode, re.compile(r"[ \t\n\r]*")
    text, at, passed = "", 0, 0                                   # a window on the file; the place in it; items so far

    def more():
        nonlocal text, at
        piece = file.read(PIECE)
        bar.update(len(piece))
        text, at = text[at:] + piece, 0
        return bool(piece)

    def peek():                                                   # the next character that is no white space
        nonlocal at
        at = space.match(text, at).end()
        while at == len(text):
            if not more():
                raise ValueError("it ends too early")
            at = space.match(text, at).end()
        return text[at]

    def take(characters):
        nonlocal at
        found = peek()
        if found not in characters:
            raise ValueError(f"{found!r} where one of {characters} should be")
        at += 1
        return found

    def value():                                                  # the next JSON value, whole
        nonlocal at
        peek()
        while True:
            try:
                found, end = decode(text, at)
            except ValueError:                                    # damaged, or only the window's end
                if len(text) - at > LONGEST or not more():
                    raise
                continue
            rest = len(text) - end
            if rest > 2 or not more():                            # a 1 at the window's end may go on as 12 or 1e-5
                at = len(text) - rest
                return found

    with open(path, encoding="utf-8-sig") as file, \
            tqdm(total=os.path.getsize(path), desc=os.path.basename(path), unit="B", unit_scale=True) as bar:
        try:
            take("{")
            while value() != key:                                 # the members before the list
                take(":")
                value()
                take(",")
            take(":")
            take("[")
            while peek() != "]":
                yield value()
                passed += 1
                if take(",]") == "]":
                    break
        except (ValueError, RecursionError) as error:             # also JSON's own, and bytes that are not UTF-8
            raise SystemExit(f"{path} is damaged after item {passed} of {key!r} ({error}); download it again") from None


def find_gigast(raw, language):
    """GigaST's training file of a language: GigaST.zh.json and GigaST.zh.cn.json are names of the same."""
    found = [path for path in sorted(glob.glob(os.path.join(glob.escape(raw), f"GigaST.{language}*.json")))
             if "test" not in os.path.basename(path)]
    if len(found) > 1:
        raise SystemExit(f"{' and '.join(found)}: which is the training set? Keep one")
    return found[0] if found else need(os.path.join(raw, f"GigaST.{language}.json"), GIGAST)


def read_translations(raw):
    """Both GigaST files -> {segment: (German, Chinese)}, None for the one that is not there."""
    texts = {}
    for place, language in enumerate(("de", "zh")):
        path, again = find_gigast(raw, language), 0
        for item in stream_list(path, "audios"):
            try:
                for segment in item["segments"]:
                    pair = list(texts.get(segment["sid"] + "", (None, None)))
                    again += pair[place] is not None
                    pair[place] = pair[place] or segment["text_raw"].strip()       # of two, the first stays
                    texts[segment["sid"]] = tuple(pair)
            except (KeyError, TypeError, AttributeError) as error:
                raise SystemExit(f"{path} is not in GigaST's format ({type(error).__name__}: {error}); {GIGAST}"
                                 ) from None
        print(f"{path}: {sum(pair[place] is not None for pair in texts.values())} segments, {again} listed again")
    print(f"in both: {sum(None not in pair for pair in texts.values())} segments")
    return texts


# --- Segments.

def written(text_tn):
    """
    GigaSpeech's upper case with tags -> a sentence with its marks and capitals, "" if nothing is said:
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


def recordings(raw):
    """
    Yield (name, path of the audio, seconds, [(sid, start, end, text, subsets)]) of GigaSpeech.json's recordings;
    seconds is 0 where it is not told. SystemExit for one that is not in its format.
    """
    source = need(os.path.join(raw, "GigaSpeech.json"), GIGASPEECH)
    for number, item in enumerate(stream_list(source, "audios"), 1):
        try:
            segments = [(s["sid"] + "", float(s["begin_time"]), float(s["end_time"]), written(s["text_tn"]),
                         set(s.get("subsets", []))) for s in item["segments"]]
            found = item["aid"] + "", os.path.join(raw, item["path"]), float(item.get("duration") or 0), segments
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise SystemExit(f"{source} item {number} is not in GigaSpeech's format ({type(error).__name__}: {error}); "
                             f"{GIGASPEECH}") from None
        yield found


def draw_recordings(raw, texts, hours, seed):
    """The names of recordings, drawn at random, that hold so many hours of segments with both translations."""
    held = {name: sum(end - start for sid, start, end, _, _ in segments if None not in texts.get(sid, [None])) / 3600
            for name, _, _, segments in recordings(raw)}
    names, drawn, total = sorted(name for name in held if held[name] > 0), set(), 0.0
    random.Random(seed).shuffle(names)
    for name in names:
        if total < hours:
            drawn.add(name)
            total += held[name]
    print(f"drawn with seed {seed}: {len(drawn)} of {len(names)} recordings, {total:.1f} of {sum(held.values()):.1f} "
          "hours")
    return drawn


def read_segments(raw, texts, drawn, dropped):
    """
    Yield {sid, text, audio, start, end, de, zh} of every segment with both translations; of recordings in `drawn`
    only, unless that is None. Segments are taken out of `texts`, so that none can come twice.
    """
    for name, audio, seconds, segments in recordings(raw):
        segments = [segment for segment in segments if segment[0] in texts and (drawn is None or name in drawn)]
        there = os.path.isfile(audio) and os.path.getsize(audio) > 0
        if segments and not there:
            dropped.append(("train", f"gigast/{name}", "recording without audio, MT only"))
        for sid, start, end, text, subsets in segments:
            german, chinese = texts.pop(sid, (None, None))                # GigaST has one of them at least
            tags = re.findall("<[^ ]*>", text)
            why = ("listed twice" if (german, chinese) == (None, None) else
                   "in GigaSpeech's dev or test set" if subsets & HELD_OUT else
                   "not translated to both German and Chinese" if not german or not chinese else
                   f"unknown tag: {tags[0]}" if tags else
                   "only silence, music or noise" if not text else
                   f"no slice: from {start} to {end} s" if not 0 <= start < end < float("inf") else
                   f"ends after its recording: {end} s of {seconds} s" if seconds and end > seconds + SLACK else "")
            if why:
                dropped.append(("train", f"gigast/{sid}", why))
            else:
                yield {"sid": sid, "text": text, "audio": audio if there else "", "start": start, "end": end,
                       "de": german, "zh": chinese}


# --- Rows.

def make_rows(segments, made, args, dropped):
    """Yield the rows of all segments, in their order. Italian is made block by block: a killed run loses no block."""
    for number in count():
        block = list(islice(segments, BLOCK))
        if not block:
            return
        english = [{"id": f"gigast/{s['sid']}/ASR.en", "task": "ASR", "language": "en", "answerable": True,
                    "transcript": s["text"], "target": s["text"]} for s in block]
        kept = [os.path.join(made, f"{maker}.it.{number:03d}.jsonl") for maker in ("translate", "quality")]
        italian, empty = translate_rows(english, "it", args.seamless, kept[0])
        italian, bad = good_rows(italian, english, args.kiwi, kept[1])
        dropped += [("train", row_id, f"Italian {why}") for row_id, why in empty + bad]
        italian = {row["id"]: row["target"] for row in italian}
        for s in block:
            name = f"gigast/{s['sid']}"
            if s["audio"]:
                yield from speech_rows(name, {key: s[key] for key in ("audio", "start", "end")}, s["text"], {})
            for language, target in (("de", s["de"]), ("it", italian.get(f"{name}/ST.it")), ("zh", s["zh"])):
                if target:
                    yield {"id": f"{name}/ST.{language}", "task": "ST", "language": language, "transcript": s["text"],
                           "target": target}


def write_all(path, rows):
    """As write_rows, but rows pass by one at a time: that no id comes twice is up to read_segments."""
    with replace_file(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
        for number, row in enumerate(rows, 1):
            if defect(row):
                raise ValueError(f"{path} line {number}, row {row['id']!r}: {defect(row)}")
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def main(argv=None):
    command = parser(__doc__, "gigast")
    command.add_argument("--hours", type=float, default=0, help="how much of the corpus; 0: all")
    command.add_argument("--seed", type=int, default=0, help="of the draw of the recordings")
    command.add_argument("--seamless", default=SEAMLESS, help="the model that translates")
    command.add_argument("--kiwi", default=KIWI, help="the model that scores translations")
    args = command.parse_args(argv)
    work, raw = args.work, args.raw or os.path.join(args.work, "raw", "gigast")
    settings = {name: getattr(args, name) for name in ("hours", "seed", "seamless", "kiwi")}
    if finished(work, "gigast", settings):
        return
    need(os.path.join(raw, "GigaSpeech.json"), GIGASPEECH)      # known now, not after the reading of the translations
    texts, dropped = read_translations(raw), []
    drawn = draw_recordings(raw, texts, args.hours, args.seed) if args.hours else None
    path = os.path.join(work, "rows", "gigast", "train.jsonl")
    segments = read_segments(raw, texts, drawn, dropped)
    write_all(path, make_rows(segments, os.path.join(work, "made", "gigast"), args, dropped))
    if drawn is None:
        print(f"translated, but not in GigaSpeech.json: {len(texts)} segments")
    with open(path, encoding="utf-8") as file:
        report(work, "gigast", {"train": map(json.loads, file)}, {} if drawn else PAPER, dropped)
    finish(work, "gigast", settings)
    print(f"rows in {work}/rows/gigast\nnext: python extract_features.py --preset iwslt26")


if __name__ == "__main__":
    main()
