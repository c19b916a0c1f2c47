"""
Cut one long hypothesis into pieces that face the reference sentences, at the least word error rate.

    resegment("the cat\nsat it purred", ["The cat sat.", "It purred."])     -> ["the cat sat", "it purred"]
    resegment("你好。再见", ["你好。", "再见。"], characters=True)              -> ["你好。", "再见"]

A talk's translation comes in other units than the reference's sentences; COMET needs pairs. IWSLT and MCIF
cut with RWTH's mwerSegmenter (Matusov et al. 2005; case-sensitive, one reference); this is the same dynamic
programme with the same choice among equal costs. Words are what ASCII whitespace separates (a no-break space
does not). With `characters`, for Chinese, every character is a word, and the pieces have no spaces, not even
inside Latin titles, as in MCIF's scoring.

Where mwerSegmenter fails: a "#" in a reference is text here, not the start of an alternative reference; an
empty reference gets an empty piece (our choice); an empty hypothesis becomes ".", as in MCIF.
"""
import numpy as np


def resegment(text, references, characters=False):
    """One hypothesis text -> len(references) texts, every word kept, in order.

    3,000 x 3,000 characters take about 0.2 s; memory is one row of integers per reference. Where all
    references are blank the last piece takes everything. ValueError without references.
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
    for space in "\t\n\v\f\r":   # C's isspace; str.split() with no argument also cuts at U+00A0 and U+3000
        text = text.replace(space, " ")
    return list(text.replace(" ", "")) if characters else [word for word in text.split(" ") if word]


def cut(hypothesis, targets):
    """Words and non-empty lists of words -> one (begin, end) per list: the cheapest cut, unit costs."""
    # J hypothesis words; position j = the first j of them are used up
    number = {word: n for n, word in enumerate(dict.fromkeys(hypothesis))}
    spoken = np.array([number[word] for word in hypothesis])           # (J,)
    position = np.arange(len(hypothesis) + 1)                          # (J + 1,)
    cost = position.copy()              # cheapest alignment of everything so far with the first j words
    begin = np.zeros_like(position)     # where, on that alignment, the present piece began
    begins = []
    for target in targets:
        for word in target:
            delete = cost + 1
            replace = np.append(delete[0], cost[:-1] + (spoken != number.get(word, -1)))
            # an insertion costs its left neighbour + 1: chains of them are a running minimum on a slope of 1
            cost = np.minimum.accumulate(np.minimum(delete, replace) - position) + position
            insert = np.append(delete[0] + 1, cost[:-1] + 1)
            # mwerSegmenter's choice among equal costs: deletion, then insertion, then substitution or match
            deleted = (delete <= replace) & (delete <= insert)
            inserted = ~deleted & (insert <= replace)
            begin = np.where(deleted, begin, np.append(0, begin[:-1]))
            # a chain of insertions began where its left end did
            begin = begin[np.maximum.accumulate(np.where(inserted, 0, position))]
        begins.append(begin)
        begin = position                # the next piece begins here, at no cost
    pieces, end = [], len(hypothesis)
    for begin in reversed(begins):
        pieces.append((begin[end], end))
        end = begin[end]
    return pieces[::-1]
