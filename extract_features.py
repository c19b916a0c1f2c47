"""
Stage 0: audio -> frozen speech encoder -> averaged frames -> numpy cache.

    python extract_features.py                       # tiny: CPU, about a minute
    python extract_features.py --preset iwslt25      # computed for an A100: 430 hours in 10 minutes
    python extract_features.py --preset listeners    # Whisper; the checkpoint's config.json says which encoder it is
    torchrun --nproc_per_node 4 extract_features.py --preset iwslt25     # the same cache, shared out

reads   work/rows/<corpus>/<split>.jsonl, the audio named there, and the encoder (below work, or a hub name):
        SeamlessM4T's, Whisper's or Qwen2.5-Omni's
writes  work/features/<encoder>-mean<k>/<corpus>/<split>/
            frames-NNNNN.npy    float16 (frames, width), one utterance after another
            frames-NNNNN.json   the utterances and their lengths; written after the data, it commits the shard
            dropped.jsonl       the utterances without frames, and why
            config.json         last: a folder with it is finished
A killed run loses only the shard it was filling; the same command goes on from there.

Training splits leave out audio over --max_seconds. These are train and, in a corpus with a train split, dev. All other
splits are test splits: their longer audio is encoded in pieces, cut at pauses, whose frames are joined.
"""
import glob
import importlib
import itertools
import math
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from speech_llm.audio import SAMPLE_RATE, cut_at_pauses, duration, read_audio
from speech_llm.cache import committed, features_folder, finish_cache, write_shard
from speech_llm.constants import (configure, fingerprint, locate, mixed_precision, next_command, pick_device,
                                  provenance, require)
from speech_llm.files import lock
from speech_llm.index import open_utterances
from speech_llm.llm import load_checkpoint, loading
from speech_llm.resumable import rank_and_world
from speech_llm.rows import remake, rows_file


@dataclass(frozen=True)
class Config:                                # the 2025 paper's values; a page of config/ or --name value changes them
    preset: str = "tiny"                     # a page of config/, or the path of a page
    work: str = "work"                       # everything that is written lies below this folder
    corpora: str = "covost2,europarlst,spokensquad,acl6060"         # folders of work/rows; mcif.test is one split
    splits: str = ""                         # comma-separated; empty: every split that a corpus has
    encoder: str = "facebook/seamless-m4t-v2-large"                 # a folder below work, any other, or a hub name
    mean: int = 3                            # consecutive frames that are averaged; section 3
    pad: bool = False                        # Whisper: keep all frames of its window, silence too, as SALMONN does
    max_seconds: float = 30.0                # longer audio: dropped in training splits, else in pieces (our choice)
    batch_seconds: float = 200.0             # padded audio in one encoder batch: 12 TFLOP (our choice)
    shard_frames: int = 2_000_000            # a shard is closed above this: 4 GB (our choice)
    workers: int = 16                        # threads that decode audio and make filterbanks

FRAME_RATE = 50                              # Hz: frames of SeamlessM4T and Whisper before averaging
STACK = 2                                    # filterbank frames, one every 10 ms, in one encoder frame
FRAME = SAMPLE_RATE // FRAME_RATE            # samples in one encoder frame
MEL_BINS = 80                                # of SeamlessM4T; the others' config.json says how many they have
FFT = 400                                    # samples, Whisper's transform: 25 ms
TAIL = 2                                     # encoder frames that log_mel adds to those of the audio
LAYER = "last layer after the closing LayerNorm"         # our choice; the papers: layer 24, the last one
BLOCK = 512                                  # utterances decoded ahead and sorted by length (our choice)
SAMPLED = 200                                # utterances whose lengths give the hours of a split (our choice)
OMNI = "qwen2_5_omni_audio_encoder"          # the model type of Qwen2.5-Omni's audio encoder
ENCODERS = {                                 # by model type: transformers' module and class, keys in a whole checkpoint
    "seamless_m4t_v2": ("seamless_m4t_v2", "SeamlessM4Tv2SpeechEncoder", r"^speech_encoder\."),
    "whisper": ("whisper", "WhisperEncoder", r"^model\.encoder\."),
    OMNI: ("qwen2_5_omni", "Qwen2_5OmniAudioEncoder", r"^(thinker\.)?audio_tower\.")}

# B batch   T encoder frames   W encoder width


# --- From a wave to frames, in three steps: filterbank, encoder, average.

def filterbank(wave):
    """Return SeamlessM4T's log mel of a wave, float32 (T, 160), normalised over the utterance, stacked in pairs."""
    from torchaudio.compliance.kaldi import fbank

    # Equal to transformers' SeamlessM4TFeatureExtractor, but in torch, which lets several threads compute at once.
    # float64, because in float32 quiet bins are off by 0.02.
    samples = torch.from_numpy(wave).double()[None] * 2**15              # Kaldi expects 16-bit integers
    mel = fbank(samples, num_mel_bins=MEL_BINS, sample_frequency=SAMPLE_RATE)          # (2T or 2T + 1, 80)
    mel = (mel - mel.mean(0)) / (mel.var(0, correction=1) + 1e-7).sqrt()
    mel = mel[:len(mel) // STACK * STACK]    # an odd last frame counts in the mean; transformers masks it
    return mel.reshape(-1, STACK * MEL_BINS).float()


@cache
def mel_filters(bins):
    """Return Whisper's triangular filters, float32 (bins, 201)."""
    from transformers.audio_utils import mel_filter_bank
    filters = mel_filter_bank(1 + FFT // 2, bins, 0, SAMPLE_RATE / 2, SAMPLE_RATE, norm="slaney", mel_scale="slaney")
    return torch.from_numpy(filters).T.float()


def log_mel(wave, bins, window=math.inf):
    """
    Return Whisper's log mel of a wave, float32 (T + TAIL, 2 * bins), frames stacked in pairs. The first T frames hold
    the audio. The next frame holds the end of the last transform. The last frame is silence and stands for all frames
    that follow it in the window.
    """
    # Equal to transformers' WhisperFeatureExtractor, which also computes every silent frame of the window.
    length = -(-len(wave) // FRAME) + TAIL
    samples = torch.nn.functional.pad(torch.from_numpy(wave), (0, min(length, window) * FRAME - len(wave)))
    spectrum = torch.stft(samples, FFT, FRAME // STACK, window=torch.hann_window(FFT), return_complex=True)
    mel = (mel_filters(bins) @ spectrum[:, :-1].abs().square()).clamp(min=1e-10).log10()             # (bins, 2T)
    mel = (mel.maximum(mel.max() - 8) + 4) / 4
    mel = mel.T.reshape(-1, STACK * bins)
    return torch.cat([mel, mel[-1:].expand(length - len(mel), -1)])      # no room for TAIL in a full window


def window_of(config):
    """Return the number of frames in Whisper's window, which it always reads; 0 for an encoder without a window."""
    return config.max_source_positions if config.model_type == "whisper" else 0


def feature_rate(config):
    """Return the rows of make_feature for a second of audio, Hz."""
    return 100 if config.model_type == OMNI else FRAME_RATE


def frame_rate(config):
    """Return the frames of an encoder for a second of audio, Hz, before averaging."""
    return 25 if config.model_type == OMNI else FRAME_RATE


def make_feature(config, wave):
    """Return what the encoder with this config reads of a wave, float32 (rows, bins); feature_rate rows a second."""
    if config.model_type == OMNI:            # Whisper's log mel, not stacked, and without silence
        return log_mel(wave, config.num_mel_bins).view(-1, config.num_mel_bins)[:-(-len(wave) * STACK // FRAME)]
    return log_mel(wave, config.num_mel_bins, window_of(config)) if window_of(config) else filterbank(wave)


def encoder_config(path):
    """Return the config of the speech encoder in a SeamlessM4Tv2, Whisper or Qwen2.5-Omni; ValueError for others."""
    from transformers import AutoConfig
    with loading(path):
        config = AutoConfig.from_pretrained(path)
    config = getattr(config, "thinker_config", config)
    config = getattr(config, "audio_config", config)
    if config.model_type not in ENCODERS:
        raise ValueError(f"{path} is a {config.model_type}; speech encoders are taken from {', '.join(ENCODERS)}")
    return config


def load_frozen(kind, path, device, prefix=None, **options):
    """
    Return a model of the transformers class `kind`, frozen, on `device`. prefix: what the names of its weights begin
    with in the checkpoint, a regular expression.
    """
    # float16 on a GPU: Meta runs SeamlessM4T in it, it is 8 times closer to float32 than bfloat16 is, and the
    # cache is float16 anyway. sdpa: eager adds the mask to the scores as 0 or 1, so padding would leak in.
    dtype = torch.float16 if torch.device(device).type == "cuda" else torch.float32
    return load_checkpoint(kind, path, key_mapping={prefix: ""} if prefix else None, dtype=dtype,
                           attn_implementation="sdpa", **options).to(device)


def load_encoder(path, device):
    """Return the speech encoder alone, out of a whole checkpoint; ValueError for one of another kind or damaged."""
    config = encoder_config(path)
    module, kind, prefix = ENCODERS[config.model_type]
    module = importlib.import_module(f"transformers.models.{module}.modeling_{module}")
    return load_frozen(getattr(module, kind), path, device, prefix, config=config)


def fill_window(features, window):
    """Return log_mel's features as a batch (B, bins, 2 * window), each filled with silence to the window's end."""
    padded = torch.stack([torch.cat([feature, feature[-1:].expand(window, -1)])[:window] for feature in features])
    return padded.view(len(features), STACK * window, -1).transpose(1, 2)


def pad_features(features, weight):
    """Return features (T, 160) padded to (B, T, 160), in the type of `weight`, and their mask (B, T), on its device."""
    lengths = torch.tensor([len(feature) for feature in features])
    padded = torch.nn.utils.rnn.pad_sequence(features, batch_first=True)
    mask = (torch.arange(padded.shape[1]) < lengths[:, None]).long()
    return padded.to(weight), mask.to(weight.device)


@torch.no_grad()
def encode(encoder, features, pad=False):
    """
    Return the frames, float32 (T, W), of each of make_feature's `features`. They are encoded as one padded batch.
    pad: all frames of a Whisper's window, not only those of the audio.
    """
    weight, window = next(encoder.parameters()), window_of(encoder.config)
    lengths = [len(feature) for feature in features]
    if encoder.config.model_type == OMNI:    # takes utterances joined end to end; a stride of 2, then means of 2
        frames = encoder(torch.cat(features).T.to(weight), feature_lens=torch.tensor(lengths, device=weight.device))
        frames = frames.last_hidden_state.float().cpu().split([(length + 1) // 2 // 2 for length in lengths])
        return [row.numpy() for row in frames]
    if window:
        with mixed_precision(torch.device("cpu")):       # on a GPU the encoder is float16
            frames = encoder(fill_window(features, window).to(weight)).last_hidden_state       # (B, window, W)
        lengths = [window if pad else length - TAIL for length in lengths]
    else:
        padded, mask = pad_features(features, weight)
        # by module, not by hidden_states[24]: newer transformers keep the adapter's output under that index
        frames = encoder.encoder(encoder.feature_projection(padded), attention_mask=mask)      # (B, T, W)
    return [row[:length] for row, length in zip(frames.float().cpu().numpy(), lengths)]


def average_frames(frames, k):
    """Return the means (ceil(T / k), W) of k consecutive frames each; a short last group is averaged (our choice)."""
    starts = np.arange(0, len(frames), k)
    sizes = np.minimum(k, len(frames) - starts).astype(frames.dtype)
    return np.add.reduceat(frames, starts, axis=0) / sizes[:, None]


# --- One split: decode ahead, encode, commit shard by shard.

def front_end(config, row, max_seconds=math.inf, piece_seconds=math.inf):
    """
    Return (features, seconds, None) for a row's audio, or (None, 0.0, the reason) if the audio cannot be used or is
    longer than `max_seconds`. features: make_feature of each piece. Pieces are cut at pauses and are at most
    `piece_seconds` and at most a window long, so that audio of any length fits into the encoder's memory.
    """
    try:
        wave = read_audio(row["audio"], row.get("start"), row.get("end"), max_seconds)
    except ValueError as error:
        return None, 0.0, str(error)
    longest = min(piece_seconds * SAMPLE_RATE, window_of(config) * FRAME or math.inf, len(wave))
    pieces = cut_at_pauses(wave, int(longest))
    return [make_feature(config, piece) for piece in pieces], len(wave) / SAMPLE_RATE, None


def decode_ahead(config, blocks, max_seconds, piece_seconds, workers):
    """Yield [(row, *front_end(row))] for each list of rows; the next list is decoded while the caller works."""
    # Threads, not processes: decoding, resampling and filterbank hold the interpreter lock for 4 to 7 % of their time.
    with ThreadPoolExecutor(workers) as pool:
        waiting = []
        for block in itertools.chain(blocks, [[]]):
            waiting, ready = [(row, pool.submit(front_end, config, row, max_seconds, piece_seconds))
                              for row in block], waiting
            if ready:
                yield [(row, *future.result()) for row, future in ready]


def encode_block(c, encoder, features):
    """
    Return ({utterance: float16 (frames, W)}, {utterance: why it has no frames}) for {utterance: [feature of each
    piece]}, in that order. Pieces of like lengths share a batch.
    """
    pieces = [(name, number) for name in features for number in range(len(features[name]))]
    pieces.sort(key=lambda piece: len(features[piece[0]][piece[1]]))
    outputs, frames, reasons = {}, {}, {}
    while pieces:
        name, number = pieces[-1]
        longest = window_of(encoder.config) or len(features[name][number])
        size = max(1, int(c.batch_seconds * feature_rate(encoder.config) / longest))
        pieces, batch = pieces[:-size], pieces[-size:]
        outputs |= zip(batch, encode(encoder, [features[name][number] for name, number in batch], c.pad))
    for name in features:
        output = np.concatenate([outputs[name, number] for number in range(len(features[name]))])
        with np.errstate(over="ignore"):                 # the next line looks for it
            averaged = average_frames(output, c.mean).astype(np.float16)
        if np.isfinite(averaged).all():
            frames[name] = averaged
        else:
            reasons[name] = f"frames up to {np.abs(output).max()}, not finite in float16"
    return frames, reasons


def extract(c, encoder, origin, folder, utterances, longest):
    """Encode the utterances of a split that no shard in `folder` holds yet, and write them shard by shard."""
    rank, world = rank_and_world()
    state = committed(folder, origin)
    # Blocks are cut from all utterances, not from those left: after a kill the batches, so the bytes, are the same.
    # A dropped utterance is tried again until the folder is finished.
    numbers, left = utterances.numbers[rank::world], ~np.isin(utterances.hashes, state.hashes)[rank::world]
    blocks = [numbers[i:i + BLOCK][left[i:i + BLOCK]] for i in range(0, len(numbers), BLOCK)]
    blocks = [block for block in blocks if len(block)]
    rows = ([utterances.read(number) for number in block] for block in blocks)
    number, frames, entry = rank, {}, {"dropped": [], "seconds": 0.0, "silent": 0}
    with tqdm(total=sum(map(len, blocks)), desc=folder, unit="utterance", disable=rank > 0) as progress:
        ready = decode_ahead(encoder.config, rows, longest, c.max_seconds, c.workers)
        for done, block in enumerate(ready, 1):
            features = {row["utterance"]: pieces for row, pieces, _, reason in block if reason is None}
            encoded, reasons = encode_block(c, encoder, features)
            for row, pieces, seconds, reason in block:
                reason = reason or reasons.get(row["utterance"])
                if reason is None:
                    entry["seconds"] += seconds
                    entry["silent"] += all(piece.max() - piece.min() < 1e-3 for piece in pieces)
                elif row["utterance"] not in state.dropped:
                    entry["dropped"].append({"utterance": row["utterance"], "audio": row["audio"], "reason": reason})
            frames |= encoded
            progress.update(len(block))
            full = sum(map(len, frames.values())) >= c.shard_frames or done == len(blocks)
            if full and (frames or entry["dropped"]):    # not if all were dropped before and are dropped again
                while os.path.exists(os.path.join(folder, f"frames-{number:05d}.json")):
                    number += world          # so no two processes ever fill the same shard
                write_shard(folder, f"frames-{number:05d}", frames, {**entry, "made": origin, "by": provenance()})
                frames, entry = {}, {"dropped": [], "seconds": 0.0, "silent": 0}


# --- What is asked for, and whether the disk holds it.

def splits_of(c):
    """Yield (corpus, split, file of its rows) for every split of --corpora; an entry may be one split: mcif.test."""
    for entry in c.corpora.split(","):
        corpus, _, only = entry.partition(".")
        folder = os.path.dirname(rows_file(c.work, corpus, "train"))
        names = [name.removesuffix(".jsonl") for name in sorted(glob.glob("*.jsonl", root_dir=folder))]
        for split in c.splits.split(",") if c.splits else [only] if only else names:
            path = rows_file(c.work, corpus, split)
            yield corpus, split, require(path, remake(path))


def is_training(c, corpus, split):
    """Return whether a split trains or validates; dev is a test set in a corpus without train (our choice)."""
    return split == "train" or split == "dev" and os.path.exists(os.path.join(c.work, "rows", corpus, "train.jsonl"))


def seconds_of(row):
    """Return the seconds of a row's audio; 0 if it cannot be read."""
    try:
        return row["end"] - row["start"] if "start" in row else duration(row["audio"])
    except ValueError:
        return 0.0


def check_disk(c, path):
    """Print the hours and gigabytes of the splits that have no cache yet; exit if the disk has less space free."""
    needed = 0
    for corpus, split, path_of_rows in splits_of(c):
        folder = features_folder(c.work, c.encoder, c.mean, corpus, split)
        utterances = open_utterances(path_of_rows)
        count = len(utterances.numbers)
        if os.path.exists(os.path.join(folder, "config.json")) or not count:
            continue
        config = encoder_config(path)
        sample = utterances.numbers[np.linspace(0, count - 1, min(count, SAMPLED)).astype(int)]
        seconds = count * sum(seconds_of(utterances.read(number)) for number in sample) / len(sample)
        frames = (count * window_of(config) if c.pad else seconds * frame_rate(config)) / c.mean
        size = frames * (getattr(config, "output_dim", None) or config.hidden_size) * 2
        print(f"{corpus}/{split}: about {seconds / 3600:.2f} hours, {size / 1e9:.2f} GB of frames")
        needed += size - sum(map(os.path.getsize, glob.glob(os.path.join(glob.escape(folder), "frames-*.npy"))))
    free = shutil.disk_usage(c.work).free
    if needed > free:
        raise SystemExit(f"{c.work}/features needs about {needed / 1e9:.1f} GB more, and its disk has {free / 1e9:.1f} "
                         "GB free: make room, or pass a --work on another disk or fewer --corpora")


def main(argv=None):
    c = configure(Config, "extract_features", argv)
    # 1. the encoder, which is loaded when a split needs it, and the disk
    path, encoder = locate(c.work, c.encoder), None
    check_disk(c, path)
    shared = {"encoder": c.encoder, "weights": fingerprint(path), "layer": LAYER, "mean": c.mean, "pad": c.pad,
              "sample_rate": SAMPLE_RATE}
    for corpus, split, path_of_rows in splits_of(c):
        # 2. the utterances of the split: several rows may share one, a text-only row has none
        utterances = open_utterances(path_of_rows)
        if not len(utterances.numbers):
            print(f"{corpus}/{split}: text only")
            continue
        # 3. encode those that no shard holds yet; all shards have the same origin
        training = is_training(c, corpus, split)
        origin = {**shared, "max_seconds" if training else "piece_seconds": c.max_seconds}
        folder = features_folder(c.work, c.encoder, c.mean, corpus, split)
        state = committed(folder, origin)
        if not os.path.exists(os.path.join(folder, "config.json")) or state.lacks(utterances.hashes):
            with lock(folder):
                Path(folder, "config.json").unlink(missing_ok=True)    # the corpus has grown: not finished any more
                encoder = encoder or load_encoder(path, pick_device())
                window = window_of(encoder.config)
                if c.pad and not window:
                    raise SystemExit(f"--pad: {c.encoder} has no window to keep; only a Whisper has one")
                longest = min(c.max_seconds, window / FRAME_RATE or math.inf) if training else math.inf
                extract(c, encoder, origin, folder, utterances, longest)
                # 4. config.json last; of several processes, the one that sees everything done writes it
                state = finish_cache(c, origin, folder, utterances.hashes)
            if state is None:
                print(f"{corpus}/{split}: this process is done, others are not")
                continue
        silent = f", {state.silent} silent" if state.silent else ""
        print(f"{corpus}/{split}: {state.seconds / 3600:.2f} hours, {len(state.hashes)} utterances, "
              f"{len(state.dropped)} dropped{silent}, in {folder}")
        if state.dropped:
            print("  dropped.jsonl there says which and why; to try them again, remove its config.json")
    print(f"next: {next_command('extract_features', c)}")


if __name__ == "__main__":
    main()
