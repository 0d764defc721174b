"""The study's figures: each arm's curves, mean and range over seeds, on the scale of all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np

from benchmarks.collapse_summary import Run

matplotlib.use("Agg")
import matplotlib.pyplot as plt

LABELS = {
    "accuracy": "accuracy",
    "pass@8": "pass@8",
    "agreement": "agreement",
    "entropy": "entropy, nats",
    "length": "length, tokens",
}


def draw_arms(runs: Sequence[Run], out: Path, columns: int = 4) -> None:
    """Draw held-out accuracy: a panel per arm, a line per seed, a triangle per first alarm."""
    arms = list(dict.fromkeys(run.arm for run in runs))
    rows = -(-len(arms) // columns)
    size = (3.2 * columns, 2.3 * rows + 0.4)
    figure, axes = plt.subplots(
        rows, columns, figsize=size, layout="constrained", sharex=True, sharey=True, squeeze=False
    )
    for axis, arm in zip(axes.flat, arms, strict=False):
        for run in (run for run in runs if run.arm == arm):
            (line,) = axis.plot(
                run.rollouts, run.curves["accuracy"], linewidth=1.2, label=f"seed {run.seed}"
            )
            if run.alarms:
                at = min(run.alarms)
                height = np.interp(at, run.rollouts, run.curves["accuracy"])
                axis.plot(
                    [at],
                    [height],
                    marker="v",
                    markersize=7,
                    color=line.get_color(),
                    markeredgecolor="black",
                )
        axis.set_title(arm, fontsize=9)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes.flat[len(arms) :]:
        axis.set_visible(False)
    axes[0, 0].set_ylim(0, 1)
    figure.supxlabel("rollout", fontsize=9)
    figure.suptitle(
        "accuracy on held-out problems, a line for each seed; triangle: the guard's first alarm",
        fontsize=10,
    )
    _save(figure, out)


def draw_figures(runs: Sequence[Run], out: Path) -> None:
    """Draw every measured curve in a panel: an arm's mean over seeds, shaded between extremes."""
    arms = list(dict.fromkeys(run.arm for run in runs))
    styles = [(color, line) for line in ("-", "--", ":") for color in plt.get_cmap("tab10").colors]  # pyright: ignore
    figure, axes = plt.subplots(2, 3, figsize=(13, 7), layout="constrained")
    for axis, (name, label) in zip(axes.flat, LABELS.items(), strict=False):
        for arm, (color, style) in zip(arms, styles, strict=False):
            rollouts, values = common(arm, runs, name)
            axis.plot(
                rollouts, values.mean(0), color=color, linestyle=style, linewidth=1.3, label=arm
            )
            axis.fill_between(
                rollouts, values.min(0), values.max(0), color=color, alpha=0.1, linewidth=0
            )
        axis.set_title(label, fontsize=10)
        axis.set_xlabel("rollout", fontsize=8)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    axes[1, 2].legend(handles, labels, loc="center", fontsize=8, ncols=2, frameon=False)
    axes[1, 2].set_axis_off()
    _save(figure, out)


def common(arm: str, runs: Sequence[Run], name: str) -> tuple[list[int], np.ndarray]:
    """Return the evaluations that all seeds of an arm have, and their values ``[seeds, E]``."""
    own = [run for run in runs if run.arm == arm]
    shared = sorted(set.intersection(*(set(run.rollouts) for run in own)))
    values = [[run.curves[name][run.rollouts.index(rollout)] for rollout in shared] for run in own]
    return shared, np.array(values)


def _save(figure, out: Path) -> None:
    figure.savefig(out, dpi=110)
    plt.close(figure)
