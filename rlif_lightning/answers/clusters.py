"""Which answers mean the same: two of them (``equivalent``) or a group's (``open_clusters``).

Between two answers, a unit or name that one of them leaves out does not count: 18 equals
"18 marbles", and 5 equals ``x=5``. In a group that rule would call 5 km and 5 m equal by way of 5.
There an answer without a unit joins those with a unit only if they all have the same one: 5 km, 5 m
and 5 make three clusters. The order of the answers does not matter.

``string`` and ``numeric`` are equivalence relations: each answer alone has a class (``_class``),
and two are equal where their classes are. ``exact`` and ``math_verify`` also ask a library about
pairs, whose verdicts are not transitive. There clusters are closed by representatives: strings are
taken by frequency, then by the alphabet, and each joins the first cluster whose first string equals
it.

Left out: the meaning of free text (see a judge head).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from rlif_lightning.answers.expression_tokens import Key
from rlif_lightning.answers.extraction import AnswerExtractor, FindsAnswers
from rlif_lightning.answers.library import Budget, library_equal
from rlif_lightning.answers.readers import read
from rlif_lightning.answers.reading import Reading
from rlif_lightning.answers.spelling import MAX_LENGTH, normalise

EQUIVALENCES = ("string", "numeric", "exact", "math_verify")
BY_NAME = ("string", "numeric")
# Relative to the smaller one, or to 1. Rounding to six digits is far finer.
_NEAR = 1e-4


def check_equivalence(equivalence: str) -> None:
    """Refuse an unknown equivalence.

    Raises:
        ValueError: it is none of ``EQUIVALENCES``.
    """
    if equivalence not in EQUIVALENCES:
        raise ValueError(
            f"equivalence={equivalence!r} is unknown; choose one of {list(EQUIVALENCES)}"
        )


class ComparesAnswers(FindsAnswers):
    """What all share that find the final answers of completions and compare them.

    Args:
        extractor: finds the final answer of a completion.
        equivalence: string | numeric | exact | math_verify: when two answers are equal (see
            :func:`equivalent`).

    Raises:
        ValueError: an unknown equivalence.
    """

    def __init__(self, extractor: AnswerExtractor = AnswerExtractor(), equivalence: str = "exact"):
        check_equivalence(equivalence)
        super().__init__(extractor)
        self.equivalence = equivalence


def equivalent(a: str, b: str, equivalence: str = "exact") -> bool:
    """Return whether two answers mean the same.

    Symmetric. Transitive under ``string`` and ``numeric`` only: otherwise 5 equals 5 km and 5 m,
    which differ.

    ``string``: the normalised string. ``numeric``: also two numbers of one value, units and names
    left out (arXiv 2605.22620, Eq. 2; what is normalised is ours). ``exact``:
    normalised string, then what is read (numbers exactly, expressions by their values), then
    math-verify for what cannot be read. ``math_verify``: also what that library calls equal by
    rounding to six digits (1/3 and 0.333333). Memoised. Answers that are not decided within 0.3 s
    of CPU time are not equal. Works in any thread and process.

    Raises:
        ValueError: an unknown equivalence.
        RuntimeError: math-verify's process cannot be started at all.
    """
    check_equivalence(equivalence)
    a, b = normalise(a), normalise(b)
    if a == b or max(len(a), len(b)) > MAX_LENGTH:
        return a == b
    if equivalence in BY_NAME:
        return _class(a, equivalence) == _class(b, equivalence)
    x, y = read(a), read(b)
    if x.key == y.key or x.key in y.alternates or y.key in x.alternates:
        return True
    return library_equal(a, b, (x, y), equivalence == "math_verify", Budget())


def is_correct(answer: str | None, gold: str | None, equivalence: str = "exact") -> bool:
    """Return whether an extracted answer is equivalent to the gold one.

    Raises:
        ValueError: there is no gold answer to compare with, or an unknown equivalence.
    """
    if gold is None:
        raise ValueError(
            "a problem has an empty gold answer; clean the column or choose another gold extractor"
        )
    return answer is not None and equivalent(answer, gold, equivalence)


def answer_name(answer: str, equivalence: str = "exact") -> str:
    """Return one string for all spellings of a value, to count answers over problems.

    The answer's unit and name are left out. ``string`` and ``numeric``: the name of its class.
    """
    text = normalise(answer)
    if equivalence in BY_NAME:
        return repr(_class(text, equivalence))
    reading = read(text)
    return repr(reading.bare) if reading.known else text


def _class(text: str, equivalence: str) -> Key:
    """Return what a normalised answer shares with exactly those that are equal to it.

    For ``string`` and ``numeric``.
    """
    value = ("text", text) if equivalence == "string" else read(text).bare
    return value if value[0] == "value" else ("text", text)


def cluster(
    answers: Sequence[str | None], budget: Budget | None = None, equivalence: str = "exact"
) -> list[int | None]:
    """Return cluster ids for the answers of one group; None (no answer) stays None.

    Ids follow the most frequent normalised string of each cluster, then the alphabet, so the order
    of the answers does not matter. Cluster 0 holds the most frequent string.

    Example:
        >>> cluster(["5", "3", None, "3.0"])
        [1, 0, None, 0]
    """
    return open_clusters(answers, budget, equivalence)[0]


def open_clusters(
    answers: Sequence[str | None], budget: Budget | None = None, equivalence: str = "exact"
) -> tuple[list[int | None], list[str]]:
    """Return cluster ids as ``cluster`` does, and each cluster's representative.

    A representative is the cluster's most frequent normalised string.

    Args:
        answers: of one group.
        budget: math-verify's time; one of its own by default.
        equivalence: as for :func:`equivalent`.

    Raises:
        ValueError: an unknown equivalence.
    """
    check_equivalence(equivalence)
    strings = [None if answer is None else normalise(answer) for answer in answers]
    counts = Counter(string for string in strings if string is not None)
    order = sorted(counts, key=lambda string: (-counts[string], string))
    if len(order) < 2:
        return [None if string is None else 0 for string in strings], order
    rounding = equivalence == "math_verify"
    if equivalence in BY_NAME:
        readings, keys = {}, {string: _class(string, equivalence) for string in order}
    else:
        readings = {string: read(string) for string in order}
        root = _joined(readings.values())
        keys = {string: root.get(it.key, it.key) for string, it in readings.items()}
    budget = budget or Budget()
    asks = rounding or not all(reading.known for reading in readings.values())
    ids: dict[str | None, int | None] = {None: None}
    representatives: list[str] = []
    numbers: dict[Key, int] = {}
    for string in order:
        key = keys[string]
        number = numbers.get(key)
        if number is None and asks:
            number = _by_library(string, representatives, readings, rounding, budget)
        if number is None:
            number = len(representatives)
            representatives.append(string)
        ids[string] = numbers[key] = number
    return [ids[string] for string in strings], representatives


def _by_library(
    string: str,
    representatives: Sequence[str],
    readings: dict[str, Reading],
    rounding: bool,
    budget: Budget,
) -> int | None:
    """Return the first cluster whose representative math-verify calls equal."""
    if len(string) > MAX_LENGTH:
        return None
    for number, other in enumerate(representatives):
        pair = (readings[string], readings[other])
        if len(other) > MAX_LENGTH or (rounding and _far_apart(*pair)):
            continue
        if library_equal(string, other, pair, rounding, budget):
            return number
    return None


def _far_apart(x: Reading, y: Reading) -> bool:
    """Return whether two real numbers differ by so much that no rounding makes them equal."""
    if [key[0] for key in (x.bare, y.bare)] != ["value"] * 2 or len(x.bare) + len(y.bare) != 4:
        return False
    a, b = _float(x.bare[1]), _float(y.bare[1])
    return abs(a - b) > _NEAR * max(1.0, min(abs(a), abs(b)))


def _float(value: Any) -> float:
    """Return a fraction or a text of digits as a float; infinity where it is too large."""
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _joined(readings: Iterable[Reading]) -> dict[Key, Key]:
    """Return, for every key that joins another, the key that stands for both."""
    said: dict[Key, set[Key]] = {}
    for reading in readings:
        said.setdefault(reading.key, set()).update(reading.alternates)
    beside: dict[Key, set[Key]] = {key: set() for key in said}
    for key, alternates in said.items():
        for other in alternates & said.keys() - {key}:
            beside[key].add(other)
            beside[other].add(key)
    root: dict[Key, Key] = {}
    for key in sorted((key for key in said if beside[key]), key=repr):
        for other in sorted(beside[key], key=repr):
            if _only(beside[key], other) and _only(beside[other], key):
                first, second = _root(root, key), _root(root, other)
                if first != second:
                    root[first] = second
    return {key: _root(root, key) for key in said if beside[key]}


def _only(keys: set[Key], key: Key) -> bool:
    """Return whether no other of these keys is of the same kind: a unit, a name, a bare value."""
    return sum(_kind(other) == _kind(key) for other in keys) == 1


def _kind(key: Key) -> str:
    return "label" if key[0] == "ratio" else key[0]


def _root(root: dict[Key, Key], key: Key) -> Key:
    while key in root:
        key = root[key]
    return key
