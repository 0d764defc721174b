"""Which value of a monitored figure is the best so far."""

from __future__ import annotations

import math
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

MODES = ("max", "min")


class KeepsBest:
    """What a callback that keeps the best of something chooses by.

    Args:
        monitor: logged figure to choose by, such as ``val/accuracy``; null = keep no best.
            Choosing by accuracy uses labels.
        mode: max | min: which values of ``monitor`` are better.

    Attributes:
        best: the best value so far; None before the first.

    Raises:
        ValueError: an unknown mode.
    """

    def __init__(self, monitor: str | None = None, mode: str = "max") -> None:
        if mode not in MODES:
            raise ValueError(f"mode={mode!r} is unknown; use max or min")
        self.monitor, self.mode = monitor, mode
        self.best: float | None = None

    def is_better(self, value: float) -> bool:
        """Return whether a value is better than the best; NaN and an equal one never are."""
        if math.isnan(value) or self.best is None:
            return not math.isnan(value)
        return value > self.best if self.mode == "max" else value < self.best


def tell_unknown(callback: Any, module: Any) -> None:
    """Tell, before the first rollout, of a callback's monitor that evaluations will not log.

    Another callback or a subclass may log it all the same, so nothing is refused.
    """
    monitor = getattr(callback, "monitor", None)
    stage, _, name = (monitor if isinstance(monitor, str) else "").partition("/")
    if stage not in ("val", "val_low", "val_high"):
        return
    known = module.evaluator.figures(labelled=module.answer_column is not None)
    if name not in known:
        rank_zero_info(
            f"{type(callback).__name__}: monitor={monitor!r} is no figure of evaluations here,"
            f" which are {', '.join(known)}: unless something else logs it, it will not be found"
        )
