"""Which processes have rows of their own, and what those must agree on that have the same.

A data rank is a process with prompts of its own or, under tensor parallelism, all processes
together: they work on the same rows, each with its part of the weights. "Over all ranks"
(``collectives.py``) means data ranks. Processes that share their rows must decide alike, so
whatever rounding, a time limit or chance could make different is the first one's on all of them
(``collectives.broadcast_from_first``), and the first alone writes rows down.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch.distributed as dist

_rows_are_shared = False


def share_rows(shared: bool) -> None:
    """Say whether all processes work on the same rows from now on."""
    global _rows_are_shared  # as the process group itself is
    _rows_are_shared = shared


def num_processes() -> int:
    """How many processes work together, whatever they hold."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def num_data_ranks() -> int:
    """How many different sets of rows there are."""
    return 1 if _rows_are_shared else num_processes()


def data_rank() -> int:
    """Whose rows this process works on."""
    return dist.get_rank() if num_data_ranks() > 1 else 0


def writes_rows() -> bool:
    """Whether it is this process that writes its rows into files."""
    return num_processes() == num_data_ranks() or dist.get_rank() == 0


def own_place() -> tuple[str, int]:
    """Name of this machine and this process's pid, for the others to tell whether it is gone."""
    return socket.gethostname(), os.getpid()


def gone(places: Sequence[tuple[str, int]]) -> list[int]:
    """Numbers of the processes that have ended, among those of this machine: others cannot be seen from here.

    Args:
        places: of all processes, by number.
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
    with suppress(
        OSError
    ):  # where there is no /proc, one that nobody has waited for yet counts as alive
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return True
