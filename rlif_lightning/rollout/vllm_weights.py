"""The policy's weights by their Hugging Face names, adapters merged, for a sampler's copy."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from rlif_lightning.model.four_bits import dequantized
from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.parallel.passes import reshard_after_forward, whole_tensor

WRAPPED = "base_layer"  # peft's name for the layer inside a wrapper


def merged_weights(policy: PolicyModel) -> Iterator[tuple[str, Tensor]]:
    """Yield every weight once, by its name in the model's checkpoint.

    A tied weight has its first name. transformers stores some weights in another form than the
    checkpoint, such as all experts of a layer in one tensor; these are split again, a layer at a
    time. Under LoRA the adapters are added to what is yielded, and the policy's own weights stay as
    they are. The weights of a sharded policy are gathered one by one (a collective: every process
    iterates over all of them).

    Raises:
        ValueError: adapters on the experts of a sharded policy, which cannot be merged.
    """
    from transformers.core_model_loading import revert_weight_conversion

    reshard_after_forward(policy)
    for _, layer in groupby(_whole_weights(policy.causal_lm), key=lambda item: _layer_of(item[0])):
        yield from revert_weight_conversion(policy.causal_lm, dict(layer)).items()


def _whole_weights(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield every weight once, adapters added, by its name in the model without adapters."""
    adapters = {
        name: module
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    seen: set[int] = set()
    for name, weight in model.state_dict(keep_vars=True).items():
        if id(weight) in seen or "lora_" in name or ".weight." in name:
            continue  # beside a weight in 4 bits stand its scales
        seen.add(id(weight))
        layer, _, leaf = name.rpartition(".")
        whole = whole_tensor(dequantized(weight).detach())
        for module in _wrappers(layer, leaf, adapters):
            for adapter in module.active_adapters:
                whole = whole + _delta(name, module, adapter).to(whole.dtype)
        yield ".".join(part for part in name.split(".") if part != WRAPPED), whole.detach()


def _wrappers(layer: str, leaf: str, adapters: dict[str, Any]) -> Iterator[Any]:
    """Yield peft's wrappers around a layer that adapt its parameter ``leaf``."""
    while layer.endswith(f".{WRAPPED}"):  # peft nests one wrapper per parameter
        layer = layer.removesuffix(f".{WRAPPED}")
        # A wrapper around a layer adapts its weight; one around experts names its parameter.
        if layer in adapters and getattr(adapters[layer], "parameter_name", "weight") == leaf:
            yield adapters[layer]


def _delta(name: str, module: Any, adapter: str) -> Tensor:
    """Return the whole tensor that an adapter adds to a weight."""
    if getattr(module, "num_experts", 1) > 1 and isinstance(module.lora_A[adapter].weight, DTensor):
        raise ValueError(
            f"model.policy.lora adapts the experts {name}, which are sharded between processes:"
            " their adapters cannot be merged for vLLM; name other layers in"
            " model.policy.lora.options.target_modules, or use NativeEngine"
        )
    if getattr(module, "use_dora", {}).get(adapter):
        raise ValueError(
            f"model.policy.lora.options.use_dora scales {name} by its norm, and no sum of weights"
            " for vLLM does so; use NativeEngine, or take use_dora out"
        )
    return whole_tensor(module.get_delta_weight(adapter))


def _layer_of(name: str) -> str:
    """Return the name up to its first number, which is a layer's; empty outside of layers."""
    parts = name.split(".")
    return next((".".join(parts[: i + 1]) for i, part in enumerate(parts) if part.isdigit()), "")


@torch.no_grad()
def fingerprint(policy: PolicyModel) -> Tensor:
    """Return the sum of every weight (of this process's shard) in float64.

    It differs as soon as a weight has changed. Autograd's version counters would not do, since they
    miss writes through ``.data``.
    """
    weights = policy.state_dict().values()
    parts = (weight.to_local() if isinstance(weight, DTensor) else weight for weight in weights)
    return torch.stack([part.sum(dtype=torch.float64) for part in parts])
