"""Where a run's files go, and which file an error is about."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LONGEST_NAME, LONGEST_PATH = 255, 4096  # bytes, of Linux
ROOM = 32  # bytes that the run's own names of half-written files add


def run_folder(trainer: Any) -> Path:
    """Return the run's own folder, the same in every process (a collective)."""
    return Path(trainer.log_dir or trainer.default_root_dir)


def check_place(setting: str, folder: str | Path) -> Path:
    """Return a place, with the home folder for ``~``, without making a folder.

    A shell writes out ``~`` at the beginning of a word only, and a YAML file has no shell.

    Args:
        setting: what names it, such as ``trainer.default_root_dir``.
        folder: the place, which need not be there yet.

    Raises:
        ValueError: nothing can be written there; names the setting, the place and the remedy.
    """
    folder = Path(folder).expanduser()
    shown = f"{setting}={str(folder)!r:.120}"
    if "\0" in str(folder) or any(
        len(os.fsencode(part)) > LONGEST_NAME - ROOM for part in folder.parts
    ):
        raise ValueError(
            f"{shown}: a name in it has a NUL or is too long for a file system; give another folder"
        )
    place = Path(os.path.abspath(folder))
    if len(os.fsencode(place)) > LONGEST_PATH - LONGEST_NAME:
        raise ValueError(f"{shown}: it is too long for a file system; give another folder")
    while not os.path.lexists(place):
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        why = "cannot be written to" if place.is_dir() else "is no folder"
        raise ValueError(f"{shown}: {str(place)!r} {why}; give another folder")
    return folder


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put the file's name into an error of the disk that has none, such as that of a write."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
