"""
The 2025 system and its zero-shot LLM on the test sets of 2026: rows of the 2026 paper's Tables 1 and 2. It runs
after iwslt25, whose C it decodes, and writes beside iwslt26. Frames are averages of three (2025, section 3).
"""
base = "iwslt26"
recipes = ["mcif", "covost2", "europarlst", "librispeech", "librisqa"]
stages = ["extract_features --corpora covost2,europarlst,librisqa,mcif --splits test",
          "extract_features --corpora librispeech --splits test,test-other", "infer", "eval"]
hours = {"covost2": 51, "europarlst": 7, "librispeech": 11, "librisqa": 5, "mcif": 2}         # the test sets alone
common = dict(mean=3, llm="meta-llama/Llama-3.1-8B-Instruct", systems="iwslt25-llm:llm,iwslt25-C:../iwslt25/merged")
infer = dict(prompt="2025")                  # of the zero-shot LLM; the paper does not say which (our choice)
