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

import argparse
import os
import re
import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks.finished_runs import figures_of_run
from benchmarks.results import FOLDER, write_results
from rlif_lightning.judges.base import Request
from rlif_lightning.running.events import read_events
from rlif_lightning.running.metrics_csv import read_logged

ROOT = Path(__file__).resolve().parent.parent
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
        for row in read_logged(version / "metrics.csv").rows
        if "checker/claims" in row
    ]
    if len(rows) != ROLLOUTS:
        raise ValueError(f"{version} has {len(rows)} rollouts, not {ROLLOUTS}; remove it")
    for event in read_events(version):
        if event["kind"] == "alarm" and event["source"] == "CheckerMonitor":
            rows[-1].setdefault(f"alarm {event['values']['detector']}", event["rollout"])
    return rows


def shown(values: Sequence[float]) -> str:
    """Return a mean, with the standard deviation in brackets where there are several values."""
    spread = f" ({statistics.stdev(values):.3f})" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{spread}"


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


def main() -> None:
    """Make the runs that are missing and write the result file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tune", action="store_true", help="the tuning seed; prints its rows")
    parser.add_argument("--out", type=Path, default=Path("runs/checker"))
    parser.add_argument("--results", type=Path, default=FOLDER, help="(default: docs/results)")
    given = parser.parse_args()
    os.chdir(ROOT)
    out, seeds = given.out.resolve(), TUNING_SEEDS if given.tune else JUDGING_SEEDS
    found: dict[str, list[list[dict[str, float]]]] = {arm: [] for arm in ARMS}
    for seed in seeds:
        for arm, runs in found.items():
            runs.append(run(arm, seed, out / f"{arm.replace(' ', '_')}_{seed}"))
    rows = {arm: row_of(runs) for arm, runs in found.items()}
    if given.tune:
        for arm, row in rows.items():
            print(re.sub(r"[{}']", "", f"{arm}: {row}"))
        return
    notes = {
        "command": "python -m benchmarks.checker",
        "conditions": f"CPU, one thread; {ROLLOUTS} rollouts, figures of the last {LATE}; mean"
        f" (sd) over seeds {', '.join(map(str, seeds))}",
    }
    write_results(given.results / "checker.csv", notes, rows, key="arm")


if __name__ == "__main__":
    main()
