"""Values that may leave a sandboxed process: exact built-in types, as JSON. Never pickle.

What crosses: None, bool, int, float, complex, str, bytes, bytearray, list, tuple, set, frozenset,
dict, range, and iterators (as the list of their items). Instances of subclasses cross as the
built-in type below them: a Counter is a dict, a named tuple a tuple. All else raises
``NotLiteral``. What ``decode`` returns therefore holds no code: its ``==``, ``hash`` and ``repr``
are the interpreter's own, whatever the sender did.

A reader of an untrusted process calls ``check`` once. A value that passes has one spelling, a
bounded depth, and numbers that Python compares without an error. ``check`` builds nothing, so
colliding hashes cost nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

# Levels of JSON: a list is one, a tuple or set two, a dictionary three. Deeper values are refused:
# comparing them would overflow the reader's stack.
MAX_DEPTH = 100
# A longer collection or iterator is refused; some iterators never end.
MAX_ITEMS = 100_000
# Python refuses to read longer decimal numbers, so longer integers are sent in hexadecimal.
_PLAIN_INT = 10**18


class NotLiteral(TypeError):
    """A value that cannot cross."""


def encode(value: Any, depth: int = 0) -> Any:
    """Turn a value into what ``json.dumps`` takes and ``decode`` reads back.

    Raises:
        NotLiteral: the value is, or holds, an object that isn't a literal, nests too deeply, or
            never ends.
    """
    if depth > MAX_DEPTH:
        raise NotLiteral(f"nested deeper than {MAX_DEPTH}")
    if value is None:
        return None
    for kind, to_json in _SCALARS.items():
        if isinstance(value, kind):
            return to_json(value)
    if isinstance(value, dict):
        return {"dict": [[encode(k, depth + 3), encode(v, depth + 3)] for k, v in value.items()]}
    for kind, tag in _COLLECTIONS.items():
        if isinstance(value, kind):
            items = [encode(item, depth + (2 if tag else 1)) for item in _bounded(value)]
            return {tag: items} if tag else items
    raise NotLiteral(f"a value of type {type(value).__name__} cannot leave the sandbox")


def check(value: Any, depth: int = 0) -> None:
    """Check that parsed JSON is what ``encode`` writes, in every detail.

    Raises:
        ValueError: it is not, or it nests too deeply; the sender is not to be trusted.
    """
    if depth > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH}")
    if isinstance(value, list):
        for item in value:
            check(item, depth + 1)
    elif isinstance(value, dict):
        if len(value) != 1:
            raise ValueError(f"{len(value)} tags instead of one")
        [(tag, content)] = value.items()
        _FORMS.get(tag, _no_form)(content, depth + 1)
    elif isinstance(value, int) and not -_PLAIN_INT < value < _PLAIN_INT:
        raise ValueError("a long integer is sent under a tag")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError("a number that is not finite is sent under a tag")


def decode(value: Any) -> Any:
    """Read what ``encode`` wrote.

    Raises:
        ValueError: it is not of that form, nests too deeply, or cannot be built (a list as a key).
    """
    check(value)
    try:
        return _build(value)
    except TypeError as error:
        raise ValueError(f"malformed: {error}") from error


def _build(value: Any) -> Any:
    if isinstance(value, list):
        return [_build(item) for item in value]
    if not isinstance(value, dict):
        return value
    [(tag, content)] = value.items()
    return _READERS[tag](content)


def _bounded(items: Iterable) -> list:
    found = []
    for item in items:
        found.append(item)
        if len(found) > MAX_ITEMS:
            raise NotLiteral(f"more than {MAX_ITEMS} items")
    return found


def _from_int(value: int) -> Any:
    return int(value) if -_PLAIN_INT < value < _PLAIN_INT else {"int": hex(value)}


def _from_float(value: float) -> Any:
    return float(value) if math.isfinite(value) else {"float": repr(float(value))}


_SCALARS: dict[type, Callable[[Any], Any]] = {
    bool: bool,
    str: str.__str__,
    int: _from_int,
    float: _from_float,
    complex: lambda value: {"complex": [_from_float(value.real), _from_float(value.imag)]},
    bytes: lambda value: {"bytes": value.hex()},
    bytearray: lambda value: {"bytearray": value.hex()},
    range: lambda value: {"range": [_from_int(n) for n in (value.start, value.stop, value.step)]},
}
_COLLECTIONS = {list: "", tuple: "tuple", set: "set", frozenset: "frozenset", Iterator: "iterator"}


def _no_form(content: Any, depth: int) -> None:
    raise ValueError("unknown tag")


def _text(pattern: str) -> Callable[[Any, int], None]:
    def form(content: Any, depth: int) -> None:
        if not isinstance(content, str) or not re.fullmatch(pattern, content):
            raise ValueError(f"a text such as {pattern} is needed")

    return form


def _long_int(content: Any, depth: int) -> None:
    _text(r"-?0x[1-9a-f][0-9a-f]*")(content, depth)
    if abs(int(content, 16)) < _PLAIN_INT:
        raise ValueError("a short integer is sent as a number")


def _items(content: Any, depth: int) -> None:
    if not isinstance(content, list):
        raise ValueError("a list of items is needed")
    check(content, depth)


def _parts(kind: type, tag: str, count: int) -> Callable[[Any, int], None]:
    """Return a check for a list of so many numbers, each plain or under the tag."""

    def form(content: Any, depth: int) -> None:
        _items(content, depth)
        if len(content) != count or not all(
            type(part) is kind or _is_tagged(part, tag) for part in content
        ):
            raise ValueError(f"{count} numbers are needed")

    return form


def _is_tagged(value: Any, tag: str) -> bool:
    return isinstance(value, dict) and tag in value


def _pairs(content: Any, depth: int) -> None:
    _items(content, depth)
    if not all(isinstance(pair, list) and len(pair) == 2 for pair in content):
        raise ValueError("pairs are needed")


_FORMS: dict[str, Callable[[Any, int], None]] = {
    "int": _long_int,
    "float": _text("nan|inf|-inf"),
    "complex": _parts(float, "float", 2),
    "bytes": _text("([0-9a-f]{2})*"),
    "bytearray": _text("([0-9a-f]{2})*"),
    "range": _parts(int, "int", 3),
    "dict": _pairs,
    **dict.fromkeys(("tuple", "set", "frozenset", "iterator"), _items),
}
_READERS: dict[str, Callable[[Any], Any]] = {
    "int": lambda content: int(content, 16),
    "float": float,
    "complex": lambda content: complex(*_build(content)),
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
    "range": lambda content: range(*_build(content)),
    "dict": lambda content: dict(_build(content)),
    "tuple": lambda content: tuple(_build(content)),
    "set": lambda content: set(_build(content)),
    "frozenset": lambda content: frozenset(_build(content)),
    "iterator": lambda content: iter(_build(content)),
}
