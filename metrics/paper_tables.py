"""
The figures of the 2025 paper (arXiv 2506.01808) and of the multilingual listeners paper, to print beside ours.

    figures("Table 2")["C"]["acl6060.eval", "WER", "en"]       -> "18.6", as the paper prints it; "" where it has none
    listeners_figures("BLEU")["cascade"]["ar"]                 -> "34.2"

A column is (test set, metric, language) with the metrics and units of results.json; a column over several of them,
comma-separated, is their mean. A row is a system, named as the folder of its predictions; C is A.1 + B with fluent
answers, the submitted model.
"""


DE_IT_ZH, EN_DE_IT_ZH = ("de", "it", "zh"), ("en", "de", "it", "zh")


def columns(test_set, metric, languages):
    return [(test_set, metric, language) for language in languages]


def translation(test_set, languages):
    return columns(test_set, "BLEU", languages) + columns(test_set, "COMET", languages)


TABLES = {  # name: (columns, rows)
    "Table 2": (
        columns("acl6060.eval", "WER", ["en"]) + translation("acl6060.eval", DE_IT_ZH)
        + columns("spokensquad.test", "judge", EN_DE_IT_ZH), """
        llm          -     23.88  35.51  45.89  0.779  0.806  0.809  91.8  92.0  88.6  84.6
        B            -     41.69  48.31  53.65  0.838  0.863  0.867  83.4  75.7  71.4  69.5
        seamless     17.6  27.95  43.54  33.58  0.737  0.788  0.753  -     -     -     -
        A.1          19.8  27.58  36.30  40.62  0.760  0.796  0.793  -     -     -     -
        A.2          19.9  27.20  36.60  40.72  0.760  0.797  0.792  0.7   0.5   0.3   0.6
        C-short      17.7  30.37  41.22  42.76  0.758  0.791  0.795  79.8  71.9  69.4  65.5
        C            18.6  30.75  40.48  42.51  0.755  0.788  0.789  90.3  85.2  82.9  76.4
        C-A.2-short  18.2  29.91  38.13  43.12  0.759  0.786  0.799  80.5  74.9  68.0  66.7
        C-A.2        18.7  29.68  32.28  43.38  0.763  0.782  0.798  91.1  87.3  84.8  78.0
        """),
    "footnote 8": (columns("spokensquad.test", "ROUGE-1", EN_DE_IT_ZH), """
        B            81.4  63.1   69.5   79.0
        """),
    "section 6": (columns("acl6060.eval", "language", ["en"]), """
        C            98
        C-A.2        98.5
        """),
    "Table 3": (columns("spokensquad.test", "n", EN_DE_IT_ZH), """
        rows         8026  3272   783    627
        """),
    "Table 6": (
        [(test_set, metric, "en") for test_set in ("covost2.test", "europarlst.test") for metric in ("WER", "CER")]
        + [(test_set, metric, language) for test_set, languages in (("covost2.test", ("de", "zh")),
                                                                    ("europarlst.test", ("de", "it")))
           for language in languages for metric in ("BLEU", "COMET")], """
        A.1          7.84  3.70  11.21  7.30  30.24  0.789  40.14  0.806  25.06  0.840  27.55  0.860
        A.2          7.21  3.44  10.98  7.18  30.68  0.789  40.63  0.807  25.21  0.841  28.36  0.859
        C            7.59  3.55  11.20  7.20  31.42  0.770  42.19  0.802  27.16  0.809  27.86  0.842
        C-A.2        7.01  3.25  10.82  7.11  31.83  0.772  42.36  0.804  26.70  0.812  27.77  0.848
        """),
    "Table 7": (
        columns("acl6060.dev", "WER", ["en"]) + translation("acl6060.dev", DE_IT_ZH), """
        llm          -     21.27  33.81  44.01  0.732  0.757  0.755
        B            -     36.94  49.81  52.33  0.782  0.815  0.822
        seamless     25.3  23.77  37.84  28.17  0.669  0.713  0.663
        A.1          15.9  26.77  36.34  38.65  0.718  0.750  0.753
        A.2          15.9  26.85  36.09  38.85  0.720  0.749  0.753
        C-short      13.9  28.74  41.73  40.72  0.716  0.759  0.756
        C            14.4  27.20  42.01  41.23  0.712  0.752  0.753
        C-A.2-short  17.2  29.18  39.14  40.99  0.719  0.755  0.762
        C-A.2        15.5  27.62  33.22  41.74  0.726  0.749  0.764
        """),
    "Table 8": (
        columns("spokensquad.test", "BERTScore", EN_DE_IT_ZH)
        + columns("spokensquad.test", "BERTScore-unanswerable", EN_DE_IT_ZH), """
        C            0.975  0.532  0.541  0.665  0.999  0.984  0.990  0.988
        C-A.2        0.975  0.536  0.546  0.666  0.999  0.990  0.989  0.991
        """),
    "Table 9": (
        columns("spokensquad.test", "BERTScore-xlmr", EN_DE_IT_ZH)
        + columns("spokensquad.test", "BERTScore-xlmr-unanswerable", EN_DE_IT_ZH), """
        C            0.857  0.869  0.863  0.899  0.996  0.997  0.996  0.997
        C-A.2        0.857  0.869  0.863  0.896  0.995  0.998  0.998  0.998
        """),
    "Table 10": (
        columns("acl6060.dev", "WER", ["en"]) + columns("acl6060.dev", "CER", ["en"])
        + translation("acl6060.dev", DE_IT_ZH), """
        A.1                    15.9  7.7  26.77  36.34  38.65  0.718  0.750  0.753
        C-random-lora-no-text  17.4  8.2  29.07  37.04  41.47  0.732  0.760  0.761
        C-random-lora          16.4  7.7  28.07  38.88  41.24  0.725  0.755  0.760
        C-no-sqa-no-text       13.8  6.4  27.91  28.88  41.70  0.728  0.743  0.760
        C-no-sqa               14.9  7.2  26.09  32.97  41.10  0.715  0.741  0.755
        C-no-text              14.1  6.5  29.02  30.08  41.85  0.722  0.743  0.763
        C                      14.4  6.5  27.20  42.01  41.23  0.712  0.752  0.753
        C-no-synthetic         18.8  9.2  28.47  32.97  40.03  0.717  0.741  0.753
        C-only-synthetic       13.9  6.6  29.71  39.80  42.04  0.721  0.751  0.754
        C-2k                   14.3  6.4  27.09  40.53  41.53  0.713  0.753  0.755
        """),
    "Table 11": (                              # preliminary runs: its first row is not the C of the other tables
        [("acl6060.dev,acl6060.eval", "WER", "en"), ("acl6060.dev,acl6060.eval", "BLEU", "de,it,zh")], """
        C                      16.03  37.58
        C-0.2-0.5-0.3          17.72  36.36
        C-0.2-0.6-0.2          16.24  36.62
        C-0.25-0.5-0.25        16.58  37.08
        C-0.3-0.5-0.2          16.23  37.30
        """),
}

SYSTEMS = {  # what the rows are, beyond the five systems that every preset has
    "seamless": "SeamlessM4T-v2, speech",
    "seamless-text": "SeamlessM4T-v2, text",
    "C-short": "C-short: short answers",
    "C-A.2": "C-A.2: from A.2",
    "C-A.2-short": "C-A.2-short: from A.2, short answers",
    "C-random-lora-no-text": "C-random-lora-no-text: random LoRA, ASR/ST/SQA",
    "C-random-lora": "C-random-lora: random LoRA, ASR/ST/SQA and MT/QA",
    "C-no-sqa-no-text": "C-no-sqa-no-text: ASR/ST",
    "C-no-sqa": "C-no-sqa: ASR/ST and MT",
    "C-no-text": "C-no-text: ASR/ST/SQA",
    "C-no-synthetic": "C-no-synthetic: no synthetic text",
    "C-only-synthetic": "C-only-synthetic: only synthetic text",
    "C-2k": "C-2k: twice the steps",
    **{name: f"{name}: ASR/ST/SQA" for name in ("C-0.2-0.5-0.3", "C-0.2-0.6-0.2", "C-0.25-0.5-0.25", "C-0.3-0.5-0.2")},
    "rows": "questions",
    "A": "A: SpeechMapper",                    # 2026; the paper's own tables are not here
    "C-setup2": "C-setup2: setup 2",
    "cascade": "cascade: Whisper, then the LLM",                                    # the listeners
    "C-ast": "C-ast: ALL+AST", "C-ten": "C-ten: TEN", "C-ten-ast": "C-ten-ast: TEN+AST",
    "C-align": "C-align: stage 1", "C-ten-align": "C-ten-align: TEN, stage 1",
}

ABLATIONS = ("Table 10", "Table 11")


def figures(name):
    """One table -> {system: {column: what the paper prints, "" for a dash}}."""
    heads, text = TABLES[name]
    rows = [line.split() for line in text.strip().splitlines()]
    return {system: {head: cell.strip("-") for head, cell in zip(heads, cells, strict=True)} for system, *cells in rows}


# --- The listeners.

LISTENERS = """
ar   14.0 118.1 146.1  45.7   34.2/54.7  7.3/30.9   0.1/11.9  30.6/53.8
cs   26.0 117.4 115.2 100.3   -          -          -         -
de    9.4  33.3   7.0   7.1   -          -          -         -
el   21.8 118.3 114.1 108.0   -          -          -         -
en    3.2  34.6  13.9  13.8   -          -          -         -
es    7.7  18.1   4.9   4.9   -          -          -         -
fa   38.0 128.7 133.0 109.1   -          -          -         -
fr    9.0  34.1  10.1  10.9   -          -          -         -
he   40.6 128.4 447.8 122.9   -          -          -         -
hi   30.8 123.2 105.3  68.9   -          -          -         -
id   34.9  71.8 125.1  14.0   36.1/53.3  6.6/29.8   0.2/15.0  37.0/59.0
it    5.0  21.7   5.1   6.5   -          -          -         -
ja   15.8  66.1  78.6  75.9   10.4/23.4  11.3/38.5  19.7/46.6 17.8/41.5
ko   20.9  61.4 144.4  23.0   -          -          -         -
nl    9.5  90.8 101.5  14.0   -          -          -         -
pl    7.5 110.8 118.6  94.7   -          -          -         -
pt    6.7  28.5   7.4   9.6   -          -          -         -
ro   15.1 114.6 106.1  89.3   -          -          -         -
ru   17.1  57.4 123.9   9.3   -          -          -         -
tr   11.4 114.6 131.9  74.5   20.0/40.8  0.6/19.3   0.1/15.4  5.5/27.0
uk   18.7 107.0 118.8  82.6   -          -          -         -
vi   18.0 110.5 104.2  50.9   -          -          -         -
zh   28.9  93.9   7.9   6.2   4.5/16.9   15.6/45.8  8.9/39.7  22.7/51.2
mean 17.8  82.8  98.7  49.7   21.0/37.8  8.3/32.9   5.8/25.7  22.7/46.6
"""                                             # Table 3: ASR, then BLEU/chrF, of four systems
LISTENED = ("cascade", "Qwen2-Audio", "Phi-4 Multimodal", "Qwen2.5-Omni")


def listeners_figures(metric):
    """Table 3 for "WER" (CER for zh and ja), "BLEU" or "chrF" -> {system: {language or "mean": what it prints}}."""
    found = {system: {} for system in LISTENED}
    for language, *cells in (line.split() for line in LISTENERS.strip().splitlines()):
        for system, errors, translation in zip(LISTENED, cells[:4], cells[4:], strict=True):
            both = translation.split("/") if "/" in translation else ("", "")
            found[system][language] = dict(zip(("WER", "BLEU", "chrF"), (errors, *both)))[metric]
    return found
