"""Access to columns of a data set by name or dotted path (``reward_model.ground_truth``)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rlif_lightning.records import root_column, value_at

if TYPE_CHECKING:
    from datasets import Dataset

CHUNK = 1000


def has_column(features: Mapping[str, Any], path: str) -> bool:
    """Return whether a data set with these features has the column, or may have it.

    It may have it where a column is JSON, whose shape can differ from problem to problem.
    """
    root = root_column(features, path)
    if root is None:
        return False
    feature = features[root]
    for key in path[len(root) + 1 :].split(".") if len(path) > len(root) else ():
        if not isinstance(feature, Mapping):
            return type(feature).__name__ == "Json"
        if key not in feature:
            return False
        feature = feature[key]
    return True


def column_names(features: Mapping[str, Any]) -> list[str]:
    """Return the names of all columns, nested ones as dotted paths, in alphabetical order."""
    nested = [
        f"{name}.{inner}"
        for name, it in features.items()
        if isinstance(it, Mapping)
        for inner in column_names(it)
    ]
    return sorted([*features, *nested])


def column_values(dataset: Dataset, path: str, rows: Sequence[int]) -> Iterator[tuple[int, Any]]:
    """Yield row numbers with the values of one column, read a thousand at a time.

    Raises:
        ValueError: a part of the path holds no named values.
    """
    root = root_column(dataset.column_names, path)
    assert root is not None
    narrow = dataset.select_columns([root])
    for start in range(0, len(rows), CHUNK):
        chunk = rows[start : start + CHUNK]
        for row, value in zip(chunk, narrow[list(chunk)][root], strict=True):
            yield int(row), value_at({root: value}, path)


def check_column(
    named: str, path: str, dataset: Dataset, where: str, known: Sequence[str] = ()
) -> None:
    """Refuse a column that a data set does not have.

    Args:
        named: the setting in messages, such as "answer_column='gold'".
        path: of the column.
        dataset: the data set.
        where: its origin in words.
        known: names of its columns, where some of them are hidden; empty = none is.

    Raises:
        ValueError: names the columns of the data set.
    """
    if not has_column(dataset.features, path):
        columns = known or column_names(dataset.features)
        raise ValueError(f"{named} is not in {where}; its columns are {[*columns]!s:.1000}")
