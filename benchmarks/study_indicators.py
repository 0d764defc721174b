"""Label-free warnings of the collapse study's runs: how early they come, and how often in vain.

``docs/results/study/warnings.csv`` has a line for each run. Its columns are the rollout of each
detector's first alarm or notice by ``CollapseGuard``, and two figures of
https://arxiv.org/abs/2605.19444 at each evaluation. A run of 300 rollouts sees each of its 4,800
problems once. So **[ours]** the figures' visits are the evaluations of the held-out problems, every
30 rollouts. They read completions, and no gold answer.

- ``flip_rate``: the share of problems whose majority is another than at the evaluation before.
- ``majority_ratio``: the largest cluster's share of a problem's completions, as a mean over the
  last five evaluations and over problems.

The limits are those of the paper's code: a flip rate above .3, a windowed ratio above .7.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

from benchmarks.majorities import read
from benchmarks.results import Rows, write_results
from benchmarks.study_arms import CLAIMS
from benchmarks.study_figures import first_loss
from benchmarks.study_rows import COMMAND, FINISHED, Run, order, read_or_empty, versions
from callbacks.events import read_events
from callbacks.majorities import WINDOW
from rlif_lightning.answers.clusters import answer_name
from rlif_lightning.rewards.voting import majorities

LIMITS = {"flip_rate": 0.3, "majority_ratio": 0.7}
WATCHED = tuple(arm for arm in CLAIMS if not arm.endswith("-guard"))  # where no guard acts
EVERY = 30  # rollouts between two evaluations: a shorter lead is none that could be seen


def evaluations(folder: Path) -> dict[int, list[tuple[int, str | None]]]:
    """Return rollouts -> (problem, answer) of each completion of that evaluation of a run."""
    paths = [path for each in versions(folder) for path in each.glob("evaluated/val-*.jsonl")]
    found = {int(path.stem.rsplit("-", 1)[1]): path for path in paths}
    return {
        at: [
            (int(row["index"]), row["answer"])
            for row in read(str(found[at]))
            if row.get("kind", "sample") == "sample"
        ]
        for at in sorted(found)
    }


def name_of(answer: str | None) -> str | None:
    """Return one string for all spellings of an answer."""
    return None if answer is None else answer_name(answer)


def figures(visits: Sequence[Sequence[tuple[int, str | None]]]) -> dict[str, list[float]]:
    """Return both figures at each evaluation; the flip rate of the first is NaN.

    As ``callbacks/majorities.py`` has them for training problems: that no completion has an answer
    is a majority of its own.

    Args:
        visits: for each evaluation the (problem, answer) of its completions, as many of each
            problem.
    """
    series: dict[str, list[float]] = {name: [] for name in LIMITS}
    last: dict[int, str | None] = {}
    ratios: dict[int, list[float]] = {}
    for visit in visits:
        groups: dict[int, list[str | None]] = {}
        for index, answer in visit:
            groups.setdefault(index, []).append(answer)
        now = {index: majorities(group, len(group))[0] for index, group in groups.items()}
        names = {index: name_of(answer) for index, (answer, _) in now.items()}
        for index, (_, votes) in now.items():
            ratios.setdefault(index, []).append(votes / len(groups[index]))
        series["majority_ratio"].append(mean(mean(ratios[i][-WINDOW:]) for i in now))
        back = [index for index in names if index in last]
        flips = sum(names[index] != last[index] for index in back)
        series["flip_rate"].append(flips / len(back) if back else math.nan)
        last |= names
    return series


def first_events(folder: Path) -> dict[str, int]:
    """Return detector -> rollout of its first alarm or notice by CollapseGuard."""
    firsts: dict[str, int] = {}
    for event in (event for each in versions(folder) for event in read_events(each)):
        if event["source"] == "CollapseGuard" and event["kind"] in ("alarm", "notice"):
            firsts.setdefault(event["values"]["detector"], int(event["rollout"]))
    return firsts


def warning_row(folder: Path) -> dict[str, str]:
    """Return the line of a finished run in ``warnings.csv``."""
    visits, firsts = evaluations(folder), first_events(folder)
    series = figures(list(visits.values()))
    return {
        "settings": json.loads((folder / FINISHED).read_text())["settings"],
        "events": " ".join(f"{name}:{firsts[name]}" for name in sorted(firsts)),
        **{
            name: " ".join(
                f"{at}:{value:.4f}"
                for at, value in zip(visits, values, strict=True)
                if not math.isnan(value)
            )
            for name, values in series.items()
        },
    }


def record_warnings(folder: Path, name: str, results: Path) -> None:
    """Put the warnings of a run, ``arm/seed``, in place of what the result files hold of it."""
    path = results / "study" / "warnings.csv"
    rows = read_or_empty(path) | {name: warning_row(folder)}
    notes = {
        "command": f"{COMMAND} --collect",
        "conditions": "detector:rollout of its first alarm or notice; rollouts:value of figures",
    }
    write_results(path, notes, {name: rows[name] for name in sorted(rows, key=order)})


def pairs(text: str) -> list[tuple[str, float]]:
    """Return the parts of a cell such as ``30:0.1 60:0.4``."""
    return [
        (name, float(value)) for name, _, value in (part.partition(":") for part in text.split())
    ]


def first_raised(run: Run, warning: str, rollouts: int) -> float | None:
    """Return the rollout at which a warning was first raised in the first rollouts; None if never.

    Args:
        run: with its line of ``warnings.csv``.
        warning: a detector, a figure of ``LIMITS``, or ``any alarm`` of CollapseGuard.
        rollouts: what came later does not count.
    """
    if warning in LIMITS:
        beyond = [at for at, value in pairs(run.warnings[warning]) if value > LIMITS[warning]]
        at = float(beyond[0]) if beyond else math.inf
    elif warning == "any alarm":
        at = float(run.facts["first alarm"] or math.inf)
    else:
        at = dict(pairs(run.warnings["events"])).get(warning, math.inf)
    return at if at <= rollouts else None


@dataclass(frozen=True)
class Record:
    """What a warning was worth.

    Attributes:
        leads: for each run with a loss, rollouts from the warning to the loss; -inf without one.
        in_vain: runs without a loss that raise it.
        calm: runs without a loss.
    """

    leads: list[float]
    in_vain: int
    calm: int

    @property
    def before(self) -> int:
        """Losses before which it was raised, by a whole interval of evaluations at least."""
        return sum(lead >= EVERY for lead in self.leads)

    @property
    def by(self) -> int:
        """Losses at which it had been raised."""
        return sum(lead >= 0 for lead in self.leads)


def judge(runs: Sequence[Run], warning: str, rollouts: int = 300) -> Record:
    """Hold a warning against the first losses of some runs."""
    leads, in_vain, calm = [], 0, 0
    for run in runs:
        loss, at = first_loss(run, rollouts), first_raised(run, warning, rollouts)
        if loss is None:
            calm, in_vain = calm + 1, in_vain + (at is not None)
        else:
            leads.append(-math.inf if at is None else loss - at)
    return Record(leads, in_vain, calm)


def span(values: Sequence[float]) -> str:
    """Return the median of sorted values with the first and the last, as text."""
    return f"{median(values):.0f} ({values[0]:.0f} to {values[-1]:.0f})"


def indicators_table(runs: Sequence[Run], rollouts: int = 300) -> Rows:
    """Return a line for each warning that some run raised, of the arms in which no guard acts."""
    own = [run for run in runs if run.arm in WATCHED and run.warnings]
    detectors = {name for run in own for name, _ in pairs(run.warnings["events"])}
    lines: Rows = {}
    for warning in (*LIMITS, "any alarm", *sorted(detectors)):
        record = judge(own, warning, rollouts)
        early = sorted(lead for lead in record.leads if lead >= EVERY)
        if own:
            lines[warning] = {
                "before": f"{record.before} of {len(record.leads)}",
                "by the loss": f"{record.by} of {len(record.leads)}",
                "lead": span(early) if early else "-",
                "in vain": f"{record.in_vain} of {record.calm}",
            }
    return lines
