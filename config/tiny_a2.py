"""The toy world's A.2: the projector is trained on spoken questions, too, as the 2025 paper's A.2 is."""
base = "tiny"
train_projector = dict(
    out="projector-A.2",
    mixture={"ASR": (0.4, {"en": 1.0}), "ST": (0.35, {"de": 0.3, "it": 0.3, "zh": 0.4}),
             "SQA": (0.25, {"en": (0.2, 0.2), "de": (0.15, 0.15), "it": (0.15, 0.15)})})
