"""Multilingual listeners, TEN+AST: ten languages, at most 20 % translation into English (section 6)."""
from config.listeners_ten_align import IN_10

base = "listeners_ten"
common = dict(systems="C-ten-ast:merged-ten-ast")
merge_sft = dict(out="merged-ten-ast", steps=13_184, mixture={"SQA": (0.8, IN_10), "ST": (0.2, {"en": 1.0})},
                 corpora="multispeechqa,covost2-ar_en,covost2-de_en,covost2-es_en,covost2-fr_en,covost2-id_en,"
                         "covost2-nl_en,covost2-ru_en,covost2-tr_en")
