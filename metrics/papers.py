"""
The result tables of the papers as data: 2025 (arXiv 2506.01808) and its poster, 2026 (arXiv 2607.01960), the
multilingual listeners (OpenReview cL3M1VwZyn). paper_tables.py prints ours beside them.

    figures("2025 Table 2")["C"][0]                                  -> "18.6", as the paper prints it; "" for a dash
    language_figures("listeners Table 3", "BLEU")["cascade"]["ar"]   -> "34.2"

A row is a system, named as the folder of its predictions. In the 2025 tables C is A.1 + B with fluent answers, the
submitted model; in the 2026 tables C is setup 1, the submitted model, and iwslt25-C is the 2025 model on the 2026 sets.
"""
from collections import namedtuple


ST, QA = ("ST", "MT"), ("SQA", "QA")
ANSWERS = (*QA, "MCQ")
ALL_TASKS = ("ASR", *ST, *ANSWERS, "official")
DE_IT_ZH, EN_DE_IT_ZH = ("de", "it", "zh"), ("en", "de", "it", "zh")

# A column is the mean over its test sets and languages, weighted by samples or not, times `scale`: the units of
# results.json are percent, and fractions for COMET, BERTScore and the official scores.
Column = namedtuple("Column", "heading test_sets metric languages tasks scale weighted")
Table = namedtuple("Table", "columns rows note")


def column(test_sets, metric, languages, heading="", tasks=ALL_TASKS, scale=1, weighted=False):
    """Return one column; test sets and languages are comma-separated."""
    test_sets, languages = test_sets.split(","), languages.split(",")
    return Column(heading or f"{metric} {','.join(languages)}", test_sets, metric, languages, tasks, scale, weighted)


def columns(test_set, metric, languages):
    """Return a column for each language."""
    return [column(test_set, metric, language) for language in languages]


def translation(test_set, languages):
    """Return the columns of BLEU and of COMET for each language."""
    return columns(test_set, "BLEU", languages) + columns(test_set, "COMET", languages)


def official(test_set, wer_scale, comet, bertscore, qe=()):
    """Return the columns of the organisers' scores; the languages are in the order of the paper."""
    return [column(test_set, "ASR-WER", "en", scale=wer_scale), *columns(test_set, "TRANS-COMET", comet),
            *columns(test_set, "QA-BERTScore", bertscore), *columns(test_set, "QE-accuracy", qe),
            *columns(test_set, "QE-format-accuracy", qe)]


# What the rows A.1, A.2 and B were trained on, the 2025 paper says in two ways. Table 12 gives A.1 and A.2 the ASR of
# SpokenSQuAD, section 5.1 takes ASR from CoVoST2 and EuroParlST alone; Table 12 leaves the fluent answers out of B,
# section 5.1 trains B on all text of Table 1. Table 13 has the ST shares it 0.4 and zh 0.3, section 5.1 has zh 0.4 and
# it 0.3. For the SQA of A.2 Table 13 has zh 0.3 and no Italian, section 5.1 it 0.3 and no Chinese.
TABLES = {
    "2025 Table 2": Table(
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
        """, ""),
    "2025 footnote 8": Table(
        columns("spokensquad.test", "ROUGE-1", EN_DE_IT_ZH), """
        B            81.4  63.1   69.5   79.0
        """, ""),
    "2025 section 6": Table(
        columns("acl6060.eval", "language", ["en"]), """
        C            98
        C-A.2        98.5
        """, ""),
    "2025 Table 3": Table(
        columns("spokensquad.test", "n", EN_DE_IT_ZH), """
        rows         8026  3272   783    627
        """, ""),
    "2025 Table 6": Table(
        [column(f"{corpus}.test", metric, "en", f"{corpus} {metric} en") for corpus in ("covost2", "europarlst")
         for metric in ("WER", "CER")]
        + [column(f"{corpus}.test", metric, language, f"{corpus} {metric} {language}")
           for corpus, language in (("covost2", "de"), ("covost2", "zh"), ("europarlst", "de"), ("europarlst", "it"))
           for metric in ("BLEU", "COMET")], """
        A.1          7.84  3.70  11.21  7.30  30.24  0.789  40.14  0.806  25.06  0.840  27.55  0.860
        A.2          7.21  3.44  10.98  7.18  30.68  0.789  40.63  0.807  25.21  0.841  28.36  0.859
        C            7.59  3.55  11.20  7.20  31.42  0.770  42.19  0.802  27.16  0.809  27.86  0.842
        C-A.2        7.01  3.25  10.82  7.11  31.83  0.772  42.36  0.804  26.70  0.812  27.77  0.848
        """, ""),
    "2025 Table 7": Table(
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
        """, ""),
    "2025 Table 8": Table(
        columns("spokensquad.test", "BERTScore", EN_DE_IT_ZH)
        + columns("spokensquad.test", "BERTScore-unanswerable", EN_DE_IT_ZH), """
        C            0.975  0.532  0.541  0.665  0.999  0.984  0.990  0.988
        C-A.2        0.975  0.536  0.546  0.666  0.999  0.990  0.989  0.991
        """, ""),
    "2025 Table 9": Table(
        columns("spokensquad.test", "BERTScore-xlmr", EN_DE_IT_ZH)
        + columns("spokensquad.test", "BERTScore-xlmr-unanswerable", EN_DE_IT_ZH), """
        C            0.857  0.869  0.863  0.899  0.996  0.997  0.996  0.997
        C-A.2        0.857  0.869  0.863  0.896  0.995  0.998  0.998  0.998
        """, ""),
    "2025 Table 10": Table(
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
        """, ""),
    "2025 Table 11": Table(
        [column("acl6060.dev,acl6060.eval", "WER", "en"), column("acl6060.dev,acl6060.eval", "BLEU", "de,it,zh")], """
        C                      16.03  37.58
        C-0.2-0.5-0.3          17.72  36.36
        C-0.2-0.6-0.2          16.24  36.62
        C-0.25-0.5-0.25        16.58  37.08
        C-0.3-0.5-0.2          16.23  37.30
        """, "The paper's rows are preliminary runs: its first one is not the C of its other tables."),
    "2025 poster": Table(
        official("mcif.test", 100, DE_IT_ZH, EN_DE_IT_ZH), """
        C            13.0  0.71  0.75  0.76  0.50  0.38  0.42  0.35
        """,
        "The organisers' scores of the submission, decoded with 150 new tokens.\n"
        "2026, Table 2 has 12.6, 0.743 and 0.417 for the same model with 100 new tokens."),
    "2026 Table 1": Table(
        [column("librispeech.test,librispeech.test-other,europarlst.test,covost2.test", "WER", "en", weighted=True),
         column("covost2.test,europarlst.test", "COMET", "de", scale=100, weighted=True),
         column("europarlst.test", "COMET", "it", scale=100), column("covost2.test", "COMET", "zh", scale=100),
         column("librisqa.test", "judge", "en", "judge Part I", QA),
         column("librisqa.test", "judge", "en", "judge Part II", ("MCQ",))], """
        seamless-text  -     81.4  86.7  80.8  -     -
        iwslt25-llm    -     81.9  84.1  77.0  86.6  70.8
        llm            -     71.0  67.7  74.3  89.1  70.2
        B              -     80.7  86.9  84.7  89.9  82.6
        seamless       5.9   78.3  76.9  78.0  -     -
        A              14.2  73.5  80.1  79.7  84.4  72.1
        iwslt25-C      7.3   77.3  84.2  80.2  82.0  63.0
        C              8.2   75.1  83.2  80.6  86.2  82.5
        C-setup2       7.4   76.3  84.4  81.3  87.9  80.2
        """,
        "COMET x 100. Averages over test sets are weighted by samples. "
        "Part II is multiple choice: section 2.1 calls it Part III."),
    "2026 Table 2": Table(
        [column("mcif.test", "ASR-WER", "en", "WER en", scale=100), column("mcif.test", "TRANS-COMET", "de,it,zh"),
         column("mcif.test", "QA-BERTScore", "en,de,it,zh")], """
        iwslt25-C      12.6  0.743  0.417
        A              32.2  0.711  0.225
        C              12.0  0.772  0.428
        C-setup2       10.5  0.781  0.400
        """, "The WER is a percentage; the averages are over languages, which weigh the same (our reading)."),
    "2026 Table 4": Table(
        official("iwslt26.test", 1, ("it", "de", "zh"), ("en", "it", "de", "zh"), ("de", "zh")), """
        C              0.136  0.763  0.765  0.794  0.531  0.456  0.470  0.487  0.786  0.894  0.997  1.000
        iwslt25-C      0.134  0.733  0.749  0.755  0.501  0.514  0.462  0.466  0.333  0.500  0.005  0.014
        """,
        "The organisers' scores on their test of 2026, fractions. Its references are not public: their server scores\n"
        "the XML that infer.py writes, and eval.py does so where references lie in raw/iwslt26."),
}

ABLATIONS = ("2025 Table 10", "2025 Table 11")        # printed once an ablated system is scored

SYSTEMS = {  # what the rows are, beyond the systems that every page has
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
    "A": "A: SpeechMapper",                                                         # 2026
    "iwslt25-llm": "iwslt25-llm: 2025's LLM, text", "iwslt25-C": "iwslt25-C: 2025's C",
    "C-setup2": "C-setup2: setup 2",
    "cascade": "cascade: Whisper, then the LLM",                                    # the listeners
    "C-ast": "C-ast: ALL+AST", "C-ten": "C-ten: TEN", "C-ten-ast": "C-ten-ast: TEN+AST",
    "Omni": "Omni: Qwen2.5-Omni", "Omni-FT": "Omni-FT: trained on MultiSpeechQA",
    "C-align": "C-align: stage 1", "C-ten-align": "C-ten-align: TEN, stage 1",
}

# The listeners: a row is a language; ASR is CER for zh and ja, AST is translation into English. For Czech and
# Qwen2.5-Omni Table 4 has 100.4 and Table 3 has 100.3.
LANGUAGE_TABLES = {  # name: (the paper's systems, what an AST cell holds, rows: ASR of each system, then AST of each)
    "listeners Table 3": (("cascade", "Qwen2-Audio", "Phi-4 Multimodal", "Qwen2.5-Omni"), ("BLEU", "chrF"), """
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
        """),
    "listeners Table 4": (("Qwen2.5-Omni", "Qwen2.5-Omni FT"), ("BLEU",), """
        ar    45.7  31.5   30.6 29.7
        cs   100.4 101.6   -    -
        de     7.1   7.5   -    -
        el   108.0 108.3   -    -
        en    13.8  16.6   -    -
        es     4.9   5.1   -    -
        fa   109.1 107.5   -    -
        fr    10.9  10.8   -    -
        he   122.9 113.6   -    -
        hi    68.9  68.4   -    -
        id    14.0  13.9   37.0 34.7
        it     6.5   6.2   -    -
        ja    75.9  31.3   17.8 17.2
        ko    23.0  24.4   -    -
        nl    14.0  14.3   -    -
        pl    94.7  75.1   -    -
        pt     9.6  11.9   -    -
        ro    89.3  74.6   -    -
        ru     9.3  13.7   -    -
        tr    74.5  66.4   5.5  5.8
        uk    82.6  81.3   -    -
        vi    50.9 169.3   -    -
        zh     6.2   6.8   22.7 17.7
        mean  49.7  50.4   22.7 21.0
        """),
}
FAMILIES = {"WER": "commonvoice.test", "BLEU": "covost2-X_en.test", "chrF": "covost2-X_en.test"}     # their test sets


def figures(name):
    """Return {system: what the paper prints in each column of one table, "" for a dash}."""
    table = TABLES[name]
    lines = [line.split() for line in table.rows.strip().splitlines()]
    if any(len(line) != 1 + len(table.columns) for line in lines):
        raise ValueError(f"{name}: a row has not {len(table.columns)} figures")
    return {system: [cell.strip("-") for cell in cells] for system, *cells in lines}


def language_figures(name, metric):
    """Return {system: {language or "mean": what the paper prints}} for "WER" (CER for zh and ja), "BLEU" or "chrF"."""
    systems, translations, rows = LANGUAGE_TABLES[name]
    values = {system: {} for system in systems}
    for language, *cells in (line.split() for line in rows.strip().splitlines()):
        for system, errors, cell in zip(systems, cells[:len(systems)], cells[len(systems):], strict=True):
            parts = dict(zip(translations, cell.split("/"))) if cell != "-" else {}
            values[system][language] = {"WER": errors, **parts}.get(metric, "")
    return values
