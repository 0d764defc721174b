"""What an answer means: the record ``Reading``, and readings made of other readings.

These are values with units and names, and lists.

``readers.py`` makes readings from text; ``clusters.py`` compares them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from rlif_lightning.answers.expression_tokens import Key, Unreadable


@dataclass(frozen=True)
class Reading:
    """What an answer means.

    Attributes:
        key: shared exactly by answers that mean the same.
        alternates: keys of its meaning without its unit or its name, or read in another way.
        core: the key without unit and name; the key itself where it has neither.
        unit: of the value, empty where there is none.
        label: what the value is of, such as ``x`` in ``x=5``; empty where it has no name.
        known: whether the key names a meaning. Otherwise the key is the text, and the library may
            know more.
    """

    key: Key
    alternates: frozenset[Key] = frozenset()
    core: Key | None = None
    unit: str = ""
    label: str = ""
    known: bool = True

    @property
    def bare(self) -> Key:
        """The key without unit and name."""
        return self.core or self.key


def with_unit(reading: Reading, unit: str) -> Reading:
    """Return the same value with this unit, whose name takes the place of a label.

    An empty name changes nothing.
    """
    if not unit:
        return reading
    core = reading.bare
    return Reading(("unit", unit, core), reading.alternates | {core}, core, unit)


def with_label(reading: Reading, label: str, equation: Key | None = None) -> Reading:
    """Return the same value as that of a variable or function.

    Args:
        reading: the value. One with a unit stays as it is.
        label: the name.
        equation: a key for the whole equation, which other ways to write it share.
    """
    if reading.unit:
        return reading
    others = reading.alternates | {reading.bare}
    return Reading(equation or ("label", label, reading.bare), others, reading.bare, label=label)


def unordered(parts: list[Reading], distinct: bool = False) -> Reading:
    """Read values in any order: ``1, 2``, ``x=1 or x=2``, a set (``distinct``).

    Raises:
        Unreadable: one of them is not known.
    """
    parts = _shared(required(parts))
    if distinct:
        parts = list({part.key: part for part in parts}.values())
    if len(parts) == 1:
        return parts[0]
    key, core = _many(parts, lambda part: part.key), _many(parts, lambda part: part.bare)
    alternates = {core}
    labels = [part.label for part in parts]
    if all(labels) and len(set(labels)) == len(labels):
        named = sorted(parts, key=lambda part: part.label)
        alternates.add(("sequence", "(", ")", *(part.bare for part in named)))
    same_unit, same_label = {part.unit for part in parts}, set(labels)
    return Reading(
        key,
        frozenset(alternates - {key}),
        core,
        same_unit.pop() if len(same_unit) == 1 else "",
        same_label.pop() if len(same_label) == 1 else "",
    )


def ordered(parts: list[Reading], opener: str, closer: str) -> Reading:
    """Read values in brackets: a point, a vector, an interval.

    The interval without ends is all real numbers.

    Raises:
        Unreadable: one of them is not known.
    """
    parts = required(parts)
    if [part.key for part in parts] == [("infinite", -1), ("infinite", 1)]:
        return Reading(("infinite", 0))
    key, core = (
        ("sequence", opener, closer, *(part.key for part in parts)),
        ("sequence", opener, closer, *(part.bare for part in parts)),
    )
    return Reading(key, frozenset({core} - {key}), core)


def required(parts: list[Reading]) -> list[Reading]:
    """Return the same readings, all of them known.

    Raises:
        Unreadable: one of them is not.
    """
    if not all(part.known for part in parts):
        raise Unreadable("a part cannot be read")
    return parts


def _many(parts: list[Reading], key: Callable[[Reading], Key]) -> Key:
    return ("list", *sorted(map(key, parts), key=repr))


def _shared(parts: list[Reading]) -> list[Reading]:
    """Give all values the last one's unit (``3, 4 cm``) and the first one's name (``x = 3, 4``)."""
    unit, label = parts[-1].unit, parts[0].label
    if unit and all(part.unit in ("", unit) for part in parts):
        parts = [part if part.unit else with_unit(part, unit) for part in parts]
    elif label and not any(part.label or part.unit for part in parts[1:]):
        parts = [
            replace(with_label(part, label), key=("label", label, part.bare), label=label)
            for part in parts
        ]
    elif label and all(part.label == label for part in parts):
        parts = [replace(part, key=("label", label, part.bare)) for part in parts]
    return parts
