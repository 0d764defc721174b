"""Which answers mean the same: two of them (``equivalent``) or a group's (``open_clusters``).

Between two answers, a unit or name that one of them leaves out does not count: 18 equals
"18 marbles", and 5 equals ``x=5``. In a group that rule would call 5 km and 5 m equal by way of 5.
There an answer without a unit joins those with a unit only if they all have the same one: 5 km, 5 m
and 5 make three clusters. The order of the answers does not matter.

Left out: the meaning of free text (see a judge head).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from rlif_lightning.answers.expression_tokens import Key
from rlif_lightning.answers.library import Budget, library_equal
from rlif_lightning.answers.readers import read
from rlif_lightning.answers.reading import Reading
from rlif_lightning.answers.spelling import MAX_LENGTH, normalise

EQUIVALENCES = ("exact", "math_verify")


def check_equivalence(equivalence: str) -> None:
    """Refuse an unknown equivalence.

    Raises:
        ValueError: it is none of ``EQUIVALENCES``.
    """
    if equivalence not in EQUIVALENCES:
        raise ValueError(
            f"equivalence={equivalence!r} is unknown; choose one of {list(EQUIVALENCES)}"
        )


def equivalent(a: str, b: str, equivalence: str = "exact") -> bool:
    """Return whether two answers mean the same.

    Symmetric, but *not* transitive: 5 equals 5 km and 5 m, which differ.

    ``exact``: normalised string, then what is read (numbers exactly, expressions by their values),
    then math-verify for what cannot be read. ``math_verify``: also what that library calls equal by
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


def answer_name(answer: str) -> str:
    """Return one string for all spellings of a value, to count answers over problems.

    The answer's unit and name are left out.
    """
    text = normalise(answer)
    reading = read(text)
    return repr(reading.bare) if reading.known else text


def cluster(answers: Sequence[str | None], budget: Budget | None = None) -> list[int | None]:
    """Return cluster ids for the answers of one group; None (no answer) stays None.

    Ids follow the most frequent normalised string of each cluster, then the alphabet, so the order
    of the answers does not matter. Cluster 0 holds the most frequent string.

    Example:
        >>> cluster(["5", "3", None, "3.0"])
        [1, 0, None, 0]
    """
    return open_clusters(answers, budget)[0]


def open_clusters(
    answers: Sequence[str | None], budget: Budget | None = None
) -> tuple[list[int | None], list[str]]:
    """Return cluster ids as ``cluster`` does, and each cluster's representative.

    A representative is the cluster's most frequent normalised string.

    Args:
        answers: of one group.
        budget: math-verify's time; one of its own by default.
    """
    strings = [None if answer is None else normalise(answer) for answer in answers]
    counts = Counter(string for string in strings if string is not None)
    order = sorted(counts, key=lambda string: (-counts[string], string))
    if len(order) < 2:
        return [None if string is None else 0 for string in strings], order
    readings = {string: read(string) for string in order}
    root = _joined(readings.values())
    budget = budget or Budget()
    all_known = all(reading.known for reading in readings.values())
    ids: dict[str | None, int | None] = {None: None}
    representatives: list[str] = []
    numbers: dict[Key, int] = {}
    for string in order:
        key = root.get(readings[string].key, readings[string].key)
        number = numbers.get(key)
        if number is None and not all_known:
            number = _by_library(string, representatives, readings, budget)
        if number is None:
            number = len(representatives)
            representatives.append(string)
        ids[string] = numbers[key] = number
    return [ids[string] for string in strings], representatives


def _by_library(
    string: str, representatives: Sequence[str], readings: dict[str, Reading], budget: Budget
) -> int | None:
    """Return the first cluster whose representative math-verify calls equal."""
    if len(string) > MAX_LENGTH:
        return None
    for number, other in enumerate(representatives):
        pair = (readings[string], readings[other])
        if len(other) <= MAX_LENGTH and library_equal(string, other, pair, False, budget):
            return number
    return None


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
