"""Objectives: the losses as settings for YAML.

An objective is frozen; a callback changes it by replacing it:

``module.objective = dataclasses.replace(module.objective, weight=0.1)``

An objective works in two steps. ``select`` is called once per optimiser step and marks tokens among
*all* tokens of that update, on all data ranks. ``token_loss`` is then called per micro-batch. So
the way in which an update is cut up never changes its gradient. The null setting of each objective
(fraction 0) is ``Clipped``, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlif_lightning.learning.loss_inputs import LossInputs
from rlif_lightning.learning.losses import (
    clipped_marks,
    kl_cov_penalty,
    plain_surrogate,
    token_covariance,
)
from rlif_lightning.learning.lottery import token_lottery
from rlif_lightning.learning.marks import share_of_candidates
from rlif_lightning.learning.objective_base import ClippedObjective
from rlif_lightning.processes.collectives import all_rank_top_fraction

UNSELECTED = ("clipped", "plain")
RANK_BY = ("old", "current")
PICKS = ("positive", "top")


@dataclass(frozen=True)
class Clipped(ClippedObjective):
    """The clipped surrogate of PPO / GRPO on every token."""

    def policy_loss(self, batch: LossInputs, marks: Tensor) -> Tensor:
        return self.clipped(batch)


@dataclass(frozen=True)
class PickingObjective(ClippedObjective):
    """What objectives share that treat a few of an update's tokens apart.

    Args:
        fraction: share of an update's tokens that are picked, in [0, 1); 0 = off.
    """

    fraction: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.fraction < 1:
            raise ValueError(
                f"fraction={self.fraction} must lie in [0, 1): a share of the tokens, not per cent"
            )


@dataclass(frozen=True)
class KLCov(PickingObjective):
    """KL-Cov: on the tokens that drive entropy down, a KL penalty instead of the clip.

    https://arxiv.org/abs/2505.22617

    Args:
        fraction: share of an update's tokens that are picked, in [0, 1); 0 = off (the paper
            2605.22620: 0.02).
        weight: of |logprob - old logprob| (nats) above the rollout's noise floor, on picked tokens
            (the paper: 0.05).
        unselected: clipped (the paper) | plain (the origin's code): the loss on all other tokens.
        rank_by: old | current: the log-probs that tokens are ordered by. `old` (ours) needs no
            extra pass.
        pick: positive | top: only tokens with a positive covariance, fewer than the fraction if
            there are not enough (ours); or the fraction's top whatever its sign, as the origin's
            code does, where a lottery chooses among zeros.
        allow_inactive: accept one update per rollout without replay, with which KL-Cov does nothing
            and the run is that of ``Clipped``: the arm that tests what KL-Cov did elsewhere.
    """

    weight: float = 0.05
    unselected: str = "clipped"
    rank_by: str = "old"
    pick: str = "positive"
    allow_inactive: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weight < 0:
            raise ValueError(f"weight={self.weight} must not be negative")
        if self.unselected not in UNSELECTED:
            raise ValueError(
                f"unselected={self.unselected!r} is unknown; use one of {', '.join(UNSELECTED)}"
            )
        if self.rank_by not in RANK_BY:
            raise ValueError(
                f"rank_by={self.rank_by!r} is unknown; use one of {', '.join(RANK_BY)}"
            )
        if self.pick not in PICKS:
            raise ValueError(f"pick={self.pick!r} is unknown; use one of {', '.join(PICKS)}")

    @property
    def needs_current(self) -> bool:
        return self.rank_by == "current"

    def check(self, updates_per_rollout: int) -> None:
        if updates_per_rollout < 2 and self.fraction > 0 and not self.allow_inactive:
            raise ValueError(
                f"updates_per_rollout={updates_per_rollout} makes KL-Cov do nothing: on the first"
                " update the policy is the one that sampled, so |logprob - old logprob| and its"
                " gradient are 0. Set model.update.updates_per_rollout or"
                " model.update.epochs_per_rollout to 2 or more, or use the objective Clipped; to"
                " run it nevertheless, set model.objective.allow_inactive=true"
            )

    def select(self, update: LossInputs) -> Tensor:
        logprobs = update.old_logprobs if self.rank_by == "old" else update.logprobs
        covariance = token_covariance(logprobs, update.advantages, update.mask)  # [B, T]
        lottery = token_lottery(update.completion_numbers, update.mask.shape[1])
        if self.pick == "top":
            return all_rank_top_fraction(covariance, update.mask, self.fraction, lottery)
        candidates = update.mask & (covariance > 0)
        share = share_of_candidates(candidates, update.mask, self.fraction)
        return all_rank_top_fraction(covariance, candidates, share, lottery)

    def policy_loss(self, batch: LossInputs, marks: Tensor) -> Tensor:
        plain = plain_surrogate(batch.logprobs, batch.old_logprobs, batch.advantages)
        floor = 0.0 if batch.noise_floor is None else batch.noise_floor
        penalised = plain + kl_cov_penalty(batch.logprobs, batch.old_logprobs, self.weight, floor)
        rest = self.clipped(batch) if self._clips else plain
        return torch.where(marks, penalised, rest)

    def held(self, batch: LossInputs) -> Tensor:
        return super().held(batch) if self._clips else torch.zeros_like(batch.mask)

    @property
    def _clips(self) -> bool:
        """Whether tokens that are not picked have the clip; at fraction 0 this is ``Clipped``."""
        return self.unselected == "clipped" or self.fraction == 0


@dataclass(frozen=True)
class ClipCov(PickingObjective):
    """Clip-Cov: a few tokens of high covariance get no policy gradient at all.

    https://arxiv.org/abs/2505.22617

    Candidates are tokens whose covariance lies inside ``band`` and that are not clipped already.
    Among them a random ``fraction`` of all the update's tokens is picked.

    Args:
        fraction: share of an update's tokens that are picked, in [0, 1); 0 = off.
        band: lower and upper end of the covariance (nats times advantage), both left out.
    """

    fraction: float = 2e-4
    band: tuple[float, float] = (1.0, 5.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.band[0] < self.band[1]:
            raise ValueError(f"band={self.band} must be [low, high] with low < high")

    @property
    def needs_current(self) -> bool:
        return self.fraction > 0

    def select(self, update: LossInputs) -> Tensor:
        covariance = token_covariance(update.old_logprobs, update.advantages, update.mask)
        bounds = self.clip_low, self.clip_high
        clipped = clipped_marks(update.logprobs, update.old_logprobs, update.advantages, *bounds)
        low, high = self.band
        candidates = update.mask & ~clipped & (covariance > low) & (covariance < high)
        share = share_of_candidates(candidates, update.mask, self.fraction)
        lottery = token_lottery(update.completion_numbers, update.mask.shape[1])
        return all_rank_top_fraction(torch.where(candidates, lottery, 0.0), candidates, share)

    def policy_loss(self, batch: LossInputs, marks: Tensor) -> Tensor:
        return torch.where(marks, torch.zeros_like(batch.logprobs), self.clipped(batch))
