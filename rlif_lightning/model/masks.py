"""Masks of packed trees: which keys the tokens of a grid see, and the form in which fused attention takes that."""

from __future__ import annotations

import torch
from torch import Tensor

ALIGNED = 16  # CUDA's kernel for masks copies one whose rows do not begin at a multiple of this
NOWHERE = 2**40  # the position of a key that no token sees


def seen_keys(queries: Tensor, keys: Tensor, window: int | None) -> Tensor:
    """``[..., Q], [..., S] -> [..., Q, S]`` bool: keys whose positions are not later, and inside the window."""
    queries, keys = queries.unsqueeze(-1), keys.unsqueeze(-2)
    return keys <= queries if window is None else (keys <= queries) & (keys > queries - window)


def seen_by_completions(lengths: Tensor, width: int, steps: int, window: int | None) -> Tensor:
    """What completions see of their prompts and of themselves.

    Args:
        lengths: ``[B]`` int64, tokens of each row's prompt, on the device that the mask is for.
        width: tokens of the longest prompt; the keys of shorter ones are padded to it.
        steps: tokens of the longest completion.
        window: tokens that each one sees; None = all.

    Returns:
        ``[B, steps, width + steps]`` bool.
    """
    in_prompt, own = (torch.arange(size, device=lengths.device) for size in (width, steps))
    lengths = lengths.unsqueeze(1)
    queries = lengths + own
    return seen_keys(
        queries, torch.cat([in_prompt.where(in_prompt < lengths, NOWHERE), queries], 1), window
    )


def as_bias(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where a key is seen and -inf elsewhere, as fused kernels take it without a conversion in every layer.

    Args:
        seen: ``[..., S]`` bool.
        dtype: of the queries.

    Returns:
        The same shape. On a GPU its rows lie at multiples of ``ALIGNED`` in memory.
    """
    width = seen.shape[-1]
    room = width if seen.device.type == "cpu" else -(-width // ALIGNED) * ALIGNED
    bias = torch.zeros((*seen.shape[:-1], room), dtype=dtype, device=seen.device)[..., :width]
    return bias.masked_fill_(~seen, -torch.inf)
