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
    """The verdict where these answers wait on the pipe before the first call."""
    (reader, answering), (listening, writer) = os.pipe(), os.pipe()
    os.write(answering, b"".join(json.dumps(answer).encode() + b"\n" for answer in answers))
    try:
        candidate = Candidate(Channel(reader, writer, 10_000), 1.0)
        candidate.deadline = time.monotonic() + 5
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
