"""IWSLT 2025, A.1 + B with Spoken-SQuAD's own short answers in C (Table 2). Shares A and B with iwslt25."""
from config.iwslt25 import FLUENT

base = "iwslt25"
common = dict(systems="C-short:merged-short")
merge_sft = dict(out="merged-short", shares={**FLUENT, "SQA": {"spokensquad": 1.0}, "QA": {"spokensquad": 1.0}})
