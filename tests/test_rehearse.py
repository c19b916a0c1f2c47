"""What a real run lacks is told at once; the real commands run in miniature, from the downloads to the tables."""
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
from types import SimpleNamespace

import httpx
import downloads
import pytest
from huggingface_hub.errors import GatedRepoError

from data import check
from data.recipe import spread
from speech_llm.constants import read_page


@pytest.fixture
def hub(monkeypatch):
    """Stand for a hub that gives every model but gated Llamas to this user."""
    def auth_check(name):
        if name.startswith("meta-llama/"):
            raise GatedRepoError("no", response=httpx.Response(403, request=httpx.Request("GET", "https://x")))
    monkeypatch.setattr("huggingface_hub.auth_check", auth_check)


def test_everything_that_lacks_is_told_at_once(hub, tmp_path, monkeypatch, capsys):
    """No downloads, no py3langid, no licence for Llama, 50 GB of disk, no GPU: one list, in seconds."""
    find_spec, began = importlib.util.find_spec, time.time()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "py3langid" else find_spec(name))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=50e9))
    with pytest.raises(SystemExit, match="1"):
        check.main(["iwslt25", "--work", str(tmp_path / "work")])
    stops, costs = capsys.readouterr().out.split("Without these the run goes on")
    for corpus in ("acl6060", "covost2", "europarlst", "spokensquad"):
        assert f"raw/{corpus}" in stops
    for told in ("https://huggingface.co/meta-llama/Llama-3.1-8B-Instruct", "pip install py3langid",
                 "takes 75.9 GB, ", "for spokensquad, train_projector: accept its licence"):
        assert told in stops, told
    for told in ("COMET", "BERTScore", "judge: meta-llama/Llama-3.1-70B-Instruct", "a GPU of 80 GB"):
        assert told in costs and told not in stops, told
    assert time.time() - began < 10 and not (tmp_path / "work").exists()


@pytest.mark.parametrize("name, frames, audio", [("iwslt25", 76, 21), ("iwslt26", 2018, 16), ("listeners", 1089, 211),
                                                 ("omni", 1210, 211)])
def test_the_pages_state_the_hours_and_the_disk_of_the_formula(name, frames, audio):
    """618 h x 3,600 s x 50 / 3 frames x 1,024 numbers x 2 bytes = 76 GB"""
    page = read_page(name)
    encoder = check.stage_constants("extract_features", page)["encoder"]
    assert round(sum(check.frames_gb(page, check.WIDTHS[encoder]).values())) == frames
    hours = check.hours_of(page)
    assert round(sum(check.AUDIO * hours.get(corpus, 0) for corpus in check.SPOKEN)) == audio
    with open(page["file"], encoding="utf-8") as file:
        text = " ".join(file.read().split('"""')[1].split())
    assert f"{sum(hours.values()):,} h." in text and f"{frames:,} GB of frames" in text and f"{audio} GB of audio" in text


def test_a_limit_is_spread_over_the_whole():
    assert spread(range(10), 5) == [0, 2, 4, 6, 8] and spread("abc", 5) == spread("abc", 0) == ["a", "b", "c"]


# --- The real commands in miniature.

LLAMA, QWEN, SEAMLESS = ("meta-llama/Llama-3.1-8B-Instruct", "Qwen/Qwen3-4B-Instruct-2507",
                         "facebook/seamless-m4t-v2-large")


@pytest.fixture(scope="session")
def cache(tmp_path_factory, seamless):
    """A hub's cache with random checkpoints under real names; the tokenizers of the LLMs are the real ones if there."""
    folder, tokenizers = tmp_path_factory.mktemp("hub"), os.path.join(
        os.path.dirname(downloads.PROJECT), "shared", "real", "tokenizers")
    models = {SEAMLESS: seamless,
              LLAMA: downloads.random_llm(folder / "llama", "llama", f"{tokenizers}/llama3_1_hf"),
              QWEN: downloads.random_llm(folder / "qwen", "qwen3", f"{tokenizers}/qwen3_4b_instruct_2507")}
    bert = downloads.random_bert(str(folder / "bert"))
    for name in ("Unbabel/wmt22-cometkiwi-da", "microsoft/infoxlm-large",
                 "sentence-transformers/multi-qa-MiniLM-L6-cos-v1"):
        models[name] = bert                              # the makers are replaced: nobody loads these
    for name, model in models.items():
        downloads.to_hub(str(folder / "home"), name, model)
    return str(folder / "home")


def rehearse(work, cache, *runs, limit=6):
    """Rehearse systems in one process; return what was printed."""
    script = os.path.join(os.path.dirname(__file__), "rehearsing.py")
    environment = {**os.environ, "HF_HOME": cache, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    done = subprocess.run([sys.executable, script, str(work), str(limit), *runs], env=environment, capture_output=True,
                          text=True, cwd=downloads.PROJECT)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_rehearsal_of_iwslt26(tmp_path, cache):
    work = tmp_path / "work"
    for corpus in ("mcif", "covost2", "europarlst", "librispeech", "librisqa", "gigast"):
        getattr(downloads, corpus)(str(work / "raw" / corpus))
    printed = rehearse(work, cache, "iwslt26", "iwslt26_setup2", "iwslt26_second")
    assert "FAILED" not in printed, printed
