"""
The toy world of `bash run_all.sh`: the 2025 recipe on spoken sentences and tiny models that are made on the spot.
Everything here is our choice: no paper has a tiny world. Two CPU cores, no download, about 220 MB of disk.
"""
from config.iwslt25 import ablations as of_iwslt25

world = dict(recipe="tiny", corpus="tiny", family="llama", choices=False,
             train=3600, dev=60, test=160,               # utterances
             encoder_steps=360, llm_steps=650,           # optimizer steps of the encoder and of the LLM
             like_speech_from=391)                       # step from which the LLM reads texts like speech
stages = ["extract_features", ("train_projector", "train_lora"),
          ("merge_sft", "infer --systems llm,B:lora,A.1:projector"), "infer", "eval"]
common = dict(corpora="tiny", encoder="models/tiny-seamless", mean=3, llm="models/tiny-llama", prompt="2025",
              systems="llm,B:lora,A.1:projector,C:merged", test_sets="tiny.test", micro_tokens=4096)
LANGUAGES = {"de": 0.3, "it": 0.3, "zh": 0.4}

extract_features = dict(batch_seconds=60.0, shard_frames=50_000, workers=2)
train_projector = dict(
    mixture={"ASR": (0.4, {"en": 1.0}), "ST": (0.6, LANGUAGES)}, shares={},
    projector="transformer", layers=4, heads=4, ffn=512, dropout=0.0,
    batch=4, accumulate=4,                   # small draws: a step mixes tasks
    steps=350, lr=2e-3, warmup=20, cosine=True, validate_every=175, validate_rows=24, decode="tiny",
    max_new_tokens=40)
train_lora = dict(shares={}, batch=4, accumulate=10, steps=150, lr=4e-3, warmup=20, validate_every=75, validate_rows=24)
merge_sft = dict(shares={}, batch=4, accumulate=8, steps=150, lr_projector=5e-4, lr_lora=1e-3, warmup=20, cosine=True,
                 validate_every=75, validate_rows=16)
infer = dict(max_new_tokens=40, pictures="tiny.test")
eval = dict(metrics="WER,CER,BLEU,EM,CONTAINS,ROUGE-1,capped,loops", tables="", judges="")

# what C changes: as iwslt25, without the entries on synthetic text, which need several corpora; "2k": twice the steps
ablations = {name: changes for name, changes in of_iwslt25.items() if "synthetic" not in name} | {"2k": dict(steps=300)}
ablation_stages = {"A.2:projector-A.2": "train_projector --preset tiny_a2"}
ablation_test_sets = "tiny.test"

sweep = dict(corpus="tiny", systems="llm,A.1:projector,B:lora", reference="llm", scaled="C:merged",
             scales="0,0.125,0.25,0.5,0.75,1", test_sets="tiny.test", constraint_sets="tiny.closed,tiny.plain",
             judge="contains")
