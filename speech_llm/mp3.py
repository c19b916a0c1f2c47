"""
The frames of an mp3, told by their headers: their seconds, and the streams that they form.

An mp3 is a row of frames without any header of the whole. Encoders put the length into the first frame, after the word
Xing or Info, which holds no sound then; many files have no such frame.
"""
import re

KBPS = ((0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 0),         # kbit/s of MPEG 2, layer III
        (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 0))     # of MPEG 1, layer III
XING = re.compile(rb"Xing|Info")             # within the first 42 bytes of a frame


def id3_size(head):
    """Return the bytes of the ID3 tag that a file begins with, from its first ten bytes; 0 without such a tag."""
    return 10 + sum(byte << 7 * n for n, byte in enumerate(reversed(head[6:10]))) if head[:3] == b"ID3" else 0


def mp3_frame(data, place):
    """Return (bytes, seconds) of the mp3 frame that begins at a place in `data`; (0, 0.0) if none begins there."""
    if data[place] != 0xff or data[place + 1] & 0xe6 != 0xe2:          # MPEG audio, layer III
        return 0, 0.0
    version, bits = data[place + 1] >> 3 & 3, data[place + 2]
    halvings = {3: 0, 2: 1, 0: 2}.get(version)                         # of the sample rate: MPEG 1, 2 and 2.5
    kbps = KBPS[version == 3][bits >> 4]
    if halvings is None or not kbps or bits >> 2 & 3 == 3:
        return 0, 0.0
    rate, samples = (44100, 48000, 32000)[bits >> 2 & 3] >> halvings, 1152 if version == 3 else 576
    return samples * kbps * 125 // rate + (bits >> 1 & 1), samples / rate


def mp3_frames(data):
    """Yield (place, bytes, seconds) of the whole frames of an mp3; tags and damaged bytes are passed over."""
    place, last, in_step = id3_size(data), len(data) - 4, False
    while 0 <= place <= last:
        size, seconds = mp3_frame(data, place)
        after = place + size
        if size and after <= len(data) and (in_step or after > last or mp3_frame(data, after)[0]):
            yield place, size, seconds
            place, in_step = after, True
        else:
            place, in_step = data.find(b"\xff", place + 1), False


def mp3_seconds(data):
    """Return the seconds of an mp3, counted from its frames."""
    return sum(seconds for *_, seconds in mp3_frames(data))


def mp3_streams(data):
    """Return the streams of an mp3, without tags. A Xing header begins one, and so does another rate, or stereo."""
    streams, latest = [], None
    for place, size, _ in mp3_frames(data):
        frame = data[place:place + size]
        kind = frame[1] >> 3 & 3, frame[2] >> 2 & 3, frame[3] >> 6 == 3          # version, rate, whether mono
        if kind != latest or XING.search(frame, 0, 42):
            streams.append([])
        streams[-1].append(frame)
        latest = kind
    return [b"".join(frames) for frames in streams] or [data]
