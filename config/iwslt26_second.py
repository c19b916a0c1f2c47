"""
The second stage of the original SpeechMapper (ICASSP 2026, arXiv 2601.20417) on the projector of iwslt26: 1,000 steps
through the frozen LLM on ASR, with the embeddings' squared error as 0.9 of the loss. The figures come from summaries of
that paper, whose full text was not at hand.
"""
base = "iwslt26"
stages = ["train_projector", "infer", "eval"]
common = dict(systems="A-second:projector-second")
train_projector = dict(out="projector-second", start="projector", objective="answers", sigma=0.9, batch=12,
                       accumulate=8, steps=1000, lr=1e-4, warmup=0, cosine=False, clip=0.0, micro_tokens=8192,
                       validate_every=250, validate_rows=100, decode="covost2", max_new_tokens=150, keep="ASR")
