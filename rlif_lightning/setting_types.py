"""The types of settings that are given from Python, and what import paths name."""

from __future__ import annotations

import dataclasses
import functools
import reprlib
from collections.abc import Mapping, Sequence
from importlib import import_module
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

NUMBERS = {int: Integral, float: Real}  # of NumPy too
NAMES = {int: "a whole number", float: "a number", str: "a string", NoneType: "None"}
NAMES |= {bool: "True or False"}


def check_types(settings: object) -> None:
    """Refuse a value of another type than a settings dataclass declares for it.

    Raises:
        ValueError: names the setting, its value, the class and the type.
    """
    check_arguments(type(settings), {name: getattr(settings, name) for name in _kinds(settings)})


def check_arguments(owner: type, given: Mapping[str, Any]) -> None:
    """Refuse an argument of another type than a class declares for it.

    A float may be whole, a list may be a tuple. True is no number, and NaN is none.

    Args:
        owner: the class.
        given: its arguments by name; further names are ignored.

    Raises:
        ValueError: as :func:`check_types`.
    """
    for name, kind in _declared(owner).items():
        if name in given and not _fits(given[name], kind):
            value = given[name]
            raise ValueError(
                f"{name}={reprlib.repr(value)} of {owner.__name__} must be {_words(kind)}"
                + _remedy(value, kind)
            )


def imported(path: Any, argument: str) -> Any:
    """Return what an import path names; what is no text is returned as it is.

    Args:
        path: such as ``my_file.my_function``, as seen from the current folder.
        argument: the setting that the path is given to, for the message.

    Raises:
        ValueError: the path leads nowhere.
    """
    if not isinstance(path, str):
        return path
    module, _, name = path.rpartition(".")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{argument}={path!r} cannot be imported ({type(error).__name__}: {error});"
            " install what is missing, or give an import path such as my_file.my_function, as seen"
            " from the current folder"
        ) from error


def _kinds(settings: object) -> list[str]:
    assert dataclasses.is_dataclass(settings)
    return [field.name for field in dataclasses.fields(settings)]


@functools.cache
def _declared(owner: type) -> dict[str, Any]:
    """Return the types of a class's arguments by name."""
    try:
        return get_type_hints(owner if dataclasses.is_dataclass(owner) else owner.__init__)
    except NameError:  # types that only a type checker sees
        return {}


def _fits(value: Any, kind: Any) -> bool:
    """Return whether a value is of a type; a type that cannot be looked at takes any."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(_fits(value, each) for each in inner)
    if origin is Literal:
        return value in inner
    if kind in NUMBERS:  # NaN alone differs from itself
        return isinstance(value, NUMBERS[kind]) and not isinstance(value, bool) and value == value
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return _is_list(value) and _fit_all(value, origin, inner)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(_fits(v, inner[1]) for v in value.values())
    if kind is Any or not isinstance(kind, type) or getattr(kind, "_is_protocol", False):
        return True
    return isinstance(value, kind)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _fit_all(values: Sequence[Any], origin: type, inner: tuple[Any, ...]) -> bool:
    if origin is tuple and Ellipsis not in inner:
        return len(values) == len(inner) and all(map(_fits, values, inner))
    return all(_fits(value, inner[0]) for value in values)


def _words(kind: Any) -> str:
    """Return a type in words."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(map(_words, inner))
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if origin is tuple and Ellipsis not in inner:
        return f"[{', '.join(map(_words, inner))}]"
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return f"a list, each of it {_words(inner[0])}"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"a dict, each value {_words(inner[1])}"
    return NAMES.get(kind, f"of the class {getattr(kind, '__name__', kind)}")


def _remedy(value: Any, kind: Any) -> str:
    """Return how a dict would be written as the settings class that is asked for."""
    kinds = [kind, *get_args(kind)]
    wanted = [each for each in kinds if isinstance(each, type) and dataclasses.is_dataclass(each)]
    if not wanted or not isinstance(value, Mapping) or not all(map(str.isidentifier, value)):
        return ""
    arguments = ", ".join(f"{name}={reprlib.repr(each)}" for name, each in value.items())
    return f"; write {wanted[0].__name__}({arguments})"
