"""
Scores by which stage A chooses its step: of the decoded dev set at every validation (2025, section 5.1 A and C.1).

    score_answers(rows, answers)    -> {"WER en": 9.8, "WER": 9.8, "BLEU de": 74.7, "BLEU it": 71.2, "BLEU": 73.0}
    best_steps(validations)         -> {"ST": 200, "ASR": 300, "all": 300}
"""
from metrics.bleu import bleu
from metrics.error_rates import cer, wer
from metrics.exact import plain_pair
from metrics.texts import CHARACTERS, comparable, mean_percent


def score_answers(rows, answers):
    """
    Return {name: percent} for the tasks of the rows, a language at a time, and the means over the languages.

    "WER <language>" is a WER; Chinese and Japanese have "CER <language>" in its place. "WER" is the mean over the
    languages, CER among WER, and "BLEU" the mean of "BLEU <language>": languages weigh the same. "SQA" is the share of
    all answers that contain the reference (our choice: the paper's judge is too slow for every validation).
    """
    groups, scores = {}, {}
    for row, text in zip(rows, answers, strict=True):
        groups.setdefault((row["task"], row["language"]), []).append((row["target"], text))
    right = []
    for (task, language), pairs in sorted(groups.items()):
        references, predictions = map(list, zip(*pairs))
        if task == "ASR":
            name, score = ("CER", cer) if language in CHARACTERS else ("WER", wer)
            scores[f"{name} {language}"] = score(references, predictions, language)
        elif task == "ST":
            scores[f"BLEU {language}"] = bleu(references, predictions, language)
        else:
            right += [r in p for r, p in comparable(references, predictions, language, plain_pair)]
    scores = {name: score for name, score in scores.items() if score is not None}
    for mean, parts in (("WER", ("WER ", "CER ")), ("BLEU", ("BLEU ",))):
        values = [score for name, score in scores.items() if name.startswith(parts)]
        if values:
            scores[mean] = sum(values) / len(values)
    return {**scores, "SQA": mean_percent(right)} if right else scores


BEST = {  # name: what is largest at that step
    "ST": lambda scores: scores["BLEU"], "ASR": lambda scores: -scores["WER"], "SQA": lambda scores: scores["SQA"],
    "all": lambda scores: scores.get("BLEU", 0) - scores.get("WER", 0) + scores.get("SQA", 0),      # our choice
}


def best_steps(validations):
    """Return {"ST": step, "ASR": step, "SQA": step, "all": step} of lines of log.jsonl; of equals the first."""
    needs = {"ST": "BLEU", "ASR": "WER", "SQA": "SQA"}
    return {name: max(validations, key=best)["step"] for name, best in BEST.items()
            if needs.get(name, "step") in validations[0]}
