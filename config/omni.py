"""
Multilingual listeners, section 5: Qwen2.5-Omni as it is ("Omni") and fine-tuned on MultiSpeechQA ("Omni-FT").

Stage 0 runs Qwen2.5-Omni's own audio encoder, whose frames have the LLM's width, so the projector is the identity and
has no parameters. The turn is that of the model's chat template, its system text included (our choice), with the audio
tags around the frames. LoRA is on all linear modules of every layer of the LLM; the encoder's frames are cached, so its
layers get none (our choice).

Audio: 1,875 h. Disk: 1,210 GB of frames (645 MB an hour: 25 Hz x 3,584 x 2 bytes), 211 GB of audio that recipes write,
22 GB of model. Memory: A100-80GB. The paper gives no times.

    bash run_all.sh omni                      # Table 4, and the pairs of Figures 5, 9 and 10
    python -m metrics.pairwise work/omni/predictions/Omni-FT work/omni/predictions/Omni
        --judge CohereLabs/c4ai-command-a-03-2025             # Figure 5: the row "mean"; Figure 10: its languages
    python -m metrics.pairwise work/omni/predictions/Omni work/listeners/predictions/cascade
        --judge CohereLabs/c4ai-command-a-03-2025             # Figure 9; of Figure 3 one bar
    bash run_all.sh omni sweep                # Speech-IFEval: the LLM inside, on Whisper's transcripts and on gold ones
"""
from config.listeners import BENCH, IN_23

hours = {"commonvoice": 32, "multispeechqa": 1830,      # 1,000 test clips of 5 s; as listeners
         "covost2-ar_en": 2, "covost2-id_en": 1, "covost2-ja_en": 1, "covost2-tr_en": 2, "covost2-zh_en": 7}
gpu_gb = 80
recipes = ["multispeechqa", "commonvoice", "covost2 --into-english ar,id,ja,tr,zh"]
stages = ["extract_features", "train_projector", "merge_sft", "infer", "eval"]
common = dict(encoder="Qwen/Qwen2.5-Omni-7B", mean=1, llm="Qwen/Qwen2.5-Omni-7B", prompt="omni",
              systems="Omni:projector,Omni-FT:merged", test_sets=BENCH)

extract_features = dict(corpora=f"multispeechqa.train,multispeechqa.dev,{BENCH}")
train_projector = dict(projector="identity", steps=0, corpora="multispeechqa", mixture={"ASR": (1.0, {"en": 1.0})},
                       shares={}, decode="multispeechqa", keep="ASR")
train_lora = None                            # the adapters are trained by merge_sft.py alone
merge_sft = dict(                            # "a fixed number of steps, equalling roughly 3 epochs"; section 5
    shares={}, paired_text=False, lora="random", corpora="multispeechqa",
    random_r=32,                             # section 5; on all linear modules, merge_sft.py's targets
    random_alpha=64,                         # the paper is silent (our choice)
    mixture={"SQA": (1.0, IN_23)}, mixed=True,
    accumulate=16, steps=24_258,             # 3 epochs of 90,000 a language in batches of 256, as Table 5 (our choice)
    lr_lora=1e-4, warmup=400, decay_lora=0.0, micro_tokens=6144, validate_every=500, validate_rows=20)   # (our choice)
infer = dict(max_new_tokens=300)             # (our choice)
eval = dict(metrics="WER,CER,BLEU,chrF,capped,loops", table_rows="languages",
            tables="listeners Table 3,listeners Table 4")

pairwise = dict(judge="CohereLabs/c4ai-command-a-03-2025", test_set="multispeechqa.bench",
                pairs=["Omni-FT Omni", "Omni listeners/cascade", "Omni-FT listeners/cascade"])
sweep = dict(                                # Speech-IFEval (arXiv 2505.19037)
    recipes=["speech_ifeval"], corpus="speech_ifeval", systems="cascade,llm,Omni:projector", reference="cascade,llm",
    scaled="Omni-FT:merged", scales="0,0.125,0.25,0.5,0.75,1", max_new_tokens=2048,
    constraint_sets="speech_ifeval.closed,speech_ifeval.plain,speech_ifeval.creative,speech_ifeval.cot",
    judge="Qwen/Qwen3-30B-A3B-Instruct-2507")
