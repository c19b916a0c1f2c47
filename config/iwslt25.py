"""
IWSLT 2025 submission: A.1 + B + C with fluent answers (arXiv 2506.01808). Sections and tables are the paper's.

The constants at the top of the stages are this paper's; this page adds what a whole run needs. Audio: 618 h. Disk:
76 GB of frames (123 MB an hour), 21 GB of audio that recipes write, 16 GB of LLM. Memory: one A100-80GB; the judge
Llama-3.1-70B needs two. Time (paper): A 4.6 days, B 4 days, C 6 hours. `python -m data.check iwslt25` compares disk and
memory with what is there; `bash run_all.sh iwslt25 rehearse` measures the time.
"""
hours = {"covost2": 430, "europarlst": 92, "spokensquad": 94, "acl6060": 2}       # of speech
gpu_gb = 80
recipes = ["acl6060", "covost2", "europarlst", "spokensquad"]
stages = ["extract_features", "train_projector", "train_lora", "merge_sft", "infer", "eval"]
common = dict(systems="llm,B:lora,seamless,seamless-text,A.1:projector,C:merged",
              test_sets="acl6060.dev,acl6060.eval,covost2.test,europarlst.test,spokensquad.test")

extract_features = dict(corpora="covost2,europarlst,spokensquad,acl6060")
eval = dict(tables="2025 Table 2,2025 footnote 8,2025 section 6,2025 Table 3,2025 Table 6,2025 Table 7,2025 Table 8,"
                   "2025 Table 9,2025 Table 10,2025 Table 11,2025 poster")

ASR, ST = {"en": 1.0}, {"de": 0.4, "it": 0.3, "zh": 0.3}
SQA = {"en": (0.2, 0.05), "de": (0.2, 0.05), "it": (0.2, 0.05), "zh": (0.2, 0.05)}       # (valid, invalid)
FLUENT = {"ASR": {"covost2": 0.72, "europarlst": 0.18, "spokensquad": 0.10},
          "SQA": {"spokensquad-fluent": 1.0}, "QA": {"spokensquad-fluent": 1.0}}
NO_SQA = {"ASR": (0.2, ASR), "ST": (0.4, ST)}
ablations = {                                # what C changes
    "random-lora-no-text": dict(lora="random", paired_text=False),                         # Table 10
    "random-lora": dict(lora="random"),
    "no-sqa-no-text": dict(mixture=NO_SQA, paired_text=False),           # the same relation (our choice)
    "no-sqa": dict(mixture=NO_SQA),
    "no-text": dict(paired_text=False),
    # The paper does not say which text is synthetic: MT from the speech corpora alone, by size (Table 1), and from the
    # translated Spoken-SQuAD alone; QA stays (our choice)
    "no-synthetic": dict(shares={**FLUENT, "MT": {"covost2": 289_413, "europarlst": 32_628}}),
    "only-synthetic": dict(shares={**FLUENT, "MT": {"spokensquad": 1.0}}),
    "2k": dict(steps=2000),                                                                # Table 11
    "0.2-0.5-0.3": dict(mixture={"ASR": (0.2, ASR), "ST": (0.5, ST), "SQA": (0.3, SQA)}),
    "0.2-0.6-0.2": dict(mixture={"ASR": (0.2, ASR), "ST": (0.6, ST), "SQA": (0.2, SQA)}),
    "0.25-0.5-0.25": dict(mixture={"ASR": (0.25, ASR), "ST": (0.5, ST), "SQA": (0.25, SQA)}),
    "0.3-0.5-0.2": dict(mixture={"ASR": (0.3, ASR), "ST": (0.5, ST), "SQA": (0.2, SQA)}),
}
ablation_test_sets = "acl6060.dev,acl6060.eval"                              # Table 11 averages both

sweep = dict(                                # Speech-IFEval (arXiv 2505.19037)
    recipes=["speech_ifeval"], corpus="speech_ifeval", systems="llm,cascade,A.1:projector,B:lora",
    reference="cascade,llm", scaled="C:merged", scales="0,0.125,0.25,0.5,0.75,1", max_new_tokens=2048,
    constraint_sets="speech_ifeval.closed,speech_ifeval.plain,speech_ifeval.creative,speech_ifeval.cot",
    judge="Qwen/Qwen3-30B-A3B-Instruct-2507")
