"""
LibriSpeech: English audiobooks, read aloud, with their transcripts.

    python -m data.librispeech                      # or --raw folder, where the download lies elsewhere

download into <work>/raw/librispeech
    LibriSpeech/<part>/     https://www.openslr.org/resources/12/<part>.tar.gz, unpacked there; CC BY 4.0; packed,
        train-clean-100 6.3 GB, train-clean-360 23 GB, train-other-500 30 GB, each dev and test part 0.3 GB.
        Any of them: the 2026 paper tests on test-clean and test-other, LibriSQA needs train-clean-360 and test-clean

reads   the parts that are there
writes  <work>/rows/librispeech/{train,dev,dev-other,test,test-other}.jsonl, as far as their parts are there,
        counts.md, dropped.txt, config.json last

The recordings are named where they lie. Transcripts are upper case without punctuation; they are written in lower case,
as LibriSQA writes the same ones: where a sentence starts is not known (our choice).
"""
import glob
import os
import re
from collections import Counter

from data.recipe import finish, finished, parser, report, speech_rows, unreadable
from speech_llm.files import text_lines
from speech_llm.rows import write_rows


URL = "https://www.openslr.org/resources/12"
PARTS = {  # LibriSpeech's name: (ours, utterances)
    "train-clean-100": ("train", 28_539), "train-clean-360": ("train", 104_014), "train-other-500": ("train", 148_688),
    "dev-clean": ("dev", 2_703), "dev-other": ("dev-other", 2_864),
    "test-clean": ("test", 2_620), "test-other": ("test-other", 2_939),
}


def find_part(raw, part):
    """The folder of a part, below `raw` or below raw/LibriSpeech; None if it is not there."""
    folders = [os.path.join(raw, part), os.path.join(raw, "LibriSpeech", part)]
    return next(filter(os.path.isdir, folders), None)


def read_transcripts(path):
    """A <speaker>-<chapter>.trans.txt -> {utterance: TEXT}; SystemExit names the line that is not "id TEXT"."""
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
    """One part -> [(utterance, path of its FLAC, TEXT)], a file without transcript and the reverse included."""
    found = []
    for chapter in sorted(glob.glob(os.path.join(glob.escape(folder), "*", "*", ""))):
        texts = {}
        for path in glob.glob(os.path.join(glob.escape(chapter), "*.trans.txt")):
            texts |= read_transcripts(path)
        spoken = {name.removesuffix(".flac") for name in os.listdir(chapter) if name.endswith(".flac")}
        found += [(utterance, os.path.join(chapter, f"{utterance}.flac"), texts.get(utterance, ""))
                  for utterance in sorted({*texts, *spoken})]
    return found


def make_rows(folders):
    """{part: folder} -> {split: rows}, [(split, id, why it is dropped)]."""
    utterances = {part: read_part(folder) for part, folder in folders.items()}
    broken = unreadable([path for found in utterances.values() for _, path, _ in found])
    splits, dropped = {}, []
    for part, found in utterances.items():
        split = PARTS[part][0]
        rows = splits.setdefault(split, [])
        for utterance, path, text in found:
            name, why = f"librispeech/{split}/{utterance}", broken.get(path) or ("" if text else "no transcript")
            if why:
                dropped.append((split, name, why))
            else:
                rows += speech_rows(name, {"audio": path}, text.lower(), {})
    return splits, dropped


def main(argv=None):
    args = parser(__doc__, "librispeech").parse_args(argv)
    raw = args.raw or os.path.join(args.work, "raw", "librispeech")
    folders = {part: folder for part in PARTS if (folder := find_part(raw, part))}
    if not folders:
        raise SystemExit(f"{raw} has none of {', '.join(PARTS)}: unpack {URL}/<part>.tar.gz there")
    settings = {"parts": list(folders)}
    if finished(args.work, "librispeech", settings):
        return
    splits, dropped = make_rows(folders)
    for split, rows in splits.items():
        if rows:
            write_rows(os.path.join(args.work, "rows", "librispeech", f"{split}.jsonl"), rows)
    counts = Counter()                      # not the paper's but the corpus's own, of the parts that are there
    for part in folders:
        split, count = PARTS[part]
        counts[split, "ASR en"] += count
    report(args.work, "librispeech", splits, counts, dropped)
    finish(args.work, "librispeech", settings)
    print(f"rows in {args.work}/rows/librispeech\nnext: python extract_features.py --preset iwslt26")


if __name__ == "__main__":
    main()
