"""Draws panels with matplotlib: one PNG each, and one picture of the main ones.

The global state of pyplot is not used.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation

from callbacks.report.curves import Panel, Series, curve_of
from callbacks.report.panels import OVERVIEW
from callbacks.report.read import Run

# Okabe and Ito's palette, which colour-blind readers can distinguish, without its faint yellow.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", ":", "-.")
ROUTINE = ("schedule",)  # events of every few rollouts: marked at the bottom, without a line
DPI = 120
SIZE = (4.5, 3.0)  # inches of one panel
LABELS = 0.38  # inches that the labels of the x axis take
LEGEND = 66  # characters that fit beside each other there
ROW = 0.17  # inches of a row of names
ROWS = 3  # of names that a panel has room for
MAX_LINES = 30


def draw_panel(panel: Panel, runs: list[Run]) -> bytes:
    """Draw one panel as PNG."""
    size = SIZE[0], SIZE[1] + _more_inches(panel, runs)
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    _fill(axes, panel, runs)
    _name_runs(figure, runs, columns=2)
    return _png(figure)


def draw_overview(panels: list[Panel], runs: list[Run]) -> bytes:
    """Draw the main panels in one picture, with one legend for the runs."""
    chosen = [panel for panel in panels if panel.name in OVERVIEW] or panels[:6]
    columns = min(3, len(chosen))
    rows = -(-len(chosen) // columns)
    height = 2.8 + max(_more_inches(panel, runs) for panel in chosen)
    figure = Figure(figsize=(4.0 * columns, height * rows), dpi=DPI, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, panel in zip(grid.flat, chosen, strict=False):
        _fill(axes, panel, runs)
    for axes in grid.flat[len(chosen) :]:
        axes.set_visible(False)
    _name_runs(figure, runs, columns=4)
    return _png(figure)


def _name_runs(figure: Figure, runs: list[Run], columns: int) -> None:
    """Name the colour of each of several runs under the picture."""
    if len(runs) > 1:
        handles = [Line2D([], [], color=_color(number), linewidth=3) for number in range(len(runs))]
        labels = [_plain(run.label) for run in runs]
        columns = min(columns, len(runs))
        figure.legend(
            handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9
        )


def _png(figure: Figure) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _color(number: int) -> str:
    return COLORS[number % len(COLORS)]


def _plain(label: str) -> str:
    """Escape a label for matplotlib: no formulas, and nothing that hides it from legends."""
    return label.replace("$", r"\$").lstrip("_") or "run"


def _fill(axes: Axes, panel: Panel, runs: list[Run]) -> None:
    """Draw curves, scales, legend and marks of one panel.

    One run has all curves of the panel, each in a colour; several have the first one each, in
    the run's colour.
    """
    several = len(runs) > 1
    drawn = panel.drawn(runs)
    drawn = drawn[:1] if several and panel.kind == "lines" else drawn
    if panel.kind == "stack" and len(runs) == 1:
        _stack(axes, drawn, runs[0])
    else:
        for number, run in enumerate(runs):
            for index, series in enumerate(drawn):
                style = STYLES[index % len(STYLES)]
                color = _color(number if len(runs) > 1 else index)
                _line(axes, run, series, color, style, bands=not several)
    _scale(axes, panel)
    axes.set_title(
        panel.title, fontsize=11, loc="left", fontweight="bold", pad=22 if _numbered(runs) else 12
    )
    axes.set_xlabel("rollout", fontsize=9)
    axes.set_ylabel(
        f"{drawn[0].label}, {panel.unit}" if several else panel.unit, fontsize=8 if several else 9
    )
    axes.tick_params(labelsize=9)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if axes.get_yscale() == "linear":
        axes.ticklabel_format(axis="y", scilimits=(-3, 5), useMathText=True)
    for number, run in enumerate(runs):
        _mark(axes, run, None if len(runs) == 1 else _color(number))
    _legend(axes, drawn, runs, panel.kind == "stack" and not several)


def _numbered(runs: list[Run]) -> bool:
    return len(runs) == 1 and any(event.get("kind") not in ROUTINE for event in runs[0].events)


def _line(axes: Axes, run: Run, series: Series, color: str, style: str, bands: bool) -> None:
    curve = curve_of(run, series.column)
    if curve is None:
        return
    x, y = curve
    # Evaluations are few, so their points are joined over the gaps.
    few = series.column.startswith("val/")
    if few:
        x, y = x[np.isfinite(y)], y[np.isfinite(y)]
    dot = "o" if few or np.isfinite(y).sum() == 1 else None
    axes.plot(x, y, color=color, linestyle=style, linewidth=1.6, marker=dot, markersize=4)
    if not bands:
        return
    if (
        series.spread is not None
        and (spread := run.training.columns.get(series.spread)) is not None
    ):
        axes.fill_between(x, y - spread, y + spread, color=color, alpha=0.15, linewidth=0)
    low, high = (
        None if name is None else curve_of(run, name) for name in (series.low, series.high)
    )
    if low is not None and high is not None:
        known = np.isfinite(low[1]) if few else slice(None)
        axes.fill_between(
            low[0][known], low[1][known], high[1][known], color=color, alpha=0.18, linewidth=0
        )


def _stack(axes: Axes, drawn: list[Series], run: Run) -> None:
    columns = [run.training.columns[series.column] for series in drawn]
    heights = np.nan_to_num(np.stack(columns), nan=0.0, posinf=0.0, neginf=0.0)
    colors = [_color(index) for index in range(len(drawn))]
    axes.stackplot(run.training.x, heights, colors=colors, alpha=0.75, linewidth=0)


def _scale(axes: Axes, panel: Panel) -> None:
    axes.margins(x=0.02)
    if panel.log and _decades(axes) > 1:
        axes.set_yscale("log")
    elif panel.is_share:
        axes.set_ylim(-0.02, 1.02)
    elif panel.from_zero:
        lowest, highest = axes.get_ylim()
        axes.set_ylim(min(0.0, lowest), highest if highest > 0 else 1.0)


def _decades(axes: Axes) -> float:
    """Return how many powers of ten the curves span."""
    values = np.concatenate(
        [np.asarray(line.get_ydata(), dtype=float) for line in axes.lines] or [np.ones(1)]
    )
    positive = values[np.isfinite(values) & (values > 0)]
    return float(np.log10(positive.max() / positive.min())) if len(positive) else 0.0


def _mark(axes: Axes, run: Run, color: str | None) -> None:
    """Mark events: a numbered line each (one run), or triangles in the runs' colours.

    Routine events are triangles at the bottom.
    """
    notable = 0
    for event in run.events:
        x = event["rollout"]
        if event.get("kind") in ROUTINE:
            _triangle(axes, x, 0.025, "^", color or "#777777")
            continue
        notable += 1
        _triangle(axes, x, 1.02, "v", color or "#000000")
        if notable <= MAX_LINES:
            look = {"linewidth": 0.8, "alpha": 0.45, "linestyle": (0, (2, 2))}
            axes.axvline(x, color=color or "#000000", **look)
    if color is None:
        span = float(np.ptp(axes.get_xlim())) or 1.0
        for x, text in numbers_of(run.events, 0.05 * span):
            place = axes.get_xaxis_transform()
            axes.text(x, 1.05, text, ha="center", va="bottom", fontsize=7, transform=place)


def numbers_of(events: list[dict[str, Any]], room: float) -> list[tuple[float, str]]:
    """Return the numbers of events and where they stand; neighbours share a place.

    Args:
        events: in the order of their rollouts.
        room: rollouts between two places.

    Example:
        >>> events = [{"rollout": x} for x in (1, 2, 3, 9, 10, 20)]
        >>> numbers_of(events, 3.0)
        [(2.0, '1-3'), (9.5, '4-5'), (20.0, '6')]
    """
    groups: list[list[tuple[float, int]]] = []
    for number, event in enumerate(events, 1):
        if event.get("kind") in ROUTINE:
            continue
        x = float(event["rollout"])
        if groups and x - groups[-1][0][0] < room:
            groups[-1].append((x, number))
        else:
            groups.append([(x, number)])
    named = []
    for group in groups:
        first, last = group[0], group[-1]
        text = str(first[1]) if len(group) == 1 else f"{first[1]}-{last[1]}"
        named.append(((first[0] + last[0]) / 2, text))
    return named


def _triangle(axes: Axes, x: float, height: float, marker: str, color: str) -> None:
    """Draw a triangle at a height in the axes' own units, 0 at the bottom and 1 at the top."""
    place = axes.get_xaxis_transform()
    axes.plot(
        [x], [height], marker=marker, markersize=5, color=color, transform=place, clip_on=False
    )


def _name_columns(drawn: list[Series]) -> int:
    """Return how many names of curves stand beside each other."""
    longest = max(len(series.label) for series in drawn)
    return max(1, min(len(drawn), LEGEND // (longest + 5)))


def _more_inches(panel: Panel, runs: list[Run]) -> float:
    """Return what a panel needs in height for the names of many curves, such as of 20 rewards."""
    drawn = panel.drawn(runs)
    rows = -(-len(drawn) // _name_columns(drawn)) if drawn else 0
    return ROW * max(0, rows - ROWS)


def _legend(axes: Axes, drawn: list[Series], runs: list[Run], stacked: bool) -> None:
    handles: list[Line2D | Patch] = []
    for index, series in enumerate(drawn):
        style = STYLES[index % len(STYLES)]
        color = _color(index) if len(runs) == 1 else "#333333"
        line = Line2D([], [], color=color, linestyle=style, linewidth=2, label=series.label)
        handles.append(Patch(color=color, alpha=0.75, label=series.label) if stacked else line)
    if len(handles) > 1:
        # Below the axes, where it hides no curve.
        columns = _name_columns(drawn)
        inches = axes.get_figure(root=True).dpi_scale_trans  # pyright: ignore
        below = ScaledTranslation(0, -LABELS, inches)
        axes.legend(
            handles=handles, fontsize=8, frameon=False, ncols=columns, loc="upper center",
            bbox_to_anchor=(0.5, 0), bbox_transform=axes.transAxes + below,
        )  # fmt: skip
