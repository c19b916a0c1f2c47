"""The makers of data/ (translate, quality, speak, rewrite) on random models, and the identifier of languages."""
import json
import os
import shutil
from collections import Counter

import numpy as np
import pytest
import soundfile
import torch
from references import PARITY, reference

from data import quality, rewrite, speak, translate
from metrics import comet, language
from speech_llm.llm import load_llm
from speech_llm.rows import read_rows, write_rows


COMET = PARITY / "comet_tiny"
TEXTS = ["Anna bought two books in Rome.", "Rome.", "The concert in Paris is on Friday, said Peter to Maria.",
         "We need eight bottles by Sunday.", "Who works there?", "Rome.", "The train from Oslo to Milan leaves."]


@pytest.fixture(scope="session")
def kiwi():
    """A tiny CometKiwi's folder, and pairs with the scores that unbabel-comet gave them."""
    expected = json.loads(reference(COMET / "expected.json").read_text(encoding="utf-8"))["kiwi_softmax"]
    return [[row["src"], row["mt"]] for row in expected["data"]], expected["scores"]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Random models do not know when to stop, and the tiny CometKiwi brings its encoder along."""
    monkeypatch.setattr(translate, "MAX_TOKENS", 16)
    monkeypatch.setattr(speak, "MAX_TOKENS", 16)
    monkeypatch.setitem(comet.ENCODERS, "unified", COMET / "encoder")
    monkeypatch.setitem(comet.ENCODERS, "regression", COMET / "encoder")


def waves(paths):
    return {name: path and soundfile.read(path, dtype="int16")[0].tolist() for name, path in paths.items()}


NAMED = {f"x/train/{n}": text for n, text in enumerate(TEXTS)}
ROWS = [{"id": "x/1/ASR.en", "task": "ASR", "language": "en", "transcript": TEXTS[0], "target": TEXTS[0].upper()},
        {"id": "x/1/SQA.en", "task": "SQA", "language": "en", "transcript": TEXTS[0], "question": "Who works there?",
         "target": "Rome."},
        {"id": "x/2/SQA.en", "task": "SQA", "language": "en", "transcript": TEXTS[2], "question": "Rome.",
         "answerable": False, "target": "Not answerable."}]


# --- All four makers: a batch is as its parts; a run that has every result loads no model.

MAKERS = {  # name: (run(fixture, folder, batch), where the function that loads the model is)
    "translate": (lambda get, folder, batch: translate.translate(TEXTS, "it", get("seamless"), f"{folder}/x", batch),
                  (translate, "load_seamless")),
    "quality": (lambda get, folder, batch: quality.quality(get("kiwi")[0], str(COMET / "kiwi_softmax.pt"),
                                                           f"{folder}/x", batch), (comet, "load_comet")),
    "speak": (lambda get, folder, batch: waves(speak.speak(NAMED, str(folder), get("seamless"), 0, batch, "de")),
              (speak, "load_seamless")),
    "rewrite": (lambda get, folder, batch: rewrite.generate(TEXTS, get("llama"), f"{folder}/x", batch, 6),
                (rewrite, "load_llm")),
}


@pytest.mark.parametrize("maker", MAKERS)
def test_batch_equals_single(maker, request, tmp_path, monkeypatch):
    run, (module, load) = MAKERS[maker]
    together, alone = (run(request.getfixturevalue, tmp_path / str(batch), batch) for batch in (4, 1))
    if maker == "quality":
        assert together == pytest.approx(alone, abs=1e-6)
        assert together == pytest.approx(request.getfixturevalue("kiwi")[1], abs=1e-6)
    else:
        assert together == alone
        lengths = {len(one) for one in (together.values() if maker == "speak" else together) if one}
        assert len(lengths) > 3                          # so a batch was padded
    monkeypatch.setattr(module, load, None)
    assert run(request.getfixturevalue, tmp_path / "1", 1) == alone


# --- translate

def test_translations_depend_on_the_language_and_are_counted(seamless, tmp_path, capsys):
    from transformers import AutoTokenizer
    german, italian = (translate.translate(TEXTS, code, seamless, str(tmp_path / code)) for code in ("de", "it"))
    assert german != italian and german[1] == german[5]  # "Rome." twice
    sources = sum(len(ids) > 16 for ids in AutoTokenizer.from_pretrained(seamless)(TEXTS)["input_ids"])
    assert 0 < sources < 7
    assert f"7 texts translated to it; cut at 16 tokens: {sources} sources, " in capsys.readouterr().out


def test_a_capped_translation_is_counted_and_an_empty_one_is_not(seamless):
    from transformers import SeamlessM4Tv2ForTextToText
    model, tokenizer = translate.load_seamless(SeamlessM4Tv2ForTextToText, seamless)
    given = []

    def generate(input_ids, **options):
        given.extend([input_ids, options])
        return torch.tensor([[3, 502, 3, 0, 0], [3, 502, 60, 61, 62], [3, 502, 60, 61, 3]])
    model.generate = generate
    batch = translate.translate_batch(model, tokenizer, ["a </s> b", "Rome. __deu__", "c"], "de")
    assert [bool(result["text"]) for result in batch] == [False, True, True]
    assert [result["capped"] for result in batch] == [False, True, False]
    assert (given[0] == 3).sum(1).tolist() == [1, 1, 1]  # </s> inside a text is text
    assert given[1]["num_beams"] == 5 and given[1]["do_sample"] is False
    assert (given[0] > 500).sum(1).tolist() == [1, 1, 1]                 # __eng__ and no other


def test_no_warning_of_lengths(seamless, tmp_path, caplog, monkeypatch):
    """A checkpoint whose config has a max_length, a tokenizer with a limit, a text of twice its length."""
    import transformers
    monkeypatch.setattr(transformers.utils.logging.get_logger("transformers"), "propagate", True)
    shutil.copytree(seamless, tmp_path / "model")
    for name, limit in (("generation", {"max_length": 20}), ("tokenizer", {"model_max_length": 9})):
        path = tmp_path / "model" / f"{name}_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | limit))
    translate.translate([20 * "Rome. "], "de", str(tmp_path / "model"), str(tmp_path / "x"))
    speak.speak({"x": 3 * "Rome. "}, str(tmp_path), str(tmp_path / "model"))
    assert "max_length" not in caplog.text and "longer than" not in caplog.text, caplog.text


def test_translate_rows_of_a_file(seamless, tmp_path, monkeypatch, capsys):
    german = {TEXTS[0]: "Anna kaufte zwei Bücher.", "Who works there?": "Wer arbeitet dort?", "Rome.": "Rom."}
    monkeypatch.setattr(translate, "translate_batch", lambda model, tokenizer, texts, language: [
        {"text": german[text], "cut": False, "capped": False} for text in texts])
    write_rows(tmp_path / "en.jsonl", ROWS)
    command = ["--rows", f"{tmp_path}/en.jsonl", "--language", "de", "--out", f"{tmp_path}/de.jsonl"]
    translate.main([*command, "--seamless", seamless])
    st, sqa, invalid = read_rows(tmp_path / "de.jsonl")
    assert st == {"id": "x/1/ST.de", "task": "ST", "language": "de", "transcript": TEXTS[0], "answerable": True,
                  "target": "Anna kaufte zwei Bücher."}
    assert (sqa["id"], sqa["question"], sqa["target"]) == ("x/1/SQA.de", "Wer arbeitet dort?", "Rom.")
    assert (invalid["question"], invalid["target"]) == ("Rom.", "Nicht zu beantworten.")
    assert sqa["transcript"] == TEXTS[0] and not invalid["answerable"]

    german["Who works there?"] = ""
    os.remove(tmp_path / "de.jsonl.results")
    translate.main([*command, "--seamless", seamless])
    assert [row["id"] for row in read_rows(tmp_path / "de.jsonl")] == ["x/1/ST.de", "x/2/SQA.de"]
    assert (tmp_path / "de.jsonl.dropped.txt").read_text() == "x/1/SQA.de empty translation: question\n"
    assert "2 rows; 1 dropped" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="only English rows"):
        translate.translate_rows(read_rows(tmp_path / "de.jsonl"), "it", seamless, "")


# --- quality

def test_both_question_and_answer_must_be_good(tmp_path, monkeypatch):
    scores = {"good": 0.85, "fine": 0.9, "bad": 0.8499}

    def score(pairs, model, path):
        assert {source for source, _ in pairs} == {"Who works there?", "Rome.", "t"}           # the English texts
        return [scores[translation] for _, translation in pairs]
    monkeypatch.setattr(quality, "quality", score)
    english, german = [], []
    for n, (question, answer) in enumerate([("good", "fine"), ("bad", "fine"), ("fine", "bad"), ("bad", "bad")]):
        row = {**ROWS[1], "id": f"x/{n}/SQA.en"}
        english.append(row)
        german.append({**row, "id": f"x/{n}/SQA.de", "language": "de", "question": question, "target": answer})
    german.append({**german[2], "id": "x/2/SQA-invalid.de", "answerable": False})    # its answer is no translation
    english.append({**english[2], "id": "x/2/SQA-invalid.en", "answerable": False})
    german += [{"id": f"x/{text}/ST.de", "task": "ST", "language": "de", "transcript": "t", "target": text}
               for text in ("good", "bad")]
    write_rows(tmp_path / "en.jsonl", english)
    write_rows(tmp_path / "de.jsonl", german)
    quality.main(["--rows", f"{tmp_path}/de.jsonl", "--source", f"{tmp_path}/en.jsonl", "--out",
                  f"{tmp_path}/good.jsonl"])
    assert [row["id"] for row in read_rows(tmp_path / "good.jsonl")] == [
        "x/0/SQA.de", "x/2/SQA-invalid.de", "x/good/ST.de"]
    lines = (tmp_path / "good.jsonl.dropped.txt").read_text().splitlines()
    assert lines[2] == "x/3/SQA.de below 0.85: question 0.850, target 0.850"
    with pytest.raises(SystemExit, match="x/0/SQA.de"):
        quality.good_rows(read_rows(tmp_path / "de.jsonl"), english[1:], "", "")
    with pytest.raises(SystemExit, match="no row is left"):
        quality.write_made(str(tmp_path / "none.jsonl"), [], [("x", "bad")])


def test_a_model_that_cannot_be_had(kiwi, tmp_path):
    with pytest.raises(SystemExit, match=f"{tmp_path}/none is missing: .*"):
        quality.quality([["a", "b"]], str(tmp_path / "none"), str(tmp_path / "x"))
    with pytest.raises(SystemExit, match="needs reference translations"):
        quality.quality([["a", "b"]], str(COMET / "da_sparsemax.pt"), str(tmp_path / "y"))


# --- speak

def test_each_speaker_as_transformers_speaks_alone(seamless):
    """The wave of every text in its own voice is that of transformers for the one text and the one voice."""
    from transformers import SeamlessM4Tv2ForTextToSpeech
    model, tokenizer = translate.load_seamless(SeamlessM4Tv2ForTextToSpeech, seamless)
    words = speak.rewrite_batch(model, tokenizer, TEXTS)
    ended = [n for n, ids in enumerate(words) if 0 < len(ids) < 14]
    assert len({len(words[n]) for n in ended}) > 1       # texts of several lengths shared a batch
    for n in ended:
        inputs = tokenizer(TEXTS[n], src_lang="eng", return_tensors="pt")
        voices = []
        for speaker in (n % 5, (n + 1) % 5):
            wave, length = model.generate(**inputs, tgt_lang="eng", speaker_id=speaker, text_max_new_tokens=16)
            voices.append(speak.text_to_wave(model, tokenizer, TEXTS[n], words[n], speaker))
            assert np.array_equal(voices[-1], wave[0, :int(length)].numpy())
        assert not np.array_equal(*voices)


def test_voices_depend_on_seed_and_name_alone(seamless, tmp_path):
    forward = waves(speak.speak(NAMED, str(tmp_path / "a"), seamless, batch=3))
    backward = waves(speak.speak(dict(reversed(NAMED.items())), str(tmp_path / "b"), seamless, batch=2))
    assert backward == forward and any(forward.values())
    other = waves(speak.speak(NAMED, str(tmp_path / "c"), seamless, seed=1, batch=3))
    assert other != forward
    drawn = Counter(speak.draw_speaker(0, f"x/{n}", 200) for n in range(4000))
    assert len(drawn) == 200 and max(drawn.values()) < 45    # 20 each are expected, 45 would be 5 deviations off
    for share, voices in (((0.0, 0.8), {0, 1, 2, 3}), ((0.8, 1.0), {4})):                        # of five
        assert {speak.draw_speaker(0, f"x/{n}", 5, share) for n in range(100)} == voices
    lines = (tmp_path / "a" / "spoken.jsonl").read_text(encoding="utf-8").splitlines()[1:]
    assert {entry["item"][0]: entry["result"]["speaker"] for entry in map(json.loads, lines)} == {
        name: speak.draw_speaker(0, name, 5) for name in NAMED}


def test_spoken_rows_of_a_file(seamless, tmp_path, monkeypatch, capsys):
    bad = {"Rome.": np.zeros(500, np.float32), "Not a number.": np.full(500, np.nan), "Nothing.": np.zeros(0)}
    tone = np.sin(np.arange(1600) / 5).astype(np.float32) / 2
    monkeypatch.setattr(speak, "text_to_wave", lambda model, tokenizer, text, *_: bad.get(text, tone))
    monkeypatch.setattr(speak, "rewrite_batch", lambda model, tokenizer, texts, language: [
        [] if text == "Who works there?" else tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts])
    rows = [{"id": f"x/{n}/ASR.en", "task": "ASR", "language": "en", "transcript": text, "target": text}
            for n, text in enumerate([TEXTS[0], *bad, "Who works there?"])]
    rows.append({**rows[0], "id": "x/0/ST.de", "task": "ST", "language": "de", "target": "Anna."})
    rows.append({**rows[0], "id": "x/9/ASR.en", "utterance": "x/9", "audio": "there.wav"})
    write_rows(tmp_path / "in.jsonl", rows)
    speak.main(["--rows", f"{tmp_path}/in.jsonl", "--out", f"{tmp_path}/out.jsonl", "--folder", f"{tmp_path}/audio",
                "--seamless", seamless])
    spoken = {row["id"]: (row["utterance"], row["audio"]) for row in read_rows(tmp_path / "out.jsonl")}
    flac = f"{tmp_path}/audio/x/0.flac"
    assert spoken == {"x/0/ASR.en": ("x/0", flac), "x/0/ST.de": ("x/0", flac), "x/9/ASR.en": ("x/9", "there.wav")}
    wave, rate = soundfile.read(flac)
    assert (rate, soundfile.info(flac).format) == (16000, "FLAC") and np.allclose(wave, tone, atol=1e-4)
    assert os.listdir(tmp_path / "audio" / "x") == ["0.flac"]
    out = capsys.readouterr().out
    assert "1 of 5 texts spoken" in out and "0 of them in other words" in out
    assert "4: could not be spoken" in out
    os.remove(flac)
    with pytest.raises(SystemExit, match="spoken.jsonl"):
        speak.speak_rows(rows, f"{tmp_path}/audio", seamless)
    rows[-2]["transcript"] = "Other words."
    with pytest.raises(SystemExit, match="another transcript"):
        speak.speak_rows(rows, f"{tmp_path}/audio", seamless)


def test_changed_words_are_counted(seamless, tmp_path, capsys):
    speak.speak(NAMED, str(tmp_path), seamless)          # a random model says anything but the text
    assert "of 7 texts spoken" in (out := capsys.readouterr().out)
    spoken = int(out.split(" of 7")[0].split()[-1])
    assert f"{spoken} of them in other words" in out and spoken > 3
    assert speak.bare("It's the U.S.A., isn't it?") == speak.bare("IT’S the u.s.a. isn't  it")
    assert speak.bare("two books") != speak.bare("two book")


# --- rewrite


def test_chat_format_and_ends(llama):
    """An answer ends with any of the three marks that end a turn; one that none ends is capped."""
    llm, tokenizer = load_llm(llama, torch.device("cpu"))
    asked = {}
    text_end, other_end, end = tokenizer.convert_tokens_to_ids(["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"])
    hello = tokenizer("Hello", add_special_tokens=False)["input_ids"]

    def generate(**options):
        asked.update(options)
        width = len(hello) + 2
        answers = [[*hello, end, hello[0]], [*hello, text_end, end], [*hello, other_end, 9], [9] * width]
        return torch.cat([options["input_ids"], torch.tensor(answers)], 1)
    llm.generate = generate
    llm.generation_config.eos_token_id = [text_end, other_end]
    results = rewrite.generate_batch(llm, tokenizer, ["a", "b", "b", "c"], len(hello) + 2)
    assert [result["text"] for result in results[:3]] == ["Hello"] * 3
    assert [result["capped"] for result in results] == [False, False, False, True]
    assert asked["eos_token_id"] == sorted([text_end, other_end, end]) and asked["do_sample"] is False
    assert tokenizer.decode(asked["input_ids"][-1]) == (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nc<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n")


def test_rewritten_rows_of_a_file(llama, tmp_path, monkeypatch, capsys):
    pytest.importorskip("py3langid")
    answers = {"de": "Das Konzert findet in Rom statt.", "it": "The concert takes place in Rome.", "zh": "",
               "en": "The concert takes place in Rome."}
    asked = []

    def generate_batch(llm, tokenizer, prompts, max_new_tokens):
        asked.extend(prompts)
        return [{"text": answers[prompt.split("Question: ")[1][:2]], "capped": False} for prompt in prompts]
    monkeypatch.setattr(rewrite, "generate_batch", generate_batch)
    rows = [{"id": f"x/train/1/SQA.{code}", "utterance": "x/train/1", "audio": "1.wav", "task": "SQA", "language": code,
             "transcript": "it is in rome", "question": f"{code}?", "target": "rome"} for code in answers]
    rows += [{**rows[0], "id": "x/train/2/SQA.de", "answerable": False}, ROWS[0]]
    write_rows(tmp_path / "in.jsonl", rows)
    rewrite.main(["--rows", f"{tmp_path}/in.jsonl", "--out", f"{tmp_path}/out.jsonl", "--llm", llama])
    new = read_rows(tmp_path / "out.jsonl")
    assert [(row["id"], row["target"], row["utterance"]) for row in new] == [
        (f"x-fluent/train/1/SQA.{code}", answers[code], "x/train/1") for code in ("de", "en")]
    assert rewrite.fluent_prompt("it is in rome", "de?", "rome") in asked and len(asked) == 4
    out = capsys.readouterr().out
    assert "1: not in it" in out and "1: empty answer in zh" in out
    assert "no answerable SQA rows: 2" in out


# --- language

SENTENCES = {"en": "The train leaves on Friday.", "de": "Der Zug fährt am Freitag ab.",
             "it": "Il treno parte venerdì da Milano.", "zh": "火车星期五出发。"}


def test_languages_by_hand():
    pytest.importorskip("py3langid")
    assert language.identify(SENTENCES.values()) == list(SENTENCES)
    assert language.identify(["", "42.", "1,5 %"]) == [""] * 3           # no letter, no language
    assert language.identify([SENTENCES["de"]], ("en", "it"))[0] in ("en", "it")
    assert language.share_in_language([*SENTENCES.values(), "7"], "it") == 20
    with pytest.raises(ValueError, match="no texts"):
        language.share_in_language([], "en")


def test_without_the_package(monkeypatch):
    monkeypatch.setattr(language, "available", lambda: False)
    language.load_identifier.cache_clear()
    with pytest.raises(SystemExit, match="pip install py3langid"):
        language.identify(["Ciao."])


@pytest.mark.parametrize("code, path", [("de", "europarl_st/manifests/en-de.test.jsonl"),
                                        ("it", "europarl_st/manifests/en-it.test.jsonl"),
                                        ("zh", "acl6060/eval/manifests/en-zh.jsonl")])
def test_languages_of_real_sentences(real, code, path):
    pytest.importorskip("py3langid")
    with open(os.path.join(real, path), encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    assert language.share_in_language([row["tgt_ref"] for row in rows], code) > 99.5
    assert language.share_in_language([row["src_ref"] for row in rows], "en") > 99.5
