"""Which value of a monitored figure is the best so far."""

from __future__ import annotations

import math

MODES = ("max", "min")


def check_mode(mode: str) -> None:
    """Refuse an unknown mode.

    Raises:
        ValueError: names it and those that are known.
    """
    if mode not in MODES:
        raise ValueError(f"mode={mode!r} is unknown; use max or min")


def is_better(value: float, best: float | None, mode: str) -> bool:
    """Return whether a value is better than the best so far, which may be None; NaN never is.

    Args:
        value: the new one.
        best: of those before it.
        mode: max | min: which values are better.
    """
    if math.isnan(value) or best is None:
        return not math.isnan(value)
    return value > best if mode == "max" else value < best
