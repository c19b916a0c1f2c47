"""
Make the rows of Speech-IFEval: instructions on speech whose form can be checked, which show what an LLM forgets when it
learns to listen (arXiv 2505.19037).

    python -m data.speech_ifeval                    # or --raw folder, where the download is elsewhere

download into <work>/raw/speech_ifeval (or --raw); data/README.md says more
    eval_data/*.jsonl           data/eval_data of https://github.com/kehanlu/Speech-IFEval, or a clone of it
    audios/<dataset>/<file>     audios.tar of https://huggingface.co/datasets/kehanlu/Speech-IFEval, unpacked beside it

reads   these
writes  <work>/rows/speech_ifeval/{closed,plain,creative,cot}.jsonl, counts.md, dropped.txt, config.json last

closed      933 questions about speech with a constraint on the answer's form; plain: the same without the constraint
creative    400 requests to write something, with a constraint; cot: 200 questions to be answered with reasoning

A row is SQA with the whole instruction as its question. Its id is the benchmark's, from which metrics/speech_ifeval.py
finds constraint and label; EM and a judge's scores of these rows mean little. Its transcript is the benchmark's, with
times, the speaker's gender and emotion: the system "llm" reads it, and forgetting is measured against that system.

Where we leave the benchmark: its prompt is "Speech Input: {transcript}", a blank line and the instruction, below the
system turn "Follow the given instructions."; ours is the project's, without a system turn and with the instruction on
one line, so that the newline between task and constraint becomes a space. Its systems write up to 2048 tokens. A
recording that cannot be read keeps its row: its answer is empty and obeys nothing.

The toy worlds (data/tiny.py and others) have such questions, closed and plain, on their own test utterances. Their
LLM learns the four CONSTRAINTS from text; no stage shows them again, so that forgetting can be measured.
"""
import os

from data.recipe import (ENOUGH, begin, download, finish, finished, limited, missing_files, parser, print_unreadable,
                         refuse_incomplete, refuse_missing, report, spread)
from metrics.speech_ifeval import GROUPS, item_id, questions_folder, read_items
from speech_llm.files import write_json_lines
from speech_llm.prompts import instruction
from speech_llm.rows import work_option, write_rows


DOWNLOAD = "it belongs to data/eval_data of https://github.com/kehanlu/Speech-IFEval"
AUDIO = "unpack audios.tar of https://huggingface.co/datasets/kehanlu/Speech-IFEval there"
NOTHING = "-"                               # the target of what has no one right answer
CONSTRAINTS = [  # of the toy worlds: the words of the constraint, its verifier and arguments, the form of the answer
    ("Put your answer in quotation marks.", "startend:quotation", {}, '"{}"'),
    ("End your answer with: Over.", "startend:end_checker", {"end_phrase": "Over."}, "{} Over."),
    ("Begin your answer with: Well,", "combination:repeat_prompt", {"prompt_to_repeat": "Well,"}, "Well, {}"),
    ("Answer in JSON.", "detectable_format:json_format", {}, '{{"answer": "{}"}}'),
]


# --- The toy worlds.

def plain(row, prompt="2025"):
    """Return the SQA row that asks for the answer of an English ASR or SQA row, in the words of a prompt style."""
    return {**row, "task": "SQA", "question": instruction(row, prompt) or row["question"]}


def constrained(row, constraint, prompt="2025"):
    """
    Return the same row with one of the CONSTRAINTS on a line of its own, and a target that obeys it. A question that is
    spoken is not written: then the constraint stands alone.
    """
    words, _, _, form = constraint
    question = "\n".join(filter(None, (instruction(row, prompt), words)))
    return {**row, "task": "SQA", "question": question, "target": form.format(row["target"])}


def write_world(work, corpus, rows, prompt="2025"):
    """
    Write a toy world's questions on its test rows: every utterance is to be transcribed and is asked about, in English,
    with one of the CONSTRAINTS (closed) and without (plain), in the words of a prompt style. They go to
    <work>/rows/<corpus>/{closed,plain}.jsonl and, in the benchmark's format, from which they are scored, to
    <work>/raw/<corpus>/eval_data/.
    """
    answerable = [row for row in rows
                  if row["language"] == "en" and row.get("answerable", True) and row["task"] in ("ASR", "SQA")]
    groups = {"closed": [], "plain": []}                                   # (row to be asked, test row, constraint)
    for number, row in enumerate(answerable):
        constraint = CONSTRAINTS[number // 2 % len(CONSTRAINTS)]           # an utterance has two rows
        groups["closed"].append((constrained(row, constraint, prompt), row, constraint))
        groups["plain"].append((plain(row, prompt), row, None))
    for group, questions in groups.items():
        items = [world_item(number, *question) for number, question in enumerate(questions)]
        write_json_lines(os.path.join(work, "raw", corpus, "eval_data", f"{GROUPS[group][0]}.jsonl"), items)
        write_rows(os.path.join(work, "rows", corpus, f"{group}.jsonl"),
                   [{**row, "id": item_id(corpus, group, item, 0)} for item, (row, *_) in zip(items, questions)])


def world_item(number, question, row, constraint):
    """Return one question in the benchmark's format; its label is the answer without the constraint's form."""
    dataset, metric = {"ASR": ("Automatic_speech_recognition", "wer"), "SQA": ("SQA", "accuracy")}[row["task"]]
    item = {"id": number, "audio_filepath": row["audio"], "textual_audio": row["transcript"], "dataset": dataset,
            "metric": metric, "instruction": question["question"], "label": row["target"]}
    return {**item, "instruction_id_list": [constraint[1]], "kwargs": [constraint[2]]} if constraint else item


# --- The benchmark.

def missing(work, raw=""):
    """Return [(what is missing, how to mend it)]."""
    folder = questions_folder(download(work, raw, "speech_ifeval"))
    paths = [os.path.join(folder, "eval_data", f"{name}.jsonl") for name, _ in GROUPS.values()]
    return missing_files(paths, DOWNLOAD) + missing_files([os.path.join(folder, "audios")], AUDIO)


def make_rows(group, items, folder):
    """Return the rows of one file's items. Questions on the same recording, closed and plain, share its utterance."""
    return [{"id": item_id("speech_ifeval", group, item, number),
             "utterance": f"speech_ifeval/{os.path.splitext(item['audio_filepath'])[0]}",
             "audio": os.path.join(folder, item["audio_filepath"]), "task": "SQA", "language": "en",
             "transcript": item["textual_audio"], "question": item["instruction"], "target": item.get("label", NOTHING)}
            for number, item in enumerate(items)]


def main(argv=None):
    args = parser(__doc__, "speech_ifeval").parse_args(argv)
    settings = {"raw": download(args.work, args.raw, "speech_ifeval"), **limited(args)}
    if finished(args.work, "speech_ifeval", settings):
        return
    refuse_missing("speech_ifeval", missing(args.work, args.raw), args.check)
    folder = questions_folder(settings["raw"])
    items = {group: spread(read_items(os.path.join(folder, "eval_data", f"{name}.jsonl"), "textual_audio"), args.limit)
             for group, (name, _) in GROUPS.items()}
    splits = {group: make_rows(group, part, os.path.join(folder, "audios")) for group, part in items.items()}
    begin(args.work, "speech_ifeval", settings)
    questions = os.path.join(args.work, "made", "speech_ifeval", "eval_data")
    for group, part in items.items() if args.limit else ():          # a part of the questions has files of its own
        write_json_lines(os.path.join(questions, f"{GROUPS[group][0]}.jsonl"), part)
    for group, rows in splits.items():
        write_rows(os.path.join(args.work, "rows", "speech_ifeval", f"{group}.jsonl"), rows)
    recordings = sorted({row["audio"] for rows in splits.values() for row in rows})
    broken = print_unreadable(recordings)
    paper = {(group, "SQA/QA en"): count for group, (_, count) in GROUPS.items() if not args.limit}
    report(args.work, "speech_ifeval", splits, paper, [], args.incomplete)
    if len(broken) > (1 - ENOUGH) * len(recordings):
        refuse_incomplete(os.path.join(args.work, "rows", "speech_ifeval"),
                          [f"recordings: {len(broken)} of {len(recordings)} cannot be read"], args.incomplete)
    finish(args.work, "speech_ifeval", settings)
    tests, work = ",".join(f"speech_ifeval.{group}" for group in GROUPS), work_option(args.work)
    print(f"rows in {args.work}/rows/speech_ifeval\n"
          f"next: python extract_features.py --preset <preset> --corpora speech_ifeval{work}, then\n"
          f"python infer.py --preset <preset> --test_sets {tests} --max_new_tokens 2048{work}, then\n"
          f"python -m metrics.speech_ifeval <a folder of predictions> --reference <that of the system llm> "
          f"--data {folder}/eval_data --judge <a chat LLM>")


if __name__ == "__main__":
    main()
