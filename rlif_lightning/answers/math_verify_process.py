"""The library math-verify in its own process, so that no answer can stall or end a run.

One answer such as ``9^{9^{9^{9}}}`` keeps math-verify busy without end, and its own alarm works in
the main thread only. So each process of a run has one worker, started at the first question: this
file, run as a script. The worker imports math-verify once (a second or two, which no answer is
charged for) and forks a child that answers questions under a CPU timer. The kernel ends a child
that overruns, and the next fork takes over in milliseconds. The limit is CPU time, so that the
machine's load changes no verdict. Messages are JSON lines over pipes; nothing is unpickled.

Read in this order: ``ask`` and ``_Worker`` (our end), then ``_serve`` (the worker's end, the only
user of math-verify). At the top only the standard library is imported, because the worker must not
load torch. Needs a POSIX system.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from functools import lru_cache
from typing import NamedTuple

# CPU seconds for one question. A comparison takes three at most: read a, read b, compare.
_CPU_LIMIT = 0.3


class Verdict(NamedTuple):
    """A verdict with its CPU seconds, and whether it was reached within the limit."""

    equal: bool
    seconds: float
    decided: bool


class _Worker:
    """Our end of the pipes: one question out, a verdict back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner = os.getpid()
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, strings: list[str]) -> Verdict:
        with self._lock:
            # Twice: the process may have been ended from outside since the last question.
            for _ in range(2):
                try:
                    reply = self._exchange(json.dumps(strings).encode() + b"\n")
                except BaseException:
                    # After an interrupt this reply would be read as that of the next question.
                    self.stop()
                    raise
                if reply:
                    return Verdict(*json.loads(reply))
                self.stop()
        return Verdict(False, 2 * _CPU_LIMIT, False)

    def _exchange(self, request: bytes) -> bytes:
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(BrokenPipeError):
            process.stdin.write(request)
        return process.stdout.readline()

    def _start(self) -> subprocess.Popen[bytes]:
        process = self._process = subprocess.Popen(
            # -P: this folder's files must not hide other modules.
            [sys.executable, "-P", "-W", "ignore", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,  # Ctrl-C ends the trainer alone; the worker ends with its pipe
            # sympy's order of terms must not vary between ranks.
            env={**os.environ, "PYTHONHASHSEED": "0"},
        )
        assert process.stdout is not None
        if not process.stdout.readline():
            raise RuntimeError(
                "math-verify's process did not start (its error is above); install math-verify"
            )
        return process

    def stop(self) -> None:
        """End the process and its child, unless a fork of their starter calls this."""
        process, self._process = self._process, None
        if process is None or os.getpid() != self._owner:
            return
        with process, suppress(ProcessLookupError):  # leaving `process` closes the pipes and waits
            os.killpg(process.pid, signal.SIGKILL)


# By process id: a fork gets its own worker, and a lock that is free.
_workers: dict[int, _Worker] = {}


@atexit.register
def _stop_all() -> None:
    for worker in _workers.values():
        worker.stop()


def ask(strings: list[str]) -> Verdict:
    """Ask math-verify whether it reads one answer, or whether two are equal in either order.

    Args:
        strings: one or two answers, LaTeX without delimiters, short (well under a pipe's buffer of
            64 KiB).

    Returns:
        The verdict; undecided and False where it takes more than 0.3 s of CPU time or ends the
        process twice.

    Raises:
        RuntimeError: the process cannot be started at all.
    """
    return _workers.setdefault(os.getpid(), _Worker()).ask(strings)


def _judge(strings: list[str]) -> bool:
    from math_verify import verify

    parsed = [_parse(string) for string in strings]
    if not all(parsed):
        return False
    if len(parsed) == 1:
        # Reading 9^{9^{9}} is quick; evaluating it is not.
        verify(parsed[0], _parse("7"), timeout_seconds=None)
        return True
    a, b = parsed
    return bool(verify(a, b, timeout_seconds=None) or verify(b, a, timeout_seconds=None))


@lru_cache(4096)
def _parse(string: str) -> list:
    from math_verify import LatexExtractionConfig, parse

    # Without LaTeX delimiters the library takes any number of the string: "3 or 4" would be 4.
    return parse(
        f"${string}$", [LatexExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=0
    )


def _answer_questions() -> None:
    replies = sys.stdout
    sys.stdout, sys.stderr = open(os.devnull, "w"), open(os.devnull, "w")  # noqa: SIM115
    for line in sys.stdin:
        start = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, _CPU_LIMIT)
        verdict = _judge(json.loads(line))
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps([verdict, time.process_time() - start, True]), file=replies, flush=True)
    os._exit(0)


def _serve() -> None:
    """Run the worker: warm up, then keep one child answering until standard input closes."""
    logging.disable(logging.CRITICAL)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    # These fill the parser's tables.
    for pair in (["(x+1)^2", "x^2+2x+1"], [r"\frac{\sqrt{3}}{2}", r"\{1,2\}"]):
        _judge(pair)
    print("ready", flush=True)
    while True:
        child = os.fork()
        if child == 0:
            _answer_questions()
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGPROF:
            return
        print(json.dumps([False, _CPU_LIMIT, False]), flush=True)


if __name__ == "__main__":
    _serve()
