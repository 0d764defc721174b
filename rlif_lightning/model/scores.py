"""Rules from products of queries and keys to attention weights, and the interface of plans."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class AttentionPlan(Protocol):
    """The interface that ``plan_hook.py`` calls."""

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scores: Scores
    ) -> Tensor:
        """Compute one layer's attention: ``[n, heads, tokens, d]`` -> ``[n, tokens, heads, d]``."""
        ...


def in_one_precision(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cast queries, keys and values to one precision: autocast's, or without it that of the values.

    Under autocast rotary angles turn queries and keys back into float32, while values stay in half
    precision. Autocast does not cover all kernels, and keys take half the memory in half precision.
    Float64 stays, as under autocast.
    """
    kind, dtype = value.device.type, value.dtype
    if torch.is_autocast_enabled(kind) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(kind)
    return query.to(dtype), key.to(dtype), value.to(dtype)


@dataclass(frozen=True)
class Scores:
    """The rule of a layer from products of queries and keys to attention weights.

    Attributes:
        scaling: factor of the products; None = one over the root of the key's width.
        window: a token sees the last ``window`` ones, itself included; None = all.
        softcap: bound c of ``c tanh(score / c)`` (Gemma 2); None = none.
        sinks: ``[heads]`` additional scores without a key, which take part of each softmax
            (gpt-oss); None = none.
    """

    scaling: float | None = None
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None

    @property
    def plain(self) -> bool:
        """Return whether a fused kernel can compute it."""
        return self.softcap is None and self.sinks is None

    def weights(self, products: Tensor, unseen: Tensor | None) -> Tensor:
        """Compute the softmax over the keys, at least in float32.

        Args:
            products: ``[batch, heads, ..., keys]`` of queries and keys, scaled.
            unseen: bool that broadcasts to it; None = all is seen.
        """
        if self.softcap is not None:
            products = (products / self.softcap).tanh() * self.softcap
        if unseen is not None:
            products = products.masked_fill(unseen, -torch.inf)
        precise = torch.promote_types(products.dtype, torch.float32)
        if self.sinks is None:
            return products.softmax(-1, dtype=precise)
        sinks = self.sinks.view(-1, *[1] * (products.dim() - 2)).expand(*products.shape[:-1], 1)
        products = torch.cat([products, sinks.to(products.dtype)], -1)  # [batch, ..., keys + 1]
        return products.softmax(-1, dtype=precise)[..., :-1]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Compute attention ``[B, tokens, heads, d]`` of ``[B, heads, tokens, d]``.

        All products are stored at once.

        Args:
            query, key, value: the latter two may have fewer heads.
            mask: bool, True where a key is seen; None = causal, with the last query at the last
                key.
        """
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
        scale = key.shape[-1] ** -0.5 if self.scaling is None else self.scaling
        products = query @ key.transpose(-1, -2) * scale  # [B, heads, tokens, keys]
        if mask is None:
            tokens, keys = products.shape[-2:]
            seen = torch.ones((tokens, keys), dtype=torch.bool, device=products.device)
            mask = seen.tril(keys - tokens)
        return (self.weights(products, ~mask).to(value.dtype) @ value).transpose(1, 2)
