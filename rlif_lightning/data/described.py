"""Settings as plain values by name: what an object was built with, whoever built it.

A dataclass knows its fields. Any other class of ours remembers the arguments of its constructor by
inheriting from :class:`Described`, so that a run that was built in Python is described by the same
names as one that was built from YAML.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

import numpy as np

CLASS, ARGUMENTS = "class_path", "init_args"


class _Recording:
    _arguments: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        made = super().__new__(cls)
        try:
            bound = inspect.signature(cls).bind(*args, **kwargs)
        except TypeError:  # a copy, or arguments that __init__ will refuse
            return made
        bound.apply_defaults()
        arguments = dict(bound.arguments)
        for name, parameter in bound.signature.parameters.items():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                arguments |= arguments.pop(name)
        object.__setattr__(made, "_arguments", arguments)
        return made


class Described(_Recording):
    """An object that remembers the arguments of its constructor."""

    def __init__(self) -> None:
        """Take no argument: a subclass without a constructor has this one's signature."""
        super().__init__()

    def remember(self, **arguments: Any) -> None:
        """Describe this object by other values than those that its constructor was given."""
        object.__setattr__(self, "_arguments", {**self._arguments, **arguments})


def arguments_of(value: Any) -> dict[str, Any]:
    """Return what an object was built with, by name; nothing where that is not known."""
    if is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in fields(value) if field.init}
    return dict(getattr(value, "_arguments", {})) if isinstance(value, Described) else {}


def describe(value: Any, name: str) -> dict[str, Any]:
    """Return plain values by their names in YAML.

    An object whose class is a choice has ``NAME.class_path`` and ``NAME.init_args.ARGUMENT``, a
    plain record ``NAME.FIELD`` and a plain dict ``NAME.KEY``. A dict of objects has ``NAME``, its
    keys in their order, as well.

    Args:
        value: what is described. Of an object that is no dataclass and no :class:`Described`
            nothing but the class is known.
        name: where it stands.
    """
    if is_plain(value) and not (isinstance(value, Mapping) and value):
        return {name: plain(value)}
    if isinstance(value, Mapping) and is_plain(value):
        return _all({}, name, value)
    if isinstance(value, Mapping):
        return _all({name: [str(key) for key in value]}, name, value)
    if isinstance(value, Sequence):
        return _all({name: len(value)}, name, dict(enumerate(value)))
    if inspect.isclass(value) or inspect.isroutine(value):
        return {name: _path(value)}
    if is_dataclass(value) and len(type(value).__mro__) == 2:  # no base: not one of several kinds
        return _all({}, name, arguments_of(value))
    place = f"{name}.{ARGUMENTS}"
    return _all({f"{name}.{CLASS}": _path(type(value))}, place, arguments_of(value))


def _all(found: dict[str, Any], name: str, values: Mapping[Any, Any]) -> dict[str, Any]:
    for key, value in values.items():
        found |= describe(value, f"{name}.{key}")
    return found


def _path(value: Any) -> str:
    module = getattr(value, "__module__", None)
    name = getattr(value, "__qualname__", type(value).__qualname__)
    return f"{module}.{name}" if module else name


def is_plain(value: Any) -> bool:
    """Return whether a value is a number, text, path or nothing, or is made of such values."""
    if isinstance(value, Mapping):
        return all(map(is_plain, value.values()))
    if isinstance(value, (list, tuple, set, frozenset)):
        return all(map(is_plain, value))
    plain_kinds = (bool, int, float, str, os.PathLike, Enum, np.generic)
    return value is None or isinstance(value, plain_kinds)


def plain(value: Any) -> Any:
    """Return a plain value as JSON would give it back, made of Python's own types alone."""
    if isinstance(value, Mapping):
        return {str(key): plain(child) for key, child in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(map(plain, value), key=repr)  # values of several types have no other order
    if isinstance(value, (list, tuple)):
        return [plain(child) for child in value]
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(
        value, np.generic
    ):  # a checkpoint with one could not be read without running code
        return value.item()
    for kind in (bool, int, float):
        if isinstance(value, kind):
            return kind(value)
    return None if value is None else str(value)
