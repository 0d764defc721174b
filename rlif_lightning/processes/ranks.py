"""Which processes there are, and which of them work on the same completions.

A data rank is a set of processes that work on the same completions: one process with prompts of its
own or, under tensor parallelism, all processes together, each with its part of the model. Processes
of one data rank must decide alike. A result that rounding, a time limit or chance could make
different is therefore the first process's on all of them (``collectives.broadcast_from_first``),
and the first process alone writes completions into files.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch.distributed as dist

_completions_are_shared = False


def share_completions(shared: bool) -> None:
    """Set whether all processes work on the same completions from now on."""
    global _completions_are_shared  # the process group is global too
    _completions_are_shared = shared


def num_processes() -> int:
    """Return how many processes work together, whatever they hold."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def num_data_ranks() -> int:
    """Return how many sets of processes with completions of their own there are."""
    return 1 if _completions_are_shared else num_processes()


def data_rank() -> int:
    """Return the number of this process's data rank."""
    return dist.get_rank() if num_data_ranks() > 1 else 0


def writes_completions() -> bool:
    """Say whether this process writes its data rank's completions into files."""
    return num_processes() == num_data_ranks() or dist.get_rank() == 0


def own_place() -> tuple[str, int]:
    """Return this machine's name and this process's pid, by which others see whether it is gone."""
    return socket.gethostname(), os.getpid()


def gone(places: Sequence[tuple[str, int]]) -> list[int]:
    """Return the numbers of the processes on this machine that have ended.

    Args:
        places: of all processes, by number; those of other machines are not looked at.
    """
    here = socket.gethostname()
    return [number for number, (host, pid) in enumerate(places) if host == here and not _lives(pid)]


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    # A zombie has ended. Without /proc it cannot be recognised, and counts as alive.
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return True
