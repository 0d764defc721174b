"""Estimators with other baselines: numbers by hand, and formulas restated number by number."""

from __future__ import annotations

import statistics

import pytest
import torch

from harness.rollouts import handmade
from rlif_lightning.learning.advantages import GRPO, DrGRPO
from rlif_lightning.learning.baselines import OPO, ReinforcePlusPlus
from rlif_lightning.learning.rollout_advantages import score_rollout
from rlif_lightning.records import RewardOutput

ONE = torch.ones(1)
REWARDS = torch.tensor([[[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]]])  # one reward, two groups
LENGTHS = torch.tensor([[2, 1, 1], [1, 3, 4]])


def test_opo_by_hand():
    """Baselines over tokens: 2/4 and 4/8."""
    found = OPO()(REWARDS, ONE, LENGTHS)
    torch.testing.assert_close(found, torch.tensor([[0.5, -0.5, -0.5], [0.5, 0.5, -0.5]]))


def test_opo_with_equal_lengths_is_dr_grpo():
    rewards = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))
    weights = torch.tensor([0.5, 2.0])
    found = OPO()(rewards, weights, torch.full((4, 5), 7))
    torch.testing.assert_close(found, DrGRPO()(rewards, weights), atol=1e-6, rtol=0)


def test_opo_leaves_out_what_does_not_apply():
    rewards = torch.tensor([[[1.0, torch.nan, 0.0]]])
    found = OPO()(rewards, ONE, torch.tensor([[1, 100, 3]]))
    torch.testing.assert_close(found, torch.tensor([[0.75, 0.0, -0.25]]))


def test_opo_needs_lengths():
    with pytest.raises(ValueError, match="OPO needs lengths"):
        OPO()(REWARDS, ONE)


@pytest.mark.parametrize("kind", ["token", "sample"])
def test_reinforce_plus_plus_restated(kind):
    """Minus the group mean, then by mean and spread (n - 1) over tokens or completions."""
    values = [2 / 3, -1 / 3, -1 / 3, 1 / 3, 1 / 3, -2 / 3]
    counts = [2, 1, 1, 1, 3, 4] if kind == "token" else [1] * 6
    everything = [v for v, count in zip(values, counts, strict=True) for _ in range(count)]
    mean, std = statistics.mean(everything), statistics.stdev(everything)
    expected = torch.tensor([(value - mean) / (std + 1e-4) for value in values]).view(2, 3)
    found = ReinforcePlusPlus(kind)(REWARDS, ONE, LENGTHS)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def test_reinforce_plus_plus_of_nothing_is_nothing():
    equal = torch.ones(1, 2, 3)
    assert not ReinforcePlusPlus()(equal, ONE, LENGTHS).any()


def test_grpo_over_the_batch_restated():
    """The group mean stays; the spread is that of all six rewards, 0.5477."""
    std = statistics.stdev([1, 0, 0, 1, 1, 0])
    centered = torch.tensor([[2 / 3, -1 / 3, -1 / 3], [1 / 3, 1 / 3, -2 / 3]])
    found = GRPO("batch")(REWARDS, ONE)
    torch.testing.assert_close(found, centered / (std + 1e-4))


def test_grpo_over_the_batch_sums_first():
    """Two rewards of weight 2 and 1; a completion without any has no part in the spread."""
    nan = torch.nan
    rewards = torch.tensor([[[1.0, 0.0, nan]], [[0.0, nan, nan]]])
    found = GRPO("batch")(rewards, torch.tensor([2.0, 1.0]))
    std = statistics.stdev([2.0, 0.0])
    torch.testing.assert_close(found, torch.tensor([[1.0, -1.0, 0.0]]) / (std + 1e-4))


def test_grpo_without_a_spread_is_dr_grpo_bit_for_bit():
    rewards = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(1))
    weights = torch.tensor([0.5, 2.0])
    assert torch.equal(GRPO("none")(rewards, weights), DrGRPO()(rewards, weights))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GRPO("all"), "normalize='all' is unknown; use one of group, batch, none"),
        (lambda: ReinforcePlusPlus("none"), "batch_norm='none' is unknown; use one of sample"),
        (lambda: ReinforcePlusPlus(eps=-1.0), r"eps=-1\.0 must not be negative"),
        (lambda: ReinforcePlusPlus()(REWARDS, ONE), "needs lengths"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_rollout_computes_an_estimator_s_parts_once():
    """They may cost a collective, and the shares of rewards are measured on the same ones."""
    asked = []

    class Counted(GRPO):
        def parts(self, rewards, weights, lengths=None):
            asked.append(rewards.shape)
            return super().parts(rewards, weights, lengths)

    rollout = handmade(["1", "2", "1", "3"], 2)
    scores = torch.tensor([1.0, 0.0, 1.0, 1.0])
    outputs = {"one": RewardOutput(scores)}
    found, _ = score_rollout(rollout, outputs, Counted("batch"), ONE)
    assert asked == [(1, 2, 2)]
    expected = GRPO("batch")(scores.view(1, 2, 2), ONE).flatten()
    assert torch.equal(found[:, 0], expected)


def test_an_estimator_that_overrides_call_is_refused():
    with pytest.raises(TypeError, match=r"Mine overrides __call__.*override total"):
        type("Mine", (GRPO,), {"__call__": lambda self, *_: None})
