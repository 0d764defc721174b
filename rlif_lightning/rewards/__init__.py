"""Reward heads: of the policy's own statistics, of agreement inside a group, and controls."""

from rlif_lightning.rewards.base import RewardHead, WeightedReward
from rlif_lightning.rewards.checker import CheckerReward
from rlif_lightning.rewards.claim_scorers import (
    ClaimScorer,
    ClaimVerdict,
    JudgeScorer,
    NLIClassifier,
)
from rlif_lightning.rewards.claims import ClaimExtractor, ClaimPattern, JudgeClaims
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
from rlif_lightning.rewards.entity_rubric import EntityRubric
from rlif_lightning.rewards.environment import EnvironmentReward
from rlif_lightning.rewards.evidence import Evidence, EvidenceColumn, EvidenceRule
from rlif_lightning.rewards.flip_weight import FlipWeight
from rlif_lightning.rewards.function import RewardFunction
from rlif_lightning.rewards.gate import Gate
from rlif_lightning.rewards.graded_answer import GradedAnswer, ShortAnswerPenalty
from rlif_lightning.rewards.internal import MeanLogprob, NegativeEntropy, SelfCertainty
from rlif_lightning.rewards.judged import JudgeHead, RubricJudgeHead
from rlif_lightning.rewards.judged_steps import StepRubricJudgeHead
from rlif_lightning.rewards.likelihood import TargetLogprob
from rlif_lightning.rewards.offline_vote import OfflineVote
from rlif_lightning.rewards.overlong import DropTruncated, OverlongPenalty
from rlif_lightning.rewards.pairwise import PairwiseJudgeHead, SimilarityJudgeHead
from rlif_lightning.rewards.reuse import ReuseRL
from rlif_lightning.rewards.reward_model import RewardModel
from rlif_lightning.rewards.reward_set import RewardSet
from rlif_lightning.rewards.rubric import Rubric
from rlif_lightning.rewards.scrl import SCRL
from rlif_lightning.rewards.train_first import TrainFirst
from rlif_lightning.rewards.vote_band import VoteBand
from rlif_lightning.rewards.voting import ClusterVote

__all__ = [
    "SCRL",
    "BehaviourVote",
    "CheckerReward",
    "ClaimExtractor",
    "ClaimPattern",
    "ClaimScorer",
    "ClaimVerdict",
    "ClusterVote",
    "CodeTests",
    "Contains",
    "Criterion",
    "DropTruncated",
    "EntityRubric",
    "EnvironmentReward",
    "Evidence",
    "EvidenceColumn",
    "EvidenceRule",
    "FlipWeight",
    "Format",
    "Gate",
    "GoldAnswer",
    "GradedAnswer",
    "JudgeClaims",
    "JudgeHead",
    "JudgeScorer",
    "Length",
    "Matches",
    "MeanLogprob",
    "NLIClassifier",
    "NegativeEntropy",
    "NumberWithin",
    "OfflineVote",
    "OverlongPenalty",
    "PairwiseJudgeHead",
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
    "ShortAnswerPenalty",
    "SimilarityJudgeHead",
    "StepRubricJudgeHead",
    "TargetLogprob",
    "TrainFirst",
    "VoteBand",
    "WeightedCriterion",
    "WeightedReward",
]
