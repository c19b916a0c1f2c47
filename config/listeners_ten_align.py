"""Multilingual listeners, stage 1 of TEN: ASR in ten languages (section 6)."""
base = "listeners_align"
common = dict(systems="C-ten-align:aligned-ten")
IN_10 = dict.fromkeys(["en", "fr", "nl", "tr", "de", "ar", "es", "ru", "id", "pl"], 1 / 10)
merge_sft = dict(out="aligned-ten", mixture={"ASR": (1.0, IN_10)}, steps=11_250)
