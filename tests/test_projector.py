"""Stage A and what the later stages take from it: projector, splice, loss, sampler, optimizer step, a run's folder."""
import json
import os
import random
import shutil
from collections import Counter

import numpy as np
import pytest
import torch

import merge_sft
import train_lora
import train_projector as stage
from metrics.dev_scores import best_steps, score_answers
from speech_llm.batches import micro_batches
from speech_llm.constants import configure
from speech_llm.draws import draw
from speech_llm.rows import read_rows, write_rows
from speech_llm.training import rate, update
from train_projector import MIXTURES, Projector, answer_loss, splice


@pytest.fixture(scope="module")
def llm(llama):
    model, tokenizer = stage.load_llm(llama, torch.device("cpu"))
    return model, tokenizer


def sample(name, before, speech, after, answer, seed=0):
    """A sample of given lengths with random ids and frames, as encode_sample makes them; speech 0: a text sample."""
    rng, noise = random.Random(f"{name}{seed}"), np.random.default_rng(seed)
    ids = [[rng.randrange(300) for _ in range(n)] for n in (before, after, answer)]
    frames = noise.standard_normal((speech, 12)).astype(np.float16) if speech else None
    return {"id": name, "before": ids[0], "frames": frames, "slots": speech, "after": ids[1], "answer": ids[2],
            "length": before + speech + after + answer, "counts": (answer,)}


MIXED = [sample("a", 3, 7, 5, 4), sample("b", 3, 2, 9, 1), sample("c", 8, 0, 0, 6), sample("d", 3, 11, 2, 2, seed=5)]
SPEECH = [s for s in MIXED if s["frames"] is not None]


def small_projector(dropout=0.0):
    torch.manual_seed(0)
    return Projector(width=12, llm_width=32, layers=2, heads=2, ffn=24, dropout=dropout)


# --- The projector.

def test_the_paper_s_projector_has_37799936_parameters():
    with torch.device("meta"):
        projector = Projector()
    # four layers of 4 d^2 + 2 d f + biases + two norms, a closing norm, 1024 -> 4096 with bias
    assert 4 * 8_399_872 + 2 * 1024 + 1024 * 4096 + 4096 == 37_799_936
    assert sum(p.numel() for p in projector.parameters()) == 37_799_936


def test_a_batch_of_mixed_lengths_equals_single_samples():
    projector = small_projector(dropout=0.1).eval()
    frames = [torch.randn(n, 12) for n in (9, 1, 4)]
    padded = torch.full((3, 9, 12), 1e4)                                   # what lies beyond a length must not matter
    for row, one in zip(padded, frames):
        row[:len(one)] = one
    for grad in (True, False):                                             # torch has a fast path without gradients
        with torch.set_grad_enabled(grad):
            together = projector(padded, torch.tensor([9, 1, 4]))
            for row, one in zip(together, frames):
                alone = projector(one[None], torch.tensor([len(one)]))[0]
                assert torch.allclose(row[:len(one)], alone, atol=1e-5)


# --- Splice and loss.

def test_splice_is_before_speech_after_answer(llm):
    model, _ = llm
    table = model.get_input_embeddings().weight
    sequences = splice(model, small_projector().eval(), MIXED)
    assert [len(s) for s in sequences] == [3 + 7 + 5 + 4, 3 + 2 + 9 + 1, 8 + 6, 3 + 11 + 2 + 2]
    for s, sequence in zip(MIXED, sequences):
        speech = 0 if s["frames"] is None else len(s["frames"])
        n = len(s["before"])
        assert torch.equal(sequence[:n], table[s["before"]])
        assert torch.equal(sequence[n + speech:], table[s["after"] + s["answer"]])


class Lookup(torch.nn.Module):
    """A projector whose frames are token ids: it hands out their embeddings."""

    def __init__(self, table):
        super().__init__()
        self.table = table

    def forward(self, frames, lengths):
        return self.table(frames[..., 0].long())


def test_embeddings_of_ids_in_place_of_speech_give_the_logits_of_the_ids(llm):
    model, _ = llm
    heard = [5, 77, 200, 31]
    s = {**sample("a", 3, 4, 5, 4), "frames": np.array(heard, dtype=np.float16)[:, None]}
    spliced = model(inputs_embeds=splice(model, Lookup(model.get_input_embeddings()), [s])[0][None]).logits
    ids = model(input_ids=torch.tensor([s["before"] + heard + s["after"] + s["answer"]])).logits
    assert torch.equal(spliced, ids)


def test_answer_loss_is_transformers_loss_on_the_answers(llm):
    """Padded batch, mixed lengths, speech and text together; labels -100 everywhere but on the answers."""
    model, _ = llm
    projector = small_projector().eval()
    expected = 0.0
    for s in MIXED:
        embeddings = splice(model, projector, [s])[0][None]
        labels = torch.full((1, s["length"]), -100)
        labels[0, -len(s["answer"]):] = torch.tensor(s["answer"])
        expected += model(inputs_embeds=embeddings, labels=labels).loss * len(s["answer"])
    assert answer_loss(model, projector, MIXED).item() == pytest.approx(expected.item(), rel=1e-5)


def test_encode_sample_hides_nothing_and_adds_up(llm):
    _, tokenizer = llm
    row = {"id": "x", "utterance": "u", "task": "ST", "language": "de", "transcript": "Yes.", "target": "Ja."}
    frames = np.zeros((7, 12), np.float16)
    spoken, text = (stage.encode_sample(row, t, tokenizer, "llama", {"u": frames}) for t in (False, True))
    assert spoken["length"] == len(spoken["before"]) + 7 + len(spoken["after"]) + len(spoken["answer"])
    assert text["frames"] is None and text["length"] == len(text["before"]) + len(text["answer"])
    answer = tokenizer.encode("Ja.", add_special_tokens=False)
    assert spoken["answer"] == text["answer"] == [*answer, tokenizer.convert_tokens_to_ids("<|eot_id|>")]


# --- One optimizer step.

def test_micro_batches_hold_every_sample_once_within_the_budget():
    samples = [sample(str(n), 1 + n % 5, n % 11, 2, 1 + n % 3) for n in range(60)]
    cut = list(micro_batches(samples, 70))
    assert sorted(s["id"] for batch in cut for s in batch) == sorted(s["id"] for s in samples)
    assert all(len(batch) * max(s["length"] for s in batch) <= 70 for batch in cut) and len(cut) > 5
    assert [len(batch) for batch in micro_batches(samples[:3], 1)] == [1, 1, 1]      # one sample always goes through


def test_a_micro_batch_holds_at_most_256_positions_of_padding():
    """Beside 500, rows of 400 and 380 waste 100 and 120; one of 300 would make it 420."""
    lengths = [290, 500, 300, 380, 400]
    cut = micro_batches([{"length": length} for length in lengths], 10_000)
    assert [[s["length"] for s in batch] for batch in cut] == [[500, 400, 380], [300, 290]]


def step_of(llm, micro_tokens):
    """Loss, gradient norm and weights after one step of plain gradient descent (rate 1) on a fresh projector."""
    projector = small_projector()
    optimizer = torch.optim.SGD(projector.parameters(), lr=1.0)
    values = update([optimizer], SPEECH, lambda micro: answer_loss(llm, projector, micro), micro_tokens)
    return values, projector.state_dict()


def test_micro_batches_change_nothing_but_memory(llm):
    model, _ = llm
    ((loss,), norm), weights = step_of(model, micro_tokens=10_000)
    assert [len(batch) for batch in micro_batches(SPEECH, 20)] == [1, 1, 1]
    ((loss_cut,), norm_cut), weights_cut = step_of(model, micro_tokens=20)
    assert loss_cut == pytest.approx(loss, rel=1e-5) and norm_cut == pytest.approx(norm, rel=1e-4)
    start = small_projector().state_dict()
    assert any(not torch.equal(weights[name], start[name]) for name in start)
    for name in weights:
        assert torch.allclose(weights[name], weights_cut[name], atol=1e-5), name


def test_every_answer_token_weighs_the_same():
    """Losses 6 on 1 token and 3 on 5: 9 / 6 = 1.5 a token, not the mean of 6 / 1 and 3 / 5."""
    weight = torch.nn.Parameter(torch.tensor([6.0, 3.0]))
    samples = [{**sample("short", 1, 0, 0, 1), "n": 0}, {**sample("long", 1, 0, 0, 5), "n": 1}]
    optimizer = torch.optim.SGD([weight], lr=6.0)
    (loss,), norm = update([optimizer], samples, lambda micro: weight[[s["n"] for s in micro]].sum()[None], 1)
    assert loss == 1.5
    assert norm == pytest.approx(2**0.5 / 6)                               # gradients 1/6 and 1/6
    assert weight.tolist() == [5.0, 2.0]                                   # each by 6 * 1/6


def test_a_loss_that_is_not_finite_stops_and_names_the_rows(llm):
    model, _ = llm
    broken = {**MIXED[0], "id": "tiny/broken", "frames": np.full((7, 12), np.inf, np.float16)}
    projector = small_projector()
    start = {name: tensor.clone() for name, tensor in projector.state_dict().items()}
    optimizer = torch.optim.SGD(projector.parameters(), lr=1.0)
    with pytest.raises(FloatingPointError, match="tiny/broken"):
        update([optimizer], [broken, MIXED[1]], lambda micro: answer_loss(model, projector, micro), 10_000)
    assert all(torch.equal(tensor, start[name]) for name, tensor in projector.state_dict().items())


def test_the_llm_stays_as_it_was(llm):
    model, _ = llm
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    projector = small_projector()
    optimizer = torch.optim.AdamW(projector.parameters(), lr=0.1)
    for _ in range(3):
        update([optimizer], SPEECH, lambda micro: answer_loss(model, projector, micro), 30)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in model.parameters()) and not model.training
    assert all(p.dtype == torch.float32 for p in projector.parameters())


def test_rate_at_the_corners():
    assert [rate(step, 100, 10, True) for step in (0, 4, 9, 10)] == [0.1, 0.5, 1.0, 1.0]
    assert rate(55, 100, 10, True) == pytest.approx(0.5)                   # half way down the cosine
    assert rate(99, 100, 10, True) < 0.001 and rate(100, 100, 10, True) == 0.0
    assert [rate(step, 100, 10, False) for step in (9, 10, 99)] == [1.0, 1.0, 1.0]
    assert rate(0, 100, 0, False) == rate(0, 100, 0, True) == 1.0          # no warm-up: the full rate at once


# --- The sampler.

def make_rows(corpus="tiny", count=6):
    """`count` rows of every kind of speech, and as many text-only translations."""
    rows = []
    for n in range(count):
        base = {"utterance": f"{corpus}/{n}", "audio": "a.wav", "transcript": "x", "target": "y", "answerable": True}
        kinds = [("ASR", "en", True), *[("ST", language, True) for language in ("de", "it", "zh")],
                 *[("SQA", language, valid) for language in ("en", "de", "it", "zh") for valid in (True, False)]]
        for task, language, valid in kinds:
            rows.append({**base, "id": f"{corpus}/{n}/{task}.{language}.{valid}", "task": task, "language": language,
                         "answerable": valid, "question": "q"})
        rows.append({"id": f"{corpus}/{n}/text", "task": "ST", "language": "de", "transcript": "x", "target": "y",
                     "answerable": True})
    return rows


def kind(picked):
    """The (task, language, answerable) that a draw's rows have in common."""
    kinds = {(row["task"], row["language"], row["answerable"]) for row in picked}
    assert len(kinds) == 1, kinds
    return kinds.pop()


# 2025, section 5.1 and Table 13: every cell's share of the draws, task times language and validity
QUESTIONS = {("SQA", language, valid): 0.4 * (0.2 if valid else 0.05)
             for language in ("en", "de", "it", "zh") for valid in (True, False)}
CELLS = {
    "A.1": {("ASR", "en", True): .4, ("ST", "de", True): .18, ("ST", "it", True): .18, ("ST", "zh", True): .24},
    "A.2": {("ASR", "en", True): .4, ("ST", "de", True): .105, ("ST", "it", True): .105, ("ST", "zh", True): .14,
            ("SQA", "en", True): .05, ("SQA", "en", False): .05, ("SQA", "de", True): .0375,
            ("SQA", "de", False): .0375, ("SQA", "it", True): .0375, ("SQA", "it", False): .0375},
    "B": {("ST", "de", True): .24, ("ST", "it", True): .18, ("ST", "zh", True): .18,
          **QUESTIONS},
    "C": {("ASR", "en", True): .2, ("ST", "de", True): .16, ("ST", "it", True): .12, ("ST", "zh", True): .12,
          **QUESTIONS},
}
ALL_MIXTURES = {**MIXTURES, **train_lora.MIXTURES, **merge_sft.MIXTURES}


@pytest.mark.parametrize("name", CELLS)
def test_shares_of_tasks_languages_and_validity(name):
    draws = draw(make_rows(), ALL_MIXTURES[name], {}, batch=2, batch_sqa=1, seed=0)
    seen = Counter()
    for _ in range(10_000):
        picked, text = next(draws)
        assert text is (name == "B") and len(picked) == (1 if picked[0]["task"] == "SQA" and not text else 2)
        seen[kind(picked)] += 1
    assert seen.keys() == CELLS[name].keys()
    for cell, share in CELLS[name].items():
        assert seen[cell] / 10_000 == pytest.approx(share, abs=0.015), cell       # three standard deviations at .4


def test_every_row_of_a_pool_once_before_any_twice():
    rows = make_rows(count=10)
    draws = draw(rows, {"ST": (1.0, {"it": 1.0})}, {}, batch=4, batch_sqa=4, seed=0)
    ids = [row["id"] for picked, _ in (next(draws) for _ in range(15)) for row in picked]
    assert len(ids) == 60
    for n in range(0, 60, 10):
        assert len(set(ids[n:n + 10])) == 10                               # though 4 does not divide 10
    assert ids[:10] != ids[10:20]                                          # shuffled anew


def test_corpora_by_size_or_by_the_paper_s_shares():
    large, small = make_rows("covost2", 30), make_rows("europarlst", 10)

    def share_of_covost2(task, language):
        draws = draw(large + small, {task: (1.0, {language: 1.0})}, stage.CORPUS_SHARES, 1, 1, seed=0)
        return sum(next(draws)[0][0]["id"].startswith("covost2") for _ in range(4000)) / 4000
    assert share_of_covost2("ASR", "en") == pytest.approx(0.8, abs=0.02)   # section 5.1
    assert share_of_covost2("ST", "de") == pytest.approx(0.75, abs=0.02)   # 30 of 40 rows


def test_c_follows_speech_by_its_text_twin():
    draws = draw(make_rows(), ALL_MIXTURES["C"], {}, batch=2, batch_sqa=1, seed=0, twin=True)
    pairs = Counter()
    for _ in range(2000):
        picked, text = next(draws)
        assert not text                                                    # after ASR or a twin comes speech
        assert all("utterance" in row for row in picked)
        if picked[0]["task"] != "ASR":
            twin, text = next(draws)
            assert text and kind(twin) == kind(picked) and len(twin) == 2
            pairs["same" if picked[0]["id"] == twin[0]["id"] else "other"] += 1
    assert pairs["other"] > pairs["same"]                                  # an independent draw, not the same sentences


def test_rows_without_speech_are_drawn_as_text_only():
    rows = make_rows()
    spoken = draw(rows, {"ST": (1.0, {"de": 1.0})}, {}, 3, 3, seed=0)
    read = draw(rows, {"MT": (1.0, {"de": 1.0})}, {}, 3, 3, seed=0)
    assert all("utterance" in row for _ in range(50) for row in next(spoken)[0])
    texts = Counter("utterance" in row for _ in range(50) for row in next(read)[0])
    assert texts[False] == texts[True] == 75                               # both kinds are text: 6 of each, in turn


def test_the_same_seed_draws_the_same():
    rows = make_rows()
    first, again, other = (draw(rows, MIXTURES["A.2"], {}, 2, 1, seed) for seed in (0, 0, 1))
    first, again, other = ([[r["id"] for r in next(d)[0]] for _ in range(50)] for d in (first, again, other))
    assert first == again != other


def test_a_cell_of_the_mixture_without_rows_is_an_error():
    rows = [row for row in make_rows() if (row["task"], row["language"], row["answerable"]) != ("SQA", "it", False)]
    with pytest.raises(SystemExit, match="wants SQA in it, unanswerable, but no row is of that kind"):
        next(draw(rows, MIXTURES["A.2"], {}, 2, 1, seed=0))
    next(draw(rows, MIXTURES["A.1"], {}, 2, 1, seed=0))                        # which asks for none


# --- A run's folder: killed, resumed, finished, refused.

STAGES = [("train_projector", "projector"), ("train_lora", "lora"), ("merge_sft", "merged")]


def read_log(folder):
    with open(os.path.join(folder, "log.jsonl")) as file:
        return [json.loads(line) for line in file]


@pytest.mark.parametrize("script, out", STAGES)
@pytest.mark.parametrize("steps_done", [1, 3])
def test_killed_and_resumed_equals_unbroken(after_training, run_stage, run_killed, capsys, script, out, steps_done):
    """Killed before and after the first checkpoint (step 2): the same tensors bit for bit, the same log."""
    folder = f"work/tiny/{out}"
    unbroken, log = torch.load(f"{folder}/weights.pt", weights_only=True), read_log(folder)
    shutil.rmtree(folder)
    run_killed(steps_done, script)
    assert not os.path.exists(f"{folder}/config.json")
    assert os.path.exists(f"{folder}/resume.pt") is (steps_done == 3)
    if steps_done == 3:                                                    # a half-done folder keeps its constants
        with pytest.raises(SystemExit, match="seed 0 .now 1."):
            run_stage(script, "--seed", "1")
    capsys.readouterr()
    run_stage(script)
    assert ("resuming" in capsys.readouterr().out) is (steps_done == 3)
    resumed = torch.load(f"{folder}/weights.pt", weights_only=True)
    assert resumed.keys() == unbroken.keys()
    for part in unbroken:
        assert resumed[part].keys() == unbroken[part].keys()
        assert all(torch.equal(resumed[part][name], unbroken[part][name]) for name in unbroken[part])
    again = read_log(folder)
    assert [{**line, "seconds": 0} for line in again] == [{**line, "seconds": 0} for line in log]
    assert [line["step"] for line in log if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in log if "validation_loss" in line] == [2, 4, 6]
    assert not os.path.exists(f"{folder}/resume.pt")


@pytest.mark.parametrize("script, out", STAGES)
def test_a_finished_stage_does_nothing_and_refuses_other_constants(after_training, run_stage, capsys, script, out):
    folder = f"work/tiny/{out}"
    before = {name: os.stat(f"{folder}/{name}").st_mtime_ns for name in os.listdir(folder)}
    run_stage(script)
    assert f"{folder} is finished already" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=f"{folder} was made with seed 0 .now 3.; remove it, or choose another --out"):
        run_stage(script, "--seed", "3")
    assert {name: os.stat(f"{folder}/{name}").st_mtime_ns for name in os.listdir(folder)} == before


def test_a_keeps_the_best_step_and_b_and_c_the_last(after_training):
    """A: the step with the best mean BLEU of the decoded dev set; every validated step is beside weights.pt."""
    for _, out in STAGES:
        folder = f"work/tiny/{out}"
        with open(f"{folder}/config.json") as file:
            config = json.load(file)
        assert config["seed"] == 0 and config["commit"] and config["torch"]
        weights = torch.load(f"{folder}/weights.pt", weights_only=True)
        assert list(weights) == config["trained"]
        checkpoints = sorted(name for name in os.listdir(folder) if name.startswith("step-"))
        if out != "projector":
            assert config["kept_step"] == 6 and not checkpoints
            continue
        assert checkpoints == ["step-00002.pt", "step-00004.pt", "step-00006.pt"]
        validated = [line for line in read_log(folder) if "validation_loss" in line]
        assert config["best_steps"] == best_steps(validated)
        assert config["kept_step"] == config["best_steps"]["ST"] == max(validated, key=lambda v: v["BLEU"])["step"]
        same = torch.load(f"{folder}/step-{config['kept_step']:05d}.pt", weights_only=True)["projector"]
        assert all(torch.equal(tensor, same[name]) for name, tensor in weights["projector"].items())


def test_best_steps_by_hand():
    validated = [{"step": 250, "BLEU": 20.0, "WER": 12.0, "SQA": 1.0},
                 {"step": 500, "BLEU": 25.0, "WER": 15.0, "SQA": 0.5},
                 {"step": 750, "BLEU": 25.0, "WER": 11.0, "SQA": 0.0}]
    assert best_steps(validated) == {"ST": 500, "ASR": 750, "SQA": 250, "all": 750}       # a tie: the first
    assert best_steps([{"step": 9, "WER": 3.0}]) == {"ASR": 9, "all": 9}


def test_scores_of_answers_by_hand():
    """One word of four wrong; one translation right and one without a common word; two of three answers right."""
    rows = [{"task": "ASR", "language": "en", "target": "One two three four."},
            {"task": "ST", "language": "de", "target": "Anna hat drei rote Katzen."},
            {"task": "ST", "language": "it", "target": "Anna ha tre gatti rossi."},
            {"task": "SQA", "language": "en", "target": "three"}, {"task": "SQA", "language": "zh", "target": "无法回答。"},
            {"task": "SQA", "language": "it", "target": "Roma"}]
    scores = score_answers(rows, ["one, two THREE five", "Anna hat drei rote Katzen.", "nulla che sia vero qui",
                                        "There are three.", "无法回答", "Milano"])
    assert scores["WER"] == 25 and scores["BLEU de"] == pytest.approx(100) and scores["BLEU it"] < 10
    assert scores["BLEU"] == (scores["BLEU de"] + scores["BLEU it"]) / 2
    assert scores["SQA"] == pytest.approx(200 / 3)


def test_a_score_that_the_dev_rows_cannot_give_is_refused_before_training(before_training, run_stage):
    with pytest.raises(SystemExit, match="--keep SQA: the dev rows of tiny that the mixture trains on"):
        run_stage("train_projector", "--keep", "SQA")
    with pytest.raises(SystemExit, match="--keep ST: the dev rows of acl6060"):
        run_stage("train_projector", "--decode", "acl6060")


# --- The variants of the 2025 system and its ablations (Tables 2, 10 and 11).

def test_the_four_presets_share_a_folder_and_differ_where_the_paper_does(capsys):
    configs = {(module.__name__, name): configure(module.Config, module.PRESETS, ["--preset", name])
               for module in (stage, train_lora, merge_sft)
               for name in ("iwslt25", "iwslt25-a2", "iwslt25-short", "iwslt25-a2-short")}
    assert {c.run for c in configs.values()} == {"iwslt25"}
    c_s = [c for (script, _), c in configs.items() if script == "merge_sft"]
    assert [c.out for c in c_s] == ["merged", "merged-A.2", "merged-short", "merged-A.2-short"]
    assert [c.shares for c in c_s] == ["fluent", "fluent", "short", "short"]
    for name, mixture, out in (("iwslt25", "A.1", "projector"), ("iwslt25-a2-short", "A.2", "projector-A.2")):
        c = configs["train_projector", name]
        assert (c.mixture, c.out) == (mixture, out) and configs["merge_sft", name].projector == out


def test_what_a_preset_decodes_is_among_its_corpora(capsys):
    """Else A would stop at its start; an evaluation corpus such as ACL 60-60 has dev rows only, which is enough."""
    for name in stage.PRESETS:
        c = configure(stage.Config, stage.PRESETS, ["--preset", name])
        assert c.objective == "embeddings" or c.decode in c.corpora.split(","), name


def test_fluent_answers_or_short_ones_but_always_some_invalid_questions():
    """Rows with fluent answers are a corpus of their own, without invalid questions."""
    short, fluent = make_rows("spokensquad"), [r for r in make_rows("spokensquad-fluent") if r["answerable"]]
    sqa = {"SQA": (1.0, {"en": (0.5, 0.5)})}
    for shares, corpus in (("fluent", "spokensquad-fluent"), ("short", "spokensquad")):
        draws = draw(short + fluent, sqa, merge_sft.CORPUS_SHARES[shares], 1, 1, seed=0, twin=True)
        drawn = [next(draws) for _ in range(200)]
        valid = {picked[0]["id"].split("/")[0] for picked, _ in drawn if picked[0]["answerable"]}
        invalid = {picked[0]["id"].split("/")[0] for picked, _ in drawn if not picked[0]["answerable"]}
        assert valid == {corpus} and invalid == {"spokensquad"}
        assert {text for _, text in drawn} == {True, False}


@pytest.mark.parametrize("shares, corpora", [("no-synthetic", {"covost2", "europarlst"}),
                                             ("only-synthetic", {"spokensquad"})])
def test_synthetic_text_alone_or_left_out(shares, corpora):
    rows = make_rows("covost2") + make_rows("europarlst") + make_rows("spokensquad")
    draws = draw(rows, {"ST": (1.0, {"de": 1.0})}, merge_sft.CORPUS_SHARES[shares], 1, 1, seed=0, twin=True)
    drawn = [next(draws) for _ in range(400)]
    assert {picked[0]["id"].split("/")[0] for picked, text in drawn if text} == corpora
    assert {picked[0]["id"].split("/")[0] for picked, text in drawn if not text} == {"covost2", "europarlst",
                                                                                     "spokensquad"}


@pytest.mark.parametrize("more, b_is_zero", [
    (["--lora", "random", "--no-text"], True), (["--mixture", "C-no-sqa"], False),
    (["--mixture", "C-0.3-0.5-0.2", "--shares", "short"], False)])
def test_ablations_run_beside_the_model(after_training, run_stage, monkeypatch, more, b_is_zero):
    """Each is one command with another --out; fresh adapters start from B = 0, the others from stage B's."""
    seen, answer_loss = [], merge_sft.answer_loss

    def watched(llm, projector, samples):
        seen.append((all((p == 0).all() for p in train_lora.lora_parameters(llm)[1::2]), samples))
        return answer_loss(llm, projector, samples)
    monkeypatch.setattr(merge_sft, "answer_loss", watched)
    run_stage("merge_sft", "--out", "merged-x", *more)
    assert seen[0][0] is b_is_zero
    trained = [s for _, samples in seen for s in samples]
    assert any(s["frames"] is None for s in trained) is ("--no-text" not in more)
    assert any("SQA" in s["id"] for s in trained) is ("C-no-sqa" not in more)


def test_the_projector_comes_back_from_its_folder(after_training):
    projector = stage.load_projector("work/tiny/projector", torch.device("cpu"))
    weights = stage.load_weights("work/tiny/projector", "projector")
    assert all(torch.equal(tensor, weights[name]) for name, tensor in projector.state_dict().items())


@pytest.mark.parametrize("script, gone, command", [
    ("train_projector", "rows/tiny", "python -m data.tiny"),
    ("train_projector", "features", "python extract_features.py"),
    ("train_projector", "models/tiny-llama", "python -m data.tiny"),
    ("train_lora", "rows/tiny", "python -m data.tiny"),
    ("merge_sft", "tiny/projector", "python train_projector.py --preset tiny"),
    ("merge_sft", "tiny/lora", "python train_lora.py --preset tiny"),
    ("infer", "tiny/merged", "python merge_sft.py --preset tiny"),
    ("infer", "rows/tiny", "python -m data.tiny")])
def test_a_stage_before_its_predecessor_names_the_command(after_training, run_stage, script, gone, command):
    shutil.rmtree(f"work/{gone}")
    for name, out in STAGES:
        if name == script:
            shutil.rmtree(f"work/tiny/{out}")
    with pytest.raises(SystemExit, match=f"is missing; run: {command}"):
        run_stage(script)


def test_a_cache_made_with_another_mean_is_refused(before_training, run_stage):
    os.rename("work/features/tiny-seamless-mean3", "work/features/tiny-seamless-mean2")
    with pytest.raises(ValueError, match="was made with mean 3, expected is 2"):
        run_stage("train_projector", "--mean", "2")


def test_rows_whose_frames_were_dropped_are_left_out_and_counted(before_training, run_stage, capsys):
    path = "work/features/tiny-seamless-mean3/tiny/train/frames-00000.json"
    with open(path) as file:
        index = json.load(file)
    index["lengths"] = {name.replace("train-3", "train-x"): n for name, n in index["lengths"].items()}
    with open(path, "w") as file:
        json.dump(index, file)
    run_stage("train_projector", "--steps", "1")
    assert "train: 276 rows, 12 without frames left out" in capsys.readouterr().out


def test_text_only_rows_train_no_projector(before_training, run_stage, capsys):
    """A row without an utterance is MT or QA material; stage A passes it over in train and in dev."""
    for split in ("train", "dev"):
        path = f"work/rows/tiny/{split}.jsonl"
        rows = read_rows(path)
        for row in rows:
            if (row["task"], row["language"]) == ("ST", "de") and row["id"] != f"tiny/{split}-0/ST.de":
                del row["utterance"], row["audio"]
        write_rows(path, rows)
    run_stage("train_projector", "--steps", "2", "--validate_rows", "3")
    run_stage("train_lora", "--steps", "2")
