"""Masks of packed trees: which keys the tokens of a grid see, and their form for fused attention.

Example: a prompt of two tokens beside a longer one (``width=3``), ``longest=2``, no window:

    keys        0 1 - | 2 3      positions; "-" is padding, which stands at NOWHERE
    token at 2  x x   | x        seen_by_completions(torch.tensor([2]), 3, 2, None)
    token at 3  x x   | x x
"""

from __future__ import annotations

import torch
from torch import Tensor

# CUDA's kernels copy a mask whose rows do not begin at multiples of this many elements.
ALIGNED = 16
NOWHERE = 2**40  # the position of a key that no token sees


def seen_keys(queries: Tensor, keys: Tensor, window: int | None) -> Tensor:
    """Return which keys are seen: positions ``[..., Q], [..., S]`` -> ``[..., Q, S]`` bool.

    A token sees keys that are not later, itself included, and the last ``window`` of these only.
    """
    queries, keys = queries.unsqueeze(-1), keys.unsqueeze(-2)
    return keys <= queries if window is None else (keys <= queries) & (keys > queries - window)


def seen_by_completions(lengths: Tensor, width: int, longest: int, window: int | None) -> Tensor:
    """Return which keys completions see of their prompts and of themselves.

    Args:
        lengths: ``[B]`` int64, tokens of each completion's prompt, on the mask's device.
        width: tokens of the longest prompt; the keys of shorter ones are padded to it.
        longest: tokens of the longest completion.
        window: tokens that each one sees; None = all.

    Returns:
        ``[B, longest, width + longest]`` bool.
    """
    in_prompt, own = (torch.arange(size, device=lengths.device) for size in (width, longest))
    lengths = lengths.unsqueeze(1)
    queries = lengths + own  # [B, longest]
    of_prompt = in_prompt.where(in_prompt < lengths, NOWHERE)  # [B, width]
    return seen_keys(queries, torch.cat([of_prompt, queries], 1), window)


def as_bias(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """Return 0 where a key is seen and -inf elsewhere, which fused kernels add to the scores.

    They would convert a bool mask in every layer.

    Args:
        seen: ``[..., S]`` bool.
        dtype: of the queries.

    Returns:
        The same shape. On a GPU its rows begin at multiples of ``ALIGNED`` elements.
    """
    width = seen.shape[-1]
    stride = width if seen.device.type == "cpu" else -(-width // ALIGNED) * ALIGNED
    bias = torch.zeros((*seen.shape[:-1], stride), dtype=dtype, device=seen.device)[..., :width]
    return bias.masked_fill_(~seen, -torch.inf)
