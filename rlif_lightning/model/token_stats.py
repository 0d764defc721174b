"""Token statistics of next-token logits. Pure functions.

The logits are those of the position that *produced* the token, already divided by the sampling
temperature. Everything is computed in float32, or in float64 for a float64 model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rlif_lightning.records import TokenStats


def at_least_float32(values: Tensor) -> Tensor:
    """Cast half precisions to float32; float32 and float64 stay."""
    return values.float() if values.dtype.itemsize < 4 else values


class SoftmaxParts(NamedTuple):
    """The softmax of logits z ``[N, V]`` in parts.

    Attributes:
        weights: ``[N, V]``, ``exp(z - max z)``: the softmax weights before normalisation.
        log_normalizer: ``[N]``, ``logsumexp(z)``.
        entropy: ``[N]``, nats.
    """

    weights: Tensor
    log_normalizer: Tensor
    entropy: Tensor


def softmax_parts(logits: Tensor) -> SoftmaxParts:
    """Compute what drawing and measuring a token both need, in the fewest passes over logits."""
    highest = logits.amax(-1, keepdim=True)  # [N, 1]
    shifted = logits - highest
    weights = shifted.exp()
    total = weights.sum(-1)
    log_total = total.log()
    entropy = log_total - (weights * shifted).sum(-1) / total
    return SoftmaxParts(weights, highest.squeeze(-1) + log_total, entropy)


def forbid(logits: Tensor, ids: Tensor, rows: Tensor) -> Tensor:
    """Return a copy of logits ``[N, V]`` in which tokens ``ids`` have probability 0 in some rows.

    ``rows`` is ``[N]`` bool: those rows.
    """
    floor = torch.finfo(logits.dtype).min
    return logits.index_copy(-1, ids, logits[:, ids].masked_fill(rows.unsqueeze(-1), floor))


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

    def allowed(self, logits: Tensor, may_end: Tensor | None) -> Tensor:
        """Return logits from :meth:`apply` in which forbidden tokens have probability 0."""
        forbidden = self.forbidden(may_end)
        return logits if forbidden is None else forbid(logits, *forbidden)

    def parts(self, logits: Tensor, may_end: Tensor | None) -> SoftmaxParts:
        """Compute the softmax of logits from :meth:`apply`, without forbidden tokens."""
        return softmax_parts(self.allowed(logits, may_end))


def token_stats(
    logits: Tensor,
    tokens: Tensor,
    forbidden: tuple[Tensor, Tensor] | None = None,
    parts: SoftmaxParts | None = None,
) -> TokenStats:
    """Compute the three statistics of each token in one pass over its logits ``z``, in nats.

    The log-probability is ``z[token] - logsumexp(z)``. The entropy is
    ``logsumexp(z) - Σ softmax(z) z``, in [0, log V]. Self-certainty is
    ``KL(uniform || p) = logsumexp(z) - mean(z) - log V``, >= 0 (https://arxiv.org/abs/2505.19590).

    Args:
        logits: ``[N, V]``, divided by the temperature.
        tokens: ``[N]`` int64.
        forbidden: optional (ids ``[E]``, rows ``[N]`` bool): tokens that could not be sampled in
            those rows (end-of-sequence before the minimum length). They have probability 0 and V
            counts the others only.
        parts: of the logits after :func:`forbid`, where the caller has computed them.

    Returns:
        ``TokenStats`` of ``[N]`` tensors, float32 (float64 for float64 logits).
    """
    logits = at_least_float32(logits)
    total, allowed = logits.sum(-1), torch.full_like(logits[..., 0], logits.shape[-1])
    if forbidden is not None:
        ids, rows = forbidden
        total = torch.where(rows, logits.index_fill(-1, ids, 0.0).sum(-1), total)
        allowed = allowed - len(ids) * rows
        logits = forbid(logits, ids, rows)
    parts = parts or softmax_parts(logits)
    return TokenStats(
        logprobs=logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) - parts.log_normalizer,
        entropy=parts.entropy,
        self_certainty=parts.log_normalizer - total / allowed - allowed.log(),
    )


def candidate_logprobs(logits: Tensor, ids: Tensor, log_normalizer: Tensor) -> Tensor:
    """Compute the log-probs of some tokens, and of all others together, in nats.

    The last column is the tail, ``logsumexp(z of the other tokens) - logsumexp(z)``: exact where
    the ids have almost all of the probability, and -inf where there is no other token.

    Args:
        logits: ``[N, V]`` z, divided by the temperature, forbidden tokens at their floor.
        ids: ``[N, K]`` int64, different ones in each row.
        log_normalizer: ``[N]``, ``logsumexp(z)``.

    Returns:
        ``[N, K + 1]``.
    """
    tail = logits.scatter(1, ids, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([logits.gather(1, ids), tail], 1) - log_normalizer.unsqueeze(1)


@dataclass(frozen=True)
class TeacherLogprobs:
    """A teacher's distribution at each completion token: its likeliest tokens, and all others.

    Attributes:
        ids: ``[B, T, K]`` int64, the K likeliest tokens; 0 outside the mask.
        logprobs: ``[B, T, K]`` their log-probs, nats.
        tail: ``[B, T]`` log-prob of all other tokens together; -inf where there are none.
    """

    ids: Tensor
    logprobs: Tensor
    tail: Tensor

    @property
    def ndim(self) -> int:
        """Return the number of axes."""
        return self.ids.ndim

    def __getitem__(self, rows: Tensor) -> TeacherLogprobs:
        """Return some completions; ``rows`` is ``[b]`` int64."""
        return TeacherLogprobs(self.ids[rows], self.logprobs[rows], self.tail[rows])
