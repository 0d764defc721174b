"""Reward heads: of the policy's own statistics, of agreement inside a group, and controls."""

from rlif_lightning.rewards.base import Gate, RewardHead, RewardSet, WeightedReward
from rlif_lightning.rewards.code import BehaviourVote, CodeTests
from rlif_lightning.rewards.controls import Format, GoldAnswer, Length, Random
from rlif_lightning.rewards.internal import MeanLogprob, NegativeEntropy, SelfCertainty
from rlif_lightning.rewards.overlong import DropTruncated, OverlongPenalty
from rlif_lightning.rewards.vote_band import VoteBand
from rlif_lightning.rewards.voting import ClusterVote

__all__ = [
    "BehaviourVote",
    "ClusterVote",
    "CodeTests",
    "DropTruncated",
    "Format",
    "Gate",
    "GoldAnswer",
    "Length",
    "MeanLogprob",
    "NegativeEntropy",
    "OverlongPenalty",
    "Random",
    "RewardHead",
    "RewardSet",
    "SelfCertainty",
    "VoteBand",
    "WeightedReward",
]
