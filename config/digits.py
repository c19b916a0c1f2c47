"""
The 2025 recipe on real voices: sequences of 3 to 6 digits from the Free Spoken Digit Dataset, tested on a speaker
that is never heard in training (HOLDOUT=theo). Tiny models are made on the spot. Everything here is our choice.
"""
base = "tiny"
run = "digits"
world = dict(recipe="digits", corpus="digits", family="llama", train=3000, dev=60, test=160, encoder_steps=260,
             llm_steps=450, like_speech_from=0)
stages = ["extract_features", ("train_projector", "train_lora"),
          ("merge_sft", "infer --systems llm,B:lora,A.1:projector"), "infer", "eval"]
common = dict(corpora="digits", encoder="models/digits-seamless", llm="models/digits-llama",
              test_sets="digits.test")
train_projector = dict(steps=400, validate_every=200, decode="digits")
merge_sft = dict(steps=300)
infer = dict(pictures="digits.test")
ablation_stages = {"A.2:projector-A.2": "train_projector --preset digits_a2"}
ablation_test_sets = "digits.test"
sweep = dict(corpus="digits", systems="llm,A.1:projector,B:lora", reference="llm", scaled="C:merged",
             scales="0,0.125,0.25,0.5,0.75,1", test_sets="digits.test", constraint_sets="digits.closed,digits.plain",
             judge="contains")
