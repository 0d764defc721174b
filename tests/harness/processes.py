"""Runs in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from harness.files import ROOT
from harness.runs import BASE, LONG


def environment() -> dict[str, str]:
    """Of a process that finds this checkout and its tests."""
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}


ON_TWO = ["fit", *BASE, *LONG, "--config=configs/strategy/ddp.yaml", "--trainer.devices=2"]


def two_ranks(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Train under DDP; over when both processes have closed its output."""
    command = [sys.executable, "-m", "rlif_lightning", *ON_TWO, *arguments]
    command.append(f"--trainer.default_root_dir={folder}")
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment(),
        timeout=240,
        check=False,
    )
