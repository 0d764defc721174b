"""What a picture of the report is made of: series, panels, and the curves behind them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from callbacks.report.read import Run
from rlif_lightning.metric_names import VALIDATION


@dataclass(frozen=True)
class Series:
    """One curve of a logged figure, with its legend and its band.

    The band is ``y ± spread`` or ``low..high``.
    """

    column: str
    label: str
    spread: str | None = None
    low: str | None = None
    high: str | None = None


@dataclass(frozen=True)
class Panel:
    """One picture.

    Attributes:
        name: of its PNG.
        section: heading that the picture is under.
        title: what is shown.
        unit: of the y axis.
        caption: how to read it.
        series: its curves.
        kind: lines | stack.
        is_share: the y axis is [0, 1].
        from_zero: the y axis starts at 0.
        log: a logarithmic y axis, where the curves span more than a power of ten.
    """

    name: str
    section: str
    title: str
    unit: str
    caption: str
    series: tuple[Series, ...]
    kind: str = "lines"
    is_share: bool = False
    from_zero: bool = True
    log: bool = False

    def drawn(self, runs: list[Run]) -> list[Series]:
        """Return the curves that some run has."""
        return [
            series
            for series in self.series
            if any(curve_of(run, series.column) is not None for run in runs)
        ]


def curve_of(run: Run, column: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Return x and y of a figure, or None; ``val/...`` comes from the evaluations."""
    return (run.evaluation if column.startswith(VALIDATION) else run.training).get(column)
