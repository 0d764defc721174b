"""Where the clip holds a token, with bounds that differ: marks, Clip-Cov, the logged share."""

from __future__ import annotations

import math

import pytest
import torch

from rlif_lightning.learning.loss_inputs import LossInputs
from rlif_lightning.learning.losses import clipped_marks, clipped_surrogate
from rlif_lightning.learning.objectives import ClipCov, Clipped, KLCov
from rlif_lightning.learning.ratio_objectives import CISPO, DPPO, SAPO
from rlif_lightning.learning.stare import STARE
from rlif_lightning.learning.update_metrics import UpdateMeter

LOW, HIGH = 0.1, 0.3
RATIOS = [1.2, 1.4, 0.8, 0.65, 1.2, 1.4, 0.8, 0.95]
ADVANTAGES = torch.tensor([[1.0, 1.0, 1.0, 1.0, -1.0, -1.0, -1.0, -1.0]])
HELD = [
    False,
    True,
    False,
    False,
    False,
    False,
    True,
    False,
]  # above 1.3 with A > 0, below 0.9 with A < 0


def logs() -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs of the eight ratios, and old ones whose mean is -1.5."""
    old = torch.tensor([[-1.0, -1.0, -2.0, -2.0, -2.0, -2.0, -1.0, -1.0]])
    return old + torch.tensor([[math.log(ratio) for ratio in RATIOS]]), old


def test_marks_are_where_the_surrogate_has_no_slope():
    new, old = logs()
    assert clipped_marks(new, old, ADVANTAGES, LOW, HIGH).tolist() == [HELD]
    leaf = new.clone().requires_grad_()
    loss = clipped_surrogate(leaf, old, ADVANTAGES, LOW, HIGH)
    assert (torch.autograd.grad(loss.sum(), leaf)[0] == 0).tolist() == [HELD]


def test_clip_cov_leaves_out_what_its_own_bounds_hold():
    """Covariances with mean log-prob -1.5 and mean advantage 0: +0.5 for tokens 0, 1, 4 and 5."""
    new, old = logs()
    mask = torch.ones(1, 8, dtype=torch.bool)
    update = LossInputs(new, old, ADVANTAGES, mask, torch.tensor([0]))
    objective = ClipCov(fraction=0.99, band=(0.1, 2.0), clip_low=LOW, clip_high=HIGH)
    assert objective.select(update)[0].nonzero().squeeze(1).tolist() == [0, 4, 5]


def test_the_logged_share_is_of_the_objectives_own_bounds():
    new, old = logs()
    mask = torch.ones(1, 8, dtype=torch.bool)
    batch = LossInputs(new, old, ADVANTAGES, mask, torch.tensor([0]), torch.zeros(1, 8))
    for low, high, share in ((0.1, 0.5, 1 / 8), (0.5, 0.1, 2 / 8)):
        meter = UpdateMeter(mask.device)
        objective = Clipped(clip_low=low, clip_high=high)
        meter.add(batch, torch.zeros_like(mask), mask, objective)
        assert float(meter.means()["policy/clip_fraction"]) == pytest.approx(share)


def test_the_logged_share_leaves_picked_tokens_out():
    """Two tokens are held; the objective picked one of them, which then has another loss."""
    new, old = logs()
    mask, marks = torch.ones(1, 8, dtype=torch.bool), torch.zeros(1, 8, dtype=torch.bool)
    batch = LossInputs(new, old, ADVANTAGES, mask, torch.tensor([0]), torch.zeros(1, 8))
    marks[0, 1] = True
    meter = UpdateMeter(mask.device)
    meter.add(batch, marks, mask, Clipped(clip_low=LOW, clip_high=HIGH))
    assert float(meter.means()["policy/clip_fraction"]) == pytest.approx(1 / 8)


BOUNDS = {"clip_low": LOW, "clip_high": HIGH}


@pytest.mark.parametrize(
    "objective",
    [
        Clipped(**BOUNDS, dual_clip=1.3),
        KLCov(**BOUNDS),
        KLCov(**BOUNDS, unselected="plain"),
        KLCov(**BOUNDS, unselected="plain", fraction=0.0),
        KLCov(**BOUNDS, dual_clip=1.3),
        ClipCov(**BOUNDS, dual_clip=1.3),
        STARE(**BOUNDS, dual_clip=1.3),
        CISPO(**BOUNDS),
        SAPO(),
        DPPO(**BOUNDS),
    ],
    ids=repr,
)
def test_tokens_without_a_slope_are_those_that_count_as_held(objective):
    new, old = logs()
    leaf = new.clone().requires_grad_()
    mask = torch.ones(1, 8, dtype=torch.bool)
    batch = LossInputs(leaf, old, ADVANTAGES, mask, torch.tensor([0]))
    loss = objective.policy_loss(batch, torch.zeros_like(mask))
    [slope] = torch.autograd.grad(loss.sum(), leaf)
    assert objective.held(batch).tolist() == (slope == 0).tolist()
