"""Formulas of reward options: scores without the part that is linear in length. Pure functions."""

from __future__ import annotations

from torch import Tensor

from rlif_lightning.masked import masked_mean, masked_sum


def without_length(scores: Tensor, lengths: Tensor) -> Tensor:
    """Subtract what is linear in completion length inside a group; the group's mean stays.

    ``r - b (L - mean L)`` with the least-squares slope ``b = cov(r, L) / var(L)`` of the group. A
    line fits a group of two exactly, so nothing but its mean is left.

    Args:
        scores: ``[P, G]``; NaN = does not apply, left out.
        lengths: ``[P, G]`` tokens.

    Returns:
        ``[P, G]`` float64; NaN where the score is.
    """
    valid = ~scores.isnan()
    away = [
        values.double() - masked_mean(values.double(), valid, -1).unsqueeze(-1)
        for values in (scores, lengths)
    ]
    slope = masked_sum(away[0] * away[1], valid, -1) / masked_sum(
        away[1].square(), valid, -1
    ).clamp(min=1e-12)
    return scores.double() - slope.unsqueeze(-1) * away[1]
