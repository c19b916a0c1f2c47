"""All that a real run needs is told at once; the real commands run in miniature, from the downloads to the tables."""
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
from types import SimpleNamespace
from unittest.mock import Mock

import httpx
import downloads
import pytest
from conftest import PARITY, SHARED
from huggingface_hub.errors import GatedRepoError
from test_bad_input import refused
from test_hub import write_omni

from data import check, rehearse
from data.recipe import spread
from speech_llm.constants import read_page


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
    for figure in (f"{sum(hours.values()):,} h.", f"{frames:,} GB of frames", f"{audio} GB of audio"):
        assert figure in text, figure


def test_a_command_does_without_what_is_not_there(tmp_path):
    """CoVoST 2 alone was made, and of the stages the projector. A limit is spread over the whole."""
    assert spread(range(10), 5) == [0, 2, 4, 6, 8] and spread("abc", 5) == spread("abc", 0) == ["a", "b", "c"]
    work, page = str(tmp_path), read_page("iwslt25")
    for folder in ("rows/covost2", "iwslt25/projector"):
        downloads.write(f"{work}/{folder}/config.json", "{}")
    steps = ["--steps", "2", "--validate_every", "2", "--validate_rows", "4"]
    for command, more in ((["-m", "data.covost2"], ["--limit", "6"]),
                          (["train_projector.py", "--preset", "iwslt25"], [*steps, "--corpora", "covost2"]),
                          (["infer.py", "--preset", "iwslt25"], ["--test_sets", "covost2.test", "--systems",
                                                                  "llm,seamless,seamless-text,A.1:projector"]),
                          (["eval.py", "--preset", "iwslt25"], ["--test_sets", "covost2.test"]),
                          (["train_projector.py", "--preset", "listeners"], [])):              # it has 0 steps
        assert rehearse.smaller(command, page, work, 6) == command + more


COMET = PARITY / "comet_tiny"
LLAMA, QWEN, SEAMLESS = ("meta-llama/Llama-3.1-8B-Instruct", "Qwen/Qwen3-4B-Instruct-2507",
                         "facebook/seamless-m4t-v2-large")


@pytest.fixture(scope="session")
def cache(tmp_path_factory, seamless, whisper):
    """A hub's cache with random checkpoints under real names; the tokenizers of the LLMs are the real ones if there."""
    folder, tokenizers = tmp_path_factory.mktemp("hub"), SHARED / "real" / "tokenizers"
    models = {SEAMLESS: seamless, "openai/whisper-large-v3": whisper, "openai/whisper-base": whisper,
              "HuggingFaceTB/SmolLM2-360M-Instruct": downloads.random_llm(folder / "smol", "llama"),
              "CohereLabs/aya-expanse-8b": downloads.random_llm(folder / "aya", "cohere"),
              LLAMA: downloads.random_llm(folder / "llama", "llama", f"{tokenizers}/llama3_1_hf"),
              QWEN: downloads.random_llm(folder / "qwen", "qwen3", f"{tokenizers}/qwen3_4b_instruct_2507"),
              check.OMNI: str(folder / "omni")}
    os.makedirs(folder / "omni")
    write_omni(folder / "omni")
    bert = downloads.random_bert(str(folder / "bert"))
    models |= dict.fromkeys((                            # the makers are replaced: nobody loads any but the first
        "google-bert/bert-base-multilingual-cased", "Unbabel/wmt22-cometkiwi-da", "microsoft/infoxlm-large",
        "sentence-transformers/multi-qa-MiniLM-L6-cos-v1", "facebook/mms-tts-ell", "facebook/mms-tts-heb"), bert)
    models |= dict.fromkeys((
        "utter-project/EuroLLM-9B-Instruct", "google/gemma-3-12b-it", "google/gemma-3-27b-it",
        "meta-llama/Llama-3.1-70B-Instruct", "Qwen/Qwen3-30B-A3B-Instruct-2507", "CohereLabs/c4ai-command-a-03-2025"),
        models["HuggingFaceTB/SmolLM2-360M-Instruct"])   # the judges
    if os.path.isdir(COMET):
        models["FacebookAI/xlm-roberta-large"] = os.path.join(COMET, "encoder")
    for name, model in models.items():
        downloads.to_hub(str(folder / "home"), name, model)
    return str(folder / "home")


def get(work, *corpora):
    """Make the downloads of corpora, and a tiny COMET where it is at hand."""
    for corpus in corpora:
        getattr(downloads, corpus)(str(work / "raw" / corpus))
    place = work / "models" / "wmt22-comet-da" / "checkpoints"
    if os.path.isdir(COMET) and not place.exists():
        place.mkdir(parents=True)
        shutil.copy(os.path.join(COMET, "da_sparsemax.pt"), place / "model.ckpt")


@pytest.fixture
def rehearsed(tmp_path, cache):
    """rehearsed(corpora, *systems) -> {path below work/rehearsal: text} of the reports and tables of one process."""
    def run(corpora, *systems, limit=6):
        get(tmp_path, *corpora)
        script = os.path.join(os.path.dirname(__file__), "rehearsing.py")
        environment = {**os.environ, "HF_HOME": cache, "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
        done = subprocess.run([sys.executable, script, str(tmp_path), str(limit), *systems], env=environment,
                              capture_output=True, text=True)
        assert done.returncode == 0 and "FAILED" not in done.stdout, done.stdout + done.stderr[-3000:]
        folder = tmp_path / "rehearsal"
        return {str(path.relative_to(folder)): path.read_text(encoding="utf-8") for path in folder.rglob("*.md")}
    return run


def empty_cells(text, others=()):
    """Return [(table, row, column)] where the paper has a figure and we have none. others: rows of other commands."""
    empty, columns, ours = [], [], []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) < 3:
            continue
        if cells[1] == "" and re.match(r"20\d\d ", cells[0]):
            columns = cells
        elif len(cells) == len(columns) and cells[1] == "ours":
            ours = cells
        elif len(cells) == len(columns) and cells[1] == "paper" and ours[0].partition(":")[0] not in others:
            empty += [(columns[0], ours[0], column) for column, mine, paper in zip(columns, ours, cells)
                      if paper and not mine and "BERTScore" not in column          # its models are large
                      and (os.path.isdir(COMET) or "COMET" not in column)
                      and (importlib.util.find_spec("whisper_normalizer") or "WER" not in column
                           or not re.search("mcif|iwslt26", columns[0]))]
    return empty


IWSLT25 = ("acl6060", "covost2", "europarlst", "spokensquad")


def test_everything_missing_is_told_at_once(tmp_path, monkeypatch, capsys):
    """No downloads, no py3langid, no licence for Llama, 50 GB of disk, no GPU: one list, in seconds."""
    refusal = GatedRepoError("no", response=httpx.Response(403, request=httpx.Request("GET", "https://x")))
    has, find_spec = SimpleNamespace(py3langid=None, licence=refusal, free=50e9), importlib.util.find_spec
    monkeypatch.setattr("huggingface_hub.auth_check", lambda name: Mock(
        side_effect=has.licence if name.startswith("meta-llama/") else None)())
    monkeypatch.setattr("importlib.util.find_spec",
                        lambda name: has.py3langid if name == "py3langid" else find_spec(name))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=has.free))
    work, began = tmp_path / "work", time.time()
    with pytest.raises(SystemExit, match="1"):
        check.main(["iwslt25", "--work", str(work)])
    stops, costs = capsys.readouterr().out.split("Without these the run goes on")
    assert time.time() - began < 10 and not work.exists()
    for told in (*(f"raw/{corpus}" for corpus in IWSLT25), "pip install py3langid", f"https://huggingface.co/{LLAMA}",
                 "takes 75.9 GB, ", "for spokensquad, train_projector: accept its licence"):
        assert told in stops, told
    for told in ("COMET", "BERTScore", "judge: meta-llama/Llama-3.1-70B-Instruct", "a GPU of 80 GB"):
        assert told in costs and told not in stops, told

    get(work, *IWSLT25)
    monkeypatch.setattr("data.europarlst.find_decoder", lambda: print)
    os.rename(work / "raw" / "europarlst", tmp_path / "elsewhere")
    assert [what.split(",")[0].replace(str(work), "work") for what, _ in check.check("iwslt25", "", str(work))[0]] == [
        "work/raw/europarlst/v1.1/en", "the package py3langid", LLAMA, "disk (frames of covost2"]

    os.rename(tmp_path / "elsewhere", work / "raw" / "europarlst")
    has.py3langid, has.licence, has.free = True, None, 1e12
    check.main(["iwslt25", "--work", str(work)])
    assert capsys.readouterr().out.startswith("iwslt25 has all that its run needs.")
    for preset, part, lacks in (("tiny", "", "recipes"), ("iwslt26", "ablations", "ablations")):
        refused(check.check, preset, part, str(work), says=f"config/{preset}.py has no {lacks} to check")


@pytest.mark.rehearsal
def test_rehearsal_of_iwslt25_with_its_variants_ablations_and_sweep(rehearsed):
    texts = rehearsed([*IWSLT25, "mcif", "librispeech", "librisqa", "speech_ifeval"], "iwslt25_a2", "iwslt25_short",
                      "iwslt25_a2_short", "iwslt25", "iwslt25 ablations", "iwslt25 sweep", "iwslt25_mcif",
                      "iwslt26_iwslt25")
    results, poster = texts["iwslt25/results.md"], texts["iwslt25/results-mcif.md"]
    assert empty_cells(results) == [] and "| C@0.125 |" in texts["iwslt25/speech_ifeval/results.md"]
    for table in ("2025 Table 2", "2025 Table 3", "2025 Table 6", "2025 Table 7", "2025 Table 10", "2025 Table 11"):
        assert f"| {table}: " in results, table
    for told in ("## What is missing", "| projector |", "| lora |", "| merged |", "15,090 steps", "618 h of speech",
                 "| 2025 Table 11 | `bash run_all.sh iwslt25 ablations` |"):
        assert told in texts["iwslt25/rehearsal.md"], told
    assert empty_cells(poster) == [] and ("| 2025 poster: mcif.test |" in poster or not os.path.isdir(COMET))
    assert not [row for _, row, _ in empty_cells(texts["iwslt26/results.md"]) if row.startswith("iwslt25")]


def test_rehearsal_of_iwslt26(rehearsed):
    """Setup 2, the second stage of SpeechMapper and the official test fill their rows of the same tables."""
    texts = rehearsed(["mcif", "iwslt26", "covost2", "europarlst", "librispeech", "librisqa", "gigast",
                       "speech_ifeval"], "iwslt26_setup2", "iwslt26_second", "iwslt26", "iwslt26 sweep", "iwslt26_test")
    results = texts["iwslt26/results.md"]
    assert empty_cells(results, ("iwslt25-llm", "iwslt25-C")) == []
    for told in ("## What is missing", "| projector |", "| extract_features |", "10,950 h of speech", "2,018",
                 "| 2026 Table 1 | `bash run_all.sh iwslt26_setup2` | C-setup2 |",
                 "| 2026 Table 4 | `bash run_all.sh iwslt26_test` | C, iwslt25-C |"):
        assert told in texts["iwslt26/rehearsal.md"], told
    assert "| 2026 Table 4: iwslt26.test |" in results


@pytest.mark.rehearsal
def test_rehearsal_of_small(rehearsed):
    texts = rehearsed(["librispeech", "librisqa", "speech_ifeval"], "small", "small sweep")
    assert "| librispeech.test | WER |" in texts["small/results.md"] and "cascade" in texts["small/results.md"]
    assert "| C@0.125 |" in texts["small/speech_ifeval/results.md"]


@pytest.mark.rehearsal
def test_rehearsal_of_the_listeners_with_their_variants_and_omni(rehearsed, tmp_path):
    downloads.into_english(str(tmp_path / "raw" / "covost2"))
    texts = rehearsed(["commonvoice", "multispeechqa", "speech_ifeval"], "listeners", "listeners_ast", "listeners_ten",
                      "listeners_ten_ast", "listeners sweep", "omni", "omni sweep", limit=2)
    for system, table, ours in (("listeners", "Table 3", slice(3, 8)), ("omni", "Table 3", slice(3, 5)),
                                ("omni", "Table 4", slice(3, 5))):
        results = texts[f"{system}/results.md"]
        for table, rows in ((f"{table}, WER", 23), (f"{table}, BLEU", 5)):
            lines = results[results.index(f"| listeners {table}"):].split("\n\n")[0].splitlines()
            assert len(lines) == 2 + rows + 1             # the languages and their mean
            assert all(cell.strip() for line in lines for cell in line.split("|")[ours]), lines
    assert all(f"\n{pair}: " in results for pair in ("Omni-FT-Omni", "Omni-cascade", "Omni-FT-cascade"))
    assert "| Omni-FT@0.125 |" in texts["omni/speech_ifeval/results.md"]
