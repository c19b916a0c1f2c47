"""IWSLT 2025, A.2 + B: the projector is trained on spoken questions, too (section 5.1 A.2). Shares B with iwslt25."""
base = "iwslt25"
common = dict(systems="A.2:projector-A.2,C-A.2:merged-A.2")
train_projector = dict(
    out="projector-A.2",
    mixture={"ASR": (0.4, {"en": 1.0}),
             "ST": (0.35, {"de": 0.3, "it": 0.3, "zh": 0.4}),    # the text; Table 13: it 0.4, zh 0.3 (our choice)
             # (valid, invalid). Table 13 has zh in place of it; text, Table 12 and appendix C.1 have it (our choice)
             "SQA": (0.25, {"en": (0.2, 0.2), "de": (0.15, 0.15), "it": (0.15, 0.15)})},
    shares={"ASR": {"covost2": 0.8, "europarlst": 0.2},          # Table 12 ticks Spoken-SQuAD, too (our choice)
            "SQA": {"spokensquad": 1.0}},                                    # the short answers; Table 12
    steps=16_882)                            # 4 epochs of 1,080,479 speech rows: A.1's and 57,344 questions twice,
                                             # with and without an answer (our choice)
merge_sft = dict(projector="projector-A.2", out="merged-A.2")
