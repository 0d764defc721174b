"""The process that runs tests, in this one: answers that a candidate may send over its pipe."""

from __future__ import annotations

import json
import os
import time
from typing import Any

import pytest

from rlif_lightning.sandbox.channel import Channel
from rlif_lightning.sandbox.judge import Candidate, run_tests


def judged(answers: list[Any], *tests: str) -> dict[str, Any]:
    """The verdict without its trace; these answers wait on the pipe before the first call."""
    verdict = judged_with_trace(answers, *tests)
    verdict.pop("trace", None)
    return verdict


def judged_with_trace(answers: list[Any], *tests: str) -> dict[str, Any]:
    (reader, answering), (listening, writer) = os.pipe(), os.pipe()
    os.write(answering, b"".join(json.dumps(answer).encode() + b"\n" for answer in answers))
    try:
        candidate = Candidate(Channel(reader, writer, 10_000), 60.0)
        candidate.deadline = time.monotonic() + 60
        return run_tests({"setup": "", "tests": tests, "names": ["f"]}, candidate)
    finally:
        for descriptor in (reader, answering, listening, writer):
            os.close(descriptor)


def test_a_right_answer_passes_and_a_wrong_one_does_not():
    answers = [{"number": 1, "value": 2}, {"number": 2, "value": 3}]
    verdict = judged(answers, "assert f(1) == 2", "assert f(1) == 2")
    assert verdict == {"passed": [True, False], "ended": ""}


@pytest.mark.parametrize(
    "answer",
    [
        {"number": 2, "value": 2},  # to the next request
        {"number": 0, "value": 2},
        {"number": True, "value": 2},  # equal to 1
        {"number": 1.0, "value": 2},
        {"value": 2},
        {"number": 1, "value": 2, "error": "KeyError"},
        {"number": 1},
        {"number": 1, "error": "NoSuchError"},
        {"number": 1, "error": "print"},
        {"number": 1, "value": {"int": "2"}},
        [1, 2],
    ],
    ids=str,
)
def test_what_is_no_answer_to_the_request_ends_the_candidate(answer):
    """Also for the tests after it, though a right answer waits."""
    verdict = judged([answer, {"number": 2, "value": 2}], "assert f(1) == 2", "assert f(1) == 2")
    assert verdict == {"passed": [False, False], "ended": "garbled"}


@pytest.mark.parametrize(
    ("error", "test", "passes"),
    [
        ("KeyError", "try: f(1)\nexcept KeyError: pass", True),
        ("KeyError", "try: f(1)\nexcept ValueError: pass", False),
        ("StopIteration", "assert all(map(f, [1]))", False),
        ("StopIteration", "try: f(1)\nexcept RuntimeError: pass", True),
        ("StopAsyncIteration", "try: f(1)\nexcept StopAsyncIteration: pass", False),
        ("SystemExit", "try: f(1)\nexcept SystemExit: pass", False),
        ("SystemExit", "f(1)", False),
        ("UnicodeDecodeError", "try: f(1)\nexcept RuntimeError: pass", True),
    ],
)
def test_exceptions_cross_by_name_but_for_those_that_end_something(error, test, passes):
    assert judged([{"number": 1, "error": error}], test) == {"passed": [passes], "ended": ""}


def test_tests_that_cannot_be_read_are_told_and_not_judged():
    assert judged([], "assert f(1) ==")["broken"].startswith("SyntaxError")


@pytest.mark.parametrize(
    ("answer", "test", "trace"),
    [
        ({"value": 2}, "assert f(1) == 2", ""),
        ({"value": 3}, "assert f(1) == 2", "assert f(1) == 2\nf(1) returned 3"),
        (
            {"value": {"tuple": [1, "a"]}},
            "x = [1]\nassert f(x, key='b') == 2, 'no'",
            "assert f(x, key='b') == 2, 'no'\nf([1], key='b') returned (1, 'a')",
        ),
        (
            {"error": "NameError", "line": 2},
            "def check(g):\n    assert g(1) == 2\ncheck(f)",
            "assert g(1) == 2\nf(1) raised NameError in line 2",
        ),
        ({"error": "KeyError"}, "f('a')", "f('a')\nf('a') raised KeyError"),
        (
            {"error": "NotLiteral"},
            "f()",
            "f()\nf() returned a value of another type than Python's own",
        ),
        ({"value": 3}, "assert 1 == 2", "assert 1 == 2"),  # without a call
        ({"no": 1}, "f(1)", "f(1)\nf(1) gave no answer: garbled"),
        ({"value": "x" * 900}, "f(1) + 1", f"f(1) + 1\nf(1) returned '{'x' * 199}..."),
    ],
    ids=str,
)
def test_a_trace_shows_the_failing_line_and_what_its_call_gave(answer, test, trace):
    assert judged_with_trace([{"number": 1, **answer}], test)["trace"] == trace


def test_a_trace_says_of_what_type_an_integer_of_very_many_digits_is():
    """Python refuses to write it."""
    answer = {"number": 1, "value": {"int": hex(10**5000)}}
    trace = judged_with_trace([answer], "assert f(1) == 2")["trace"]
    assert trace.endswith("\nf(1) returned a value of type int")


def test_a_trace_shows_arguments_as_they_were_sent_whatever_their_class():
    """A class of the tests may write itself as it likes, and change after the call."""
    kind = "class Odd(list):\n    def __repr__(self): raise OSError\n"
    test = f"{kind}x = Odd([1])\nfound = f(x)\nx.append(2)\nassert found == 2"
    trace = judged_with_trace([{"number": 1, "value": 3}], test)["trace"]
    assert trace == "assert found == 2\nf([1]) returned 3"


def test_a_trace_is_of_the_first_test_that_failed():
    answers = [{"number": number, "value": number} for number in (1, 2, 3)]
    tests = ["assert f(0) == 1", "assert f(1) == 0", "assert f(2) == 0"]
    assert judged_with_trace(answers, *tests)["trace"] == "assert f(1) == 0\nf(1) returned 2"


@pytest.mark.parametrize("line", [-1, True, 1.0, "2", 10**6, None], ids=repr)
def test_a_line_that_is_none_ends_the_candidate(line):
    verdict = judged([{"number": 1, "error": "KeyError", "line": line}], "f(1)")
    assert verdict == {"passed": [False], "ended": "garbled"}


def test_a_value_with_a_line_is_no_answer():
    assert judged([{"number": 1, "value": 2, "line": 3}], "f(1)")["ended"] == "garbled"
