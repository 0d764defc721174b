"""Sharded checkpoints, in PyTorch's distributed format: each process writes its own part.

The index of such a folder is a pickle, and so are values that are no tensors. Both are checked
before they are read, so that no file can execute code.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from rlif_lightning.parallel.shard_index import REST, STATE, check_folder, read_index, tensors_in
from rlif_lightning.parallel.tensor_parallel import as_dtensors, as_parts
from rlif_lightning.parallel.tensor_parallel_layers import own_part, split_dims


class _CheckedPlanner(DefaultLoadPlanner):
    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        torch.load(value, weights_only=True)
        value.seek(0)
        super().load_bytes(read_item, value)


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


def read_whole(path: Path, prefix: str) -> dict[str, Any]:
    """Read the weights whose names begin so, whole, in this process alone."""
    check_folder(path)
    weights = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in tensors_in(read_index(path)).items()
        if name.startswith(f"{STATE}{prefix}")
    }
    dcp.load(weights, checkpoint_id=path, planner=_CheckedPlanner(), no_dist=True)
    return {name.removeprefix(STATE): value for name, value in weights.items()}


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
