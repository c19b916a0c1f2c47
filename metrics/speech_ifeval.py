"""
Speech-IFEval: does a speech LLM still do what it is told, and what did its training cost the text LLM (arXiv 2505.19037).

    python metrics/speech_ifeval.py work/iwslt25/predictions/C --reference work/iwslt25/predictions/llm
        --judge Qwen/Qwen3-30B-A3B-Instruct-2507
    python metrics/speech_ifeval.py outputs/DeSTA-ntu--DeSTA2-8B-beta         # a folder of the benchmark's own outputs

reads   a folder a system: speech_ifeval.<group>.jsonl as infer.py writes it, or the benchmark's own files with a
        "response" a line, and then reports/llm_eval@*.jsonl, what its judge replied, unless --judge names another;
        the benchmark's questions (--data), which data/speech_ifeval.py made the rows from
writes  <out>/results.md, <out>/<system>.json, and <out>/<system>.replies.jsonl, what the judge replied: a second run
        asks only what is new

closed, creative    percent of responses that obey their constraint (metrics/ifeval.py); cot: that show reasoning, as
                    a judge finds. IFrate is the plain mean of the three, and there is none without the three
forgetting          100 (IFrate - reference) / reference, where the reference is the text LLM that reads transcripts
tasks               closed-ended questions with and without the constraint: WER of the transcript that the judge cuts
                    out of the response; percent of the other responses that the judge finds right
unparsable          percent of replies without a verdict, which count neither way (the published script stops at one)

The paper's judge is gpt-4o-2024-11-20; any local chat LLM can be ours, and its figures are its own. The judge's system
turns are the published ones, byte for byte. Published for DeSTA2: 83.71, 91.75 and 91.50, whose mean is 88.99, and
89.23 as its IFrate.
"""
import argparse
import json
import os
import re
import sys
from collections import defaultdict
from contextlib import suppress

if __name__ == "__main__":  # `python metrics/speech_ifeval.py`: imports start at the project's folder
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from metrics.ifeval import CLOSED, CREATIVE, rates
from metrics.normalize import word_error_rate

GROUPS = {                                  # name: (file of the benchmark, items)
    "closed": ("closed_ended_questions", 933),
    "plain": ("closed_ended_questions-woprompt", 933),      # the closed-ended questions without a constraint
    "creative": ("creative_writing", 400),
    "cot": ("chain-of-thought", 200),
}
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
         "MMAU": "MMAU"}

JUDGE = {                                   # the judge's system turn, as published (e2e9c14, script/llm_evaluation.py)
    "accuracy": """\
You will be given a question, a corresponding correct answer and a response from a model. 
Model's Response is a reply to the Question. Your task is to judge if "Model's Response" aligns with the "Ground Truth Answer" based on the "Question". 
Please strictly follow the guidelines below:
- Answer with the format "Result: <YES or NO>" at the end.
- Output "YES" if the response aligns with the ground truth answer; output "NO" if the response does not match the ground truth answer.
""",
}
