"""Verdicts on code: the share of a problem's tests that a completion passes, run in the sandbox.

Read ``pass_rates`` first. Reward heads and evaluation both call it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import Decimal, InvalidOperation
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from rlif_lightning.answers.code_tasks import CodeExtractor, task_of
from rlif_lightning.sandbox.literals import encode
from rlif_lightning.sandbox.pool import Outcome, Run, Sandbox, Trial

NO_CODE = "there is no code"


class RunsCode:
    """What all share that run the code of completions.

    Args:
        extractor: finds the code of a completion.
        sandbox: where and within which limits the code runs.
    """

    def __init__(self, extractor: CodeExtractor = CodeExtractor(), sandbox: Sandbox | None = None):
        self.extractor, self.sandbox = extractor, announce_sandbox(sandbox)

    def pass_rates(
        self, texts: Sequence[str], problems: Sequence[Mapping[str, Any]]
    ) -> list[float]:
        """Return the share of its problem's tests that each completion passes."""
        return pass_rates(texts, problems, self.extractor, self.sandbox)


def pass_rates(
    texts: Sequence[str],
    problems: Sequence[Mapping[str, Any]],
    extractor: CodeExtractor = CodeExtractor(),
    sandbox: Sandbox | None = None,
) -> list[float]:
    """Return the share of its problem's tests that each completion passes; 1.0 = solved.

    A completion without code, and code that does not load, pass no test.

    Args:
        texts: completions.
        problems: for each of them the columns of its problem, in a layout of
            ``code_tasks.task_of``.
        extractor: finds the code of a completion.
        sandbox: where code runs; the default one if absent.

    Raises:
        ValueError: a row without tests, or with tests that cannot run.
        RuntimeError: a sandboxed process could not be started.
    """
    return [rate for rate, _ in judge_code(texts, problems, extractor, sandbox)]


def judge_code(
    texts: Sequence[str],
    problems: Sequence[Mapping[str, Any]],
    extractor: CodeExtractor = CodeExtractor(),
    sandbox: Sandbox | None = None,
) -> list[tuple[float, str]]:
    """Return the share of its problem's tests that each completion passes, and a trace.

    A trace is what is seen of the first failed test, such as ``f(2) returned 5`` below the test. It
    is empty where all pass. Arguments and errors are those of :func:`pass_rates`.
    """
    sandbox = sandbox or Sandbox()
    tasks = [task_of(problem) for problem in problems]
    codes = [extractor(text, task.prompt) for text, task in zip(texts, tasks, strict=True)]
    found = [(0.0, NO_CODE)] * len(texts)
    judged = [i for i, code in enumerate(codes) if code is not None and tasks[i].tests]
    trials = [
        Trial(codes[i] or "", tasks[i].setup, tasks[i].tests, tasks[i].functions) for i in judged
    ]
    for i, verdict in zip(judged, sandbox.verdicts(trials), strict=True):
        trace = "" if all(verdict.passed) else verdict.trace or verdict.ended
        found[i] = sum(verdict.passed) / len(verdict.passed), trace
    compared = [i for i, code in enumerate(codes) if code is not None and tasks[i].cases]
    runs = [
        sandbox_run(codes[i] or "", tasks[i].functions, [given for given, _ in tasks[i].cases])
        for i in compared
    ]
    expected = [given for i in compared for _, given in tasks[i].cases]
    for i, outcomes in zip(compared, _with_room(sandbox, expected).outcomes(runs), strict=True):
        pairs = list(zip(outcomes, tasks[i].cases, strict=True))
        is_right = _as_expected if tasks[i].functions else _is_printed
        failed = [pair for pair in pairs if not is_right(pair[0], pair[1][1])]
        trace = _trace_of_case(tasks[i].functions, *failed[0]) if failed else ""
        found[i] = (len(pairs) - len(failed)) / len(pairs), trace
    return found


def _with_room(sandbox: Sandbox, expected: Sequence[Any]) -> Sandbox:
    """Return the sandbox with room for twice the longest expected answer, for spaces at ends."""
    texts = (each if isinstance(each, str) else json.dumps(encode(each)) for each in expected)
    needed = 2 * max((len(text.encode()) for text in texts), default=0) // 1024 + 1
    return replace(sandbox, output_kb=max(sandbox.output_kb, needed))


def _trace_of_case(functions: tuple[str, ...], outcome: Outcome, case: tuple[Any, Any]) -> str:
    """Say what code did with an input, and what was expected.

    The value is shown as it left the sandbox: this process decodes nothing of untrusted code.
    """
    given, expected = case
    call = f"{functions[0]}({', '.join(map(repr, given))})" if functions else f"input {given!r}"
    verb = "returned" if functions else "printed"
    did = {
        "value": f"{verb} {json.dumps(outcome.value)}",
        "error": f"raised {outcome.reason}" + (f" in line {outcome.line}" if outcome.line else ""),
        "none": f"gave no answer: {outcome.reason}",
    }
    return f"{call:.200} {did[outcome.kind]:.300}, not {expected!r:.300}"


def sandbox_run(code: str, functions: tuple[str, ...], inputs: Sequence[Any]) -> Run:
    """Build a request to the sandbox: call a function on each input, or run a program."""
    return Run(code, functions[0] if functions else None, tuple(inputs))


def _as_expected(outcome: Outcome, expected: Any) -> bool:
    """Return whether a function returned the expected value, a text exactly."""
    return outcome.kind == "value" and _as_json(outcome.value) == _as_json(encode(expected))


def _is_printed(outcome: Outcome, expected: str) -> bool:
    return outcome.kind == "value" and _same_lines(outcome.value, expected)


def _as_json(value: Any) -> Any:
    """Make values alike that JSON writes alike.

    Tuples and lists, long and short integers, and dictionaries' orders.
    """
    if isinstance(value, dict):
        [(tag, content)] = value.items()
        if tag == "int":
            return int(content, 16)
        if tag not in ("tuple", "dict"):
            return value
        value = content if tag == "tuple" else {tag: sorted(map(_as_json, content), key=_key)}
    return [_as_json(item) for item in value] if isinstance(value, list) else value


def _key(pair: list[Any]) -> str:
    return json.dumps(pair[0])


def lines_of_words(text: str) -> list[list[str]]:
    """Return printed output as it is compared.

    Spaces around lines and empty lines at both ends do not count.
    """
    return [line.split() for line in text.strip().splitlines()]


def _same_lines(printed: str, expected: str) -> bool:
    """Compare texts line by line, numbers by value."""
    found, wanted = lines_of_words(printed), lines_of_words(expected)
    return len(found) == len(wanted) and all(map(_same_words, found, wanted))


def _same_words(found: list[str], wanted: list[str]) -> bool:
    if found == wanted:
        return True
    try:
        return [Decimal(word) for word in found] == [Decimal(word) for word in wanted]
    except InvalidOperation:
        return False


def announce_sandbox(sandbox: Sandbox | None) -> Sandbox:
    """Return the sandbox, or the default one, and log its level."""
    sandbox = sandbox or Sandbox()
    rank_zero_info(f"code of completions runs in a sandbox: {sandbox.level}")
    return sandbox
