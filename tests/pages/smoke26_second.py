"""The second stage of the original SpeechMapper, through the LLM, on the projector of smoke26."""
base = "smoke26.py"
stages = ["train_projector", "infer", "eval"]
common = dict(systems="A-second:projector-second")
train_projector = dict(out="projector-second", start="projector", objective="answers", sigma=0.9, decode="tiny26",
                       max_new_tokens=12)
