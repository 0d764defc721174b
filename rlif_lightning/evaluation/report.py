"""An evaluation's figures with intervals, of the data set and its subsets, and their tables."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from rlif_lightning.evaluation.bootstrap import (
    CONFIDENCE,
    Figure,
    bootstrap_figures,
    paired_change,
)

PERCENT = (
    "accuracy",
    "pass@",
    "maj@",
    "greedy_accuracy",
    "ended",
    "parseable",
    "agreement",
    "diversity",
    "solved",
)


@dataclass(frozen=True)
class Report:
    """The figures of one evaluation, of the whole data set and of its subsets.

    Attributes:
        names: the M figures' names.
        totals: ``[N, M]`` float64, per problem in the order of the data set (see
            :func:`resampled_ratios`).
        weights: ``[N, M]`` float64.
        shares: ``[M]`` bool: which figures lie in [0, 1].
        subsets: label -> report of its problems; empty without a subset column.
    """

    names: list[str]
    totals: np.ndarray
    weights: np.ndarray
    shares: np.ndarray
    subsets: dict[str, Report] = field(default_factory=dict)

    @property
    def num_problems(self) -> int:
        return len(self.totals)

    def figures(self) -> dict[str, Figure]:
        """Return each figure with its interval."""
        return dict(zip(self.names, self._measured, strict=True))

    @cached_property
    def _measured(self) -> list[Figure]:
        return bootstrap_figures(self.totals, self.weights, self.shares)

    def change_since(self, before: Report) -> dict[str, Figure]:
        """Return each figure's change since an evaluation of the same problems."""
        moved = paired_change(
            (before.totals, before.weights), (self.totals, self.weights), self.shares
        )
        return dict(zip(self.names, moved, strict=True))

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        plain: dict[str, Any] = {"problems": self.num_problems}
        plain["figures"] = {name: figure._asdict() for name, figure in self.figures().items()}
        if self.subsets:
            plain["subsets"] = {label: report.as_dict() for label, report in self.subsets.items()}
        return plain


def print_report(report: Report, title: str) -> None:
    """Print the figures with their intervals, and those of the subsets."""
    share = f"{100 * CONFIDENCE:g} % interval"
    table = Table(title=f"{title}, {report.num_problems} problems", title_justify="left")
    table.add_column("")
    for heading in ("figure", share):
        table.add_column(heading, justify="right")
    for name, figure in report.figures().items():
        table.add_row(name.replace("_", " "), _text(name, figure.value), _interval(name, figure))
    console = Console(width=None if sys.stdout.isatty() else 100)
    console.print(table)
    if report.subsets:
        console.print(_subset_table(report, share))


def _subset_table(report: Report, share: str) -> Table:
    shown = [
        name
        for name in report.names
        if name in ("accuracy", "greedy_accuracy") or name.startswith("maj@")
    ]
    table = Table(title=f"Subsets, with {share}s", title_justify="left")
    table.add_column("")
    for heading in ("problems", *(shown or ["agreement"])):
        table.add_column(heading.replace("_", " "), justify="right")
    for label, subset in report.subsets.items():
        figures = subset.figures()
        cells = [
            f"{_text(n, figures[n].value)} {_interval(n, figures[n])}"
            for n in shown or ["agreement"]
        ]
        table.add_row(label, str(subset.num_problems), *cells)
    return table


def print_comparison(before: Report, after: Report, folder: str | None) -> None:
    """Print the evaluations before and after training, and each change's interval."""
    table = Table(title="Held-out problems, before and after training", title_justify="left")
    table.add_column("")
    for heading in ("before", "after", "change", f"{100 * CONFIDENCE:g} % interval"):
        table.add_column(heading, justify="right")
    old, new = before.figures(), after.figures()
    for name, change in after.change_since(before).items():
        cells = (
            _text(name, old[name].value),
            _text(name, new[name].value),
            _text(name, change.value, sign="+"),
        )
        table.add_row(name.replace("_", " "), *cells, _interval(name, change, sign="+"))
    console = Console(width=None if sys.stdout.isatty() else 100)
    console.print(table)
    console.print(f"logs, metrics.csv and config: {folder}", soft_wrap=True, highlight=False)


def _text(name: str, value: float, sign: str = "", unit: bool = True) -> str:
    percent = name.startswith(PERCENT)
    digits = 1 if percent or name in ("length", "turns") else 3
    return f"{100 * value if percent else value:{sign}.{digits}f}" + (
        " %" if percent and unit else ""
    )


def _interval(name: str, figure: Figure, sign: str = "") -> str:
    low, high = (_text(name, value, sign, unit=False) for value in (figure.low, figure.high))
    return rf"\[{low}, {high}]"  # a plain bracket would begin mark-up
