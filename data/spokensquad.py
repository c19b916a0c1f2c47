"""
Make the rows of Spoken-SQuAD: questions on spoken Wikipedia sentences, made multilingual, fluent and unanswerable
(2025, section 2.1).

    python -m data.spokensquad                      # or --raw folder, where the download is elsewhere

download into <work>/raw/spokensquad (or --raw); data/README.md says more
    spoken_train-v1.1.json, spoken_test-v1.1.json   https://github.com/Chia-Hsuan-Lee/Spoken-SQuAD
    train-v1.1.json, dev-v1.1.json                  https://rajpurkar.github.io/SQuAD-explorer/dataset/
    the test recordings, <theme>_<paragraph>_<sentence>.wav: Spoken-SQuAD_audio.zip as it is, or the dev_wav.zip inside
        it, or that file's recordings below a folder with "test" or "dev" in its name

reads   these, and from the Hugging Face hub: SeamlessM4T (translates and speaks), CometKiwi (scores), Llama (rewrites)
writes  <work>/rows/spokensquad/{train,dev,test}.jsonl, counts.md, dropped.txt, config.json last,
        <work>/audio/spokensquad/, and in <work>/made/spokensquad/ what the models made: a killed run goes on

An entry is a question and one of its answers. train and dev: SeamlessM4T speaks each entry's sentence, because the
published recordings of train are misaligned (2025, section A.1). test: the published recordings. train.jsonl and
dev.jsonl also hold the part spokensquad-fluent, by the first component of the id: the answers as sentences.
"""
import os
import random
import re
import shutil
import zipfile
import zlib
from collections import Counter

from data.quality import KIWI, good_translations
from data.recipe import (begin, download, finish, finished, limited, missing_files, missing_models, missing_packages,
                         paper_counts, parser, refuse_missing, report, speech_rows, spread, unreadable)
from data.rewrite import LLM, fluent_rows
from data.speak import speak
from data.translate import SEAMLESS
from metrics.comet import ENCODERS
from speech_llm.files import read_json, replace_file
from speech_llm.prompts import NOT_ANSWERABLE
from speech_llm.resumable import is_first, silence_others
from speech_llm.rows import LANGUAGES, write_rows


SPOKEN = "download it from https://github.com/Chia-Hsuan-Lee/Spoken-SQuAD"
SQUAD = "download it from https://rajpurkar.github.io/SQuAD-explorer/dataset/"
AUDIO = "download http://speech.ee.ntu.edu.tw/~chiahsuan/Spoken-SQuAD/Spoken-SQuAD_audio.zip (50 GB) there"
FILES = {"spoken_train-v1.1.json": SPOKEN, "spoken_test-v1.1.json": SPOKEN, "train-v1.1.json": SQUAD,
         "dev-v1.1.json": SQUAD}
DEV_THEMES = 20                             # of spoken_train, the first; 2025, section 2.1
WAV = re.compile(r"(\d+_\d+_\d+)\.wav")     # theme, paragraph, sentence, from 0; 2025, section 2.1, footnote 1
PAPER = paper_counts({                      # 2025, Tables 1 and 3, sections 2.1 and A.1
    ("train", "ASR {}"): {"en": 34_003},
    ("train", "MT {}"): {"de": 39_362, "it": 55_030, "zh": 25_078},
    ("train", "SQA/QA {}"): {"en": 34_003, "de": 6_574, "it": 16_767, "zh": 7_093},
    ("train", "SQA/QA {} invalid"): {"en": 34_003, "de": 6_574, "it": 16_767, "zh": 7_093},
    ("train", "spokensquad-fluent SQA/QA {}"): {"en": 32_320, "de": 4_169, "it": 13_712, "zh": 3_424},
    ("dev", "SQA/QA {}"): {"en": 3_102},
    ("test", "SQA/QA {}"): {"en": 8_026, "de": 3_272, "it": 783, "zh": 627},
    ("test", "SQA/QA {} invalid"): dict.fromkeys(LANGUAGES, 8_026),                   # appendix B
})


def missing(work, raw="", seamless=SEAMLESS, kiwi=KIWI, llm=LLM):
    """Return [(what is missing, how to mend it)]."""
    raw, lacking = download(work, raw, "spokensquad"), []
    for name, source in FILES.items():
        lacking += missing_files([os.path.join(raw, name)], source)
    if not find_recordings(raw) and not find_archive(raw):
        lacking.append((os.path.join(raw, "Spoken-SQuAD_audio.zip"), AUDIO))
    return lacking + missing_packages("py3langid") + missing_models(seamless, kiwi, ENCODERS["unified"], llm)


# --- Entries: a question, one answer, the recording that holds it.

def read_squad(path, source):
    """
    Return all questions of a file in SQuAD's format: [{theme, paragraph, context, id, question, answers}], where theme
    and paragraph are places in the file and answers [(text, place in context)]. SystemExit if the file is damaged.
    """
    try:
        return [{"theme": t, "paragraph": p, "context": paragraph["context"] + "", "id": question["id"] + "",
                 "question": question["question"].strip(),
                 "answers": [(answer["text"] + "", int(answer["answer_start"])) for answer in question["answers"]]}
                for t, theme in enumerate(read_json(path, source)["data"])
                for p, paragraph in enumerate(theme["paragraphs"]) for question in paragraph["qas"]]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise SystemExit(f"{path} is not in SQuAD 1.1's format ({type(error).__name__}: {error}); {source}") from None


def recording(context, start, answer):
    """
    Return (number, text) of the recording that holds the answer at `start`; None if the answer needs more than one.
    Spoken-SQuAD cut its paragraphs at every ". " and nowhere else: also after "J. " and "U.S. ", but not at "? " or
    where a quotation mark follows the full stop. Its ASR contexts, joined by ". ", show this. Cut in the same way, the
    original paragraph gives the words of each recording.
    """
    first, last = (context[:place].count(". ") for place in (start, start + len(answer)))
    if first != last:
        return None
    pieces = context.split(". ")
    number = sum(bool(piece.strip()) for piece in pieces[:first])       # an empty piece, as in " . . . ", has none
    return number, " ".join(pieces[first].split()) + ("." if first < len(pieces) - 1 else "")


def letters(text):
    """Return a text's letters and digits in lower case: ASR and annotators agree on these ("U.S. Mint", "us mint")."""
    return "".join(character for character in text.lower() if character.isalnum())


def reference(original, answer, number):
    """
    Return (number, text) of the recording in the original paragraph; None if no human answer lies in one recording.
    Of several human answers, the one with the letters of `answer` counts first, then one in recording `number`.
    """
    places = [(letters(text) == letters(answer), recording(original["context"], start, text))
              for text, start in original["answers"]]
    return max((place for place in places if place[1]), key=lambda place: (place[0], place[1][0] == number),
               default=(False, None))[1]


def make_entries(split, spoken, originals, dropped):
    """
    Return the entries of Spoken-SQuAD's questions: name (of the rows), key, theme, question, answer, transcript, wav.
    originals: {id: question of SQuAD}. Spoken-SQuAD gives the first place where ASR has the answer's letters, even
    "gold" in "golden". SQuAD's annotators marked the right place, so the original decides on the recording (our
    choice). The answer's text is Spoken-SQuAD's, in lower case without punctuation, as section A.2 describes it; only
    the exact duplicates of these texts give the paper's counts.
    """
    entries, counts = [], Counter()
    for question in spoken:
        distinct = dict(question["answers"])             # equal texts have equal places
        counts += Counter(answers=len(question["answers"]), distinct=len(distinct))
        for n, (answer, start) in enumerate(distinct.items(), 1):
            key = question["id"] + (f"-{n}" if len(distinct) > 1 else "")
            name, original = f"spokensquad/{split}/{key}", originals.get(question["id"])
            in_asr = recording(question["context"], start, answer)
            written = original and in_asr and reference(original, answer, in_asr[0])
            if not written or not answer.strip() or not question["question"]:
                dropped.append((split, name, "empty answer" if not answer.strip() else
                                "empty question" if not question["question"] else
                                "answer in more than one recording" if not in_asr else
                                "question not in the original SQuAD" if not original else
                                "answer in more than one recording of the original"))
                continue
            entries.append({"name": name, "key": key, "theme": question["theme"], "question": question["question"],
                            "answer": answer.strip(), "transcript": written[1],
                            "wav": f"{original['theme']}_{original['paragraph']}_{written[0]}"})
            if sum(answer in piece for piece in question["context"].split(". ")) == 1:
                counts += Counter(certain=1, agree=int(in_asr[0] == written[0]))
    print(f"{split}: {len(spoken)} questions, {counts['answers']} answers, {counts['distinct']} without duplicates, "
          f"{len(entries)} entries; of {counts['certain']} answers that ASR has in one sentence only, "
          f"{counts['agree']} stand in the same sentence of the original")
    return entries


# --- The test recordings.

def find_recordings(raw):
    """
    Return {"3_0_12": path} of the unpacked test recordings. The recordings of train have the same names, so the folder
    must tell: "dev" (the zip's name for them) or "test". SystemExit for two test recordings of one name.
    """
    recordings = {}
    for folder, _, files in sorted(os.walk(raw, followlinks=True)):
        place = os.path.relpath(folder, raw).lower()
        if "test" in place or "dev" in place and "train" not in place:
            for match in filter(None, map(WAV.fullmatch, sorted(files))):
                path = os.path.join(folder, match[0])
                if recordings.setdefault(match[1], path) != path:
                    raise SystemExit(f"{recordings[match[1]]} and {path}: two test recordings of one name; keep the "
                                     f"clean ones below {raw}, move those with added noise elsewhere")
    return recordings


def find_archive(raw):
    """Return the path of dev_wav.zip below `raw`, else of Spoken-SQuAD_audio.zip, which holds it, else ""."""
    paths = {name: os.path.join(folder, name) for folder, _, files in sorted(os.walk(raw, followlinks=True))
             for name in files}
    return paths.get("dev_wav.zip") or paths.get("Spoken-SQuAD_audio.zip", "")


def unpack_recordings(path, folder):
    """
    Unpack the recordings of dev_wav.zip into `folder`, those that are not there yet; return {"3_0_12": path}.
    path: dev_wav.zip, or the zip that holds it. SystemExit if it is damaged or holds no recordings.
    """
    recordings = {}
    try:
        with zipfile.ZipFile(path) as archive:
            inner = next((name for name in archive.namelist() if os.path.basename(name) == "dev_wav.zip"), None)
            with (archive.open(inner) if inner else open(path, "rb")) as file, zipfile.ZipFile(file) as archive:
                for name in archive.namelist():
                    if match := WAV.fullmatch(os.path.basename(name)):
                        recordings[match[1]] = target = os.path.join(folder, match[0])
                        if not os.path.exists(target):
                            with replace_file(target) as temporary, archive.open(name) as packed, \
                                    open(temporary, "wb") as unpacked:
                                shutil.copyfileobj(packed, unpacked)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise SystemExit(f"{path} is damaged ({error}); download it again") from None
    if not recordings:
        raise SystemExit(f"{path} holds no recording like 0_0_0.wav in dev_wav.zip; {AUDIO}")
    print(f"{len(recordings)} test recordings of {path} in {folder}")
    return recordings


def give_recordings(entries, recordings, dropped):
    """Return the test entries that have a recording, with `utterance` and `audio`; equal sentences share both."""
    broken = unreadable(sorted({recordings[e["wav"]] for e in entries if e["wav"] in recordings}))
    complete = []
    for e in entries:
        audio = recordings.get(e["wav"])
        if not audio or audio in broken:
            dropped.append(("test", e["name"], f"no recording: {e['wav']}.wav {broken.get(audio, 'is not there')}"))
        else:
            complete.append({**e, "utterance": f"spokensquad/test/{e['wav']}", "audio": audio})
    return complete


# --- Speech, translations, rows.

def give_speech(split, entries, folder, args, dropped):
    """Return the entries of train or dev that SeamlessM4T spoke, each in a voice of its own (2025, section A.1)."""
    paths = speak({e["key"]: e["transcript"] for e in entries}, folder, args.seamless, args.seed)
    dropped += [(split, e["name"], "could not be spoken") for e in entries if not paths[e["key"]]]
    return [{**e, "utterance": e["name"], "audio": paths[e["key"]]} for e in entries if paths[e["key"]]]


def asr_rows(entries):
    """Return the ASR row of every entry."""
    return [row for e in entries for row in speech_rows(e["utterance"], {"audio": e["audio"]}, e["transcript"], {})]


def sqa_rows(entries):
    """Return the English SQA row of every entry."""
    return [{"id": f"{e['name']}/SQA.en", "utterance": e["utterance"], "audio": e["audio"], "task": "SQA",
             "language": "en", "transcript": e["transcript"], "question": e["question"], "target": e["answer"],
             "answerable": True} for e in entries]


def mt_rows(entries):
    """
    Return text-only rows to be translated: every entry's sentence, and every question once (our choice: the paper does
    not say which texts; questions and answers alone are at most 34,003 + 16,767 in Italian, and it counts 55,030).
    """
    questions = {}
    for e in entries:
        questions.setdefault(e["question"], e)
    texts = [(e, "sentence", e["transcript"]) for e in entries]
    texts += [(e, "question", question) for question, e in questions.items()]
    return [{"id": f"{e['name']}/MT-{part}.en", "task": "ST", "language": "en", "transcript": text, "target": text,
             "answerable": True} for e, part, text in texts]


def invalid_rows(speech, valid, theme_of, rng, split, dropped):
    """
    Return an unanswerable row for every row of `speech`: its utterance with the question of a row of `valid`, which is
    in one language and of another theme (drawn anew for each row: our choice). theme_of: {entry's name: theme}.
    """
    def theme(row):
        return theme_of[os.path.dirname(row["id"])]
    if len({theme(row) for row in valid}) < 2:
        dropped += [(split, row["id"], "no question of another theme for an invalid row") for row in valid]
        return []
    rows = []
    for row in speech:
        other = rng.choice(valid)
        while theme(other) == theme(row):
            other = rng.choice(valid)
        language = other["language"]
        rows.append({**row, "id": f"{os.path.dirname(row['id'])}/SQA-invalid.{language}", "language": language,
                     "question": other["question"], "target": NOT_ANSWERABLE[language], "answerable": False})
    return rows


def split_rows(split, entries, folder, args, dropped):
    """
    Return all rows of one split. An SQA row in another language has both question and answer translated well.
    The test set has neither ASR nor MT nor fluent rows, and invalid questions on all of its recordings in each language
    (appendix B). In train and dev a valid row has one invalid row with the same speech (Table 1).
    """
    english, texts = sqa_rows(entries), [] if split == "test" else mt_rows(entries)
    theme_of = {e["name"]: e["theme"] for e in entries}
    rows, valid = [] if split == "test" else asr_rows(entries), []
    for language in LANGUAGES:
        good = english
        if language != "en":
            good, bad = good_translations(english + texts, language, folder, args.seamless, args.kiwi)
            dropped += [(split, row_id, why) for row_id, why in bad]
        sqa = [row for row in good if row["task"] == "SQA"]
        rng = random.Random(f"{args.seed} {split} {language}")
        rows += good + invalid_rows(english if split == "test" else sqa, sqa, theme_of, rng, split, dropped)
        valid += sqa
    if split == "test":
        return rows
    fluent, bad = fluent_rows(valid, args.llm, os.path.join(folder, "rewrite.jsonl"))
    dropped += [(split, row_id, why) for row_id, why in bad]
    return rows + fluent


def main(argv=None):
    command = parser(__doc__, "spokensquad", models=[
        ("seamless", SEAMLESS, "translates and speaks"), ("kiwi", KIWI, "scores translations"),
        ("llm", LLM, "rewrites answers")])
    command.add_argument("--seed", type=int, default=0, help="of the voices and the invalid questions")
    args = command.parse_args(argv)
    silence_others()
    work, raw = args.work, download(args.work, args.raw, "spokensquad")
    made, audio = (os.path.join(work, folder, "spokensquad") for folder in ("made", "audio"))
    settings = {name: getattr(args, name) for name in ("seamless", "kiwi", "llm", "seed")} | limited(args)
    if finished(work, "spokensquad", settings):
        return
    lacking = missing(work, raw, args.seamless, args.kiwi, args.llm)
    refuse_missing("spokensquad", [entry for entry in lacking if entry[1] != AUDIO or not args.incomplete], args.check)

    spoken = {"test": read_squad(os.path.join(raw, "spoken_test-v1.1.json"), SPOKEN), "dev": [], "train": []}
    for question in read_squad(os.path.join(raw, "spoken_train-v1.1.json"), SPOKEN):
        spoken["dev" if question["theme"] < DEV_THEMES else "train"].append(question)
    originals = {question["id"]: question for name in ("train-v1.1.json", "dev-v1.1.json")
                 for question in read_squad(os.path.join(raw, name), SQUAD)}
    dropped = []
    entries = {split: make_entries(split, questions, originals, dropped) for split, questions in spoken.items()}
    begin(work, "spokensquad", settings)
    recordings, archive = find_recordings(raw), find_archive(raw)
    if not recordings and archive:
        recordings = unpack_recordings(archive, os.path.join(audio, "test"))
    entries = {split: spread(part, args.limit) for split, part in entries.items()}
    entries["test"] = give_recordings(entries["test"], recordings, dropped)
    splits = {}
    for split in ("dev", "test", "train"):      # the small ones first: what fails, fails early
        if split != "test":
            entries[split] = give_speech(split, entries[split], audio, args, dropped)
        splits[split] = split_rows(split, entries[split], made, args, dropped)
        if splits[split] and is_first():
            write_rows(os.path.join(work, "rows", "spokensquad", f"{split}.jsonl"), splits[split])
    if is_first():
        report(work, "spokensquad", splits, {} if args.limit else PAPER, dropped, args.incomplete)
        finish(work, "spokensquad", settings, "iwslt25")


if __name__ == "__main__":
    main()
