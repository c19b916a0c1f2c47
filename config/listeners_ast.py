"""Multilingual listeners, ALL+AST: 23 languages, at most 20 % translation into English (section 6)."""
from config.listeners import IN_23, INTO_ENGLISH

base = "listeners"
common = dict(systems="C-ast:merged-ast")
# The corpora of AST go by size: French 38 %, Japanese below 1 % (our choice)
merge_sft = dict(out="merged-ast", corpora=f"multispeechqa,{INTO_ENGLISH}", steps=30_322,
                 mixture={"SQA": (0.8, IN_23), "ST": (0.2, {"en": 1.0})})
