"""Logits from hidden states by a causal LM's own forward, with its base model's output replaced.

Everything between the two (a head, a scale, a soft cap, a norm, a slice) is the model's code, and
not our guess of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.modeling_outputs import BaseModelOutputWithPast


@dataclass
class _Given(BaseModelOutputWithPast):
    """The output of a base model that has only last hidden states."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def body(causal_lm: Any) -> Any:
    """Return the part of a causal LM that computes its last hidden states.

    Raises:
        ValueError: there is none.
    """
    from transformers import PreTrainedModel

    for found in (causal_lm.base_model, causal_lm.get_decoder(), *causal_lm.children()):
        if found is not causal_lm and isinstance(found, PreTrainedModel):
            return found
    raise ValueError(
        f"{type(causal_lm).__name__} has no base model that returns hidden states; use another"
        " model"
    )


def own_logits(causal_lm: Any, hidden: Tensor, weight: Tensor | None = None) -> Tensor:
    """Compute logits ``[M, V]`` of last hidden states ``[M, H]`` by the model's own forward.

    Args:
        causal_lm: the Hugging Face model.
        hidden: of its base model.
        weight: of its head, from :func:`cast_head`; None = the head's own.

    Raises:
        ValueError: the model does not use its base model's last hidden states.
    """
    asked: list[bool] = []

    def give(*args: Any, **kwargs: Any) -> _Given:
        asked.append(True)
        return _Given(last_hidden_state=hidden.unsqueeze(0))

    from transformers import PreTrainedModel

    outer = body(causal_lm)
    decoder = outer.get_decoder()  # OPT's causal LM calls the decoder inside its base model
    forwards: dict[Any, Callable[..., Any]] = {outer: give}
    if isinstance(decoder, PreTrainedModel):
        forwards[decoder] = give
    if weight is not None:
        head = causal_lm.get_output_embeddings()

        def cast_forward(x: Tensor) -> Tensor:
            cast: Any = _Cast.apply(head.weight, weight)
            return nn.functional.linear(x, cast, head.bias)

        forwards[head] = cast_forward
    ids = torch.zeros((1, len(hidden)), dtype=torch.int64, device=hidden.device)
    with _replaced(forwards):
        logits = causal_lm(input_ids=ids, use_cache=False).logits
    if not asked:
        raise ValueError(
            f"{type(causal_lm).__name__} does not get its logits from its base model; use another"
            " model"
        )
    return logits.squeeze(0)  # not [0], whose gradient would be a copy


def cast_head(causal_lm: Any, device: torch.device) -> Tensor | None:
    """Return the head's weight as autocast casts it, so that several calls share one cast.

    None means that autocast casts nothing, or that the head is no plain linear layer (but LoRA's,
    or sharded), which is left to autocast.
    """
    head = causal_lm.get_output_embeddings()
    if not torch.is_autocast_enabled(device.type) or type(head) is not nn.Linear:
        return None
    if type(head.weight) is not nn.Parameter or head.weight.dtype != torch.float32:
        return None
    return head.weight.detach().to(torch.get_autocast_dtype(device.type))


class _Cast(torch.autograd.Function):
    """The cast of a parameter whose result is given.

    Gradients of several calls are summed in the parameter's precision.
    """

    @staticmethod
    def forward(ctx: Any, parameter: Tensor, cast: Tensor) -> Tensor:
        ctx.dtype = parameter.dtype
        return cast.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gradient.to(ctx.dtype), None


@contextmanager
def _replaced(forwards: dict[Any, Callable[..., Any]]) -> Iterator[None]:
    """Replace the forwards of modules."""
    before = {module: vars(module).get("forward") for module in forwards}
    for module, forward in forwards.items():
        module.forward = forward
    try:
        yield
    finally:
        for module, own in before.items():
            del module.forward
            if own is not None:
                module.forward = own
