"""The best value of a figure, by hand."""

from __future__ import annotations

import math

import pytest

from rlif_lightning.running.best_value import KeepsBest

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("value", "best", "highest", "lowest"),
    [
        (2.0, 1.0, True, False),
        (1.0, 2.0, False, True),
        (1.0, 1.0, False, False),
        (0.0, None, True, True),
        (NAN, None, False, False),
        (NAN, 1.0, False, False),
        (-INF, 1.0, False, True),
    ],
)
def test_what_is_better(value, best, highest, lowest):
    kept = [KeepsBest("val/accuracy", mode) for mode in ("max", "min")]
    for each in kept:
        each.best = best
    assert [each.is_better(value) for each in kept] == [highest, lowest]
