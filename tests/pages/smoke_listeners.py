"""The tiny listeners' world with a few utterances and steps, for the tests."""
base = "tiny_listeners"
run = "smoke-listeners"
world = dict(recipe="tiny_listeners", corpus="tiny-listeners", family="cohere", hesitate_from=0, train=32, dev=16,
             test=16, sentences=16, whisper_steps=2, llm_steps=2)
stages = ["extract_features", "train_projector", "merge_sft --preset tests/pages/smoke_listeners_align.py", "merge_sft",
          "infer", "eval"]
merge_sft = dict(steps=6, validate_every=3)
infer = dict(max_new_tokens=12)
