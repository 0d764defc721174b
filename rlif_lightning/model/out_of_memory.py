"""Errors of memory: recognise them, and free memory before another attempt."""

from __future__ import annotations

import gc

import torch

# Messages of PyTorch's CPU allocator; accelerators raise torch.OutOfMemoryError.
CPU_MESSAGES = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception means that no memory was left, on an accelerator or a CPU."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in CPU_MESSAGES)


def give_back() -> None:
    """Free what a failed attempt has left.

    Call it outside of the exception's handler, whose traceback keeps the tensors alive.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
