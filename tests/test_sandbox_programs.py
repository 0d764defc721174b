"""A program reads, prints and ends in the sandbox as it does where Python runs it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from rlif_lightning.sandbox.pool import Run, Sandbox

READ = "a, b = map(int, input().split())\n"
SUMS = {
    "exit": READ + "print(a + b)\nexit()",
    "quit": READ + "print(a + b)\nquit()",
    "exit in a function": "def main():\n    print(sum(map(int, input().split())))\n    exit(0)\n"
    "main()",
    "modes": "import sys\nassert (sys.stdin.mode, sys.stdout.mode) == ('r', 'w')\n"
    + READ
    + "print(a + b)",
    "bytes": "import sys\nsys.stdin.buffer.peek(1)\n"
    "a, b = map(int, sys.stdin.buffer.readline().split())\n"
    "sys.stdout.buffer.write(b'%d' % (a + b))",
    "wrapped": "import io, sys\nsys.stdin = io.TextIOWrapper(sys.stdin.buffer)\n"
    "sys.stdout = io.TextIOWrapper(sys.stdout.buffer)\n" + READ + "print(a + b)",
    "at exit": "import atexit, io, os\nkept = io.BytesIO()\n"
    "atexit.register(lambda: os.write(1, kept.getvalue()))\n"
    + READ
    + "kept.write(b'%d' % (a + b))",
    "a thread": "import threading, time\ndef main():\n    time.sleep(0.1)\n"
    "    print(sum(map(int, input().split())))\nthreading.Thread(target=main).start()",
    "closed": "import sys\n" + READ + "print(a + b)\nsys.stdout.close()",
    "replaced": "import io, sys\nold, sys.stdout = sys.stdout, io.StringIO()\n"
    + READ
    + "print(a + b)\nold.write(sys.stdout.getvalue())",
    "the first ones": "import sys\na, b = map(int, sys.__stdin__.readline().split())\n"
    "sys.__stdout__.write(str(a + b))",
    "by number": "import os\nentered = os.fdopen(0)\na, b = map(int, entered.readline().split())\n"
    "print(a + b, file=os.fdopen(1, 'w'))",
    "by number, in a cycle": "import os\nentered = os.fdopen(0)\n"
    "def show(): print(sum(map(int, entered.readline().split())))\nshow()",
    "a pool": "from concurrent.futures import ThreadPoolExecutor\npool = ThreadPoolExecutor()\n"
    "print(pool.submit(sum, map(int, input().split())).result())",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SUMS)
def test_a_program_prints_what_it_prints_without_a_sandbox(name):
    """The second input: what a program leaves behind does not disturb the next one."""
    command = [sys.executable, "-c", SUMS[name]]
    run = subprocess.run(command, input="3 4\n", capture_output=True, text=True, check=False)
    inputs = ("3 4\n", "5 6\n")
    [outcomes] = Sandbox("rlimits", wall_seconds=30).outcomes([Run(SUMS[name], None, inputs)])
    printed = [run.stdout, run.stdout.replace("7", "11")]
    assert [(it.kind, it.value) for it in outcomes] == [("value", text) for text in printed]
    assert run.stdout.strip() == "7"


def test_a_function_may_end_the_program():
    """A name that Python's own start-up defines is there, whatever ends by it."""
    run = Run("def f(): exit()", "f", ((),))
    [[outcome]] = Sandbox("rlimits").outcomes([run])
    assert (outcome.kind, outcome.reason) == ("error", "SystemExit")
