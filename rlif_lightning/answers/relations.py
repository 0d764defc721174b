r"""Equations and inequalities: ``x=5``, ``f(x)=x+1``, ``2x-y+3=0``, ``-2<x\le 3``, ``x\in[1,2]``.

Read in this order: ``read_relation``, ``_equation``, ``_inequality``. A variable against a constant
is the interval that it means; other relations are known up to a factor.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from rlif_lightning.answers.expression_tokens import Node, Unreadable
from rlif_lightning.answers.expressions import parse
from rlif_lightning.answers.reading import Reading, ordered, with_label
from rlif_lightning.answers.values import letters, ratio_key

_RELATION = re.compile(r"(\\(?:le|ge|ne|in)(?![A-Za-z])|[=<>])")
_ROUNDED = re.compile(r"\\approx(?![A-Za-z])")
_NAME = re.compile(
    r"(?:[A-Za-z]+'?|\\[a-z]+ ?[A-Za-z]*)(?:\^\{?-1\}?)?\([^()=]*\)"
    r"|[A-Za-z]{4,}(?: [A-Za-z]+)*|[A-Za-z]+(?: [A-Za-z]+)+"
    r"|m?\\angle ?[A-Z]+|\([a-z](?:,[a-z])+\)"
)
_FLIPPED = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le"}
_INFINITE = {sign: Reading(("infinite", sign)) for sign in (1, -1)}


def read_relation(text: str, read: Callable[[str], Reading]) -> Reading | None:
    """Read an equation or inequality; None where there is none.

    Args:
        text: an answer in normalised spelling.
        read: reads a part of it.

    Raises:
        Unreadable: a side cannot be read.
    """
    exact = _ROUNDED.split(text)[0]  # what follows \\approx is the same value, rounded
    pieces = [piece.strip() for piece in _RELATION.split(exact)]
    sides, signs = pieces[::2], pieces[1::2]
    if not signs:
        return read(exact.strip()) if exact != text else None
    if set(signs) == {"="}:
        return _equation(sides, read)
    if signs == [r"\in"]:
        return _named(sides[0], read(sides[1]))
    if signs == [r"\ne"]:
        return Reading(("unequal", *ratio_key(("sub", parse(sides[0]), parse(sides[1])))))
    return _inequality(sides, signs, read)


def _equation(sides: Sequence[str], read: Callable[[str], Reading]) -> Reading:
    first, last = sides[0], sides[-1]
    if len(sides) == 2 and _variable(last) and not _variable(first):
        first, last = last, first
    if _NAME.fullmatch(first):
        return _named(first, read(last))
    if len(sides) > 2 and not _variable(first):
        raise Unreadable("more than one equals sign")
    name = _variable(first)
    if name is None and _constant(first):
        return _same_twice(read(first), read(last))
    if name is None:
        return Reading(ratio_key(_difference(first, last)))
    value = read(last)
    try:
        right = parse(last)
    except Unreadable:
        return _named(first, value)
    equation = ratio_key(("sub", parse(first), right))
    return (
        Reading(equation) if name in letters(right) else with_label(_known(value), name, equation)
    )


def _same_twice(left: Reading, right: Reading) -> Reading:
    r"""Read ``0.56=56\%``: one value, written in two ways."""
    if left.key == right.key or left.key in right.alternates or right.key in left.alternates:
        return left
    raise Unreadable("two constants that differ")


def _named(name: str, value: Reading) -> Reading:
    return with_label(_known(value), name.replace(" ", ""))


def _known(value: Reading) -> Reading:
    if not value.known:
        raise Unreadable("the right side")
    return value


def _difference(left: str, right: str) -> Node:
    return ("sub", parse(left), parse(right))


def _variable(text: str) -> str | None:
    """Return the name of a variable that stands alone."""
    try:
        node = parse(text)
    except Unreadable:
        return None
    return node[1] if node[0] == "var" else None


def _inequality(
    sides: Sequence[str], signs: Sequence[str], read: Callable[[str], Reading]
) -> Reading:
    """Read an inequality: an interval of one variable, or a comparison.

    A comparison is known up to a positive factor.
    """
    if not set(signs) <= set(_FLIPPED):
        raise Unreadable("mixed relations")
    if len(signs) == 2:
        return _between(sides, signs, read)
    if len(signs) > 2:
        raise Unreadable("a long chain")
    left, right, sign = sides[0], sides[1], signs[0]
    if not _variable(left) and (_variable(right) or not right):
        left, right, sign = right, left, _FLIPPED[sign]
    name = _variable(left) if left else ""
    if name is not None and _constant(right):
        below = sign in ("<", r"\le")
        closed = sign in (r"\le", r"\ge")
        value = read(right)
        ends = [_INFINITE[-1], value] if below else [value, _INFINITE[1]]
        return with_label(
            ordered(ends, "[" if closed and not below else "(", "]" if closed and below else ")"),
            name,
        )
    node = _difference(left, right) if sign in ("<", r"\le") else _difference(right, left)
    return Reading(("below", sign in (r"\le", r"\ge"), *ratio_key(node, positive=True)))


def _between(sides: Sequence[str], signs: Sequence[str], read: Callable[[str], Reading]) -> Reading:
    if signs[0] in (">", r"\ge"):
        sides, signs = sides[::-1], [_FLIPPED[sign] for sign in signs[::-1]]
    name = sides[1] if _NAME.fullmatch(sides[1]) else _variable(sides[1])
    if (
        name is None
        or not set(signs) <= {"<", r"\le"}
        or not (_constant(sides[0]) and _constant(sides[2]))
    ):
        raise Unreadable("not an interval")
    opener, closer = "[" if signs[0] == r"\le" else "(", "]" if signs[1] == r"\le" else ")"
    return with_label(ordered([read(sides[0]), read(sides[2])], opener, closer), name)


def intersection(parts: Sequence[Reading]) -> Reading | None:
    """Return the interval in which two inequalities of one variable both hold.

    Returns:
        None where they are no such two, or where no number is in both: then a writer who joins
        them by "and" lists what is possible.
    """
    if len(parts) != 2 or not parts[0].label or parts[0].label != parts[1].label:
        return None
    ends = [part.bare for part in parts if part.bare[0] == "sequence" and len(part.bare) == 5]
    low = [end for end in ends if end[4] == ("infinite", 1)]
    high = [end for end in ends if end[3] == ("infinite", -1)]
    if not (len(low) == len(high) == 1 and low[0][3][0] == high[0][4][0] == "value"):
        return None
    if not float(low[0][3][1]) < float(high[0][4][1]):
        return None
    values = [Reading(low[0][3]), Reading(high[0][4])]
    return with_label(ordered(values, low[0][1], high[0][2]), parts[0].label)


def _constant(text: str) -> bool:
    """Return whether a side has no letters."""
    if re.fullmatch(r"[-+]?\\infty", text):
        return True
    try:
        return not letters(parse(text))
    except Unreadable:
        return False
