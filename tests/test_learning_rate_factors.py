"""LearningRateFactors: rates by hand, another run's rates bit for bit, and a resumed run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from callbacks import LearningRateFactors
from callbacks.learning_rate_factors import RATE, factor_at, factors_of_run
from harness.runs import (
    ALWAYS,
    TINY,
    adding,
    assert_same,
    column,
    fit,
    marked,
    parameters,
    run_with,
    whole_and_resumed,
)

IGNORE_ALARMS = pytest.mark.filterwarnings("ignore:CollapseGuard, rollout:UserWarning")


def table(folder: Path, steps: list[object], rates: list[object]) -> Path:
    file = folder / "metrics.csv"
    rows = [f"{step},{rate}" for step, rate in zip(steps, rates, strict=True)]
    file.write_text("\n".join([f"step,{RATE}", *rows, ""]))
    return file


def test_a_run_s_rates_are_factors_of_its_first(tmp_path):
    """1e-4 in 32 bits is no 1e-4, but its half is half of it; an evaluation has no rate."""
    rate = float(torch.tensor(1e-4))
    assert rate != 1e-4
    half = float(torch.tensor(1e-4) / 2)
    file = table(tmp_path, [0, 1, 1, 2], [rate, half, "", half / 4])
    expected = [(0, 1.0), (1, 0.5), (2, 0.125)]
    assert factors_of_run(file) == factors_of_run(tmp_path) == expected
    assert LearningRateFactors(str(tmp_path)).steps == expected


def test_a_factor_holds_from_its_rollout_on():
    assert [factor_at([(1, 2.0)], rollout) for rollout in (0, 1, 9)] == [1.0, 2.0, 2.0]
    assert factor_at([(0, 0.5), (1, 3.0)], 0) == 0.5


@pytest.mark.parametrize(
    ("steps", "rates", "message"),
    [
        ([1, 2], [1e-4, 1e-4], "has not every rollout once from the first on"),
        ([0, 2], [1e-4, 1e-4], "has not every rollout"),
        ([0], [0.0], "no positive policy/learning_rate of a first rollout"),
        ([0], [""], "no positive policy/learning_rate"),
    ],
)
def test_a_run_that_cannot_be_replayed_is_refused(tmp_path, steps, rates, message):
    with pytest.raises(ValueError, match=message):
        LearningRateFactors(str(table(tmp_path, steps, rates)))


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ([], "must be .rollout, factor. pairs"),
        ([(3, 0.5), (3, 0.25)], "of rising rollouts"),
        ([(-1, 0.5)], "rollouts count from 0"),
        ([(1, 0.0)], "each factor must be positive"),
        ([(1, float("nan"))], "each factor must be positive"),
        ("nowhere", "nowhere.*give the folder of a run"),
    ],
)
def test_bad_factors_are_refused(factors, message):
    with pytest.raises(ValueError, match=message):
        LearningRateFactors(factors)


@pytest.mark.full  # the parts: above, and a factor of one below
@IGNORE_ALARMS
def test_a_yoked_run_is_the_guarded_run_without_its_guard(tmp_path):
    """The same seed and the same rates are the same run, bit for bit; the factor 1 is none."""
    own = {"detectors": {"always": ALWAYS | {"patience": 1}}, "baseline": 1, "max_actions": 9}
    guarded = run_with(tmp_path / "guarded", "CollapseGuard", action="adjust", rollouts=4, **own)
    rates = column(tmp_path / "guarded", RATE)
    assert rates[-1] == pytest.approx(5e-5)
    folder = str(next((tmp_path / "guarded").rglob("metrics.csv")).parent)
    yoked = run_with(tmp_path / "yoked", "LearningRateFactors", rollouts=4, factors=folder)
    assert column(tmp_path / "yoked", RATE) == rates
    assert_same(parameters(yoked), parameters(guarded))
    (event,) = marked(Path(str(yoked.trainer.log_dir)))
    assert (event["kind"], event["values"]) == ("schedule", {"factor": 0.5})
    assert event["rollout"] == rates.index(rates[-1])


@pytest.mark.full  # a factor at a rollout: above; the rates of a run: below
def test_a_factor_of_one_changes_nothing(tmp_path):
    plain = fit(tmp_path / "plain", *TINY)
    same = run_with(tmp_path / "same", "LearningRateFactors", *TINY, factors=[(1, 1.0)])
    assert_same(parameters(same), parameters(plain))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The dirpath has changed from:UserWarning")
def test_it_goes_on_from_a_checkpoint_bit_for_bit(tmp_path):
    factors = [(1, 0.5), (3, 0.25)]
    whole, resumed = whole_and_resumed(tmp_path, "LearningRateFactors", factors=factors)
    assert column(tmp_path / "whole", RATE) == pytest.approx([1e-4, 5e-5, 5e-5, 2.5e-5])
    assert column(tmp_path / "second", RATE) == pytest.approx([5e-5, 2.5e-5])
    assert_same(parameters(resumed), parameters(whole))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.schedule.name=linear"], "model.schedule.name=linear: LearningRateFactors needs"),
        ([adding("CollapseGuard", action="adjust")], "would both set the learning rate"),
    ],
)
def test_two_that_set_the_rate_are_refused(tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit):
        run_with(tmp_path, "LearningRateFactors", *arguments, factors=[(1, 0.5)])
    assert message in " ".join(capsys.readouterr().err.split())


@IGNORE_ALARMS
def test_a_guard_that_scales_a_reward_is_no_rival(tmp_path):
    """A constant rate, and the weight of the vote halved at an alarm: that the guard can do."""
    own = {"detectors": {"always": ALWAYS}, "baseline": 1, "scale": {"rewards.vote.weight": 0.5}}
    guard = adding("CollapseGuard", action="adjust", **own)
    run = run_with(tmp_path, "LearningRateFactors", guard, factors=[(1, 0.5)])
    assert run.model.rewards.settings["vote"].weight == 0.25
    assert column(tmp_path, RATE) == pytest.approx([1e-4, 5e-5])
