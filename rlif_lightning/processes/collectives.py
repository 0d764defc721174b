"""Reductions and agreements: the only collectives outside of ``parallel/`` and ``running/``.

The ``all_rank_*`` functions are over data ranks (``ranks.py``), the ``all_process_*`` functions
over every process. Every data rank must call an ``all_rank_*`` function, even with an empty mask.
Without an initialised process group the functions return this process's own values.
"""

from __future__ import annotations

import math
import pickle
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
    """Say whether there is more than one data rank."""
    return num_data_ranks() > 1


def is_first_process() -> bool:
    """Say whether this is the process that does what only one process may do."""
    return num_processes() == 1 or dist.get_rank() == 0


def all_rank_sum(values: Tensor) -> Tensor:
    """Return the elementwise sum over all data ranks (a collective); the input stays as it is."""
    return all_process_sum(values) if is_distributed() else values


def all_process_sum(values: Tensor) -> Tensor:
    """Return the elementwise sum over all processes (a collective); the input stays as it is."""
    if num_processes() == 1:
        return values
    total = values.detach().clone()
    dist.all_reduce(total)
    return total


def all_rank_max(values: Tensor) -> Tensor:
    """Return the elementwise maximum over data ranks (a collective); the input stays as it is."""
    if not is_distributed():
        return values
    largest = values.detach().clone()
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return largest


def all_process_means(figures: Mapping[str, Any], device: torch.device) -> dict[str, Tensor]:
    """Compute the mean of each figure over all processes, in one message (a collective).

    Args:
        figures: single numbers by name; every process has the same names in the same order.
        device: of the means, which are float32.

    Raises:
        RuntimeError: the processes have different names, so that figures would be mixed up.
    """
    if not figures:
        return {}
    values = torch.hstack(
        [torch.as_tensor(each, dtype=torch.float32, device=device) for each in figures.values()]
    )
    if num_processes() > 1:
        checksum = crc32("\n".join(figures).encode())
        # The maximum of x and that of -x are each other's opposites only where all x are equal.
        bounds = torch.tensor([checksum, -checksum], device=device)
        dist.all_reduce(bounds, dist.ReduceOp.MAX)
        if int(bounds[0]) != -int(bounds[1]):
            raise RuntimeError(
                f"processes log different figures, this one {', '.join(figures)}; a reward head or"
                " an objective must log the same names on every process (NaN where it has no"
                " number)"
            )
        values = all_process_sum(values) / num_processes()
    return dict(zip(figures, values.detach(), strict=True))


def all_rank_objects(value: T) -> list[T]:
    """Return the values of all data ranks, in their order (a collective); they are pickled."""
    return all_process_objects(value) if is_distributed() else [value]


def all_process_objects(value: T) -> list[T]:
    """Return the values of all processes, in their order (a collective); they are pickled."""
    if num_processes() == 1:
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def all_process_attempt(work: Callable[[], T]) -> T:
    """Return ``work()``, or raise on every process if it fails on any (a collective).

    Raises:
        RuntimeError: another process failed; names it and its error. A process's own error is
            raised as it is.
    """
    result: Any = None
    failure: Exception | None = None
    try:
        result = work()
    except Exception as error:  # it is raised below, after the others have received it
        failure = error
    own = None if failure is None else f"{type(failure).__name__}: {failure}"
    messages = all_process_objects(own)
    if failure is not None:
        raise failure
    for number, message in enumerate(messages):
        if message is not None:
            raise RuntimeError(f"process {number} failed: {message}")
    return result


def is_collectives_error(error: BaseException) -> bool:
    """Say whether a collective failed while it ran: another process is gone, for example.

    A collective that was called wrongly does not count.
    """
    if isinstance(error, dist.DistError):
        return True
    frames = traceback.extract_tb(error.__traceback__)
    inside = bool(frames) and frames[-1].filename.startswith(str(Path(dist.__file__).parent))
    return inside and isinstance(error, RuntimeError)


def all_rank_distinct(values: Collection[str]) -> int:
    """Count the different strings that all data ranks have together (a collective)."""
    return len(set().union(*all_rank_objects(set(values))))


def all_rank_mean_std(values: Tensor, counts: Tensor, ddof: int = 1) -> tuple[Tensor, Tensor]:
    """Compute mean and standard deviation over all elements of all data ranks (a collective).

    Args:
        values: any shape; ignored where the count is 0.
        counts: the same shape, >= 0: a mask, or the number of tokens that an element stands for.
        ddof: the variance's divisor is ``sum(counts) - ddof``; 0 is returned where that is not
            positive.

    Returns:
        Two float64 scalars.
    """
    counts = counts.double()
    values = torch.where(counts > 0, values.double(), 0.0)
    total, count = all_rank_sum(torch.stack([(counts * values).sum(), counts.sum()]))
    mean = total / count.clamp(min=1e-300)
    squares = all_rank_sum((counts * (values - mean).square()).sum())
    return mean, torch.where(count > ddof, (squares / (count - ddof)).sqrt(), 0.0)


def all_rank_top_fraction(
    values: Tensor, mask: Tensor, fraction: float, *lotteries: Tensor
) -> Tensor:
    """Mark the ``fraction`` largest of all valid values of all data ranks (a collective).

    ``floor(fraction * N)`` values are marked, at least one if any is positive and ``fraction > 0``.
    Of values equal to the smallest marked one, those with the largest number in the first lottery
    are marked, of equal ones there those of the next, or all of them without another lottery. So
    the result depends neither on the order of completions nor on the number of data ranks.

    Args:
        values: any shape, finite where ``mask`` is True.
        mask: the same shape, bool.
        fraction: in [0, 1]; 0 marks nothing.
        lotteries: the same shape, > 0: they break ties, one after the other.

    Returns:
        Bool marks of the same shape, False outside ``mask``.
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
    if not lotteries:
        return mask & (values >= threshold)
    above, tied = mask & (values > threshold), mask & (values == threshold)
    num_above, num_tied = all_rank_sum(torch.stack([above.sum(), tied.sum()])).tolist()
    share = (max(count, 1) - num_above) / num_tied
    if share == 1:
        return above | tied
    return above | all_rank_top_fraction(lotteries[0], tied, share, *lotteries[1:])


def all_rank_upper_quantile(values: Tensor, mask: Tensor, share: float) -> Tensor:
    """Return the least value that at most ``share`` of all valid values exceed (a collective).

    Args:
        values: any shape, finite where ``mask`` is True.
        mask: the same shape, bool.
        share: in [0, 1); 0 gives the largest.

    Returns:
        A scalar; 0 where no data rank has a valid value.
    """
    total = int(all_rank_sum(mask.sum()))
    if total == 0:
        return values.new_zeros(())
    count = math.floor(share * total + 1e-9) + 1
    return _gather_largest(values.detach()[mask], count).topk(count).values[-1]


def _gather_largest(local: Tensor, count: int) -> Tensor:
    """Gather the ``count`` largest values of each data rank, padded with -inf (a collective)."""
    largest = local.new_full((count,), -math.inf)
    found = local.topk(min(count, local.numel())).values
    largest[: found.numel()] = found
    if not is_distributed():
        return largest
    parts = [torch.empty_like(largest) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, largest)
    return torch.cat(parts)


def broadcast_from_first(values: Tensor) -> Tensor:
    """Return the first process's values on all processes that share a data rank (a collective).

    Where every process is a data rank of its own, each keeps its values.
    """
    if num_processes() == num_data_ranks():
        return values
    values = values.detach().clone(memory_format=torch.contiguous_format)
    dist.broadcast(values, 0)
    return values


def first_process_result(work: Callable[[], T]) -> T:
    """Return the first process's ``work()`` on all that share a data rank (a collective).

    The result is pickled. Where every process is a data rank of its own, each does the work.

    Raises:
        RuntimeError: the first process failed; as :func:`all_process_attempt`.
        TypeError: the first process's result cannot be pickled.
    """
    if num_processes() == num_data_ranks():
        return work()
    # Pickled inside of the attempt, so that a result that cannot be pickled raises everywhere.
    made = all_process_attempt(lambda: _pickled(work()) if is_first_process() else b"")
    return pickle.loads(all_process_objects(made)[0])


def _pickled(value: Any) -> bytes:
    try:
        return pickle.dumps(value)
    except Exception as error:  # of any class: objects may define how they are pickled
        raise TypeError(
            f"processes share completions, and what the first one sends to the others cannot be"
            f" pickled: {type(error).__name__}: {error}; under data.environment, let Step.info hold"
            " numbers and texts"
        ) from error


def object_from_first(value: T) -> T:
    """Return the first rank's value, which is pickled; as :func:`broadcast_from_first`."""
    return value if num_processes() == num_data_ranks() else all_process_objects(value)[0]
