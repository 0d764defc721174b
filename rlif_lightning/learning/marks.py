"""Marks on tokens: which share of them an objective picks, and ties broken by place.

The marks of an objective are ``[B, T]``: bool, or float with a sign or a weight (objectives.py).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rlif_lightning.processes.collectives import all_rank_sum, all_rank_top_fraction

MAX_POSITIONS = 2**20  # of a completion; times 2**32 completions it is exact in float64


def picked(marks: Tensor) -> Tensor:
    """Return ``[B, T]`` bool: which tokens are marked, by bool or float marks."""
    return marks if marks.dtype == torch.bool else marks != 0


def share_of_candidates(candidates: Tensor, mask: Tensor, fraction: float) -> float:
    """Return which share of the candidates is ``fraction`` of all valid tokens (a collective)."""
    num_tokens, num_candidates = all_rank_sum(torch.stack([mask.sum(), candidates.sum()])).tolist()
    return min(1.0, fraction * num_tokens / max(num_candidates, 1))


def count_of(fraction: float, total: int) -> int:
    """Return ``ceil(fraction * total)``, where a product that is whole but for rounding is whole.

    Example:
        >>> 0.07 * 100, count_of(0.07, 100), count_of(0.07, 101), count_of(0.07, 1)
        (7.000000000000001, 7, 8, 1)
    """
    return math.ceil(fraction * total - 1e-9)


def earliest_first(completion_numbers: Tensor, num_positions: int) -> Tensor:
    """Return ``[B, T]`` float64, > 0, that falls from position to position and with the number.

    It orders equal values on any number of data ranks as one process orders them by place: the
    completion with the smallest number first, and in it the first position.

    Args:
        completion_numbers: ``[B]`` int64 (Rollout.completion_numbers), of one rollout.
        num_positions: T.
    """
    number = (completion_numbers & 0xFFFFFFFF).double().unsqueeze(1)  # [B, 1]
    position = torch.arange(num_positions, device=number.device)  # [T]
    return 2.0**52 - (number * MAX_POSITIONS + position)


def all_rank_largest(
    values: Tensor, candidates: Tensor, fraction: float, completion_numbers: Tensor
) -> Tensor:
    """Mark the ``ceil(fraction * N)`` largest of N candidates of all data ranks (a collective).

    Of equal values the earliest are marked (:func:`earliest_first`). A new and a replayed
    completion may have one place in their rollouts: there the one of the later rollout is marked.

    Args:
        values: ``[B, T]``, finite where ``candidates`` is True.
        candidates: ``[B, T]`` bool; there may be none.
        fraction: in [0, 1].
        completion_numbers: ``[B]`` int64.

    Returns:
        ``[B, T]`` bool.
    """
    total = int(all_rank_sum(candidates.sum()))
    share = count_of(fraction, total) / max(total, 1)
    order = earliest_first(completion_numbers, values.shape[1])
    newest = ((completion_numbers >> 32) + 1).double().unsqueeze(1).expand_as(order)
    return all_rank_top_fraction(values, candidates, share, order, newest)


def largest(values: Tensor, candidates: Tensor, fraction: float) -> Tensor:
    """Mark the ``ceil(fraction * N)`` largest of N candidates of this tensor alone.

    Of equal values the earliest are marked. Shapes are those of :func:`all_rank_largest`.
    """
    places = candidates.flatten().nonzero().squeeze(1)
    order = values.detach().flatten()[places].sort(descending=True, stable=True).indices
    marks = torch.zeros_like(candidates).flatten()
    marks[places[order[: count_of(fraction, len(places))]]] = True
    return marks.view_as(candidates)
