"""IWSLT 2025, A.2 + B with Spoken-SQuAD's own short answers in C (Table 2). Shares A.2 and B with iwslt25_a2."""
base = "iwslt25_a2"
common = dict(systems="C-A.2-short:merged-A.2-short")
merge_sft = dict(out="merged-A.2-short", shares={
    "ASR": {"covost2": 0.72, "europarlst": 0.18, "spokensquad": 0.10},
    "SQA": {"spokensquad": 1.0}, "QA": {"spokensquad": 1.0}})
