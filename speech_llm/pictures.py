"""
Pictures: figures of matplotlib as PNG, and what the LLM hears of an utterance: its log mel, under it the nearest token
of every slot, and the answer.

    with picture("curve.png", figsize=(6, 3.5)) as axes:
        axes.plot([1, 2])
    draw_slots("picture.png", wave, *nearest_tokens(llm, tokenizer, projector, frames), text)
"""
import os
import warnings
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F

from speech_llm.audio import SAMPLE_RATE
from speech_llm.batches import Batch
from speech_llm.files import replace_file


@contextmanager
def picture(path, *shape, **options):
    """Yield the axes of matplotlib's subplots(*shape, **options); write the figure as PNG when the block ends."""
    import matplotlib
    matplotlib.use("Agg")                                   # no screen
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(*shape, layout="constrained", **options)
    yield axes
    with replace_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    plt.close(figure)


@torch.no_grad()
def nearest_tokens(llm, tokenizer, projector, frames):
    """
    Return (tokens, cosines) of frames (T, W): for each output vector of the projector the token of the LLM's table
    that has the largest cosine with it; "" and 0 for a vector of zeros, which the LLM does not read.
    """
    table = llm.get_input_embeddings().weight.float()
    output = projector(*Batch.of([{"frames": frames}]).speech(table.device))[0].float()              # (slots, D)
    cosines, ids = (F.normalize(output) @ F.normalize(table).T).max(1)
    tokens = [tokenizer.decode([token]) if cosine else "" for token, cosine in zip(ids.tolist(), cosines.tolist())]
    return tokens, cosines.tolist()


def font_families(text):
    """
    Return the names of installed fonts that together have the characters of a text, matplotlib's default first.
    A character that no font has is left to the default, which draws a box.
    """
    from matplotlib.font_manager import fontManager
    from matplotlib.ft2font import FT2Font
    left, families = {character for character in text if character.isprintable()}, []
    for font in sorted(fontManager.ttflist, key=lambda font: font.name != "DejaVu Sans"):
        if "LastResort" in font.name or not os.path.isfile(font.fname):
            continue                         # macOS has a font that draws a box for every character
        there = {*map(chr, FT2Font(font.fname).get_charmap())}
        if not families or left & there:
            families.append(font.name)
            left -= there
        if not left:
            break
    return families


def draw_slots(path, wave, tokens, cosines, text):
    """Draw the log mel of a wave at 16 kHz, under it the nearest token of every slot with its cosine, and the text."""
    from matplotlib import rc_context
    from torchaudio.compliance.kaldi import fbank
    seconds = len(wave) / SAMPLE_RATE
    mel = fbank(torch.from_numpy(wave)[None] * 2**15, num_mel_bins=80, sample_frequency=SAMPLE_RATE)     # (frames, 80)
    centres = (np.arange(len(tokens)) + 0.5) * seconds / len(tokens)
    fonts = {"font.family": font_families("".join([*tokens, text])), "text.parse_math": False}
    size = (min(24, max(6, 0.22 * len(tokens))), 4.5)
    with warnings.catch_warnings(), rc_context(fonts):
        warnings.filterwarnings("ignore", message="Glyph")  # a character that no installed font has
        with picture(path, 2, 1, sharex=True, figsize=size) as (sound, slots):
            sound.imshow(mel.T.numpy(), origin="lower", aspect="auto", cmap="magma", extent=(0, seconds, 0, 80))
            sound.set(ylabel="mel bin", title=text)
            slots.bar(centres, cosines, width=0.9 * seconds / len(tokens), color="#b8cbe0")
            for centre, token in zip(centres, tokens):
                slots.text(centre, 0.02, token, rotation=90, ha="center", va="bottom", fontsize=8)
            slots.set(xlabel="seconds", ylabel="cosine to the nearest token", xlim=(0, seconds), ylim=(0, 1))
