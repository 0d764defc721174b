"""Memory that ran out: how it is told from other errors, and what can be given back before another attempt."""

from __future__ import annotations

import gc

import torch

# What PyTorch's allocator of main memory says; on accelerators there is torch.OutOfMemoryError.
CPU_MESSAGES = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that no memory was left, on an accelerator or in main memory."""
    told = isinstance(error, RuntimeError) and any(
        message in str(error) for message in CPU_MESSAGES
    )
    return told or isinstance(error, (torch.OutOfMemoryError, MemoryError))


def give_back() -> None:
    """Free what a failed attempt left; to be called outside of the handler, whose traceback holds its tensors."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
