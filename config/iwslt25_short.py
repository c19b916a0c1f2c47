"""IWSLT 2025, A.1 + B with Spoken-SQuAD's own short answers in C (Table 2). Shares A and B with iwslt25."""
base = "iwslt25"
common = dict(systems="C-short:merged-short")
merge_sft = dict(out="merged-short", shares={
    "ASR": {"covost2": 0.72, "europarlst": 0.18, "spokensquad": 0.10},
    "SQA": {"spokensquad": 1.0}, "QA": {"spokensquad": 1.0}})
