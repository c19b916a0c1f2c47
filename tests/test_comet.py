"""The COMET port: sparsemax by hand, then tiny random models against the scores of unbabel-comet."""
import json
from pathlib import Path

import pytest
import torch
from references import PARITY, reference

from metrics.comet import load_comet, score, sparsemax

TINY = PARITY / "comet_tiny"


@pytest.fixture(scope="module")
def expected():
    return json.loads(reference(TINY / "expected.json").read_text(encoding="utf-8"))


def test_sparsemax_by_hand():
    assert sparsemax(torch.tensor([1.0, 0.8, -1.0])).tolist() == pytest.approx([0.6, 0.4, 0.0])   # tau = 0.4
    assert sparsemax(torch.tensor([0.0, 5.0])).tolist() == [0.0, 1.0]
    assert sparsemax(torch.zeros(4)).tolist() == [0.25] * 4


@pytest.mark.parametrize("name, batch_size", [("da_sparsemax", 1), ("da_sparsemax", 16), ("kiwi_softmax", 2)])
def test_agrees_with_unbabel_comet(expected, name, batch_size):
    model = load_comet(TINY / f"{name}.pt", encoder=TINY / "encoder")
    values = score(model, expected[name]["data"], batch_size)
    assert values == pytest.approx(expected[name]["scores"], abs=1e-6)
    assert sum(values) / len(values) == pytest.approx(expected[name]["system_score"], abs=1e-6)
    assert score(model, []) == []


def test_reads_lightning_folders_and_safetensors(expected, tmp_path):
    from safetensors.torch import save_file
    state = torch.load(TINY / "kiwi_softmax.pt", weights_only=True)
    (tmp_path / "checkpoints").mkdir()
    lightning = {"state_dict": {**state, "hidden2tag.weight": torch.zeros(2, 32)}, "epoch": 1}
    torch.save(lightning, tmp_path / "checkpoints" / "model.ckpt")
    save_file(state, tmp_path / "model.safetensors")
    for path in (tmp_path, tmp_path / "model.safetensors"):
        values = score(load_comet(path, encoder=TINY / "encoder"), expected["kiwi_softmax"]["data"])
        assert values == pytest.approx(expected["kiwi_softmax"]["scores"], abs=1e-6)


def test_refuses_other_weights(expected, tmp_path):
    with pytest.raises(FileNotFoundError, match="hf download"):
        load_comet(tmp_path / "none.ckpt")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="no COMET estimator"):
        load_comet(tmp_path / "other.pt")
    torch.save({"state_dict": {}, "callbacks": {Path: 1}}, tmp_path / "objects.ckpt")
    with pytest.raises(ValueError, match="tensors alone"):
        load_comet(tmp_path / "objects.ckpt")
    state = torch.load(TINY / "da_sparsemax.pt", weights_only=True)
    state.pop("layerwise_attention.gamma")
    torch.save(state, tmp_path / "short.pt")
    with pytest.raises(ValueError, match="layerwise_attention.gamma"):
        load_comet(tmp_path / "short.pt", encoder=TINY / "encoder")
    state["layerwise_attention.gamma"] = torch.ones(1)
    state["layerwise_attention.scalar_parameters.4"] = torch.zeros(1)     # a layer more than the encoder has
    torch.save(state, tmp_path / "long.pt")
    with pytest.raises(ValueError, match="scalar_parameters.4"):
        load_comet(tmp_path / "long.pt", encoder=TINY / "encoder")
