"""
Speech-IFEval: instructions on speech whose form can be checked, to see what an LLM forgets as it learns to listen
(arXiv 2505.19037).

    python -m data.speech_ifeval                    # or --raw folder, where the download lies elsewhere

download into <work>/raw/speech_ifeval
    eval_data/*.jsonl           data/eval_data of https://github.com/kehanlu/Speech-IFEval; no licence is stated there
    audios/<dataset>/<file>     audios.tar of https://huggingface.co/datasets/kehanlu/Speech-IFEval, unpacked

reads   these
writes  <work>/rows/speech_ifeval/{closed,plain,creative,cot}.jsonl, counts.md, dropped.txt, config.json last

closed      933 questions about speech with a constraint on the answer's form; plain: the same without the constraint
creative    400 requests to write something, with a constraint; cot: 200 questions to be answered with reasoning

A row is SQA with the whole instruction as its question. Its id is the benchmark's own, from which the scores
(metrics/speech_ifeval.py) find constraint and label again: EM and a judge's scores of these rows mean little. Its
transcript is the benchmark's, with times, the speaker's gender and emotion, so that the system "llm" is the text LLM
that forgetting is measured against.

Where we leave the benchmark: its prompt is "Speech Input: {transcript}", a blank line and the instruction, below the
system turn "Follow the given instructions."; ours is that of the project, which has no system turn and puts the
instruction on one line, so that the newline between task and constraint becomes a space. Its systems write up to 2048
tokens. A recording that cannot be read, or is longer than features are made of, keeps its row: its answer is empty,
and obeys nothing.

The small worlds (data/tiny.py, data/digits.py) have such questions too, closed and plain, on their own test utterances.
Their LLM is taught the four CONSTRAINTS from text; no stage shows them again, so that what is forgotten is measured.
"""
import json
import os

from data.recipe import finish, finished, need, parser, report, unreadable
from metrics.speech_ifeval import GROUPS, item_id, read_items
from speech_llm.files import replace_file
from speech_llm.prompts import TASK_LINES
from speech_llm.rows import write_rows


DOWNLOAD = "it belongs to data/eval_data of https://github.com/kehanlu/Speech-IFEval"
AUDIO = "unpack audios.tar of https://huggingface.co/datasets/kehanlu/Speech-IFEval there"
NOTHING = "-"                               # the target of what has no one right answer
CONSTRAINTS = [  # those of the small worlds: what is asked, its verifier and arguments, the form of the answer
    ("Put your answer in quotation marks.", "startend:quotation", {}, '"{}"'),
    ("End your answer with: Over.", "startend:end_checker", {"end_phrase": "Over."}, "{} Over."),
    ("Begin your answer with: Well,", "combination:repeat_prompt", {"prompt_to_repeat": "Well,"}, "Well, {}"),
    ("Answer in JSON.", "detectable_format:json_format", {}, '{{"answer": "{}"}}'),
]


# --- The small worlds.

def plain(row):
    """An ASR or SQA row in English -> the SQA row that asks for the same."""
    return {**row, "task": "SQA", "question": row["question"] if row["task"] == "SQA" else TASK_LINES["ASR", "en"]}


def constrained(row, constraint):
    """The same with one of the CONSTRAINTS on a line of its own, and a target that obeys it."""
    words, _, _, form = constraint
    row = plain(row)
    return {**row, "question": f"{row['question']}\n{words}", "target": form.format(row["target"])}


def write_world(work, corpus, rows):
    """
    A small world's questions, from its test rows: every utterance is to be transcribed and asked about, in English,
    with one of the CONSTRAINTS (closed) and without (plain). Writes <work>/rows/<corpus>/{closed,plain}.jsonl and, in
    the benchmark's own format, <work>/raw/<corpus>/eval_data/, from which they are scored.
    """
    asked = [row for row in rows if row["language"] == "en" and row["answerable"] and row["task"] in ("ASR", "SQA")]
    made = {"closed": [], "plain": []}
    for number, row in enumerate(asked):
        constraint = CONSTRAINTS[number // 2 % len(CONSTRAINTS)]           # an utterance has two rows
        made["closed"].append((constrained(row, constraint), row, constraint))
        made["plain"].append((plain(row), row, None))
    for group, found in made.items():
        items = [world_item(number, *parts) for number, parts in enumerate(found)]
        path = os.path.join(work, "raw", corpus, "eval_data", f"{GROUPS[group][0]}.jsonl")
        with replace_file(path) as name, open(name, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(item, ensure_ascii=False) + "\n" for item in items)
        write_rows(os.path.join(work, "rows", corpus, f"{group}.jsonl"),
                   [{**asks, "id": item_id(corpus, group, item, 0)} for item, (asks, *_) in zip(items, found)])


def world_item(number, asks, row, constraint):
    """One question in the benchmark's format; its label is the answer in no form."""
    dataset, metric = {"ASR": ("Automatic_speech_recognition", "wer"), "SQA": ("SQA", "accuracy")}[row["task"]]
    item = {"id": number, "audio_filepath": row["audio"], "textual_audio": row["transcript"], "dataset": dataset,
            "metric": metric, "instruction": asks["question"], "label": row["target"]}
    return {**item, "instruction_id_list": [constraint[1]], "kwargs": [constraint[2]]} if constraint else item


# --- The benchmark.

def make_rows(group, items, folder):
    """The items of one file -> their rows; `folder` holds the recordings."""
    return [{"id": item_id("speech_ifeval", group, item, number),
             "utterance": f"speech_ifeval/{os.path.splitext(item['audio_filepath'])[0]}",
             "audio": os.path.join(folder, item["audio_filepath"]), "task": "SQA", "language": "en",
             "transcript": item["textual_audio"], "question": item["instruction"], "target": item.get("label", NOTHING)}
            for number, item in enumerate(items)]


def main(argv=None):
    args = parser(__doc__, "speech_ifeval").parse_args(argv)
    raw = args.raw or os.path.join(args.work, "raw", "speech_ifeval")
    settings = {"raw": raw}
    if finished(args.work, "speech_ifeval", settings):
        return
    folder, splits = need(os.path.join(raw, "audios"), AUDIO), {}
    for group, (name, _) in GROUPS.items():
        items = read_items(need(os.path.join(raw, "eval_data", f"{name}.jsonl"), DOWNLOAD), "textual_audio")
        splits[group] = make_rows(group, items, folder)
        write_rows(os.path.join(args.work, "rows", "speech_ifeval", f"{group}.jsonl"), splits[group])
    broken = unreadable(sorted({row["audio"] for rows in splits.values() for row in rows}))
    for path in sorted(broken)[:10]:
        print(f"  {path}: {broken[path]}")
    print(f"{len(broken)} recordings cannot be read; their rows stay, and get empty answers")
    paper = {(group, "SQA/QA en"): count for group, (_, count) in GROUPS.items()}
    report(args.work, "speech_ifeval", splits, paper, [])
    finish(args.work, "speech_ifeval", settings)
    tests = ",".join(f"speech_ifeval.{group}" for group in GROUPS)
    print(f"rows in {args.work}/rows/speech_ifeval\n"
          "next: python extract_features.py --preset <preset> --corpora speech_ifeval, then\n"
          f"python infer.py --preset <preset> --test_sets {tests} --max_new_tokens 2048, then\n"
          "python -m metrics.speech_ifeval <a folder of predictions> --reference <that of the system llm> "
          "--judge <a chat LLM>")


if __name__ == "__main__":
    main()
