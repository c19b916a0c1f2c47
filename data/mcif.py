"""
Make the rows of MCIF, talks at ACL with questions about them, and of the IWSLT instruction-following tests like it: the
short track.

    python -m data.mcif                             # or --raw FOLDER, where the download is elsewhere
    python -m data.mcif --corpus iwslt26            # the official test of 2026, IFSHORT26 (2026, Table 4)

download into <work>/raw/mcif, from https://huggingface.co/datasets/FBK-MT/MCIF (CC BY 4.0; of its 7.6 GiB only these)
    short_fixedprompt/*.parquet         the instructions (pip install pyarrow), or the same as XML, as shared tasks
                                        release them: *.src.fixedprompts.xml, or any other name, in one file or several
    MCIF_DATA/SHORT_AUDIOS/*.wav        the recordings, anywhere below the folder
    MCIF.short.<language>.ref.xml.gz    the references, where they are published; .xml will do
        hf download FBK-MT/MCIF --repo-type dataset --local-dir work/raw/mcif
            --include "short_fixed*" "MCIF.short.*" "MCIF_DATA/SHORT_AUDIOS/*"
download into <work>/raw/iwslt26, from https://speechm.cloud.cyfronet.pl, IFSHORT26 under "Test sets" (needs a login):
the XML of every language and the recordings, in the same layout. No references are public: the server scores the XML
that infer.py writes. With references, named as MCIF's, eval.py scores it

reads   these
writes  <work>/rows/<corpus>/test.jsonl, counts.md, dropped.txt, config.json last

The organisers' instructions become our prompts (2025, section 6): a row holds the task, and of a question the question
alone. Several wordings of an instruction may be there: the recipe checks that they ask the same. An
instruction that is no transcription, no translation and no question is the surprise task, an MCQ row with the whole
instruction (2026, Table 7). Row ids end in track, language and sample id: metrics/mcif.py writes the XML to submit from
them.

There are no transcripts, and no references of single segments: "-" stands in their place. The scores of ASR and ST rows
therefore mean nothing, nor do those of any task without references; the official ones (metrics/mcif.py) do. A sample
whose recording is missing keeps its row: its answer will be empty, but it must be submitted.
"""
import glob
import os
import re
from collections import Counter, defaultdict

from data.recipe import (begin, download, finish, finished, limited, missing_packages, parser, print_unreadable,
                         refuse_missing, report, spread)
from metrics.mcif import read_references, read_samples
from speech_llm.rows import LANGUAGES, write_rows


DOWNLOAD = {"mcif": "download it from https://huggingface.co/datasets/FBK-MT/MCIF",
            "iwslt26": "log in at https://speechm.cloud.cyfronet.pl and download the test set IFSHORT26"}
NOTHING = "-"                               # where a row needs a text that a test does not have
OURS = {"ASR": "ASR", "TRANS": "ST", "QA": "SQA", "QE": "MCQ"}     # the tasks of references
SEGMENTS, QUESTIONS, UNANSWERABLE = 670, 220, 25                   # of each language; MCIF 0.2

# What all wordings of a task share: they name English. A request to answer ends in a colon, after which the question
# stands. Requests to transcribe or translate have no colon and name the form or the language that they want.
ENGLISH = {"en": "english", "de": "englisch", "it": "inglese", "zh": "英"}
ANSWER = {"en": "answer|respon|repl", "de": "antwort", "it": "rispo", "zh": "答"}
REQUEST = {"en": ("ASR", "transcri|writ|text"), "de": ("ST", "deutsch"), "it": ("ST", "italian"), "zh": ("ST", "中文|汉语")}


def understand(instruction, language):
    """Return (task, question or None, wording: the text without the question) of an instruction of the organisers."""
    text = instruction.strip()
    wording, colon, question = re.fullmatch("([^:：\n]*)([:：]?)(.*)", text, re.DOTALL).groups()
    task, wanted = REQUEST[language]
    if ENGLISH[language] in wording.lower() and "\n" not in text:
        if colon and question.strip() and re.search(ANSWER[language], wording.lower()):
            return "SQA", question.strip(), wording
        if not colon and re.search(wanted, wording.lower()):
            return task, None, wording
    return "MCQ", text, text


def missing(work, raw="", corpus="mcif"):
    """Return [(what is missing, how to mend it)]; empty if the recipe can run."""
    raw = download(work, raw, corpus)
    paths = definitions(raw)
    absent = [] if paths else [(f"a definition of a short track, XML or parquet, below {raw}", DOWNLOAD[corpus])]
    return absent + (missing_packages("pyarrow") if any(path.endswith(".parquet") for path in paths) else [])


# --- Input.

def files_below(raw):
    """Return the paths of all files below a folder, sorted."""
    return sorted(glob.glob(os.path.join(glob.escape(raw), "**", "*"), recursive=True))


def definitions(raw):
    """Return the paths of the files below `raw` that define a test: XML or parquet, but no references."""
    return [path for path in files_below(raw)
            if path.endswith((".xml", ".parquet")) and ".ref." not in os.path.basename(path)]


def read_definition(path, corpus):
    """Return [(track, language, sample id, path of the recording, instruction)] of a definition, XML or parquet."""
    if path.endswith(".parquet"):
        return read_table(path, corpus)
    return [(track, language, name, sample.findtext("audio_path"), sample.findtext("instruction"))
            for (track, language), samples in read_samples(path).items() for name, sample in samples.items()]


def read_table(path, corpus):
    """Return the same of the hub's parquet, whose folder names the track; columns: id, audio, prompt_<language>."""
    from pyarrow import ArrowException, parquet
    track = "long" if os.path.basename(os.path.dirname(path)).startswith("long") else "short"
    try:
        lines = parquet.read_table(path).to_pylist()
        return [(track, language, str(line["id"]), line["audio"], line[f"prompt_{language}"])
                for language in LANGUAGES for line in lines if line[f"prompt_{language}"]]
    except (ArrowException, OSError, KeyError) as error:
        raise SystemExit(f"{path} is damaged, or has other columns ({error}); {DOWNLOAD[corpus]}") from None


def read_definitions(raw, dropped, corpus="mcif"):
    """
    Return {(language, sample id): (recording, task, question)} of all definitions of the short track below `raw`. Print
    how their instructions were understood. SystemExit if a file defines nothing, or two files disagree.
    """
    asked, wordings = {}, defaultdict(Counter)
    for path in definitions(raw):
        for track, language, name, recording, instruction in read_definition(path, corpus):
            if language not in LANGUAGES or not re.fullmatch(r"[\w-]+", name) or not recording or not (
                    instruction or "").strip():
                raise SystemExit(f"{path}: sample {name!r} in {language!r} has no audio_path or no instruction, or an "
                                 "id or language unlike others; this is no test definition")
            if track != "short":
                dropped.append(("test", f"{corpus}/{track}/{language}/{name}", f"the {track} track"))
                continue
            task, question, wording = understand(instruction, language)
            sample = os.path.basename(recording), task, question
            if asked.setdefault((language, name), sample) != sample:
                raise SystemExit(f"{path}: sample {name} in {language} is {sample}, in an earlier file it is "
                                 f"{asked[language, name]}; keep one test in {raw}")
            wordings[task, language][wording] += 1
    if not asked:
        raise SystemExit(f"no definition of a short track, XML or parquet, below {raw}; download it again")
    for (task, language), counts in sorted(wordings.items()):
        (most, _), = counts.most_common(1)
        print(f"{task} {language}: {counts.total()} instructions in {len(counts)} wordings, such as {most[:70]!r}")
    return asked


def read_answers(raw):
    """Return {(language, sample id): (recording, task, reference, qa_type)} of the languages that have references."""
    answers = {}
    for language in LANGUAGES:
        paths = [path for path in files_below(raw) if re.search(rf"\.short\.{language}\.ref\.xml(\.gz)?$", path)]
        if len(paths) > 1:
            raise SystemExit(f"{' and '.join(paths)}: two references of one test; keep one")
        for sample in read_references(paths[0], "short", language) if paths else []:
            for name, recording in zip(sample["ids"], sample["audio"], strict=True):
                answers[language, name] = (recording, OURS.get(sample["task"]), sample["reference"], sample["qa_type"])
    return answers


# --- Rows.

def make_rows(asked, answers, raw, corpus="mcif"):
    """Return the rows of all samples, in the definitions' order. SystemExit if a reference is of another sample."""
    paths, rows = {os.path.basename(path): path for path in files_below(raw)}, []
    for (language, name), (recording, task, question) in asked.items():
        row = {"id": f"{corpus}/short/{language}/{name}", "utterance": f"{corpus}/{os.path.splitext(recording)[0]}",
               "audio": paths.get(recording, os.path.join(raw, recording)), "task": task, "language": language,
               "transcript": NOTHING, "target": NOTHING}
        if question:
            row["question"] = question
        if (language, name) in answers:
            *truth, reference, qa_type = answers[language, name]
            if truth != [recording, task]:
                raise SystemExit(f"row {row['id']} is {task} on {recording}, its reference {truth[1]} on {truth[0]}: "
                                 "they are of two versions, or this wording of the task is not known here")
            if question:                    # an answer; the reference of a segment would be that of its whole talk
                row |= {"target": reference, "answerable": qa_type != "NA"}
        rows.append(row)
    return rows


def expected(answers):
    """Return {(split, kind): count} of MCIF 0.2; unanswerable questions are known only where there are references."""
    counts = {}
    for language in LANGUAGES:
        unanswerable = UNANSWERABLE if any(key[0] == language for key in answers) else 0
        counts |= {("test", "ASR en" if language == "en" else f"ST/MT {language}"): SEGMENTS,
                   ("test", f"SQA/QA {language}"): QUESTIONS - unanswerable}
        if unanswerable:
            counts["test", f"SQA/QA {language} invalid"] = unanswerable
    return counts


def main(argv=None):
    command = parser(__doc__, "mcif")
    command.add_argument("--corpus", default="mcif", choices=list(DOWNLOAD))
    args = command.parse_args(argv)
    work, corpus, raw = args.work, args.corpus, download(args.work, args.raw, args.corpus)
    settings = {"raw": raw, **limited(args)}
    if finished(work, corpus, settings):
        return
    refuse_missing(corpus, missing(work, raw, corpus), args.check)
    begin(work, corpus, settings)
    dropped, answers = [], read_answers(raw)
    rows = make_rows(read_definitions(raw, dropped, corpus), answers, raw, corpus)
    if args.limit:                              # every sample needs an answer, which is empty without a recording
        recordings = {*spread(dict.fromkeys(row["audio"] for row in rows), args.limit)}
        rows = [row if row["audio"] in recordings else {**row, "audio": os.path.join(raw, "beyond --limit")}
                for row in rows]
    write_rows(os.path.join(work, "rows", corpus, "test.jsonl"), rows)
    print_unreadable(sorted({row["audio"] for row in rows}))
    report(work, corpus, {"test": rows}, {} if args.limit or corpus != "mcif" else expected(answers), dropped,
           args.incomplete)
    finish(work, corpus, settings, preset="iwslt26" if corpus == "mcif" else "iwslt26_test")


if __name__ == "__main__":
    main()
