"""From products of queries and keys to attention weights: what layers of different models ask for, and of whom."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class AttentionPlan(Protocol):
    """What the hook needs: attention of one layer, ``[1 or n, heads, tokens, d] -> [1 or n, tokens, heads, d]``."""

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scores: Scores
    ) -> Tensor:
        """Attention output of one layer."""
        ...


def in_one_precision(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values in one precision: that of autocast where it is on, else that of the values.

    Under autocast rotary angles make queries and keys float32 again, while values stay in half
    precision. Not all kernels are reached by autocast, and keys take half the memory in half
    precision. Float64 stays, as under autocast.
    """
    kind, dtype = value.device.type, value.dtype
    if torch.is_autocast_enabled(kind) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(kind)
    return query.to(dtype), key.to(dtype), value.to(dtype)


@dataclass(frozen=True)
class Scores:
    """How a layer gets its attention weights from products of queries and keys.

    Attributes:
        scaling: of the products; None = one over the root of the key's width.
        window: a token sees the last ``window`` ones, itself included; None = all.
        softcap: bound c of ``c tanh(score / c)`` (Gemma 2); None = none.
        sinks: ``[heads]`` scores of nothing at all, which take a part of the softmax (gpt-oss);
            None = none.
    """

    scaling: float | None = None
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None

    @property
    def plain(self) -> bool:
        """Whether a fused kernel can do it."""
        return self.softcap is None and self.sinks is None

    def weights(self, products: Tensor, unseen: Tensor | None) -> Tensor:
        """Softmax over the keys, at least in float32.

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
        heads = self.sinks.view(-1, *[1] * (products.dim() - 2)).expand(*products.shape[:-1], 1)
        return torch.cat([products, heads.to(products.dtype)], -1).softmax(-1, dtype=precise)[
            ..., :-1
        ]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Attention ``[B, tokens, heads, d]`` of ``[B, heads, tokens, d]`` with all products in memory.

        Args:
            query, key, value: the latter two may have fewer heads.
            mask: bool, what is seen; None = all up to the last key, causally.
        """
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
        products = (
            query
            @ key.transpose(-1, -2)
            * (key.shape[-1] ** -0.5 if self.scaling is None else self.scaling)
        )
        if mask is None:
            tokens, keys = products.shape[-2:]
            mask = torch.ones((tokens, keys), dtype=torch.bool, device=products.device).tril(
                keys - tokens
            )
        return (self.weights(products, ~mask).to(value.dtype) @ value).transpose(1, 2)
