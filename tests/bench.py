"""
Speed and memory of every stage, beside what one writes with transformers, peft or torchtune.

    python tests/bench.py                                # every stage; a GPU: real sizes, else scaled down
    python tests/bench.py B --seeds 5 --threads 2 --dtype bfloat16 --out bench.md

Weights are random and made where they run: nothing is downloaded. Inputs have the lengths of the papers' corpora. A
seed is one optimizer step (one batch of utterances for extraction and decoding); ours and its peers take turns on it.
Ours is the code that the stages run. Both do the same work, and it is checked: losses within 1e-3, the same tokens; a
figure whose outputs differ is not printed.

Optional: peft for B and C; for B also torchtune, pip install --no-deps torchtune==0.6.1 torchao==0.15.0 torchdata
datasets omegaconf kagglehub and what they ask for. A peer that is not installed is left out, and said to be.

prints  a Markdown table, a row for each peer; --out FILE appends the rows there
"""
import argparse
import copy
import datetime
import gc
import importlib.util
import os
import platform
import sys
import tempfile
import time
from functools import partial
from itertools import chain
from statistics import median
from types import SimpleNamespace
from unittest import mock

if __name__ == "__main__":  # `python tests/bench.py`: imports start at the project's folder, not at tests/
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.utils import get_total_norm
from torch.nn.utils.rnn import pad_sequence

import extract_features
import merge_sft
import train_lora
import train_projector
from data.draws import draw, draw_frames
from extract_features import FRAME_RATE, SAMPLE_RATE, average_frames, decode_ahead, encode_block, pick_device, provenance
from train_lora import TARGETS, add_lora, lora_parameters, lora_state_dict
from train_projector import answer, answer_loss, embedding_losses, make_projector, splice, update

CORPORA = {  # seconds of an utterance, mean and deviation, gamma; hours / utterances, or the paper's mean
    "covost2": (5.35, 1.7), "europarlst": (9.3, 5.0), "spokensquad": (10.0, 4.5), "gigast": (4.4, 3.0),
}
ROWS = {  # (corpus, task, language): thousands of rows; 2025, Tables 1 and 3; GigaST: 2026, Table 5
    ("covost2", "ASR", "en"): 289, ("covost2", "ST", "de"): 289, ("covost2", "ST", "zh"): 289,
    ("europarlst", "ASR", "en"): 33, ("europarlst", "ST", "de"): 33, ("europarlst", "ST", "it"): 30,
    ("spokensquad", "MT", "de"): 39, ("spokensquad", "MT", "it"): 55, ("spokensquad", "MT", "zh"): 25,
    ("spokensquad", "SQA", "en"): 34, ("spokensquad", "SQA", "de"): 7, ("spokensquad", "SQA", "it"): 17,
    ("spokensquad", "SQA", "zh"): 7, ("gigast", "ASR", "en"): 7646,
}
WORDS = 2.4                                 # a second; LibriSpeech has 2.6, pauses included (our choice)
TOKENS = {"en": 1.25, "it": 1.7, "de": 1.85, "zh": 1.35}        # Llama-3.1's, for one English word
BEFORE, AFTER = 10, {("ASR", "en"): 24, ("ST", "de"): 30, ("ST", "it"): 29, ("ST", "zh"): 25}    # prompt; counted

LLAMA = dict(  # Llama-3.1-8B
    vocab_size=128_256, hidden_size=4096, intermediate_size=14_336, num_hidden_layers=32, num_attention_heads=32,
    num_key_value_heads=8, max_position_embeddings=131_072, rms_norm_eps=1e-5, rope_parameters=dict(
        rope_type="llama3", rope_theta=500_000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=8192))
QWEN = dict(  # Qwen3-4B-Instruct-2507
    vocab_size=151_936, hidden_size=2560, intermediate_size=9728, num_hidden_layers=36, num_attention_heads=32,
    num_key_value_heads=8, head_dim=128, max_position_embeddings=262_144, tie_word_embeddings=True,
    rope_parameters=dict(rope_type="default", rope_theta=5_000_000.0))
MID = dict(hidden_size=512, intermediate_size=1792, num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=2,
           head_dim=64)
TOY = dict(MID, hidden_size=64, intermediate_size=128, num_hidden_layers=2, head_dim=8, vocab_size=600)
SIZES = {  # the two LLMs, width of frames, projector, SpeechMapper's layers and width, encoder; draws in a step of
    "real": dict(llama=LLAMA, qwen=QWEN, width=1024, projector=dict(heads=8, ffn=2048), layers=6, middle=2048,  # A, C, B
                 encoder={}, draws=(16, 8), frames=96_000, micro=8192, utterances=512, decode=64, peak=None),
    "mid":  dict(llama={**LLAMA, **MID}, qwen={**QWEN, **MID}, width=256, projector=dict(heads=4, ffn=512), layers=2,
                 middle=512, draws=(2, 4), frames=3000, micro=4096, utterances=32, decode=64,
                 encoder=dict(hidden_size=256, speech_encoder_layers=8, speech_encoder_attention_heads=4,
                              speech_encoder_intermediate_size=1024)),
    "toy":  dict(llama={**LLAMA, **TOY}, qwen={**QWEN, **TOY}, width=32, projector=dict(heads=4, ffn=64), layers=1,
                 middle=32, draws=(1, 2), frames=1000, micro=1024, utterances=6, decode=6,
                 encoder=dict(hidden_size=32, speech_encoder_layers=1, speech_encoder_attention_heads=2,
                              speech_encoder_intermediate_size=64)),
}
PEAKS = {"A100": 312e12, "H100": 989e12, "H200": 989e12}    # bfloat16 without sparsity, data sheets
R, ALPHA, CAP = 8, 16, 300                  # LoRA, and the longest answer; 2025, sections 3 and 4
