"""Masked sum, mean, standard deviation and maximum of local values: pure functions.

Values outside a mask never count, even if they are NaN or infinite. Nothing here is a collective;
the versions over all data ranks are in ``processes/collectives.py``.
"""

from __future__ import annotations

import torch
from torch import Tensor

MIN_SPREAD = 1e-6  # a smaller standard deviation of scores is rounding


def masked_sum(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Sum ``values`` where ``mask`` is True, over all or along ``dim``; an empty set sums to 0."""
    kept = torch.where(mask, values, torch.zeros_like(values))
    return kept.sum() if dim is None else kept.sum(dim)


def masked_mean(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Average ``values`` where ``mask`` is True, over all or along ``dim``; 0 for an empty set."""
    count = mask.sum() if dim is None else mask.sum(dim)
    return masked_sum(values, mask, dim) / count.clamp(min=1)


def masked_std(values: Tensor, mask: Tensor, dim: int, ddof: int = 1) -> Tensor:
    """Compute the standard deviation along ``dim`` where ``mask`` is True.

    Args:
        values: any shape.
        mask: the same shape, bool.
        dim: the dimension to reduce.
        ddof: the divisor is ``count - ddof``; the result is 0 where that is not positive (a set of
            one).
    """
    mean = masked_mean(values, mask, dim).unsqueeze(dim)
    squares = masked_sum((values - mean).square(), mask, dim)
    degrees = mask.sum(dim) - ddof
    return torch.where(
        degrees > 0, squares / degrees.clamp(min=1), torch.zeros_like(squares)
    ).sqrt()


def masked_max(values: Tensor, mask: Tensor) -> Tensor:
    """Return the largest of ``values`` >= 0 where ``mask`` is True; 0 for an empty set."""
    return torch.cat([values[mask], values.new_zeros(1)]).max()


def mean_over_completion(values: Tensor, mask: Tensor) -> Tensor:
    """Average over a completion's tokens, ``[B, T] -> [B]``; 0 for one without tokens."""
    return masked_mean(values, mask, -1).float()


def extents(mask: Tensor) -> Tensor:
    """Return ``[...]`` int64: one more than the last position where ``mask`` is True; 0 if none."""
    return mask.flip(-1).cummax(-1).values.sum(-1)
