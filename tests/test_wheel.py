"""Wheel and sdist are whole, and the wheel works in an environment of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

from harness.files import ROOT


@pytest.mark.full
def test_the_wheel_works_in_an_environment_of_its_own(tmp_path):
    """pip fetches the build backend: without a network this is skipped."""
    command = [sys.executable, str(ROOT / "scripts" / "check_wheel.py"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "No matching distribution found" in done.stderr:
        pytest.skip("no network: pip cannot fetch the build backend")
    assert done.returncode == 0, done.stderr
    assert "are whole; 1+2= was answered with" in done.stdout
