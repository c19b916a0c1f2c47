"""Scores by hand, the shape of results.json, and predictions that do not fit their rows."""
import json
import os

import pytest
import sacrebleu

import eval as stage
from data.prompts import NOT_ANSWERABLE
from data.rows import write_rows
from eval import bleu, contains, exact_match, score, table, wer

# --- Scores.

def test_wer_by_hand():
    references = ["The cat sat on the mat.", "Anna has three books!"]       # 6 + 4 words
    predictions = ["the cat sits on mat", "anna has three new books"]        # 1 substituted, 1 deleted; 1 inserted
    assert wer(predictions, references, "en") == pytest.approx(30.0)
    assert wer(["THE CAT, sat on; the mat?", "Anna has three books"], references, "en") == 0.0
    assert wer(["", ""], references, "en") == 100.0


def test_bleu_is_sacrebleu_with_the_paper_s_signature():
    predictions, references = ["the cat sat on the mat"], ["the cat sat on the red mat"]
    # precisions 6/6, 4/5, 3/4, 2/3, brevity exp(1 - 7/6)
    assert bleu(predictions, references, "de") == pytest.approx(100 * 2.718281828**(-1 / 6) * (4/5 * 3/4 * 2/3) ** 0.25)
    metric = sacrebleu.metrics.BLEU(tokenize="13a")
    predictions = ["Anna hat drei Katzen.", "Wien ist am Montag schön."]
    references = ["Anna hat drei Katzen, ja.", "Wien wird am Montag schön."]
    assert bleu(predictions, references, "de") == metric.corpus_score(predictions, [references]).score
    assert str(metric.get_signature()).startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp")


def test_bleu_of_chinese_counts_characters():
    predictions, references = ["安娜在伦敦买了两本书。"], ["安娜在伦敦买了三本书。"]
    theirs = sacrebleu.corpus_bleu(predictions, [references], tokenize="zh").score
    assert bleu(predictions, references, "zh") == theirs > 50
    assert bleu(predictions, references, "it") < 20                                   # one word, as 13a sees it


@pytest.mark.parametrize("language, prediction, reference, equal, inside", [
    ("en", "London.", "London", True, True),
    ("en", "In london!", "London", False, True),
    ("en", "Paris", "London", False, False),
    ("en", "", "London", False, False),
    ("en", "In 15 days", "15", False, True),                                          # numbers stay
    ("en", "16", "15", False, False),
    ("de", "„Zürich“", "Zürich", True, True),
    ("de", "Zurich", "Zürich", False, False),
    ("it", "Lunedì", "lunedì", True, True),
    ("zh", "伦敦。", "伦敦", True, True),
    ("zh", "答案是伦敦。", "伦敦", False, True),
    ("zh", "巴黎", "伦敦", False, False),
    ("zh", "无法回答", NOT_ANSWERABLE["zh"], True, True)])
def test_exact_match_and_contains_by_hand(language, prediction, reference, equal, inside):
    assert exact_match([prediction], [reference], language) == 100 * equal
    assert contains([prediction], [reference], language) == 100 * inside


def test_shares_are_of_all_answers():
    assert exact_match(["a", "b", "c"], ["a", "b", "x"], "en") == pytest.approx(200 / 3)


# --- A test set: three ASR, two ST, four SQA of which one has no answer.

def row(n, task, language, target, answerable=True):
    return {"id": f"tiny/test/{n}", "utterance": f"tiny/test/{n}", "audio": "a.wav", "task": task, "language": language,
            "answerable": answerable, "transcript": "x", "question": "q", "target": target}


ROWS = [row(0, "ASR", "en", "one two"), row(1, "ASR", "en", "three four"), row(2, "ASR", "en", "five six"),
        row(3, "ST", "de", "eins zwei drei vier"), row(4, "ST", "zh", "一二三四"),
        row(5, "SQA", "en", "two"), row(6, "SQA", "en", "five"), row(7, "SQA", "en", "Not answerable.", False),
        row(8, "SQA", "it", "due")]
SAID = ["one two", "three", "five six seven", "eins zwei drei vier", "一二三四", "Two.", "It is five", "not answerable",
        "tre"]
TEXT = {"ST": "MT", "SQA": "QA"}


def speech():
    return [{"id": row["id"], "task": row["task"], "prediction": said, "tokens": 3, "capped": False}
            for row, said in zip(ROWS, SAID)]


def text():
    return [{**p, "task": TEXT[p["task"]]} for p in speech() if p["task"] in TEXT]


def test_scores_of_a_test_set():
    results = score("C", "tiny.test", ROWS, {p["id"]: p for p in speech()})
    found = {(r["task"], r["language"], r["metric"]): (round(r["value"], 1), r["n"]) for r in results}
    assert found == {("ASR", "en", "WER"): (33.3, 3),                                 # 1 deleted + 1 inserted of 6
                     ("ST", "de", "BLEU"): (100.0, 1), ("ST", "zh", "BLEU"): (100.0, 1),
                     ("SQA", "en", "EM"): (50.0, 2), ("SQA", "en", "CONTAINS"): (100.0, 2),
                     ("SQA", "en", "EM-unanswerable"): (100.0, 1),                    # apart: n is 2 and 1, not 3
                     ("SQA", "it", "EM"): (0.0, 1), ("SQA", "it", "CONTAINS"): (0.0, 1)}
    assert all(list(r) == ["system", "test_set", "task", "language", "metric", "value", "n"] for r in results)
    results = score("B", "tiny.test", ROWS, {p["id"]: p for p in text()})
    assert {r["task"] for r in results} == {"MT", "QA"} and len(results) == 7


@pytest.fixture
def scored(tmp_path, monkeypatch):
    """work/ with that test set, predictions of C (speech) and B (text), and one stage's log."""
    monkeypatch.chdir(tmp_path)
    write_rows("work/rows/tiny/test.jsonl", ROWS)
    for system, predictions in (("C", speech()), ("B", text())):
        write_predictions(system, predictions)
    os.makedirs("work/tiny/merged")
    with open("work/tiny/merged/log.jsonl", "w") as file:
        for step in (1, 2, 3):
            file.write(json.dumps({"step": step, "loss": 3.0 / step}) + "\n")
        file.write(json.dumps({"step": 3, "validation_loss": 1.5}) + "\n")


def write_predictions(system, predictions):
    os.makedirs(f"work/tiny/predictions/{system}", exist_ok=True)
    with open(f"work/tiny/predictions/{system}/tiny.test.jsonl", "w", encoding="utf-8") as file:
        file.writelines((p if isinstance(p, str) else json.dumps(p, ensure_ascii=False)) + "\n" for p in predictions)


def test_table_json_and_curves(scored, capsys):
    stage.main(["--systems", "B,C"])
    with open("work/tiny/results.json") as file:
        results = json.load(file)
    assert len(results) == 7 + 8 and {r["system"] for r in results} == {"B", "C"}
    with open("work/tiny/results.md", encoding="utf-8") as file:
        markdown = file.read()
    assert markdown in capsys.readouterr().out
    lines = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in markdown.splitlines()]
    heading, b, c = lines[0], dict(zip(lines[0], lines[2])), dict(zip(lines[0], lines[3]))
    assert heading[:2] == ["tiny.test", "WER"] and all(len(line) == len(heading) for line in lines)
    assert b["WER"] == "" and c["WER"] == "33.3"                                      # text in: nothing to transcribe
    assert c["BLEU de"] == c["BLEU zh"] == c["BLEU mean"] == "100.0" and c["BLEU it"] == ""
    assert (c["EM en"], c["EM it"], c["EM de"], c["EM mean"]) == ("50.0", "0.0", "", "25.0")
    assert c["contains"] == "50.0" and c["unanswerable"] == "100.0"
    assert {name: b[name] for name in heading[2:]} == {name: c[name] for name in heading[2:]}
    with open("work/tiny/loss-merged.png", "rb") as file:
        assert file.read(8) == b"\x89PNG\r\n\x1a\n"


def test_a_table_without_any_score_has_empty_cells():
    line = table([], "tiny.test", ["C"]).splitlines()[-1]
    assert line.replace(" ", "") == "|C:projector+LoRA|" + "|" * len(stage.COLUMNS)


def changed(n, **values):
    return [{**p, **values} if i == n else p for i, p in enumerate(speech())]


@pytest.mark.parametrize("predictions, message", [
    (speech()[:-1], "1 rows have no prediction, first tiny/test/8"),
    (speech()[3:] + speech()[:2], "1 rows have no prediction, first tiny/test/2"),
    (speech()[:5], "4 rows have no prediction, first tiny/test/5"),                   # a whole task is missing
    ([*speech(), speech()[4]], "line 10: id 'tiny/test/4' is there twice"),
    (changed(2, id="tiny/test/99"), "line 3: id 'tiny/test/99' is no row"),
    ([*speech()[:4], '{"id": "tiny/te'], "line 5 is not a prediction"),
    ([*speech()[:4], "[]"], "line 5 is not a prediction"),
    (changed(0, prediction=None), "line 1 is not a prediction"),
    ([{"id": "tiny/test/0"}], "line 1 is not a prediction"),
    ([], "9 rows have no prediction, first tiny/test/0")])
def test_predictions_that_do_not_fit_are_named_with_the_next_command(scored, predictions, message):
    write_predictions("C", predictions)
    with pytest.raises(SystemExit) as error:
        stage.main(["--systems", "C"])
    assert message in str(error.value) and "work/tiny/predictions/C/tiny.test.jsonl" in str(error.value)
    assert "remove it and run: python infer.py --preset tiny" in str(error.value)
    assert not os.path.exists("work/tiny/results.json")


def test_a_text_only_row_is_asked_of_text_systems_alone(scored):
    extra = {key: value for key, value in row(9, "ST", "it", "uno").items() if key not in ("utterance", "audio")}
    write_rows("work/rows/tiny/test.jsonl", [*ROWS, extra])
    stage.main(["--systems", "C"])
    with pytest.raises(SystemExit, match="1 rows have no prediction, first tiny/test/9"):
        stage.main(["--systems", "B"])


def test_a_system_without_predictions_names_the_command(scored):
    with pytest.raises(SystemExit, match="A.1/tiny.test.jsonl is missing; run: python infer.py --preset tiny"):
        stage.main(["--systems", "C,A.1"])
