r"""Reads the meaning of an answer in normalised spelling, as a `Reading`.

Read in this order: ``read``, then its readers in the order of ``_READERS``, from words and lists
down to one value. The first reader that knows the form decides. What no reader can read keeps its
text as its key.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

from rlif_lightning.answers.expression_tokens import Key, Unreadable
from rlif_lightning.answers.expressions import parse
from rlif_lightning.answers.reading import Reading, ordered, required, unordered, with_unit
from rlif_lightning.answers.relations import intersection, read_relation
from rlif_lightning.answers.spelling import MAX_LENGTH
from rlif_lightning.answers.units import split_unit
from rlif_lightning.answers.values import value_key

_MEMO_SIZE = 65_536
_MAX_PARTS = 64
_MAX_DEPTH = 12

_NOTHING = ("empty",)
_SYNONYMS: dict[str, Key] = {
    **dict.fromkeys(
        (
            r"\emptyset",
            r"\{\}",
            "empty set",
            "the empty set",
            "no solution",
            "no solutions",
            "none",
            "no real solution",
        ),
        _NOTHING,
    ),
    **dict.fromkeys(("no real solutions", "there are no solutions", "no such number"), _NOTHING),
    **dict.fromkeys((r"\infty", "inf", "infinity", r"+\infty", "+inf"), ("infinite", 1)),
    **dict.fromkeys((r"-\infty", "-inf", "-infinity", "negative infinity"), ("infinite", -1)),
    **dict.fromkeys(
        (r"\mathbb{R}", "all real numbers", "all reals", "real numbers"), ("infinite", 0)
    ),
}
_CLOSERS = {"(": ")", "[": "]", "{": "}", r"\{": r"\}"}
_BRACKET = re.compile(r"\\[{}]|[()\[\]{}]")
_SEPARATOR = re.compile(
    r"[,;] (?:and |or )?|[,;]| (?:and|or) |\\cup(?![A-Za-z])|\\(?:lor|vee|land|wedge)(?![A-Za-z])"
)
_AND = re.compile(r"(?<![,;]) and |\\(?:land|wedge)(?![A-Za-z])")
_LETTER = re.compile(
    r"(?:\(([A-Ja-e])\)[.:]? ?|([A-J])(?:\. |\) ?|: ?))(?!(?:and|or) \(?[A-J]\)?)"
    r"(?=[0-9\\$.-]|[A-Za-z]{2})"
)
_LETTERS = re.compile(rf"[ ,;]{_LETTER.pattern}")
_CLOCK = re.compile(
    r"([0-9]{1,2})(?::([0-5][0-9]))?(?:\.0+)? ?([ap])\.? ?m\b\.?|([0-9]{1,2}):([0-5][0-9])",
    re.IGNORECASE,
)
_SHORT = "am an as at be by do go he hi if in is it me my no of oh ok on or ox pm so to up us we"
_TWO_LETTER_WORDS = {*_SHORT.split()}
_WORDS = re.compile(r"[^\W\d_]{2,}(?:[ '-][^\W\d_]+)*")
_MATRIX = re.compile(
    r"(?P<bracket>[(\[]?)\\begin\{(?P<kind>(?P<own>[pb])?(?:small)?matrix|array)\}"
    r"(?:\{[lcr|]*\})?(?P<cells>(?:(?!\\begin).)*)\\end\{(?P=kind)\}[)\]]?"
)
_NUMBERED = re.compile(r"[-+]?(?:\\?\$)?[0-9.]+ .*[A-Za-z]{2,}$")
# A range, a score or a date, which may be a difference or a quotient that was not worked out.
_PARTED = re.compile(r"[0-9.]+(?:-[0-9.]+)+|[0-9]+(?:/[0-9]+){2,}")
_ZERO_FIRST = re.compile(r"(?<![0-9.])0[0-9]")  # as in a date
_UNION = re.compile(r"\\cup(?![A-Za-z])")
_SIGNS = re.compile(r"\\(pm|mp)(?![A-Za-z])\s*")


def read(text: str) -> Reading:
    """Return what an answer in normalised spelling means.

    Memoised but for long texts.
    """
    return _remembered(text) if len(text) <= MAX_LENGTH else _unknown(text)


@lru_cache(_MEMO_SIZE)
def _remembered(text: str) -> Reading:
    return _read(text, 0)


def _unknown(text: str) -> Reading:
    return Reading(("text", text), known=False)


def _read(text: str, depth: int) -> Reading:
    if text.isdigit() and text.isascii():
        return Reading(value_key(parse(text)))
    if depth > _MAX_DEPTH or not text:
        return _unknown(text)
    for reader in _READERS:
        try:
            reading = reader(text, depth)
        except Unreadable:
            continue
        if reading is not None:
            return reading
    return _unknown(text)


def _read_synonym(text: str, depth: int) -> Reading | None:
    key = _SYNONYMS.get(text.casefold() if text.replace(" ", "").isalpha() else text)
    return Reading(key) if key else None


def _read_words(text: str, depth: int) -> Reading | None:
    r"""Read words alone, which are no products of variables.

    Two or three letters that are no word are a product (``ab``).
    """
    if not _WORDS.fullmatch(text) or re.search(r" (?:and|or) ", text):
        return None
    if text.isupper():
        return Reading(("words", text))
    two = len(text) == 2 and text not in _TWO_LETTER_WORDS
    if text.islower() and (
        two or text in ("inf", "xyz") or (len(text) == 3 and not set(text) & set("aeiouy"))
    ):
        return None
    return Reading(("words", text.casefold()))


def _read_choice(text: str, depth: int) -> Reading | None:
    """Read ``(B) 42``, ``B. 42``, ``B) 42`` or ``B: 42``: the letter of a choice, beside its text.

    Several letters, each with a text, are no choice: ``A: 3, B: 5``.
    """
    match = _LETTER.match(text)
    if match is None:
        return None
    if _LETTERS.search(text, match.end()):
        return _unknown(text)
    rest = _read(text[match.end() :], depth + 1)
    letter = (match[1] or match[2]).upper()
    return Reading(value_key(parse(letter)), rest.alternates | {rest.key})


def _read_clock(text: str, depth: int) -> Reading | None:
    """Read a time of day: with a.m. or p.m., or hours and minutes, which may be a ratio too."""
    match = _CLOCK.fullmatch(text)
    if match is None:
        return None
    hour, minute = int(match[1] or match[4]), int(match[2] or match[5] or 0)
    if match[3]:
        clock = ("clock", hour, minute)
        hour = hour % 12 + 12 * (match[3] in "pP")
        return Reading(("time", hour, minute), frozenset([clock])) if 1 <= clock[1] <= 12 else None
    ratio = _read_ratio(text, depth) if minute else None
    if hour > 24:
        return ratio
    others = frozenset([ratio.key]) if ratio else frozenset()
    return Reading(("clock" if 1 <= hour <= 12 else "time", hour, minute), others)


def _read_list(text: str, depth: int) -> Reading | None:
    parts = _united(split_top(text, _SEPARATOR))
    if not 1 < len(parts) <= _MAX_PARTS or _counted(parts):
        return None
    if not all(parts):
        raise Unreadable(text)
    readings = [_read(part, depth + 1) for part in _with_both_signs(parts)]
    both = intersection(readings) if _AND.search(text) else None
    return both or unordered(readings)


def _united(parts: list[str]) -> list[str]:
    """Return the parts with a bracketed union, ``(A\\cup B)``, replaced by what it unites."""
    found = []
    for part in parts:
        inside = part[1:-1] if part[:1] == "(" and _closing(part, 1) == len(part) - 1 else ""
        pieces = split_top(inside, _UNION) if _UNION.search(inside) else []
        found += _united(pieces) if len(pieces) > 1 else [part]
    return found


def _with_both_signs(parts: list[str]) -> list[str]:
    """Return the parts of a list with ``a\\pm b`` replaced by its two values."""
    return [each for part in parts for each in (_signed(part) if _SIGNS.search(part) else [part])]


def _signed(text: str) -> list[str]:
    """Return a text with the upper and with the lower signs of ``\\pm`` and ``\\mp``."""
    spelled = [
        _SIGNS.sub(lambda match, upper=upper: "+" if (match[1] == "pm") == upper else "-", text)
        for upper in (1, 0)
    ]
    return [re.sub(r"(^|[=(\[{,])\+", r"\1", each) for each in spelled]


def _counted(parts: list[str]) -> bool:
    """Return whether a text is one number of several things: "18 pencils and crayons"."""
    return bool(_NUMBERED.match(parts[0])) and all(
        _WORDS.fullmatch(part) and part != "pi" for part in parts[1:]
    )


def split_top(text: str, separator: re.Pattern[str]) -> list[str]:
    """Split outside every bracket; no more brackets may close than open."""
    parts, start, depth = [], 0, 0
    for match in re.finditer(
        rf"(?P<bracket>{_BRACKET.pattern})|(?P<cut>{separator.pattern})", text
    ):
        if match["bracket"]:
            depth += -1 if match["bracket"][-1] in ")]}" else 1
        elif not depth:
            parts.append(text[start : match.start()].strip())
            start = match.end()
    return [*parts, text[start:].strip()]


def _read_signs(text: str, depth: int) -> Reading | None:
    r"""Read ``2\pm 3``: the two values of the upper and the lower signs."""
    is_set = text.startswith(r"\{") and _closing(text, 2) == len(text) - 2
    if is_set or not _SIGNS.search(text):
        return None
    return unordered([_read(part, depth + 1) for part in _signed(text)], distinct=True)


def _read_relation(text: str, depth: int) -> Reading | None:
    return read_relation(text, lambda part: _read(part, depth + 1))


def _read_brackets(text: str, depth: int) -> Reading | None:
    """Read a set, a point, an interval, or brackets around one value."""
    opener = text[:2] if text.startswith(r"\{") else text[:1]
    closer = next((c for c in (")", "]", r"\}") if text.endswith(c)), "")
    if opener not in ("(", "[", r"\{") or not closer or (opener == r"\{") != (closer == r"\}"):
        return None
    inside = text[len(opener) : len(text) - len(closer)]
    if _closing(text, len(opener)) != len(opener) + len(inside):
        return None
    strings = split_top(inside, re.compile(r"[,;]"))
    if len(strings) > _MAX_PARTS or not all(strings):
        raise Unreadable(text)
    if opener == r"\{":
        strings = _with_both_signs(strings)
    parts = [_read(string.strip(), depth + 1) for string in strings]
    if opener == r"\{":
        return unordered(parts, distinct=True)
    if len(parts) == 1:
        return parts[0] if _CLOSERS[opener] == closer else None
    return ordered(parts, opener, closer)


def _closing(text: str, start: int) -> int:
    """Return where the bracket that opened before ``start`` closes; -1 if it does not.

    ``[0,1)`` closes too.
    """
    depth = 1
    for match in _BRACKET.finditer(text, start):
        depth += -1 if match[0][-1] in ")]}" else 1
        if not depth:
            return match.start()
    return -1


def _read_ratio(text: str, depth: int) -> Reading | None:
    parts = split_top(text, re.compile(":"))
    if not 1 < len(parts) <= 6:
        return None
    nodes = [parse(part) for part in parts]
    keys = [value_key(("div", node, nodes[-1])) for node in nodes[:-1]]
    return Reading(keys[0] if len(keys) == 1 else ("ratios", *keys))


def _read_matrix(text: str, depth: int) -> Reading | None:
    match = _MATRIX.fullmatch(text)
    # What has no brackets, such as cases, is no matrix; a determinant has bars.
    if match is None or bool(match["own"]) == bool(match["bracket"]):
        return None
    rows = [row.split("&") for row in match["cells"].split(r"\\") if row.strip()]
    cells = [required([_read(cell.strip(), depth + 1) for cell in row]) for row in rows]
    return Reading(("matrix", *(tuple(cell.bare for cell in row) for row in cells)))


def _read_value(text: str, depth: int) -> Reading | None:
    """Read one value with its factor and its unit."""
    parted = split_unit(text)
    node = parse(parted.value)
    if parted.factor != 1:
        node = ("mul", node, parse(str(parted.factor)))
    reading = with_unit(Reading(value_key(node)), parted.unit)
    scale = {"°": "degrees", "%": "percent"}.get(parted.unit)
    others = {value_key((scale, node))} if scale else set()
    if parted.unit and re.search(r"(?<![A-Za-z])[A-Za-z]$", text):
        others |= _as_product(text)
    reading = replace(reading, alternates=reading.alternates | others)
    return _parted(parted.value, reading) if _PARTED.fullmatch(parted.value) else reading


def _parted(value: str, computed: Reading) -> Reading:
    """Read ``10-20`` as itself, and in another way as what it is if it is computed."""
    own = with_unit(Reading(("parted", value)), computed.unit)
    others = set() if _ZERO_FIRST.search(value) else computed.alternates | {computed.key}
    return replace(own, alternates=own.alternates | others)


def _as_product(text: str) -> set[Key]:
    """Read ``5 m`` as five times the variable m."""
    try:
        return {value_key(parse(text))}
    except Unreadable:
        return set()


_READERS: list[Callable[[str, int], Reading | None]] = [
    _read_synonym, _read_words, _read_choice, _read_clock, _read_matrix, _read_list, _read_signs,
    _read_relation, _read_brackets, _read_ratio, _read_value,
]  # fmt: skip
