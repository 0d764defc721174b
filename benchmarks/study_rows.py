"""The collapse study's result files: what a run's folder becomes, and how it is read again.

``docs/results/study/<arm>.csv`` has a line for each evaluation of each seed, and
``docs/results/study/runs.csv`` a line for each run. Accuracies are fractions, entropies are in
nats, and a summed learning rate counts rollouts of four updates at 5e-4.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.majorities import OUTCOMES, compared, majorities, read
from benchmarks.results import FOLDER, Rows, read_results, write_results
from benchmarks.study_arms import ARMS, HOT, UPDATES
from callbacks.events import read_events
from rlif_lightning.running.metrics_csv import read_logged

COMMAND = "python -m benchmarks.collapse_study"
FINISHED = "finished.json"  # seconds, settings and commit of a finished run
FIGURES = {  # column -> figure of the evaluation
    "accuracy": "accuracy",
    "majority": "maj@8",
    "pass@8": "pass@8",
    "agreement": "agreement",
    "entropy": "entropy",
    "length": "length",
}


@dataclass(frozen=True)
class Run:
    """One run of the study, as the result files hold it.

    Attributes:
        arm: its name.
        seed: its seed.
        rollouts: rollouts before each evaluation, rising.
        rates: summed learning rate before each evaluation.
        curves: figure -> its value at each evaluation.
        facts: its line of ``runs.csv``.
        warnings: its line of ``warnings.csv`` (``benchmarks/study_indicators.py``), if it has one.
    """

    arm: str
    seed: int
    rollouts: list[int]
    rates: list[float]
    curves: dict[str, list[float]]
    facts: dict[str, str]
    warnings: dict[str, str] = field(default_factory=dict)

    @property
    def accuracy(self) -> list[float]:
        return self.curves["accuracy"]


def versions(folder: Path) -> list[Path]:
    """Return the folders of a run and of what resumed it, in the order of writing."""
    return sorted(folder.glob("version_*"), key=lambda path: int(path.name.split("_")[1]))


def rate_steps(folder: Path) -> list[tuple[int, float]]:
    """Return the learning rates of a run as factors of its first: [rollout, factor] steps.

    Raises:
        ValueError: no learning rate was logged.
    """
    name, rates = "policy/learning_rate", {}
    for version in versions(folder):
        rows = read_logged(version / "metrics.csv").rows
        rates |= {int(row["step"]): float(row[name]) for row in rows if name in row}
    if not rates:
        raise ValueError(f"{folder} has no {name}: was it run by {COMMAND}?")
    first, steps = rates[min(rates)], [(0, 1.0)]
    for rollout in sorted(rates):
        factor = float(f"{rates[rollout] / first:.6g}")  # logged rates have 32 bits
        if factor != steps[-1][1]:
            steps.append((rollout, factor))
    return steps


def summed_rate(steps: Sequence[tuple[int, float]], rollouts: int) -> float:
    """Return the sum of the factors over the first rollouts.

    Example:
        >>> summed_rate([(0, 1.0), (12, 0.5), (20, 0.25)], 30)
        18.5
    """
    ends = [begin for begin, _ in steps[1:]] + [rollouts]
    pairs = zip(steps, ends, strict=True)
    return sum(factor * max(0, min(end, rollouts) - begin) for (begin, factor), end in pairs)


def problem_counts(folder: Path) -> dict[str, int]:
    """Count held-out problems by what became of their majorities from the start to the end."""
    paths = [path for each in versions(folder) for path in each.glob("evaluated/val-*.jsonl")]
    files = sorted(paths, key=lambda path: path.name)
    start, end = (majorities(read(str(file))) for file in (files[0], files[-1]))
    counts = Counter(row["outcome"] for row in compared(start, end))
    return {name: counts[name] for name in OUTCOMES}


def curve_rows(folder: Path, arm: str, seed: int) -> Rows:
    """Return the lines of a run in its arm's file; a later version's evaluation replaces others."""
    steps, unit = rate_steps(folder), ARMS[arm].rate / HOT * ARMS[arm].updates / UPDATES
    found = {}
    for version in versions(folder):
        if (file := version / "evaluation.json").exists():
            entries = json.loads(file.read_text())
            found |= {each["rollouts"]: each["figures"] for each in entries}
    return {
        f"{seed}/{rollouts}": {
            "summed rate": f"{unit * summed_rate(steps, rollouts):.6g}",
            **{name: f"{found[rollouts][key]['value']:.4f}" for name, key in FIGURES.items()},
        }
        for rollouts in sorted(found)
    }


def run_row(folder: Path, arm: str) -> dict[str, str]:
    """Return the line of a finished run in ``runs.csv``."""
    done = json.loads((folder / FINISHED).read_text())
    events = [event for version in versions(folder) for event in read_events(version)]
    guard = [event for event in events if event["source"] == "CollapseGuard"]
    alarms = [event["rollout"] for event in guard if event["kind"] == "alarm"]
    steps = rate_steps(folder)
    logged = read_logged(versions(folder)[-1] / "metrics.csv").rows
    last = max(int(row["step"]) for row in logged if "policy/learning_rate" in row)
    return {
        "rollouts": str(last + 1),
        "ended by": "guard" if any(event["kind"] == "stop" for event in guard) else "plan",
        "rates": " ".join(f"{rollout}:{factor:g}" for rollout, factor in steps),
        "first alarm": str(min(alarms, default="")),
        "alarms": str(len(alarms)),
        "actions": str(sum(event["kind"] == "adjust" for event in guard)),
        **{name: str(count) for name, count in problem_counts(folder).items()},
        "seconds": f"{done['seconds']:.0f}",
        "settings": done["settings"],
        "commit": done["commit"],
    }


def read_or_empty(path: Path) -> Rows:
    """Read a result file; one that does not exist has no rows."""
    return read_results(path) if path.exists() else {}


def order(name: str) -> tuple[str, int, int]:
    """Return the sorting key of a line: ``arm/seed`` or ``seed/rollouts``."""
    first, second = name.split("/")
    return ("", int(first), int(second)) if first.isdigit() else (first, int(second), 0)


def record(folder: Path, arm: str, seed: int, results: Path) -> None:
    """Put a finished run into the result files, in place of what they hold of it.

    Args:
        folder: the run's.
        arm: its name.
        seed: its seed.
        results: folder of the result files.
    """
    path = results / "study" / f"{arm}.csv"
    kept = {at: row for at, row in read_or_empty(path).items() if order(at)[1] != seed}
    rows = kept | curve_rows(folder, arm, seed)
    conditions = "one CPU thread; key: seed/rollouts; 128 held-out problems x 8 samples"
    notes = {"command": f"{COMMAND} --arms {arm}", "conditions": conditions}
    write_results(path, notes, {name: rows[name] for name in sorted(rows, key=order)}, key="at")
    path = results / "study" / "runs.csv"
    rows = read_or_empty(path) | {f"{arm}/{seed}": run_row(folder, arm)}
    write_results(
        path, {"command": COMMAND}, {name: rows[name] for name in sorted(rows, key=order)}
    )


def read_runs(results: Path = FOLDER, arms: Iterable[str] = ARMS) -> list[Run]:
    """Read the runs of some arms, but for those that were made with other settings.

    Args:
        results: folder of the result files.
        arms: names.

    Returns:
        The runs, by arm and seed.
    """
    table, runs = read_or_empty(results / "study" / "runs.csv"), []
    warned = read_or_empty(results / "study" / "warnings.csv")
    for arm in arms:
        rows = read_or_empty(results / "study" / f"{arm}.csv")
        for seed in dict.fromkeys(order(at)[1] for at in rows):
            facts = table[f"{arm}/{seed}"]
            if facts["settings"] != ARMS[arm].digest:
                continue
            own = {order(at)[2]: row for at, row in rows.items() if order(at)[1] == seed}
            curves = {name: [float(row[name]) for row in own.values()] for name in FIGURES}
            rates = [float(row["summed rate"]) for row in own.values()]
            line = warned.get(f"{arm}/{seed}", {})
            kept = line if line.get("settings") == facts["settings"] else {}
            runs.append(Run(arm, seed, list(own), rates, curves, facts, kept))
    return runs
