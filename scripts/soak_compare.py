"""What ``scripts/soak.py`` compares: an undisturbed run and one that was killed, as they stand in two folders."""

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
    """The folders of a run's lives, in their order."""
    return sorted(root.glob("version_*"), key=lambda path: int(path.name.split("_")[1]))


def merged_rows(root: Path) -> tuple[dict[tuple[int, bool], dict[str, str]], int]:
    """The logged figures of all lives by step and kind, times left out; and how many rows were made more than once.

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
    """The records of all lives' files of a name by their place, without the ends of lives; a last line may be torn.

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
    """The entries of evaluation.json by rollout; later lives count."""
    found = {}
    for path in (version / "evaluation.json" for version in versions(root)):
        if path.exists():
            found |= {entry["rollouts"]: entry for entry in json.loads(path.read_text())}
    return found


def exported(root: Path) -> dict[str, bytes]:
    """The files of exported models, but for the note of which run made them."""
    folder = root / "export"
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "made_by.json"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def kept_names(root: Path) -> list[str]:
    """The checkpoints and snapshots that a run keeps, whichever of its lives wrote them."""
    return sorted(f"{path.parent.name}/{path.name}" for path in root.glob("version_*/*/*.ckpt"))


def half_written(root: Path) -> list[str]:
    """What is only a half of a file, by its name."""
    return [
        str(path) for path in root.rglob("*") if any(word in path.name for word in HALF_WRITTEN)
    ]


def predicted(root: Path) -> dict[tuple[int, int], dict[str, Any]]:
    """The records of `predict` by prompt and completion.

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
    """Whether two values of a checkpoint are equal bit for bit; a run's own name and its folders' numbers aside."""
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
    """Whether two records of a prediction are equal: floats up to rounding, since batches were other ones."""
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(close(left[key], right[key]) for key in left)
    if isinstance(left, float):
        return math.isclose(left, right, rel_tol=1e-5, abs_tol=1e-6)
    return left == right


def differences(whole: Path, soaked: Path) -> list[str]:
    """What two roots differ in: the last checkpoint, logged figures, files of callbacks, exports, predictions."""
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
