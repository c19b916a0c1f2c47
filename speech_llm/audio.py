"""
Audio files of any format as waves at 16 kHz. What is there is read to its end, whatever a header states as its length.

    wave = read_audio("talk.mp3", start=1.5, end=3.0)      # float32 (samples,), one channel
    hours += duration("talk.mp3") / 3600
    pieces = cut_at_pauses(wave, 30 * SAMPLE_RATE)

libsndfile decodes wav, FLAC, mp3, Ogg and a dozen other formats; PyAV, where it is installed, m4a and mp4.
"""
import math
import os

import numpy as np
import soundfile

from speech_llm.files import replace_file
from speech_llm.streams import SLACK, OneWay, format_of, has_more, read_frames, read_streams, stated_seconds

SAMPLE_RATE = 16_000                         # Hz, of every wave that is returned
MIN_SECONDS = 0.04                           # the first encoder frame takes 0.035 s
KERNEL = 2**26                               # numbers in the resampling filter: 1 GB for a prime rate (our choice)
CANCEL = 0.3                                 # channels cancel if the RMS of their mean is below this share (our choice)
LOUDEST = 16                                 # full scale is 1; larger samples are on a scale of integers (our choice)
QUIETEST = 2**-15                            # a peak of one step of 16 bits is silence with dither (our choice)
PAUSE = SAMPLE_RATE // 5                     # samples: a cut falls in the quietest 0.2 s of what may be cut


def read_audio(path, start=None, end=None, longest=math.inf):
    """
    Return a file, or its slice from `start` to `end` in seconds, as float32 (samples,) at 16 kHz.

    The channels are averaged; if they cancel each other, the first one with sound is taken. Raise a ValueError that
    names the file and the reason if the audio is missing, damaged, truncated, shorter than MIN_SECONDS, longer than
    `longest` seconds, not finite, not on a scale of 1, or of a sample rate that no recording has.
    """
    where = path if start is None else f"{path} from {start} to {end} s"
    if not os.path.isfile(path):
        raise ValueError(f"{where}: no such file")
    try:
        wave = read_slice(path, start or 0, math.inf if end is None else end, longest)
        if len(wave) > longest * SAMPLE_RATE:
            raise ValueError(f"longer than {longest:g} s")
        if len(wave) < MIN_SECONDS * SAMPLE_RATE:
            raise ValueError(f"{len(wave) / SAMPLE_RATE:.4f} s, shorter than {MIN_SECONDS} s")
    except soundfile.SoundFileError as error:
        raise ValueError(f"{where}: cannot be decoded: {getattr(error, 'error_string', error)}") from None
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    return wave


def write_flac(path, wave, rate=SAMPLE_RATE):
    """Write a wave as FLAC of 16 bits. A killed process leaves no part of a file."""
    with replace_file(path) as temporary:
        soundfile.write(temporary, wave, rate, format="FLAC", subtype="PCM_16")


def duration(path):
    """
    Return the seconds of audio in a file, from its header where the header can be believed, else counted by decoding.
    Raise a ValueError as read_audio does.
    """
    try:
        with open(path, "rb", buffering=0) as raw, OneWay(raw.fileno(), closefd=False) as file:
            seconds = stated_seconds(file, raw)
    except (OSError, soundfile.SoundFileError):
        seconds = None                       # read_audio says what is wrong, or PyAV reads the file
    return len(read_audio(path)) / SAMPLE_RATE if seconds is None else seconds


def cut_at_pauses(wave, longest):
    """Return the pieces of a wave, at most `longest` samples each, cut in the middle of the quietest PAUSE."""
    pieces = []
    while len(wave) > longest:
        first, last = longest // 2, min(longest, len(wave) - SAMPLE_RATE)      # at least a second is left
        energy = np.convolve(wave[first:last].astype(np.float64) ** 2, np.ones(PAUSE), "valid")
        place = first + int(energy.argmin()) + PAUSE // 2
        pieces, wave = [*pieces, wave[:place]], wave[place:]
    return [*pieces, wave]


def read_slice(path, start, end, longest):
    """
    Return the slice of a file as a wave at 16 kHz; what lies beyond `longest` seconds need not be read.
    Raise SoundFileError, or ValueError with the reason, if the slice is not there.
    """
    with open(path, "rb", buffering=0) as raw:
        head = raw.read(12)
        if head[4:8] == b"ftyp":
            return cut([read_with_pyav(path)], start, end)
        raw.seek(0)
        try:
            frames, rate = read_as_stated(raw, start, end, longest)
        except soundfile.SoundFileError:     # libsndfile can fail where one stream ends and the next begins
            if not format_of(path, head):
                raise
            frames = None
    return cut(read_streams(path), start, end) if frames is None else to_mono(frames, rate)


def read_as_stated(raw, start, end, longest):
    """
    Decode the slice of an open file, with the lengths that its header states -> (float32 (frames, channels), rate).
    The frames are None if the file has more than that. SoundFileError or ValueError as read_slice.
    """
    with OneWay(raw.fileno(), closefd=False) as file:
        rate = file.samplerate
        first, last = round(start * rate), end if end == math.inf else round(end * rate)
        wanted = min(last - first, longest * rate + 1)
        frames, place = read_frames(file, first, wanted)
        if len(frames) < wanted:             # the file ends within the slice
            if has_more(file, raw, place):
                return None, rate
            if place + SLACK * rate < last < math.inf:
                raise ValueError(f"the file ends at {place / rate:.2f} s")
    return frames, rate


def cut(streams, start, end):
    """Return the slice from `start` to `end` s of (frames, rate)s joined end to end; ValueError if they end before."""
    wave = np.concatenate([to_mono(*stream) for stream in streams])
    if len(wave) + SLACK * SAMPLE_RATE < end * SAMPLE_RATE < math.inf:
        raise ValueError(f"the file ends at {len(wave) / SAMPLE_RATE:.2f} s")
    return wave[round(start * SAMPLE_RATE):round(min(end * SAMPLE_RATE, len(wave)))]


def to_mono(frames, rate):
    """(frames, channels) at any rate -> float32 (samples,) at 16 kHz; ValueError for samples of no recording."""
    import torch
    import torchaudio
    if SAMPLE_RATE * rate > KERNEL * math.gcd(SAMPLE_RATE, rate)**2:
        raise ValueError(f"a sample rate of {rate} Hz")
    if not len(frames):
        return np.zeros(0, np.float32)
    channels = np.ascontiguousarray(frames.T)
    lows, highs = channels.min(axis=1), channels.max(axis=1)
    peak = max(-lows.min(), highs.max())
    if not math.isfinite(peak):
        raise ValueError("samples that are not finite")
    if peak > LOUDEST:
        raise ValueError(f"samples up to {peak:g}, where full scale is 1")
    if (highs - lows).max() <= 2 * QUIETEST:
        return np.zeros(-(-len(frames) * SAMPLE_RATE // rate), np.float32)
    wave = channels.mean(axis=0)
    if len(channels) > 1:
        variances = channels.var(axis=1)     # a constant is no sound
        least = CANCEL**2 * variances.mean()
        if wave.var() <= least:              # in antiphase: the mean is rounding noise
            wave = channels[(variances > least).argmax()]
    return torchaudio.functional.resample(torch.from_numpy(wave), rate, SAMPLE_RATE).numpy()


def read_with_pyav(path):
    """Decode an m4a or mp4 -> (float32 (frames, channels), its rate). ValueError without PyAV."""
    try:
        import av
    except ImportError:
        raise ValueError("m4a and mp4 are decoded by PyAV, which is not installed; run: pip install av") from None
    try:
        with av.open(path, format="mp4") as container:
            if not container.streams.audio:
                raise ValueError("no audio in it")
            stream, resampler = container.streams.audio[0], av.AudioResampler(format="fltp")
            rate, stated = stream.rate, float((stream.duration or 0) * stream.time_base)
            blocks = [block.to_ndarray() for frame in container.decode(stream) for block in resampler.resample(frame)]
    except av.FFmpegError as error:
        raise ValueError(f"cannot be decoded: {error.strerror}") from None
    frames = np.concatenate(blocks, axis=1).T if blocks else np.empty((0, 1), np.float32)
    if len(frames) < (stated - SLACK) * rate:
        raise ValueError(f"truncated, {len(frames) / rate:.2f} s could be decoded")
    return frames, rate
