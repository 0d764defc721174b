"""Hostile code at every level of isolation: what each level stops, and that nothing changes a score
at any.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from harness import attacks, escapes
from harness.attacks import ATTACKS, attempt, promised
from harness.programs import PATIENT
from rlif_lightning.sandbox.isolation import LEVELS, problem
from rlif_lightning.sandbox.pool import Sandbox, Trial

ROOT = Path(__file__).parents[1]


# The levels between the weakest and the strongest have the same attacks and fewer promises.
BETWEEN = [
    pytest.param(name, marks=pytest.mark.full if name in LEVELS[1:-1] else ()) for name in LEVELS
]


@pytest.fixture(params=BETWEEN)
def level(request) -> str:
    """Every level that this machine has."""
    if problem(request.param):
        pytest.skip(f"{request.param}: {problem(request.param)}")
    return request.param


@pytest.fixture
def home():
    """A folder of the user's own, not below /tmp, which several levels replace as a whole."""
    base = Path.home() if os.access(Path.home(), os.W_OK) else ROOT
    with tempfile.TemporaryDirectory(dir=base, prefix=".rlif-test-") as folder:
        yield Path(folder)


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks(level, name, home, monkeypatch):
    monkeypatch.setenv("RLIF_TEST_SECRET", attacks.SECRET)
    if promised(level, name):
        assert not attempt(level, name, home)
    elif ATTACKS[name].harmless:
        # The attack is a real one: nothing but the level's promise is between it and its target.
        assert attempt(level, name, home)


# Each would make a judge in the same interpreter, or one that trusts objects or lines of text,
# believe that all is well.
CHEATS = {
    "always equal": "class E:\n    def __eq__(s, o): return True\n    def __ne__(s, o): return"
    " False\n"
    "    def __lt__(s, o): return True\n    def __abs__(s): return 0\n    def __sub__(s, o):"
    " return 0\n"
    "def f(x): return E()",
    "an int that is always equal": "class E(int):\n    def __eq__(s, o): return True\n    __hash__"
    " ="
    " int.__hash__\n"
    "def f(x): return E()",
    "a str that claims to be a list": "class E(str):\n    __class__ = list\n    def __eq__(s, o):"
    " return"
    " True\n"
    "    __hash__ = str.__hash__\ndef f(x): return E()",
    "exit before the tests": "import os\nos._exit(0)",
    "exit in the tests": "import os\ndef f(x): os._exit(0)",
    "sys.exit": "import sys\nsys.exit(0)",
    "sys.exit in the tests": "import sys\ndef f(x): sys.exit(0)",
    "StopIteration ends all()": "def f(x): raise StopIteration",
    "GeneratorExit": "def f(x): raise GeneratorExit",
    "a fake verdict on every pipe": "import os\ndef say():\n    for fd in range(64):\n        try:"
    " os.write(fd,"
    " "
    'b\'{"passed": [true, true, true], "ended": "", "nonce": null, "number": 1, "value":'
    " true}\\n')\n"
    "        except OSError: pass\nsay()\ndef f(x): say(); return None",
    "a printed verdict": "print('passed'); print('{\"passed\": [true, true, true]}')\ndef f(x):"
    " print('ok')",
    "the judge's builtins": "import builtins, json, sys\nbuiltins.AssertionError = type('A',"
    " (Exception,),"
    " {})\n"
    "builtins.all = builtins.any = builtins.len = builtins.isinstance = lambda *a: True\n"
    'json.dumps = lambda *a, **k: \'{"passed": [true, true, true], "ended": ""}\'\ndef f(x):'
    " return None",
    "the judge's module": "import sys\nfor m in list(sys.modules.values()):\n    for n in"
    " ('run_tests',"
    " '_passes',"
    " 'decode'):\n"
    "        if hasattr(m, n): setattr(m, n, lambda *a, **k: {'passed': [True] * 3, 'ended':"
    " ''})\ndef f(x): return None",
    "a trace of the judge": "import sys\ndef t(frame, event, arg):\n    frame.f_trace_opcodes ="
    " True\n"
    " "
    " "
    " "
    " return"
    " t\n"
    "sys.settrace(t)\nsys.setprofile(lambda *a: None)\ndef f(x): return None",
    "frames of the judge": "import sys, gc\ndef f(x):\n    frame = sys._getframe()\n    while"
    " frame:\n"
    "        for v in frame.f_locals.values():\n            if isinstance(v, dict) and 'expected'"
    " in v: return v['expected']\n"
    "        frame = frame.f_back\n    return [o for o in gc.get_objects() if isinstance(o, dict)"
    " and 'nonce' in o]",
    "a pickle": "class P:\n    def __reduce__(self): return (print, ('x',))\nimport pickle\ndef"
    " f(x):"
    " return P()",
    "pickled bytes": "import pickle\ndef f(x): return pickle.dumps(print)",
    "__del__ and atexit": 'import atexit, os\natexit.register(lambda: os.write(1, b\'{"passed":'
    " [true,"
    " true,"
    " true]}'))\n"
    "class D:\n    def __del__(self): os._exit(0)\nd = D()\ndef f(x): global d; d = None",
    "deaf to signals": "import signal\nfor s in range(1, 65):\n    try: signal.signal(s, lambda *a:"
    " None)\n"
    " "
    " "
    " "
    " except Exception: pass\n"
    "def f(x):\n    while True:\n        try:\n            while True: pass\n        except"
    " BaseException: pass",
    "deaf while loading": "while True:\n    try:\n        while True: pass\n    except"
    " BaseException:"
    " pass",
    "many threads": "import threading, time\nfor i in range(2000):"
    " threading.Thread(target=time.sleep,"
    " args=(9,)).start()",
    "deep recursion": "import sys\nsys.setrecursionlimit(10**9)\ndef f(x): return f(x)",
    "a deep value": "def f(x):\n    for i in range(10**5): x = [x]\n    return x",
    "a huge value": "def f(x): return [0] * 10**7",
    "an endless iterator": "import itertools\ndef f(x): return itertools.count()",
    "answers ahead of time": "import json, os\nfor n in range(1, 9):\n    for fd in range(3, 9):\n "
    " "
    " "
    " "
    " "
    " "
    " "
    " try:"
    " os.write(fd, json.dumps("
    "{'number': n, 'value': True}).encode() + b'\\n')\n        except OSError: pass\ndef f(x):"
    " return True",
    "colliding hashes": "def f(x): return {k * (2**61 - 1) for k in range(1, 5000)}",
    "equal to nothing": "def f(x): return float('nan')",
    "a closed channel": "import os\nos.closerange(0, 64)\ndef f(x): return x",
    "garbage on the channel": "import os\nfor fd in range(3, 9):\n    try: os.write(fd, b'\\xff' *"
    " 1000"
    " +"
    " b'\\n')\n"
    " "
    " "
    " "
    " except OSError: pass\n"
    "def f(x): return x + 1",
}
TESTS = ("assert f(1) == 2", "assert abs(f(2) - 3) < 1e-6", "assert all(map(f, [3])) and f(3) == 4")
HONEST = "def f(x): return x + 1"


# These take long, and test_sandbox.py has what stops each: limits of time, of size and of depth,
# values that are no literals, and errors.
LONG = ("deaf while loading", "deaf to signals", "a huge value", "a deep value", "deep recursion")
LONG += ("an endless iterator", "colliding hashes")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.full if n in LONG else ()) for n in CHEATS]
)
@pytest.mark.parametrize(
    "level",  # what judges is the same at all; the strongest adds to what is refused
    [LEVELS[0], *(pytest.param(name, marks=pytest.mark.slow) for name in LEVELS[-1:])],
    indirect=True,
)
def test_cheats_score_nothing(level, name):
    quick = {"wall_seconds": 1, "call_seconds": 0.5, "memory_mb": 256}
    cheating = Sandbox(level, **quick if name in (*LONG, "many threads") else PATIENT)
    started = time.monotonic()
    with ThreadPoolExecutor(2) as both:  # one beside the other
        judged = both.map(
            lambda sandbox, code: sandbox.verdicts([Trial(code, "", TESTS, ("f",))]),
            (cheating, Sandbox(level, **PATIENT)),
            (CHEATS[name], HONEST),
        )
        [verdict], [honest] = judged
    assert verdict.passed == (False, False, False)
    assert honest.passed == (True, True, True)
    assert time.monotonic() - started < PATIENT["wall_seconds"]  # a hang costs its own limit


def test_an_exception_never_ends_a_test_early(level):
    """In one interpreter, all() takes a StopIteration for the end of its items, and an exit of a
    test looks like success.
    """
    sandbox = Sandbox(level)
    stop = "def f(x):\n    if x: raise StopIteration\n    raise KeyError"
    tests = (
        "assert all(map(f, [1]))",
        "raise SystemExit(0)",
        "try:\n    f(0)\nexcept KeyError:\n    pass",
    )
    [verdict] = sandbox.verdicts([Trial(stop, "", tests, ("f",))])
    assert verdict.passed == (False, False, True)


def test_the_table_in_the_docs_is_the_tested_one():
    text = (ROOT / "docs" / "code-rewards.md").read_text()
    rows = re.findall(r"^\| ([^|]+?) \| (.+) \|$", text, re.MULTILINE)
    printed = {name: cells.split(" | ") for name, cells in rows if name in ATTACKS}
    expected = {
        name: ["stops" if promised(level, name) else "-" for level in LEVELS] for name in ATTACKS
    }
    assert printed == expected


def test_the_table_of_escapes_in_the_docs_is_the_tested_one():
    text = (ROOT / "docs" / "code-rewards.md").read_text()
    printed = re.findall(r"^\| `(\w+)` \| (\d+) of (\d+) \| (\d+) of (\d+) \|", text, re.MULTILINE)
    total = len(escapes.ALL)
    stopped = {
        level: sum(escapes.promised(level, name) for name in escapes.ALL) for level in LEVELS
    }
    assert printed == [(level, *[str(n) for n in (stopped[level], total) * 2]) for level in LEVELS]


@pytest.fixture
def as_nobody():
    """Run a file of this folder as nobody, with an interpreter and a copy of the sandbox that
    nobody can reach.
    """
    if os.geteuid():
        pytest.skip("the other tests already run as an ordinary user")
    python = "/usr/bin/python3"
    works = [python, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
    if not Path(python).exists() or subprocess.run(works, check=False).returncode:
        pytest.skip("no system Python of 3.11 or newer")
    folder = Path(tempfile.mkdtemp(prefix="rlif-nobody-"))
    package, own = folder / "rlif_lightning", folder / "home"
    shutil.copytree(ROOT / "rlif_lightning" / "sandbox", package / "sandbox")
    shutil.copy(ROOT / "rlif_lightning" / "__init__.py", package)
    shutil.copy(ROOT / "rlif_lightning" / "setting_types.py", package)
    for module in (attacks, escapes):
        shutil.copy(module.__file__, folder)
    own.mkdir()
    os.chown(own, 65534, 65534)
    folder.chmod(0o755)
    subprocess.run(["chmod", "-R", "a+rX", str(folder)], check=True)
    environment = {"HOME": str(own), "PYTHONPATH": str(folder), "PATH": os.environ["PATH"]}

    def run(file: str, level: str) -> str:
        return finished(
            [python, str(folder / file), level],
            own,
            environment,
            user=65534,
            group=65534,
            extra_groups=[],
        )

    yield run
    shutil.rmtree(folder)


def finished(command: list[str], folder: Path, environment: dict[str, str], **user: Any) -> str:
    """What a program prints that must end well: it is the parent of the sandboxed processes, in our
    stead.
    """
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=folder, env=environment, check=False, **user
    )
    assert done.returncode == 0, (done.returncode, done.stderr)
    return done.stdout


@pytest.mark.full  # the same attacks as whoever runs the tests: above
def test_an_ordinary_user_is_as_safe(level, as_nobody):
    through = set(as_nobody("attacks.py", level).splitlines())
    assert through == {
        name for name in ATTACKS if not promised(level, name) and ATTACKS[name].harmless
    }


def check_escapes(level: str, printed: str) -> None:
    """Nothing that a level promises to stop got through, and what works everywhere is seen to work
    elsewhere.
    """
    found = json.loads(printed)
    through = set(found["through"])
    weaker = {name for name in escapes.ESCAPES if not escapes.promised(level, name)}
    assert through <= weaker
    assert {name for name in weaker if escapes.ESCAPES[name].sure} <= through
    assert found["unanswered"] == found["scored"] == []
    if level != "rlimits":
        assert found["refused"] == []
        assert found["changed"] == found["killed"] == []


X86_64 = pytest.mark.skipif(
    os.uname().machine != "x86_64", reason="the numbers of calls are those of x86-64"
)


@X86_64
def test_escapes(level, tmp_path):
    check_escapes(
        level,
        finished(
            [sys.executable, escapes.__file__, level],
            tmp_path,
            {**os.environ, "PYTHONPATH": str(ROOT)},
        ),
    )


@X86_64
def test_escapes_where_the_session_leader_is_outside(tmp_path):
    """As in a container: the kernel answers 0 for a session or process group of another pid
    namespace.
    """
    namespace = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc"]
    if (
        not shutil.which("unshare")
        or subprocess.run([*namespace, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("this machine gives no pid namespaces")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    printed = finished(
        [*namespace, sys.executable, escapes.__file__, "rlimits"], tmp_path, environment
    )
    check_escapes("rlimits", printed)


@pytest.mark.full  # the same escapes as whoever runs the tests: above
@X86_64
def test_escapes_of_an_ordinary_user(level, as_nobody):
    check_escapes(level, as_nobody("escapes.py", level))


CONFINED = """
import fcntl, os, sys
from rlif_lightning.sandbox.lockdown import _confine_reading
_confine_reading(["/usr"])
victim = int(sys.argv[1])
r, w = os.pipe()
fcntl.fcntl(r, 8, victim); fcntl.fcntl(r, 10, 9); fcntl.fcntl(r, 4, 0x2000)
os.write(w, b"x")
try: os.kill(victim, 9)
except PermissionError: print("refused")
"""


def test_landlock_keeps_signals_inside_without_the_filter():
    """Two layers: the filter refuses the commands that send signals, and from Linux 6.12 Landlock
    refuses the signals.
    """
    if problem("landlock") or tuple(map(int, os.uname().release.split(".")[:2])) < (6, 12):
        pytest.skip("no Landlock of version 6")
    with subprocess.Popen(["sleep", "600"]) as victim:
        command = [sys.executable, "-c", CONFINED, str(victim.pid)]
        printed = finished(command, ROOT, {**os.environ, "PYTHONPATH": str(ROOT)})
        assert attacks.outlived(victim)
    assert printed == "refused\n"


def test_attacks_name_known_levels():
    assert {attack.stopped_by for attack in ATTACKS.values()} <= set(LEVELS)
    assert sys.version_info >= (3, 11)
