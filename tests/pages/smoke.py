"""The tiny world with a few utterances and steps, for the tests."""
from config.tiny import ablations as tiny_ablations, sweep as tiny_sweep

base = "tiny"
run = "smoke"
world = dict(recipe="tiny", corpus="tiny", family="llama", choices=False, train=48, dev=8, test=8, encoder_steps=2,
             llm_steps=2, like_speech_from=1)
train_projector = dict(steps=6, validate_every=3, validate_rows=4)
train_lora = dict(steps=6, validate_every=3, validate_rows=4)
merge_sft = dict(steps=6, validate_every=3, validate_rows=2)
infer = dict(max_new_tokens=12)
ablations = {"no-sqa": tiny_ablations["no-sqa"]}
ablation_stages = {"A.2:projector-A.2": "train_projector --preset tests/pages/smoke_a2.py"}
sweep = {**tiny_sweep, "scales": "0,0.5,1"}
