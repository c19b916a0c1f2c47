"""The toy listeners' stage 1: ASR in four languages; the Q-Former and fresh adapters."""
from config.tiny_listeners import IN_4

base = "tiny_listeners"
common = dict(systems="C-align:aligned")
merge_sft = dict(projector="projector", lora="random", out="aligned", mixture={"ASR": (1.0, IN_4)}, steps=2000,
                 lr_projector=4e-3, lr_lora=3e-3)
