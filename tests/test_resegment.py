"""Re-segmentation: worked examples, the cheapest of all cuts, then the outputs of mwerSegmenter."""
import itertools
import random
import time

import pytest
from references import vectors

from metrics.resegment import resegment


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


def edits(a, b):
    """Return the least number of words to substitute, delete and insert."""
    row = list(range(len(b) + 1))
    for x in a:
        row, left = [row[0] + 1], row
        for j, y in enumerate(b):
            row.append(min(left[j] + (x != y), left[j + 1] + 1, row[j] + 1))
    return row[-1]


def test_the_cut_is_the_cheapest_of_all():
    """Three words only: many cuts cost the same. Every place of every cut is tried."""
    random.seed(0)
    for _ in range(100):
        words = random.choices("abc", k=random.randint(1, 7))
        targets = [random.choices("abc", k=random.randint(1, 4)) for _ in range(random.randint(1, 3))]
        pieces = [piece.split() for piece in resegment(" ".join(words), [" ".join(target) for target in targets])]
        cuts = itertools.combinations_with_replacement(range(len(words) + 1), len(targets) - 1)
        costs = [sum(edits(words[first:last], target) for first, last, target in zip((0, *cut), (*cut, None), targets))
                 for cut in cuts]
        assert sum(pieces, []) == words
        assert sum(edits(piece, target) for piece, target in zip(pieces, targets)) == min(costs)


def test_a_talk_takes_a_moment():
    random.seed(0)
    targets = ["".join(random.choices("abcdefgh", k=30)) for _ in range(100)]
    begin = time.perf_counter()
    pieces = resegment("".join(random.choices("abcdefgh", k=3000)), targets, characters=True)
    assert len(pieces) == 100 and sum(map(len, pieces)) == 3000
    assert time.perf_counter() - begin < 10                     # 0.2 s on one CPU core


def test_agrees_with_mwer_segmenter():
    for v in vectors("mwer_segmenter.jsonl"):
        assert resegment(v["prediction"], v["reference_sentences"], v["character_level"]) == v["segments"]
