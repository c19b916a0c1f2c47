"""
MCIF, talks at ACL with questions about them, and the IWSLT instruction-following tests like it: the short track.

    python -m data.mcif                             # or --raw folder, where the download lies elsewhere

download into <work>/raw/mcif, from https://huggingface.co/datasets/FBK-MT/MCIF (CC BY 4.0; of its 7.6 GiB only these)
    short_fixedprompt/*.parquet         what is asked (pip install pyarrow), or the same as XML, as shared tasks release
                                        it: *.src.fixedprompts.xml, or any other name, in one file or several
    MCIF_DATA/SHORT_AUDIOS/*.wav        the recordings, anywhere below the folder
    MCIF.short.<language>.ref.xml.gz    the references, where they are published; .xml will do
        hf download FBK-MT/MCIF --repo-type dataset --local-dir work/raw/mcif
            --include "short_fixed*" "MCIF.short.*" "MCIF_DATA/SHORT_AUDIOS/*"

reads   these
writes  <work>/rows/mcif/test.jsonl, counts.md, dropped.txt, config.json last

The organisers' instructions become our own prompts (2025, section 6): a row holds the task, and of a question the
question alone. The mixed wordings may lie there too: they must turn out to ask the same. What is neither a
transcription, a translation nor a question is the surprise task, an MCQ row with the whole instruction (2026, Table 7).
Row ids end in track, language and sample id: metrics/mcif.py writes the XML to submit from them.

There are no transcripts, and no references of single segments: "-" stands in their place. So the scores of ASR and ST
mean nothing, and of all tasks where no references lie there; the official ones (metrics/mcif.py) do. A sample whose
recording is missing keeps its row: its answer will be empty, but it must be submitted.
"""
import glob
import os
import re
from collections import Counter, defaultdict

from data.recipe import finish, finished, parser, report, unreadable
from metrics.mcif import read_references, read_samples
from speech_llm.rows import LANGUAGES, write_rows


DOWNLOAD = "download it from https://huggingface.co/datasets/FBK-MT/MCIF"
NOTHING = "-"                               # where a row needs a text that a test does not have
OURS = {"ASR": "ASR", "TRANS": "ST", "QA": "SQA", "QE": "MCQ"}     # the tasks of references
SEGMENTS, QUESTIONS, UNANSWERABLE = 670, 220, 25                   # of each language; MCIF 0.2

# What all wordings of a task share: they name English; a request to answer ends in a colon, and its question follows;
# the others have no colon and name what they want.
ENGLISH = {"en": "english", "de": "englisch", "it": "inglese", "zh": "英"}
ANSWER = {"en": "answer|respon|repl", "de": "antwort", "it": "rispo", "zh": "答"}
REQUEST = {"en": ("ASR", "transcri|writ|text"), "de": ("ST", "deutsch"), "it": ("ST", "italian"), "zh": ("ST", "中文|汉语")}


def understand(instruction, language):
    """An instruction of the organisers -> (task, question or None, wording: what is left without the question)."""
    text = instruction.strip()
    wording, colon, question = re.fullmatch("([^:：\n]*)([:：]?)(.*)", text, re.DOTALL).groups()
    task, wanted = REQUEST[language]
    if ENGLISH[language] in wording.lower() and "\n" not in text:
        if colon and question.strip() and re.search(ANSWER[language], wording.lower()):
            return "SQA", question.strip(), wording
        if not colon and re.search(wanted, wording.lower()):
            return task, None, wording
    return "MCQ", text, text


# --- Input.

def files_below(raw):
    return sorted(glob.glob(os.path.join(glob.escape(raw), "**", "*"), recursive=True))


def read_definition(path):
    """What a test asks, XML or parquet -> [(track, language, sample id, path of the recording, instruction)]."""
    if path.endswith(".parquet"):
        return read_table(path)
    return [(track, language, name, sample.findtext("audio_path"), sample.findtext("instruction"))
            for (track, language), samples in read_samples(path).items() for name, sample in samples.items()]


def read_table(path):
    """The same of the hub's parquet. Its folder names the track; its columns are id, audio, prompt_<language>."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise SystemExit(f"reading {path} needs the package pyarrow; run: pip install pyarrow") from None
    track = "long" if os.path.basename(os.path.dirname(path)).startswith("long") else "short"
    try:
        lines = parquet.read_table(path).to_pylist()
        return [(track, language, str(line["id"]), line["audio"], line[f"prompt_{language}"])
                for language in LANGUAGES for line in lines if line[f"prompt_{language}"]]
    except (ArrowException, OSError, KeyError) as error:
        raise SystemExit(f"{path} is damaged, or has other columns ({error}); {DOWNLOAD}") from None


def read_definitions(raw, dropped):
    """
    All definitions below `raw` -> {(language, sample id): (recording, task, question)}, of the short track. Prints how
    their instructions were understood; SystemExit if a file defines nothing, or two files disagree.
    """
    asked, wordings = {}, defaultdict(Counter)
    for path in files_below(raw):
        if not path.endswith((".xml", ".parquet")) or ".ref." in os.path.basename(path):
            continue
        for track, language, name, recording, instruction in read_definition(path):
            if language not in LANGUAGES or not re.fullmatch(r"[\w-]+", name) or not recording or not (
                    instruction or "").strip():
                raise SystemExit(f"{path}: sample {name!r} in {language!r} has no audio_path or no instruction, or an "
                                 "id or language unlike others; this is no test definition")
            if track != "short":
                dropped.append(("test", f"mcif/{track}/{language}/{name}", f"the {track} track"))
                continue
            task, question, wording = understand(instruction, language)
            sample = os.path.basename(recording), task, question
            if asked.setdefault((language, name), sample) != sample:
                raise SystemExit(f"{path}: sample {name} in {language} is {sample}, in an earlier file it is "
                                 f"{asked[language, name]}; keep one test in {raw}")
            wordings[task, language][wording] += 1
    if not asked:
        raise SystemExit(f"no definition of a short track, XML or parquet, below {raw}; {DOWNLOAD}")
    for (task, language), counts in sorted(wordings.items()):
        (most, _), = counts.most_common(1)
        print(f"{task} {language}: {counts.total()} instructions in {len(counts)} wordings, such as {most[:70]!r}")
    return asked


def read_answers(raw):
    """{(language, sample id): (recording, task, reference, qa_type)} of the languages that have references."""
    known = {}
    for language in LANGUAGES:
        paths = [path for path in files_below(raw) if re.search(rf"\.short\.{language}\.ref\.xml(\.gz)?$", path)]
        if len(paths) > 1:
            raise SystemExit(f"{' and '.join(paths)}: two references of one test; keep one")
        for one in read_references(paths[0], "short", language) if paths else []:
            for name, recording in zip(one["ids"], one["audio"], strict=True):
                known[language, name] = recording, OURS.get(one["task"]), one["reference"], one["qa_type"]
    return known


# --- Rows.

def make_rows(asked, known, raw):
    """The rows of all samples, in the definitions' order."""
    paths, rows = {os.path.basename(path): path for path in files_below(raw)}, []
    for (language, name), (recording, task, question) in asked.items():
        row = {"id": f"mcif/short/{language}/{name}", "utterance": f"mcif/{os.path.splitext(recording)[0]}",
               "audio": paths.get(recording, os.path.join(raw, recording)), "task": task, "language": language,
               "transcript": NOTHING, "target": NOTHING}
        if question:
            row["question"] = question
        if (language, name) in known:
            *truth, reference, qa_type = known[language, name]
            if truth != [recording, task]:
                raise SystemExit(f"row {row['id']} is {task} on {recording}, its reference {truth[1]} on {truth[0]}: "
                                 "they are of two versions, or this wording of the task is not known here")
            if question:                    # an answer; the reference of a segment would be that of its whole talk
                row |= {"target": reference, "answerable": qa_type != "NA"}
        rows.append(row)
    return rows


def main(argv=None):
    args = parser(__doc__, "mcif").parse_args(argv)
    raw = args.raw or os.path.join(args.work, "raw", "mcif")
    settings = {"raw": raw}
    if finished(args.work, "mcif", settings):
        return
    dropped, known = [], read_answers(raw)
    rows = make_rows(read_definitions(raw, dropped), known, raw)
    write_rows(os.path.join(args.work, "rows", "mcif", "test.jsonl"), rows)
    broken = unreadable(sorted({row["audio"] for row in rows}))
    for path in sorted(broken)[:10]:
        print(f"  {path}: {broken[path]}")
    print(f"{len(broken)} recordings cannot be read; their rows stay, and get empty answers")
    paper = {}
    for language in LANGUAGES:
        unanswerable = UNANSWERABLE if any(of == language for of, _ in known) else 0
        paper |= {("test", "ASR en" if language == "en" else f"ST/MT {language}"): SEGMENTS,
                  ("test", f"SQA/QA {language}"): QUESTIONS - unanswerable}
        if unanswerable:
            paper["test", f"SQA/QA {language} invalid"] = unanswerable
    report(args.work, "mcif", {"test": rows}, paper, dropped)
    finish(args.work, "mcif", settings)
    print(f"rows in {args.work}/rows/mcif\nnext: python extract_features.py --preset iwslt26 --corpora mcif")


if __name__ == "__main__":
    main()
