"""
Make the rows of LibriSpeech: English audiobooks, read aloud, with their transcripts.

    python -m data.librispeech                                    # test-clean and test-other, where the papers test
    python -m data.librispeech --download                         # fetches what is not there yet, 0.7 GB
    python -m data.librispeech --parts train-clean-100,test-clean --hours 5

download into <work>/raw/librispeech, or pass --download: no account is needed
    LibriSpeech/<part>/     https://www.openslr.org/resources/12/<part>.tar.gz, unpacked there; CC BY 4.0

reads   the recordings of --parts
writes  <work>/rows/librispeech/{train,dev,dev-other,test,test-other}.jsonl, those of --parts; counts.md, dropped.txt,
        config.json last

The rows name the recordings where they are. The training parts are left out by default: the papers train on
train-clean-360 through LibriSQA, whose rows name the same recordings (data/librisqa.py). Transcripts are upper case
without punctuation; they are written in lower case, as LibriSQA writes the same ones, because it is not known where a
sentence starts (our choice).
"""
import glob
import hashlib
import os
import random
import re
import shutil
import tarfile
import urllib.error
import urllib.request
from collections import Counter

from tqdm import tqdm

from data.recipe import (begin, download, finish, finished, limited, missing_disk, parser, refuse_missing, report,
                         speech_rows, spread, unreadable, write_splits)
from speech_llm.audio import duration
from speech_llm.files import text_lines


URL = "https://www.openslr.org/resources/12"
PARTS = {  # LibriSpeech's name: (our split, utterances, GB packed, about as many GB unpacked)
    "train-clean-100": ("train", 28_539, 6.4), "train-clean-360": ("train", 104_014, 23.0),
    "train-other-500": ("train", 148_688, 30.6),
    "dev-clean": ("dev", 2_703, 0.3), "dev-other": ("dev-other", 2_864, 0.3),
    "test-clean": ("test", 2_620, 0.3), "test-other": ("test-other", 2_939, 0.3),
}


def missing(work, raw="", parts=("test-clean", "test-other")):
    """Return [(what is missing, how to mend it)]; empty if the recipe can run."""
    raw = download(work, raw, "librispeech")
    return [(os.path.join(raw, part), f"unpack {URL}/{part}.tar.gz, {PARTS[part][2]} GB, in {raw}, or run: "
             f"python -m data.librispeech --download --parts {part} --raw {raw}")
            for part in parts if not find_part(raw, part)]


# --- Downloads.

def find_part(raw, part):
    """Return the folder of a part, below `raw` or below raw/LibriSpeech; None if it is not there."""
    folders = [os.path.join(raw, part), os.path.join(raw, "LibriSpeech", part)]
    return next(filter(os.path.isdir, folders), None)


def fetch_parts(raw, parts):
    """Download the parts that are not there and unpack them below `raw`. A download that was cut short continues."""
    from torchaudio.datasets.librispeech import _CHECKSUMS            # of the archives, by http address
    absent = [part for part in parts if not find_part(raw, part)]
    size = sum(PARTS[part][2] for part in absent)
    if absent:
        print(f"downloads {', '.join(absent)} into {raw}: {size:.1f} GB, and as much again to unpack them")
        refuse_missing("the download", missing_disk(raw, 2 * size, "LibriSpeech", "free some, or name another --raw"))
    for part in absent:
        archive, unpacked = os.path.join(raw, f"{part}.tar.gz"), os.path.join(raw, f".unpack-{part}")
        address = f"{URL}/{part}.tar.gz"
        fetch_file(address, archive, _CHECKSUMS[address.replace("https", "http")])
        with tarfile.open(archive) as tar:
            tar.extractall(unpacked, filter="data")
        os.makedirs(os.path.join(raw, "LibriSpeech"), exist_ok=True)
        os.replace(os.path.join(unpacked, "LibriSpeech", part), os.path.join(raw, "LibriSpeech", part))
        shutil.rmtree(unpacked)
        os.remove(archive)


def fetch_file(address, path, sha256):
    """
    Download a file unless it is there, and continue a download that was cut short. SystemExit if the file is not the
    one with this SHA-256 or the server does not give it.
    """
    if os.path.exists(path):
        return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    part = f"{path}.part"
    size = os.path.getsize(part) if os.path.exists(part) else 0
    request = urllib.request.Request(address, headers={"Range": f"bytes={size}-"})
    try:
        with urllib.request.urlopen(request) as response:
            left = int(response.headers["Content-Length"])
            with (open(part, "ab" if response.status == 206 else "wb") as file,          # 206: from `size` on
                  tqdm(total=left, desc=address, unit="B", unit_scale=True) as bar):
                while piece := response.read(1 << 20):
                    file.write(piece)
                    bar.update(len(piece))
                if bar.n < left:
                    raise ConnectionError("the connection ended too early")
    except urllib.error.HTTPError as error:
        if error.code != 416:                # the whole file is there: the server has no byte after it
            raise SystemExit(f"{address} cannot be downloaded ({error}); run the same command later") from None
    except OSError as error:                 # no network, a connection that breaks off
        raise SystemExit(f"{address}: the download stopped ({error}); the same command continues it") from None
    with open(part, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != sha256:
        os.remove(part)
        raise SystemExit(f"{address} is damaged (SHA-256 {digest}) and was removed; run the same command again")
    os.replace(part, path)


# --- Utterances.

def read_transcripts(path):
    """Return {utterance: TEXT} of a <speaker>-<chapter>.trans.txt; SystemExit names a line that is not "id TEXT"."""
    chapter, texts = os.path.basename(path).removesuffix(".trans.txt"), {}
    with open(path, "rb") as file:
        for number, line in enumerate(text_lines(file, path), 1):
            utterance, _, text = line.strip().partition(" ")                 # the last line may have no end
            if not re.fullmatch(rf"{re.escape(chapter)}-\d+", utterance):
                raise SystemExit(f"{path} line {number}: {line.strip()!r} is no utterance of {chapter}; unpack the "
                                 "download again")
            if texts.setdefault(utterance, text.strip()) != text.strip():
                raise SystemExit(f"{path} line {number}: a second transcript of {utterance}; unpack the download again")
    return texts


def read_part(folder):
    """Return [(utterance, path of its FLAC, TEXT)] of a part; a file or a transcript may be missing."""
    utterances = []
    for chapter in sorted(glob.glob(os.path.join(glob.escape(folder), "*", "*", ""))):
        texts = {}
        for path in glob.glob(os.path.join(glob.escape(chapter), "*.trans.txt")):
            texts |= read_transcripts(path)
        recorded = {name.removesuffix(".flac") for name in os.listdir(chapter) if name.endswith(".flac")}
        utterances += [(utterance, os.path.join(chapter, f"{utterance}.flac"), texts.get(utterance, ""))
                       for utterance in sorted({*texts, *recorded})]
    return utterances


def draw_hours(paths, hours, seed):
    """Return the set of as many readable recordings, drawn at random, as last so many hours; 0 stands for all."""
    if not hours:
        return set(paths)
    order, drawn, seconds = sorted(set(paths)), set(), 0.0
    random.Random(f"{seed} hours").shuffle(order)
    for path in order:
        if seconds >= 3600 * hours:
            break
        drawn.add(path)
        seconds += duration(path)
    return drawn


def make_rows(folders, hours=0, seed=0, limit=0):
    """
    Return ({split: rows} of {part: folder}, [(split, id, why it is dropped)]). hours: of the training split; limit: as
    many utterances of every part.
    """
    splits, dropped = {}, []
    utterances = [(PARTS[part][0], *utterance) for part, folder in folders.items()
                  for utterance in spread(read_part(folder), limit)]
    broken = unreadable([path for _, _, path, _ in utterances])
    usable = [path for split, _, path, text in utterances if split == "train" and text and path not in broken]
    drawn = draw_hours(usable, hours, seed)
    for split, utterance, path, text in utterances:
        rows = splits.setdefault(split, [])
        name, why = f"librispeech/{split}/{utterance}", broken.get(path) or ("" if text else "no transcript")
        if why:
            dropped.append((split, name, why))
        elif split != "train" or path in drawn:
            rows += speech_rows(name, {"audio": path}, text.lower(), {})
    return splits, dropped


def main(argv=None):
    command = parser(__doc__, "librispeech")
    command.add_argument("--parts", default="test-clean,test-other", help=f"comma-separated, of {', '.join(PARTS)}")
    command.add_argument("--hours", type=float, default=0, help="so much of the training parts, at random; 0: all")
    command.add_argument("--seed", type=int, default=0, help="of the draw of the hours")
    command.add_argument("--download", action="store_true", help="fetch the parts that are not there")
    args = command.parse_args(argv)
    work, raw, parts = args.work, download(args.work, args.raw, "librispeech"), args.parts.split(",")
    if unknown := [part for part in parts if part not in PARTS]:
        raise SystemExit(f"--parts {unknown[0]}: LibriSpeech has {', '.join(PARTS)}")
    settings = {"parts": parts, "hours": args.hours, "seed": args.seed, **limited(args)}
    if finished(work, "librispeech", settings):
        return
    if args.download and not args.check:
        fetch_parts(raw, parts)
    refuse_missing("librispeech", [] if args.download else missing(work, raw, parts), args.check)
    begin(work, "librispeech", settings)
    splits, dropped = make_rows({part: find_part(raw, part) for part in parts}, args.hours, args.seed, args.limit)
    write_splits(work, "librispeech", splits)
    counts = Counter()                      # of the corpus: the paper has none
    for part in parts:
        split, count, _ = PARTS[part]
        if not args.limit and (split != "train" or not args.hours):
            counts[split, "ASR en"] += count
    report(work, "librispeech", splits, counts, dropped, args.incomplete)
    finish(work, "librispeech", settings, preset="iwslt26")


if __name__ == "__main__":
    main()
