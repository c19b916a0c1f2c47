"""Greedy decoding: the batch changes nothing, predictions survive a kill, and any audio file gets an answer."""
import contextlib
import json
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
import transformers

import infer
import train_projector
from data.tiny_models import seamless_config
from infer import cut_at_pauses, find_loop
from speech_llm import batches, decode
from speech_llm.decode import generate
from speech_llm.llm import load_llm, stop_ids
from speech_llm.rows import read_rows, write_rows


PREDICTIONS = "work/tiny/predictions/C/tiny.test.jsonl"


@pytest.fixture(scope="module")
def llm(llama):
    return load_llm(llama, torch.device("cpu"))


@torch.no_grad()
def plainly(llm, prompt, max_new_tokens, stops):
    """Greedy decoding of one prompt (L, D) without a cache: everything is computed anew for every token."""
    ids = []
    while len(ids) < max_new_tokens:
        new = llm.get_input_embeddings()(torch.tensor(ids, dtype=torch.long))
        token = llm(inputs_embeds=torch.cat([prompt, new])[None]).logits[0, -1].argmax().item()
        if token in stops:
            break
        ids.append(token)
    return ids


@pytest.fixture(scope="module")
def prompts(llm):
    """40 prompts of 1 to 25 random vectors, and what the model says to each in 12 tokens if nothing stops it."""
    torch.manual_seed(0)
    made = [0.3 * torch.randn(n, llm[0].config.hidden_size) for n in [1, 25, 2, *torch.randint(1, 25, (37,)).tolist()]]
    return made, [plainly(llm[0], p, 12, set()) for p in made]


# --- generate

def test_a_batch_is_each_alone_and_is_decoding_without_a_cache(llm, prompts):
    made, free = prompts
    stops = {free[0][2], free[1][5], free[2][0]}                            # several ends; the third says it at once
    expected = [ids[:min([ids.index(s) for s in stops if s in ids], default=12)] for ids in free]
    lengths = [len(ids) for ids in expected]
    assert 12 in lengths and 0 in lengths and len(set(lengths)) >= 4        # some loop to the cap, others stop early
    assert generate(llm[0], made, 12, stops) == expected
    assert [generate(llm[0], [p], 12, stops)[0] for p in made] == expected
    assert [plainly(llm[0], p, 12, stops) for p in made[:5]] == expected[:5]


@pytest.mark.parametrize("positions, groups", [(1, 40), (60, None), (10 ** 6, 1)])
def test_prompts_read_in_groups_are_answered_alike(llm, prompts, monkeypatch, positions, groups):
    """Forty prompts of 1 to 25 vectors, one after the other, in groups of like length, and all at once."""
    made, free = prompts
    monkeypatch.setattr(decode, "PREFILL", positions)
    monkeypatch.setattr(batches, "PADDING", 10 ** 6)
    read = []
    hook = llm[0].model.register_forward_pre_hook(lambda module, args, given: read.append(given.get("inputs_embeds")),
                                                  with_kwargs=True)
    assert generate(llm[0], made, 12, set()) == free
    hook.remove()
    sizes = [inputs.shape[:2].numel() for inputs in read if inputs is not None]
    assert len(sizes) == (groups or len(sizes)) and len(read) == len(sizes) + 11
    assert positions == 1 or max(sizes) <= positions
    assert positions != 60 or 1 < len(sizes) < 40 and sum(sizes) < 1.2 * sum(map(len, made))


@pytest.mark.parametrize("family, shared", [("Llama", 1), ("Llama", 2), ("Qwen2", 4), ("Qwen3", 2), ("Cohere", 1)])
def test_heads_that_share_keys_attend_as_they_do_without_a_cache(family, shared):
    """Every LLM that can be loaded, with so many of its four heads on one key: each prompt's tokens, padded and not."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(
        vocab_size=60, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4 // shared, initializer_range=0.2, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    made = [torch.randn(length, 32) for length in (9, 1, 4, 6, 2)]
    assert generate(model, made, 10, set()) == [plainly(model, prompt, 10, set()) for prompt in made]


def test_the_cap_is_respected(llm, prompts):
    made, free = prompts
    assert generate(llm[0], made[:6], 3, set()) == [ids[:3] for ids in free[:6]]
    assert generate(llm[0], made[:2], 0, set()) == [[], []]


def test_finished_rows_leave_the_batch(llm, prompts, monkeypatch):
    """The rows that the model is run on fall from all to the few that never stop."""
    monkeypatch.setattr(batches, "PADDING", 10 ** 6)               # all prompts are read at once
    made, free = prompts
    stops = {free[0][2], free[1][5]}
    sizes = []
    hook = llm[0].model.register_forward_hook(lambda module, inputs, output: sizes.append(len(output[0])))
    generated = generate(llm[0], made, 12, stops)
    hook.remove()
    assert sizes[0] == 40 and sizes == sorted(sizes, reverse=True) and sizes[-1] < 40
    assert sizes[-1] == sum(len(ids) >= 11 for ids in generated)            # alive when the twelfth is chosen
    everything = {token for ids in free for token in ids}
    assert generate(llm[0], made, 12, everything) == [[]] * 40              # all stop at once


def test_stop_ids_are_all_that_end_a_turn(llm):
    model, tokenizer = llm
    ends = ["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"]
    assert stop_ids(model, tokenizer) == set(tokenizer.convert_tokens_to_ids(ends))
    one = tokenizer.convert_tokens_to_ids("<|end_of_text|>")
    for given, expected in ((None, {"<|eot_id|>"}), (one, {"<|eot_id|>", "<|end_of_text|>"})):
        other = SimpleNamespace(config=model.config, generation_config=SimpleNamespace(eos_token_id=given))
        assert stop_ids(other, tokenizer) == set(tokenizer.convert_tokens_to_ids(list(expected)))


# --- Test sets.

def read_predictions(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def test_every_system_predicts_its_rows_in_order(after_training, run_stage):
    run_stage("infer")
    rows = read_rows("work/rows/tiny/test.jsonl")
    for system in ("llm", "B", "A.1", "A.2", "C"):
        text = system in ("llm", "B")
        wanted = [row for row in rows if row["task"] != "ASR" or not text]  # the LLM has no speech to transcribe
        made = read_predictions(f"work/tiny/predictions/{system}/tiny.test.jsonl")
        assert [p["id"] for p in made] == [row["id"] for row in wanted]
        assert {p["task"] for p in made} == ({"MT", "QA"} if text else {"ASR", "ST", "SQA"})
        assert all(p["tokens"] <= 6 and p["capped"] is (p["tokens"] == 6) for p in made)
        assert not any(p["loops"] for p in made)                            # a loop has 16 tokens at least
    assert sorted(os.listdir("work/tiny/predictions/C")) == ["lock", "tiny.test.jsonl", "tiny.test.made.json"]


def test_one_by_one_predicts_the_same(after_training, run_stage):
    run_stage("infer", "--systems", "C:merged", "--batch", "16")
    batched = open(PREDICTIONS, "rb").read()
    os.remove(PREDICTIONS)
    run_stage("infer", "--systems", "C:merged", "--batch", "1")
    assert open(PREDICTIONS, "rb").read() == batched


def test_a_killed_run_goes_on_by_id(after_training, run_stage, monkeypatch, capsys):
    asked, answer = [], infer.answer
    monkeypatch.setattr(infer, "answer", lambda *a: asked.extend(s["id"] for s in a[3]) or answer(*a))
    run_stage("infer", "--systems", "C:merged")
    unbroken = open(PREDICTIONS, "rb").read()
    rows = {json.loads(row)["id"]: row for row in unbroken.splitlines(keepends=True)}
    batches = [[rows[name] for name in asked[i:i + 8]] for i in range(0, len(asked), 8)]
    os.remove(PREDICTIONS)
    with open(PREDICTIONS + ".partial.0", "wb") as file:                    # two batches, and half of a row
        file.writelines([*sum(batches[:2], []), batches[2][0][:20]])
    asked = []
    run_stage("infer", "--systems", "C:merged")
    assert open(PREDICTIONS, "rb").read() == unbroken
    assert sorted(asked) == sorted(json.loads(row)["id"] for batch in batches[2:] for row in batch)
    capsys.readouterr()
    run_stage("infer", "--systems", "C:merged")
    assert f"{PREDICTIONS} is finished already" in capsys.readouterr().out and len(asked) == len(rows) - 16


def test_an_utterance_without_frames_counts_as_wrong_and_is_told(after_training, run_stage, capsys):
    path = "work/features/tiny-seamless-mean3/tiny/test/frames-00000.json"
    with open(path) as file:
        index = json.load(file)
    index["lengths"] = {name.replace("test-3", "test-x"): n for name, n in index["lengths"].items()}
    with open(path, "w") as file:
        json.dump(index, file)
    run_stage("infer", "--systems", "C:merged")
    assert "12 cannot be heard: their answer is empty and counts as wrong" in capsys.readouterr().out
    made = read_predictions(PREDICTIONS)
    assert len(made) == 48 and [p["prediction"] for p in made if "test-3/" in p["id"]] == [""] * 12


def test_text_only_rows_are_for_text_systems_alone(after_training, run_stage):
    rows = read_rows("work/rows/tiny/test.jsonl")
    text = {"id": "tiny/test/text", "task": "ST", "language": "de", "transcript": "Yes.", "target": "Ja."}
    write_rows("work/rows/tiny/test.jsonl", [*rows, text])
    run_stage("infer", "--systems", "B:lora,C:merged")
    assert read_predictions("work/tiny/predictions/B/tiny.test.jsonl")[-1]["id"] == "tiny/test/text"
    assert [p["id"] for p in read_predictions(PREDICTIONS)] == [row["id"] for row in rows]


def test_a_split_that_its_recipe_could_not_make_is_left_out(after_training, run_stage, capsys):
    """Spoken-SQuAD without its test recordings: the other test sets are decoded all the same."""
    os.makedirs("work/rows/spokensquad")
    with open("work/rows/spokensquad/config.json", "w") as file:
        file.write("{}")
    run_stage("infer", "--systems", "B:lora", "--test_sets", "spokensquad.test,tiny.test")
    assert "spokensquad.test is left out: its recipe could not make it" in capsys.readouterr().out
    assert os.listdir("work/tiny/predictions/B") and not os.path.exists("work/tiny/predictions/B/spokensquad.test.jsonl")
    with pytest.raises(SystemExit, match="missing; run: python -m data.europarlst"):
        run_stage("infer", "--test_sets", "europarlst.test,tiny.test")


# --- Loops (2025, appendix B.1).

@pytest.mark.parametrize("ids, loop", [
    ([1, 2] + [7, 8, 9, 5] * 4, (6, 4)),                # four copies of four, 16 in all: the first copy ends at 6
    ([1, 2] + [7, 8, 9, 5] * 3 + [7, 8], None),         # three and a half
    ([7] * 16, (1, 1)), ([7] * 15, None),               # one token has to come 16 times
    ([3] + [7, 8] * 8 + [4], (3, 2)), ([3] + [7, 8] * 7, None),
    (list(range(33)) * 4, None), (list(range(32)) * 4, (32, 32)),        # a unit of 33 tokens is too long
    ([], None)])
def test_a_loop_is_four_copies_and_sixteen_tokens(ids, loop):
    assert find_loop(ids) == loop


def test_loops_are_counted_and_trimmed_only_when_asked(after_training, run_stage, monkeypatch, capsys):
    monkeypatch.setattr(infer, "answer", lambda *a: [[50, 60] + [40, 41, 42, 43] * 5 for _ in a[3]])
    run_stage("infer", "--systems", "C:merged", "--max_new_tokens", "30")
    assert "0.0 % stopped by the cap of 30 tokens, 100.0 % loop" in capsys.readouterr().out
    whole = read_predictions(PREDICTIONS)
    run_stage("infer", "--systems", "C:merged", "--max_new_tokens", "30", "--trim_loops", "--out", "trimmed")
    trimmed = read_predictions(PREDICTIONS.replace("predictions", "trimmed"))
    tokenizer = transformers.AutoTokenizer.from_pretrained("work/models/tiny-llama")
    for long, short in zip(whole, trimmed):
        assert long["loops"] and short["loops"] and long["tokens"] == short["tokens"] == 22
        assert long["prediction"] == tokenizer.decode([50, 60] + [40, 41, 42, 43] * 5).strip()
        assert short["prediction"] == tokenizer.decode([50, 60, 40, 41, 42, 43]).strip()


# --- SeamlessM4T-v2 itself.

def test_the_seamless_baseline_hears_and_reads(after_training, run_stage, seamless, capsys):
    """ASR and ST from the audio, MT from the transcript; batch 1 gives the same; a lost recording counts as wrong."""
    rows = read_rows("work/rows/tiny/test.jsonl")
    noise = np.random.default_rng(0)
    for utterance in sorted({row["utterance"] for row in rows})[1:]:
        soundfile.write(f"{utterance.split('/')[-1]}.flac", 0.1 * noise.standard_normal(noise.integers(4000, 20000)), 16000)
    arguments = ["--systems", "seamless,seamless-text", "--seamless", seamless]
    run_stage("infer", *arguments)
    heard, read = (read_predictions(f"work/tiny/predictions/{name}/tiny.test.jsonl")
                   for name in ("seamless", "seamless-text"))
    assert [p["id"] for p in heard] == [row["id"] for row in rows if row["task"] in ("ASR", "ST")]
    assert [p["id"] for p in read] == [row["id"] for row in rows if row["task"] == "ST"]
    assert {p["task"] for p in heard} == {"ASR", "ST"} and {p["task"] for p in read} == {"MT"}
    lost = [p["prediction"] == "" for p in heard if "test-0/" in p["id"]]
    assert all(lost) and len(lost) == 4 and any(p["prediction"] for p in heard) and all(p["tokens"] <= 6 for p in read)
    run_stage("infer", *arguments, "--batch", "1", "--out", "single")
    for name, together in (("seamless", heard), ("seamless-text", read)):
        assert read_predictions(f"work/tiny/single/{name}/tiny.test.jsonl") == together
    texts = {row["id"]: row["transcript"] for row in rows}
    from data.translate import translate
    by_maker = translate([texts[p["id"]] for p in read if p["id"].endswith("de")], "de", seamless)
    for whole, cut in zip(by_maker, [p["prediction"] for p in read if p["id"].endswith("de")]):
        assert whole.startswith(cut[:3])                                    # the same model, here cut at six tokens


# --- Test-time LoRA scaling.

def test_scale_0_is_the_base_llm_and_1_the_trained_one(after_training):
    """The logits of the text prompt, and half way between neither; B is made large so that the three differ."""
    from merge_sft import load_speech_llm
    from train_lora import scale_lora
    path = "work/tiny/lora/weights.pt"
    weights = torch.load(path, weights_only=True)
    weights["lora"] = {name: tensor + ("lora_B" in name) * 0.3 for name, tensor in weights["lora"].items()}
    torch.save(weights, path)
    ids, logits = torch.arange(20)[None], {}
    llm = load_speech_llm("work", "work/tiny/lora", torch.device("cpu"))[0]
    trained = llm(input_ids=ids).logits
    for scale in (0.0, 0.5, 1.0):
        scale_lora(llm, scale)
        logits[scale] = llm(input_ids=ids).logits
    base = transformers.AutoModelForCausalLM.from_pretrained("work/models/tiny-llama")
    assert torch.equal(logits[0.0], base(input_ids=ids).logits)
    assert torch.equal(logits[1.0], trained)
    assert (logits[0.5] - logits[0.0]).abs().max() > 0.1 < (logits[0.5] - logits[1.0]).abs().max()


def test_a_sweep_of_scales_from_the_base_llm_to_the_trained_one(after_training, run_stage, monkeypatch):
    """
    One command, a system a scale; at 0 the tokens of the LLM without adapters, at 1 those of the trained one. The LLM
    of B and of C is loaded once each.
    """
    loads = []
    load = infer.load_speech_llm
    monkeypatch.setattr(infer, "load_speech_llm", lambda *given: loads.append(given[1]) or load(*given))
    for folder in ("lora", "merged"):
        path = f"work/tiny/{folder}/weights.pt"
        weights = torch.load(path, weights_only=True)
        weights["lora"] = {name: tensor + ("lora_B" in name) * 0.3 for name, tensor in weights["lora"].items()}
        torch.save(weights, path)
    systems = ["--systems", "llm,B:lora,A.1:projector,C:merged"]
    run_stage("infer", *systems)
    before = {name: os.stat(f"work/tiny/predictions/{name}/tiny.test.jsonl").st_mtime_ns
              for name in ("llm", "B", "A.1", "C")}
    loads.clear()
    run_stage("infer", *systems, "--lora_scale", "0,0.125,1")
    assert loads == ["work/tiny/lora", "work/tiny/merged"]
    assert sorted(os.listdir("work/tiny/predictions")) == ["A.1", "B", "B@0", "B@0.125", "C", "C@0", "C@0.125", "llm"]
    for name, time in before.items():                                       # nothing is decoded twice
        assert os.stat(f"work/tiny/predictions/{name}/tiny.test.jsonl").st_mtime_ns == time
    said = {name: read_predictions(f"work/tiny/predictions/{name}/tiny.test.jsonl")
            for name in os.listdir("work/tiny/predictions")}
    assert said["B@0"] == said["llm"] and said["B@0"] != said["B@0.125"] != said["B"]
    assert said["C@0"] != said["C@0.125"] != said["C"]
    with open("work/tiny/predictions/C@0.125/tiny.test.made.json") as file:
        assert json.load(file)["lora_scale"] == 0.125

    weights["lora"] = {name: 0 * tensor for name, tensor in weights["lora"].items()}
    torch.save(weights, path)                                               # C's projector with the base LLM
    run_stage("infer", "--systems", "C:merged", "--out", "base")
    assert read_predictions(PREDICTIONS.replace("predictions", "base")) == said["C@0"]
    with pytest.raises(SystemExit, match="--lora_scale half: one number, or several with commas"):
        run_stage("infer", *systems, "--lora_scale", "half")


# --- The cascade: Whisper, then the text LLM.

CASCADE = "work/tiny/predictions/cascade/tiny.test.jsonl"


@pytest.fixture
def recorded(after_training):
    """`after_training` with recordings of its test utterances, but for the first -> (rows, the lost utterance)."""
    rows, noise = read_rows("work/rows/tiny/test.jsonl"), np.random.default_rng(0)
    lost, *others = sorted({row["utterance"]: row["audio"] for row in rows}.items())
    for _, path in others:
        soundfile.write(path, 0.2 * noise.standard_normal(noise.integers(4000, 40000)), 16000)
    return rows, lost[0]


def heard_by_transformers(folder, paths):
    """{file: what Whisper makes of it}, by transformers' own feature extractor, one by one."""
    model = transformers.WhisperForConditionalGeneration.from_pretrained(folder)
    extractor, tokenizer = (kind.from_pretrained(folder) for kind in (transformers.AutoFeatureExtractor,
                                                                      transformers.AutoTokenizer))
    mels = {path: extractor(soundfile.read(path, dtype="float32")[0], sampling_rate=16000, return_tensors="pt")
            for path in paths}
    return {path: tokenizer.decode(model.generate(**mel, task="transcribe")[0], skip_special_tokens=True).strip()
            for path, mel in mels.items()}


def test_the_cascade_answers_what_whisper_hears(recorded, run_stage, whisper, monkeypatch, capsys):
    rows, lost = recorded
    asked, answer = {}, infer.answer
    monkeypatch.setattr(infer, "answer", lambda *a: asked.update({s["id"]: s for s in a[3]}) or answer(*a))
    cascade = ["--systems", "cascade", "--whisper", whisper, "--max_new_tokens", "40"]
    run_stage("infer", *cascade)
    assert f"{sum(row['utterance'] == lost for row in rows)} cannot be heard" in capsys.readouterr().out
    said = {p["id"]: p for p in read_predictions(CASCADE)}
    assert list(said) == [row["id"] for row in rows] and {p["task"] for p in said.values()} == {"ASR", "ST", "SQA"}
    tokenizer = transformers.AutoTokenizer.from_pretrained("work/models/tiny-llama")
    heard = heard_by_transformers(whisper, {row["audio"] for row in rows if row["utterance"] != lost})
    assert len({*heard.values()}) == len(heard) and all(heard.values())
    for row in rows:
        if row["utterance"] == lost:
            assert said[row["id"]]["prediction"] == "" and row["id"] not in asked
        elif row["task"] == "ASR":                                          # the transcript is the answer
            assert said[row["id"]]["prediction"] == heard[row["audio"]] and row["id"] not in asked
        else:
            prompt = tokenizer.decode(asked[row["id"]]["before"])
            assert f"Content: <text>{heard[row['audio']]}</text>" in prompt and row["transcript"] not in prompt
            assert row["task"] != "SQA" or f"Question: {row['question']}" in prompt
    with open(CASCADE.replace("jsonl", "made.json")) as file:
        made = json.load(file)
    assert made["whisper"] == whisper and made["llm"] == "models/tiny-llama"
    run_stage("infer", *cascade, "--batch", "1", "--out", "single")
    assert read_predictions(CASCADE.replace("predictions", "single")) == list(said.values())


def test_a_spoken_question_is_asked_as_whisper_heard_it(recorded, run_stage, whisper, monkeypatch):
    """Where the question is what is spoken, the row's own must not slip in beside what was heard."""
    rows, lost = recorded
    row = next(row for row in rows if row["task"] == "SQA" and row["utterance"] != lost)
    write_rows("work/rows/tiny/test.jsonl", [{**row, "question": row["transcript"]}])
    asked = []
    monkeypatch.setattr(infer, "answer", lambda *a: asked.extend(a[3]) or [[]] * len(a[3]))
    tokenizer = transformers.AutoTokenizer.from_pretrained("work/models/tiny-llama")
    heard = heard_by_transformers(whisper, [row["audio"]])[row["audio"]]
    for prompt, turn in (("listeners", heard), ("2025", f"Content: <text>{heard}</text>\nQuestion: {heard}\n")):
        run_stage("infer", "--systems", "cascade", "--whisper", whisper, "--prompt", prompt, "--out", prompt)
        read = tokenizer.decode(asked.pop()["before"])
        assert f"<|end_header_id|>\n\n{turn}" in read and row["transcript"] not in read


def test_a_killed_cascade_goes_on(recorded, run_stage, whisper, monkeypatch):
    cascade = ["--systems", "cascade", "--whisper", whisper]
    run_stage("infer", *cascade)
    unbroken, batches, transcribe = open(CASCADE, "rb").read(), [], infer.transcribe
    os.remove(CASCADE)

    def killed(*a):
        batches.append(len(a[2]))
        if len(batches) == 3:
            raise KeyboardInterrupt
        return transcribe(*a)
    monkeypatch.setattr(infer, "transcribe", killed)
    with pytest.raises(KeyboardInterrupt):
        run_stage("infer", *cascade)
    assert not os.path.exists(CASCADE)
    run_stage("infer", *cascade)
    assert open(CASCADE, "rb").read() == unbroken and sum(batches) == 48 + 8     # the batch that was under way


# --- Speech-IFEval.

def test_speech_ifeval_s_rows_go_through(recorded, run_stage, whisper):
    """The whole instruction on one line; a lost recording keeps its row, which the text LLM answers all the same."""
    from data.speech_ifeval import make_rows
    items = [{"id": n, "audio_filepath": f"MMAU/{n}.wav", "textual_audio": f"[00:00:00 - 00:00:05] Hi {n}.",
              "instruction": "Who speaks?\nAnswer in capital letters.", "label": "Al"} for n in range(4)]
    rows = make_rows("closed", items, "raw")
    write_rows("work/rows/speech_ifeval/closed.jsonl", rows)
    os.makedirs("raw/MMAU")
    for row in rows[1:]:
        soundfile.write(row["audio"], 0.1 * np.random.default_rng(0).standard_normal(16000), 16000)
    from extract_features import Config
    from speech_llm.cache import features_folder, finish, write_shard
    c, noise = Config(), np.random.default_rng(1)
    cache = features_folder(c.work, c.encoder, c.mean, "speech_ifeval", "closed")
    frames = {row["utterance"]: noise.standard_normal((9, seamless_config().hidden_size)).astype(np.float16)
              for row in rows[1:]}
    made = {"encoder": c.encoder, "mean": c.mean, "pad": False}
    write_shard(cache, "frames-00000", frames, {"made": made, "dropped": [], "seconds": 1.0})
    assert finish(c, made, seamless_config().hidden_size, cache, frames)
    run_stage("infer", "--systems", "llm,cascade,C:merged", "--whisper", whisper, "--test_sets", "speech_ifeval.closed")
    for system, silent in (("llm", []), ("cascade", rows[:1]), ("C", rows[:1])):
        said = read_predictions(f"work/tiny/predictions/{system}/speech_ifeval.closed.jsonl")
        assert [p["id"] for p in said] == [row["id"] for row in rows]
        assert [p["id"] for p in said if not p["tokens"]] == [row["id"] for row in silent]


# --- One audio file.

def test_long_audio_is_cut_at_its_pauses():
    """Speech of 0.5 with silences around 20 s and 47 s: the cuts fall there, and nothing is lost."""
    longest = 30 * 16000
    wave = np.full(60 * 16000, 0.5, dtype=np.float32)
    for pause in (20, 47):
        wave[int((pause - 0.2) * 16000):int((pause + 0.2) * 16000)] = 0
    pieces = cut_at_pauses(wave, longest)
    assert np.array_equal(np.concatenate(pieces), wave)
    ends = np.cumsum([len(piece) for piece in pieces]) / 16000
    assert len(pieces) == 3 and abs(ends[0] - 20) < 0.2 and abs(ends[1] - 47) < 0.2
    assert len(cut_at_pauses(wave[:longest], longest)) == 1
    for seconds in (30.01, 44, 59.9):                                       # no pause at all: still at most 30 s
        lengths = [len(piece) / 16000 for piece in cut_at_pauses(np.ones(int(seconds * 16000), np.float32), longest)]
        assert sum(lengths) == pytest.approx(seconds) and max(lengths) <= 30 and min(lengths) >= 0.9


@pytest.fixture(scope="module")
def with_encoder(finished_stages):
    """`finished_stages` with a random speech encoder beside the LLM."""
    from transformers import SeamlessM4Tv2Model
    torch.manual_seed(0)
    with contextlib.chdir(finished_stages):
        SeamlessM4Tv2Model(seamless_config()).save_pretrained("work/models/tiny-seamless")
    return finished_stages


ASK = [["--task", "ASR"], ["--task", "ST", "--language", "de"],
       ["--task", "SQA", "--language", "it", "--question", "Chi?"]]


@pytest.mark.parametrize("ending, rate, channels", [("wav", 8000, 1), ("flac", 44100, 2), ("ogg", 22050, 2),
                                                    ("mp3", 48000, 1)])
def test_a_file_of_any_kind_gets_an_answer(with_encoder, run_stage, monkeypatch, tmp_path, capsys, ending, rate,
                                           channels):
    monkeypatch.chdir(with_encoder)
    time = np.arange(int(1.3 * rate)) / rate
    tone = 0.3 * np.sin(2 * np.pi * 300 * time * (1 + time))
    soundfile.write(tmp_path / f"a b.{ending}", np.stack([tone] * channels, 1), rate)
    said, decode = [], infer.answer
    monkeypatch.setattr(infer, "answer", lambda *a: said.append(decode(*a)) or said[-1])
    tokenizer = transformers.AutoTokenizer.from_pretrained("work/models/tiny-llama")
    for more in ASK:
        run_stage("infer", "--audio", str(tmp_path / f"a b.{ending}"), *more)
        printed = capsys.readouterr().out
        answer = tokenizer.decode(said[-1][0], skip_special_tokens=True).strip() + "\n"
        assert printed.endswith(answer) and "audio = " in printed
        assert "pieces = " in printed.removesuffix(answer).splitlines()[-1]      # the constants, then nothing else


@pytest.mark.parametrize("arguments, message", [
    (["--task", "SQA"], "--task SQA needs --question"),
    (["--task", "TTS"], "--task is one of ASR, ST, SQA, MCQ"),
    (["--task", "ST", "--language", "xx"], "--language one of en, de, it, zh, ar"),
    (["--task", "ST", "--language", "fr"], "no prompt for ST in 'fr'"),
    (["--audio", "nowhere.wav"], "nowhere.wav: no such file"),
    (["--audio", "long.wav", "--task", "SQA", "--question", "Who?"], "long.wav is longer than 30 s"),
    (["--audio", "short.wav"], "short.wav: 0.0300 s, shorter than 0.04 s"),
    (["--audio", "text.wav"], "text.wav: cannot be decoded")])
def test_what_it_refuses_in_one_line(with_encoder, run_stage, monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    for name, seconds in (("long", 31), ("short", 0.03), ("good", 1)):
        soundfile.write(f"{name}.wav", np.zeros(int(16000 * seconds)), 16000)
    (tmp_path / "text.wav").write_text("no audio")
    with pytest.raises(SystemExit, match=message):
        run_stage("infer", "--work", str(with_encoder / "work"), "--audio", "good.wav", *arguments)


@pytest.mark.parametrize("more, joined", [
    (["--task", "ASR"], "one one"), (["--task", "ST", "--language", "zh"], "oneone"),
    (["--task", "SQA", "--question", "Who?", "--pieces"], "0.0-15.9 s: one\n15.9-31.0 s: one")])
def test_the_pieces_of_long_audio_are_joined(with_encoder, run_stage, monkeypatch, tmp_path, capsys, more, joined):
    monkeypatch.chdir(with_encoder)
    wave = np.full(31 * 16000, 0.1)
    wave[int(15.8 * 16000):int(16.0 * 16000)] = 0                         # the quietest 0.2 s: cut in their middle
    soundfile.write(tmp_path / "long.wav", wave, 16000)
    monkeypatch.setattr(infer, "decode_text", lambda tokenizer, ids: "one")
    monkeypatch.setattr(infer, "answer", lambda *a: [[1]])
    run_stage("infer", "--audio", str(tmp_path / "long.wav"), *more)
    assert capsys.readouterr().out.endswith(joined + "\n")


def test_a_whisper_hears_one_file_too(after_training, run_stage, whisper, monkeypatch, capsys):
    """Pieces of its own window; the prompt of the listeners takes a question that is spoken."""
    shutil.copytree(whisper, "work/models/tiny-whisper")
    path = "work/tiny/merged/config.json"
    with open(path) as file:
        config = json.load(file) | {"encoder": "models/tiny-whisper", "mean": 4, "prompt": "listeners"}
    del config["prompts"]                                                   # which were those of 2025
    with open(path, "w") as file:
        json.dump(config, file)
    wave = 0.1 * np.random.default_rng(0).standard_normal(7 * 16000)
    soundfile.write("long.wav", wave, 16000)
    soundfile.write("short.wav", wave[:32001], 16000)
    heard, sample = [], infer.encode_sample
    def listen(row, text, tokenizer, model_type, features, *more):
        heard.append(features[row["utterance"]].shape)
        return sample(row, text, tokenizer, model_type, {name: np.zeros((len(x), 128)) for name, x in features.items()},
                      *more)                                                # the projector was made for 128
    monkeypatch.setattr(infer, "encode_sample", listen)
    run_stage("infer", "--audio", "short.wav", "--task", "SQA", "--language", "fr")
    assert heard == [(26, 32)]                                              # 101 frames, 4 by 4
    with pytest.raises(SystemExit, match="long.wav is longer than 3 s"):
        run_stage("infer", "--audio", "long.wav", "--task", "SQA", "--language", "fr")
    heard.clear()
    run_stage("infer", "--audio", "long.wav")
    assert len(heard) == 3 and all(frames <= 38 for frames, _ in heard)
    config["pad"] = True                                                    # as SALMONN: the whole window
    with open(path, "w") as file:
        json.dump(config, file)
    heard.clear()
    run_stage("infer", "--audio", "short.wav")
    assert heard == [(38, 32)]


@pytest.mark.parametrize("arguments", [["--task", "ST"], ["--task", "ASR", "--language", "de"]])
def test_a_task_without_a_prompt_is_named(with_encoder, run_stage, monkeypatch, tmp_path, arguments):
    monkeypatch.chdir(with_encoder)
    soundfile.write(tmp_path / "a.wav", np.zeros(16000), 16000)
    with pytest.raises((SystemExit, ValueError), match="no prompt for"):
        run_stage("infer", "--audio", str(tmp_path / "a.wav"), *arguments)
