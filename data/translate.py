"""
Translate English texts to one of 22 languages with SeamlessM4T-v2 (2025, section 2.1).

    python -m data.translate --rows in.jsonl --language de --out out.jsonl
    torchrun --nproc_per_node=4 -m data.translate ...                            # the same on four GPUs
    translate(["Who works there?"], "de", SEAMLESS, "work/made/x/translate.de.jsonl")    # -> ["Wer arbeitet dort?"]

reads   English rows; the model, from the hub or from a folder
writes  <out>: an ASR row becomes an ST row; the question and the answer of an SQA or MCQ row are translated.
        <out>.dropped.txt: the rows that are left without a text. <out>.results: every translation, appended as it is
        made, from which a killed run continues
"""
import argparse
import functools
from collections import Counter

from speech_llm.constants import pick_device
from speech_llm.files import write_text
from speech_llm.llm import load_checkpoint, loading
from speech_llm.prompts import NOT_ANSWERABLE
from speech_llm.resumable import is_first, resumable, silence_others
from speech_llm.rows import read_rows, write_rows


SEAMLESS = "facebook/seamless-m4t-v2-large"
CODES = {  # SeamlessM4T's names of our languages
    "en": "eng", "de": "deu", "it": "ita", "zh": "cmn", "ar": "arb", "cs": "ces", "el": "ell", "es": "spa", "fa": "pes",
    "fr": "fra", "he": "heb", "hi": "hin", "id": "ind", "ja": "jpn", "ko": "kor", "nl": "nld", "pl": "pol", "pt": "por",
    "ro": "ron", "ru": "rus", "tr": "tur", "uk": "ukr", "vi": "vie"}
BEAMS = 5                   # our choice: the papers name only the model
MAX_TOKENS = 512            # of a source and of a translation: twice the checkpoint's own limit (our choice)


def load_seamless(kind, path):
    """Return (model, tokenizer) of SeamlessM4T-v2: float16 on a GPU, as Meta runs it, float32 on the CPU."""
    import torch
    from transformers import AutoTokenizer
    device = pick_device()
    model = load_checkpoint(kind, path, dtype=torch.float16 if device.type == "cuda" else torch.float32).to(device)
    with loading(path):
        tokenizer = AutoTokenizer.from_pretrained(path)
    # the lengths that transformers would warn of: we pass max_new_tokens, and the model takes so many positions
    model.generation_config.max_length, tokenizer.model_max_length = None, model.config.max_position_embeddings
    return model, tokenizer


def translate_batch(model, tokenizer, texts, language):
    """
    Return {"text", "cut", "capped"} of each text. cut: the source is longer than MAX_TOKENS and loses its end.
    capped: the translation reached MAX_TOKENS.
    """
    # split_special_tokens: "</s>" or "__deu__" inside a text stays ordinary text
    options = dict(src_lang=CODES["en"], split_special_tokens=True, truncation=True)
    cut = [len(ids) > MAX_TOKENS for ids in tokenizer(texts, max_length=MAX_TOKENS + 1, **options)["input_ids"]]
    inputs = tokenizer(texts, padding=True, max_length=MAX_TOKENS, return_tensors="pt", **options)
    outputs = model.generate(**inputs.to(model.device), tgt_lang=CODES[language], do_sample=False, num_beams=BEAMS,
                             max_new_tokens=MAX_TOKENS)                  # (B, 2 + new): </s>, language, text, </s>
    end = model.generation_config.eos_token_id
    return [{"text": tokenizer.decode(ids, skip_special_tokens=True).strip(), "cut": long, "capped": end not in ids[2:]}
            for ids, long in zip(outputs.tolist(), cut)]


def translate(texts, language, model, path, batch=64):
    """
    Return the translations of English texts; "" where the model says nothing. Equal texts are translated once. The
    model is loaded only if a text is left to do. path: the file of results, from which a killed run continues.
    """
    @functools.cache
    def loaded():
        from transformers import SeamlessM4Tv2ForTextToText
        return load_seamless(SeamlessM4Tv2ForTextToText, model)

    settings = {"model": model, "language": language, "beams": BEAMS, "max_tokens": MAX_TOKENS}
    results = resumable(path, settings, texts, lambda batch_texts: translate_batch(*loaded(), batch_texts, language),
                        batch, f"translate to {language}")
    cut, capped = (sum(result[key] for result in results) for key in ("cut", "capped"))
    print(f"{len(results)} texts translated to {language}; cut at {MAX_TOKENS} tokens: {cut} sources, "
          f"{capped} translations")
    return [result["text"] for result in results]


# --- Rows.

def parts(row):
    """Return the keys of a row whose texts depend on its language and are translated by the model."""
    if row["task"] in ("ASR", "ST"):
        return ["target"]
    return ["question", "target"] if row["answerable"] else ["question"]


def translate_rows(rows, language, model, path):
    """
    Return (the English rows in `language`, [(id, reason)] of those that are left without a text).
    SystemExit for a row that is not English or whose id does not end in ".en".
    """
    translated = []
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
        translated.append(row)
    wanted = [(row, part) for row in translated for part in parts(row)]
    texts = translate([row[part] for row, part in wanted], language, model, path)
    for (row, part), text in zip(wanted, texts):
        row[part] = text
    empty = {row["id"]: f"empty translation: {part}" for row, part in wanted if not row[part]}
    return [row for row in translated if row["id"] not in empty], list(empty.items())


# --- The command line that the makers share.

def maker_parser(doc, rows):
    """Return a parser with --rows and --out and the maker's docstring as its help. rows: what the rows are."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", required=True, help=rows)
    parser.add_argument("--out", required=True, help="file of the rows that are written")
    return parser


def write_made(path, rows, dropped):
    """
    Write the rows to `path` and dropped, [(id, reason)], to <path>.dropped.txt; print how many there are of each
    reason, which ends at its colon. Of several processes only the first writes. SystemExit if no row is left.
    """
    if not is_first():
        return
    write_text(f"{path}.dropped.txt", "".join(" ".join(f"{name} {reason}".split()) + "\n" for name, reason in dropped))
    print(f"{path}: {len(rows)} rows; {len(dropped)} dropped" + (f", listed in {path}.dropped.txt" if dropped else ""))
    for reason, count in Counter(reason.split(":")[0] for _, reason in dropped).most_common():
        print(f"  {count}: {reason}")
    if not rows:
        raise SystemExit(f"{path} is not written: no row is left")
    write_rows(path, rows)


def main(argv=None):
    parser = maker_parser(__doc__, "English rows")
    parser.add_argument("--language", required=True, choices=list(CODES)[1:])
    parser.add_argument("--seamless", default=SEAMLESS, help="hub name, or folder of the model")
    args = parser.parse_args(argv)
    silence_others()
    write_made(args.out, *translate_rows(read_rows(args.rows), args.language, args.seamless, f"{args.out}.results"))
    print(f"next: python -m data.quality --rows {args.out} --source {args.rows} --out FILE")


if __name__ == "__main__":
    main()
