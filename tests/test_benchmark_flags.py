"""The benchmarks' flags: whatever a benchmark reads or passes on exists."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = sorted((ROOT / "benchmarks").glob("*.py"))


@pytest.fixture
def flags(monkeypatch) -> set[str]:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setattr(sys, "argv", ["step.py"])
    import workload

    return set(vars(workload.parse_arguments("")))


def test_what_the_workload_reads_of_its_arguments_is_a_flag(flags):
    """In these files the parsed arguments are called ``a``."""
    files = [path for path in BENCHMARKS if "parse_arguments" in path.read_text()]
    assert {"step.py", "workload.py"} <= {path.name for path in files}
    for path in files:
        assert not set(re.findall(r"\ba\.(\w+)", path.read_text())) - flags, path.name


@pytest.mark.parametrize("name", ["benchmarks/compare.py", "scripts/first_gpu/passes.py"])
def test_what_scripts_pass_to_the_step_benchmark_is_a_flag(flags, name):
    passed = {
        flag.replace("-", "_") for flag in re.findall(r'"--([a-z-]+)', (ROOT / name).read_text())
    }
    assert "prompts_per_rollout" in passed & flags
