"""Leave-one-out GDPO: by hand, restated number by number, and what it has to do with GDPO."""

from __future__ import annotations

import math
import statistics

import pytest
import torch

from rlif_lightning.learning.advantages import GDPO, RLOO
from rlif_lightning.learning.normalization import (
    group_normalize,
    leave_one_out,
    leave_one_out_normalize,
)

NAN = math.nan


def restated(group: list[float], eps: float = 0.0) -> list[float]:
    """Each score by the mean and deviation of a list of the others, as RLOO's paper writes it."""
    scores = []
    for number, own in enumerate(group):
        others = [it for j, it in enumerate(group) if j != number and not math.isnan(it)]
        if math.isnan(own) or not others:
            scores.append(0.0)
            continue
        spread = statistics.stdev(others) if len(others) > 1 else 0.0
        spread = spread if spread > 1e-6 else statistics.stdev([own, *others])
        difference = own - statistics.fmean(others)
        scores.append(difference / (spread + eps) if spread > 1e-6 else 0.0)
    return scores


def by_others(*group: float, eps: float = 0.0) -> torch.Tensor:
    return leave_one_out_normalize(torch.tensor(group), eps)


def test_by_hand():
    """4 against 1, 0, 1: mean 2/3, deviation 1/sqrt(3). 0 against 4, 1, 1: mean 2, sqrt(3)."""
    expected = torch.tensor([10 / math.sqrt(3), -2 / 3 / math.sqrt(13 / 3), -2 / math.sqrt(3)])
    torch.testing.assert_close(by_others(4, 1, 0, 1)[:3], expected.double())


def test_one_against_equal_others_is_divided_by_the_deviation_of_the_group():
    """Four equal others and one: sqrt(5), whatever the unit. The others have one unlike them."""
    for unit in (1.0, 1000.0, 0.35):
        found = by_others(unit, 0, 0, 0, 0)
        torch.testing.assert_close(found[0], torch.tensor(5.0).double().sqrt(), rtol=1e-6, atol=0)
        torch.testing.assert_close(found[1:], torch.full((4,), -0.5).double())


def test_equal_others_of_a_value_without_an_exact_float_are_equal():
    """Sums of squares would leave a deviation of 1e-5 among seven times 1234.1."""
    found = by_others(*[1234.1] * 7, 1235.1)
    torch.testing.assert_close(found[-1], torch.tensor(8.0).double().sqrt(), rtol=1e-3, atol=0)


@pytest.mark.parametrize("group", [[2.0, 5.0], [2.0, NAN, 5.0, NAN]])
def test_two_that_count_are_as_far_apart_as_two_can_be(group):
    found = by_others(*group)
    assert found[~found.eq(0)].tolist() == pytest.approx([-math.sqrt(2), math.sqrt(2)])


@pytest.mark.parametrize("group", [[3.0], [3.0, NAN], [0.1] * 6, [NAN, NAN]])
def test_nothing_to_compare_is_exactly_zero(group):
    assert not by_others(*group).any()


@pytest.mark.parametrize("seed", range(5))
def test_restated(seed):
    """Ties, completions without a score, and weights; then normalised over the batch."""
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.randint(0, 4, (2, 3, 6), generator=generator) * 0.7
    rewards[torch.rand(2, 3, 6, generator=generator) < 0.2] = NAN
    weights = torch.tensor([0.5, 2.0])
    parts = [[restated(group.tolist(), 1e-4) for group in reward] for reward in rewards]
    expected = 0.5 * torch.tensor(parts[0]) + 2 * torch.tensor(parts[1])
    found = GDPO(leave_one_out=True)(rewards, weights)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    everything = expected.flatten().tolist()
    mean, std = statistics.fmean(everything), statistics.stdev(everything)
    whole = GDPO("sample", leave_one_out=True)(rewards, weights)
    torch.testing.assert_close(whole, (expected - mean) / (std + 1e-4), rtol=1e-4, atol=1e-5)


def test_it_stretches_the_score_in_the_group():
    """a = z K / (K-1) sqrt((K-2) / (K-1 - z² K/(K-1))): the outer the more, and in the same order.

    K / (K-1) alone, RLOO's mean under the group's deviation, would be one factor for all.
    """
    rewards = torch.randn(50, 6, generator=torch.Generator().manual_seed(1))
    z, found = group_normalize(rewards, eps=0.0), leave_one_out_normalize(rewards, 0.0)
    expected = z * 6 / 5 * (4 / (5 - z.square() * 6 / 5)).sqrt()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    assert torch.equal(found.argsort(-1), z.argsort(-1))
    factor = leave_one_out(rewards) / (rewards.double().std(-1, keepdim=True))
    torch.testing.assert_close(factor, z * 6 / 5, rtol=1e-5, atol=1e-7)


def test_in_a_large_group_it_is_gdpo():
    rewards = torch.rand(1, 2, 600, generator=torch.Generator().manual_seed(2))
    one = torch.ones(1)
    found, expected = GDPO(leave_one_out=True)(rewards, one), GDPO()(rewards, one)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.01)
    assert not torch.equal(found, expected)


def test_its_numerator_is_rloo():
    rewards = torch.randn(1, 4, 5, generator=torch.Generator().manual_seed(3))
    deviation = torch.stack(
        [rewards[..., [j for j in range(5) if j != g]].std(-1) for g in range(5)], -1
    )
    found = GDPO(eps=0.0, leave_one_out=True)(rewards, torch.ones(1)) * deviation[0]
    torch.testing.assert_close(found, RLOO()(rewards, torch.ones(1)), rtol=1e-5, atol=1e-6)
