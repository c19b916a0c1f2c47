"""IWSLT 2025, A.2 + B with Spoken-SQuAD's own short answers in C (Table 2). Shares A.2 and B with iwslt25_a2."""
from config.iwslt25_short import merge_sft as short

base = "iwslt25_a2"
common = dict(systems="C-A.2-short:merged-A.2-short")
merge_sft = {**short, "out": "merged-A.2-short"}
