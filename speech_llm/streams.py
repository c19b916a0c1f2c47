"""
Decoding with libsndfile of files whose header states a wrong length, or none.

libsndfile reads no further than the length in the header. For an mp3 without such a length it guesses one from the
first frame. If bytes are left over, `read_streams` decodes the file once more: it takes the lengths out of the headers,
and splits a file of several streams joined end to end.
"""
import io
import math
import mmap
import os
import re
import struct
from itertools import pairwise

import numpy as np
import soundfile

SLACK = 0.1                                  # s by which a length may be off: segment times are rounded (our choice)
BLOCK = 2**20                                # frames decoded in one call: 22 s at 48 kHz (our choice)
UNKNOWN = 2**36                              # frames: as many or more are no length, as a FLAC states fewer
DENSEST = 2**13                              # frames that a byte can hold: silence in FLAC takes a byte for 4,700
WITHOUT_SIZE = 2**31 - 2**16                 # bytes; a wav written to a pipe states this or more

# kbit/s of MPEG 2 and of MPEG 1, layer III
MP3_KBPS = ((0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 0),
            (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 0))
# How a stream begins. Only an mp3 whose first frame holds a Xing header states its length.
BEGIN = {"WAV": rb"RIFF....WAVE", "FLAC": rb"fLaC[\x00\x80]\x00\x00\x22", "OGG": rb"OggS\x00\x02",
         "MP3": rb"\xff[\xe2-\xff]..(?:..)?(?:.{9}|.{17}|.{32})(?:Xing|Info)"}
BEGIN = {name: re.compile(pattern, re.DOTALL) for name, pattern in BEGIN.items()}
TAG = re.compile(rb"TAG|APET|LYRI|ID3")      # what may follow the audio: ID3, APE and Lyrics3 tags


class OneWay(soundfile.SoundFile):
    """A file read from front to back. A plain SoundFile seeks after every read, which GSM does not allow."""

    def seekable(self):
        return False


class Endless(io.BytesIO):
    """The bytes of an mp3, said to be 2**40 in number: too many for libsndfile to guess a length from them."""

    def seek(self, offset, whence=os.SEEK_SET):
        if whence == os.SEEK_END:
            offset, whence = offset + 2**40, os.SEEK_SET
        return super().seek(offset, whence)

    def readinto(self, buffer):
        if self.tell() < 2**39:
            return super().readinto(buffer)
        buffer[:] = bytes(len(buffer))       # libsndfile looks for a tag at the end
        return len(buffer)


def read_frames(file, first, count):
    """Return at most `count` frames from `first` on, float32 (frames, channels), and the number of the frame after."""
    place, end, blocks = 0, min(first + count, file.frames), []
    if first and super(OneWay, file).seekable() and file.frames < UNKNOWN:
        place = max(0, min(first, file.frames) - file.samplerate)      # an mp3 comes out wrong for 0.4 s after a seek
        file.seek(place)
    while place < end and len(block := file.read(int(min(BLOCK, end - place)), dtype="float32", always_2d=True)):
        blocks.append(block[max(0, first - place):])
        place += len(block)
    empty = np.empty((0, file.channels), np.float32)
    return blocks[0] if len(blocks) == 1 else np.concatenate([empty, *blocks]), place


def format_of(head):
    """Return the key of BEGIN that fits the first bytes of a file, or None."""
    return next((format for format, begin in BEGIN.items() if begin.match(head)), None)


def read_streams(path):
    """
    Yield each stream of a file in a format of BEGIN, decoded to its end: (float32 (frames, channels), rate).
    ValueError if a stream is truncated.
    """
    with open(path, "rb") as file:
        data = file.read()
    format = format_of(data) or "MP3"
    places = [match.start() for match in BEGIN[format].finditer(data, id3_size(data) + 1)]
    for begin, end in pairwise([0, *places, len(data)]):
        yield read_stream(data[begin:end], format)


def read_stream(data, format):
    """Decode one stream to its end -> (float32 (frames, channels), rate); ValueError if it states more than it has."""
    source, stated = io.BytesIO(data), None
    if format == "MP3" and not BEGIN["MP3"].match(data, id3_size(data)):
        source = Endless(data)
    elif format == "FLAC":                   # the number of frames has 36 bits; 0 is none
        stated = int.from_bytes(data[21:26]) % UNKNOWN or UNKNOWN
        source = io.BytesIO(data[:21] + bytes([data[21] & 0xF0]) + bytes(4) + data[26:])
    elif has_more_samples(format, source):   # 2**32 - 1 is no size
        place, *_ = wav_data(source)
        source = io.BytesIO(data[:place - 4] + b"\xff" * 4 + data[place:])
    source.seek(0)
    with OneWay(source) as file:
        frames, place = read_frames(file, 0, math.inf)
        rate, cut_off = file.samplerate, is_cut_off(file, source, place, stated or file.frames)
    rest = data[source.tell():]
    if cut_off:
        raise ValueError(f"truncated, {place / rate:.2f} s could be decoded")
    if format == "MP3" and len(rest) * place > SLACK * rate * source.tell() and not TAG.search(rest[:4096]):
        header = BEGIN["MP3"].search(data)   # states too little: decode without it
        if not header:
            raise ValueError(f"damaged, {place / rate:.2f} s could be decoded")
        return read_stream(data[:header.end() - 4] + bytes(4) + data[header.end():], format)
    return frames, rate


# --- What a header states.

def stated_seconds(file, raw):
    """
    Return the seconds of an open file as its header states them, of an mp3 as its frames have them; None if nothing is
    stated, or nothing that can be true.
    """
    size, seconds = raw.seek(0, os.SEEK_END), file.frames / file.samplerate
    if file.format == "MP3":
        raw.seek(0)
        counted = mp3_seconds(raw.read())
        return seconds if abs(counted - seconds) < 2 * SLACK else counted or None
    second_ogg = "Junk after the last page" in file.extra_info         # libsndfile's words
    wrong = file.frames > DENSEST * size or second_ogg or has_more_samples(file.format, raw)
    return None if wrong else seconds


def is_misstated(file, raw, place):
    """Return whether a file that was decoded up to frame `place` has more, or ends before a length that was guessed."""
    read, size = raw.tell(), raw.seek(0, os.SEEK_END)
    slack = SLACK * file.samplerate
    left = (size - read) * place / max(1, read)          # frames in the bytes that are left, about
    if file.format == "MP3":
        return left > slack or place < file.frames - slack
    return file.format == "FLAC" and left > slack or has_more_streams(file.format, raw) or (
        has_more_samples(file.format, raw))


def is_cut_off(file, raw, place, stated):
    """Return whether a file that was decoded up to frame `place` ends before `stated`, the frames in its header."""
    _, bytes_stated, bytes_there = wav_data(raw) if file.format.startswith("WAV") else (0, 0, 0)
    return bytes_there < bytes_stated < WITHOUT_SIZE or place + SLACK * file.samplerate < stated < UNKNOWN


def wav_data(raw):
    """Return where the samples of a wav begin, how many bytes its header states, and how many are in the file."""
    place, size = 12, raw.seek(0, os.SEEK_END)
    while place + 8 <= size:
        raw.seek(place)
        name, stated = struct.unpack("<4sI", raw.read(8))
        place += 8
        if name == b"data":
            return place, stated, size - place
        place += stated + stated % 2
    return size, 0, 0


def has_more_streams(format, raw):
    """Return whether a second stream begins in a FLAC or an Ogg."""
    if format not in ("FLAC", "OGG"):
        return False
    with mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return BEGIN[format].search(data, 1) is not None


def has_more_samples(format, raw):
    """Return whether a wav goes on with anything but chunks and tags after the samples that its header states."""
    if not format.startswith("WAV"):
        return False
    place, stated, there = wav_data(raw)
    left = there - stated - stated % 2
    if left < 8:
        return False
    raw.seek(-left, os.SEEK_END)
    name, size = struct.unpack("<4sI", raw.read(8))
    chunk = re.match(rb"[ -~]{4}", name) and size <= left and name != b"RIFF"
    return not chunk and not TAG.match(name)


def id3_size(head):
    """Return the bytes of the ID3 tag that an mp3 begins with, from the first ten bytes; 0 without such a tag."""
    return 10 + sum(byte << 7 * n for n, byte in enumerate(reversed(head[6:10]))) if head[:3] == b"ID3" else 0


def mp3_frame(data, place):
    """Return (bytes, seconds) of the mp3 frame that begins at a place in `data`; (0, 0.0) if none begins there."""
    if data[place] != 0xff or data[place + 1] & 0xe6 != 0xe2:          # MPEG audio, layer III
        return 0, 0.0
    version, bits = data[place + 1] >> 3 & 3, data[place + 2]
    halvings = {3: 0, 2: 1, 0: 2}.get(version)                         # of the sample rate: MPEG 1, 2 and 2.5
    kbps = MP3_KBPS[version == 3][bits >> 4]
    if halvings is None or not kbps or bits >> 2 & 3 == 3:
        return 0, 0.0
    rate, samples = (44100, 48000, 32000)[bits >> 2 & 3] >> halvings, 1152 if version == 3 else 576
    return samples * kbps * 125 // rate + (bits >> 1 & 1), samples / rate


def mp3_seconds(data):
    """Return the seconds of an mp3, counted from the headers of its frames; tags and damaged bytes are passed over."""
    place, seconds, last = id3_size(data), 0.0, len(data) - 4
    while 0 <= place <= last:
        size, length = mp3_frame(data, place)
        after = place + size
        if size and (after > last or mp3_frame(data, after)[0] or TAG.match(data, after)):
            place, seconds = after, seconds + length
        else:
            place = data.find(b"\xff", place + 1)
    return seconds
