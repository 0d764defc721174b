"""A lottery among tokens that gives the same numbers on every data rank and in every order.

Objectives break ties by it, or pick tokens at random. A computed number, such as a log-prob, would
not do: it rounds differently on different numbers of data ranks.
"""

from __future__ import annotations

import torch
from torch import Tensor

GOLDEN_GAMMA = -0x61C8864680B583EB  # 2**64 / golden ratio, as a signed number


def token_lottery(completion_numbers: Tensor, num_positions: int, seed: int = 0) -> Tensor:
    """Draw a repeatable lottery number in (0, 1] for each token, from its place in the run alone.

    Args:
        completion_numbers: ``[B]`` int64.
        num_positions: T.
        seed: any integer.

    Returns:
        ``[B, T]`` float64, from the splitmix64 finaliser.
    """
    position = torch.arange(num_positions, device=completion_numbers.device) * GOLDEN_GAMMA  # [T]
    wrapped = (seed * GOLDEN_GAMMA + 2**63) % 2**64 - 2**63
    tokens = _mix(_mix(completion_numbers).unsqueeze(-1) + position)  # [B, 1] + [T] to [B, T]
    return (_mix(tokens + wrapped) & 0xFFFFFFFF).double().add(1) / 2.0**32


def _mix(bits: Tensor) -> Tensor:
    """Apply the splitmix64 finaliser, with arithmetic shifts."""
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        bits = (bits ^ (bits >> shift)) * factor
    return bits ^ (bits >> 31)
