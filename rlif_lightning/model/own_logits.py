"""A causal LM's own way from hidden states to logits: its forward, with its base model's output given.

Whatever stands between them (a head, a scale, a soft cap, a norm, a slice) is the model's code and no guess of ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
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
    raise ValueError(f"{type(causal_lm).__name__} has no base model that gives hidden states; use another model")


def own_logits(causal_lm: Any, hidden: Tensor) -> Tensor:
    """Logits ``[M, V]`` of last hidden states ``[M, H]``, as the model's own forward computes them.

    Raises:
        ValueError: the model does not use its base model's last hidden states.
    """
    ids = torch.zeros((1, len(hidden)), dtype=torch.int64, device=hidden.device)
    with _bodies_give(causal_lm, hidden.unsqueeze(0)) as asked:
        logits = causal_lm(input_ids=ids, use_cache=False).logits
    if not asked:
        raise ValueError(f"{type(causal_lm).__name__} does not get its logits from its base model; use another model")
    return logits.squeeze(0)  # and no [0], whose gradient would be a copy


@contextmanager
def _bodies_give(causal_lm: Any, hidden: Tensor) -> Iterator[list[bool]]:
    """Inside, the base model and its decoder answer with these hidden states; what is yielded notes that they did."""
    asked: list[bool] = []

    def forward(*args: Any, **kwargs: Any) -> _Given:
        asked.append(True)
        return _Given(last_hidden_state=hidden)

    outer = body(causal_lm)
    decoder = outer.get_decoder()  # OPT's causal LM calls the decoder inside its base model
    bodies: list[Any] = [outer] if decoder is outer or not isinstance(decoder, PreTrainedModel) else [outer, decoder]
    before = [vars(module).get("forward") for module in bodies]
    for module in bodies:
        module.forward = forward
    try:
        yield asked
    finally:
        for module, own in zip(bodies, before, strict=True):
            del module.forward
            if own is not None:
                module.forward = own
