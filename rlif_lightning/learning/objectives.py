"""Objectives: the losses as settings for YAML.

An objective is frozen; a callback changes it by replacing it:

``module.objective = dataclasses.replace(module.objective, weight=0.1)``

An objective works in two steps. ``select`` is called once per optimiser step and marks tokens among
*all* tokens of that update, on all data ranks. ``token_loss`` is then called per micro-batch. So
the way in which an update is cut up never changes its gradient. The null setting of each objective
(fraction 0) is ``Clipped``, bit for bit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rlif_lightning.learning.losses import (
    AGGREGATIONS,
    KL_KINDS,
    clipped_marks,
    clipped_surrogate,
    kl_cov_penalty,
    plain_surrogate,
    reference_kl,
    token_covariance,
)
from rlif_lightning.learning.lottery import token_lottery
from rlif_lightning.learning.marks import share_of_candidates
from rlif_lightning.processes.collectives import all_rank_top_fraction
from rlif_lightning.records import LossInputs

UNSELECTED = ("clipped", "plain")
RANK_BY = ("old", "current")
PICKS = ("positive", "top")


@dataclass(frozen=True)
class ReferenceKL:
    """KL to the frozen starting model, added to every token's loss.

    Args:
        weight: multiplies the KL in nats; 0 = off, and no reference model is loaded.
        kind: k1 | k2 | k3 | k3_ratio, the estimator (see losses.reference_kl). On-policy k3 has the
            gradient of KL(reference || policy), k2 and k3_ratio that of KL(policy || reference),
            k1 none.
    """

    weight: float = 0.0
    kind: str = "k3"

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise ValueError(f"reference_kl.weight={self.weight} must not be negative")
        if self.kind not in KL_KINDS:
            raise ValueError(
                f"reference_kl.kind={self.kind!r} is unknown; use one of {', '.join(KL_KINDS)}"
            )


@dataclass(frozen=True)
class Objective(ABC):
    """The settings and the full token loss that all objectives share.

    Args:
        aggregation: token_mean | sequence_mean | constant: how token losses sum up.
        entropy_bonus: weight of the mean token entropy (nats) that is rewarded; 0 = off.
        reference_kl: KL to the frozen starting model.
    """

    aggregation: str = "token_mean"
    entropy_bonus: float = 0.0
    reference_kl: ReferenceKL = field(default_factory=ReferenceKL)

    def __post_init__(self) -> None:
        if self.aggregation not in AGGREGATIONS:
            raise ValueError(
                f"aggregation={self.aggregation!r} is unknown; use one of {', '.join(AGGREGATIONS)}"
            )

    @property
    def needs_reference(self) -> bool:
        """Whether a reference model must be loaded."""
        return self.reference_kl.weight > 0

    @property
    def touches_zero_advantage(self) -> bool:
        """Whether a completion with advantage 0 gets a gradient, so that it is not skipped."""
        return self.needs_reference or self.entropy_bonus != 0

    @property
    def needs_current(self) -> bool:
        """Whether ``select`` needs the current policy's log-probs: one more pass without gradients.

        A rollout's first mini-batch needs no such pass: its old log-probs are the current policy's.
        """
        return False

    def check(self, updates_per_rollout: int) -> None:  # noqa: B027 - most objectives always work
        """Refuse a setting under which the objective would silently do nothing.

        Raises:
            ValueError: names the argument and the remedy.
        """

    def select(self, update: LossInputs) -> Tensor:
        """Return ``[B, T]`` marks among all tokens of one optimiser step (a collective).

        Most objectives mark none. A bool mark says that the token has a loss of its own. A float
        mark is a sign or a weight for the usual loss; 0 is no mark.
        """
        return torch.zeros_like(update.mask)

    def micro_batch_marks(self, batch: LossInputs, marks: Tensor) -> Tensor:
        """Return a micro-batch's marks; by default ``marks``, its part of what ``select`` found."""
        return marks

    @abstractmethod
    def policy_loss(self, batch: LossInputs, marks: Tensor) -> Tensor:
        """Return the ``[B, T]`` policy loss per token."""

    def token_loss(self, batch: LossInputs, marks: Tensor) -> Tensor:
        """Return the ``[B, T]`` full loss per token, before weighting and masking.

        It is the policy loss plus reference KL minus entropy bonus.
        """
        loss = self.policy_loss(batch, marks)
        if batch.token_weights is not None:
            loss = loss * batch.token_weights
        if self.needs_reference:
            assert batch.ref_logprobs is not None
            kl = reference_kl(
                batch.logprobs, batch.ref_logprobs, self.reference_kl.kind, batch.old_logprobs
            )
            loss = loss + self.reference_kl.weight * kl
        if self.entropy_bonus:
            assert batch.entropy is not None
            loss = loss - self.entropy_bonus * batch.entropy
        return loss

    def held(self, batch: LossInputs) -> Tensor:
        """Return ``[B, T]`` bool: tokens whose policy loss has no gradient beyond a bound.

        ``policy/clip_fraction`` counts them.
        """
        return torch.zeros_like(batch.mask)


@dataclass(frozen=True)
class ClippedObjective(Objective):
    """What objectives with PPO's clip share.

    Args:
        clip_low: how far the ratio may fall below 1 before its gradient stops, in (0, 1].
        clip_high: how far the ratio may rise above 1 before its gradient stops, > 0.
        dual_clip: bound of the loss at negative advantages in units of |A|, > 1; null = off.
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0 < self.clip_low <= 1 and self.clip_high > 0):
            raise ValueError(
                f"clip_low={self.clip_low}, clip_high={self.clip_high}: need 0 < clip_low <= 1,"
                " clip_high > 0"
            )
        if self.dual_clip is not None and not self.dual_clip > 1:
            raise ValueError(
                f"dual_clip={self.dual_clip} must be greater than 1, or null to turn it off"
            )

    def clipped(self, batch: LossInputs) -> Tensor:
        """Return the ``[B, T]`` clipped surrogate with this objective's bounds."""
        bounds = self.clip_low, self.clip_high, self.dual_clip
        return clipped_surrogate(batch.logprobs, batch.old_logprobs, batch.advantages, *bounds)

    def held(self, batch: LossInputs) -> Tensor:
        bounds = self.clip_low, self.clip_high
        return clipped_marks(batch.logprobs, batch.old_logprobs, batch.advantages, *bounds)


@dataclass(frozen=True)
class Clipped(ClippedObjective):
    """The clipped surrogate of PPO / GRPO on every token."""

    def policy_loss(self, batch: LossInputs, marks: Tensor) -> Tensor:
        return self.clipped(batch)


@dataclass(frozen=True)
class KLCov(ClippedObjective):
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
    """

    fraction: float = 0.02
    weight: float = 0.05
    unselected: str = "clipped"
    rank_by: str = "old"
    pick: str = "positive"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.fraction < 1:
            raise ValueError(
                f"fraction={self.fraction} must lie in [0, 1): a share of the tokens, not per cent"
            )
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
        if updates_per_rollout < 2 and self.fraction > 0:
            raise ValueError(
                f"updates_per_rollout={updates_per_rollout} makes KL-Cov do nothing: on the first"
                " update the policy is the one that sampled, so |logprob - old logprob| and its"
                " gradient are 0. Set model.update.updates_per_rollout or"
                " model.update.epochs_per_rollout to 2 or more, or use the objective Clipped"
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
        rest = plain if self.unselected == "plain" and self.fraction > 0 else self.clipped(batch)
        return torch.where(marks, penalised, rest)


@dataclass(frozen=True)
class ClipCov(ClippedObjective):
    """Clip-Cov: a few tokens of high covariance get no policy gradient at all.

    https://arxiv.org/abs/2505.22617

    Candidates are tokens with ``low < cov < high`` that are not clipped already. Among them a
    random ``fraction`` of all the update's tokens is picked.

    Args:
        fraction: share of an update's tokens that are picked, in [0, 1); 0 = off.
        low: lower end of the covariance band (nats times advantage).
        high: upper end of the covariance band.
        seed: of the random pick.
    """

    fraction: float = 2e-4
    low: float = 1.0
    high: float = 5.0
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.fraction < 1:
            raise ValueError(
                f"fraction={self.fraction} must lie in [0, 1): a share of the tokens, not per cent"
            )
        if self.low >= self.high:
            raise ValueError(f"low={self.low} must be less than high={self.high}")

    @property
    def needs_current(self) -> bool:
        return self.fraction > 0

    def select(self, update: LossInputs) -> Tensor:
        covariance = token_covariance(update.old_logprobs, update.advantages, update.mask)
        bounds = self.clip_low, self.clip_high
        clipped = clipped_marks(update.logprobs, update.old_logprobs, update.advantages, *bounds)
        candidates = update.mask & ~clipped & (covariance > self.low) & (covariance < self.high)
        share = share_of_candidates(candidates, update.mask, self.fraction)
        lottery = token_lottery(update.completion_numbers, update.mask.shape[1], self.seed)
        return all_rank_top_fraction(torch.where(candidates, lottery, 0.0), candidates, share)

    def policy_loss(self, batch: LossInputs, marks: Tensor) -> Tensor:
        return torch.where(marks, torch.zeros_like(batch.logprobs), self.clipped(batch))
