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

import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks.arm_study import ArmStudy, shown
from benchmarks.finished_runs import figures_of_run, logged_rollouts

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
    rows = logged_rollouts(version, "environment/solved", ROLLOUTS)
    return [
        {name: float(row.get(column, "nan")) for name, column in FIGURES.items()} for row in rows
    ]


def run(arm: str, seed: int, out: Path) -> list[dict[str, float]]:
    """Make one run unless it is finished; return the figures of its rollouts."""
    folder = out / f"{arm.replace(', ', '_').replace(' ', '_')}_{seed}"
    arguments = [*COMMON, *ARMS[arm], f"--seed_everything={seed}"]
    arguments += [f"--trainer.default_root_dir={folder}"]
    return figures_of_run(f"{arm} seed {seed}", arguments, folder, lambda it, _: measured(it))


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
        for start in range(0, ROLLOUTS, LATE):  # the dictionary over time
            part = slice(start, start + LATE)
            each = [
                statistics.fmean(row["phrases"] for row in runs[arm, seed][part]) for seed in seeds
            ]
            rows[arm][f"phrases {start + 1} to {start + LATE}"] = shown(each)
    return rows


STUDY = ArmStudy(
    "reuserl",
    table,
    TUNING_SEEDS,
    JUDGING_SEEDS,
    f"CPU, one thread; {ROLLOUTS} rollouts, figures of the last {LATE}",
    "runs/reuserl",
)

if __name__ == "__main__":
    STUDY.run(STUDY.parser(__doc__).parse_args())
