"""Per-token losses, all ``[B, T] -> [B, T]``, and the weights that sum them to one number.

Signs: a loss is minimised, an advantage is good when positive.
``log_ratio = logprobs - old_logprobs`` in nats. Everything that must not depend on how an update is
cut into micro-batches or dealt out to data ranks (the covariance's means, the order of tokens, the
normalisers) is computed once per update by collectives; the rest is local.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlif_lightning.processes.collectives import all_rank_mean_std, all_rank_sum
from rlif_lightning.sampling import MAX_LOG_RATIO, importance_ratio

ROUNDING = 1e-12  # relative: a value this near to the mean of float64 sums is the mean
AGGREGATIONS = ("token_mean", "sequence_mean", "constant")
KL_KINDS = ("k1", "k2", "k3", "k3_ratio")


def plain_surrogate(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor) -> Tensor:
    """Return ``-rho A``: the importance-weighted policy gradient without clipping."""
    return -importance_ratio(logprobs, old_logprobs) * advantages


def clipped_surrogate(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
) -> Tensor:
    """Return ``-min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A)``.

    https://arxiv.org/abs/1707.06347

    Args:
        logprobs, old_logprobs, advantages: ``[B, T]``.
        clip_low, clip_high: how far the ratio may fall below / rise above 1 (asymmetric: arXiv
            2503.14476).
        dual_clip: where A < 0 the loss is at most ``-dual_clip * A`` (> 1; arXiv 1912.09729); None
            = off.
    """
    ratio = importance_ratio(logprobs, old_logprobs)
    objective = torch.minimum(
        ratio * advantages, ratio.clamp(1 - clip_low, 1 + clip_high) * advantages
    )
    if dual_clip is not None:
        objective = torch.where(
            advantages < 0, torch.maximum(objective, dual_clip * advantages), objective
        )
    return -objective


def clipped_marks(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
) -> Tensor:
    """Return ``[B, T]`` bool: where a clip is active, so that the surrogate has no gradient."""
    ratio = importance_ratio(logprobs, old_logprobs)
    above, below = ratio > 1 + clip_high, ratio < 1 - clip_low
    if dual_clip is not None:
        below = below | (ratio > dual_clip)
    return ((advantages > 0) & above) | ((advantages < 0) & below)


def token_covariance(logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """Compute what each token adds to the covariance of log-prob and advantage (a collective).

    ``cov_i = (logprob_i - mean logprob) (A_i - mean A)``, with means over the valid tokens of all
    data ranks. The update of a token with a large value lowers the entropy most.
    https://arxiv.org/abs/2505.22617

    Args:
        logprobs, advantages: ``[B, T]``.
        mask: ``[B, T]`` bool.

    Returns:
        ``[B, T]`` float64, 0 outside the mask, and exactly 0 where either value is the mean.
    """
    covariance = _deviation(logprobs.detach(), mask) * _deviation(advantages, mask)
    return torch.where(mask, covariance, 0.0)


def _deviation(values: Tensor, mask: Tensor) -> Tensor:
    """Return values minus their mean over all data ranks, exactly 0 where all values are equal."""
    mean, _ = all_rank_mean_std(values, mask)
    deviation = values.double() - mean
    return torch.where(deviation.abs() > ROUNDING * mean.abs(), deviation, 0.0)


def kl_cov_penalty(
    logprobs: Tensor, old_logprobs: Tensor, weight: float, noise_floor: Tensor | float = 0.0
) -> Tensor:
    """Compute KL-Cov's term on picked tokens: ``weight * |d|``, flat where d is only rounding.

    With ``d = logprobs - old_logprobs``, ``f`` the noise floor and ``e = |d| - f`` it is ``weight``
    times

        0                for |d| <= f
        e² / (2 f)       for f < |d| <= 2 f
        e - f / 2        above, with slope ±weight as |d| has it

    which is Huber's loss (https://doi.org/10.1214/aoms/1177703732) of the excess over the floor:
    value and slope are continuous. A floor of 0 gives ``weight * |d|``, whose slope at d = 0 is 0.

    Args:
        logprobs, old_logprobs: ``[B, T]``.
        weight: per nat.
        noise_floor: nats, a scalar.
    """
    size = (logprobs - old_logprobs).abs()
    # A plain number stays on the CPU: kernels take scalars from there without a copy.
    floor = torch.as_tensor(noise_floor, dtype=size.dtype)
    excess = (size - floor).clamp(min=0)
    rounded = excess.square() / (2 * floor).clamp(min=torch.finfo(size.dtype).tiny)
    return weight * torch.where(excess < floor, rounded, excess - floor / 2)


def reference_kl(
    logprobs: Tensor, ref_logprobs: Tensor, kind: str = "k3", old_logprobs: Tensor | None = None
) -> Tensor:
    """Estimate KL(policy || reference) per token from a token that the policy sampled.

    With ``d = ref_logprobs - logprobs`` (http://joschu.net/blog/kl-approx.html). The last column is
    the estimate's *gradient*, in expectation over tokens that the policy itself sampled
    (https://arxiv.org/abs/2512.21852):

    ========  ======================  =====================================================
    k1        ``-d``                  0
    k2        ``d² / 2``              that of KL(policy || reference)
    k3        ``exp(d) - d - 1``      that of KL(reference || policy)
    k3_ratio  ``rho`` times k3        that of KL(policy || reference), off-policy as well
    ========  ======================  =====================================================

    The gradient of k3_ratio goes through both factors (TRL: use_bias_correction_kl).

    Args:
        logprobs, ref_logprobs: ``[B, T]``.
        kind: one of the above.
        old_logprobs: ``[B, T]``, the denominator of k3_ratio's ratio; None = the policy sampled.

    Raises:
        ValueError: unknown kind.
    """
    delta = ref_logprobs - logprobs
    if kind == "k1":
        return -delta
    if kind == "k2":
        return 0.5 * delta.square()
    if kind not in KL_KINDS:
        raise ValueError(f"kind={kind!r} is unknown; use one of {', '.join(KL_KINDS)}")
    # With the clamp in exp alone, the gradient would change its sign beyond the bound.
    delta = delta.clamp(max=MAX_LOG_RATIO)
    k3 = delta.exp() - delta - 1
    if kind == "k3":
        return k3
    return k3 * importance_ratio(
        logprobs, logprobs.detach() if old_logprobs is None else old_logprobs
    )


def aggregation_weights(mask: Tensor, aggregation: str, max_length: int) -> Tensor:
    """Compute the weights with which an update's token losses sum to its loss (a collective).

    Args:
        mask: ``[B, T]`` bool, all completions of this data rank's part of the update.
        aggregation: ``token_mean``: 1 / number of tokens (arXiv 2503.14476); ``sequence_mean``:
            each completion's mean, averaged over completions that have tokens (GRPO, arXiv
            2402.03300); ``constant``: 1 / (completions * max_length), completions without any
            token included (Dr. GRPO, arXiv 2503.20783).
        max_length: the generation limit in tokens, for ``constant``.

    Returns:
        ``[B, T]`` float32, 0 outside the mask. The first two sum to 1 over all data ranks.
    """
    if aggregation not in AGGREGATIONS:
        raise ValueError(
            f"aggregation={aggregation!r} is unknown; use one of {', '.join(AGGREGATIONS)}"
        )
    valid = mask.double()
    counts = torch.stack([valid.sum(), mask.any(-1).double().sum(), valid.new_full((), len(mask))])
    num_tokens, num_with_tokens, num_completions = all_rank_sum(counts).clamp(min=1)
    if aggregation == "token_mean":
        weights = valid / num_tokens
    elif aggregation == "sequence_mean":
        weights = valid / valid.sum(-1, keepdim=True).clamp(min=1) / num_with_tokens
    else:
        weights = valid / (num_completions * max_length)
    return weights.float()
