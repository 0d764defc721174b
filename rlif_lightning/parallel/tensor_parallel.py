"""Tensor parallelism: each process has a part of every decoder layer, for the same completions.

The Hugging Face model's own plan (``base_model_tp_plan`` of its config) says which linear layers
are split, and how. Embedding, norms and head are whole on every process.
"""

from __future__ import annotations

import re
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from rlif_lightning.model.loading import Policy
from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.parallel.partial_loading import empty_model, fill, move_buffers
from rlif_lightning.parallel.tensor_parallel_layers import (
    ColumnLinear,
    RowLinear,
    empty_part,
    gathered,
    split_dims,
)

STYLES: dict[str, type[nn.Linear]] = {"colwise": ColumnLinear, "rowwise": RowLinear}
# Norms of single heads: each process has the whole norm, but applies it to its own heads only.
BETWEEN = "replicated_with_grad_allreduce"
INSTEAD = "use --config configs/strategy/fsdp2.yaml"


def split_policy(policy: Policy, device: torch.device, frozen: bool = False) -> PolicyModel:
    """Load a policy of which this process reads and holds its part only (a collective).

    Raises:
        ValueError: LoRA, a model that cannot be split or not by this number of processes, or
            weights that cannot be read in parts.
    """
    if policy.lora is not None:
        raise ValueError(
            f"model.policy.lora={policy.lora} is not supported under tensor parallelism; {INSTEAD}"
        )
    model = PolicyModel(
        policy,
        frozen,
        load=lambda each: _split(empty_model(each), each.name, dist.get_world_size()),
    )
    fill(model, policy, device)
    move_buffers(model, device)
    return model


def _split(model: Any, name: str, num_parts: int) -> Any:
    """Replace the linear layers that the model's plan names by parts of them."""
    plan = getattr(model.config.get_text_config(), "base_model_tp_plan", None)
    if not plan:
        raise ValueError(
            f"model.policy.name={name!r}: {type(model).__name__} has no plan to split layers;"
            f" {INSTEAD}"
        )
    unknown = sorted(set(plan.values()) - {*STYLES, BETWEEN})
    if unknown:
        raise ValueError(
            f"model.policy.name={name!r}: the plan of {type(model).__name__} has entries of an"
            f" unknown kind, {', '.join(unknown)} (known: {', '.join([*STYLES, BETWEEN])});"
            f" {INSTEAD}"
        )
    _check_numbers(model.config.get_text_config(), name, num_parts)
    styles = _styles(model.base_model, plan)
    if not set(STYLES) & set(styles.values()):
        raise ValueError(
            f"model.policy.name={name!r}: the plan of {type(model).__name__} names none of its"
            f" layers, so that each process would hold all of them; {INSTEAD}"
        )
    _check_neighbours(model, styles)
    for path, style in styles.items():
        module = model.base_model.get_submodule(path)
        if style == BETWEEN:
            module.sees_own_heads = True
            continue
        if type(module) is not nn.Linear:
            raise ValueError(
                f"model.policy.name={name!r}: {path} is a {type(module).__name__}, no Linear;"
                f" {INSTEAD}"
            )
        parent, _, leaf = path.rpartition(".")
        setattr(
            model.base_model.get_submodule(parent),
            leaf,
            empty_part(module, STYLES[style], num_parts),
        )
    return model


def _styles(model: nn.Module, plan: dict[str, str]) -> dict[str, str]:
    """Return the plan's entry of every module that it names; its ``*`` is a layer's number."""
    patterns = {
        re.compile(re.escape(name).replace(r"\*", r"\d+")): style for name, style in plan.items()
    }
    paths = [path for path, _ in model.named_modules()]
    return {
        path: style
        for pattern, style in patterns.items()
        for path in paths
        if pattern.fullmatch(path)
    }


def _check_numbers(config: Any, name: str, num_parts: int) -> None:
    for field in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
        number = getattr(config, field, None)
        if number is not None and number % num_parts:
            raise ValueError(
                f"trainer.devices: {num_parts} processes cannot share {field}={number} of {name!r}"
                f" evenly; take a number that divides it, or {INSTEAD}"
            )


def _check_neighbours(model: Any, styles: dict[str, str]) -> None:
    """Refuse unplanned parameters beside split layers: they would get a part of their gradient."""
    for parent in sorted({path.rpartition(".")[0] for path in styles}):
        for name, _ in model.base_model.get_submodule(parent).named_parameters(parent):
            if name.rpartition(".")[0] not in styles:
                raise ValueError(
                    f"the plan of {type(model).__name__} does not name {name}, which belongs to the"
                    f" same module as layers that are split; {INSTEAD}"
                )


def is_split(model: nn.Module) -> bool:
    """Say whether a model's layers are split between processes."""
    return any(isinstance(module, (ColumnLinear, RowLinear)) for module in model.modules())


@torch.no_grad()
def clip_split_gradients(model: nn.Module, max_norm: float) -> Tensor:
    """Synchronise gradients, and clip the norm of the whole model's gradient (a collective).

    Parameters that every process has get the first process's gradient, so that rounding does not
    let the copies drift apart. Norms of single heads get the sum of all processes' gradients.

    Returns:
        The norm before clipping, the same on every process.
    """
    beside = [module for module in model.modules() if getattr(module, "sees_own_heads", False)]
    heads = {id(parameter) for module in beside for parameter in module.parameters()}
    dims = split_dims(model)
    parts, wholes = [], []
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            continue
        (parts if name in dims else wholes).append(parameter)
        if id(parameter) in heads:
            dist.all_reduce(parameter.grad)
        elif name not in dims:
            dist.broadcast(parameter.grad, 0)
    norm_of_parts, norm_of_wholes = (
        torch.nn.utils.get_total_norm([p.grad for p in some]) for some in (parts, wholes)
    )
    squares = norm_of_parts.square()
    dist.all_reduce(squares)
    norm = (squares + norm_of_wholes.square()).sqrt()
    torch.nn.utils.clip_grads_with_norm_([*parts, *wholes], max_norm, norm)
    return norm


def gathered_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Return the whole weights on the first process's CPU, nothing elsewhere (a collective)."""
    dims, wholes = split_dims(model), {}
    for name, value in model.state_dict().items():
        whole = gathered(value, dims.get(name))
        if whole is not None:
            wholes[name] = whole.cpu()  # one at a time: a GPU need not have room for all
    return wholes


def as_dtensors(values: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """Wrap split tensors as DTensors of the same memory, for PyTorch's distributed checkpoints.

    Args:
        values: by the names of the model's parameters (a tensor, or the optimiser's state of one).
        model: split, or else nothing changes.
    """
    dims = split_dims(model)
    if not dims:
        return values
    world: Any = dist.group.WORLD
    mesh = DeviceMesh.from_group(world, next(model.parameters()).device.type)
    return {
        name: _as_dtensor(value, dims[name], mesh) if name in dims else value
        for name, value in values.items()
    }


def _as_dtensor(value: Any, dim: int, mesh: DeviceMesh) -> Any:
    if isinstance(value, dict):
        return {key: _as_dtensor(each, dim, mesh) for key, each in value.items()}
    # A scalar is no part of anything: the optimiser's count of steps.
    if not isinstance(value, Tensor) or value.dim() == 0:
        return value
    return DTensor.from_local(value, mesh, [Shard(dim)], run_check=False)


def as_parts(values: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """Unwrap the DTensors that :func:`as_dtensors` made."""
    dims = split_dims(model)
    return {name: _as_part(value) if name in dims else value for name, value in values.items()}


def _as_part(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _as_part(each) for key, each in value.items()}
    return value.to_local() if isinstance(value, DTensor) else value
