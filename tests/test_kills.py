"""
SIGKILL at random moments of all that works for long: the same command continues, to the bytes of an unbroken run.

Every run is a forked child of a nursery, a process that has imported torch and done nothing else: 20 kills a stage then
cost seconds, not minutes. Half of the kills come after a random time, half at a random commit: before or after a
rename, a removal or a flush to the disk, or in the middle of a write. Unbroken runs come from a second nursery, so that
an order which depends on Python's hashes would show. The small worlds start over, but for a finished model, and end
with the same bytes; here they speak and train in one process, one step a model.
"""
import builtins
import importlib
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch


KILLS = 20                                   # of every run: issue 7
TESTS = os.path.dirname(os.path.abspath(__file__))
TEXTS = ["Anna bought two books in Rome.", "Rome.", "The concert in Paris is on Friday, said Peter to Maria.",
         "We need eight bottles by Sunday.", "Who works there?", "Rome.", "The train from Oslo to Milan leaves."]
COMET = os.path.join(os.path.dirname(os.path.dirname(TESTS)), "shared", "parity", "comet_tiny")
TTS = """
import json, os, sys, time, wave
jobs = [json.loads(line) for line in open(sys.argv[1], encoding="utf-8")]
for job in jobs:
    with wave.open(job["audio"], "wb") as file:
        file.setparams((1, 1, 8000, 0, "NONE", ""))
        file.writeframes(100 * job["text"].encode())
"""
OUTLIVES = """
def wait_for(name):
    end = time.monotonic() + 20
    while not os.path.exists(name) and time.monotonic() < end:
        time.sleep(0.01)

if os.path.exists("first"):
    open("second", "w")
    wait_for("over")
else:
    open("first", "w")
    os.kill(os.getppid(), 9)
    wait_for("second")
    for job in jobs:
        open(job["audio"], "wb")
    open("over", "w")
"""


# ---------------------------------------------------------------------------------------------------------------------
# What is run, in a child whose current folder is its own copy of what `prepared` makes.

def stage(name, *more):
    """A stage with conftest's arguments for tiny models."""
    import conftest
    importlib.import_module(name).main([*conftest.ARGUMENTS.get(name, []), *more])


def extraction():
    """Ten utterances, of which one is dropped, two in a block and a block in a shard."""
    import extract_features
    extract_features.BLOCK = 2
    stage("extract_features", "--shard_frames", "1")


def mapper():
    from test_mapper import ON_TABLE
    stage("train_projector", *ON_TABLE)


def translate():
    import data.translate
    data.translate.MAX_TOKENS = 16           # random models do not know when to stop
    data.translate.translate(TEXTS, "it", "seamless", "work/made/kept.jsonl", batch=2)


def quality():
    import data.quality
    from metrics import comet
    comet.ENCODERS["unified"] = os.path.join(COMET, "encoder")
    with open(os.path.join(COMET, "expected.json"), encoding="utf-8") as file:
        pairs = [[row["src"], row["mt"]] for row in json.load(file)["kiwi_softmax"]["data"]]
    data.quality.quality(pairs, os.path.join(COMET, "kiwi_softmax.pt"), "work/made/kept.jsonl", batch=1)


def speak():
    import data.speak
    data.speak.MAX_TOKENS = 16
    data.speak.speak({f"x/train/{n}": text for n, text in enumerate(TEXTS)}, "work/audio", "seamless", batch=2)


def rewrite():
    import data.rewrite
    data.rewrite.generate(TEXTS, "llama", "work/made/kept.jsonl", 2, 6)


def europarlst():
    import numpy as np
    from data import europarlst
    europarlst.find_decoder = lambda: lambda path: 0.1 * np.ones(2 * os.path.getsize(path), np.float32)
    europarlst.main(["--raw", "raw"])


def gigast():
    import pytest
    from data import gigast
    from test_recipes26 import Makers
    gigast.BLOCK = 3
    Makers(pytest.MonkeyPatch())
    gigast.main(["--raw", "raw"])


def librisqa():
    import pytest
    from data import librisqa
    from test_recipes26 import run_librisqa
    librisqa.main(run_librisqa(".", pytest.MonkeyPatch())[1])


def covost2():
    from data import covost2
    covost2.main(["--raw", "raw"])


def speak_at_once(texts, folder, *more, **options):
    """In the place of data/speak.py, which is killed above: a file for each text, moved into place."""
    import numpy as np
    import soundfile
    from speech_llm.files import replace_file
    paths = {name: os.path.join(folder, f"{name}.flac") for name in texts}
    for name, path in paths.items():
        if not os.path.exists(path):
            with replace_file(path) as temporary:
                soundfile.write(temporary, 0.1 * np.ones(100 * len(texts[name])), 16000, format="FLAC")
    return paths


def spokensquad():
    import pytest
    import test_spokensquad
    from data import spokensquad
    test_spokensquad.makers.__wrapped__(pytest.MonkeyPatch())
    spokensquad.DEV_THEMES, spokensquad.speak = 2, speak_at_once
    spokensquad.main(["--questions"])


def fakacl():
    import pytest
    import test_fakacl
    from data import fakacl
    test_fakacl.makers.__wrapped__(Path(), pytest.MonkeyPatch())
    fakacl.main([])


def acl6060():
    import pytest
    from data import acl6060
    from test_recipes26 import Makers
    Makers(pytest.MonkeyPatch())
    acl6060.main(["--raw", "raw"])


def multispeechqa():
    import pytest
    from data import multispeechqa
    from test_recipes26 import Makers
    multispeechqa.translate, multispeechqa.speak = Makers(pytest.MonkeyPatch()).translate, speak_at_once
    multispeechqa.BLOCK = 3
    multispeechqa.main(["--languages", "en,el", "--dev", "1", "--test", "1", "--rlhf", "3",
                        "--tts", f"{sys.executable} -S tts.py"])


def plain_recipe(name, *more):
    """A recipe without makers."""
    importlib.import_module(f"data.{name}").main(["--raw", "raw", *more])


def small_world(name):
    """Ten utterances and, but for the digits, two models of a step each, all in this process."""
    from data import recipe, tiny_models
    world = importlib.import_module(f"data.{name}")
    recipe.in_processes = lambda function, jobs, desc: [function(job) for job in jobs]
    tiny_models.in_parallel = lambda *jobs: [job() for job in jobs]
    if name == "digits":                     # its models are made as the tiny world's are
        os.environ["FSDD"], tiny_models.make_models = "fsdd", lambda *_: None
    world.PRESETS[next(iter(world.PRESETS))] = dict(train=6, dev=2, test=2, encoder_steps=1, whisper_steps=1,
                                                    llm_steps=1, hesitate_from=0)
    world.main([])


def listeners():
    """A fresh Q-Former, trained on ASR together with fresh adapters, then both on questions."""
    import merge_sft
    from speech_llm.rows import LANGUAGES
    merge_sft.MIXTURES |= {"ASR": {"ASR": (1.0, {"en": 1.0})},                  # what conftest's world has
                           "SQA": {"SQA": (1.0, dict.fromkeys(LANGUAGES, 0.25))}}
    both = ["--no-text", "--shares", "sizes", "--prompt", "listeners", "--steps", "4"]
    stage("train_projector", "--projector", "qformer", "--middle", "16", "--steps", "0", "--prompt", "listeners")
    stage("merge_sft", *both, "--lora", "random", "--mixture", "ASR", "--out", "aligned")
    stage("merge_sft", *both, "--projector", "aligned", "--lora", "aligned", "--mixture", "SQA")


def evaluation():
    import eval as evaluate
    import pytest
    import test_eval
    test_eval.judges.__wrapped__(pytest.MonkeyPatch())
    evaluate.comet.ENCODERS["regression"] = os.path.join(COMET, "encoder")
    evaluate.BATCH = 1
    evaluate.main(["--systems", "B,C", "--metrics", f"{evaluate.Config.metrics},COMET,judge", "--judges", "strict,half",
                   "--comet", os.path.join(COMET, "da_sparsemax.pt")])


RUNS = {"extraction": extraction, "A": lambda: stage("train_projector"), "A-mapper": mapper,
        "B": lambda: stage("train_lora"), "C": lambda: stage("merge_sft"),
        "infer": lambda: stage("infer", "--systems", "B:lora,C:merged"),
        "translate": translate, "quality": quality, "speak": speak, "rewrite": rewrite,
        "europarlst": europarlst, "gigast": gigast, "librisqa": librisqa, "covost2": covost2,
        "spokensquad": spokensquad, "fakacl": fakacl, "acl6060": acl6060, "multispeechqa": multispeechqa,
        "commonvoice": lambda: plain_recipe("commonvoice", "--languages", "zh,ko", "--hours", "0.05", "--dev", "1",
                                            "--test", "2"),
        **{name: lambda name=name: plain_recipe(name) for name in ("librispeech", "mcif", "speech_ifeval")},
        **{name: lambda name=name: small_world(name) for name in ("tiny", "digits", "tiny_listeners")},
        "listeners": listeners, "eval": evaluation}
WRITE_AT_THE_END = {"covost2", "commonvoice", "librispeech", "mcif", "speech_ifeval"}    # killed at every commit


# ---------------------------------------------------------------------------------------------------------------------
# The nursery: `python tests/test_kills.py` reads a request a line and answers with a line.

def child(name, folder, spot):
    """Run one of RUNS in a folder and leave; with `spot`, die at that one of its commits."""
    os.chdir(folder)
    output = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    passed = 0

    def count():
        nonlocal passed
        passed += 1
        if passed == spot:
            os.kill(os.getpid(), signal.SIGKILL)

    def counted(function):
        def call(*arguments, **options):
            count()
            result = function(*arguments, **options)
            count()
            return result
        return call

    class Torn(io.FileIO):                   # what is written reaches the file in two halves
        def write(self, data):
            half = super().write(bytes(data)[:len(data) // 2])
            count()
            return half + super().write(bytes(data)[half:])

    def torn(path, mode="r", buffering=-1, encoding=None, errors=None, newline=None):
        if isinstance(path, int) or "+" in mode or mode.strip("bt") not in ("w", "a"):
            return whole(path, mode, buffering, encoding, errors, newline)
        raw = Torn(path, mode.strip("bt"))
        file = raw if buffering == 0 else io.BufferedWriter(raw)
        return file if "b" in mode else io.TextIOWrapper(file, encoding, errors, newline)
    whole, builtins.open = open, torn
    for function in ("replace", "remove", "unlink", "fsync"):
        setattr(os, function, counted(getattr(os, function)))
    try:
        RUNS[name]()
        total = passed
        with open("spots.txt", "w") as file:
            file.write(str(total))
        code = 0
    except BaseException:
        import traceback
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    os._exit(code)


def serve():
    """Import what the runs import, and fork a child for every request; nothing that starts a thread happens here."""
    sys.path.insert(1, os.path.dirname(TESTS))
    for name in ("transformers", "torchaudio.compliance.kaldi", "soundfile", "sacrebleu", "jiwer", "safetensors.torch",
                 "transformers.models.llama.modeling_llama", "transformers.models.xlm_roberta.modeling_xlm_roberta",
                 "transformers.models.seamless_m4t_v2.modeling_seamless_m4t_v2", "transformers.generation",
                 "sentencepiece", "matplotlib.pyplot", "extract_features", "train_projector", "train_lora",
                 "merge_sft", "infer", "eval", "data.speak", "data.quality", "data.rewrite", "data.tiny_models",
                 *(f"data.{name}" for name in RUNS if os.path.exists(f"{os.path.dirname(TESTS)}/data/{name}.py")),
                 "metrics.comet", "conftest", "test_mapper", "test_recipes26", "test_fakacl", "test_spokensquad",
                 "test_eval"):
        importlib.import_module(name)
    sys.modules["data.recipe"].READERS = 2   # of a few files: to start 16 threads takes longer than the reading
    print("ready", flush=True)
    for line in sys.stdin:
        name, folder, seconds, spot = json.loads(line)
        started, pid = time.monotonic(), os.fork()
        if not pid:
            child(name, folder, spot)
        due = 60 if seconds is None else seconds
        while not (found := os.waitpid(pid, os.WNOHANG))[0]:
            if time.monotonic() - started > due:
                os.kill(pid, signal.SIGKILL)
                found = os.waitpid(pid, 0)
                break
            time.sleep(0.002)
        print(json.dumps([os.waitstatus_to_exitcode(found[1]), time.monotonic() - started]), flush=True)


if __name__ == "__main__":
    serve()
    sys.exit()


@pytest.fixture(scope="module")
def nurseries():
    """(for unbroken runs, for killed ones): each a function (name, folder, seconds, spot) -> (exit code, seconds)."""
    processes = []
    for seed in "12":
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": seed, "TQDM_DISABLE": "1",
                       "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1",
                       "GIT_DIR": os.devnull}       # someone's commit in the meantime is no difference
        processes.append(subprocess.Popen([sys.executable, os.path.abspath(__file__)], text=True, env=environment,
                                          stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL))

    def asking(process):
        assert process.stdout.readline() == "ready\n"

        def run(name, folder, seconds=None, spot=None):
            process.stdin.write(json.dumps([name, str(folder), seconds, spot]) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())
        return run
    yield [asking(process) for process in processes]
    for process in processes:
        process.stdin.close()
        process.wait()


def prepared(name, get, folder):
    """Fill a folder with what a run finds before its first start."""
    if name == "extraction":
        from speech_llm.rows import write_rows
        shutil.copytree(get("seamless"), folder / "work" / "models" / "tiny-seamless")
        noise, rows = np.random.default_rng(0), []
        for n in range(10):
            path = folder / f"{n}.wav"
            if n != 3:                       # it will be dropped
                soundfile.write(path, 0.1 * noise.standard_normal(8000 + 800 * n), 16000)
            rows.append({"id": f"tiny/test/{n}/ASR", "utterance": f"tiny/test/{n}", "audio": path.name, "task": "ASR",
                         "language": "en", "transcript": "Yes.", "target": "Yes."})
        write_rows(str(folder / "work" / "rows" / "tiny" / "test.jsonl"), rows)
    elif name in ("A", "A-mapper", "B", "listeners"):
        shutil.copytree(get("untrained"), folder, dirs_exist_ok=True)
        if name == "A-mapper":               # transcripts that fit into the slots of made-up frames
            for split in ("train", "dev"):
                path = folder / "work" / "rows" / "tiny" / f"{split}.jsonl"
                path.write_text(re.sub(r'"transcript": "[^"]*"', '"transcript": "a"', path.read_text("utf-8")), "utf-8")
    elif name in ("C", "infer"):
        shutil.copytree(get("finished_stages"), folder, dirs_exist_ok=True)
        if name == "C":
            shutil.rmtree(folder / "work" / "tiny" / "merged")
    elif name in ("translate", "speak"):
        os.symlink(get("seamless"), folder / "seamless")
    elif name == "rewrite":
        os.symlink(get("llama"), folder / "llama")
    elif name in ("quality", "eval"):
        if not os.path.exists(COMET):
            pytest.skip(f"no tiny COMET models at {COMET}")
    elif name == "europarlst":
        from test_recipes import europarl_download, write
        speeches = [(f"en.{n} 0.0 0.5", "Yes.", "Ja.") for n in range(6)]
        europarl_download(folder / "raw" / "v1.1" / "en", de_train=speeches)
        for n in range(6):
            write(folder / "raw" / "v1.1" / "en" / "audios" / f"en.{n}.m4a", "x" * (8000 + n))
    elif name == "gigast":
        from test_recipes26 import make_gigast
        make_gigast(folder / "raw", opus=False)
    elif name == "librisqa":
        from test_recipes26 import make_librisqa
        make_librisqa(folder)
    elif name == "covost2":
        from test_recipes import covost_download
        covost_download(folder / "raw")
    elif name == "acl6060":
        from test_recipes import talks_xml, write
        for split in ("dev", "eval"):
            part = folder / "raw" / "2" / "acl_6060" / split
            for language in ("en", "de", "zh"):
                write(part / "text" / "xml" / f"ACL.6060.{split}.en-xx.{language}.xml",
                      talks_xml({"a": {str(n): f"{split} {language} {n}." for n in range(1, 6)}}))
            (part / "segmented_wavs" / "gold").mkdir(parents=True)
            for n in range(1, 5):            # the fifth will be dropped
                soundfile.write(part / "segmented_wavs" / "gold" / f"sent_{n}.wav", np.zeros(1600), 16000)
    elif name == "commonvoice":
        import test_recipes_listeners as made
        clip = made.clip.__wrapped__(get("tmp_path_factory"))
        os.symlink(made.raw.__wrapped__(get("tmp_path"), clip), folder / "raw")
    elif name == "librispeech":
        from test_recipes26 import make_part
        for part in ("train-clean-100", "dev-other", "test-clean"):
            make_part(folder / "raw", part, {f"1-2-000{n}": "SAID" * (n != 2) for n in range(4)})
    elif name == "speech_ifeval":
        from test_speech_ifeval import benchmark
        benchmark(folder / "raw")
    elif name == "digits":
        (folder / "fsdd").mkdir()
        for n in range(40):                  # a take of the range that dev draws from and one of train's
            voice, take = ("anna", "bert")[n % 2], (5, 10)[n // 2 % 2]
            soundfile.write(folder / "fsdd" / f"{n // 4}_{voice}_{take}.wav", np.sin(0.1 * n * np.arange(2000)), 8000)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)                  # where the builders of other tests work
        if name == "spokensquad":
            from test_spokensquad import corpus
            corpus.__wrapped__(folder, patch)
        elif name == "multispeechqa":
            from test_multispeech import write_pairs
            write_pairs([{"split_name": "rlhf" if n % 2 else "identity", "question": f"Is it {n}?", "answer": f"{n}."}
                         for n in range(12)])
            (folder / "tts.py").write_text(TTS)
        elif name == "mcif":
            from test_mcif import raw
            os.symlink(raw.__wrapped__(folder, patch), folder / "raw")
        elif name == "eval":
            from test_eval import scored
            scored.__wrapped__(folder, patch)
            (folder / "work" / "tiny" / "merged" / "config.json").write_text("{}")


TEMPORARY = re.compile(r"\.\d+\..+")         # of data/rows.py's replace_file; no reader ever looks at them
GROWS = re.compile(r"log\.jsonl|kept|spoken\.jsonl|/made/|/scores/|\.partial")          # line by line


def contents(folder):
    """
    {path below a run's work: bytes}, without temporary names, locks and what a TTS command was last asked, which names
    them; the log without its times.
    """
    found = {}
    for where, _, names in os.walk(folder / "work"):
        for name in names:
            if name not in ("lock", "jobs.jsonl") and not TEMPORARY.fullmatch(name):
                path = os.path.join(where, name)
                with open(path, "rb") as file:
                    data = file.read()
                if name == "log.jsonl":
                    data = re.sub(rb'"seconds": [\d.]+', b'"seconds": 0', data)
                found[os.path.relpath(path, folder)] = data
    return found


def whole_lines(data):
    return data[:data.rfind(b"\n") + 1]


def check_after_a_kill(folder, unbroken, before):
    """No half file under its real name; nothing that was kept has gone; at most one checkpoint interval is lost."""
    now = contents(folder)
    for path, data in now.items():
        if path in unbroken and not GROWS.search(path):
            if path.endswith("commonvoice/counts.md") and unbroken[path].startswith(data):
                continue                     # its table of hours comes last
            assert data == unbroken[path], f"{path} is not what it will be"
    for path, data in before.items():
        if GROWS.search(path) and not path.endswith("log.jsonl"):
            kept = b"".join(now[p] for p in now if p.startswith(path.partition(".partial")[0]))
            missing = set(whole_lines(data).splitlines()) - set(kept.splitlines())
            assert not missing or ".partial" in path and b'"unheard"' in data, f"{path} has lost {missing}"
        elif "/frames-" in path and path.replace(".npy", ".json") in before:     # a committed shard is not made again
            assert now[path] == data
    for path in now:
        if path.endswith("log.jsonl") and os.path.dirname(path) + "/config.json" not in now:
            steps = [json.loads(line)["step"] for line in whole_lines(now[path]).splitlines()]
            resume = folder / os.path.dirname(path) / "resume.pt"
            saved = torch.load(resume, weights_only=True)["step"] if resume.exists() else 0
            assert max(steps, default=0) - saved <= 2, "more than one checkpoint interval is lost"     # validate_every
    return now


@pytest.mark.parametrize("name", RUNS)
def test_killed_twenty_times_it_ends_as_if_it_never_was(name, nurseries, request, tmp_path):
    unbroken_run, killed_run = nurseries
    (tmp_path / "template").mkdir()
    prepared(name, request.getfixturevalue, tmp_path / "template")

    def copy(to):
        shutil.copytree(tmp_path / "template", tmp_path / to, symlinks=True)
        return tmp_path / to
    whole = copy("whole")
    code, seconds = unbroken_run(name, whole)
    assert code == 0, (whole / "output.txt").read_text()[-2000:]
    unbroken, spots = contents(whole), int((whole / "spots.txt").read_text())
    assert len(unbroken) > len(contents(tmp_path / "template"))

    rng, kills, rounds = random.Random(name), 0, 0
    wanted = max(KILLS, spots) if name in WRITE_AT_THE_END else KILLS
    while kills < wanted:
        rounds += 1
        folder, before = copy(f"killed-{rounds}"), {}
        while True:
            when = rng.choice([{"seconds": rng.uniform(0, seconds)}, {"spot": rng.randint(1, spots)}])
            if name in WRITE_AT_THE_END:
                when = {"spot": 1 + kills % spots}
            code, _ = killed_run(name, folder, **when if kills < wanted else {})
            if code == 0:
                break
            assert code == -signal.SIGKILL, (folder / "output.txt").read_text()[-2000:]
            kills += 1
            before = check_after_a_kill(folder, unbroken, before)
        after = contents(folder)
        assert after.keys() == unbroken.keys()
        assert not [path for path in after if after[path] != unbroken[path]]


def test_a_tts_command_that_outlives_its_recipe_spoils_nothing(nurseries, request, tmp_path):
    """SIGKILL ends the recipe alone: when the next one's command has spoken, the first one's begins its files anew."""
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        prepared("multispeechqa", request.getfixturevalue, tmp_path / name)
    with open(tmp_path / "killed" / "tts.py", "a") as file:
        file.write(OUTLIVES)
    whole, *killed = [nurseries[1]("multispeechqa", tmp_path / name)[0] for name in ("whole", "killed", "killed")]
    assert whole == 0 and killed == [-signal.SIGKILL, 0] and (tmp_path / "killed" / "over").exists()
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
