"""Whether an optimiser's step is the same on weights that are divided between processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.nn import Parameter
from torch.optim import Optimizer

STEPS = 3
ROWS, COLUMNS = 4, 6


def differs_by_parts(make: Callable[[Iterable[Parameter]], Optimizer]) -> bool:
    """Return whether an optimiser steps a matrix otherwise than its halves, each by itself.

    So does one that reads a matrix as a whole: its norm, or the means of its rows and columns.

    Args:
        make: ``model.optimizer``. One that cannot step on a CPU is not tried: False.
    """
    start, gradients = _probe(make)
    try:
        whole = _stepped(make, [start], [[each] for each in gradients])[0]
        for dim in (0, 1):
            halves = [list(gradient.chunk(2, dim)) for gradient in gradients]
            parts = _stepped(make, list(start.chunk(2, dim)), halves)
            if not _alike(torch.cat(parts, dim), whole, start):
                return True
    except Exception:  # of a library, for another device; whatever is wrong comes with the run
        return False
    return False


def fault_on_shards(
    make: Callable[[Iterable[Parameter]], Optimizer], mesh: DeviceMesh
) -> str | None:
    """Return what is wrong with an optimiser's step on FSDP2's tensors, or None (a collective).

    Args:
        make: ``model.optimizer``. One that cannot step on whole tensors either is not judged.
        mesh: of the processes between which parameters are divided.
    """
    start, gradients = _probe(make)
    start = start.to(mesh.device_type)
    gradients = [each.to(mesh.device_type) for each in gradients]
    try:
        whole = _stepped(make, [start, start[0]], [[each, each[0]] for each in gradients])
    except Exception:  # as above
        return None

    def shards(tensors: Sequence[Tensor]) -> list[Tensor]:
        return [distribute_tensor(each, mesh, [Shard(0)]) for each in tensors]

    try:
        moved = _stepped(
            make, shards([start, start[0]]), [shards([each, each[0]]) for each in gradients]
        )
    except Exception as error:  # of PyTorch's, of any kind: an operation that it cannot divide
        said = str(error).partition(". ")[0].partition("\n")[0]
        return f"its step ends with {type(error).__name__}: {said}"
    for one, other, first in zip(moved, whole, (start, start[0]), strict=True):
        assert isinstance(one, DTensor)
        if not _alike(one.full_tensor(), other, first):
            return "its step is another one there"
    return None


def _probe(make: Callable[[Iterable[Parameter]], Optimizer]) -> tuple[Tensor, list[Tensor]]:
    """Return a small matrix and its gradients; numbers so small that a step can be told."""
    rate = float(make([Parameter(torch.zeros(1, 1))]).param_groups[0]["lr"])
    random = torch.Generator().manual_seed(0)
    start, *gradients = torch.randn(1 + STEPS, ROWS, COLUMNS, generator=random)
    return 100 * rate * start, gradients


def _stepped(
    make: Callable[[Iterable[Parameter]], Optimizer],
    starts: Sequence[Tensor],
    gradients: Sequence[Sequence[Tensor]],
) -> list[Tensor]:
    """Return what parameters become by steps with these gradients, a list of them for each step."""
    parameters = [Parameter(each.clone()) for each in starts]
    optimizer = make(parameters)
    if callable(train := getattr(optimizer, "train", None)):  # schedule-free
        train()
    for of_step in gradients:
        for parameter, gradient in zip(parameters, of_step, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
    return [each.detach() for each in parameters]


def _alike(one: Tensor, other: Tensor, start: Tensor) -> bool:
    """Return whether two steps from one start are equal up to rounding."""
    moved = (other - start).abs().max()
    return bool((one - other).abs().max() <= 1e-3 * moved)
