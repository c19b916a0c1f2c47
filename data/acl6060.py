"""
Make the rows of ACL 60/60: talks of ACL 2022 with German and Chinese translations. dev selects checkpoints, eval is a
test set (2025, section 2.1).

    python -m data.acl6060                          # or --raw folder, where the download is elsewhere

download into <work>/raw/acl6060 (or --raw): https://aclanthology.org/attachments/2023.iwslt-1.2.dataset.zip, unpacked;
        data/README.md says more. The folder acl_6060/ may be at the top or in 2/

reads   the download, and the model --seamless (a hub name or a folder)
writes  <work>/rows/acl6060/{dev,eval}.jsonl, counts.md, dropped.txt, config.json last
        <work>/made/acl6060/translate.it.jsonl: the Italian translations, from which a killed run goes on

The corpus has no Italian. SeamlessM4T-v2-large translates the English transcripts, as in the paper; the quality filter
of the training data is not applied.
"""
import os
import re
import xml.etree.ElementTree as ElementTree

from data.recipe import (begin, download, finish, finished, limited, missing_files, missing_models, parser,
                         refuse_missing, report, speech_rows, spread, unreadable, write_splits)
from data.translate import SEAMLESS, translate
from speech_llm.files import text_lines
from speech_llm.resumable import is_first, silence_others


DOWNLOAD = "unpack https://aclanthology.org/attachments/2023.iwslt-1.2.dataset.zip, which makes 2/acl_6060/"
SIZES = {"dev": 468, "eval": 416}                    # segments, of five talks each
KINDS = ("ASR en", "ST/MT de", "ST/MT it", "ST/MT zh")
PAPER = {(split, kind): size for split, size in SIZES.items() for kind in KINDS}
RAW_AND = re.compile(r"&(?!(?:amp|lt|gt|quot|apos|#[0-9]+|#x[0-9A-Fa-f]+);)")            # begins no entity of XML
RAW_LESS = re.compile(r"<(?![?!]|/?(?:mteval|srcset|refset|doc|talkid|abstract|seg)\b)")  # begins no tag of the files


def find_folder(raw):
    """Return the folder acl_6060 of a download, which holds dev/ and eval/; where it belongs if it is not there."""
    places = [os.path.join(raw, *parts) for parts in (("2", "acl_6060"), ("acl_6060",), ())]
    return next((place for place in places if os.path.isdir(os.path.join(place, "eval"))), places[0])


def xml_paths(folder, split):
    """Return {language: path} of the texts of one split."""
    return {language: os.path.join(folder, split, "text", "xml", f"ACL.6060.{split}.en-xx.{language}.xml")
            for language in ("en", "de", "zh")}


def missing(work, raw="", seamless=SEAMLESS):
    """Return [(what is missing, how to mend it)]."""
    folder = find_folder(download(work, raw, "acl6060"))
    paths = [path for split in SIZES for path in (*xml_paths(folder, split).values(),
                                                  os.path.join(folder, split, "segmented_wavs", "gold"))]
    return missing_files(paths if os.path.isdir(folder) else [folder], DOWNLOAD) + missing_models(seamless)


def read_segments(path):
    """
    Return {segment id: (talk, text)} of one XML file, in the file's order.
    The released files are not well formed: an & or < of the text stands for itself. SystemExit names the file, and the
    line if there is one, for damage and for a document type: the release has none, and entities can grow without end.
    """
    with open(path, "rb") as file:
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
    """Return {segment id: {"en": text, "de": text, "zh": text}}. SystemExit unless all languages have the same ids."""
    paths = xml_paths(folder, split)
    files = {language: read_segments(path) for language, path in paths.items()}
    talks = {language: {(number, talk) for number, (talk, _) in segments.items()}
             for language, segments in files.items()}
    for language in ("de", "zh"):
        for number, talk in sorted(talks["en"] ^ talks[language], key=str):
            raise SystemExit(f"{paths['en']} and {paths[language]} differ in segment {number} of talk {talk}; download "
                             "them again")
    return {number: {language: segments[number][1] for language, segments in files.items()} for number in files["en"]}


def drop_unusable(segments, audio, dropped):
    """Return the segments that have all texts and a recording that opens; add the others to `dropped`."""
    broken = unreadable(list(audio.values()))
    usable = {}
    for (split, number), texts in segments.items():
        why = broken.get(audio[split, number]) or ("" if all(texts.values()) else "empty text")
        if why:
            dropped.append((split, f"acl6060/{split}/{number}", why))
        else:
            usable[split, number] = texts
    return usable


def main(argv=None):
    args = parser(__doc__, "acl6060", models=[("seamless", SEAMLESS, "translates")]).parse_args(argv)
    silence_others()
    settings = {"seamless": args.seamless, **limited(args)}
    if finished(args.work, "acl6060", settings):
        return
    refuse_missing("acl6060", missing(args.work, args.raw, args.seamless), args.check)
    folder, dropped = find_folder(download(args.work, args.raw, "acl6060")), []
    segments = {(split, number): texts for split in SIZES
                for number, texts in spread(read_split(folder, split).items(), args.limit)}
    audio = {(split, number): os.path.join(folder, split, "segmented_wavs", "gold", f"sent_{number}.wav")
             for split, number in segments}
    segments = drop_unusable(segments, audio, dropped)

    begin(args.work, "acl6060", settings)
    italian = translate([texts["en"] for texts in segments.values()], "it", args.seamless,
                        os.path.join(args.work, "made", "acl6060", "translate.it.jsonl"))
    if not is_first():                      # this process only helps to translate
        return
    splits = {split: [] for split in SIZES}
    for ((split, number), texts), translation in zip(segments.items(), italian):
        utterance = f"acl6060/{split}/{number}"
        translations = {"de": texts["de"], "it": translation.strip(), "zh": texts["zh"]}
        if not translations["it"]:
            dropped.append((split, f"{utterance}/ST.it", "empty translation"))
            del translations["it"]
        splits[split] += speech_rows(utterance, {"audio": audio[split, number]}, texts["en"], translations)
    write_splits(args.work, "acl6060", splits)
    report(args.work, "acl6060", splits, {} if args.limit else PAPER, dropped, args.incomplete)
    finish(args.work, "acl6060", settings, "iwslt25")


if __name__ == "__main__":
    main()
