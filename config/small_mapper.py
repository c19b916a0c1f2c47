"""
`small` as the 2026 system is trained: SpeechMapper on the LLM's table (A), then C with fresh adapters after B.

Stage A never runs the LLM: an utterance costs 55 GFLOP in place of 372, so that 8 epochs take 20 minutes on the GPU of
`small` (computed at 10 TFLOP/s, not measured). Disk: 10 GB of frames (92 MB an hour). Rows, models and
C are those of `small`.
"""
from config.small import sweep as of_small

base = "small"
run = "small_mapper"
common = dict(mean=2, systems="llm,cascade,B:lora,A:projector,C:merged")
train_projector = dict(
    objective="embeddings", pad_token="<file_sep>", projector="mapper", layers=3, middle=1024, batch_frames=12_000,
    accumulate=1, steps=6000, lr=1e-3, warmup=200, decode="", validate_every=1000)       # 8 epochs of 100 hours
sweep = {**of_small, "systems": "llm,cascade,A:projector,B:lora"}
