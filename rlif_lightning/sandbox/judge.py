"""The process that runs a data set's tests; calls of the model's code go to another process.

Answers are literals (``literals.py``), so the candidate can neither reach this interpreter nor
return an object with an ``==`` of its own. The verdict is sent over a pipe that the candidate's
process does not have. This process is locked down as well, because the tests come from a data set.
"""

from __future__ import annotations

import builtins
import time
from typing import Any

from .channel import Channel, ChannelError
from .literals import check, decode, encode

# The interpreter acts on these exceptions: all(map(f, items)) is true where f raises StopIteration.
_NEVER_RAISED = (StopIteration, StopAsyncIteration)


class Candidate:
    """The model's code in the other process.

    Args:
        channel: to that process.
        call_seconds: longest wait for one call.
    """

    def __init__(self, channel: Channel, call_seconds: float):
        self.channel, self.call_seconds = channel, call_seconds
        self.ended = ""  # why no further call can be answered
        self.deadline = 0.0
        self.calls = 0

    def load(self, job: dict[str, Any], seconds: float) -> None:
        """Send the code and wait until it is read; the clock of ``seconds`` starts here."""
        self.deadline = time.monotonic() + seconds
        loaded = self.exchange(job, seconds)
        if not self.ended and loaded.get("error") != "":
            self.ended = "failed to load"

    def exchange(self, message: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Send one message and return one; {} where the candidate has ended or ends."""
        if self.ended:
            return {}
        deadline = min(self.deadline, time.monotonic() + seconds)
        try:
            self.channel.send(message, deadline)
            answer = self.channel.receive(deadline)
            if isinstance(answer, dict):
                return answer
            self.ended = "garbled"
        except ChannelError as error:
            self.ended = str(error)
        return {}

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send one numbered request; {} where there is no answer (``ended`` then says why).

        Returns:
            ``value``, a literal that ``check`` has passed, a text for a program; or ``error``, the
            name of a built-in exception, or ``NotLiteral``.
        """
        self.calls += 1
        answer = self.exchange({**request, "number": self.calls}, self.call_seconds)
        if self.ended:
            return {}
        try:
            return _clean_answer(answer, self.calls, "stdin" in request)
        except (ValueError, RecursionError):
            self.ended = "garbled"
            return {}

    def call(self, name: str, arguments: tuple, keywords: dict) -> Any:
        """Call a function of the candidate.

        Raises:
            RuntimeError: there is no answer, or none that can be read.
            Exception: of the built-in kind that the candidate's call raised.
        """
        answer = self.ask(
            {"name": name, "arguments": encode(list(arguments)), "keywords": encode(keywords)}
        )
        if self.ended:
            raise RuntimeError(f"the candidate's process: {self.ended}")
        if "error" in answer:
            raise _exception(answer["error"])
        return decode(answer["value"])


def _clean_answer(answer: dict[str, Any], number: int, program: bool) -> dict[str, Any]:
    """Return the answer to a request with nothing in it but what its type allows.

    Raises:
        ValueError: it is no answer to this request.
    """
    given = answer.pop("number", None)
    if type(given) is not int or given != number or len(answer) != 1:
        raise ValueError("no answer to this request")
    if "error" in answer:
        if not (answer["error"] == "NotLiteral" or _exception_kind(answer["error"])):
            raise ValueError("no exception of Python")
    elif "value" not in answer or (program and not isinstance(answer["value"], str)):
        raise ValueError("no value")
    check(answer.get("value"))
    return answer


def _exception_kind(name: Any) -> type[BaseException] | None:
    kind = getattr(builtins, name, None) if isinstance(name, str) else None
    known = isinstance(kind, type) and issubclass(kind, BaseException) and kind.__name__ == name
    return kind if known else None


def _exception(name: str) -> Exception:
    kind = _exception_kind(name)
    if kind is None or not issubclass(kind, Exception) or issubclass(kind, _NEVER_RAISED):
        kind = RuntimeError
    try:
        return kind("raised by the candidate")
    except TypeError:  # UnicodeDecodeError and some others need more arguments
        return RuntimeError(f"{name} raised by the candidate")


def run_tests(job: dict[str, Any], candidate: Candidate) -> dict[str, Any]:
    """Run each test in turn, in one namespace; return which ended without an exception.

    Args:
        job: ``setup`` (code run before), ``tests`` (code of each), ``names`` (the candidate's
            functions).
        candidate: whose functions they call.

    Returns:
        ``passed``, a list of booleans; or ``broken``, what is wrong with the tests themselves.
    """
    namespace: dict[str, Any] = {"__name__": "tests"}
    try:
        exec(compile(job["setup"], "<setup>", "exec"), namespace)
        tests = [compile(test, "<test>", "exec") for test in job["tests"]]
    except BaseException as error:
        return {"broken": f"{type(error).__name__}: {error}"}
    for name in job["names"]:
        namespace[name] = lambda *arguments, _name=name, **keywords: candidate.call(
            _name, arguments, keywords
        )
    return {"passed": [_passes(test, namespace) for test in tests], "ended": candidate.ended}


def _passes(test: Any, namespace: dict[str, Any]) -> bool:
    try:
        exec(test, namespace)
    except BaseException:
        return False
    return True
