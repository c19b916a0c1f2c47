"""
English texts -> German, Italian or Chinese with SeamlessM4T-v2 (2025, section 2.1).

    translate(["Who works there?"], "de", kept="work/made/x/translate.de.jsonl")         # -> ["Wer arbeitet dort?"]
    python -m data.translate --rows in.jsonl --language de --out out.jsonl              # the same for a file of rows

reads   English rows; the model, from the hub or from a folder
writes  <out>: an ASR row becomes an ST row, of an SQA or MCQ row the question and the answer are translated;
        <out>.dropped.txt, the rows left without a text; <out>.kept, from which a killed run goes on
"""
import argparse
import functools
import os
import tempfile
from collections import Counter

from speech_llm.files import replace_file
from speech_llm.llm import load_checkpoint
from speech_llm.prompts import NOT_ANSWERABLE
from speech_llm.resumable import resumable
from speech_llm.rows import read_rows, write_rows


SEAMLESS = "facebook/seamless-m4t-v2-large"
CODES = {  # Seamless' names of our languages
    "en": "eng", "de": "deu", "it": "ita", "zh": "cmn", "ar": "arb", "cs": "ces", "el": "ell", "es": "spa", "fa": "pes",
    "fr": "fra", "he": "heb", "hi": "hin", "id": "ind", "ja": "jpn", "ko": "kor", "nl": "nld", "pl": "pol", "pt": "por",
    "ro": "ron", "ru": "rus", "tr": "tur", "uk": "ukr", "vi": "vie"}
BEAMS = 5                   # our choice; the paper names the model only
MAX_TOKENS = 512            # of a source and of a translation: twice the checkpoint's own limit (our choice)


def load_seamless(kind, path):
    """(model, tokenizer) of a SeamlessM4T-v2 checkpoint; float16 on a GPU, as Meta runs it, float32 on the CPU."""
    import torch
    from transformers import AutoTokenizer
    device, dtype = ("cuda", torch.float16) if torch.cuda.is_available() else ("cpu", torch.float32)
    return load_checkpoint(kind, path, dtype=dtype).to(device), AutoTokenizer.from_pretrained(path)


def translate_batch(model, tokenizer, texts, language):
    """-> a {"text", "cut", "capped"} for each text: whether the source, and the translation, hit MAX_TOKENS."""
    # split_special_tokens: "</s>" or "__deu__" inside a text stays ordinary text
    options = dict(src_lang=CODES["en"], split_special_tokens=True)
    cut = [len(ids) > MAX_TOKENS for ids in tokenizer(texts, **options)["input_ids"]]
    inputs = tokenizer(texts, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt", **options)
    outputs = model.generate(**inputs.to(model.device), tgt_lang=CODES[language], do_sample=False, num_beams=BEAMS,
                             max_new_tokens=MAX_TOKENS)                  # (B, 2 + new): </s>, language, text, </s>
    end = model.generation_config.eos_token_id
    return [{"text": tokenizer.decode(ids, skip_special_tokens=True).strip(), "cut": long, "capped": end not in ids[2:]}
            for ids, long in zip(outputs.tolist(), cut)]


def translate(texts, language, model=SEAMLESS, kept=None, batch=64):
    """
    English texts -> their translations; "" where the model has nothing to say. Equal texts are translated once, and
    the model is loaded only if something is left to do. kept: the file from which a killed run goes on.
    """
    @functools.cache
    def loaded():
        from transformers import SeamlessM4Tv2ForTextToText
        return load_seamless(SeamlessM4Tv2ForTextToText, model)

    settings = {"model": model, "language": language, "beams": BEAMS, "max_tokens": MAX_TOKENS}
    with tempfile.TemporaryDirectory() as nowhere:
        results = resumable(kept or os.path.join(nowhere, "kept"), settings, texts,
                            lambda some: translate_batch(*loaded(), some, language), batch, f"translate to {language}")
    cut, capped = (sum(result[key] for result in results) for key in ("cut", "capped"))
    print(f"{len(results)} texts translated to {language}; cut at {MAX_TOKENS} tokens: {cut} sources, "
          f"{capped} translations")
    return [result["text"] for result in results]


# --- Rows: the same for a file.

def parts(row):
    """The texts of a row that depend on its language and that a model translates."""
    if row["task"] in ("ASR", "ST"):
        return ["target"]
    return ["question", "target"] if row["answerable"] else ["question"]


def translate_rows(rows, language, model=SEAMLESS, kept=None):
    """English rows -> (the same rows in `language`, [(id, reason)] of those left without a text)."""
    new = []
    for row in rows:
        if row["language"] != "en" or not row["id"].endswith(".en"):
            raise SystemExit(f"row {row['id']}, language {row['language']!r}: only English rows whose id ends in .en "
                             "can be translated")
        row = {**row, "id": row["id"].removesuffix("en") + language, "language": language}
        if row["task"] == "ASR":
            row |= {"id": row["id"].removesuffix(f"ASR.{language}") + f"ST.{language}", "task": "ST",
                    "target": row["transcript"]}
        if not row["answerable"]:
            row["target"] = NOT_ANSWERABLE[language]     # the organisers' words, not the model's
        new.append(row)
    wanted = [(row, part) for row in new for part in parts(row)]
    texts = translate([row[part] for row, part in wanted], language, model, kept)
    for (row, part), text in zip(wanted, texts):
        row[part] = text
    empty = {row["id"]: f"empty translation: {part}" for row, part in wanted if not row[part]}
    return [row for row in new if row["id"] not in empty], list(empty.items())


def write_made(path, rows, dropped):
    """
    Rows -> `path`, dropped [(id, reason)] -> <path>.dropped.txt; prints how many, by what precedes a reason's colon.
    SystemExit if no row is left.
    """
    with replace_file(f"{path}.dropped.txt") as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.writelines(" ".join(f"{name} {reason}".split()) + "\n" for name, reason in dropped)
    print(f"{path}: {len(rows)} rows; {len(dropped)} dropped" + (f", listed in {path}.dropped.txt" if dropped else ""))
    for reason, count in Counter(reason.split(":")[0] for _, reason in dropped).most_common():
        print(f"  {count}: {reason}")
    if not rows:
        raise SystemExit(f"{path} is not written: no row is left")
    write_rows(path, rows)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", required=True, help="English rows")
    parser.add_argument("--language", required=True, choices=list(CODES)[1:])
    parser.add_argument("--out", required=True)
    parser.add_argument("--seamless", default=SEAMLESS, help="hub name, or folder of the model")
    args = parser.parse_args(argv)
    write_made(args.out, *translate_rows(read_rows(args.rows), args.language, args.seamless, f"{args.out}.kept"))
    print(f"next: python -m data.quality --rows {args.out} --source {args.rows} --out <file>")


if __name__ == "__main__":
    main()
