"""Advantage estimators with other baselines and normalisations than those of ``advantages.py``.

For a group with the rewards 1, 0, 0 and completions of 2, 1 and 1 tokens:

    minus the mean, 1/3              2/3   -1/3   -1/3    DrGRPO, ReinforcePlusPlus' first step
    minus the mean over tokens, 2/4  1/2   -1/2   -1/2    OPO
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlif_lightning.learning.advantages import BATCH_NORMS, Advantage, BatchNormalised
from rlif_lightning.learning.normalization import center, per_group


@dataclass(frozen=True)
class ReinforcePlusPlus(BatchNormalised):
    """Weighted rewards minus the group mean, then normalised over the batch of all data ranks.

    REINFORCE++ with baseline, https://arxiv.org/abs/2501.03262

    Args:
        batch_norm: token | sample: whether a completion counts as often as it has tokens in the
            batch's mean and standard deviation, as in verl, or once.
    """

    batch_norm: str = "token"

    @property
    def batch_norms(self) -> tuple[str, ...]:
        return BATCH_NORMS[1:]

    def parts(self, rewards: Tensor, weights: Tensor, lengths: Tensor | None = None) -> Tensor:
        return center(rewards) * per_group(weights)


@dataclass(frozen=True)
class OPO(Advantage):
    """Each reward minus the group's mean, weighted by completion lengths.

    https://arxiv.org/abs/2505.23585. The weighted mean is the baseline of least variance where the
    gradients of tokens are orthogonal and equally long.
    """

    def parts(self, rewards: Tensor, weights: Tensor, lengths: Tensor | None = None) -> Tensor:
        if lengths is None:
            raise ValueError("OPO needs lengths [P, G]; pass them")
        centered, valid = center(rewards), ~rewards.isnan()  # [R, P, G]
        tokens = torch.where(valid, lengths.double(), 0.0)
        baseline = (centered * tokens).sum(-1) / tokens.sum(-1).clamp(min=1)  # [R, P]
        moved = torch.where(valid, centered - baseline.unsqueeze(-1), 0.0)
        return moved * per_group(weights)
