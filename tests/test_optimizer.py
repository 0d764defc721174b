"""The optimiser and its schedules: the library's values, ours where they were the same, and every
refusal.
"""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch.nn import Parameter

from rlif_lightning.learning.optimizer import (
    NEED_A_METRIC,
    LearningRateSchedule,
    build_optimizer,
    check_optimizer,
    schedules,
    starting_rate,
)

ADAMW = partial(torch.optim.AdamW, lr=1.0)


def rates(
    schedule: LearningRateSchedule, steps: int, max_steps: int = -1, make=ADAMW
) -> list[float]:
    """The learning rate of each optimiser step."""
    optimizer = build_optimizer(make, [Parameter(torch.ones(1))])
    built, found = schedule.build(optimizer, max_steps), []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        built.step()
    return found


def cosine_by_hand(step: int, total: int) -> float:
    return 0.5 * (1 + math.cos(math.pi * min(1.0, step / total)))


def test_without_warm_up_constant_and_cosine_are_what_they_were():
    """The formulas of the schedules by hand that the library's replaced."""
    assert rates(LearningRateSchedule(), 5) == [1.0] * 5
    expected = [cosine_by_hand(step, 340) for step in range(360)]
    assert rates(LearningRateSchedule("cosine"), 360, max_steps=340) == pytest.approx(
        expected, abs=1e-12
    )


def test_a_schedule_stays_where_it_ends():
    """The library's cosine would rise again."""
    assert rates(LearningRateSchedule("cosine", steps=2), 6, max_steps=99) == pytest.approx(
        [1.0, 0.5, 0.0, 0.0, 0.0, 0.0], abs=1e-12
    )
    floor = LearningRateSchedule("cosine_with_min_lr", steps=2, options={"min_lr": 0.25})
    assert rates(floor, 5) == pytest.approx([1.0, 0.625, 0.25, 0.25, 0.25])


def test_warm_up_starts_at_zero():
    warm = LearningRateSchedule("constant_with_warmup", warmup_steps=4)
    assert rates(warm, 6) == pytest.approx([0.0, 0.25, 0.5, 0.75, 1.0, 1.0])
    cosine = LearningRateSchedule("cosine", warmup_steps=2)
    assert rates(cosine, 5, max_steps=4) == pytest.approx([0.0, 0.5, 1.0, 0.5, 0.0], abs=1e-12)


OPTIONS = {
    "cosine_with_min_lr": {"min_lr_rate": 0.1},
    "cosine_warmup_with_min_lr": {"min_lr_rate": 0.1},
    "warmup_stable_decay": {"num_decay_steps": 3},
}


@pytest.mark.parametrize("name", sorted(schedules()))
def test_every_name_of_the_library_builds_a_schedule(name):
    found = rates(LearningRateSchedule(name, options=OPTIONS.get(name, {})), 12, max_steps=12)
    assert all(math.isfinite(rate) and 0 <= rate <= 1 for rate in found)
    assert (len(set(found)) == 1) == (name in ("constant", "constant_with_warmup"))


def test_users_know_these_names():
    known = "constant constant_with_warmup linear cosine cosine_with_min_lr cosine_with_restarts"
    known += " polynomial inverse_sqrt warmup_stable_decay"
    assert set(known.split()) <= set(schedules())


@pytest.mark.parametrize("name", NEED_A_METRIC)
def test_a_schedule_that_needs_a_figure_is_refused_by_name(name):
    with pytest.raises(ValueError, match=f"schedule.name={name} needs a figure"):
        LearningRateSchedule(name)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "steps"}, r"schedule\.name='steps' is unknown; use one of .*cosine"),
        ({"name": "linear", "warmup_steps": -1}, "warmup_steps=-1 may not be negative"),
        (
            {"warmup_steps": 3},
            "warmup_steps=3 has no effect with name=constant; use name=constant_",
        ),
        ({"steps": 3}, r"schedule\.steps=3 has no effect with name=constant"),
        ({"name": "inverse_sqrt", "steps": 3}, r"schedule\.steps=3 has no effect"),
        ({"name": "cosine", "options": {"min_lr": 0.1}}, "'min_lr' is no option of name=cosine"),
        ({"options": {"num_cycles": 1}}, "name=constant; it takes none"),
        (
            {
                "name": "warmup_stable_decay",
                "steps": 9,
                "options": {"num_stable_steps": 3, "num_decay_steps": 3},
            },
            r"schedule\.steps=9 has no effect",
        ),
    ],
)
def test_schedules_without_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        LearningRateSchedule(**settings)


@pytest.mark.parametrize(
    ("schedule", "max_steps", "message"),
    [
        (LearningRateSchedule("cosine"), -1, r"cosine needs its length: set trainer\.max_steps"),
        (LearningRateSchedule("linear", warmup_steps=8), 8, r"\(got 8\) to more than 8"),
        (LearningRateSchedule("cosine_with_min_lr"), 8, "transformers refuses it: One of min_lr"),
        (
            LearningRateSchedule("warmup_stable_decay"),
            8,
            "transformers refuses it: .*num_decay_steps",
        ),
        (
            LearningRateSchedule("warmup_stable_decay", 4, options={"num_decay_steps": 4}),
            8,
            r"\(got 8\) to more than 8",
        ),
    ],
)
def test_schedules_that_do_not_fit_the_run_are_refused(schedule, max_steps, message):
    with pytest.raises(ValueError, match=message):
        check_optimizer(ADAMW, schedule, max_steps)


def not_an_optimizer(parameters):
    return list(parameters)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(torch.optim.AdamW, lr=0.0), r"model\.optimizer\.lr=0\.0 must be positive"),
        (partial(torch.optim.AdamW, lr=-1.0), r"model\.optimizer: Invalid learning rate: -1\.0"),
        (partial(torch.optim.AdamW, weight_decay=-0.1), r"model\.optimizer: .*weight_decay"),
        (torch.optim.LBFGS, "makes LBFGS, not an optimiser that can step without"),
        (not_an_optimizer, "makes list, not an optimiser"),
    ],
)
def test_optimizers_that_cannot_train_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        check_optimizer(make, LearningRateSchedule(), -1)


def test_the_optimizer_is_fused_unless_somebody_says_otherwise():
    """And steps as one that was constructed as fused; one without the choice is left alone."""

    def trained(make) -> tuple[torch.optim.Optimizer, list[float]]:
        parameter = Parameter(torch.linspace(-1, 1, 7))
        optimizer = build_optimizer(make, [parameter])
        for _ in range(3):
            parameter.grad = parameter.detach() ** 2
            optimizer.step()
        return optimizer, parameter.tolist()

    for kind in (torch.optim.AdamW, torch.optim.SGD):
        left, right = trained(partial(kind, lr=0.1)), trained(partial(kind, lr=0.1, fused=True))
        assert left[0].param_groups[0]["fused"] is True
        assert left[1] == right[1]
    for given in ({"fused": False}, {"foreach": True}):
        made, _ = trained(partial(torch.optim.AdamW, lr=0.1, **given))
        assert not made.param_groups[0]["fused"]
    assert "fused" not in trained(partial(torch.optim.RMSprop, lr=0.1))[0].param_groups[0]
    trained(partial(torch.optim.Adagrad, lr=0.1))


def test_starting_rate_is_the_first_groups():
    assert starting_rate(partial(torch.optim.SGD, lr=0.25)) == 0.25
