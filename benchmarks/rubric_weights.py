"""How soon each weighting of a rubric reaches the static one's plateau, and what gold answers say.

    python -m benchmarks.rubric_weights --tune     # one seed, for the settings that all arms share
    python -m benchmarks.rubric_weights            # the judging seeds

The rubric is that of ``configs/related/pow3r.yaml``: eight criteria by rule on the quickstart's
sums, of which some hold always and two never. Gold answers are measured and reward nothing. Every
arm has the same settings but its weighting. Scores of all arms are compared by one measure, the
static score: the weighted share of criteria that hold, from the logged rate of each. Runs have one
thread and go one after the other in this process. A run that is finished is not made again.
Results go to ``docs/results/rubric_weights.csv``.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.arm_study import ArmStudy, shown
from benchmarks.finished_runs import figures_of_run, logged_rollouts
from rlif_lightning.running.events import read_events

EPOCHS = 6  # of ten rollouts
LATE, SMOOTH = 10, 5  # rollouts: of the plateau, and of the mean that has to reach it
REACHED = 0.95  # of the way from the static arm's first rollouts to its plateau
TUNING_SEEDS, JUDGING_SEEDS = (100,), (0, 1, 2, 3, 4, 5)
POINTS = {
    "answered": 2, "in_range": 1, "short": 2, "steps": 3, "at_once": 2, "checked": 2,
    "larger_first": 3, "explained": 3,
}  # fmt: skip
COMMON = [
    "--config=configs/quickstart.yaml",
    "--config=configs/related/pow3r.yaml",
    "--model.optimizer.lr=2e-4",
    f"--trainer.max_epochs={EPOCHS}",
    f"--trainer.check_val_every_n_epoch={EPOCHS}",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.enable_checkpointing=false",
    "--compare=false",
]
HEAD = "--model.rewards.rubric.head.init_args"
ARMS = {
    "static": [f"{HEAD}.weighting=static"],
    "category": [f"{HEAD}.weighting=category"],
    "pow3r": [],
    "diva": [f"{HEAD}.weighting=diva"],
    "dropout": [f"{HEAD}.weighting=static", f"{HEAD}.dropout=0.5"],
}


def run(arm: str, seed: int, folder: Path) -> list[dict[str, float]]:
    """Make one run unless it is finished; return what each of its rollouts logged."""
    arguments = [*COMMON, *ARMS[arm], f"--seed_everything={seed}"]
    arguments += [f"--trainer.default_root_dir={folder}"]
    return figures_of_run(f"{arm} seed {seed}", arguments, folder, lambda it, _: measured(it))


def measured(version: Path) -> list[dict[str, float]]:
    """Return the figures of each rollout; the last one has those of the evaluation too."""
    rows = [
        {name: float(row[name]) for name in ("reward/gold/mean", "overclaim/share")}
        | {name: float(row[f"criterion/{name}"]) for name in POINTS}
        for row in logged_rollouts(version, "reward/gold/mean", 10 * EPOCHS)
    ]
    last = json.loads((version / "evaluation.json").read_text())[-1]["figures"]
    rows[-1] |= {name: last[name]["value"] for name in ("accuracy", "greedy_accuracy")}
    alarms = [event["rollout"] for event in read_events(version) if event["kind"] == "alarm"]
    rows[-1]["alarm"] = min(alarms, default=0)  # 0 = none
    return rows


def static_scores(rows: Sequence[Mapping[str, float]]) -> list[float]:
    """Return each rollout's mean score under the criteria's own weights, in one category."""
    total = sum(POINTS.values())
    return [sum(POINTS[name] * row[name] for name in POINTS) / total for row in rows]


def rollouts_to(level: float, scores: Sequence[float]) -> int:
    """Return the first rollout, from 1, up to which the mean of ``SMOOTH`` reaches a level.

    One more than there are rollouts if none does.
    """
    means = [statistics.fmean(scores[n - SMOOTH : n]) for n in range(SMOOTH, len(scores) + 1)]
    return next((n for n, mean in enumerate(means, SMOOTH) if mean >= level), len(scores) + 1)


def plateau_level(scores: Sequence[float]) -> float:
    """Return the level that counts as the static arm's plateau, of its own scores."""
    start, end = statistics.fmean(scores[:SMOOTH]), statistics.fmean(scores[-LATE:])
    return start + REACHED * (end - start)


def figures_of(rows: Sequence[Mapping[str, float]], level: float) -> dict[str, float]:
    """Return a run's figures; the plateau is the static arm's of the same seed."""
    late = rows[-LATE:]
    return {
        "rollouts to plateau": rollouts_to(level, static_scores(rows)),
        "static score": statistics.fmean(static_scores(late)),
        "larger first": statistics.fmean(row["larger_first"] for row in late),
        "short": statistics.fmean(row["short"] for row in late),
        "gold": statistics.fmean(row["reward/gold/mean"] for row in late),
        "gold at first": statistics.fmean(row["reward/gold/mean"] for row in rows[:SMOOTH]),
        "overclaim": statistics.fmean(row["overclaim/share"] for row in late),
        "greedy accuracy": rows[-1]["greedy_accuracy"],
        "alarm": rows[-1]["alarm"],
    }


def table(out: Path, seeds: Sequence[int]) -> dict[str, dict[str, str]]:
    """Return a row for each arm; makes the runs that are missing, seed by seed."""
    found: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    for seed in seeds:
        runs = {arm: run(arm, seed, out / f"{arm}_{seed}") for arm in ARMS}
        level = plateau_level(static_scores(runs["static"]))
        for arm, rows in runs.items():
            found[arm].append(figures_of(rows, level))
    rows = {}
    for arm, figures in found.items():
        names = [name for name in figures[0] if name != "alarm"]  # a run may have none
        rows[arm] = {name: shown([each[name] for each in figures]) for name in names}
        reached = [round(each["rollouts to plateau"]) for each in figures]
        rows[arm]["each seed's rollouts"] = " ".join(map(str, reached))
        for name in ("gold", "short"):
            rows[arm][f"each seed's {name}"] = " ".join(f"{each[name]:.3f}" for each in figures)
        first = [each["alarm"] for each in figures]
        rows[arm]["each seed's alarm"] = " ".join(
            f"{number:.0f}" if number else "none" for number in first
        )
    return rows


STUDY = ArmStudy(
    "rubric_weights",
    table,
    TUNING_SEEDS,
    JUDGING_SEEDS,
    f"CPU, one thread; {10 * EPOCHS} rollouts, figures of the last {LATE}",
    "runs/rubric_weights",
)

if __name__ == "__main__":
    STUDY.run(STUDY.parser(__doc__).parse_args())
