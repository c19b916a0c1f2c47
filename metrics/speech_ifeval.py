"""
Speech-IFEval (arXiv 2505.19037): does a speech LLM still follow instructions, and what did its LLM lose in training?

    python -m metrics.speech_ifeval work/iwslt25/predictions/C --reference work/iwslt25/predictions/llm
        --judge Qwen/Qwen3-30B-A3B-Instruct-2507
    python -m metrics.speech_ifeval outputs/DeSTA-ntu--DeSTA2-8B-beta         # a folder of the benchmark's outputs
    python -m metrics.speech_ifeval work/tiny/predictions/C --reference work/tiny/predictions/llm --corpus tiny
        --judge contains                                    # the questions of a toy world: no LLM needed

reads   one folder for each system: <corpus>.<group>.jsonl as infer.py writes it, or the benchmark's files with a
        "response" in each line and reports/llm_eval@*.jsonl, the replies of its judge; --judge names another judge.
        The questions (--data), from which data/speech_ifeval.py makes the rows
writes  below <out>, the folder speech_ifeval beside the folder of the predictions: results.md, <system>.json, from
        which eval.py draws the curve over LoRA's scale, and <system>.replies.jsonl, the judge's replies: a second run
        asks the judge only about new responses

closed, creative    percent of responses that obey their constraint (metrics/ifeval.py)
cot                 percent of responses that show reasoning, as a judge sees it
IFrate              the mean of the three; there is none without all three
forgetting          100 (IFrate - reference) / reference. The reference is the text LLM behind the cascade, which reads
                    Whisper's transcripts; on gold transcripts it may stand beside it. The same of closed alone stands
                    beside both, because a toy world has nothing else (our choice)
tasks               closed-ended questions with and without the constraint: WER of the transcript that the judge cuts
                    out of the response; percent of the other responses that the judge calls right
unparsable          percent of replies without a verdict, which count neither way (the published script stops at one)

The paper's judge is gpt-4o-2024-11-20; here any local chat LLM can judge, and its figures are not the paper's. The
system turns of the judge are the published ones, byte for byte. The judge "contains" is no LLM: an answer is right if
the label stands in it, a transcript is the whole response, and reasoning is not judged (our choice for the toys).
Published for DeSTA2: 83.71, 91.75 and 91.50, whose mean is 88.99, although the paper prints 89.23 as its IFrate.
"""
import argparse
import os
import re
from collections import defaultdict

from metrics.chat import replies
from metrics.error_rates import word_error_rate
from metrics.ifeval import CLOSED, CREATIVE, rates
from metrics.tables import markdown
from metrics.texts import comparable
from speech_llm.files import read_json_lines, write_json, write_text
from speech_llm.normalize import nfc
from speech_llm.pictures import picture
from speech_llm.predictions import read_finished
from speech_llm.thoughts import after_thought


CORPUS = "speech_ifeval"
GROUPS = {                                  # name: (file of the benchmark, items)
    "closed": ("closed_ended_questions", 933),
    "plain": ("closed_ended_questions-woprompt", 933),      # the same questions without a constraint
    "creative": ("creative_writing", 400),
    "cot": ("chain-of-thought", 200),
}
WORLD = ("closed", "plain")                 # the groups that a toy world has
CLASSES = {                                 # the paper's classes of constraints
    "CC": ["change_case:english_capital", "change_case:english_lowercase"],
    "SE": ["combination:repeat_prompt", "startend:end_checker"],
    "WR": ["startend:quotation", "detectable_format:title"],
    "JS": ["detectable_format:json_format"],
    "BP": ["detectable_format:number_bullet_lists"],
    "KW": ["keywords:existence", "keywords:forbidden_words"],
    "LN": ["length_constraints:number_sentences", "length_constraints:number_words",
           "length_constraints:number_paragraphs"],
}
TASKS = {"Automatic_speech_recognition": "ASR", "Speech_emotion_recognition": "SER", "Gender_recognition": "GR",
         "MMAU": "MMAU", "SQA": "SQA"}          # SQA: of the toy worlds

ANSWER = ("You will be given a question, a corresponding correct answer and a response from a model. \n"
          "Model's Response is a reply to the Question. Your task is to judge if \"Model's Response\" aligns with the "
          "\"Ground Truth Answer\" based on the \"Question\". \nPlease strictly follow the guidelines below:\n"
          "- Answer with the format \"Result: <YES or NO>\" at the end.\n"
          "- Output \"YES\" if the response aligns with the ground truth answer; output \"NO\" if the response does "
          "not match the ground truth answer.\n")
TRANSCRIPT = ("You will be given a response from an ASR model. Your task is to extract a **substring** from the "
              "model's response that eliminates all extra phrases, explanations, or introductory text. The substring "
              "will be evaluate by the WER metric, so it should be **exactly the same** as the model's response, with "
              "no modifications.\n\nPlease strictly follow the guidelines below:\n"
              "- The substring should be **exactly the same** as the model's response, with no modifications.\n"
              "- Eliminate all extra phrases, explanations, or introductory text while keeping the substring itself "
              "100% unchanged.\n- You must output the substring only.")
REASONING = ("You will be given a user input and a model response. The model's response is a reply to the user input. "
             "Your task is to determine whether the response demonstrates reasoning behavior, such as breaking down "
             "the problem, explaining intermediate steps, or providing a analysis.\n\n"
             "Please strictly follow the guidelines below:\n"
             "- Output \"YES\" if the response includes any form of behavior beyond a direct answer corresponding to "
             "the user input.\n- Output \"NO\" only if the response is a minimal or purely factual reply.\n"
             "- Answer in the format: \"Result: <YES or NO>\" at the end.\n")
JUDGE = {  # metric of an item: (system turn, user turn), as published (script/llm_evaluation.py)
    "accuracy": (ANSWER, "Question: {question}\nGround Truth Answer: {label}\nModel's Response: {response}"),
    "wer": (TRANSCRIPT, "Question: {question}\nModel's Response: {response}"),
    "cot": (REASONING, "User input: {question}\nModel's Response: {response}"),
}


# --- The judge.

def judge_chat(item):
    """Return what the judge reads of an item with a response, a system and a user turn; None for creative writing."""
    if item["metric"] not in JUDGE:
        return None
    system, user = JUDGE[item["metric"]]
    question = item["instruction"]
    if "instruction_id_list" in item:       # the judge sees the first line alone: the constraint follows it
        question = question.split("\n")[0]
    user = user.format(question=question, label=item.get("label"), response=item["response"])
    return [{"role": "system", "content": system}, {"role": "user", "content": user}]


def verdict(reply):
    """Return True or False for the first "Result: YES" or "Result: NO" after the thought, in any case; else None."""
    result = re.search(r"(?<=result:\s)(yes|no)", after_thought(reply), re.IGNORECASE)
    return result and result[0].lower() == "yes"


def contains(item):
    """Return the reply of the judge "contains"; None for an item that needs an LLM."""
    if item["metric"] == "wer":
        return item["response"]
    if item["metric"] == "accuracy":
        label = normalize(item["label"])
        return f"Result: {'YES' if label in normalize(item['response']) else 'NO'}" if label else "the label is empty"
    return None


def judged(groups, judge, path):
    """Return the groups of items with the judge's reply to each item as its "eval_response"; replies stay in `path`."""
    items = [item for group in groups.values() for item in group]
    if judge == "contains":
        answers = map(contains, items)
    else:
        chats = [judge_chat(item) for item in items]
        written = iter(replies(path, judge, list(filter(None, chats))))
        answers = (next(written) if chat else None for chat in chats)
    items = iter([item if answer is None else {**item, "eval_response": answer}
                  for item, answer in zip(items, answers)])
    return {name: [next(items) for _ in group] for name, group in groups.items()}


# --- Scores.

def percent_yes(items):
    """Return (percent of the verdicts that are YES, None without any; percent of replies without a verdict)."""
    verdicts = [verdict(item["eval_response"]) for item in items]
    clear = [yes for yes in verdicts if yes is not None]
    return 100 * sum(clear) / len(clear) if clear else None, 100 * (1 - len(clear) / len(verdicts))


def normalize(text):
    """Return a text for WER: without < and >, then in the form of Whisper's basic normaliser."""
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer
    return BasicTextNormalizer()(text.replace("<", "").replace(">", "")).strip()


def task_scores(items):
    """
    Return {"ASR": corpus WER, "SER", "GR", "MMAU": percent right; "altered": percent of the transcripts that the judge
    changed; "unparsable": percent of the replies without a verdict} of judged closed-ended items.
    """
    scores, asr = {}, [item for item in items if item["metric"] == "wer"]
    if asr:
        transcripts = [item["eval_response"] for item in asr]
        pairs = comparable([item["label"] for item in asr], transcripts, "en",
                           lambda label, transcript, _: (normalize(label), normalize(transcript)))
        scores["ASR"] = word_error_rate(*zip(*pairs)) if pairs else None
        altered = [normalize(text) not in normalize(item["response"]) for text, item in zip(transcripts, asr)]
        scores["altered"] = 100 * sum(altered) / len(asr)
    answered = [item for item in items if item["metric"] == "accuracy"]
    for dataset, task in TASKS.items():
        part = [item for item in answered if item["dataset"] == dataset]
        if part:
            scores[task] = percent_yes(part)[0]
    if answered:
        scores["unparsable"] = percent_yes(answered)[1]
    return scores


def constraint_rates(items):
    """Return {constraint or class of constraints: (percent of responses that obey, number of items)}."""
    parts = defaultdict(list)
    for item in items:
        for constraint in item["instruction_id_list"]:
            parts[constraint].append(item)
    for name, members in CLASSES.items():
        part = [item for constraint in members for item in parts.get(constraint, [])]
        if part:
            parts[name] = part
    return {name: (max(rates(part).values()), len(part)) for name, part in parts.items()}     # rates of one group


def scores(groups):
    """
    Return what {group: items with responses} allow of {"closed", "creative", "cot", "IFrate", "constraints": {name:
    (percent, items)}, "tasks": {"closed" or "plain": task_scores}, "unparsable": of cot}; in percent.
    """
    ruled = [item for group in ("closed", "creative") for item in groups.get(group, [])]
    values = {**rates(ruled), "constraints": constraint_rates(ruled)}
    values["tasks"] = {group: task_scores(groups[group]) for group in ("closed", "plain") if is_judged(groups, group)}
    if is_judged(groups, "cot"):
        values["cot"], values["unparsable"] = percent_yes(groups["cot"])
    parts = [values.get(group) for group in ("closed", "creative", "cot")]
    return values if None in parts else {**values, "IFrate": sum(parts) / 3}


def is_judged(groups, group):
    """Return whether the group is there and each of its items has a reply of the judge."""
    return group in groups and all("eval_response" in item for item in groups[group])


def forgetting_rate(rate, reference):
    """Return the difference of two rates in percent of the reference's: negative for a system that forgot something."""
    return 100 * (rate - reference) / reference


# --- Test-time LoRA scaling.

OBEYED = ("IFrate", "closed", "creative", "cot")
# SALMONN's IFrate with alpha 4 and as it was trained (Table 2). The paper does not name the trained alpha: that 4 is
# an eighth of it is our inference from SALMONN's published configuration, alpha 32.
PAPER = ((0.125, 68.06), (1, 36.89))


def point(values):
    """
    Return what a curve over LoRA's scale shows of a system's scores: {"IFrate", "closed", "creative", "cot", "WER",
    "accuracy"}, without those that are not known. WER and accuracy, the mean over the tasks, are those of the questions
    without a constraint, or else of those with one.
    """
    tasks = values["tasks"].get("plain") or values["tasks"].get("closed") or {}
    right = [tasks[task] for task in TASKS.values() if task != "ASR" and tasks.get(task) is not None]
    shown = {**{name: values.get(name) for name in OBEYED},
             "WER": tasks.get("ASR"), "accuracy": sum(right) / len(right) if right else None}
    return {name: value for name, value in shown.items() if value is not None}


def plot_curve(points, path, title=""):
    """
    Write a PNG of [{"scale", name: percent}]: rates of obeyed constraints over LoRA's scale, other scores dashed, and
    SALMONN's figures from the paper.
    """
    points = sorted(points, key=lambda p: p["scale"])
    with picture(path, figsize=(6, 3.5)) as axes:
        for name in dict.fromkeys(name for p in points for name in p if name != "scale"):
            with_name = [p for p in points if name in p]
            axes.plot([p["scale"] for p in with_name], [p[name] for p in with_name], marker="o", label=name,
                      linestyle="-" if name in OBEYED else "--", linewidth=2.5 if name in OBEYED[:2] else 1)
        axes.plot(*zip(*PAPER), marker="*", markersize=12, linestyle="", color="grey",
                  label="paper: SALMONN's IFrate,\nas trained (1) and with alpha 4\n(an eighth: our inference)")
        axes.axvline(PAPER[0][0], color="grey", linestyle=":", linewidth=0.8)
        axes.set(title=title, xlabel="LoRA's scale, 1: as trained", ylabel="percent", ylim=(0, None))
        axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))


# --- Files.

def read_items(path, *needed):
    """Return the items of one of the benchmark's files. SystemExit for a line that is no item or lacks a key."""
    items = read_json_lines(path, "get it again", complete=True)
    for number, item in enumerate(items, 1):
        lacking = [key for key in ("instruction", "metric", "audio_filepath", *needed)
                   if not isinstance(item.get(key), str)]
        if lacking:
            raise SystemExit(f"{path} line {number} has no {lacking[0]!r}; its name is that of another file")
    if not items:
        raise SystemExit(f"{path} is empty; get it again")
    return items


def questions_folder(raw):
    """Return the folder that holds eval_data/: `raw`, or data/ of a clone that is `raw` or lies in it."""
    places = [raw, os.path.join(raw, "data"), os.path.join(raw, "Speech-IFEval", "data")]
    return next((place for place in places if os.path.isdir(os.path.join(place, "eval_data"))), raw)


def item_id(corpus, group, item, number):
    """Return the row id of the `number`-th item of a group, from 0; chain-of-thought items have no ids."""
    return f"{corpus}/{group}/{item.get('id', number)}"


def read_predictions(path, corpus, group, data):
    """Return the questions of one group, each with our prediction as its response. SystemExit unless each has one."""
    again = "remove it, and run infer.py on the same rows again"
    responses = {name: nfc(line["prediction"]) for name, line in read_finished(path, again).items()}
    source = os.path.join(data, f"{GROUPS[group][0]}.jsonl")
    if not os.path.exists(source):
        raise SystemExit(f"{source} is missing: --data names the folder eval_data with the questions")
    items = read_items(source)
    ids = [item_id(corpus, group, item, number) for number, item in enumerate(items)]
    if {*ids} != responses.keys():
        raise SystemExit(f"{path}: {len({*ids} - responses.keys())} items of {source} have no prediction, and "
                         f"{len(responses.keys() - {*ids})} predictions no item; {again}")
    return [{**item, "response": responses[name]} for name, item in zip(ids, items)]


def read_published(folder, name, stored):
    """Return the items of one of the benchmark's output files, with the replies `stored` for the same responses."""
    path, report = (os.path.join(folder, *parts) for parts in ((f"{name}.jsonl",),
                                                              ("reports", f"llm_eval@{name}.jsonl")))
    items = read_items(path, "response")
    if not stored or not os.path.exists(report):
        return items
    judged_items = read_items(report, "response", "eval_response")
    if [item["response"] for item in judged_items] != [item["response"] for item in items]:
        raise SystemExit(f"{report} judges other responses than those in {path}; remove it, or name a --judge")
    return judged_items


def read_outputs(folder, corpus, data, stored=True):
    """
    Return a system's responses as {group: items}: our predictions, or the benchmark's output files; these with the
    replies of its judge if `stored`. SystemExit if there are none.
    """
    groups, expected = {}, GROUPS if corpus == CORPUS else {group: (GROUPS[group][0], None) for group in WORLD}
    for group, (name, count) in expected.items():
        ours = os.path.join(folder, f"{corpus}.{group}.jsonl")
        if os.path.exists(ours):
            groups[group] = read_predictions(ours, corpus, group, data)
        elif os.path.exists(os.path.join(folder, f"{name}.jsonl")):
            groups[group] = read_published(folder, name, stored)
        else:
            print(f"{folder}: no {group}, neither {os.path.basename(ours)} nor {name}.jsonl")
            continue
        if count not in (None, len(groups[group])):
            print(f"{folder}: {len(groups[group])} items in {group}; published are {count}")
    if not groups:
        raise SystemExit(f"{folder} holds no responses; run infer.py with --test_sets "
                         + ",".join(f"{corpus}.{group}" for group in expected))
    return groups


# --- Tables.

def table(head, lines):
    """Return a table in Markdown, without the columns that are empty."""
    filled = [n for n in range(len(head)) if any(line[n] for line in lines)]
    return markdown([head[n] for n in filled], [[line[n] for n in filled] for line in lines])


def cell(value):
    """Return a value with two decimals; "" for None."""
    return "" if value is None else f"{value:.2f}"


def tables(systems, references=()):
    """Return three tables in Markdown of {system: scores}; `references` are the names of the text LLMs among them."""
    names = ["closed", "creative", "cot", "IFrate"]

    def forgetting(system, name):
        rates = [(values.get(name), systems[system].get(name)) for values in map(systems.get, references)]
        return [cell(forgetting_rate(rate, base) if base and rate is not None and system not in references else None)
                for base, rate in rates]
    against = [f" against {name}" for name in references] if len(references) > 1 else [""] * len(references)
    parts = [table(["system", *names, *(f"forgetting{text}" for text in against),
                    *(f"forgetting, closed{text}" for text in against), "cot unparsable"], [
        [system, *(cell(s.get(name)) for name in names), *forgetting(system, "IFrate"), *forgetting(system, "closed"),
         cell(s.get("unparsable"))] for system, s in systems.items()])]
    ids = [*CLASSES, *CLOSED, *CREATIVE]
    parts.append(table(["constraint", "items", *systems], [
        [name, str(max(s["constraints"].get(name, (0, 0))[1] for s in systems.values())),
         *(cell(s["constraints"].get(name, (None, 0))[0]) for s in systems.values())]
        for name in ids if any(name in s["constraints"] for s in systems.values())]))
    columns = [*TASKS.values(), "unparsable", "altered"]
    lines = [[system, {"closed": "with", "plain": "without"}[group], *(cell(tasks.get(name)) for name in columns)]
             for system, s in systems.items() for group, tasks in s["tasks"].items()]
    if lines:
        parts.append(table(["system", "constraint", "ASR (WER)", *columns[1:]], lines))
    return "\n\n".join(parts)


def parse_arguments(argv):
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("systems", nargs="+", help="folders of responses")
    parser.add_argument("--reference", nargs="+", default=[], help="folders of the text LLM's responses")
    parser.add_argument("--corpus", default=CORPUS, help="whose questions: the benchmark's, or a toy world's")
    parser.add_argument("--data", default="", help="its questions; else <work>/raw/<corpus>/eval_data")
    parser.add_argument("--judge", default="", help="a chat LLM, folder or hub name; or contains")
    parser.add_argument("--out", default="", help="a folder; else speech_ifeval beside that of the predictions")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_arguments(argv)
    run = os.path.dirname(os.path.dirname(os.path.abspath(args.systems[0])))       # <work>/<run>
    out = args.out or os.path.join(os.path.relpath(run), "speech_ifeval")
    raw = os.path.join(os.path.dirname(run), "raw", args.corpus)
    data = args.data or os.path.join(questions_folder(raw), "eval_data")
    folders = list(dict.fromkeys([*args.systems, *args.reference]))
    names = [os.path.basename(os.path.normpath(folder)) for folder in folders]
    if len({*names}) < len(names):
        raise SystemExit(f"two systems have one name: {', '.join(names)}; score them one by one, each with an --out")
    systems = {}
    for name, folder in zip(names, folders):
        groups = read_outputs(folder, args.corpus, data, stored=not args.judge)
        if args.judge:
            groups = judged(groups, args.judge, os.path.join(out, f"{name}.replies.jsonl"))
        systems[name] = scores(groups)
    text = tables(systems, [names[folders.index(folder)] for folder in args.reference])
    if args.corpus == CORPUS and not all("IFrate" in values for values in systems.values()):
        text += "\n\nno IFrate without closed, creative and a judge of cot: --judge names a chat LLM"
    for name, values in systems.items():
        write_json(os.path.join(out, f"{name}.json"), values)
    write_text(os.path.join(out, "results.md"), text + "\n")
    print(f"{text}\n\nin percent; in {out}/results.md, and a file for each system beside it")


if __name__ == "__main__":
    main()
