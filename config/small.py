"""
A real speech LLM on one consumer GPU, from open models and open speech: Whisper base and SmolLM2-360M-Instruct, trained
as the 2025 system is (A.1, B, C), in English: transcription and questions. Sizes and steps are our choice.

Models: Whisper base (MIT, 74M), whose encoder is small and hears 99 languages; SmolLM2-360M-Instruct (Apache-2.0), the
larger sister of the 135M that `small_cpu` trains, with the same tokenizer and turn. Qwen2.5-0.5B-Instruct (Apache-2.0)
knows more, but its table of 151,936 rows is a third of its weights and half of the memory of a step. No account, no
licence to accept. Speech: 100 hours, drawn from the 363 of LibriSpeech's train-clean-360 (CC BY 4.0); questions:
LibriSQA's Part I (no licence is stated).

Download: 23.3 GB of LibriSpeech for training, 0.7 GB for the tests, 0.1 GB of LibriSQA, 1.0 GB of models. Disk: twice
the speech while it is unpacked, 47 GB, and 7 GB of frames (61 MB an hour).
Memory: 8 GB of the GPU at micro_tokens=3072 (computed: 0.7 GB of LLM, 1.3 MB for each of the 3,072 positions, 1 GB of
logits and frames). Time, computed at 10 TFLOP/s, a third of what a consumer GPU promises, not measured: frames 5
minutes (80 GFLOP an utterance), A.1 35 minutes (57,600 utterances of 372 GFLOP), B 5 minutes, C 15 minutes, answers
half an hour: about two hours with validations. The run itself has not been made. On a CPU: config/small_night.py.
"""
hours = {"librispeech": 10.7, "librisqa": 115}                               # of speech, dev and test too
gpu_gb = 8
recipes = ["librispeech --download", "librisqa --english --hours 100 --download"]
stages = ["extract_features", "train_projector", "train_lora", "merge_sft", "infer", "eval"]
common = dict(corpora="librisqa", encoder="openai/whisper-base", mean=3, llm="HuggingFaceTB/SmolLM2-360M-Instruct",
              prompt="2025", whisper="openai/whisper-base", systems="llm,cascade,B:lora,A.1:projector,C:merged",
              test_sets="librispeech.test,librispeech.test-other,librisqa.test", micro_tokens=3072)
ASR, QUESTIONS = {"en": 1.0}, {"en": (0.8, 0.2)}                             # (valid, invalid): the paper's relation

extract_features = dict(corpora="librisqa,librispeech")
train_projector = dict(
    mixture={"ASR": (1.0, ASR)}, shares={}, accumulate=4, steps=900, warmup=50, cosine=True, lr=1e-3, clip=1.0,
    validate_every=300, decode="librisqa", keep="ASR")                       # 2 epochs of 28,800 utterances
train_lora = dict(mixture={"QA": (1.0, QUESTIONS)}, shares={}, steps=200, warmup=20, validate_every=100)
merge_sft = dict(
    mixture={"ASR": (0.5, ASR), "SQA": (0.5, QUESTIONS)}, shares={}, accumulate=4, steps=500, lr_projector=1e-4,
    warmup=20, cosine=True, validate_every=100)
infer = dict(max_new_tokens=150, pictures="librispeech.test")
eval = dict(metrics="WER,CER,EM,CONTAINS,ROUGE-1,capped,loops", tables="", judges="")

sweep = dict(                                # Speech-IFEval (arXiv 2505.19037); rules alone judge, JUDGE names an LLM
    recipes=["speech_ifeval"], corpus="speech_ifeval", systems="llm,cascade,A.1:projector,B:lora",
    reference="cascade,llm", scaled="C:merged", scales="0,0.125,0.25,0.5,0.75,1", max_new_tokens=512,
    constraint_sets="speech_ifeval.closed,speech_ifeval.plain,speech_ifeval.creative", judge="contains")
