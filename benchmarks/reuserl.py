"""ReuseRL, a penalty on rounds and GRPO on Countdown-Stepwise, at equal settings.

    python scripts/make_countdown_model.py --output runs/reuserl/model
    python -m benchmarks.reuserl --tune     # one seed, for the settings that all arms share
    python -m benchmarks.reuserl            # the judging seeds

Every arm has the settings of ``configs/related/reuserl.yaml`` but its own lines. Figures are of
rollouts, on training problems that are seen once. Runs have one thread and go one after the
other in this process. A run that is finished is not made again. Results go to
``docs/results/reuserl.csv``.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks.finished_runs import figures_of_run
from benchmarks.results import FOLDER, write_results
from rlif_lightning.running.metrics_csv import read_logged

ROOT = Path(__file__).resolve().parent.parent
ROLLOUTS, LATE = 40, 10
TUNING_SEEDS, JUDGING_SEEDS = (100,), (0, 1, 2, 3, 4, 5)
COMMON = [
    "--config=configs/quickstart.yaml",
    "--config=configs/related/reuserl.yaml",
    "--model.optimizer.lr=2e-4",
    f"--trainer.limit_train_batches={ROLLOUTS}",
    "--trainer.limit_val_batches=0",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.enable_checkpointing=false",
    "--compare=false",
]
HEAD = "--model.rewards.reuse.head.init_args"
ARMS = {
    "grpo": [f"{HEAD}.strength=0"],
    "rounds": [f"{HEAD}.dictionary=single"],
    "reuserl": [],
    "reuserl, no buffer": [f"{HEAD}.buffer=0"],
}
FIGURES = {
    "solved": "environment/solved",
    "actions": "reuse/actions",
    "segments": "reuse/segments",
    "phrases": "reuse/phrases",
    "invalid": "environment/invalid",
    "repeated": "environment/repeated",
    "reset": "environment/reset",
    "only penalty": "reuse/only_penalty",
}


def measured(version: Path) -> list[dict[str, float]]:
    """Return the figures of each rollout."""
    rows = [row for row in read_logged(version / "metrics.csv").rows if "environment/solved" in row]
    if len(rows) != ROLLOUTS:
        raise ValueError(f"{version} has {len(rows)} rollouts, not {ROLLOUTS}; remove it")
    return [
        {name: float(row.get(column, "nan")) for name, column in FIGURES.items()} for row in rows
    ]


def run(arm: str, seed: int, out: Path) -> list[dict[str, float]]:
    """Make one run unless it is finished; return the figures of its rollouts."""
    folder = out / f"{arm.replace(', ', '_').replace(' ', '_')}_{seed}"
    arguments = [*COMMON, *ARMS[arm], f"--seed_everything={seed}"]
    arguments += [f"--trainer.default_root_dir={folder}"]
    return figures_of_run(f"{arm} seed {seed}", arguments, folder, lambda it, _: measured(it))


def shown(values: Sequence[float]) -> str:
    """Return a mean, with the standard deviation in brackets where there are several values."""
    spread = f" ({statistics.stdev(values):.3f})" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{spread}"


def table(out: Path, seeds: Sequence[int]) -> dict[str, dict[str, str]]:
    """Return a row for each arm; makes the runs that are missing, seed by seed."""
    runs = {(arm, seed): run(arm, seed, out) for seed in seeds for arm in ARMS}
    rows: dict[str, dict[str, str]] = {}
    for arm in ARMS:
        rows[arm] = {}
        for name in FIGURES:
            each = [
                statistics.fmean(row[name] for row in runs[arm, seed][-LATE:]) for seed in seeds
            ]
            rows[arm][name] = shown(each)
            rows[arm][f"each seed's {name}"] = " ".join(f"{value:.3f}" for value in each)
        first = [runs[arm, seed][0]["solved"] for seed in seeds]
        rows[arm]["solved at first"] = shown(first)
    return rows


def main() -> None:
    """Make the runs that are missing and write the result file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tune", action="store_true", help="the tuning seed; prints its rows")
    parser.add_argument("--seeds", type=int, nargs="+", default=[*JUDGING_SEEDS])
    parser.add_argument("--out", type=Path, default=Path("runs/reuserl"))
    parser.add_argument("--results", type=Path, default=FOLDER, help="(default: docs/results)")
    given = parser.parse_args()
    os.chdir(ROOT)
    if given.tune:
        for arm, row in table(given.out.resolve(), TUNING_SEEDS).items():
            print(arm, row)
        return
    rows = table(given.out.resolve(), given.seeds)
    conditions = f"CPU, one thread; {ROLLOUTS} rollouts, figures of the last {LATE}"
    notes = {
        "command": f"python -m benchmarks.reuserl --seeds {' '.join(map(str, given.seeds))}",
        "conditions": f"{conditions}; mean (sd) over seeds {', '.join(map(str, given.seeds))}",
    }
    write_results(given.results / "reuserl.csv", notes, rows, key="arm")


if __name__ == "__main__":
    main()
