"""Casts of autocast made once in a rollout: what is shared, what autocast leaves alone, and what
stays behind.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from harness.decoding import SAMPLINGS, CastsOf, generate_many, load
from harness.models import ARCHITECTURES
from rlif_lightning.model.loading import LoRA
from rlif_lightning.rollout.autocasting import cast_once
from rlif_lightning.rollout.native import NativeEngine

CPU = torch.device("cpu")


class InFloat32(nn.Module):
    """A layer that switches autocast off, as routers of experts do, and one that names its
    input.
    """

    def __init__(self):
        super().__init__()
        self.precise, self.rough = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.autocast("cpu", enabled=False):
            precise = self.precise(x)
        return precise, self.rough(input=x)


@torch.no_grad()
def test_a_layer_without_autocast_keeps_its_precision():
    model, x = InFloat32(), torch.randn(3, 8)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        expected = model(x)
        with cast_once(model, CPU):
            found = model(x)
    assert [y.dtype for y in found] == [torch.float32, torch.bfloat16]
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("inference", [False, True])
def test_trained_weights_are_cast_once_in_training_and_in_evaluations(tiny_models, inference):
    """Lightning validates and predicts in inference mode, in which autocast by itself keeps
    nothing.
    """
    policy = load(tiny_models[ARCHITECTURES[0]])
    weight = policy.causal_lm.model.layers[0].mlp.up_proj.weight
    with (
        torch.autocast("cpu", torch.bfloat16, cache_enabled=False),
        torch.inference_mode(inference),
    ):
        with CastsOf(weight) as casts:
            generate_many(policy, 512, SAMPLINGS["plain"])
        assert torch.is_inference_mode_enabled() == inference
        assert torch.is_grad_enabled() != inference
    assert casts.count == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("inference", [False, True])
def test_frozen_weights_under_adapters_are_cast_once_and_stay_frozen(tiny_models, inference):
    """Autocast itself keeps copies of trained weights only."""
    pytest.importorskip("peft")
    policy = load(tiny_models[ARCHITECTURES[0]], lora=LoRA(rank=2, alpha=4))
    frozen = [name for name, parameter in policy.named_parameters() if not parameter.requires_grad]
    (weight,) = [
        parameter
        for name, parameter in policy.named_parameters()
        if "layers.0.mlp.up_proj.base" in name
    ]
    autocast = torch.autocast("cpu", torch.bfloat16, cache_enabled=False)
    with autocast, torch.inference_mode(inference), CastsOf(weight) as casts:
        rollout = generate_many(policy, 512, SAMPLINGS["plain"])
    assert rollout.lengths.max() > 5
    assert casts.count == 1
    assert [
        name for name, parameter in policy.named_parameters() if not parameter.requires_grad
    ] == frozen


def test_nothing_stays_behind_when_a_rollout_fails(tiny_models):
    policy = load(tiny_models[ARCHITECTURES[0]])
    policy.train()

    def broken(*_: object) -> None:
        raise ValueError("no tokens today")

    engine = NativeEngine()
    engine.setup(policy, 0)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        with pytest.raises(ValueError, match="today"), engine.ready(CPU):
            broken()
        assert not torch.is_autocast_cache_enabled()
    assert policy.training
    assert not any(module._forward_pre_hooks for module in policy.modules())
