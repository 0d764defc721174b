"""Isolation of a process: the levels, which of them work here, and starting a process.

A level counts as present when a process has been started in it and has answered, not when a program
or a kernel setting is found: containers and distributions forbid user namespaces in several ways.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from . import start as _start
from .channel import Channel, ChannelError

# From the weakest to the strongest. Every level also has the limits of rlimits; every one but
# rlimits the filter of system calls.
LEVELS = ("rlimits", "seccomp", "landlock", "namespaces", "bubblewrap")
# Time for a process to start on a busy machine; the code that it runs is not charged for it.
START_SECONDS = 60.0
_START = (
    "import sys; sys.path.insert(0, {!r}); from sandbox.start import main; sys.path.pop(0); main()"
)
# The import gives the folder, and writes compiled files, which the sandboxed process cannot write.
_FOLDER = Path(_start.__file__).resolve().parent
# A fixed hash seed: a model's code that prints a set must print the same every time.
_ENVIRONMENT = {"PYTHONHASHSEED": "0", "LANG": "C.UTF-8"}
_PROBE = {
    "limits": {"cpu_seconds": 10, "memory_mb": 512, "file_mb": 1},
    "message_bytes": 65_536,
    "output_bytes": 65_536,
}


class Process:
    """One sandboxed process; a context manager that leaves no process and no file behind.

    Args:
        level: one of ``LEVELS``.
        settings: for ``start.py``: role, limits, sizes.
        inherited: file descriptors that the process gets besides its standard ones.
        stdin: what it reads requests from; a pipe of ours where absent.
        stdout: what it writes answers to; a pipe of ours where absent.
    """

    def __init__(
        self,
        level: str,
        settings: dict[str, Any],
        inherited: Sequence[int] = (),
        stdin: int = subprocess.PIPE,
        stdout: int = subprocess.PIPE,
    ):
        self._files, folder = ExitStack(), "/"
        if level == LEVELS[0]:  # only there code can make files
            own = tempfile.TemporaryDirectory(prefix="rlif-sandbox-", ignore_cleanup_errors=True)
            folder = self._files.enter_context(own)
        errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed on exit
        self._errors = self._files.enter_context(errors)
        try:
            self._process = subprocess.Popen(
                _command(level, settings),
                stdin=stdin,
                stdout=stdout,
                stderr=self._errors,
                bufsize=0,
                cwd=folder,
                env=_ENVIRONMENT,
                pass_fds=inherited,
                start_new_session=True,
            )
        except BaseException:
            self._files.close()
            raise
        if stdin == stdout == subprocess.PIPE:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            pipes = self._process.stdout.fileno(), self._process.stdin.fileno()
            self.channel = Channel(*pipes, settings["message_bytes"])

    def wait_until_up(self) -> dict[str, Any]:
        """Wait for the first message.

        Raises:
            RuntimeError: the process did not start; says what it printed.
        """
        try:
            return self.channel.receive(time.monotonic() + START_SECONDS)
        except ChannelError as error:
            raise RuntimeError(
                f"a sandboxed process did not start ({error}): {self.errors()}"
            ) from error

    def errors(self) -> str:
        """Return the last line that the process printed before it was locked down."""
        self._errors.seek(0)
        lines = self._errors.read(65_536).decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it printed nothing"

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *exception: object) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with self._process:  # closes the pipes and waits
            pass
        self._files.close()


def find_level(isolation: str) -> str:
    """Return the level to use.

    Args:
        isolation: the name of a level; with a ``+`` behind it the strongest that works here, at
            least that level.

    Raises:
        ValueError: an unknown name, or nothing that is strong enough works here; says why, and what
            to do.
    """
    least = isolation.removesuffix("+")
    if least not in LEVELS:
        raise ValueError(
            f"isolation={isolation!r} is unknown; choose one of {list(LEVELS)}, with a + behind it"
            " for the strongest that works here, at least that one"
        )
    wanted = (least,) if least == isolation else LEVELS[LEVELS.index(least) :][::-1]
    problems = {}
    for level in wanted:
        problems[level] = problem(level)
        if not problems[level]:
            return level
    found = "; ".join(f"{level}: {text}" for level, text in problems.items())
    raise ValueError(
        f"isolation={isolation!r}: no such sandbox works here ({found}). Install bubblewrap, let"
        " the container use user namespaces, or name a weaker level after reading in"
        " docs/code-rewards.md what it cannot stop"
    )


@lru_cache
def problem(level: str) -> str:
    """Return why a level does not work on this machine; empty where it does.

    A level works where a process has been started in it and has answered.
    """
    if level == "bubblewrap" and shutil.which("bwrap") is None:
        return "the program bwrap is not installed"
    try:
        with Process(level, {**_PROBE, "role": "candidate"}) as process:
            process.wait_until_up()
            process.channel.send({"code": "", "program": False}, time.monotonic() + START_SECONDS)
            answer = process.channel.receive(time.monotonic() + START_SECONDS)
    except (RuntimeError, ChannelError, OSError) as error:
        return str(error)
    return "" if answer == {"error": ""} else f"unexpected answer {answer!r}"


def _command(level: str, settings: dict[str, Any]) -> list[str]:
    readable = _readable()
    given = json.dumps(
        {**settings, "level": level, "readable": readable, "start_seconds": START_SECONDS}
    )
    python = [
        os.path.realpath(sys.executable),
        "-s",
        "-P",
        "-S",
        "-B",
        "-c",
        _START.format(str(_FOLDER.parent)),
        given,
    ]
    if level != "bubblewrap":
        return python
    command = ["bwrap", "--unshare-all", "--unshare-user", "--die-with-parent", "--cap-drop", "ALL"]
    command += ["--uid", "65534", "--gid", "65534"]
    for path in readable:
        link = os.path.islink(path)
        command += ["--symlink", os.readlink(path), path] if link else ["--ro-bind", path, path]
    command += ["--dev-bind", os.devnull, os.devnull, "--chdir", "/"]
    return [*command, "--remount-ro", "/", "--", *python]


@lru_cache
def _readable() -> list[str]:
    """Return what an interpreter must read: itself, libraries, the system's, and this folder."""
    wanted = [
        "/usr",
        "/lib",
        "/lib64",
        "/etc/ld.so.cache",
        os.path.realpath(sys.base_prefix),
        str(_FOLDER),
    ]
    kept: list[str] = []
    for path in wanted:
        inside = any(Path(path).is_relative_to(other) for other in kept)
        if os.path.lexists(path) and not inside:
            kept.append(path)
    return kept
