"""Runs many pieces of a model's code at once: the only part of this folder that others call.

``Sandbox.outcomes`` runs code on inputs and returns what came out. ``Sandbox.verdicts`` runs a data
set's tests against code and returns which passed. The tests run in one process and the code in
another; this process only starts them and reads booleans.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import sha256
from threading import Lock
from typing import Any, ClassVar, TypeVar

from rlif_lightning.setting_types import check_types

from .channel import ChannelError
from .isolation import START_SECONDS, Process, find_level
from .judge import FAILED_TO_LOAD, NO_VALUE, Candidate
from .literals import encode

# Size of a file, MiB. What a program prints is one; only at `rlimits` can code make others.
FILE_MB = 16
MAX_TRACE = 1000  # characters
MAX_REMEMBERED = 2**15  # verdicts
VERDICT_BYTES = 2**24  # of the judge's message: a word for each test, and a trace
LONGEST_SPELLING = 6  # bytes of JSON for one byte that a program prints, such as \u0007
Job = TypeVar("Job")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Run:
    """Code and what to run it on.

    Attributes:
        code: source text, untrusted.
        function: the function to call; None runs the code as a program.
        inputs: for a function the arguments of each call, each a tuple of literals; for a program
            the texts it reads.
    """

    code: str
    function: str | None
    inputs: tuple[Any, ...]


@dataclass(frozen=True)
class Outcome:
    """What code did with one input.

    Attributes:
        kind: ``value``; ``error`` (it raised); ``none``: there is no answer (too slow, died, too
            long, nothing that can cross).
        value: for ``value``: the text that was printed, or what was returned, as
            ``literals.encode`` writes it and ``literals.check`` has passed it. It is not decoded:
            this process builds no set and no dictionary from what untrusted code says.
        reason: for ``error`` the name of the built-in exception; for ``none`` why.
        line: for ``error``, of the code; 0 = unknown.
    """

    kind: str
    value: Any = None
    reason: str = ""
    line: int = 0


@dataclass(frozen=True)
class Trial:
    """Code and the tests to judge it by.

    Attributes:
        code: source text, untrusted.
        setup: source text of the data set, run before the tests in their process.
        tests: source text of each test; it passes if it raises nothing.
        names: the functions that tests call and the code defines.
    """

    code: str
    setup: str
    tests: tuple[str, ...]
    names: tuple[str, ...]


@dataclass(frozen=True)
class Verdict:
    """What tests say of a piece of code.

    Attributes:
        passed: which tests passed.
        ended: why the code's process stopped answering; empty if it did not.
        trace: what is seen of the first failed test: its line, and what the call in it returned or
            raised; or how the code failed to load. It holds texts of untrusted code.
    """

    passed: tuple[bool, ...]
    ended: str = ""
    trace: str = ""


_REMEMBERED: dict[bytes, Verdict] = {}  # by a checksum of the sandbox's settings and the trial
_LOCK = Lock()


@dataclass(frozen=True)
class Sandbox:
    """Where and within which limits a model's code runs. Linux only.

    Args:
        isolation: bubblewrap | namespaces | landlock | seccomp | rlimits, from strong to weak; what
            each stops is in docs/code-rewards.md. With a `+` behind it, the strongest that works
            here, at least that one.
        workers: pieces of code that run at the same time; null = one for each CPU of this process.
        wall_seconds: longest time for one piece of code, from reading it to its last answer, in
            seconds. It also bounds the CPU time of a process, rounded up to whole seconds.
        call_seconds: longest time for one call or one program input, in seconds.
        memory_mb: address space of one process, MiB.
        output_kb: longest answer to one call, and longest output of a program, KiB; a longer one is
            no answer. Where tests expect a longer one, twice its length is allowed.

    Raises:
        ValueError: an unknown name, a number out of range, or no sandbox that is strong enough.
    """

    needs_consent: ClassVar[dict[str, str]] = {"isolation": "may be weaker than the usual one"}

    isolation: str = "landlock+"
    workers: int | None = None
    wall_seconds: float = 10.0
    call_seconds: float = 3.0
    memory_mb: int = 512
    output_kb: int = 256

    def __post_init__(self) -> None:
        check_types(self)
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"workers={self.workers} must be at least 1, or null for one per CPU")
        for name in ("wall_seconds", "call_seconds"):
            if not 0 < getattr(self, name) <= 3600:
                raise ValueError(f"{name}={getattr(self, name)} must lie in (0, 3600] seconds")
        for name, least in (("memory_mb", 64), ("output_kb", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}")
        find_level(self.isolation)

    @property
    def level(self) -> str:
        """The isolation in use."""
        return find_level(self.isolation)

    def outcomes(self, runs: Sequence[Run]) -> list[list[Outcome]]:
        """Return what each piece of code does with each of its inputs; equal runs are run once.

        Raises:
            RuntimeError: a sandboxed process could not be started at all.
        """
        return self._map(self._run, runs, lambda run: (run.code, run.function, repr(run.inputs)))

    def verdicts(self, jobs: Sequence[Trial]) -> list[Verdict]:
        """Return which tests each piece of code passes; equal jobs are run once.

        Whole verdicts are remembered: a reward, a writer of feedback and an evaluation that ask
        for the same one start its processes once.

        Raises:
            RuntimeError: a sandboxed process could not be started at all.
            ValueError: tests that cannot run whatever the code is.
        """
        return self._map(self._judge_once, jobs, lambda job: job)

    def _map(
        self, work: Callable[[Job], Result], jobs: Sequence[Job], key: Callable[[Job], Any]
    ) -> list[Result]:
        distinct = {key(job): job for job in jobs}
        with ThreadPoolExecutor(self.workers or len(os.sched_getaffinity(0))) as pool:
            futures = {
                name: pool.submit(self._patiently, work, job) for name, job in distinct.items()
            }
            try:
                return [futures[key(job)].result() for job in jobs]
            finally:
                pool.shutdown(cancel_futures=True)

    def _patiently(self, work: Callable[[Job], Result], job: Job) -> Result:
        """Do the work, and once more where a process cannot start.

        What ran beside it may have filled the machine until now.
        """
        try:
            return work(job)
        except (RuntimeError, OSError):
            time.sleep(self.wall_seconds)
            return work(job)

    def _settings(self, role: str, message_bytes: int = VERDICT_BYTES) -> dict[str, Any]:
        return {
            "role": role,
            "limits": {
                "cpu_seconds": self.wall_seconds,
                "memory_mb": self.memory_mb,
                "file_mb": FILE_MB,
            },
            "wall_seconds": self.wall_seconds,
            "call_seconds": self.call_seconds,
            "output_bytes": self.output_kb * 1024,
            "message_bytes": message_bytes,
        }

    def _run(self, run: Run) -> list[Outcome]:
        spelled = LONGEST_SPELLING if run.function is None else 1
        settings = self._settings("candidate", self.output_kb * 1024 * spelled)
        with Process(self.level, settings) as process:
            process.wait_until_up()
            candidate = Candidate(process.channel, self.call_seconds)
            candidate.load({"code": run.code, "program": run.function is None}, self.wall_seconds)
            return [self._outcome(candidate, run.function, given) for given in run.inputs]

    @staticmethod
    def _outcome(candidate: Candidate, function: str | None, given: Any) -> Outcome:
        request = {"stdin": given}
        if function is not None:
            request = {"name": function, "arguments": encode(list(given)), "keywords": encode({})}
        answer = candidate.ask(request)
        if candidate.ended:
            return Outcome("none", reason=candidate.ended)
        if "error" in answer:
            kind = "none" if answer["error"] in NO_VALUE else "error"
            return Outcome(kind, reason=answer["error"], line=answer.get("line", 0))
        return Outcome("value", answer["value"])

    def _judge_once(self, job: Trial) -> Verdict:
        key = sha256(repr((self, job)).encode()).digest()
        verdict = _REMEMBERED.get(key) or self._judge(job)
        if verdict.ended in ("", FAILED_TO_LOAD):  # not where time ran out
            with _LOCK:
                _REMEMBERED[key] = verdict
                if len(_REMEMBERED) > MAX_REMEMBERED:
                    del _REMEMBERED[next(iter(_REMEMBERED))]
        return verdict

    def _judge(self, job: Trial) -> Verdict:
        failed = Verdict((False,) * len(job.tests), "the judge gave no verdict")
        with ExitStack() as stack:
            judge, candidate = self._start_pair(stack)
            if not judge.wait_until_up().get("up"):
                raise RuntimeError(f"a sandboxed process did not start: {candidate.errors()}")
            # The candidate cannot see this number: its process receives nothing of the judge's.
            nonce = secrets.token_hex(16)
            message = {
                "code": job.code,
                "setup": job.setup,
                "tests": job.tests,
                "names": job.names,
                "nonce": nonce,
            }
            try:
                judge.channel.send(message, time.monotonic() + START_SECONDS)
                verdict = judge.channel.receive(time.monotonic() + self.wall_seconds + 1)
            except ChannelError:
                return failed
            if not isinstance(verdict, dict) or verdict.get("nonce") != nonce:
                return failed
            if "broken" in verdict:
                raise ValueError(
                    f"tests that cannot run, whatever the code: {verdict['broken']}; in"
                    f" {job.setup[:200]!r}"
                )
            passed, ended, trace = (verdict.get(name) for name in ("passed", "ended", "trace"))
            if (
                not isinstance(passed, list)
                or len(passed) != len(job.tests)
                or not isinstance(ended, str)
                or not isinstance(trace, str)
            ):
                return failed
            return Verdict(tuple(one is True for one in passed), ended, trace[:MAX_TRACE])

    def _start_pair(self, stack: ExitStack) -> tuple[Process, Process]:
        """Start a candidate and its judge, joined by two pipes that this process does not keep."""
        to_candidate, from_candidate = os.pipe(), os.pipe()
        try:
            settings = {
                **self._settings("judge"),
                "candidate": (from_candidate[0], to_candidate[1]),
            }
            ends = to_candidate[0], from_candidate[1]
            candidate = stack.enter_context(
                Process(self.level, self._settings("candidate"), (), *ends)
            )
            inherited = settings["candidate"]
            return stack.enter_context(Process(self.level, settings, inherited)), candidate
        finally:
            for descriptor in (*to_candidate, *from_candidate):
                os.close(descriptor)
