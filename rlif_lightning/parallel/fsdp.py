"""FSDP2: each process holds a shard of the policy and of the reference, layer by layer.

``running/strategies.py`` decides when. With 2 layers on 2 processes, each parameter is split along
its first dimension, and process 0 holds the first half of every one:

    root       embedding [V, D], final norm [D], head [V, D]    shards [V/2, D], [D/2], [V/2, D]
    layer 0    query weight [H, D], ...                         shards [H/2, D], ...
    layer 1    query weight [H, D], ...                         shards [H/2, D], ...

    update     forward:  gather the root | gather 0, compute, reshard | gather 1, compute, reshard
               backward: gather 1, reduce-scatter its gradient | gather 0, ... | the root
    rollout    gather everything once | draw all tokens | reshard (``whole_weights``)

In an update each gather is a collective, so all processes make the same number of passes
(``passes.py``). In a rollout the processes draw completions of different lengths. Gathering
everything once keeps collectives out of the token loop, and no process waits at each token.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)

from rlif_lightning.model.loading import Policy
from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.model.transformers_internals import layer_classes
from rlif_lightning.parallel.partial_loading import empty_model, fill, move_buffers
from rlif_lightning.parallel.passes import filler, reshard_after_forward, whole_tensor
from rlif_lightning.parallel.tensor_parallel import (
    clip_split_gradients,
    gathered_state_dict,
    is_split,
)
from rlif_lightning.parallel.tensor_parallel_layers import own_part, split_dims
from rlif_lightning.sampling import Sampling


@dataclass(frozen=True)
class Sharding:
    """How a model is sharded.

    Attributes:
        mesh: of the processes, one dimension.
        device: that this process computes on.
        cpu_offload: parameters, gradients and optimiser state are kept in the CPU's memory.
        keep_sharded: layers stay sharded during rollouts too.
        low_precision: of the gathered parameters, with gradients reduced in float32; None = that of
            the stored ones.
    """

    mesh: DeviceMesh
    device: torch.device
    cpu_offload: bool = False
    keep_sharded: bool = False
    low_precision: torch.dtype | None = None


def sharded_policy(policy: Policy, sharding: Sharding, frozen: bool = False) -> PolicyModel:
    """Load a policy of which this process reads and holds its shard only (a collective).

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
        # The order is set explicitly: FSDP would derive it from earlier passes, and those of a
        # rollout differ between data ranks.
        module.set_modules_to_backward_prefetch([before])
    fill(model, policy, torch.device("cpu") if sharding.cpu_offload else sharding.device)
    move_buffers(model, sharding.device)
    # The module of the first pass becomes FSDP's root, and that must be the whole model.
    with torch.no_grad():
        model(filler(model, sharding.device), Sampling())
    reshard_after_forward(model)
    return model


def _decoder_layers(model: PolicyModel) -> list[torch.nn.Module]:
    names = layer_classes(model.causal_lm)
    layers = [module for module in model.modules() if type(module).__name__ in names]
    if not layers:
        raise ValueError(
            f"{type(model.causal_lm).__name__} does not name its decoder layers"
            " (_no_split_modules), so it cannot be sharded layer by layer; use"
            " configs/strategy/ddp.yaml"
        )
    return layers


def sharded_modules(model: torch.nn.Module) -> list[FSDPModule]:
    """Return the modules that are gathered as one each, the root first; none if not sharded."""
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


@contextmanager
def whole_weights(policy: PolicyModel) -> Iterator[None]:
    """Gather all parameters, so that no forward pass inside is a collective.

    Under ``keeps_sharded`` the root's parameters alone are gathered, and each layer of a pass still
    is a collective. Entering is a collective. A policy that is not sharded stays as it is.
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
    """Return the whole weights of ``policy.model`` on the CPU (a collective if it is divided).

    A divided policy's weights are returned on the first process, and nothing on the others.
    """
    if is_split(policy):
        return gathered_state_dict(policy.model)
    if not sharded_modules(policy):
        return policy.model.state_dict()
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    whole: Any = get_model_state_dict(
        policy.model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    return whole


def load_whole(policy: PolicyModel, weights: dict[str, Tensor]) -> None:
    """Put whole weights into ``policy.model`` by name (a collective if it is divided)."""
    if sharded_modules(policy):
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

        options = StateDictOptions(full_state_dict=True, strict=False)
        values: dict[str, Any] = dict(weights)
        set_model_state_dict(policy.model, values, options=options)
        return
    if is_split(policy):
        dims = split_dims(policy.model)
        weights = {name: own_part(value, dims.get(name)) for name, value in weights.items()}
    policy.model.load_state_dict(weights, strict=False)


def clip_gradients(policy: PolicyModel, max_norm: float) -> Tensor:
    """Clip the norm of the whole model's gradient (a collective if the policy is divided).

    Returns:
        The norm before clipping, a scalar, the same on every process.
    """
    if is_split(policy):
        return clip_split_gradients(policy, max_norm)
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    return whole_tensor(torch.nn.utils.clip_grad_norm_(trained, max_norm))
