"""
IWSLT 2026 submission, setup 1: SpeechMapper + LoRA on Qwen3-4B (arXiv 2607.01960). Sections and tables are the paper's.

Audio: 10,950 h. Disk: 2,018 GB of frames (184 MB an hour; GigaST alone 1.84 TB), 16 GB of audio that recipes write,
8 GB of LLM. Memory: A100-80GB. Time (paper): A 2 days on four GPUs, B 4 days, C 2 hours.
`NPROC=4 bash run_all.sh iwslt26` uses four GPUs; `bash run_all.sh iwslt26 rehearse` measures the time.
"""
hours = {"gigast": 10_000, "covost2": 430, "europarlst": 92, "librisqa": 364, "fakacl": 51, "librispeech": 11,
         "mcif": 2}
gpu_gb = 80
recipes = ["mcif", "covost2", "europarlst", "librispeech", "librisqa", "fakacl", "gigast"]
stages = ["extract_features", "train_projector", "train_lora", "merge_sft", "infer", "eval"]
common = dict(mean=2, llm="Qwen/Qwen3-4B-Instruct-2507",                                            # section 4
              systems="llm,B:lora,seamless,seamless-text,A:projector,C:merged",
              test_sets="librispeech.test,librispeech.test-other,covost2.test,europarlst.test,librisqa.test,mcif.test")

extract_features = dict(corpora="covost2,europarlst,gigast,librispeech,librisqa,fakacl,mcif")

train_projector = dict(                      # SpeechMapper, sections 3.1 and 6.1
    corpora="covost2,europarlst,gigast,librisqa", prompt="2026-zero-shot", objective="embeddings",
    mixture={"ASR": (1.0, {"en": 1.0})}, shares={}, decode="", keep="ASR",
    projector="mapper", layers=6, middle=2048,
    accumulate=8,                            # 2 on each of the paper's 4 GPUs; section 6.1
    lr=1e-4, warmup=50_000, steps=500_000, cosine=True,                      # section 6.1; cosine (our choice)
    clip=1.0, batch_frames=12_000, micro_tokens=12_000,                      # the paper is silent (our choice)
    validate_every=5000, validate_rows=500)                                  # (our choice)

MT = {  # {corpus: rows} of Table 5, whatever part of GigaST is there; GigaST's share is what to change
    "MT de": {"covost2": 289_413, "europarlst": 32_628, "gigast": 7_645_641, "librisqa": 36_707, "fakacl": 9_722},
    "MT it": {"europarlst": 29_552, "gigast": 3_004_804, "librisqa": 75_378, "fakacl": 14_999},
    "MT zh": {"covost2": 289_413, "gigast": 7_645_641, "librisqa": 22_211, "fakacl": 4_659}}

train_lora = dict(                           # section 6.1
    corpora="covost2,europarlst,gigast,librisqa,fakacl", prompt="2026", batch=16, accumulate=8, steps=30_000, lr=3e-4,
    mixture={"MT": (0.6, {"de": 0.4, "it": 0.3, "zh": 0.3}),
             # valid and invalid 4 : 1 (our choice)
             "QA": (0.4, {"en": (0.16, 0.04), "de": (0.24, 0.06), "it": (0.24, 0.06), "zh": (0.16, 0.04)})},
    shares=MT)

merge_sft = dict(                            # section 6.1, setup 1; Tables 6 and 13
    corpora="covost2,europarlst,gigast,librisqa,fakacl", prompt="2026", batch=8, accumulate=6, steps=3000,
    lr_projector=5e-5, lr_lora=1e-5,
    mixture={"ASR": (0.3, {"en": 1.0}),
             "ST": (0.4, {"de": 0.4, "it": 0.4, "zh": 0.2}),
             "SQA": (0.3, {"en": (0.2, 0.05), "de": (0.2, 0.05), "it": (0.2, 0.05), "zh": (0.2, 0.05)})},
    # Table 6: ASR and ST from CoVoST 2 and Europarl-ST alone; A's shares of 2025 for ASR (our choice), ST by size
    shares={**MT, "ASR": {"covost2": 0.8, "europarlst": 0.2}, "ST": {"covost2": 289_413, "europarlst": 32_628}})

infer = dict(prompt="2026-zero-shot", max_new_tokens=100,                                                # section 5
             submission={"C": "NLE_IWSLT26_IF_SHORT_CONSTRAINED_PRIMARY",                                # section 7
                         "iwslt25-C": "NLE_IWSLT26_IF_SHORT_UNCONSTRAINED_CONTRASTIVE1"})
eval = dict(judges="utter-project/EuroLLM-9B-Instruct,google/gemma-3-12b-it,google/gemma-3-27b-it",      # section 5
            tables="2026 Table 1,2026 Table 2,2026 Table 4", examples="A,C")

sweep = dict(                                # Speech-IFEval (arXiv 2505.19037)
    recipes=["speech_ifeval"], corpus="speech_ifeval", systems="llm,cascade,A:projector,B:lora",
    reference="cascade,llm", scaled="C:merged", scales="0,0.125,0.25,0.5,0.75,1", max_new_tokens=2048,
    constraint_sets="speech_ifeval.closed,speech_ifeval.plain,speech_ifeval.creative,speech_ifeval.cot",
    judge="Qwen/Qwen3-30B-A3B-Instruct-2507")
