"""
Make the rows of Europarl-ST v1.1: English speeches of the European Parliament, with German and Italian translations.

    python -m data.europarlst                       # or --raw folder, where the download is elsewhere

download into <work>/raw/europarlst (or --raw): https://www.mllp.upv.es/europarl-st/v1.1.tar.gz, unpacked to v1.1/;
        data/README.md says more
needs           PyAV (pip install av), or the program ffmpeg on the PATH, to decode m4a

reads   v1.1/en/audios/<speech>.m4a, v1.1/en/{de,it}/{train,dev,test}/segments.{lst,en,de,it}
writes  <work>/audio/europarlst/<speech>.flac: every speech, decoded once to 16 kHz mono; a file that is there stays
        <work>/rows/europarlst/{train,dev,test}.jsonl, counts.md, dropped.txt, config.json last

An utterance is a segment of a speech, known by speech, start and end. It has one ASR row over both languages, and an ST
row for each translation. If its two English transcripts differ, all rows take the one beside the German (our choice).
train-noisy is not used: the papers name no noisy split (our choice).
"""
import importlib.util
import os
import re
import shutil
import subprocess
from multiprocessing.pool import ThreadPool

import numpy as np
import soundfile
from tqdm import tqdm

from data.recipe import (begin, download, finish, finished, limited, missing_files, parser, refuse_missing, report,
                         speech_rows, write_splits)
from speech_llm.audio import SAMPLE_RATE, read_audio, write_flac
from speech_llm.files import text_lines


DOWNLOAD = "unpack https://www.mllp.upv.es/europarl-st/v1.1.tar.gz (20 GB), which makes v1.1/"
TARGETS = ("de", "it")
SPLITS = ("train", "dev", "test")
PAPER = {("train", "ASR en"): 35_372, ("train", "ST/MT de"): 32_628, ("train", "ST/MT it"): 29_552,   # 2025, Table 1
         ("test", "ASR en"): 1_345, ("test", "ST/MT de"): 1_253, ("test", "ST/MT it"): 1_130}         # the release
SEGMENT = re.compile(r"(\w[\w.-]*)\s+([0-9.]+)\s+([0-9.]+)\s*")  # speech, a plain file name; start and end, seconds
SLACK = 0.1                                                      # s that a segment may end after its audio (our choice)


def missing(work, raw=""):
    """Return [(what is missing, how to mend it)]."""
    english = os.path.join(download(work, raw, "europarlst"), "v1.1", "en")
    paths = [os.path.join(english, target, split, f"segments.{kind}") for target in TARGETS for split in SPLITS
             for kind in ("lst", "en", target)]
    paths = [os.path.join(english, "audios"), *paths] if os.path.isdir(english) else [english]
    lacking = missing_files(paths, DOWNLOAD)
    if not find_decoder():
        lacking.append(("a decoder of m4a", "pip install av, or apt-get install ffmpeg"))
    return lacking


# --- Segments.

def read_segments(folder, target):
    """
    Return [(speech, start, end, transcript, translation)] of one split of one target, times in seconds.
    SystemExit if the three files differ in length, and for a malformed line, with the file and the line.
    """
    paths = [os.path.join(folder, f"segments.{kind}") for kind in ("lst", "en", target)]
    texts = []
    for path in paths:
        with open(path, "rb") as file:
            texts.append([line.rstrip("\r\n") for line in text_lines(file, path)])
    if len({len(lines) for lines in texts}) > 1:
        counts = ", ".join(f"{path} has {len(lines)} lines" for path, lines in zip(paths, texts))
        raise SystemExit(f"{counts}; they belong together line by line, unpack the download again")
    segments = []
    for number, (place, transcript, translation) in enumerate(zip(*texts), 1):
        try:
            speech, start, end = SEGMENT.fullmatch(place).groups()
            segments.append((speech, float(start), float(end), transcript.strip(), translation.strip()))
        except (AttributeError, ValueError):
            raise SystemExit(f"{paths[0]} line {number}: {place!r} is not 'speech start end'; unpack the download again"
                             ) from None
    return segments


def refuse_leaks(segments):
    """Exit if a speech of train, of any target, is in dev or test of any target. segments: {split: {target: [...]}}"""
    speeches = {split: {segment[0] for part in segments[split].values() for segment in part} for split in SPLITS}
    for split in ("dev", "test"):
        for speech in sorted(speeches["train"] & speeches[split]):
            raise SystemExit(f"speech {speech} is in train and in {split}; unpack the download again")


def join(segments, audio):
    """
    Return {split: rows}, [(split, id, why it is dropped)] of {split: {target: segments}}.
    audio: {speech: (path, seconds) or why it has no audio}. Segments of both targets with the same speech, start and
    end are one utterance.
    """
    splits, dropped = {}, []
    for split in SPLITS:
        utterances = {}                                          # (speech, start, end): (transcript, {target: text})
        for target in TARGETS:
            for speech, start, end, transcript, translation in segments[split][target]:
                utterance = f"europarlst/{speech}/{start}-{end}"
                known, texts = utterances.get((speech, start, end), (transcript, {}))
                if isinstance(audio[speech], str):
                    why = f"speech without audio: {audio[speech]}"
                elif start >= end:
                    why = "ends before it starts"
                elif end > audio[speech][1] + SLACK:
                    why = f"ends after its audio: {audio[speech][1]:.2f} s"
                elif not transcript or not translation:
                    why = "empty text"
                elif target in texts:
                    why = "segment listed twice"
                else:
                    why = ""
                    utterances[speech, start, end] = known, {**texts, target: translation}
                    if known != transcript:
                        why = "transcript differs over the targets, the first stays"
                if why:
                    dropped.append((split, f"{utterance}/ST.{target}", why))
        splits[split] = []
        for (speech, start, end), (transcript, texts) in utterances.items():
            source = {"audio": audio[speech][0], "start": start, "end": end}
            splits[split] += speech_rows(f"europarlst/{speech}/{start}-{end}", source, transcript, texts)
    return splits, dropped


# --- Audio.

def decode_ffmpeg(path):
    """Return a file's samples, decoded with the program ffmpeg: int16, 16 kHz, mono. ValueError says why not."""
    command = ["ffmpeg", "-nostdin", "-v", "error", "-xerror", "-i", f"file:{path}", "-map", "0:a:0",
               "-ac", "1", "-ar", str(SAMPLE_RATE), "-f", "s16le", "-"]
    done = subprocess.run(command, capture_output=True)
    if done.returncode:
        raise ValueError(done.stderr.decode("utf-8", "replace"))
    return np.frombuffer(done.stdout, np.int16)


def find_decoder():
    """Return read_audio if PyAV is installed, else decode_ffmpeg if ffmpeg is, else None."""
    if importlib.util.find_spec("av"):
        return read_audio
    return decode_ffmpeg if shutil.which("ffmpeg") else None


def decode_speeches(speeches, raw, folder):
    """
    Decode raw/<speech>.m4a to folder/<speech>.flac, unless that file is there. Return {speech: (path, seconds)}, and
    {speech: why} for a speech that is missing or cannot be decoded.
    """
    paths = {speech: os.path.join(folder, f"{speech}.flac") for speech in speeches}
    decode = find_decoder()

    def decode_one(speech):
        source, path = os.path.join(raw, f"{speech}.m4a"), paths[speech]
        if not os.path.exists(path):
            if not os.path.isfile(source):
                return "no such file"
            try:
                wave = decode(source)
            except Exception as error:                           # libav has many errors; a corrupt file stops nothing
                return f"cannot be decoded ({error})"
            if not len(wave):
                return "cannot be decoded (no samples)"
            write_flac(path, wave)
        return path, soundfile.info(path).duration
    with ThreadPool(os.cpu_count()) as pool:
        results = list(tqdm(pool.imap(decode_one, speeches), total=len(speeches), desc="decode", unit=" speeches"))
    return dict(zip(speeches, results))


def main(argv=None):
    args = parser(__doc__, "europarlst").parse_args(argv)
    settings = limited(args)
    if finished(args.work, "europarlst", settings):
        return
    refuse_missing("europarlst", missing(args.work, args.raw), args.check)
    english = os.path.join(download(args.work, args.raw, "europarlst"), "v1.1", "en")
    segments = {split: {target: read_segments(os.path.join(english, target, split), target) for target in TARGETS}
                for split in SPLITS}
    refuse_leaks(segments)
    begin(args.work, "europarlst", settings)
    segments = {split: {target: part[:args.limit or None] for target, part in parts.items()}
                for split, parts in segments.items()}                       # the first: both targets share them
    speeches = sorted({segment[0] for parts in segments.values() for part in parts.values() for segment in part})
    audio = decode_speeches(speeches, os.path.join(english, "audios"), os.path.join(args.work, "audio", "europarlst"))
    splits, dropped = join(segments, audio)
    write_splits(args.work, "europarlst", splits)
    print(f"speeches without audio: {sum(isinstance(result, str) for result in audio.values())} of {len(speeches)}")
    report(args.work, "europarlst", splits, {} if args.limit else PAPER, dropped, args.incomplete)
    finish(args.work, "europarlst", settings, "iwslt25")


if __name__ == "__main__":
    main()
