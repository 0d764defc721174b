"""What is wrong with a folder of shards, by its index and by its numbers."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlif_lightning.parallel.shard_index import INDEX, read_index, tensors_in

SHARD = ".distcp"
CHUNK = 2**24  # numbers that are summed up at once
WEIGHTS = "state_dict."


def is_finite(value: Tensor) -> bool:
    """Return whether every number is finite: a sum is not, if one of its terms is not."""
    if not (value.is_floating_point() or value.is_complex()):
        return True
    return all(_is_finite(part) for part in value.reshape(-1).split(CHUNK))


def _is_finite(part: Tensor) -> bool:
    quick = part.sum(dtype=torch.float32 if part.element_size() < 4 else None)
    return bool(quick.isfinite()) or bool(part.isfinite().all())  # a sum may also be too large


def shard_shapes(path: Path) -> dict[str, tuple[tuple[int, ...], bool]]:
    """Return name -> shape of each weight in a folder, and whether it is floating-point."""
    found = {}
    for name, entry in tensors_in(read_index(path)).items():
        if name.startswith(WEIGHTS):
            found[name.removeprefix(WEIGHTS)] = (
                tuple(entry.size),
                entry.properties.dtype.is_floating_point,
            )
    return found


def folder_fault(path: Path, sizes: dict[str, int]) -> str | None:
    """Return why the shards cannot be used, or None.

    Args:
        path: the folder.
        sizes: of the files that it should have.
    """
    if INDEX not in sizes or not any(name.endswith(SHARD) for name in sizes):
        return "it is a folder of shards without an index, or without shards"
    index = read_index(path)
    tensors = tensors_in(index)
    if f"{WEIGHTS}num_rollouts" not in tensors:
        return "it is not a checkpoint of a run of rlif-lightning (no num_rollouts)"
    stored: dict[str, dict[tuple[int, ...], Any]] = {}
    for key, place in (index.storage_data or {}).items():
        if (
            sizes.get(place.relative_path, -1) < place.offset + place.length
            or min(place.offset, place.length) < 0
        ):
            return f"its index says that a part of {key.fqn} is where nothing is"
        stored.setdefault(key.fqn, {})[tuple(key.offset or ())] = place
    for name, entry in tensors.items():
        if fault := _tensor_fault(path, name, entry, stored.get(name, {})):
            return fault
    return None


def _tensor_fault(
    path: Path, name: str, entry: Any, stored: dict[tuple[int, ...], Any]
) -> str | None:
    chunks = [chunk for chunk in entry.chunks if math.prod(chunk.sizes)]
    missing = [chunk for chunk in chunks if tuple(chunk.offsets) not in stored]
    if missing or sum(math.prod(chunk.sizes) for chunk in chunks) != math.prod(entry.size):
        return f"a part of {name} is not there"
    for chunk in chunks:
        place = stored[tuple(chunk.offsets)]
        with (path / place.relative_path).open("rb") as file:
            file.seek(place.offset)
            value = torch.load(io.BytesIO(file.read(place.length)), weights_only=True)
        if not isinstance(value, Tensor) or tuple(value.shape) != tuple(chunk.sizes):
            return f"a part of {name} has another shape than its index says"
        parts = f"{WEIGHTS}policy.", f"{WEIGHTS}teacher.", "optimizer_"
        if name.startswith(parts) and not is_finite(value):
            return f"{name} has numbers that are not finite"
    return None
