"""
The sampler: rows -> draws, in two levels (2025, section 3 and Table 13).

    draws = draw(rows, mixture, shares, batch=16, batch_sqa=8, seed=0)       # rows: Rows of speech_llm/index.py
    rows_of_one_kind, text = next(draws)         # text: whether the transcript is read in place of the speech

A mixture is {task: (share, {language: share})}. For SQA and QA the share of a language may be a pair: questions with
and without an answer. Shares are {task or "task language": {corpus: share}}. Without an entry, or if no corpus of the
entry has such rows, corpora are drawn in proportion to their numbers of rows. The pages of config/ hold both.
"""
import random

import numpy as np

TEXT_TASK = {"ST": "MT", "SQA": "QA", "MCQ": "QA"}      # the name of a task when the transcript is read


def tasks_of(kind):
    """Return the tasks that rows of a Kind can be drawn for: of their speech and of their text. MCQ counts as SQA."""
    speech = ["SQA" if kind.task == "MCQ" else kind.task] if kind.speech else []
    return speech + ([TEXT_TASK[kind.task]] if kind.task in TEXT_TASK else [])


def cells(mixture):
    """Return [(task, language, answerable, share within the task)] of a mixture."""
    return [(task, language, answerable, share) for task, (_, languages) in mixture.items()
            for language, shares in languages.items()
            for answerable, share in zip((True, False), shares if isinstance(shares, (list, tuple)) else (shares,))
            if share]


def corpus_shares(shares, task, language):
    """Return {corpus: share} of a task in a language; {} where corpora are drawn in proportion to their sizes."""
    return shares.get(f"{task} {language}", shares.get(task, {}))


def draw(rows, mixture, shares, batch, batch_sqa, seed, paired_text=False, mixed=False):
    """
    Yield draws without end, each (rows, text) of one task, language, validity and corpus (2025, section 3, Table 13).

    The task is drawn by its share, then language and validity, then the corpus; then the next `batch` rows of that
    pool come, in an order that is shuffled anew when it ends. With `paired_text` every draw of ST or SQA is followed by
    one of its text task, MT or QA, with rows of their own (section 5.1 C). With `mixed` a draw is of one task, and
    language, validity and corpus are drawn for each of its rows. SystemExit for a kind without rows.
    """
    pools = pools_of(rows)
    kinds = cells(mixture)
    for task, language, answerable, _ in kinds:
        for name in (task, TEXT_TASK.get(task)) if paired_text else (task,):
            if name and (name, language, answerable) not in pools:
                raise SystemExit(f"the mixture wants {name} in {language}, {'' if answerable else 'un'}answerable, "
                                 "but no row is of that kind")
    print_undrawn(pools, kinds, shares)
    rng, shuffle, orders = random.Random(seed), np.random.default_rng(seed), {}

    def next_rows(kind, count):
        task, language, _ = kind
        corpora, table = pools[kind], corpus_shares(shares, task, language)
        weights = [table.get(corpus, 0) for corpus in corpora]
        corpus = rng.choices(list(corpora), weights if any(weights) else [len(pool) for pool in corpora.values()])[0]
        if (kind, corpus) not in orders:
            orders[kind, corpus] = endless(corpora[corpus], shuffle)
        return [next(orders[kind, corpus]) for _ in range(count)]

    while True:
        task = rng.choices(list(mixture), [share for share, _ in mixture.values()])[0]
        choices = [kind for kind in kinds if kind[0] == task]
        size = batch_sqa if task == "SQA" else batch
        drawn = rng.choices(choices, [share for *_, share in choices], k=size if mixed else 1)
        for name in (task, TEXT_TASK[task]) if paired_text and task in TEXT_TASK else (task,):
            count = 1 if mixed else batch_sqa if name == "SQA" else batch
            pools_drawn = [(name, *kind) for _, *kind, _ in drawn]
            yield rows.drawn(sum((next_rows(pool, count) for pool in pools_drawn), [])), name in TEXT_TASK.values()


def print_undrawn(pools, kinds, shares):
    """Print the corpora that have rows of a task and a language but no share, while other corpora have one."""
    undrawn = {}
    for task, language, answerable, _ in kinds:
        table = corpus_shares(shares, task, language)
        corpora = pools[task, language, answerable]
        if any(map(table.get, corpora)):
            undrawn |= {f"{task} of {corpus}": None for corpus in corpora if not table.get(corpus)}
    if undrawn:
        print(f"not drawn, because `shares` gives them nothing: {', '.join(undrawn)}")


def pools_of(rows):
    """Return {(task, language, answerable): {corpus: numbers of its rows}} of every task that rows can be drawn for."""
    pools = {}
    for kind, numbers in rows.of_kind.items():
        for task in tasks_of(kind):
            pool = pools.setdefault((task, kind.language, kind.answerable), {})
            pool[kind.corpus] = np.concatenate([pool.get(kind.corpus, numbers[:0]), numbers])
    return pools


def endless(numbers, shuffle):
    """Yield numbers without end, shuffled anew at every end: each comes once before any comes twice."""
    while True:
        yield from shuffle.permutation(numbers)


def draw_frames(rows, batch_frames, seed):
    """Yield draws (ASR rows, False) of at least `batch_frames` frames; each row comes once before any comes twice."""
    kinds = [kind for kind in rows.of_kind if kind.task == "ASR" and kind.speech]
    numbers, lengths = (np.concatenate([of_kind[kind] for kind in kinds]) for of_kind in (rows.of_kind, rows.frames))
    drawn, frames = [], 0
    for place in endless(np.arange(len(numbers), dtype=np.uint32), np.random.default_rng(seed)):
        drawn.append(numbers[place])
        frames += int(lengths[place])
        if frames >= batch_frames:
            yield rows.drawn(drawn), False
            drawn, frames = [], 0


def pick_validation(rows, mixture, shares, count):
    """
    Return up to `count` dev rows for each task, language and validity of the mixture, of the corpora that the shares
    draw; the same ones in every run. SystemExit if there are none at all.
    """
    picked, pools = [], pools_of(rows)
    for task, language, answerable, _ in cells(mixture):
        corpora, table = pools.get((task, language, answerable), {}), corpus_shares(shares, task, language)
        drawn = [corpora[corpus] for corpus in corpora if table.get(corpus)] or list(corpora.values())
        numbers = np.concatenate([np.empty(0, np.uint32), *drawn])
        picked += [rows[number] for number in np.random.default_rng(0).permutation(numbers)[:count]]
    if not picked:
        raise SystemExit(f"the dev rows hold nothing for {', '.join(mixture)}")
    return picked
