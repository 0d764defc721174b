"""Sharded checkpoints, in PyTorch's distributed format: each process writes its own part.

The index of such a folder is a pickle, and so are values that are no tensors. Both are checked
before they are read, so that no file can execute code.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from rlif_lightning.parallel.tensor_parallel import as_dtensors, as_parts
from rlif_lightning.parallel.tensor_parallel_layers import own_part, split_dims

INDEX, REST = ".metadata", "meta.pt"
FORMAT = "torch.distributed.checkpoint."
KNOWN = {
    f"{FORMAT}metadata": {
        "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta",
        "TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
    },
    f"{FORMAT}filesystem": {"_StorageInfo"},
    "torch": {
        "Size", "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8",
        "uint8", "bool",
    },
    "torch.serialization": {"_get_layout"},
    "pathlib": {"PosixPath", "Path"},
}  # fmt: skip


class _Index(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in KNOWN.get(module, ()):
            raise pickle.UnpicklingError(
                f"its index names {module}.{name}, which does not belong there"
            )
        return super().find_class(module, name)


class _CheckedPlanner(DefaultLoadPlanner):
    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        torch.load(value, weights_only=True)
        value.seek(0)
        super().load_bytes(read_item, value)


def check_folder(path: Path) -> None:
    """Refuse a folder that is no such checkpoint, is unfinished, or would execute code.

    Raises:
        ValueError: names the folder.
    """
    missing = [name for name in (INDEX, REST) if not (path / name).is_file()]
    if missing:
        raise ValueError(
            f"ckpt_path={str(path)!r} is a folder without {missing[0]}: not a finished sharded"
            " checkpoint"
        )
    try:
        read_index(path)
    except (pickle.UnpicklingError, EOFError, AttributeError, ImportError, IndexError) as error:
        raise ValueError(f"ckpt_path={str(path)!r} cannot be read: {error}") from error


def read_index(path: Path) -> Metadata:
    """Read a folder's index, which lists tensors and the files of their parts; execute nothing.

    Raises:
        UnpicklingError: the index names a type that does not belong there.
    """
    with (path / INDEX).open("rb") as file:
        return _Index(file).load()


def load_folder(
    path: Path, model: nn.Module, optimizers: list[torch.optim.Optimizer], strict: bool = True
) -> dict[str, Any]:
    """Load this process's part of a folder, however many processes wrote it (a collective).

    Returns:
        The entries of the checkpoint that are neither weights nor optimiser states.
    """
    check_folder(path)
    weights = model_state(model)
    dcp.load({"state_dict": weights}, checkpoint_id=path, planner=_CheckedPlanner())
    model.load_state_dict(as_parts(weights, model), strict=strict)
    for number, optimizer in enumerate(optimizers):
        name = f"optimizer_{number}"
        state = {name: optimizer_state(model, optimizer)}
        dcp.load(state, checkpoint_id=path, planner=_CheckedPlanner())
        state[name]["state"] = as_parts(state[name]["state"], model)
        set_optimizer_state_dict(
            model, optimizer, state[name], options=StateDictOptions(cpu_offload=True)
        )
    return torch.load(path / REST, weights_only=True)


def model_state(model: nn.Module) -> dict[str, Any]:
    """Return a model's weights as a folder holds them: split ones as DTensors of their memory."""
    return as_dtensors(get_model_state_dict(model), model)


def optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return an optimiser's state as a folder holds it; as :func:`model_state`."""
    state: dict[str, Any] = dict(get_optimizer_state_dict(model, optimizer))
    return {**state, "state": as_dtensors(state["state"], model)}


def load_part_of_file(
    path: Path, model: nn.Module, optimizers: list[torch.optim.Optimizer], strict: bool = True
) -> dict[str, Any]:
    """Load this process's part of one whole file into a split model.

    Returns:
        The entries of the checkpoint that are neither weights nor optimiser states.
    """
    whole = torch.load(path, weights_only=True, mmap=True, map_location="cpu")
    dims = split_dims(model)
    weights = {
        name: own_part(value, dims.get(name)) for name, value in whole.pop("state_dict").items()
    }
    model.load_state_dict(weights, strict=strict)
    trained = [
        dims.get(name) for name, parameter in model.named_parameters() if parameter.requires_grad
    ]
    # Without training there is no optimiser, but the file has its state.
    for optimizer, state in zip(optimizers, whole.pop("optimizer_states"), strict=False):
        for number, values in state["state"].items():
            for key, value in values.items():
                values[key] = own_part(value, trained[number] if value.dim() else None)
        optimizer.load_state_dict(state)
    return whole
