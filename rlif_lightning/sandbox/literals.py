"""Values that may leave a sandboxed process: exact built-in types, as JSON. Never pickle.

What crosses: None, bool, int, float, complex, str, bytes, bytearray, list, tuple, set, frozenset, dict, range, and
iterators (as what they give). Instances of subclasses cross as the built-in type below them: a Counter is a dict, a
named tuple a tuple. All else raises ``NotLiteral``. What ``decode`` returns therefore holds no code: its ``==``,
``hash`` and ``repr`` are the interpreter's own, whatever the sender did.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

# Deeper values are refused: comparing them would overflow the stack of whoever reads them.
MAX_DEPTH = 100
# What gives more items than this, and some iterators never end, is not a value.
MAX_ITEMS = 100_000
# Python refuses to read longer decimal numbers, so longer integers travel in hexadecimal.
_PLAIN_INT = 10**18


class NotLiteral(TypeError):
    """A value that cannot cross."""


def encode(value: Any, depth: int = 0) -> Any:
    """Give a value as something that ``json.dumps`` takes and ``decode`` reads back.

    Raises:
        NotLiteral: the value is, or holds, an object that isn't a literal, nests too deeply, or never ends.
    """
    if depth > MAX_DEPTH:
        raise NotLiteral(f"nested deeper than {MAX_DEPTH}")
    if value is None:
        return None
    for kind, to_json in _SCALARS.items():
        if isinstance(value, kind):
            return to_json(value)
    if isinstance(value, dict):
        return {"dict": [[encode(k, depth + 1), encode(v, depth + 1)] for k, v in value.items()]}
    for kind, tag in _COLLECTIONS.items():
        if isinstance(value, kind):
            items = [encode(item, depth + 1) for item in _bounded(value)]
            return {tag: items} if tag else items
    raise NotLiteral(f"a value of type {type(value).__name__} cannot leave the sandbox")


def decode(value: Any, depth: int = 0) -> Any:
    """Read what ``encode`` wrote.

    Raises:
        ValueError: it is not of that form, or nests too deeply; whoever sent it is not to be trusted.
    """
    if depth > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH}")
    if isinstance(value, list):
        return [decode(item, depth + 1) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) != 1:
        raise ValueError(f"{len(value)} tags instead of one")
    [(tag, content)] = value.items()
    if tag not in _READERS:
        raise ValueError(f"unknown tag {tag!r}")
    try:
        return _READERS[tag](content, depth + 1)
    except (TypeError, KeyError, OverflowError) as error:
        raise ValueError(f"malformed {tag}: {error}") from error


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


def _items(content: Any, depth: int) -> list:
    if not isinstance(content, list):
        raise ValueError("a list of items is needed")
    return decode(content, depth)


def _parts(content: Any, depth: int, kinds: tuple[type, ...], count: int) -> list:
    parts = _items(content, depth)
    if len(parts) != count or not all(type(part) in kinds for part in parts):
        raise ValueError(f"{count} of {[kind.__name__ for kind in kinds]} are needed")
    return parts


_READERS: dict[str, Callable[[Any, int], Any]] = {
    "int": lambda content, depth: int(content, 16),
    "float": lambda content, depth: {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}[content],
    "complex": lambda content, depth: complex(*_parts(content, depth, (float,), 2)),
    "bytes": lambda content, depth: bytes.fromhex(content),
    "bytearray": lambda content, depth: bytearray.fromhex(content),
    "range": lambda content, depth: range(*_parts(content, depth, (int,), 3)),
    "dict": lambda content, depth: {decode(k, depth): decode(v, depth) for k, v in content},
    "tuple": lambda content, depth: tuple(_items(content, depth)),
    "set": lambda content, depth: set(_items(content, depth)),
    "frozenset": lambda content, depth: frozenset(_items(content, depth)),
    "iterator": lambda content, depth: iter(_items(content, depth)),
}
