"""Casts of autocast in a rollout, each made once, since no weight changes there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def cast_once(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Keep autocast's low-precision copies of the weights, and share casts of layer inputs.

    Results are those of autocast, bit for bit. Without autocast nothing is done. Gradients are off
    inside. Autocast caches only weights that require a gradient, so frozen weights (a base under
    adapters) are marked as such inside.
    """
    if not torch.is_autocast_enabled(device.type):
        yield
        return
    dtype = torch.get_autocast_dtype(device.type)
    with ExitStack() as stack:
        # Otherwise the update would use these copies, which have no graph and are soon stale.
        stack.callback(torch.clear_autocast_cache)
        # Evaluations run in inference mode, in which autocast caches nothing.
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.autocast(device.type, dtype, cache_enabled=True))
        for parameter in model.parameters():
            if (
                type(parameter) is nn.Parameter
                and not parameter.requires_grad
                and parameter.dtype == torch.float32
            ):
                stack.callback(parameter.requires_grad_(True).requires_grad_, False)
        hook = _CastInput(dtype)
        for module in model.modules():
            if isinstance(module, nn.Linear) and module.weight.is_floating_point():
                stack.callback(module.register_forward_pre_hook(hook).remove)
        yield


class _CastInput:
    """A hook before linear layers, by which layers that read the same tensor share its cast.

    The layers of queries, keys and values do.
    """

    def __init__(self, dtype: torch.dtype):
        self.dtype, self.version = dtype, 0
        self.given: Tensor | None = None
        self.cast: Tensor | None = None

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        given = inputs[0] if inputs else None
        # An inference tensor has no version counter, so a change of it could not be noticed.
        if type(given) is not Tensor or given.dtype != torch.float32 or given.is_inference():
            return None
        if not torch.is_autocast_enabled(given.device.type):  # some layers switch it off
            return None
        if given is not self.given or given._version != self.version:
            self.given, self.version, self.cast = given, given._version, given.to(self.dtype)
        return (self.cast, *inputs[1:])
