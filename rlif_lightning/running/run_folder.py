"""Where a run's files go, and which one an error is about."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def run_folder(trainer: Any) -> Path:
    """The run's own folder, the same on every rank (a collective: every rank must ask)."""
    return Path(trainer.log_dir or trainer.default_root_dir)


def check_root(root: Path) -> None:
    """Refuse a place for runs in which nothing can be written, before anything is loaded; makes no folder.

    Raises:
        ValueError: names it and the remedy.
    """
    place = Path(os.path.abspath(root))
    while not os.path.lexists(place):
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        why = "cannot be written to" if place.is_dir() else "is no folder"
        raise ValueError(f"trainer.default_root_dir={str(root)!r}: {str(place)!r} {why}; give another folder")


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put the file's name into an error of the disk: that of a write has none, unlike that of opening a file."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
