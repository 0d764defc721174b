"""Which checkpoint is meant: the newest whole one of a root, the best one, or a named one."""

from __future__ import annotations

import warnings
from pathlib import Path

from rlif_lightning.running.checkpoint_faults import Expected, Misfit, why_unusable
from rlif_lightning.running.checkpoint_names import find_best, find_checkpoints


def resolve_checkpoint(
    wanted: str | None, root: Path, expected: Expected | None = None
) -> Path | None:
    """Return the checkpoint that ``--ckpt_path`` means.

    Args:
        wanted: a path; ``last`` = the newest whole checkpoint of ``root``; ``auto`` = the same, or
            None if there is none; ``best`` = the newest ``best.ckpt``.
        root: ``trainer.default_root_dir``.
        expected: what the model's checkpoints hold; None = not compared.

    Raises:
        ValueError: there is none, or the one that was named cannot be gone on from; names the last
            good one. With ``auto`` as well, if what is there is of another model: to start anew
            would hide a mistake.
    """
    if wanted is None:
        return None
    if wanted in ("auto", "last"):
        found = find_checkpoints(root)
    elif wanted == "best":
        found = find_best(root)
    else:
        return _named(Path(wanted).expanduser(), root, expected)
    chosen = _first_good(found, wanted, expected)
    if chosen is None and wanted != "auto":
        raise ValueError(
            f"ckpt_path={wanted}: no whole checkpoint in {root}; give a path, or `auto` to start"
            " anew then"
        )
    return chosen


def _first_good(found: list[Path], wanted: str, expected: Expected | None) -> Path | None:
    misfits = {}
    for path in found:
        fault = why_unusable(path, expected)
        if fault is None:
            for other, why in misfits.items():
                warnings.warn(f"{other} is passed over: {why}", stacklevel=3)
            return path
        if isinstance(fault, Misfit):
            misfits[path] = fault
        else:
            warnings.warn(f"{path} is passed over: {fault}", stacklevel=3)
    for path, fault in misfits.items():
        raise ValueError(f"ckpt_path={wanted}: {path}: {fault}, or give another default_root_dir")
    return None


def _named(path: Path, root: Path, expected: Expected | None) -> Path:
    fault = why_unusable(path, expected)
    if fault is None:
        return path
    others = (other for other in find_checkpoints(root) if other != path)
    good = next((other for other in others if why_unusable(other, expected) is None), None)
    last = f"the last good one of {root} is {good}" if good else f"there is no other one in {root}"
    raise ValueError(f"ckpt_path={path}: {fault}; {last}")
