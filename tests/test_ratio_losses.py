"""Surrogates with other bounds of the ratio: by hand, by restatement, and GRPO at rho = 1."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rlif_lightning.learning.loss_inputs import LossInputs
from rlif_lightning.learning.losses import (
    aggregation_weights,
    clipped_surrogate,
    plain_surrogate,
)
from rlif_lightning.learning.ratio_losses import (
    cispo_surrogate,
    divergence_marks,
    divergence_surrogate,
    geometric_mean_surrogate,
    mean_log_ratio,
    sequence_log_ratio,
    soft_gate_surrogate,
)
from rlif_lightning.learning.ratio_objectives import GMPO, GSPO, SAPO

LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "sequence": lambda lp, old, a, mask: clipped_surrogate(
        sequence_log_ratio(lp, old, mask), torch.zeros_like(lp), a, 0.2, 0.3
    ),
    "cispo": lambda lp, old, a, mask: cispo_surrogate(lp, old, a, 0.4, 1.5),
    "soft_gate": lambda lp, old, a, mask: soft_gate_surrogate(lp, old, a, 1.0, 1.05),
    "geometric_mean": lambda lp, old, a, mask: geometric_mean_surrogate(
        lp, old, a, mask, (0.4, 0.3)
    ),
    "tv": lambda lp, old, a, mask: divergence_surrogate(
        lp, old, a, divergence_marks(lp, old, a, "tv", (0.1, 0.15)), 2.0
    ),
    "kl": lambda lp, old, a, mask: divergence_surrogate(
        lp, old, a, divergence_marks(lp, old, a, "kl", (0.05, 0.02)), 2.0
    ),
}


def tokens(seed: int = 0, rows: int = 5, columns: int = 7) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-probs, old log-probs, one advantage a completion, and a ragged mask, in float64."""
    generator = torch.Generator().manual_seed(seed)
    old = -0.1 - 2 * torch.rand(rows, columns, generator=generator, dtype=torch.float64)
    change = 0.4 * torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    advantages = torch.randn(rows, 1, generator=generator, dtype=torch.float64).expand_as(old)
    lengths = torch.randint(1, columns + 1, (rows, 1), generator=generator)
    return (old + change).clamp(max=-1e-3), old, advantages, torch.arange(columns) < lengths


def slopes(loss: Callable[[Tensor], Tensor], logprobs: Tensor, weights: Tensor) -> Tensor:
    """Derivative of the weighted sum of a loss by each log-prob."""
    leaf = logprobs.clone().requires_grad_()
    return torch.autograd.grad((loss(leaf) * weights).sum(), leaf)[0]


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("seed", [0, 1])
def test_at_ratio_one_the_gradient_is_that_of_grpo(name, seed):
    _, old, advantages, mask = tokens(seed)
    weights = mask.double() / mask.sum(1, keepdim=True)
    found = slopes(lambda lp: LOSSES[name](lp, old, advantages, mask), old, weights)
    expected = slopes(lambda lp: plain_surrogate(lp, old, advantages), old, weights)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def held(log_ratio: float, advantage: float, low: float, high: float) -> float:
    """A log-ratio clipped where that lowers sign(A) times it."""
    clipped = max(-low, min(high, log_ratio))
    return min(log_ratio, clipped) if advantage >= 0 else max(log_ratio, clipped)


def is_outside(p: float, old: float, advantage: float, kind: str, low: float, high: float) -> bool:
    """Whether a token has left its trust region in the direction of its advantage."""
    if not (p > old if advantage > 0 else p < old):
        return False
    kl = old * math.log(old / p) + (1 - old) * math.log((1 - old) / (1 - p))
    return (abs(p - old) if kind == "tv" else kl) > (high if advantage > 0 else low)


def restated(name: str, lps: list[float], olds: list[float], a: float) -> tuple[list[float], ...]:
    """Losses and slopes of one completion's tokens, number by number; its mean loss's slopes."""
    n, ratios = len(lps), [math.exp(x - y) for x, y in zip(lps, olds, strict=True)]
    if name == "sequence":
        s = math.exp(sum(x - y for x, y in zip(lps, olds, strict=True)) / n)
        clipped = max(0.8, min(1.3, s))
        free = s * a <= clipped * a
        return [-min(s * a, clipped * a)] * n, [-s * a if free else 0.0] * n
    if name == "geometric_mean":
        parts = [held(math.log(r), a, 0.4, 0.3) for r in ratios]
        g = math.exp(sum(parts) / n)
        free = [part == math.log(r) for part, r in zip(parts, ratios, strict=True)]
        return [-g * a] * n, [-g * a if each else 0.0 for each in free]
    if name == "soft_gate":
        tau = 1.0 if a > 0 else 1.05
        gates = [1 / (1 + math.exp(-tau * (r - 1))) for r in ratios]
        losses = [-4 / tau * gate * a for gate in gates]
        return losses, [-4 * g * (1 - g) * r * a for g, r in zip(gates, ratios, strict=True)]
    if name == "cispo":
        weights = [max(0.4, min(1.5, r)) for r in ratios]
    else:
        bounds = (0.1, 0.15) if name == "tv" else (0.05, 0.02)
        pairs = zip(lps, olds, ratios, strict=True)
        weights = [
            0.0 if is_outside(math.exp(x), math.exp(y), a, name, *bounds) else min(r, 2.0)
            for x, y, r in pairs
        ]
    losses = [-w * a * x for w, x in zip(weights, lps, strict=True)]
    return losses, [-w * a for w in weights]


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("seed", range(6))
def test_losses_and_slopes_are_those_of_the_restatement(name, seed):
    logprobs, old, advantages, mask = tokens(seed)
    loss = LOSSES[name](logprobs, old, advantages, mask)
    slope = slopes(lambda lp: LOSSES[name](lp, old, advantages, mask), logprobs, mask.double())
    for row, keep in enumerate(mask):
        given = logprobs[row][keep].tolist(), old[row][keep].tolist(), float(advantages[row, 0])
        losses, expected = restated(name, *given)
        torch.testing.assert_close(loss[row][keep].tolist(), losses, atol=1e-7, rtol=1e-7)
        torch.testing.assert_close(slope[row][keep].tolist(), expected, atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize("name", LOSSES)
def test_the_samples_reach_every_bound(name):
    """Hard bounds leave some tokens without a slope; the others change some slopes' size."""
    gone = other = 0
    for seed in range(6):
        logprobs, old, advantages, mask = tokens(seed)

        def loss(lp: Tensor, old: Tensor = old, a: Tensor = advantages, mask: Tensor = mask):
            return LOSSES[name](lp, old, a, mask)

        slope, plain = slopes(loss, logprobs, mask.double()), -(logprobs - old).exp() * advantages
        gone += int((slope[mask] == 0).sum())
        other += int(((slope != 0) & ((slope - plain).abs() > 1e-3))[mask].sum())
    assert (gone > 0) == (name not in ("cispo", "soft_gate"))
    assert other > 0 or name in ("tv", "kl")


def test_sequence_ratio_by_hand():
    """Ratios 2 and 1/2 cancel; 4 and 1 have the geometric mean 2; the padding does not count."""
    log_ratio = torch.tensor([[2.0, 0.5, 9.0], [4.0, 1.0, 9.0]]).log()
    old, mask = torch.zeros(2, 3), torch.tensor([[True, True, False]] * 2)
    torch.testing.assert_close(mean_log_ratio(log_ratio, mask).exp(), torch.tensor([[1.0], [2.0]]))
    found = sequence_log_ratio(log_ratio, old, mask).exp()
    torch.testing.assert_close(found[:, :2], torch.tensor([[1.0, 1.0], [2.0, 2.0]]))


def test_sequence_gradient_is_that_of_the_ratio_itself():
    """d(-s A) for one completion: -s A / n on each token, by finite differences of s."""
    logprobs, old, advantages, mask = tokens(3)
    weights = mask.double() / mask.sum(1, keepdim=True)
    found = slopes(
        lambda lp: plain_surrogate(
            sequence_log_ratio(lp, old, mask), torch.zeros_like(lp), advantages
        ),
        logprobs,
        weights,
    )

    def direct(lp: Tensor) -> Tensor:
        return -(mean_log_ratio(lp - old, mask).exp() * advantages[:, :1]).sum()

    step = 1e-6 * torch.eye(logprobs.numel(), dtype=torch.float64).view(-1, *logprobs.shape)
    numeric = torch.stack([direct(logprobs + e) - direct(logprobs - e) for e in step]) / 2e-6
    torch.testing.assert_close(found, numeric.view_as(found), atol=1e-8, rtol=0)


def test_weights_by_hand():
    """Ratios 1/4, 1 and 4 with the bounds 0.5 and 2, A = 3: the slopes are -w A."""
    log_ratio = torch.tensor([[0.25, 1.0, 4.0]]).log()
    old, a = torch.full((1, 3), -2.0), torch.full((1, 3), 3.0)
    found = slopes(
        lambda lp: cispo_surrogate(lp, old, a, 0.5, 2.0), old + log_ratio, torch.ones(1, 3)
    )
    torch.testing.assert_close(found, torch.tensor([[-1.5, -3.0, -6.0]]))
    loss = cispo_surrogate(old + log_ratio, old, a, 0.5, 2.0)
    torch.testing.assert_close(loss[0, 1], torch.tensor(6.0))  # -1 * 3 * -2


def test_soft_gate_by_hand():
    """At rho = 1 the gate is 2 / tau; at rho = 1 + ln 3 with tau = 1 it is 4 * 3/4 = 3."""
    old = torch.zeros(1, 2)
    logprobs = torch.tensor([[1.0, 1 + math.log(3)]]).log()
    up = soft_gate_surrogate(logprobs, old, torch.ones(1, 2), 1.0, 2.0)
    torch.testing.assert_close(up, torch.tensor([[-2.0, -3.0]]))
    down = soft_gate_surrogate(logprobs, old, -torch.ones(1, 2), 1.0, 2.0)
    torch.testing.assert_close(down, torch.tensor([[1.0, 2 * 9 / 10]]))


def test_geometric_mean_by_hand():
    """Ratios 4 and 1/2, bounds [1/2, 2]: A > 0 takes 2 and 1/2, A < 0 takes 4 and 1/2."""
    log_ratio = torch.tensor([[4.0, 0.5]]).log()
    old, mask, bounds = torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool), (math.log(2),) * 2
    up = geometric_mean_surrogate(log_ratio, old, torch.ones(1, 2), mask, bounds)
    torch.testing.assert_close(up, torch.tensor([[-1.0, -1.0]]))
    down = geometric_mean_surrogate(log_ratio, old, -torch.ones(1, 2), mask, bounds)
    torch.testing.assert_close(down, torch.full((1, 2), math.sqrt(2)))


def test_divergence_by_hand():
    """From 0.5 to 0.75: TV 0.25, KL 0.5 ln(2/3) + 0.5 ln 2 = 0.1438; only A > 0 carries it on."""
    old, logprobs = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.75, 0.75]]).log()
    a = torch.tensor([[1.0, -1.0]])
    for kind, size in (("tv", 0.25), ("kl", 0.143841)):
        below, above = (size - 1e-4,) * 2, (size + 1e-4,) * 2
        assert divergence_marks(logprobs, old, a, kind, below).tolist() == [[True, False]]
        assert divergence_marks(logprobs, old, a, kind, above).tolist() == [[False, False]]


def test_nothing_overflows():
    """Log-ratios of 60 nats up and down give finite losses and slopes."""
    old = torch.tensor([[-70.0, -1.0]])
    logprobs, mask = torch.tensor([[-1.0, -70.0]]), torch.ones(1, 2, dtype=torch.bool)
    for a in (torch.ones(1, 2), -torch.ones(1, 2)):
        for loss in LOSSES.values():
            found = slopes(lambda lp, f=loss, a=a: f(lp, old, a, mask), logprobs, torch.ones(1, 2))
            assert found.isfinite().all()
            assert loss(logprobs, old, a, mask).isfinite().all()


def test_geometric_mean_under_an_engine_s_weights():
    """Far bounds, weights pi_old / pi_engine: the gradient is that of the geometric mean of
    pi / pi_engine itself.
    """
    logprobs, old, advantages, mask = tokens(3)
    engine = old + 0.3 * torch.randn(
        old.shape, generator=torch.Generator().manual_seed(4), dtype=old.dtype
    )
    weights = mask.double() / mask.sum(1, keepdim=True)
    batch = LossInputs(logprobs, old, advantages, mask, torch.arange(len(old)))
    batch = replace(batch, token_weights=(old - engine).exp())
    gmpo = GMPO(clip_low=50.0, clip_high=50.0)
    found = slopes(lambda lp: gmpo.token_loss(replace(batch, logprobs=lp), mask), logprobs, weights)

    def objective(lp: Tensor) -> Tensor:
        mean = ((lp - engine) * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True)
        return -mean.exp() * advantages

    expected = slopes(objective, logprobs, weights)
    torch.testing.assert_close(found * mask, expected, rtol=1e-9, atol=1e-12)


def test_geometric_mean_of_weights_by_hand():
    """Weights 4, 1 and 0: two for the first two, and the third keeps its 0; padding is not read."""
    ones = torch.ones(1, 4)
    mask = torch.tensor([[True, True, True, False]])
    weights = torch.tensor([[4.0, 1.0, 0.0, math.nan]])
    batch = LossInputs(-ones, -ones, ones, mask, torch.arange(1), token_weights=weights)
    found = GMPO().importance_weights(batch)
    assert found is not None
    torch.testing.assert_close(found[mask], torch.tensor([2.0, 2.0, 0.0]))
    assert GMPO().importance_weights(replace(batch, token_weights=None)) is None
    assert SAPO().importance_weights(batch) is weights


def test_gspo_by_a_constant_is_luspo():
    """LUSPO sums a completion's clipped loss over its tokens; the constant divides by the limit."""
    logprobs, old, advantages, mask = tokens(5)
    gspo = GSPO("constant", clip_low=0.1, clip_high=0.2)
    batch = LossInputs(logprobs, old, advantages, mask, torch.arange(len(old)))
    weights = aggregation_weights(mask, "constant", 20).double()
    found = slopes(lambda lp: gspo.token_loss(replace(batch, logprobs=lp), mask), logprobs, weights)

    def luspo(lp: Tensor) -> Tensor:
        lengths = mask.sum(1)
        ratio = (((lp - old) * mask).sum(1) / lengths).exp()
        clipped = torch.minimum(ratio * advantages[:, 0], ratio.clamp(0.9, 1.2) * advantages[:, 0])
        return -clipped * lengths / len(lp)

    expected = slopes(luspo, logprobs, torch.full((len(old),), 1 / 20, dtype=torch.float64))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    assert found[mask].any()
