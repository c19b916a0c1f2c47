"""Tables from results.json: by system, by language, and beside the papers' figures."""
import re

import pytest
from conftest import SHARED, reference
from test_bad_input import refused

from metrics import papers
from metrics.paper_tables import paper_tables, shown_blocks
from metrics.papers import LANGUAGE_TABLES, TABLES, figures, language_figures
from metrics.tables import NAMES, example_table, language_tables, system_table


def results(*groups):
    """Return entries of results.json; a group is "system test_set: task language metric value n; ...", n else 10."""
    entries = []
    for where, _, scores in (group.partition(": ") for group in groups):
        for score in scores.split("; "):
            (system, test_set), (task, language, metric, value, n) = where.split(), (score + " 10").split()[:5]
            entries.append({"system": system, "test_set": test_set, "task": task, "language": language,
                            "metric": metric, "value": float(value), "n": int(n)})
    return entries


def cells(markdown):
    """Return {name of the row: {heading: cell}} without empty cells; the name of a paper's row is (name, "paper")."""
    lines = [[cell.strip() for cell in line.strip().strip("|").split("|")]
             for line in markdown.splitlines() if line.startswith("|")]
    assert all(len(line) == len(lines[0]) for line in lines)
    rows, name, paired = {}, "", lines[0][1:2] == [""]
    for line in lines[2:]:
        name = line[0] or name
        rows[(name, line[1]) if paired else name] = {
            head: cell for head, cell in list(zip(lines[0], line))[1 + paired:] if cell}
    return rows


def test_a_column_for_each_language_and_their_mean():
    scores = results("C x.test: ST de BLEU 30; ST fr BLEU 40; ST it BLEU 50; ASR en WER 12.34; MCQ en judge:text:b 45; "
                     "SQA en judge:text:a 80; SQA en judge:text:b 60",
                     "B x.test: MT de BLEU 60", "C y.test: ASR en WER 9")
    assert cells(system_table(scores, "x.test", ["B", "C", "A.1"])) == {
        "B: LoRA, text": {"BLEU de": "60.0", "BLEU mean": "60.0"},
        "C: projector + LoRA": {"WER": "12.3", "BLEU de": "30.0", "BLEU it": "50.0", "BLEU fr": "40.0",
                                "BLEU mean": "40.0", "judge en": "70.0", "judge MCQ": "45.0"}}


def test_asr_of_several_languages_and_units():
    scores = results("mine x.test: ASR en WER 10; ASR de WER 20; ASR zh WER 100; ASR zh CER 30; ASR de CER 5; "
                     "ST de COMET 0.76543; ST de capped 50 2; ASR en capped 0 8")
    assert cells(system_table(scores, "x.test", ["mine"]))["mine"] == {
        "WER en": "10.0", "WER de": "20.0", "WER mean": "15.0", "CER de": "5.0", "CER zh": "30.0", "CER mean": "17.5",
        "COMET de": "0.765", "capped": "10.0"}                        # 1 of 10 outputs


def test_two_test_sets_of_one_language_are_never_mixed():
    scores = results("C commonvoice.test: ASR ar WER 10", "C mine.test: ASR ar WER 90", "C mine.dev: ASR ar WER 70",
                     "C covost2-ar_en.test: ST en BLEU 30", "C covost2-en_ar.test: ST ar BLEU 8",
                     "C covost2-zh_en.test: ST en BLEU 20")
    ours = {table.splitlines()[0].split("|")[1].strip(): [row["C: projector + LoRA"] for row in cells(table).values()]
            for table in language_tables(scores, ["C"])}
    assert ours == {                                                  # the last row is the mean
        "WER; CER in zh, ja: commonvoice.test": ["10.0", "10.0"], "WER; CER in zh, ja: mine.test": ["90.0", "90.0"],
        "WER; CER in zh, ja: mine.dev": ["70.0", "70.0"], "BLEU: covost2-X_en.test": ["30.0", "20.0", "25.0"],
        "BLEU: covost2-en_X.test": ["8.0", "8.0"]}


def test_the_listeners_tables_beside_ours():
    scores = results("C commonvoice.test: ASR de WER 10; ASR de CER 1; ASR zh WER 99; ASR zh CER 20 7",
                     "cascade commonvoice.test: ASR de WER 5", "C covost2-ar_en.test: ST en BLEU 30; ST en chrF 50",
                     "C covost2-zh_en.test: ST en BLEU 20", "C mine.test: SQA it EM 40")
    errors, bleu, chrf = map(cells, paper_tables(scores, ["listeners Table 3"]))
    ours, cascade = "C: projector + LoRA", "cascade: Whisper, then the LLM"
    assert list(errors) == ["de", "zh", "mean"] and list(errors["de"])[1:3] == [ours, cascade]
    assert [errors[name].get(ours) for name in errors] == ["10.0", "20.0", "15.0"] and errors["zh"]["rows"] == "7"
    assert errors["de"][cascade] == "5.0" and cascade not in errors["mean"]                 # Chinese is missing
    assert errors["de"]["paper: cascade"] == "9.4" and errors["mean"]["paper: Qwen2.5-Omni"] == "49.7"
    assert [bleu[name][ours] for name in bleu] == ["30.0", "20.0", "25.0"] and list(bleu) == ["ar", "zh", "mean"]
    assert bleu["zh"]["paper: cascade"] == "4.5" and chrf["ar"]["paper: cascade"] == "54.7"
    (rest,) = language_tables(scores, ["cascade", "C"], leave_out=shown_blocks(["listeners Table 3"]))
    assert cells(rest)["it"] == {"rows": "10", ours: "40.0"}


def test_the_listeners_means_are_plain_and_count_cer_among_wer():
    for name, means in (("listeners Table 3", ("17.8", "82.8", "98.7", "49.7")),
                        ("listeners Table 4", ("49.7", "50.4"))):
        for (system, row), mean in zip(language_figures(name, "WER").items(), means, strict=True):
            errors = [float(value) for language, value in row.items() if language != "mean"]
            assert row["mean"] == mean and len(errors) == 23 and sum(errors) / 23 == pytest.approx(float(mean), abs=.06)
            for metric in LANGUAGE_TABLES[name][1]:
                scores = {language: float(value) for language, value in language_figures(name, metric)[system].items()
                          if value}
                last = scores.pop("mean")
                assert scores.keys() == {"ar", "id", "ja", "tr", "zh"}
                assert sum(scores.values()) / 5 == pytest.approx(last, abs=.11)


def test_ours_stands_above_the_paper_s():
    scores = results("C acl6060.eval: ASR en WER 17.04; ST de BLEU 30.126; ST de COMET 0.75051",
                     "C acl6060.dev: ASR en WER 9", "A.2 spokensquad.test: SQA it judge:a:x 2; SQA it judge:a:y 1")
    (markdown,) = paper_tables(scores, ["2025 Table 2", "2025 Table 8", "2025 Table 6"])      # the others are empty
    assert markdown.startswith("| 2025 Table 2: acl6060.eval, spokensquad.test |  | WER en | BLEU de |")
    rows = cells(markdown)
    assert rows["C: projector + LoRA", "ours"] == {"WER en": "17.0", "BLEU de": "30.13", "COMET de": "0.751"}
    assert rows["C: projector + LoRA", "paper"]["WER en"] == "18.6"
    assert rows["A.2: projector (ASR, ST, SQA)", "ours"] == {"judge it": "1.5"}
    assert rows["LLM, text", "ours"] == {} and "WER en" not in rows["LLM, text", "paper"] and len(rows) == 18
    refused(paper_tables, scores, ["Table 2"], says="'Table 2' is none of the papers' tables 2025 Table 2, ")


DEV = "C-0.3-0.5-0.2 acl6060.dev: ASR en WER 10; ST de BLEU 30; ST it BLEU 30; ST zh BLEU "
EVAL = "C-0.3-0.5-0.2 acl6060.eval: ASR en WER 20; ST de BLEU 42; ST it BLEU 42"
LIBRI = "C librispeech.test: ASR en WER 5 1", "C librispeech.test-other: ASR en WER 10 2"
OFFICIAL = ("official en ASR-WER 0.1234; official de TRANS-COMET 0.7; official it TRANS-COMET 0.8; "
            "official zh TRANS-COMET 0.75; official en QA-BERTScore 0.5")


@pytest.mark.parametrize("groups, table, system, ours", [
    # the questions are counted
    (["B spokensquad.test: SQA de EM 1 3272", "C spokensquad.test: SQA de EM 1 3200; SQA de EM-unanswerable 1 8026"],
     "2025 Table 3", "questions", {"n de": "3272"}),
    # ablations are shown once one is scored
    (["C acl6060.dev: ASR en WER 14", "C-2k acl6060.dev: ASR en CER 6.44"],
     "2025 Table 10", "C-2k: twice the steps", {"CER en": "6.4"}),
    # means over dev and eval; in the second line one of six is missing
    ([DEV + "30", EVAL + "; ST zh BLEU 42"], "2025 Table 11", "C-0.3-0.5-0.2: ASR/ST/SQA",
     {"WER en": "15.00", "BLEU de,it,zh": "36.00"}),
    ([DEV + "30", EVAL], "2025 Table 11", "C-0.3-0.5-0.2: ASR/ST/SQA", {"WER en": "15.00"}),
    # test sets weigh as many samples: (1 x 5 + 2 x 10 + 3 x 20 + 4 x 8) / 10; COMET times 100: (1 x 0.8 + 3 x 0.7) / 4
    ([*LIBRI, "C europarlst.test: ASR en WER 20 3; ST de COMET 0.7 3", "C covost2.test: ASR en WER 8 4; "
      "ST de COMET 0.8 1", "C librisqa.test: SQA en judge:text:a 80; SQA en judge:text:b 90; MCQ en judge:text:a 60"],
     "2026 Table 1", "C: projector + LoRA",
     {"WER en": "11.7", "COMET de": "72.5", "judge Part I": "85.0", "judge Part II": "60.0"}),
    # the organisers' scores have the units of each table; three languages lack QA
    (["C mcif.test: " + OFFICIAL], "2026 Table 2", "C: projector + LoRA",
     {"WER en": "12.3", "TRANS-COMET de,it,zh": "0.750"}),
    (["C mcif.test: " + OFFICIAL], "2025 poster", "C: projector + LoRA",
     {"ASR-WER en": "12.3", "TRANS-COMET de": "0.70", "TRANS-COMET it": "0.80", "TRANS-COMET zh": "0.75",
      "QA-BERTScore en": "0.50"})])
def test_our_row_in_each_table(groups, table, system, ours):
    (markdown,) = paper_tables(results(*groups), [table])
    assert cells(markdown)[system, "ours"] == ours and ("150 new tokens" in markdown) is (table == "2025 poster")


@pytest.mark.parametrize("groups, tables", [
    (["C acl6060.dev: ASR en WER 14", "A.1 acl6060.dev: ASR en WER 15"], ["2025 Table 10"]),      # no ablation
    (LIBRI, ["2026 Table 1"]),                                                                    # two test sets lack
    (["C iwslt26.test: " + OFFICIAL], ["2026 Table 2", "2025 poster"])])                          # another test set
def test_tables_that_are_not_shown(groups, tables):
    assert paper_tables(results(*groups), tables) == []


def test_tables_are_whole_and_their_systems_known():
    for name, table in TABLES.items():
        for system, row in figures(name).items():
            assert system in {**NAMES, **papers.SYSTEMS}, system
            assert len(row) == len(table.columns) and all(re.fullmatch(r"\d*\.?\d*", cell) for cell in row)
        assert len({column.heading for column in table.columns}) == len(table.columns)


def paper(name):
    """Return the lines of a paper's text without tags, percent signs and commas in numbers."""
    lines = reference(SHARED / "papers" / f"{name}_paper.txt").read_text(encoding="utf-8").splitlines()
    return [re.sub(r"</?\w+>|%|,(?=\d{3})", "", line) for line in lines]


def table_of(lines, name):
    """Return the rows of numbers above the caption `name`, or below it; dashes become empty."""
    caption = next(i for i, line in enumerate(lines) if line.startswith(f"{name}:"))
    start = max((i for i, line in enumerate(lines[:caption]) if re.match(r"Table \d+:", line)), default=0)
    rows = [[cell.strip() for cell in line.rstrip().split("\t")[1:]] for line in lines[start:caption]]
    return [[cell.strip("-–") for cell in row] for row in rows if row and re.fullmatch(r"[\d.]+|[-–]", row[-1])]


def test_every_row_of_2025_stands_in_the_paper():
    lines = paper("iwslt2025_nle")
    for name in TABLES:
        if name.startswith("2025 Table"):
            assert table_of(lines, name.removeprefix("2025 ")) == list(figures(name).values()), name
    text = " ".join(lines)
    assert "respectively: 81.4, 63.1, 69.5, 79.0" in text and "English in 98 and 98.5 of the cases" in text


def test_every_row_of_2026_stands_in_the_paper():
    lines = paper("iwslt2026_nle")
    assert [row for row in table_of(lines, "Table 1")] == list(figures("2026 Table 1").values())
    assert table_of(lines, "Table 2") == list(figures("2026 Table 2").values())
    for rows, (system, row) in zip((slice(0, 4), slice(4, 8)), figures("2026 Table 4").items()):
        en, *others = [line[1:] for line in table_of(lines, "Table 4")[rows]]         # TRANS, QA, QE, QE format, WER
        assert [en[4], *(line[0] for line in others), en[1], *(line[1] for line in others),
                *(line[n] for n in (2, 3) for line in others[1:])] == row, system


def test_an_example_is_the_median_of_the_wrong_answers():
    rows = [{"id": f"x/{n}", "task": "ASR", "language": "en", "target": "one two three"} for n in range(4)]
    rows.append({"id": "x/4", "task": "ASR", "language": "en", "target": "..."})
    predictions = {row["id"]: {"task": "ASR", "prediction": text} for row, text in zip(
        rows, ["one two three", "one two | 3", "one", "no no no no no no", "x"])}
    outputs = {("A", "x.test"): (rows, predictions), ("C", "x.test"): (rows, predictions)}
    assert example_table(outputs, "A").splitlines()[2:] == ["| x.test ASR | one two three | one |"]
    assert example_table(outputs, "B") == ""
    assert "one two \\| 3" in example_table({("A", "x.test"): (rows[:2], predictions)}, "A")
