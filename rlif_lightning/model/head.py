"""Token statistics of the language-model head's output, in pieces that stay in the cache.

Pure functions. ``HeadRule`` turns raw logits into those that are sampled from. ``head_stats`` has a
backward pass of its own, which overwrites the logits with their gradient: no second matrix of this
size ever exists.

Example: V = 4 tokens, one of them drawn, temperature 2, token 3 (end of sequence) not yet allowed:

    raw        2.0  0.0  0.0  5.0        [M, V] = [1, 4]
    logits     1.0  0.0  0.0  2.5        HeadRule.apply
    p          0.58 0.21 0.21 0          softmax of the allowed tokens
    token 0    log-prob -0.55, entropy 0.98, self-certainty 0.12
    d log-prob 0.42 -0.21 -0.21 0        onehot - p, by the logits
    gradient   0.21 -0.11 -0.11 0        by raw: divided by the temperature, written over raw
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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

# Logits that are handled at a time: few enough for a core's cache, many on a GPU.
PIECE = {"cpu": 2**18, "cuda": 2**26}


@dataclass(frozen=True)
class HeadRule:
    """The rule from raw logits to those that are sampled from.

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
        """Return scaled logits ``[N, V]`` of the tokens, at least float32, of raw ones."""
        logits = at_least_float32(raw[:, : self.num_tokens])
        return logits if self.temperature == 1.0 else logits / self.temperature

    def forbidden(self, may_end: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """Return what may not be sampled, as ``token_stats`` takes it.

        ``may_end`` is ``[N]`` bool: where a completion may end; None = everywhere.
        """
        return None if may_end is None else (self.end_ids, ~may_end)

    def parts(self, logits: Tensor, may_end: Tensor | None) -> SoftmaxParts:
        """Compute the softmax of logits from :meth:`apply`, without forbidden tokens."""
        forbidden = self.forbidden(may_end)
        return softmax_parts(logits if forbidden is None else forbid(logits, *forbidden))


def rows_within(sizes: Mapping[str, int], device: torch.device, vocab_size: int) -> int:
    """Return how many rows of logits stay within a size in elements; a size per kind of device."""
    return sizes["cpu" if device.type == "cpu" else "cuda"] // vocab_size


def pieces(logits: Tensor) -> Iterator[slice]:
    """Yield the rows of ``[N, V]`` logits that are handled at a time."""
    size = max(1, rows_within(PIECE, logits.device, logits.shape[1]))
    return (slice(start, start + size) for start in range(0, len(logits), size))


def head_stats(raw: Tensor, tokens: Tensor, may_end: Tensor | None, rule: HeadRule) -> TokenStats:
    """Compute the statistics of tokens under the head's output.

    The backward pass writes the gradient over ``raw``. It can run only once, and no other code may
    read ``raw`` after it.

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
        # Allocated before the pieces. A small tensor that outlives the large ones of its piece
        # would fragment the heap.
        kept = at_least_float32(raw.new_empty(0)).new_empty(len(fields(TokenStats)) + 1, len(raw))
        for rows in pieces(raw):
            ends = None if may_end is None else may_end[rows]
            logits = rule.apply(raw[rows])
            parts = rule.parts(logits, ends)
            found = token_stats(logits, tokens[rows], rule.forbidden(ends), parts)
            torch.stack([*vars(found).values(), parts.log_normalizer], out=kept[:, rows])
        *stats, log_normalizer = kept.unbind()  # [M] each
        ctx.save_for_backward(raw, tokens, may_end, log_normalizer, stats[1])
        ctx.rule, ctx.spent = rule, False
        ctx.set_materialize_grads(False)  # None for statistics that the loss does not use
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
            # [n, 1] each
            given = [None if g is None else g[rows].unsqueeze(1) for g in gradients]
            token, normalizer, entropies = (
                x[rows].unsqueeze(1) for x in (tokens, log_normalizer, entropy)
            )
            raw[rows, : ctx.rule.num_tokens] = _raw_gradient(
                raw[rows], given, ends, token, normalizer, entropies, ctx.rule
            )
        if ctx.rule.num_tokens is not None:  # logits beyond are no tokens: nothing depends on them
            raw[:, ctx.rule.num_tokens :] = 0
        return raw, None, None, None


def _raw_gradient(
    raw: Tensor,
    gradients: list[Tensor | None],
    may_end: Tensor | None,
    tokens: Tensor,
    log_normalizer: Tensor,
    entropy: Tensor,
    rule: HeadRule,
) -> Tensor:
    """Compute d(loss) / d(raw) ``[n, V]`` from the gradients ``[n, 1]`` of the three statistics.

    With p = softmax(z) of the scaled logits z, V the number of allowed tokens:
    d logprob = onehot - p;  d entropy = -p (log p + entropy);  d self_certainty = p - 1 / V.
    """
    of_logprob, of_entropy, of_certainty = gradients
    logits = rule.apply(raw)
    forbidden = rule.forbidden(may_end)
    log_probs = (logits if forbidden is None else forbid(logits, *forbidden)) - log_normalizer
    probs = log_probs.exp()  # [n, V]
    gradient = torch.zeros_like(probs)
    if of_logprob is not None:
        gradient = (probs * -of_logprob).scatter_add_(1, tokens, of_logprob)
    if of_entropy is not None:
        gradient -= of_entropy * probs * (log_probs + entropy)
    if of_certainty is not None:  # its mean runs over allowed tokens only
        allowed = torch.full_like(log_normalizer, logits.shape[1])
        if forbidden is not None:
            allowed -= len(rule.end_ids) * forbidden[1].unsqueeze(1)
        gradient += of_certainty * (probs - 1 / allowed)
    if forbidden is not None:  # a forbidden logit has no influence on any statistic
        ids, banned = forbidden
        zeroed = gradient[:, ids].masked_fill(banned.unsqueeze(1), 0.0)
        gradient = gradient.index_copy(1, ids, zeroed)
    return gradient if rule.temperature == 1.0 else gradient / rule.temperature
