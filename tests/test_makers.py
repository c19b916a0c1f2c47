"""The makers of data/ (translate, quality, speak, rewrite) on random models."""
import json
import os
import re
from collections import Counter
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import soundfile
import torch
import transformers
from conftest import PARITY, reference
from test_bad_input import refused

from data import quality, rewrite, speak, translate
from metrics import comet
from speech_llm.llm import load_llm
from speech_llm.rows import read_rows, write_rows

COMET = PARITY / "comet_tiny"
TEXTS = ["Anna bought two books in Rome.", "Rome.", "The concert in Paris is on Friday, said Peter to Maria.",
         "We need eight bottles by Sunday.", "Who works there?", "Rome.", "The train from Oslo to Milan leaves."]


def kiwi():
    """Return pairs and the scores that unbabel-comet gave them with a tiny CometKiwi."""
    expected = json.loads(reference(COMET / "expected.json").read_text(encoding="utf-8"))["kiwi_softmax"]
    return [[row["src"], row["mt"]] for row in expected["data"]], expected["scores"]


@pytest.fixture(autouse=True)
def small(tmp_path, monkeypatch):
    """Random models do not know when to stop, and the tiny CometKiwi brings its encoder along."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(translate, "MAX_TOKENS", 16)
    monkeypatch.setattr(speak, "MAX_TOKENS", 16)
    for kind in ("unified", "regression"):
        monkeypatch.setitem(comet.ENCODERS, kind, COMET / "encoder")


def waves(paths):
    return {name: path and soundfile.read(path, dtype="int16")[0].tolist() for name, path in paths.items()}


NAMED = {f"x/train/{n}": text for n, text in enumerate(TEXTS)}
ROWS = [{"id": "x/1/ASR.en", "task": "ASR", "language": "en", "transcript": TEXTS[0], "target": TEXTS[0].upper()},
        {"id": "x/1/SQA.en", "task": "SQA", "language": "en", "transcript": TEXTS[0], "question": "Who works there?",
         "target": "Rome."},
        {"id": "x/2/SQA.en", "task": "SQA", "language": "en", "transcript": TEXTS[2], "question": "Rome.",
         "answerable": False, "target": "Not answerable."}]

MAKERS = {  # name: (run(fixture of an LLM, folder, batch), where the function that loads the model is)
    "translate": (lambda llm, folder, batch: translate.translate(TEXTS, "it", llm("seamless"), f"{folder}/x", batch),
                  translate, "load_seamless"),
    "quality": (lambda _, folder, batch: quality.quality(kiwi()[0], str(COMET / "kiwi_softmax.pt"), f"{folder}/x",
                                                         batch), comet, "load_comet"),
    "speak": (lambda llm, folder, batch: waves(speak.speak(NAMED, folder, llm("seamless"), 0, batch, "de")),
              speak, "load_seamless"),
    "rewrite": (lambda llm, folder, batch: rewrite.generate(TEXTS, llm("llama"), f"{folder}/x", batch, 6),
                rewrite, "load_llm")}


@pytest.mark.parametrize("maker", MAKERS)
def test_a_batch_is_as_its_parts_and_a_finished_run_loads_no_model(maker, request, monkeypatch, capsys):
    run, module, load = MAKERS[maker]
    together, alone = (run(request.getfixturevalue, f"of-{batch}", batch) for batch in (4, 1))
    if maker == "quality":
        assert together == pytest.approx(alone, abs=1e-6) and together == pytest.approx(kiwi()[1], abs=1e-6)
    else:
        assert together == alone
        lengths = {len(one) for one in (together.values() if maker == "speak" else together) if one}
        assert len(lengths) > 3                          # so a batch was padded
    if maker == "translate":
        assert re.match(r"7 texts translated to it; cut at 16 tokens: [1-6] sources, ", capsys.readouterr().out)
    monkeypatch.setattr(module, load, None)
    assert run(request.getfixturevalue, "of-1", 1) == alone


def test_a_capped_translation_is_counted_and_an_empty_one_is_not(seamless):
    model, tokenizer = translate.load_seamless(transformers.SeamlessM4Tv2ForTextToText, seamless)
    model.generate = Mock(return_value=torch.tensor(
        [[3, 502, 3, 0, 0], [3, 502, 60, 61, 62], [3, 502, 60, 61, 3]]))
    batch = translate.translate_batch(model, tokenizer, ["a </s> b", "Rome. __deu__", "c"], "de")
    assert [(bool(result["text"]), result["capped"]) for result in batch] == [
        (False, False), (True, True), (True, False)]
    asked = model.generate.call_args.kwargs
    assert (asked["input_ids"] == 3).sum(1).tolist() == [1, 1, 1]        # </s> inside a text is text
    assert (asked["input_ids"] > 500).sum(1).tolist() == [1, 1, 1]       # __eng__ and no other
    assert asked["num_beams"] == 5 and asked["do_sample"] is False


def test_translated_rows_of_a_file(seamless, monkeypatch):
    german = {TEXTS[0]: "Anna kaufte zwei Bücher.", "Who works there?": "Wer arbeitet dort?", "Rome.": "Rom."}
    monkeypatch.setattr(translate, "translate_batch", lambda model, tokenizer, texts, language: [
        {"text": german[text], "cut": False, "capped": False} for text in texts])
    write_rows("en.jsonl", ROWS)
    command = ["--rows", "en.jsonl", "--language", "de", "--out", "de.jsonl", "--seamless", seamless]
    translate.main(command)
    translated = read_rows("de.jsonl")
    assert [(row["id"], row.get("question"), row["target"], row["answerable"]) for row in translated] == [
        ("x/1/ST.de", None, "Anna kaufte zwei Bücher.", True), ("x/1/SQA.de", "Wer arbeitet dort?", "Rom.", True),
        ("x/2/SQA.de", "Rom.", "Nicht zu beantworten.", False)]

    german["Who works there?"] = ""
    os.remove("de.jsonl.results")
    translate.main(command)
    assert [row["id"] for row in read_rows("de.jsonl")] == ["x/1/ST.de", "x/2/SQA.de"]
    assert Path("de.jsonl.dropped.txt").read_text() == "x/1/SQA.de empty translation: question\n"
    refused(translate.translate_rows, read_rows("de.jsonl"), "it", seamless, "", says="only English rows")


def test_both_question_and_answer_must_be_good(monkeypatch):
    """An ST row has one text; the answer of a question that has none is no translation."""
    scores = {"good": 0.85, "bad": 0.8499}
    monkeypatch.setattr(quality, "quality", lambda pairs, *_: [scores[text] for _, text in pairs])
    english, german = [], []
    for name, question, answer in (("0/SQA", "good", "good"), ("1/SQA", "bad", "good"), ("2/SQA", "good", "bad"),
                                   ("3/SQA", "bad", "bad"), ("2/SQA-invalid", "good", "bad")):
        english.append({**ROWS[1], "id": f"x/{name}.en", "answerable": "invalid" not in name})
        german.append({**english[-1], "id": f"x/{name}.de", "language": "de", "question": question, "target": answer})
    german += [{"id": f"x/{text}/ST.de", "task": "ST", "language": "de", "transcript": "t", "target": text}
               for text in scores]
    write_rows("en.jsonl", english)
    write_rows("de.jsonl", german)
    quality.main(["--rows", "de.jsonl", "--source", "en.jsonl", "--out", "good.jsonl"])
    assert [row["id"] for row in read_rows("good.jsonl")] == ["x/0/SQA.de", "x/2/SQA-invalid.de", "x/good/ST.de"]
    assert "x/3/SQA.de below 0.85: question 0.850, target 0.850\n" in Path("good.jsonl.dropped.txt").read_text()
    refused(quality.good_rows, read_rows("de.jsonl"), english[1:], "", "", says="x/0/SQA.de")
    refused(quality.write_made, "none.jsonl", [], [("x", "bad")], says="no row is left")


def test_a_model_that_cannot_score():
    model = str(reference(COMET / "da_sparsemax.pt"))
    refused(quality.quality, [["a", "b"]], model, "x.jsonl", says="needs reference translations")


def test_each_speaker_as_transformers_speaks_alone(seamless):
    """The wave of a text in a voice is that of transformers for the one text and the one voice."""
    model, tokenizer = translate.load_seamless(transformers.SeamlessM4Tv2ForTextToSpeech, seamless)
    words = speak.rewrite_batch(model, tokenizer, TEXTS)
    ended = [n for n, ids in enumerate(words) if 0 < len(ids) < 14]
    assert len({len(words[n]) for n in ended}) > 1       # texts of several lengths shared a batch
    for n in ended:
        inputs, waves_of = tokenizer(TEXTS[n], src_lang="eng", return_tensors="pt"), []
        for speaker in (0, 1):
            wave, length = model.generate(**inputs, tgt_lang="eng", speaker_id=speaker, text_max_new_tokens=16)
            waves_of.append(speak.text_to_wave(model, tokenizer, TEXTS[n], words[n], speaker))
            assert np.array_equal(waves_of[-1], wave[0, :int(length)].numpy())
        assert not np.array_equal(*waves_of)


def test_voices_depend_on_seed_and_name_alone(seamless, capsys):
    """A random model says anything but the text, which is counted: words are compared without marks and capitals."""
    first, other = (waves(speak.speak(NAMED, f"seed-{seed}", seamless, seed=seed)) for seed in (0, 1))
    spoken = sum(map(bool, first.values()))
    told = capsys.readouterr().out.splitlines()[0]
    assert f"{spoken} of 7 texts spoken" in told and f"{spoken} of them in other" in told and first != other
    assert speak.bare("It's the U.S.A., isn't it?") == speak.bare("IT’S the u.s.a. isn't  it")
    drawn = Counter(speak.draw_speaker(0, f"x/{n}", 200) for n in range(4000))
    assert len(drawn) == 200 and max(drawn.values()) < 45    # 20 each are expected, 45 would be 5 deviations off
    for share, voices in (((0.0, 0.8), {0, 1, 2, 3}), ((0.8, 1.0), {4})):                        # of five
        assert {speak.draw_speaker(0, f"x/{n}", 5, share) for n in range(100)} == voices


def test_spoken_rows_of_a_file(seamless, monkeypatch, capsys):
    bad = {"Rome.": np.zeros(500, np.float32), "Not a number.": np.full(500, np.nan), "Nothing.": np.zeros(0)}
    tone = np.sin(np.arange(1600) / 5).astype(np.float32) / 2
    monkeypatch.setattr(speak, "text_to_wave", lambda model, tokenizer, text, *_: bad.get(text, tone))
    monkeypatch.setattr(speak, "rewrite_batch", lambda model, tokenizer, texts, language: [
        [] if text == "Who works there?" else tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts])
    rows = [{"id": f"x/{n}/ASR.en", "task": "ASR", "language": "en", "transcript": text, "target": text}
            for n, text in enumerate([TEXTS[0], *bad, "Who works there?"])]
    rows.append({**rows[0], "id": "x/0/ST.de", "task": "ST", "language": "de", "target": "Anna."})
    rows.append({**rows[0], "id": "x/9/ASR.en", "utterance": "x/9", "audio": "there.wav"})
    write_rows("in.jsonl", rows)
    speak.main(["--rows", "in.jsonl", "--out", "out.jsonl", "--folder", "audio", "--seamless", seamless])
    spoken, flac = [(row["id"], row["utterance"], row["audio"]) for row in read_rows("out.jsonl")], "audio/x/0.flac"
    assert spoken == [("x/0/ASR.en", "x/0", flac), ("x/0/ST.de", "x/0", flac), ("x/9/ASR.en", "x/9", "there.wav")]
    wave, rate = soundfile.read(flac)
    assert rate == 16000 and np.allclose(wave, tone, atol=1e-4) and os.listdir("audio/x") == ["0.flac"]
    out = capsys.readouterr().out
    assert "1 of 5 texts spoken" in out and "0 of them in other words" in out and "4: could not be spoken" in out
    os.remove(flac)
    refused(speak.speak_rows, rows, "audio", seamless, says="spoken.jsonl")
    rows[-2]["transcript"] = "Other words."
    refused(speak.speak_rows, rows, "audio", seamless, says="another transcript")


def test_chat_format_and_ends(llama):
    """An answer ends with any of the three marks that end a turn; one that none ends is capped."""
    llm, tokenizer = load_llm(llama, torch.device("cpu"))
    text_end, other_end, end = tokenizer.convert_tokens_to_ids(["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"])
    hello = tokenizer.encode("Hello", add_special_tokens=False)
    answers = [[*hello, end, 9], [*hello, text_end, end], [*hello, other_end, 9], [9] * (len(hello) + 2)]
    llm.generate = Mock(side_effect=lambda input_ids, **_: torch.cat([input_ids, torch.tensor(answers)], 1))
    llm.generation_config.eos_token_id = [text_end, other_end]
    results = rewrite.generate_batch(llm, tokenizer, ["a", "b", "b", "c"], len(hello) + 2)
    assert [result["text"] for result in results[:3]] == ["Hello"] * 3
    assert [result["capped"] for result in results] == [False, False, False, True]
    asked = llm.generate.call_args.kwargs
    assert asked["eos_token_id"] == sorted([text_end, other_end, end]) and asked["do_sample"] is False
    assert tokenizer.decode(asked["input_ids"][-1]) == (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nc<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n")


def test_rewritten_rows_of_a_file(llama, monkeypatch, capsys):
    pytest.importorskip("py3langid")
    answers = {"de": "Das Konzert findet in Rom statt.", "it": "The concert takes place in Rome.", "zh": "",
               "en": "The concert takes place in Rome."}
    monkeypatch.setattr(rewrite, "generate_batch", lambda llm, tokenizer, prompts, _: [
        {"text": answers[prompt.split("Question: ")[1][:2]], "capped": False} for prompt in prompts])
    rows = [{"id": f"x/train/1/SQA.{code}", "utterance": "x/train/1", "audio": "1.wav", "task": "SQA", "language": code,
             "transcript": "it is in rome", "question": f"{code}?", "target": "rome"} for code in answers]
    write_rows("in.jsonl", [*rows, {**rows[0], "id": "x/train/2/SQA.de", "answerable": False}, ROWS[0]])
    rewrite.main(["--rows", "in.jsonl", "--out", "out.jsonl", "--llm", llama])
    assert [(row["id"], row["target"], row["utterance"]) for row in read_rows("out.jsonl")] == [
        (f"x-fluent/train/1/SQA.{code}", answers[code], "x/train/1") for code in ("de", "en")]
    out = capsys.readouterr().out
    assert "1: not in it" in out and "1: empty answer in zh" in out and "no answerable SQA rows: 2" in out
