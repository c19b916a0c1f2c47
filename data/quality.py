"""
Score translations without a reference by CometKiwi and filter them by the scores (2025, section 2.1).

    python -m data.quality --rows translated.jsonl --source english.jsonl --out good.jsonl
    torchrun --nproc_per_node=4 -m data.quality ...                              # the same on four GPUs
    quality([["Who works there?", "Wer arbeitet dort?"]], KIWI, "work/made/x/quality.de.jsonl")     # -> [0.87]

reads   rows of data/translate.py and the English rows that they come from; the model, from the hub or from a folder
writes  <out>: the rows whose texts all score THRESHOLD or more. <out>.dropped.txt: the other rows and their scores.
        <out>.results: every score, appended as it is made, from which a killed run continues
"""
import functools
import os

from data.recipe import missing_models, refuse_missing
from data.translate import maker_parser, parts, translate_rows, write_made
from speech_llm.constants import pick_device
from speech_llm.resumable import resumable, silence_others
from speech_llm.rows import read_rows


KIWI = "Unbabel/wmt22-cometkiwi-da"     # gated: its licence has to be accepted on the hub
THRESHOLD = 0.85                        # 2025, section 2.1: question and answer both score at least this


def fetch(model):
    """Return the folder of a model: `model` itself, or the download of a hub name. SystemExit says what is missing."""
    if os.path.exists(model):
        return model
    refuse_missing("scores of translations", missing_models(model))
    from huggingface_hub import snapshot_download
    return snapshot_download(model)


def quality(pairs, model, path, batch=64):
    """
    Return CometKiwi's scores of [source, translation] pairs, floats of about 0 to 1. Equal pairs are scored once. The
    model is loaded only if a pair is left to do. path: the file of results, from which a killed run continues.
    """
    @functools.cache
    def loaded():
        from metrics.comet import load_comet
        kiwi = load_comet(fetch(model), pick_device())
        if kiwi.kind != "unified":
            raise SystemExit(f"{model} needs reference translations, and there are none here; use {KIWI}")
        return kiwi

    def score_batch(batch_pairs):
        from metrics.comet import score
        return score(loaded(), [{"src": source, "mt": translation} for source, translation in batch_pairs], batch)

    return resumable(path, {"model": model}, pairs, score_batch, batch, "quality",
                     size=lambda pair: len(pair[0]) + len(pair[1]))


def good_rows(rows, english, model, path):
    """
    Return (the translated rows whose texts all score THRESHOLD or more, [(id, reason)] of the others). An ST row is
    compared with its transcript, question and answer with those of the English row whose id differs in the language
    only. SystemExit for a row without such an English row.
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
    for (row, part, _), value in zip(wanted, quality([pair for _, _, pair in wanted], model, path)):
        if value < THRESHOLD:
            bad.setdefault(row["id"], []).append(f"{part} {value:.3f}")
    dropped = [(name, f"below {THRESHOLD}: {', '.join(values)}") for name, values in bad.items()]
    return [row for row in rows if row["id"] not in bad], dropped


def good_translations(english, language, folder, seamless, kiwi, part=""):
    """
    Return (the English rows in `language`, as far as they are translated well, [(id, reason)] of the others). The
    models' results are in `folder`: translate.<language><part>.jsonl and quality.<language><part>.jsonl.
    """
    paths = [os.path.join(folder, f"{maker}.{language}{part}.jsonl") for maker in ("translate", "quality")]
    translated, empty = translate_rows(english, language, seamless, paths[0])
    good, bad = good_rows(translated, english, kiwi, paths[1])
    return good, empty + bad


def main(argv=None):
    parser = maker_parser(__doc__, "translated rows")
    parser.add_argument("--source", required=True, help="the English rows that they come from")
    parser.add_argument("--kiwi", default=KIWI, help="hub name, or folder of the model")
    args = parser.parse_args(argv)
    silence_others()
    write_made(args.out, *good_rows(read_rows(args.rows), read_rows(args.source), args.kiwi, f"{args.out}.results"))


if __name__ == "__main__":
    main()
