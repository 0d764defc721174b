"""Compare two folders: an undisturbed run, and one that ``scripts/soak.py`` has killed."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import torch

from rlif_lightning.running.checkpoint_search import find_checkpoints
from rlif_lightning.running.metrics_csv import read_logged

PARTS = (
    "state_dict",
    "optimizer_states",
    "lr_schedulers",
    "loops",
    "callbacks",
    "global_step",
    "epoch",
)
VERSION = re.compile(r"^version_\d+/")
PLACE = ("rollout", "index", "completion_number", "source", "kind")
HALF_WRITTEN = ("unfinished", ".old", ".tmp")


def versions(root: Path) -> list[Path]:
    """Return the folders of a run's lives, in their order."""
    return sorted(root.glob("version_*"), key=lambda path: int(path.name.split("_")[1]))


def merged_rows(root: Path) -> tuple[dict[tuple[int, bool], dict[str, str]], int]:
    """Return logged figures by step and kind, times left out; and how many rows repeat.

    Raises:
        RuntimeError: two lives made the same row differently.
    """
    found: dict[tuple[int, bool], dict[str, str]] = {}
    again = 0
    for path in (version / "metrics.csv" for version in versions(root)):
        for row in read_logged(path).rows if path.exists() else []:
            if "step" not in row:
                continue
            kept = {k: v for k, v in row.items() if "time/" not in k and "per_second" not in k}
            place = (int(row["step"]), "val/entropy" in kept)
            if place in found and found[place] != kept:
                raise RuntimeError(f"{path}: {place} was {found[place]}, is {kept}")
            again += place in found
            found[place] = kept
    return found, again


def merged_records(root: Path, name: str) -> dict[str, dict[str, Any]]:
    """Return the records of all lives' files of a name, by their place.

    Raises:
        RuntimeError: two lives made the same record differently.
    """
    found: dict[str, dict[str, Any]] = {}
    for path in (version / name for version in versions(root)):
        for line in path.read_text().splitlines(keepends=True) if path.exists() else []:
            if not line.endswith("\n"):
                continue
            record = json.loads(line)
            if record.get("source") == "run":  # a life's own end
                continue
            detector = record.get("values", {}).get("detector")
            place = str([*(record.get(key) for key in PLACE), detector])
            if found.setdefault(place, record) != record:
                raise RuntimeError(f"{path}: {place} was {found[place]}, is {record}")
    return found


def merged_evaluations(root: Path) -> dict[int, Any]:
    """Return the entries of evaluation.json by rollout; later lives count."""
    found = {}
    for path in (version / "evaluation.json" for version in versions(root)):
        if path.exists():
            found |= {entry["rollouts"]: entry for entry in json.loads(path.read_text())}
    return found


def exported(root: Path) -> dict[str, bytes]:
    """Return the files of exported models, without the note of the run that made them."""
    folder = root / "export"
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "made_by.json"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def kept_names(root: Path) -> list[str]:
    """Return the checkpoints and snapshots that a run keeps, of all its lives."""
    return sorted(f"{path.parent.name}/{path.name}" for path in root.glob("version_*/*/*.ckpt"))


def half_written(root: Path) -> list[str]:
    """Return the names of files that are only partly written."""
    return [
        str(path) for path in root.rglob("*") if any(word in path.name for word in HALF_WRITTEN)
    ]


def predicted(root: Path) -> dict[tuple[int, int], dict[str, Any]]:
    """Return the records of `predict` by prompt and completion.

    Raises:
        RuntimeError: a completion is there twice.
    """
    found: dict[tuple[int, int], dict[str, Any]] = {}
    for path in sorted(root.glob("predictions/completions-*")):
        for record in map(json.loads, path.read_text().splitlines()):
            place = record["index"], record["completion_number"]
            if place in found:
                raise RuntimeError(f"{path}: {place} is there twice")
            found[place] = record
    return found


def same(left: Any, right: Any) -> bool:
    """Return whether two values of a checkpoint are equal bit for bit, names of runs aside."""
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(
            key == "run" or same(left[key], right[key]) for key in left
        )
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(same(a, b) for a, b in zip(left, right, strict=True))
    if isinstance(left, str):
        return isinstance(right, str) and VERSION.sub("", left) == VERSION.sub("", right)
    return left == right


def close(left: Any, right: Any) -> bool:
    """Return whether two records of a prediction are equal, floats up to rounding."""
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(close(left[key], right[key]) for key in left)
    if isinstance(left, float):
        return math.isclose(left, right, rel_tol=1e-5, abs_tol=1e-6)
    return left == right


def differences(whole: Path, soaked: Path) -> list[str]:
    """Return what differs between two roots: checkpoint, figures, files, predictions."""
    paths = [next(iter(find_checkpoints(root)), None) for root in (whole, soaked)]
    if None in paths or paths[0].name != paths[1].name:  # pyright: ignore[reportOptionalMemberAccess]
        return [f"last checkpoints: {paths}"]
    left, right = (torch.load(str(path), weights_only=True) for path in paths)
    found = [part for part in PARTS if not same(left[part], right[part])]
    files = {
        "metrics.csv": lambda root: merged_rows(root)[0],
        "completions.jsonl": lambda root: merged_records(root, "completions.jsonl"),
        "completions.rank1.jsonl": lambda root: merged_records(root, "completions.rank1.jsonl"),
        "events.jsonl": lambda root: merged_records(root, "events.jsonl"),
        "evaluation.json": merged_evaluations,
        "export": exported,
        "kept checkpoints and snapshots": kept_names,
    }
    found += [name for name, read in files.items() if read(whole) != read(soaked)]
    return found + ([] if close(predicted(whole), predicted(soaked)) else ["predictions"])
