"""The arithmetic of rubric rewards: scores of a verdict matrix, and what its criteria weigh.

A verdict is 1 where a criterion holds, 0 where it does not, and NaN where nobody could judge. K is
the number of criteria, C that of their categories. All tensors are float64 on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rlif_lightning.sampling import purpose_seeds

EPS = 1e-4  # added to variances; ours
LEAST_VALID = 0.75  # share of a group's verdicts that a criterion needs for a new factor; POW3R's
LEAST_KEPT = 3  # criteria that a dropout mask keeps; Rubric Dropout's


def rubric_scores(verdicts: Tensor, weights: Tensor, categories: Tensor) -> Tensor:
    """Return the mean over categories of the weighted shares of criteria that hold.

    Verdicts that are NaN count neither above nor below the fraction line. A category without a
    verdict is left out of a completion's mean.

    Args:
        verdicts: ``[P, G, K]`` in [0, 1], or NaN.
        weights: ``[P, K]``, > 0.
        categories: ``[C, K]`` bool, each criterion in one category.

    Returns:
        ``[P, G]`` in [0, 1]; NaN where a completion has no verdict.
    """
    is_valid = ~verdicts.isnan()
    mass = torch.where(is_valid, weights.unsqueeze(1), 0.0)  # [P, G, K]
    gained = mass * verdicts.nan_to_num(0.0)
    total, count = torch.zeros_like(mass[..., 0]), torch.zeros_like(mass[..., 0])
    for members in categories:
        of_category = torch.where(members, mass, 0.0).sum(-1)
        has_verdict = of_category > 0
        share = torch.where(members, gained, 0.0).sum(-1) / torch.where(has_verdict, of_category, 1)
        total, count = total + share, count + has_verdict
    return torch.where(count > 0, total / count.clamp(min=1), torch.nan)


def variances(verdicts: Tensor) -> tuple[Tensor, Tensor]:
    """Return each criterion's population variance over a group's verdicts, and their number.

    Args:
        verdicts: ``[P, G, K]``, NaN = none.

    Returns:
        ``[P, K]`` each; the variance of no verdict is 0.
    """
    is_valid = ~verdicts.isnan()
    count = is_valid.sum(1)
    divisor = count.clamp(min=1)
    values = verdicts.nan_to_num(0.0)
    mean = values.sum(1) / divisor
    deviations = torch.where(is_valid, values - mean.unsqueeze(1), 0.0)
    return deviations.square().sum(1) / divisor, count


def diva_weights(verdicts: Tensor, eps: float = EPS) -> Tensor:
    """Return ``V + eps``, the weights of DIVA (arXiv 2609.35646), ``[P, K]``."""
    return variances(verdicts)[0] + eps


def next_factors(
    factors: Tensor,
    verdicts: Tensor,
    weights: Tensor,
    categories: Tensor,
    settings: tuple[float, float, tuple[float, float]],
    eps: float = EPS,
) -> Tensor:
    """Return POW3R's factors of the criteria after a visit of their problems.

    With ``g = sqrt(V + eps)`` and ``gbar`` its weighted mean over the category:

        aim = clip((1 - strength) + strength g / gbar)
        factor = clip((1 - rate) factor + rate aim)

    A criterion with fewer than 0.75 G verdicts keeps its factor, and is left out of ``gbar``.
    Source: arXiv 2605.20164, as Algorithm 4 of arXiv 2609.35646 restates it.

    Args:
        factors: ``[P, K]``, in force at this visit.
        verdicts: ``[P, G, K]`` of this visit.
        weights: ``[K]`` of the criteria.
        categories: ``[C, K]`` bool.
        settings: strength, rate and bounds.
        eps: added to the variance.
    """
    strength, rate, (low, high) = settings
    variance, count = variances(verdicts)
    spread = (variance + eps).sqrt()  # [P, K]
    judged = count >= LEAST_VALID * verdicts.shape[1]
    aim = torch.ones_like(spread)
    for members in categories:
        mass = torch.where(members & judged, weights, 0.0)
        mean = (mass * spread).sum(-1, keepdim=True) / mass.sum(-1, keepdim=True).clamp(min=1e-300)
        moved = (1 - strength) + strength * spread / torch.where(mean > 0, mean, 1.0)
        aim = torch.where(members & (mean > 0), moved, aim)
    moved = (1 - rate) * factors + rate * aim.clamp(low, high)
    return torch.where(judged, moved.clamp(low, high), factors)


def num_dropped(fraction: float, num_criteria: int, num_protected: int) -> int:
    """Return how many criteria a dropout mask leaves out."""
    most = min(num_criteria - num_protected, num_criteria - LEAST_KEPT)
    return max(0, min(math.floor(fraction * num_criteria + 1e-9), most))


def kept_criteria(
    rows: Sequence[int], rollout_number: int, protected: Sequence[bool], fraction: float
) -> Tensor:
    """Draw the criteria that Rubric Dropout keeps, one mask for a whole group.

    The mask depends on the problem and the rollout alone.

    Args:
        rows: each of P problems' number in the data set.
        rollout_number: of the run.
        protected: K times, whether a criterion is never left out.
        fraction: of all criteria that are left out, as far as 3 and the protected ones stay.

    Returns:
        ``[P, K]`` bool.
    """
    free = [number for number, stays in enumerate(protected) if not stays]
    count = num_dropped(fraction, len(protected), len(protected) - len(free))
    kept = torch.ones(len(rows), len(protected), dtype=torch.bool)
    for place, row in enumerate(rows):
        seeds = purpose_seeds("criteria", rollout_number, row)
        for number in np.random.default_rng(seeds).permutation(free)[:count].tolist():
            kept[place, number] = False
    return kept
