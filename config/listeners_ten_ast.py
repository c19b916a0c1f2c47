"""Multilingual listeners, TEN+AST: ten languages, at most 20 % translation into English (section 6)."""
from config.listeners import extract_features as of_listeners
from config.listeners_ten import IN_10

base = "listeners_ten"
hours = {"commonvoice": 226, "multispeechqa": 796,      # as listeners_ten; covost2: clips of 5 s (our estimate)
         "covost2-ar_en": 8, "covost2-de_en": 215, "covost2-es_en": 146, "covost2-fr_en": 329, "covost2-id_en": 4,
         "covost2-ja_en": 1, "covost2-nl_en": 15, "covost2-ru_en": 34, "covost2-tr_en": 10, "covost2-zh_en": 7}
recipes = [f"commonvoice --languages {','.join(IN_10)}", f"multispeechqa --languages {','.join(IN_10)}",
           "covost2 --into-english ar,de,es,fr,id,ja,nl,ru,tr,zh"]
INTO_ENGLISH = ("covost2-ar_en,covost2-de_en,covost2-es_en,covost2-fr_en,covost2-id_en,covost2-nl_en,covost2-ru_en,"
                "covost2-tr_en")
TRAINED = ",".join(f"{corpus}.train,{corpus}.dev" for corpus in INTO_ENGLISH.split(","))
common = dict(systems="C-ten-ast:merged-ten-ast")
extract_features = dict(corpora=f"{of_listeners['corpora']},{TRAINED}")
merge_sft = dict(out="merged-ten-ast", steps=13_184, mixture={"SQA": (0.8, IN_10), "ST": (0.2, {"en": 1.0})},
                 corpora=f"multispeechqa,{INTO_ENGLISH}")
