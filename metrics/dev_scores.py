"""
What stage A is chosen by: scores of the decoded dev set at every validation, and the step that did best (2025,
section 5.1 A and appendix C.1).

    score_answers(rows, answers)    -> {"WER": 9.8, "BLEU de": 74.7, "BLEU it": 71.2, "BLEU zh": 73.0, "BLEU": 73.0}
    best_steps(validations)         -> {"ST": 200, "ASR": 300, "all": 300}
"""
from metrics.bleu import bleu
from metrics.error_rates import word_error_rate
from speech_llm.normalize import mms_normalize


def score_answers(rows, answers):
    """
    {"WER", "BLEU <language>", "BLEU" (their mean), "SQA"} in percent, for the tasks that the rows hold. SQA: the share
    of answers in which the reference occurs after normalisation (our choice: the paper's judge is no training tool).
    """
    groups, scores = {}, {}
    for row, text in zip(rows, answers):
        groups.setdefault((row["task"], row["language"]), []).append((row["target"], text))
    for (task, language), pairs in sorted(groups.items()):
        if task == "ASR":
            scores["WER"] = word_error_rate(*zip(*[[mms_normalize(t, language) for t in pair] for pair in pairs]))
        elif task == "ST":
            scores[f"BLEU {language}"] = bleu(*map(list, zip(*pairs)), language)
    each = [score for name, score in scores.items() if name.startswith("BLEU")]
    if each:
        scores["BLEU"] = sum(each) / len(each)
    asked = [[mms_normalize(t, row["language"], remove_numbers=False) for t in (row["target"], text)]
             for row, text in zip(rows, answers) if row["task"] in ("SQA", "MCQ")]
    if asked:
        scores["SQA"] = 100 * sum(target in text for target, text in asked) / len(asked)
    return scores


BEST = {  # name: what is largest at that step
    "ST": lambda scores: scores["BLEU"], "ASR": lambda scores: -scores["WER"], "SQA": lambda scores: scores["SQA"],
    "all": lambda scores: scores.get("BLEU", 0) - scores.get("WER", 0) + scores.get("SQA", 0),      # our choice
}


def best_steps(validations):
    """Lines of log.jsonl that hold scores -> {"ST": step, "ASR": step, "SQA": step, "all": step}; ties: the first."""
    needs = {"ST": "BLEU", "ASR": "WER", "SQA": "SQA"}
    return {name: max(validations, key=best)["step"] for name, best in BEST.items()
            if needs.get(name, "step") in validations[0]}
