"""KL-Cov's schedules by hand, without a run."""

from __future__ import annotations

import math

import pytest

from callbacks.kl_cov_scheduler import Schedule


@pytest.mark.parametrize(
    ("entropy", "factor"),
    [
        (0.8, 1.0),  # inside the band, ends included
        (1.6, 1.0),
        (1.2, 1.0),
        (0.6, math.exp(0.2 * 0.2 / 0.8)),  # below by a quarter of the low end
        (2.0, math.exp(-0.2 * 0.4 / 1.6)),  # above by a quarter of the high end
        (0.0, math.exp(0.2)),
    ],
)
def test_the_closed_loop_acts_on_the_relative_deviation(entropy, factor):
    loop = Schedule(start=0.5, target=(0.8, 1.6), gain=0.2, bounds=(0.01, 9.0))
    assert loop.value(7, 0.3, entropy) == pytest.approx(0.3 * factor)
    assert loop.value(0, None, None) == 0.5


def test_the_gain_is_a_tenth_if_not_given():
    loop = Schedule(start=0.5, target=(1.0, 1.0), bounds=(0.01, 9.0))
    assert loop.value(7, 0.5, 0.5) == pytest.approx(0.5 * math.exp(0.05))


def test_planned_schedules_by_rollout():
    linear, cosine = (Schedule(0.4, [(4, 0.0)], shape) for shape in ("linear", "cosine"))
    assert [linear.value(n, 9.9, 9.9) for n in (0, 1, 4, 9)] == pytest.approx([0.4, 0.3, 0, 0])
    quarter = 0.4 - 0.4 * 0.5 * (1 - math.sqrt(0.5))
    assert [cosine.value(n, 9.9, 9.9) for n in (0, 1, 2, 9)] == pytest.approx(
        [0.4, quarter, 0.2, 0]
    )
    pieces = Schedule(1.0, [(2, 1.0), (4, 3.0)])
    assert [pieces.value(n, None, None) for n in (0, 2, 3, 9)] == [1.0, 1.0, 2.0, 3.0]
    bends = Schedule(0.0, [(2, 1.0), (6, 3.0)], "cosine")
    assert [bends.value(n, None, None) for n in (0, 1, 2, 4, 6, 7)] == pytest.approx(
        [0.0, 0.5, 1.0, 2.0, 3.0, 3.0]
    )
    assert bends.value(3, None, None) == pytest.approx(1 + 2 * 0.5 * (1 - math.sqrt(0.5)))
    assert Schedule(start=0.7).value(5, 0.1, 0.1) == 0.7
