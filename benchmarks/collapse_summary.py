"""From the curves of many runs to one table: peak, collapse, what is left at the end, and when the guard spoke. Pure.

Read in this order: ``Run`` (the curves of one run), ``read_run``, ``measure`` (its figures), ``by_arm``,
``markdown_table``. Accuracies are shares, entropies nats; time is counted in rollouts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import pandas as pd

from callbacks.events import read_events

CURVES = {
    "accuracy": "val/accuracy",
    "pass@8": "val/pass@8",
    "agreement": "val/agreement",
    "entropy": "val/entropy",
    "length": "val/length",
}


@dataclass(frozen=True)
class Run:
    """One run of the study.

    Attributes:
        arm: name of its overlay.
        seed: its seed.
        rollouts: rollouts before each evaluation, rising.
        curves: figure -> its value at each evaluation.
        alarms: rollouts at which CollapseGuard raised an alarm.
        rollbacks: rollouts after which it went back.
    """

    arm: str
    seed: int
    rollouts: list[int]
    curves: dict[str, list[float]]
    alarms: list[int] = field(default_factory=list)
    rollbacks: list[int] = field(default_factory=list)


def read_run(folder: Path, arm: str, seed: int) -> Run:
    """Read a finished run's ``metrics.csv`` and ``events.jsonl``.

    Rows of the table are in the order of writing: an evaluation follows as many training rows as there were rollouts.

    Raises:
        ValueError: the run has no evaluation with labels.
    """
    table = pd.read_csv(folder / "metrics.csv")
    if CURVES["accuracy"] not in table:
        raise ValueError(f"{folder} has no val/accuracy: was it evaluated, with data.answer_column set?")
    table["rollout"] = table["policy/entropy"].notna().cumsum()
    evaluated = table[table[CURVES["accuracy"]].notna()].groupby("rollout", as_index=False).last()
    events = [event for event in read_events(folder) if event["source"] == "CollapseGuard"]
    return Run(
        arm,
        seed,
        [int(rollout) for rollout in evaluated["rollout"]],
        {name: [float(value) for value in evaluated[column]] for name, column in CURVES.items()},
        [event["rollout"] for event in events if event["kind"] == "alarm"],
        [event["rollout"] for event in events if event["kind"] == "rollback"],
    )


def first_below(rollouts: Sequence[int], values: Sequence[float], share: float) -> int | None:
    """The first evaluation after the peak at which less than ``share`` of the peak is left; None if there is none.

    The peak is the first largest value of the whole curve.
    """
    peak = max(range(len(values)), key=lambda i: (values[i], -i))
    later = zip(rollouts[peak:], values[peak:], strict=True)
    return next((rollout for rollout, value in later if value < share * values[peak]), None)


def measure(run: Run) -> dict[str, Any]:
    """A run's figures.

    ``collapse``: the first evaluation below half of the peak; ``quarter_lost``: below three quarters; ``lead``:
    rollouts from the guard's first alarm to ``quarter_lost`` (negative: too late; None: no loss, or never an alarm);
    ``missed``: a quarter lost without an alarm before; ``false_alarms``: alarms of a run that never lost a quarter
    (none where the guard went back: it may be why).
    """
    accuracy = run.curves["accuracy"]
    lost = first_below(run.rollouts, accuracy, 0.75)
    first_alarm = min(run.alarms, default=None)
    lead = None if lost is None or first_alarm is None else lost - first_alarm
    final = {f"final_{name}": values[-1] for name, values in run.curves.items()}
    return {
        "arm": run.arm,
        "seed": run.seed,
        "start": accuracy[0],
        "peak": max(accuracy),
        "retention": accuracy[-1] / max(accuracy) if max(accuracy) > 0 else math.nan,
        "collapse": first_below(run.rollouts, accuracy, 0.5),
        "quarter_lost": lost,
        "first_alarm": first_alarm,
        "lead": lead,
        "missed": lost is not None and (lead is None or lead <= 0),
        "false_alarms": len(run.alarms) if lost is None and not run.rollbacks else 0,
        "rollbacks": len(run.rollbacks),
        **final,
    }


AVERAGED = ("start", "peak", "retention", *(f"final_{name}" for name in CURVES))


def by_arm(measured: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Arm -> mean, lowest and highest of each figure over its seeds, and counts of what happened, arms in order."""
    arms: dict[str, dict[str, Any]] = {}
    for arm in dict.fromkeys(row["arm"] for row in measured):
        rows = [row for row in measured if row["arm"] == arm]
        spread = {name: [row[name] for row in rows] for name in AVERAGED}
        arms[arm] = {
            "seeds": [row["seed"] for row in rows],
            **{name: (mean(values), min(values), max(values)) for name, values in spread.items()},
            "collapses": [row["collapse"] for row in rows if row["collapse"] is not None],
            "losses": sum(row["quarter_lost"] is not None for row in rows),
            "leads": [row["lead"] for row in rows if row["lead"] is not None],
            "missed": sum(row["missed"] for row in rows),
            "false_alarms": sum(row["false_alarms"] > 0 for row in rows),
            "rollbacks": sum(row["rollbacks"] for row in rows),
        }
    return arms


def markdown_table(arms: dict[str, dict[str, Any]]) -> str:
    """One line per arm; mean (lowest to highest) over seeds."""
    head = (
        "| arm | seeds | peak | end / peak | collapsed (at rollout) | entropy | length | agreement | pass@8 |"
        " guard: leads / missed / false |\n" + "| --- " * 10 + "|"
    )
    return "\n".join([head, *(_row(arm, figures) for arm, figures in arms.items())]) + "\n"


def _row(arm: str, figures: dict[str, Any]) -> str:
    collapses, seeds = figures["collapses"], len(figures["seeds"])
    told = f"{len(collapses)} of {seeds}" + (f" ({', '.join(map(str, sorted(collapses)))})" if collapses else "")
    leads = ", ".join(f"{lead:+d}" for lead in sorted(figures["leads"])) or "-"
    cells = [
        f"`{arm}`",
        str(seeds),
        _spread(figures["peak"], 100, 1),
        _spread(figures["retention"], 100, 0),
        told,
        _spread(figures["final_entropy"], 1, 3),
        _spread(figures["final_length"], 1, 1),
        _spread(figures["final_agreement"], 100, 0),
        _spread(figures["final_pass@8"], 100, 0),
        f"{leads} / {figures['missed']} of {figures['losses']} / {figures['false_alarms']} of {seeds}",
    ]
    return "| " + " | ".join(cells) + " |"


def _spread(values: tuple[float, float, float], scale: float, digits: int) -> str:
    middle, low, high = (f"{scale * value:.{digits}f}" for value in values)
    return f"{middle} ({low} to {high})"
