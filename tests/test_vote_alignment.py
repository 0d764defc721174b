"""The guard's vote alignment over groups with different numbers of answers, worked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from callbacks.symptoms import symptoms
from rlif_lightning.records import Prompts, Rollout, TokenStats

ANSWERS = ["7", "7", None, None, "3", "3", "3", "5"]
ADVANTAGES = [1.0, 1.0, -1.0, -1.0, -1.0, 1.0, 1.0, -1.0]


def rollout_of(rows: int, group_size: int) -> Rollout:
    ones = torch.ones(rows, 2)
    count = rows // group_size
    prompts = Prompts([torch.tensor([1])] * count, [""] * count, {}, torch.arange(count))
    stats, ended = TokenStats(ones, ones, ones), torch.ones(rows, dtype=torch.bool)
    return Rollout(prompts, ones.long(), ones.bool(), stats, ["x"] * rows, ended, group_size)


def test_votes_are_shares_of_the_whole_group():
    """Shares of four: 1/2 1/2 0 0 and 3/4 3/4 3/4 1/4, minus their means 1/4 and 5/8.

    Products with A (whose means are 0): 1/4 each, sum 1; and -1/8 + 1/8 + 1/8 + 3/8 = 1/2. Squares
    of A: 8. Of the votes: 4/16 and 3/64 + 9/64 = 3/16.
    """
    advantages = torch.tensor(ADVANTAGES).unsqueeze(1).expand(8, 2)
    found = symptoms(rollout_of(8, 4), ANSWERS, advantages)["guard/vote_alignment"]
    assert found == pytest.approx(1.5 / math.sqrt(8 * (1 / 4 + 3 / 16)))


@pytest.mark.parametrize("scale", [0.01, 100.0])
def test_a_correlation_does_not_change_with_the_size_of_advantages(scale):
    advantages = torch.tensor(ADVANTAGES).unsqueeze(1).expand(8, 2)
    found, scaled = (
        symptoms(rollout_of(8, 4), ANSWERS, a)["guard/vote_alignment"]
        for a in (advantages, scale * advantages)
    )
    assert scaled == pytest.approx(found)
