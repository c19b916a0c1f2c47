"""What a real run lacks is told at once; the real commands run in miniature, from the downloads to the tables."""
import importlib.util
import shutil
import time
from types import SimpleNamespace

import httpx
import pytest
from huggingface_hub.errors import GatedRepoError

from data import check
from data.recipe import spread
from speech_llm.constants import read_page

REAL = ("iwslt25", "iwslt26", "listeners")


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


@pytest.mark.parametrize("name, frames, audio", [("iwslt25", 76, 21), ("iwslt26", 2018, 16), ("listeners", 1527, 211)])
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
