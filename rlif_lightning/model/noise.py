"""Switch off what a model draws at random: a policy must compute the same log-probs twice.

Hugging Face's models are noisy in training mode: they drop values, and routers jitter or draw their
experts. Yet they recompute activations (gradient checkpointing) in that mode only. So modules stay
in evaluation mode, except those that recompute, and all dropout probabilities are 0. Amplitudes of
jitter stay: some are part of a router's rule in evaluation mode too (Phi-3.5-MoE).
"""

from __future__ import annotations

import copy
from typing import Any

from torch import nn
from transformers import PretrainedConfig


def switch_noise_off(model: Any) -> None:
    """Set every dropout probability to 0, in dropout modules and in plain numbers.

    The model's own ``config`` stays as it is, because exports write it; the modules get a quiet
    copy.
    """
    copies: dict[int, Any] = {}
    copy.deepcopy(model.config, copies)  # fills in: id of a config or of one inside it -> its copy
    for config in copies.values():
        if isinstance(config, PretrainedConfig):
            _silence(config)
    for module in model.modules():
        _silence(module)
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        held = vars(module).get("config")
        if module is not model and isinstance(held, PretrainedConfig):
            module.config = copies.get(id(held), held)


def _silence(owner: Any) -> None:
    for name, value in list(vars(owner).items()):
        if isinstance(value, float) and value and "drop" in name:
            setattr(owner, name, 0.0)


def set_quiet_mode(model: nn.Module, training: bool) -> None:
    """Put modules in evaluation mode, except those that recompute activations in training mode."""
    for module in model.modules():
        module.training = training and bool(getattr(module, "gradient_checkpointing", False))
