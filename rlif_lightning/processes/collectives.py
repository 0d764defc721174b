"""Reductions over all ranks and agreements between processes: the only collectives outside of parallel/ and running/.

Every rank must call an ``all_rank_*`` function, also one whose mask is empty. Without an
initialised process group the functions work on this process's values alone. Ranks are data ranks
(``ranks.py``); the ``all_process_*`` versions are over every process.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar
from zlib import crc32

import torch
import torch.distributed as dist
from torch import Tensor

from rlif_lightning.processes.ranks import num_data_ranks, num_processes

T = TypeVar("T")


def is_distributed() -> bool:
    """Whether there are rows on several ranks."""
    return num_data_ranks() > 1


def is_first_process() -> bool:
    """Whether this process does what one alone shall do."""
    return num_processes() == 1 or dist.get_rank() == 0


def all_rank_sum(values: Tensor) -> Tensor:
    """Elementwise sum of ``values`` over all ranks (a collective); the input is left alone."""
    return all_process_sum(values) if is_distributed() else values


def all_process_sum(values: Tensor) -> Tensor:
    """Elementwise sum of ``values`` over all processes (a collective); the input is left alone."""
    if num_processes() == 1:
        return values
    total = values.detach().clone()
    dist.all_reduce(total)
    return total


def all_rank_max(values: Tensor) -> Tensor:
    """Elementwise maximum of ``values`` over all ranks (a collective); the input is left alone."""
    if not is_distributed():
        return values
    largest = values.detach().clone()
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return largest


def all_process_means(figures: Mapping[str, Any], device: torch.device) -> dict[str, Tensor]:
    """The mean of each figure over all processes, in one message (a collective).

    Args:
        figures: single numbers by name; every process has the same names in the same order.
        device: where the means shall lie, float32.

    Raises:
        RuntimeError: the processes have different names: their figures would be mixed up.
    """
    if not figures:
        return {}
    values = torch.hstack(
        [torch.as_tensor(each, dtype=torch.float32, device=device) for each in figures.values()]
    )
    if num_processes() > 1:
        sign = crc32("\n".join(figures).encode())
        signs = torch.tensor([sign, -sign], device=device)
        dist.all_reduce(signs, dist.ReduceOp.MAX)
        if int(signs[0]) != -int(signs[1]):
            raise RuntimeError(
                f"processes log different figures, this one {', '.join(figures)}; a reward head or"
                " an objective must"
                " log the same names on every process (NaN where it has no number)"
            )
        values = all_process_sum(values) / num_processes()
    return dict(zip(figures, values.detach(), strict=True))


def all_rank_objects(value: T) -> list[T]:
    """The value of every rank, by rank (a collective): anything that can be pickled, for what is no tensor."""
    return all_process_objects(value) if is_distributed() else [value]


def all_process_objects(value: T) -> list[T]:
    """As :func:`all_rank_objects`, of every process."""
    if num_processes() == 1:
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def all_process_attempt(work: Callable[[], T]) -> T:
    """This process's part of something that may fail: where any process fails, all do (a collective).

    Raises:
        RuntimeError: another process failed; names it and what it said. A process's own failure is
            raised as it is.
    """
    result: Any = None
    failure: Exception | None = None
    try:
        result = work()
    except Exception as error:  # raised below, after the others know
        failure = error
    told = all_process_objects(None if failure is None else f"{type(failure).__name__}: {failure}")
    if failure is not None:
        raise failure
    for number, said in enumerate(told):
        if said is not None:
            raise RuntimeError(f"process {number} failed: {said}")
    return result


def is_collectives_error(error: BaseException) -> bool:
    """Whether a collective failed while it ran, as where another process is gone; not one that was called wrongly."""
    if isinstance(error, dist.DistError):
        return True
    frames = traceback.extract_tb(error.__traceback__)
    inside = bool(frames) and frames[-1].filename.startswith(str(Path(dist.__file__).parent))
    return inside and isinstance(error, RuntimeError)


def all_rank_distinct(values: Collection[str]) -> int:
    """How many different strings all ranks have together (a collective)."""
    return len(set().union(*all_rank_objects(set(values))))


def all_rank_mean_std(values: Tensor, weights: Tensor, ddof: int = 1) -> tuple[Tensor, Tensor]:
    """Weighted mean and standard deviation over every element of every rank (a collective).

    Args:
        values: any shape; ignored where the weight is 0.
        weights: the same shape, >= 0: a mask, or the number of tokens that an element stands for.
        ddof: the variance's divisor is ``sum(weights) - ddof``; 0 is returned where that is not
            positive.

    Returns:
        Two float64 scalars.
    """
    weights = weights.double()
    values = torch.where(weights > 0, values.double(), 0.0)
    total, count = all_rank_sum(torch.stack([(weights * values).sum(), weights.sum()]))
    mean = total / count.clamp(min=1e-300)
    squares = all_rank_sum((weights * (values - mean).square()).sum())
    return mean, torch.where(count > ddof, (squares / (count - ddof)).sqrt(), 0.0)


def all_rank_top_fraction(
    values: Tensor, mask: Tensor, fraction: float, lottery: Tensor | None = None
) -> Tensor:
    """Marks the ``fraction`` largest of all valid values of all ranks (a collective).

    ``floor(fraction * N)`` values are marked, at least one if any is positive and ``fraction > 0``.
    Of values equal to the smallest marked one, those with the largest ``lottery`` are marked, or
    all of them without a lottery; so the result depends neither on the order of rows nor on the
    number of ranks.

    Args:
        values: any shape, finite where ``mask`` is True.
        mask: the same shape, bool.
        fraction: in [0, 1]; 0 marks nothing.
        lottery: optional, the same shape, > 0: breaks ties.

    Returns:
        bool marks of the same shape, False outside ``mask``.
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction={fraction} must lie in [0, 1] (a share, not per cent)")
    local = values.detach()[mask]
    total = int(all_rank_sum(mask.sum()))
    count = math.floor(fraction * total + 1e-9)
    if fraction == 0 or total == 0:
        return torch.zeros_like(mask)
    candidates = _gather_largest(local, max(count, 1))
    threshold = candidates.topk(max(count, 1)).values[-1]
    if count == 0 and threshold <= 0:
        return torch.zeros_like(mask)
    if lottery is None:
        return mask & (values >= threshold)
    above, tied = mask & (values > threshold), mask & (values == threshold)
    num_above, num_tied = all_rank_sum(torch.stack([above.sum(), tied.sum()])).tolist()
    return above | all_rank_top_fraction(lottery, tied, (max(count, 1) - num_above) / num_tied)


def all_rank_upper_quantile(values: Tensor, mask: Tensor, share: float) -> Tensor:
    """The smallest value that at most ``share`` of all valid values of all ranks lie above (a collective).

    Args:
        values: any shape, finite where ``mask`` is True.
        mask: the same shape, bool.
        share: in [0, 1); 0 gives the largest.

    Returns:
        A scalar; 0 where no rank has a valid value.
    """
    total = int(all_rank_sum(mask.sum()))
    if total == 0:
        return values.new_zeros(())
    count = math.floor(share * total + 1e-9) + 1
    return _gather_largest(values.detach()[mask], count).topk(count).values[-1]


def _gather_largest(local: Tensor, count: int) -> Tensor:
    """The ``count`` largest values of each rank, padded with -inf, from all ranks."""
    largest = local.new_full((count,), -math.inf)
    found = local.topk(min(count, local.numel())).values
    largest[: found.numel()] = found
    if not is_distributed():
        return largest
    parts = [torch.empty_like(largest) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, largest)
    return torch.cat(parts)


def broadcast_from_first(values: Tensor) -> Tensor:
    """The first process's values where all work on the same rows (a collective), else the values themselves."""
    if num_processes() == num_data_ranks():
        return values
    values = values.detach().clone(memory_format=torch.contiguous_format)
    dist.broadcast(values, 0)
    return values
