"""What all objectives share: their settings, and the bounds that most of them have."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from rlif_lightning.learning.loss_inputs import LossInputs
from rlif_lightning.learning.losses import (
    AGGREGATIONS,
    KL_KINDS,
    clipped_marks,
    clipped_surrogate,
    reference_kl,
)
from rlif_lightning.setting_types import check_types


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
        check_types(self)
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

    teacher: ClassVar[Any] = None  # the settings of a teacher that the loss needs (teacher.py)
    needs_rewards: ClassVar[bool] = True  # whether a run without any reward would train nothing
    column: ClassVar[Any] = None  # of texts that are trained on in place of sampled completions

    aggregation: str = "token_mean"
    entropy_bonus: float = 0.0
    reference_kl: ReferenceKL = field(default_factory=ReferenceKL)

    def __post_init__(self) -> None:
        check_types(self)
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

    @property
    def uses_advantages(self) -> bool:
        """Whether the loss depends on advantages, and so on the rewards' weights."""
        return True

    @property
    def needs_candidates(self) -> bool:
        """Whether ``future_baseline`` is needed, for one more pass without gradients."""
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

    def teacher_divergence(self, batch: LossInputs) -> Tensor:
        """Return the ``[B, T]`` divergence from a teacher, for an objective that has one."""
        raise NotImplementedError

    def future_baseline(self, update: LossInputs, group_size: int) -> Tensor:
        """Return the ``[b, T]`` baseline that ``needs_candidates`` asks for."""
        raise NotImplementedError

    @abstractmethod
    def policy_loss(self, batch: LossInputs, marks: Tensor) -> Tensor:
        """Return the ``[B, T]`` policy loss per token."""

    def importance_weights(self, batch: LossInputs) -> Tensor | None:
        """Return the ``[B, T]`` constants that multiply the policy loss, or None for 1."""
        return batch.token_weights

    def token_loss(self, batch: LossInputs, marks: Tensor) -> Tensor:
        """Return the ``[B, T]`` full loss per token, before weighting and masking.

        It is the policy loss plus reference KL minus entropy bonus.
        """
        loss = self.policy_loss(batch, marks)
        if loss.shape != batch.mask.shape:  # it would be spread over the tokens without a word
            raise ValueError(
                f"objective {type(self).__name__}.policy_loss returned shape {tuple(loss.shape)};"
                f" one loss per token, {tuple(batch.mask.shape)}, is needed: the mean over tokens"
                " is taken later, by `aggregation`"
            )
        weights = self.importance_weights(batch)
        if weights is not None:
            loss = loss * weights
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
class WithoutAdvantages(Objective):
    """What objectives share whose loss is none of the rewards', so that every completion counts."""

    @property
    def uses_advantages(self) -> bool:
        return False

    @property
    def touches_zero_advantage(self) -> bool:
        return True


@dataclass(frozen=True)
class BoundedObjective(Objective):
    """What objectives share that bound how far the policy moves.

    Args:
        clip_low: how far the ratio may fall below 1, in (0, 1].
        clip_high: how far the ratio may rise above 1, > 0.
    """

    clip_low: float = 0.2
    clip_high: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0 < self.clip_low <= self.most_below and self.clip_high > 0):
            need = f"0 < clip_low <= {self.most_below:g}, clip_high > 0"
            raise ValueError(f"clip_low={self.clip_low}, clip_high={self.clip_high}: need {need}")

    @property
    def most_below(self) -> float:
        """The largest ``clip_low``: a ratio cannot fall by more than 1 below 1."""
        return 1.0


@dataclass(frozen=True)
class ClippedObjective(BoundedObjective):
    """What objectives with PPO's clip share.

    Args:
        clip_low: how far the ratio may fall below 1 before its gradient stops, in (0, 1].
        clip_high: how far the ratio may rise above 1 before its gradient stops, > 0.
        dual_clip: bound of the loss at negative advantages in units of |A|, > 1; null = off.
    """

    dual_clip: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dual_clip is not None and not self.dual_clip > 1:
            raise ValueError(
                f"dual_clip={self.dual_clip} must be greater than 1, or null to turn it off"
            )

    @property
    def bounds(self) -> tuple[float, float, float | None]:
        """``clip_low``, ``clip_high`` and ``dual_clip``, as ``losses.py`` takes them."""
        return self.clip_low, self.clip_high, self.dual_clip

    def clipped(self, batch: LossInputs) -> Tensor:
        """Return the ``[B, T]`` clipped surrogate with this objective's bounds."""
        given = batch.logprobs, batch.old_logprobs, batch.advantages
        return clipped_surrogate(*given, *self.bounds)

    def held(self, batch: LossInputs) -> Tensor:
        return clipped_marks(batch.logprobs, batch.old_logprobs, batch.advantages, *self.bounds)
