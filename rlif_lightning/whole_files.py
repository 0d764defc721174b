"""Files that appear whole or not at all: each is written under another name and then renamed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replaced(path: Path, unfinished: Path | None = None, durable: bool = False) -> Iterator[Path]:
    """Give a path to write a file at; after the block that file takes the place of ``path``.

    Where the block fails, ``path`` stays as it was and the half-written file is removed. A process
    that is killed leaves the half-written file; ``running/leftovers.py`` knows the names of a run's
    own ones.

    Args:
        path: the file that is wanted. Its folder must exist.
        unfinished: the other name, in the same folder; None = the name of ``path`` with
            ``.unfinished`` at its end.
        durable: the file and its new name are forced to the disk, so that both outlast a power cut.
    """
    written = path.with_name(f"{path.name}.unfinished") if unfinished is None else unfinished
    try:
        yield written
        if durable:
            force_to_disk(written)
        os.replace(written, path)
    except BaseException:
        with suppress(OSError):  # the first error is the one to tell
            written.unlink()
        raise
    if durable:
        force_to_disk(path.parent)


def force_to_disk(path: Path) -> None:
    """Return once the disk has what was written to a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
