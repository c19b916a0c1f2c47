"""
A real speech LLM on one CPU core: Whisper base and SmolLM2-135M-Instruct, LJ Speech and spoken Wikipedia passages.
Everything here is our choice; data/small_cpu.py makes the rows and says which downloads and models it needs.

Stage A is the cheap way on a CPU: it never runs the LLM. It learns by CTC to spell the transcript with the first 500
merges of the LLM's tokenizer, whose tokens are frequent enough for two hours of speech. The blank is a space ("Ġ"
in the alphabet of byte-level BPE), which the LLM does not read. The encoder reads 12 seconds at once, a third of the
work of Whisper's 30; longer audio of tests is read in pieces.
One thread with BF16=1 took 58 minutes of CPU time: rows and frames 5, A 6, B 6, C 31, answers 10 (2026-11-28).
tests/README.md has the scores, and the settings that were tried.
"""
world = dict(recipe="small_cpu", human=300, words=28, train=900, dev=20, test=30)      # recordings, words, passages
stages = ["extract_features", "train_projector", "train_lora", "merge_sft", "infer", "eval"]
common = dict(corpora="small_cpu", encoder="models/whisper-base-12s", mean=4, llm="models/smollm2-135m-instruct",
              prompt="2025", whisper="models/whisper-base", systems="llm,cascade,B:lora,A-speller:projector,C:merged",
              test_sets="small_cpu.human,small_cpu.readers,small_cpu.test", micro_tokens=2048)

extract_features = dict(batch_seconds=60.0, shard_frames=50_000, workers=2)
train_projector = dict(
    objective="tokens", pad_token="Ġ", merges=500, mixture={"ASR": (1.0, {"en": 1.0})}, shares={},
    decode="", keep="ASR", projector="speller", layers=3, ffn=1024, dropout=0.2, batch_frames=600, micro_tokens=1200,
    accumulate=1, steps=800, lr=1e-3, warmup=50, cosine=True, clip=1.0, validate_every=200, validate_rows=40)
train_lora = dict(
    mixture={"QA": (1.0, {"en": (0.8, 0.2)})}, shares={}, r=16, alpha=32, batch=2, accumulate=4, steps=100, lr=5e-4,
    warmup=10, validate_every=50, validate_rows=16)
merge_sft = dict(
    mixture={"ASR": (0.8, {"en": 1.0}), "SQA": (0.2, {"en": (0.8, 0.2)})},
    shares={"ASR": {"small_cpu-human": 0.5, "small_cpu": 0.5}}, batch=2, accumulate=4,
    steps=300, lr_projector=1e-5,            # at a higher rate the projector emits units that nobody spoke
    lr_lora=5e-4, warmup_projector=5, warmup=10, cosine=True, validate_every=100, validate_rows=8)
infer = dict(max_new_tokens=60, batch=16, pictures="small_cpu.human")
eval = dict(metrics="WER,CER,EM,CONTAINS,ROUGE-1,capped,loops", tables="", judges="")

sweep = dict(corpus="small_cpu", systems="llm,A-speller:projector,B:lora", reference="llm", scaled="C:merged",
             scales="0.5,1", test_sets="small_cpu.test", constraint_sets="small_cpu.closed,small_cpu.plain",
             judge="contains", max_new_tokens=60)
