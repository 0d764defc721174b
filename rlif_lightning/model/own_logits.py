"""A causal LM's own way from hidden states to logits: its forward, with its base model's output given.

Whatever stands between them (a head, a scale, a soft cap, a norm, a slice) is the model's code and
no guess of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast


@dataclass
class _Given(BaseModelOutputWithPast):
    """The output of a base model that has last hidden states and nothing else."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def body(causal_lm: Any) -> Any:
    """What computes the last hidden states of a causal LM.

    Raises:
        ValueError: nothing in it does.
    """
    for found in (causal_lm.base_model, causal_lm.get_decoder(), *causal_lm.children()):
        if found is not causal_lm and isinstance(found, PreTrainedModel):
            return found
    raise ValueError(
        f"{type(causal_lm).__name__} has no base model that gives hidden states; use another model"
    )


def own_logits(causal_lm: Any, hidden: Tensor, weight: Tensor | None = None) -> Tensor:
    """Logits ``[M, V]`` of last hidden states ``[M, H]``, as the model's own forward computes them.

    Args:
        causal_lm: the Hugging Face model.
        hidden: of its base model.
        weight: of its head, from :func:`cast_head`; None = as the head has it.

    Raises:
        ValueError: the model does not use its base model's last hidden states.
    """
    asked: list[bool] = []

    def give(*args: Any, **kwargs: Any) -> _Given:
        asked.append(True)
        return _Given(last_hidden_state=hidden.unsqueeze(0))

    outer = body(causal_lm)
    decoder = outer.get_decoder()  # OPT's causal LM calls the decoder inside its base model
    forwards: dict[Any, Callable[..., Any]] = {outer: give}
    if isinstance(decoder, PreTrainedModel):
        forwards[decoder] = give
    if weight is not None:
        head = causal_lm.get_output_embeddings()
        forwards[head] = lambda x: nn.functional.linear(
            x, _Cast.apply(head.weight, weight), head.bias
        )  # type: ignore[arg-type]
    ids = torch.zeros((1, len(hidden)), dtype=torch.int64, device=hidden.device)
    with _replaced(forwards):
        logits = causal_lm(input_ids=ids, use_cache=False).logits
    if not asked:
        raise ValueError(
            f"{type(causal_lm).__name__} does not get its logits from its base model; use another"
            " model"
        )
    return logits.squeeze(0)  # and no [0], whose gradient would be a copy


def cast_head(causal_lm: Any, device: torch.device) -> Tensor | None:
    """The head's weight as autocast casts it in every call, to be cast once for several; None where it casts nothing.

    A head of another kind than a plain linear layer (LoRA's, one that is divided) is left to
    autocast.
    """
    head = causal_lm.get_output_embeddings()
    if not torch.is_autocast_enabled(device.type) or type(head) is not nn.Linear:
        return None
    if type(head.weight) is not nn.Parameter or head.weight.dtype != torch.float32:
        return None
    return head.weight.detach().to(torch.get_autocast_dtype(device.type))


class _Cast(torch.autograd.Function):
    """A cast that is there already.

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
    """Inside, modules have other forwards."""
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
