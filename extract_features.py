"""
Stage 0: audio -> frozen speech encoder -> averaged frames -> numpy cache.

    python extract_features.py                       # tiny: CPU, about a minute
    python extract_features.py --preset iwslt25      # an A100 at half its peak: 430 hours in 10 minutes
    python extract_features.py --preset listeners    # Whisper, told from SeamlessM4T by the checkpoint's config.json
    torchrun --nproc_per_node 4 extract_features.py --preset iwslt25     # the same cache, shared out

reads   work/rows/<corpus>/<split>.jsonl, the audio named there, and the encoder (below work, or a hub name)
writes  work/features/<encoder>-mean<k>/<corpus>/<split>/
            frames-NNNNN.npy    float16 (frames, width), one utterance after another
            frames-NNNNN.json   the utterances and their lengths; written after the data, it commits the shard
            dropped.jsonl       the utterances without frames, and why
            config.json         last: a folder with it is finished
A killed run loses only the shard it was filling; the same command goes on from there.
"""
import glob
import math
import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from speech_llm.cache import committed, features_folder, finish_cache, write_shard
from speech_llm.constants import configure, fingerprint, locate, pick_device, provenance, require
from speech_llm.files import lock
from speech_llm.llm import load_checkpoint, loading
from speech_llm.rows import read_rows, remake, rows_file


@dataclass(frozen=True)
class Config:                                # the 2025 paper's values; a page of config/ or --name value changes them
    preset: str = "tiny"                     # a page of config/, or the path of a page
    work: str = "work"                       # everything that is written lies below this folder
    corpora: str = "covost2,europarlst,spokensquad,acl6060"         # comma-separated folders of work/rows
    splits: str = ""                         # comma-separated; empty: every split that a corpus has
    encoder: str = "facebook/seamless-m4t-v2-large"                 # a folder below work, any other, or a hub name
    mean: int = 3                            # consecutive frames that are averaged; section 3
    pad: bool = False                        # Whisper: keep all frames of its window, silence too, as SALMONN does
    max_seconds: float = 30.0                # longer audio is dropped and counted, never cut (our choice)
    batch_seconds: float = 200.0             # padded audio in one encoder batch: 12 TFLOP (our choice)
    shard_frames: int = 2_000_000            # a shard is closed above this: 4 GB (our choice)
    workers: int = 16                        # threads that decode audio and make filterbanks

SAMPLE_RATE = 16_000                         # Hz; this and the next two hold for SeamlessM4T and for Whisper
FRAME_RATE = 50                              # Hz, encoder frames before averaging
STACK = 2                                    # filterbank frames, one every 10 ms, in one encoder frame
FRAME = SAMPLE_RATE // FRAME_RATE            # samples in one encoder frame
MEL_BINS = 80                                # of SeamlessM4T; a Whisper says how many it has, 80 or 128
FFT = 400                                    # samples, Whisper's transform: 25 ms
TAIL = 2                                     # encoder frames of silence that a Whisper's filterbank ends with
LAYER = "last layer after the closing LayerNorm"         # our choice; the papers: layer 24, the last one
MIN_SECONDS = 0.04                           # the first encoder frame takes 0.035 s
KERNEL = 2**26                               # numbers in the resampling filter: 1 GB for a prime rate (our choice)
SLACK = 0.1                                  # s; segment times are rounded, mp3 lengths guessed (our choice)
BLOCK = 512                                  # utterances decoded ahead and sorted by length (our choice)

# B batch   T encoder frames   W encoder width


# --- From a file to frames, in four steps.

def read_audio(path, start=None, end=None, longest=math.inf):
    """
    A file, or its slice from start to end in seconds -> float32 (samples,) at 16 kHz, channels averaged.
    ValueError, naming the file, if it is missing, unreadable, truncated, too short or not finite, or of a rate that is
    no recording's; also, unread, if it is twice as long as `longest` seconds (what lies between is for the caller).
    """
    import soundfile
    import torchaudio
    where = path if start is None else f"{path} from {start} to {end} s"
    if not os.path.isfile(path):
        raise ValueError(f"{where}: no such file")
    try:
        with soundfile.SoundFile(path) as file:
            rate, length, log = file.samplerate, file.frames, file.extra_info
            first, last = round((start or 0) * rate), length if end is None else round(end * rate)
            count = max(0, min(last, length) - first)
            if count > 2 * longest * rate:               # the lengths of mp3 are guessed
                raise ValueError(f"{where}: {count / rate:.1f} s, longer than {longest} s")
            if SAMPLE_RATE * rate > KERNEL * math.gcd(SAMPLE_RATE, rate)**2:
                raise ValueError(f"{where}: a sample rate of {rate} Hz")
            early = max(0, min(first, length) - rate)    # an mp3 comes out wrong for 0.4 s after a seek
            file.seek(early)
            wave = file.read(first - early + count, dtype="float32", always_2d=True)     # (samples, channels)
            wave = wave[first - early:]
    except (soundfile.SoundFileError, TypeError) as error:               # TypeError: its name ends in .raw
        raise ValueError(f"{where}: cannot be decoded ({error})") from None

    if last > length + SLACK * rate:
        raise ValueError(f"{where}: the file ends at {length / rate:.2f} s")
    # libsndfile shortens a wav whose data end early and says so in its log only; a wav that was written
    # to a pipe does not know its length and claims 2 or 4 GB, which is no defect
    claim = re.search(r"^data : (\d+) \(should be (\d+)\)", log, re.MULTILINE)
    if len(wave) < count - SLACK * rate or (claim and int(claim[2]) < int(claim[1]) < 2**31 - 2**16):
        raise ValueError(f"{where}: truncated, {len(wave) / rate:.2f} s could be decoded")
    if len(wave) < MIN_SECONDS * rate:
        raise ValueError(f"{where}: {len(wave) / rate:.4f} s, shorter than {MIN_SECONDS} s")
    if not np.isfinite(wave).all():
        raise ValueError(f"{where}: samples that are not finite")
    return torchaudio.functional.resample(torch.from_numpy(wave.mean(axis=1)), rate, SAMPLE_RATE).numpy()


def filterbank(wave):
    """16 kHz samples -> float32 (T, 160): log mel, normalised over the utterance, frames stacked in pairs."""
    from torchaudio.compliance.kaldi import fbank

    # The numbers of transformers' SeamlessM4TFeatureExtractor, in torch, where threads run side by side.
    # float64: in float32 quiet bins are off by 0.02
    samples = torch.from_numpy(wave).double()[None] * 2**15              # Kaldi expects 16-bit integers
    mel = fbank(samples, num_mel_bins=MEL_BINS, sample_frequency=SAMPLE_RATE)          # (2T or 2T + 1, 80)
    mel = (mel - mel.mean(0)) / (mel.var(0, correction=1) + 1e-7).sqrt()
    mel = mel[:len(mel) // STACK * STACK]    # an odd last frame counts in the mean, and is masked there
    return mel.reshape(-1, STACK * MEL_BINS).float()


@cache
def mel_filters(bins):
    """Whisper's triangular filters -> float32 (bins, 201)."""
    from transformers.audio_utils import mel_filter_bank
    filters = mel_filter_bank(1 + FFT // 2, bins, 0, SAMPLE_RATE / 2, SAMPLE_RATE, norm="slaney", mel_scale="slaney")
    return torch.from_numpy(filters).T.float()


def log_mel(wave, bins, window):
    """
    16 kHz samples -> float32 (T + TAIL, 2 * bins): Whisper's log mel, frames stacked in pairs. T of the window's frames
    are the audio's; its end may still be heard in the next one; the last is silence, as is all that follows it.
    """
    # the numbers of transformers' WhisperFeatureExtractor, which makes all of the silence, too
    length = -(-len(wave) // FRAME) + TAIL
    samples = torch.nn.functional.pad(torch.from_numpy(wave), (0, min(length, window) * FRAME - len(wave)))
    spectrum = torch.stft(samples, FFT, FRAME // STACK, window=torch.hann_window(FFT), return_complex=True)
    mel = (mel_filters(bins) @ spectrum[:, :-1].abs().square()).clamp(min=1e-10).log10()             # (bins, 2T)
    mel = (mel.maximum(mel.max() - 8) + 4) / 4
    mel = mel.T.reshape(-1, STACK * bins)
    return torch.cat([mel, mel[-1:].expand(length - len(mel), -1)])      # fills up a tail beyond the window


def window_of(config):
    """Frames that an encoder always takes, padded with silence, and never exceeds: Whisper's; SeamlessM4T: 0, any."""
    return config.max_source_positions if config.model_type == "whisper" else 0


def make_feature(config, wave):
    """16 kHz samples -> what the encoder with this config reads, one row a 50 Hz frame."""
    return log_mel(wave, config.num_mel_bins, window_of(config)) if window_of(config) else filterbank(wave)


def load_frozen(kind, path, device, prefix=None):
    """The transformers class `kind` out of a checkpoint that has it at `prefix`: frozen, in eval mode, on `device`."""
    # float16 on a GPU: Meta runs SeamlessM4T in it, it is 8 times closer to float32 than bfloat16 is, and the
    # cache is float16 anyway. sdpa: eager adds the mask to the scores as 0 or 1, so padding would leak in.
    dtype = torch.float16 if torch.device(device).type == "cuda" else torch.float32
    return load_checkpoint(kind, path, key_mapping={prefix: ""} if prefix else None, dtype=dtype,
                           attn_implementation="sdpa").to(device)


def load_encoder(path, device):
    """The speech encoder alone, out of a full SeamlessM4Tv2 or Whisper checkpoint; ValueError for any other."""
    from transformers import AutoConfig
    from transformers.models.seamless_m4t_v2.modeling_seamless_m4t_v2 import SeamlessM4Tv2SpeechEncoder
    from transformers.models.whisper.modeling_whisper import WhisperEncoder
    kinds = {"seamless_m4t_v2": (SeamlessM4Tv2SpeechEncoder, r"^speech_encoder\."),
             "whisper": (WhisperEncoder, r"^model\.encoder\.")}
    with loading(path):
        kind = AutoConfig.from_pretrained(path).model_type
    if kind not in kinds:
        raise ValueError(f"{path} is a {kind}; speech encoders are taken from {' or '.join(kinds)}")
    return load_frozen(kinds[kind][0], path, device, kinds[kind][1])


def fill_window(features, window):
    """List of log_mel's (T + TAIL, 2 * bins) -> (B, bins, 2 * window), with silence up to the window's end."""
    padded = torch.stack([torch.cat([feature, feature[-1:].expand(window, -1)])[:window] for feature in features])
    return padded.view(len(features), STACK * window, -1).transpose(1, 2)


def pad_features(features, weight):
    """List of (T, 160) -> ((B, T, 160), mask (B, T)) of the weight's type and device."""
    lengths = torch.tensor([len(feature) for feature in features])
    padded = torch.nn.utils.rnn.pad_sequence(features, batch_first=True)
    mask = (torch.arange(padded.shape[1]) < lengths[:, None]).long()
    return padded.to(weight), mask.to(weight.device)


@torch.no_grad()
def encode(encoder, features, pad=False):
    """
    One padded batch: list of make_feature's -> list of float32 arrays (T, W), each as if it had been alone.
    pad: all frames of a Whisper's window, not only those of the audio.
    """
    weight, window = next(encoder.parameters()), window_of(encoder.config)
    lengths = [len(feature) for feature in features]
    if window:
        frames = encoder(fill_window(features, window).to(weight)).last_hidden_state           # (B, window, W)
        lengths = [window if pad else length - TAIL for length in lengths]
    else:
        padded, mask = pad_features(features, weight)
        # by module, not by hidden_states[24]: newer transformers keep the adapter's output under that index
        frames = encoder.encoder(encoder.feature_projection(padded), attention_mask=mask)      # (B, T, W)
    return [row[:length] for row, length in zip(frames.float().cpu().numpy(), lengths)]


def average_frames(frames, k):
    """(T, W) -> (ceil(T / k), W): means of k consecutive frames; a short last group counts (our choice)."""
    starts = np.arange(0, len(frames), k)
    sizes = np.minimum(k, len(frames) - starts).astype(frames.dtype)
    return np.add.reduceat(frames, starts, axis=0) / sizes[:, None]


# --- The frame cache, as later stages see it.


# --- What every stage needs around its work.


# --- One split: decode ahead, encode, commit shard by shard.

def front_end(config, row, max_seconds):
    """A row's audio, ready for the encoder -> (feature, seconds, None), or (None, 0, why it is dropped)."""
    longest = min(max_seconds, window_of(config) / FRAME_RATE or max_seconds)
    try:
        wave = read_audio(row["audio"], row.get("start"), row.get("end"), longest)
    except ValueError as error:
        return None, 0.0, str(error)
    seconds = len(wave) / SAMPLE_RATE
    if seconds > longest:
        return None, 0.0, f"{row['audio']}: {seconds:.1f} s, longer than {longest} s"
    return make_feature(config, wave), seconds, None


def decode_ahead(config, blocks, max_seconds, workers):
    """Yield [(row, *front_end(row))] block by block; the next block is decoded while the caller has one."""
    with ThreadPoolExecutor(workers) as pool:
        waiting = []
        for block in [*blocks, []]:
            waiting, ready = [(row, pool.submit(front_end, config, row, max_seconds)) for row in block], waiting
            if ready:
                yield [(row, *future.result()) for row, future in ready]


def encode_block(c, encoder, features):
    """{utterance: feature} -> {utterance: float16 (frames, W)}, in that order; like lengths together."""
    frames, names = dict.fromkeys(features), sorted(features, key=lambda name: len(features[name]))
    while names:
        longest = window_of(encoder.config) or len(features[names[-1]])
        size = max(1, int(c.batch_seconds * FRAME_RATE / longest))
        names, batch = names[:-size], names[-size:]
        for utterance, output in zip(batch, encode(encoder, [features[name] for name in batch], c.pad)):
            with np.errstate(over="ignore"):             # the next line looks for it
                frames[utterance] = average_frames(output, c.mean).astype(np.float16)
            if not np.isfinite(frames[utterance]).all():
                raise ValueError(f"{utterance}: frames up to {np.abs(output).max()}, not finite in float16")
    return frames


def extract(c, encoder, made, folder, rows):
    """Encode what no shard in `folder` holds yet. rows: {utterance: one of its rows}."""
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))   # torchrun sets them
    lengths, known, _ = committed(folder, made)
    # Blocks are cut from all rows, not from those left: after a kill the batches, so the bytes, are the same.
    # A dropped utterance is tried again until the folder is finished.
    mine = list(rows.values())[rank::world]
    blocks = [mine[i:i + BLOCK] for i in range(0, len(mine), BLOCK)]
    blocks = [[row for row in block if row["utterance"] not in lengths] for block in blocks]
    blocks = [block for block in blocks if block]
    facts = {"made": made, "by": provenance()}
    number, frames, dropped, seconds = rank, {}, [], 0.0
    with tqdm(total=sum(map(len, blocks)), desc=folder, unit="utterance", disable=rank > 0) as progress:
        for done, block in enumerate(decode_ahead(encoder.config, blocks, c.max_seconds, c.workers), 1):
            features = {}
            for row, feature, length, reason in block:
                if reason is None:
                    features[row["utterance"]] = feature
                    seconds += length
                elif row["utterance"] not in known:
                    dropped.append({"utterance": row["utterance"], "audio": row["audio"], "reason": reason})
            frames |= encode_block(c, encoder, features)
            progress.update(len(block))
            full = sum(map(len, frames.values())) >= c.shard_frames or done == len(blocks)
            if full and (frames or dropped):             # neither where dropped ones were tried again
                while os.path.exists(os.path.join(folder, f"frames-{number:05d}.json")):
                    number += world          # so no two processes ever fill the same shard
                write_shard(folder, f"frames-{number:05d}", frames,
                            {"dropped": dropped, "seconds": seconds, **facts})
                frames, dropped, seconds = {}, [], 0.0


def splits_of(c):
    """Every (corpus, split) that is asked for."""
    for corpus in c.corpora.split(","):
        folder = os.path.join(c.work, "rows", corpus)
        require(folder, remake(os.path.join(folder, "train.jsonl")))
        files = glob.glob("*.jsonl", root_dir=folder)
        for split in c.splits.split(",") if c.splits else sorted(name[:-len(".jsonl")] for name in files):
            yield corpus, split


def main(argv=None):
    c = configure(Config, "extract_features", argv)
    # 1. the encoder: found now, loaded when a split needs it; and what all of a cache must have in common
    path, encoder = locate(c.work, c.encoder), None
    made = {"encoder": c.encoder, "weights": fingerprint(path), "layer": LAYER, "mean": c.mean,
            "pad": c.pad, "sample_rate": SAMPLE_RATE, "max_seconds": c.max_seconds}
    for corpus, split in splits_of(c):
        # 2. the utterances of the split: several rows may share one, a text-only row has none
        rows = read_rows(rows_file(c.work, corpus, split))
        rows = {row["utterance"]: row for row in rows if "utterance" in row}
        if not rows:
            print(f"{corpus}/{split}: text only")
            continue
        # 3. encode those that no shard holds yet
        folder = features_folder(c.work, c.encoder, c.mean, corpus, split)
        config = os.path.join(folder, "config.json")
        lengths, dropped, hours = committed(folder, made)
        if not os.path.exists(config) or rows.keys() - lengths.keys() - dropped.keys():
            with lock(folder):
                Path(config).unlink(missing_ok=True)     # the corpus has grown: not finished any more
                encoder = encoder or load_encoder(path, pick_device())
                if c.pad and not window_of(encoder.config):
                    raise SystemExit(f"--pad: {c.encoder} has no window to keep; only a Whisper has one")
                extract(c, encoder, made, folder, rows)
                # 4. config.json last; of several processes, the one that sees everything done writes it
                whole = finish_cache(c, made, encoder.config.hidden_size, folder, rows)
            if not whole:
                print(f"{corpus}/{split}: this process is done, others are not")
                continue
            lengths, dropped, hours = committed(folder, made)
        print(f"{corpus}/{split}: {hours:.2f} hours, {len(lengths)} utterances, {len(dropped)} dropped, "
              f"in {folder}")
        if dropped:
            print("  dropped.jsonl there says which and why; to try them again, remove its config.json")
    print(f"next: python train_projector.py --preset {c.preset}")


if __name__ == "__main__":
    main()
