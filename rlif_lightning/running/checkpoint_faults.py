"""Why a run cannot resume from a checkpoint, found before anything of it is put into a model.

In this order, so that nothing large or hostile is read by accident: what kind of file it is, sizes,
checksums, which parts there are, counters, shapes against the model, and whether every weight is a
finite number. Tensors are mapped from the disk, or read one at a time: no second copy of a model is
made.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlif_lightning.model.adapters import is_adapter
from rlif_lightning.model.four_bits import CHECKSUM
from rlif_lightning.parallel.partial_loading import empty_model
from rlif_lightning.parallel.shard_index import REST
from rlif_lightning.running.checkpoint_files import FILES
from rlif_lightning.running.checkpoint_format import newer_format
from rlif_lightning.running.former_settings import present_settings
from rlif_lightning.running.run_settings import KEY, model_settings
from rlif_lightning.running.setting_changes import SHAPES, changes, refusal
from rlif_lightning.running.shard_faults import folder_fault, is_finite, shard_shapes

PARTS = {"state_dict", "loops", "callbacks", "optimizer_states", "lr_schedulers"}
REST_PARTS = PARTS - {"state_dict", "optimizer_states"}  # of a folder of shards
# Moments that have a parameter's shape.
LIKE_PARAMETERS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg", "z")
PROGRESS = ("epoch_progress", "epoch_loop.batch_progress")
MAX_PLAIN = 2**26  # bytes of all that is no tensor; random states take 6 KB for each process
WEIGHTS, TEACHER = "policy.", "teacher."


class Misfit(str):
    """A fault that may be the configuration's: the checkpoint is whole, and of another model."""


@dataclass(frozen=True)
class Expected:
    """What a module's checkpoint holds.

    Attributes:
        shapes: name -> shape of each weight and buffer.
        floating: name -> whether it is of floating-point numbers.
        trained: names of the trained parameters in their order.
        settings: ``model.*`` of the module, as far as they are known.
    """

    shapes: dict[str, tuple[int, ...]]
    floating: dict[str, bool]
    trained: list[str]
    settings: dict[str, Any] = field(default_factory=dict)


def expected_of(module: Any) -> Expected:
    """Return what a checkpoint of a module holds, by the model's config alone."""
    with torch.random.fork_rng(devices=[]):
        policy = empty_model(module.policy_settings)
    teacher = module.objective.teacher
    parts = [WEIGHTS, TEACHER] if teacher is not None and teacher.averages else [WEIGHTS]
    weights = {f"model.{name}": each for name, each in policy.state_dict().items()}
    if module.policy_settings.in_4bit:
        weights = {name: each for name, each in weights.items() if is_adapter(name)}
        weights[CHECKSUM] = torch.zeros((), dtype=torch.int64)
    tensors = {part + name: each for part in parts for name, each in weights.items()}
    own = module.state_dict()  # of a loaded policy it has the parts of this process
    divided = (WEIGHTS, TEACHER)
    tensors |= {name: value for name, value in own.items() if not name.startswith(divided)}
    trained = [
        f"{WEIGHTS}model.{name}" for name, value in policy.named_parameters() if value.requires_grad
    ]
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    floating = {name: value.is_floating_point() for name, value in tensors.items()}
    return Expected(shapes, floating, trained, model_settings(module))


def why_unusable(path: Path, expected: Expected | None = None) -> str | None:
    """Return why a run cannot resume from this file or folder, or None; run nothing that it holds.

    Args:
        path: a checkpoint, or what is said to be one.
        expected: what the model has, where that is known; a checkpoint of another model is a
            :class:`Misfit`.
    """
    if not os.path.exists(path):  # False for a name that no file system takes, too
        return "there is no such file"
    if not path.is_dir() and not path.is_file():
        return "it is a device or a pipe, not a file"
    try:
        return _folder_fault(path, expected) if path.is_dir() else _file_fault(path, expected)
    except Exception as error:  # whatever a broken file makes of its reader is the answer
        return (
            f"it cannot be read: {type(error).__name__}:"
            f" {str(error).splitlines()[0] if str(error) else ''}"
        )


def _archive_fault(path: Path) -> str | None:
    """Return why a file that torch saved cannot be read, before anything of it is."""
    size = path.stat().st_size
    if not zipfile.is_zipfile(path):
        return f"it is cut off or not a checkpoint ({size} bytes)"
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
        if (
            any(part.compress_type != zipfile.ZIP_STORED for part in parts)
            or sum(p.file_size for p in parts) > size
        ):
            return "it is compressed, which no checkpoint of a run is"
        plain = sum(part.file_size for part in parts if part.filename.endswith(".pkl"))
        if plain > MAX_PLAIN:
            return (
                f"it has {plain} bytes that are no tensors; a run's checkpoint has at most"
                f" {MAX_PLAIN}"
            )
        broken = archive.testzip()
    return None if broken is None else f"its part {broken} is damaged"


def _file_fault(path: Path, expected: Expected | None) -> str | None:
    if (fault := _archive_fault(path)) is not None:
        return fault
    content = torch.load(path, weights_only=True, mmap=True, map_location="cpu")
    fault = (
        _foreign(content, PARTS) or _progress_fault(content) or _tensors_fault(content, expected)
    )
    if isinstance(fault, Misfit) and expected is not None:
        return _by_its_settings(fault, path, content, expected)
    return fault


def _folder_fault(path: Path, expected: Expected | None) -> str | None:
    listing = path / FILES
    if listing.is_symlink() or not listing.is_file() or listing.stat().st_size > MAX_PLAIN:
        return (
            f"it cannot be read: it has no {FILES} of its own, which a folder of shards has"
            " once"
            " it is whole"
        )
    sizes: dict[str, int] = json.loads(listing.read_text())
    for name, size in sizes.items():
        file = path / name
        if (
            file.parent != path
            or file.is_symlink()
            or not file.is_file()
            or file.stat().st_size != size
        ):
            return f"its part {name} is missing or cut off"
    if REST not in sizes:
        return f"its part {REST} is not listed"
    if (fault := _archive_fault(path / REST)) is not None:
        return f"its part {REST}: {fault}"
    content = torch.load(path / REST, weights_only=True, mmap=True, map_location="cpu")
    fault = _foreign(content, REST_PARTS) or _progress_fault(content)
    if fault is None and expected is not None and (fault := _shards_misfit(path, expected)):
        return _by_its_settings(fault, path, content, expected)
    return fault or folder_fault(path, sizes)


def _shards_misfit(path: Path, expected: Expected) -> Misfit | None:
    found = shard_shapes(path)
    shapes = {name: shape for name, (shape, _) in found.items()}
    return _misfit(shapes, {name: kind for name, (_, kind) in found.items()}, expected)


def read_rest(path: Path) -> dict[str, Any]:
    """Read a checkpoint without copying its weights; of a folder, what is in no shard."""
    if path.is_dir():
        return torch.load(path / REST, weights_only=True, map_location="cpu")
    return torch.load(path, weights_only=True, map_location="cpu", mmap=True)


def model_misfit(path: Path, expected: Expected) -> Misfit | None:
    """Return why a checkpoint, known to be whole, is of another model; None if it is not."""
    if path.is_dir():
        return _shards_misfit(path, expected)
    return _weights_misfit(read_rest(path)["state_dict"], expected)


def _weights_misfit(weights: dict[str, Any], expected: Expected) -> Misfit | None:
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    floating = {name: value.is_floating_point() for name, value in weights.items()}
    return _misfit(shapes, floating, expected)


def _by_its_settings(
    fault: Misfit, path: Path, content: dict[str, Any], expected: Expected
) -> Misfit:
    """Name the settings that differ, where the checkpoint holds them."""
    old = content.get(KEY)
    is_known = isinstance(old, dict)
    found = changes(present_settings(old), expected.settings) if is_known else []
    found = [change for change in found if change.begins_with(SHAPES)]
    return Misfit(refusal(found, path) if found else f"{fault}; configure that model")


def _foreign(content: Any, parts: set[str]) -> str | None:
    missing = sorted(parts - set(content)) if isinstance(content, dict) else sorted(parts)
    weights = content.get("state_dict", {"num_rollouts": None}) if isinstance(content, dict) else {}
    if missing or not isinstance(weights, dict) or "num_rollouts" not in weights:
        return (
            "it is not a checkpoint of a run of rlif-lightning (no"
            f" {', '.join(missing) or 'num_rollouts'})"
        )
    return newer_format(content)


def _progress_fault(content: dict[str, Any]) -> str | None:
    """Return what is wrong with the counts of epochs, batches and rollouts, or None."""
    loop = content["loops"].get("fit_loop") if isinstance(content["loops"], dict) else None
    for name in PROGRESS:
        progress = loop.get(name) if isinstance(loop, dict) else None
        counts = (
            [*progress.get("total", {}).values(), *progress.get("current", {}).values()]
            if progress
            else []
        )
        if not counts or any(type(count) is not int or count < 0 for count in counts):
            return f"its loops do not say where training was ({name})"
    rollouts = content.get("state_dict", {"num_rollouts": torch.zeros((), dtype=torch.int64)})[
        "num_rollouts"
    ]
    if (
        not isinstance(rollouts, Tensor)
        or rollouts.dtype != torch.int64
        or rollouts.dim()
        or int(rollouts) < 0
    ):
        return "its num_rollouts is no count of rollouts"
    return None if isinstance(content["callbacks"], dict) else "its callbacks have no states"


def _tensors_fault(content: dict[str, Any], expected: Expected | None) -> str | None:
    weights: dict[str, Any] = content["state_dict"]
    for name, value in tensors_of(
        {"state_dict": weights, "optimizer_states": content["optimizer_states"]}
    ):
        if value.layout != torch.strided or value.device.type != "cpu":
            return f"{name} is no plain tensor"
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            return f"{name} says that it has {value.numel()} numbers, more than are there"
        parts = f"state_dict.{WEIGHTS}", f"state_dict.{TEACHER}", "optimizer_states."
        if name.startswith(parts) and not is_finite(value):
            return f"{name} has numbers that are not finite"
    if strange := [name for name, value in weights.items() if not isinstance(value, Tensor)]:
        return f"state_dict.{strange[0]} is no tensor"
    if expected is None:
        return None
    return _weights_misfit(weights, expected) or _optimizer_misfit(
        content["optimizer_states"], expected
    )


def tensors_of(content: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor in nested dicts, lists and tuples once, with its dotted name."""
    waiting, seen = [(name, content)], set()
    while waiting:
        name, value = waiting.pop()
        if id(value) in seen:
            continue
        if isinstance(value, (dict, list, tuple)):
            seen.add(id(value))
            items = value.items() if isinstance(value, dict) else enumerate(value)
            waiting += [(f"{name}.{key}".lstrip("."), child) for key, child in items]
        elif isinstance(value, Tensor):
            yield name, value


def _misfit(
    shapes: dict[str, tuple[int, ...]], floating: dict[str, bool], expected: Expected
) -> Misfit | None:
    if missing := sorted(expected.shapes.keys() - shapes.keys()):
        return Misfit(
            f"it lacks {missing[0]}, which the configured model has ({len(missing)} are missing)"
        )
    if extra := sorted(shapes.keys() - expected.shapes.keys()):
        return Misfit(
            f"it has {extra[0]}, which the configured model has not ({len(extra)} are too many)"
        )
    for name, shape in expected.shapes.items():
        if tuple(shapes[name]) != shape:
            return Misfit(
                f"{name} has the shape {list(shapes[name])}; the configured model needs"
                f" {list(shape)}"
            )
        if floating[name] != expected.floating[name]:
            return Misfit(f"{name} is of another kind of numbers than the configured model's")
    return None


def _optimizer_misfit(states: Any, expected: Expected) -> Misfit | None:
    """Compare moments with parameters, by number, or by name where the model was divided."""
    for state in states:
        count = sum(len(group["params"]) for group in state["param_groups"])
        if count != len(expected.trained):
            return Misfit(
                f"its optimiser has {count} parameters; the configured model trains"
                f" {len(expected.trained)}"
            )
        # Several groups may hold the parameters in another order.
        is_ordered = len(state["param_groups"]) == 1
        for key, moments in state["state"].items():
            is_number = isinstance(key, int) and 0 <= key < count
            name = expected.trained[key] if is_number and is_ordered else str(key)
            for moment, value in moments.items():
                # Factors and blocks, which some classes keep, have shapes of their own.
                is_like = isinstance(value, Tensor) and moment in LIKE_PARAMETERS
                shape = tuple(value.shape) if is_like else ()
                if shape not in ((), expected.shapes.get(name, shape)):
                    return Misfit(f"the optimiser's {moment} of {name} has the shape {list(shape)}")
    return None
