"""
How good a translation is, without a reference: CometKiwi scores, and the filter on them (2025, section 2.1).

    quality([["Who works there?", "Wer arbeitet dort?"]])                                # -> [one float], up to 1
    python -m data.quality --rows translated.jsonl --source english.jsonl --out good.jsonl

reads   rows of data/translate.py and the English rows they come from; the model, from the hub or from a folder
writes  <out>, the rows whose texts all score THRESHOLD or more; <out>.dropped.txt, the others and their scores;
        <out>.kept, from which a killed run goes on
"""
import argparse
import functools
import os
import tempfile

from data.translate import parts, write_made
from speech_llm.resumable import resumable
from speech_llm.rows import read_rows


KIWI = "Unbabel/wmt22-cometkiwi-da"
THRESHOLD = 0.85            # 2025, section 2.1: question and answer both score at least this


def fetch(model):
    """The folder of a model: `model` itself, or the download of a hub name; SystemExit says what to do without it."""
    if os.path.exists(model):
        return model
    from huggingface_hub import snapshot_download
    try:
        return snapshot_download(model)
    except (OSError, ValueError) as error:               # refused, unknown, offline
        reason = str(error).split("\n")[0]
        raise SystemExit(f"{model} is no folder and cannot be downloaded ({reason}). Accept its licence at "
                         f"https://huggingface.co/{model} and run: hf auth login; or name a folder that holds it"
                         ) from None


def quality(pairs, model=KIWI, kept=None, batch=64):
    """
    [source, translation] pairs -> CometKiwi's scores as floats, about 0 to 1. Equal pairs are scored once, and the
    model is loaded only if something is left to do. kept: the file from which a killed run goes on.
    """
    @functools.cache
    def loaded():
        import torch
        from metrics.comet import load_comet
        kiwi = load_comet(fetch(model), "cuda" if torch.cuda.is_available() else "cpu")
        if kiwi.kind != "unified":
            raise SystemExit(f"{model} wants references, and there are none; use {KIWI}")
        return kiwi

    def make(some):
        from metrics.comet import score
        return score(loaded(), [{"src": source, "mt": translation} for source, translation in some], batch)

    with tempfile.TemporaryDirectory() as nowhere:
        return resumable(kept or os.path.join(nowhere, "kept"), {"model": model}, pairs, make, batch, "quality",
                         size=lambda pair: len(pair[0]) + len(pair[1]))


def good_rows(rows, english, model=KIWI, kept=None):
    """
    Translated rows -> (those whose texts all score THRESHOLD or more, [(id, reason)] of the others). ST is scored on
    its own transcript; question and answer on those of the English row whose id differs in the language only.
    """
    english = {row["id"]: row for row in english}
    wanted = []                                          # (row, part, [source, translation])
    for row in rows:
        source = {"target": row["transcript"]} if row["task"] == "ST" else english.get(
            row["id"].removesuffix(row["language"]) + "en")
        if row["language"] == "en" or not source:
            raise SystemExit(f"row {row['id']} in {row['language']!r} has no English row to be compared with")
        wanted += [(row, part, [source[part], row[part]]) for part in parts(row)]
    bad = {}
    for (row, part, _), value in zip(wanted, quality([pair for _, _, pair in wanted], model, kept)):
        if value < THRESHOLD:
            bad.setdefault(row["id"], []).append(f"{part} {value:.3f}")
    dropped = [(name, f"below {THRESHOLD}: {', '.join(values)}") for name, values in bad.items()]
    return [row for row in rows if row["id"] not in bad], dropped


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", required=True, help="translated rows")
    parser.add_argument("--source", required=True, help="the English rows they come from")
    parser.add_argument("--out", required=True)
    parser.add_argument("--kiwi", default=KIWI, help="hub name, or folder of the model")
    args = parser.parse_args(argv)
    write_made(args.out, *good_rows(read_rows(args.rows), read_rows(args.source), args.kiwi, f"{args.out}.kept"))


if __name__ == "__main__":
    main()
