"""A.2 on real voices: the projector is trained on spoken questions, too."""
from config.tiny_a2 import train_projector as a2

base = "digits"
train_projector = dict(a2)
