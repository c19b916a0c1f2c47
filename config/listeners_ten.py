"""Multilingual listeners, TEN: ten languages (section 6)."""
base = "listeners"
IN_10 = dict.fromkeys(["en", "fr", "nl", "tr", "de", "ar", "es", "ru", "id", "pl"], 1 / 10)
hours = {"commonvoice": 226, "multispeechqa": 796,      # of ten languages; covost2 as listeners
         "covost2-ar_en": 2, "covost2-id_en": 1, "covost2-ja_en": 1, "covost2-tr_en": 2, "covost2-zh_en": 7}
recipes = [f"commonvoice --languages {','.join(IN_10)}", f"multispeechqa --languages {','.join(IN_10)}",
           "covost2 --into-english ar,id,ja,tr,zh"]
stages = ["extract_features", "train_projector", "merge_sft --preset listeners_ten_align", "merge_sft", "infer", "eval"]
common = dict(systems="C-ten:merged-ten")
merge_sft = dict(out="merged-ten", projector="aligned-ten", lora="aligned-ten", mixture={"SQA": (1.0, IN_10)},
                 steps=10_547)
