"""Options of a weighted reward, worked by hand: length taken out, unanimous groups left out, little
spread weakened.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.command_line import build
from harness.rollouts import Given, handmade
from harness.runs import BASE, fit, metrics
from rlif_lightning.learning.advantages import GDPO, GRPO, RLOO, DrGRPO
from rlif_lightning.learning.baselines import OPO, ReinforcePlusPlus
from rlif_lightning.learning.rollout_advantages import reward_metrics, score_rollout
from rlif_lightning.records import RewardOutput
from rlif_lightning.rewards import ClusterVote, Gate, MeanLogprob, RewardSet, WeightedReward
from rlif_lightning.rewards.functional import without_length
from rlif_lightning.running.reward_checks import check_group_weights

NAN = math.nan


def rewards_of(scores: list[float], other: list[float] | None = None, **options) -> RewardSet:
    heads = {"mine": WeightedReward(Given(torch.tensor(scores)), 0.5, **options)}
    if other is not None:
        heads["other"] = WeightedReward(Given(torch.tensor(other)), 0.5)
    return RewardSet(heads)


def test_without_length_by_hand():
    """Scores 1 2 4 of lengths 1 2 3: slope 3 / 2, so 1 + 1.5, 2, 4 - 1.5; NaN is left out of the
    fit.
    """
    scores = torch.tensor([[1.0, 2.0, 4.0, NAN], [7.0, 5.0, 3.0, 1.0]])
    lengths = torch.tensor([[1, 2, 3, 99], [2, 2, 2, 2]])
    expected = torch.tensor([[2.5, 2.0, 2.5, NAN], [7.0, 5.0, 3.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(without_length(scores, lengths), expected, equal_nan=True)


@settings(deadline=None)
@given(
    st.lists(st.floats(-4, 4), min_size=5, max_size=5),
    st.lists(st.integers(1, 40), min_size=5, max_size=5),
    st.floats(-3, 3),
)
def test_what_is_linear_in_length_makes_no_difference(scores, lengths, slope):
    base, size = torch.tensor([scores], dtype=torch.float64), torch.tensor([lengths])
    neutral = without_length(base, size)
    moved = without_length(base + slope * (size - size.double().mean()), size)
    torch.testing.assert_close(moved, neutral, atol=1e-9, rtol=0)
    torch.testing.assert_close(neutral.mean(), base.mean(), atol=1e-9, rtol=0)
    residual = (neutral - neutral.mean()) * (size - size.double().mean())
    assert abs(float(residual.sum())) < 1e-6


def test_a_score_that_is_length_alone_has_no_advantage():
    """Rows have 1, 2, 3 tokens; after `length: neutral` nothing but rounding is left, and that is
    not blown up.
    """
    rollout = handmade(["x"] * 3, 3)
    outputs = rewards_of([0.1, 0.2, 0.3], length="neutral")(rollout)
    advantages, _ = score_rollout(rollout, outputs, GDPO(), torch.tensor([0.5]))
    assert not advantages.any()
    outputs = rewards_of([1.0, 2.0, 4.0], length="neutral")(rollout)
    assert outputs["mine"].scores.tolist() == pytest.approx([2.5, 2.0, 2.5])


def test_length_is_taken_out_of_what_the_gate_leaves():
    rewards = rewards_of(
        [1.0, 2.0, 9.0], [1.0, 1.0, 0.0], gate=Gate("other", 0.5), length="neutral"
    )
    assert rewards(handmade(["x"] * 3, 3))["mine"].scores.tolist() == pytest.approx(
        [1.5, 1.5, NAN], nan_ok=True
    )


def test_unanimous_groups_are_left_out():
    """Groups of 2: all agree, none agrees (one score as well), and one mixed."""
    vote = [1.0, 1.0, 0.5, 0.5, 1.0, 0.0]
    rewards = rewards_of([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], vote, gate=Gate("other", unanimous="zero"))
    rollout = handmade(["x"] * 6, 2)
    outputs = rewards(rollout)
    assert outputs["mine"].scores.tolist() == pytest.approx([NAN] * 4 + [5.0, 6.0], nan_ok=True)
    assert outputs["other"].scores.tolist() == vote
    advantages, _ = score_rollout(rollout, outputs, GDPO(), rewards.weights)
    assert not advantages[:4].any()
    both = Gate("other", at_least=0.5, unanimous="zero").passes(torch.tensor(vote), 2)
    assert both.tolist() == [False] * 4 + [True, False]


def test_a_small_spread_weighs_less():
    """Spreads sqrt 2 and sqrt 2 / 10 (and none) have the mean 0.7778; half of it, 0.3889, is the
    floor.

    So the second group's advantages are +-0.1 / 0.3889 instead of +-0.1 / 0.1414, times the weight
    0.5.
    """
    rollout = handmade(["x"] * 6, 2)
    rewards = rewards_of([0.0, 2.0, 0.0, 0.2, 3.0, 3.0], spread_floor=0.5)
    outputs = rewards(rollout)
    advantages, _ = score_rollout(rollout, outputs, GDPO(eps=0.0), rewards.weights)
    half = 0.5 / math.sqrt(2)
    expected = [-half, half, -0.5 * 0.25713, 0.5 * 0.25713, 0, 0]
    assert advantages[:, 0].tolist() == pytest.approx(expected, abs=1e-4)
    assert outputs["mine"].scores.tolist() == pytest.approx(
        [0.0, 2.0, 0.0, 0.2, 3.0, 3.0]
    )  # the score itself stays


def test_what_is_usual_is_learned_in_training_and_kept_in_checkpoints():
    rollout = handmade(["x"] * 2, 2)
    rewards = rewards_of([0.0, 2.0], spread_floor=1.0)
    rewards(rollout)
    rewards.heads["mine"].scores = torch.tensor([0.0, 0.2])  # type: ignore[assignment]
    restored = rewards_of([0.0, 0.2], spread_floor=1.0)
    restored.load_state_dict(rewards.state_dict())
    restored.eval()
    for _ in range(
        2
    ):  # usual is sqrt 2, so a tenth of it has a tenth of the strength; nothing is learned
        assert restored(rollout)["mine"].group_weight_factor.tolist() == pytest.approx([0.1])
    assert rewards(rollout)["mine"].group_weight_factor.tolist() == pytest.approx(
        [0.2 / 1.1]
    )  # the mean is 1.1 / sqrt 2 by now


def test_a_heads_own_weight_in_a_group_stays_beside_a_spread_floor():
    """The head asks for weights 2 and 3; the floor halves the second group's, of half the spread
    that is usual there (1 and 1/2 have the mean 3/4, 2/3 of which is the second one's).
    """

    class Twice(Given):
        def forward(self, rollout):
            return RewardOutput(super().forward(rollout).scores, None, {}, torch.tensor([2.0, 3.0]))

    heads = {"mine": WeightedReward(Twice(torch.tensor([0.0, 2.0, 0.0, 1.0])), spread_floor=1.0)}
    output = RewardSet(heads)(handmade(["x"] * 4, 2))["mine"]
    assert output.group_weight_factor.tolist() == pytest.approx([2.0, 3.0 * 2 / 3])


@pytest.mark.parametrize(
    ("estimator", "is_heard"),
    [
        (GDPO(), True),
        (GRPO(), False),
        (GRPO(normalize="batch"), True),
        (GRPO(normalize="none"), True),
        (DrGRPO(), True),
        (RLOO(), True),
        (OPO(), True),
        (ReinforcePlusPlus(), True),
    ],
    ids=repr,
)
def test_a_spread_floor_is_refused_where_the_only_reward_is_divided_by_its_sums_spread(
    estimator, is_heard
):
    """GRPO divides the weight in a group out again; beside another reward it moves the sum."""
    scores = Given(torch.tensor([0.0, 1.0]))
    alone = {"mine": WeightedReward(scores, spread_floor=0.5), "seen": WeightedReward(scores, 0.0)}
    check_group_weights(estimator, alone | {"seen": WeightedReward(scores, 1.0)})
    check_group_weights(estimator, {"mine": WeightedReward(scores)})
    if is_heard:
        check_group_weights(estimator, alone)
        return
    with pytest.raises(ValueError, match=r"rewards.mine.spread_floor=0.5 has no effect"):
        check_group_weights(estimator, alone)


@pytest.mark.parametrize("estimator", [GDPO(), GRPO(), DrGRPO(), RLOO()], ids=repr)
def test_weights_may_differ_between_groups(estimator):
    rewards = torch.tensor([[[1.0, 0.0, 2.0], [3.0, 1.0, 0.0]], [[0.0, 5.0, 1.0], [2.0, 2.0, 7.0]]])
    weights = torch.tensor([[0.5, 0.1], [0.5, 2.0]])
    got = estimator(rewards, weights)
    for p in range(2):
        torch.testing.assert_close(got[p : p + 1], estimator(rewards[:, p : p + 1], weights[:, p]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Gate("vote"), "lets everything pass"),
        (
            lambda: Gate("vote", unanimous="skip"),
            "unanimous='skip' is unknown; use one of keep, zero",
        ),
        (
            lambda: rewards_of([0.0], length="short"),
            "length='short' is unknown; use one of keep, neutral",
        ),
        (lambda: rewards_of([0.0], spread_floor=2.0), "spread_floor=2.0"),
    ],
)
def test_settings_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.slow
def test_a_head_alone_is_a_reward_in_yaml(tmp_path):
    path, heads = tmp_path / "rewards.yaml", "vote: ClusterVote, sure: {class_path: MeanLogprob}"
    path.write_text(f"model: {{rewards: {{{heads}}}}}\n")
    for argument in (f"--config={path}", f"--model.rewards={{{heads}}}"):
        run = build([*BASE, argument])
        found = run.model.rewards.settings
        kinds = {name: (type(each.head), each.weight) for name, each in found.items()}
        assert kinds == {"vote": (ClusterVote, 1.0), "sure": (MeanLogprob, 1.0)}
        saved = run.config.model.rewards["vote"]  # config.yaml has the long form
        assert saved.head.class_path == "rlif_lightning.ClusterVote"


@pytest.mark.slow
def test_each_option_is_one_setting_of_the_command_line(tmp_path):
    shares = {}
    options = {
        "none": [],
        "length": ["--model.rewards.certainty.length=neutral"],
        "unanimous": ['--model.rewards.certainty.gate={"head": "vote", "unanimous": "zero"}'],
        "spread": ["--model.rewards.certainty.spread_floor=1.0"],
    }
    for name, arguments in options.items():
        fit(tmp_path / name, "--trainer.limit_train_batches=1", *arguments)
        (row,) = [row for row in metrics(tmp_path / name) if row["reward/certainty/share"]]
        shares[name] = float(row["reward/certainty/share"])
    assert shares["spread"] < shares["none"]
    assert shares["unanimous"] <= shares["none"]
    assert len(set(shares.values())) >= 3, shares


def test_a_reward_that_never_applies_is_logged_as_nan_and_not_as_0():
    """Groups (1, 3), (nan, 5), (nan, nan): mean 3, std 2; the one group with two scores has std
    sqrt 2.
    """
    scores = torch.tensor([1.0, 3.0, math.nan, 5.0, math.nan, math.nan])
    figures = [float(value) for value in reward_metrics("x", scores, 2).values()]
    assert figures == pytest.approx([3.0, 2.0, math.sqrt(2)])
    nothing = reward_metrics("x", torch.full((6,), math.nan), 2)
    assert list(nothing) == ["reward/x/mean", "reward/x/std", "reward/x/group_std"]
    assert all(value.isnan() for value in nothing.values())
    alone = [
        float(value) for value in reward_metrics("x", torch.tensor([4.0, math.nan]), 2).values()
    ]
    assert alone[0] == 4.0
    assert math.isnan(alone[2])
