"""JSON that every reader takes. Light: ``rlif status`` imports it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any


def json_text(value: Any, indent: int | None = None) -> str:
    """Return JSON of plain values, with null for each number that is not finite.

    Python would write NaN and Infinity, at which ``datasets``, browsers and most other readers
    stop.

    Args:
        value: numbers, texts, lists, dictionaries, and None.
        indent: spaces of each level; None = one line.

    Raises:
        TypeError: there is something else in it.

    Example:
        >>> json_text({"score": float("nan"), "lengths": [3, float("inf")]})
        '{"score": null, "lengths": [3, null]}'
    """
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def json_lines(records: Iterable[Mapping[str, Any]]) -> str:
    """Return records as JSON Lines; each line is that of :func:`json_text`."""
    return "".join(json_text(record) + "\n" for record in records)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(child) for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(child) for child in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
