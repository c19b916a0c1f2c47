"""infer.py: predictions do not depend on the batch, and any audio file gets an answer."""
import os

import numpy as np
import pytest
import soundfile
import torch
import transformers
from test_bad_input import refused

import extract_features
from speech_llm.audio import cut_at_pauses
from speech_llm.files import read_json, read_json_lines, write_json
from speech_llm.predictions import Job, find_loop, predict
from speech_llm.rows import read_rows, write_rows
from train_projector import make_projector


def answers_of(system, test_set="tiny.test", out="predictions"):
    """Return the predictions of one system, a list of JSON objects."""
    return read_json_lines(f"work/tiny/{out}/{system}/{test_set}.jsonl", "")


def test_every_system_predicts_its_rows_in_order_whatever_the_batch(after_training, run_stage, capsys):
    """A row without speech is for text systems alone; an utterance without frames counts as wrong."""
    path, index = "work/rows/tiny/test.jsonl", "work/features/tiny-seamless-mean3/tiny/test/frames-00000.json"
    text_only = {"id": "tiny/test/text", "task": "ST", "language": "de", "transcript": "Yes.", "target": "Ja."}
    write_rows(path, [*read_rows(path), text_only])
    cache = read_json(index, "")
    write_json(index, {**cache, "lengths": {name.replace("test-3", "lost"): n for name, n in cache["lengths"].items()}})
    run_stage("infer")
    assert "the audio of 12 cannot be read: their answers are empty and count as wrong" in capsys.readouterr().out
    run_stage("eval", "--systems", "C", "--metrics", "WER")
    assert "- C heard 36 of 48 rows of tiny.test: the audio of 12 cannot be read" in capsys.readouterr().out
    for system in ("llm", "B", "A.1", "C"):
        text, answers = system in ("llm", "B"), answers_of(system)         # a transcript is not transcribed
        assert [p["id"] for p in answers] == [row["id"] for row in read_rows(path) if
                                              (row["task"] != "ASR" if text else "utterance" in row)]
        assert {p["task"] for p in answers} == ({"MT", "QA"} if text else {"ASR", "ST", "SQA"})
        assert all(p["tokens"] <= 6 and p["capped"] is (p["tokens"] == 6) for p in answers)
        assert not any(p["loops"] for p in answers)                         # a loop has 16 tokens at least
        assert text or [p["prediction"] for p in answers if "test-3/" in p["id"]] == [""] * 12
    assert sorted(os.listdir("work/tiny/predictions/C")) == ["lock", "tiny.test.jsonl", "tiny.test.made.json"]
    run_stage("infer", "--systems", "C:merged", "--batch", "1", "--out", "single")
    assert answers_of("C", out="single") == answers_of("C")


def test_what_is_left_out_and_what_is_refused(after_training, run_stage, seamless, capsys):
    """Transcripts are not transcribed, MCIF has none, Seamless answers nothing; Spoken-SQuAD's test is not there."""
    rows = read_rows("work/rows/tiny/test.jsonl")
    for corpus, tasks in (("librispeech", "ASR"), ("librisqa", "SQA"), ("mcif", "ASR ST SQA"), ("spokensquad", "")):
        if tasks:
            write_rows(f"work/rows/{corpus}/test.jsonl", [row for row in rows if row["task"] in tasks.split()])
        write_json(f"work/rows/{corpus}/config.json", {})                  # the recipe is finished
    run_stage("infer", "--systems", "llm,B:lora,seamless-text", "--seamless", seamless,
              "--test_sets", "librispeech.test,mcif.test,spokensquad.test")
    printed = capsys.readouterr().out
    assert all(f"{system} is left out on {test_set}: it has no task there\n" in printed
               for system in ("llm", "B", "seamless-text") for test_set in ("librispeech.test", "mcif.test"))
    assert ("spokensquad.test is left out: the finished corpus in work/rows/spokensquad has no split test; its splits: "
            "none\n") in printed
    run_stage("infer", "--systems", "B:lora,seamless", "--seamless", seamless, "--test_sets", "librisqa.test")
    assert "seamless is left out on librisqa.test: it has no task there" in capsys.readouterr().out
    assert os.listdir("work/tiny/predictions") == ["B"] and len(answers_of("B", "librisqa.test")) == 32
    for option, value, says in (
            ("--test_sets", "tiny", "--test_sets tiny: write <corpus>.<split>"),
            ("--test_sets", "europarlst.test,tiny.test", "missing; run: python -m data.europarlst"),
            ("--test_sets", "tiny.tset", "--test_sets tiny.tset: no test set is left"),
            ("--systems", "D", "--systems D: write D:<folder of work/tiny>"),
            ("--systems", "D:nowhere",
             "config.json is missing; run: bash run_all.sh tiny, or the stage that has --out nowhere"),
            ("--lora_scale", "half", "--lora_scale half: one number, or several with commas")):
        refused(run_stage, "infer", option, value, says=says)


def test_a_system_that_cannot_run_stops_no_other(after_training, run_stage):
    """An LLM that is no checkpoint, weights that are gone, a stage that was not trained: all named, and C decoded."""
    os.makedirs("broken")
    os.remove("work/tiny/lora/weights.pt")
    with pytest.raises(SystemExit, match="(?s)llm is left out: the checkpoint broken.*B is left out: .*weights.pt.*"
                                         "D is left out: .*nowhere/config.json is missing.*other systems are decoded"):
        run_stage("infer", "--systems", "llm,B:lora,D:nowhere,C:merged", "--llm", "broken")
    assert len(answers_of("C")) == 48


@pytest.mark.parametrize("ids, loop", [
    ([1, 2] + [7, 8, 9, 5] * 4, (6, 4)),                # four copies of four, 16 in all: the first copy ends at 6
    ([1, 2] + [7, 8, 9, 5] * 3 + [7, 8], None),         # three and a half
    ([7] * 16, (1, 1)), ([7] * 15, None),               # one token has to come 16 times
    (list(range(33)) * 4, None), (list(range(32)) * 4, (32, 32)), ([], None)])         # a unit of 33 tokens is too long
def test_a_loop_is_four_copies_and_sixteen_tokens(ids, loop):                 # 2025, appendix B.1
    assert find_loop(ids) == loop


def test_loops_are_counted_and_trimmed_only_when_asked(llama, tmp_path, capsys):
    """An answer of two tokens and five copies of four."""
    tokenizer, ids = transformers.AutoTokenizer.from_pretrained(llama), [50, 60] + [40, 41, 42, 43] * 5
    for trim, text in ((False, ids), (True, ids[:6])):
        [answer] = predict(str(tmp_path / f"{trim}.jsonl"), "C, tiny.test", tokenizer,
                           [Job({"id": "tiny/test/1"}, "ASR", 1, "speech")], lambda items: [ids], 2, 30, trim)
        assert answer == {"id": "tiny/test/1", "task": "ASR", "prediction": tokenizer.decode(text).strip(),
                          "tokens": 22, "capped": False, "loops": True}
        assert "0.0 % stopped by the cap of 30 tokens, 100.0 % loop" in capsys.readouterr().out


def test_a_sweep_of_scales_from_the_base_llm_to_the_trained_one(after_training, run_stage):
    """A system a scale: 0 is the LLM without adapters, 1 the trained one. B is made large."""
    for folder in ("lora", "merged"):
        path = f"work/tiny/{folder}/weights.pt"
        weights = torch.load(path, weights_only=True)
        weights["lora"] = {name: tensor + ("lora_B" in name) * 0.3 for name, tensor in weights["lora"].items()}
        torch.save(weights, path)
    run_stage("infer", "--systems", "llm,B:lora,C:merged", "--lora_scale", "0,0.125,1")
    answers = {name: answers_of(name) for name in os.listdir("work/tiny/predictions")}
    assert sorted(answers) == ["B", "B@0", "B@0.125", "C", "C@0", "C@0.125", "llm"]
    assert answers["B@0"] == answers["llm"] and answers["B@0"] != answers["B@0.125"] != answers["B"]
    assert answers["C@0"] != answers["C@0.125"] != answers["C"]


@pytest.fixture
def recorded(after_training):
    """`after_training` with recordings of its test utterances but the first -> (rows, the lost utterance)."""
    rows, noise = read_rows("work/rows/tiny/test.jsonl"), np.random.default_rng(0)
    lost, *others = sorted({row["utterance"]: row["audio"] for row in rows}.items())
    for (_, path), samples in zip(others, (80000, 30000, 8000), strict=True):
        soundfile.write(path, 0.2 * noise.standard_normal(samples), 16000)
    return rows, lost[0]


def test_the_seamless_baseline_hears_and_reads(recorded, run_stage, seamless):
    """ASR and ST from the audio, MT from the transcript; batch 1 gives the same; a lost recording counts as wrong."""
    rows, lost = recorded
    arguments = ["--systems", "seamless,seamless-text", "--seamless", seamless]
    run_stage("infer", *arguments)
    speech, text = answers_of("seamless"), answers_of("seamless-text")
    assert [p["id"] for p in speech] == [row["id"] for row in rows if row["task"] in ("ASR", "ST")]
    assert [p["id"] for p in text] == [row["id"] for row in rows if row["task"] == "ST"]
    assert {p["task"] for p in speech} == {"ASR", "ST"} and {p["task"] for p in text} == {"MT"}
    assert [p["prediction"] for p in speech if p["id"].startswith(lost)] == [""] * 4
    assert any(p["prediction"] for p in speech) and all(p["tokens"] <= 6 for p in text)
    run_stage("infer", *arguments, "--batch", "1", "--out", "single")
    assert (answers_of("seamless", out="single"), answers_of("seamless-text", out="single")) == (speech, text)


def test_the_cascade_is_the_text_llm_on_what_whisper_transcribes(recorded, run_stage, whisper, capsys):
    """English questions are spoken, and asked as transcribed. 5 s are two windows of 3 s, whose texts are joined."""
    rows, lost = recorded
    rows = [{**row, "question": row["transcript"]} if (row["task"], row["language"]) == ("SQA", "en") else row
            for row in rows if row["language"] in ("en", "de")]
    write_rows("work/rows/tiny/test.jsonl", rows)
    arguments = ["--whisper", whisper, "--max_new_tokens", "40", "--prompt", "listeners"]
    run_stage("infer", "--systems", "cascade", *arguments)
    assert f"the audio of {sum(row['utterance'] == lost for row in rows)} cannot be read" in capsys.readouterr().out
    run_stage("infer", "--systems", "cascade", *arguments, "--batch", "1", "--out", "single")
    answers = answers_of("cascade")
    assert answers_of("cascade", out="single") == answers and [p["id"] for p in answers] == [row["id"] for row in rows]

    model, extractor, tokenizer = (kind.from_pretrained(whisper) for kind in (
        transformers.WhisperForConditionalGeneration, transformers.AutoFeatureExtractor, transformers.AutoTokenizer))
    texts = {row["utterance"]: p["prediction"] for row, p in zip(rows, answers) if row["task"] == "ASR"}
    for utterance, path in {row["utterance"]: row["audio"] for row in rows if row["utterance"] != lost}.items():
        pieces = cut_at_pauses(soundfile.read(path, dtype="float32")[0], 3 * 16000)
        mels = [extractor(piece, sampling_rate=16000, return_tensors="pt") for piece in pieces]
        ids = [model.generate(**mel, task="transcribe")[0] for mel in mels]
        assert texts[utterance] == " ".join(tokenizer.decode(row, skip_special_tokens=True).strip() for row in ids)
    assert len({*texts.values()}) == len(texts)

    write_rows("work/rows/tiny/test.jsonl", [
        {key: (texts[row["utterance"]] or "?") if value == row["transcript"] and key != "target" else value
         for key, value in row.items()} for row in rows])                   # transcripts, and spoken questions
    run_stage("infer", "--systems", "llm", *arguments, "--out", "transcribed")
    expected = {p["id"]: p["prediction"] for p in answers_of("llm", out="transcribed")}
    assert {p["id"]: p["prediction"] for row, p in zip(rows, answers) if row["task"] != "ASR"} == {
        row["id"]: "" if row["utterance"] == lost else expected[row["id"]] for row in rows if row["task"] != "ASR"}


@pytest.fixture
def encoders(after_training, seamless, whisper):
    """`after_training` with a random SeamlessM4T and a random Whisper beside the LLM."""
    os.symlink(seamless, "work/models/tiny-seamless")
    os.symlink(whisper, "work/models/tiny-whisper")
    return after_training


def train_on_whisper(mean, pad):
    """Rewrite C as if it had been trained on the tiny Whisper with the listeners' prompt; its projector is random."""
    path, config = "work/tiny/merged", read_json("work/tiny/merged/config.json", "")
    del config["prompts"]                                                   # which are those of 2025
    sizes = {**config["sizes"], "width": 32}
    write_json(f"{path}/config.json", {**config, "sizes": sizes, "encoder": "models/tiny-whisper", "mean": mean,
                                       "pad": pad, "prompt": "listeners"})
    torch.manual_seed(0)
    weights = torch.load(f"{path}/weights.pt", weights_only=True)
    projector = make_projector(**sizes).state_dict()
    projector["output.weight"] *= 20                                        # what is spoken changes the answer
    torch.save({**weights, "projector": projector}, f"{path}/weights.pt")


def ask_file(run_stage, capsys, *arguments):
    """Return what infer.py prints about one audio file: the answer alone."""
    capsys.readouterr()
    run_stage("infer", *arguments)
    return capsys.readouterr().out


@pytest.mark.parametrize("encoder, mean, pad", [("seamless", 3, False), ("whisper", 4, False), ("whisper", 4, True)])
def test_a_file_is_answered_as_the_row_of_a_test_set(encoders, run_stage, capsys, encoder, mean, pad):
    """Any rate, any number of channels, any format; a Whisper hears its whole window where it was trained so."""
    rows, time = [], np.arange(2 * 48000) / 48000
    question = "Chi?" if encoder == "seamless" else "x"                     # as the transcript: the question is spoken
    for ending, rate, channels, task, language in (
            ("wav", 8000, 1, "ASR", "en"), ("flac", 44100, 2, "ST", "de"), ("ogg", 22050, 2, "SQA", "it"),
            ("mp3", 48000, 1, "ASR", "en")):
        wave = 0.3 * np.sin(2 * np.pi * 300 * time[:int(1.3 * rate)] * (1 + len(rows)))
        soundfile.write(f"a b.{ending}", np.stack([wave] * channels, 1), rate)
        rows.append({"id": f"spoken/{ending}", "utterance": f"spoken/{ending}", "audio": f"a b.{ending}", "task": task,
                     "language": language, "transcript": "x", "target": "x",
                     **({"question": question} if task == "SQA" else {})})
    write_rows("work/rows/spoken/test.jsonl", rows)
    if encoder == "whisper":
        train_on_whisper(mean, pad)
    extract_features.main(["--corpora", "spoken", "--encoder", f"models/tiny-{encoder}", "--mean", str(mean),
                           *["--pad"] * pad])
    run_stage("infer", "--systems", "C:merged", "--test_sets", "spoken.test")
    for row, p in zip(rows, answers_of("C", "spoken.test"), strict=True):
        asked = ["--question", question] if row.get("question") == "Chi?" else []
        assert p["tokens"] and ask_file(run_stage, capsys, "--audio", row["audio"], "--task", row["task"], "--language",
                                        row["language"], *asked) == p["prediction"] + "\n"


def test_the_pieces_of_long_audio_are_joined(encoders, run_stage, capsys):
    """A Whisper takes pieces of its own window, here of 3 s."""
    train_on_whisper(4, False)
    wave = 0.1 * np.random.default_rng(0).standard_normal(4 * 16000)
    wave[2 * 16000:int(2.2 * 16000)] = 0                                    # the quietest 0.2 s: cut in their middle
    wave[36000:] = 0.1 * np.sin(np.arange(28000))                           # noise, then a tone
    for name, piece in (("long", wave), ("first", wave[:33600]), ("second", wave[33600:])):           # 2.1 s
        soundfile.write(f"{name}.wav", piece, 16000, subtype="FLOAT")
    question = ["--task", "SQA", "--question", "Who?"]
    for start, joint, arguments in (("", " ", ["--task", "ASR"]), ("", "", ["--task", "ST", "--language", "zh"]),
                                    ("0.0-2.1 s: ", "\n2.1-4.0 s: ", [*question, "--pieces"])):
        whole, first, second = (ask_file(run_stage, capsys, "--audio", f"{name}.wav", *arguments)
                                for name in ("long", "first", "second"))
        assert whole == start + first[:-1] + joint + second and first != second
    refused(run_stage, "infer", "--audio", "long.wav", *question, says="long.wav is longer than 3 s")


def test_silence_is_told_with_its_level(encoders, run_stage, capsys):
    names = {"silent.wav": 0, "quiet.wav": 0.001, "loud.wav": 0.1}
    for name, level in names.items():
        soundfile.write(name, level * np.sin(np.arange(16000) / 10), 16000)
    run_stage("infer", "--audio", *names)
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("C answers", "warning: "))]
    assert [line.partition(":")[2][:57] for line in told] == [
        "", " silent.wav is nearly silent, its loudest sample is at -9",
        " quiet.wav is nearly silent, its loudest sample is at -60"]


def test_what_it_refuses_in_one_line(encoders, run_stage):
    for name, seconds in (("long", 31), ("short", 0.03), ("good", 1)):
        soundfile.write(f"{name}.wav", np.zeros(int(16000 * seconds)), 16000)
    (encoders / "text.wav").write_text("no audio")
    for arguments, message in (
            (["--task", "SQA"], "--task SQA needs --question"),
            (["--task", "TTS"], "--task is one of ASR, ST, SQA, MCQ"),
            (["--task", "ST", "--language", "xx"], "--language one of en, de, it, zh, ar"),
            (["--task", "ST"], "no prompt for ST in 'en'"), (["--language", "de"], "no prompt for ASR in 'de'"),
            (["--systems", "cascade"], "cascade has no projector, which --audio needs; name a system with one"),
            (["--systems", "B:lora"], "B has no projector, which --audio needs; name a system with one"),
            (["--systems", "hub:a/b", "--show", "x.png"], "b has no projector, which --show needs"),
            (["--audio", "good.wav", "good.wav", "--show", "x.png"], "--show draws one recording"),
            (["--audio", "nowhere.wav"], "nowhere.wav: no such file"),
            (["--audio", "long.wav", "--task", "SQA", "--question", "Who?"], "long.wav is longer than 30 s"),
            (["--audio", "short.wav"], "short.wav: 0.0300 s, shorter than 0.04 s"),
            (["--audio", "text.wav"], "text.wav: cannot be decoded")):
        refused(run_stage, "infer", "--audio", "good.wav", *arguments, says=message)
    refused(run_stage, "infer", "--show", "x.png", says="--show draws one recording; give --audio one file")
