"""
The toy world of the 2026 recipe: SpeechMapper on the table of a tiny Qwen3, then B and C; multiple choice, too.
Everything here is our choice.
"""
world = dict(recipe="tiny", corpus="tiny26", family="qwen3", choices=True, train=3600, dev=60, test=160,
             encoder_steps=480, llm_steps=1000, like_speech_from=0)
stages = ["extract_features", ("train_projector", "train_lora"),
          ("merge_sft", "infer --systems llm,B:lora,A:projector"), "infer", "eval"]
common = dict(corpora="tiny26", encoder="models/tiny26-seamless", mean=2, llm="models/tiny26-qwen3",
              systems="llm,B:lora,A:projector,C:merged", test_sets="tiny26.test")

extract_features = dict(batch_seconds=60.0, shard_frames=50_000, workers=2)
train_projector = dict(
    prompt="2026-zero-shot", objective="embeddings", mixture={"ASR": (1.0, {"en": 1.0})}, shares={}, decode="",
    keep="ASR", projector="mapper", layers=2, heads=4, ffn=512, middle=256, accumulate=1, batch_frames=800,
    micro_tokens=4096,
    steps=2400, lr=1.5e-3, warmup=20, cosine=True, clip=1.0, validate_every=400, validate_rows=24)
train_lora = dict(
    prompt="2026", shares={}, batch=4, accumulate=10, steps=150, lr=4e-3, warmup=20, micro_tokens=4096,
    validate_every=50, validate_rows=24,
    mixture={"MT": (0.6, {"de": 0.4, "it": 0.3, "zh": 0.3}),
             "QA": (0.4, {"en": (0.16, 0.04), "de": (0.24, 0.06), "it": (0.24, 0.06), "zh": (0.16, 0.04)})})
merge_sft = dict(
    prompt="2026", shares={}, batch=4, accumulate=8, steps=200, lr_projector=5e-4, lr_lora=1e-3, warmup=20,
    cosine=True, micro_tokens=4096, validate_every=100, validate_rows=16,
    mixture={"ASR": (0.3, {"en": 1.0}), "ST": (0.4, {"de": 0.4, "it": 0.4, "zh": 0.2}),
             "SQA": (0.3, {"en": (0.2, 0.05), "de": (0.2, 0.05), "it": (0.2, 0.05), "zh": (0.2, 0.05)})})
infer = dict(prompt="2026-zero-shot", max_new_tokens=40, pictures="tiny26.test")
eval = dict(metrics="WER,CER,BLEU,EM,CONTAINS,ROUGE-1,capped,loops", tables="", judges="")

sweep = dict(corpus="tiny26", systems="llm,A:projector,B:lora", reference="llm", scaled="C:merged",
             scales="0,0.125,0.25,0.5,0.75,1", test_sets="tiny26.test", constraint_sets="tiny26.closed,tiny26.plain",
             judge="contains")
