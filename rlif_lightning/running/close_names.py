"""The close matches of a name that a user mistyped, among the names that would have been right."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from difflib import get_close_matches
from importlib import import_module
from typing import Any

SHOWN = 3  # close matches in a message
_NO_CLASS = re.compile(r"no class is named (\w+);")
_NO_OPTION = re.compile(r"unrecognized arguments: --([\w.+]+)")
_NO_KEY = re.compile(r"(?:does not accept option|Key|nested key) '([\w.]+)'")
_NO_ARGUMENT = re.compile(r"([\w.]+): Option '(?:[\w.]+\.)?(\w+)' is not accepted")


def close_names(name: str, known: Iterable[str]) -> list[str]:
    """Return the known names that are close to one, whatever their case, the closest first.

    Example:
        >>> close_names("clustervot", ["ClusterVote", "GoldAnswer"])
        ['ClusterVote']
    """
    by_lower = {each.lower(): each for each in sorted(known)}
    found = get_close_matches(name.lower(), by_lower, SHOWN, 0.7)
    return [by_lower[each] for each in found]


def meant(message: str, options: Iterable[str]) -> str:
    """Return what to append to a parser's message: the close matches of the name that it refuses.

    Args:
        message: of the parser, on one line.
        options: the parser's own options, without their dashes.

    Returns:
        "; did you mean ...?", the arguments of a class that has no close one, or nothing.
    """
    found: list[str] = []
    if (refused := _NO_CLASS.search(message)) is not None:
        found = close_names(refused[1], _classes())
    elif (refused := _NO_OPTION.search(message) or _NO_KEY.search(message)) is not None:
        found = _close_options(refused[1], list(options))
    elif (refused := _NO_ARGUMENT.search(message)) is not None:
        known = _arguments(refused[1])
        found = close_names(refused[2], known)
        if known and not found:
            return f"; it takes {', '.join(known)}"
    return f"; did you mean {' or '.join(found)}?" if found else ""


def _close_options(name: str, options: list[str]) -> list[str]:
    """Return close options: those whose last part is close, in the same group, come first."""
    group, _, last = name.rpartition(".")
    inside = {each.removeprefix(f"{group}.") for each in options if each.startswith(f"{group}.")}
    found = [f"{group}.{each}" for each in close_names(last, {e for e in inside if "." not in e})]
    return found or close_names(name, options)


def _classes() -> set[str]:
    """Return the names of every class that YAML can name without its import path."""
    ours = (import_module(name) for name in ("rlif_lightning", "callbacks"))
    theirs = (
        import_module("lightning.pytorch.callbacks"),
        import_module("lightning.pytorch.loggers"),
    )
    return {name for module in (*ours, *theirs) for name in module.__all__ if name[0].isupper()}


def imported(path: str) -> Any:
    """Return what an import path names; None where there is nothing."""
    module, _, name = path.rpartition(".")
    try:
        return getattr(import_module(module), name) if module else None
    except (ImportError, AttributeError):
        return None


def _arguments(path: str) -> list[str]:
    """Return the arguments of the constructor of a class; none where it cannot be imported."""
    try:
        names = [*inspect.signature(imported(path)).parameters]
        return [name for name in names if name not in ("self", "params", "args", "kwargs")]
    except (ValueError, TypeError):
        return []
