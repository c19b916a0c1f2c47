"""TODO"""
import random

from speech_llm.rows import corpus_of


TEXT_TASK = {"ST": "MT", "SQA": "QA", "MCQ": "QA"}      # a task's name when the transcript is read


def drawn_as(row):
    """The tasks that a row can be drawn for: its speech's, where it has any, and its text's; MCQ counts as SQA."""
    spoken = ["SQA" if row["task"] == "MCQ" else row["task"]] if "utterance" in row else []
    return spoken + ([TEXT_TASK[row["task"]]] if row["task"] in TEXT_TASK else [])


def choose(table, name):
    """One of a stage's literal tables, by the name given as --mixture or --shares."""
    if name not in table:
        raise SystemExit(f"{name!r} is not one of {', '.join(table)}")
    return table[name]


def cells(mixture):
    """[(task, language, answerable, share within the task)] of a mixture."""
    return [(task, language, answerable, share) for task, (_, languages) in mixture.items()
            for language, shares in languages.items()
            for answerable, share in zip((True, False), shares if isinstance(shares, tuple) else (shares,)) if share]


def draw(rows, mixture, corpus_shares, batch, batch_sqa, seed, twin=False):
    """
    Endless draws, each (rows, text) of one task, language, validity and corpus (2025, section 3 and Table 13): the
    task by its share, then language and validity, then the corpus, then the next rows of that pool's shuffled order.
    With `twin` a draw of ST or SQA is followed by one of its text task, MT or QA, drawn independently (section 5.1 C).
    """
    pools = {}
    for row in rows:
        for task in drawn_as(row):
            pool = pools.setdefault((task, row["language"], row["answerable"]), {})
            pool.setdefault(corpus_of(row), []).append(row)
    every = cells(mixture)
    for task, language, answerable, _ in every:
        for name in (task, TEXT_TASK.get(task)) if twin else (task,):
            if name and (name, language, answerable) not in pools:
                raise SystemExit(f"the mixture wants {name} in {language}, {'' if answerable else 'un'}answerable, "
                                 "but no row is of that kind")
    rng, orders = random.Random(seed), {}

    def pick(key):
        corpora = pools[key]
        shares = [corpus_shares.get((key[0], corpus), corpus_shares.get((*key[:2], corpus), 0)) for corpus in corpora]
        corpus = rng.choices(list(corpora), shares if any(shares) else [len(r) for r in corpora.values()])[0]
        order, picked = orders.setdefault((key, corpus), []), []
        while len(picked) < (batch_sqa if key[0] == "SQA" else batch):
            if not order:                                              # every row once before any row twice
                order.extend(rng.sample(range(len(corpora[corpus])), len(corpora[corpus])))
            picked.append(corpora[corpus][order.pop()])
        return picked

    while True:
        task = rng.choices(list(mixture), [share for share, _ in mixture.values()])[0]
        choices = [cell for cell in every if cell[0] == task]
        _, language, answerable, _ = rng.choices(choices, [cell[3] for cell in choices])[0]
        yield pick((task, language, answerable)), task in TEXT_TASK.values()
        if twin and task in TEXT_TASK:
            yield pick((TEXT_TASK[task], language, answerable)), True


def draw_frames(rows, features, batch_frames, seed):
    """Endless draws, each (rows, False) of `batch_frames` frames at least; every row once before any row twice."""
    rng, picked, frames = random.Random(seed), [], 0
    while True:
        for row in rng.sample(rows, len(rows)):
            picked.append(row)
            frames += len(features[row["utterance"]])
            if frames >= batch_frames:
                yield picked, False
                picked, frames = [], 0


def pick_validation(rows, mixture, count):
    """The same `count` dev rows for each task, language and validity of the mixture in every run -> list of rows."""
    picked = []
    for task, language, answerable, _ in cells(mixture):
        kind = [row for row in rows if (row["language"], row["answerable"]) == (language, answerable)
                and task in drawn_as(row)]
        picked += random.Random(0).sample(kind, min(count, len(kind)))
    if not picked:
        raise SystemExit(f"the dev rows hold nothing for {', '.join(mixture)}")
    return picked
