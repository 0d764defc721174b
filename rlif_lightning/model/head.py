"""Token statistics of the language-model head's output, in pieces that stay in the cache.

``head_stats`` has a backward pass of its own, which overwrites the logits with their gradient: no
second matrix of this size ever exists. Readers say what a pass reads of the head's output: the
statistics, the log-probs of given tokens as well, or the likeliest tokens. They work on pieces, so
that the policy may compute the logits in chunks.

Example: V = 4 tokens, one of them drawn, temperature 2, token 3 (end of sequence) not yet allowed:

    raw        2.0  0.0  0.0  5.0        [M, V] = [1, 4]
    logits     1.0  0.0  0.0  2.5        HeadRule.apply
    p          0.58 0.21 0.21 0          softmax of the allowed tokens
    token 0    log-prob -0.55, entropy 0.98, self-certainty 0.12
    d log-prob 0.42 -0.21 -0.21 0        onehot - p, by the logits
    gradient   0.21 -0.11 -0.11 0        by raw: divided by the temperature, written over raw
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rlif_lightning.model.packing import Packed
from rlif_lightning.model.token_stats import (
    HeadRule,
    TeacherLogprobs,
    at_least_float32,
    candidate_logprobs,
    token_stats,
)
from rlif_lightning.records import TokenStats

# Logits that are handled at a time: few enough for a core's cache, many on a GPU.
PIECE = {"cpu": 2**18, "cuda": 2**26}


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
    return TokenStats(*_HeadStats.apply(raw, tokens, None, may_end, rule))  # type: ignore[misc]


def head_stats_at(
    raw: Tensor, tokens: Tensor, ids: Tensor, may_end: Tensor | None, rule: HeadRule
) -> tuple[TokenStats, Tensor]:
    """Compute the statistics of tokens, and the log-probs of ``ids`` and of all other tokens.

    The same backward pass serves both, with no second matrix of logits.

    Args:
        raw, tokens, may_end, rule: as of :func:`head_stats`.
        ids: ``[M, K]`` int64, different ones at each position.

    Returns:
        The statistics, and ``[M, K + 1]`` log-probs (``token_stats.candidate_logprobs``).
    """
    *stats, candidates = _HeadStats.apply(raw, tokens, ids, may_end, rule)  # type: ignore[misc]
    return TokenStats(*stats), candidates


def head_top(raw: Tensor, count: int, may_end: Tensor | None, rule: HeadRule) -> tuple[Tensor, ...]:
    """Return the likeliest tokens under the head's output, without a graph.

    Args:
        raw, may_end, rule: as of :func:`head_stats`.
        count: K, at most V.

    Returns:
        ``[M, K]`` int64 ids, and ``[M, K + 1]`` log-probs of them and of all other tokens.
    """
    ids, logprobs = [], []
    for rows in pieces(raw):
        ends = None if may_end is None else may_end[rows]
        logits = rule.allowed(rule.apply(raw[rows]), ends)
        chosen = logits.topk(count, sorted=False).indices  # [n, K]
        ids.append(chosen)
        logprobs.append(candidate_logprobs(logits, chosen, logits.logsumexp(-1)))
    return torch.cat(ids), torch.cat(logprobs)


class _HeadStats(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        raw: Tensor,
        tokens: Tensor,
        ids: Tensor | None,
        may_end: Tensor | None,
        rule: HeadRule,
    ) -> tuple[Tensor, ...]:
        # Allocated before the pieces. A small tensor that outlives the large ones of its piece
        # would fragment the heap.
        kept = at_least_float32(raw.new_empty(0)).new_empty(len(fields(TokenStats)) + 1, len(raw))
        candidates = [] if ids is None else [kept.new_empty(len(raw), ids.shape[1] + 1)]
        for rows in pieces(raw):
            ends = None if may_end is None else may_end[rows]
            logits = rule.apply(raw[rows])
            parts = rule.parts(logits, ends)
            found = token_stats(logits, tokens[rows], rule.forbidden(ends), parts)
            torch.stack([*vars(found).values(), parts.log_normalizer], out=kept[:, rows])
            if ids is not None:
                allowed = rule.allowed(logits, ends)
                candidates[0][rows] = candidate_logprobs(allowed, ids[rows], parts.log_normalizer)
        *stats, log_normalizer = kept.unbind()  # [M] each
        saved = raw, tokens, may_end, log_normalizer, stats[1]
        ctx.save_for_backward(*saved, ids, *candidates)
        ctx.rule, ctx.spent = rule, False
        ctx.set_materialize_grads(False)  # None for statistics that the loss does not use
        return (*stats, *candidates)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if ctx.spent:
            raise RuntimeError(
                "the backward pass of head_stats ran twice; it overwrites the logits, so it runs"
                " once"
            )
        ctx.spent = True
        raw, tokens, may_end, log_normalizer, entropy, ids, *candidates = ctx.saved_tensors
        of_stats = gradients[: len(fields(TokenStats))]
        of_candidates = next(iter(gradients[len(of_stats) :]), None)  # [M, K + 1]
        for rows in pieces(raw):
            ends = None if may_end is None else may_end[rows]
            # [n, 1] each
            given = [None if g is None else g[rows].unsqueeze(1) for g in of_stats]
            piece = _Piece(ends, *(x[rows].unsqueeze(1) for x in (tokens, log_normalizer, entropy)))
            if of_candidates is not None:
                tail = candidates[0][rows, -1:]
                piece = piece._replace(ids=ids[rows], tail=tail, of_candidates=of_candidates[rows])
            raw[rows, : ctx.rule.num_tokens] = _raw_gradient(raw[rows], given, piece, ctx.rule)
        if ctx.rule.num_tokens is not None:  # logits beyond are no tokens: nothing depends on them
            raw[:, ctx.rule.num_tokens :] = 0
        return raw, None, None, None, None


class _Piece(NamedTuple):
    """What the backward pass reads of n rows; ``[n, 1]``, and ``[n, K]`` of ids."""

    may_end: Tensor | None
    tokens: Tensor
    log_normalizer: Tensor
    entropy: Tensor
    ids: Tensor | None = None
    tail: Tensor | None = None
    of_candidates: Tensor | None = None  # [n, K + 1], the gradient of their log-probs


def _raw_gradient(
    raw: Tensor, gradients: list[Tensor | None], piece: _Piece, rule: HeadRule
) -> Tensor:
    """Compute d(loss) / d(raw) ``[n, V]`` from the gradients ``[n, 1]`` of the three statistics.

    With p = softmax(z) of the scaled logits z, V the number of allowed tokens:
    d logprob = onehot - p;  d entropy = -p (log p + entropy);  d self_certainty = p - 1 / V.
    """
    of_logprob, of_entropy, of_certainty = gradients
    logits = rule.apply(raw)
    forbidden = rule.forbidden(piece.may_end)
    log_probs = rule.allowed(logits, piece.may_end) - piece.log_normalizer
    probs = log_probs.exp()  # [n, V]
    gradient = torch.zeros_like(probs)
    if of_logprob is not None:
        gradient = (probs * -of_logprob).scatter_add_(1, piece.tokens, of_logprob)
    if of_entropy is not None:
        gradient -= of_entropy * probs * (log_probs + piece.entropy)
    if of_certainty is not None:  # its mean runs over allowed tokens only
        allowed = torch.full_like(piece.log_normalizer, logits.shape[1])
        if forbidden is not None:
            allowed -= len(rule.end_ids) * forbidden[1].unsqueeze(1)
        gradient += of_certainty * (probs - 1 / allowed)
    if piece.of_candidates is not None:
        _add_of_candidates(gradient, log_probs, probs, piece)
    if forbidden is not None:  # a forbidden logit has no influence on any statistic
        ids, banned = forbidden
        zeroed = gradient[:, ids].masked_fill(banned.unsqueeze(1), 0.0)
        gradient = gradient.index_copy(1, ids, zeroed)
    return gradient if rule.temperature == 1.0 else gradient / rule.temperature


def _add_of_candidates(gradient: Tensor, log_probs: Tensor, probs: Tensor, piece: _Piece) -> None:
    """Add the gradient of the candidates' log-probs, and of their tail's, in place.

    d logprob of an id = onehot - p;  d log-prob of the tail = q - p, where q is p of the tail's
    tokens alone, which sums to 1 there and is 0 at the ids.
    """
    assert piece.ids is not None
    assert piece.tail is not None
    assert piece.of_candidates is not None
    of_ids, of_tail = piece.of_candidates[:, :-1], piece.of_candidates[:, -1:]
    in_tail = (log_probs - piece.tail).scatter_(1, piece.ids, -torch.inf).exp_()
    # An empty tail has the log-prob -inf, and no loss depends on it.
    gradient += torch.where(of_tail == 0, 0.0, of_tail * in_tail)
    gradient -= probs * piece.of_candidates.sum(1, keepdim=True)
    gradient.scatter_add_(1, piece.ids, of_ids)


class Asked(NamedTuple):
    """What is asked about M tokens: which they are, what a reader needs, where they may end."""

    tokens: Tensor
    given: Tensor | None
    may_end: Tensor | None

    def of(self, rows: slice) -> Asked:
        """Return some of the tokens."""
        return Asked(*(None if each is None else each[rows] for each in self))  # type: ignore[arg-type]


class HeadReader(ABC):
    """Reads something of each completion token from the head's output."""

    def given(self, packed: Packed) -> Tensor | None:
        """Return what the reader needs of each token, ``[M, ...]``."""
        return None

    @abstractmethod
    def read(self, raw: Tensor, asked: Asked, rule: HeadRule) -> tuple[Tensor, ...]:
        """Return per-token tensors of raw logits ``[M, V]``."""

    @abstractmethod
    def result(self, *found: Tensor) -> Any:
        """Return the tensors of :meth:`read` by name, ``[b, T, ...]`` each."""


@dataclass(frozen=True)
class StatsReader(HeadReader):
    """Reads ``TokenStats``."""

    def read(self, raw: Tensor, asked: Asked, rule: HeadRule) -> tuple[Tensor, ...]:
        return tuple(vars(head_stats(raw, asked.tokens, asked.may_end, rule)).values())

    def result(self, *found: Tensor) -> TokenStats:
        return TokenStats(*found)


@dataclass(frozen=True)
class CandidateReader(HeadReader):
    """Reads ``TokenStats`` and the log-probs of given tokens, from the same pass.

    Args:
        ids: ``[B, T, K]`` int64 of the update that the packed completions are of.
    """

    ids: Tensor

    def given(self, packed: Packed) -> Tensor:
        return packed.pick(self.ids)

    def read(self, raw: Tensor, asked: Asked, rule: HeadRule) -> tuple[Tensor, ...]:
        assert asked.given is not None
        stats, candidates = head_stats_at(raw, asked.tokens, asked.given, asked.may_end, rule)
        return (*vars(stats).values(), candidates)

    def result(self, *found: Tensor) -> tuple[TokenStats, Tensor]:
        """Return the statistics, and ``[b, T, K + 1]`` log-probs, the last one of the rest."""
        *stats, candidates = found
        return TokenStats(*stats), candidates


@dataclass(frozen=True)
class TopReader(HeadReader):
    """Reads the likeliest tokens, without a graph.

    Args:
        count: K; all tokens where there are fewer.
        rule: of the policy that is taught, for a teacher with other end tokens or ids.
    """

    count: int
    rule: HeadRule

    def read(self, raw: Tensor, asked: Asked, rule: HeadRule) -> tuple[Tensor, ...]:
        width = min(raw.shape[1], self.rule.num_tokens or raw.shape[1])
        return head_top(raw, min(self.count, width), asked.may_end, self.rule)

    def result(self, *found: Tensor) -> TeacherLogprobs:
        ids, logprobs = found
        return TeacherLogprobs(ids, logprobs[..., :-1], logprobs[..., -1])
