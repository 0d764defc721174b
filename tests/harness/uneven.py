"""Processes that would not do the same, to see that those which share their rows do it
nevertheless.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.distributed as dist

from harness.episodes import Talker
from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.records import RewardOutput, Rollout
from rlif_lightning.rewards.internal import MeanLogprob
from rlif_lightning.rollout.native import NativeEngine


def process() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


class UnevenEngine(NativeEngine):
    """Draws other tokens on every process."""

    def setup(self, policy: PolicyModel, seed: int) -> None:
        super().setup(policy, seed + process())


class FirstAlone(Talker):
    """An environment that the first process alone can make, and step."""

    def __init__(self, turns: int = 3):
        assert process() == 0
        super().__init__(turns)


class UnevenHead(MeanLogprob):
    """Scores otherwise on every process."""

    def forward(self, rollout: Rollout) -> RewardOutput:
        output = super().forward(rollout)
        return replace(
            output, scores=output.scores + process() * torch.arange(len(output.scores)) ** 2
        )
