"""Work in a fork of the test process, which has imported everything already."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path


def in_child(work: Callable[[], object], folder: Path) -> tuple[int, str]:
    """Call ``work`` in a fork of this process; what it prints goes through a file in ``folder``.

    The child has the modules, the caches and the random states of the tests before it. Where that
    matters, ``harness.forked.run_module`` starts a fresh one.

    Returns:
        The exit code, below zero after a signal, and all that was written to both outputs.
    """
    sys.stdout.flush()
    path = folder / "child.txt"
    with path.open("wb") as file:
        with warnings.catch_warnings():  # Python 3.12 warns where there are threads
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            os._exit(_end_of(work, file.fileno()))
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), path.read_text(errors="replace")


def _end_of(work: Callable[[], object], output: int) -> int:
    """Call ``work`` with both outputs in a file; return the exit code of a process that did."""
    os.dup2(output, 1)
    os.dup2(output, 2)
    code = 1
    with os.fdopen(1, "w", closefd=False) as sys.stdout, os.fdopen(2, "w") as sys.stderr:
        try:
            work()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
    return code
