"""Summarise the curves of many runs in one table: peak, collapse, end, and the guard's alarms.

Pure functions. Read in this order: ``Run`` (the curves of one run), ``read_run``, ``measure`` (its
figures), ``by_arm``, ``outcomes``, ``warnings_in_time``. Accuracies are fractions, entropies are in
nats, and time is counted in rollouts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.results import Rows, markdown_table
from callbacks.events import read_events
from callbacks.label_free_stopping import first_stop
from rlif_lightning.running.metrics_csv import read_logged

CURVES = {
    "accuracy": "val/accuracy",
    "pass@8": "val/pass@8",
    "agreement": "val/agreement",
    "entropy": "val/entropy",
    "length": "val/length",
}
ACTED = ("adjust", "rollback")


@dataclass(frozen=True)
class Run:
    """One run of the study.

    Attributes:
        arm: name of its overlay.
        seed: its seed.
        rollouts: rollouts before each evaluation, rising.
        curves: figure -> its value at each evaluation.
        alarms: rollouts at which CollapseGuard raised an alarm.
        actions: rollouts after which it acted: went back, or adjusted a setting.
        stop: rollouts after which LabelFreeStopping, as it is shipped, would have ended the run;
            None = never.
    """

    arm: str
    seed: int
    rollouts: list[int]
    curves: dict[str, list[float]]
    alarms: list[int] = field(default_factory=list)
    actions: list[int] = field(default_factory=list)
    stop: int | None = None


def read_run(folder: Path, arm: str, seed: int) -> Run:
    """Read a finished run's ``metrics.csv`` and ``events.jsonl``.

    Rows of the table are in the order of writing: an evaluation follows as many training rows as
    there were rollouts.

    Raises:
        ValueError: the run has no evaluation with labels.
    """
    logged = read_logged(folder / "metrics.csv")
    if CURVES["accuracy"] not in logged.columns:
        raise ValueError(
            f"{folder} has no val/accuracy: was it evaluated, with data.answer_column set?"
        )
    done, evaluated = 0, {}  # rollouts -> the figures of the last evaluation after so many
    for cells in logged.rows:
        row = {name: cell for name, cell in cells.items() if cell != "nan"}
        done += "policy/entropy" in row
        if CURVES["accuracy"] in row:
            evaluated[done] = evaluated.get(done, dict.fromkeys(logged.columns, "nan")) | row
    events = [event for event in read_events(folder) if event["source"] == "CollapseGuard"]
    stopped = first_stop(folder / "metrics.csv")
    return Run(
        arm,
        seed,
        list(evaluated),
        {
            name: [float(row[column]) for row in evaluated.values()]
            for name, column in CURVES.items()
        },
        [event["rollout"] for event in events if event["kind"] == "alarm"],
        [event["rollout"] for event in events if event["kind"] in ACTED],
        None if stopped is None else stopped[0],
    )


def first_below(rollouts: Sequence[int], values: Sequence[float], share: float) -> int | None:
    """Return the first evaluation after the peak below ``share`` of the peak; None if none is.

    The peak is the first largest value of the whole curve.
    """
    peak = max(range(len(values)), key=lambda i: (values[i], -i))
    later = zip(rollouts[peak:], values[peak:], strict=True)
    return next((rollout for rollout, value in later if value < share * values[peak]), None)


def settled(values: Sequence[float]) -> float:
    """Return the last mean of three evaluations over the largest such mean (or NaN).

    A largest value is a lucky one: of a curve that only wobbles, less than all is left. Means of
    three wobble less.
    """
    means = [mean(values[i : i + 3]) for i in range(max(1, len(values) - 2))]
    return means[-1] / max(means) if max(means) > 0 else math.nan


def measure(run: Run) -> dict[str, Any]:
    """Compute the summary of one run.

    ``collapse``: the first evaluation below half of the peak; ``quarter_lost``: below three
    quarters; ``lead``: rollouts from the guard's first alarm to ``quarter_lost`` (negative: too
    late; None: no loss, or never an alarm); ``missed``: a quarter lost without an alarm before;
    ``false_alarms``: alarms of a run that never lost a quarter (none where the guard acted: it may
    be why); ``kept_at_stop``: share of the peak at the last evaluation before LabelFreeStopping
    would have ended the run (None: it would not).
    """
    accuracy = run.curves["accuracy"]
    lost = first_below(run.rollouts, accuracy, 0.75)
    first_alarm = min(run.alarms, default=None)
    lead = None if lost is None or first_alarm is None else lost - first_alarm
    stop = -1 if run.stop is None else run.stop
    seen = [share for rollout, share in zip(run.rollouts, accuracy, strict=True) if rollout <= stop]
    final = {f"final_{name}": values[-1] for name, values in run.curves.items()}
    return {
        "arm": run.arm,
        "seed": run.seed,
        "start": accuracy[0],
        "peak": max(accuracy),
        "retention": accuracy[-1] / max(accuracy) if max(accuracy) > 0 else math.nan,
        "settled": settled(accuracy),
        "collapse": first_below(run.rollouts, accuracy, 0.5),
        "quarter_lost": lost,
        "first_alarm": first_alarm,
        "lead": lead,
        "missed": lost is not None and (lead is None or lead <= 0),
        "false_alarms": len(run.alarms) if lost is None and not run.actions else 0,
        "actions": len(run.actions),
        "stop": run.stop,
        "kept_at_stop": seen[-1] / max(accuracy) if seen and max(accuracy) > 0 else None,
        **final,
    }


AVERAGED = ("start", "peak", "retention", "settled", *(f"final_{name}" for name in CURVES))


def by_arm(measured: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return, by arm, each figure's mean and extremes over seeds, and counts of events."""
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
            "actions": sum(row["actions"] for row in rows),
            "stops": [row["stop"] for row in rows if row["stop"] is not None],
            "kept_at_stop": [
                row["kept_at_stop"] for row in rows if row["kept_at_stop"] is not None
            ],
        }
    return arms


OUTCOME = (
    "seeds",
    "peak",
    "end",
    "end / peak",
    "means of 3",
    "collapsed",
    "entropy",
    "length",
    "agreement",
    "pass@8",
)
WATCH = (
    "seeds",
    "lost a quarter",
    "guard's lead, rollouts",
    "missed",
    "false alarms",
    "actions",
    "label-free stop at",
    "% of peak kept there",
)


def outcomes(arms: dict[str, dict[str, Any]]) -> Rows:
    """Return what became of each arm: mean (lowest to highest) over seeds, accuracies in per cent.

    ``means of 3`` is ``end / peak`` with both taken from means of three evaluations; ``collapsed``
    counts the seeds whose accuracy fell below half of its peak, and names the rollouts.
    """
    return {
        arm: dict(zip(OUTCOME, _outcome(figures), strict=True)) for arm, figures in arms.items()
    }


def warnings_in_time(arms: dict[str, dict[str, Any]]) -> Rows:
    """Return CollapseGuard's warnings, and where LabelFreeStopping would have ended each run."""
    return {arm: dict(zip(WATCH, _watch(figures), strict=True)) for arm, figures in arms.items()}


def table_of(rows: Rows) -> str:
    """Return a Markdown table with one line for each arm."""
    head = ["arm", *next(iter(rows.values()))]
    return markdown_table(head, [[f"`{arm}`", *cells.values()] for arm, cells in rows.items()])


def _outcome(figures: dict[str, Any]) -> list[str]:
    collapses, seeds = figures["collapses"], len(figures["seeds"])
    return [
        str(seeds),
        _spread(figures["peak"], 100, 1),
        _spread(figures["final_accuracy"], 100, 1),
        _spread(figures["retention"], 100, 0),
        _spread(figures["settled"], 100, 0),
        f"{len(collapses)} of {seeds}"
        + (f" ({', '.join(map(str, sorted(collapses)))})" if collapses else ""),
        _spread(figures["final_entropy"], 1, 3),
        _spread(figures["final_length"], 1, 1),
        _spread(figures["final_agreement"], 100, 0),
        _spread(figures["final_pass@8"], 100, 0),
    ]


def _watch(figures: dict[str, Any]) -> list[str]:
    return [
        str(len(figures["seeds"])),
        str(figures["losses"]),
        ", ".join(f"{lead:+d}" for lead in sorted(figures["leads"])) or "-",
        str(figures["missed"]),
        str(figures["false_alarms"]),
        str(figures["actions"]),
        ", ".join(map(str, figures["stops"])) or "never",
        ", ".join(f"{100 * share:.0f}" for share in figures["kept_at_stop"]) or "-",
    ]


def _spread(values: tuple[float, float, float], scale: float, digits: int) -> str:
    middle, low, high = (f"{scale * value:.{digits}f}" for value in values)
    return f"{middle} ({low} to {high})"
