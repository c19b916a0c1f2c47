"""data/mcif.py and metrics/mcif.py: what is asked, the XML both ways, the official protocol; real files and vectors."""
import os
import sys
import types
from collections import Counter
from xml.etree import ElementTree

import pytest
from conftest import vectors
from downloads import FIXED, definition, read_corpus, reference, sound
from test_bad_input import refused, write
from test_eval import answered, write_predictions

import eval as stage
from data import mcif as recipe
from metrics import mcif
from speech_llm.prompts import NOT_ANSWERABLE

OTHER = {  # instructions in other words
    "en": ("Write out what the English talk says.", "Given the English talk, what is your reply to this:"),
    "de": ("Übertrage die englische Aufnahme ins Deutsche.", "Nutze den englischen Inhalt für eine kurze Antwort:"),
    "it": ("Riporta in lingua italiana il contenuto inglese.", "In base all'inglese, dai una risposta breve:"),
    "zh": ("请把这段英语转换为汉语。", "听完英语后，请简短作答："),
}


@pytest.mark.parametrize("language", FIXED)
def test_all_wordings_are_understood(language):
    for whole, ask in (FIXED[language], OTHER[language]):
        assert recipe.understand(whole, language)[:2] == ("ASR" if language == "en" else "ST", None)
        assert recipe.understand(f"{ask}Is it so: A or B?\n", language)[:2] == ("SQA", "Is it so: A or B?")
    for instruction in ("Welche Übersetzung des englischen Inhalts ins Deutsche ist besser?\nA: Ja.\nB: Nein.",
                        "Transcribe the German content.", "Answer given the English content:"):
        assert recipe.understand(instruction, language)[:2] == ("MCQ", instruction)        # the surprise task, whole


# --- A test definition, its rows, and the XML that is submitted.

SAMPLES = [("en", "0", "a.wav", FIXED["en"][1] + "Who speaks?"), ("en", "1", "a.wav", FIXED["en"][0]),
           ("de", "0", "a.wav", FIXED["de"][1] + "Wer spricht?"), ("de", "3", "a.wav", FIXED["de"][0]),
           ("de", "4", "b.wav", FIXED["de"][0]), ("de", "5", "b.wav", "Welche ist besser?\nA: Ja.\nB: Nein.")]
ANSWERS = [("0", "QA", "a.wav", "Anna.", "", "A"), ("3,4", "TRANS", "a.wav,b.wav", "Ja.\nNein.", "Yes.\nNo.", "")]


@pytest.fixture
def raw(tmp_path, monkeypatch):
    """A test of two recordings, the second of them broken, in work/raw/mcif; the test runs beside work/."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "work" / "raw" / "mcif"
    for name in ("en", "de"):
        definition(folder / f"MCIF0.2.IF.short.{name}.src.fixedprompts.xml", [s for s in SAMPLES if s[0] == name])
    reference(folder / "MCIF.short.de.ref.xml.gz", ANSWERS)
    sound(folder / "MCIF_DATA/SHORT_AUDIOS/a.wav", 0.01)
    write(folder / "MCIF_DATA/SHORT_AUDIOS/b.wav", "RIFF")
    return folder


def run_recipe(work="work"):
    """Run the recipe on work/raw/mcif and return the rows."""
    recipe.main(["--incomplete", "--work", work, "--raw", "work/raw/mcif"])
    return read_corpus(work, "mcif")[0]["test"]


def test_rows_one_by_one(raw, capsys):
    definition(raw / "MCIF0.2.IF.long.en.src.fixedprompts.xml", [("en", "7", "talk.wav", "Summarize it.")], "long")
    definition(raw / "mixed" / "de.xml", [("de", "3", "a.wav", OTHER["de"][0]),
                                          ("de", "6", "a.wav", OTHER["de"][1] + "Wer fehlt?")])
    reference(raw / "MCIF.short.de.ref.xml.gz", [*ANSWERS, ("6", "QA", "a.wav", "Nicht zu beantworten.", "", "NA")])
    rows = {row.pop("id"): row for row in run_recipe()}

    def row(recording, task, language, target="-", **more):
        return {"utterance": f"mcif/{recording}", "audio": f"work/raw/mcif/MCIF_DATA/SHORT_AUDIOS/{recording}.wav",
                "task": task, "language": language, "transcript": "-", "target": target, "answerable": True, **more}
    assert rows == {
        "mcif/short/en/0": row("a", "SQA", "en", question="Who speaks?"),          # no English reference lies there
        "mcif/short/en/1": row("a", "ASR", "en"),
        "mcif/short/de/0": row("a", "SQA", "de", "Anna.", question="Wer spricht?"),
        "mcif/short/de/3": row("a", "ST", "de"), "mcif/short/de/4": row("b", "ST", "de"),
        "mcif/short/de/5": row("b", "MCQ", "de", question="Welche ist besser?\nA: Ja.\nB: Nein."),
        "mcif/short/de/6": row("a", "SQA", "de", "Nicht zu beantworten.", question="Wer fehlt?", answerable=False)}
    assert read_corpus("work", "mcif")[1] == [["test", "mcif/long/en/7", "the long track"]]
    told = capsys.readouterr().out
    for line in ("ST de: 3 instructions in 2 wordings", "1 recordings cannot be read; their rows stay",
                 "1 in test: the long track", "| test: SQA/QA de | 1 | 195 | -194 |",
                 "| test: SQA/QA de invalid | 1 | 25 | -24 |", "| test: SQA/QA en | 1 | 220 | -219 |"):
        assert line in told, line


def test_a_parquet_file_of_the_hub(raw, monkeypatch):
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is optional")
    from pyarrow import parquet
    rows = run_recipe("xml")
    for path in raw.glob("*.src.*"):
        path.unlink()
    empty = {f"prompt_{language}": None for language in FIXED}
    table = [{"id": int(name), "audio": f"MCIF_DATA/SHORT_AUDIOS/{recording}", **empty, f"prompt_{language}": text}
             for language, name, recording, text in SAMPLES]
    for track in ("short", "long"):
        (raw / f"{track}_fixedprompt").mkdir()
        parquet.write_table(pyarrow.Table.from_pylist(table), raw / f"{track}_fixedprompt" / "x.parquet")
    assert sorted(map(str, run_recipe())) == sorted(map(str, rows))
    write(raw / "short_fixedprompt" / "x.parquet", "PAR1")
    refused(run_recipe, "elsewhere", says="x.parquet is damaged")
    refused(recipe.read_table, raw / "short_fixedprompt" / "x.parquet", "iwslt26", says=recipe.DOWNLOAD["iwslt26"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refused(run_recipe, "elsewhere", says="the package pyarrow is missing: pip install pyarrow")


@pytest.mark.parametrize("make, sample, says", [
    (definition, ("de", "9", "", "Ja"), "sample '9' in 'de' has no audio_path or no instruction"),
    (definition, ("de", "../9", "a.wav", "Ja"), "sample '../9' in 'de'"),
    (definition, ("fr", "9", "a.wav", "Oui"), "sample '9' in 'fr'"),
    (definition, ("de", "3", "b.wav", OTHER["de"][0]), "sample 3 in de is ('b.wav', 'ST', None), in an earlier file"),
    (definition, ("it", "9", "..", FIXED["it"][0]), "utterance 'mcif/..' would leave its folder"),
    (reference, ("3,4", "TRANS", "a.wav,a.wav", "Ja.\nNein.", "Yes.\nNo.", ""), "4 is ST on b.wav, its reference "),
    (reference, ("3", "QA", "a.wav", "Anna.", "", "A"), "3 is ST on a.wav, its reference SQA on a.wav")])
def test_a_definition_or_reference_that_is_unlike_others_is_named(raw, make, sample, says):
    make(raw / ("x.xml" if make is definition else "MCIF.short.de.ref.xml.gz"), [sample])
    refused(run_recipe, says=says)


def test_a_recording_cannot_point_outside(raw):
    definition(raw / "x.xml", [("it", "9", "../../../etc/passwd", FIXED["it"][0])])
    assert run_recipe()[-1]["audio"] == "work/raw/mcif/passwd"


def test_the_real_references(real):
    """670 segments of talks and 220 questions in each language, 25 of them without an answer."""
    answers = recipe.read_answers(os.path.join(real, "mcif", "refs"))
    assert Counter((language, task, qa_type == "NA") for (language, _), (_, task, _, qa_type) in answers.items()) == {
        (language, *kind): count for language in ("de", "it", "zh")
        for kind, count in ((("ST", False), 670), (("SQA", False), 195), (("SQA", True), 25))}
    assert {(language, text) for (language, _), (_, _, text, qa_type) in answers.items() if qa_type == "NA"} == {
        (language, NOT_ANSWERABLE[language]) for language in ("de", "it", "zh")}


def test_what_is_written_is_what_is_read(tmp_path, capsys):
    path = str(tmp_path / "new" / "out.xml")
    texts = {"0": "a < b & \"c\" > d", "3": "", "17": "你好。\n再见", "5": " bell\x07 and \ud800\ufffe ", "6": "😀\ttab"}
    answers = {f"mcif/short/de/{name}": text for name, text in texts.items()}
    assert mcif.write_output(path, "TEAM & Co", answers | {"mcif/short/en/0": "Yes."}) == 1
    assert "6 answers, 1 of them with characters that XML cannot hold" in capsys.readouterr().out
    assert mcif.read_output(path, "short", "de") == {**texts, "5": "bell  and"}
    root = ElementTree.parse(path).getroot()
    assert (root.tag, root.attrib) == ("testset", {"name": "TEAM & Co", "type": "output"})
    assert [task.attrib for task in root] == [{"track": "short", "text_lang": lang} for lang in ("de", "en")]
    refused(mcif.read_output, path, "long", "de", says="no task long de, only")


# --- The official scores.

def score(folder, references, answers, language="de", track="short", **scorers):
    """Return the official scores of {sample: answer} against references; a scorer returns its values for any items."""
    path = reference(folder / "ref.xml", references, track, language)
    mcif.write_output(f"{folder}/out.xml", "x", {f"mcif/{track}/{language}/{n}": text for n, text in answers.items()})
    return mcif.official_scores(f"{folder}/out.xml", path, language, track, **scorers)


def ones():
    return lambda items: [1.0] * len(items)


def test_word_error_rate_by_talks(tmp_path, monkeypatch):
    """Talk 1: "one two three four" against "one two" + "tree four": 1 error of 4. Talk 2: one of two words missing."""
    monkeypatch.setattr(mcif, "english_normalizer", lambda: lambda text: text.lower().replace(".", ""))
    assert score(tmp_path, [("2,1", "ASR", "b.wav,a.wav", "One two three four.", "", ""),
                            ("7", "ASR", "c.wav", "Five. Six.", "", "")],
                 {"1": "Tree four.", "2": "One two.", "7": "six"}, "en") == ({"ASR-WER": pytest.approx(2 / 6)}, {})


def test_translations_and_answers_by_hand(tmp_path):
    """Two recordings cut a talk elsewhere than its three sentences; an empty talk becomes a full stop."""
    seen = []

    def scorer(*values):
        return lambda: lambda items: seen.append(items) or values
    scores, left_out = score(
        tmp_path, [
            ("4,5", "TRANS", "a.wav,b.wav", "Das ist gut. \nJa.\nDanke sehr.", "This is good.\n Yes.\nThank you.", ""),
            ("6", "TRANS", "c.wav", "Ende.", "End.", ""), ("0", "QA", "a.wav", "Anna.", "", "A"),
            ("1", "QA", "a.wav", NOT_ANSWERABLE["de"], "", "NA")],
        {"0": "Anna", "1": "", "4": "Das ist gut. Ja.", "5": "Danke sehr.", "6": ""},
        load_comet=scorer(0.9, 0.5, 0.7, 0.1), load_bertscore=scorer(1.0, 0.5))
    assert scores == {"TRANS-COMET": pytest.approx(0.55), "QA-BERTScore": pytest.approx(0.75)} and not left_out
    bert, comet = sorted(seen, key=len)
    assert comet == [["This is good.", "Das ist gut.", "Das ist gut."], ["Yes.", "Ja.", "Ja."],
                     ["Thank you.", "Danke sehr.", "Danke sehr."], ["End.", ".", "Ende."]]
    assert bert == [["Anna", "Anna."], ["", NOT_ANSWERABLE["de"]]]

    # Chinese is cut by characters
    talk = {"ids": ["4", "5"], "reference": "你好。\n再见 BERT。", "transcript": "Hi.\nBye, BERT."}
    assert mcif.sentence_items({"4": "你 好", "5": "再见 BERT"}, [talk], "zh") == [
        ["Hi.", "你好", "你好。"], ["Bye, BERT.", "再见BERT", "再见 BERT。"]]


def test_the_names_of_2025_and_summaries(tmp_path):
    samples = [(str(n), task, "a.wav", "Ja.", "Yes.", "") for n, task in enumerate(("SQA", "SSUM", "ST", "ACHAP"))]
    answers = dict.fromkeys("0123", "Ja.")
    assert score(tmp_path, samples, answers, track="long", load_comet=ones, load_bertscore=ones) == (
        {"QA-BERTScore": 1.0, "SUM-BERTScore": 1.0, "TRANS-COMET": 1.0}, {"ACHAP": "a task that is not scored here"})


def test_a_metric_that_lacks_its_model_is_left_out_with_the_reason(tmp_path, monkeypatch):
    def missing():
        raise FileNotFoundError("no weights; run: hf download them")
    assert score(tmp_path, ANSWERS, {"0": "A", "3": "B", "4": "C"}, load_comet=missing) == (
        {}, {"TRANS-COMET": "no weights; run: hf download them", "QA-BERTScore": "no model was given to score it"})
    monkeypatch.setitem(sys.modules, "whisper_normalizer.english", None)
    scores, left_out = score(tmp_path, [("0", "ASR", "a.wav", "Yes.", "", "")], {"0": "Yes."}, "en")
    assert not scores and "pip install whisper-normalizer==0.1.0" in left_out["ASR-WER"]
    newer = types.SimpleNamespace(EnglishTextNormalizer=lambda: lambda text: text.replace("kinda", "kind of"))
    monkeypatch.setitem(sys.modules, "whisper_normalizer.english", newer)
    with pytest.raises(ImportError, match="0.1.0"):
        mcif.english_normalizer()


def test_a_missing_answer_is_named_an_unaligned_reference_too(tmp_path):
    refused(score, tmp_path, ANSWERS, {"0": "A", "3": "B"}, says="out.xml lacks sample 4 of short de")
    with pytest.raises(SystemExit, match="samples 3 to 4: 2 lines of reference, 1 of transcript"):
        score(tmp_path, [("3,4", "TRANS", "a,b", "Ja.\nNein.", "Yes.", "")], {"3": "", "4": ""}, load_comet=ones)


def test_choices_by_hand():
    """Options seen in the reference: A, B. Of four answers "a." and "B" are well formed, and one of them is right."""
    references = [{"ids": [str(n)], "reference": right} for n, right in enumerate("AABB")]
    assert mcif.option_accuracy({"0": " a.", "1": "B", "2": "I prefer B", "3": ""}, references) == (0.5, 0.5)
    assert mcif.option_accuracy(dict.fromkeys("0123", ""), references) == (0.0, 0.0)


def test_whisper_normalisation_equals_the_organisers():
    pytest.importorskip("whisper_normalizer", reason="whisper-normalizer is optional")
    normalize, rows = mcif.english_normalizer(), vectors("whisper_norm_mcif.jsonl")
    english = [row for row in rows if row["kind"] == "english"]
    assert len(english) == 38 and all(normalize(row["text"]) == row["expected"] for row in english)
    assert normalize("dialogue colour") == "dialog color"                  # its spelling table is there
    (talks,) = [row for row in rows if row["kind"] == "mcif_asr"]
    answers = {(n, m): text for n, segments in enumerate(talks["segments"]) for m, text in enumerate(segments)}
    parts = [{"ids": [name for name in answers if name[0] == n], "reference": text}
             for n, text in enumerate(talks["references"])]
    assert mcif.talk_error_rate(answers, parts, normalize) == talks["wer"]


def test_eval_shows_the_official_scores(raw, monkeypatch, capsys):
    """Answers of C -> the XML -> a column of the table: one talk of two sentences, one question."""
    rows = run_recipe()
    answers = dict.fromkeys((row["id"] for row in rows), "")
    answers |= {"mcif/short/de/0": "Anna.", "mcif/short/de/3": "Ja.", "mcif/short/de/4": "Nein."}
    write_predictions("C", answered(rows, answers.values()), "mcif.test", "iwslt26")
    mcif.write_output("work/iwslt26/predictions/C/mcif.test.xml", "ours", answers)
    monkeypatch.setattr(stage, "load_comet", lambda c: lambda items: [float(mt == ref) for _, mt, ref in items])
    monkeypatch.setattr(stage.bertscore, "load_bertscore",
                        lambda *a: lambda items: [0.5 * (answer == right) for answer, right in items])
    stage.main(["--preset", "iwslt26", "--systems", "C", "--test_sets", "mcif.test", "--metrics", "WER"])
    told = capsys.readouterr().out
    assert "| mcif.test | TRANS-COMET | QA-BERTScore |" in told and "| 1.000 | 0.500 |" in told
    assert "mcif.test in en is not scored: no *short.en.ref.xml*" in told
