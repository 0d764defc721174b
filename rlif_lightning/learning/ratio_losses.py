"""Surrogates that bound the importance ratio in other ways than PPO's clip, ``[B, T]``.

Signs and units are those of ``losses.py``: a loss is minimised, ``log_ratio = logprobs -
old_logprobs`` is in nats, and ``rho = exp(log_ratio)``. Where rho is 1 on every token, each of
them has the gradient of ``-rho A``.

What becomes of a completion of three tokens with A = 1, by its ratios (bounds as in the tests):

    rho                             0.5    1.0    2.0
    clip to [0.8, 1.2]              0.5    1.0    1.2    the third token has no gradient
    sequence, s = 1                 1.0    1.0    1.0    the geometric mean stands for all three
    CISPO, cap 1.5                  0.5    1.0    1.5    weights of the log-probs' gradient
    soft gate, temperature 1        1.51   2.0    2.92   the slope falls from 1 on both sides
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlif_lightning.masked import masked_mean
from rlif_lightning.sampling import MAX_LOG_RATIO, importance_ratio

DIVERGENCES = ("tv", "kl")
SMALLEST = 1e-8  # probability of all other tokens below which its logarithm is not taken


def mean_log_ratio(log_ratio: Tensor, mask: Tensor) -> Tensor:
    """Return each completion's mean log-ratio, ``[B, 1]``; its exponential is the geometric mean.

    Args:
        log_ratio: ``[B, T]`` nats.
        mask: ``[B, T]`` bool; a completion without tokens has 0.
    """
    return masked_mean(log_ratio, mask, -1).unsqueeze(-1).to(log_ratio.dtype)


def sequence_log_ratio(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tensor:
    """Return the completion's mean log-ratio on each of its tokens, ``[B, T]``.

    The gradient of each entry is that of the token's own log-prob (GSPO-token in
    https://arxiv.org/abs/2507.18071, equation 13). A surrogate of these log-ratios is then its
    sequence-level form, whatever sums the token losses up: with one advantage per completion the
    gradient is that of the ratio ``s = exp(mean log-ratio)`` itself.

    Args:
        logprobs, old_logprobs: ``[B, T]``.
        mask: ``[B, T]`` bool.
    """
    mean = mean_log_ratio((logprobs - old_logprobs).detach(), mask)
    return mean + (logprobs - logprobs.detach())


def cispo_surrogate(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, lowest: float, highest: float
) -> Tensor:
    """Return ``-w A logprob`` with the constant weight ``w = clip(rho, lowest, highest)``.

    No token loses its gradient, however far its ratio is; a bound only limits its weight (CISPO,
    https://arxiv.org/abs/2506.13585).

    Args:
        logprobs, old_logprobs, advantages: ``[B, T]``.
        lowest, highest: bounds of the ratio.
    """
    ratio = importance_ratio(logprobs, old_logprobs).detach()
    return -ratio.clamp(lowest, highest) * advantages * logprobs


def soft_gate_surrogate(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    positive_temperature: float,
    negative_temperature: float,
) -> Tensor:
    """Return ``-f(rho) A`` with ``f(rho) = 4 / tau * sigmoid(tau (rho - 1))``, ``[B, T]``.

    The slope of f is 1 at rho = 1 and falls smoothly to 0 on both sides (SAPO,
    https://arxiv.org/abs/2511.20347).

    Args:
        logprobs, old_logprobs, advantages: ``[B, T]``.
        positive_temperature: tau of tokens with A > 0.
        negative_temperature: tau of all others.
    """
    ratio = importance_ratio(logprobs, old_logprobs)
    tau = torch.where(advantages > 0, positive_temperature, negative_temperature).to(ratio)
    return -torch.sigmoid(tau * (ratio - 1)) * (4 / tau) * advantages


def one_sided_marks(log_ratio: Tensor, advantages: Tensor, bounds: tuple[float, float]) -> Tensor:
    """Return ``[B, T]`` bool: where a bound of the log-ratio lowers ``sign(A) log-ratio``.

    Args:
        log_ratio, advantages: ``[B, T]``.
        bounds: how far a token's log-ratio may fall below and rise above 0, nats, both positive.
    """
    low, high = bounds
    return torch.where(advantages >= 0, log_ratio > high, log_ratio < -low)


def geometric_mean_surrogate(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    bounds: tuple[float, float],
) -> Tensor:
    """Return ``-g A`` with g the geometric mean of the completion's clipped ratios, ``[B, T]``.

    ``g = exp(mean_t of the log-ratio, clipped where that lowers sign(A) log-ratio)`` (GMPO,
    https://arxiv.org/abs/2507.20673). A clipped token (:func:`one_sided_marks`) adds its bound to
    the mean and has no gradient. As in :func:`sequence_log_ratio`, the value stands on each token
    and each token's gradient is its own, so that the gradient is that of g under any aggregation.

    Args:
        logprobs, old_logprobs, advantages: ``[B, T]``.
        mask: ``[B, T]`` bool.
        bounds: as there.
    """
    low, high = bounds
    log_ratio = logprobs - old_logprobs
    marks = one_sided_marks(log_ratio, advantages, bounds)
    held = torch.where(marks, log_ratio.detach().clamp(-low, high), log_ratio)
    mean = mean_log_ratio(held.detach(), mask)
    return -(mean + held - held.detach()).clamp(max=MAX_LOG_RATIO).exp() * advantages


def divergence_marks(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    divergence: str,
    bounds: tuple[float, float],
) -> Tensor:
    """Return where an update would carry a token further out of its trust region, ``[B, T]`` bool.

    The region is a bound on the divergence between the old and the present policy over two events,
    this token and any other (DPPO with binary divergences, https://arxiv.org/abs/2602.04879). A
    token is outside where the divergence is above its bound *and* the advantage drives the
    probability further: A > 0 and p > p_old, or A <= 0 and p < p_old.

    Args:
        logprobs, old_logprobs, advantages: ``[B, T]``.
        divergence: ``tv``: ``|p - p_old|``; ``kl``: ``KL(old || present)`` in nats.
        bounds: the divergence's for tokens with A <= 0, and with A > 0.
    """
    log_ratio = (logprobs - old_logprobs).detach()
    present, old = logprobs.detach().exp(), old_logprobs.exp()
    if divergence == "tv":
        size = (present - old).abs()
    else:
        others = (1 - old + SMALLEST).log() - (1 - present + SMALLEST).log()
        size = -old * log_ratio + (1 - old) * others
    low, high = bounds
    further = torch.where(advantages > 0, log_ratio > 0, log_ratio < 0)
    return further & (size > torch.where(advantages > 0, high, low).to(size))


def divergence_surrogate(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, outside: Tensor, highest: float
) -> Tensor:
    """Return ``-w A logprob`` with ``w = min(rho, highest)`` constant, and 0 where ``outside``.

    Args:
        logprobs, old_logprobs, advantages: ``[B, T]``.
        outside: ``[B, T]`` bool from :func:`divergence_marks`.
        highest: bound of the ratio as a weight.
    """
    weight = importance_ratio(logprobs, old_logprobs).detach().clamp(max=highest)
    return -weight.masked_fill(outside, 0.0) * advantages * logprobs
