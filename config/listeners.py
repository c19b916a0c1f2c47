"""
Multilingual listeners, ALL, 23 languages: Whisper + window Q-Former + Aya with LoRA (OpenReview cL3M1VwZyn).
Sections and tables are the paper's. SQA has no text beside the speech: the question is what is spoken.

Audio: 2,363 h. Disk: 1,089 GB of frames (461 MB an hour: 50 Hz x 1,280 x 2 bytes), 211 GB of audio that recipes write,
16 GB of LLM. Memory: A100-80GB. The paper gives no times; `bash run_all.sh listeners rehearse` measures them.

    bash run_all.sh listeners                 # ALL and the cascade: Table 3's first column; C against the cascade
    bash run_all.sh listeners_ast             # Figure 6, after it: ALL+AST, TEN, TEN+AST, each against those there
    bash run_all.sh listeners_ten
    bash run_all.sh listeners_ten_ast
    bash run_all.sh omni                      # Table 4, Figures 5 and 10: see config/omni.py
    python infer.py --preset listeners --systems hub:Qwen/Qwen2-Audio-7B-Instruct             # Table 3's other columns
    python infer.py --preset listeners --systems hub:Qwen/Qwen2.5-Omni-7B
    python infer.py --preset listeners --systems hub:microsoft/Phi-4-multimodal-instruct@refs/pr/70
    python eval.py --preset listeners
    python -m metrics.pairwise work/listeners/predictions/Qwen2-Audio-7B-Instruct work/listeners/predictions/cascade
        --judge CohereLabs/c4ai-command-a-03-2025             # Figures 3 and 8; of the other two 9 and 7 alike

Speech-IFEval: `bash run_all.sh listeners sweep` runs it whole. Its three first experiments alone, after
`python -m data.speech_ifeval` and `python extract_features.py --preset listeners --corpora speech_ifeval`; C is the
end-to-end model. First its answers and the cascade's, then the cascade, the forgetting rates, the types of constraints:
    python infer.py --preset listeners --systems llm,cascade,C:merged --max_new_tokens 2048
        --test_sets speech_ifeval.closed,speech_ifeval.plain,speech_ifeval.creative,speech_ifeval.cot
    python -m metrics.speech_ifeval work/listeners/predictions/cascade --judge Qwen/Qwen3-30B-A3B-Instruct-2507
    python -m metrics.speech_ifeval work/listeners/predictions/C --judge Qwen/Qwen3-30B-A3B-Instruct-2507
        --reference work/listeners/predictions/cascade work/listeners/predictions/llm
    python -m metrics.speech_ifeval work/listeners/predictions/C --out work/listeners/by_constraint
        --reference work/listeners/predictions/cascade          # rules decide, no judge
"""
hours = {"commonvoice": 520, "multispeechqa": 1830,     # 20 h, 1,100 clips and 93,200 questions of 3.07 s a language
         # covost2: released test clips of 5 s (our estimate)
         "covost2-ar_en": 2, "covost2-id_en": 1, "covost2-ja_en": 1, "covost2-tr_en": 2, "covost2-zh_en": 7}
gpu_gb = 80
recipes = ["commonvoice", "multispeechqa", "covost2 --into-english ar,id,ja,tr,zh"]
stages = ["extract_features", "train_projector", "merge_sft --preset listeners_align", "merge_sft", "infer", "eval"]
IN_23 = dict.fromkeys(["en", "de", "it", "zh", "ar", "cs", "el", "es", "fa", "fr", "he", "hi", "id", "ja", "ko", "nl",
                       "pl", "pt", "ro", "ru", "tr", "uk", "vi"], 1 / 23)    # languages alike; section 6
BENCH = ("multispeechqa.bench,commonvoice.test,covost2-ar_en.test,covost2-id_en.test,covost2-ja_en.test,"
         "covost2-tr_en.test,covost2-zh_en.test")                            # MultiSpeech-Bench
common = dict(encoder="openai/whisper-large-v3", mean=1, llm="CohereLabs/aya-expanse-8b", prompt="listeners",  # A.6
              systems="llm,cascade,C:merged", test_sets=BENCH)

extract_features = dict(corpora=f"commonvoice.train,commonvoice.dev,multispeechqa.train,multispeechqa.dev,{BENCH}")
train_projector = dict(                      # a fresh Q-Former of two layers of mBERT; A.6
    corpora="multispeechqa", mixture={"ASR": (1.0, {"en": 1.0})}, shares={}, decode="multispeechqa", keep="ASR",
    projector="qformer", layers=2, heads=12, middle=768, ffn=3072,
    text_encoder="google-bert/bert-base-multilingual-cased", steps=0)
train_lora = None                            # the adapters are trained by merge_sft.py alone
merge_sft = dict(                            # stage 2: questions, 3 epochs of 90,000 a language; A.6, Table 5
    prompt="listeners", shares={}, paired_text=False, projector="aligned", lora="aligned", corpora="multispeechqa",
    random_r=64, random_alpha=64, random_targets="q_proj,v_proj",            # without SALMONN's dropout (our choice)
    mixture={"SQA": (1.0, IN_23)}, mixed=True, accumulate=16, steps=24_258,  # mixed batches of 256; section 6
    lr_projector=1e-5, lr_lora=1e-5, warmup_projector=400, warmup=400,
    cosine=True,                             # to 0; SALMONN's falls to a third of its rate (our choice)
    decay_projector=0.05, decay_lora=0.05,   # SALMONN's (our choice)
    micro_tokens=6144, validate_every=500, validate_rows=20)                 # (our choice)
infer = dict(max_new_tokens=300)             # (our choice)
eval = dict(metrics="WER,CER,BLEU,chrF,capped,loops", table_rows="languages", tables="listeners Table 3")

hub = ["Qwen/Qwen2-Audio-7B-Instruct", "Qwen/Qwen2.5-Omni-7B", "microsoft/Phi-4-multimodal-instruct@refs/pr/70"]

# After eval: the systems of this page, and those of other pages that have predictions; Figure 6 and section 6.1
pairwise = dict(judge="CohereLabs/c4ai-command-a-03-2025", test_set="multispeechqa.bench",
                pairs=["C cascade", "C-ast C", "C-ten C", "C-ten-ast C", "C-ast C-ten-ast", "C-ast C-ten"])
sweep = dict(                                # Speech-IFEval (arXiv 2505.19037): the LLM on transcripts, Whisper's first
    recipes=["speech_ifeval"], corpus="speech_ifeval", systems="cascade,llm,C-align:aligned", reference="cascade,llm",
    scaled="C:merged", scales="0,0.125,0.25,0.5,0.75,1", max_new_tokens=2048,
    constraint_sets="speech_ifeval.closed,speech_ifeval.plain,speech_ifeval.creative,speech_ifeval.cot",
    judge="Qwen/Qwen3-30B-A3B-Instruct-2507")
