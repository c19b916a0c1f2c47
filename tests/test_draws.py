"""The sampler: the shares of tasks, languages, validity and corpora that the config pages ask for."""
from collections import Counter
from itertools import islice

import numpy as np
import pytest
from test_bad_input import refused

import merge_sft
import train_lora
import train_projector
from speech_llm import draws
from speech_llm.constants import read_page
from speech_llm.index import Rows
from speech_llm.rows import corpus_of

A, B, C = train_projector.Config(), train_lora.Config(), merge_sft.Config()      # the constants of the 2025 paper
LANGUAGES = ("en", "de", "it", "zh")


def draw(count, rows, mixture, shares=None, batch=1, batch_sqa=1, seed=0, **options):
    """Return the first `count` draws from a list of rows."""
    return [*islice(draws.draw(Rows.of(rows), mixture, shares or {}, batch, batch_sqa, seed, **options), count)]


def make_rows(corpus="tiny", count=6):
    """Return `count` rows of every kind of speech, and as many translations that are text alone."""
    rows = []
    for n in range(count):
        base = {"utterance": f"{corpus}/{n}", "audio": "a.wav", "transcript": "x", "target": "y", "question": "q"}
        kinds = [("ASR", "en", True), *[("ST", language, True) for language in ("de", "it", "zh")],
                 *[("SQA", language, valid) for language in LANGUAGES for valid in (True, False)]]
        rows += [{**base, "id": f"{corpus}/{n}/{task}.{language}.{valid}", "task": task, "language": language,
                  "answerable": valid} for task, language, valid in kinds]
        rows.append({"id": f"{corpus}/{n}/text", "task": "ST", "language": "de", "transcript": "x", "target": "y",
                     "answerable": True})
    return rows


def kind(rows):
    """Return the (task, language, answerable) of a draw."""
    [common] = {(row["task"], row["language"], row["answerable"]) for row in rows}
    return common


# 2025, section 5.1 and Table 13: the share of the draws, task times language and validity
QUESTIONS = {("SQA", language, valid): 0.4 * (0.2 if valid else 0.05) for language in LANGUAGES
             for valid in (True, False)}
CELLS = {  # mixture, the share of each kind
    "A.1": (A.mixture, {("ASR", "en", True): .4, ("ST", "de", True): .18, ("ST", "it", True): .18,
                        ("ST", "zh", True): .24}),
    "A.2": (read_page("iwslt25_a2")["train_projector"]["mixture"], {
        ("ASR", "en", True): .4, ("ST", "de", True): .105, ("ST", "it", True): .105, ("ST", "zh", True): .14,
        ("SQA", "en", True): .05, ("SQA", "en", False): .05, ("SQA", "de", True): .0375,
        ("SQA", "de", False): .0375, ("SQA", "it", True): .0375, ("SQA", "it", False): .0375}),
    "B": (B.mixture, {("ST", "de", True): .24, ("ST", "it", True): .18, ("ST", "zh", True): .18, **QUESTIONS}),
    "C": (C.mixture, {("ASR", "en", True): .2, ("ST", "de", True): .16, ("ST", "it", True): .12,
                      ("ST", "zh", True): .12, **QUESTIONS})}


@pytest.mark.parametrize("name", CELLS)
def test_shares_of_tasks_languages_and_validity(name):
    counts, (mixture, shares) = Counter(), CELLS[name]
    for rows, text in draw(10_000, make_rows(), mixture, batch=2):
        assert text is (name == "B") and len(rows) == (1 if rows[0]["task"] == "SQA" and not text else 2)
        counts[kind(rows)] += 1
    assert counts.keys() == shares.keys()
    for cell, share in shares.items():
        assert counts[cell] / 10_000 == pytest.approx(share, abs=0.015), cell     # three standard deviations at .4


MT, ABLATIONS = read_page("iwslt26")["train_lora"]["shares"], read_page("iwslt25")["ablations"]
BY_SIZE = {"covost2": 0.5, "europarlst": 0.25, "gigast": 0.125, "spokensquad": 0.125}


@pytest.mark.parametrize("task, language, shares, expected", [
    ("ASR", "en", A.shares, {"covost2": 0.8, "europarlst": 0.2}), ("ST", "de", A.shares, BY_SIZE),   # 2025, section 5.1
    ("MT", "de", MT, {"covost2": 0.036, "europarlst": 0.004, "gigast": 0.96}),                       # 2026, Table 5
    ("MT", "de", ABLATIONS["no-synthetic"]["shares"], {"covost2": 0.9, "europarlst": 0.1}),          # 2025, Table 10
    ("MT", "de", ABLATIONS["only-synthetic"]["shares"], {"spokensquad": 1.0})])
def test_corpora_by_size_or_by_the_shares_of_the_paper(task, language, shares, expected):
    """Four corpora of 8, 4, 2 and 2 rows of each kind; a share may stand for one language alone."""
    rows = [row for corpus, share in BY_SIZE.items() for row in make_rows(corpus, int(16 * share))]
    counts = Counter(corpus_of(row) for [row], _ in draw(4000, rows, {task: (1.0, {language: 1.0})}, shares))
    assert {corpus: count / 4000 for corpus, count in counts.items()} == pytest.approx(expected, abs=0.02)


def test_fluent_answers_or_short_ones_but_always_some_unanswerable_questions():
    """Rows with fluent answers are a corpus of their own, without unanswerable questions."""
    rows = make_rows("spokensquad") + [row for row in make_rows("spokensquad-fluent") if row["answerable"]]
    short = read_page("iwslt25_short")["merge_sft"]["shares"]
    for shares, corpus in ((C.shares, "spokensquad-fluent"), (short, "spokensquad")):
        stream = draw(200, rows, {"SQA": (1.0, {"en": (0.5, 0.5)})}, shares, paired_text=True)
        assert {(corpus_of(row), row["answerable"], text) for drawn, text in stream for row in drawn} == {
            (name, answerable, text) for name, answerable in ((corpus, True), ("spokensquad", False))
            for text in (True, False)}


def test_every_row_of_a_pool_comes_once_before_any_comes_twice():
    """In draws of 4 of 10 rows; another seed shuffles them otherwise."""
    def ids(seed):
        drawn = draw(15, make_rows(count=10), {"ST": (1.0, {"it": 1.0})}, batch=4, seed=seed)
        return [row["id"] for rows, _ in drawn for row in rows]
    assert all(len({*ids(0)[n:n + 10]}) == 10 for n in range(0, 60, 10))
    assert ids(0)[:10] != ids(0)[10:20] and ids(0) == ids(0) != ids(1)     # shuffled anew


def test_c_follows_speech_by_a_paired_text_draw():
    """After ASR and after a text draw comes speech; the paired rows are of the same kind, but drawn apart."""
    speech, text = (draw(48, make_rows(), {task: (1.0, {"de": 1.0})}, batch=3) for task in ("ST", "MT"))
    assert all("utterance" in row for drawn, _ in speech for row in drawn)
    assert Counter("utterance" in row for drawn, _ in text for row in drawn) == {True: 72, False: 72}      # text alone
    stream, others, pairs = iter(draw(3000, make_rows(), C.mixture, batch=2, paired_text=True)), 0, 0
    for speech, text in stream:
        assert not text and all("utterance" in row for row in speech)
        if speech[0]["task"] != "ASR" and (paired := next(stream, None)):
            assert paired[1] and kind(paired[0]) == kind(speech) and len(paired[0]) == 2
            others, pairs = others + (speech[0]["id"] != paired[0][0]["id"]), pairs + 1
    assert others > pairs / 2 > 400


def test_mixed_draws_hold_many_languages():
    """Rows of a draw choose their language alone, with the same shares; a text draw has the languages of its speech."""
    rows, mixture = make_rows(count=9), {"SQA": (1.0, {"en": 0.4, "de": 0.3, "it": 0.2, "zh": 0.1})}
    assert {len({row["language"] for row in drawn}) for drawn, _ in draw(20, rows, mixture, batch_sqa=16)} == {1}
    mixed = draw(400, rows, mixture, batch_sqa=16, mixed=True)
    assert all(len(drawn) == 16 and not text for drawn, text in mixed)
    assert np.mean([len({row["language"] for row in drawn}) for drawn, _ in mixed]) > 3
    counts = Counter(row["language"] for drawn, _ in mixed for row in drawn)
    assert [counts[name] / 6400 for name in LANGUAGES] == pytest.approx([0.4, 0.3, 0.2, 0.1], abs=0.02)
    pairs = draw(6, rows, mixture, batch_sqa=8, paired_text=True, mixed=True)
    assert [text for _, text in pairs] == [False, True] * 3
    assert all([row["language"] for row in speech] == [row["language"] for row in paired]
               for (speech, _), (paired, _) in zip(pairs[::2], pairs[1::2]))


def test_a_kind_of_the_mixture_without_rows_is_refused():
    rows = [row for row in make_rows() if kind([row]) != ("SQA", "it", False)]
    refused(draw, 1, rows, CELLS["A.2"][0], says="wants SQA in it, unanswerable, but no row is of that kind")
    assert draw(1, rows, A.mixture)                                        # which asks for none


def test_draws_of_frames_are_full_and_use_every_row_once():
    """Rows of 1 to 9 frames, 45 in all, in draws of at least 20."""
    features = {f"tiny/{n}": [0] * n for n in range(1, 10)}
    rows = [{"id": name, "utterance": name, "task": "ASR", "language": "en", "answerable": True} for name in features]
    stream = [[row["utterance"] for row in drawn] for drawn, _ in
              islice(draws.draw_frames(Rows.of(rows, features), 20, seed=0), 8)]
    assert all(20 <= sum(len(features[name]) for name in drawn) < 29 for drawn in stream)
    assert len({*sum(stream, [])[:9]}) == 9


def test_validation_rows_are_those_of_the_drawn_corpora_and_always_the_same():
    rows = Rows.of(make_rows("covost2", 9) + make_rows("acl6060", 9))
    arguments = {"ASR": (0.5, {"en": 1.0}), "SQA": (0.5, {"de": (0.5, 0.5)})}, {"ASR": {"covost2": 1.0}}, 4
    chosen = draws.pick_validation(rows, *arguments)
    assert Counter((row["task"], row["answerable"]) for row in chosen) == {
        ("ASR", True): 4, ("SQA", True): 4, ("SQA", False): 4}
    assert {corpus_of(row) for row in chosen if row["task"] == "ASR"} == {"covost2"}
    assert chosen == draws.pick_validation(rows, *arguments)
    refused(draws.pick_validation, Rows.of([]), A.mixture, {}, 4, says="the dev rows hold nothing for ASR, ST")
