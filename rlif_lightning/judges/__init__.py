"""Judges: whoever is asked about completions, by rules, by a local model or over HTTP."""

from rlif_lightning.judges.base import Judge, Reply, Request
from rlif_lightning.judges.endpoint import EndpointJudge
from rlif_lightning.judges.parsing import ReplyParser, ScoreParser, VerdictParser
from rlif_lightning.judges.policy_judge import PolicyJudge
from rlif_lightning.judges.rules import RuleJudge

__all__ = [
    "EndpointJudge",
    "Judge",
    "PolicyJudge",
    "Reply",
    "ReplyParser",
    "Request",
    "RuleJudge",
    "ScoreParser",
    "VerdictParser",
]
