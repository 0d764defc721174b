"""The sandbox as a machine: values that cross, limits, what is left behind, refusals. Hostile code:
test_escape.py.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections import Counter, OrderedDict, namedtuple
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.programs import PATIENT
from rlif_lightning.sandbox import isolation, pool
from rlif_lightning.sandbox.channel import Channel, ChannelError
from rlif_lightning.sandbox.isolation import LEVELS, Process, find_level, problem
from rlif_lightning.sandbox.literals import MAX_DEPTH, NotLiteral, decode, encode
from rlif_lightning.sandbox.pool import Outcome, Run, Sandbox, Trial

BETWEEN = ("seccomp", "namespaces")
QUICK = {"wall_seconds": 1.5, "call_seconds": 0.7}  # where code hangs
LONG = 60  # seconds that nothing takes here, however busy the machine is


# What comes back is the same at all levels; attacks and escapes (test_escape.py) tell them apart.
def tier(level: str) -> object:
    marks = pytest.mark.full if level in BETWEEN else pytest.mark.slow
    return level if level == LEVELS[0] else pytest.param(level, marks=marks)


@pytest.fixture(params=[tier(level) for level in LEVELS])
def sandbox(request) -> Sandbox:
    """One at every level that this machine has."""
    if problem(request.param):
        pytest.skip(f"{request.param}: {problem(request.param)}")
    return Sandbox(request.param, workers=2, **PATIENT)


def one(sandbox: Sandbox, code: str, *arguments: object) -> Outcome:
    [[outcome]] = sandbox.outcomes([Run(code, "f", (arguments,))])
    return outcome


def processes() -> list[str]:
    """Command lines of the sandboxed processes of this machine that are children of ours, however
    distant.
    """
    found, above = [], ancestors(os.getpid())
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
            if b"sandbox.start" not in command or str(Path.cwd()).encode() not in command:
                continue
            nearest = next(pid for pid in ancestors(int(folder.name)) if pid in above)
        except (OSError, StopIteration):
            continue
        if nearest in (os.getpid(), 1):  # an orphan has 1; another worker's stands under pytest's
            found.append(command.decode())
    return found


def descriptors() -> set[tuple[str, str]]:
    """The open files of this process, by number and by what they lead to."""
    found = set()
    for path in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # that of the folder itself
            found.add((path.name, os.readlink(path)))
    return found


def ancestors(pid: int) -> list[int]:
    """A process and those above it, up to 1."""
    found = [pid]
    while found[-1] > 1:
        status = Path(f"/proc/{found[-1]}/status").read_text()
        found.append(int(status.partition("PPid:")[2].split()[0]))
    return found


# nan is equal to nothing, so it has a test of its own below.
NUMBERS = st.integers() | st.floats(allow_nan=False) | st.complex_numbers(allow_nan=False)
SCALARS = st.none() | st.booleans() | NUMBERS | st.text() | st.binary(max_size=20)
HASHABLE = st.recursive(
    SCALARS, lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3), max_leaves=5
)
VALUES = st.recursive(
    HASHABLE,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(HASHABLE, inner, max_size=3)
        | st.sets(HASHABLE, max_size=3)
    ),
    max_leaves=12,
)


@given(VALUES)
@settings(max_examples=40, deadline=None)
def test_every_literal_crosses_unchanged(value):
    again = decode(json.loads(json.dumps(encode(value))))
    assert again == value
    assert type(again) is type(value)


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["int", "float", "dict", "set", "range", "complex", "bytes", "x"]),
            inner,
        )
    ),
    max_leaves=8,
)


@pytest.mark.slow
@given(JUNK)
@settings(max_examples=500, deadline=None)
def test_reading_junk_gives_a_literal_or_a_value_error(value):
    try:
        decoded = decode(value)
    except ValueError:
        return
    encode(decoded)


def test_subclasses_cross_as_what_they_are_built_on():
    class Loud(str):
        def __eq__(self, other):
            return True

        __hash__ = str.__hash__

    for value, plain in (
        (Counter("aab"), {"a": 2, "b": 1}),
        (OrderedDict(a=1), {"a": 1}),
        (namedtuple("P", "x y")(1, 2), (1, 2)),
        (Loud("a"), "a"),
        (10**5000, 10**5000),
    ):
        again = decode(json.loads(json.dumps(encode(value))))
        assert again == plain
        assert type(again) is type(plain)
    assert list(decode(encode(iter([1, 2])))) == [1, 2]
    assert math.isnan(decode(encode(math.nan)))


def test_what_is_no_literal_does_not_cross():
    endless = iter(int, 1)
    deep: list = []
    for _ in range(MAX_DEPTH + 2):
        deep = [deep]
    for value in (object(), len, endless, deep, {1: print}):
        with pytest.raises(NotLiteral):
            encode(value)
    wire = encode([])
    for _ in range(MAX_DEPTH + 2):
        wire = [wire]
    with pytest.raises(ValueError, match="nested deeper"):
        decode(wire)


def test_a_channel_is_bounded_in_time_and_size():
    ours, theirs = os.pipe(), os.pipe()
    channel = Channel(ours[0], theirs[1], limit=100)

    def within(seconds):
        return time.monotonic() + seconds

    with pytest.raises(ChannelError, match="timeout"):
        channel.receive(within(0.1))
    os.write(ours[1], b'{"a": 1}\n[2]\nno\n')
    assert channel.receive(within(LONG)) == {"a": 1}
    assert channel.receive(within(LONG)) == [2]
    with pytest.raises(ChannelError, match="garbled"):
        channel.receive(within(LONG))
    os.write(ours[1], b"[" * 300)
    with pytest.raises(ChannelError, match="garbled"):
        channel.receive(within(LONG))
    with pytest.raises(ChannelError, match="timeout"):
        channel.send("x" * 10**6, within(0.1))
    os.close(theirs[0])
    with pytest.raises(ChannelError, match="died"):
        channel.send(1, within(LONG))
    os.close(ours[1])
    channel.close()


def test_functions_and_programs(sandbox):
    code = "import collections\ndef f(x, y=1): return collections.Counter([x, x, y])"
    assert one(sandbox, code, 3).value == {"dict": [[3, 2], [1, 1]]}
    method = "class Solution:\n    def f(self, x): return x + 1"
    assert one(sandbox, method, 3).value == 4
    program = (
        "import sys\nn = int(input())\nprint(n * 2, sys.stdin.read())\nif n == 1:"
        " sys.exit(3)\nif"
        " n == 2: 1 / 0"
    )
    [outcomes] = sandbox.outcomes([Run(program, None, ("1\nrest", "5\n", "2\n", "x\n"))])
    assert [(o.kind, o.value, o.reason) for o in outcomes] == [
        ("value", "2 rest\n", ""),
        ("value", "10 \n", ""),
        ("error", None, "ZeroDivisionError"),
        ("error", None, "ValueError"),
    ]
    raw = "import os\nos.write(1, os.read(0, 100).upper())\nopen(1, 'w', closefd=False).write('!')"
    assert sandbox.outcomes([Run(raw, None, ("ab",))])[0][0].value == "AB!"


def test_a_program_that_prints_too_much_has_no_answer():
    """A text that was cut would be compared, and vote, as if it were all."""
    sandbox = Sandbox("rlimits", **PATIENT, output_kb=64)
    whole = "1\n" * 2**15  # 64 KiB, and half as much again as JSON
    [outcomes] = sandbox.outcomes([Run("print('1\\n' * int(input()))", None, ("40000", "5"))])
    assert [(o.kind, o.reason) for o in outcomes] == [("none", "OutputTooLong"), ("value", "")]
    [[outcome]] = sandbox.outcomes([Run(f"print('1\\n' * {2**15}, end='')", None, ("",))])
    assert outcome.value == whole


def test_tests_may_be_longer_than_answers():
    sandbox = Sandbox("rlimits", wall_seconds=30.0, memory_mb=256, output_kb=1)
    long = f"assert f(0) == 0  # {'x' * 400_000}"
    many = "assert f('x' * 90) == 0", *["assert 1"] * 12_000
    jobs = [Trial("def f(x): return x", "", tests, ("f",)) for tests in ((long,), many)]
    one, most = sandbox.verdicts(jobs)
    assert one.passed == (True,)
    assert most.passed == (False, *[True] * 12_000)
    assert most.trace.endswith(f" returned '{'x' * 90}'")


@pytest.mark.slow
def test_what_has_no_answer(sandbox):
    for code, reason in (
        ("def f(): return object()", "NotLiteral"),
        ("def f(): return 'x' * 10**6", "garbled"),
        ("import os\ndef f(): os._exit(0)", "died"),
        ("import os\nos._exit(0)", "died"),
        ("def f(:", "failed to load"),
        ("raise SystemExit", "failed to load"),
        ("import ctypes\ndef f(): ctypes.string_at(0)", "died"),
    ):
        outcome = one(sandbox, code)
        assert (outcome.kind, outcome.reason) == ("none", reason), code
    for code in ("def f():\n    while True: pass", "import time\nwhile True: time.sleep(9)"):
        outcome = one(replace(sandbox, **QUICK), code)
        assert (outcome.kind, outcome.reason) == ("none", "timeout"), code
    for code, error in (
        ("def f(): raise SystemExit", "SystemExit"),
        ("def f(): return f()", "RecursionError"),
        ("class Mine(KeyError): pass\ndef f(): raise Mine", "KeyError"),
        ("g = 1", "AttributeError"),
        ("def f(): return bytearray(10**9)", "MemoryError"),
    ):
        outcome = one(sandbox, code)
        assert (outcome.kind, outcome.reason) == ("error", error), code


@pytest.mark.slow
def test_a_hang_costs_its_limit_and_later_inputs_nothing(sandbox):
    """A thousand inputs would take minutes."""
    code = "def f(x):\n    while x: pass\n    return x"
    hangs = replace(sandbox, call_seconds=2.0)
    started = time.monotonic()
    [outcomes] = hangs.outcomes([Run(code, "f", ((0,), *[(1,)] * 1000))])
    assert time.monotonic() - started < LONG
    assert [outcome.kind for outcome in outcomes] == ["value"] + ["none"] * 1000
    slow = "import time\ndef f(x): time.sleep(0.4)"
    started = time.monotonic()
    drags = replace(sandbox, wall_seconds=4.0)
    [outcomes] = drags.outcomes([Run(slow, "f", tuple((n,) for n in range(1000)))])
    assert time.monotonic() - started < LONG
    assert {outcome.kind for outcome in outcomes[:2]} == {"value"}
    assert outcomes[-1].reason == "timeout"


@pytest.mark.slow
def test_nothing_is_left_behind(sandbox, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code = (
        "import threading, time\nthreading.Thread(target=time.sleep, args=(30,)).start()\ndef"
        " f(): time.sleep(30)"
    )
    before = descriptors(), {*threading.enumerate()}
    writes = "def f():\n    open('a', 'w').write('x')\n    return 1"
    sandbox = replace(sandbox, **QUICK)
    sandbox.outcomes([Run(code, "f", ((),)), Run(writes, "f", ((),)), Run("x", "f", ())])
    sandbox.verdicts(
        [Trial(code, "", ("f()",), ("f",)), Trial("f = len", "", ("assert f([]) == 0",), ("f",))]
    )
    deadline = time.monotonic() + LONG
    while processes() and time.monotonic() < deadline:
        time.sleep(0.02)  # the kernel ends a namespace a moment after its first process
    assert processes() == []
    assert list(tmp_path.iterdir()) == []
    assert not descriptors() - before[0]
    assert not {*threading.enumerate()} - before[1]


@pytest.mark.parametrize("level", LEVELS[1:])
def test_a_trainer_that_is_killed_leaves_no_folder(level, tmp_path, monkeypatch):
    if problem(level):
        pytest.skip(f"{level}: {problem(level)}")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with Process(level, {**isolation._PROBE, "role": "candidate"}) as process:
        process.wait_until_up()
        assert list(tmp_path.iterdir()) == []  # there is none at any time


@pytest.mark.slow
def test_the_same_answers_from_several_threads(sandbox):
    runs = [Run(f"def f(x): return x + {n % 5}", "f", ((1,), (2,))) for n in range(10)]
    expected = [[1 + n % 5, 2 + n % 5] for n in range(10)]
    found: list = [None] * 3

    def work(k):
        found[k] = [[outcome.value for outcome in row] for row in sandbox.outcomes(runs)]

    threads = [threading.Thread(target=work, args=(k,)) for k in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 3


def test_a_set_prints_the_same_in_every_process(sandbox):
    runs = [Run(f"print({{'a', 'b', 'c', 'd', 'e'}})  # {n}", None, ("",)) for n in range(4)]
    assert len({row[0].value for row in sandbox.outcomes(runs)}) == 1


def test_tests_that_cannot_run_are_an_error_of_the_data(sandbox):
    with pytest.raises(ValueError, match="tests that cannot run, whatever the code: SyntaxError"):
        sandbox.verdicts([Trial("", "", ("assert f( == 1",), ("f",))])
    with pytest.raises(ValueError, match="ModuleNotFoundError"):
        sandbox.verdicts([Trial("", "import no_such_module", ("assert 1",), ())])


def test_a_process_that_cannot_start_is_no_fault_of_the_code(monkeypatch):
    sandbox = Sandbox("seccomp", wall_seconds=0.1)  # it waits as long once
    monkeypatch.setattr(isolation, "_START", "raise OSError('no such luck') # {}")
    with pytest.raises(RuntimeError, match=r"did not start.*no such luck"):
        sandbox.outcomes([Run("", "f", ((),))])
    with pytest.raises(RuntimeError, match=r"did not start.*no such luck"):
        sandbox.verdicts([Trial("", "", ("assert 1",), ())])
    monkeypatch.undo()
    command = isolation._command

    def broken(level, settings):
        return ["false"] if settings["role"] == "candidate" else command(level, settings)

    monkeypatch.setattr(isolation, "_command", broken)
    with pytest.raises(RuntimeError, match="did not start"):
        sandbox.verdicts([Trial("", "", ("assert 1",), ())])


def test_a_machine_that_was_full_for_a_moment_is_tried_again(monkeypatch):
    """Code may use up the machine's processes or memory until it is ended: another's start must not
    end the run.
    """
    sandbox = Sandbox("seccomp", **PATIENT)
    command, started, waited = isolation._command, [], []
    clock = SimpleNamespace(sleep=waited.append, monotonic=time.monotonic)
    monkeypatch.setattr(pool, "time", clock)  # of this module alone: other threads may sleep
    monkeypatch.setattr(pool, "_REMEMBERED", {})  # another test may have asked for this verdict

    def full_at_first(level, settings):
        started.append(settings["role"])
        if len(started) == 1:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return ["false"] if len(started) == 3 else command(level, settings)

    monkeypatch.setattr(isolation, "_command", full_at_first)
    assert one(sandbox, "def f(): return 1").value == 1
    [verdict] = sandbox.verdicts([Trial("f = len", "", ("assert f([]) == 0",), ("f",))])
    assert verdict.passed == (True,)
    assert started == ["candidate"] * 3 + ["judge", "candidate", "judge"]
    assert waited == [PATIENT["wall_seconds"]] * 2


def test_levels_that_are_refused(monkeypatch):
    with pytest.raises(
        ValueError,
        match=r"isolation='auto' is unknown; choose one of \['rlimits', .* with a \+ behind",
    ):
        Sandbox("auto")
    with pytest.raises(ValueError, match="isolation='none\\+' is unknown"):
        Sandbox("none+")
    monkeypatch.setattr(
        isolation, "problem", lambda level: "" if level == "seccomp" else "not here"
    )
    with pytest.raises(
        ValueError,
        match=r"no such sandbox works here \(bubblewrap: .* landlock: not here\)\. Install bubble",
    ):
        Sandbox()
    assert Sandbox("seccomp+").level == Sandbox("seccomp").level == "seccomp"
    assert find_level("rlimits+") == "seccomp"  # the strongest that works
    with pytest.raises(ValueError, match="rlimits: not here"):
        find_level("rlimits")  # a level alone is that level


def test_a_missing_program_is_told(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert problem.__wrapped__("bubblewrap") == "the program bwrap is not installed"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("workers", 0),
        ("wall_seconds", 0),
        ("call_seconds", -1),
        ("wall_seconds", math.nan),
        ("memory_mb", 1),
    ],
)
def test_settings_out_of_range(name, value):
    with pytest.raises(ValueError, match=f"{name}={value}"):
        Sandbox(**{name: value})
