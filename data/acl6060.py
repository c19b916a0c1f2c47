"""
ACL 60/60: talks of ACL 2022 with German and Chinese translations; dev selects checkpoints, eval is a test set (2025).

    python -m data.acl6060                          # or --raw folder, where the download lies elsewhere

download into <work>/raw/acl6060 (or --raw)
    2/acl_6060/     https://aclanthology.org/attachments/2023.iwslt-1.2.dataset.zip, unpacked there; CC BY 4.0; of it
                    {dev,eval}/text/xml/ACL.6060.<split>.en-xx.{en,de,zh}.xml and
                    {dev,eval}/segmented_wavs/gold/sent_<segment>.wav are read

reads   these, and the model --seamless (a hub name or a folder)
writes  <work>/rows/acl6060/{dev,eval}.jsonl, counts.md, dropped.txt, config.json last
        <work>/made/acl6060/translate.it.jsonl, the Italian translations; a killed run goes on from there

The corpus has no Italian: as in 2025, the English transcripts are translated with SeamlessM4T-v2-large. All of these
translations stay; the quality filter of the training data is not used here.
"""
import os
import re
import xml.etree.ElementTree as ElementTree

from data.recipe import finish, finished, need, parser, report, speech_rows, unreadable
from speech_llm.files import text_lines
from speech_llm.rows import write_rows


DOWNLOAD = "unpack https://aclanthology.org/attachments/2023.iwslt-1.2.dataset.zip there"
SIZES = {"dev": 468, "eval": 416}                    # segments, of five talks each
KINDS = ("ASR en", "ST/MT de", "ST/MT it", "ST/MT zh")
PAPER = {(split, kind): size for split, size in SIZES.items() for kind in KINDS}
RAW_AND = re.compile(r"&(?!(?:amp|lt|gt|quot|apos|#[0-9]+|#x[0-9A-Fa-f]+);)")            # begins no entity of XML
RAW_LESS = re.compile(r"<(?![?!]|/?(?:mteval|srcset|refset|doc|talkid|abstract|seg)\b)")  # begins no tag of the files


def read_segments(path):
    """
    One XML file -> {segment id: (talk, text)}, in the file's order. The released files are not well formed: an & or <
    of the text is taken as itself. SystemExit names the file, and the line where there is one, if it is damaged or
    declares a document type (the only way to entities that grow without end; the release has none).
    """
    with open(need(path, DOWNLOAD), "rb") as file:
        text = "".join(text_lines(file, path))
    if re.search(r"<!(DOCTYPE|ENTITY)", text, re.IGNORECASE):
        raise SystemExit(f"{path} declares a document type, the released files have none; download it again")
    try:
        root = ElementTree.fromstring(RAW_LESS.sub("&lt;", RAW_AND.sub("&amp;", text)))
    except ElementTree.ParseError as error:
        raise SystemExit(f"{path} is damaged: {error}; download it again") from None     # error names the line
    segments = {}
    for talk in root.iter("doc"):
        for segment in talk.iter("seg"):
            number = segment.get("id", "")
            if not re.fullmatch("[0-9]+", number) or number in segments:
                raise SystemExit(f"{path}: segment id {number!r} is no number, or there twice; download it again")
            segments[number] = talk.get("docid"), "".join(segment.itertext()).strip()
    return segments


def read_split(folder, split):
    """One split -> {segment id: {"en": text, "de": text, "zh": text}}; SystemExit unless all have the same ids."""
    paths = {language: os.path.join(folder, "text", "xml", f"ACL.6060.{split}.en-xx.{language}.xml")
             for language in ("en", "de", "zh")}
    files = {language: read_segments(path) for language, path in paths.items()}
    talks = {language: {(number, talk) for number, (talk, _) in found.items()} for language, found in files.items()}
    for language in ("de", "zh"):
        for number, talk in sorted(talks["en"] ^ talks[language], key=str):
            raise SystemExit(f"{paths['en']} and {paths[language]} differ in segment {number} of talk {talk}; download "
                             "them again")
    return {number: {language: found[number][1] for language, found in files.items()} for number in files["en"]}


def main(argv=None):
    options = parser(__doc__, "acl6060")
    options.add_argument("--seamless", default="facebook/seamless-m4t-v2-large", help="the model that translates")
    args = options.parse_args(argv)
    raw = args.raw or os.path.join(args.work, "raw", "acl6060")
    settings = {"seamless": args.seamless}
    if finished(args.work, "acl6060", settings):
        return
    folder = need(os.path.join(raw, "2", "acl_6060"), DOWNLOAD)
    segments = {(split, number): texts for split in SIZES
                for number, texts in read_split(os.path.join(folder, split), split).items()}
    audio = {(split, number): os.path.join(folder, split, "segmented_wavs", "gold", f"sent_{number}.wav")
             for split, number in segments}
    broken = unreadable(list(audio.values()))
    dropped = []
    for (split, number), texts in list(segments.items()):
        why = broken.get(audio[split, number]) or ("" if all(texts.values()) else "empty text")
        if why:
            dropped.append((split, f"acl6060/{split}/{number}", why))
            del segments[split, number]

    from data.translate import translate             # torch and transformers: not needed above
    kept = os.path.join(args.work, "made", "acl6060", "translate.it.jsonl")
    italian = translate([texts["en"] for texts in segments.values()], "it", model=args.seamless, kept=kept)
    splits = {split: [] for split in SIZES}
    for ((split, number), texts), translation in zip(segments.items(), italian):
        utterance = f"acl6060/{split}/{number}"
        translations = {"de": texts["de"], "it": translation.strip(), "zh": texts["zh"]}
        if not translations["it"]:
            dropped.append((split, f"{utterance}/ST.it", "empty translation"))
            del translations["it"]
        splits[split] += speech_rows(utterance, {"audio": audio[split, number]}, texts["en"], translations)
    for split, rows in splits.items():
        write_rows(os.path.join(args.work, "rows", "acl6060", f"{split}.jsonl"), rows)
    report(args.work, "acl6060", splits, PAPER, dropped)
    finish(args.work, "acl6060", settings)
    print(f"rows in {args.work}/rows/acl6060\nnext: python extract_features.py --preset iwslt25")


if __name__ == "__main__":
    main()
