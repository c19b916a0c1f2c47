"""Qwen2.5-Omni through the stages; what the listeners' pages ask of the sampler, the extraction and the pipeline."""
import json
import os
from collections import Counter
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
import transformers
from safetensors.torch import save_file

import extract_features
import infer
import merge_sft
import train_projector
from data.tiny_models import make_tokenizer
from metrics import speech_ifeval
from speech_llm import pipeline
from speech_llm.constants import next_command, read_page
from speech_llm.draws import draw
from speech_llm.index import Rows
from speech_llm.rows import ALL_LANGUAGES, read_rows, write_rows
from speech_llm.stage import open_stage

TEMPLATE = """{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif %}<|im_start|>{{ m.role }}
{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}{% if part.type == 'audio' -%}
<|audio_bos|><|AUDIO|><|audio_eos|>{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def write_omni(folder):
    """Write a random Qwen2.5-Omni whose answers depend on the audio, in the hub's format -> (thinker, tokenizer)."""
    tokenizer = make_tokenizer(["Who has a cat? Transcribe this utterance"] * 9, 300, "qwen3")
    tokenizer.add_tokens(["<|audio_bos|>", "<|AUDIO|>", "<|audio_eos|>"], special_tokens=True)
    tokenizer.chat_template = TEMPLATE
    config = transformers.Qwen2_5OmniConfig()
    thinker = config.thinker_config
    thinker.vision_start_token_id, thinker.audio_token_id = -1, tokenizer.convert_tokens_to_ids("<|AUDIO|>")
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e6}
    for part, sizes in ((thinker.text_config, dict(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48,
                                                   num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
                                                   layer_types=["full_attention"] * 2, max_window_layers=2,
                                                   tie_word_embeddings=False, rope_parameters=rope)),
                        (thinker.audio_config, dict(d_model=16, encoder_layers=1, encoder_attention_heads=2,
                                                    encoder_ffn_dim=16, output_dim=32)),
                        (thinker.vision_config, dict(depth=1, hidden_size=16, intermediate_size=16, num_heads=2,
                                                     out_hidden_size=32))):
        for name, value in sizes.items():
            setattr(part, name, value)
    torch.manual_seed(0)
    model = transformers.Qwen2_5OmniThinkerForConditionalGeneration(thinker).eval()
    for matrix in model.parameters():
        matrix.data.mul_(4 if matrix.dim() > 1 else 1)
    save_file({f"thinker.{name}": tensor.clone() for name, tensor in model.state_dict().items()},
              os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    transformers.GenerationConfig(eos_token_id=tokenizer.eos_token_id).save_pretrained(folder)
    return model, tokenizer


def answer_of(thinker, tokenizer, row):
    """Return transformers' own answer to a row: Whisper's features, the chat template, the thinker's generate."""
    wave, rate = soundfile.read(row["audio"], dtype="float32")
    features = transformers.WhisperFeatureExtractor(feature_size=128)(
        wave, sampling_rate=rate, return_tensors="pt", padding="max_length", return_attention_mask=True)
    count = ((features["attention_mask"].sum().item() - 1) // 2 + 1 - 2) // 2 + 1        # as its processor counts
    words = [{"type": "text", "text": "Transcribe this utterance"}] * (row["task"] == "ASR")
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": [{"type": "audio"}, *words]}], tokenize=False,
                                           add_generation_prompt=True).replace("<|AUDIO|>", "<|AUDIO|>" * count)
    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
    output = thinker.generate(input_ids=ids, input_features=features["input_features"],
                              feature_attention_mask=features["attention_mask"], do_sample=False, max_new_tokens=8,
                              eos_token_id=tokenizer.eos_token_id)[0, ids.shape[1]:]
    return tokenizer.decode(output, skip_special_tokens=True).strip()


def spoken_rows(split, count):
    """Return rows of tones: spoken questions, and every second of them also as ASR."""
    rows = []
    for n in range(count):
        audio, times = f"{split}-{n}.wav", np.arange(8000 + 3000 * n) / 16_000
        soundfile.write(audio, 0.3 * np.sin(2 * np.pi * 200 * (n + 1) * times), 16_000)
        row = {"id": f"bench/{split}/{n}/SQA", "utterance": f"bench/{split}/{n}", "audio": audio, "task": "SQA",
               "language": "en", "transcript": "Who has a cat?", "question": "Who has a cat?", "target": "Anna."}
        rows.append(row)
        if n % 2:
            rows.append({**row, "id": f"bench/{split}/{n}/ASR", "task": "ASR", "target": row["transcript"]})
    return rows


@pytest.fixture(scope="module")
def omni(tmp_path_factory):
    """A folder with a tiny Omni, rows, frames and a page; both of its systems are trained and decoded."""
    folder, before = tmp_path_factory.mktemp("omni"), os.getcwd()
    os.chdir(folder)
    try:
        os.makedirs("work/models/tiny-omni")
        parts = write_omni("work/models/tiny-omni")
        for split, count in (("train", 6), ("dev", 2), ("test", 5)):
            write_rows(f"work/rows/bench/{split}.jsonl", spoken_rows(split, count))
        with open("page.py", "w") as file:
            file.write('base = "omni"\ncommon = dict(encoder="models/tiny-omni", llm="models/tiny-omni", '
                       'corpora="bench", test_sets="bench.test")\nextract_features = dict(corpora="bench", workers=1)\n'
                       'train_projector = dict(corpora="bench")\n'
                       'merge_sft = dict(corpora="bench", mixture={"SQA": (1.0, {"en": 1.0})}, steps=4, accumulate=1, '
                       'batch=4, warmup=0, validate_every=2, validate_rows=2)\ninfer = dict(max_new_tokens=8)\n')
        page = ["--preset", "page.py"]
        for stage in (extract_features, train_projector, merge_sft):
            stage.main(page)
        infer.main(page)
        yield folder, *parts
    finally:
        os.chdir(before)


def predictions(folder, system):
    with open(folder / "work/page/predictions" / system / "bench.test.jsonl", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def test_omni_without_adapters_answers_as_transformers_own_thinker(omni):
    """From audio to answer: stage 0's cache, in batches, and the identity, against one row after the other."""
    folder, thinker, tokenizer = omni
    ours = [p["prediction"] for p in predictions(folder, "Omni")]
    assert ours == [answer_of(thinker, tokenizer, row) for row in read_rows(folder / "work/rows/bench/test.jsonl")]
    assert len(ours) == 7 and len({*ours}) > 2                           # the audio makes a difference


def test_the_identity_is_a_projector_without_tensors(omni):
    """Stage A holds none, C trains the adapters alone: seven matrices in each of two layers, rank 32."""
    omni, *_ = omni
    first, merged = (open_stage(str(omni / "work/page" / name)) for name in ("projector", "merged"))
    assert first.weights == {"projector": {}} and first.config["sizes"] == {"kind": "identity", "width": 32,
                                                                           "llm_width": 32}
    assert merged.weights["projector"] == {} and len(merged.weights["lora"]) == 2 * 7 * 2
    assert {tensor.shape[0] for name, tensor in merged.weights["lora"].items() if name.endswith("A")} == {32}
    assert predictions(omni, "Omni-FT") != predictions(omni, "Omni")
    with open(omni / "work/page/merged/log.jsonl") as file:
        lines = [json.loads(line) for line in file]
    validations = [line for line in lines if "validation_loss" in line]
    assert validations[-1]["step"] == 4 and {"listening", "RMS"} <= validations[-1].keys()
    with pytest.raises(SystemExit, match="the encoder's frames have 32 numbers, the LLM's embeddings 48"):
        train_projector.make_projector("identity", width=32, llm_width=48)
    with pytest.raises(SystemExit, match="identity has nothing to train: set --steps 0"):
        train_projector.main(["--preset", str(omni / "page.py"), "--work", str(omni / "work"), "--out", "another",
                              "--steps", "2"])


def test_the_page_is_the_paper_s():
    """(section 5, Table 5) 3 epochs of 90,000 questions in each of 23 languages, in batches of 256."""
    page = read_page("omni")["merge_sft"]
    batch = merge_sft.Config().batch * page["accumulate"]
    assert (page["random_r"], batch) == (32, 256) and round(3 * 23 * 90_000 / batch) == page["steps"]
    assert page["mixture"]["SQA"][1].keys() == ALL_LANGUAGES.keys()


# --- The sampler, the extraction, the pipeline.

def test_mixed_draws_hold_many_languages():
    """Rows of a draw choose their language alone, with the same shares; a text draw has the languages of its speech."""
    rows = Rows.of([{"id": f"x/{language}/{n}", "utterance": f"x/{language}/{n}", "audio": "a.wav", "task": "SQA",
                     "language": language, "answerable": True, "transcript": "q", "question": "q", "target": "a"}
                    for language in ("en", "de", "it", "zh") for n in range(9)])
    mixture = {"SQA": (1.0, {"en": 0.4, "de": 0.3, "it": 0.2, "zh": 0.1})}
    alone = islice(draw(rows, mixture, {}, 16, 16, seed=0), 20)
    assert {len({row["language"] for row in drawn}) for drawn, _ in alone} == {1}
    draws = [*islice(draw(rows, mixture, {}, 16, 16, seed=0, mixed=True), 400)]
    assert all(len(drawn) == 16 and not text for drawn, text in draws)
    assert np.mean([len({row["language"] for row in drawn}) for drawn, _ in draws]) > 3
    counts = Counter(row["language"] for drawn, _ in draws for row in drawn)
    assert [counts[name] / 6400 for name in ("en", "de", "it", "zh")] == pytest.approx([0.4, 0.3, 0.2, 0.1], abs=0.02)
    pairs = islice(draw(rows, mixture, {}, 8, 8, seed=0, paired_text=True, mixed=True), 6)
    texts = [([row["language"] for row in drawn], text) for drawn, text in pairs]
    assert [text for _, text in texts] == [False, True] * 3
    assert all(speech[0] == paired[0] for speech, paired in zip(texts[::2], texts[1::2]))


def test_a_corpus_may_be_one_of_its_splits(tmp_path):
    for split in ("train", "dev", "test"):
        write_rows(f"{tmp_path}/rows/bench/{split}.jsonl",
                   [{"id": f"bench/{split}/1", "utterance": f"bench/{split}/1", "audio": "a.wav", "task": "ASR",
                     "language": "en", "transcript": "a", "target": "a"}])
    c = extract_features.configure(extract_features.Config, "extract_features",
                                   ["--work", str(tmp_path), "--corpora", "bench.test"])
    assert [(corpus, split) for corpus, split, _ in extract_features.splits_of(c)] == [("bench", "test")]


@pytest.mark.parametrize("name", ["listeners", "listeners_ast", "listeners_ten", "listeners_ten_ast", "omni"])
def test_nothing_is_extracted_that_no_stage_reads(name):
    """Splits that the page extracts: train and dev of what its stages train on, and its test sets."""
    page = read_page(name)
    stages = [{"corpora": page["train_projector"]["corpora"]}, page["merge_sft"]]
    stages += [read_page(entry.split()[-1])["merge_sft"] for entry in page["stages"] if "--preset" in entry]
    read = {f"{corpus}.{split}" for stage in stages for corpus in stage["corpora"].split(",")
            for split in ("train", "dev")}
    assert {*page["extract_features"]["corpora"].split(",")} == read | {*page["common"]["test_sets"].split(",")}


def test_pairs_of_systems_are_judged_at_the_end(tmp_path, monkeypatch, capsys):
    """ALL against the cascade; another page's system where it has predictions; JUDGE replaces the judge."""
    monkeypatch.setenv("JUDGE", "a judge")

    def pairs(preset):
        pipeline.main([preset, "--dry", "--work", str(tmp_path)])
        printed = capsys.readouterr().out.splitlines()
        lines = [line for line in printed if "metrics.pairwise" in line]
        rows = f"--judge 'a judge' --rows {tmp_path}/rows/multispeechqa/bench.jsonl"
        assert all(line.endswith(rows) for line in lines) and "eval.py" in printed[-1]
        return [tuple(os.path.relpath(word, tmp_path).replace("/predictions", "") for word in line.split()[3:5])
                for line in lines]
    assert pairs("listeners") == [("listeners/C", "listeners/cascade")]
    assert pairs("omni") == [("omni/Omni-FT", "omni/Omni")] and pairs("tiny_listeners") == []
    for system in ("C", "cascade", "C-ten"):
        os.makedirs(tmp_path / "listeners/predictions" / system)
    assert pairs("listeners_ast") == [("listeners/C", "listeners/cascade"), ("listeners/C-ast", "listeners/C"),
                                      ("listeners/C-ten", "listeners/C"), ("listeners/C-ast", "listeners/C-ten")]
    assert pairs("omni")[1:] == [(f"omni/{system}", "listeners/cascade") for system in ("Omni", "Omni-FT")]


@pytest.mark.parametrize("stage, preset, following", [
    ("extract_features", "listeners", "train_projector.py --preset listeners"),
    ("train_projector", "listeners", "merge_sft.py --preset listeners_align"),
    ("merge_sft", "listeners-align", "merge_sft.py --preset listeners --work w"),
    ("merge_sft", "listeners_ten_align", "merge_sft.py --preset listeners"),
    ("merge_sft", "listeners", "infer.py --preset listeners"),
    ("train_projector", "omni", "merge_sft.py --preset omni"),
    ("train_projector", "iwslt25", "train_lora.py --preset iwslt25"), ("infer", "omni", "eval.py --preset omni")])
def test_a_stage_names_the_stage_that_follows(stage, preset, following):
    assert next_command(stage, SimpleNamespace(preset=preset, work="w")).startswith(f"python {following}")


def test_forgetting_is_told_against_each_reference():
    """40 % of constraints obeyed is 20 % less than 50 % and half of 80 %."""
    rates = {"cascade": 50.0, "llm": 80.0, "C": 40.0}
    table = speech_ifeval.tables({name: {"closed": rate, "constraints": {}, "tasks": {}}
                                  for name, rate in rates.items()},
                                 ["cascade", "llm"]).splitlines()
    assert table[0] == ("| system | closed | forgetting, closed against cascade | forgetting, closed against llm |")
    assert table[2:5] == ["| cascade | 50.00 |  |  |", "| llm | 80.00 |  |  |", "| C | 40.00 | -20.00 | -50.00 |"]


@pytest.mark.parametrize("name", ["listeners", "omni", "iwslt25", "iwslt26"])
def test_the_sweep_s_references_are_the_cascade_and_the_llm_on_gold_transcripts(name, capsys):
    pipeline.main([name, "sweep", "--dry"])
    command = next(line for line in capsys.readouterr().out.splitlines() if "metrics.speech_ifeval" in line)
    folder = f"work/{name}/predictions"
    assert f"--reference {folder}/cascade {folder}/llm --corpus" in command
    assert f"{folder}/cascade" not in command.partition("--reference")[0]
