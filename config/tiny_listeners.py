"""
The toy world of the multilingual listeners: a tiny Whisper, a window Q-Former from a tiny BERT, a tiny Cohere LLM,
LoRA on q and v; spoken questions in four languages. Everything here is our choice.
"""
run = "tiny-listeners"
world = dict(recipe="tiny_listeners", corpus="tiny-listeners", family="cohere", hesitate_from=0,
             train=1800, dev=80, test=320,               # spoken questions; as many of `heard` as of test
             sentences=1800,                             # spoken sentences without a meaning, in train
             whisper_steps=1400, llm_steps=1500)         # optimizer steps
stages = ["extract_features", "train_projector", "merge_sft --preset tiny_listeners_align", "merge_sft", "infer",
          "eval"]
IN_4 = {"en": 0.25, "de": 0.25, "it": 0.25, "zh": 0.25}
common = dict(corpora="tiny-listeners", encoder="models/tiny-whisper", mean=1, llm="models/tiny-cohere",
              prompt="listeners", systems="llm,cascade,C-align:aligned,C:merged",
              test_sets="tiny-listeners.test,tiny-listeners.heard")

extract_features = dict(batch_seconds=60.0, shard_frames=50_000, workers=2)
train_projector = dict(mixture={"ASR": (1.0, {"en": 1.0})}, shares={}, decode="tiny-listeners", keep="ASR",
                       projector="qformer", layers=2, heads=4, middle=128, ffn=256, text_encoder="models/tiny-bert",
                       accumulate=1, steps=0, lr=2e-3, warmup=20, cosine=True, micro_tokens=4096, validate_every=100,
                       validate_rows=24, max_new_tokens=40)
train_lora = None                            # the adapters are trained by merge_sft.py alone
merge_sft = dict(shares={}, text=False, projector="aligned", lora="aligned", random_r=16, random_alpha=16,
                 random_targets="q_proj,v_proj", mixture={"SQA": (0.8, IN_4), "ST": (0.2, {"en": 1.0})},
                 accumulate=2, steps=900, lr_projector=1e-3, lr_lora=1e-3, warmup_projector=20, warmup=20, cosine=True,
                 micro_tokens=4096, validate_every=100, validate_rows=16)
infer = dict(whisper="models/tiny-whisper", max_new_tokens=40, pictures="tiny-listeners.test")
eval = dict(metrics="WER,CER,BLEU,chrF,EM,CONTAINS,capped,loops", table_rows="languages", tables="", judges="")
