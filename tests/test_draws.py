"""The sampler: the shares of tasks, languages, validity and corpora that the config pages ask for."""
from collections import Counter
from itertools import islice

import pytest

import merge_sft
import train_lora
import train_projector
from speech_llm.constants import read_page
from speech_llm import draws
from speech_llm.index import Rows
from speech_llm.rows import corpus_of


A, B, C = train_projector.Config(), train_lora.Config(), merge_sft.Config()      # the constants of the 2025 paper
LANGUAGES = ("en", "de", "it", "zh")


def draw(rows, *more, **options):
    """Return the draws of speech_llm/draws.py from a list of rows."""
    return draws.draw(Rows.of(rows), *more, **options)


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
    """Return the (task, language, answerable) that a draw's rows have in common."""
    [common] = {(row["task"], row["language"], row["answerable"]) for row in rows}
    return common


# 2025, section 5.1 and Table 13: the share of the draws, task times language and validity
QUESTIONS = {("SQA", language, valid): 0.4 * (0.2 if valid else 0.05) for language in LANGUAGES
             for valid in (True, False)}
CELLS = {
    "A.1": {("ASR", "en", True): .4, ("ST", "de", True): .18, ("ST", "it", True): .18, ("ST", "zh", True): .24},
    "A.2": {("ASR", "en", True): .4, ("ST", "de", True): .105, ("ST", "it", True): .105, ("ST", "zh", True): .14,
            ("SQA", "en", True): .05, ("SQA", "en", False): .05, ("SQA", "de", True): .0375,
            ("SQA", "de", False): .0375, ("SQA", "it", True): .0375, ("SQA", "it", False): .0375},
    "B": {("ST", "de", True): .24, ("ST", "it", True): .18, ("ST", "zh", True): .18, **QUESTIONS},
    "C": {("ASR", "en", True): .2, ("ST", "de", True): .16, ("ST", "it", True): .12, ("ST", "zh", True): .12,
          **QUESTIONS},
}
MIXTURES = {"A.1": A.mixture, "A.2": read_page("iwslt25_a2")["train_projector"]["mixture"], "B": B.mixture,
            "C": C.mixture}


@pytest.mark.parametrize("name", CELLS)
def test_shares_of_tasks_languages_and_validity(name):
    counts = Counter()
    for rows, text in islice(draw(make_rows(), MIXTURES[name], {}, batch=2, batch_sqa=1, seed=0), 10_000):
        assert text is (name == "B") and len(rows) == (1 if rows[0]["task"] == "SQA" and not text else 2)
        counts[kind(rows)] += 1
    assert counts.keys() == CELLS[name].keys()
    for cell, share in CELLS[name].items():
        assert counts[cell] / 10_000 == pytest.approx(share, abs=0.015), cell     # three standard deviations at .4


def test_every_row_of_a_pool_comes_once_before_any_comes_twice():
    drawn = draw(make_rows(count=10), {"ST": (1.0, {"it": 1.0})}, {}, batch=4, batch_sqa=4, seed=0)
    ids = [row["id"] for rows, _ in islice(drawn, 15) for row in rows]
    assert all(len({*ids[n:n + 10]}) == 10 for n in range(0, 60, 10))      # though 4 does not divide 10
    assert ids[:10] != ids[10:20]                                          # shuffled anew


def test_corpora_by_size_or_by_the_shares_of_the_paper():
    rows = make_rows("covost2", 30) + make_rows("europarlst", 10)

    def share_of_covost2(task, language):
        drawn = islice(draw(rows, {task: (1.0, {language: 1.0})}, A.shares, 1, 1, seed=0), 4000)
        return sum(corpus_of(row) == "covost2" for [row], _ in drawn) / 4000
    assert share_of_covost2("ASR", "en") == pytest.approx(0.8, abs=0.02)   # section 5.1
    assert share_of_covost2("ST", "de") == pytest.approx(0.75, abs=0.02)   # 30 of 40 rows


def test_a_share_may_stand_for_one_language_alone():
    """Table 5 of 2026: MT into Italian has no CoVoST 2, MT into German mostly GigaST."""
    mixture, shares = {"MT": (1.0, {"de": 0.5, "it": 0.5})}, read_page("iwslt26")["train_lora"]["shares"]
    rows = [row for corpus in ("covost2", "europarlst", "gigast") for row in make_rows(corpus)]
    drawn = islice(draw(rows, mixture, shares, 1, 1, seed=0), 999)
    counts = Counter((row["language"], corpus_of(row)) for [row], _ in drawn)
    assert ("it", "covost2") not in counts and counts["de", "gigast"] > 0.9 * 0.45 * 999


def test_c_follows_speech_by_a_paired_text_draw():
    """After ASR and after a text draw comes speech; the paired rows are of the same kind, but drawn apart."""
    stream, same, other = draw(make_rows(), C.mixture, {}, batch=2, batch_sqa=1, seed=0, paired_text=True), 0, 0
    for _ in range(2000):
        speech, text = next(stream)
        assert not text and all("utterance" in row for row in speech)
        if speech[0]["task"] != "ASR":
            paired, text = next(stream)
            assert text and kind(paired) == kind(speech) and len(paired) == 2
            same, other = same + (speech[0]["id"] == paired[0]["id"]), other + (speech[0]["id"] != paired[0]["id"])
    assert other > same


def test_rows_without_speech_are_drawn_as_text_alone():
    rows = make_rows()
    speech = [*islice(draw(rows, {"ST": (1.0, {"de": 1.0})}, {}, 3, 3, seed=0), 48)]
    text = [*islice(draw(rows, {"MT": (1.0, {"de": 1.0})}, {}, 3, 3, seed=0), 48)]
    assert all("utterance" in row for drawn, _ in speech for row in drawn)
    assert Counter("utterance" in row for drawn, _ in text for row in drawn) == {True: 72, False: 72}


def test_the_same_seed_draws_the_same():
    def ids(seed):
        return [[row["id"] for row in rows] for rows, _ in islice(draw(make_rows(), C.mixture, {}, 2, 1, seed), 50)]
    assert ids(0) == ids(0) != ids(1)


def test_a_kind_of_the_mixture_without_rows_is_refused():
    rows = [row for row in make_rows() if (row["task"], row["language"], row["answerable"]) != ("SQA", "it", False)]
    with pytest.raises(SystemExit, match="wants SQA in it, unanswerable, but no row is of that kind"):
        next(draw(rows, MIXTURES["A.2"], {}, 2, 1, seed=0))
    next(draw(rows, A.mixture, {}, 2, 1, seed=0))                          # which asks for none


def test_fluent_answers_or_short_ones_but_always_some_unanswerable_questions():
    """Rows with fluent answers are a corpus of their own, without unanswerable questions."""
    rows = make_rows("spokensquad") + [row for row in make_rows("spokensquad-fluent") if row["answerable"]]
    short = read_page("iwslt25_short")["merge_sft"]["shares"]
    for shares, corpus in ((C.shares, "spokensquad-fluent"), (short, "spokensquad")):
        stream = [*islice(draw(rows, {"SQA": (1.0, {"en": (0.5, 0.5)})}, shares, 1, 1, seed=0, paired_text=True), 200)]
        assert {(corpus_of(row), row["answerable"], text) for drawn, text in stream for row in drawn} == {
            (name, answerable, text) for name, answerable in ((corpus, True), ("spokensquad", False))
            for text in (True, False)}


@pytest.mark.parametrize("ablation, corpora", [("no-synthetic", {"covost2", "europarlst"}),
                                               ("only-synthetic", {"spokensquad"})])
def test_synthetic_text_alone_or_left_out(ablation, corpora):
    """Table 10 of 2025: the text draws change, the speech draws do not."""
    rows = [row for corpus in ("covost2", "europarlst", "spokensquad") for row in make_rows(corpus)]
    shares = read_page("iwslt25")["ablations"][ablation]["shares"]
    stream = islice(draw(rows, {"ST": (1.0, {"de": 1.0})}, shares, 1, 1, seed=0, paired_text=True), 400)
    drawn = {(text, corpus_of(row)) for rows, text in stream for row in rows}
    assert {corpus for text, corpus in drawn if text} == corpora
    assert {corpus for text, corpus in drawn if not text} == {"covost2", "europarlst", "spokensquad"}


def test_draws_of_frames_are_full_and_use_every_row_once():
    """Rows of 1 to 9 frames, 45 in all, in draws of at least 20."""
    features = {f"tiny/{n}": [0] * n for n in range(1, 10)}
    rows = [{"id": name, "utterance": name, "task": "ASR", "language": "en", "answerable": True} for name in features]
    stream = [[row["utterance"] for row in drawn] for drawn, _ in
              islice(draws.draw_frames(Rows.of(rows), features, 20, seed=0), 8)]
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
    with pytest.raises(SystemExit, match="the dev rows hold nothing for ASR"):
        draws.pick_validation(Rows.of([]), {"ASR": (1.0, {"en": 1.0})}, {}, 4)
