"""Freed memory back to the system: the C library keeps it, in holes that the next phase's tensors seldom fit.

On a CPU, activations of a micro-batch are freed in another order than they were made, so the heap
of a training process grows by a tenth or more beyond what is ever in use. GPUs have PyTorch's own
allocator, which nothing here touches.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

import torch

GROWTH = (
    64 * 2**20
)  # bytes above the smallest size seen: below that, looking for holes is not worth its time


class Heap:
    """The heap of this process where glibc manages it; elsewhere nothing is done.

    Attributes:
        trim: glibc's ``malloc_trim``; None elsewhere.
        smallest: resident bytes when least was in use.
    """

    def __init__(self) -> None:
        self.trim: Any = None
        if hasattr(os, "confstr") and "CS_GNU_LIBC_VERSION" in os.confstr_names:
            self.trim = ctypes.CDLL(None).malloc_trim
        self.smallest: int | None = None

    def release(self, device: torch.device) -> None:
        """Give back what is free, if tensors of this device lie on the heap and it has grown."""
        if self.trim is None or device.type != "cpu":
            return
        resident = resident_bytes()
        if self.smallest is None or resident > self.smallest + GROWTH:
            self.trim(0)
            resident = resident_bytes()
        self.smallest = min(self.smallest or resident, resident)


def resident_bytes() -> int:
    """Resident memory of this process (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


HEAP = Heap()
