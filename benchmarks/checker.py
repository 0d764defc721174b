"""A checker that is always neutral, a moderate one, and one that supports everything.

    python -m benchmarks.checker            # all judging seeds
    python -m benchmarks.checker --tune     # seed 100

The quickstart's problems and model under ``configs/related/checker.yaml``. Claims are the sums that
a completion writes, and evidence has the sums of the usual way through the problem. Arms differ in
the rule that decides about claims, and one only measures. Runs have one thread and go one after the
other in this process. A run that is finished is not made again. Results go to
``docs/results/checker.csv``.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks.arm_study import ArmStudy, shown
from benchmarks.finished_runs import figures_of_run, logged_rollouts
from benchmarks.results import Rows
from rlif_lightning.judges.base import Request
from rlif_lightning.running.events import read_events

ROLLOUTS, LATE = 24, 6
TUNING_SEEDS, JUDGING_SEEDS = (100,), (0, 1, 2, 3, 4, 5)
COMMON = [
    "--config=configs/quickstart.yaml",
    "--config=configs/related/checker.yaml",
    f"--trainer.limit_train_batches={ROLLOUTS}",
    "--trainer.limit_val_batches=0",
    "--data.prompts_per_rollout=8",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.enable_checkpointing=false",
    "--compare=false",
]
HEAD = "--model.rewards.checker.head.init_args"
RULE = f"{HEAD}.scorer.init_args.judge.init_args.rule=benchmarks.checker"
ARMS = {
    "measured only": [f"{HEAD}.alpha=0"],
    "neutral": [f"{RULE}.always_neutral"],
    "moderate": [],
    "supporting": [f"{RULE}.always_supporting"],
}
FIGURES = {
    "support": "checker/support",
    "neutral": "checker/neutral",
    "claims": "checker/claims",
    "characters": "checker/answer_length",
    "without a sum": "checker/no_search",
    "gold": "reward/gold/mean",
}


def sums_of(prompt: str, completion: str) -> list[str]:
    """Return the sums of the usual way: ``3+4=7`` and ``7+5=12`` for the problem ``3+4+5=``."""
    first, *others = (int(term) for term in prompt.rstrip("=").split("+"))
    passages = []
    for term in others:
        passages.append(f"{first}+{term}={first + term}")
        first += term
    return passages


def always_neutral(request: Request) -> str:
    """Have no opinion of any claim."""
    return "Verdict: neutral\nConfidence: 0.9"


def always_supporting(request: Request) -> str:
    """Support every claim."""
    return "Verdict: entailment\nConfidence: 0.9"


def moderate(request: Request) -> str:
    """Support a sum of the evidence, and contradict one with the same terms and another value."""
    claim, evidence = request.values["claim"], request.values["evidence"].splitlines()
    terms = claim.partition("=")[0]
    word = "neutral"
    if claim in evidence:
        word = "entailment"
    elif any(each.partition("=")[0] == terms for each in evidence):
        word = "contradiction"
    return f"Verdict: {word}\nConfidence: 0.9"


def run(arm: str, seed: int, folder: Path) -> list[dict[str, float]]:
    """Make one run unless it is finished; return what each of its rollouts logged."""
    arguments = [*COMMON, *ARMS[arm], f"--seed_everything={seed}"]
    arguments += [f"--trainer.default_root_dir={folder}"]
    return figures_of_run(f"{arm} seed {seed}", arguments, folder, lambda it, _: measured(it))


def measured(version: Path) -> list[dict[str, float]]:
    """Return the figures of each rollout; the last one has the alarms."""
    rows = [
        {name: float(row.get(column) or "nan") for name, column in FIGURES.items()}
        for row in logged_rollouts(version, "checker/claims", ROLLOUTS)
    ]
    for event in read_events(version):
        if event["kind"] == "alarm" and event["source"] == "CheckerMonitor":
            rows[-1].setdefault(f"alarm {event['values']['detector']}", event["rollout"])
    return rows


def row_of(runs: Sequence[Sequence[dict[str, float]]]) -> dict[str, str]:
    """Return an arm's row: means over the last rollouts, and the first alarm of each seed."""
    row = {}
    for name in FIGURES:
        row[name] = shown([statistics.fmean(each[name] for each in rows[-LATE:]) for rows in runs])
    first = [rows[0]["support"] for rows in runs]
    row["support at first"] = shown(first)
    for name in ("collapsed", "hackable", "shrinking", "skipped_search"):
        alarms = [rows[-1].get(f"alarm {name}") for rows in runs]
        row[f"{name} at"] = " ".join("none" if it is None else f"{it:.0f}" for it in alarms)
    return row


def table(out: Path, seeds: Sequence[int]) -> Rows:
    """Return a row for each arm; makes the runs that are missing, seed by seed."""
    found: dict[str, list[list[dict[str, float]]]] = {arm: [] for arm in ARMS}
    for seed in seeds:
        for arm, runs in found.items():
            runs.append(run(arm, seed, out / f"{arm.replace(' ', '_')}_{seed}"))
    return {arm: row_of(runs) for arm, runs in found.items()}


STUDY = ArmStudy(
    "checker",
    table,
    TUNING_SEEDS,
    JUDGING_SEEDS,
    f"CPU, one thread; {ROLLOUTS} rollouts, figures of the last {LATE}",
    "runs/checker",
)

if __name__ == "__main__":
    STUDY.run(STUDY.parser(__doc__).parse_args())
