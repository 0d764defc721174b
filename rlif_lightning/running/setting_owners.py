"""Which class has a setting that was given to another class of the same kind, or to none."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from lightning.pytorch import Callback

from rlif_lightning.running.close_names import imported

# Of jsonargparse: an argument without a class, and one that the class does not take.
_NO_CLASS_YET = re.compile(r"but ([\w.]+) is abstract.*?NestedArg\(key='(?:[\w.]+\.)?(\w+)'", re.S)
_NOT_TAKEN = re.compile(r"class_path '([\w.]+)':\s+Option '(?:[\w.]+\.)?(\w+)' is not accepted")
_NESTED = re.compile(r"Subtypes: \[<class '([\w.]+)'>.*NestedArg\(key='(\w+)\.", re.S)
PACKAGES = ("rlif_lightning", "callbacks")


def owner_hint(message: str) -> str:
    """Return what to append to a parser's message: the classes that have the refused setting.

    Args:
        message: of jsonargparse, with its lines about types.

    Returns:
        "; ... is a setting of ...", or nothing.
    """
    patterns = (_NO_CLASS_YET, _NOT_TAKEN, _NESTED)
    refused = next(filter(None, (pattern.search(message) for pattern in patterns)), None)
    if refused is None:
        return ""
    path, setting = refused.groups()
    found = sorted({kind.__name__ for kind in _of_the_kind(path) if _has(kind, setting)})
    if not found:
        return ""
    return f"; {setting} is a setting of {' and '.join(found)}: name the class before the setting"


def _of_the_kind(path: str) -> Iterator[type]:
    """Yield every class that could stand where the class at a path stands."""
    for package in map(import_module, PACKAGES):
        for name in package.__all__:
            getattr(package, name)  # so that a base knows all of our classes
    kind = imported(path)
    for base in kind.__mro__ if isinstance(kind, type) else ():
        if base is Callback or (inspect.isabstract(base) and _is_ours(base)):
            yield from filter(_is_ours, _subclasses(base))


def _is_ours(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in PACKAGES


def _subclasses(kind: Any) -> Iterator[type]:
    for child in kind.__subclasses__():
        yield child
        yield from _subclasses(child)


def _has(kind: type, setting: str) -> bool:
    return not inspect.isabstract(kind) and setting in inspect.signature(kind).parameters
