"""Draw a run's main curves from its ``metrics.csv``: ``python scripts/plot_run.py runs/quickstart/version_0``.

Agreement, rewards, token entropy and length by rollout; several run folders are drawn over each other.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib
import pandas as pd

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.lines import Line2D

PANELS = {
    "vote/largest_cluster": "share of the largest answer in a group",
    "reward/gold/mean": "accuracy in training (head `gold`, if there is one)",
    "policy/entropy": "token entropy, nats",
    "rollout/length": "completion length, tokens",
    "policy/log_ratio_picked": "mean |log ratio| on picked tokens, nats",
    "policy/grad_norm": "gradient norm before clipping",
}


def read_run(folder: Path) -> pd.DataFrame:
    """The training rows of a run, one per rollout, counted from 1."""
    table = pd.read_csv(folder / "metrics.csv")
    table = table.dropna(subset=["policy/entropy"]).reset_index(drop=True)
    table.index += 1
    return table


def draw(runs: dict[str, pd.DataFrame], out: Path) -> None:
    """One panel per figure that any of the runs has; a validation table's figures are left to the terminal."""
    names = [name for name in PANELS if any(name in run for run in runs.values())]
    columns = -(-len(names) // 2)
    figure, axes = plt.subplots(2, columns, figsize=(3.6 * columns, 5.4), layout="constrained", squeeze=False)
    colors = dict(zip(runs, plt.rcParams["axes.prop_cycle"].by_key()["color"], strict=False))
    for axis, name in zip(axes.flat, names, strict=False):
        for label, run in runs.items():
            if name in run:
                axis.plot(run.index, run[name], color=colors[label], linewidth=1.4)
        axis.set_title(PANELS[name], fontsize=9)
        axis.set_xlabel("rollout", fontsize=8)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    lines = [Line2D([], [], color=color) for color in colors.values()]
    figure.legend(lines, list(colors), loc="outside lower center", ncols=len(runs), fontsize=9, frameon=False)
    figure.savefig(out, dpi=110)


def main() -> None:
    """Read the folders, write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="run folder, or label=folder")
    parser.add_argument("--out", type=Path, default=Path("run.png"), help="picture to write (default: %(default)s)")
    args = parser.parse_args()
    named = [run.split("=", 1) if "=" in run else (Path(run).name, run) for run in args.runs]
    draw({label: read_run(Path(folder)) for label, folder in named}, args.out)
    print(args.out)


if __name__ == "__main__":
    main()
