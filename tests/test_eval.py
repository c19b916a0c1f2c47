"""From predictions to results.json and results.md, models that score, and predictions that do not fit their rows."""
import json
import os
import sys
from pathlib import Path

import pytest

import eval as stage
from metrics.tables import system_table as table
from speech_llm.rows import write_rows


PARITY = Path(__file__).parents[2] / "shared" / "parity"


def test_a_language_whose_words_cannot_be_cut_is_left_out_alone(monkeypatch):
    """Japanese without MeCab: no BLEU into it, but into German and chrF into both."""
    from sacrebleu.metrics import BLEU

    def lacking(tokenize):
        if tokenize == "ja-mecab":
            raise RuntimeError("Japanese tokenization requires extra dependencies")
        return BLEU(tokenize=tokenize)
    monkeypatch.setattr("sacrebleu.metrics.BLEU", lacking)
    rows = [row(0, "ST", "ja", "今日は良い天気"), row(1, "ST", "de", "eins zwei drei vier")]
    said = {r["id"]: {"id": r["id"], "task": "ST", "prediction": r["target"]} for r in rows}
    notes = []
    found = [r for metric in ("BLEU", "chrF") for r in stage.score("C", "x.test", rows, said, metric, notes)]
    assert {(r["metric"], r["language"]): round(r["value"]) for r in found} == {
        ("BLEU", "de"): 100, ("chrF", "de"): 100, ("chrF", "ja"): 100}
    assert notes == ["BLEU is left out: into ja it needs MeCab; run: pip install 'sacrebleu[ja]'"]


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
    return [{"id": row["id"], "task": row["task"], "prediction": said, "tokens": 3, "capped": n == 1, "loops": n < 3}
            for n, (row, said) in enumerate(zip(ROWS, SAID))]


def text():
    return [{**p, "task": TEXT[p["task"]]} for p in speech() if p["task"] in TEXT]


def scores(rows, predictions, *metrics):
    """{(task, language, metric): (value, n)}"""
    found = [r for metric in metrics
             for r in stage.score("C", "tiny.test", rows, {p["id"]: p for p in predictions}, metric, [])]
    assert all(list(r) == ["system", "test_set", "task", "language", "metric", "value", "n"] for r in found)
    return {(r["task"], r["language"], r["metric"]): (round(r["value"], 1), r["n"]) for r in found}


def test_scores_of_a_test_set():
    assert scores(ROWS, speech(), "WER", "BLEU", "EM", "CONTAINS", "ROUGE-1") == {
        ("ASR", "en", "WER"): (33.3, 3),                                              # 1 deleted + 1 inserted of 6
        ("ST", "de", "BLEU"): (100.0, 1), ("ST", "zh", "BLEU"): (100.0, 1),
        ("SQA", "en", "EM"): (50.0, 2), ("SQA", "en", "CONTAINS"): (100.0, 2), ("SQA", "en", "ROUGE-1"): (100.0, 2),
        ("SQA", "en", "EM-unanswerable"): (100.0, 1),                                 # apart: n is 2 and 1, not 3
        ("SQA", "it", "EM"): (0.0, 1), ("SQA", "it", "CONTAINS"): (0.0, 1), ("SQA", "it", "ROUGE-1"): (0.0, 1)}
    assert {task for task, _, _ in scores(ROWS, text(), "WER", "BLEU", "EM")} == {"MT", "QA"}


def test_multiple_choice_is_apart_from_questions_for_speech_and_text_alike():
    rows = [row(0, "SQA", "en", "two"), row(1, "MCQ", "en", "A two")]
    for tasks, asked in ((("SQA", "MCQ"), "SQA"), (("QA", "QA"), "QA")):
        said = [{"id": r["id"], "task": task, "prediction": "two"} for r, task in zip(rows, tasks)]
        assert scores(rows, said, "EM") == {(asked, "en", "EM"): (100.0, 1), ("MCQ", "en", "EM"): (0.0, 1)}


def test_capped_and_loops_are_shares_of_all_outputs():
    assert scores(ROWS, speech(), "capped", "loops") == {
        ("ASR", "en", "capped"): (33.3, 3), ("ASR", "en", "loops"): (100.0, 3),
        **{(*group, flag): (0.0, n) for flag in ("capped", "loops")
           for *group, n in (("ST", "de", 1), ("ST", "zh", 1), ("SQA", "en", 3), ("SQA", "it", 1))}}
    before_loops = [{key: value for key, value in p.items() if key != "loops"} for p in speech()]
    assert scores(ROWS, before_loops, "loops") == {}
    results = [r for flag in ("capped", "loops")
               for r in stage.score("C", "tiny.test", ROWS, {p["id"]: p for p in speech()}, flag, [])]
    (found,) = cells(table(results, "tiny.test", ["C"])).values()
    assert found == {"capped": "11.1", "loops": "33.3"}                               # of all 9


def test_language_is_the_share_in_the_row_s_language(monkeypatch):
    monkeypatch.setattr("metrics.language.available", lambda: True)
    monkeypatch.setattr("metrics.language.share_in_language",
                        lambda texts, language: 100 * sum(language in text for text in texts) / len(texts))
    rows = [row(0, "ASR", "en", "x"), row(1, "ASR", "en", "x"), row(2, "ST", "de", "x"),
            row(3, "SQA", "it", "x"), row(4, "SQA", "it", "x", False)]
    said = [{"id": r["id"], "task": r["task"], "prediction": p}
            for r, p in zip(rows, ["the end", "das Ende", "de", "it", "it"])]
    assert scores(rows, said, "language") == {("ASR", "en", "language"): (50.0, 2),
                                              ("ST", "de", "language"): (100.0, 1),
                                              ("SQA", "it", "language"): (100.0, 2)}


def cells(markdown):
    """{name of the row: {heading: cell}}, empty cells left out; of a paper's row the name is (name, "paper")."""
    lines = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in markdown.splitlines()]
    assert all(len(line) == len(lines[0]) for line in lines)
    found, name = {}, ""
    for line in lines[2:]:
        name = line[0] or name
        key = (name, line[1]) if lines[0][1] == "" else name
        found[key] = {head: cell for head, cell in list(zip(lines[0], line))[1 + (lines[0][1] == ""):] if cell}
    return found


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


def write_predictions(system, predictions, test_set="tiny.test"):
    os.makedirs(f"work/tiny/predictions/{system}", exist_ok=True)
    with open(f"work/tiny/predictions/{system}/{test_set}.jsonl", "w", encoding="utf-8") as file:
        file.writelines((p if isinstance(p, str) else json.dumps(p, ensure_ascii=False)) + "\n" for p in predictions)


def test_table_json_and_curves(scored, capsys):
    stage.main(["--systems", "B,C"])
    with open("work/tiny/results.json") as file:
        results = json.load(file)
    with open("work/tiny/results.md", encoding="utf-8") as file:
        markdown = file.read()
    assert markdown.strip() in capsys.readouterr().out
    assert markdown.strip() == table(results, "tiny.test", ["B", "C"])              # from results.json alone
    found = cells(markdown)
    b, c = found["B: LoRA, text"], found["C: projector + LoRA"]
    assert c == {"WER": "33.3", "CER": c["CER"], "BLEU de": "100.0", "BLEU zh": "100.0", "BLEU mean": "100.0",
                 "EM en": "50.0", "EM it": "0.0", "EM mean": "25.0", "contains": "50.0", "ROUGE-1": "50.0",
                 "unanswerable": "100.0", "capped": "11.1", "loops": "33.3"}          # and no column is empty
    assert b == {**{name: c[name] for name in c if name not in ("WER", "CER")}, "capped": "0.0", "loops": "0.0"}
    with open("work/tiny/loss-merged.png", "rb") as file:
        assert file.read(8) == b"\x89PNG\r\n\x1a\n"


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


def test_a_named_system_must_have_predictions(scored):
    with pytest.raises(SystemExit, match="A.1/tiny.test.jsonl is missing; run: python infer.py --preset tiny"):
        stage.main(["--systems", "C,A.1"])


def test_a_system_of_the_preset_may_lack_predictions(scored, capsys):
    write_predictions("C-short", speech())               # another preset's, in the same folder: it joins
    write_predictions("mine", speech())                  # not the paper's: only where it is named
    stage.main([])
    printed = capsys.readouterr().out
    for system in ("llm", "A.1", "A.2"):
        assert f"- {system} is left out on tiny.test: no predictions; run: python infer.py --preset tiny\n" in printed
    assert printed.count("is left out") == 3
    with open("work/tiny/results.json") as file:
        assert {r["system"] for r in json.load(file)} == {"B", "C", "C-short"}


def test_without_any_predictions_the_next_command_is_named(scored):
    with pytest.raises(SystemExit, match="nothing has no predictions; run: python infer.py --preset tiny"):
        stage.main(["--predictions", "nothing"])


def test_another_folder_of_predictions_has_results_of_its_own(scored):
    os.rename("work/tiny/predictions", "work/tiny/predictions-150")
    stage.main(["--predictions", "predictions-150", "--systems", "C"])
    assert os.path.exists("work/tiny/results-150.json") and not os.path.exists("work/tiny/results.json")


def test_baselines_answer_no_questions(scored):
    write_predictions("seamless", [p for p in speech() if p["task"] in ("ASR", "ST")])
    write_predictions("seamless-text", [p for p in text() if p["task"] == "MT"])
    stage.main(["--systems", "seamless,seamless-text"])
    write_predictions("seamless", [p for p in speech() if p["task"] == "ASR"])
    with pytest.raises(SystemExit, match="2 rows have no prediction, first tiny/test/3"):
        stage.main(["--systems", "seamless"])


@pytest.mark.parametrize("arguments", [["--metrics", "WER,BLUE"], ["--judge_mode", "guess"]])
def test_unknown_choices_are_refused(scored, arguments):
    with pytest.raises(SystemExit, match="BLEU.*probability or text"):
        stage.main(arguments)


# --- Models that score.

def test_what_is_missing_is_named_and_the_rest_is_scored(scored, capsys, monkeypatch):
    monkeypatch.setattr("metrics.language.available", lambda: False)
    monkeypatch.setitem(sys.modules, "bert_score", None)
    stage.main(["--systems", "C", "--metrics", "WER,COMET,judge,BERTScore,language"])
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("- ")]
    assert len(notes) == 4 and all(" is left out: " in note for note in notes)
    for command in ("hf download Unbabel/wmt22-comet-da --local-dir work/models/wmt22-comet-da",
                    "python eval.py --preset tiny --judges utter-project/EuroLLM", "pip install bert-score==0.3.13",
                    "pip install py3langid"):
        assert sum(command in note for note in notes) == 1
    with open("work/tiny/results.json") as file:
        assert {r["metric"] for r in json.load(file)} == {"WER"}


def test_comet_of_a_test_set(scored, monkeypatch):
    if not (PARITY / "comet_tiny").exists():
        pytest.skip(f"no tiny COMET models at {PARITY}")
    monkeypatch.setitem(stage.comet.ENCODERS, "regression", str(PARITY / "comet_tiny" / "encoder"))
    expected = json.loads((PARITY / "comet_tiny" / "expected.json").read_text(encoding="utf-8"))["da_sparsemax"]
    both = [(item, score) for item, score in zip(expected["data"], expected["scores"]) if item["src"]]
    rows = [{**row(n, "ST", "de", item["ref"]), "transcript": item["src"]} for n, (item, _) in enumerate(both)]
    write_rows("work/rows/tiny/test.jsonl", rows)
    said = [{"id": r["id"], "task": "ST", "prediction": item["mt"]} for r, (item, _) in zip(rows, both)]
    write_predictions("C", said)
    arguments = ["--systems", "C", "--metrics", "COMET", "--comet", str(PARITY / "comet_tiny" / "da_sparsemax.pt")]
    stage.main(arguments)
    wanted = sum(score for _, score in both) / len(both)
    for _ in range(2):
        with open("work/tiny/results.json") as file:
            (result,) = json.load(file)
        assert result["value"] == pytest.approx(wanted, abs=1e-6) and (result["metric"], result["n"]) == ("COMET", 4)
        monkeypatch.setattr(stage.comet, "load_comet", None)               # it is not loaded a second time
        stage.main(arguments)


@pytest.fixture
def judges(monkeypatch):
    """Two judges without a model: one finds right what holds the reference, one is never sure -> what they read."""
    seen = {"strict": [], "half": []}

    def load(name, mode, device):
        def ask(items):
            seen[name] += items
            if mode == "text":
                return [-100 if name == "half" else int(golden in said) for _, golden, said in items]
            return [0.5 if name == "half" else float(golden in said) for _, golden, said in items]
        return ask
    monkeypatch.setattr(stage.judge, "load_judge", load)
    return seen


TWINS = [{**row(0, "SQA", "en", "Rome"), "id": "spokensquad/test/0/SQA.en", "question": "Where?"},
         {**row(0, "SQA", "de", "Rom"), "id": "spokensquad/test/0/SQA.de", "question": "Wo?"},
         {**row(1, "SQA", "de", "Wien"), "id": "spokensquad/test/1/SQA.de", "question": "Und?"},      # no English row
         {**row(1, "SQA", "de", "Nein", False), "id": "spokensquad/test/1/SQA-invalid.de", "question": "Wer?"}]


def said(*answers):
    return [{"id": r["id"], "task": "SQA", "prediction": answer} for r, answer in zip(TWINS, answers, strict=True)]


def ask_judges(*more):
    stage.main(["--systems", "C", "--test_sets", "spokensquad.test", "--metrics", "judge", "--judges", *more])


def test_judges_are_averaged_and_read_the_english_reference(scored, judges, capsys):
    write_rows("work/rows/spokensquad/test.jsonl", TWINS)
    write_predictions("C", said("In Rome.", "In Rom.", "Wien", "Nein"), "spokensquad.test")
    ask_judges("strict,half")
    assert sorted(judges["strict"]) == [["Und?", "Wien", "Wien"], ["Where?", "Rome", "In Rome."],
                                        ["Wo?", "Rome", "In Rom."]]       # valid questions only
    with open("work/tiny/results.md", encoding="utf-8") as file:
        markdown, _, notes = file.read().partition("\n\n")
    # strict: en 100, de 50; half: 50 and 50
    assert cells(markdown)["C: projector + LoRA"] == {"judge en": "75.0", "judge de": "50.0", "judge mean": "62.5",
                                                      "no verdict": "0.0"}
    assert notes == "- judge: the mean over probability:half, probability:strict\n"


def test_questions_that_are_no_translations_have_their_own_reference(scored, judges):
    """In the tiny world every language has a question of its own."""
    rows = [{**r, "id": r["id"].replace("spokensquad", "tiny"), "utterance": "tiny/0"} for r in TWINS]
    write_rows("work/rows/tiny/test.jsonl", rows)
    write_predictions("C", [{"id": r["id"], "task": "SQA", "prediction": "?"} for r in rows])
    stage.main(["--systems", "C", "--metrics", "judge", "--judges", "strict"])
    assert sorted(judges["strict"]) == [["Und?", "Wien", "?"], ["Where?", "Rome", "?"], ["Wo?", "Rom", "?"]]


def test_answers_without_a_verdict_are_shown_and_left_out(scored, judges):
    write_rows("work/rows/spokensquad/test.jsonl", TWINS)
    write_predictions("C", said("In Rome.", "Rome", "Wien", "Nein"), "spokensquad.test")
    ask_judges("strict,half", "--judge_mode", "text")
    with open("work/tiny/results.json") as file:
        found = {(r["metric"], r["language"]): (r["value"], r["n"]) for r in json.load(file)}
    assert found == {("judge:text:strict", "en"): (100.0, 1), ("judge:text:strict", "de"): (100.0, 2),
                     ("unparsable:text:strict", "en"): (0.0, 1), ("unparsable:text:strict", "de"): (0.0, 2),
                     ("judge:text:half", "en"): (0.0, 1), ("judge:text:half", "de"): (0.0, 2),
                     ("unparsable:text:half", "en"): (100.0, 1), ("unparsable:text:half", "de"): (100.0, 2)}


def test_an_answer_is_judged_once(scored, judges, monkeypatch):
    write_rows("work/rows/spokensquad/test.jsonl", TWINS)
    write_predictions("C", said("Rome", "Rom", "Wien", "Nein"), "spokensquad.test")
    monkeypatch.setattr(stage, "BATCH", 1)
    load, calls = stage.judge.load_judge, []

    def killed(*model):
        ask = load(*model)

        def answers(items):
            calls.append(items)
            if len(calls) == 3:
                raise KeyboardInterrupt
            return ask(items)
        return answers
    monkeypatch.setattr(stage.judge, "load_judge", killed)
    with pytest.raises(KeyboardInterrupt):
        ask_judges("strict")
    assert len(judges["strict"]) == 2
    ask_judges("strict")
    assert len(judges["strict"]) == 3                    # it went on
    ask_judges("strict")
    write_predictions("C", said("Rome", "Mailand", "Wien", "Nein"), "spokensquad.test")
    ask_judges("strict")
    assert len(judges["strict"]) == 4 and judges["strict"][-1] == ["Wo?", "Rome", "Mailand"]


def test_a_judge_that_is_not_here_leaves_the_others(scored, judges, monkeypatch, capsys):
    load = stage.judge.load_judge

    def absent(name, mode, device):
        if name == "half":
            raise FileNotFoundError("the LLM half is not here; run: hf download half")
        return load(name, mode, device)
    monkeypatch.setattr(stage.judge, "load_judge", absent)
    write_rows("work/rows/spokensquad/test.jsonl", TWINS)
    write_predictions("C", said("Rome", "Rom", "Wien", "Nein"), "spokensquad.test")
    ask_judges("strict,half")
    printed = capsys.readouterr().out
    assert "- judge: the mean over probability:strict\n" in printed
    assert "- judge is left out: the LLM half is not here; run: hf download half\n" in printed


def test_bertscore_has_a_model_a_language_and_unanswerable_questions_apart(scored, monkeypatch):
    loaded = []

    def load(language, model, layer, device):
        loaded.append((language, model, layer))
        return lambda pairs: [1.0 if prediction == reference else 0.25 for prediction, reference in pairs]
    monkeypatch.setattr(stage.bertscore, "load_bertscore", load)
    monkeypatch.setattr(stage, "BATCH", 1)
    write_rows("work/rows/spokensquad/test.jsonl", TWINS)
    write_predictions("C", said("Rome", "Rome", "Wien", "Nein"), "spokensquad.test")
    stage.main(["--systems", "C", "--test_sets", "spokensquad.test", "--metrics", "BERTScore,BERTScore-xlmr"])
    assert loaded == [("en", "roberta-large", 17), ("de", "bert-base-multilingual-cased", 9),
                      ("en", "xlm-roberta-large", 17), ("de", "xlm-roberta-large", 17)]
    with open("work/tiny/results.json") as file:
        found = {(r["metric"], r["language"]): (r["value"], r["n"]) for r in json.load(file)}
    one = {("", "en"): (1.0, 1), ("", "de"): (0.625, 2), ("-unanswerable", "de"): (1.0, 1)}
    assert found == {(metric + part, language): value for metric in ("BERTScore", "BERTScore-xlmr")
                     for (part, language), value in one.items()}


def test_the_paper_s_tables_follow_ours_in_results_md(scored):
    os.makedirs("work/iwslt25")
    os.rename("work/tiny/predictions", "work/iwslt25/predictions")
    for system in ("B", "C"):
        os.rename(f"work/iwslt25/predictions/{system}/tiny.test.jsonl",
                  f"work/iwslt25/predictions/{system}/acl6060.eval.jsonl")
    write_rows("work/rows/acl6060/eval.jsonl", ROWS)
    stage.main(["--preset", "iwslt25-a2", "--metrics", "WER,CER,BLEU,EM"])
    with open("work/iwslt25/results.md", encoding="utf-8") as file:
        ours, paper, notes = file.read().strip().split("\n\n")
    assert list(cells(ours)) == ["B: LoRA, text", "C: projector + LoRA"]        # another preset's, the same folder
    assert cells(paper)["C: projector + LoRA", "ours"] == {"WER en": "33.3", "BLEU de": "100.00", "BLEU zh": "100.00"}
    assert "- A.2 is left out on acl6060.dev, acl6060.eval, covost2.test, europarlst.test, spokensquad.test: " in notes
    assert "- C is left out on acl6060.dev, covost2.test, europarlst.test, spokensquad.test: no predictions" in notes


# --- The listeners.

def test_the_listeners_test_set_in_results_md(scored):
    """ASR in three languages, translation into English, spoken questions; predictions of C and of the cascade."""
    rows = [{**row(n, task, language, target), "id": f"tiny-listeners/test/{n}", "utterance": f"tiny-listeners/{n}"}
            for n, (task, language, target) in enumerate([
                ("ASR", "de", "eins zwei"), ("ASR", "zh", "一二三四"), ("ST", "en", "one two three four"),
                ("SQA", "it", "due")])]
    write_rows("work/rows/tiny-listeners/test.jsonl", rows)
    for system, said in (("C", ["eins drei", "一二三", "one two three four", "due"]),
                         ("cascade", ["eins zwei", "一二三四", "one", "tre"])):
        os.makedirs(f"work/tiny-listeners/predictions/{system}")
        with open(f"work/tiny-listeners/predictions/{system}/tiny-listeners.test.jsonl", "w") as file:
            file.writelines(json.dumps({"id": r["id"], "task": r["task"], "prediction": p, "capped": False}) + "\n"
                            for r, p in zip(rows, said))
    stage.main(["--preset", "tiny-listeners"])
    text = Path("work/tiny-listeners/results.md").read_text()
    assert "| de | 1 | 0.0 | 50.0 |\n| zh | 1 | 0.0 | 25.0 |\n| mean |  | 0.0 | 37.5 |" in text
    assert "paper" not in text                              # which has other test sets
    names = "cascade: Whisper, then the LLM | C: projector + LoRA"
    assert f"| BLEU | rows | {names} |\n|---|---|---|---|\n| en | 1 |" in text
    assert "| EM | rows |" in text and "| it | 1 | 0.0 | 100.0 |" in text and "llm is left out" in text


# --- LoRA at other strengths.

def test_the_curve_over_lora_s_scale(scored, capsys, monkeypatch):
    drawn = []
    monkeypatch.setattr(stage, "plot_curve", lambda *arguments: drawn.append(arguments))
    write_predictions("C@0.125", [{**p, "prediction": "one"} for p in speech()])
    write_predictions("C@0", speech())
    os.makedirs("work/tiny/speech_ifeval")
    Path("work/tiny/speech_ifeval/C@0.json").write_text(json.dumps({"closed": 70, "tasks": {}, "constraints": {}}))
    stage.main([])
    ((points, path, title),) = drawn
    assert path == "work/tiny/scale-C.png" and title == "C"
    by_scale = {p.pop("scale"): p for p in points}
    assert by_scale.keys() == {0, 0.125, 1} and by_scale[0].pop("closed") == 70 and by_scale[0] == by_scale[1]
    assert by_scale[1]["WER"] == pytest.approx(100 / 3) and by_scale[1]["BLEU"] == pytest.approx(100)
    assert by_scale[0.125]["WER"] > 50 and "closed" not in by_scale[1]
    printed = capsys.readouterr().out
    assert "| C@0.125 |" in printed and "curves over LoRA's scale in\nwork/tiny/scale-C.png" in printed
    assert "lacks work/tiny/speech_ifeval/C@0.125.json; run metrics/speech_ifeval.py" in printed
