"""What a run refuses of its rewards together: that nothing would be trained, or weighed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from rlif_lightning.learning.step_advantages import StepDelta
from rlif_lightning.rewards.base import WeightedReward


def check_scores(rewards: dict[str, WeightedReward]) -> None:
    """Refuse rewards of which none gives a score that counts: nothing would be trained."""
    if any(reward.weight and reward.head.gives_scores for reward in rewards.values()):
        return
    silent = [
        f"{name} is {type(reward.head).__name__}, which only takes completions out"
        for name, reward in rewards.items()
        if not reward.head.gives_scores
    ]
    raise ValueError(
        f"rewards={list(rewards)}: no reward with a weight other than 0 gives scores"
        f" ({'; '.join(silent)}), so that nothing would be trained; add one that does"
    )


def check_steps(advantage: Any, rewards: dict[str, WeightedReward]) -> None:
    """Refuse an estimator of steps without steps, and an option that it would not see."""
    if not isinstance(advantage, StepDelta):
        return
    stepped = {name: each for name, each in rewards.items() if each.head.gives_steps}
    if not stepped:
        raise ValueError(
            f"model.advantage=StepDelta needs a reward that scores steps, and rewards="
            f"{list(rewards)} have none: use StepRubricJudgeHead,"
            " EnvironmentReward with per_turn=true, or model.advantage=DrGRPO"
        )
    for name, reward in stepped.items():
        if reward.length == "neutral":
            raise ValueError(
                f"rewards.{name}.length=neutral changes the scores of completions, and"
                " model.advantage=StepDelta reads those of steps: set length=keep"
            )


def check_group_weights(advantage: Any, rewards: Mapping[str, WeightedReward]) -> None:
    """Refuse what weighs groups where the estimator divides the only reward's weight out again.

    GRPO does so: no other reward is in the sum that it normalises (a collective).

    Raises:
        ValueError: names the reward and the remedy.
    """
    counted = {name: it for name, it in rewards.items() if it.weight and it.head.gives_scores}
    if len(counted) != 1:
        return
    [(name, reward)] = counted.items()
    if not (reward.head.weighs_groups or reward.spread_floor):
        return
    by_head, by_floor = f"head={type(reward.head).__name__}", f"spread_floor={reward.spread_floor}"
    what = by_head if reward.head.weighs_groups else by_floor
    alike = torch.tensor([[[0.0, 1.0], [0.0, 1.0]]])  # two groups, of which one weighs half
    parts = advantage.parts(alike, torch.tensor([[1.0, 0.5]]), torch.ones(2, 2))
    if float(parts[0, 1].abs().sum()) > 0.9 * float(parts[0, 0].abs().sum()):
        raise ValueError(
            f"rewards.{name}.{what} has no effect: {name} is the only reward, and"
            f" model.advantage={type(advantage).__name__} divides by the spread of the sum,"
            " whatever the weight in a group; set model.advantage=GDPO, which is the same for one"
            f" reward of weight 1, or {'spread_floor=0' if reward.spread_floor else 'another head'}"
        )
