"""Per-token losses, all ``[B, T] -> [B, T]``, and the weights that sum them to one number.

Signs: a loss is minimised, an advantage is good when positive. ``log_ratio = logprobs - old_logprobs`` in nats.
Everything that must not depend on how an update is cut into micro-batches or dealt out to ranks (the covariance's
means, the ranking, the normalisers) is computed once per update by collectives; the rest is local.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlif_lightning.processes.collectives import all_rank_mean_std, all_rank_sum

MAX_LOG_RATIO = 20.0  # exp(20) = 5e8: keeps a ratio finite in float32 with room to multiply
ROUNDING = 1e-12  # nats; between two float64 passes (those in float32 differ by up to 1e-5, which acts)
AGGREGATIONS = ("token_mean", "sequence_mean", "constant")
KL_KINDS = ("k1", "k2", "k3")


def importance_ratio(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """``rho = exp(clamp(logprobs - old_logprobs, -20, 20))``, elementwise."""
    return (logprobs - old_logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def plain_surrogate(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor) -> Tensor:
    """``-rho A``: importance-weighted policy gradient without clipping."""
    return -importance_ratio(logprobs, old_logprobs) * advantages


def clipped_surrogate(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
) -> Tensor:
    """``-min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A)``. https://arxiv.org/abs/1707.06347

    Args:
        logprobs, old_logprobs, advantages: ``[B, T]``.
        clip_low, clip_high: how far the ratio may fall below / rise above 1 (asymmetric: arXiv 2503.14476).
        dual_clip: where A < 0 the loss is at most ``-dual_clip * A`` (> 1; arXiv 1912.09729); None = off.
    """
    ratio = importance_ratio(logprobs, old_logprobs)
    objective = torch.minimum(ratio * advantages, ratio.clamp(1 - clip_low, 1 + clip_high) * advantages)
    if dual_clip is not None:
        objective = torch.where(advantages < 0, torch.maximum(objective, dual_clip * advantages), objective)
    return -objective


def clipped_marks(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip_low: float, clip_high: float
) -> Tensor:
    """``[B, T]`` bool: where the clip bound is active, so that the token gets no gradient from the surrogate."""
    ratio = importance_ratio(logprobs, old_logprobs)
    return ((advantages > 0) & (ratio > 1 + clip_high)) | ((advantages < 0) & (ratio < 1 - clip_low))


def token_covariance(logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """How much each token adds to the covariance of log-probability and advantage.

    ``cov_i = (logprob_i - mean logprob) (A_i - mean A)``, means over the valid tokens of all ranks (a collective).
    Tokens with a large value are those whose update lowers the entropy most. https://arxiv.org/abs/2505.22617

    Args:
        logprobs, advantages: ``[B, T]``.
        mask: ``[B, T]`` bool.

    Returns:
        ``[B, T]`` float64, 0 outside the mask.
    """
    logprob_mean, _ = all_rank_mean_std(logprobs.detach(), mask)
    advantage_mean, _ = all_rank_mean_std(advantages, mask)
    covariance = (logprobs.detach().double() - logprob_mean) * (advantages.double() - advantage_mean)
    return torch.where(mask, covariance, 0.0)


def kl_cov_penalty(logprobs: Tensor, old_logprobs: Tensor, weight: float) -> Tensor:
    """``weight * |logprobs - old_logprobs|``, KL-Cov's term on picked tokens; no gradient where the two are equal.

    Equal up to ``ROUNDING``: its slope is ``weight`` however small the difference, so that on the first update, where
    there is none, the order in which two float64 passes added up would otherwise decide the sign.
    """
    size = (logprobs - old_logprobs).abs()
    return weight * torch.where(size > ROUNDING, size, 0.0)


def reference_kl(logprobs: Tensor, ref_logprobs: Tensor, kind: str = "k3") -> Tensor:
    """Per-token estimate of KL(policy || reference) from a token sampled by the policy.

    With ``d = ref_logprobs - logprobs``: k1 = -d, k2 = d²/2, k3 = exp(d) - d - 1 (http://joschu.net/blog/kl-approx.html).
    As a *loss* on samples, k1 has a gradient whose expectation is 0 on-policy; k2's is the gradient of the true KL.

    Raises:
        ValueError: unknown kind.
    """
    delta = ref_logprobs - logprobs
    if kind == "k1":
        return -delta
    if kind == "k2":
        return 0.5 * delta.square()
    if kind == "k3":
        delta = delta.clamp(max=MAX_LOG_RATIO)  # not in exp alone: the gradient would change sign
        return delta.exp() - delta - 1
    raise ValueError(f"kind={kind!r} is unknown; use one of {', '.join(KL_KINDS)}")


def aggregation_weights(mask: Tensor, aggregation: str, max_length: int) -> Tensor:
    """Weights with which the token losses of one update, over all ranks, sum to its loss (a collective).

    Args:
        mask: ``[B, T]`` bool, all rows of this rank's part of the update.
        aggregation: ``token_mean``: 1 / number of tokens (arXiv 2503.14476); ``sequence_mean``: each completion's mean,
            averaged over completions (GRPO, arXiv 2402.03300); ``constant``: 1 / (completions * max_length)
            (Dr. GRPO, arXiv 2503.20783).
        max_length: the generation limit in tokens, for ``constant``.

    Returns:
        ``[B, T]`` float32, 0 outside the mask. Sums to 1 over all ranks for the first two.
    """
    if aggregation not in AGGREGATIONS:
        raise ValueError(f"aggregation={aggregation!r} is unknown; use one of {', '.join(AGGREGATIONS)}")
    valid = mask.double()
    counts = torch.stack([valid.sum(), mask.any(-1).double().sum()])
    num_tokens, num_rows = all_rank_sum(counts).clamp(min=1)
    if aggregation == "token_mean":
        weights = valid / num_tokens
    elif aggregation == "sequence_mean":
        weights = valid / valid.sum(-1, keepdim=True).clamp(min=1) / num_rows
    else:
        weights = valid / (num_rows * max_length)
    return weights.float()
