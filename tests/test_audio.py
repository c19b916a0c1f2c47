"""Audio files: what is there is read to its end, and what cannot be used says why."""
import io
import os
import re
import struct
import sys

import numpy as np
import pytest
import soundfile
from downloads import m4a
from test_bad_input import refused, write

from data.recipe import unreadable
from speech_llm.audio import cut_at_pauses, duration, read_audio

RATE = 16_000
NOISE = 0.1 * np.random.default_rng(0).standard_normal((RATE, 1))                             # 1 s
SWEEP = 0.5 * np.sin(2 * np.pi * np.arange(3 * RATE) / RATE * (200 + 50 * np.arange(3 * RATE) / RATE))       # 3 s


def sound(wave, rate=RATE, format="WAV", subtype=None):
    """Return an audio file as bytes."""
    file = io.BytesIO()
    soundfile.write(file, wave, rate, format=format, subtype=subtype)
    return file.getvalue()


def put(data, place, value):
    """Return bytes with `value` written at `place`."""
    return data[:place] + value + data[place + len(value):]


WHOLE = {"a.wav": sound(SWEEP), "a.flac": sound(SWEEP, format="FLAC"), "a.mp3": sound(SWEEP, format="MP3"),
         "a.ogg": sound(SWEEP, format="OGG"), "a.opus": sound(SWEEP, format="OGG", subtype="OPUS")}


@pytest.mark.parametrize("name, tolerance", [
    ("a.wav", 1e-4), ("a.flac", 1e-4), ("a.mp3", 0.05), ("a.ogg", 0.05), ("a.opus", 0.2)])
def test_every_format_and_its_slices(tmp_path, name, tolerance):
    path = write(tmp_path / name, WHOLE[name])
    whole = read_audio(path)
    assert len(whole) == 48000 and np.abs(whole[1000:-1000] - SWEEP[1000:-1000]).max() < tolerance
    # seeking is exact to the sample, also in an mp3, whose decoder needs a run-up
    assert np.abs(read_audio(path, 1.25, 2.5) - whole[20000:40000]).max() < 1e-6
    assert len(read_audio(path, 2.5, 3.05)) == 8000              # times are rounded: cut at the file's end
    for start, end, says in ((2.5, 3.2, "from 2.5 to 3.2 s: the file ends at 3.00 s"), (5, 6, "ends at 3.00 s"),
                             (0.5, 0.5, "shorter than 0.04 s"), (0, 10**400, "ends at 3.00 s")):
        refused(read_audio, path, start, end, says=says)
    assert duration(path) == 3


READABLE = {
    "24 bits.wav": sound(NOISE, subtype="PCM_24"), "8 bits.wav": sound(NOISE, subtype="PCM_U8"),
    "64 bits.wav": sound(NOISE, subtype="DOUBLE"), "A-law.wav": sound(NOISE, subtype="ALAW"),
    "192 kHz of 8 channels.wav": sound(np.repeat(np.repeat(NOISE, 8, 1), 12, 0), 192_000),
    "a FLAC called.wav": sound(NOISE, format="FLAC"),
    "a wav called.mp3": sound(NOISE), "an Ogg without an ending": sound(NOISE, format="OGG"),
    "too loud.wav": sound(NOISE * 99), "ADPCM.wav": sound(NOISE, subtype="MS_ADPCM")}


@pytest.mark.parametrize("name", READABLE)
def test_audio_of_any_kind_is_read(tmp_path, name):
    path = write(tmp_path / name, READABLE[name])
    wave = read_audio(path, longest=30.0)
    assert len(wave) / RATE == pytest.approx(1, abs=0.05) and np.isfinite(wave).all() and wave.any()
    assert duration(path) == pytest.approx(1, abs=0.05)


WAV, FLAC, MP3, OGG, OPUS = WHOLE.values()
AU, AIFF, CAF, RF64, ALAW = (sound(SWEEP, format=format, subtype=subtype) for format, subtype in [
    ("AU", None), ("AIFF", None), ("CAF", None), ("RF64", None), ("WAV", "ALAW")])
FRAME = MP3.find(MP3[:2], 4)                                     # the first frame holds the Xing header, no sound
PLAIN = MP3[FRAME:]                                              # an mp3 without this header
XING = MP3.find(b"Xing")
QUIET_FIRST = sound(np.concatenate([np.zeros(4 * RATE), np.random.default_rng(0).uniform(-1, 1, RATE)]), format="MP3")
LOUD_FIRST = sound(np.concatenate([np.random.default_rng(0).uniform(-1, 1, RATE), np.zeros(4 * RATE)]), format="MP3")
CHUNK = struct.pack("<4sI", b"LIST", 4) + b"INFO"                 # a chunk after the samples


def flac_of(frames):
    """Return the FLAC with another number of frames in its header; 0 is unknown. The number has 36 bits."""
    return put(FLAC, 21, (int.from_bytes(FLAC[21:26]) >> 36 << 36 | frames).to_bytes(5))


MISSTATED = {  # file: seconds of audio
    "a wav with zeros behind a chunk.wav": (WAV + CHUNK + bytes(999), 3),
    "a wav of floats not closed.wav": (put(sound(SWEEP, subtype="FLOAT"), 76, bytes(4)), 3),
    "two wavs.wav": (WAV + sound(NOISE), 4), "two wavs of two rates.wav": (WAV + sound(NOISE[:8000], 8000), 4),
    "a FLAC from a pipe.flac": (flac_of(0), 3), "a FLAC with more frames.flac": (flac_of(RATE), 3),
    "a FLAC with more than a frame.flac": (flac_of(1), 3),
    "an mp3 with more than two frames.mp3": (put(MP3, XING + 8, (2).to_bytes(4)), 3),
    "two FLACs.flac": (FLAC + FLAC, 6),
    "an mp3 without a Xing header.mp3": (PLAIN, 3), "two of these.mp3": (PLAIN + PLAIN, 6.19),
    "loud first.mp3": (LOUD_FIRST[LOUD_FIRST.find(LOUD_FIRST[:2], 4):], 5),
    "quiet first.mp3": (QUIET_FIRST[QUIET_FIRST.find(QUIET_FIRST[:2], 4):], 5),
    "three mp3s with tags.mp3": (3 * (MP3 + b"TAG" + bytes(125)), 9),
    "two mp3s of two rates.mp3": (MP3 + sound(NOISE, 44100, "MP3"), 3 + 16000 / 44100),
    "an mp3 with more frames.mp3": (put(MP3, XING + 8, (20).to_bytes(4)), 3),
    "an mp3 with a picture behind.mp3": (MP3 + b"APETAGEX" + bytes(50_000), 3),
    "an mp3 cut in its last frame.mp3": (PLAIN[:-20], 3), "an mp3 with noise behind.mp3": (PLAIN + bytes(50_000), 3),
    "a FLAC with zeros behind.flac": (FLAC + bytes(20_000), 3),
    "an mp3 with a picture before.mp3": (b"ID3\3\0\0\0\2\0\0" + bytes(2**15) + MP3, 3),
    "one Opus twice.ogg": (OPUS + OPUS, 6), "Ogg and Opus.ogg": (OGG + OPUS, 6),
    **{f"{name} of {size} bytes": (put(data, place, struct.pack(kind, size)), 3)
       for name, data, place, kind in [              # not closed, with more samples, from a pipe
           ("AU", AU, 8, ">I"), ("AIFF", AIFF, AIFF.find(b"SSND") + 4, ">I"), ("CAF", CAF, CAF.find(b"data") + 4, ">q"),
           ("RF64", RF64, 28, "<Q"), ("A-law", ALAW, ALAW.find(b"data") + 4, "<I"), ("WAV", WAV, 40, "<I")]
       for size in (0, 16000, -1 if kind == ">q" else 2**32 - 1)},
}


@pytest.mark.parametrize("name", MISSTATED)
def test_audio_is_read_to_its_end(tmp_path, name):
    content, seconds = MISSTATED[name]
    path = write(tmp_path / name.replace(" ", "_"), content)
    whole = read_audio(path)
    assert len(whole) / RATE == pytest.approx(seconds, abs=0.16)
    if seconds in (3, 6, 9):                                     # without its Xing header an mp3 begins some ms early
        size = 2 ** 18
        match = np.fft.irfft(np.fft.rfft(whole, size) * np.fft.rfft(SWEEP[:40000], size).conj())
        begin = int(match[:2500].argmax())
        assert np.corrcoef(whole[begin:begin + 40000], SWEEP[:40000])[0, 1] > 0.95
    first, last = round((seconds - 1.5) * RATE), round((seconds - 0.5) * RATE)
    piece = read_audio(path, seconds - 1.5, seconds - 0.5)
    assert np.abs(piece[200:-200] - whole[first:last][200:-200]).max() < 1e-3                 # resampling has edges
    refused(read_audio, path, 0.5, seconds + 0.5, says="the file ends at")
    refused(read_audio, path, None, None, 2.5, says="longer than 2.5 s")
    if not re.search("FLAC with more|two FLACs", name):   # there `duration` returns what the header states
        assert duration(path) == pytest.approx(seconds, abs=0.4)     # each mp3 begins and ends with some ms of silence


TRUNCATED = {
    "a wav by a sample.wav": WAV[:-2], "the second wav.wav": WAV + WAV[:-9000], "a FLAC.flac": flac_of(9 * RATE),
    "the second FLAC.flac": FLAC + flac_of(9 * RATE), "an Ogg.ogg": OPUS[:-2000], "an mp3.mp3": MP3[:2000],
    "the second mp3.mp3": MP3 + MP3[:2000], "an mp3 header.mp3": put(MP3, XING + 8, (9999).to_bytes(4))}


@pytest.mark.parametrize("name", TRUNCATED)
def test_a_file_with_less_than_its_header_states_is_truncated(tmp_path, name):
    path = write(tmp_path / name.replace(" ", "_"), TRUNCATED[name])
    with pytest.raises(ValueError, match=r"truncated, \d.\d\d s could be decoded"):
        read_audio(path)
    if name != "the second wav.wav":                                                  # libsndfile opens no such file
        assert len(read_audio(path, 0.25, 0.75)) == 8000                              # this part is there


def test_telephone_audio_cannot_seek_and_is_read(tmp_path):
    path = write(tmp_path / "a.wav", sound(SWEEP[::2], 8000, subtype="GSM610"))
    whole = read_audio(path)
    assert len(whole) / RATE == pytest.approx(3, abs=0.05)
    assert np.abs(read_audio(path, 1, 2)[200:-200] - whole[RATE:2 * RATE][200:-200]).max() < 1e-6
    assert len(read_audio(write(tmp_path / "a.raw", WAV))) == 48000                    # soundfile goes by this ending


def test_one_loud_channel_of_three_at_another_rate(tmp_path):
    """A third of its height, and still 440 Hz."""
    tone, expected = (0.5 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate) for rate in (44100, RATE))
    wave = read_audio(write(tmp_path / "a.wav", sound(np.stack([tone, 0 * tone, 0 * tone], axis=1), 44100)))
    assert wave.dtype == np.float32 and np.abs(wave - expected / 3)[200:-200].max() < 1e-3


LEFT = NOISE[:, 0]


@pytest.mark.parametrize("channels, mono", [
    ([LEFT, -LEFT], LEFT), ([LEFT, 0.01 * LEFT[::-1] - LEFT], LEFT), ([LEFT, -LEFT] * 3, LEFT),
    ([0 * LEFT, LEFT, -LEFT], LEFT), ([LEFT + 0.3, 0.3 - LEFT], LEFT + 0.3),                 # a constant is no sound
    ([LEFT, LEFT[::-1]], (LEFT + LEFT[::-1]) / 2)])                                          # unlike, but not opposite
def test_channels_that_cancel_each_other(tmp_path, channels, mono):
    assert np.abs(read_audio(write(tmp_path / "a.wav", sound(np.stack(channels, axis=1)))) - mono).max() < 1e-4


def test_coding_noise_is_not_taken_for_the_mean_of_two_channels(tmp_path):
    """Ogg Vorbis leaves noise of a fifth of the channels' height where the channels cancel each other."""
    rumble = np.convolve(np.random.default_rng(0).standard_normal(3 * RATE), 0.9 ** np.arange(40), "same") / 7
    wave = read_audio(write(tmp_path / "a.ogg", sound(np.stack([rumble, -rumble], axis=1), format="OGG")))
    assert np.corrcoef(wave, rumble)[0, 1] > 0.8


def test_silence_stays_silence_and_loud_samples_loud(tmp_path):
    """Dither of one step of 16 bits would become noise of full strength in a filterbank."""
    dither = np.random.default_rng(0).integers(-1, 2, RATE) / 2**15
    for wave in (np.zeros(RATE), np.full(RATE, 0.1), dither, np.stack([dither, -dither], axis=1)):
        assert np.array_equal(read_audio(write(tmp_path / "a.wav", sound(wave))), np.zeros(RATE))
    loud = read_audio(write(tmp_path / "b.wav", sound(NOISE * 20, subtype="FLOAT")))   # over full scale, as some are
    assert 4 < np.abs(loud).max() < 16


UNUSABLE = {
    "empty.wav": (b"", "cannot be decoded"), "text.wav": (b"hello\n" * 99, "cannot be decoded"),
    "a header alone.wav": (WAV[:44], "truncated"), "a cut header.wav": (WAV[:30], "cannot be decoded"),
    "zeros in it.flac": (FLAC[:9000] + bytes(20_000), "zeros_in_it.flac: "),
    "a cut Ogg.ogg": (OGG[:600], "a_cut_Ogg.ogg: "),
    "no sample.wav": (sound(NOISE[:0]), "0.0000 s, shorter than 0.04 s"),
    "639 samples.wav": (sound(NOISE[:639]), "0.0399 s, shorter than 0.04 s"),
    "not a number.wav": (sound(np.append(NOISE, np.nan), subtype="FLOAT"), "samples that are not finite"),
    "a scale of integers.wav": (sound(NOISE * 2**15, subtype="FLOAT"), "where full scale is 1"),
    "an hour.flac": (sound(np.zeros((3600 * 1000, 1)), 1000, "FLAC"), "longer than 30 s"),
    "a rate of no recorder.wav": (sound(NOISE, 44_101), "a sample rate of 44101 Hz")}


@pytest.mark.parametrize("name", UNUSABLE)
def test_audio_that_cannot_be_used_says_why(tmp_path, name):
    content, says = UNUSABLE[name]
    path = write(tmp_path / name.replace(" ", "_"), content)
    assert refused(read_audio, path, None, None, 30.0, says=says).startswith(path)


@pytest.mark.parametrize("name", ["folder", "nothing.wav", "", "a\0.wav", "a" * 5000, "pipe"])
def test_audio_that_is_no_file(tmp_path, name):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")                                                  # whose reader would wait for ever
    path = str(tmp_path / name)
    refused(read_audio, path, says="no such file")
    assert unreadable([path]) == {path: "no such file"}


def test_m4a_is_read_where_pyav_is_installed(tmp_path, monkeypatch):
    pytest.importorskip("av")
    path = str(tmp_path / "phone.m4a")
    m4a(path, 2)
    wave = read_audio(path)
    assert len(wave) / RATE == pytest.approx(2, abs=0.1) and duration(path) == len(wave) / RATE
    assert np.abs(np.fft.rfft(wave[RATE // 2:RATE // 2 + RATE])).argmax() == 440
    assert np.array_equal(read_audio(path, 0.5, 1.5), wave[8000:24000])
    whole = (tmp_path / "phone.m4a").read_bytes()
    with pytest.raises(ValueError, match="cut.m4a: (cannot be decoded|truncated)"):
        read_audio(write(tmp_path / "cut.m4a", whole[:len(whole) // 2]))
    monkeypatch.setitem(sys.modules, "av", None)                                      # as if it were not installed
    refused(read_audio, path, names="phone.m4a", says="PyAV, which is not installed; run: pip install av")


def test_long_audio_is_cut_at_its_pauses():
    """Speech of 0.5 with silences around 7 s and 16 s: the cuts fall there, and nothing is lost."""
    longest, wave = 10 * RATE, np.full(20 * RATE, 0.5, dtype=np.float32)
    wave[int(6.8 * RATE):int(7.2 * RATE)] = wave[int(15.8 * RATE):int(16.2 * RATE)] = 0
    pieces = cut_at_pauses(wave, longest)
    assert np.array_equal(np.concatenate(pieces), wave)
    ends = np.cumsum([len(piece) for piece in pieces]) / RATE
    assert len(pieces) == 3 and abs(ends[0] - 7) < 0.2 and abs(ends[1] - 16) < 0.2
    assert len(cut_at_pauses(wave[:longest], longest)) == 1
    for seconds in (10.01, 15, 19.9):                                       # no pause at all: still at most 10 s
        lengths = [len(piece) / RATE for piece in cut_at_pauses(np.ones(int(seconds * RATE), np.float32), longest)]
        assert sum(lengths) == pytest.approx(seconds) and max(lengths) <= 10 and min(lengths) >= 0.9
