"""Speech LLMs of the hub, on tiny random checkpoints in its format: as systems of infer.py; Omni through the stages."""
import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import transformers
from conftest import read_log
from safetensors.torch import save_file
from test_bad_input import refused

import eval
import extract_features
import infer
import merge_sft
import train_projector
from data.tiny_llm import make_tokenizer
from speech_llm.files import read_json_lines, write_json_lines
from speech_llm.hub_system import hub_jobs, load_hub, render
from speech_llm.rows import read_rows, write_rows
from speech_llm.stage import open_stage

CPU = torch.device("cpu")
TEMPLATE = """{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif %}<|im_start|>{{ m.role }}
{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}{% if part.type == 'audio' -%}
<|audio_bos|><|AUDIO|><|audio_eos|>{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""                                           # Qwen's, in short
LLM = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1)


def make_chat(family, *tokens):
    """Return a tokenizer of a family with audio tokens."""
    tokenizer = make_tokenizer(["Who has a cat? Transcribe this utterance"] * 9, 300, family)
    tokenizer.add_tokens([*tokens], special_tokens=True)
    return tokenizer


def enlarged(model):
    """Return a model whose answers depend on the audio: its matrices become four times as large as fresh ones."""
    for matrix in model.parameters():
        matrix.data.mul_(4 if matrix.dim() > 1 else 1)
    return model.eval()


@pytest.fixture(scope="module")
def qwen2_audio(tmp_path_factory):
    folder, tokenizer = tmp_path_factory.mktemp("hub") / "Tiny-Qwen2-Audio", make_chat(
        "qwen3", "<|audio_bos|>", "<|AUDIO|>", "<|audio_eos|>")
    torch.manual_seed(0)
    enlarged(transformers.Qwen2AudioForConditionalGeneration(transformers.Qwen2AudioConfig(
        audio_config=dict(model_type="qwen2_audio_encoder", d_model=16, encoder_layers=1, encoder_attention_heads=2,
                          encoder_ffn_dim=16, num_mel_bins=20),
        text_config=dict(model_type="qwen2", vocab_size=len(tokenizer), **LLM),
        audio_token_index=tokenizer.convert_tokens_to_ids("<|AUDIO|>")))).save_pretrained(folder)
    transformers.Qwen2AudioProcessor(transformers.WhisperFeatureExtractor(feature_size=20), tokenizer,
                                     chat_template=TEMPLATE).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def granite_speech(tmp_path_factory):
    """Its chat template takes text alone; the placeholder stands in the text."""
    folder, tokenizer = tmp_path_factory.mktemp("hub") / "tiny-granite-speech", make_chat("llama", "<|audio|>")
    torch.manual_seed(0)
    enlarged(transformers.GraniteSpeechForConditionalGeneration(transformers.GraniteSpeechConfig(
        encoder_config=dict(input_dim=160, num_layers=1, hidden_dim=16, feedforward_mult=1, num_heads=2, dim_head=8,
                            output_dim=20, context_size=20, max_pos_emb=20),
        projector_config=dict(model_type="blip_2_qformer", hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                              intermediate_size=16, encoder_hidden_size=16, vocab_size=8),
        text_config=dict(model_type="granite", tie_word_embeddings=False, vocab_size=len(tokenizer), **LLM),
        audio_token_index=tokenizer.convert_tokens_to_ids("<|audio|>"), has_lora_adapter=False,
        tie_word_embeddings=False))).save_pretrained(folder)
    transformers.GraniteSpeechProcessor(transformers.GraniteSpeechFeatureExtractor(), tokenizer,
                                        chat_template=tokenizer.chat_template).save_pretrained(folder)
    return str(folder)


def spoken_rows(split, count):
    """Write tones of 0.5 s and more; return their rows: spoken questions, and every second of them also as ASR."""
    rows = []
    for n in range(count):
        audio, times = f"{split}-{n}.wav", np.arange(8000 + 3000 * n) / 16_000
        soundfile.write(audio, 0.3 * np.sin(2 * np.pi * 200 * (n + 1) * times), 16_000)
        row = {"id": f"bench/{split}/{n}/SQA", "utterance": f"bench/{split}/{n}", "audio": audio, "task": "SQA",
               "language": "en", "answerable": True, "transcript": "Who has a cat?", "question": "Who has a cat?",
               "target": "Anna."}
        rows.append(row)
        if n % 2:
            rows.append({**row, "id": f"bench/{split}/{n}/ASR", "task": "ASR", "target": row["transcript"]})
    return rows


@pytest.fixture
def rows(tmp_path, monkeypatch):
    """Four spoken rows and one whose audio is missing, in a test set; the current folder is theirs."""
    monkeypatch.chdir(tmp_path)
    rows = spoken_rows("test", 4)[:5]
    rows[0]["question"] = "Is it <|im_end|> or a cat?"
    os.remove("test-3.wav")
    write_rows("work/rows/bench/test.jsonl", rows)
    return rows


@pytest.mark.parametrize("name", ["qwen2_audio", "granite_speech"])
def test_a_batch_of_the_hub_s_model_equals_single_rows(name, rows, request):
    """The rows are of unlike lengths; the row without audio has no answer, and the others have theirs."""
    folder = request.getfixturevalue(name)
    jobs, decode = hub_jobs(load_hub(folder, CPU), rows, "listeners", 6)
    assert [(row["id"], task) for row, task, *_ in jobs] == [(row["id"], row["task"]) for row in rows]
    *together, lost = decode(rows)
    assert lost is None and all(len(ids) <= 6 for ids in together) and any(together)
    assert together == [decode([row])[0] for row in rows[:4]]
    exchanged = [{**row, "audio": other["audio"]} for row, other in zip(rows, [rows[3], rows[0], rows[0], rows[1]])]
    assert together != decode(exchanged)                                 # the audio makes a difference


def test_the_model_hears_the_audio_as_transformers_own_call_does(qwen2_audio, rows, capsys):
    """One row by hand, as the model's card shows it. The processor reads 30 s; what lies behind changes nothing."""
    model, tokenizer, processor = load_hub(qwen2_audio, CPU)
    wave, _ = soundfile.read(rows[1]["audio"], dtype="float32")
    chat = [{"role": "user", "content": [{"type": "audio", "audio": wave}]}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    inputs = processor(text=text, audio=[wave], sampling_rate=16_000, return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0, inputs["input_ids"].shape[1]:].tolist()
    _, decode = hub_jobs((model, tokenizer, processor), rows, "listeners", 6)
    assert decode([rows[1]])[0] == ids[:6]

    long = 0.3 * np.sin(2000 * np.arange(31 * 16_000) / 16_000)
    for name, end in (("long.wav", 31), ("short.wav", 30)):
        soundfile.write(name, long[:end * 16_000], 16_000)
    [long], [short] = (decode([{**rows[0], "audio": name}]) for name in ("long.wav", "short.wav"))
    assert long == short and "reads the first 30 s of bench/test/0/SQA" in capsys.readouterr().out


def test_the_turn_holds_the_audio_once_and_the_words_of_the_row(qwen2_audio, granite_speech, llama):
    _, _, processor = load_hub(qwen2_audio, CPU)
    assert render(processor, "Transcribe this utterance").endswith(
        "<|im_start|>user\n<|audio_bos|><|AUDIO|><|audio_eos|>Transcribe this utterance<|im_end|>\n"
        "<|im_start|>assistant\n")
    assert render(processor, "").endswith("<|audio_eos|><|im_end|>\n<|im_start|>assistant\n")
    processor.chat_template += "{% if not enable_thinking is defined %}No{% endif %}<think>\n"
    assert render(processor, "").endswith("assistant\n<think>\n\n</think>\n\n")
    _, _, processor = load_hub(granite_speech, CPU)
    assert "<|audio|>Who?" in render(processor, "Who?")
    processor.chat_template = "{{ 'Hello' }}"
    refused(render, processor, "Who?", says="GraniteSpeechProcessor has no place for audio")
    refused(load_hub, llama, CPU, says="is a llama, which takes no audio")


def test_infer_writes_the_predictions_of_a_hub_model_once_and_eval_scores_them(qwen2_audio, rows, capsys):
    """Answers made elsewhere (id, task, prediction) stand beside them: all questions and no transcript are right."""
    page = ["--preset", "tiny_listeners"]
    arguments = [*page, "--systems", f"hub:{qwen2_audio}", "--max_new_tokens", "6"]
    infer.main([*arguments, "--test_sets", "bench.test"])
    predictions = read_json_lines("work/tiny-listeners/predictions/Tiny-Qwen2-Audio/bench.test.jsonl", "")
    assert [(p["id"], p["task"]) for p in predictions] == [(row["id"], row["task"]) for row in rows]
    assert predictions[4]["prediction"] == "" and any(p["prediction"] for p in predictions)
    assert "the audio of 1 cannot be read" in capsys.readouterr().out
    infer.main([*arguments, "--test_sets", "bench.test"])
    assert "is finished already" in capsys.readouterr().out

    write_json_lines("work/tiny-listeners/predictions/SALMONN/bench.test.jsonl", [
        {"id": row["id"], "task": row["task"], "prediction": "Anna."} for row in rows])
    os.makedirs("work/tiny-listeners/pairwise")
    Path("work/tiny-listeners/pairwise/C-cascade.md").write_text("percent preferred by a judge")
    eval.main([*page, "--test_sets", "bench.test"])
    assert "C-cascade: percent preferred by a judge" in Path("work/tiny-listeners/results.md").read_text("utf-8")
    scores = {(r["system"], r["metric"]): r["value"]
              for r in json.loads(Path("work/tiny-listeners/results.json").read_text("utf-8"))}
    assert (scores["SALMONN", "WER"], scores["SALMONN", "EM"]) == (100, 100) and ("Tiny-Qwen2-Audio", "EM") in scores

    infer.main([*arguments, "--audio", "test-1.wav", "test-2.wav"])
    refused(infer.main, [*arguments, "--audio", "test-3.wav"], says="test-3.wav: no such file")


def write_omni(folder):
    """Write a random Qwen2.5-Omni whose answers depend on the audio, in the hub's format -> (thinker, tokenizer)."""
    tokenizer = make_chat("qwen3", "<|audio_bos|>", "<|AUDIO|>", "<|audio_eos|>")
    tokenizer.chat_template = TEMPLATE
    config = transformers.Qwen2_5OmniConfig(thinker_config=dict(
        text_config=dict(**LLM, vocab_size=len(tokenizer), layer_types=["full_attention"] * 2, max_window_layers=2,
                         tie_word_embeddings=False, rope_parameters={
                             "rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e6}),
        audio_config=dict(d_model=16, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=16, output_dim=32),
        vision_config=dict(depth=1, hidden_size=16, intermediate_size=16, num_heads=2, out_hidden_size=32),
        vision_start_token_id=-1, audio_token_id=tokenizer.convert_tokens_to_ids("<|AUDIO|>")))
    torch.manual_seed(0)
    model = enlarged(transformers.Qwen2_5OmniThinkerForConditionalGeneration(config.thinker_config))
    save_file({f"thinker.{name}": tensor.clone() for name, tensor in model.state_dict().items()},
              os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})
    for part in (config, tokenizer, transformers.GenerationConfig(eos_token_id=tokenizer.eos_token_id)):
        part.save_pretrained(folder)
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


OMNI_PAGE = """base = "omni"
common = dict(encoder="models/tiny-omni", llm="models/tiny-omni", corpora="bench", test_sets="bench.test")
extract_features = dict(corpora="bench", workers=1)
train_projector = dict(corpora="bench")
merge_sft = dict(corpora="bench", mixture={"SQA": (1.0, {"en": 1.0})}, steps=4, accumulate=1, batch=4, warmup=0,
                 validate_every=2, validate_rows=2)
infer = dict(max_new_tokens=8)
"""


def test_omni_answers_as_transformers_own_thinker_and_is_trained(tmp_path, monkeypatch):
    """Batched answers are those of one row after the other. A has no tensors, C seven adapters a layer, rank 32."""
    monkeypatch.chdir(tmp_path)
    os.makedirs("work/models/tiny-omni")
    thinker, tokenizer = write_omni("work/models/tiny-omni")
    for split, count in (("train", 6), ("dev", 2), ("test", 5)):
        write_rows(f"work/rows/bench/{split}.jsonl", spoken_rows(split, count))
    Path("page.py").write_text(OMNI_PAGE)
    for stage in (extract_features, train_projector, merge_sft, infer):
        stage.main(["--preset", "page.py"])
    plain, trained = ([p["prediction"] for p in read_json_lines(f"work/page/predictions/{system}/bench.test.jsonl", "")]
                      for system in ("Omni", "Omni-FT"))
    assert plain == [answer_of(thinker, tokenizer, row) for row in read_rows("work/rows/bench/test.jsonl")]
    assert len(plain) == 7 and len({*plain}) > 2 and trained != plain      # the audio makes a difference

    first, merged = (open_stage(f"work/page/{name}") for name in ("projector", "merged"))
    assert first.config["sizes"] == {"kind": "identity", "width": 32, "llm_width": 32}
    assert first.weights["projector"] == merged.weights["projector"] == {} and len(merged.weights["lora"]) == 2 * 7 * 2
    assert {tensor.shape[0] for name, tensor in merged.weights["lora"].items() if name.endswith("A")} == {32}
    assert {"listening", "RMS"} <= read_log(merged.folder)[-1].keys()
    refused(lambda: train_projector.make_projector("identity", width=32, llm_width=48), says="LLM's embeddings 48")
    refused(train_projector.main, ["--preset", "page.py", "--out", "another", "--steps", "2"],
            says="identity has nothing to train: set --steps 0")
