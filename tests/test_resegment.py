"""Re-segmentation: worked examples, the same programme cell by cell, then the outputs of mwerSegmenter."""
import json
import random
import time
from pathlib import Path

import pytest

from metrics.resegment import resegment

PARITY = Path(__file__).parents[2] / "shared" / "parity"


def test_by_hand():
    assert resegment("the cat\nsat it purred", ["The cat sat.", "It purred."]) == ["the cat sat", "it purred"]
    assert resegment("a b c d", ["a b", "c d"]) == ["a b", "c d"]
    assert resegment("a b x c d", ["a b", "c d"]) == ["a b x", "c d"]   # an extra word stays where it is
    assert resegment("c d", ["a b", "c d"]) == ["", "c d"]
    assert resegment("a b", ["a b", "c d"]) == ["a b", ""]
    assert resegment("A b", ["a", "A b"]) == ["", "A b"]                    # case-sensitive


def test_chinese_by_characters():
    assert resegment("你好。再见", ["你好。", "再见。"], characters=True) == ["你好。", "再见"]
    assert resegment("听 Easy on Me\n好", ["听Easy on Me", "好"], characters=True) == ["听EasyonMe", "好"]


def test_what_the_program_could_not():
    assert resegment("", ["ein Satz.", "noch einer."]) == [".", ""]         # as MCIF, which feeds a "."
    assert resegment("a # b c", ["a # b", "c"]) == ["a # b", "c"]
    assert resegment("a b c", ["a", "", "b c", " "]) == ["a", "", "b c", ""]
    assert resegment("a b", ["", ""]) == ["", "a b"]
    assert resegment("a\u00a0b c", ["a\u00a0b", "c"]) == ["a\u00a0b", "c"]   # part of the word
    with pytest.raises(ValueError, match="no reference"):
        resegment("a", [])
    with pytest.raises(TypeError, match="list"):
        resegment("a", "a b")


def slow(hypothesis, targets):
    """The same programme, one cell at a time -> (pieces, least cost)."""
    row = [(j, 0) for j in range(len(hypothesis) + 1)]          # (cost, where the piece began)
    begins = []
    for target in targets:
        for word in target:
            new = [(row[0][0] + 1, row[0][1])]
            for j, given in enumerate(hypothesis, 1):
                sub = (row[j - 1][0] + (word != given), row[j - 1][1])
                delete, insert = (row[j][0] + 1, row[j][1]), (new[j - 1][0] + 1, new[j - 1][1])
                if sub[0] < delete[0]:
                    new.append(sub if sub[0] < insert[0] else insert)
                else:
                    new.append(delete if delete[0] <= insert[0] else insert)
            row = new
        begins.append([begin for _, begin in row])
        row = [(cost, j) for j, (cost, _) in enumerate(row)]
    pieces, end = [], len(hypothesis)
    for begin in reversed(begins):
        pieces.append(" ".join(hypothesis[begin[end]:end]))
        end = begin[end]
    return pieces[::-1], row[-1][0]


def edits(a, b):
    row = list(range(len(b) + 1))
    for x in a:
        row, left = [row[0] + 1], row
        for j, y in enumerate(b):
            row.append(min(left[j] + (x != y), left[j + 1] + 1, row[j] + 1))
    return row[-1]


def test_rows_equal_cells_where_costs_tie_and_the_cut_is_cheapest():
    random.seed(0)
    for _ in range(400):                                        # three words only: ties everywhere
        hypothesis = random.choices("abc", k=random.randint(1, 9))
        targets = [random.choices("abc", k=random.randint(1, 5)) for _ in range(random.randint(1, 4))]
        pieces = resegment(" ".join(hypothesis), [" ".join(t) for t in targets])
        expected, cost = slow(hypothesis, targets)
        assert pieces == expected
        assert " ".join(" ".join(pieces).split()) == " ".join(hypothesis)
        assert sum(edits(p.split(), t) for p, t in zip(pieces, targets)) == cost


def test_a_talk_takes_a_moment():
    random.seed(0)
    targets = ["".join(random.choices("abcdefgh", k=30)) for _ in range(100)]
    begin = time.perf_counter()
    pieces = resegment("".join(random.choices("abcdefgh", k=3000)), targets, characters=True)
    assert len(pieces) == 100 and sum(map(len, pieces)) == 3000
    assert time.perf_counter() - begin < 10                     # 0.2 s on one CPU core


def test_agrees_with_mwer_segmenter():
    path = PARITY / "mwer_segmenter.jsonl"
    if not path.exists():
        pytest.skip(f"no reference vectors at {path}")
    for line in open(path, encoding="utf-8"):
        v = json.loads(line)
        assert resegment(v["prediction"], v["reference_sentences"], v["character_level"]) == v["segments"]
