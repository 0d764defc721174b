"""Objectives: which tokens are picked, the loss and the gradient there, and that the null setting
is Clipped.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
import restatement
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from restatement import golden, loss_and_gradient, rows_in, update

from rlif_lightning.learning.loss_inputs import LossInputs
from rlif_lightning.learning.objective_base import ReferenceKL
from rlif_lightning.learning.objectives import ClipCov, Clipped, KLCov


def test_kl_cov_golden_selection():
    assert KLCov(fraction=0.5).select(golden()).tolist() == [[False, True, True, False]]


def test_kl_cov_picks_at_least_one_if_any_covariance_is_positive():
    assert KLCov(fraction=0.01).select(golden()).tolist() == [[False, True, False, False]]
    opposed = replace(golden(), advantages=-golden().advantages)
    assert not KLCov(fraction=0.01).select(opposed).any()


def test_kl_cov_ranks_signed():
    """A large negative covariance is not picked."""
    batch = replace(
        golden(), advantages=torch.tensor([[-1.0, 5.0, -1.0, -3.0]])
    )  # cov of position 1: -1.375 * 5
    assert KLCov(fraction=0.25).select(batch).tolist() == [[False, False, False, True]]


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(2, 6),
    columns=st.integers(2, 9),
    mille=st.integers(5, 950),
)
def test_kl_cov_selection_matches_restatement(seed, rows, columns, mille):
    batch = update(rows, columns, seed)
    assume(batch.mask.sum() > 2)  # the covariances of two tokens are equal: no ranking
    covariance = restatement.covariance(batch.old_logprobs, batch.advantages, batch.mask)
    expected = restatement.positive_marks(covariance, batch.mask, Fraction(mille, 1000))
    assert torch.equal(KLCov(fraction=mille / 1000).select(batch), expected)
    top = restatement.largest_marks(covariance, batch.mask, Fraction(mille, 1000))
    assert torch.equal(KLCov(fraction=mille / 1000, pick="top").select(batch), top)


def test_kl_cov_picks_positive_covariances_only_or_the_top_whatever_its_sign():
    """Covariances .625, 1.375, 1.125, .375 with the signs of the second and fourth turned: two are
    positive.
    """
    batch = replace(golden(), advantages=torch.tensor([[1.0, 1.0, 1.0, 1.0]]))
    assert not KLCov(fraction=0.5).select(batch).any()
    assert KLCov(fraction=0.5, pick="top").select(batch).sum() == 2  # zeros, by lottery
    batch = replace(golden(), advantages=torch.tensor([[1.0, 3.0, 1.0, -1.0]]))
    # A - mean: 0, 2, 0, -2; logprob - mean: .625, -1.375, 1.125, -.375; cov 0, -2.75, 0, .75
    assert KLCov(fraction=0.75).select(batch).tolist() == [[False, False, False, True]]
    assert KLCov(fraction=0.75, pick="top").select(batch).tolist() == [[True, False, True, True]]
    assert KLCov(fraction=0.1).select(batch).tolist() == [[False, False, False, True]]


def test_kl_cov_selection_ignores_padding_and_row_order():
    batch = update()
    marks = KLCov(fraction=0.2).select(batch)
    assert marks.any()
    assert not marks[~batch.mask].any()
    poisoned = replace(batch, old_logprobs=batch.old_logprobs.masked_fill(~batch.mask, torch.nan))
    assert torch.equal(KLCov(fraction=0.2).select(poisoned), marks)
    order = [3, 0, 5, 1, 4, 2]
    assert torch.equal(KLCov(fraction=0.2).select(rows_in(batch, order)), marks[order])


def test_kl_cov_ranks_by_old_or_current_logprobs():
    batch = replace(golden(), logprobs=torch.tensor([[-0.5, -1.0, -2.0, -3.0]]))
    assert KLCov(fraction=0.5).select(batch).tolist() == [[False, True, True, False]]
    # Deviations of the current log-probs: 1.125, .625, -.375, -1.375; times A: 1.125, -.625, -.375,
    # 1.375.
    assert KLCov(fraction=0.5, rank_by="current").select(batch).tolist() == [
        [True, False, False, True]
    ]


@pytest.mark.parametrize("advantage", [0.0, 0.1])
def test_kl_cov_picks_nothing_without_a_signal(advantage):
    """All advantages equal: every covariance is 0. The origin's code fills its quota all
    the same.
    """
    batch = replace(update(40, 8), advantages=torch.full((40, 8), advantage))
    assert not KLCov(fraction=0.02).select(batch).any()
    top = KLCov(fraction=0.02, pick="top").select(batch)
    assert 0 < top.sum() <= 0.02 * batch.mask.sum()


def test_kl_cov_fraction_holds_when_many_tokens_are_certain():
    """A collapsing policy gives many tokens log-prob 0 exactly; ties must not pick more than the
    fraction.
    """
    batch = update(40, 50)
    advantages = torch.where(torch.arange(40) < 20, 1.0, -1.0).unsqueeze(1).expand(40, 50)
    old = torch.where(
        torch.rand(40, 50, generator=torch.Generator().manual_seed(0)) < 0.5,
        0.0,
        batch.old_logprobs,
    )
    batch = replace(batch, old_logprobs=old, advantages=advantages)
    share = KLCov(fraction=0.3).select(batch).sum() / batch.mask.sum()
    assert abs(float(share) - 0.3) < 0.01


@pytest.mark.parametrize("unselected", ["clipped", "plain"])
def test_kl_cov_loss_and_gradient_match_hand_formula(unselected):
    batch = update()
    objective = KLCov(fraction=0.3, weight=0.7, unselected=unselected)
    marks = objective.select(batch)
    loss, gradient = loss_and_gradient(objective, batch, marks)
    expected_loss, expected_gradient = torch.zeros_like(loss), torch.zeros_like(gradient)
    for b, t in batch.mask.nonzero().tolist():
        new, old, advantage = (
            float(x[b, t]) for x in (batch.logprobs, batch.old_logprobs, batch.advantages)
        )
        plain = -torch.tensor(new - old).exp() * advantage
        if marks[b, t]:
            expected_loss[b, t] = plain + 0.7 * abs(new - old)
            expected_gradient[b, t] = plain + (0.7 if new > old else -0.7)
        elif unselected == "plain":
            expected_loss[b, t] = expected_gradient[b, t] = plain
        else:
            expected_loss[b, t] = restatement.surrogate(new, old, advantage)
            expected_gradient[b, t] = restatement.surrogate_slope(new, old, advantage)
    torch.testing.assert_close(loss[batch.mask], expected_loss[batch.mask], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(gradient, expected_gradient, atol=1e-6, rtol=1e-5)


def test_kl_cov_does_nothing_on_policy():
    """At d = 0 the penalty and its gradient are 0 whatever its weight."""
    batch = replace(update(), logprobs=update().old_logprobs)
    marks = KLCov(fraction=0.5).select(batch)
    strong, none = (
        loss_and_gradient(KLCov(fraction=0.5, weight=w), batch, marks) for w in (100.0, 0.0)
    )
    assert marks.any()
    assert torch.equal(strong[0], none[0])
    assert torch.equal(strong[1], none[1])
    assert torch.equal(strong[1], loss_and_gradient(Clipped(), batch, marks)[1])


def test_kl_cov_has_no_slope_below_the_noise_floor():
    """On picked tokens: 0 up to the floor, the whole weight beyond twice the floor; the rest is as
    without a floor.
    """
    batch = replace(update(), noise_floor=torch.tensor(0.15))
    objective = KLCov(fraction=0.9, weight=0.7, pick="top")
    marks = objective.select(batch)
    penalty = (
        loss_and_gradient(objective, batch, marks)[1]
        - loss_and_gradient(replace(objective, weight=0.0), batch, marks)[1]
    )
    size = (batch.logprobs - batch.old_logprobs).abs()
    below, above = marks & (size <= 0.15), marks & (size > 0.3)
    assert below.sum() > 3
    assert above.sum() > 3
    assert not penalty[below].any()
    torch.testing.assert_close(penalty[above].abs(), torch.full_like(penalty[above], 0.7))
    assert not penalty[~marks].any()


def test_kl_cov_refuses_one_update_per_rollout():
    with pytest.raises(ValueError, match=r"updates_per_rollout=1.*do nothing"):
        KLCov().check(1)
    KLCov().check(2)
    KLCov(fraction=0.0).check(1)
    ClipCov().check(1)
    Clipped().check(1)


def drawn_anew(batch: LossInputs, draw: int) -> LossInputs:
    """The update as of another rollout: completions have other numbers, and tokens other lots."""
    return replace(batch, completion_numbers=batch.completion_numbers + 1000 * draw)


def clip_cov_case(fraction: float, draw: int = 0) -> tuple[LossInputs, torch.Tensor, torch.Tensor]:
    """An update, the tokens inside the band 0.2 < cov < 1.5, and what ClipCov picks."""
    batch = drawn_anew(update(20, 20), draw)
    covariance = restatement.covariance(batch.old_logprobs, batch.advantages, batch.mask)
    band = torch.tensor([[0.2 < value < 1.5 for value in row] for row in covariance]) & batch.mask
    band &= ~restatement.held_by_clip(batch)
    return batch, band, ClipCov(fraction=fraction, band=(0.2, 1.5)).select(batch)


@pytest.mark.parametrize("fraction", [0.0, 1e-6, 0.01, 0.05, 0.1])
def test_clip_cov_counts(fraction):
    batch, band, marks = clip_cov_case(fraction)
    expected = max(int(fraction * int(batch.mask.sum())), 1 if fraction else 0)
    assert expected < band.sum()
    assert marks.sum() == expected
    assert not (marks & ~band).any()


def test_clip_cov_leaves_out_what_the_clip_holds():
    """Covariances .625, 1.375, 1.125, .375; A 1, -1, 1, -1; log-ratios that hold the first two
    tokens.
    """
    batch = replace(
        golden(), logprobs=golden().old_logprobs + torch.tensor([[0.3, -0.3, -0.3, 0.3]])
    )
    assert restatement.held_by_clip(batch).tolist() == [[True, True, False, False]]
    assert ClipCov(fraction=0.99, band=(0.1, 2.0)).select(batch).tolist() == [
        [False, False, True, True]
    ]
    wide = ClipCov(fraction=0.99, band=(0.1, 2.0), clip_low=0.5, clip_high=0.5)
    assert wide.select(batch).sum() == 3  # floor(0.99 * 4), of all four
    assert ClipCov().needs_current
    assert not ClipCov(fraction=0.0).needs_current


def test_clip_cov_takes_all_candidates_when_they_are_few():
    batch, band, marks = clip_cov_case(0.99)
    assert 0 < band.sum() < 0.99 * batch.mask.sum()
    assert torch.equal(marks, band)


def test_clip_cov_picks_nothing_without_candidates():
    assert not ClipCov(fraction=0.5, band=(100.0, 200.0)).select(update()).any()


def test_clip_cov_band_is_open():
    """Covariances .625, 1.375, 1.125, .375: the ends of the band are outside."""
    marks = ClipCov(fraction=0.99, band=(0.375, 1.375)).select(golden())
    assert marks.tolist() == [[True, False, True, False]]


def test_clip_cov_pick_is_repeatable_and_independent_of_row_order():
    batch, _, marks = clip_cov_case(0.05)
    assert torch.equal(clip_cov_case(0.05)[2], marks)
    assert not torch.equal(clip_cov_case(0.05, draw=1)[2], marks)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1)).tolist()
    picked = ClipCov(fraction=0.05, band=(0.2, 1.5)).select(rows_in(batch, order))
    assert torch.equal(picked, marks[order])


def test_clip_cov_pick_is_fair():
    """One token of many candidates, 400 draws: each is picked about equally often (chi-square, 5
    sigma).
    """
    batch, band, _ = clip_cov_case(0.0)
    counts = sum(
        ClipCov(fraction=1e-6, band=(0.2, 1.5)).select(drawn_anew(batch, draw)).int()
        for draw in range(400)
    )
    degrees = int(band.sum()) - 1
    expected = 400 / int(band.sum())
    chi_square = float(((counts[band] - expected) ** 2 / expected).sum())
    assert abs(chi_square - degrees) < 5 * (2 * degrees) ** 0.5


def test_clip_cov_count_holds_and_is_fair_when_many_tokens_are_certain():
    """Half of the tokens share log-prob 0 exactly: the count holds, and their share of the picks is
    their share.
    """
    batch = update(20, 20)
    certain = torch.rand(20, 20, generator=torch.Generator().manual_seed(0)) < 0.5
    batch = replace(batch, old_logprobs=batch.old_logprobs.masked_fill(certain, 0.0))
    covariance = torch.tensor(
        restatement.covariance(batch.old_logprobs, batch.advantages, batch.mask)
    )
    band = (covariance > 1e-3) & (covariance < 50.0)
    picks = torch.zeros(20, 20)
    for draw in range(20):
        marks = ClipCov(fraction=0.05, band=(1e-3, 50.0)).select(drawn_anew(batch, draw))
        assert marks.sum() == int(0.05 * int(batch.mask.sum()))
        picks += marks
    expected = (certain & band).sum() / band.sum()
    assert abs(picks[certain].sum() / picks.sum() - expected) < 0.15


def test_clip_cov_loss_is_zero_on_picked_tokens_only():
    batch, _, marks = clip_cov_case(0.1)
    loss, gradient = loss_and_gradient(ClipCov(), batch, marks)
    plain_loss, plain_gradient = loss_and_gradient(Clipped(), batch, marks)
    assert torch.count_nonzero(plain_gradient[marks]) > 0
    assert torch.count_nonzero(loss[marks]) == 0
    assert torch.count_nonzero(gradient[marks]) == 0
    assert torch.equal(loss[~marks], plain_loss[~marks])
    assert torch.equal(gradient[~marks], plain_gradient[~marks])


SHARED = [
    {},
    {"clip_low": 0.1, "clip_high": 0.28, "dual_clip": 3.0},
    {"entropy_bonus": 0.01, "reference_kl": ReferenceKL(0.005)},
]


@pytest.mark.parametrize("shared", SHARED, ids=str)
@pytest.mark.parametrize(
    "null",
    [
        KLCov(fraction=0.0),
        KLCov(fraction=0.0, unselected="plain", weight=9.0),
        ClipCov(fraction=0.0),
    ],
    ids=repr,
)
def test_null_setting_is_clipped_bit_for_bit(null, shared):
    batch = update()
    null, clipped = replace(null, **shared), Clipped(**shared)
    marks = null.select(batch)
    assert not marks.any()
    assert torch.equal(marks, clipped.select(batch))
    ours, theirs = loss_and_gradient(null, batch, marks), loss_and_gradient(clipped, batch, marks)
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])


def test_clipped_uses_its_own_bounds():
    batch = update()
    marks = torch.zeros_like(batch.mask)
    loss, _ = loss_and_gradient(Clipped(clip_low=0.1, clip_high=0.3, dual_clip=1.1), batch, marks)
    for b, t in batch.mask.nonzero().tolist():
        token = (float(x[b, t]) for x in (batch.logprobs, batch.old_logprobs, batch.advantages))
        assert float(loss[b, t]) == pytest.approx(
            restatement.surrogate(*token, 0.1, 0.3, 1.1), abs=1e-5
        )


def test_entropy_bonus_is_subtracted():
    batch = update()
    marks = torch.zeros_like(batch.mask)
    entropy = batch.entropy.clone().requires_grad_()
    loss = Clipped(entropy_bonus=0.01).token_loss(replace(batch, entropy=entropy), marks)
    torch.testing.assert_close(loss, Clipped().token_loss(batch, marks) - 0.01 * batch.entropy)
    gradient = torch.autograd.grad(loss.sum(), entropy)[0]
    torch.testing.assert_close(gradient, torch.full_like(gradient, -0.01))


@pytest.mark.parametrize("kind", ["k1", "k2", "k3", "k3_ratio"])
def test_reference_kl_is_added(kind):
    batch = update()
    marks = torch.zeros_like(batch.mask)
    delta = (batch.ref_logprobs - batch.logprobs).double()
    k3, ratio = delta.exp() - delta - 1, (batch.logprobs - batch.old_logprobs).double().exp()
    kl = {"k1": -delta, "k2": delta**2 / 2, "k3": k3, "k3_ratio": k3 * ratio}[kind]
    loss = Clipped(reference_kl=ReferenceKL(0.5, kind)).token_loss(batch, marks)
    torch.testing.assert_close(
        loss.double(), Clipped().token_loss(batch, marks) + 0.5 * kl, atol=1e-5, rtol=1e-5
    )


def test_what_each_setting_needs():
    assert not Clipped().needs_reference
    assert not Clipped().touches_zero_advantage
    with_reference = Clipped(reference_kl=ReferenceKL(0.005))
    assert with_reference.needs_reference
    assert with_reference.touches_zero_advantage
    assert Clipped(entropy_bonus=0.01).touches_zero_advantage


def test_defaults_are_the_papers():
    assert (KLCov().fraction, KLCov().weight, KLCov().unselected) == (0.02, 0.05, "clipped")
    assert (ClipCov().fraction, ClipCov().band) == (2e-4, (1.0, 5.0))
    assert (Clipped().clip_low, Clipped().clip_high, Clipped().aggregation) == (
        0.2,
        0.2,
        "token_mean",
    )


@pytest.mark.parametrize(
    ("kind", "setting", "message"),
    [
        (ReferenceKL, {"weight": -0.1}, "weight=-0.1"),
        (ReferenceKL, {"kind": "k4"}, "kind='k4'.*k1, k2, k3"),
        (Clipped, {"clip_low": 0.0}, "clip_low=0.0"),
        (Clipped, {"clip_low": 1.1}, "clip_low=1.1"),
        (Clipped, {"clip_high": 0.0}, "clip_high=0.0"),
        (Clipped, {"dual_clip": 1.0}, "dual_clip=1.0"),
        (Clipped, {"aggregation": "sum"}, "aggregation='sum'.*token_mean"),
        (KLCov, {"fraction": 2.0}, "fraction=2.0.*per cent"),
        (KLCov, {"fraction": -0.1}, "fraction=-0.1"),
        (KLCov, {"weight": -1.0}, "weight=-1.0"),
        (KLCov, {"unselected": "none"}, "unselected='none'.*clipped, plain"),
        (KLCov, {"rank_by": "new"}, "rank_by='new'.*old, current"),
        (KLCov, {"pick": "all"}, "pick='all'.*positive, top"),
        (KLCov, {"clip_high": -1.0}, "clip_high=-1.0"),
        (ClipCov, {"fraction": 1.0}, "fraction=1.0"),
        (ClipCov, {"band": (5.0, 5.0)}, r"band=\(5.0, 5.0\)"),
        (ClipCov, {"aggregation": "sum"}, "aggregation='sum'"),
    ],
)
def test_errors(kind, setting, message):
    with pytest.raises(ValueError, match=message):
        kind(**setting)
