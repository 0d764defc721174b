"""The tests' own house rules: what several share lies in ``tests/harness``, and no test imports
another.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path

import pytest

from harness.files import ROOT
from harness.forked import run_module
from harness.processes import environment

TESTS = ROOT / "tests"


# An import statement, with all lines of its parentheses.
STATEMENT = re.compile(
    r"^[ \t]*(?:from[ ].+?[ ]import[ ](?:\([^)]*\)|.*)|import[ ].*)", re.MULTILINE
)


def imported(path: Path) -> set[str]:
    """Every part of every module and name that a file imports."""
    return {
        word for text in STATEMENT.findall(path.read_text()) for word in re.findall(r"\w+", text)
    }


def test_no_test_imports_another():
    """A file that tests is no library of those that test something else."""
    for path in sorted(TESTS.rglob("*.py")):
        names = imported(path)
        files = {name for name in names if (TESTS / f"{name}.py").exists()} - {"restatement"}
        assert not files, f"{path.name}: move what it takes from {files} into tests/harness"


FATES = """
import os, subprocess, sys
print("said", os.getcwd(), os.environ["MINE"])
if sys.argv[1] == "killed":
    os.kill(os.getpid(), 9)
if sys.argv[1] == "leaves":  # a process that outlives it and writes last
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.5); print('last')"])
    sys.exit(3)
raise OSError("told")
"""


@pytest.mark.full  # as every test that forks a module
def test_a_forked_module_ends_as_one_that_was_started(tmp_path):
    (tmp_path / "fates.py").write_text(FATES)
    given = {**environment(), "PYTHONPATH": f"{tmp_path}:{ROOT}", "MINE": "here"}
    killed, left, failed = (run_module("fates", [w], given) for w in ("killed", "leaves", "fails"))
    assert (killed.returncode, left.returncode, failed.returncode) == (-signal.SIGKILL, 3, 1)
    assert left.stdout.splitlines() == [f"said {ROOT} here", "last"]
    assert "OSError: told" in failed.stderr
    assert str(tmp_path) not in sys.path
    assert "MINE" not in os.environ
