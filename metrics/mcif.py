"""
MCIF and the IWSLT instruction-following tasks: the XML that is submitted, and the official scores (2026, Table 4).

    write_output("out.xml", "NLE.IWSLT26", {"mcif/short/de/7": "Ja."})                        # row id: answer
    official_scores("out.xml", "MCIF.short.de.ref.xml.gz", "de", load_comet=..., load_bertscore=...)
    -> {"TRANS-COMET": 0.765, "QA-BERTScore": 0.47}, {}       # fractions, as the server's; then what is left out

ASR-WER         a talk's answers, each normalised as Whisper does, joined by spaces, against the whole transcript of the
                talk; over all talks. It needs whisper-normalizer==0.1.0: the organisers' 0.0.10 fetches its spelling
                table from the network whenever it is used, 0.1.0 contains it and has the same rules, newer ones differ
TRANS-COMET     COMET of a talk's answers, cut into a piece for each sentence of the reference (metrics/resegment.py)
QA-BERTScore    F1, rescaled; SUM-BERTScore the same
QE-accuracy, QE-format-accuracy
                the 2026 surprise task, a choice among options. The organisers' scorer is not public; this one is our
                choice. An answer is well formed if it equals an answer of the reference, except for case, spaces and a
                full stop; accuracy is the share of right ones among the well-formed answers, because Table 4 has an
                accuracy of 33 % where 0.5 % are well formed

The task names of MCIF (TRANS, QA, SUM) and of IWSLT 2025 (ST, SQA, SSUM) are both read. Files may be gzipped. Damaged
files and missing or doubled ids end the program (SystemExit) with the file and the id.
"""
import gzip
import os
import re
import zlib
from collections import defaultdict
from xml.etree import ElementTree

from metrics.error_rates import word_error_rate
from metrics.resegment import resegment
from speech_llm.files import replace_file
from speech_llm.normalize import nfc


LARGEST = 2**27                             # bytes of an XML file, unpacked: 300 times the largest known (our choice)
NOT_XML = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")     # XML 1.0 forbids these, even escaped
TASKS = {"ST": "TRANS", "SQA": "QA", "SSUM": "SUM"}                            # IWSLT 2025 -> MCIF


# --- The files.

def read_xml(path):
    """Return the root element of a file, plain or gzipped. SystemExit if it is damaged, large or declares entities."""
    if not os.path.isfile(path):
        raise SystemExit(f"{path} is missing")
    try:
        with open(path, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with (gzip.open if packed else open)(path, "rb") as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise ValueError(f"more than {LARGEST >> 20} MB")
        text = content.decode("utf-8-sig")
        if re.search("<!(DOCTYPE|ENTITY)", text):       # without these no entity can grow without end
            raise ValueError("it declares a document type")
        return ElementTree.fromstring(text)
    except (ValueError, EOFError, OSError, zlib.error, ElementTree.ParseError) as error:
        raise SystemExit(f"{path} is no test set or output of one ({error}); get it again") from None


def read_samples(path):
    """Return {(track, language): {id: sample element}} of a definition, an output or a reference, in its order."""
    tasks = {}
    for task in read_xml(path).iter("task"):
        samples = tasks.setdefault((task.get("track"), task.get("text_lang")), {})
        for sample in task.iter("sample"):
            if not sample.get("id") or sample.get("id") in samples:
                raise SystemExit(f"{path}: sample id {sample.get('id')!r} is missing or there twice; get it again")
            samples[sample.get("id")] = sample
    return tasks


def samples_of(path, track, language):
    """Return {id: sample element} of one task of a file. SystemExit with the tasks of the file if it has another."""
    tasks = read_samples(path)
    if (track, language) not in tasks:
        raise SystemExit(f"{path} has no task {track} {language}, only {sorted(map(str, tasks))}")
    return tasks[track, language]


def read_output(path, track, language):
    """Return {id: answer} of one task of an output, in NFC; an empty element is an empty answer."""
    return {name: nfc(sample.text or "").strip() for name, sample in samples_of(path, track, language).items()}


def read_references(path, track, language):
    """
    Return [{"task": "TRANS", "ids": [...], "audio": [...], "reference", "transcript", "qa_type"}] of one task of a
    reference file. ASR and TRANS have one entry for a talk with all its samples; each line of the reference and of the
    transcript is a sentence.
    """
    references = []
    for ids, sample in samples_of(path, track, language).items():
        text = {part: sample.findtext(part) or "" for part in ("reference", "audio_path", "metadata/transcript")}
        names, audio, task = ids.split(","), text["audio_path"].split(","), sample.get("task")
        if not text["reference"].strip() or not task or len(names) != len(audio):
            raise SystemExit(f"{path}: sample {ids[:20]} has no reference, no task or not one recording an id; this is "
                             "no reference file")
        references.append({"task": TASKS.get(task, task), "ids": names, "audio": audio,
                           "reference": nfc(text["reference"]), "transcript": nfc(text["metadata/transcript"]),
                           "qa_type": sample.get("qa_type", "")})
    return references


def write_output(path, name, answers):
    """
    Write the XML to submit, with one task for each track and language, from answers {row id of data/mcif.py: text}.
    `name` is the submission's. Characters that XML cannot hold become spaces; return and print in how many answers.
    """
    root, tasks, broken = ElementTree.Element("testset", name=name, type="output"), {}, 0
    for row_id, answer in answers.items():
        *_, track, language, sample = row_id.split("/")
        if (track, language) not in tasks:
            tasks[track, language] = ElementTree.SubElement(root, "task", track=track, text_lang=language)
        clean = NOT_XML.sub(" ", answer)
        broken += clean != answer
        ElementTree.SubElement(tasks[track, language], "sample", id=sample).text = clean.strip()
    ElementTree.indent(root)
    with replace_file(path) as temporary:
        ElementTree.ElementTree(root).write(temporary, encoding="utf-8", xml_declaration=True)
    print(f"{path}: {len(answers)} answers, {broken} of them with characters that XML cannot hold")
    return broken


# --- The scores of answers {id: text} against the references of one task.

def english_normalizer():
    """Return Whisper's normalisation of English as a function of a text. ImportError says what to install."""
    try:
        from whisper_normalizer.english import EnglishTextNormalizer
        normalize = EnglishTextNormalizer()
    except (ImportError, OSError):          # 0.0.10 without a network
        normalize = None
    if not normalize or normalize("kinda") != "kinda":          # newer versions write "kind of"
        raise ImportError("Whisper's normalisation is missing or another; run: pip install whisper-normalizer==0.1.0")
    return normalize


def talk_error_rate(answers, talks, normalize):
    """Return word errors over reference words of all talks; each answer is normalised before the talk is joined."""
    return word_error_rate([normalize(talk["reference"]) for talk in talks],
                           [" ".join(normalize(answers[name]) for name in talk["ids"]) for talk in talks]) / 100


def sentence_items(answers, talks, language):
    """Return [source, translation, reference] for every reference sentence; Chinese answers are cut by characters."""
    items = []
    for talk in talks:
        sources, references = talk["transcript"].split("\n"), talk["reference"].split("\n")
        if len(sources) != len(references):
            raise SystemExit(f"samples {talk['ids'][0]} to {talk['ids'][-1]}: {len(references)} lines of reference, "
                             f"{len(sources)} of transcript")
        pieces = resegment("\n".join(answers[name] for name in talk["ids"]), references, characters=language == "zh")
        items += [[text.strip() for text in item] for item in zip(sources, pieces, references)]
    return items


def option_accuracy(answers, references):
    """Return (accuracy of the well-formed answers, share of well-formed answers), as the docstring above has them."""
    def bare(text):
        return text.strip().rstrip(".。").strip().casefold()
    pairs = [(bare(answers[one["ids"][0]]), bare(one["reference"])) for one in references]
    options = {right for _, right in pairs}
    formed = [(answer, right) for answer, right in pairs if answer in options]
    return sum(answer == right for answer, right in formed) / max(len(formed), 1), len(formed) / len(pairs)


def official_scores(output, reference, language, track="short", load_comet=None, load_bertscore=None):
    """
    Return ({metric: fraction}, {metric: why it is left out}) of one language of an output against a reference file.

    load_comet() returns a function from [source, translation, reference] items to scores, load_bertscore() one from
    [prediction, reference] pairs; both raise ImportError or OSError if a package or weights are missing. SystemExit if
    some samples of a task are not in the output; a task of which none is there is left out.
    """
    answers = read_output(output, track, language)
    tasks = defaultdict(list)
    for one in read_references(reference, track, language):
        tasks[one["task"]].append(one)
    absent = {task: [name for one in references for name in one["ids"] if name not in answers]
              for task, references in tasks.items()}
    unanswered = {task for task in tasks if len(absent[task]) == sum(len(one["ids"]) for one in tasks[task])}
    for task, names in absent.items():
        if names and (task not in unanswered or len(unanswered) == len(tasks)):
            raise SystemExit(f"{output} lacks sample {names[0]} of {track} {language}, which {reference} has")

    def mean(load, items):
        if not load:
            raise ImportError("no model was given to score it")
        values = load()(items)
        return sum(values) / len(values)

    def pairs(references):
        return [[answers[one["ids"][0]], one["reference"]] for one in references]

    scorers = {  # task: (its metrics, the function from its references to their values)
        "ASR": (["ASR-WER"], lambda talks: [talk_error_rate(answers, talks, english_normalizer())]),
        "TRANS": (["TRANS-COMET"], lambda talks: [mean(load_comet, sentence_items(answers, talks, language))]),
        "QA": (["QA-BERTScore"], lambda questions: [mean(load_bertscore, pairs(questions))]),
        "SUM": (["SUM-BERTScore"], lambda talks: [mean(load_bertscore, pairs(talks))]),
        "QE": (["QE-accuracy", "QE-format-accuracy"], lambda choices: option_accuracy(answers, choices)),
    }
    scores, left_out = {}, {}
    for task, references in tasks.items():
        if task not in scorers:
            left_out[task] = "a task that is not scored here"
            continue
        names, score = scorers[task]
        if task in unanswered:                           # SeamlessM4T answers no questions
            left_out |= dict.fromkeys(names, f"{output} has no answer to {task} in {language}")
            continue
        try:
            scores |= dict(zip(names, score(references)))
        except (ImportError, OSError, ValueError) as error:            # ValueError: nothing is left of all references
            left_out |= dict.fromkeys(names, str(error))
    return scores, left_out
