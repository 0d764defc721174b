"""Where a run's files go, and which one an error is about."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def run_folder(trainer: Any) -> Path:
    """The run's own folder, the same on every rank (a collective: every rank must ask)."""
    return Path(trainer.log_dir or trainer.default_root_dir)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put the file's name into an error of the disk: that of a write has none, unlike that of opening a file."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
