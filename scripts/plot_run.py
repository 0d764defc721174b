"""Draw a run's main curves from its ``metrics.csv``: ``python scripts/plot_run.py runs/quickstart/version_0 --out run.png``.

Agreement, rewards, token entropy and length by rollout; several run folders are drawn over each other.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib
import pandas as pd

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PANELS = {
    "vote/largest_cluster": "share of the largest answer in a group",
    "reward/gold/mean": "accuracy in training (gold reward, if there is one)",
    "policy/entropy": "token entropy, nats",
    "rollout/length": "completion length, tokens",
    "policy/log_ratio_picked": "mean |log ratio| on picked tokens, nats",
    "policy/grad_norm": "gradient norm before clipping",
}


def read_run(folder: Path) -> pd.DataFrame:
    """The training rows of a run, one per rollout, counted from 1."""
    table = pd.read_csv(folder / "metrics.csv")
    table = table[table["policy/entropy"].notna()].reset_index(drop=True)
    table.index += 1
    return table


def draw(runs: dict[str, pd.DataFrame], out: Path) -> None:
    """One panel per figure that any of the runs has; a validation table's figures are left to the terminal."""
    names = [name for name in PANELS if any(name in run for run in runs.values())]
    figure, axes = plt.subplots(1, len(names), figsize=(3.4 * len(names), 2.9), layout="constrained")
    for axis, name in zip(axes, names, strict=True):
        for label, run in runs.items():
            if name in run:
                axis.plot(run.index, run[name], label=label, linewidth=1.4)
        axis.set_title(PANELS[name], fontsize=9)
        axis.set_xlabel("rollout", fontsize=8)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(fontsize=8)
    figure.savefig(out, dpi=120)


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
