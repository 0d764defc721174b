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
FAILED_TO_LOAD = "failed to load"
NO_VALUE = ("NotLiteral", "OutputTooLong")  # what a call gave cannot cross
_TEST = "<test>"  # what tracebacks call a test
_SHOWN = 200  # characters of a value, or of a test's line, in a trace
_MAX_LINE = 10**6  # of an error in the code


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
        self.load_failure = ""  # how the code failed to load, in words
        self.last: tuple[dict[str, Any], dict[str, Any]] | None = None  # a call and its answer

    def load(self, job: dict[str, Any], seconds: float) -> None:
        """Send the code and wait until it is read; the clock of ``seconds`` starts here."""
        self.deadline = time.monotonic() + seconds
        loaded = self.exchange(job, seconds)
        if not self.ended and loaded.get("error") != "":
            self.ended = FAILED_TO_LOAD
            self.load_failure = f"the code {_raised(loaded)}"

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
            name of a built-in exception, or one of ``NO_VALUE``, perhaps with the ``line`` of the
            code.
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
        request = {
            "name": name,
            "arguments": encode(list(arguments)),
            "keywords": encode(keywords),
        }
        answer = self.ask(request)
        self.last = request, answer
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
    line = answer.pop("line", 0) if "error" in answer else 0
    if type(given) is not int or given != number or len(answer) != 1 or not _is_line(line):
        raise ValueError("no answer to this request")
    if "error" in answer:
        if not (answer["error"] in NO_VALUE or _exception_kind(answer["error"])):
            raise ValueError("no exception of Python")
    elif "value" not in answer or (program and not isinstance(answer["value"], str)):
        raise ValueError("no value")
    check(answer.get("value"))
    return {**answer, "line": line} if line else answer


def _is_line(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MAX_LINE


def _raised(answer: dict[str, Any]) -> str:
    """Say which exception an answer names, and in which line of the code; it may be unchecked."""
    kind, line = _exception_kind(answer.get("error")), answer.get("line", 0)
    if kind is None:
        return FAILED_TO_LOAD
    return f"raised {kind.__name__}" + (f" in line {line}" if _is_line(line) and line else "")


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
        ``passed``, a list of booleans, with ``trace``, what is seen of the first that failed; or
        ``broken``, what is wrong with the tests themselves.
    """
    namespace: dict[str, Any] = {"__name__": "tests"}
    try:
        exec(compile(job["setup"], "<setup>", "exec"), namespace)
        tests = [compile(test, _TEST, "exec") for test in job["tests"]]
    except BaseException as error:
        return {"broken": f"{type(error).__name__}: {error}"}
    for name in job["names"]:
        namespace[name] = lambda *arguments, _name=name, **keywords: candidate.call(
            _name, arguments, keywords
        )
    passed, trace = [], ""
    for test, source in zip(tests, job["tests"], strict=True):
        candidate.last = None
        line = _failing_line(test, namespace)
        passed.append(line is None)
        if line is not None and not trace:
            trace = _trace(source, line, candidate)
    return {"passed": passed, "ended": candidate.ended, "trace": trace}


def _failing_line(test: Any, namespace: dict[str, Any]) -> int | None:
    """Run a test; return the line of it that failed, 0 where that is unknown; None = it passed."""
    try:
        exec(test, namespace)
    except BaseException as error:
        line, trace = 0, error.__traceback__
        while trace is not None:
            if trace.tb_frame.f_code.co_filename == _TEST:
                line = trace.tb_lineno or 0
            trace = trace.tb_next
        return line
    return None


def _trace(source: str, line: int, candidate: Candidate) -> str:
    """Say what is seen of a failed test: its line, and what the last call gave.

    Example: ``assert f(2) == 7``, and below it ``f(2) returned 5``.
    """
    if candidate.load_failure:
        return candidate.load_failure
    lines = source.splitlines()
    shown = lines[line - 1].strip() if 0 < line <= len(lines) else ""
    said = _last_call(candidate)
    return "\n".join(text for text in (_short(shown), said) if text)


def _last_call(candidate: Candidate) -> str:
    if candidate.last is None:
        return ""
    request, answer = candidate.last
    given = [_shown(each) for each in decode(request["arguments"])]
    given += [f"{key}={_shown(value)}" for key, value in decode(request["keywords"]).items()]
    call = _short(f"{request['name']}({', '.join(given)})")
    if not answer:
        return f"{call} gave no answer: {candidate.ended}"
    if answer.get("error") == "NotLiteral":
        return f"{call} returned a value of another type than Python's own"
    return f"{call} " + (
        _raised(answer) if "error" in answer else f"returned {_shown(decode(answer['value']))}"
    )


def _shown(value: Any) -> str:
    try:
        return _short(repr(value))
    except (ValueError, RecursionError, MemoryError):  # an integer of very many digits, and others
        return f"a value of type {type(value).__name__}"


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
