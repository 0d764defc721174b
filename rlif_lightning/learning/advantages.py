"""Advantages: from R rewards per completion to one number per completion.

Every estimator is a sum of one part per reward, ``A = sum_r part_r``. The share of each reward in
|A| is measured on these parts. Inside a group every estimator gives exactly 0 where rewards are
equal and to a group of one, does not change when a constant is added, and leaves out a reward that
is NaN ("does not apply"). A normalisation over the batch comes after that. Estimators that need a
value network are left out.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from rlif_lightning.learning.normalization import (
    batch_normalize,
    center,
    group_normalize,
    leave_one_out,
    leave_one_out_normalize,
    per_group,
    scored_lengths,
)
from rlif_lightning.masked import MIN_SPREAD, masked_std
from rlif_lightning.processes.collectives import all_rank_mean_std, all_rank_sum
from rlif_lightning.setting_types import check_types

BATCH_NORMS = ("none", "sample", "token")
NORMALIZE = ("group", "batch", "none")


def gdpo(
    rewards: Tensor,
    weights: Tensor,
    batch_norm: str = "none",
    eps: float = 1e-4,
    *,
    lengths: Tensor | None = None,
) -> Tensor:
    """Compute GDPO: normalise each reward in its group on its own, then sum with weights.

    ``A = Σ_r w_r (reward_r - mean_g) / (std_g + eps)``, then optionally normalised over the whole
    batch. Source: https://arxiv.org/abs/2601.05242 (the batch step is that paper's; arXiv
    2605.22620 leaves it out).

    Args:
        rewards: ``[R, P, G]``; NaN = does not apply.
        weights: ``[R]`` reward weights, or ``[R, P]`` where they differ between groups.
        batch_norm: ``none``; ``sample``: ``(A - mean) / (std + eps)`` over all completions of all
            data ranks; ``token``: the same, with each completion counted once for each of its
            tokens.
        eps: added to each standard deviation.
        lengths: ``[P, G]`` completion lengths in tokens; needed for ``token`` only.

    Returns:
        ``[P, G]`` float32.
    """
    if weights.shape not in (rewards.shape[:1], rewards.shape[:2]):
        raise ValueError(
            f"weights of shape {tuple(weights.shape)} must be one per reward,"
            f" {tuple(rewards.shape[:1])}"
        )
    return GDPO(batch_norm, eps=eps)(rewards, weights, lengths)


def reward_shares(parts: Tensor) -> Tensor:
    """Compute each reward's share of |A|, ``Σ|part_r| / Σ_r Σ|part_r|`` (a collective).

    Args:
        parts: ``[R, P, G]`` from :meth:`Advantage.parts`.

    Returns:
        ``[R]`` over all data ranks; it sums to 1, or is all 0 where every part is 0.
    """
    sizes = all_rank_sum(parts.abs().flatten(1).sum(1))
    return sizes / sizes.sum().clamp(min=1e-30)


@dataclass(frozen=True)
class Advantage(ABC):
    """An advantage estimator: ``(rewards [R, P, G], weights [R] or [R, P]) -> [P, G]``."""

    def __post_init__(self) -> None:
        check_types(self)

    @abstractmethod
    def parts(self, rewards: Tensor, weights: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return each reward's part, ``[R, P, G]`` float64; the advantage is their sum over R.

        Args:
            rewards: ``[R, P, G]``; NaN = does not apply.
            weights: ``[R]``, or ``[R, P]`` where they differ between groups.
            lengths: ``[P, G]`` tokens of each completion; needed by estimators that weight by
                tokens.
        """

    def check(self, group_size: int) -> None:
        """Refuse groups of one where the estimator gives them advantage 0 whatever their rewards.

        Raises:
            ValueError: names the setting and the remedy.
        """
        apart = torch.tensor([[[0.0], [1.0]]])  # two groups of one with different rewards
        if group_size == 1 and not self.parts(apart, torch.ones(1), torch.ones(2, 1)).any():
            raise ValueError(
                f"group_size=1 leaves model.advantage={type(self).__name__} nothing to compare:"
                " every advantage would be 0; set data.group_size to 2 or more"
            )

    def __call__(self, rewards: Tensor, weights: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return ``[P, G]`` float32 advantages; the arguments are those of :meth:`parts`."""
        parts = self.parts(rewards, weights, lengths)
        return self.total(
            parts, None if lengths is None else scored_lengths(rewards, weights, lengths)
        )

    def total(self, parts: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return the advantages of all rewards' parts (a collective where a batch is normalised).

        Args:
            parts: ``[R, P, G]`` from :meth:`parts`.
            lengths: ``[P, G]`` tokens of each completion; 0 where no reward with a weight applies.

        Returns:
            ``[P, G]`` float32: their sum. An estimator that works on tokens returns ``[B, T]``.
        """
        return parts.sum(0).float()

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "__call__" in vars(cls):
            raise TypeError(
                f"{cls.__name__} overrides __call__, which a run does not use: it needs the parts"
                " as well; override total(parts, lengths) instead"
            )


@dataclass(frozen=True, kw_only=True)
class GroupNormalised(Advantage):
    """An estimator that divides by a group's standard deviation (ddof 1).

    A group whose standard deviation is not above 1e-6 gets advantage 0.

    Args:
        eps: added to standard deviations, in units of the reward.
    """

    eps: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.eps < 0:
            raise ValueError(f"eps={self.eps} must not be negative")


@dataclass(frozen=True)
class BatchNormalised(GroupNormalised):
    """An estimator whose sum over rewards may be normalised over the batch of all data ranks.

    Args:
        batch_norm: none | sample | token: whether a completion counts once in the batch's mean and
            standard deviation, or as often as it has tokens; none = no such step.
    """

    batch_norm: str = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_norm not in self.batch_norms:
            known = ", ".join(self.batch_norms)
            raise ValueError(f"batch_norm={self.batch_norm!r} is unknown; use one of {known}")

    @property
    def batch_norms(self) -> tuple[str, ...]:
        """The known kinds."""
        return BATCH_NORMS

    def total(self, parts: Tensor, lengths: Tensor | None = None) -> Tensor:
        total = parts.sum(0)
        if self.batch_norm != "none":
            total = batch_normalize(total, lengths, self.batch_norm, self.eps)
        return total.float()


@dataclass(frozen=True)
class GDPO(BatchNormalised):
    """Each reward normalised on its own, then summed with weights (:func:`gdpo`).

    Args:
        batch_norm: none | sample | token: a second normalisation, over the batch of all data ranks.
        leave_one_out: whether a completion's mean and standard deviation are those of the group's
            other completions; for groups of 8 or more.
    """

    leave_one_out: bool = False

    def parts(self, rewards: Tensor, weights: Tensor, lengths: Tensor | None = None) -> Tensor:
        if self.leave_one_out:
            scores = leave_one_out_normalize(rewards, self.eps)
        else:
            scores = group_normalize(rewards, self.eps)
        return scores * per_group(weights)


@dataclass(frozen=True)
class GRPO(GroupNormalised):
    """Rewards summed with weights first, then normalised.

    https://arxiv.org/abs/2402.03300

    The reward with the larger spread dominates the sum; this is the naive way to combine two
    rewards.

    Args:
        normalize: group | batch | none: what the sum minus its group mean is divided by: the
            standard deviation of the sum in the group, or in the batch of all data ranks, where it
            includes the differences between groups (https://arxiv.org/abs/2508.08221), or nothing,
            as in DrGRPO.
    """

    normalize: str = "group"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.normalize not in NORMALIZE:
            raise ValueError(
                f"normalize={self.normalize!r} is unknown; use one of {', '.join(NORMALIZE)}"
            )

    def parts(self, rewards: Tensor, weights: Tensor, lengths: Tensor | None = None) -> Tensor:
        centered = center(rewards) * per_group(weights)
        if self.normalize == "none":
            return centered
        counted = (~rewards.isnan() & (per_group(weights) != 0)).any(0)  # [P, G]
        if self.normalize == "group":
            std = masked_std(centered.sum(0), counted, -1).unsqueeze(-1)
        else:
            total = (rewards.double().nan_to_num() * per_group(weights)).sum(0)  # [P, G]
            std = all_rank_mean_std(total, counted)[1]
        return torch.where(std > MIN_SPREAD, centered / (std + self.eps), 0.0)


@dataclass(frozen=True)
class DrGRPO(Advantage):
    """Weighted rewards minus the group mean, without dividing by a spread.

    https://arxiv.org/abs/2503.20783
    """

    def parts(self, rewards: Tensor, weights: Tensor, lengths: Tensor | None = None) -> Tensor:
        return center(rewards) * per_group(weights)


@dataclass(frozen=True)
class RLOO(Advantage):
    """Each reward minus the mean of the group's other rewards.

    https://arxiv.org/abs/2402.14740
    """

    def parts(self, rewards: Tensor, weights: Tensor, lengths: Tensor | None = None) -> Tensor:
        return leave_one_out(rewards) * per_group(weights)
