"""The CPU's memory: return what is freed to the operating system, and how much is available.

On a CPU the activations of a micro-batch are freed in another order than they were allocated. glibc
keeps freed blocks, and the resulting fragmentation raises peak memory by 10 % or more. On a GPU
PyTorch has its own allocator, and nothing here applies.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

import torch

# Bytes above the smallest size seen. A smaller growth is not worth the time of a trim.
GROWTH = 64 * 2**20
GROUPS, OWN_GROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


class Heap:
    """The heap of this process where glibc manages it; with other C libraries nothing is done.

    Attributes:
        trim: glibc's ``malloc_trim``; None elsewhere.
        smallest: the smallest number of resident bytes seen.
    """

    def __init__(self) -> None:
        self.trim: Any = None
        if hasattr(os, "confstr") and "CS_GNU_LIBC_VERSION" in os.confstr_names:
            self.trim = ctypes.CDLL(None).malloc_trim
        self.smallest: int | None = None

    def release(self, device: torch.device) -> None:
        """Return free memory, if the device is the CPU and the heap has grown."""
        if self.trim is None or device.type != "cpu":
            return
        resident = resident_bytes()
        if self.smallest is None or resident > self.smallest + GROWTH:
            self.trim(0)
            resident = resident_bytes()
        self.smallest = min(self.smallest or resident, resident)


def resident_bytes() -> int:
    """Return the resident memory of this process (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def available_bytes() -> int | None:
    """Return the memory that processes can still have (Linux); None elsewhere.

    The limits of this process's control group, and of those above it, count too. What caches of
    files use is available.
    """
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    fields = {name: int(rest.split()[0]) for name, _, rest in (s.partition(":") for s in lines)}
    left = [fields["MemAvailable"] * 1024, *map(_left_in, _own_groups())]
    return min(each for each in left if each is not None)


def _own_groups() -> list[Path]:
    """Return the folders of this process's control group and of those above it (version 2)."""
    try:
        lines = OWN_GROUP.read_text().splitlines()
    except OSError:
        lines = []
    own = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), "/")
    path = GROUPS / own.lstrip("/")
    return [path, *(above for above in path.parents if above.is_relative_to(GROUPS))]


def _left_in(group: Path) -> int | None:
    """Return the bytes that a control group can still have; None where it has no limit."""
    try:
        limit = int((group / "memory.max").read_text())  # "max" where there is none
        used = int((group / "memory.current").read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        # The kernel counts shared memory as files, and cannot drop it.
        return limit - used + int(stat["file"]) - int(stat["shmem"])
    except (OSError, ValueError, KeyError):
        return None


HEAP = Heap()
