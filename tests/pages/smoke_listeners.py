"""The tiny listeners' world with a few utterances and steps, for the tests."""
from config.tiny_listeners import sweep as tiny_sweep

base = "tiny_listeners"
run = "smoke-listeners"
world = dict(recipe="tiny_listeners", corpus="tiny-listeners", family="cohere", like_speech_from=0, train=32, dev=16,
             test=16, sentences=16, whisper_steps=2, llm_steps=2)
stages = ["extract_features", "train_projector",
          ("merge_sft --preset tests/pages/smoke_listeners_align.py", "infer --systems llm,cascade"),
          ("merge_sft", "infer --systems C-align:aligned"), "infer", "eval"]
merge_sft = dict(steps=6, validate_every=3)
infer = dict(max_new_tokens=12)
sweep = {**tiny_sweep, "scales": "0,1"}
