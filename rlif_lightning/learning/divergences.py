"""Divergences of a student from a teacher by candidates, and the credit of a token for later ones.

A distribution is ``[..., K + 1]`` log-probs: of K tokens, and of all others together (the tail).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

IMPOSSIBLE = -1e4  # a lower log-prob is that of an empty tail or a forbidden token: probability 0


def divergence(student: Tensor, teacher: Tensor, kind: str = "forward_ce") -> Tensor:
    """Compute how far a student is from a teacher at each position, in nats.

    With q the teacher, p the student and m = (p + q) / 2, sums over candidates and tail:

    ==========  ====================================================
    forward_ce  ``-sum q log p``, the cross-entropy
    reverse_kl  ``sum p log(p / q)`` (SDPO)
    jsd         ``sum q log(q / m) / 2 + sum p log(p / m) / 2`` (OPSD, arXiv 2601.18734)
    ==========  ====================================================

    A term of probability 0 is 0, so an empty tail changes nothing.

    Args:
        student: ``[..., K + 1]`` log-probs, with a graph.
        teacher: ``[..., K + 1]`` log-probs of the same tokens.
        kind: one of the above.

    Raises:
        ValueError: an unknown kind.
    """
    student, teacher = student.clamp(min=IMPOSSIBLE), teacher.clamp(min=IMPOSSIBLE)
    if kind == "forward_ce":
        return -(teacher.exp() * student).sum(-1)
    if kind == "reverse_kl":
        return (student.exp() * (student - teacher)).sum(-1)
    if kind != "jsd":
        raise ValueError(f"kind={kind!r} is unknown; use one of forward_ce, reverse_kl, jsd")
    middle = torch.logaddexp(student, teacher) - math.log(2)
    terms = teacher.exp() * (teacher - middle) + student.exp() * (student - middle)
    return terms.sum(-1) / 2


def strict_future(values: Tensor) -> Tensor:
    """Return the sum of the later values at each position: ``[B, T]`` (1, 2, 4) gives (6, 4, 0)."""
    from_here = values.flip(1).cumsum(1).flip(1)
    return torch.cat([from_here[:, 1:], torch.zeros_like(values[:, :1])], 1)


def mean_of_others(values: Tensor, mask: Tensor, group_size: int) -> Tensor:
    """Return the mean value of a completion's siblings at each position, 0 where there is none.

    A baseline without the completion itself leaves the expected gradient as it is.

    Args:
        values: ``[b, T]`` of whole groups.
        mask: ``[b, T]`` bool: where there is a value.
        group_size: G.
    """
    counted = mask.to(values.dtype)
    groups = [(each * counted).view(-1, group_size, mask.shape[1]) for each in (values, counted)]
    total, count = (each.sum(1, keepdim=True) - each for each in groups)
    return (total / count.clamp(min=1)).view(mask.shape)
