"""
`small` on a CPU over night: 5 hours of speech, and in stage A a speller, which spells with 500 merges of the LLM (as
`small_cpu` does). Time, computed at 0.1 TFLOP/s, two cores, not measured: frames 1 hour, A 1.3 hours, B a quarter of an
hour, C 1.5 hours, answers 1.5 hours.
The download is that of `small`. The rows differ, so the run needs another work folder:
WORK=work-night bash run_all.sh small_night
"""
base = "small_mapper"
run = "small_night"
recipes = ["librispeech --download", "librisqa --english --hours 5 --download"]
gpu_gb = 0
common = dict(mean=4, llm="HuggingFaceTB/SmolLM2-135M-Instruct", micro_tokens=2048,
              test_sets="librispeech.test,librisqa.test")
train_projector = dict(objective="tokens", pad_token="Ġ", merges=500, projector="speller", layers=4,
                       batch_frames=1200, micro_tokens=1200, accumulate=2, steps=2500, validate_every=250)
train_lora = dict(batch=8, accumulate=2, steps=100, validate_every=50)
merge_sft = dict(batch=8, accumulate=2, steps=400, lr_projector=1e-5, lr_lora=5e-4, validate_every=100)
infer = dict(batch=16)
