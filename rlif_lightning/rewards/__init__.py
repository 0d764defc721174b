"""Reward heads: of the policy's own statistics, of agreement inside a group, and controls."""

from rlif_lightning.rewards.base import RewardHead, RewardSet, WeightedReward
from rlif_lightning.rewards.code import BehaviourVote, CodeTests
from rlif_lightning.rewards.controls import Format, GoldAnswer, Length, Random
from rlif_lightning.rewards.criteria import (
    Contains,
    Criterion,
    Matches,
    NumberWithin,
    Scored,
    WeightedCriterion,
)
from rlif_lightning.rewards.environment import EnvironmentReward
from rlif_lightning.rewards.function import RewardFunction
from rlif_lightning.rewards.gate import Gate
from rlif_lightning.rewards.internal import MeanLogprob, NegativeEntropy, SelfCertainty
from rlif_lightning.rewards.judged import JudgeHead, RubricJudgeHead
from rlif_lightning.rewards.judged_steps import StepRubricJudgeHead
from rlif_lightning.rewards.offline_vote import OfflineVote
from rlif_lightning.rewards.overlong import DropTruncated, OverlongPenalty
from rlif_lightning.rewards.reuse import ReuseRL
from rlif_lightning.rewards.reward_model import RewardModel
from rlif_lightning.rewards.rubric import Rubric
from rlif_lightning.rewards.vote_band import VoteBand
from rlif_lightning.rewards.voting import ClusterVote

__all__ = [
    "BehaviourVote",
    "ClusterVote",
    "CodeTests",
    "Contains",
    "Criterion",
    "DropTruncated",
    "EnvironmentReward",
    "Format",
    "Gate",
    "GoldAnswer",
    "JudgeHead",
    "Length",
    "Matches",
    "MeanLogprob",
    "NegativeEntropy",
    "NumberWithin",
    "OfflineVote",
    "OverlongPenalty",
    "Random",
    "ReuseRL",
    "RewardFunction",
    "RewardHead",
    "RewardModel",
    "RewardSet",
    "Rubric",
    "RubricJudgeHead",
    "Scored",
    "SelfCertainty",
    "StepRubricJudgeHead",
    "VoteBand",
    "WeightedCriterion",
    "WeightedReward",
]
