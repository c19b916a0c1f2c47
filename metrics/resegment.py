"""
Cut one long hypothesis into pieces, one for each reference sentence, with the least word error rate.

    resegment("the cat\nsat it purred", ["The cat sat.", "It purred."])     -> ["the cat sat", "it purred"]
    resegment("你好。再见", ["你好。", "再见。"], characters=True)              -> ["你好。", "再见"]

A system translates a talk in other units than the reference's sentences, but COMET needs pairs of sentences. IWSLT and
MCIF cut the translation with RWTH's mwerSegmenter (Matusov et al. 2005; case-sensitive, one reference). This module has
the same dynamic programme with the same choice among equal costs. ASCII whitespace separates words, a no-break space
does not.
With `characters`, for Chinese, every character is a word and the pieces have no spaces, not even inside Latin titles,
as in MCIF's scoring.

Three inputs on which mwerSegmenter fails are cut, too: "#" in a reference is text and does not start an alternative
reference; an empty reference gets an empty piece (our choice); an empty hypothesis becomes ".", as in MCIF.
"""
import numpy as np


def resegment(text, references, characters=False):
    """
    Return the hypothesis as len(references) texts, with every word, in order.
    3,000 x 3,000 characters take about 0.2 s; memory is one row of integers per reference. If all references are
    blank, the last piece is the whole hypothesis. ValueError without references.
    """
    if isinstance(references, str):
        raise TypeError("references is a list of sentences, not one text")
    if not references:
        raise ValueError("no reference sentences to cut the hypothesis against")
    hypothesis = words(text, characters) or ["."]
    targets = [words(reference, characters) for reference in references]
    if not any(targets):
        targets[-1] = ["."]
    cuts = iter(cut(hypothesis, [target for target in targets if target]))
    joint = "" if characters else " "
    return [joint.join(hypothesis[slice(*next(cuts))]) if target else "" for target in targets]


def words(text, characters):
    """Return the words of a text, or its characters without whitespace."""
    for space in "\t\n\v\f\r":   # C's isspace; str.split() with no argument also cuts at U+00A0 and U+3000
        text = text.replace(space, " ")
    return list(text.replace(" ", "")) if characters else [word for word in text.split(" ") if word]


def cut(hypothesis, targets):
    """Return one (begin, end) of the J hypothesis words for each non-empty list of words: the cut of least cost."""
    # position j: the first j words of the hypothesis are aligned; every edit costs 1
    number = {word: n for n, word in enumerate(dict.fromkeys(hypothesis))}
    numbers = np.array([number[word] for word in hypothesis])          # (J,)
    position = np.arange(len(hypothesis) + 1)                          # (J + 1,)
    cost = position.copy()              # of the best alignment of all targets so far with the first j words
    begin = np.zeros_like(position)     # position at which that alignment begins the present piece
    begins = []
    for target in targets:
        for word in target:
            delete = cost + 1
            replace = np.append(delete[0], cost[:-1] + (numbers != number.get(word, -1)))
            # an insertion costs one more than its left neighbour, so a chain of them is a running minimum of cost - j
            cost = np.minimum.accumulate(np.minimum(delete, replace) - position) + position
            insert = np.append(delete[0] + 1, cost[:-1] + 1)
            # among equal costs mwerSegmenter takes deletion, then insertion, then substitution or match
            deleted = (delete <= replace) & (delete <= insert)
            inserted = ~deleted & (insert <= replace)
            begin = np.where(deleted, begin, np.append(0, begin[:-1]))
            # a chain of insertions begins its piece where its left end does
            begin = begin[np.maximum.accumulate(np.where(inserted, 0, position))]
        begins.append(begin)
        begin = position                # the next piece begins here, at no cost
    pieces, end = [], len(hypothesis)
    for begin in reversed(begins):
        pieces.append((begin[end], end))
        end = begin[end]
    return pieces[::-1]
