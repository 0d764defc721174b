"""Bootstrap intervals: against the normal approximation, the exact binomial bound, and by
coverage.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlif_lightning.evaluation.bootstrap import bootstrap_figures, paired_change, resampled_ratios


def mean_figures(values, share=True, **settings):
    column = np.asarray(values, dtype=float)[:, None]
    return bootstrap_figures(column, np.ones_like(column), np.array([share]), **settings)[0]


def test_interval_of_a_mean_is_the_normal_approximation():
    values = np.random.default_rng(3).normal(5.0, 2.0, size=2000)
    figure = mean_figures(values, share=False, resamples=4000)
    half = 1.959964 * values.std() / math.sqrt(len(values))
    assert figure.value == pytest.approx(values.mean())
    assert figure.low == pytest.approx(values.mean() - half, abs=0.06 * half)
    assert figure.high == pytest.approx(values.mean() + half, abs=0.06 * half)


@pytest.mark.parametrize(
    ("confidence", "quantile"), [(0.68, 0.994458), (0.9, 1.644854), (0.99, 2.575829)]
)
def test_confidence_sets_the_width(confidence, quantile):
    """A share of 0.3 of 4000 problems: the binomial's standard error."""
    figure = mean_figures([1] * 1200 + [0] * 2800, confidence=confidence, resamples=4000)
    expected = quantile * math.sqrt(0.3 * 0.7 / 4000)
    assert (figure.high - figure.low) / 2 == pytest.approx(expected, rel=0.08)


def test_interval_of_a_ratio_is_the_delta_method():
    """Entropy per token: problems with more tokens weigh more, and both sums vary."""
    rng = np.random.default_rng(1)
    tokens = rng.integers(1, 50, size=3000).astype(float)
    totals = tokens * rng.uniform(0.5, 1.5, size=3000)
    figure = bootstrap_figures(totals[:, None], tokens[:, None], np.array([False]), resamples=4000)[
        0
    ]
    ratio = totals.sum() / tokens.sum()
    error = math.sqrt(((totals - ratio * tokens) ** 2).sum()) / tokens.sum()
    assert figure.value == pytest.approx(ratio)
    assert figure.high - figure.low == pytest.approx(2 * 1.959964 * error, rel=0.08)


@pytest.mark.full  # the interval of a mean is the normal approximation: above
def test_about_95_of_100_intervals_hold_the_truth():
    rng = np.random.default_rng(0)
    held = [
        (f := mean_figures(rng.random(80) < 0.4, resamples=200)).low <= 0.4 <= f.high
        for _ in range(400)
    ]
    assert 0.90 <= np.mean(held) <= 0.98


@pytest.mark.parametrize(("number", "bound"), [(30, 0.1157), (100, 0.0362), (1, 0.975)])
def test_all_wrong_and_all_right_get_the_exact_binomial_bound(number, bound):
    """Published Clopper-Pearson bounds of 0 of n at 95 %."""
    wrong, right = mean_figures([0] * number), mean_figures([1] * number)
    assert wrong == pytest.approx((0, 0, bound), abs=1e-4)
    assert right == pytest.approx((1, 1 - bound, 1), abs=1e-4)
    assert mean_figures([0] * number, share=False) == (0, 0, 0)  # a length of 0 is no share


def test_a_share_that_all_problems_have_in_common_is_not_known_exactly():
    """Resampling shows no spread. What N of N problems have in common, all but 1 - 0.025 ** (1 / N)
    of all problems have; the others' shares may be anything.
    """
    reach = 1 - 0.025 ** (1 / 30)
    assert mean_figures([0.5] * 30) == pytest.approx((0.5, 0.5 - 0.5 * reach, 0.5 + 0.5 * reach))
    assert mean_figures([0.375]) == pytest.approx((0.375, 0.375 * 0.025, 1 - 0.625 * 0.025))
    ones = np.ones((30, 1))
    pairs = np.array([[0.5], [0.5], [0.0]]), np.array([[1.0], [1.0], [0.0]])  # one has no figure
    assert bootstrap_figures(*pairs, np.array([True]))[0].high == pytest.approx(
        0.5 + 0.5 * (1 - 0.025 ** (1 / 2))
    )
    share = np.array([True])
    [same] = paired_change((0 * ones, ones), (0 * ones, ones), share)
    assert same == pytest.approx((0, -reach, reach))
    [gained] = paired_change((0 * ones, ones), (ones, ones), share)
    assert gained == pytest.approx((1, 1 - 2 * reach, 1))
    before = np.linspace(0, 0.5, 30)[:, None]
    [moved] = paired_change((before, ones), (before + 0.25, ones), share)
    assert moved == pytest.approx((0.25, 0.25 - 1.25 * reach, 0.25 + 0.75 * reach))
    lengths = paired_change((3 * ones, ones), (4 * ones, ones), ~share)
    assert lengths == [(1, 1, 1)]  # a length is no share


def test_same_seed_same_interval_and_another_seed_another():
    values = np.arange(50) / 50
    assert mean_figures(values, seed=1) == mean_figures(values, seed=1)
    assert mean_figures(values, seed=1) != mean_figures(values, seed=2)


def test_problems_are_resampled_not_samples():
    """Eight equal samples of a problem say no more than one."""
    ones, zeros = [1] * 20, [0] * 30
    one = mean_figures(ones + zeros)
    eight = np.array([8.0] * 20 + [0.0] * 30)[:, None]
    assert bootstrap_figures(eight, np.full((50, 1), 8.0), np.array([True]))[0] == pytest.approx(
        one
    )


@given(st.lists(st.floats(0, 1), min_size=2, max_size=30), st.integers(0, 5))
def test_intervals_hold_their_figure_or_stay_in_range(values, seed):
    figure = mean_figures(values, resamples=100, seed=seed)
    assert figure.low <= figure.high
    assert len(set(values)) == 1 or min(values) - 1e-12 <= figure.low
    assert figure.low >= -1e-12
    assert figure.high <= 1 + 1e-12


def test_all_figures_of_a_resample_are_of_the_same_problems():
    totals = np.stack([np.arange(9.0), 2 * np.arange(9.0)], 1)
    ratios = resampled_ratios(totals, np.ones_like(totals), 100, 0)
    assert ratios[:, 1] == pytest.approx(2 * ratios[:, 0])
    assert len(set(ratios[:, 0])) > 20


def test_a_change_is_paired():
    """Every problem gains 0.1, however different they are: the change has no spread."""
    before = np.random.default_rng(0).random((40, 1))
    ones = np.ones_like(before)
    moved = paired_change((before, ones), (before + 0.1, ones), np.array([False]))[0]
    assert moved == pytest.approx((0.1, 0.1, 0.1))
    flipped = paired_change((before, ones), (before[::-1], ones), np.array([True]))[0]
    assert flipped.value == pytest.approx(0.0)
    assert flipped.low < -0.05 < 0.05 < flipped.high


def test_a_problem_without_the_figure_widens_no_interval_to_nothing():
    """As the reward of a problem whose episodes all failed; resamples of it alone have none."""
    totals, weights = np.array([[1.0], [3.0], [0.0]]), np.array([[1.0], [1.0], [0.0]])
    assert bootstrap_figures(totals, weights, np.array([False])) == [(2.0, 1.0, 3.0)]
    moved = paired_change((totals, weights), (2 * totals, weights), np.array([False]))
    assert moved == [(2.0, 1.0, 3.0)]
    [none] = bootstrap_figures(0 * totals, 0 * weights, np.array([False]))
    assert all(map(math.isnan, none))
