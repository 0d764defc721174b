"""Objectives that bound the importance ratio in other ways than PPO's clip.

The surrogates are in ``ratio_losses.py``. Where every ratio is 1, as on a rollout's first update
with one advantage per completion, each has the gradient of ``Clipped`` with the same aggregation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rlif_lightning.learning.loss_inputs import LossInputs
from rlif_lightning.learning.losses import clipped_marks, clipped_surrogate
from rlif_lightning.learning.objective_base import BoundedObjective, ClippedObjective, Objective
from rlif_lightning.learning.ratio_losses import (
    DIVERGENCES,
    cispo_surrogate,
    divergence_marks,
    divergence_surrogate,
    geometric_mean_surrogate,
    mean_log_ratio,
    one_sided_marks,
    sequence_log_ratio,
    soft_gate_surrogate,
)


@dataclass(frozen=True)
class GSPO(ClippedObjective):
    """Clip the geometric mean of a completion's ratios instead of each token's ratio.

    https://arxiv.org/abs/2507.18071. The clip holds whole completions. The paper's bounds are the
    defaults: the mean of many log-ratios is small. In bfloat16 they are of the size of rounding.

    Args:
        clip_low: as in ClippedObjective, of the completion's ratio.
        clip_high: as in ClippedObjective, of the completion's ratio.
        aggregation: sequence_mean is the paper's.
    """

    clip_low: float = 3e-4
    clip_high: float = 4e-4
    aggregation: str = "sequence_mean"

    def policy_loss(self, batch: LossInputs, marks: Tensor) -> Tensor:
        return clipped_surrogate(*self._sequence(batch), *self.bounds)

    def held(self, batch: LossInputs) -> Tensor:
        return clipped_marks(*self._sequence(batch), *self.bounds)

    def _sequence(self, batch: LossInputs) -> tuple[Tensor, Tensor, Tensor]:
        log_ratio = sequence_log_ratio(batch.logprobs, batch.old_logprobs, batch.mask)
        return log_ratio, torch.zeros_like(log_ratio), batch.advantages


@dataclass(frozen=True)
class CISPO(BoundedObjective):
    """Weight each token's log-prob by the clipped ratio, a constant, so that none is left out.

    https://arxiv.org/abs/2506.13585

    Args:
        clip_low: the ratio's lower bound is 1 - clip_low, in (0, 1]; 1 = none, as in the paper.
        clip_high: its upper bound is 1 + clip_high, > 0. The paper gives no value; an upper bound
            of 5 is that of https://arxiv.org/abs/2510.13786.
    """

    clip_low: float = 1.0
    clip_high: float = 4.0

    def policy_loss(self, batch: LossInputs, marks: Tensor) -> Tensor:
        inputs = batch.logprobs, batch.old_logprobs, batch.advantages
        return cispo_surrogate(*inputs, 1 - self.clip_low, 1 + self.clip_high)


@dataclass(frozen=True)
class SAPO(Objective):
    """Let each token's gradient fade out smoothly as its ratio leaves 1.

    https://arxiv.org/abs/2511.20347

    Args:
        temperatures: how fast, where A > 0, and elsewhere; the paper's values.
        aggregation: sequence_mean is the paper's.
    """

    temperatures: tuple[float, float] = (1.0, 1.05)
    aggregation: str = "sequence_mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(0 < each < math.inf for each in self.temperatures):
            raise ValueError(f"temperatures={self.temperatures} must both be positive and finite")

    def policy_loss(self, batch: LossInputs, marks: Tensor) -> Tensor:
        inputs = batch.logprobs, batch.old_logprobs, batch.advantages
        return soft_gate_surrogate(*inputs, *self.temperatures)


@dataclass(frozen=True)
class GMPO(BoundedObjective):
    """Use the geometric mean of a completion's ratios, each clipped on its own.

    https://arxiv.org/abs/2507.20673

    Args:
        clip_low: how far a token's log-ratio may fall below 0, nats; the paper's value.
        clip_high: how far it may rise above 0, nats; the paper's value.
        aggregation: sequence_mean is the paper's.
    """

    clip_low: float = 0.4
    clip_high: float = 0.4
    aggregation: str = "sequence_mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        if math.inf in (self.clip_low, self.clip_high):
            raise ValueError(
                f"clip_low={self.clip_low}, clip_high={self.clip_high}: both must be finite"
            )

    @property
    def most_below(self) -> float:
        return math.inf

    def policy_loss(self, batch: LossInputs, marks: Tensor) -> Tensor:
        bounds = self.clip_low, self.clip_high
        inputs = batch.logprobs, batch.old_logprobs, batch.advantages, batch.mask
        return geometric_mean_surrogate(*inputs, bounds)

    def held(self, batch: LossInputs) -> Tensor:
        log_ratio = batch.logprobs - batch.old_logprobs
        return one_sided_marks(log_ratio, batch.advantages, (self.clip_low, self.clip_high))

    def importance_weights(self, batch: LossInputs) -> Tensor | None:
        """Return the geometric mean of a completion's token weights, on each of its tokens.

        The engine's weight then multiplies the objective's ratio as one more geometric mean: with
        the weights pi_old / pi_engine of tokens, and no token clipped, the product is the geometric
        mean of pi / pi_engine. Weights of whole completions stay as they are. A token of weight 0
        keeps it and has no part in the mean.
        """
        if batch.token_weights is None:
            return None
        counted = batch.mask & (batch.token_weights > 0)
        mean = mean_log_ratio(batch.token_weights.log(), counted).exp()
        return torch.where(batch.token_weights > 0, mean, 0.0)


@dataclass(frozen=True)
class DPPO(BoundedObjective):
    """Leave out tokens whose probability has left a trust region in the advantage's direction.

    https://arxiv.org/abs/2602.04879. The region bounds a divergence between two events, this token
    and any other, and not the ratio: rare tokens may move by a large factor, likely ones may not.

    Args:
        divergence: tv: total variation; kl: KL(old || present) in nats.
        clip_low: bound of the divergence where A <= 0.
        clip_high: bound of the divergence where A > 0. The defaults are ours; peers leave them to
            the user.
        highest_ratio: bound of the ratio as a weight of the log-prob, > 1; 20 is verl's.
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    divergence: str = "tv"
    highest_ratio: float = 20.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.divergence not in DIVERGENCES:
            raise ValueError(
                f"divergence={self.divergence!r} is unknown; use one of {', '.join(DIVERGENCES)}"
            )
        if not self.highest_ratio > 1:
            raise ValueError(f"highest_ratio={self.highest_ratio} must be greater than 1")

    @property
    def most_below(self) -> float:
        return math.inf

    def policy_loss(self, batch: LossInputs, marks: Tensor) -> Tensor:
        inputs = batch.logprobs, batch.old_logprobs, batch.advantages
        return divergence_surrogate(*inputs, self.held(batch), self.highest_ratio)

    def held(self, batch: LossInputs) -> Tensor:
        inputs = batch.logprobs, batch.old_logprobs, batch.advantages
        return divergence_marks(*inputs, self.divergence, (self.clip_low, self.clip_high))
