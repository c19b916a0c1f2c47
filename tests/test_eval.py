"""From predictions to results.json and results.md: scores, models that score, and predictions that do not fit."""
import json
import os
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
from test_bad_input import cases, refused, write
from test_tables import cells

import eval as stage
from eval import Config, read_predictions, with_shared_test_sets
from speech_llm.constants import configure
from speech_llm.draws import TEXT_TASK
from speech_llm.files import write_json_lines
from speech_llm.rows import write_rows


def row(n, task, language, target, answerable=True, test_set="tiny.test"):
    name = f"{test_set.replace('.', '/')}/{n}"
    return {"id": name, "utterance": name, "audio": "a.wav", "task": task, "language": language,
            "answerable": answerable, "transcript": "x", "question": "q", "target": target}


ROWS = [row(0, "ASR", "en", "one two"), row(1, "ASR", "en", "three four"), row(2, "ASR", "en", "five six"),
        row(3, "ST", "de", "eins zwei drei vier"), row(4, "ST", "zh", "一二三四"),
        row(5, "SQA", "en", "two"), row(6, "SQA", "en", "five"), row(7, "SQA", "en", "Not answerable.", False),
        row(8, "SQA", "it", "due"), row(9, "MCQ", "en", "A two")]
ANSWERS = ["one two", "three", "five six seven", "eins zwei drei vier", "一二三四", "Two.", "It is five",
           "not answerable", "tre", "two"]


def answered(rows, answers, text=False):
    """Return the predictions of a system: of one that reads `text`, all but ASR."""
    return [{"id": r["id"], "task": TEXT_TASK[r["task"]] if text else r["task"], "prediction": answer, "tokens": 3,
             "capped": not text and n == 1, "loops": not text and n < 3}
            for n, (r, answer) in enumerate(zip(rows, answers, strict=True)) if not text or r["task"] in TEXT_TASK]


def write_predictions(system, predictions, test_set="tiny.test", run="tiny"):
    write_json_lines(f"work/{run}/predictions/{system}/{test_set}.jsonl", predictions)


def write_test_set(rows, test_set="tiny.test", run="tiny", **systems):
    """Write rows and the answers of systems."""
    write_rows(f"work/rows/{test_set.replace('.', '/')}.jsonl", rows)
    for system, answers in systems.items():
        write_predictions(system, answered(rows, answers), test_set, run)


def evaluate(*arguments):
    """Run eval.py; return {(task, language, metric): (value, n)} of the last system in results.json."""
    stage.main([*arguments])
    results = json.loads(Path("work/tiny/results.json").read_text())
    assert all(list(r) == ["system", "test_set", "task", "language", "metric", "value", "n"] for r in results)
    return {(r["task"], r["language"], r["metric"]): (round(r["value"], 4), r["n"]) for r in results
            if r["system"] == results[-1]["system"]}


def notes_of(printed):
    return [line.removeprefix("- ") for line in printed.splitlines() if line.startswith("- ")]


@pytest.fixture
def scored(tmp_path, monkeypatch):
    """Enter a folder whose work/ has that test set and predictions of C (speech) and B (text)."""
    monkeypatch.chdir(tmp_path)
    write_test_set(ROWS, C=ANSWERS)
    write_predictions("B", answered(ROWS, ANSWERS, text=True))


def test_scores_of_a_test_set_its_table_and_its_curves(scored, capsys):
    """Multiple choice and questions without an answer are apart from other questions, for speech and text alike."""
    write_json_lines("work/tiny/merged/log.jsonl", [{"step": 1, "loss": 3.0}, {"step": 1, "validation_loss": 1.5}])
    assert evaluate("--systems", "B,C", "--metrics", "WER,BLEU,EM,CONTAINS,capped,loops") == {
        ("ASR", "en", "WER"): (33.3333, 3),                                           # 1 deleted + 1 inserted of 6
        ("ST", "de", "BLEU"): (100, 1), ("ST", "zh", "BLEU"): (100, 1),
        ("SQA", "en", "EM"): (50, 2), ("SQA", "en", "CONTAINS"): (100, 2), ("SQA", "en", "EM-unanswerable"): (100, 1),
        ("SQA", "it", "EM"): (0, 1), ("SQA", "it", "CONTAINS"): (0, 1),
        ("MCQ", "en", "EM"): (0, 1), ("MCQ", "en", "CONTAINS"): (0, 1),
        ("ASR", "en", "capped"): (33.3333, 3), ("ASR", "en", "loops"): (100, 3),
        **{(*group, mark): (0, n) for mark in ("capped", "loops") for *group, n in (
            ("ST", "de", 1), ("ST", "zh", 1), ("SQA", "en", 3), ("SQA", "it", 1), ("MCQ", "en", 1))}}
    markdown = Path("work/tiny/results.md").read_text()
    assert markdown in capsys.readouterr().out
    table = cells(markdown)
    b, c = table["B: LoRA, text"], table["C: projector + LoRA"]
    assert c == {"WER": "33.3", "BLEU de": "100.0", "BLEU zh": "100.0", "BLEU mean": "100.0", "EM en": "50.0",
                 "EM it": "0.0", "EM mean": "25.0", "EM MCQ": "0.0", "contains": "50.0", "unanswerable": "100.0",
                 "capped": "10.0", "loops": "30.0"}                                   # of all 10; no column is empty
    assert b == {**{name: c[name] for name in c if name != "WER"}, "capped": "0.0", "loops": "0.0"}
    assert Path("work/tiny/loss-merged.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_test_sets_that_another_page_has_decoded_into_the_folder_are_scored_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    c = configure(Config, "eval", ["--preset", "iwslt26"])
    assert with_shared_test_sets(c) == c
    write(tmp_path / "work/iwslt26/predictions/C/iwslt26.test.jsonl", "")              # by the page iwslt26_test
    write(tmp_path / "work/iwslt26/predictions/C/speech_ifeval.closed.jsonl", "")      # by the sweep: scored elsewhere
    assert with_shared_test_sets(c).test_sets == c.test_sets + ",iwslt26.test"
    c = configure(Config, "eval", ["--preset", "iwslt26", "--test_sets", "mcif.test"])
    assert with_shared_test_sets(c) == c


LINES = answered(ROWS[:4], ANSWERS[:4])


def changed(number, **values):
    """Return the text of four predictions, one of them changed; a value of ... takes its key away."""
    lines = [{**line, **values} if n == number else line for n, line in enumerate(LINES)]
    return "".join(json.dumps({key: value for key, value in line.items() if value is not ...}) + "\n" for line in lines)


ALL = changed(0)
PREDICTIONS = [
    ("empty", "", "4 rows have no prediction, first tiny/test/0"),
    ("one missing", ALL[:ALL[:-1].rindex("\n") + 1], "1 rows have no prediction, first tiny/test/3"),
    ("one twice", ALL + ALL[:ALL.index("\n") + 1], "line 5: id 'tiny/test/0' is there twice"),
    ("another test set's", changed(1, id="other/test/1"), "line 2: id 'other/test/1' is no row"),
    ("cut in a line", ALL[:-20], "line 4 is damaged"), ("no task", changed(2, task=...), "line 3 has no 'task'"),
    ("a list as id", changed(2, id=["a"]), "line 3 is not a prediction"),
    ("half a character", changed(2, prediction="\ud800"), "line 3 is not a prediction"),
    ("another task", changed(3, task="ASR"), "line 4: id 'tiny/test/3' is ST, its prediction of 'ASR'"),
    ("one from text", changed(3, task="MT"), "mixes predictions from speech and from text"),
    ("a number as mark", changed(0, loops=1), "its marks are not true or false")]


@pytest.mark.parametrize("content, says", cases(PREDICTIONS))
def test_predictions_that_do_not_fit_are_named_with_the_next_command(tmp_path, content, says):
    path = write(tmp_path / "C" / "tiny.test.jsonl", content)
    message = refused(read_predictions, path, ROWS[:4], "C", "python infer.py", names=path, says=says)
    assert message.endswith("remove it and run: python infer.py")


def test_every_row_that_a_system_is_asked_for_needs_a_prediction(scored):
    """A text-only row is asked of text systems alone; the baselines answer no questions."""
    extra = {key: value for key, value in row(10, "ST", "it", "uno").items() if key not in ("utterance", "audio")}
    speech, text = answered(ROWS, ANSWERS), answered(ROWS, ANSWERS, text=True)
    write_predictions("seamless", [p for p in speech if p["task"] in ("ASR", "ST")])
    write_predictions("seamless-text", [p for p in text if p["task"] == "MT"])
    stage.main(["--systems", "C,seamless,seamless-text"])
    write_rows("work/rows/tiny/test.jsonl", [*ROWS, extra])
    stage.main(["--systems", "C,seamless"])
    write_predictions("C", speech[:5])
    write_predictions("seamless", speech[:3])
    for system, says in (("B", "1 rows have no prediction, first tiny/test/10"),
                         ("seamless", "2 rows have no prediction, first tiny/test/3"),
                         ("C", "5 rows have no prediction, first tiny/test/5; remove it and run: python infer.py")):
        refused(stage.main, ["--systems", system], says=says)


def test_a_system_that_is_named_must_have_predictions_one_of_the_page_may_lack_them(scored, capsys):
    write_predictions("mine", answered(ROWS, ANSWERS))           # of another page, or from elsewhere: it joins
    stage.main([])
    assert notes_of(capsys.readouterr().out) == [
        f"{system} is left out on tiny.test: no predictions; run: python infer.py --preset tiny"
        for system in ("llm", "A.1")]
    assert {r["system"] for r in json.loads(Path("work/tiny/results.json").read_text())} == {"B", "C", "mine"}
    refused(stage.main, ["--systems", "C,A.1"], says="A.1/tiny.test.jsonl is missing; run: python infer.py --preset")
    refused(stage.main, ["--test_sets", "tiny"], says="--test_sets tiny: write <corpus>.<split>")
    os.rename("work", "my work")
    refused(stage.main, ["--predictions", "nothing", "--work", "my work"],
            says="nothing has no predictions; run: python infer.py --preset tiny --work 'my work'")


def test_no_system_is_asked_for_a_test_set_that_infer_skips(scored, capsys):
    """LibriSpeech has ASR alone, MCIF no transcripts, and the recipe of Spoken-SQuAD could not make a test set."""
    for test_set, task in (("librispeech.test", "ASR"), ("mcif.test", "ST")):
        write_test_set([row(0, task, "de", "eins", test_set=test_set)], test_set, C=["eins"])
        write(Path(f"work/rows/{test_set.partition('.')[0]}/config.json"), {})
    write(Path("work/rows/spokensquad/config.json"), {})
    write(Path("work/tiny/lora/config.json"), {"trained": ["lora"]})
    write_predictions("llm", answered(ROWS, ANSWERS, text=True))
    stage.main(["--systems", "llm,B,C", "--test_sets", "tiny.test,librispeech.test,mcif.test,spokensquad.test",
                "--metrics", "WER,EM", "--references", "nowhere"])
    notes = notes_of(capsys.readouterr().out)
    assert ("spokensquad.test is left out: the finished corpus in work/rows/spokensquad has no split test; its splits: "
            "none") in notes
    assert all(f"{system} is left out on librispeech.test, mcif.test: it has no task there" in notes
               for system in ("llm", "B"))


def test_another_folder_of_predictions_has_results_of_its_own(scored):
    os.rename("work/tiny/predictions", "work/tiny/predictions-150")
    stage.main(["--predictions", "predictions-150", "--systems", "C"])
    assert os.path.exists("work/tiny/results-150.json") and not os.path.exists("work/tiny/results.json")
    refused(stage.main, ["--judge_mode", "guess"], says="--judge_mode is probability or text")


def test_what_is_missing_is_named_and_the_rest_is_scored(scored, capsys, monkeypatch):
    """Without MeCab there is no BLEU into Japanese, but into German, and chrF into both. "..." has no word."""
    write_test_set([*ROWS, row(10, "ST", "ja", "今日は良い天気"), row(11, "ASR", "en", "...")],
                   C=[*ANSWERS, "今日は良い天気", "x"])
    for package in ("bert_score", "py3langid", "MeCab"):
        monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    results = evaluate("--systems", "C", "--metrics", "WER,BLEU,chrF,COMET,judge,BERTScore,language")
    assert {(metric, language) for _, language, metric in results} == {
        ("WER", "en"), ("BLEU", "de"), ("BLEU", "zh"), ("chrF", "de"), ("chrF", "zh"), ("chrF", "ja")}
    notes = notes_of(capsys.readouterr().out)
    assert len(notes) == 6
    for says in ("hf download Unbabel/wmt22-comet-da --local-dir work/models/wmt22-comet-da",
                 "python eval.py --preset tiny --judges utter-project/EuroLLM", "pip install bert-score==0.3.13",
                 "pip install py3langid", "into ja it needs MeCab; run: pip install 'sacrebleu[ja]'",
                 "1 ASR rows in en are not scored: nothing is left of their references: tiny/test/11"):
        assert sum(says in note for note in notes) == 1


def test_comet_of_a_test_set_is_a_mean_and_its_scores_stay_in_a_file(scored, monkeypatch):
    write(Path("work/comet.pt"), "")
    monkeypatch.setattr(stage.comet, "load_comet", lambda path, device: path)
    monkeypatch.setattr(stage.comet, "score", lambda model, rows: [
        0.5 if row == {"src": "x", "mt": "b", "ref": "a"} else 1 for row in rows])
    write_test_set([row(0, "ST", "de", "a"), row(1, "ST", "de", "a")], C=["a", "b"])
    for _ in range(2):
        assert evaluate("--systems", "C", "--metrics", "COMET", "--comet", "comet.pt") == {
            ("ST", "de", "COMET"): (0.75, 2)}
        monkeypatch.setattr(stage.comet, "load_comet", None)               # it is not loaded a second time


@pytest.fixture
def judges(scored, monkeypatch):
    """{judge: what it reads}: "strict" likes what holds the reference, "half" is never sure, "absent" is missing."""
    asked = {"strict": [], "half": []}

    def load(name, mode, device):
        if name == "absent":
            raise FileNotFoundError("the LLM absent is not here; run: hf download absent")

        def ask(items):
            asked[name] += items
            unsure = -100 if mode == "text" else 0.5
            return [unsure if name == "half" else int(reference in answer) for _, reference, answer in items]
        return ask
    monkeypatch.setattr(stage.judge, "load_judge", load)
    return asked


QUESTIONS = [
    {**row(0, "SQA", "en", "Rome"), "id": "spokensquad/test/0/SQA.en", "question": "Where?"},
    {**row(0, "SQA", "de", "Rom"), "id": "spokensquad/test/0/SQA.de", "question": "Wo?"},
    {**row(1, "SQA", "de", "Wien"), "id": "spokensquad/test/1/SQA.de", "question": "Und?"},           # no English row
    {**row(1, "SQA", "de", "Nein", False), "id": "spokensquad/test/1/SQA-invalid.de", "question": "Wer?"}]

JUDGED = ["--systems", "C", "--test_sets", "spokensquad.test", "--metrics", "judge", "--judges"]


def test_judges_are_averaged_and_read_the_english_reference(judges):
    """Of Spoken-SQuAD's questions, which are translations; in the tiny world every language has its own question."""
    write_test_set(QUESTIONS, "spokensquad.test", C=["In Rome.", "In Rom.", "Wien", "Nein"])
    evaluate(*JUDGED, "strict,absent,half")
    assert sorted(judges["strict"]) == [["Und?", "Wien", "Wien"], ["Where?", "Rome", "In Rome."],
                                        ["Wo?", "Rome", "In Rom."]]       # valid questions only
    markdown, _, notes = Path("work/tiny/results.md").read_text(encoding="utf-8").partition("\n\n")
    # strict: en 100, de 50; half: 50 and 50
    assert cells(markdown)["C: projector + LoRA"] == {"judge en": "75.0", "judge de": "50.0", "judge mean": "62.5",
                                                      "no verdict": "0.0"}
    assert notes_of(notes) == ["judge: the mean over probability:half, probability:strict",
                               "judge is left out: the LLM absent is not here; run: hf download absent"]

    write_test_set([{**r, "id": r["id"].replace("spokensquad", "tiny"), "utterance": "tiny/0"} for r in QUESTIONS],
                   C="????")
    evaluate("--systems", "C", "--metrics", "judge", "--judges", "strict")
    assert sorted(judges["strict"][3:]) == [["Und?", "Wien", "?"], ["Where?", "Rome", "?"], ["Wo?", "Rom", "?"]]


def test_answers_without_a_verdict_are_shown_and_left_out(judges):
    write_test_set(QUESTIONS, "spokensquad.test", C=["In Rome.", "Rome", "Wien", "Nein"])
    assert evaluate(*JUDGED, "strict,half", "--judge_mode", "text") == {
        ("SQA", language, f"{score}:text:{judge}"): (value, n) for language, n in (("en", 1), ("de", 2))
        for score, judge, value in (("judge", "strict", 100), ("unparsable", "strict", 0), ("judge", "half", 0),
                                    ("unparsable", "half", 100))}


def test_bertscore_has_a_model_a_language_and_unanswerable_questions_apart(scored, monkeypatch):
    load = Mock(return_value=lambda pairs: [1 if prediction == reference else 0.25 for prediction, reference in pairs])
    monkeypatch.setattr(stage.bertscore, "load_bertscore", load)
    write_test_set(QUESTIONS, "spokensquad.test", C=["Rome", "Rome", "Wien", "Nein"])
    results = evaluate("--systems", "C", "--test_sets", "spokensquad.test", "--metrics", "BERTScore,BERTScore-xlmr")
    assert [call.args[:3] for call in load.call_args_list] == [
        ("en", "roberta-large", 17), ("de", "bert-base-multilingual-cased", 9), ("en", "xlm-roberta-large", 17),
        ("de", "xlm-roberta-large", 17)]
    assert results == {("SQA", language, metric + part): value for metric in ("BERTScore", "BERTScore-xlmr")
                       for part, language, value in (("", "en", (1, 1)), ("", "de", (0.625, 2)),
                                                     ("-unanswerable", "de", (1, 1)))}


def test_the_paper_s_tables_follow_ours_in_results_md(scored):
    write_test_set(ROWS, "acl6060.eval", "iwslt25", C=ANSWERS)
    write_predictions("B", answered(ROWS, ANSWERS, text=True), "acl6060.eval", "iwslt25")
    stage.main(["--preset", "iwslt25_a2", "--metrics", "WER,CER,BLEU,EM"])
    ours, paper, notes = Path("work/iwslt25/results.md").read_text(encoding="utf-8").strip().split("\n\n")
    assert list(cells(ours)) == ["B: LoRA, text", "C: projector + LoRA"]        # another page's, the same folder
    assert cells(paper)["C: projector + LoRA", "ours"] == {"WER en": "33.3", "BLEU de": "100.00", "BLEU zh": "100.00"}
    assert "- A.2 is left out on acl6060.dev, acl6060.eval, covost2.test, europarlst.test, spokensquad.test: " in notes
    assert "C is left out" not in notes                                         # which is for another page to decode
