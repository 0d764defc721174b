"""Token statistics of the language-model head's output, in pieces that stay in the cache.

Pure functions.

``HeadRule`` turns raw logits into those that are sampled from. ``head_stats`` measures tokens with
a backward pass of its own that overwrites the logits with their gradient: no second matrix of this
size ever exists.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rlif_lightning.model.token_stats import (
    SoftmaxParts,
    at_least_float32,
    forbid,
    softmax_parts,
    token_stats,
)
from rlif_lightning.records import TokenStats

PIECE = {
    "cpu": 2**18,
    "cuda": 2**26,
}  # logits handled at a time: small enough for a core's cache, large for a GPU


@dataclass(frozen=True)
class HeadRule:
    """From raw logits to those that are sampled from.

    Args:
        temperature: divides the logits, > 0.
        end_ids: ``[E]`` int64, tokens that end a completion.
        num_tokens: V, where the logits beyond the first V are no tokens and have probability 0;
            None = all are.
    """

    temperature: float
    end_ids: Tensor
    num_tokens: int | None = None

    def apply(self, raw: Tensor) -> Tensor:
        """``[N, V]`` logits of any precision to scaled ones of tokens, at least float32."""
        logits = at_least_float32(raw[:, : self.num_tokens])
        return logits if self.temperature == 1.0 else logits / self.temperature

    def forbidden(self, may_end: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """What may not be sampled, as ``token_stats`` takes it; ``may_end [N]`` bool, None = all may."""
        return None if may_end is None else (self.end_ids, ~may_end)

    def parts(self, logits: Tensor, may_end: Tensor | None) -> SoftmaxParts:
        """Of logits from :meth:`apply`."""
        forbidden = self.forbidden(may_end)
        return softmax_parts(logits if forbidden is None else forbid(logits, *forbidden))


def pieces(logits: Tensor) -> Iterator[slice]:
    """Rows of ``[N, V]`` logits to be handled at a time."""
    size = max(1, PIECE.get(logits.device.type, PIECE["cuda"]) // logits.shape[1])
    return (slice(start, start + size) for start in range(0, len(logits), size))


def head_stats(raw: Tensor, tokens: Tensor, may_end: Tensor | None, rule: HeadRule) -> TokenStats:
    """Statistics of tokens under the head's output.

    The gradient is written over ``raw``, which nobody else may read after the backward pass; it can
    run only once.

    Args:
        raw: ``[M, V]`` raw logits, any precision.
        tokens: ``[M]`` int64.
        may_end: ``[M]`` bool: where the completion could have ended; None = everywhere.
        rule: how the logits are sampled from.

    Returns:
        ``TokenStats`` of ``[M]`` tensors, at least float32, differentiable in ``raw``.
    """
    return TokenStats(*_HeadStats.apply(raw, tokens, may_end, rule))  # type: ignore[misc]


class _HeadStats(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, raw: Tensor, tokens: Tensor, may_end: Tensor | None, rule: HeadRule
    ) -> tuple[Tensor, ...]:
        # Made before the pieces: small tensors that outlive a piece would lie between the large
        # ones it frees.
        kept = at_least_float32(raw.new_empty(0)).new_empty(len(fields(TokenStats)) + 1, len(raw))
        for rows in pieces(raw):
            ends = None if may_end is None else may_end[rows]
            logits = rule.apply(raw[rows])
            parts = rule.parts(logits, ends)
            found = token_stats(logits, tokens[rows], rule.forbidden(ends), parts)
            torch.stack([*vars(found).values(), parts.log_normalizer], out=kept[:, rows])
        *stats, log_normalizer = kept.unbind()
        ctx.save_for_backward(raw, tokens, may_end, log_normalizer, stats[1])
        ctx.rule, ctx.spent = rule, False
        ctx.set_materialize_grads(False)
        return tuple(stats)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if ctx.spent:
            raise RuntimeError(
                "the backward pass of head_stats ran twice; it overwrites the logits, so it runs"
                " once"
            )
        ctx.spent = True
        raw, tokens, may_end, log_normalizer, entropy = ctx.saved_tensors
        for rows in pieces(raw):
            ends = None if may_end is None else may_end[rows]
            given = [None if g is None else g[rows].unsqueeze(1) for g in gradients]
            saved = (
                tokens[rows].unsqueeze(1),
                ends,
                log_normalizer[rows].unsqueeze(1),
                entropy[rows].unsqueeze(1),
            )
            raw[rows, : ctx.rule.num_tokens] = _raw_gradient(raw[rows], given, *saved, ctx.rule)
        if ctx.rule.num_tokens is not None:
            raw[:, ctx.rule.num_tokens :] = 0
        return raw, None, None, None


def _raw_gradient(
    raw: Tensor,
    gradients: list[Tensor | None],
    tokens: Tensor,
    may_end: Tensor | None,
    log_normalizer: Tensor,
    entropy: Tensor,
    rule: HeadRule,
) -> Tensor:
    """d(loss)/d(raw) ``[n, V]``, of tokens, from the three statistics' gradients ``[n, 1]``, with p = softmax(z):

    d logprob = onehot - p;  d entropy = -p (log p + entropy);  d self_certainty = p - 1 / V.
    """
    of_logprob, of_entropy, of_certainty = gradients
    logits = rule.apply(raw)
    forbidden = rule.forbidden(may_end)
    log_probs = (logits if forbidden is None else forbid(logits, *forbidden)) - log_normalizer
    probs = log_probs.exp()
    gradient = torch.zeros_like(probs)
    if of_logprob is not None:
        gradient = (probs * -of_logprob).scatter_add_(1, tokens, of_logprob)
    if of_entropy is not None:
        gradient -= of_entropy * probs * (log_probs + entropy)
    if of_certainty is not None:
        allowed = torch.full_like(log_normalizer, logits.shape[1])
        if forbidden is not None:
            allowed -= len(rule.end_ids) * forbidden[1].unsqueeze(1)
        gradient += of_certainty * (probs - 1 / allowed)
    if forbidden is not None:
        ids, banned = forbidden
        gradient = gradient.index_copy(
            1, ids, gradient[:, ids].masked_fill(banned.unsqueeze(1), 0.0)
        )
    return gradient if rule.temperature == 1.0 else gradient / rule.temperature
