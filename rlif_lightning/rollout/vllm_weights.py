"""The policy's weights for a sampler that has a copy of them: by their Hugging Face names, adapters merged in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.parallel.fsdp import whole_tensor
from rlif_lightning.parallel.passes import let_go


def merged_weights(policy: PolicyModel) -> Iterator[tuple[str, Tensor]]:
    """Every weight once, by the name that the model's checkpoint has for it (a tied weight by its first name).

    Under LoRA the adapters are added to what is yielded; the policy's own weights are left alone. Of a policy that is
    divided between ranks each weight is gathered by itself (a collective: every rank goes through all of them).
    """
    let_go(policy)
    adapted = _adapted(policy.causal_lm)
    seen: set[int] = set()
    for name, weight in policy.causal_lm.state_dict(keep_vars=True).items():
        layer, _, leaf = name.rpartition(".")
        if id(weight) in seen or "lora_" in name:
            continue
        seen.add(id(weight))
        whole = whole_tensor(weight.detach())
        module = adapted.get(layer.removesuffix(".base_layer"))
        if module is not None and leaf == "weight":
            for adapter in module.active_adapters:
                whole = whole + whole_tensor(module.get_delta_weight(adapter)).to(whole.dtype)
        yield name.replace(".base_layer.", "."), whole.detach()


def _adapted(model: nn.Module) -> dict[str, Any]:
    """Layers with adapters (peft's linear layers), by name."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "get_delta_weight")}


@torch.no_grad()
def fingerprint(policy: PolicyModel) -> Tensor:
    """Sums of every weight in float64 (of this rank's part): different as soon as any weight is, whoever changed it.

    Sums and not autograd's version counters, which do not see writes through ``.data``.
    """
    weights = policy.state_dict().values()
    parts = (weight.to_local() if isinstance(weight, DTensor) else weight for weight in weights)
    return torch.stack([part.sum(dtype=torch.float64) for part in parts])
