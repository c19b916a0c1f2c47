"""
Text in the form in which it is compared: Unicode's composed form, and the MMS form of transcripts.

    nfc("u\\u0308")                                    -> "ü", one character in place of two
    mms_normalize("Hello, World! (aged 20)", "en")        -> "hello world"

mms_normalize gives what MMS's text_normalize gives (fairseq, examples/mms/data_prep) for English and the 22 other
languages of our rows. The character classes are those that MMS's norm_config.py and punctuations.lst resolve to.
"""
import re
import unicodedata


def charset(ranges):
    """Return hexadecimal code points and ranges, separated by spaces, as the inside of a regular expression's [...]."""
    return "".join("-".join(f"\\u{point}" for point in part.split("-")) for part in ranges.split())


# Of ASCII's marks only ' - \ ` are no punctuation.
PUNCTUATION = charset("""
    0008 001A 0021-0026 0028-002C 002E-002F 003A-0040 005B 005D-005F 007B-007E 0081 008D 008F-0090 0092-0094
    009D 00A1 00A3 00A9 00AB-00AC 00AF-00B0 00B6-00B7 00BB-00BD 00BF 00D7 02C7 02DC 037E 0387 055A-055F 0589
    05BE 060C 061B 061E-061F 0640 06D4 0964-0965 09F7 0E46 0EC6 0F04-0F05 0F0C-0F0E 104A-104F 109F 1361-1366
    166D-166E 17D4-17D7 17DA 2006 2015 2018-2022 2026-2027 202F-2030 2038-203B 2044 2060 206F 2071 207F 20AC
    2153 215F 2192 2212 226A-226B 22EF 230A-230B 231E-231F 2500 2D70 3001-3002 3005 3008-3011 3014-3015
    30FB-30FC A4FE-A4FF A92E-A92F E003 E013 E01D E040-E041 E043 E06B E06D E070 E203 E231-E234 E236 E290-E296
    E2D9 E2DB E2DE E2F9-E2FC E2FE E313 E328-E32E E492-E493 E514 E516-E518 EA01 EA7B F171-F173 F218 F21D
    F50E-F50F F511 F513 F518-F519 F521-F523 F529 F52D F62D F7D0 F7E8 FD3E-FD3F FE4F-FE50 FE55-FE57 FF01
    FF08-FF09 FF0C FF0E-FF0F FF1A-FF1C FF1E-FF1F FF3F FF41-FF44 FF5E FF65 FFFD""")
DELETED = charset("064B-0652 0656-0657 200B-200C 200E-200F 202A 202C")   # Arabic vowels, zero-width marks
DIGITS = charset("""
    0030-0039 06F0-06F9 0966-096F 09E6-09EF 0B66-0B6F 0D66-0D6F 1040-1049 17E0-17E9 206F 2170-2179 A900-A909
    FF10-FF19""")
HEBREW_DELETED = charset("05B0-05CF")         # vowels: of the 23 languages Hebrew alone has a rule of its own
MAPPINGS = [   # regular expressions, in this order, for every language
    ("&lt;", ""), ("&gt;", ""), ("&nbsp", ""),
    ("(\\S+)[\u201b\u2019\u2018](\\S+)", "\\1'\\2"),   # greedy: the last curly apostrophe of a word only
    ("\u0671", "\u0627"),   # alef wasla -> alef: MMS means it for Arabic and applies it to every language
]


def nfc(text):
    """Return the text in Unicode's composed form, so that two spellings of the same characters are equal."""
    return unicodedata.normalize("NFC", text)


def mms_normalize(text, language="en", remove_numbers=True):
    """
    Return the MMS form of a text: lower case, without punctuation and without words of digits.
    A text that is nothing but digits is left as it is ("2020"). A bracket with a digit in it is always removed.
    """
    text = unicodedata.normalize("NFKC", text).lower()
    text = re.sub(r"\([^\)]*\d[^\)]*\)", " ", text)     # "(Sam 23:17)", "(aged 20-30)"
    for pattern, replacement in MAPPINGS:
        text = re.sub(pattern, replacement, text)
    text = re.sub(f"[{PUNCTUATION}]", " ", text)
    text = re.sub(f"[{DELETED}{HEBREW_DELETED if language == 'he' else ''}]", "", text)
    if remove_numbers:
        text = re.sub(rf"^[{DIGITS}]+(?=\s)|(?<=\s)[{DIGITS}]+(?=\s)|(?<=\s)[{DIGITS}]+$", " ", text)
    return re.sub(r"\s+", " ", text).strip()
