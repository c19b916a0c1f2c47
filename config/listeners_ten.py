"""Multilingual listeners, TEN: ten languages (section 6)."""
from config.listeners_ten_align import IN_10

base = "listeners"
recipes = [f"commonvoice --languages {','.join(IN_10)}", f"multispeechqa --languages {','.join(IN_10)}",
           "covost2 --into-english"]
stages = ["extract_features", "train_projector", "merge_sft --preset listeners_ten_align", "merge_sft", "infer", "eval"]
common = dict(systems="C-ten:merged-ten")
merge_sft = dict(out="merged-ten", projector="aligned-ten", lora="aligned-ten", mixture={"SQA": (1.0, IN_10)},
                 steps=10_547)
