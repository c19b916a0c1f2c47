"""
The sampler: rows -> draws, in two levels (2025, section 3 and Table 13).

    draws = draw(rows, mixture, shares, batch=16, batch_sqa=8, seed=0)
    rows_of_one_kind, text = next(draws)         # text: whether the transcript is read in place of the speech

A mixture is {task: (share, {language: share})}. For SQA and QA the share of a language may be a pair: questions with
and without an answer. Shares are {task or "task language": {corpus: share}}; without an entry, corpora go by size.
Both stand in the pages of config/ as literals.
"""
import random

from speech_llm.rows import corpus_of

TEXT_TASK = {"ST": "MT", "SQA": "QA", "MCQ": "QA"}      # the name of a task when the transcript is read


def tasks_of(row):
    """Return the tasks that a row can be drawn for: of its speech, if any, and of its text. MCQ counts as SQA."""
    speech = ["SQA" if row["task"] == "MCQ" else row["task"]] if "utterance" in row else []
    return speech + ([TEXT_TASK[row["task"]]] if row["task"] in TEXT_TASK else [])


def cells(mixture):
    """Return [(task, language, answerable, share within the task)] of a mixture."""
    return [(task, language, answerable, share) for task, (_, languages) in mixture.items()
            for language, shares in languages.items()
            for answerable, share in zip((True, False), shares if isinstance(shares, (list, tuple)) else (shares,))
            if share]


def corpus_shares(shares, task, language):
    """Return {corpus: share} of a task in a language; {} where corpora go by size."""
    return shares.get(f"{task} {language}", shares.get(task, {}))


def draw(rows, mixture, shares, batch, batch_sqa, seed, paired_text=False):
    """
    Yield draws without end, each (rows, text) of one task, language, validity and corpus (2025, section 3, Table 13).

    The task is drawn by its share, then language and validity, then the corpus; then the next `batch` rows of that
    pool come, in an order that is shuffled anew when it ends. With `paired_text` every draw of ST or SQA is followed by
    one of its text task, MT or QA, with rows of their own (section 5.1 C). SystemExit for a kind without rows.
    """
    pools = {}
    for row in rows:
        for task in tasks_of(row):
            pool = pools.setdefault((task, row["language"], row["answerable"]), {})
            pool.setdefault(corpus_of(row), []).append(row)
    kinds = cells(mixture)
    for task, language, answerable, _ in kinds:
        for name in (task, TEXT_TASK.get(task)) if paired_text else (task,):
            if name and (name, language, answerable) not in pools:
                raise SystemExit(f"the mixture wants {name} in {language}, {'' if answerable else 'un'}answerable, "
                                 "but no row is of that kind")
    rng, orders = random.Random(seed), {}

    def next_rows(kind):
        task, language, _ = kind
        corpora, table = pools[kind], corpus_shares(shares, task, language)
        weights = [table.get(corpus, 0) for corpus in corpora]
        corpus = rng.choices(list(corpora), weights if any(weights) else [len(pool) for pool in corpora.values()])[0]
        order, drawn = orders.setdefault((kind, corpus), []), []
        while len(drawn) < (batch_sqa if task == "SQA" else batch):
            if not order:                                              # every row comes once before any row comes twice
                order.extend(rng.sample(range(len(corpora[corpus])), len(corpora[corpus])))
            drawn.append(corpora[corpus][order.pop()])
        return drawn

    while True:
        task = rng.choices(list(mixture), [share for share, _ in mixture.values()])[0]
        choices = [kind for kind in kinds if kind[0] == task]
        _, language, answerable, _ = rng.choices(choices, [share for *_, share in choices])[0]
        yield next_rows((task, language, answerable)), task in TEXT_TASK.values()
        if paired_text and task in TEXT_TASK:
            yield next_rows((TEXT_TASK[task], language, answerable)), True


def draw_frames(rows, features, batch_frames, seed):
    """Yield draws (rows, False) of at least `batch_frames` frames; every row comes once before any row comes twice."""
    rng, drawn, frames = random.Random(seed), [], 0
    while True:
        for row in rng.sample(rows, len(rows)):
            drawn.append(row)
            frames += len(features[row["utterance"]])
            if frames >= batch_frames:
                yield drawn, False
                drawn, frames = [], 0


def pick_validation(rows, mixture, shares, count):
    """
    Return up to `count` dev rows for each task, language and validity of the mixture, of the corpora that the shares
    draw; the same ones in every run. SystemExit if there are none at all.
    """
    picked = []
    for task, language, answerable, _ in cells(mixture):
        kind = [row for row in rows if (row["language"], row["answerable"]) == (language, answerable)
                and task in tasks_of(row)]
        table = corpus_shares(shares, task, language)
        drawn = [row for row in kind if table.get(corpus_of(row))] or kind
        picked += random.Random(0).sample(drawn, min(count, len(drawn)))
    if not picked:
        raise SystemExit(f"the dev rows hold nothing for {', '.join(mixture)}")
    return picked
