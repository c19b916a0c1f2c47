"""
The official test of 2026, IFSHORT26, beside MCIF: Table 4. It runs after iwslt26 and iwslt25, whose C it decodes, too.
Downloading the test needs a login (data/mcif.py). Its references are not public: the organisers' server scores the XML
in predictions/C and predictions/iwslt25-C, and eval.py does so where references lie in raw/iwslt26.
"""
base = "iwslt26"
recipes = ["mcif --corpus iwslt26"]
stages = ["extract_features", "extract_features --mean 3", "infer", "eval"]          # iwslt25's frames: means of three
hours = {"iwslt26": 2}                       # as MCIF (our estimate)
extract_features = dict(corpora="iwslt26")
infer = dict(systems="C:merged,iwslt25-C:../iwslt25/merged", test_sets="iwslt26.test")
