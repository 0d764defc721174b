"""A dictionary of action phrases by a two-part code, and how few phrases spell an episode.

ReuseRL's formulas (arXiv 2605.31509). An episode is a string of symbols. A dictionary C holds every
single symbol and some longer phrases. ``seg(s, C)`` is the fewest phrases that spell the string s.
The code stores the long phrases, and then every string as a series of phrases:

    bits(T, C) = sum over long phrases p of |p| log2 |S|  +  sum over s in T of seg(s, C) log2 |C|

S are the symbols, and C counts them. The published text says that the code has these two parts; its
lengths are our reading.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Collection, Mapping
from typing import TypeAlias

Phrase: TypeAlias = tuple[str, ...]


def segments(string: Phrase, phrases: Collection[Phrase], longest: int) -> list[Phrase]:
    """Return the fewest phrases that spell a string; of several such, with a longest last phrase.

    Args:
        string: symbols.
        phrases: those of two symbols and more; every single symbol is one too.
        longest: symbols of a phrase.

    Example:
        >>> segments(tuple("03102"), {tuple("03"), tuple("102")}, 4)
        [('0', '3'), ('1', '0', '2')]
    """
    fewest, last = [0], [0]
    for end in range(1, len(string) + 1):
        sizes = [
            size
            for size in range(min(longest, end), 0, -1)
            if size == 1 or string[end - size : end] in phrases
        ]
        size = min(sizes, key=lambda size: fewest[end - size])  # the first of equals: the longest
        fewest.append(fewest[end - size] + 1)
        last.append(size)
    found, end = [], len(string)
    while end:
        found.append(string[end - last[end] : end])
        end -= last[end]
    return found[::-1]


def code_bits(
    strings: Mapping[Phrase, int], phrases: Collection[Phrase], num_symbols: int, longest: int
) -> float:
    """Return the bits of a dictionary and of the strings that it spells.

    Args:
        strings: how often each one occurs.
        phrases: of two symbols and more.
        num_symbols: |S|.
        longest: symbols of a phrase.
    """
    stored = sum(map(len, phrases)) * math.log2(num_symbols)
    used = sum(n * len(segments(s, phrases, longest)) for s, n in strings.items())
    return stored + used * math.log2(num_symbols + len(phrases))


def learn_phrases(
    strings: Mapping[Phrase, int], num_symbols: int, longest: int
) -> tuple[list[Phrase], float]:
    """Return the phrases that shorten the code, in the order in which they were found.

    Neighbours in the shortest spelling are joined, the most frequent pair first (of equals, the
    first in the alphabet), if the code gets shorter. Pairs are counted anew after each.

    Args:
        strings: how often each one occurs.
        num_symbols: |S|, >= 1.
        longest: symbols of a phrase, >= 1.

    Returns:
        The phrases, and the bits of the code.
    """
    phrases: list[Phrase] = []
    bits = code_bits(strings, phrases, num_symbols, longest)
    while True:
        for pair in _pairs(strings, phrases, longest):
            shorter = code_bits(strings, [*phrases, pair], num_symbols, longest)
            if shorter < bits:
                phrases, bits = [*phrases, pair], shorter
                break
        else:
            return phrases, bits


def _pairs(strings: Mapping[Phrase, int], phrases: list[Phrase], longest: int) -> list[Phrase]:
    """Return the joined neighbours that are no phrase yet, the most frequent first."""
    counts: Counter[Phrase] = Counter()
    for string, number in strings.items():
        spelled = segments(string, phrases, longest)
        for one, other in itertools.pairwise(spelled):
            if len(one) + len(other) <= longest and one + other not in phrases:
                counts[one + other] += number
    return sorted(counts, key=lambda pair: (-counts[pair], pair))
