"""
Spoken-SQuAD: questions on spoken Wikipedia sentences, made multilingual, fluent and unanswerable (2025, section 2.1).

    python -m data.spokensquad                      # or --raw folder, where the download lies elsewhere
    python -m data.spokensquad --questions          # also speaks every training question: a second ASR set

download into <work>/raw/spokensquad
    spoken_train-v1.1.json, spoken_test-v1.1.json   from https://github.com/Chia-Hsuan-Lee/Spoken-SQuAD
        25 MB and 3 MB; CC BY-SA 4.0
    train-v1.1.json, dev-v1.1.json                  from https://rajpurkar.github.io/SQuAD-explorer/dataset/
        30 MB and 5 MB; the original SQuAD, CC BY-SA 4.0
    the test recordings, <theme>_<paragraph>_<sentence>.wav, anywhere below a folder with "test" in its name
        http://speech.ee.ntu.edu.tw/~chiahsuan/Spoken-SQuAD/Spoken-SQuAD_audio.zip, 50 GB. Issue 3 of the repository
        reports that the zip lacks them; without them there is no test split, the others are made all the same.
        The recordings of the training set are not used: they are misaligned (2025, section A.1)

reads   these, and from the Hugging Face hub: SeamlessM4T (translates and speaks), CometKiwi (scores), Llama (rewrites)
writes  <work>/rows/spokensquad/{train,dev,test}.jsonl, counts.md, dropped.txt, config.json last,
        <work>/audio/spokensquad/, and in <work>/made/spokensquad/ what the models made: a killed run goes on

An entry is a question and one of its answers. train and dev: spoken anew, one utterance an entry. test: the recordings
as they are. In train.jsonl and dev.jsonl there are two parts more, by the first component of the id:
spokensquad-fluent (the answers as sentences) and, with --questions, spokensquad-questions.
"""
import json
import os
import random
import re
from collections import Counter

from data.quality import KIWI, good_rows
from data.recipe import finish, finished, need, parser, report, speech_rows, unreadable
from data.rewrite import LLM, fluent_rows
from data.speak import speak
from data.translate import SEAMLESS, translate_rows
from metrics.language import identify
from speech_llm.prompts import NOT_ANSWERABLE
from speech_llm.rows import LANGUAGES, write_rows


SPOKEN = "download it from https://github.com/Chia-Hsuan-Lee/Spoken-SQuAD"
SQUAD = "download it from https://rajpurkar.github.io/SQuAD-explorer/dataset/"
DEV_THEMES = 20                             # of spoken_train, the first; 2025, section 2.1
WAV = re.compile(r"(\d+_\d+_\d+)\.wav")     # theme, paragraph, sentence, from 0; 2025, section 2.1, footnote 1
COUNTS = {                                  # 2025, Tables 1 and 3, sections 2.1 and A.1
    ("train", "ASR {}"): {"en": 34_003},
    ("train", "MT {}"): {"de": 39_362, "it": 55_030, "zh": 25_078},
    ("train", "SQA/QA {}"): {"en": 34_003, "de": 6_574, "it": 16_767, "zh": 7_093},
    ("train", "SQA/QA {} invalid"): {"en": 34_003, "de": 6_574, "it": 16_767, "zh": 7_093},
    ("train", "spokensquad-fluent SQA/QA {}"): {"en": 32_320, "de": 4_169, "it": 13_712, "zh": 3_424},
    ("dev", "SQA/QA {}"): {"en": 3_102},
    ("test", "SQA/QA {}"): {"en": 8_026, "de": 3_272, "it": 783, "zh": 627},
    ("test", "SQA/QA {} invalid"): {"en": 8_026},                                     # appendix B
}
PAPER = {(split, name.format(language)): count
         for (split, name), counts in COUNTS.items() for language, count in counts.items()}
QUESTIONS = {("train", "spokensquad-questions ASR en"): 28_000}                       # rounded; section A.1


# --- Entries: a question, one answer, the recording that holds it.

def read_squad(path, source):
    """All questions of a file in SQuAD's format -> [{theme, paragraph, context, id, question, answers}]: theme and
    paragraph are places in the file, answers [(text, place in context)]. SystemExit where it is damaged."""
    need(path, source)
    try:
        with open(path, encoding="utf-8") as file:
            themes = json.load(file)["data"]
        return [{"theme": t, "paragraph": p, "context": paragraph["context"] + "", "id": asked["id"] + "",
                 "question": asked["question"].strip(),
                 "answers": [(answer["text"] + "", int(answer["answer_start"])) for answer in asked["answers"]]}
                for t, theme in enumerate(themes) for p, paragraph in enumerate(theme["paragraphs"])
                for asked in paragraph["qas"]]
    except (ValueError, RecursionError) as error:       # JSON that ends too early, bytes that are not UTF-8
        raise SystemExit(f"{path} is damaged ({error}); {source}") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise SystemExit(f"{path} is not in SQuAD 1.1's format ({type(error).__name__}: {error}); {source}") from None


def recording(context, start, answer):
    """
    (number, text) of the recording that holds the answer at `start`; None if it needs more than one.
    Spoken-SQuAD cut its paragraphs at every ". " and nowhere else: after "J. " and "U.S. " too, but not at "? " or
    where a quotation mark follows the stop. Its ASR contexts, joined by ". ", show it. Cut in the same way, the
    original gives the words of each recording.
    """
    first, last = (context[:place].count(". ") for place in (start, start + len(answer)))
    if first != last:
        return None
    pieces = context.split(". ")
    number = sum(bool(piece.strip()) for piece in pieces[:first])       # nobody spoke the nothing inside " . . . "
    return number, " ".join(pieces[first].split()) + ("." if first < len(pieces) - 1 else "")


def letters(text):
    """A text as ASR and annotators agree on it: "U.S. Mint" and "us mint" are the same."""
    return "".join(character for character in text.lower() if character.isalnum())


def reference(original, answer, number):
    """
    (number, text) of the recording in the original paragraph; None if no human answer lies in one recording.
    Of several human answers the one that reads as `answer` does is meant, or else one in recording `number`.
    """
    found = [(letters(text) == letters(answer), recording(original["context"], start, text))
             for text, start in original["answers"]]
    return max((pair for pair in found if pair[1]), key=lambda pair: (pair[0], pair[1][0] == number),
               default=(False, None))[1]


def make_entries(split, spoken, originals, dropped):
    """
    Questions of Spoken-SQuAD, {id: question of SQuAD} -> entries: name (of the rows), key, theme, question, answer,
    transcript, wav. An answer of the corpus stands for the first place where ASR has its letters, "gold" in "golden"
    even; SQuAD's annotators marked the right place, so the original decides on the recording (our choice). Its text
    is the corpus's own, lower case without punctuation: so the paper describes its answers (section A.2), and only
    the exact duplicates of these give its counts.
    """
    entries, seen = [], Counter()
    for asked in spoken:
        distinct = dict(asked["answers"])                        # like texts have like places: the first, see above
        seen += Counter(answers=len(asked["answers"]), distinct=len(distinct))
        for n, (answer, start) in enumerate(distinct.items(), 1):
            key = asked["id"] + (f"-{n}" if len(distinct) > 1 else "")
            name, original = f"spokensquad/{split}/{key}", originals.get(asked["id"])
            heard = recording(asked["context"], start, answer)
            written = original and heard and reference(original, answer, heard[0])
            if not written or not answer.strip() or not asked["question"]:
                dropped.append((split, name, "empty answer" if not answer.strip() else
                                "empty question" if not asked["question"] else
                                "answer in more than one recording" if not heard else
                                "question not in the original SQuAD" if not original else
                                "answer in more than one recording of the original"))
                continue
            entries.append({"name": name, "key": key, "theme": asked["theme"], "question": asked["question"],
                            "answer": answer.strip(), "transcript": written[1],
                            "wav": f"{original['theme']}_{original['paragraph']}_{written[0]}"})
            if sum(answer in piece for piece in asked["context"].split(". ")) == 1:
                seen += Counter(certain=1, agree=int(heard[0] == written[0]))
    print(f"{split}: {len(spoken)} questions, {seen['answers']} answers, {seen['distinct']} without duplicates, "
          f"{len(entries)} entries; of {seen['certain']} answers that ASR has in one sentence only, "
          f"{seen['agree']} stand in the same sentence of the original")
    return entries


# --- Speech, translations, rows.

def find_recordings(raw):
    """{"3_0_12": path} of the test recordings; train and test name theirs alike, so the folder must say it is test."""
    found = {}
    for folder, _, files in sorted(os.walk(raw, followlinks=True)):
        if "test" in os.path.relpath(folder, raw).lower():
            for match in filter(None, map(WAV.fullmatch, sorted(files))):
                path = os.path.join(folder, match[0])
                if found.setdefault(match[1], path) != path:
                    raise SystemExit(f"{found[match[1]]} and {path}: two test recordings of one name; keep the clean "
                                     f"ones below {raw}, move those with added noise elsewhere")
    return found


def give_recordings(entries, raw, dropped):
    """The test entries that have a recording, with `utterance` and `audio`; entries of one sentence share it."""
    wavs = find_recordings(raw)
    broken = unreadable(sorted({wavs[e["wav"]] for e in entries if e["wav"] in wavs}))
    kept = []
    for e in entries:
        audio = wavs.get(e["wav"])
        if not audio or audio in broken:
            dropped.append(("test", e["name"], f"no recording: {e['wav']}.wav {broken.get(audio, 'is not there')}"))
        else:
            kept.append({**e, "utterance": f"spokensquad/test/{e['wav']}", "audio": audio})
    if not kept:
        print(f'no test recording like 0_0_0.wav below a folder of {raw} with "test" in its name: no test split')
    return kept


def give_speech(split, entries, folder, args, dropped):
    """The same for train and dev: every entry is spoken by its own voice (2025, section A.1)."""
    spoken = speak({e["key"]: e["transcript"] for e in entries}, folder, args.seamless, args.seed)
    dropped += [(split, e["name"], "could not be spoken") for e in entries if not spoken[e["key"]]]
    return [{**e, "utterance": e["name"], "audio": spoken[e["key"]]} for e in entries if spoken[e["key"]]]


def asr_rows(entries):
    """One ASR row for every entry that is spoken."""
    return [row for e in entries for row in speech_rows(e["utterance"], {"audio": e["audio"]}, e["transcript"], {})]


def questions_once(entries):
    """{question: the first entry that asks it}."""
    first = {}
    for e in entries:
        first.setdefault(e["question"], e)
    return first


def question_rows(entries, folder, args, dropped):
    """ASR rows of the spoken training questions, each text once (2025, section A.1)."""
    asked = [{**e, "name": f"spokensquad-questions/train/{e['key']}", "transcript": text}
             for text, e in questions_once(entries).items()]
    return asr_rows(give_speech("train", asked, folder, args, dropped))


def invalid_rows(valid, themes, rng, split, dropped):
    """
    The unanswerable twin of every valid row of one language: the same utterance with the question of an entry of
    another theme, drawn anew each time (our choice). themes: one for each row.
    """
    if len(set(themes)) < 2:
        dropped += [(split, row["id"], "no question of another theme for an invalid row") for row in valid]
        return []
    rows = []
    for row, theme in zip(valid, themes):
        other = rng.randrange(len(valid))
        while themes[other] == theme:
            other = rng.randrange(len(valid))
        rows.append({**row, "id": row["id"].replace("/SQA.", "/SQA-invalid."), "answerable": False,
                     "question": valid[other]["question"], "target": NOT_ANSWERABLE[row["language"]]})
    return rows


def split_rows(split, entries, made, args, dropped):
    """
    All rows of one split but the spoken questions. SQA: question and answer both translated well. Text-only MT: what
    the two ASR sets say, every entry's sentence and every question once (our choice: the paper does not say which
    texts; of questions and answers there would be at most 34,003 + 16,767 in Italian, where it counts 55,030). The test
    set has neither ASR nor MT nor fluent rows.
    """
    english = [{"id": f"{e['name']}/SQA.en", "utterance": e["utterance"], "audio": e["audio"], "task": "SQA",
                "language": "en", "transcript": e["transcript"], "question": e["question"], "target": e["answer"],
                "answerable": True} for e in entries]
    said = [(e, "sentence", e["transcript"]) for e in entries]
    said += [(e, "question", text) for text, e in questions_once(entries).items()]
    texts = [] if split == "test" else [
        {"id": f"{e['name']}/MT-{kind}.en", "task": "ST", "language": "en", "transcript": text, "target": text,
         "answerable": True} for e, kind, text in said]
    theme_of = {row["id"].rpartition(".")[0]: e["theme"] for row, e in zip(english, entries)}
    rows, valid = [] if split == "test" else asr_rows(entries), []
    for language in LANGUAGES:
        good = english
        if language != "en":
            kept = [os.path.join(made, f"{maker}.{language}.jsonl") for maker in ("translate", "quality")]
            good, empty = translate_rows(english + texts, language, args.seamless, kept[0])
            good, bad = good_rows(good, english + texts, args.kiwi, kept[1])
            dropped += [(split, row_id, why) for row_id, why in empty + bad]
        sqa = [row for row in good if row["task"] == "SQA"]
        themes = [theme_of[row["id"].rpartition(".")[0]] for row in sqa]
        rng = random.Random(f"{args.seed} {split} {language}")
        rows += good + invalid_rows(sqa, themes, rng, split, dropped)
        valid += sqa
    if split == "test":
        return rows
    fluent, bad = fluent_rows(valid, args.llm, os.path.join(made, "rewrite.jsonl"))
    dropped += [(split, row_id, " ".join(why.split())) for row_id, why in bad]        # dropped.txt has a line for each
    return rows + fluent


def main(argv=None):
    command = parser(__doc__, "spokensquad")
    command.add_argument("--seamless", default=SEAMLESS, help="the model that translates and speaks")
    command.add_argument("--kiwi", default=KIWI, help="the model that scores translations")
    command.add_argument("--llm", default=LLM, help="the model that rewrites answers")
    command.add_argument("--seed", type=int, default=0, help="of the voices and the invalid questions")
    command.add_argument("--questions", action="store_true", help="also speak every training question, for ASR")
    args = command.parse_args(argv)
    work, raw = args.work, args.raw or os.path.join(args.work, "raw", "spokensquad")
    made, audio = (os.path.join(work, folder, "spokensquad") for folder in ("made", "audio"))
    settings = {name: getattr(args, name) for name in ("seamless", "kiwi", "llm", "seed", "questions")}
    if finished(work, "spokensquad", settings):
        return
    identify(["Where does the river end?"])     # its package is optional: better missed now than after hours

    spoken = {"test": read_squad(os.path.join(raw, "spoken_test-v1.1.json"), SPOKEN), "dev": [], "train": []}
    for asked in read_squad(os.path.join(raw, "spoken_train-v1.1.json"), SPOKEN):
        spoken["dev" if asked["theme"] < DEV_THEMES else "train"].append(asked)
    originals = {asked["id"]: asked for name in ("train-v1.1.json", "dev-v1.1.json")
                 for asked in read_squad(os.path.join(raw, name), SQUAD)}
    dropped = []
    entries = {split: make_entries(split, asked, originals, dropped) for split, asked in spoken.items()}
    entries["test"] = give_recordings(entries["test"], raw, dropped)
    splits = {}
    for split in ("dev", "test", "train"):      # the small ones first: what fails, fails early
        if split != "test":
            entries[split] = give_speech(split, entries[split], audio, args, dropped)
        splits[split] = split_rows(split, entries[split], made, args, dropped)
        if split == "train" and args.questions:
            splits[split] += question_rows(entries[split], os.path.join(audio, "questions"), args, dropped)
        if splits[split]:
            write_rows(os.path.join(work, "rows", "spokensquad", f"{split}.jsonl"), splits[split])
    report(work, "spokensquad", splits, PAPER | (QUESTIONS if args.questions else {}), dropped)
    finish(work, "spokensquad", settings)
    print(f"rows in {work}/rows/spokensquad\nnext: python extract_features.py --preset iwslt25")


if __name__ == "__main__":
    main()
