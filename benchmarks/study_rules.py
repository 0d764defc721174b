"""The rules by which a prediction of the collapse study is judged. Pure functions.

- ``Falls``: the count of seeds that end below three quarters of their peak. It held if the count is
  in the predicted range, and failed otherwise.
- ``Gap``: the mean difference of two arms over seeds, in points. It held if the whole 95 % interval
  over seeds is in the predicted range, failed if the whole interval is outside, and is undecided
  otherwise.
- ``Alarms``: the count of seeds with an alarm, or with an alarm before the loss.
- ``Warns``: the count of losses that a warning leads, or of runs without a loss that raise it.
- ``Ranks``: how well the majority's accuracy at the start ranks the ends of several arms.
- ``Spread``: the standard deviation of the peak over seeds.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import mean
from typing import Literal

from benchmarks.study_arms import CURVE, JUDGING
from benchmarks.study_figures import (
    at_summed_rate,
    end,
    first_loss,
    has_fallen,
    interval,
    peak,
    spearman,
)
from benchmarks.study_figures import spread as spread_of
from benchmarks.study_indicators import WATCHED
from benchmarks.study_indicators import judge as judge_warning
from benchmarks.study_rows import Run

Runs = Mapping[tuple[str, int], Run]  # (arm, seed) -> run
Verdict = tuple[str, str]  # the number, and held | failed | undecided
HELD: dict[bool, str] = {True: "held", False: "failed"}


@dataclass(frozen=True)
class Rule(ABC):
    """What all rules name: an arm, after how many rollouts it is judged, and on which seeds."""

    arm: str
    rollouts: int = field(default=300, kw_only=True)
    seeds: tuple[int, ...] = field(default=JUDGING, kw_only=True)

    @property
    def arms(self) -> tuple[str, ...]:
        """The arms whose runs are needed."""
        return (self.arm,)

    @abstractmethod
    def judge(self, runs: Runs) -> Verdict:
        """Return what was found, and the verdict."""


@dataclass(frozen=True)
class Falls(Rule):
    """So many seeds of an arm fall."""

    least: int
    most: int

    def judge(self, runs: Runs) -> Verdict:
        """Count the seeds that fell."""
        own = [runs[self.arm, seed] for seed in self.seeds]
        count = sum(has_fallen(run, self.rollouts) for run in own)
        return f"{count} of {len(own)} fell", HELD[self.least <= count <= self.most]


@dataclass(frozen=True)
class Gap(Rule):
    """One arm's accuracy minus another's lies in a range of points.

    It is taken at the end of so many rollouts, or at a summed learning rate.
    """

    other: str
    low: float
    high: float
    summed: float | None = field(default=None, kw_only=True)

    @property
    def arms(self) -> tuple[str, ...]:
        return (self.arm, self.other)

    def judge(self, runs: Runs) -> Verdict:
        """Take the difference of each seed, and the interval of its mean."""

        def value(arm: str, seed: int) -> float:
            run = runs[arm, seed]
            if self.summed is None:
                return 100 * end(run, self.rollouts)
            return 100 * at_summed_rate(run, self.summed)

        gaps = [value(self.arm, seed) - value(self.other, seed) for seed in self.seeds]
        if any(map(math.isnan, gaps)):
            return "a run ended before that sum", "undecided"
        low, high = interval(gaps)
        number = f"{mean(gaps):+.1f} ({low:+.1f} to {high:+.1f})"
        if self.low <= low and high <= self.high:
            return number, "held"
        return number, "failed" if high < self.low or low > self.high else "undecided"


@dataclass(frozen=True)
class Alarms(Rule):
    """At least so many seeds of an arm raise an alarm; or raise one before they lose a quarter."""

    least: int
    kind: Literal["any", "before loss"]

    def judge(self, runs: Runs) -> Verdict:
        """Count the seeds with such an alarm."""
        own = [runs[self.arm, seed] for seed in self.seeds]
        firsts = [float(run.facts["first alarm"] or math.inf) for run in own]
        if self.kind == "any":
            count, of = sum(first <= self.rollouts for first in firsts), len(own)
            return f"{count} of {of} raised an alarm", HELD[count >= self.least]
        losses = [first_loss(run, self.rollouts) for run in own]
        pairs = [(f, at) for f, at in zip(firsts, losses, strict=True) if at is not None]
        count = sum(first < at for first, at in pairs)
        leads = ", ".join(f"{at - first:+.0f}" for first, at in pairs if first < at)
        number = f"{count} of {len(pairs)} losses had one before; lead {leads or '-'}"
        return number, HELD[count >= min(self.least, len(pairs))]


@dataclass(frozen=True)
class Warns(Rule):
    """A warning leads so many losses, or is raised in so many runs without one.

    ``arm`` is its name. The runs are those of all arms of the claim in which no guard acts.
    """

    least: int
    most: int
    kind: Literal["before", "by the loss", "in vain"]

    @property
    def arms(self) -> tuple[str, ...]:
        return WATCHED

    def judge(self, runs: Runs) -> Verdict:
        """Count the losses, or the runs without one."""
        own = [runs[arm, seed] for arm in self.arms for seed in self.seeds]
        if not all(run.warnings for run in own):
            return "a run's warnings are not collected", "undecided"
        record = judge_warning(own, self.arm, self.rollouts)
        if self.kind == "in vain":
            count, of = record.in_vain, f"{record.calm} runs without a loss"
        else:
            count = record.before if self.kind == "before" else record.by
            of = f"{len(record.leads)} losses"
        return f"{count} of {of}", HELD[self.least <= count <= self.most]


@dataclass(frozen=True)
class Ranks(Rule):
    """Spearman's correlation of start and end over the points of the curve is at least so much.

    The start is the accuracy of the majority at the first evaluation, the end the mean of the last
    three accuracies, both as means over seeds. ``arm`` names the curve.
    """

    least: float

    @property
    def arms(self) -> tuple[str, ...]:
        return CURVE

    def judge(self, runs: Runs) -> Verdict:
        """Correlate the means over seeds."""
        own = [[runs[arm, seed] for seed in self.seeds] for arm in self.arms]
        starts = [mean(run.curves["majority"][0] for run in each) for each in own]
        value = spearman(starts, [mean(end(run, self.rollouts) for run in each) for each in own])
        if math.isnan(value):
            return "all starts, or all ends, are equal", "undecided"
        return f"{value:.2f} over {len(own)} points", HELD[value >= self.least]


@dataclass(frozen=True)
class Spread(Rule):
    """The standard deviation of an arm's peak over seeds is at least so many points."""

    least: float

    def judge(self, runs: Runs) -> Verdict:
        """Measure the peaks."""
        value = spread_of([100 * peak(runs[self.arm, seed], self.rollouts) for seed in self.seeds])
        return f"{value:.1f} points", HELD[value >= self.least]


def rule_text(rule: Rule) -> str:
    """Return what would have to be seen, in words."""
    if isinstance(rule, Falls):
        where = f" in {rule.rollouts} rollouts" if rule.rollouts != 300 else ""
        return f"{rule.arm}: {rule.least} to {rule.most} of {len(rule.seeds)} seeds fall{where}"
    if isinstance(rule, Gap):
        low, high = (
            f"{each:+.0f}" if math.isfinite(each) else "" for each in (rule.low, rule.high)
        )
        bounds = (
            f"in {low} to {high}" if low and high else f"above {low}" if low else f"below {high}"
        )
        where = f" at summed rate {rule.summed:g}" if rule.summed else ""
        return f"{rule.arm} minus {rule.other}: {bounds} points{where}"
    if isinstance(rule, Alarms):
        return f"{rule.arm}: {rule.least} of {len(rule.seeds)} seeds ({rule.kind})"
    if isinstance(rule, Ranks):
        return f"{rule.arm}: Spearman's correlation of start and end is at least {rule.least:g}"
    if isinstance(rule, Warns):
        return f"{rule.arm}, {rule.kind}: {rule.least} to {rule.most}"
    assert isinstance(rule, Spread)
    return f"{rule.arm}: the peak's standard deviation is at least {rule.least:g} points"
