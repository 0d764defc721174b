"""Where a run's files go."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def run_folder(trainer: Any) -> Path:
    """The run's own folder, the same on every rank (a collective: every rank must ask)."""
    return Path(trainer.log_dir or trainer.default_root_dir)
