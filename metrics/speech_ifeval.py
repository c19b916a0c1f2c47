"""
Speech-IFEval (arXiv 2505.19037): does a speech LLM still do what it is told, and what has its training cost the LLM?

    python -m metrics.speech_ifeval work/iwslt25/predictions/C --reference work/iwslt25/predictions/llm
        --judge Qwen/Qwen3-30B-A3B-Instruct-2507
    python -m metrics.speech_ifeval outputs/DeSTA-ntu--DeSTA2-8B-beta         # a folder of the benchmark's own outputs
    python -m metrics.speech_ifeval work/tiny/predictions/C --reference work/tiny/predictions/llm --corpus tiny
        --judge contains                                    # a small world's own questions: no LLM needed

reads   a folder a system: <corpus>.<group>.jsonl as infer.py writes it, or the benchmark's own files with a "response"
        a line, and then reports/llm_eval@*.jsonl, what its judge replied, unless --judge names another; the questions
        (--data), which data/speech_ifeval.py made the rows from
writes  below <out>, the folder speech_ifeval beside that of the predictions: results.md, <system>.json, from which
        eval.py draws the curve over LoRA's scale, and <system>.replies.jsonl, what the judge replied: a second run asks
        only what is new

closed, creative    percent of responses that obey their constraint (metrics/ifeval.py); cot: that show reasoning, as
                    a judge finds. IFrate is the plain mean of the three, and there is none without the three
forgetting          100 (IFrate - reference) / reference, where the reference is the text LLM that reads transcripts;
                    and the same of closed alone, which is all that a small world has (our choice)
tasks               closed-ended questions with and without the constraint: WER of the transcript that the judge cuts
                    out of the response; percent of the other responses that the judge finds right
unparsable          percent of replies without a verdict, which count neither way (the published script stops at one)

The paper's judge is gpt-4o-2024-11-20; any local chat LLM can be ours, and its figures are its own. The judge's system
turns are the published ones, byte for byte. The judge "contains" is none: an answer is right that contains the label, a
transcript is the whole response, and reasoning is not judged (our choice, for the small worlds). Published for DeSTA2:
83.71, 91.75 and 91.50, whose mean is 88.99, and 89.23 as its IFrate.
"""
import argparse
import json
import os
import re
from collections import defaultdict

from metrics.error_rates import word_error_rate
from metrics.ifeval import CLOSED, CREATIVE, rates



CORPUS = "speech_ifeval"
GROUPS = {                                  # name: (file of the benchmark, items)
    "closed": ("closed_ended_questions", 933),
    "plain": ("closed_ended_questions-woprompt", 933),      # the closed-ended questions without a constraint
    "creative": ("creative_writing", 400),
    "cot": ("chain-of-thought", 200),
}
WORLD = ("closed", "plain")                 # what a small world has of them
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
         "MMAU": "MMAU", "SQA": "SQA"}          # the last: of the small worlds

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
    """What the judge reads of an item with a response: a system and a user turn; None for creative writing."""
    if item["metric"] not in JUDGE:
        return None
    system, user = JUDGE[item["metric"]]
    question = item["instruction"]
    if "instruction_id_list" in item:       # the constraint, all but the first line, is not shown
        question = question.split("\n")[0]
    user = user.format(question=question, label=item.get("label"), response=item["response"])
    return [{"role": "system", "content": system}, {"role": "user", "content": user}]


def verdict(reply):
    """True or False for the reply's first "Result: YES" or "Result: NO", in any case; None without one."""
    found = re.search(r"(?<=result:\s)(yes|no)", reply, re.IGNORECASE)
    return found and found[0].lower() == "yes"


def contains(item):
    """What the judge "contains" replies, None where it has nothing to say."""
    if item["metric"] == "wer":
        return item["response"]
    if item["metric"] == "accuracy":
        return f"Result: {'YES' if normalize(item['label']) in normalize(item['response']) else 'NO'}"
    return None


def judged(groups, judge, path):
    """The same groups with the replies of the LLM `judge`, kept in `path`, as each item's "eval_response"."""
    from metrics.chat import kept_replies
    if judge == "contains":
        replies = {group: [contains(item) for item in items] for group, items in groups.items()}
        return {group: [item if reply is None else {**item, "eval_response": reply}
                        for item, reply in zip(items, replies[group])] for group, items in groups.items()}
    chats = {(group, n): judge_chat(item) for group, items in groups.items() for n, item in enumerate(items)}
    asked = {key: chat for key, chat in chats.items() if chat}
    replies = dict(zip(asked, kept_replies(path, judge, list(asked.values()))))
    return {group: [{**item, "eval_response": replies[group, n]} if (group, n) in replies else item
                    for n, item in enumerate(items)] for group, items in groups.items()}


# --- Scores.

def percent_yes(items):
    """Judged items -> (percent of the verdicts that are YES, None without any; percent of replies without one)."""
    found = [verdict(item["eval_response"]) for item in items]
    known = [yes for yes in found if yes is not None]
    return 100 * sum(known) / len(known) if known else None, 100 * (1 - len(known) / len(found))


def normalize(text):
    """Text for WER: without < and >, then as Whisper's basic normaliser leaves it."""
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer
    return BasicTextNormalizer()(text.replace("<", "").replace(">", "")).strip()


def task_scores(items):
    """
    Judged closed-ended items -> {"ASR": corpus WER, "SER", "GR", "MMAU": percent right; "altered": percent of the
    transcripts that the judge did not leave as they were; "unparsable": percent of the replies without a verdict}.
    """
    found, heard = {}, [item for item in items if item["metric"] == "wer"]
    if heard:
        said = [normalize(item["eval_response"]) for item in heard]
        found["ASR"] = word_error_rate([normalize(item["label"]) for item in heard], said)
        found["altered"] = 100 * sum(text not in normalize(item["response"])
                                     for text, item in zip(said, heard)) / len(heard)
    answered = [item for item in items if item["metric"] == "accuracy"]
    for dataset, task in TASKS.items():
        some = [item for item in answered if item["dataset"] == dataset]
        if some:
            found[task] = percent_yes(some)[0]
    if answered:
        found["unparsable"] = percent_yes(answered)[1]
    return found


def by_constraint(items):
    """{constraint or class of constraints: (percent followed, items)}."""
    parts = defaultdict(list)
    for item in items:
        for constraint in item["instruction_id_list"]:
            parts[constraint].append(item)
    for name, members in CLASSES.items():
        some = [item for constraint in members for item in parts.get(constraint, [])]
        if some:
            parts[name] = some
    return {name: (max(rates(some).values()), len(some)) for name, some in parts.items()}     # rates of one group


def scores(groups):
    """
    {group: items with responses} -> whatever they allow of {"closed", "creative", "cot", "IFrate", "constraints":
    {name: (percent, items)}, "tasks": {"closed" or "plain": task_scores}, "unparsable": of cot}; in percent.
    """
    found, ruled = {}, [item for group in ("closed", "creative") for item in groups.get(group, [])]
    found |= rates(ruled)
    found["constraints"] = by_constraint(ruled)
    found["tasks"] = {group: task_scores(groups[group]) for group in ("closed", "plain") if is_judged(groups, group)}
    if is_judged(groups, "cot"):
        found["cot"], found["unparsable"] = percent_yes(groups["cot"])
    parts = [found.get(group) for group in ("closed", "creative", "cot")]
    if None not in parts:
        found["IFrate"] = sum(parts) / 3
    return found


def is_judged(groups, group):
    return group in groups and all("eval_response" in item for item in groups[group])


def forgetting_rate(rate, reference):
    """How far the IFrate is from that of the text LLM, in percent of it: negative where something was forgotten."""
    return 100 * (rate - reference) / reference


# --- Test-time LoRA scaling.

OBEYED = ("IFrate", "closed", "creative", "cot")
PAPER = ((0.125, 68.06), (1, 36.89))        # SALMONN's IFrate with alpha 4 and with 32, as trained; Table 2


def point(found):
    """
    Scores -> what a curve over LoRA's scale shows of them: {"IFrate", "closed", "creative", "cot", "WER", "accuracy"},
    without what is not known. WER and accuracy, the mean over the tasks, are those of the questions without a
    constraint, or else of those with one.
    """
    tasks = found["tasks"].get("plain") or found["tasks"].get("closed") or {}
    right = [tasks[task] for task in TASKS.values() if task != "ASR" and tasks.get(task) is not None]
    shown = {**{name: found.get(name) for name in OBEYED},
             "WER": tasks.get("ASR"), "accuracy": sum(right) / len(right) if right else None}
    return {name: value for name, value in shown.items() if value is not None}


def plot_curve(points, path, title=""):
    """
    A PNG at `path` of [{"scale", name: percent}]: what is obeyed over LoRA's scale, other scores dashed, and beside
    them what the paper has for SALMONN.
    """
    import matplotlib
    matplotlib.use("Agg")                                   # no screen
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
    points = sorted(points, key=lambda p: p["scale"])
    for name in dict.fromkeys(name for p in points for name in p if name != "scale"):
        some = [p for p in points if name in p]
        axes.plot([p["scale"] for p in some], [p[name] for p in some], marker="o", label=name,
                  linestyle="-" if name in OBEYED else "--", linewidth=2.5 if name in OBEYED[:2] else 1)
    axes.plot(*zip(*PAPER), marker="*", markersize=12, linestyle="", color="grey",
              label="paper: SALMONN's IFrate,\nalpha 4 (0.125) and 32 (1)")
    axes.axvline(PAPER[0][0], color="grey", linestyle=":", linewidth=0.8)
    axes.set(title=title, xlabel="LoRA's scale, 1: as trained", ylabel="percent", ylim=(0, None))
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(f"{path}.part", format="png", dpi=120)
    os.replace(f"{path}.part", path)
    plt.close(figure)


# --- Files.

def read_items(path, *needed):
    """The lines of one of the benchmark's files -> list of dict; SystemExit where one is no item or lacks a key."""
    items = []
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                item = dict(json.loads(line.decode("utf-8")))
                lacking = [key for key in ("instruction", "metric", "audio_filepath", *needed)
                           if not isinstance(item.get(key), str)]
            except (ValueError, TypeError, RecursionError) as error:
                raise SystemExit(f"{path} line {number} is no item of Speech-IFEval ({error}); get it again") from None
            if lacking:
                raise SystemExit(f"{path} line {number} has no {lacking[0]!r}; it is another file than its name says")
            items.append(item)
    if not items:
        raise SystemExit(f"{path} is empty; get it again")
    return items


def questions_folder(raw):
    """Return the folder that holds eval_data/: `raw`, or data/ of a clone that is `raw` or lies in it."""
    places = [raw, os.path.join(raw, "data"), os.path.join(raw, "Speech-IFEval", "data")]
    return next((place for place in places if os.path.isdir(os.path.join(place, "eval_data"))), raw)


def item_id(corpus, group, item, number):
    """The row id of the `number`-th item of a group, from 0; chain-of-thought has no ids of its own."""
    return f"{corpus}/{group}/{item.get('id', number)}"


def read_predictions(path, corpus, group, data):
    """Our predictions of one group -> its questions with a response each; SystemExit unless each has one."""
    again = "remove it, and run infer.py on the same rows again"
    said = {}
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                prediction = json.loads(line)
                name, text = prediction["id"] + "", prediction["prediction"] + ""
            except (ValueError, KeyError, TypeError, RecursionError):
                raise SystemExit(f"{path} line {number} is not a prediction; {again}") from None
            if name in said:
                raise SystemExit(f"{path} line {number}: id {name!r} is there twice; {again}")
            said[name] = text
    source = os.path.join(data, f"{GROUPS[group][0]}.jsonl")
    if not os.path.exists(source):
        raise SystemExit(f"{source} is missing: --data names the folder eval_data with the questions")
    items = read_items(source)
    ids = [item_id(corpus, group, item, number) for number, item in enumerate(items)]
    if {*ids} != said.keys():
        raise SystemExit(f"{path}: {len({*ids} - said.keys())} items of {source} have no prediction, and "
                         f"{len(said.keys() - {*ids})} predictions no item; {again}")
    return [{**item, "response": said[name]} for name, item in zip(ids, items)]


def read_outputs(folder, corpus, data, stored=True):
    """
    A system's responses -> {group: items}: our predictions, or the benchmark's own files, with what their judge replied
    where that is `stored` beside them and was said of the same responses. SystemExit if there is nothing.
    """
    groups, known = {}, GROUPS if corpus == CORPUS else {group: (GROUPS[group][0], None) for group in WORLD}
    for group, (name, count) in known.items():
        ours, theirs = (os.path.join(folder, file) for file in (f"{corpus}.{group}.jsonl", f"{name}.jsonl"))
        if os.path.exists(ours):
            groups[group] = read_predictions(ours, corpus, group, data)
        elif os.path.exists(theirs):
            groups[group] = read_items(theirs, "response")
            report = os.path.join(folder, "reports", f"llm_eval@{name}.jsonl")
            if stored and os.path.exists(report):
                told = read_items(report, "response", "eval_response")
                if [item["response"] for item in told] != [item["response"] for item in groups[group]]:
                    raise SystemExit(f"{report} judges other responses than those in {theirs}; remove it, or name "
                                     "a --judge")
                groups[group] = told
        else:
            print(f"{folder}: no {group}, neither {os.path.basename(ours)} nor {os.path.basename(theirs)}")
            continue
        if count not in (None, len(groups[group])):
            print(f"{folder}: {len(groups[group])} items in {group}; published are {count}")
    if not groups:
        raise SystemExit(f"{folder} holds no responses; run infer.py with --test_sets "
                         + ",".join(f"{corpus}.{group}" for group in known))
    return groups


# --- Tables.

def table(head, lines):
    """A table in Markdown, without the columns that are empty."""
    used = [n for n in range(len(head)) if any(line[n] for line in lines)]
    lines = ["| " + " | ".join(line[n] for n in used) + " |" for line in [head, *lines]]
    return "\n".join([lines[0], "|---" * len(used) + "|", *lines[1:]])


def cell(value):
    return "" if value is None else f"{value:.2f}"


def tables(systems, reference=""):
    """{system: scores} and the name of the text LLM among them -> Markdown."""
    found, names = [], ["closed", "creative", "cot", "IFrate"]
    base = systems.get(reference, {})

    def forgotten(system, name):
        known = system != reference and base.get(name) and name in systems[system]
        return cell(forgetting_rate(systems[system][name], base[name]) if known else None)
    found.append(table(["system", *names, "forgetting", "forgetting, closed", "cot unparsable"], [
        [system, *(cell(s.get(name)) for name in names), forgotten(system, "IFrate"), forgotten(system, "closed"),
         cell(s.get("unparsable"))] for system, s in systems.items()]))
    ids = [*CLASSES, *CLOSED, *CREATIVE]
    found.append(table(["constraint", "items", *systems], [
        [name, str(max(s["constraints"].get(name, (0, 0))[1] for s in systems.values())),
         *(cell(s["constraints"].get(name, (None, 0))[0]) for s in systems.values())]
        for name in ids if any(name in s["constraints"] for s in systems.values())]))
    columns = [*TASKS.values(), "unparsable", "altered"]
    lines = [[system, {"closed": "with", "plain": "without"}[group], *(cell(tasks.get(name)) for name in columns)]
             for system, s in systems.items() for group, tasks in s["tasks"].items()]
    if lines:
        found.append(table(["system", "constraint", "ASR (WER)", *columns[1:]], lines))
    return "\n\n".join(found)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("systems", nargs="+", help="folders of responses")
    parser.add_argument("--reference", default="", help="folder of the text LLM's responses")
    parser.add_argument("--corpus", default=CORPUS, help="whose questions: the benchmark's, or a small world")
    parser.add_argument("--data", default="", help="its questions; else <work>/raw/<corpus>/eval_data")
    parser.add_argument("--judge", default="", help="a chat LLM, folder or hub name; or contains")
    parser.add_argument("--out", default="", help="a folder; else speech_ifeval beside that of the predictions")
    args = parser.parse_args(argv)
    run = os.path.dirname(os.path.dirname(os.path.abspath(args.systems[0])))       # <work>/<run>
    out = args.out or os.path.join(os.path.relpath(run), "speech_ifeval")
    raw = os.path.join(os.path.dirname(run), "raw", args.corpus)
    data = args.data or os.path.join(questions_folder(raw), "eval_data")
    folders = list(dict.fromkeys(filter(None, [*args.systems, args.reference])))
    names = [os.path.basename(os.path.normpath(folder)) for folder in folders]
    if len({*names}) < len(names):
        raise SystemExit(f"two systems have one name: {', '.join(names)}; score them one by one, each with an --out")
    os.makedirs(out, exist_ok=True)
    systems = {}
    for name, folder in zip(names, folders):
        groups = read_outputs(folder, args.corpus, data, stored=not args.judge)
        if args.judge:
            groups = judged(groups, args.judge, os.path.join(out, f"{name}.replies.jsonl"))
        systems[name] = scores(groups)
    text = tables(systems, names[folders.index(args.reference)] if args.reference else "")
    if args.corpus == CORPUS and not all("IFrate" in found for found in systems.values()):
        text += "\n\nno IFrate without closed, creative and a judge of cot: --judge names a chat LLM"
    for name, found in systems.items():
        write_text(os.path.join(out, f"{name}.json"), json.dumps(found, indent=1) + "\n")
    write_text(os.path.join(out, "results.md"), text + "\n")
    print(f"{text}\n\nin percent; in {out}/results.md, and a file a system beside it")


def write_text(path, text):
    """A whole file or none."""
    with open(f"{path}.part", "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(f"{path}.part", path)


if __name__ == "__main__":
    main()
