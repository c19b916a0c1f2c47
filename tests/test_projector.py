"""The projectors, the splice, the loss on the answers, and one optimizer step."""
import threading
from itertools import chain
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from speech_llm.batches import Batch, cut_by_length, micro_batches
from speech_llm.llm import load_llm
from speech_llm.training import in_background, learning_rate, optimizer_step
from train_projector import AnswerObjective, Projector, answer_loss, make_projector, positions, splice


@pytest.fixture(scope="module")
def llm(llama):
    return load_llm(llama, torch.device("cpu"))[0]


def sample(name, before, speech, after, answer, seed=0):
    """Return a sample of given lengths with random ids and frames, as encode_sample does; speech 0: a text sample."""
    rng = np.random.default_rng(seed)
    frames = rng.standard_normal((speech, 12)).astype(np.float16) if speech else None
    before, after, answer = (rng.integers(0, 300, n).tolist() for n in (before, after, answer))
    return {"id": name, "before": before, "frames": frames, "slots": speech, "after": after, "answer": answer}


MIXED = [sample("a", 3, 7, 5, 4), sample("b", 3, 2, 9, 1), sample("c", 8, 0, 0, 6), sample("d", 3, 11, 2, 2, seed=5)]
SPEECH = [s for s in MIXED if s["frames"] is not None]


def small_projector():
    torch.manual_seed(0)
    return Projector(width=12, llm_width=32, layers=2, heads=2, ffn=24, dropout=0.0)


def objective_of(llm, projector, micro_tokens=10_000):
    return AnswerObjective(llm, None, projector, "2025", None, micro_tokens)


def test_the_projector_of_the_paper_has_37799936_parameters():
    """Four layers of 4 d^2 + 2 d f + biases + two norms = 8,399,872, a closing norm, 1024 -> 4096 with bias."""
    with torch.device("meta"):
        assert sum(p.numel() for p in Projector().parameters()) == 37_799_936


@pytest.mark.parametrize("kind, middle", [("transformer", {}), ("mapper", {"middle": 16}), ("qformer", {"middle": 16})])
def test_a_batch_of_mixed_lengths_equals_single_samples(kind, middle):
    """What lies beyond a sample's length has no effect, and `slots` is the exact number of vectors."""
    torch.manual_seed(0)
    projector = make_projector(kind, width=12, llm_width=32, layers=2, heads=2, ffn=24, dropout=0.1, **middle).eval()
    lengths = torch.tensor([60, 1, 2, 3, 4, 7, 8, 25, 26, 27, 28])
    padded, singles = torch.full((11, 60, 12), 1e4), [torch.randn(1, n, 12) for n in lengths]
    for row, [single] in zip(padded, singles):
        row[:len(single)] = single
    for grad in (True, False):                                             # torch has a fast path without gradients
        with torch.set_grad_enabled(grad):
            for row, single, length in zip(projector(padded, lengths), singles, lengths):
                [alone] = projector(single, length[None])
                assert len(alone) == projector.slots(single.shape[1])
                assert torch.allclose(row[:len(alone)], alone, atol=1e-5)


def test_splice_is_before_speech_after_answer(llm):
    table, projector = llm.get_input_embeddings().weight, small_projector().eval()
    for s, sequence in zip(MIXED, splice(llm, projector, Batch.of(MIXED)), strict=True):
        n = len(s["before"])
        assert torch.equal(sequence[:n], table[s["before"]])
        assert torch.equal(sequence[n + s["slots"]:], table[s["after"] + s["answer"]])
        if s["slots"]:
            frames = torch.tensor(s["frames"][None].astype(np.float32))
            assert torch.allclose(sequence[n:n + s["slots"]], projector(frames, torch.tensor([s["slots"]])), atol=1e-5)


def test_listening_is_the_loss_with_the_frames_of_another_sample_less_the_loss_with_its_own(llm):
    """b, d, a take the places of a, b, d. Validation rows of two tasks repeat the utterances: that changes nothing."""
    projector = small_projector().eval()
    torch.nn.init.normal_(projector.output.weight, std=1.0)               # an output that the LLM cannot overlook
    others = [{**s, "frames": other["frames"], "slots": other["slots"]}
              for s, other in zip(SPEECH, [SPEECH[1], SPEECH[2], SPEECH[0]])]
    right, wrong = (sum(answer_loss(llm, projector, Batch.of([s])).item() for s in samples) / (4 + 1 + 2)
                    for samples in (SPEECH, others))
    figures = objective_of(llm, projector).report(SPEECH, [right])
    assert figures["listening"] == pytest.approx(wrong - right, abs=1e-4) and abs(wrong - right) > 0.01
    twice, *alone = (objective_of(llm, projector).report(samples, [right])["listening"]
                     for samples in (SPEECH * 2, SPEECH[:1], SPEECH[:1] * 2))
    assert twice == pytest.approx(wrong - right, abs=1e-4) and alone == [None, None]       # no other utterance
    output = torch.cat([projector(torch.tensor(s["frames"][None].astype(np.float32)), torch.tensor([s["slots"]]))[0]
                        for s in SPEECH])
    assert figures["RMS"] == pytest.approx(output.square().mean().sqrt().item(), rel=1e-5)
    assert figures["table RMS"] == pytest.approx(llm.get_input_embeddings().weight.square().mean().sqrt().item())


def test_micro_batches_hold_every_sample_once_within_the_limits():
    samples = [sample(str(n), 1 + n % 5, n % 11, 2, 1 + n % 3) for n in range(60)]
    batches = micro_batches(samples, positions, 70, 256)
    assert sorted(s["id"] for batch in batches for s in batch.samples) == sorted(s["id"] for s in samples)
    assert all(len(b.samples) * max(map(positions, b.samples)) <= 70 for b in batches) and len(batches) > 5
    assert [len(b.samples) for b in micro_batches(samples[:3], positions, 1, 256)] == [1, 1, 1]
    # beside 500, rows of 400 and 380 waste 100 and 120 positions; one of 300 would make it 420
    assert [*cut_by_length([290, 500, 300, 380, 400], int, 10_000, 256)] == [[500, 400, 380], [300, 290]]
    padded = Batch.of([SPEECH[0], MIXED[2], SPEECH[1]])                    # the second is a text
    assert padded.frames.shape == (2, 7, 12) and padded.lengths.tolist() == [7, 2] and not padded.frames[1, 2:].any()
    assert Batch.of([MIXED[2]]).frames is None


def test_every_answer_token_weighs_the_same():
    """Losses 6 on 1 token and 3 on 5: 9 / 6 = 1.5 a token, not the mean of 6 / 1 and 3 / 5."""
    weight = torch.nn.Parameter(torch.tensor([6.0, 3.0]))
    samples, optimizer = [sample("0", 1, 0, 0, 1), sample("1", 1, 0, 0, 5)], torch.optim.SGD([weight], lr=6.0)
    objective = SimpleNamespace(losses={"loss": 1.0}, counts=lambda samples: torch.tensor([6.0]),
                                loss=lambda batch: weight[[int(s["id"]) for s in batch.samples]].sum()[None])
    batches = [Batch.of([s]) for s in samples]
    [loss], norm = optimizer_step([optimizer], objective, samples, batches)
    assert loss == 1.5 and norm == pytest.approx(2**0.5 / 6)               # gradients 1/6 and 1/6
    assert weight.tolist() == [5.0, 2.0] and weight.grad is None           # each by 6 * 1/6
    optimizer_step([optimizer], objective, samples, batches, clip=0.1)
    assert weight.tolist() == pytest.approx([5.0 - 0.6 / 2**0.5, 2.0 - 0.6 / 2**0.5], rel=1e-5)    # norm 0.1
    objective.counts, before = lambda samples: torch.tensor([0.0]), weight.tolist()
    assert optimizer_step([optimizer], objective, [], []) is None and weight.tolist() == before


def test_micro_batches_change_nothing_but_memory_and_the_llm_stays_as_it_was(llm):
    """One step of gradient descent on a fresh projector, in one micro-batch and in one for each sample."""
    before, results = {name: tensor.clone() for name, tensor in llm.state_dict().items()}, []
    for micro_tokens in (10_000, 20):
        projector = small_projector()
        objective, optimizer = objective_of(llm, projector, micro_tokens), torch.optim.SGD(projector.parameters(), 1.0)
        [loss], norm = optimizer_step([optimizer], objective, SPEECH, objective.batches(SPEECH))
        results.append((loss, norm, *projector.state_dict().values()))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
    assert any(not torch.equal(*pair) for pair in zip(results[0][2:], small_projector().state_dict().values()))
    assert all(torch.equal(tensor, before[name]) for name, tensor in llm.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in llm.parameters()) and not llm.training


def test_learning_rate_at_the_corners():
    assert [learning_rate(1.0, step, 100, 10, True) for step in (0, 4, 9, 10)] == [0.1, 0.5, 1.0, 1.0]
    assert learning_rate(2.0, 55, 100, 10, True) == pytest.approx(1.0)     # half way down the cosine
    assert learning_rate(1.0, 99, 100, 10, True) < 0.001 and learning_rate(1.0, 100, 100, 10, True) == 0.0
    assert [learning_rate(1.0, step, 100, 10, False) for step in (9, 10, 99)] == [1.0, 1.0, 1.0]
    assert learning_rate(1.0, 0, 100, 0, False) == learning_rate(1.0, 0, 100, 0, True) == 1.0    # no warm-up


def test_in_background_yields_the_same_items_raises_the_same_error_and_ends_its_thread():
    def two_items():
        yield from "ab"
        raise ValueError("no third item")
    threads = threading.active_count()
    assert [*in_background(iter(range(100)))] == [*range(100)]
    items = in_background(iter(chain([1], range(10**9))))
    assert next(items) == 1
    items.close()                                                          # the caller wants no more
    items = in_background(two_items())
    assert [next(items), next(items)] == ["a", "b"]
    with pytest.raises(ValueError, match="no third item"):
        next(items)
    assert threading.active_count() == threads
