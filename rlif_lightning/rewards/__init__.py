"""Reward heads: of the policy's own statistics, of agreement inside a group, and controls."""

from rlif_lightning.rewards.base import Gate, RewardHead, RewardSet, WeightedReward
from rlif_lightning.rewards.code import BehaviourVote, CodeTests
from rlif_lightning.rewards.controls import Format, GoldAnswer, Length, Random
from rlif_lightning.rewards.criteria import (
    Calls,
    Contains,
    Criterion,
    Matches,
    NumberWithin,
    Scored,
)
from rlif_lightning.rewards.internal import MeanLogprob, NegativeEntropy, SelfCertainty
from rlif_lightning.rewards.overlong import DropTruncated, OverlongPenalty
from rlif_lightning.rewards.rubric import Rubric, WeightedCriterion
from rlif_lightning.rewards.voting import ClusterVote

__all__ = [
    "BehaviourVote",
    "Calls",
    "ClusterVote",
    "CodeTests",
    "Contains",
    "Criterion",
    "DropTruncated",
    "Format",
    "Gate",
    "GoldAnswer",
    "Length",
    "Matches",
    "MeanLogprob",
    "NegativeEntropy",
    "NumberWithin",
    "OverlongPenalty",
    "Random",
    "RewardHead",
    "RewardSet",
    "Rubric",
    "Scored",
    "SelfCertainty",
    "WeightedCriterion",
    "WeightedReward",
]
