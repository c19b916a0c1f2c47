"""The COMET port: sparsemax by hand, then tiny random models against the scores of unbabel-comet."""
import json
from pathlib import Path

import pytest
import torch
from references import PARITY, reference
from test_bad_input import refused

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
    refused(load_comet, tmp_path / "none.ckpt", says="hf download")
    state, gamma = torch.load(TINY / "da_sparsemax.pt", weights_only=True), "layerwise_attention.gamma"
    layer = "layerwise_attention.scalar_parameters.4"                        # one more than the encoder has
    for content, says in (({"weight": torch.zeros(1)}, "no COMET estimator"),
                          ({"state_dict": {}, "callbacks": {Path: 1}}, "tensors alone"),
                          ({**state, "estimator.ff.0.weight": torch.zeros(2, 7)}, "the estimator reads 7 features"),
                          ({name: state[name] for name in state if name != gamma}, gamma),
                          ({**state, layer: torch.zeros(1)}, layer)):
        torch.save(content, tmp_path / "weights.pt")
        with pytest.raises(ValueError, match=says):
            load_comet(tmp_path / "weights.pt", encoder=TINY / "encoder")
