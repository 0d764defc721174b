"""Linear layers of which each process computes a part: some outputs, or a part of every sum.

``ColumnLinear``, then a function of single features or heads, then ``RowLinear`` equals two whole
layers. On 2 processes, with 4 inputs, 6 hidden features and 4 outputs:

    ColumnLinear    [..., 4] whole    to [..., 3]    its weight is [3, 4] of the whole [6, 4]
    activation      [..., 3]          to [..., 3]    no communication: it works feature by feature
    RowLinear       [..., 3]          to [..., 4]    its weight is [4, 3] of the whole [4, 6];
                                                     an all-reduce sums the two processes' outputs

The backward pass needs one all-reduce for each ``ColumnLinear``, of its input's gradient. Source:
https://arxiv.org/abs/1909.08053, section 3.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import linear


def _summed(values: Tensor) -> Tensor:
    total = values.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total


class _Sum(torch.autograd.Function):
    """The sum over processes; every process's output gradient is its input gradient."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return _summed(values)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


class _SumOfGradients(torch.autograd.Function):
    """The identity; its gradient is summed over processes, which compute different outputs."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _summed(grads[0])


class ColumnLinear(nn.Linear):
    """From the whole input to this process's outputs.

    Attributes:
        split: parameter -> the dimension that is split into equal parts, in the order of processes.
    """

    split: ClassVar = {"weight": 0, "bias": 0}

    def forward(self, input: Tensor) -> Tensor:
        """Compute ``[..., in]`` to ``[..., out / processes]``."""
        return super().forward(_SumOfGradients.apply(input))


class RowLinear(nn.Linear):
    """From this process's inputs to the whole output; every process has the whole bias.

    Attributes:
        split: as in ``ColumnLinear``.
    """

    split: ClassVar = {"weight": 1}

    def forward(self, input: Tensor) -> Tensor:
        """Compute ``[..., in / processes]`` to ``[..., out]`` (a collective)."""
        whole = _Sum.apply(linear(input, self.weight))
        return whole if self.bias is None else whole + self.bias.to(whole.dtype)


def empty_part(whole: nn.Linear, kind: type[nn.Linear], num_parts: int) -> nn.Linear:
    """Make a part of a linear layer on the meta device, without numbers."""
    by_column = kind is ColumnLinear
    inputs = whole.in_features if by_column else whole.in_features // num_parts
    outputs = whole.out_features // num_parts if by_column else whole.out_features
    part = kind(inputs, outputs, whole.bias is not None, device="meta", dtype=whole.weight.dtype)
    return part.train(whole.training)


def split_dim(module: nn.Module, name: str) -> int | None:
    """Return the dimension along which a module's parameter is split; None = it is whole."""
    return module.split.get(name) if isinstance(module, (ColumnLinear, RowLinear)) else None


def split_dims(model: nn.Module) -> dict[str, int]:
    """Return the split dimension of every split parameter of a model, by name."""
    found: dict[str, int] = {}
    for prefix, module in model.named_modules():
        for name, _ in module.named_parameters(recurse=False):
            dim = split_dim(module, name)
            if dim is not None:
                found[f"{prefix}.{name}".removeprefix(".")] = dim
    return found


def own_part(whole: Tensor, dim: int | None) -> Tensor:
    """Return this process's part of a tensor that is split along a dimension; None = all of it."""
    if dim is None:
        return whole
    return whole.chunk(dist.get_world_size(), dim)[dist.get_rank()].clone(
        memory_format=torch.contiguous_format
    )


def gathered(part: Tensor, dim: int | None) -> Tensor | None:
    """Return the whole tensor on the first process, None elsewhere (a collective if split)."""
    first = dist.get_rank() == 0
    if dim is None:
        return part if first else None
    parts = [torch.empty_like(part) for _ in range(dist.get_world_size())] if first else None
    dist.gather(part.contiguous(), parts)
    return None if parts is None else torch.cat(parts, dim)
