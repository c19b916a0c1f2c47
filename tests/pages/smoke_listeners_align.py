"""Stage 1 of the tests' listeners."""
from config.tiny_listeners_align import merge_sft as align

base = "smoke_listeners.py"
merge_sft = {**align, "steps": 6}
