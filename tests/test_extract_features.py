"""Stage 0: audio in, the same frames out, whatever else is in the batch; what is dropped is counted and listed."""
import json
import os
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file
from test_bad_input import refused
from test_hub import write_omni
from transformers import SeamlessM4TFeatureExtractor, SeamlessM4Tv2Model, WhisperFeatureExtractor
from transformers.models.seamless_m4t_v2 import modeling_seamless_m4t_v2

import extract_features as stage
from data.tiny_models import seamless_config
from speech_llm.audio import read_audio
from speech_llm.cache import features_folder, open_features
from speech_llm.files import write_json
from speech_llm.rows import write_rows

WIDTH = seamless_config().hidden_size
NOISE = 0.1 * np.random.default_rng(0).standard_normal(64000).astype(np.float32)


@pytest.fixture
def world(seamless, whisper, tmp_path):
    """work/ with both encoders, and a split of ten noises of 0.5 to 2.3 s in which rows share utterances."""
    work, rows = tmp_path / "work", []
    shutil.copytree(seamless, work / "models" / "seamless")
    shutil.copytree(whisper, work / "models" / "whisper")
    generator = np.random.default_rng(0)
    for i in range(10):
        path = tmp_path / f"{i}.wav"
        soundfile.write(path, 0.1 * generator.standard_normal(int(16000 * (0.5 + 0.2 * i))), 16000)
        row = {"utterance": f"tiny/test/{i}", "audio": str(path), "transcript": "Yes.", "target": "Yes."}
        rows += [{"id": f"tiny/test/{i}/ASR", "task": "ASR", "language": "en", **row},
                 {"id": f"tiny/test/{i}/ST.de", "task": "ST", "language": "de", **row}]
    rows.append({"id": "tiny/test/text", "task": "ST", "language": "it", "transcript": "Yes.", "target": "Sì."})
    write_rows(work / "rows" / "tiny" / "test.jsonl", rows)
    write_json(work / "rows" / "tiny" / "config.json", {})                           # the recipe is finished
    return work


def run(world, *more, encoder="models/seamless", mean=3):
    """Run stage 0 in this process; return the folder of the test split."""
    stage.main(["--work", str(world), "--encoder", encoder, "--mean", str(mean), *more])
    return features_folder(str(world), encoder, mean, "tiny", "test")


def recordings(real):
    """Return a real utterance of each of four sets, 1.9 to 16 s."""
    return [read_audio(os.path.join(real, name)) for name in (
        "ljspeech/wavs16k/LJ001-0002.flac", "whisper_jfk/jfk.flac", "librispeech_mini/other/common_voice_en_651325.mp3",
        "librispeech_mini/LibriSpeech/test-clean/1089/134691/1089-134691-0000.flac")]


def test_filterbank_is_that_of_the_released_model(real):
    for wave in [*recordings(real), NOISE[:16160], NOISE[:640]]:
        theirs = SeamlessM4TFeatureExtractor()(wave, sampling_rate=16000, return_tensors="pt")
        valid = int(theirs["attention_mask"].sum())      # 16160 samples: 99 frames of 10 ms, 49 whole pairs
        ours = stage.filterbank(wave)
        assert ours.shape == (valid, 160) and ours.dtype == torch.float32
        assert (ours - theirs["input_features"][0, :valid]).abs().max() < 5e-4


@pytest.mark.parametrize("bins", [80, 128])
def test_log_mel_is_that_of_the_released_extractor(real, bins):
    """Of real speech, silence and noise up to the last sample of the window; what fills the window is theirs too."""
    noise = np.random.default_rng(0).uniform(-1, 1, 480000).astype(np.float32)
    noises = [noise[:n] for n in (640, 641, 16160, 479040, 479359, 479361, 479681, 479999, 480000)]
    for wave in [*recordings(real), *noises, np.zeros(8000, np.float32), 1e-4 * noise[:16000]]:
        theirs = WhisperFeatureExtractor(feature_size=bins)(wave, sampling_rate=16000, return_tensors="pt")
        ours = stage.log_mel(wave, bins, 1500)
        assert ours.shape == (-(-len(wave) // 320) + stage.TAIL, 2 * bins) and ours.dtype == torch.float32
        assert (stage.fill_window([ours], 1500) - theirs["input_features"]).abs().max() < 1e-6


# What transformers' own encoders give: behind the last layer; of a window's beginning; in the place of audio.

def seamless_frames(encoder, wave):
    outputs = []
    hook = encoder.encoder.layers[-1].register_forward_hook(lambda *call: outputs.append(call[2]))
    encoder(stage.filterbank(wave)[None])
    hook.remove()
    return encoder.encoder.layer_norm(outputs[0])[0]


def whisper_frames(encoder, wave):
    extractor = WhisperFeatureExtractor(feature_size=16, chunk_length=3)
    return encoder(extractor(wave, sampling_rate=16000, return_tensors="pt")["input_features"]).last_hidden_state[0]


def omni_frames(thinker, wave):
    mel = WhisperFeatureExtractor(feature_size=128)(wave, sampling_rate=16000, padding="max_length",
                                                    return_attention_mask=True, return_tensors="pt")
    return thinker.get_audio_features(mel["input_features"], mel["attention_mask"]).last_hidden_state


@pytest.mark.parametrize("kind, prefix, width, lengths, theirs", [
    ("seamless", "speech_encoder.", WIDTH, [1, 49, 49, 93, 149], seamless_frames),       # 50 Hz, whole pairs of 10 ms
    ("whisper", "model.encoder.", 32, [2, 50, 51, 94, 150], whisper_frames),             # 50 Hz, the last one cut short
    ("omni", "thinker.audio_tower.", 32, [1, 25, 25, 47, 75], omni_frames)])             # 25 Hz, chunks of 2 s
@torch.no_grad()
def test_an_encoder_hears_what_transformers_hears_in_any_batch(request, tmp_path, kind, prefix, width, lengths, theirs):
    thinker = write_omni(tmp_path)[0] if kind == "omni" else None
    folder = tmp_path if thinker else request.getfixturevalue(kind)
    encoder = stage.load_encoder(folder, "cpu")
    weights = {name.removeprefix(prefix): tensor for name, tensor in load_file(f"{folder}/model.safetensors").items()
               if name.startswith(prefix)}
    torch.testing.assert_close(dict(encoder.state_dict()), weights, rtol=0, atol=0)
    assert not encoder.training and not any(p.requires_grad for p in encoder.parameters())
    waves = [NOISE[:n] for n in (640, 16000, 16160, 30001, 48000)]
    features = [stage.make_feature(encoder.config, wave) for wave in waves]
    together = stage.encode(encoder, features)
    assert [(frames.shape, frames.dtype) for frames in together] == [((n, width), np.float32) for n in lengths]
    for wave, feature, frames in zip(waves, features, together):
        assert np.abs(frames - theirs(thinker or encoder, wave)[:len(frames)].numpy()).max() < 1e-4
        assert np.abs(frames - stage.encode(encoder, [feature])[0]).max() < 1e-4


def test_the_names_of_the_real_checkpoint_and_its_several_files(real, seamless, tmp_path):
    """802 weights of 24 layers. A weight that is in none of the files is an error, not left random."""
    with open(os.path.join(real, "tokenizers", "seamless_m4t_v2_large", "model.safetensors.index.json")) as file:
        names = json.load(file)["weight_map"]
    config, (_, kind, prefix) = seamless_config(), stage.ENCODERS["seamless_m4t_v2"]
    config.speech_encoder_layers = 24
    with torch.device("meta"):
        expected = getattr(modeling_seamless_m4t_v2, kind)(config).state_dict().keys()
    assert {re.sub(prefix, "", name) for name in names if re.match(prefix, name)} == expected and len(expected) == 802

    SeamlessM4Tv2Model.from_pretrained(seamless).save_pretrained(tmp_path, max_shard_size="1MB")
    one, several = (stage.load_encoder(folder, "cpu").state_dict() for folder in (seamless, tmp_path))
    torch.testing.assert_close(dict(one), dict(several), rtol=0, atol=0)
    lost = "speech_encoder.encoder.layers.1.ffn1.output_dense.weight"
    [shard] = [path for path in tmp_path.glob("*.safetensors") if lost in load_file(path)]
    save_file({name: tensor for name, tensor in load_file(shard).items() if name != lost}, shard, {"format": "pt"})
    refused(stage.load_encoder, tmp_path, "cpu", names="1 weights", says="encoder.layers.1.ffn1.output_dense.weight")


def test_averaging_by_hand():
    frames = np.array([[0, 1], [2, 1], [4, 4], [6, 5], [8, 7]], dtype=np.float32)
    assert stage.average_frames(frames, 3).tolist() == [[2, 2], [7, 6]]              # (0+2+4)/3, (6+8)/2
    assert stage.average_frames(frames, 2).tolist() == [[1, 1], [5, 4.5], [8, 7]]
    assert stage.average_frames(frames[:1], 3).tolist() == [[0, 1]]
    assert stage.average_frames(frames, 1).dtype == np.float32


@pytest.mark.parametrize("model_type, seconds, batches", [
    ("seamless_m4t_v2", 4.0, [[90, 100], [20, 50]]), ("seamless_m4t_v2", 6.0, [[50, 90, 100], [20]]),
    ("seamless_m4t_v2", 0.1, [[100], [90], [50], [20]]), ("whisper", 6.0, [[90, 100], [20, 50]])])
def test_batches_are_full_but_not_over(monkeypatch, model_type, seconds, batches):
    """4 s are 200 frames: 2 x 100 fit, 3 x 100 do not. A Whisper pays 3 s for each. Pieces are joined, in order."""
    features = {"a": [torch.full((100, 160), 1.0)], "b": [torch.full((50, 160), 2.0)],
                "c": [torch.full((90, 160), 3.0), torch.full((20, 160), 4.0)]}
    sizes, encoder = [], SimpleNamespace(config=SimpleNamespace(model_type=model_type, max_source_positions=150))
    monkeypatch.setattr(stage, "encode", lambda encoder, batch, pad: (
        sizes.append([len(feature) for feature in batch]), [feature.numpy() for feature in batch])[1])
    frames, reasons = stage.encode_block(stage.Config(batch_seconds=seconds), encoder, features)
    assert sizes == batches and reasons == {}
    assert {name: (len(value), value[0, 0], value[-1, 0]) for name, value in frames.items()} == {
        "a": (34, 1, 1), "b": (17, 2, 2), "c": (37, 3, 4)} and list(frames) == ["a", "b", "c"]


def test_the_cache_holds_what_encoding_by_hand_gives_is_shared_and_grows(world, monkeypatch, capsys):
    folder, rows = run(world), world / "rows" / "tiny" / "test.jsonl"
    out = capsys.readouterr().out
    assert "tiny/test: 0.00 hours, 10 utterances, 0 dropped, " in out
    assert out.endswith(f"next: python train_projector.py --preset tiny --work {world}\n")
    features = open_features(folder, {"encoder": "models/seamless", "mean": 3})
    assert len(features) == 10 and "tiny/test/text" not in features and features.config["width"] == WIDTH
    encoder = stage.load_encoder(world / "models" / "seamless", "cpu")
    for i in (0, 4, 9):
        feature = stage.make_feature(encoder.config, read_audio(str(world.parent / f"{i}.wav")))
        frames, expected = features[f"tiny/test/{i}"], stage.average_frames(stage.encode(encoder, [feature])[0], 3)
        assert frames.dtype == np.float16 and frames.shape == expected.shape and not frames.flags.writeable
        assert np.abs(frames - expected).max() < 4e-3
    run(world)                                            # a second run only says that it is done
    assert "10 utterances" in capsys.readouterr().out

    row = json.loads(rows.read_text(encoding="utf-8").splitlines()[0])
    with open(rows, "a", encoding="utf-8") as file:
        file.write(json.dumps({**row, "id": "tiny/test/new/ASR", "utterance": "tiny/test/new"}) + "\n")
    features = open_features(run(world))
    assert len(features) == 11 and np.abs(features["tiny/test/new"] - features["tiny/test/0"]).max() < 2e-3

    with monkeypatch.context() as two:                    # two processes share a split without talking
        two.setenv("WORLD_SIZE", "2")
        for rank in "10":                                 # rank 0 comes last, so it is the one to finish
            two.setenv("RANK", rank)
            folder = run(world, mean=2)
    assert "this process is done, others are not" in capsys.readouterr().out and len(open_features(folder)) == 11

    refused(run, world, "--max_seconds", "20", says="made with piece_seconds 30.0, expected is 20.0")
    with open(world / "models" / "seamless" / "model.safetensors", "r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"\0\0\0\0")                           # trained anew under the same name
    refused(run, world, says="was made with weights")


def test_a_whisper_s_cache(world, capsys):
    """Any mean; the real duration or the whole window, never both; the two windows of longer audio are joined."""
    soundfile.write(world.parent / "9.wav", NOISE[:320].repeat(151), 16000)          # 3.02 s
    for mean, pad in ((4, False), (2, True)):
        folder = run(world, *["--pad"] * pad, encoder="models/whisper", mean=mean)
        features = open_features(folder, {"encoder": "models/whisper", "mean": mean, "pad": pad})
        assert "10 utterances, 0 dropped" in capsys.readouterr().out and features.config["width"] == 32
        assert [len(features[f"tiny/test/{i}"]) for i in range(9)] == [
            75 if pad else -(-(25 + 10 * i) // mean) for i in range(9)]
        assert 151 / mean <= len(features["tiny/test/9"]) <= 151 / mean + 2 or pad
    refused(run, world, "--encoder", "models/whisper", "--mean", "2", says="made with pad True, expected is False")
    refused(run, world, "--pad", says="--pad: models/seamless has no window")


def test_what_is_dropped_is_counted_and_listed(world, monkeypatch, capsys):
    """A training split: 3.wav, 8.wav and 9.wav are longer than 1.95 s. Silence is no reason, and is counted."""
    audio, encode = world.parent, stage.encode
    monkeypatch.setattr(stage, "encode", lambda encoder, features, pad: [
        frames * (1e6 if len(frames) == 84 else 1) for frames in encode(encoder, features, pad)])     # 1.7 s: 6.wav
    (world / "rows" / "tiny" / "test.jsonl").rename(world / "rows" / "tiny" / "train.jsonl")
    (audio / "1.wav").write_bytes(b"RIFF nothing")
    os.remove(audio / "2.wav")
    soundfile.write(audio / "3.wav", np.zeros(16000 * 2), 16000)
    soundfile.write(audio / "4.wav", np.zeros(16000), 16000)
    folder = os.path.join(os.path.dirname(run(world, "--max_seconds", "1.95")), "train")
    assert "4 utterances, 6 dropped, 1 silent" in capsys.readouterr().out
    with open(os.path.join(folder, "dropped.jsonl"), encoding="utf-8") as file:
        dropped = {entry["utterance"]: entry for entry in map(json.loads, file)}
    assert sorted(dropped) == [f"tiny/test/{i}" for i in (1, 2, 3, 6, 8, 9)]
    assert dropped["tiny/test/2"] == {"utterance": "tiny/test/2", "audio": str(audio / "2.wav"),
                                      "reason": f"{audio / '2.wav'}: no such file"}
    for number, reason in ((1, "cannot be decoded"), (3, "longer than 1.95 s"), (6, ", not finite in float16")):
        assert reason in dropped[f"tiny/test/{number}"]["reason"]
    with pytest.raises(KeyError):
        open_features(folder)["tiny/test/2"]
    shutil.copy(audio / "0.wav", audio / "2.wav")         # mended: tried again once it is not finished
    os.remove(os.path.join(folder, "config.json"))
    run(world, "--max_seconds", "1.95")
    assert "5 utterances, 5 dropped" in capsys.readouterr().out and "tiny/test/2" in open_features(folder)


def test_nothing_left_is_an_error_not_an_empty_cache(world):
    (world / "rows" / "tiny" / "test.jsonl").rename(world / "rows" / "tiny" / "train.jsonl")
    for _ in range(2):                                    # and is one again the second time
        refused(run, world, "--max_seconds", "0.1", names="all 10 utterances were dropped", says="longer than 0.1 s")


def test_test_sets_lose_nothing_for_its_length(world, capsys):
    """With --max_seconds 2: train and dev drop 8.wav and 9.wav; test, and dev without train, have them in pieces."""
    rows = world / "rows"
    (rows / "talks").mkdir()
    for place in ("tiny/train", "tiny/dev", "talks/dev"):
        shutil.copy(rows / "tiny" / "test.jsonl", rows / f"{place}.jsonl")
    run(world, "--corpora", "tiny,talks", "--max_seconds", "2")
    out = capsys.readouterr().out
    for split, numbers in (("tiny/train", "8 utterances, 2"), ("tiny/dev", "8 utterances, 2"),
                           ("tiny/test", "10 utterances, 0"), ("talks/dev", "10 utterances, 0")):
        assert f"{split}: 0.00 hours, {numbers} dropped" in out
    features = open_features(features_folder(str(world), "models/seamless", 3, "tiny", "test"))
    encoder, path = stage.load_encoder(world / "models" / "seamless", "cpu"), str(world.parent / "9.wav")
    pieces, seconds, _ = stage.front_end(encoder.config, {"audio": path}, piece_seconds=2.0)
    assert len(pieces) == 2 and max(map(len, pieces)) <= 2 * 50
    expected = stage.average_frames(np.concatenate(stage.encode(encoder, pieces)), 3)
    assert abs(len(expected) * 3 - 50 * seconds) < 8 and np.abs(features["tiny/test/9"] - expected).max() < 4e-3


def test_the_disk_is_checked_first(world, monkeypatch, capsys):
    """14 s of 50 frames, averaged by 3, 128 numbers of 2 bytes each: 60 kB."""
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=55_000))
    refused(run, world, says="work/features needs about 0.0 GB more, and its disk has 0.0 GB free")
    assert "tiny/test: about 0.00 hours, 0.00 GB of frames" in capsys.readouterr().out
    assert not os.path.exists(world / "features")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=65_000))
    run(world)


def test_a_stage_run_before_its_predecessor_names_it(world):
    refused(run, world, "--splits", "dev", says="dev.jsonl is missing; run: python -m data.tiny")
    refused(run, world, "--encoder", "models/x", says="models/x is missing; run: bash run_all.sh PRESET, with the ")
