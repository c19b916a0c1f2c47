"""
Make the small world for a CPU: real models, human recordings of LJ Speech, and Wikipedia passages of
Spoken-SQuAD with their questions, which espeak-ng speaks in many voices.

    python -m data.small_cpu                                   # or --raw FOLDER --models FOLDER

download into <work>/raw/small_cpu, or pass --raw: no account is needed
    ljspeech/               metadata.csv and wavs/ (or wavs16k/) of LJ Speech 1.1, public domain
                            https://data.keithito.com/data/speech/LJSpeech-1.1.tar.bz2, 2.6 GB
    spoken_squad/           spoken_test-v1.1.json of https://github.com/Chia-Hsuan-Lee/Spoken-SQuAD, CC BY-SA 4.0
    LibriSpeech/            test-clean (data/librispeech.py); optional: a test with other readers
models in <work>/models, or pass --models: those that the page names
    hf download openai/whisper-base --local-dir work/models/whisper-base                                   MIT
    hf download HuggingFaceTB/SmolLM2-135M-Instruct --local-dir work/models/smollm2-135m-instruct          Apache-2.0

reads   `world` in the preset's page, and these
writes  <work>/rows/small_cpu/{train,dev,test,human,readers,closed,plain}.jsonl, <work>/audio/small_cpu/*.flac,
        <work>/models/whisper-base-12s, <work>/rows/small_cpu/config.json last

train   ASR rows of the human recordings (corpus small_cpu-human); of every spoken passage an ASR row, SQA rows of its
        questions, and as many unanswerable ones: questions about another article
dev, test, closed, plain      passages of articles and in voices that train does not have; closed and plain are
        constraints on the answer's form (data/speech_ifeval.py)
dev, human      every tenth human recording, in turn: no training sees them. readers: LibriSpeech's recordings
The texts of Spoken-SQuAD are what a recogniser wrote: lower case, without punctuation. The whole world is our choice.
"""
import glob
import os
import random

from data.librispeech import read_part
from data.recipe import (begin, download, finish_world, finished, missing_files, parser, refuse_missing, speech_rows,
                         world_of, write_recorded)
from data.speech_ifeval import write_world
from data.spokensquad import SPOKEN, read_squad
from data.tiny import speak_one
from speech_llm.files import text_lines
from speech_llm.prompts import NOT_ANSWERABLE

LJSPEECH = "unpack https://data.keithito.com/data/speech/LJSpeech-1.1.tar.bz2 (2.6 GB) and call its folder ljspeech"
HUB = {"whisper-base": "openai/whisper-base", "smollm2-135m-instruct": "HuggingFaceTB/SmolLM2-135M-Instruct"}
RATES = (150, 200)                          # words a minute of the passages
ACCENT = ("en-us",)                         # Whisper base has a WER of 26 with it, of 34 to 64 with British ones
VOICES = {                                  # of data/tiny.py's, those with a WER of at most 33 on two passages
    "train": ("m2", "m4", "m5", "m6", "m7", "f1", "Alex", "Annie", "Denis", "Gene", "Henrique", "Hugo", "Nguyen",
              "anika", "benjamin", "grandpa", "iven", "linda", "mike2", "quincy", "steph2"),
    "dev": ("m8", "zac"),
    "test": ("m3", "f4", "rob"),
}
HOLD_OUT = 10                               # every tenth human recording: in turn of dev and of human
CONSTRAINED = 10                            # test passages of closed and plain, three rows each
TEST_ARTICLES, DEV_ARTICLES = 4, 2          # of 48
WINDOW = 12                                 # seconds that the encoder reads at once: a third of the time of 30 s
FRAME_RATE = 50                             # Hz, Whisper's positions


def missing(work, raw="", models=""):
    """Return [(what is missing, how to mend it)]; the models are those of the page small_cpu."""
    raw, models = download(work, raw, "small_cpu"), models or os.path.join(work, "models")
    lacking = missing_files([os.path.join(raw, "ljspeech", "metadata.csv")], LJSPEECH)
    lacking += missing_files([os.path.join(raw, "spoken_squad", "spoken_test-v1.1.json")], SPOKEN)
    for name in model_names("small_cpu"):
        folder = os.path.join(models, name)
        lacking += missing_files([os.path.join(folder, "config.json")],
                                 f"run: hf download {HUB.get(name, name)} --local-dir {folder}; or name the folder of "
                                 "your models with --models")
    return lacking


def model_names(preset):
    """Return the names of the models below models/ that a page reads."""
    from speech_llm.constants import read_page
    common = read_page(preset)["common"]
    return [common[key].removeprefix("models/") for key in ("whisper", "llm")]


def shorten_window(folder, out, seconds):
    """Write a copy of the Whisper in a folder that reads so many seconds in place of 30: the first positions alone."""
    import torch
    from transformers import WhisperForConditionalGeneration
    whisper = WhisperForConditionalGeneration.from_pretrained(folder)
    whisper.config.max_source_positions = seconds * FRAME_RATE
    places = whisper.model.encoder.embed_positions
    places.weight = torch.nn.Parameter(places.weight[:seconds * FRAME_RATE].detach().clone(), requires_grad=False)
    whisper.save_pretrained(out)


# ---------------------------------------------------------------------------------------------------------------------
# human recordings
def read_ljspeech(folder, count):
    """Return [(name, path, text)] of the first `count` recordings of LJ Speech that are in a folder."""
    paths = sorted(glob.glob(os.path.join(glob.escape(folder), "wavs*", "*")))
    path_of = {os.path.splitext(os.path.basename(path))[0]: path for path in paths}
    recordings = []
    with open(os.path.join(folder, "metadata.csv"), "rb") as file:
        for number, line in enumerate(text_lines(file, file.name), 1):
            name, *texts = line.rstrip("\n").split("|")                   # id, text, text with its numbers as words
            if len(texts) != 2:
                raise SystemExit(f"{file.name}, line {number}: expected id|text|text; {LJSPEECH}")
            if name in path_of:
                recordings.append((name, path_of[name], texts[1].strip()))
    return recordings[:count]


def human_rows(raw, count):
    """Return {split: ASR rows} of the human recordings."""
    splits = {"train": [], "dev": [], "human": []}
    for number, (name, path, text) in enumerate(read_ljspeech(os.path.join(raw, "ljspeech"), count), 1):
        split = "train" if number % HOLD_OUT else "human" if number // HOLD_OUT % 2 else "dev"
        splits[split] += speech_rows(f"small_cpu-human/{name}", {"audio": path}, text, {})
    folders = sorted(glob.glob(os.path.join(glob.escape(raw), "**", "test-clean"), recursive=True))[:1]
    readers = [row for folder in folders for name, path, text in read_part(folder) if os.path.isfile(path) and text
               for row in speech_rows(f"small_cpu-human/{name}", {"audio": path}, text.lower(), {})]
    return {**splits, **({"readers": readers} if readers else {})}


# ---------------------------------------------------------------------------------------------------------------------
# spoken passages
def cut_passages(context, longest):
    """Return [(start, passage)] of a paragraph: whole sentences, together at most `longest` words."""
    passages, start, place = [], 0, 0
    for sentence in context.split(". "):
        end = place + len(sentence)
        if len(context[start:end].split()) > longest:
            start = place
        if len(sentence.split()) <= longest:
            if passages and passages[-1][0] == start:
                passages.pop()
            passages.append((start, context[start:end]))
        else:
            start = end + 2
        place = end + 2
    return passages


def read_passages(path, longest):
    """Return {article: [(passage, [(question, answer)])]} of Spoken-SQuAD; passages without a question are left out."""
    paragraphs, articles = {}, {}
    for entry in read_squad(path, SPOKEN):
        if entry["answers"] and entry["question"]:
            answer, start = entry["answers"][0]
            paragraphs.setdefault((entry["theme"], entry["paragraph"], entry["context"]), []).append(
                (start, entry["question"], answer.strip()))
    for (theme, _, context), questions in paragraphs.items():
        for first, passage in cut_passages(context, longest):
            inside = [(question, answer) for start, question, answer in questions
                      if answer and first <= start and start + len(answer) <= first + len(passage)]
            if inside:
                articles.setdefault(theme, []).append((passage, inside))
    return articles


def passage_rows(utterance, audio, passage, questions, others):
    """Return the rows of a spoken passage: ASR, SQA, and SQA of questions about `others`, which have no answer here."""
    rows = [{**row, "answerable": True} for row in speech_rows(utterance, {"audio": audio}, passage, {})]
    base = {**rows[0], "task": "SQA"}
    for number, (question, answer) in enumerate(questions):
        rows.append({**base, "id": f"{utterance}/SQA-{number}.en", "question": question, "target": answer})
    for number, question in enumerate(others):
        rows.append({**base, "id": f"{utterance}/SQA-invalid-{number}.en", "question": question, "answerable": False,
                     "target": NOT_ANSWERABLE["en"]})
    return rows


def spoken_rows(work, articles, world, seed):
    """Return ({split: rows}, jobs of speak_one) of the passages of {article: [(passage, questions)]}."""
    rng, themes = random.Random(seed), sorted(articles)
    held_out = TEST_ARTICLES + DEV_ARTICLES
    parts = {"test": themes[:TEST_ARTICLES], "dev": themes[TEST_ARTICLES:held_out], "train": themes[held_out:]}
    splits, jobs = {}, []
    for split, names in parts.items():
        passages = [(name, *item) for name in names for item in articles[name]]
        splits[split] = []
        for number, (name, passage, questions) in enumerate(rng.sample(passages, min(world[split], len(passages)))):
            audio = os.path.join(work, "audio", "small_cpu", f"{split}-{number:05d}.flac")
            jobs.append((audio, passage, rng.choice(VOICES[split]), rng.getrandbits(32), ACCENT, RATES))
            strangers = [item for other in names if other != name for _, asked in articles[other] for item in asked]
            others = [question for question, _ in rng.sample(strangers, min(len(questions), len(strangers)))]
            splits[split] += passage_rows(f"small_cpu/{split}-{number:05d}", audio, passage, questions, others)
    return splits, jobs


def main(argv=None):
    command = parser(__doc__)
    command.add_argument("--preset", default="small_cpu", help="a page of config/, or the path of another page")
    command.add_argument("--seed", type=int, default=0, help="of passages, voices and unanswerable questions")
    command.add_argument("--raw", default="", help="folder of the downloads; <work>/raw/small_cpu if not given")
    command.add_argument("--models", default="", help="folder of the models; <work>/models if not given")
    args = command.parse_args(argv)
    work, raw = args.work, download(args.work, args.raw, "small_cpu")
    settings = {"seed": args.seed, **world_of(args.preset, "small_cpu")}
    if finished(work, "small_cpu", settings):
        return
    refuse_missing("small_cpu", missing(work, raw, args.models))
    begin(work, "small_cpu", settings)
    if args.models:                                              # the stages look for models below work
        os.makedirs(os.path.join(work, "models"), exist_ok=True)
        for name in model_names(args.preset):
            link = os.path.join(work, "models", name)
            if not os.path.exists(link):
                os.symlink(os.path.abspath(os.path.join(args.models, name)), link)
    whisper = os.path.join(work, "models", model_names(args.preset)[0])
    shorten_window(whisper, f"{whisper}-{WINDOW}s", WINDOW)
    articles = read_passages(os.path.join(raw, "spoken_squad", "spoken_test-v1.1.json"), settings["words"])
    splits, jobs = spoken_rows(work, articles, settings, args.seed)
    human = human_rows(raw, settings["human"])
    # one question of either kind a passage: a CPU has to answer them, system by system
    splits["test"] = [row for row in splits["test"] if row["id"].endswith(("/ASR.en", "-0.en"))]
    splits |= {split: rows + splits.get(split, []) for split, rows in human.items()}
    write_recorded(work, "small_cpu", splits, speak_one, jobs, "speak")
    write_world(work, "small_cpu", splits["test"][:3 * CONSTRAINED])
    finish_world(work, args.preset, "small_cpu", settings, splits)


if __name__ == "__main__":
    main()
