"""Token losses against hand-worked numbers and the scalar restatement; their gradients against hand
formulas.
"""

from __future__ import annotations

import math

import pytest
import restatement
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlif_lightning.learning.losses import (
    aggregation_weights,
    clipped_marks,
    clipped_surrogate,
    kl_cov_penalty,
    plain_surrogate,
    reference_kl,
    token_covariance,
)
from rlif_lightning.sampling import importance_ratio

GOLDEN_LOGPROBS = torch.tensor([[-1.0, -3.0, -0.5, -2.0]])
GOLDEN_ADVANTAGES = torch.tensor([[1.0, -1.0, 1.0, -1.0]])


def tokens(rows: int = 4, columns: int = 6, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Log-probs, old log-probs (far enough apart for both clips), advantages ``[B, T]`` and a
    ragged mask.
    """
    generator = torch.Generator().manual_seed(seed)
    old = -3 * torch.rand(rows, columns, generator=generator)
    logprobs = old + 0.5 * torch.randn(rows, columns, generator=generator)
    advantages = torch.randn(rows, 1, generator=generator).expand(rows, columns)
    lengths = torch.randint(1, columns + 1, (rows, 1), generator=generator)
    return logprobs, old, advantages, torch.arange(columns) < lengths


def slope(function, logprobs: torch.Tensor) -> torch.Tensor:
    """Derivative of each token's loss by its own log-prob."""
    leaf = logprobs.clone().requires_grad_()
    return torch.autograd.grad(function(leaf).sum(), leaf)[0]


def test_importance_ratio_is_clamped_both_ways():
    log_ratio = torch.tensor([-100.0, -20.0, 0.0, 1.0, 20.0, 100.0], dtype=torch.float64)
    expected = [math.exp(d) for d in (-20, -20, 0, 1, 20, 20)]
    torch.testing.assert_close(
        importance_ratio(log_ratio - 3, torch.full_like(log_ratio, -3.0)).tolist(), expected
    )
    assert importance_ratio(torch.tensor([0.0]), torch.tensor([-1e4])).isfinite().all()


def test_clipped_surrogate_by_hand():
    """Ratios 1.5 and 0.5, bounds 0.8 and 1.3: the clip holds only where it makes the objective
    smaller.
    """
    log_ratio = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.0]).log()
    advantages = torch.tensor([2.0, -2.0, 2.0, -2.0, 2.0])
    old = torch.full_like(log_ratio, -1.0)
    loss = clipped_surrogate(old + log_ratio, old, advantages, clip_low=0.2, clip_high=0.3)
    torch.testing.assert_close(loss, torch.tensor([-2.6, 3.0, -1.0, 1.6, -2.0]))
    marks = clipped_marks(old + log_ratio, old, advantages, 0.2, 0.3)
    assert marks.tolist() == [True, False, False, True, False]


def test_dual_clip_by_hand():
    """Ratios 5 and 2, bound 3: only the loss of a negative advantage is capped, at 3 |A|."""
    log_ratio = torch.tensor([5.0, 2.0, 5.0]).log()
    advantages = torch.tensor([-2.0, -2.0, 2.0])
    old = torch.zeros(3)
    torch.testing.assert_close(
        clipped_surrogate(log_ratio, old, advantages), torch.tensor([10.0, 4.0, -2.4])
    )
    dual = clipped_surrogate(log_ratio, old, advantages, dual_clip=3.0)
    torch.testing.assert_close(dual, torch.tensor([6.0, 4.0, -2.4]))
    gradient = slope(
        lambda logprobs: clipped_surrogate(logprobs, old, advantages, dual_clip=3.0), log_ratio
    )
    torch.testing.assert_close(gradient, torch.tensor([0.0, 4.0, 0.0]))


@settings(deadline=None)
@given(
    values=st.lists(
        st.tuples(st.floats(-30, 0), st.floats(-30, 0), st.floats(-3, 3)), min_size=1, max_size=8
    ),
    low=st.floats(0.05, 1.0),
    high=st.floats(0.05, 2.0),
    dual=st.one_of(st.none(), st.floats(1.5, 5.0)),
)
def test_clipped_surrogate_matches_restatement(values, low, high, dual):
    logprobs, old, advantages = torch.tensor(values, dtype=torch.float64).T
    loss = clipped_surrogate(logprobs, old, advantages, low, high, dual)
    expected = [restatement.surrogate(*value, low, high, dual) for value in values]
    torch.testing.assert_close(loss.tolist(), expected, atol=1e-9, rtol=1e-9)


def test_surrogate_gradients_match_hand_formula():
    logprobs, old, advantages, _ = tokens(20, 6)
    expected = torch.tensor(
        [
            [restatement.surrogate_slope(*map(float, token)) for token in zip(*row, strict=True)]
            for row in zip(logprobs, old, advantages, strict=True)
        ]
    )
    gradient = slope(lambda leaf: clipped_surrogate(leaf, old, advantages), logprobs)
    torch.testing.assert_close(gradient, expected)
    held = clipped_marks(logprobs, old, advantages, 0.2, 0.2)
    assert 0 < held.sum() < held.numel()
    assert torch.equal(gradient == 0, held)
    plain = slope(lambda leaf: plain_surrogate(leaf, old, advantages), logprobs)
    torch.testing.assert_close(plain, -(logprobs - old).exp() * advantages)


def test_token_covariance_golden():
    mask = torch.ones(1, 4, dtype=torch.bool)
    covariance = token_covariance(GOLDEN_LOGPROBS, GOLDEN_ADVANTAGES, mask)
    expected = torch.tensor([[0.625, 1.375, 1.125, 0.375]], dtype=torch.float64)
    torch.testing.assert_close(covariance, expected)


@settings(deadline=None)
@given(seed=st.integers(0, 10_000), rows=st.integers(1, 5), columns=st.integers(1, 7))
def test_token_covariance_matches_restatement(seed, rows, columns):
    logprobs, _, advantages, mask = tokens(rows, columns, seed)
    covariance = token_covariance(logprobs, advantages, mask)
    expected = torch.tensor(restatement.covariance(logprobs, advantages, mask), dtype=torch.float64)
    torch.testing.assert_close(covariance, expected)


@pytest.mark.parametrize("value", [0.1, -0.7, 1 / 3])
def test_equal_values_have_no_covariance(value):
    """The mean of equal numbers may round to a neighbour: that is no deviation. Either side may be
    the equal one.
    """
    logprobs, _, advantages, mask = tokens(7, 9)
    same = torch.full_like(logprobs, value)
    assert not token_covariance(logprobs, same, mask).any()
    assert not token_covariance(same, advantages, mask).any()
    assert token_covariance(logprobs, advantages, mask).any()


def test_token_covariance_ignores_padding_and_graph():
    logprobs, _, advantages, mask = tokens()
    poisoned = logprobs.masked_fill(~mask, torch.nan).requires_grad_()
    covariance = token_covariance(poisoned, advantages.masked_fill(~mask, torch.inf), mask)
    assert torch.equal(covariance, token_covariance(logprobs, advantages, mask))
    assert not covariance.requires_grad
    assert torch.count_nonzero(covariance[~mask]) == 0


def test_kl_cov_penalty_and_its_gradient():
    """``weight * |d|`` with gradient ``weight * sign(d)``, and none where d = 0."""
    log_ratio = torch.tensor([0.5, -0.25, 0.0])
    old = torch.tensor([-2.0, -1.0, -0.5])
    torch.testing.assert_close(
        kl_cov_penalty(old + log_ratio, old, 0.05), torch.tensor([0.025, 0.0125, 0.0])
    )
    gradient = slope(lambda logprobs: kl_cov_penalty(logprobs, old, 0.05), old + log_ratio)
    torch.testing.assert_close(gradient, torch.tensor([0.05, -0.05, 0.0]))


@pytest.mark.parametrize(
    ("kind", "value", "gradient"),
    [
        ("k1", lambda d: -d, lambda d: 1.0),
        ("k2", lambda d: d * d / 2, lambda d: -d),
        ("k3", lambda d: math.exp(d) - d - 1, lambda d: 1 - math.exp(d)),
    ],
)
def test_reference_kl(kind, value, gradient):
    """Values, and derivatives by the log-prob of the policy (d = ref - logprob)."""
    deltas = [-3.0, -0.5, 0.0, 0.25, 2.0]
    ref = torch.full((5,), -4.0, dtype=torch.float64)
    logprobs = ref - torch.tensor(deltas, dtype=torch.float64)
    torch.testing.assert_close(
        reference_kl(logprobs, ref, kind).tolist(), [float(value(d)) for d in deltas]
    )
    slopes = slope(lambda leaf: reference_kl(leaf, ref, kind), logprobs)
    torch.testing.assert_close(slopes.tolist(), [float(gradient(d)) for d in deltas])


def test_kl_cov_penalty_above_a_noise_floor_by_hand():
    """Floor 0.25: nothing up to it, excess² / 0.5 up to 0.5, then a line with slope ±weight; joined
    without a step.
    """
    old = torch.full((7,), -2.0, dtype=torch.float64)
    log_ratio = torch.tensor([0.0, 0.25, -0.2, 0.375, -0.375, 0.5, -1.0], dtype=torch.float64)
    # excesses 0, 0, 0, .125, .125, .25, .75; .125² / .5 = .03125; .25 - .125 = .125; .75 - .125 =
    # .625
    expected = torch.tensor([0.0, 0.0, 0.0, 0.03125, 0.03125, 0.125, 0.625], dtype=torch.float64)
    torch.testing.assert_close(kl_cov_penalty(old + log_ratio, old, 2.0, 0.25), 2.0 * expected)
    gradient = slope(lambda logprobs: kl_cov_penalty(logprobs, old, 2.0, 0.25), old + log_ratio)
    torch.testing.assert_close(
        gradient, torch.tensor([0.0, 0.0, 0.0, 1.0, -1.0, 2.0, -2.0], dtype=torch.float64)
    )


def test_kl_cov_penalty_is_continuous_with_its_slope_at_any_floor():
    old = torch.zeros(2001, dtype=torch.float64)
    logprobs = torch.linspace(-1, 1, 2001, dtype=torch.float64)
    for floor in (0.0, 1e-300, 0.1, 0.3, math.inf):
        values = kl_cov_penalty(logprobs, old, 1.0, torch.tensor(floor, dtype=torch.float64))
        slopes = slope(lambda leaf, f=floor: kl_cov_penalty(leaf, old, 1.0, f), logprobs)
        assert values.isfinite().all()
        assert slopes.isfinite().all()
        assert (values[1:] - values[:-1]).abs().max() < 1.01e-3
        assert not slopes[logprobs.abs() <= floor].any()
        if floor in (0.1, 0.3):
            assert (slopes[1:] - slopes[:-1]).abs().max() < 1.01e-3 / floor
            assert (slopes[logprobs.abs() > 2 * floor].abs() == 1).all()


def test_reference_kl_defaults_to_k3_which_is_never_negative():
    ref = torch.linspace(-9, 0, 50)
    kl = reference_kl(ref.flip(0), ref)
    assert torch.equal(kl, reference_kl(ref.flip(0), ref, "k3"))
    assert (kl >= 0).all()


def test_reference_kl_estimates_the_true_kl():
    """Expected over tokens drawn from the policy, k1 and k3 are KL(policy || reference)."""
    policy, reference = torch.randn(
        2, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    logp, logq = policy.log_softmax(0), reference.log_softmax(0)
    true_kl = (logp.exp() * (logp - logq)).sum()
    for kind in ("k1", "k3"):
        torch.testing.assert_close((logp.exp() * reference_kl(logp, logq, kind)).sum(), true_kl)


def toy() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits of a policy, of another one that sampled, and of a reference over six tokens, in
    float64.
    """
    return tuple(torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))  # type: ignore


def gradient_of(value, logits: torch.Tensor) -> torch.Tensor:
    """Of a function of log-probabilities, by the logits."""
    leaf = logits.clone().requires_grad_()
    return torch.autograd.grad(value(leaf.log_softmax(0)), leaf)[0]


def true_kls(ref: torch.Tensor) -> dict[str, object]:
    return {
        "policy || reference": lambda logp: (logp.exp() * (logp - ref)).sum(),
        "reference || policy": lambda logp: (ref.exp() * (ref - logp)).sum(),
        "none": lambda logp: 0 * logp.sum(),
    }


@pytest.mark.parametrize(
    ("kind", "whose"),
    [
        ("k1", "none"),
        ("k2", "policy || reference"),
        ("k3", "reference || policy"),
        ("k3_ratio", "policy || reference"),
    ],
)
def test_the_gradient_of_each_estimator_on_policy_is_that_of_its_kl(kind, whose):
    """Every token enumerated, weighted by the probability with which the policy samples it."""
    policy, _, reference = toy()
    ref, sampled = reference.log_softmax(0), policy.log_softmax(0)
    for old in (None, sampled) if kind == "k3_ratio" else (None,):
        found = gradient_of(
            lambda logp, old=old: (sampled.exp() * reference_kl(logp, ref, kind, old)).sum(), policy
        )
        kls = {name: gradient_of(kl, policy) for name, kl in true_kls(ref).items()}
        torch.testing.assert_close(found, kls.pop(whose))
        for other in kls.values():
            assert float((found - other).abs().max()) > 0.01


def test_k3_times_the_ratio_is_the_kl_off_policy_as_well():
    """Sampled by another policy: value and gradient; k2's and k3's gradients are then those of no
    KL.
    """
    policy, behaviour, reference = toy()
    ref, old = reference.log_softmax(0), behaviour.log_softmax(0)
    found = {
        kind: gradient_of(
            lambda logp, k=kind: (old.exp() * reference_kl(logp, ref, k, old)).sum(), policy
        )
        for kind in ("k2", "k3", "k3_ratio")
    }
    kls = {name: gradient_of(kl, policy) for name, kl in true_kls(ref).items()}
    torch.testing.assert_close(found["k3_ratio"], kls["policy || reference"])
    for kind in ("k2", "k3"):
        for kl in kls.values():
            assert float((found[kind] - kl).abs().max()) > 0.01
    logp = policy.log_softmax(0)
    value = (old.exp() * reference_kl(logp, ref, "k3_ratio", old)).sum()
    torch.testing.assert_close(value, (logp.exp() * (logp - ref)).sum())


def test_reference_kl_far_from_the_reference_is_finite_and_never_pushes_away():
    """A token far less likely than under the reference must not be made less likely still."""
    logprobs, ref = (
        torch.tensor([-90.0, -25.0, -15.0, -0.1]),
        torch.tensor([-0.1, -1.0, -1.0, -90.0]),
    )
    assert reference_kl(logprobs, ref).isfinite().all()
    gradient = slope(lambda leaf: reference_kl(leaf, ref), logprobs)
    assert (gradient[:3] <= 0).all()
    assert gradient[3] == 1


@settings(deadline=None)
@given(seed=st.integers(0, 10_000), rows=st.integers(1, 6), columns=st.integers(1, 6))
def test_aggregation_weights(seed, rows, columns):
    mask = tokens(rows, columns, seed)[3].clone()
    mask[0] = mask[0] & (
        seed % 2 == 0
    )  # half of the time a row is empty: it must not count as a completion
    lengths = [int(row.sum()) for row in mask]
    filled = sum(length > 0 for length in lengths)
    by_hand = {
        "token_mean": [1 / sum(lengths) if n else 0.0 for n in lengths],
        "sequence_mean": [1 / n / filled if n else 0.0 for n in lengths],
    }
    # A row that was dropped is a row: to drop one must not raise the others' weight.
    by_hand["constant"] = [1 / (rows * 11) if n else 0.0 for n in lengths]
    for aggregation, row_weights in by_hand.items():
        weights = aggregation_weights(mask, aggregation, max_length=11)
        expected = torch.tensor(row_weights).unsqueeze(1) * mask
        torch.testing.assert_close(weights, expected, atol=1e-7, rtol=1e-6)
        if filled and aggregation != "constant":
            assert abs(float(weights.sum()) - 1) < 1e-5


def test_dropping_half_of_the_rows_leaves_a_tokens_weight_under_constant():
    """Four rows of two tokens, limit 5: 1 / 20 each, also once two rows are dropped. Means are over
    what is left.
    """
    whole = torch.ones(4, 2, dtype=torch.bool)
    half = whole & torch.tensor([True, False, True, False]).unsqueeze(1)
    kept = torch.tensor([0, 2])
    expected = {
        "constant": (1 / 20, 1 / 20),
        "token_mean": (1 / 8, 1 / 4),
        "sequence_mean": (1 / 8, 1 / 4),
    }
    for aggregation, (before, after) in expected.items():
        for mask, weight in ((whole, before), (half, after)):
            found = aggregation_weights(mask, aggregation, max_length=5)
            torch.testing.assert_close(found[kept], torch.full((2, 2), weight))
        assert not found[~half].any()


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean", "constant"])
def test_micro_batches_add_up(aggregation):
    """Weights made once for the update, sliced by rows: any cut gives the loss and the gradient of
    the whole.
    """
    logprobs, old, advantages, mask = tokens(6, 5)
    weights = aggregation_weights(mask, aggregation, max_length=5)
    whole = slope(lambda leaf: clipped_surrogate(leaf, old, advantages) * weights, logprobs)
    for cut in ([1] * 6, [2, 4], [5, 1]):
        leaf = logprobs.clone().requires_grad_()
        parts = zip(*(x.split(cut) for x in (leaf, old, advantages, weights)), strict=True)
        for logprob_part, old_part, advantage_part, weight_part in parts:
            (
                clipped_surrogate(logprob_part, old_part, advantage_part) * weight_part
            ).sum().backward()
        assert torch.equal(leaf.grad, whole)


def test_empty_mask_has_no_weight():
    mask = torch.zeros(3, 4, dtype=torch.bool)
    for aggregation in ("token_mean", "sequence_mean", "constant"):
        assert torch.count_nonzero(aggregation_weights(mask, aggregation, 4)) == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: reference_kl(torch.zeros(1), torch.zeros(1), "k4"),
            "kind='k4'.*k1, k2, k3, k3_ratio",
        ),
        (
            lambda: aggregation_weights(torch.ones(1, 1, dtype=torch.bool), "sum", 1),
            "aggregation='sum'.*token_mean",
        ),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
