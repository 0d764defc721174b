"""Whatever a candidate sends, through the real channel and the real rewards: the trainer never
raises.
"""

from __future__ import annotations

import json
import os
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.programs import PATIENT
from rlif_lightning.answers.checkers import LiteralChecker
from rlif_lightning.answers.code_verdicts import _as_expected, _is_printed, pass_rates
from rlif_lightning.rewards.code import behaviour, behaviour_labels, same_behaviour
from rlif_lightning.sandbox.channel import Channel
from rlif_lightning.sandbox.judge import Candidate
from rlif_lightning.sandbox.literals import MAX_DEPTH, check, decode, encode
from rlif_lightning.sandbox.pool import Outcome, Run, Sandbox

DEEP = "[" * 600 + "]" * 600
LONG = "9" * 4000
WIRES = {
    "a list 600 deep": DEEP,
    "a tuple 600 deep": '{"tuple": [' * 600 + "]}" * 600,
    "a list 100,000 deep": "[" * 100_000,
    "an integer of 4,000 digits": LONG,
    "an integer of 5,000 digits": "9" * 5000,
    "an integer above 10^18 in decimal": str(10**18),
    "a short integer in hexadecimal": '{"int": "0x1"}',
    "an integer with spaces": '{"int": " 0xffffffffffffffffffff "}',
    "an infinite number": "1e999",
    "a bare NaN": "NaN",
    "a bare Infinity": "-Infinity",
    "two tags": '{"int": "0x1", "float": "nan"}',
    "no tag": "{}",
    "an unknown tag": '{"object": []}',
    "a set of nothing": '{"set": 1}',
    "a pair of three": '{"dict": [[1, 2, 3]]}',
    "a complex number of words": '{"complex": ["a", "b"]}',
    "half a byte": '{"bytes": "abc"}',
    "a range of one": '{"range": [1]}',
    "no JSON": "{",
    "no text": "\udcff\udcfe",
}
CLEAN = [
    "1",
    "-0.5",
    '"\\ud800"',
    "null",
    "true",
    '{"int": "0xffffffffffffffffffff"}',
    '{"float": "nan"}',
    "[[1, 2], {}]",
]
FLOAT = Outcome("value", 0.5)


def reply(line: bytes, program: bool = False) -> Outcome:
    """What the trainer makes of one line of a candidate's process, over real pipes."""
    ours, theirs = os.pipe(), os.pipe()
    channel = Channel(ours[0], theirs[1], 10**6)
    candidate = Candidate(channel, 60.0)
    candidate.deadline = time.monotonic() + 60.0
    reader = os.fdopen(theirs[0], "rb")
    writer = os.fdopen(ours[1], "wb", buffering=0)
    os.set_blocking(ours[1], False)
    with reader, writer:
        try:
            writer.write(line[: 2**16 - 2] + b"\n")
            return Sandbox._outcome(candidate, None if program else "f", "" if program else ())
        finally:
            channel.close()


def use(outcome: Outcome) -> None:
    """Everything that a trainer does with an outcome."""
    for other in (outcome, FLOAT, Outcome("value", {"int": "0xffffffffffffffffffff"})):
        texts = [behaviour([outcome]), behaviour([other]), behaviour([outcome, other])]
        behaviour_labels(texts, 3, [0])
        for one in filter(None, texts):
            assert same_behaviour(json.loads(one), json.loads(one)) or "NaN" in one
    for expected in (1, 0.5, 10**400, 1e300, "1", "1e5 2", [1, [2.5]], {"a": 1}, None):
        assert _as_expected(outcome, expected) in (True, False)
    if isinstance(outcome.value, str):
        assert _is_printed(outcome, "1e5 2") in (True, False)


def line_of(value: str) -> bytes:
    return f'{{"number": 1, "value": {value}}}'.encode("utf-8", "surrogateescape")


@pytest.mark.parametrize("name", WIRES)
def test_what_is_no_clean_value_ends_the_candidate(name):
    outcome = reply(line_of(WIRES[name]))
    assert (outcome.kind, outcome.reason) == ("none", "garbled")
    use(outcome)


@pytest.mark.parametrize(
    "line",
    [
        '{"number": 1}',
        '{"number": true, "value": 1}',
        '{"number": 1.0, "value": 1}',
        '{"number": 2, "value": 1}',
        '{"number": 1, "value": 1, "error": "KeyError"}',
        '{"number": 1, "error": 3}',
        '{"number": 1, "error": ["KeyError"]}',
        '{"number": 1, "error": "print"}',
        '{"number": 1, "error": "IOError"}',
        '{"number": 1, "error": "no such exception"}',
        f'{{"number": 1, "error": {DEEP}}}',
        f'{{"number": {DEEP}, "value": 1}}',
        "[]",
        "null",
        DEEP,
    ],
)
def test_what_is_no_answer(line):
    outcome = reply(line.encode())
    assert (outcome.kind, outcome.reason) == ("none", "garbled")


def test_clean_values_and_errors_pass():
    for text in CLEAN[:-1]:
        assert reply(line_of(text)) == Outcome("value", json.loads(text))
    assert reply(line_of(CLEAN[-1])).kind == "none"
    assert reply(b'{"number": 1, "error": "UnicodeDecodeError"}') == Outcome(
        "error", reason="UnicodeDecodeError"
    )
    assert reply(b'{"number": 1, "error": "NotLiteral"}') == Outcome("none", reason="NotLiteral")
    assert reply(line_of('"a"'), program=True) == Outcome("value", "a")
    assert reply(line_of("[1]"), program=True).reason == "garbled"


TAGS = [
    "int",
    "float",
    "complex",
    "bytes",
    "bytearray",
    "range",
    "dict",
    "tuple",
    "set",
    "frozenset",
    "iterator",
    "x",
]
NUMBERS = (
    st.integers() | st.floats() | st.integers(3900, 4100).map(lambda n: 10**n) | st.just(10**18)
)
WORDS = st.text(max_size=5) | st.sampled_from(
    ["nan", "inf", "-0x" + "f" * 4000, "0x" + "f" * 16, "ab", "\ud800", "0x1"]
)
TREES = st.recursive(
    st.none() | st.booleans() | NUMBERS | WORDS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(TAGS), inner, max_size=2)
    ),
    max_leaves=10,
)


def nested(tree, tags: list[str]):
    """The tree below as many collections as there are tags."""
    for tag in tags:
        tree = [tree] if tag == "x" else {tag: [[1, tree]] if tag == "dict" else [tree]}
    return tree


DEEPER = st.builds(nested, TREES, st.lists(st.sampled_from(TAGS[6:]), max_size=150))


@pytest.mark.slow
@given(TREES | DEEPER)
@settings(max_examples=200, deadline=None)
def test_no_value_makes_the_trainer_raise(tree):
    try:
        line = json.dumps({"number": 1, "value": tree}).encode()
    except (RecursionError, ValueError):
        return
    outcome = reply(line)
    assert outcome.kind in ("value", "none")
    use(outcome)
    if outcome.kind == "value":
        check(outcome.value)


@pytest.mark.slow
@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_no_bytes_make_the_trainer_raise(junk):
    assert reply(junk.replace(b"\n", b" ")).kind == "none"


def test_depth_counts_levels_of_json():
    """So that what one end sends is what the other reads, and that who walks through it has a bound
    on its stack.
    """
    for kind, cost in ((list, 1), (tuple, 2), (lambda items: {1: items[0]}, 3)):
        value = 7
        for _ in range(MAX_DEPTH // cost):
            value = kind([value])
        assert decode(encode(value)) == value
        assert (
            json.dumps(encode(value)).count("[") + json.dumps(encode(value)).count("{") <= MAX_DEPTH
        )
        with pytest.raises(TypeError, match="nested deeper"):
            encode(kind([value]))


def test_equal_values_of_two_kinds():
    assert same_behaviour(10**17, 1e17)
    assert same_behaviour(encode(10**20), 1e20)
    assert same_behaviour(1e20, encode(10**20 + 1))
    assert not same_behaviour(encode(10**20), encode(10**20 + 1))
    assert not same_behaviour(encode(10**400), 1e300)
    assert not same_behaviour(encode(10**20), "0x56bc75e2d63100000")
    assert _as_expected(
        Outcome("value", encode({"b": (1, 2), "a": 10**20})), {"a": 10**20, "b": [1, 2]}
    )
    assert _as_expected(Outcome("value", encode([10**20, 3.0])), [1e20, 3])
    assert not _as_expected(Outcome("value", encode({"a": 1})), {"a": 2})


PROGRAMS = {
    "many digits": "print('9' * 4000)",
    "a tower": "print('1e999999999999999999', '1e-999999999999999999')",
    "too large a tower": "print('1e9999999999999999999999999')",
    "signalling": "print('sNaN', 'NaN123')",
    "numbers of other scripts": "print('\u0661', '1_0')",
    "surrogates": "import sys\nsys.stdout.buffer.write(b'\\xed\\xa0\\x80\\xff')",
    "separators": "print('1\\x1c2\\u20283')",
    "a list": "print('[' * 10000)",
    "nothing": "",
}
FUNCTIONS = {
    "deep": "def f(x):\n for _ in range(90): x = [x]\n return x",
    "deeper": "def f(x):\n for _ in range(10**5): x = [x]\n return x",
    "deep tuples": "def f(x):\n for _ in range(90): x = (x,)\n return x",
    "4,000 digits": "def f(x): return 10**4000",
    "infinite": "def f(x): return [float('inf'), float('nan'), -0.0, 1e308 * 10]",
    "surrogates": "def f(x): return '\\ud800' * 3",
    "bytes": "def f(x): return bytes(range(256))",
    "a float": "def f(x): return 0.5",
    "no exception of ours": "class E(Exception): __module__ = 'builtins'\ndef f(x): raise E",
    "raw": 'import os\nfor fd in range(3, 9):\n try: os.write(fd, b\'{"number": 1, "value":'
    f" {DEEP}}}\\n')\n"
    " except OSError: pass\ndef f(x): return x",
}


def test_hostile_programs_score_nothing():
    sandbox = Sandbox("rlimits+", **PATIENT)
    cases = [{"input": "1", "output": text, "testtype": "stdin"} for text in ("1 2", "1e5", "0.5")]
    rows = [{"public_test_cases": json.dumps(cases)}] * len(PROGRAMS)
    assert pass_rates(list(PROGRAMS.values()), rows, sandbox=sandbox) == [0.0] * len(PROGRAMS)
    cases = [
        {"input": "1", "output": text, "testtype": "functional"} for text in ("0.25", "[[1]]", LONG)
    ]
    rows = [{"public_test_cases": json.dumps(cases), "metadata": '{"func_name": "f"}'}] * len(
        FUNCTIONS
    )
    assert pass_rates(list(FUNCTIONS.values()), rows, sandbox=sandbox) == [0.0] * len(FUNCTIONS)
    outcomes = sandbox.outcomes([Run(code, "f", ((1,), (2,))) for code in FUNCTIONS.values()])
    texts = [behaviour(row) for row in outcomes]
    assert len(set(behaviour_labels(texts, len(texts), [0])) - {None}) == 6
    named = dict(zip(FUNCTIONS, texts, strict=True))
    assert [name for name, text in named.items() if text is None] == [
        "deeper",
        "deep tuples",
        "no exception of ours",
        "raw",
    ]


CHARACTERS = st.text(st.sampled_from("[](){}:,'\"-+.1e9xfjn\\ud8b=# \n"), max_size=60)
LITERALS = CHARACTERS | st.sampled_from(
    [
        "[" * 2000 + "]" * 2000,
        "[" * 190 + "]" * 190,
        "{1: " * 190 + "1" + "}" * 190,
        "{" * 100,
        "(" * 99 + ")" * 99,
        "-" * 4000 + "1",
        "0x" + "f" * 4000,
        "9" * 4090,
        "1e999",
        "1j+" * 1000 + "1j",
        "'\\ud800'",
        "b'\\xff'",
        "\ud800",
        "\0",
    ]
)


@pytest.mark.slow
@given(LITERALS, LITERALS)
@settings(max_examples=150, deadline=None)
def test_no_literal_makes_its_checker_raise(text, gold):
    checker = LiteralChecker()
    answer = checker.answer(f"[ANSWER]{text}[/ANSWER]")
    if checker.answer(f"[ANSWER]{gold}[/ANSWER]") is not None:
        assert checker.correct([answer], [{"answer": gold}], "answer")[0] in (True, False)
