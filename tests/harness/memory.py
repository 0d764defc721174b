"""Memory that an allocator does not have."""

from __future__ import annotations

import functools

import torch

UNREASONABLE = 2**46  # float32 numbers that no allocator gives


@functools.cache
def _refusal() -> str:
    """Return what PyTorch's allocator says; with the stack that it writes down, this is slow."""
    try:
        torch.empty(UNREASONABLE)
    except RuntimeError as error:
        return str(error)
    raise AssertionError("the allocator gave what it cannot have")


def refused() -> None:
    """Raise what the allocator of this machine raises; it is asked in the first call alone."""
    raise RuntimeError(_refusal())
