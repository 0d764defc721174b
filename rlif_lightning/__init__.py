"""rlif-lightning: reinforcement learning from internal feedback on PyTorch Lightning.

The public names, one a line. Each is imported when it is first used (PEP 562), so that
``import rlif_lightning`` imports neither torch nor Lightning.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for editors and type checkers; `_MODULES` says the same at run time
    from rlif_lightning.answers.checkers import AnswerChecker, Checker, CodeChecker, LiteralChecker
    from rlif_lightning.answers.code_tasks import CodeExtractor
    from rlif_lightning.answers.extraction import AnswerExtractor
    from rlif_lightning.data.benchmark_source import BenchmarkData
    from rlif_lightning.data.curriculum import Curriculum, LearnableFirst
    from rlif_lightning.data.environment_settings import EnvironmentSettings
    from rlif_lightning.data.mixed_sources import EasyFirst, MixedProblems
    from rlif_lightning.data.prompt_format import PromptFormat
    from rlif_lightning.data.prompt_table import PromptTable
    from rlif_lightning.data.prompts import PromptData
    from rlif_lightning.data.sources import (
        ArithmeticProblems,
        HubDataset,
        LocalFiles,
        ProblemSource,
        ReasoningGym,
    )
    from rlif_lightning.data.streams import Streamed
    from rlif_lightning.data.training_problems import TrainingProblems
    from rlif_lightning.environments.base import Environment, Episode, Step, Turn
    from rlif_lightning.environments.pool import EnvironmentPool
    from rlif_lightning.environments.problems import CountdownProblems
    from rlif_lightning.environments.tools import PythonTool
    from rlif_lightning.evaluation.evaluator import Evaluation
    from rlif_lightning.judges.base import Judge, Reply, Request
    from rlif_lightning.judges.endpoint import EndpointJudge
    from rlif_lightning.judges.parsing import ReplyParser, ScoreParser, VerdictParser
    from rlif_lightning.judges.policy_judge import PolicyJudge
    from rlif_lightning.judges.rules import RuleJudge
    from rlif_lightning.learning.advantages import GDPO, GRPO, RLOO, Advantage, DrGRPO
    from rlif_lightning.learning.answer_tokens import AnswerTokens
    from rlif_lightning.learning.baselines import OPO, ReinforcePlusPlus
    from rlif_lightning.learning.distil import DistIL
    from rlif_lightning.learning.dynamic_sampling import DynamicSampling
    from rlif_lightning.learning.entropy_minimisation import EntropyMinimisation
    from rlif_lightning.learning.feedback import FeedbackWriter
    from rlif_lightning.learning.loss_inputs import LossInputs
    from rlif_lightning.learning.muon import MuonAdamW
    from rlif_lightning.learning.objective_base import (
        BoundedObjective,
        ClippedObjective,
        Objective,
        ReferenceKL,
    )
    from rlif_lightning.learning.objectives import ClipCov, Clipped, KLCov
    from rlif_lightning.learning.optimizer import LearningRateSchedule
    from rlif_lightning.learning.ratio_objectives import CISPO, DPPO, GMPO, GSPO, SAPO
    from rlif_lightning.learning.replay import Replay
    from rlif_lightning.learning.stare import STARE
    from rlif_lightning.learning.step_advantages import StepDelta
    from rlif_lightning.learning.supervised import Supervised
    from rlif_lightning.learning.teacher import Teacher
    from rlif_lightning.learning.update import UpdatePlan
    from rlif_lightning.model.loading import Policy
    from rlif_lightning.model.lora import LoRA
    from rlif_lightning.model.token_stats import TeacherLogprobs
    from rlif_lightning.module import RLIFModule
    from rlif_lightning.records import Prompts, RewardOutput, Rollout, TokenStats
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
    from rlif_lightning.rewards.rubric import Rubric
    from rlif_lightning.rewards.scrl import SCRL
    from rlif_lightning.rewards.train_first import TrainFirst
    from rlif_lightning.rewards.vote_band import VoteBand
    from rlif_lightning.rewards.voting import ClusterVote
    from rlif_lightning.rollout.engine import RolloutEngine
    from rlif_lightning.rollout.native import NativeEngine
    from rlif_lightning.rollout.vllm_engine import VLLMEngine, VLLMServerEngine
    from rlif_lightning.running.run_checkpoints import RunCheckpoints
    from rlif_lightning.running.strategies import ShardedStrategy, TensorParallelStrategy
    from rlif_lightning.sampling import Sampling
    from rlif_lightning.sandbox.pool import Sandbox
    from rlif_lightning.trainer import RLIFTrainer

_MODULES = {
    "Advantage": "learning.advantages",
    "AnswerChecker": "answers.checkers",
    "AnswerTokens": "learning.answer_tokens",
    "AnswerExtractor": "answers.extraction",
    "ArithmeticProblems": "data.sources",
    "BehaviourVote": "rewards.code",
    "BenchmarkData": "data.benchmark_source",
    "BoundedObjective": "learning.objective_base",
    "Checker": "answers.checkers",
    "CheckerReward": "rewards.checker",
    "ClaimExtractor": "rewards.claims",
    "ClaimPattern": "rewards.claims",
    "ClaimScorer": "rewards.claim_scorers",
    "ClaimVerdict": "rewards.claim_scorers",
    "Evidence": "rewards.evidence",
    "EvidenceColumn": "rewards.evidence",
    "EvidenceRule": "rewards.evidence",
    "GradedAnswer": "rewards.graded_answer",
    "JudgeClaims": "rewards.claims",
    "JudgeScorer": "rewards.claim_scorers",
    "NLIClassifier": "rewards.claim_scorers",
    "ShortAnswerPenalty": "rewards.graded_answer",
    "CISPO": "learning.ratio_objectives",
    "ClipCov": "learning.objectives",
    "Clipped": "learning.objectives",
    "ClippedObjective": "learning.objective_base",
    "ClusterVote": "rewards.voting",
    "CodeChecker": "answers.checkers",
    "CodeExtractor": "answers.code_tasks",
    "CodeTests": "rewards.code",
    "Curriculum": "data.curriculum",
    "DistIL": "learning.distil",
    "Contains": "rewards.criteria",
    "Criterion": "rewards.criteria",
    "CountdownProblems": "environments.problems",
    "DPPO": "learning.ratio_objectives",
    "DrGRPO": "learning.advantages",
    "DropTruncated": "rewards.overlong",
    "DynamicSampling": "learning.dynamic_sampling",
    "EndpointJudge": "judges.endpoint",
    "Environment": "environments.base",
    "EnvironmentPool": "environments.pool",
    "EnvironmentReward": "rewards.environment",
    "EnvironmentSettings": "data.environment_settings",
    "Episode": "environments.base",
    "EntityRubric": "rewards.entity_rubric",
    "EntropyMinimisation": "learning.entropy_minimisation",
    "Evaluation": "evaluation.evaluator",
    "FeedbackWriter": "learning.feedback",
    "FlipWeight": "rewards.flip_weight",
    "Format": "rewards.controls",
    "Gate": "rewards.gate",
    "GDPO": "learning.advantages",
    "GMPO": "learning.ratio_objectives",
    "GoldAnswer": "rewards.controls",
    "GRPO": "learning.advantages",
    "GSPO": "learning.ratio_objectives",
    "HubDataset": "data.sources",
    "Judge": "judges.base",
    "JudgeHead": "rewards.judged",
    "EasyFirst": "data.mixed_sources",
    "MixedProblems": "data.mixed_sources",
    "KLCov": "learning.objectives",
    "LearnableFirst": "data.curriculum",
    "LearningRateSchedule": "learning.optimizer",
    "Length": "rewards.controls",
    "LiteralChecker": "answers.checkers",
    "LocalFiles": "data.sources",
    "LoRA": "model.lora",
    "LossInputs": "learning.loss_inputs",
    "Matches": "rewards.criteria",
    "MeanLogprob": "rewards.internal",
    "MuonAdamW": "learning.muon",
    "NativeEngine": "rollout.native",
    "NegativeEntropy": "rewards.internal",
    "NumberWithin": "rewards.criteria",
    "Objective": "learning.objective_base",
    "OPO": "learning.baselines",
    "OfflineVote": "rewards.offline_vote",
    "OverlongPenalty": "rewards.overlong",
    "PairwiseJudgeHead": "rewards.pairwise",
    "Policy": "model.loading",
    "PolicyJudge": "judges.policy_judge",
    "ProblemSource": "data.sources",
    "PromptData": "data.prompts",
    "PromptFormat": "data.prompt_format",
    "Prompts": "records",
    "PythonTool": "environments.tools",
    "PromptTable": "data.prompt_table",
    "Random": "rewards.controls",
    "ReasoningGym": "data.sources",
    "ReferenceKL": "learning.objective_base",
    "ReinforcePlusPlus": "learning.baselines",
    "Replay": "learning.replay",
    "ReuseRL": "rewards.reuse",
    "RewardFunction": "rewards.function",
    "Reply": "judges.base",
    "ReplyParser": "judges.parsing",
    "Request": "judges.base",
    "RewardHead": "rewards.base",
    "RewardModel": "rewards.reward_model",
    "RewardOutput": "records",
    "RLIFModule": "module",
    "RLIFTrainer": "trainer",
    "RLOO": "learning.advantages",
    "Rollout": "records",
    "RolloutEngine": "rollout.engine",
    "RubricJudgeHead": "rewards.judged",
    "RuleJudge": "judges.rules",
    "Rubric": "rewards.rubric",
    "RunCheckpoints": "running.run_checkpoints",
    "Sampling": "sampling",
    "Sandbox": "sandbox.pool",
    "SAPO": "learning.ratio_objectives",
    "ScoreParser": "judges.parsing",
    "Scored": "rewards.criteria",
    "SCRL": "rewards.scrl",
    "SelfCertainty": "rewards.internal",
    "ShardedStrategy": "running.strategies",
    "SimilarityJudgeHead": "rewards.pairwise",
    "STARE": "learning.stare",
    "Supervised": "learning.supervised",
    "TargetLogprob": "rewards.likelihood",
    "Streamed": "data.streams",
    "Teacher": "learning.teacher",
    "TeacherLogprobs": "model.token_stats",
    "StepDelta": "learning.step_advantages",
    "StepRubricJudgeHead": "rewards.judged_steps",
    "Step": "environments.base",
    "TensorParallelStrategy": "running.strategies",
    "TokenStats": "records",
    "TrainFirst": "rewards.train_first",
    "TrainingProblems": "data.training_problems",
    "Turn": "environments.base",
    "UpdatePlan": "learning.update",
    "VerdictParser": "judges.parsing",
    "VLLMEngine": "rollout.vllm_engine",
    "VLLMServerEngine": "rollout.vllm_engine",
    "VoteBand": "rewards.vote_band",
    "WeightedCriterion": "rewards.criteria",
    "WeightedReward": "rewards.base",
}
__all__ = [*_MODULES]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    return value


def __dir__() -> list[str]:
    """List the public names, imported or not."""
    return sorted({*globals(), *__all__})
