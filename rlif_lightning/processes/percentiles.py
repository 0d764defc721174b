"""Percentiles of values that lie on several data ranks: each rank counts, and no value is sent.

A float32 is read as an integer of the same order, and the integer is found byte by byte, the first
byte first. For the median of 1, 2 and 9 the ranks count which first bytes their values have, add
the counts up, and see under which byte the second smallest value lies. Then they count the second
bytes of the values under that byte, and so on: four messages for any number of values.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlif_lightning.processes.collectives import all_rank_sum

_BYTES = (24, 16, 8, 0)  # their places in 32 bits


def all_rank_percentiles(values: Tensor, percentiles: Sequence[float]) -> Tensor:
    """Compute percentiles of all values of all data ranks (a collective).

    Between two neighbouring values they are linear, as numpy's are.

    Args:
        values: ``[N]``, finite; N may differ between ranks, and be 0.
        percentiles: K numbers in [0, 100].

    Returns:
        ``[K]`` float64; NaN where no rank has a value.

    Example:
        >>> all_rank_percentiles(torch.tensor([9.0, 1.0, 2.0]), (0, 50, 75)).tolist()
        [1.0, 2.0, 5.5]
    """
    keys = _ordered_integers(values.detach())
    total = int(all_rank_sum(torch.tensor(keys.numel(), device=keys.device)))
    places = torch.tensor(percentiles, dtype=torch.float64, device="cpu") / 100 * (total - 1)
    if total == 0:
        return torch.full_like(places, torch.nan).to(keys.device)
    below = places.floor().long()
    found = _order_statistics(keys, torch.cat([below, places.ceil().long()]).to(keys.device))
    low, high = found.double().chunk(2)
    return low + (high - low) * (places - below).to(keys.device)


def _order_statistics(keys: Tensor, places: Tensor) -> Tensor:
    """Return the values at some places (from 0) of all ranks' sorted values (a collective)."""
    found = torch.zeros_like(places)  # the bytes so far
    for shift in _BYTES:
        under = [keys[keys >> (shift + 8) == known] for known in found.tolist()]
        counts = [torch.bincount(each >> shift & 255, minlength=256) for each in under]
        upto = all_rank_sum(torch.stack(counts)).cumsum(1)  # [K, 256]
        byte = (upto <= places.unsqueeze(1)).sum(1)
        before = upto.gather(1, (byte - 1).clamp(min=0).unsqueeze(1)).squeeze(1)
        places = places - torch.where(byte > 0, before, 0)
        found = found << 8 | byte
    bits = torch.where(found >= 2**31, found - 2**31, ~found)
    return bits.int().view(torch.float32)


def _ordered_integers(values: Tensor) -> Tensor:
    """Return int64 in [0, 2**32), ordered as the float32 values are."""
    bits = values.float().contiguous().view(torch.int32).long()
    return torch.where(bits >= 0, bits + 2**31, ~bits & (2**31 - 1))
