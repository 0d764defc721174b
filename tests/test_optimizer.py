"""The learning-rate schedule by hand, and its errors."""

from __future__ import annotations

import pytest
import torch

from rlif_lightning.learning.optimizer import OptimizerPlan


def rates(plan: OptimizerPlan, steps: int, max_steps: int = -1) -> list[float]:
    """The learning rate of each optimiser step."""
    optimizer, schedule = plan.build([torch.nn.Parameter(torch.ones(1))], max_steps)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_constant_with_warm_up():
    assert rates(OptimizerPlan(1.0, warmup_steps=4), 6) == pytest.approx(
        [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    )


def test_cosine_goes_to_zero_and_stays():
    expected = [0.5, 1.0, 1.0, 0.5, 0.0, 0.0]
    assert rates(OptimizerPlan(1.0, "cosine", warmup_steps=2), 6, max_steps=4)[:4] == pytest.approx(
        expected[:4]
    )
    assert rates(
        OptimizerPlan(1.0, "cosine", warmup_steps=2, schedule_steps=4), 6, max_steps=99
    ) == pytest.approx(expected)


def test_settings_reach_the_optimizer():
    optimizer, _ = OptimizerPlan(0.1, weight_decay=0.3, betas=(0.8, 0.9)).build(
        [torch.nn.Parameter(torch.ones(1))], -1
    )
    group = optimizer.param_groups[0]
    assert (group["weight_decay"], group["betas"]) == (0.3, (0.8, 0.9))


def test_a_cosine_without_length_is_refused():
    with pytest.raises(
        ValueError, match=r"schedule.name=cosine needs its length: set trainer\.max_steps"
    ):
        rates(OptimizerPlan(1.0, "cosine"), 1)


@pytest.mark.parametrize(
    "settings",
    [
        {"learning_rate": 0.0},
        {"learning_rate": 1.0, "lr_schedule": "steps"},
        {"learning_rate": 1.0, "warmup_steps": -1},
        {"learning_rate": 1.0, "weight_decay": -0.1},
        {"learning_rate": 1.0, "max_grad_norm": 0.0},
    ],
)
def test_settings_out_of_range_are_refused(settings):
    name = list(settings)[-1]
    with pytest.raises(ValueError, match=name):
        OptimizerPlan(**settings)
