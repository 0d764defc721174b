"""Checkpoints by their names: where they are, which is the newest, and how one is removed."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

SUFFIX = ".ckpt"
BEST = f"best{SUFFIX}"
PLACES = (
    "version_*/checkpoints",
    "checkpoints",
)  # under the root; deeper ones belong to other runs
VERSION = re.compile(r"version_(\d+)")
ROLLOUT = re.compile(rf"rollout=(\d+)\{SUFFIX}")


def find_checkpoints(root: Path) -> list[Path]:
    """Return a root's checkpoints, whole or not, newest first (by version, then rollout)."""
    found = [path for place in PLACES for path in root.glob(f"{place}/*{SUFFIX}")]
    places = [(place_of(path), path) for path in found if ROLLOUT.fullmatch(path.name)]
    return [path for _, path in sorted(places, reverse=True)]


def find_best(root: Path) -> list[Path]:
    """Return the ``best.ckpt`` of each run of a root, the newest run first."""
    return sorted(
        (path for place in PLACES for path in root.glob(f"{place}/{BEST}")),
        key=place_of,
        reverse=True,
    )


def place_of(path: Path) -> tuple[int, int]:
    """Return version and rollout of a checkpoint, -1 where its path does not name them."""
    version, rollout = VERSION.fullmatch(path.parent.parent.name), ROLLOUT.fullmatch(path.name)
    return int(version[1]) if version else -1, int(rollout[1]) if rollout else -1


def unfinished_name(path: Path) -> Path:
    """Return where a checkpoint is written before it has its name."""
    return path.with_name(f".{path.name}.unfinished")


def remove_checkpoint(path: Path) -> None:
    """Remove a file or folder whole; of a link, the link alone."""
    if path.is_dir() and not path.is_symlink():
        unfinished = unfinished_name(path).with_suffix(".old")
        shutil.rmtree(unfinished, ignore_errors=True)
        os.replace(path, unfinished)
        shutil.rmtree(unfinished)
    else:
        path.unlink(missing_ok=True)
