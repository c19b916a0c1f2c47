"""The tiny world with a few utterances and steps, for the tests."""
base = "tiny"
run = "smoke"
world = dict(recipe="tiny", corpus="tiny", family="llama", choices=False, train=240, dev=16, test=16, encoder_steps=6,
             llm_steps=20, hesitate_from=13)
stages = ["extract_features", "train_projector", "train_projector --preset tests/pages/smoke_a2.py", "train_lora",
          "merge_sft", "infer", "eval"]
train_projector = dict(steps=6, validate_every=3, validate_rows=4)
train_lora = dict(steps=6, validate_every=3, validate_rows=4)
merge_sft = dict(steps=6, validate_every=3, validate_rows=2)
infer = dict(max_new_tokens=12)
