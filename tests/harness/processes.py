"""Runs in processes of their own."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from harness.files import PYTHONPATH
from harness.forked import run_module
from harness.runs import BASE, LONG


def environment() -> dict[str, str]:
    """Return the environment of a process that finds this checkout and its tests; one thread, as
    here.
    """
    # Another number of threads would round differently.
    return os.environ | {"PYTHONPATH": PYTHONPATH, "OMP_NUM_THREADS": "1"}


ON_TWO = ["fit", *BASE, *LONG, "--config=configs/strategy/ddp.yaml", "--trainer.devices=2"]


def two_ranks(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Train under DDP; over when both processes have closed its output."""
    given = [*ON_TWO, *arguments, f"--trainer.default_root_dir={folder}"]
    return run_module("rlif_lightning", given, environment())
