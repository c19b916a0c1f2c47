"""Re-segmentation: worked examples, the cheapest of all cuts, then the outputs of mwerSegmenter."""
import itertools
import random
import time

import pytest
from rapidfuzz.distance.Levenshtein import distance
from references import vectors
from test_bad_input import refused

from metrics.resegment import resegment


@pytest.mark.parametrize("text, references, pieces", [
    ("the cat\nsat it purred", ["The cat sat.", "It purred."], ["the cat sat", "it purred"]),
    ("a b x c d", ["a b", "c d"], ["a b x", "c d"]),                      # an extra word stays where it is
    ("c d", ["a b", "c d"], ["", "c d"]), ("a b", ["a b", "c d"], ["a b", ""]),
    ("A b", ["a", "A b"], ["", "A b"]),                                  # case-sensitive
    # what mwerSegmenter cannot do
    ("", ["ein Satz.", "noch einer."], [".", ""]),                       # as MCIF, which feeds a "."
    ("a # b c", ["a # b", "c"], ["a # b", "c"]),
    ("a b c", ["a", "", "b c", " "], ["a", "", "b c", ""]), ("a b", ["", ""], ["", "a b"]),
    ("a\u00a0b c", ["a\u00a0b", "c"], ["a\u00a0b", "c"])])                # part of the word
def test_by_hand(text, references, pieces):
    assert resegment(text, references) == pieces


def test_chinese_by_characters():
    assert resegment("你好。再见", ["你好。", "再见。"], characters=True) == ["你好。", "再见"]
    assert resegment("听 Easy on Me\n好", ["听Easy on Me", "好"], characters=True) == ["听EasyonMe", "好"]


def test_references_that_are_none():
    refused(resegment, "a", [], says="no reference")
    with pytest.raises(TypeError, match="list"):
        resegment("a", "a b")


def test_the_cut_is_the_cheapest_of_all():
    """Three words only: many cuts cost the same. Every place of every cut is tried."""
    random.seed(0)
    for _ in range(100):
        words = random.choices("abc", k=random.randint(1, 7))
        targets = [random.choices("abc", k=random.randint(1, 4)) for _ in range(random.randint(1, 3))]
        pieces = [piece.split() for piece in resegment(" ".join(words), [" ".join(target) for target in targets])]
        cuts = itertools.combinations_with_replacement(range(len(words) + 1), len(targets) - 1)
        costs = [sum(distance(words[begin:end], target) for begin, end, target in zip((0, *cut), (*cut, None), targets))
                 for cut in cuts]
        assert sum(pieces, []) == words
        assert sum(distance(piece, target) for piece, target in zip(pieces, targets)) == min(costs)


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
