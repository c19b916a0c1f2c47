"""The bench itself, on toy sizes: it counts what is useful, and gives no figure where a peer's outputs differ."""
import random
from statistics import mean

import numpy as np
import pytest

from tests import bench, scale


def rows_of(printed):
    """Return the cells of a printed Markdown table, without its header."""
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines()
            if line.startswith("|")][2:]


@pytest.mark.parametrize("stage, peer", [
    ("extraction", "transformers"), ("A", "transformers"), ("A-mapper", "transformers"), ("A'", "plain torch"),
    ("B", "peft"), ("C", "peft"), ("decoding", "generate, batched")])
def test_every_stage_beside_its_peer(stage, peer, capsys):
    """The outputs are the same, or main raises; a row holds rates, shares and how many times faster."""
    if peer == "peft":
        pytest.importorskip("peft")
    bench.main([stage, "--size", "toy", "--seeds", "1", *["--profile"] * (stage == "A")])
    printed, told = capsys.readouterr()
    row = next(dict(zip(bench.HEADER, row)) for row in rows_of(printed) if row[6] == peer)
    low, median, high = map(float, row["times faster: min, median, max"].split(","))
    assert 0 < low <= median <= high and float(row["samples/s"]) > 0 < float(row["tokens/s"])
    assert 0 <= float(row["% padding"]) < 100 and row["stage"] == stage and "toy, float32, 1 seeds" in printed
    assert ("Self CPU time total" in told) is (stage == "A")


def test_no_figure_where_the_outputs_differ(monkeypatch, capsys):
    """A peer whose losses are 0.2 % off; the limit is 0.1 %."""
    step = bench.transformers_step
    monkeypatch.setattr(bench, "transformers_step", lambda *given: 1.002 * step(*given))
    with pytest.raises(SystemExit, match="no figure where the outputs of ours and a peer differ, see above: A"):
        bench.main(["A", "--size", "toy", "--seeds", "1"])
    printed = capsys.readouterr()
    assert rows_of(printed.out) == [] and "A: no figure, ours and transformers differ" in printed.err


def test_inputs_have_the_lengths_of_the_corpora():
    """CoVoST 2: 430 hours in 289,413 utterances are 5.35 s each; a row of ASR has 2.4 x 1.25 tokens a second."""
    rng, row = np.random.default_rng(0), {"id": "covost2/0", "task": "ASR", "language": "en"}
    assert mean(bench.draw_seconds(rng, "covost2") for _ in range(4000)) == pytest.approx(5.35, rel=0.02)
    samples = [bench.make_sample(rng, row, False, 1000, 4, 3, lambda frames: frames) for _ in range(1000)]
    assert mean(len(s["frames"]) for s in samples) == pytest.approx(5.35 * 50 / 3, rel=0.03)
    assert mean(len(s["answer"]) for s in samples) == pytest.approx(5.35 * 2.4 * 1.25 + 1, rel=0.03)
    kinds = {row["id"].split("/")[0] for row in random.Random(0).sample(bench.make_rows(), 2000)}
    assert kinds == set(bench.CORPORA)


def test_every_stage_draws_from_rows_like_gigasts(tmp_path):
    """5 segments have 17 rows; the index comes first, as a recipe makes it."""
    scale.write_gigast(str(tmp_path), 1700)
    for stage in ("index", "A", "A'", "B"):
        seconds, gigabytes = scale.first_draw(str(tmp_path), stage)
        assert seconds > 0 < gigabytes and (tmp_path / "rows" / "gigast" / "train.jsonl.index.json").exists()
