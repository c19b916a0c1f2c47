"""speech_llm/rows.py: what is written is what is read, and every defect is named."""
import json

import pytest
from test_bad_input import refused

from speech_llm.index import open_index
from speech_llm.rows import corpus_of, read_rows, source_language, write_rows

ROW = {"id": "tiny/test/1/SQA.de", "utterance": "tiny/test/1", "audio": "1.wav", "start": 0, "end": 1.5,
       "task": "SQA", "language": "de", "answerable": False, "transcript": "Anna has a cat.",
       "question": "Wer hat ein 狗?", "target": "Nicht beantwortbar."}


def test_rows_come_back_as_written(tmp_path):
    path = tmp_path / "rows" / "tiny" / "test.jsonl"
    text = {"id": "tiny/test/2", "task": "ST", "language": "zh", "transcript": "A cat.", "target": "一只猫。"}
    write_rows(path, [ROW, text])
    assert read_rows(path) == [ROW, {**text, "answerable": True}]     # true unless a row says otherwise
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2 and "一只猫。" in lines[1]
    assert corpus_of(ROW) == "tiny"
    assert source_language(ROW) == "en" and source_language({"id": "covost2-de_en/1/ST.en"}) == "de"


def test_texts_are_composed_and_names_stay(tmp_path):
    """The letter ö as one character (NFC) or as o and two dots (NFD) is the same text, whoever wrote the row."""
    composed, decomposed = "Größe", "Gro\u0308ße"
    row = {**ROW, "audio": f"{decomposed}.wav", "transcript": decomposed, "question": decomposed, "target": decomposed}
    read = {**row, "transcript": composed, "question": composed, "target": composed}
    write_rows(tmp_path / "a.jsonl", [row])
    assert json.loads((tmp_path / "a.jsonl").read_text(encoding="utf-8")) == read
    (tmp_path / "b.jsonl").write_text(json.dumps(row))                # a user's own file
    assert read_rows(tmp_path / "b.jsonl") == [read]


DEFECTS = [  # what is changed in ROW, ... takes a key away; more names that leave their folder: test_security.py
    (dict(id=7), "id must be a text"), (dict(id=...), "no id"), (dict(task="sqa"), "unknown task 'sqa'"),
    (dict(language="DE"), "unknown language 'DE'"), (dict(target=" "), "target must be a text that is not empty"),
    (dict(question=...), "SQA without a question"), (dict(task="MCQ", question=...), "MCQ without a question"),
    (dict(question={}), "question must be a text"), (dict(audio=...), "utterance without audio"),
    (dict(utterance=...), "audio without utterance"), (dict(end=...), "start and end come together"),
    (dict(end=0), "start 0 and end 0 are no slice"), (dict(start=-1), "start -1 and end 1.5 are no slice"),
    (dict(start=True), "start must be a number"), (dict(end=float("nan")), "end must be a number"),
    (dict(answerable=1), "answerable must be true or false"), (dict(speaker="Bob"), "unknown key 'speaker'"),
    (dict(id="/etc/passwd"), "would leave its folder"), (dict(utterance="tiny/\u202e"), "a control character"),
    (dict(target="\udfff"), "target holds half a character"),
]


@pytest.mark.parametrize("change, message", DEFECTS)
def test_a_defect_is_named_with_file_line_row_and_command(tmp_path, change, message):
    row = {key: value for key, value in {**ROW, **change}.items() if value is not ...}
    path = tmp_path / "tiny" / "train.jsonl"
    path.parent.mkdir()
    path.write_text(json.dumps({**ROW, "id": "tiny/0"}) + "\n" + json.dumps(row) + "\n", encoding="utf-8")
    for attempt in (lambda: read_rows(path), lambda: write_rows(path, [{**ROW, "id": "tiny/0"}, row])):
        text = refused(attempt, names=path, says=message)
        assert "line 2" in text and repr(row.get("id")) in text and "python -m data.tiny" in text


LINE = json.dumps(ROW).encode()


@pytest.mark.parametrize("second, message", [
    (b"", "line 2: not JSON"), (LINE * 2, "line 2: not JSON"), (b"[1, 2]", "line 2, row None: not a JSON object"),
    (LINE.replace(b'"start": 0', b'"start": 1' + b"0" * 400), "are no slice"),
    (LINE.replace(b"1.5", b"1e999"), "end must be a number of seconds, got inf"),
    (LINE, "line 2, row 'tiny/test/1/SQA.de': duplicate id"),
    (LINE.replace(b"SQA.de", b"b").replace(b"1.wav", b"2.wav"), "has another audio, start or end")])
def test_a_broken_line_is_named(tmp_path, second, message):
    path = tmp_path / "train.jsonl"
    path.write_bytes(LINE + b"\n" + second + b"\n")
    for read in (read_rows, open_index):
        refused(read, path, says=message)


def test_a_changed_file_is_indexed_anew(tmp_path):
    path, other = tmp_path / "train.jsonl", LINE.replace(b"SQA.de", b"b").replace(b'"SQA"', b'"ASR"')
    path.write_bytes(LINE + b"\n")
    assert len(open_index(path)[0]) == len(open_index(path)[0]) == 1
    path.write_bytes(LINE + b"\n" + other)
    assert [kind.task for kind in open_index(path)[1]] == ["SQA", "ASR"] and len(open_index(path)[0]) == 2


def test_a_missing_file_names_the_recipe(tmp_path):
    refused(read_rows, tmp_path / "covost2" / "test.jsonl", says="run: python -m data.covost2")
    refused(read_rows, tmp_path, says="is missing")                   # a folder is no file
