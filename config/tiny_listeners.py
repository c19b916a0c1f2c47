"""
The toy world of the multilingual listeners: a tiny Whisper, a window Q-Former from a tiny BERT, a tiny Cohere LLM,
LoRA on q and v; spoken questions in four languages. Everything here is our choice.
"""
run = "tiny-listeners"
world = dict(recipe="tiny_listeners", corpus="tiny-listeners", family="cohere", like_speech_from=0,
             train=1400, dev=80, test=320,               # spoken questions; as many of `heard` as of test
             sentences=4600,                             # spoken sentences without a meaning, in train
             whisper_steps=1400, llm_steps=900)          # optimizer steps
stages = ["extract_features", "train_projector",
          ("merge_sft --preset tiny_listeners_align", "infer --systems llm,cascade"),
          ("merge_sft", "infer --systems C-align:aligned"), "infer", "eval"]
IN_4 = {"en": 0.25, "de": 0.25, "it": 0.25, "zh": 0.25}
common = dict(corpora="tiny-listeners", encoder="models/tiny-whisper", mean=1, llm="models/tiny-cohere",
              prompt="listeners", systems="llm,cascade,C-align:aligned,C:merged",
              test_sets="tiny-listeners.test,tiny-listeners.heard")

extract_features = dict(batch_seconds=60.0, shard_frames=50_000, workers=2)
train_projector = dict(                      # a fresh Q-Former; the questions and sentences are short: a smaller window
    mixture={"ASR": (1.0, {"en": 1.0})}, shares={}, decode="tiny-listeners", keep="ASR",
    projector="qformer", layers=2, heads=4, middle=128, ffn=256, dropout=0.0, window=11,
    text_encoder="models/tiny-bert", steps=0)
train_lora = None                            # the adapters are trained by merge_sft.py alone
merge_sft = dict(shares={}, paired_text=False, projector="aligned", lora="aligned", random_r=16, random_alpha=16,
                 random_targets="q_proj,v_proj", mixed=True,
                 mixture={"SQA": (0.5, IN_4), "ASR": (0.4, IN_4), "ST": (0.1, {"en": 1.0})},
                 accumulate=1, steps=2400, lr_projector=2e-3, lr_lora=5e-4, warmup_projector=20, warmup=20, cosine=True,
                 micro_tokens=4096, validate_every=800, validate_rows=16)
infer = dict(whisper="models/tiny-whisper", max_new_tokens=40, pictures="tiny-listeners.test")
eval = dict(metrics="WER,CER,BLEU,chrF,EM,CONTAINS,capped,loops", table_rows="languages", tables="", judges="")

sweep = dict(corpus="tiny-listeners", systems="cascade,llm,C-align:aligned", reference="cascade,llm",
             scaled="C:merged", scales="0,0.125,0.25,0.5,0.75,1", test_sets="tiny-listeners.test",
             constraint_sets="tiny-listeners.closed,tiny-listeners.plain", judge="contains")
