"""Scores of completions relative to their group or batch: pure functions of ``[..., G]``.

For a group with the rewards 4, 1, 0, 1, whose mean is 3/2 and whose standard deviation is 1.73:

    minus the mean                      5/2    -1/2   -3/2   -1/2    center
    minus the mean of the others        10/3   -2/3   -2     -2/3    leave_one_out
    divided by the group's deviation    1.44   -0.29  -0.87  -0.29   group_normalize
    by the others' instead              5.77   -0.32  -1.15  -0.32   leave_one_out_normalize
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlif_lightning.masked import MIN_SPREAD, masked_mean, masked_std
from rlif_lightning.processes.collectives import all_rank_mean_std


def center(rewards: Tensor) -> Tensor:
    """Return rewards minus their group mean, in float64.

    Args:
        rewards: ``[..., G]``; NaN = does not apply.

    Returns:
        ``[..., G]`` float64; exactly 0 where the reward is NaN and in a group whose valid rewards
        are all equal.
    """
    values = rewards.double()
    valid = ~values.isnan()
    centered = values - masked_mean(values, valid, -1).unsqueeze(-1)
    lowest = torch.where(valid, values, torch.inf).amin(-1, keepdim=True)
    highest = torch.where(valid, values, -torch.inf).amax(-1, keepdim=True)
    return torch.where(valid & (highest > lowest), centered, 0.0)


def group_normalize(
    rewards: Tensor, eps: float = 1e-4, ddof: int = 1, std_floor: float = MIN_SPREAD
) -> Tensor:
    """Compute z-scores inside each group, ``z = (r - mean) / (std + eps)``.

    Args:
        rewards: ``[..., G]``; NaN = does not apply, left out of the statistics.
        eps: added to the standard deviation, in units of the reward.
        ddof: the variance is divided by ``count - ddof``.
        std_floor: a group whose standard deviation is not above this gets 0 (rounding noise is not
            blown up).

    Returns:
        ``[..., G]`` float64; 0 for NaN, for a group of one and for a group of equal rewards.
    """
    centered = center(rewards)
    std = masked_std(rewards.double(), ~rewards.isnan(), -1, ddof).unsqueeze(-1)
    return torch.where(std > std_floor, centered / (std + eps), 0.0)


def leave_one_out(rewards: Tensor) -> Tensor:
    """Return each reward minus the mean of the group's other rewards, in float64.

    With n valid rewards in the group this is ``(r - mean) * n / (n - 1)``.

    Args:
        rewards: ``[..., G]``; NaN = does not apply.

    Returns:
        ``[..., G]`` float64; exactly 0 for NaN, for a group of one and where all rewards are equal.
    """
    count = (~rewards.isnan()).sum(-1, keepdim=True)
    return center(rewards) * count / (count - 1).clamp(min=1)


def leave_one_out_normalize(
    rewards: Tensor, eps: float = 1e-4, std_floor: float = MIN_SPREAD
) -> Tensor:
    """Compute z-scores of which each is by the mean and standard deviation of the group's others.

    Args:
        rewards: ``[..., G]``; NaN = does not apply, left out of the statistics.
        eps: added to the standard deviation (ddof 1), in units of the reward.
        std_floor: where the others' standard deviation is not above this, as among equal others and
            in a group of two, the whole group's stands in; where that is not either, the z-score
            is 0.

    Returns:
        ``[..., G]`` float64.
    """
    values, valid = rewards.double(), ~rewards.isnan()
    own = torch.eye(rewards.shape[-1], dtype=torch.bool, device=rewards.device)
    others = values.unsqueeze(-2).expand(*values.shape, values.shape[-1])  # [..., G, G]
    std = masked_std(others, valid.unsqueeze(-2) & ~own, -1)  # [..., G]
    std = torch.where(std > std_floor, std, masked_std(values, valid, -1).unsqueeze(-1))
    return torch.where(std > std_floor, leave_one_out(rewards) / (std + eps), 0.0)


def batch_normalize(total: Tensor, lengths: Tensor | None, kind: str, eps: float) -> Tensor:
    """Normalise advantages over the batch of all data ranks (a collective).

    Args:
        total: ``[P, G]`` float64 advantages.
        lengths: ``[P, G]`` tokens of each completion.
        kind: ``sample``: each completion that has tokens counts once; ``token``: as often as it
            has tokens. One without tokens gets 0.
        eps: added to the standard deviation.

    Returns:
        ``[P, G]`` float64; all 0 where the standard deviation is not above 1e-6.

    Raises:
        ValueError: ``token`` without lengths.
    """
    counts = lengths
    if kind == "sample":  # a completion that a head dropped has no tokens
        counts = torch.ones_like(total) if lengths is None else lengths > 0
    if counts is None:
        raise ValueError(
            "batch_norm='token' needs lengths [P, G]; pass them or use batch_norm='sample'"
        )
    mean, std = all_rank_mean_std(total, counts)
    return torch.where((counts > 0) & (std > MIN_SPREAD), (total - mean) / (std + eps), 0.0)


def scored_lengths(rewards: Tensor, weights: Tensor, lengths: Tensor) -> Tensor:
    """Return lengths that are 0 for completions to which no reward with a weight applies.

    So a normalisation over the batch leaves such completions out, as TRL does.

    Args:
        rewards: ``[R, P, G]``; NaN = does not apply.
        weights: ``[R]`` or ``[R, P]``.
        lengths: ``[P, G]`` tokens of each completion.
    """
    applies = ~rewards.isnan() & (per_group(weights) != 0)  # [R, P, G]
    return torch.where(applies.any(0), lengths.to(rewards.device), 0)


def per_group(weights: Tensor) -> Tensor:
    """Return ``[R]`` or ``[R, P]`` reward weights as float64 factors of ``[R, P, G]``."""
    return weights.double().reshape(len(weights), -1, 1)
