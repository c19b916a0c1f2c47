"""Multilingual listeners, stage 1: ASR in 23 languages, 20 hours each; Q-Former and fresh adapters (section 6, A.6)."""
from config.listeners import IN_23

base = "listeners"
common = dict(systems="C-align:aligned")
# 10 epochs of 20 hours a language, if an utterance is 5 s long (our choice); batches of 128
merge_sft = dict(projector="projector", lora="random", out="aligned", corpora="commonvoice",
                 mixture={"ASR": (1.0, IN_23)}, accumulate=8, warmup_projector=800, warmup=800, steps=25_875)
