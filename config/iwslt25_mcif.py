"""
MCIF with the 2025 system: the official scores of the submission, which the poster gives (150 new tokens). It runs after
iwslt25 and writes predictions-mcif and results-mcif.md beside its results.
"""
base = "iwslt25"
recipes = ["mcif"]
stages = ["extract_features", "infer", "eval"]
hours = {"mcif": 2}
common = dict(systems="C:merged", test_sets="mcif.test")
extract_features = dict(corpora="mcif")
infer = dict(out="predictions-mcif", max_new_tokens=150)
eval = dict(predictions="predictions-mcif", tables="2025 poster")
