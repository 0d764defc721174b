"""The collapse study's figures of a run and of an arm. Pure functions.

A run is judged by means of three successive evaluations: a single largest value is a lucky one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist, correlation, mean

import numpy as np

from benchmarks.study_rows import Run

LOST = 0.75  # a run that ends below this share of its peak has fallen
DRAWS = 20_000
# Student's 97.5 % quantiles for 2, 3, ... values (1 and more degrees of freedom).
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179)


def means_of_three(values: Sequence[float]) -> list[float]:
    """Return the means of three successive values; of fewer, their mean."""
    return [mean(values[i : i + 3]) for i in range(max(1, len(values) - 2))]


def up_to(run: Run, rollouts: int) -> list[float]:
    """Return the accuracies of the evaluations in the first rollouts."""
    return [value for at, value in zip(run.rollouts, run.accuracy, strict=True) if at <= rollouts]


def end(run: Run, rollouts: int) -> float:
    """Return the mean of the last three evaluations in the first rollouts."""
    return means_of_three(up_to(run, rollouts))[-1]


def peak(run: Run, rollouts: int) -> float:
    """Return the largest mean of three successive evaluations in the first rollouts."""
    return max(means_of_three(up_to(run, rollouts)))


def has_fallen(run: Run, rollouts: int) -> bool:
    """Whether the run ends below three quarters of its peak, or of its start."""
    best = max(peak(run, rollouts), run.accuracy[0])
    return end(run, rollouts) < LOST * best


def first_loss(run: Run, rollouts: int) -> int | None:
    """Return the first evaluation below three quarters of the best before; None if none is."""
    best = 0.0
    for at, value in zip(run.rollouts, up_to(run, rollouts), strict=False):
        best = max(best, value)
        if value < LOST * best:
            return at
    return None


def at_summed_rate(run: Run, summed: float) -> float:
    """Return the accuracy at a summed learning rate, between evaluations on a straight line.

    NaN where the run ends before.
    """
    if run.rates[-1] < summed - 1e-9:
        return math.nan
    return float(np.interp(summed, run.rates, run.accuracy))


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of a mean over seeds, widened for few seeds.

    The percentiles are those of Hesterberg's expanded percentile interval
    (https://arxiv.org/abs/1411.5279, section 4.2): a plain percentile interval of six values is too
    narrow by the factor sqrt(5 / 6) and by normal instead of Student quantiles. One value has no
    interval: (-inf, inf).
    """
    number = len(values)
    if number < 2:
        return -math.inf, math.inf
    quantile = STUDENT[min(number - 2, len(STUDENT) - 1)]
    tail = NormalDist().cdf(-math.sqrt(number / (number - 1)) * quantile)
    draws = np.random.default_rng(0).integers(number, size=(DRAWS, number))
    low, high = np.quantile(np.asarray(values)[draws].mean(1), [tail, 1 - tail])
    return float(low), float(high)


def spread(values: Sequence[float]) -> float:
    """Return the standard deviation over seeds (denominator n - 1); NaN of one value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def ranks(values: Sequence[float]) -> list[float]:
    """Return the rank of each value from 1; equal values share the mean of theirs.

    Example:
        >>> ranks([0.2, 0.9, 0.2, 0.5])
        [1.5, 4.0, 1.5, 3.0]
    """
    return [
        sum(other < value for other in values) + (sum(other == value for other in values) + 1) / 2
        for value in values
    ]


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Return Spearman's rank correlation; NaN where one of both does not vary."""
    if len(set(x)) < 2 or len(set(y)) < 2:
        return math.nan
    return correlation(ranks(x), ranks(y))
