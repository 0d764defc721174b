"""One whole file, of one process or of several, whose moments find their parameters again under
every strategy: with adapters, and with groups in an order of their own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from harness.forked import on_two_ranks
from rlif_lightning.model.loading import LoRA, Policy
from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.parallel.fsdp import Sharding, sharded_policy, whole_state_dict
from rlif_lightning.parallel.sharded_checkpoint import load_part_of_file, whole_optimizer_state
from rlif_lightning.parallel.tensor_parallel import split_policy
from rlif_lightning.parallel.tensor_parallel_layers import own_part, split_dims

CPU = torch.device("cpu")
WEIGHTS_ALONE = "weights.ckpt"  # as ModelCheckpoint(save_weights_only=True) writes them
KINDS = {"adapters": LoRA(rank=2), "shards": None, "parts": None}


def optimizer_of(model: PolicyModel) -> torch.optim.AdamW:
    """Vectors before matrices, and later ones before earlier ones: not the model's order."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad][::-1]
    groups = [[each for each in trained if (each.dim() == 1) == first] for first in (True, False)]
    return torch.optim.AdamW([{"params": group} for group in groups if group], lr=0.1)


def trained_by_one(policy: Policy, path: Path) -> dict[str, Any]:
    """Save a policy after one step; every parameter has a gradient of its own."""
    model = PolicyModel(policy)
    optimizer, moments = optimizer_of(model), {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            generator = torch.Generator().manual_seed(crc32(name.encode()))
            parameter.grad = torch.randn(parameter.shape, generator=generator)
            moments[name] = 0.1 * parameter.grad  # AdamW's first moment
    optimizer.step()
    state = {"state_dict": model.state_dict(), "optimizer_states": [optimizer.state_dict()]}
    torch.save({**state, "epoch": 3}, path)
    torch.save({"state_dict": state["state_dict"]}, path.with_name(WEIGHTS_ALONE))
    return moments


def whole(value: torch.Tensor) -> torch.Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value


def gone_on_with(kind: str, policy: Policy, path: Path, moments: dict[str, Any]) -> Any:
    """Load the file on one of two processes; return the optimiser's state as a file would be."""
    if kind == "parts":
        model = split_policy(policy, CPU)
    else:
        model = sharded_policy(policy, Sharding(init_device_mesh("cpu", (2,)), CPU))
    optimizer, dims = optimizer_of(model), split_dims(model)
    assert not load_part_of_file(path.with_name(WEIGHTS_ALONE), model, [])
    assert load_part_of_file(path, model, [optimizer]) == {"epoch": 3}
    found = {name: whole(optimizer.state[p]["exp_avg"]) for name, p in model.named_parameters()
             if p.requires_grad}  # fmt: skip
    assert found.keys() == moments.keys()
    for name, moment in moments.items():
        torch.testing.assert_close(found[name], own_part(moment, dims.get(name)), msg=name)
    weights, saved = whole_state_dict(model), torch.load(path)["state_dict"]
    assert all(torch.equal(value, saved[f"model.{name}"]) for name, value in weights.items())
    return None if kind == "parts" else whole_optimizer_state(model, optimizer)


@pytest.mark.parametrize("kind", KINDS)
def test_moments_of_a_file_are_those_of_their_parameters(tiny_models, tmp_path, kind):
    policy, path = Policy(str(tiny_models["llama"]), lora=KINDS[kind]), tmp_path / "whole.ckpt"
    moments = trained_by_one(policy, path)
    first, second = on_two_ranks(lambda rank: gone_on_with(kind, policy, path, moments), tmp_path)
    if kind == "parts":
        return
    expected = torch.load(path)["optimizer_states"][0]
    assert not second
    assert first["param_groups"] == expected["param_groups"]
    assert first["state"].keys() == expected["state"].keys()
    for number, values in expected["state"].items():
        assert all(torch.equal(first["state"][number][key], values[key]) for key in values)
