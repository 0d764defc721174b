"""Columns of a data set by name or dotted path, and which of them a reward head may see."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any


def root_column(names: Collection[str], path: str) -> str | None:
    """Return the longest column name that a dotted path begins with; a name may hold dots."""
    parts = path.split(".")
    prefixes = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((prefix for prefix in prefixes if prefix in names), None)


def value_at(row: Mapping[str, Any], path: str) -> Any:
    """Return a problem's value in a column, or inside one.

    ``reward_model.ground_truth`` is ``["reward_model"]["ground_truth"]``.

    Returns:
        The value; None where it, or a step of the path, is missing.

    Raises:
        KeyError: no such column.
        ValueError: a step of the path holds no named values.
    """
    root = root_column(row, path)
    if root is None:
        raise KeyError(path)
    value = row[root]
    for key in path[len(root) + 1 :].split(".") if len(path) > len(root) else ():
        if value is not None and not isinstance(value, Mapping):
            raise ValueError(f"column {path!r}: there is nothing named {key!r} in {value!r:.100}")
        value = None if value is None else value.get(key)
    return value


def overlap(one: str, other: str) -> bool:
    """Say whether one of two dotted paths lies inside the other."""
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


class VisibleColumns(dict[str, list[Any]]):
    """The columns that a reward head named; asking for another one of the data set is an error."""

    def __init__(self, shown: Mapping[str, list[Any]], hidden: Collection[str]):
        super().__init__(shown)
        self.hidden = frozenset(hidden)

    def __contains__(self, name: object) -> bool:
        if name in self.hidden:
            raise ValueError(
                f"column {name!r} is hidden from this reward head: name it in the class attribute"
                f" `columns`, as in `columns = ({name!r},)`; gold answers are shown to heads with"
                " `needs_gold = True` only"
            )
        return super().__contains__(name)

    def __missing__(self, name: str) -> list[Any]:
        if name in self:
            return super().__getitem__(name)
        raise KeyError(name)

    def get(self, name: str, default: Any = None) -> Any:
        """Return as any dictionary does, but raise for a hidden column."""
        found = name in self
        return self[name] if found else default
