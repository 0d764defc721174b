"""Advantages against the scalar restatement, and the invariants every estimator keeps."""

from __future__ import annotations

import math

import pytest
import restatement
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.rollouts import handmade
from rlif_lightning.learning.advantages import (
    GDPO,
    GRPO,
    RLOO,
    DrGRPO,
    gdpo,
    reward_shares,
)
from rlif_lightning.learning.baselines import OPO, ReinforcePlusPlus
from rlif_lightning.learning.normalization import center, group_normalize
from rlif_lightning.learning.rollout_advantages import score_rollout
from rlif_lightning.records import RewardOutput

ESTIMATORS = [GDPO(), GDPO("sample"), GDPO("token"), GRPO(), DrGRPO(), RLOO()]
GROUP_ESTIMATORS = [GDPO(), GRPO(), DrGRPO(), RLOO()]
GOLDEN = torch.tensor([[[1.0, 0.0, 1.0, 0.0]], [[0.0, 0.0, 3.0, 1.0]]])
HALVES = torch.tensor([0.5, 0.5])


@st.composite
def reward_blocks(draw, with_nan: bool = True):
    """Rewards ``[R, P, G]`` in quarters (no spread falls near the floor), weights ``[R]``, lengths
    ``[P, G]``.
    """
    num_rewards, num_prompts, size = (
        draw(st.integers(1, 3)),
        draw(st.integers(1, 4)),
        draw(st.integers(1, 6)),
    )
    value = st.integers(-16, 16).map(lambda quarter: quarter / 4)
    if with_nan:
        value = st.one_of(value, value, value, st.just(math.nan))
    count = num_rewards * num_prompts * size
    rewards = torch.tensor(
        draw(st.lists(value, min_size=count, max_size=count)), dtype=torch.float64
    )
    weights = draw(st.lists(st.floats(-2, 2, width=16), min_size=num_rewards, max_size=num_rewards))
    lengths = draw(
        st.lists(st.integers(1, 9), min_size=num_prompts * size, max_size=num_prompts * size)
    )
    shape = (num_prompts, size)
    return (
        rewards.view(num_rewards, *shape),
        torch.tensor(weights),
        torch.tensor(lengths).view(shape),
    )


def test_gdpo_golden():
    z = group_normalize(GOLDEN, eps=0.0)
    expected = [
        [[0.866025, -0.866025, 0.866025, -0.866025]],
        [[-0.707107, -0.707107, 1.414214, 0.0]],
    ]
    torch.testing.assert_close(z, torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=0)
    advantages = gdpo(GOLDEN, HALVES, eps=0.0)
    torch.testing.assert_close(
        advantages, torch.tensor([[0.079459, -0.786566, 1.140120, -0.433013]]), atol=1e-6, rtol=0
    )


def test_defaults_are_the_papers():
    assert GDPO() == GDPO(batch_norm="none", eps=1e-4)
    torch.testing.assert_close(gdpo(GOLDEN, HALVES), gdpo(GOLDEN, HALVES, "none", 1e-4))
    assert not torch.equal(gdpo(GOLDEN, HALVES), gdpo(GOLDEN, HALVES, eps=0.0))


def test_other_estimators_golden():
    """Sums of the golden rewards are [.5, 0, 2, .5]: mean .75, standard deviation sqrt(.75)."""
    deviations = torch.tensor([[-0.25, -0.75, 1.25, -0.25]])
    torch.testing.assert_close(DrGRPO()(GOLDEN, HALVES), deviations)
    torch.testing.assert_close(RLOO()(GOLDEN, HALVES), deviations * 4 / 3)
    torch.testing.assert_close(GRPO(eps=0.0)(GOLDEN, HALVES), deviations / 0.75**0.5)


@pytest.mark.parametrize("batch_norm", ["none", "sample", "token"])
@settings(deadline=None, max_examples=20)
@given(block=reward_blocks(), eps=st.sampled_from([0.0, 1e-4, 0.1]))
def test_gdpo_matches_restatement(batch_norm, block, eps):
    rewards, weights, lengths = block
    expected = restatement.gdpo(rewards, weights, batch_norm, eps, lengths)
    torch.testing.assert_close(
        gdpo(rewards, weights, batch_norm, eps, lengths=lengths), expected, atol=2e-5, rtol=1e-5
    )


@settings(deadline=None, max_examples=20)
@given(block=reward_blocks(with_nan=False))
def test_grpo_matches_restatement(block):
    rewards, weights, _ = block
    torch.testing.assert_close(
        GRPO()(rewards, weights), restatement.grpo(rewards, weights), atol=2e-5, rtol=1e-5
    )


@pytest.mark.parametrize(
    ("estimator", "rule"), [(DrGRPO(), restatement.minus_mean), (RLOO(), restatement.leave_one_out)]
)
@settings(deadline=None, max_examples=20)
@given(block=reward_blocks())
def test_centred_estimators_match_restatement(estimator, rule, block):
    rewards, weights, _ = block
    expected = restatement.per_reward(rewards, weights, rule)
    torch.testing.assert_close(estimator(rewards, weights), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
@settings(deadline=None, max_examples=20)
@given(
    values=st.lists(st.floats(-1e6, 1e6, width=32), min_size=4, max_size=4),
    size=st.integers(1, 7),
    weights=st.lists(st.floats(-2, 2), min_size=2, max_size=2),
)
def test_equal_rewards_give_exactly_zero(estimator, values, size, weights):
    rewards = torch.tensor(values).view(2, 2, 1).expand(2, 2, size)
    advantages = estimator(
        rewards, torch.tensor(weights), torch.arange(1, 2 * size + 1).view(2, size)
    )
    assert advantages.shape == (2, size)
    assert torch.count_nonzero(advantages) == 0


@pytest.mark.parametrize("estimator", GROUP_ESTIMATORS, ids=repr)
def test_equal_group_beside_unequal_one_is_exactly_zero(estimator):
    rewards = torch.tensor([[[0.1] * 3, [0.1, 0.7, 0.3]], [[1 / 3] * 3, [9.0, 1.0, 4.0]]])
    advantages = estimator(rewards, HALVES)
    assert torch.count_nonzero(advantages[0]) == 0
    assert torch.count_nonzero(advantages[1]) == 3


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
def test_group_of_one_is_exactly_zero(estimator):
    rewards = torch.tensor([[[0.3], [7.0], [-2.0]]])
    advantages = estimator(rewards, torch.ones(1), torch.tensor([[1], [2], [3]]))
    assert torch.count_nonzero(advantages) == 0


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
@settings(deadline=None, max_examples=20)
@given(block=reward_blocks(), shift=st.integers(-400, 400))
def test_constant_shift_of_each_group_changes_nothing(estimator, block, shift):
    rewards, weights, lengths = block
    shifts = shift * torch.arange(1, rewards.shape[0] * rewards.shape[1] + 1).view(
        *rewards.shape[:2], 1
    )
    torch.testing.assert_close(
        estimator(rewards + shifts, weights, lengths),
        estimator(rewards, weights, lengths),
        atol=2e-5,
        rtol=1e-5,
    )


@pytest.mark.parametrize("estimator", GROUP_ESTIMATORS, ids=repr)
@settings(deadline=None, max_examples=20)
@given(block=reward_blocks(with_nan=False), place=st.integers(0, 5))
def test_completion_without_reward_is_as_if_absent(estimator, block, place):
    rewards, weights, _ = block
    place %= rewards.shape[2] + 1
    nan = torch.full((*rewards.shape[:2], 1), torch.nan, dtype=rewards.dtype)
    advantages = estimator(
        torch.cat([rewards[..., :place], nan, rewards[..., place:]], -1), weights
    )
    assert torch.count_nonzero(advantages[:, place]) == 0
    others = torch.cat([advantages[:, :place], advantages[:, place + 1 :]], -1)
    torch.testing.assert_close(others, estimator(rewards, weights), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
def test_reward_that_never_applies_contributes_nothing(estimator):
    lengths = torch.tensor([[1, 2, 3, 4]])
    rewards = torch.cat([GOLDEN, torch.full_like(GOLDEN[:1], torch.nan)])
    with_dead = estimator(rewards, torch.tensor([0.5, 0.5, 9.0]), lengths)
    torch.testing.assert_close(with_dead, estimator(GOLDEN, HALVES, lengths), atol=1e-6, rtol=0)
    assert torch.count_nonzero(estimator(rewards[2:], torch.ones(1), lengths)) == 0


@pytest.mark.parametrize("estimator", [GDPO(), DrGRPO(), RLOO()], ids=repr)
def test_weights_scale_each_reward_apart(estimator):
    ones = torch.ones(1)
    separately = 2.0 * estimator(GOLDEN[:1], ones) - 0.25 * estimator(GOLDEN[1:], ones)
    torch.testing.assert_close(estimator(GOLDEN, torch.tensor([2.0, -0.25])), separately)


def test_gdpo_ignores_the_scale_of_a_reward_and_grpo_does_not():
    scaled = GOLDEN * torch.tensor([1.0, 1000.0]).view(2, 1, 1)
    torch.testing.assert_close(GDPO(eps=0.0)(scaled, HALVES), GDPO(eps=0.0)(GOLDEN, HALVES))
    assert (GRPO(eps=0.0)(scaled, HALVES) - GRPO(eps=0.0)(GOLDEN, HALVES)).abs().max() > 0.3


def test_batch_norm_standardises_the_batch():
    generator = torch.Generator().manual_seed(0)
    rewards = torch.rand(2, 5, 4, generator=generator)
    lengths = torch.randint(1, 9, (5, 4), generator=generator)
    sample = gdpo(rewards, HALVES, "sample", eps=1e-9)
    assert abs(float(sample.mean())) < 1e-6
    assert abs(float(sample.std()) - 1) < 1e-5
    tokens = (
        gdpo(rewards, HALVES, "token", eps=1e-9, lengths=lengths)
        .flatten()
        .repeat_interleave(lengths.flatten())
    )
    assert abs(float(tokens.mean())) < 1e-6
    assert abs(float(tokens.std()) - 1) < 1e-5


@pytest.mark.parametrize("kind", ["sample", "token"])
def test_a_completion_without_any_score_is_out_of_the_batch(kind):
    """Means: (1, 0) of group 0 and (3, 0, 0) of group 1; the head of weight 0 does not count.

    Parts are .5, -.5 and 2, -1, -1. Once each they have mean 0 and variance 6.5 / 4. By tokens
    (2, 1, 1, 1, 1) they have sum .5 and squares .25 + .25 + .25 + 4 + 1 + 1 over 6 tokens.
    """
    nan = math.nan
    rewards = torch.tensor([[[1.0, 0.0, nan], [3.0, 0.0, 0.0]], [[7.0, 8.0, 9.0], [nan] * 3]])
    lengths = torch.tensor([[2, 1, 5], [1, 1, 1]])
    estimator = ReinforcePlusPlus(batch_norm=kind, eps=0.0)
    found = estimator(rewards, torch.tensor([1.0, 0.0]), lengths)
    mean, deviation = (0.0, math.sqrt(6.5 / 4))
    if kind == "token":
        mean, deviation = 0.5 / 6, math.sqrt((6.75 - 0.25 / 6) / 5)
    expected = [[(part - mean) / deviation for part in row] for row in ([0.5, -0.5], [2, -1, -1])]
    assert found[0].tolist() == pytest.approx([*expected[0], 0.0])
    assert found[1].tolist() == pytest.approx(expected[1])


def test_a_rollout_s_completions_without_any_score_keep_0():
    """Those of group 0 alone are in the batch; the head of weight 0 scores all."""
    scores = {"vote": [1.0, 0.0, math.nan, math.nan], "gold": [1.0, 1.0, 0.0, 1.0]}
    outputs = {name: RewardOutput(torch.tensor(values)) for name, values in scores.items()}
    rollout, estimator = handmade(["1"] * 4, 2), ReinforcePlusPlus("sample", eps=0.0)
    found, _ = score_rollout(rollout, outputs, estimator, torch.tensor([1.0, 0.0]))
    expected = [0.5 / math.sqrt(0.5), -0.5 / math.sqrt(0.5), 0.0, 0.0]
    assert found[:, 0].tolist() == pytest.approx(expected)


EVERY = [*ESTIMATORS, GDPO(leave_one_out=True), GRPO("batch"), GRPO("none"), OPO()]


@pytest.mark.parametrize("estimator", [*EVERY, ReinforcePlusPlus()], ids=repr)
def test_a_reward_of_weight_0_changes_no_advantage(estimator):
    """It scores completions to which no reward with a weight applies."""
    nan = math.nan
    alone = torch.tensor([[[1.0, 0.0, nan, nan], [3.0, 0.0, 1.0, nan]]])
    measured = torch.tensor([[[1.0, 2.0, 3.0, 4.0], [nan, 5.0, 6.0, 7.0]]])
    lengths = torch.tensor([[2, 1, 3, 1], [1, 4, 1, 2]])
    both = torch.cat([alone, measured])
    expected = estimator(alone, torch.ones(1), lengths)
    assert expected.any()
    found = estimator(both, torch.tensor([1.0, 0.0]), lengths)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("estimator", [GDPO(), GRPO(), GRPO("none"), OPO()], ids=repr)
def test_a_weight_of_0_in_a_group_does_not_depend_on_other_groups(estimator):
    """Which are on this process depends on the number of processes."""
    nan = math.nan
    rewards = torch.tensor(
        [[[1.0, 0.0, nan, nan], [3.0, 0.0, 1.0, nan]], [[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 9.0]]]
    )
    weights, lengths = torch.tensor([[1.0, 1.0], [0.0, 1.0]]), torch.ones(2, 4, dtype=torch.int64)
    alone = estimator(rewards[:, :1], weights[:, :1], lengths[:1])
    assert alone.any()
    torch.testing.assert_close(estimator(rewards, weights, lengths)[:1], alone, rtol=0, atol=0)


def test_rounding_noise_is_not_blown_up():
    noisy = torch.tensor([[[1.0, 1.0 + 5e-7, 1.0, 1.0]]], dtype=torch.float64)
    assert torch.count_nonzero(GDPO(eps=0.0)(noisy, torch.ones(1))) == 0
    assert torch.count_nonzero(GRPO(eps=0.0)(noisy, torch.ones(1))) == 0
    assert torch.count_nonzero(group_normalize(noisy, 0.0, std_floor=0.0)) == 4


@pytest.mark.parametrize("estimator", GROUP_ESTIMATORS, ids=repr)
def test_parts_sum_to_the_advantage(estimator):
    parts = estimator.parts(GOLDEN, HALVES)
    assert parts.shape == GOLDEN.shape
    torch.testing.assert_close(parts.sum(0).float(), estimator(GOLDEN, HALVES))


def test_center_is_float64_and_leaves_out_nan():
    expected = torch.tensor([[-1.0, 0.0, 1.0]], dtype=torch.float64)
    assert torch.equal(center(torch.tensor([[1.0, math.nan, 3.0]])), expected)


def test_reward_shares():
    parts = torch.tensor([[[3.0, -3.0], [0.0, 0.0]], [[-1.0, 1.0], [0.0, 0.0]]])
    torch.testing.assert_close(reward_shares(parts), torch.tensor([0.75, 0.25]))
    assert torch.equal(reward_shares(torch.zeros(2, 3, 4)), torch.zeros(2))


def test_naive_sum_lets_the_wider_reward_dominate():
    wide = GOLDEN * torch.tensor([1.0, 10.0]).view(2, 1, 1)
    naive, separate = (reward_shares(kind.parts(wide, HALVES)) for kind in (GRPO(), GDPO()))
    assert naive[1] > 0.9
    assert 0.4 < separate[1] < 0.6


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: GDPO("rows"), "batch_norm='rows'.*none, sample, token"),
        (lambda: GDPO(eps=-1.0), "eps=-1.0"),
        (lambda: GRPO(eps=-1.0), "eps=-1.0"),
        (lambda: gdpo(GOLDEN, HALVES, "token"), "needs lengths"),
    ],
)
def test_errors(build, message):
    with pytest.raises(ValueError, match=message):
        build()
