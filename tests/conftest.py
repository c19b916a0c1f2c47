"""The one place that touches the import path, and what several tests start from."""
import contextlib
import importlib
import json
import multiprocessing
import os
import random
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch
import transformers
from transformers import (AutoTokenizer, GenerationConfig, SeamlessM4Tv2Model, WhisperFeatureExtractor,
                          WhisperForConditionalGeneration)

PROJECT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, PROJECT)
os.environ["PYTHONPATH"] = PROJECT                               # of the processes that the tests start
torch.set_num_threads(1)                                         # two workers of pytest-xdist share two cores ...
os.environ["OMP_NUM_THREADS"] = "1"                              # ... with the processes that they start

import extract_features  # noqa: E402, it needs the lines above
from data.tiny import draw_sentence, sentence_rows  # noqa: E402
from data.tiny_llm import make_tokenizer  # noqa: E402
from data.tiny_models import make_whisper_tokenizer, seamless_config, whisper_generation, whisper_model  # noqa: E402
from speech_llm import cache  # noqa: E402
from speech_llm.constants import configure  # noqa: E402
from speech_llm.files import read_json_lines, write_json  # noqa: E402
from speech_llm.index import hashes_of  # noqa: E402
from speech_llm.prompts import user_turn  # noqa: E402
from speech_llm.rows import read_rows, write_rows  # noqa: E402

SHARED = Path(PROJECT).parent / "shared"                         # beside the project: what reference code gave
PARITY = SHARED / "parity"


def reference(path):
    """Return a path; skip the test if nothing is there."""
    if not Path(path).exists():
        pytest.skip(f"no reference at {path}")
    return path


def lines(path):
    """Return the JSON objects of a file of JSON lines; skip the test without the file."""
    return read_json_lines(reference(path), "", complete=True)


def vectors(name, **wanted):
    """Return the lines of a file in shared/parity, of which `wanted` are values."""
    chosen = [v for v in lines(PARITY / name) if all(v.get(key) == value for key, value in wanted.items())]
    assert chosen
    return chosen


def pytest_configure(config):
    """Know the marker of the long rehearsals, and leave them out unless the command line has -m."""
    config.addinivalue_line("markers", "rehearsal: a long rehearsal of a real system; run with -m rehearsal")
    config.option.markexpr = config.option.markexpr or "not rehearsal"


@pytest.fixture(scope="session")
def real():
    """The folder of real recordings beside the project; tests that need it are skipped without it."""
    return str(reference(SHARED / "real"))


@pytest.fixture(scope="session")
def small_models():
    """The folder of real small checkpoints, SMALL_MODELS or beside the project; without it a test is skipped."""
    return str(reference(os.environ.get("SMALL_MODELS") or SHARED.parent / "small_models"))


@pytest.fixture(scope="session")
def tokenizers(real):
    """The real vocabularies of the LLMs of 2025 and 2026, {model type: tokenizer}."""
    folders = {"llama": "llama3_1_hf", "qwen3": "qwen3_4b_instruct_2507"}
    return {kind: AutoTokenizer.from_pretrained(os.path.join(real, "tokenizers", folder))
            for kind, folder in folders.items()}


# --- A world so small that every stage runs in a second: random models, made-up frames, nothing to learn.

TINY_TRAINING = ["--steps", "6", "--validate_every", "2", "--validate_rows", "1", "--warmup", "2", "--batch", "4",
                 "--accumulate", "2", "--micro_tokens", "300"]
ARGUMENTS = {
    "train_projector": [*TINY_TRAINING, "--batch_sqa", "2", "--layers", "1", "--heads", "2", "--ffn", "32"],
    "train_lora": TINY_TRAINING, "merge_sft": TINY_TRAINING, "infer": ["--max_new_tokens", "6", "--batch", "8"],
}
ON_TABLE = [*ARGUMENTS["train_projector"], "--objective", "embeddings", "--mixture", '{"ASR": (1.0, {"en": 1.0})}',
            "--projector", "mapper", "--middle", "16", "--pad_token", "<|finetune_right_pad_id|>", "--batch_frames",
            "40", "--dropout", "0", "--clip", "1"]               # a tiny SpeechMapper on the tiny Llama's table
FORKS = multiprocessing.get_context("forkserver")                # its processes begin with all libraries imported
FORKS.set_forkserver_preload(["pytest", "infer", "data.tiny", "data.speak"])


def run_stage(stage, *more):
    """Run a stage's main in this process, below the current folder: run_stage("train_lora", "--seed", "1")."""
    return importlib.import_module(stage).main([*ARGUMENTS.get(stage, []), *more])


def run_main(folder, environment, module, arguments):
    """Run a module's main in a folder, with more environment variables; what it prints goes into printed.txt."""
    os.environ.update(environment)
    os.chdir(folder)
    with open("printed.txt", "a", buffering=1) as sys.stdout, contextlib.redirect_stderr(sys.stdout):
        importlib.import_module(module).main(arguments)


def start(folder, module, arguments, **environment):
    """Start a process that runs run_main; return the multiprocessing.Process."""
    process = FORKS.Process(target=run_main, args=(str(folder), {**os.environ, **environment}, module, arguments))
    process.start()
    return process


def read_log(folder):
    """Return log.jsonl of a stage's folder as a list of JSON objects."""
    return read_json_lines(os.path.join(folder, "log.jsonl"), "")


def change(path, **values):
    """Change keys of a JSON object in a file; ... takes one away."""
    with open(path, encoding="utf-8") as file:
        content = {**json.load(file), **values}
    with open(path, "w", encoding="utf-8") as file:
        json.dump({key: value for key, value in content.items() if value is not ...}, file)


def shorten_transcripts(folder="."):
    """Make every transcript one letter, so that its tokens fit into the slots of the made-up frames."""
    for split in ("train", "dev", "test"):
        path = os.path.join(folder, "work", "rows", "tiny", f"{split}.jsonl")
        write_rows(path, [{**row, "transcript": "a"} for row in read_rows(path)])


@pytest.fixture(name="run_stage", scope="session")
def run_stage_fixture():
    """run_stage, for tests that take it as a fixture."""
    return run_stage


@pytest.fixture(scope="session")
def llama(tmp_path_factory):
    """A random Llama of two narrow layers and its byte-level BPE tokenizer, in the hub's format -> its folder."""
    torch.manual_seed(0)
    rng = random.Random(0)
    rows = [row for _ in range(40) for row in sentence_rows(rng, draw_sentence(rng), "tiny/text", "none")]
    tokenizer = make_tokenizer(["".join(user_turn(row, text=True)) + row["target"] for row in rows], 600)
    ends = tokenizer.convert_tokens_to_ids(["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"])
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.2, bos_token_id=tokenizer.bos_token_id, eos_token_id=ends,
        pad_token_id=tokenizer.pad_token_id)
    folder = str(tmp_path_factory.mktemp("models") / "tiny-llama")
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def seamless(tmp_path_factory):
    """A random SeamlessM4Tv2 with its text decoder, speech units, five speakers and tokenizer, as on the hub."""
    codes = ("__eng__", "__deu__", "__ita__", "__cmn__")
    folder = tmp_path_factory.mktemp("models") / "seamless"
    folder.mkdir()
    rng = random.Random(0)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(text for _ in range(200) for text in draw_sentence(rng)["text"]), vocab_size=500,
        model_prefix=str(folder / "sentencepiece.bpe"), model_type="bpe", unk_id=0, bos_id=1, eos_id=2, pad_id=-1,
        normalization_rule_name="nmt_nfkc", minloglevel=2)
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(
        {"tokenizer_class": "SeamlessM4TTokenizer", "additional_special_tokens": codes, "src_lang": "__eng__",
         "tgt_lang": "__deu__", **special}))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pieces = tokenizer.get_vocab()
    characters = sorted({character for piece in pieces for character in piece})
    config = seamless_config()
    config.update({"vocab_size": len(tokenizer), "char_vocab_size": len(characters) + 2, "vocoder_num_spkrs": 5,
                   "t2u_variance_predictor_embed_dim": config.hidden_size, "t2u_variance_predictor_hidden_dim": 32,
                   "initializer_range": 0.3})
    torch.manual_seed(0)
    model = SeamlessM4Tv2Model(config)
    spoken = {code.strip("_"): n for n, code in enumerate(codes)}
    with torch.no_grad():
        model.shared.weight *= 0.4
        model.shared.weight[3] *= 4                                      # </s>: some texts end, some do not
        model.shared.weight[:3] = 0                                      # never <pad>
        model.t2u_model.lm_head.weight[[0, 1, 3]] = 0                    # no control symbols among the units ...
        model.t2u_model.lm_head.weight[2] *= 2                           # ... but ends, which cut a wave
        for predictor in (model.t2u_model.model.decoder.duration_predictor, model.vocoder.dur_predictor):
            predictor.proj.weight *= 0.1                                 # a few frames a unit, not thousands
    model.generation_config = GenerationConfig(
        bos_token_id=2, eos_token_id=3, pad_token_id=0, decoder_start_token_id=3, max_new_tokens=256,
        text_decoder_lang_to_code_id={code.strip("_"): pieces[code] for code in codes},
        t2u_lang_code_to_id=spoken, vocoder_lang_code_to_id=spoken,
        id_to_text={str(n): piece for piece, n in pieces.items()},
        char_to_id={character: n for n, character in enumerate(characters, 2)})
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def whisper(tmp_path_factory):
    """A whole random Whisper, as on the hub: window of 3 s, 16 mel bins, four languages, a byte-level BPE tokenizer."""
    rng, folder = random.Random(0), str(tmp_path_factory.mktemp("models") / "tiny-whisper")
    tokenizer = make_whisper_tokenizer([text for _ in range(50) for text in draw_sentence(rng)["text"]], 400)
    config = whisper_model(tokenizer).config
    config.update(dict(num_mel_bins=16, d_model=32, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=48,
                       decoder_attention_heads=2, decoder_ffn_dim=48, max_source_positions=150,
                       max_target_positions=24, init_std=0.3))
    torch.manual_seed(0)
    model, end = WhisperForConditionalGeneration(config), config.eos_token_id
    with torch.no_grad():
        table = model.model.decoder.embed_tokens.weight
        table[end] = 1.2 * table[22]                                     # some transcripts end, some do not
    model.generation_config = whisper_generation(tokenizer, ("en", "de", "it", "zh"))
    model.generation_config.update(max_length=24, suppress_tokens=[*range(94, 256), *range(end + 1, len(tokenizer))])
    for part in (model, tokenizer, WhisperFeatureExtractor(feature_size=16, chunk_length=3)):
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def untrained(llama, tmp_path_factory):
    """A folder whose work/ is as stage A finds it: rows of three splits, a finished cache of random frames, the LLM."""
    folder = tmp_path_factory.mktemp("untrained")
    shutil.copytree(llama, folder / "work" / "models" / "tiny-llama")
    rng, noise, width = random.Random(1), np.random.default_rng(1), seamless_config().hidden_size
    with contextlib.chdir(folder):
        c = configure(extract_features.Config, "extract_features", [])
        made = {"encoder": c.encoder, "mean": c.mean, "pad": False}
        for split, count in (("train", 24), ("dev", 3), ("test", 4)):
            rows = [row for n in range(count)
                    for row in sentence_rows(rng, draw_sentence(rng), f"tiny/{split}-{n}", f"{split}-{n}.flac")]
            write_rows(os.path.join("work", "rows", "tiny", f"{split}.jsonl"), rows)
            frames = {name: noise.standard_normal((rng.randint(4, 20), width)).astype(np.float16)
                      for name in dict.fromkeys(row["utterance"] for row in rows)}
            folder_of_cache = cache.features_folder(c.work, c.encoder, c.mean, "tiny", split)
            cache.write_shard(folder_of_cache, "frames-00000", frames, {"made": made, "dropped": [], "seconds": 1.0})
            assert cache.finish_cache(c, made, folder_of_cache, hashes_of(frames))
        write_json(os.path.join("work", "rows", "tiny", "config.json"), {})          # the recipe is finished
    return folder


@pytest.fixture(scope="session")
def finished_stages(untrained, tmp_path_factory):
    """The same with the stages A.1, A.2, B and C finished in work/tiny, six steps each."""
    folder = tmp_path_factory.mktemp("finished") / "all"
    shutil.copytree(untrained, folder)
    with contextlib.chdir(folder):
        run_stage("train_projector")
        run_stage("train_projector", "--preset", "tiny_a2")
        run_stage("train_lora")
        run_stage("merge_sft")
    return folder


@pytest.fixture
def before_training(untrained, tmp_path, monkeypatch):
    """A copy of `untrained` for one test, which runs in it."""
    monkeypatch.chdir(shutil.copytree(untrained, tmp_path / "copy"))
    return tmp_path / "copy"


@pytest.fixture
def after_training(finished_stages, tmp_path, monkeypatch):
    """A copy of `finished_stages` for one test, which runs in it."""
    monkeypatch.chdir(shutil.copytree(finished_stages, tmp_path / "copy"))
    return tmp_path / "copy"


@contextlib.contextmanager
def replaced_makers():
    """Put the rehearsal's makers in place of those with models, of which none is missing; yield a MonkeyPatch."""
    import rehearsing
    with pytest.MonkeyPatch.context() as patch:
        rehearsing.replace_makers(patch.setattr)
        patch.setattr("data.recipe.mend_model", lambda name: "")
        yield patch


@pytest.fixture
def makers():
    """replaced_makers during one test."""
    with replaced_makers() as patch:
        yield patch
