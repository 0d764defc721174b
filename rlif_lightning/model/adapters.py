"""Weights with LoRA adapters, as peft names them, and the same weights without, by names alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

WRAPPER, WRAPPED = "base_model.model.", ".base_layer."  # what peft adds to a name
ADAPTER = ".lora_"
DOWN, UP = ".lora_A.default.weight", ".lora_B.default.weight"


def is_adapter(name: str) -> bool:
    """Return whether a weight is an adapter's."""
    return ADAPTER in name


def plain_name(name: str) -> str:
    """Return the name that a weight has in the model without adapters."""
    return name.removeprefix(WRAPPER).replace(WRAPPED, ".")


def merged(weights: Mapping[str, Tensor], scale: float, is_transposed: bool) -> dict[str, Tensor]:
    """Return the weights of the model without adapters that computes the same: W + scale · B A.

    For example, W = [[1, 2]], A = [[3, 4]] (rank 1), B = [[5]] and scale = 2 give [[31, 42]].

    Args:
        weights: name -> weight; nothing is changed in place.
        scale: alpha / rank of the adapters.
        is_transposed: whether layers hold their weights as [in, out] (GPT-2).

    Raises:
        ValueError: an adapter that is no pair of matrices on a linear layer.
    """
    found = {plain_name(name): value for name, value in weights.items() if not is_adapter(name)}
    for name in filter(is_adapter, weights):
        layer = name.removesuffix(DOWN).removesuffix(UP)
        if layer + DOWN not in weights or layer + UP not in weights:
            raise ValueError(f"the adapter {name} is not one that can be merged")
        if name.endswith(UP):
            target = f"{plain_name(layer)}.weight"
            if target not in found:
                raise ValueError(f"there is no {target}")
            change = scale * (weights[name].float() @ weights[layer + DOWN].float())
            change = change.T if is_transposed else change
            found[target] = (found[target] + change).to(found[target].dtype)
    return found


def as_named(weights: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """Return weights without adapters under the names of a model that may have adapters.

    Raises:
        ValueError: a weight is missing, or the model has no place for one; names it.
    """
    wanted = {name: plain_name(name) for name in names if not is_adapter(name)}
    if missing := [name for name in wanted.values() if name not in weights]:
        raise ValueError(f"there is no {missing[0]}")
    if unknown := sorted(set(weights) - set(wanted.values())):
        raise ValueError(f"the configured model has no {unknown[0]}")
    return {name: weights[plain] for name, plain in wanted.items()}
