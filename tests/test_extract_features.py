"""Stage 0: audio in, the same frames out, whatever else is in the batch and wherever a run was killed."""
import json
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from test_omni import write_omni

import extract_features as stage
from data.tiny_models import seamless_config
from speech_llm.audio import read_audio
from speech_llm.cache import features_folder, open_features
from speech_llm.constants import locate
from speech_llm.files import write_json
from speech_llm.rows import write_rows

WIDTH = seamless_config().hidden_size
NOISE = 0.1 * np.random.default_rng(0).standard_normal(64000).astype(np.float32)
SEAMLESS = SimpleNamespace(config=SimpleNamespace(model_type="seamless_m4t_v2"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A folder with a whole SeamlessM4Tv2 model as the hub has it, but random and very small."""
    from transformers import SeamlessM4Tv2Model
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("work") / "models" / "tiny-seamless"
    model = SeamlessM4Tv2Model(seamless_config())
    model.save_pretrained(folder)
    return folder, model.eval()


@pytest.fixture
def world(checkpoint, tmp_path):
    """work/ with the encoder, and a split of ten noises of 0.5 to 2.3 s in which rows share utterances."""
    folder, _ = checkpoint
    shutil.copytree(folder, tmp_path / "work" / "models" / "tiny-seamless")
    generator = np.random.default_rng(0)
    rows = []
    for i in range(10):
        path = tmp_path / f"{i}.wav"
        soundfile.write(path, 0.1 * generator.standard_normal(int(16000 * (0.5 + 0.2 * i))), 16000)
        row = {"utterance": f"tiny/test/{i}", "audio": str(path), "transcript": "Yes.", "target": "Yes."}
        rows += [{"id": f"tiny/test/{i}/ASR", "task": "ASR", "language": "en", **row},
                 {"id": f"tiny/test/{i}/ST.de", "task": "ST", "language": "de", **row}]
    text = {"id": "tiny/test/text", "task": "ST", "language": "it", "transcript": "Yes.", "target": "Sì."}
    rows.append(text)
    write_rows(tmp_path / "work" / "rows" / "tiny" / "test.jsonl", rows)
    write_json(tmp_path / "work" / "rows" / "tiny" / "config.json", {})              # the recipe is finished
    return tmp_path / "work"


def run(world, *more, encoder="models/tiny-seamless", mean=3):
    """Stage 0 in this process -> its folder."""
    stage.main(["--work", str(world), "--encoder", encoder, "--mean", str(mean), *more])
    return features_folder(str(world), encoder, mean, "tiny", "test")


# --- Filterbank, encoder, averaging.

def recordings(real):
    """Eight real utterances of all four sets, 1.9 to 16 s."""
    names = ["ljspeech/wavs16k/LJ001-0001.flac", "ljspeech/wavs16k/LJ001-0002.flac",
             "ljspeech_mini/wavs/LJ001-0004.flac", "whisper_jfk/jfk.flac",
             "librispeech_mini/LibriSpeech/test-clean/1089/134691/1089-134691-0000.flac",
             "librispeech_mini/other/LJ002-0020.wav", "librispeech_mini/other/common_voice_en_651325.mp3",
             "librispeech_mini/other/libri-1088-134315-0000.wav"]
    return [read_audio(os.path.join(real, name)) for name in names]


def test_filterbank_is_that_of_the_released_model(real):
    from transformers import SeamlessM4TFeatureExtractor

    noise = np.random.default_rng(0).uniform(-1, 1, 16160).astype(np.float32)
    for wave in [*recordings(real), noise, noise[:640]]:
        theirs = SeamlessM4TFeatureExtractor()(wave, sampling_rate=16000, return_tensors="pt")
        valid = int(theirs["attention_mask"].sum())      # 16160 samples: 99 frames of 10 ms, 49 whole pairs
        ours = stage.filterbank(wave)
        assert ours.shape == (valid, 160) and ours.dtype == torch.float32
        assert (ours - theirs["input_features"][0, :valid]).abs().max() < 5e-4


def test_encoder_is_loaded_whole_and_read_before_the_adapter(checkpoint):
    folder, model = checkpoint
    encoder = stage.load_encoder(folder, "cpu")
    theirs = model.speech_encoder.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in encoder.state_dict().items())
    assert not encoder.training and not any(p.requires_grad for p in encoder.parameters())
    feature = torch.randn(50, 160)
    with torch.no_grad():
        frames, caught = stage.encode(encoder, [feature])[0], []
        hook = encoder.encoder.layers[-1].register_forward_hook(lambda *call: caught.append(call[2]))
        encoder(feature[None])
        hook.remove()
        assert np.abs(encoder.encoder.layer_norm(caught[0])[0].numpy() - frames).max() < 1e-5
    assert frames.shape == (50, WIDTH) and frames.dtype == np.float32


def test_the_real_checkpoint_s_two_shards(real, tmp_path):
    """24 narrow layers under the real names, cut where the real index cuts; a lost shard or weight is an error."""
    from safetensors.torch import save_file
    from transformers import SeamlessM4Tv2Model
    with open(os.path.join(real, "tokenizers", "seamless_m4t_v2_large", "model.safetensors.index.json")) as file:
        index = json.load(file)
    config = seamless_config()
    config.hidden_size, config.speech_encoder_layers, config.speech_encoder_intermediate_size = 16, 24, 16
    torch.manual_seed(0)
    model = SeamlessM4Tv2Model(config)
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name in index["weight_map"]}
    spoken = [name for name in index["weight_map"] if name.startswith("speech_encoder.")]
    assert len(spoken) == 802 and all(name in weights for name in spoken)
    shards = sorted({index["weight_map"][name] for name in spoken})
    assert len(shards) == 2                                                  # layer 20 lies in both
    config.save_pretrained(tmp_path)
    for shard in shards:
        part = {name: tensor for name, tensor in weights.items() if index["weight_map"][name] == shard}
        save_file(part, tmp_path / shard, metadata={"format": "pt"})
    shard_of = {name: index["weight_map"][name] for name in weights}
    write_json(tmp_path / "model.safetensors.index.json", {"metadata": index["metadata"], "weight_map": shard_of})
    encoder = stage.load_encoder(tmp_path, "cpu")
    theirs = model.speech_encoder.state_dict()
    assert encoder.state_dict().keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in encoder.state_dict().items())

    lost = "speech_encoder.encoder.layers.20.ffn1.output_dense.weight"
    part = {name: tensor for name, tensor in weights.items() if shard_of[name] == shard_of[lost] and name != lost}
    save_file(part, tmp_path / shard_of.pop(lost), metadata={"format": "pt"})
    write_json(tmp_path / "model.safetensors.index.json", {"metadata": index["metadata"], "weight_map": shard_of})
    with pytest.raises(ValueError, match="1 weights .* encoder.layers.20.ffn1.output_dense.weight"):
        stage.load_encoder(tmp_path, "cpu")
    os.remove(tmp_path / shards[1])
    with pytest.raises(ValueError, match=shards[1]):
        stage.load_encoder(tmp_path, "cpu")


@pytest.mark.parametrize("model, lengths", [
    ("checkpoint", [320 * n for n in (2, 60, 61, 200, 149)]),                     # 10 ms each, in whole pairs
    ("whisper", [16000, 640, 48000, 641, 30001, 47999])])                         # 20 ms each, the last one cut short
def test_an_utterance_does_not_depend_on_its_batch(request, model, lengths):
    folder = request.getfixturevalue(model)
    encoder = stage.load_encoder(folder if model == "whisper" else folder[0], "cpu")
    features = [stage.make_feature(encoder.config, NOISE[:n]) for n in lengths]
    together = stage.encode(encoder, features)
    if model == "whisper":
        assert [len(frames) for frames in together] == [50, 2, 150, 3, 94, 150]
    for feature, frames in zip(features, together):
        assert np.abs(frames - stage.encode(encoder, [feature])[0]).max() < 1e-4


def test_averaging_by_hand():
    frames = np.array([[0, 1], [2, 1], [4, 4], [6, 5], [8, 7]], dtype=np.float32)
    assert stage.average_frames(frames, 3).tolist() == [[2, 2], [7, 6]]              # (0+2+4)/3, (6+8)/2
    assert stage.average_frames(frames, 2).tolist() == [[1, 1], [5, 4.5], [8, 7]]
    assert stage.average_frames(frames[:1], 3).tolist() == [[0, 1]]
    assert stage.average_frames(frames, 1).dtype == np.float32


def test_batches_are_full_but_not_over(monkeypatch):
    """100, 50 and 90 + 20 frames of 50 Hz; the result keeps the order it came in, and pieces are joined."""
    features = {"a": [torch.full((100, 160), 1.0)], "b": [torch.full((50, 160), 2.0)],
                "c": [torch.full((90, 160), 3.0), torch.full((20, 160), 4.0)]}
    for seconds, expected in [(4.0, [[90, 100], [20, 50]]), (6.0, [[50, 90, 100], [20]]),
                              (0.1, [[100], [90], [50], [20]])]:
        sizes = []
        monkeypatch.setattr(stage, "encode", lambda encoder, batch, pad: (
            sizes.append([len(feature) for feature in batch]), [feature.numpy() for feature in batch])[1])
        frames, reasons = stage.encode_block(stage.Config(batch_seconds=seconds), SEAMLESS, features)
        assert sizes == expected and reasons == {}        # 4 s are 200 frames: 2 x 100 fit, 3 x 100 do not
        assert {name: (len(value), value[0, 0], value[-1, 0]) for name, value in frames.items()} == \
            {"a": (34, 1, 1), "b": (17, 2, 2), "c": (37, 3, 4)} and list(frames) == ["a", "b", "c"]


# --- Whisper.

@pytest.mark.parametrize("bins", [80, 128])
def test_log_mel_is_that_of_the_released_extractor(real, bins):
    """Of real speech, silence and noise up to the last sample of the window; what fills the window is theirs too."""
    from transformers import WhisperFeatureExtractor

    noise = np.random.default_rng(0).uniform(-1, 1, 480000).astype(np.float32)
    some = [noise[:n] for n in (640, 641, 16160, 479040, 479359, 479361, 479681, 479999, 480000)]
    for wave in [*recordings(real)[:5], *some, np.zeros(8000, np.float32), 1e-4 * noise[:16000]]:
        theirs = WhisperFeatureExtractor(feature_size=bins)(wave, sampling_rate=16000, return_tensors="pt")
        ours = stage.log_mel(wave, bins, 1500)
        assert ours.shape == (-(-len(wave) // 320) + stage.TAIL, 2 * bins) and ours.dtype == torch.float32
        assert (stage.fill_window([ours], 1500) - theirs["input_features"]).abs().max() < 1e-6


def test_the_whisper_encoder_is_loaded_whole_and_hears_what_transformers_hears(whisper):
    from transformers import AutoFeatureExtractor, WhisperForConditionalGeneration

    encoder, model = stage.load_encoder(whisper, "cpu"), WhisperForConditionalGeneration.from_pretrained(whisper)
    theirs = model.model.encoder.state_dict()
    assert encoder.state_dict().keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in encoder.state_dict().items())
    assert not encoder.training and not any(p.requires_grad for p in encoder.parameters())
    mel = AutoFeatureExtractor.from_pretrained(whisper)(NOISE[:16160], sampling_rate=16000, return_tensors="pt")
    with torch.no_grad():
        expected = model.model.encoder(mel["input_features"]).last_hidden_state[0].numpy()
    feature = stage.make_feature(encoder.config, NOISE[:16160])
    frames, padded = stage.encode(encoder, [feature])[0], stage.encode(encoder, [feature], pad=True)[0]
    assert frames.shape == (51, 32) and padded.shape == (150, 32)                    # 1.01 s; the window of 3 s
    assert np.abs(padded - expected).max() < 1e-5 and np.array_equal(padded[:51], frames)


def test_every_utterance_costs_a_whisper_a_window(monkeypatch, whisper):
    encoder, sizes = stage.load_encoder(whisper, "cpu"), []
    features = {n: [stage.make_feature(encoder.config, NOISE[:n])] for n in range(1000, 15000, 2000)}
    encode = stage.encode
    monkeypatch.setattr(stage, "encode", lambda e, batch, pad: sizes.append(len(batch)) or encode(e, batch, pad))
    stage.encode_block(stage.Config(batch_seconds=10.0), encoder, features)
    assert sizes == [3, 3, 1]                                                        # 10 s hold 3 windows of 3 s


def test_a_whisper_s_cache(world, whisper, capsys):
    """Any mean; frames of the real duration; of audio longer than the window the frames of two windows, joined."""
    shutil.copytree(whisper, world / "models" / "tiny-whisper")
    soundfile.write(world.parent / "9.wav", NOISE[:320].repeat(151), 16000)          # 3.02 s
    for mean in (1, 4):
        folder = run(world, encoder="models/tiny-whisper", mean=mean)
        features = open_features(folder, {"encoder": "models/tiny-whisper", "mean": mean, "pad": False})
        assert "10 utterances, 0 dropped" in capsys.readouterr().out and features.config["width"] == 32
        assert [len(features[f"tiny/test/{i}"]) for i in range(9)] == [-(-(25 + 10 * i) // mean) for i in range(9)]
        assert 151 / mean <= len(features["tiny/test/9"]) <= 151 / mean + 2
    encoder = stage.load_encoder(world / "models" / "tiny-whisper", "cpu")
    wave = read_audio(str(world.parent / "0.wav"))
    expected = stage.encode(encoder, [stage.make_feature(encoder.config, wave)])[0]
    assert np.abs(features["tiny/test/0"] - stage.average_frames(expected, 4)).max() < 4e-3


def test_the_padded_variant_is_never_mixed_in(world, whisper, capsys):
    shutil.copytree(whisper, world / "models" / "tiny-whisper")
    folder = run(world, "--pad", encoder="models/tiny-whisper", mean=1)
    features = open_features(folder, {"pad": True})
    assert {len(features[f"tiny/test/{i}"]) for i in range(10)} == {150}
    with pytest.raises(ValueError, match="made with pad True, expected is False"):
        run(world, encoder="models/tiny-whisper", mean=1)
    with pytest.raises(SystemExit, match="--pad: models/tiny-seamless has no window"):
        run(world, "--pad")


def test_a_whisper_without_a_weight_is_refused(whisper, tmp_path):
    from safetensors.torch import load_file, save_file
    shutil.copytree(whisper, tmp_path / "copy")
    weights = load_file(tmp_path / "copy" / "model.safetensors")
    del weights["model.encoder.conv2.bias"]
    save_file(weights, tmp_path / "copy" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="is not complete: 1 weights of WhisperEncoder .* conv2.bias"):
        stage.load_encoder(tmp_path / "copy", "cpu")


# --- Qwen2.5-Omni.


def test_omni_s_frames_are_those_of_its_thinker(tmp_path):
    from transformers import WhisperFeatureExtractor
    thinker, _ = write_omni(tmp_path)
    encoder = stage.load_encoder(str(tmp_path), "cpu")
    theirs = thinker.audio_tower.state_dict()
    assert encoder.state_dict().keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in encoder.state_dict().items())
    waves = [NOISE[:n] for n in (640, 16000, 16160, 30001, 48000)]       # 48,000: two chunks of 2 s
    features = [stage.make_feature(encoder.config, wave) for wave in waves]
    together = stage.encode(encoder, features)
    assert [frames.shape for frames in together] == [(n, 32) for n in (1, 25, 25, 47, 75)]    # 25 Hz, the LLM's width
    for wave, feature, frames in zip(waves, features, together):
        mel = WhisperFeatureExtractor(feature_size=128)(wave, sampling_rate=16000, padding="max_length",
                                                        return_attention_mask=True, return_tensors="pt")
        with torch.no_grad():
            expected = thinker.get_audio_features(mel["input_features"], mel["attention_mask"]).last_hidden_state
        assert np.abs(frames - expected.numpy()).max() < 1e-4
        assert np.abs(frames - stage.encode(encoder, [feature])[0]).max() < 1e-4


# --- The cache.

def test_the_cache_holds_what_encoding_by_hand_gives(world, capsys):
    folder = run(world)
    out = capsys.readouterr().out
    assert "tiny/test: 0.00 hours, 10 utterances, 0 dropped, " in out
    assert out.endswith(f"next: python train_projector.py --preset tiny --work {world}\n")
    features = open_features(folder, {"encoder": "models/tiny-seamless", "mean": 3})
    assert len(features) == 10 and "tiny/test/text" not in features and features.config["width"] == WIDTH
    encoder = stage.load_encoder(world / "models" / "tiny-seamless", "cpu")
    for i in range(10):
        wave = read_audio(str(world.parent / f"{i}.wav"))
        expected = stage.average_frames(stage.encode(encoder, [stage.filterbank(wave)])[0], 3)
        frames = features[f"tiny/test/{i}"]
        assert frames.dtype == np.float16 and frames.shape == expected.shape and not frames.flags.writeable
        assert np.abs(frames - expected).max() < 4e-3
    run(world)                                            # a second run only says that it is done
    assert "10 utterances" in capsys.readouterr().out


def test_processes_share_a_split_without_talking(world, monkeypatch, capsys):
    alone = open_features(run(world))
    alone = {f"tiny/test/{i}": np.array(alone[f"tiny/test/{i}"]) for i in range(10)}
    shutil.rmtree(world / "features")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in "10":                                     # rank 0 comes last, so it is the one to finish
        monkeypatch.setenv("RANK", rank)
        folder = run(world)
    assert "this process is done, others are not" in capsys.readouterr().out
    features = open_features(folder)
    assert len(features) == 10
    assert max(np.abs(features[name] - alone[name]).max() for name in alone) < 2e-3


def test_a_corpus_that_grows_is_taken_up(world, capsys):
    folder = run(world)
    path = world / "rows" / "tiny" / "test.jsonl"
    row = json.loads(path.read_text(encoding="utf-8").splitlines()[0])
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps({**row, "id": "tiny/test/new/ASR", "utterance": "tiny/test/new"}) + "\n")
    run(world)
    features = open_features(folder)
    assert len(features) == 11
    assert np.abs(features["tiny/test/new"] - features["tiny/test/0"]).max() < 2e-3


def test_other_settings_are_refused(world, capsys):
    run(world)
    with pytest.raises(ValueError, match="made with piece_seconds 30.0, expected is 20.0"):
        run(world, "--max_seconds", "20")
    with open(world / "models" / "tiny-seamless" / "model.safetensors", "r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"\0\0\0\0")                           # trained anew under the same name
    with pytest.raises(ValueError, match="was made with weights"):
        run(world)


def test_what_is_dropped_is_counted_and_listed(world, capsys):
    """A training split: 3.wav, 8.wav and 9.wav are longer than 1.95 s. Silence is no reason, and is counted."""
    audio = world.parent
    (world / "rows" / "tiny" / "test.jsonl").rename(world / "rows" / "tiny" / "train.jsonl")
    (audio / "1.wav").write_bytes(b"RIFF nothing")
    os.remove(audio / "2.wav")
    soundfile.write(audio / "3.wav", np.zeros(16000 * 2), 16000)
    soundfile.write(audio / "4.wav", np.zeros(16000), 16000)
    folder = os.path.join(os.path.dirname(run(world, "--max_seconds", "1.95")), "train")
    assert "5 utterances, 5 dropped, 1 silent" in capsys.readouterr().out
    with open(os.path.join(folder, "dropped.jsonl"), encoding="utf-8") as file:
        dropped = {entry["utterance"]: entry for entry in map(json.loads, file)}
    assert sorted(dropped) == [f"tiny/test/{i}" for i in (1, 2, 3, 8, 9)]
    assert "cannot be decoded" in dropped["tiny/test/1"]["reason"]
    assert dropped["tiny/test/2"] == {"utterance": "tiny/test/2", "audio": str(audio / "2.wav"),
                                      "reason": f"{audio / '2.wav'}: no such file"}
    assert "longer than 1.95 s" in dropped["tiny/test/3"]["reason"]
    with pytest.raises(KeyError):
        open_features(folder)["tiny/test/2"]

    shutil.copy(audio / "0.wav", audio / "2.wav")         # mended: tried again once it is not finished
    os.remove(os.path.join(folder, "config.json"))
    run(world, "--max_seconds", "1.95")
    assert "6 utterances, 4 dropped" in capsys.readouterr().out
    assert "tiny/test/2" in open_features(folder)


def test_test_sets_lose_nothing_for_its_length(world, capsys):
    """With --max_seconds 2: train and dev drop 8.wav and 9.wav; test, and dev without train, have them in pieces."""
    rows = world / "rows"
    for corpus, splits in {"tiny": ("train", "dev"), "talks": ("dev",)}.items():
        for split in splits:
            (rows / corpus).mkdir(exist_ok=True)
            shutil.copy(rows / "tiny" / "test.jsonl", rows / corpus / f"{split}.jsonl")
            write_json(rows / corpus / "config.json", {})
    run(world, "--corpora", "tiny,talks", "--max_seconds", "2")
    out = capsys.readouterr().out
    for split, numbers in {"tiny/train": "8 utterances, 2 dropped", "tiny/dev": "8 utterances, 2 dropped",
                           "tiny/test": "10 utterances, 0 dropped", "talks/dev": "10 utterances, 0 dropped"}.items():
        assert f"{split}: 0.00 hours, {numbers}" in out
    features = open_features(features_folder(str(world), "models/tiny-seamless", 3, "tiny", "test"))
    encoder, path = stage.load_encoder(world / "models" / "tiny-seamless", "cpu"), str(world.parent / "9.wav")
    pieces, seconds, _ = stage.front_end(encoder.config, {"audio": path}, piece=2.0)
    assert len(pieces) == 2 and max(map(len, pieces)) <= 2 * 50
    expected = stage.average_frames(np.concatenate(stage.encode(encoder, pieces)), 3)
    assert abs(len(expected) * 3 - 50 * seconds) < 8 and np.abs(features["tiny/test/9"] - expected).max() < 4e-3


def test_nothing_left_is_an_error_not_an_empty_cache(world, capsys):
    (world / "rows" / "tiny" / "test.jsonl").rename(world / "rows" / "tiny" / "train.jsonl")
    for _ in range(2):                                    # and is one again the second time
        with pytest.raises(ValueError, match="all 10 utterances were dropped, .* longer than 0.1 s"):
            run(world, "--max_seconds", "0.1")


def test_frames_that_float16_cannot_hold_drop_their_utterance(world, monkeypatch, capsys):
    encode = stage.encode
    monkeypatch.setattr(stage, "encode", lambda encoder, features, pad: [
        frames * (1e6 if len(frames) == 24 else 1) for frames in encode(encoder, features, pad)])     # 0.5 s: 0.wav
    folder = run(world)
    assert "9 utterances, 1 dropped" in capsys.readouterr().out
    with open(os.path.join(folder, "dropped.jsonl")) as file:
        dropped = json.load(file)
    assert dropped["utterance"] == "tiny/test/0" and dropped["reason"].endswith(", not finite in float16")


def test_the_disk_is_checked_first(world, monkeypatch, capsys):
    """14 s of 50 frames, averaged by 3, 128 numbers of 2 bytes each: 60 kB."""
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=55_000))
    with pytest.raises(SystemExit, match=r"work/features needs about 0.0 GB more, and its disk has 0.0 GB free"):
        run(world)
    assert "tiny/test: about 0.00 hours, 0.00 GB of frames" in capsys.readouterr().out
    assert not os.path.exists(world / "features")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=65_000))
    run(world)


def test_a_stage_run_before_its_predecessor_names_it(world, capsys):
    for arguments, says in [(["--corpora", "digits"], "rows/digits is missing; run: python -m data.digits"),
                            (["--corpora", "covost2-zh_en"], "run: python -m data.covost2 --into-english zh"),
                            (["--splits", "dev"], "dev.jsonl is missing; run: python -m data.tiny"),
                            (["--encoder", "models/x"], "models/x is missing; run: bash run_all.sh PRESET, with the ")]:
        with pytest.raises((SystemExit, FileNotFoundError), match=says):
            run(world, *arguments)
    assert locate(str(world), "models/tiny-seamless") == str(world / "models" / "tiny-seamless")
    assert locate(str(world), "facebook/seamless-m4t-v2-large") == "facebook/seamless-m4t-v2-large"
