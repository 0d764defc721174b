"""The tests' own house rules: what several share lies in ``tests/harness``, and no test imports another."""

from __future__ import annotations

import ast
from pathlib import Path

from harness.files import ROOT

TESTS = ROOT / "tests"


def imported(path: Path) -> set[str]:
    """Every part of every module and name that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {part for alias in node.names for part in alias.name.split(".")}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {*node.module.split("."), *(alias.name for alias in node.names)}
    return found


def test_no_test_imports_another():
    """A file that tests is no library of those that test something else."""
    for path in sorted(TESTS.rglob("*.py")):
        names = imported(path)
        files = {name for name in names if (TESTS / f"{name}.py").exists()} - {"restatement"}
        assert not files, f"{path.name}: move what it takes from {files} into tests/harness"
