"""What killed processes of a run left: half-written files, and checkpoints that nothing names.

A process that is killed leaves at most one of each kind. They are removed when the run goes on, by
the names that the run's own code gives them; folders of other runs, of runs that are alive, and
files of users are not looked at.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterable
from pathlib import Path

from rlif_lightning.running.checkpoint_names import BEST, ROLLOUT, place_of
from rlif_lightning.running.own_files import OwnFiles

EXPORTS = tuple(f".{name}.{state}" for name in ("best", "last") for state in ("unfinished", "old"))
HALF_WRITTEN = (
    *(
        f"{room}/.*.ckpt.{state}"
        for room in ("checkpoints", "guard")
        for state in ("unfinished", "old")
    ),
    *(f"export/{name}" for name in EXPORTS),
    "export/*/README.md.unfinished",
    *(
        f"{name}.unfinished"
        for name in ("report.html", "report/*.png", "versions.json", "metrics.csv", "run.json")
    ),
    "completions/*.unfinished",
    "evaluation.tmp",
)


def remove_leftovers(own: OwnFiles, kept: Collection[Path], best: Path | None) -> None:
    """Remove this run's half-written files, and checkpoints that the newest one does not name.

    Checkpoints newer than the one that the run goes on from (damaged ones that were passed over)
    stay.

    Args:
        own: the run's own files.
        kept: checkpoints that are kept.
        best: the best one.
    """
    for folder in own.folders():
        remove_half_written(folder, HALF_WRITTEN)
        for path in _rooms(folder, ["checkpoints/*.ckpt"]):
            older = own.source is not None and place_of(path) < place_of(own.source.absolute())
            orphan = (
                older and path not in kept
                if ROLLOUT.fullmatch(path.name)
                else path.name == BEST and path != best
            )
            if orphan:
                own.remove(path)


def remove_other_snapshots(own: OwnFiles, used: Collection[Path]) -> None:
    """Remove this run's guard snapshots but for ``used``, those that a checkpoint names."""
    for folder in own.folders():
        for path in _rooms(folder, ["guard/rollout=*.ckpt"]):
            if path not in used:
                own.remove(path)


def remove_half_written(folder: Path, names: Iterable[str]) -> None:
    """Remove what a killed process was writing; put back an export that it had moved."""
    for path in _rooms(folder, names):
        whole = path.with_name(path.name.removeprefix(".").removesuffix(".old"))
        if path.name in EXPORTS and path.suffix == ".old" and not whole.exists():
            os.replace(path, whole)
        elif path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _rooms(folder: Path, names: Iterable[str]) -> list[Path]:
    """Return what is in a folder under these names, not through links."""
    found = [path for name in names for path in folder.glob(name)]
    return [path for path in found if path.parent == folder or not path.parent.is_symlink()]
