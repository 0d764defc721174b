"""Starts the tests of ``tests/device_twin``, each file in a pytest of its own: whoever installs the twin keeps it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "tests" / "device_twin").glob("test_*.py"))


def missing() -> str | None:
    """Why there can be no twin here."""
    if torch.backends.cuda.is_built():
        return "the device twin needs a CPU build of PyTorch"
    try:
        subprocess.run(["g++", "--version"], capture_output=True, check=True)
    except FileNotFoundError:
        return "the device twin needs g++ (Debian, Ubuntu: apt-get install g++)"
    return None


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem.removeprefix("test_"))
def test_on_the_device_twin(file, pytestconfig):
    reason = missing()
    if reason and os.environ.get("DEVICE_TWIN") != "required":  # as CI says
        pytest.skip(reason)
    tests = ["-m", pytestconfig.option.markexpr, "-p", "no:cacheprovider", "--durations=5", str(file)]
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", *tests], cwd=ROOT, capture_output=True, text=True)
    print(done.stdout)
    if done.returncode:
        pytest.fail(f"{done.stdout}\n{done.stderr}", pytrace=False)
