"""
Decoding with libsndfile of files whose header states a wrong length, or none.

libsndfile reads no further than the length in the header; for an mp3 without such a length it guesses one from the
first frame. `has_more` finds what is left over. `read_streams` then decodes the file once more: it takes the lengths
out of the headers, and splits a file of several streams joined end to end.
"""
import io
import math
import os
import re
import struct
from collections import namedtuple
from itertools import pairwise

import numpy as np
import soundfile

from speech_llm.mp3 import XING, id3_size, mp3_seconds, mp3_streams

SLACK = 0.1                                  # s by which a length may be off: segment times are rounded (our choice)
BLOCK = 2**20                                # frames decoded in one call: 22 s at 48 kHz (our choice)
UNKNOWN = 2**36                              # frames: as many or more are no length, as a FLAC states fewer
DENSEST = 2**13                              # frames that a byte can hold: silence in FLAC takes a byte for 4,700
WITHOUT_SIZE = 2**31 - 2**16                 # bytes; a wav written to a pipe states this or more
PAGE = 27 + 255 + 255 * 255                  # bytes of the longest page of an Ogg
CHUNKS = {  # the first bytes of a file of chunks: where they begin, the head of a chunk, the chunk of the samples
    b"RIFF": (12, "<4sI", b"data"), b"RIFX": (12, ">4sI", b"data"), b"RF64": (12, "<4sI", b"data"),
    b"FORM": (12, ">4sI", b"SSND"), b"caff": (8, ">4sQ", b"data")}
Samples = namedtuple("Samples", "stated there place kind head")
BEGIN = {  # how a stream begins
    "WAV": rb"(?:RIFF|RIFX|RF64)....WAVE", "AIFF": rb"FORM....AIF[FC]", "CAF": rb"caff\x00\x01\x00\x00",
    "AU": rb"\.snd\x00\x00......", "FLAC": rb"fLaC[\x00\x80]\x00\x00\x22", "OGG": rb"OggS\x00\x02"}
BEGIN = {format: re.compile(begin, re.DOTALL) for format, begin in BEGIN.items()}
TAG = re.compile(rb"TAG|APET|LYRI|ID3")      # what may follow the samples: ID3, APE and Lyrics3 tags


class OneWay(soundfile.SoundFile):
    """A file read from front to back. A plain SoundFile seeks after every read, which GSM does not allow."""

    def seekable(self):
        return False


class Endless(io.BytesIO):
    """The bytes of an mp3 that pretend to be 2**40 in number, so that libsndfile's guess of a length is too long."""

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


# --- Whether libsndfile has read everything.

def has_more(file, raw, place):
    """
    Return whether a file goes on after frame `place`, with which libsndfile ended. raw: the same file, for bytes.
    ValueError if the file ends before the length that its header states.
    """
    read, rate, stated = raw.tell(), file.samplerate, file.frames
    # about as many frames as the bytes that are left hold; a header that states a few frames says little of their size
    left = (raw.seek(0, os.SEEK_END) - read) * max(place, SLACK * rate) / max(1, read)
    if file.format == "MP3" and (left > SLACK * rate or place + SLACK * rate < stated):
        raw.seek(0)
        data = raw.read()
        if mp3_seconds(data) > place / rate + 2 * SLACK:
            return True
        if not XING.search(data, 0, id3_size(data) + 42):
            stated = place                                             # no statement, a guess
    elif file.format in ("FLAC", "OGG"):
        raw.seek(0)
        data = raw.read()
        if BEGIN[file.format].search(data, 1):
            return True
        if file.format == "FLAC" and left > SLACK * rate and flac_sync(data) in data[read:]:
            return True
    refuse_cut_off(file, raw, place, stated)
    return has_more_samples(raw)


def refuse_cut_off(file, raw, place, stated):
    """Raise ValueError if a file, decoded up to frame `place`, ends before `stated`, the frames in its header."""
    cut_off, samples = place + SLACK * file.samplerate < stated < UNKNOWN, samples_of(raw)
    if samples.kind:
        cut_off = samples.there < samples.stated < WITHOUT_SIZE
    elif file.format == "OGG":
        cut_off = cut_off or ends_within_page(raw)
    if cut_off:
        raise ValueError(f"truncated, {place / file.samplerate:.2f} s could be decoded")


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
    raw.seek(1)
    joined = file.format == "OGG" and BEGIN["OGG"].search(raw.read())
    wrong = file.frames > DENSEST * size or joined or has_more_samples(raw)
    return None if wrong else seconds


# --- Decoding stream by stream.

def format_of(path, head):
    """Return the format of a file that read_streams can read, from its first bytes or its name; else None."""
    known = [format for format, begin in BEGIN.items() if begin.match(head)]
    return known[0] if known else "MP3" if path.lower().endswith(".mp3") else None


def read_streams(path):
    """Yield each stream of a file, decoded to its end: (float32 (frames, channels), rate); ValueError as has_more."""
    with open(path, "rb") as file:
        data = file.read()
    data = data[id3_size(data):]
    format = format_of("", data[:12]) or "MP3"
    if format == "MP3":
        streams = mp3_streams(data)
    else:
        places = [match.start() for match in BEGIN[format].finditer(data, 1)]
        streams = [data[begin:end] for begin, end in pairwise([0, *places, len(data)])]
    for stream in streams:
        yield read_stream(stream, format)


def read_stream(data, format):
    """Decode one stream to its end -> (float32 (frames, channels), rate); ValueError if it states more than it has."""
    source, stated, header = io.BytesIO(data), None, None
    if format == "MP3":
        header = XING.search(data, 0, 42)
        source = source if header else Endless(data)
    elif format == "FLAC":                   # the number of frames has 36 bits; 0 is none
        stated = int.from_bytes(data[21:26]) % UNKNOWN or UNKNOWN
        source = io.BytesIO(data[:21] + bytes(byte & 0xF0 for byte in data[21:22]) + bytes(4) + data[26:])
    elif (samples := samples_of(source)).stated > samples.there or has_more_samples(source):
        size = struct.pack(samples.kind, min(samples.there, 2**32 - 1))
        source = io.BytesIO(data[:samples.place] + size + data[samples.place + len(size):])
    source.seek(0)
    with OneWay(source) as file:
        frames, place = read_frames(file, 0, math.inf)
        read, rate = source.tell(), file.samplerate
        if header and (not place or (len(data) - read) * place > SLACK * rate * read):      # it states too little
            return read_stream(data[:header.start()] + bytes(4) + data[header.end():], format)
        refuse_cut_off(file, io.BytesIO(data), place, stated or file.frames)
    return frames, rate


# --- Files of chunks, FLAC and Ogg.

def samples_of(raw):
    """
    Return what a wav, AIFF, CAF or AU says of its samples: the bytes that it states and those in the file, where the
    stated number is and of which type, and the head of a chunk. A file of another format has no type.
    """
    size = raw.seek(0, os.SEEK_END)
    raw.seek(0)
    begin = raw.read(12)
    if begin[:4] == b".snd" and len(begin) == 12:
        first, stated = struct.unpack(">II", begin[4:])
        return Samples(stated, size - first, 8, ">I", ">4sI")
    place, head, wanted = CHUNKS.get(begin[:4], (size, "<4sI", b""))
    width, large = struct.calcsize(head), None
    while place + width <= size:
        raw.seek(place)
        name, stated = struct.unpack(head, raw.read(width))
        if name == b"ds64" and place + 24 <= size:       # holds the sizes of an RF64
            raw.seek(place + 16)
            large = Samples(*struct.unpack("<Q", raw.read(8)), 0, place + 16, "<Q", head)
        place += width
        if name == wanted:
            samples = large or Samples(stated, 0, place - width + 4, head[0] + head[-1], head)
            return samples._replace(there=size - place)
        place += stated + stated % 2
    return Samples(0, 0, 0, "", head)


def has_more_samples(raw):
    """Return whether a file goes on with anything but chunks and tags after the samples that its header states."""
    samples = samples_of(raw)
    left, width = samples.there - samples.stated - samples.stated % 2, struct.calcsize(samples.head)
    if left < width:
        return False
    raw.seek(-left, os.SEEK_END)
    name, size = struct.unpack(samples.head, raw.read(width))
    chunk = re.match(rb"[ -~]{4}", name) and size <= left and name not in CHUNKS
    return not chunk and not TAG.match(name)


def flac_sync(data):
    """Return the three bytes with which each frame of a FLAC begins, from its first frame."""
    place, last = 4 + id3_size(data), False
    while not last and place + 4 < len(data):            # blocks of metadata
        last = data[place] >> 7
        place += 4 + int.from_bytes(data[place + 1:place + 4])
    return data[place:place + 3]


def ends_within_page(raw):
    """Return whether the last page of an Ogg is not whole."""
    raw.seek(max(0, raw.seek(0, os.SEEK_END) - PAGE))
    page = raw.read().rpartition(b"OggS")[2]             # 23 bytes, the number of segments, their sizes
    return len(page) < 23 or len(page) < 23 + page[22] + sum(page[23:23 + page[22]])
