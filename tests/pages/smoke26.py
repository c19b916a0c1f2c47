"""The 2026 tiny world with a few utterances and steps, for the tests."""
base = "tiny26"
run = "smoke26"
world = dict(recipe="tiny", corpus="tiny26", family="qwen3", choices=True, train=48, dev=8, test=8, encoder_steps=2,
             llm_steps=2, like_speech_from=1)
train_projector = dict(steps=6, validate_every=3, validate_rows=4)
train_lora = dict(steps=6, validate_every=3, validate_rows=4)
merge_sft = dict(steps=6, validate_every=3, validate_rows=2)
infer = dict(max_new_tokens=12)
