"""Multilingual listeners, stage 1 of TEN: ASR in ten languages (section 6)."""
base = "listeners_ten"
common = dict(systems="C-ten-align:aligned-ten")
IN_10 = dict.fromkeys(["en", "fr", "nl", "tr", "de", "ar", "es", "ru", "id", "pl"], 1 / 10)
merge_sft = dict(projector="projector", lora="random", out="aligned-ten", corpora="commonvoice",       # listeners_align
                 mixture={"ASR": (1.0, IN_10)}, accumulate=8, warmup_projector=800, warmup=800, steps=11_250)
