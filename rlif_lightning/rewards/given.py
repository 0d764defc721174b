"""Rewards as a person passes them in Python: heads, functions, or either with a weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rlif_lightning.rewards.base import RewardHead, WeightedReward
from rlif_lightning.rewards.function import RewardFunction

if TYPE_CHECKING:
    RewardLike = WeightedReward | RewardHead | Callable[..., Any]
else:  # the command line knows classes alone
    RewardLike = WeightedReward | RewardHead


def as_rewards(given: Any) -> dict[str, WeightedReward]:
    """Return the rewards of a run, each with its place in the total.

    Args:
        given: name -> a head or a function, or either with weight and gate.

    Raises:
        TypeError: no mapping, or something else under a name.
    """
    if not isinstance(given, Mapping):
        raise TypeError(
            f"rewards={given!r:.100}: pass a mapping of names to rewards, such as"
            ' {"vote": ClusterVote()}'
        )
    return {str(name): _weighted(str(name), reward) for name, reward in given.items()}


def _weighted(name: str, reward: Any) -> WeightedReward:
    if isinstance(reward, WeightedReward):
        return replace(reward, head=_head(name, reward.head))
    return WeightedReward(_head(name, reward))


def _head(name: str, reward: Any) -> RewardHead:
    if isinstance(reward, RewardHead):
        return reward
    if callable(reward) and not isinstance(reward, type):
        return RewardFunction(reward)
    called = f"; {reward.__name__}() makes one" if isinstance(reward, type) else ""
    raise TypeError(
        f"rewards: {name!r} is {reward!r:.100}, not a reward head{called}; pass a RewardHead, a"
        " function, or WeightedReward(head, weight=...)"
    )
