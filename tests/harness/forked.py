"""Modules that run in a process of their own, which forks from one that has imported everything.

To import PyTorch, Lightning and Transformers takes longer than most of the runs here. The server
computes nothing, so that what forks from it is as fresh as an interpreter behind its imports.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Lock, Thread
from typing import Any

import pytest
import torch
import torch.distributed as dist

from harness.files import PYTHONPATH, ROOT

LONG = 900.0  # seconds that only a hang reaches, however busy the machine is
STARTING = Lock()  # of two threads each would give the other's environment back
FORKING = multiprocessing.get_context("forkserver")
FORKING.set_forkserver_preload(["harness.warm"])


def server_runs() -> None:
    """Start the server where it does not run yet. It must find the tests to import from them."""
    with STARTING, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", PYTHONPATH)
        forkserver.ensure_running()


def run_module(
    name: str, arguments: list[str], environment: dict[str, str], timeout: float = LONG
) -> subprocess.CompletedProcess[str]:
    """Run ``python -m name`` here; over when all that it started have closed its output.

    Returns:
        As of ``subprocess.run(..., capture_output=True, text=True)``.

    Raises:
        subprocess.TimeoutExpired: it and all that it started have been killed.
    """
    server_runs()
    pipes = [FORKING.Pipe(duplex=False) for _ in range(2)]
    ends = [write for _, write in pipes]
    process = FORKING.Process(target=_module, args=(name, arguments, environment, *ends))
    process.start()
    for end in ends:
        end.close()
    read: dict[int, bytes] = {}
    readers = [
        Thread(target=lambda n=n, pipe=pipe: read.update({n: _whole(pipe)}), daemon=True)
        for n, (pipe, _) in enumerate(pipes)
    ]
    for reader in readers:
        reader.start()
    try:
        for each in (process, *readers):
            each.join(timeout)
            if each.is_alive():
                raise subprocess.TimeoutExpired([name, *arguments], timeout)
    finally:  # also where somebody interrupts the tests
        if any(each.is_alive() for each in (process, *readers)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    output, errors = (read[n].decode(errors="replace") for n in range(2))
    return subprocess.CompletedProcess([name, *arguments], process.exitcode, output, errors)


def on_two_processes(work: Callable[..., None], folder: Path, *arguments: Any) -> None:
    """Call ``work(rank, folder, *arguments)`` in two processes that gloo connects."""
    server_runs()
    given = work, folder, *arguments
    torch.multiprocessing.start_processes(one_of_two, given, nprocs=2, start_method="forkserver")


def on_two_ranks(work: Callable[[int], Any], folder: Path) -> list[Any]:
    """What ``work(rank)`` returns on each of two processes."""
    fork = multiprocessing.get_context("fork")

    def save(rank: int, folder: Path) -> None:
        torch.save(work(rank), folder / f"{rank}.pt")

    processes = [fork.Process(target=one_of_two, args=(rank, save, folder)) for rank in range(2)]
    with warnings.catch_warnings():  # Python 3.12 warns where there are threads
        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
        for process in processes:
            process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def one_of_two(rank: int, work: Callable[..., None], folder: Path, *arguments: Any) -> None:
    """Call ``work`` as one of two processes, which find each other by ``folder``."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=LONG),
    )
    work(rank, folder, *arguments)
    dist.destroy_process_group()


def _whole(pipe: Connection) -> bytes:
    parts = iter(lambda: os.read(pipe.fileno(), 2**16), b"")
    return b"".join(parts)


def _module(
    name: str,
    arguments: list[str],
    environment: dict[str, str],
    output: Connection,
    errors: Connection,
) -> None:
    """In the new process: what a shell and the start of an interpreter would do."""
    os.setsid()
    os.chdir(ROOT)
    os.dup2(output.fileno(), 1)
    os.dup2(errors.fileno(), 2)
    output.close()
    errors.close()
    os.environ.clear()
    os.environ.update(environment)
    if threads := environment.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))  # the library was loaded under the server's
    sys.path[:0] = environment.get("PYTHONPATH", "").split(os.pathsep)
    sys.argv = [name, *arguments]
    try:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()  # which a process of multiprocessing leaves out
        path = environment.get("CPU_SECONDS")
        if path and os.getpid() == os.getsid(0):  # those that it forked are among its children
            times = os.times()
            with Path(path).open("a") as file:
                file.write(f"{sum(times[:4]):.2f} 0 {name}\n")
