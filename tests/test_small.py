"""The small systems: their pages, a world in miniature, tokens in the order of time, real models."""
import importlib
import json
import os

import numpy as np
import pytest
import soundfile
import torch
import torch.nn.functional as F
import transformers

import extract_features
from data import small_cpu
from speech_llm.audio import read_audio
from speech_llm.batches import Batch
from speech_llm.constants import STAGES, configure
from speech_llm.llm import load_table
from speech_llm.rows import corpus_of, read_rows
from speech_llm.speechmapper import SlotTargets, SpeechMapper
from speech_llm.token_objective import TokenObjective
from speech_llm.training import optimizer_step

CONTEXT = "anna lives in rome. she has two cats and a dog. her brother peter sings"


# ---------------------------------------------------------------------------------------------------------------------
# pages
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("page", ["small", "small_mapper", "small_night", "small_cpu"])
def test_every_stage_reads_the_pages(page, stage, capsys):
    c = configure(importlib.import_module(stage).Config, stage, ["--preset", page])
    assert getattr(c, "run", page) == page
    assert "tiny" not in repr({name: value for name, value in vars(c).items() if name != "preset"})


# ---------------------------------------------------------------------------------------------------------------------
# the world
def test_passages_are_whole_sentences():
    assert small_cpu.cut_passages(CONTEXT, 11) == [(0, "anna lives in rome. she has two cats and a dog"),
                                                   (48, "her brother peter sings")]
    assert small_cpu.cut_passages(CONTEXT, 4) == [(0, "anna lives in rome"), (48, "her brother peter sings")]


def test_a_passage_has_the_questions_whose_answers_it_holds(tmp_path):
    path = tmp_path / "spoken.json"
    path.write_text(json.dumps(squad([CONTEXT], [[("Where?", "rome"), ("Who sings?", "peter"), ("Colour?", "")]])))
    assert small_cpu.read_passages(str(path), 11) == {0: [
        ("anna lives in rome. she has two cats and a dog", [("Where?", "rome")]),
        ("her brother peter sings", [("Who sings?", "peter")])]}


def squad(contexts, questions):
    """Return articles of one paragraph each in SQuAD's format; questions: [(question, answer)] of each."""
    articles = []
    for n, (context, asked) in enumerate(zip(contexts, questions)):
        qas = [{"id": f"{n}-{question}", "question": question,
                "answers": [{"text": answer, "answer_start": context.find(answer)}]} for question, answer in asked]
        articles.append({"title": str(n), "paragraphs": [{"context": context, "qas": qas}]})
    return {"data": articles}


@pytest.fixture(scope="module")
def downloads(tmp_path_factory):
    """Return a folder with 20 recordings of noise as LJ Speech has them, one of LibriSpeech, and eight articles."""
    raw, noise = tmp_path_factory.mktemp("raw"), np.random.default_rng(0).uniform(-0.1, 0.1, 16000)
    (raw / "ljspeech" / "wavs").mkdir(parents=True)
    (raw / "LibriSpeech" / "test-clean" / "1" / "2").mkdir(parents=True)
    (raw / "spoken_squad").mkdir()
    names = [f"LJ001-{n:04d}" for n in range(1, 21)]
    for name in names:
        soundfile.write(raw / "ljspeech" / "wavs" / f"{name}.wav", noise, 16000)
    lines = [f"{name}|No. {name[-2:]}|Number {name[-2:]}\n" for name in names]
    (raw / "ljspeech" / "metadata.csv").write_text("".join(lines))
    soundfile.write(raw / "LibriSpeech" / "test-clean" / "1" / "2" / "1-2-0000.flac", noise, 16000)
    (raw / "LibriSpeech" / "test-clean" / "1" / "2" / "1-2.trans.txt").write_text("1-2-0000 HE SLEPT\n")
    contexts = [f"word{n} lives in rome. the cat of word{n} sleeps" for n in "abcdefgh"]
    asked = [[(f"Where does word{n} live?", "rome"), (f"What does the cat of word{n} do?", "sleeps")]
             for n in "abcdefgh"]
    (raw / "spoken_squad" / "spoken_test-v1.1.json").write_text(json.dumps(squad(contexts, asked)))
    return raw


@pytest.fixture(scope="module")
def world(downloads, tmp_path_factory):
    """Return {split: rows} of a miniature world, made once."""
    folder = tmp_path_factory.mktemp("small")
    page = folder / "page.py"
    page.write_text('base = "small_cpu"\n'
                    'world = dict(recipe="small_cpu", human=20, words=12, train=2, dev=1, test=1)\n')
    for name in small_cpu.model_names("small_cpu"):
        (folder / "models" / name).mkdir(parents=True)
        (folder / "models" / name / "config.json").write_text("{}")
    small_cpu.main(["--work", str(folder / "work"), "--raw", str(downloads), "--models", str(folder / "models"),
                    "--preset", str(page)])
    rows = folder / "work" / "rows" / "small_cpu"
    assert (folder / "work" / "models" / "whisper-base" / "config.json").read_text() == "{}"
    return {name[:-len(".jsonl")]: read_rows(str(rows / name)) for name in os.listdir(rows) if name.endswith(".jsonl")}


def test_every_tenth_human_recording_is_held_out(world):
    human = {split: [row["utterance"][-2:] for row in rows if corpus_of(row) == "small_cpu-human"]
             for split, rows in world.items()}
    assert human["human"] == ["10"] and human["dev"] == ["20"] and len(human["train"]) == 18
    assert world["human"][0]["transcript"] == "Number 10"
    assert [row["transcript"] for row in world["readers"]] == ["he slept"]


def test_no_article_is_spoken_in_two_splits_and_the_audio_is_speech(world):
    spoken = {split: [row for row in world[split] if corpus_of(row) == "small_cpu"]
              for split in ("train", "dev", "test")}
    words = {split: {row["transcript"].split()[0] for row in rows} for split, rows in spoken.items()}
    assert not words["train"] & words["dev"] | words["train"] & words["test"] | words["dev"] & words["test"]
    for row in spoken["train"]:
        wave = read_audio(row["audio"])
        assert 1 < len(wave) / 16000 < 10 and np.abs(wave).max() > 0.3


def test_a_question_of_another_article_has_no_answer(world):
    rows = [row for row in world["test"] if row["task"] == "SQA"]
    assert [row["answerable"] for row in rows] == [True, False]
    for row in rows:
        word = row["transcript"].split()[0]
        assert (word in row["question"]) == row["answerable"]
        assert (row["target"] == "Not answerable.") != row["answerable"]
    assert len(world["closed"]) == len(world["plain"]) == 2               # a transcription and a question


def test_what_lacks_is_told_with_the_command_that_mends_it(tmp_path):
    with pytest.raises(SystemExit) as stop:
        small_cpu.main(["--work", str(tmp_path)])
    for words in ("LJSpeech-1.1.tar.bz2", "spoken_test-v1.1.json", "hf download openai/whisper-base --local-dir",
                  "hf download HuggingFaceTB/SmolLM2-135M-Instruct --local-dir"):
        assert words in str(stop.value)


# ---------------------------------------------------------------------------------------------------------------------
# tokens in the order of time
TABLE = torch.eye(6)                                     # token 0 is the blank


class Letters:
    """A tokenizer of the letters a to e, 1 to 5."""

    def get_vocab(self):
        return {"_": 0, **{letter: number for number, letter in enumerate("abcde", 1)}}

    def get_added_vocab(self):
        return {}

    def convert_tokens_to_ids(self, token):
        return self.get_vocab()[token]

    def __call__(self, text, add_special_tokens=False):
        return {"input_ids": [self.get_vocab()[letter] for letter in text]}


@pytest.fixture
def objective():
    torch.manual_seed(0)
    mapper = SpeechMapper(width=8, llm_width=6, layers=1, heads=2, ffn=8, dropout=0.0, middle=8)
    frames = {"u": np.random.default_rng(0).standard_normal((12, 8)).astype(np.float16)}
    return TokenObjective(mapper, TABLE, SlotTargets(Letters(), "_", True), frames, 100)


def row_of(text):
    return {"id": "u/ASR.en", "utterance": "u", "task": "ASR", "transcript": text}


def test_a_sample_needs_a_slot_for_every_token_and_one_between_equal_tokens(objective):
    sample = objective.sample(row_of("ABC"))                             # 12 frames are 4 slots
    assert (sample["slots"], sample["target"]) == (4, [1, 2, 3])
    assert objective.sample(row_of("abca"))["target"] == [1, 2, 3, 1]
    assert objective.sample(row_of("abcda")) is None and objective.sample(row_of("aabc")) is None


def test_the_loss_is_small_where_the_tokens_are_in_order_and_of_the_table_s_size(objective):
    batch, lengths = Batch([{"target": [1, 2]}]), torch.tensor([4])
    right = objective.table_losses(batch, TABLE[[1, 0, 2, 2]][None], lengths)
    assert right[0] < 0.01 and right[1] < 1e-9
    assert objective.table_losses(batch, TABLE[[2, 0, 1, 1]][None], lengths)[0] > 10
    doubled = objective.table_losses(batch, objective.mean + 2 * (TABLE[[1, 0, 2, 2]] - objective.mean)[None], lengths)
    assert torch.allclose(doubled, torch.stack([right[0], torch.tensor(4.0)]), atol=1e-5)   # (2 - 1)^2 in each slot


def test_training_writes_the_tokens_in_order(objective):
    samples = [objective.sample(row_of("abc"))]
    optimizer = torch.optim.AdamW([*objective.mapper.parameters(), *objective.head.parameters()], lr=1e-2)
    first, _ = optimizer_step([optimizer], objective, samples, objective.batches(samples))
    assert objective.report(samples)["token errors"] > 0
    for _ in range(60):
        losses, _ = optimizer_step([optimizer], objective, samples, objective.batches(samples))
    assert all(after < before / 4 for after, before in zip(losses, first))
    assert objective.report(samples)["token errors"] == 0


# ---------------------------------------------------------------------------------------------------------------------
# real models
@pytest.mark.parametrize("name", ["whisper-tiny", "whisper-base"])
def test_frames_of_a_real_whisper_are_those_of_transformers(small_models, real, name):
    path = os.path.join(small_models, name)
    encoder = extract_features.load_encoder(path, "cpu")
    wave = read_audio(os.path.join(real, "ljspeech", "wavs16k", "LJ001-0002.flac"))
    ours = extract_features.encode(encoder, [extract_features.make_feature(encoder.config, wave)])[0]
    whisper = transformers.WhisperModel.from_pretrained(path, dtype=torch.float32).encoder.eval()
    mel = transformers.WhisperFeatureExtractor.from_pretrained(path)(wave, sampling_rate=16000, return_tensors="pt")
    with torch.no_grad():
        theirs = whisper(mel["input_features"]).last_hidden_state[0].numpy()
    assert len(ours) == 95 and np.abs(ours - theirs[:95]).max() < 1e-3 and np.abs(theirs).max() > 5      # 1.9 s


def test_a_few_steps_on_a_human_recording_lower_the_loss_on_a_real_table(small_models, real):
    path = os.path.join(small_models, "smollm2-135m-instruct")
    encoder = extract_features.load_encoder(os.path.join(small_models, "whisper-tiny"), "cpu")
    wave = read_audio(os.path.join(real, "ljspeech", "wavs16k", "LJ001-0002.flac"))
    feature = extract_features.make_feature(encoder.config, wave)
    frames = {"u": extract_features.average_frames(extract_features.encode(encoder, [feature])[0], 2)}
    torch.manual_seed(0)
    mapper = SpeechMapper(width=384, llm_width=576, layers=1, heads=2, ffn=64, dropout=0.0, middle=64)
    targets = SlotTargets(transformers.AutoTokenizer.from_pretrained(path), "<|endoftext|>", True)
    objective = TokenObjective(mapper, load_table(path, torch.device("cpu")), targets, frames, 1000)
    samples = [objective.sample(row_of("in being comparatively modern."))]
    optimizer = torch.optim.AdamW([*mapper.parameters(), *objective.head.parameters()], lr=1e-3)
    losses = [optimizer_step([optimizer], objective, samples, objective.batches(samples), 1.0)[0] for _ in range(12)]
    assert all(last < first for last, first in zip(losses[-1], losses[0])) and sum(losses[-1]) < sum(losses[0]) / 2


def test_two_random_tokens_of_a_real_table_are_alike(small_models):
    """The reason why TokenObjective takes the table's mean away."""
    table = load_table(os.path.join(small_models, "smollm2-135m-instruct"), torch.device("cpu"))
    table = table[torch.randperm(len(table), generator=torch.Generator().manual_seed(0))[:2000]]
    for rows, wanted in ((table, 0.43), (table - table.mean(0), 0.0)):
        cosines = F.normalize(rows) @ F.normalize(rows).T
        others = (cosines.sum() - len(rows)) / (len(rows) * (len(rows) - 1))
        assert abs(others - wanted) < 0.05
