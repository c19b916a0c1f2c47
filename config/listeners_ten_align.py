"""Multilingual listeners, stage 1 of TEN: ASR in ten languages (section 6)."""
from config.listeners_ten import IN_10

base = "listeners_ten"
common = dict(systems="C-ten-align:aligned-ten")
merge_sft = dict(projector="projector", lora="random", out="aligned-ten", corpora="commonvoice",       # listeners_align
                 mixture={"ASR": (1.0, IN_10)}, accumulate=8, warmup_projector=800, warmup=800, steps=11_250)
