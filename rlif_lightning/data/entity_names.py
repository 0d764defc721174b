"""Names of entities: when a text names one (https://arxiv.org/abs/2605.31584).

The published rule knows Latin letters, digits and Chinese characters alone, and would find a name
in another script in every text. Runs of other letters are words here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_WORD = re.compile(r"[a-z0-9_]+|[\u4e00-\u9fff]|[^\W_a-z0-9\u4e00-\u9fff]+")


def spelled(text: str) -> str:
    """Return a text in lower case: words, and single Chinese characters, joined by one space.

    Example:
        >>> spelled("The Eiffel-Tower, in Paris!")
        'the eiffel tower in paris'
    """
    return " ".join(_WORD.findall(text.lower()))


def names(text: str, entities: Iterable[str]) -> list[bool]:
    """Return which entities a text names: those whose spelling is part of the text's.

    An entity without a letter or a digit is named nowhere.
    """
    whole = spelled(text)
    return [bool(name) and name in whole for name in map(spelled, entities)]


def recall(text: str, entities: Sequence[str]) -> float:
    """Return the share of entities that a text names; a repeated entity counts each time.

    NaN without an entity that has a letter or a digit.
    """
    known = [entity for entity in entities if spelled(entity)]
    return sum(names(text, known)) / len(known) if known else float("nan")
