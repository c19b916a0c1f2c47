"""A.2 of the tests' tiny world."""
from config.tiny_a2 import train_projector as a2

base = "smoke.py"
train_projector = dict(a2)
