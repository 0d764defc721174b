"""FSDP2: each process holds a part of the policy (and of the reference), layer by layer.

``running/strategies.py`` decides when.

Every decoder layer is gathered when it is used and let go afterwards; embedding, final norm and
head are the root's. During a rollout everything is gathered once instead (``whole_weights``), so
that processes may generate different lengths without waiting for each other at each token.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.tensor import DTensor

from rlif_lightning.model.loading import Policy
from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.model.transformers_internals import layer_classes
from rlif_lightning.parallel.partial_loading import empty_model, fill, move_buffers
from rlif_lightning.parallel.passes import filler, reshard_after_forward
from rlif_lightning.parallel.tensor_parallel import (
    clip_split_gradients,
    gathered_state_dict,
    is_split,
)
from rlif_lightning.parallel.tensor_parallel_layers import own_part, split_dims
from rlif_lightning.sampling import Sampling


@dataclass(frozen=True)
class Sharding:
    """How a model is divided.

    Attributes:
        mesh: of the processes, one dimension.
        device: that this process computes on.
        cpu_offload: parameters, gradients and optimiser state wait in the CPU's memory.
        keep_sharded: during rollouts too.
        low_precision: of the gathered weights; gradients are reduced in float32; None = as they are
            stored.
    """

    mesh: DeviceMesh
    device: torch.device
    cpu_offload: bool = False
    keep_sharded: bool = False
    low_precision: torch.dtype | None = None


def sharded_policy(policy: Policy, sharding: Sharding, frozen: bool = False) -> PolicyModel:
    """A policy of which this process reads and holds its part only (a collective).

    Raises:
        ValueError: the model's decoder layers are unknown, or its weights cannot be read in parts.
    """
    model = PolicyModel(policy, frozen, load=empty_model)
    model.keeps_sharded = sharding.keep_sharded
    on_cuda = sharding.device.type == "cuda"
    reduced = None if sharding.low_precision is None else torch.float32
    settings: dict[str, Any] = {
        "mesh": sharding.mesh,
        "mp_policy": MixedPrecisionPolicy(param_dtype=sharding.low_precision, reduce_dtype=reduced),
        "offload_policy": CPUOffloadPolicy(pin_memory=on_cuda)
        if sharding.cpu_offload
        else OffloadPolicy(),
    }
    for layer in _decoder_layers(model):
        fully_shard(layer, **settings)
    fully_shard(model, **settings)
    modules = sharded_modules(model)
    for module, before in zip(modules, [modules[-1], *modules[:-1]], strict=True):
        # Said by name: FSDP would go by the passes it saw, and those of a rollout are not the same
        # on every rank.
        module.set_modules_to_backward_prefetch([before])
    fill(model, policy, torch.device("cpu") if sharding.cpu_offload else sharding.device)
    move_buffers(model, sharding.device)
    with (
        torch.no_grad()
    ):  # FSDP finds out at the first pass what is the root: that must be the whole
        model(filler(model, sharding.device), Sampling())
    reshard_after_forward(model)
    return model


def _decoder_layers(model: PolicyModel) -> list[torch.nn.Module]:
    names = layer_classes(model.causal_lm)
    layers = [module for module in model.modules() if type(module).__name__ in names]
    if not layers:
        raise ValueError(
            f"{type(model.causal_lm).__name__} does not name its decoder layers"
            " (_no_split_modules), so it cannot be"
            " sharded layer by layer; use configs/strategy/ddp.yaml"
        )
    return layers


def sharded_modules(model: torch.nn.Module) -> list[FSDPModule]:
    """The modules that are gathered as one each, the root first; none in a model that is whole everywhere."""
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


@contextmanager
def whole_weights(policy: PolicyModel) -> Iterator[None]:
    """Inside, no forward pass needs another process (unless the policy ``keeps_sharded``: then only the root's part).

    A collective at its beginning; nothing happens if the policy is not sharded.
    """
    modules = sharded_modules(policy)
    if not modules:
        yield
        return
    root, *layers = modules
    root.unshard()
    for layer in [] if policy.keeps_sharded else layers:
        layer.set_reshard_after_forward(False)
        layer.unshard()
    try:
        yield
    finally:
        for layer in layers:
            layer.set_reshard_after_forward(True)
            layer.reshard()
        root.reshard()


def whole_state_dict(policy: PolicyModel) -> dict[str, Tensor]:
    """The whole weights of ``policy.model`` on the CPU, on rank 0; nothing on the others (a collective if divided)."""
    if is_split(policy):
        return gathered_state_dict(policy.model)
    if not sharded_modules(policy):
        return policy.model.state_dict()
    whole: Any = get_model_state_dict(
        policy.model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    return whole


def load_whole(policy: PolicyModel, weights: dict[str, Tensor]) -> None:
    """Put whole weights into ``policy.model`` by name; what is not named stays (a collective if divided)."""
    if sharded_modules(policy):
        options = StateDictOptions(full_state_dict=True, strict=False)
        set_model_state_dict(policy.model, weights, options=options)
        return
    if is_split(policy):
        dims = split_dims(policy.model)
        weights = {name: own_part(value, dims.get(name)) for name, value in weights.items()}
    policy.model.load_state_dict(weights, strict=False)


def whole_tensor(value: Tensor) -> Tensor:
    """The value itself of what may be divided between processes (a collective if it is)."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def clip_gradients(policy: PolicyModel, max_norm: float) -> Tensor:
    """Clip the norm of the whole model's gradient; what it was before, on every rank (a collective if divided)."""
    if is_split(policy):
        return clip_split_gradients(policy, max_norm)
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    return whole_tensor(torch.nn.utils.clip_grad_norm_(trained, max_norm))
