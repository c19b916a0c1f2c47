"""Speech LLMs of the hub as systems of infer.py, on tiny random checkpoints in the hub's format."""
import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import transformers

import eval
import infer
from data.tiny_models import make_tokenizer
from speech_llm.files import write_json_lines
from speech_llm.hub_system import hub_jobs, load_hub, render
from speech_llm.rows import write_rows

CPU = torch.device("cpu")
QWEN = """{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif %}<|im_start|>{{ m.role }}
{% for part in m.content %}{% if part.type == 'audio' %}Audio 1: <|audio_bos|><|AUDIO|><|audio_eos|>
{% else %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""                                          # the hub's, without its counter of audios
LLM = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1)


def save(folder, model, processor):
    """Write a checkpoint whose answers depend on the audio: its matrices are four times as large as fresh ones."""
    for matrix in model.parameters():
        matrix.data.mul_(4 if matrix.dim() > 1 else 1)
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def qwen2_audio(tmp_path_factory):
    tokenizer = make_tokenizer(["Who has a cat?"] * 9, 300, "qwen3")
    tokenizer.add_tokens(["<|audio_bos|>", "<|AUDIO|>", "<|audio_eos|>"], special_tokens=True)
    torch.manual_seed(0)
    model = transformers.Qwen2AudioForConditionalGeneration(transformers.Qwen2AudioConfig(
        audio_config=dict(model_type="qwen2_audio_encoder", d_model=16, encoder_layers=1, encoder_attention_heads=2,
                          encoder_ffn_dim=16, num_mel_bins=20),
        text_config=dict(model_type="qwen2", vocab_size=len(tokenizer), **LLM),
        audio_token_index=tokenizer.convert_tokens_to_ids("<|AUDIO|>")))
    processor = transformers.Qwen2AudioProcessor(transformers.WhisperFeatureExtractor(feature_size=20), tokenizer,
                                                 chat_template=QWEN)
    return save(tmp_path_factory.mktemp("hub") / "Tiny-Qwen2-Audio", model, processor)


@pytest.fixture(scope="module")
def granite_speech(tmp_path_factory):
    """Its chat template, the LLM's own, takes text alone; the placeholder stands in the text."""
    tokenizer = make_tokenizer(["Who has a cat?"] * 9, 300, "llama")
    tokenizer.add_tokens(["<|audio|>"], special_tokens=True)
    torch.manual_seed(0)
    model = transformers.GraniteSpeechForConditionalGeneration(transformers.GraniteSpeechConfig(
        encoder_config=dict(input_dim=160, num_layers=1, hidden_dim=16, feedforward_mult=1, num_heads=2, dim_head=8,
                            output_dim=20, context_size=20, max_pos_emb=20),
        projector_config=dict(model_type="blip_2_qformer", hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                              intermediate_size=16, encoder_hidden_size=16, vocab_size=8),
        text_config=dict(model_type="granite", tie_word_embeddings=False, vocab_size=len(tokenizer), **LLM),
        audio_token_index=tokenizer.convert_tokens_to_ids("<|audio|>"), has_lora_adapter=False,
        tie_word_embeddings=False))
    processor = transformers.GraniteSpeechProcessor(transformers.GraniteSpeechFeatureExtractor(), tokenizer,
                                                    chat_template=tokenizer.chat_template)
    return save(tmp_path_factory.mktemp("hub") / "tiny-granite-speech", model, processor)


@pytest.fixture
def rows(tmp_path, monkeypatch):
    """Three spoken rows and one whose audio is missing, in a test set; the current folder is theirs."""
    monkeypatch.chdir(tmp_path)
    rows = []
    for number, (seconds, task) in enumerate(((1.0, "SQA"), (0.4, "ASR"), (1.7, "SQA"), (0, "ASR"))):
        audio = f"{number}.wav"
        if seconds:
            times = np.arange(int(16_000 * seconds)) / 16_000
            soundfile.write(audio, 0.3 * np.sin(2 * np.pi * 300 * 4**number * times), 16_000)
        rows.append({"id": f"bench/{number}", "utterance": f"bench/{number}", "audio": audio, "task": task,
                     "language": "en", "answerable": True, "transcript": "Who has a cat?", "target": "Anna"})
        if task == "SQA":
            rows[-1]["question"] = "Who has a cat?" if number else "Is it <|im_end|> or a cat?"
    write_rows("work/rows/bench/test.jsonl", rows)
    return rows


@pytest.mark.parametrize("name", ["qwen2_audio", "granite_speech"])
def test_a_batch_of_the_hub_s_model_equals_single_rows(name, rows, request):
    """The rows are of unlike lengths; the row without audio has no answer, and the others have theirs."""
    folder = request.getfixturevalue(name)
    jobs, decode = hub_jobs(load_hub(folder, CPU), rows, "listeners", 6)
    assert [(row["id"], task) for row, task, *_ in jobs] == [(row["id"], row["task"]) for row in rows]
    together = decode(rows)
    assert together[3] is None and all(len(ids) <= 6 for ids in together[:3]) and any(together[:3])
    assert together[:3] == [decode([row])[0] for row in rows[:3]]
    exchanged = [{**row, "audio": other["audio"]} for row, other in zip(rows, [rows[2], rows[0], rows[1]])]
    assert together[:3] != decode(exchanged)                             # the audio makes a difference


def test_the_model_hears_the_audio_as_transformers_own_call_does(qwen2_audio, rows):
    """One row by hand, as the model's card shows it: the template, the processor, generate."""
    model, tokenizer, processor = load_hub(qwen2_audio, CPU)
    wave, _ = soundfile.read(rows[2]["audio"], dtype="float32")
    chat = [{"role": "user", "content": [{"type": "audio", "audio": wave}]}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    inputs = processor(text=text, audio=[wave], sampling_rate=16_000, return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0, inputs["input_ids"].shape[1]:].tolist()
    _, decode = hub_jobs((model, tokenizer, processor), rows, "listeners", 6)
    assert decode([rows[2]])[0] == ids[:6]


def test_audio_beyond_the_processor_s_window_is_told(qwen2_audio, rows, capsys):
    """Qwen2-Audio's processor reads 30 s; what lies behind them changes nothing."""
    times = np.arange(31 * 16_000) / 16_000
    for name, end in (("long.wav", 31), ("short.wav", 30)):
        soundfile.write(name, 0.3 * np.sin(2000 * times[:end * 16_000]), 16_000)
    _, decode = hub_jobs(load_hub(qwen2_audio, CPU), rows, "listeners", 4)
    [long], [short] = (decode([{**rows[0], "audio": name}]) for name in ("long.wav", "short.wav"))
    assert long == short and "the processor reads the first 30 s of bench/0" in capsys.readouterr().out


def test_the_turn_holds_the_audio_once_and_the_words_of_the_row(qwen2_audio, granite_speech):
    _, _, processor = load_hub(qwen2_audio, CPU)
    assert render(processor, "Transcribe this utterance").endswith(
        "<|im_start|>user\nAudio 1: <|audio_bos|><|AUDIO|><|audio_eos|>\nTranscribe this utterance<|im_end|>\n"
        "<|im_start|>assistant\n")
    assert render(processor, "").endswith("<|audio_eos|>\n<|im_end|>\n<|im_start|>assistant\n")
    processor.chat_template += "{% if not enable_thinking is defined %}No{% endif %}<think>\n"
    assert render(processor, "").endswith("assistant\n<think>\n\n</think>\n\n")
    _, _, processor = load_hub(granite_speech, CPU)
    assert "<|audio|>Who?" in render(processor, "Who?")
    processor.chat_template = "{{ 'Hello' }}"
    with pytest.raises(ValueError, match="GraniteSpeechProcessor has no place for audio"):
        render(processor, "Who?")


def test_infer_writes_the_predictions_of_a_hub_model_once(qwen2_audio, rows, capsys):
    """The folder of the predictions is the model's last name; a second run and a killed one do nothing twice."""
    arguments = ["--preset", "tiny_listeners", "--systems", f"hub:{qwen2_audio}", "--test_sets", "bench.test",
                 "--max_new_tokens", "6"]
    infer.main(arguments)
    path = "work/tiny-listeners/predictions/Tiny-Qwen2-Audio/bench.test.jsonl"
    with open(path, encoding="utf-8") as file:
        predictions = [json.loads(line) for line in file]
    assert [(p["id"], p["task"]) for p in predictions] == [(row["id"], row["task"]) for row in rows]
    assert predictions[3]["prediction"] == "" and any(p["prediction"] for p in predictions)
    assert "the audio of 1 cannot be read" in capsys.readouterr().out
    infer.main(arguments)
    assert "is finished already" in capsys.readouterr().out
    os.remove(path)                                      # two rows of a killed run
    with open(f"{path}.partial.0", "w", encoding="utf-8") as file:
        file.writelines(json.dumps({**p, "prediction": "before"}) + "\n" for p in predictions[:2])
    infer.main([*arguments, "--batch", "2"])
    with open(path, encoding="utf-8") as file:
        assert sum(json.loads(line)["prediction"] == "before" for line in file) >= 1


def test_predictions_made_elsewhere_are_scored_beside_ours(rows):
    """A file with id, task and prediction a line is enough; one of two transcripts is wrong."""
    elsewhere = [{"id": row["id"], "task": row["task"], "prediction": "Anna"} for row in rows]
    elsewhere[1]["prediction"] = "Bob"
    write_json_lines("work/tiny-listeners/predictions/SALMONN/bench.test.jsonl", elsewhere)
    os.makedirs("work/tiny-listeners/pairwise")
    Path("work/tiny-listeners/pairwise/C-cascade.md").write_text("bench.test, percent preferred by a judge")
    eval.main(["--preset", "tiny_listeners", "--test_sets", "bench.test"])
    table = Path("work/tiny-listeners/results.md").read_text(encoding="utf-8")
    assert "C-cascade: bench.test, percent preferred by a judge" in table
    with open("work/tiny-listeners/results.json", encoding="utf-8") as file:
        scores = {r["metric"]: r["value"] for r in json.load(file) if r["system"] == "SALMONN"}
    assert (scores["WER"], scores["EM"]) == (50, 100)


def test_an_audio_file_is_answered_by_a_hub_model(qwen2_audio, rows, capsys):
    arguments = ["--preset", "tiny_listeners", "--systems", f"hub:{qwen2_audio}", "--max_new_tokens", "6", "--audio"]
    infer.main([*arguments, "1.wav", "2.wav"])
    assert len(capsys.readouterr().out.splitlines()) == 2
    with pytest.raises(SystemExit, match="3.wav: no such file"):
        infer.main([*arguments, "3.wav"])


def test_a_model_that_takes_no_audio_is_refused(tmp_path):
    tokenizer = make_tokenizer(["Who has a cat?"] * 9, 300, "llama")
    transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=len(tokenizer), **LLM)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a llama, which takes no audio"):
        load_hub(str(tmp_path), CPU)
