"""math-verify's process: time limits wherever it is asked from, memory of verdicts, death and
renewal.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rlif_lightning.answers import library, math_verify_process
from rlif_lightning.answers.final_answers import equivalent
from rlif_lightning.answers.math_verify_process import ask

# Python >= 3.12 warns of forking beside torch's threads; a data loader's workers do just that.
pytestmark = pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded:DeprecationWarning"
)

LONG = 60.0  # seconds; half a minute of CPU time and more is what must not be spent
TRAPS = [
    "9^{9^{9^{9}}}",
    "9!!!!!",
    "{" * 100 + "1" + "}" * 100,
    "x^" * 120 + "x",
    "(" * 120 + "1" + ")" * 120,
]


@pytest.fixture(autouse=True)
def warm_worker_and_empty_memo():
    """The time limits below are about answers, not about starting the process."""
    assert ask(["x+1", "1+x"]).equal
    library._verdicts.clear()


def worker() -> math_verify_process._Worker:
    return math_verify_process._workers[os.getpid()]


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie that nobody has waited for does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def assert_trap_is_short(trap: str) -> None:
    start = time.monotonic()
    assert not equivalent(trap, "x+3")
    assert time.monotonic() - start < LONG  # 0.3 s of CPU time, and room for a loaded machine
    assert equivalent(r"\sqrt{18}", r"3\sqrt{2}")


@pytest.mark.parametrize("trap", TRAPS)
def test_trap_in_the_main_thread(trap):
    assert_trap_is_short(trap)


@pytest.mark.slow
def test_trap_costs_its_time_once_for_all_comparisons():
    equivalent(TRAPS[0], "x+3")
    start = time.monotonic()
    assert not any(equivalent(TRAPS[0], f"x+{i}") for i in range(4, 2_000))
    assert time.monotonic() - start < LONG


def test_traps_in_threads():
    failures = []

    def body(trap):
        try:
            assert_trap_is_short(trap)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=body, args=(trap,)) for trap in TRAPS[:3]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.full)])
def test_trap_in_a_child_process(method):
    before = worker()._process.pid
    child = multiprocessing.get_context(method).Process(
        target=_assert_with_another_worker, args=(TRAPS[0], before)
    )
    if method == "spawn":
        child = multiprocessing.get_context(method).Process(
            target=_assert_with_own_start, args=(TRAPS[0],)
        )
    child.start()
    child.join(4 * LONG)
    assert child.exitcode == 0
    assert worker()._process.pid == before
    assert alive(before)
    assert ask(["x+1", "1+x"]).equal


def _assert_with_another_worker(trap: str, parents: int) -> None:
    _assert_with_own_start(trap)
    assert worker()._process.pid != parents


def _assert_with_own_start(trap: str) -> None:
    assert ask(["x+1", "1+x"]).equal
    assert_trap_is_short(trap)


@pytest.mark.full  # a trap in a child process: above, by a worker of its own
def test_fork_starts_a_worker_of_its_own():
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        ask(["x+1", "1+x"])
        own = math_verify_process._workers[os.getpid()]._process.pid
        math_verify_process._stop_all()
        os.write(write, str(own).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    own = int(os.read(read, 100))
    os.close(read), os.close(write)
    assert own != worker()._process.pid
    assert not alive(own)
    assert alive(worker()._process.pid)


def test_verdicts_are_remembered_whatever_the_order(monkeypatch):
    asked = []
    monkeypatch.setattr(library, "ask", lambda strings: asked.append(strings) or ask(strings))
    a, b = r"\sum_{k=1}^{4} k", r"\sum_{k=1}^{4} k^1"
    assert [equivalent(a, b), equivalent(b, a), equivalent(a + " ", b.replace("=", " = "))] == [
        True
    ] * 3
    assert sorted(map(len, asked)) == [1, 1, 2]


@pytest.mark.parametrize("whole_session", [True, pytest.param(False, marks=pytest.mark.full)])
def test_killed_worker_is_replaced(whole_session):
    old = worker()._process.pid
    victim = old if whole_session else children(old)[0]
    (os.killpg if whole_session else os.kill)(victim, signal.SIGKILL)
    assert ask([r"\sqrt{8}", r"2\sqrt{2}"]).equal
    assert not ask([r"\sqrt{8}", "3"]).equal
    assert worker()._process.pid != old


@pytest.mark.slow
def test_interrupt_leaves_no_stale_reply():
    class Interrupt(Exception):
        pass

    def interrupt(*_):
        raise Interrupt

    def interrupted():
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        ask([TRAPS[1]])

    previous = signal.signal(signal.SIGALRM, interrupt)
    try:
        with pytest.raises(Interrupt):
            interrupted()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert ask(["x+1", "1+x"]).equal


# The mark: a parent that is killed says goodbye to nobody, and the worker ends all the same.
@pytest.mark.slow
@pytest.mark.parametrize(
    "end", [pytest.param("sys.exit()", marks=pytest.mark.full), "os.kill(os.getpid(), 9)"]
)
def test_worker_ends_with_its_parent(end):
    code = (
        "import os, sys; from rlif_lightning.answers import math_verify_process as m;"
        " m.ask(['x+1', '1+x']);"
        f"print(m._workers[os.getpid()]._process.pid, flush=True); {end}"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True
    )
    assert done.stderr == ""
    pid = int(done.stdout)
    deadline = time.monotonic() + LONG
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive(pid)


def test_worker_that_cannot_start_is_an_error(monkeypatch, capfd):
    monkeypatch.setattr(
        math_verify_process, "__file__", str(Path(__file__).parent / "no_such_script")
    )
    with pytest.raises(RuntimeError, match="did not start"):
        math_verify_process._Worker().ask(["x+1"])
    assert "no_such_script" in capfd.readouterr().err


def resident_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


@pytest.mark.slow
def test_many_answers_leave_one_worker_with_one_child_and_no_more_memory():
    """A trap now and then ends the child, and the worker forks another one."""
    process = worker()._process.pid
    for number in range(100):
        ask([rf"\sqrt{{{10**6 + number}}}"])
    before = resident_mib(process) + sum(map(resident_mib, children(process)))
    for number in range(100, 300):
        ask([rf"\sqrt{{{10**6 + number}}}" if number % 100 else rf"9^{{9^{{9^{{{number}}}}}}}"])
    (child,) = children(process)
    assert worker()._process.pid == process
    assert children(os.getpid()).count(process) == 1
    assert resident_mib(process) + resident_mib(child) < before + 8
