"""The small systems: a world in miniature, units in the order of time, real models."""
import os
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import tokenizers
import torch
import transformers
from downloads import squad
from test_bad_input import write

import extract_features
import train_projector
from conftest import ON_TABLE, read_log, shorten_transcripts
from data import small_cpu
from speech_llm.audio import read_audio
from speech_llm.batches import Batch
from speech_llm.constants import mixed_precision
from speech_llm.rows import corpus_of, read_rows
from speech_llm.speechmapper import SlotTargets
from speech_llm.stage import open_stage
from speech_llm.token_objective import Speller, TokenObjective, units_of, with_merges
from speech_llm.training import optimizer_step
from train_projector import splice


def test_a_passage_is_whole_sentences_and_has_the_questions_whose_answers_it_holds(tmp_path):
    context = "anna lives in rome. she has two cats and a dog. her brother peter sings"
    first, last = "anna lives in rome. she has two cats and a dog", "her brother peter sings"
    assert small_cpu.cut_passages(context, 11) == [(0, first), (48, last)]
    assert small_cpu.cut_passages(context, 4) == [(0, "anna lives in rome"), (48, last)]
    path = tmp_path / "spoken.json"
    write(path, squad([[(context, context, [(question, question, [answer], []) for question, answer in (
        ("Where?", "rome"), ("Who sings?", "peter"), ("Colour?", ""))])]], True))
    assert small_cpu.read_passages(str(path), 11) == {
        0: [(first, [("Where?", "rome")]), (last, [("Who sings?", "peter")])]}


def test_a_world_in_miniature(tmp_path, whisper, monkeypatch, capsys):
    """20 recordings of noise as LJ Speech has them, one of LibriSpeech, eight articles of two questions each."""
    raw, models, noise = tmp_path / "raw", tmp_path / "models", np.random.default_rng(0).uniform(-0.1, 0.1, 16000)
    speech, reader = raw / "ljspeech", raw / "LibriSpeech" / "test-clean" / "1" / "2"
    write(speech / "metadata.csv", "".join(f"LJ001-{n:04d}|No. {n}|Number {n}\n" for n in range(1, 21)))
    write(reader / "1-2.trans.txt", "1-2-0000 HE SLEPT\n")
    (speech / "wavs").mkdir()
    for path in (reader / "1-2-0000.flac", *(speech / "wavs" / f"LJ001-{n:04d}.wav" for n in range(1, 21))):
        soundfile.write(path, noise, 16000)
    write(raw / "spoken_squad" / "spoken_test-v1.1.json", squad([[(
        "", f"word{n} lives in rome. the cat of word{n} sleeps",
        [(f"{n}1", f"Where does word{n} live?", ["rome"], []),
         (f"{n}2", f"What does the cat of word{n} do?", ["sleeps"], [])])] for n in "abcdefgh"], True))
    write(models / "smollm2-135m-instruct" / "config.json", "{}")
    os.symlink(whisper, models / "whisper-base")
    monkeypatch.setattr(small_cpu, "WINDOW", 2)
    write(tmp_path / "page.py", 'base = "small_cpu"\n'
          'world = dict(recipe="small_cpu", human=20, words=12, train=2, dev=1, test=1)\n')
    small_cpu.main(["--work", str(tmp_path / "work"), "--raw", str(raw), "--models", str(models),
                    "--preset", str(tmp_path / "page.py")])
    assert "data.tiny_llm" not in capsys.readouterr().out                 # the LLM is a real one
    assert (tmp_path / "work" / "models" / "smollm2-135m-instruct" / "config.json").read_text() == "{}"
    long, short = (extract_features.load_encoder(f"{tmp_path}/work/models/whisper-base{name}", "cpu")
                   for name in ("", "-2s"))
    assert extract_features.window_of(long.config) == 150 and extract_features.window_of(short.config) == 100
    assert all(torch.equal(short.state_dict()[name], weight[:100] if name.startswith("embed_positions") else weight)
               for name, weight in long.state_dict().items())
    world = {path.stem: read_rows(path) for path in (tmp_path / "work" / "rows" / "small_cpu").glob("*.jsonl")}

    # every tenth human recording is held out
    human = {split: [row["utterance"][-2:] for row in rows if corpus_of(row) == "small_cpu-human"]
             for split, rows in world.items()}
    assert human["human"] == ["10"] and human["dev"] == ["20"] and len(human["train"]) == 18
    assert [row["transcript"] for row in world["human"] + world["readers"]] == ["Number 10", "he slept"]
    # no article is spoken in two splits, and the audio is speech
    spoken = {split: {row["transcript"].split()[0]: row["audio"] for row in world[split]
                      if corpus_of(row) == "small_cpu"}
              for split in ("train", "dev", "test")}
    assert len(set().union(*spoken.values())) == sum(map(len, spoken.values()))
    for path in spoken["train"].values():
        wave = read_audio(path)
        assert 1 < len(wave) / 16000 < 10 and np.abs(wave).max() > 0.3
    # a question about another article has no answer
    questions = [row for row in world["test"] if row["task"] == "SQA"]
    assert [row["answerable"] for row in questions] == [True, False]
    for row in questions:
        assert (row["transcript"].split()[0] in row["question"]) == row["answerable"]
        assert (row["target"] != "Not answerable.") == row["answerable"]
    assert len(world["closed"]) == len(world["plain"]) == 2               # a transcription and a question


VOCABULARY = {token: number for number, token in enumerate(["Ġ", "a", "b", "c", "d", "ab", "abc"])}
TABLE = torch.eye(7)


@pytest.fixture
def tokenizer():
    """Return a byte-pair encoding with the merges a + b and ab + c; Ġ is a space."""
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE(VOCABULARY, [("a", "b"), ("ab", "c")]))
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=bpe)


@pytest.fixture
def objective(tokenizer):
    torch.manual_seed(0)
    speller = Speller(units=7, width=8, llm_width=7, layers=1, heads=2, ffn=8, dropout=0.0)
    frames = {"u": np.random.default_rng(0).standard_normal((4, 8)).astype(np.float16)}
    return TokenObjective(speller, TABLE, SlotTargets(tokenizer, "Ġ", True), frames, 100)


def row_of(text):
    return {"id": "u/ASR.en", "utterance": "u", "task": "ASR", "transcript": text}


def test_few_merges_spell_with_ids_of_the_llm(tokenizer):
    first = with_merges(tokenizer, 1)
    assert tokenizer("abcd")["input_ids"] == [6, 4] and first("abcd")["input_ids"] == [5, 3, 4]
    assert units_of(tokenizer, 0).tolist() == [0, 1, 2, 3, 4, 5, 6]                    # the blank, then all others
    assert units_of(first, 2).tolist() == [2, 0, 1, 3, 4, 5] and with_merges(tokenizer, 0) is tokenizer
    words = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer(tokenizers.models.WordLevel({})))
    for merges, message in ((-1, "--merges -1 is below 0"), (5, "is a WordLevel"), (0, "is a WordLevel")):
        with pytest.raises(SystemExit, match=message):
            units_of(with_merges(words, merges), 0)


def test_a_sample_needs_a_slot_for_every_unit_and_one_between_equal_units(objective):
    sample = objective.sample(row_of("Acbd"))
    assert (sample["slots"], sample["target"]) == (4, [1, 3, 2, 4])
    assert objective.sample(row_of("abcd"))["target"] == [6, 4]
    assert objective.sample(row_of("acbda")) is None and objective.sample(row_of("aacb")) is None


def test_a_slot_is_the_mean_of_units_by_their_probabilities_and_the_llm_reads_no_blank_and_no_unit_twice(objective):
    objective.projector.logits = lambda frames, lengths: torch.tensor([[[0.0, 0.5, 0.3, 0.2, 0, 0, 0]]]).log()
    assert torch.allclose(objective.projector(None, None), torch.tensor([[[0.0, 0.5, 0.3, 0.2, 0, 0, 0]]]))
    objective.projector.logits = lambda frames, lengths: 50 * TABLE[torch.tensor([[0, 1, 1, 0, 1], [2, 2, 5, 5, 3]])]
    output = objective.projector(None, None)
    assert torch.allclose(output[0], TABLE[[0, 1, 0, 0, 1]] * torch.tensor([0, 1, 0, 0, 1])[:, None], atol=1e-6)
    llm = SimpleNamespace(get_input_embeddings=lambda: torch.nn.Embedding.from_pretrained(TABLE))
    sample = {"before": [5], "after": [6], "answer": [], "slots": 5, "frames": np.zeros((5, 8), np.float32)}
    samples = [sample, {**sample, "slots": 4, "frames": sample["frames"][:4]}]
    assert [rows.argmax(1).tolist() for rows in splice(llm, objective.projector, Batch.of(samples))] == [
        [5, 1, 1, 6], [5, 2, 5, 6]]


def test_training_writes_the_units_in_order(objective):
    samples = [objective.sample(row_of("acd"))]
    before, optimizer = objective.report(samples, []), torch.optim.AdamW(objective.projector.parameters(), lr=1e-2)
    losses = [optimizer_step([optimizer], objective, samples, objective.batches(samples), 0.0)[0][0] for _ in range(61)]
    assert losses[-1] < losses[0] / 4 and before["token errors"] > 0 == objective.report(samples, [])["token errors"]


def test_it_trains_on_the_table_and_the_later_stages_take_it(before_training, run_stage):
    shorten_transcripts()
    arguments = [*ON_TABLE, "--objective", "tokens", "--projector", "speller", "--pad_token", "Ġ", "--merges", "5"]
    train_projector.main(arguments)
    for stage in ("train_lora", "merge_sft"):
        run_stage(stage)
    a, c = (open_stage(f"work/tiny/{name}") for name in ("projector", "merged"))
    assert a.config["sizes"]["units"] == len(a.weights["projector"]["units"])
    assert torch.equal(a.weights["projector"]["units"], c.weights["projector"]["units"])        # saved, not trained
    assert "listening" in read_log("work/tiny/merged")[-1]
    for option, value, message in (
            ("--projector", "mapper", "need each other"),
            ("--shares", '{"ASR": {"tiny": 1}}', "draws every corpus by its size"),
            ("--objective", "token", "--objective token is not one of answers, embeddings, tokens")):
        with pytest.raises(SystemExit, match=message):
            train_projector.main([*arguments, option, value, "--out", "other"])


def test_bf16_multiplies_in_bfloat16_on_a_cpu(monkeypatch):
    for value, dtype in (("1", torch.bfloat16), ("", torch.float32)):
        monkeypatch.setenv("BF16", value)
        with mixed_precision(torch.device("cpu")):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_frames_of_a_real_whisper_are_those_of_transformers(small_models, real):
    path = os.path.join(small_models, "whisper-tiny")
    encoder = extract_features.load_encoder(path, "cpu")
    wave = read_audio(os.path.join(real, "ljspeech", "wavs16k", "LJ001-0002.flac"))
    ours = extract_features.encode(encoder, [extract_features.make_feature(encoder.config, wave)])[0]
    whisper = transformers.WhisperModel.from_pretrained(path, dtype=torch.float32).encoder.eval()
    mel = transformers.WhisperFeatureExtractor.from_pretrained(path)(wave, sampling_rate=16000, return_tensors="pt")
    with torch.no_grad():
        theirs = whisper(mel["input_features"]).last_hidden_state[0].numpy()
    assert len(ours) == 95 and np.abs(ours - theirs[:95]).max() < 1e-3 and np.abs(theirs).max() > 5      # 1.9 s
