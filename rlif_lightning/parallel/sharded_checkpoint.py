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
from torch import Tensor, nn
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor

from rlif_lightning.parallel.partial_loading import own_rows
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
    """Load this process's part of one whole file into a sharded or a split model.

    Returns:
        The entries of the checkpoint that are neither weights nor optimiser states.
    """
    whole = torch.load(path, weights_only=True, mmap=True, map_location="cpu")
    dims, own = split_dims(model), model.state_dict()
    weights = {
        name: _own_part(value, own.get(name), dims.get(name))
        for name, value in whole.pop("state_dict").items()
    }
    model.load_state_dict(weights, strict=strict)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    # Without training there is no optimiser, but the file has its state, if it is no file of
    # weights alone.
    for optimizer, state in zip(optimizers, whole.pop("optimizer_states", ()), strict=False):
        # A file numbers parameters in the order of the optimiser's groups, whatever the model's is.
        groups = state["param_groups"], optimizer.param_groups
        for number, parameter in zip(*map(_in_groups, groups), strict=True):
            dim = dims.get(names[id(parameter)])
            values = state["state"].get(number, {})
            for key, value in values.items():
                if isinstance(value, Tensor) and value.dim():
                    values[key] = _own_part(value, parameter, dim)
        optimizer.load_state_dict(state)
    return whole


def whole_optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return an optimiser's whole state on the first process, nothing elsewhere (a collective).

    Parameters are numbered in the order of the optimiser's groups, as one process numbers them.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state: dict[str, Any] = dict(get_optimizer_state_dict(model, optimizer, options=options))
    if not state:
        return state
    groups = state["param_groups"]
    numbers = {name: number for number, name in enumerate(_in_groups(groups))}
    return {
        "state": {numbers[name]: values for name, values in state["state"].items()},
        "param_groups": [
            {**group, "params": [numbers[name] for name in group["params"]]} for group in groups
        ],
    }


def _in_groups(groups: list[dict[str, Any]]) -> list[Any]:
    return [each for group in groups for each in group["params"]]


def _own_part(whole: Tensor, like: Any, dim: int | None) -> Tensor:
    """Return this process's part of a whole tensor: the shard that ``like`` is, or that of a split.

    What has another shape than a sharded parameter, such as a row of factors, stays whole.
    """
    if not isinstance(like, DTensor) or whole.shape != like.shape:
        return own_part(whole, dim)
    local = whole[own_rows(like)].clone().to(like.to_local().device)
    spec = {"shape": like.shape, "stride": like.stride()}
    return DTensor.from_local(local, like.device_mesh, like.placements, run_check=False, **spec)
