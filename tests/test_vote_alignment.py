"""The guard's vote alignment over groups with different numbers of answers, worked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from callbacks.symptoms import symptoms
from harness.rollouts import handmade

ANSWERS = ["7", "7", None, None, "3", "3", "3", "5"]
ADVANTAGES = [1.0, 1.0, -1.0, -1.0, -1.0, 1.0, 1.0, -1.0]


def test_votes_are_shares_of_the_whole_group():
    """Shares of four: 1/2 1/2 0 0 and 3/4 3/4 3/4 1/4, minus their means 1/4 and 5/8.

    Products with A (whose means are 0): 1/4 each, sum 1; and -1/8 + 1/8 + 1/8 + 3/8 = 1/2. Squares
    of A: 8. Of the votes: 4/16 and 3/64 + 9/64 = 3/16.
    """
    advantages = torch.tensor(ADVANTAGES).unsqueeze(1).expand(8, 3)
    found = symptoms(handmade(["x"] * 8, 4), ANSWERS, advantages)["guard/vote_alignment"]
    assert found == pytest.approx(1.5 / math.sqrt(8 * (1 / 4 + 3 / 16)))


@pytest.mark.parametrize("scale", [0.01, 100.0])
def test_a_correlation_does_not_change_with_the_size_of_advantages(scale):
    advantages = torch.tensor(ADVANTAGES).unsqueeze(1).expand(8, 3)
    found, scaled = (
        symptoms(handmade(["x"] * 8, 4), ANSWERS, a)["guard/vote_alignment"]
        for a in (advantages, scale * advantages)
    )
    assert scaled == pytest.approx(found)
