"""The sampling policy is the trained one: shown by the log-probs of a rollout's first mini-batch,
in real runs.
"""

from __future__ import annotations

import json

import pytest
import torch

from callbacks import SamplerGap
from callbacks.sampler_gap import ENGINE, GapWatch, gap_detectors
from harness.runs import FEW, fit, marked, metrics


@pytest.mark.full  # test_optimizers.py has the gap of a run that trains
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_policy_that_samples_is_the_trained_one_up_to_rounding(tmp_path, dtype):
    fit(tmp_path, *FEW, f"--model.policy.dtype={dtype}")
    gaps = [float(row["policy/sampler_gap"]) for row in metrics(tmp_path)]
    assert len(gaps) == 2
    assert all(0 <= gap < 1e-5 for gap in gaps)
    assert not marked(tmp_path / "version_0")


@pytest.mark.full  # test_old_logprobs.py has a stale engine
def test_stale_weights_trip_the_alarm(tmp_path):
    with pytest.warns(
        UserWarning,
        match=r"SamplerGap, rollout 2: policy/sampler_gap bound: policy/sampler_gap, .*, is above",
    ):
        fit(tmp_path, *FEW, "--model.engine=harness.decoding.StaleEngine")
    gaps = [float(row["policy/sampler_gap"]) for row in metrics(tmp_path)]
    assert gaps[0] < 1e-5  # nothing has moved yet
    assert gaps[1] > 1e-3
    assert [event["kind"] for event in marked(tmp_path / "version_0")] == ["alarm"]


@pytest.mark.slow
def test_half_precision_rounds_below_its_bound(tmp_path):
    fit(
        tmp_path, "--trainer.precision=bf16-mixed", "--trainer.limit_train_batches=1"
    )  # a warning would be an error
    assert float(metrics(tmp_path)[0]["policy/sampler_gap"]) < 0.1


BF16_GAPS = [0.0129, 0.0087, 0.0114]  # a healthy run with vLLM in bfloat16 (docs/vllm.md)


def alarms(
    gaps: list[float], bound: float = 0.5, floor: float | None = 1e-3, factor: float | None = 4.0
) -> list[int]:
    """The rollouts, from 1, at which a gap is told."""
    watch = GapWatch(gap_detectors("x", bound, bound / 10 if floor is None else floor, factor))
    return [number for number, gap in enumerate(gaps, 1) if watch.judge("x", gap) is not None]


def test_a_gap_is_judged_by_the_run_s_first_rollouts():
    stale = [
        0.002 + 0.169 * step / 19 for step in range(20)
    ]  # 0.002 to 0.171: a sampler that kept its first weights
    assert alarms(stale) == [2]
    assert alarms(BF16_GAPS * 10) == []
    assert alarms([0.01, 0.02, 0.03, 0.079, 0.081]) == [5]  # the median of the first three is 0.02
    assert alarms([0.002, 0.05, 0.002, 0.05]) == [2]  # not rising the second time
    assert alarms([0.002, 0.05, 0.06, 0.07]) == [2]  # once, as long as it stays
    assert (
        alarms([1e-7, 9e-5], bound=1e-3, floor=None) == []
    )  # ten times below the bound all is rounding
    assert alarms([1e-7, 11e-5], bound=1e-3, floor=None) == [2]
    assert alarms([float("nan"), 0.002, float("nan"), 0.01]) == [4]  # nothing was measured
    assert alarms([0.002, 0.01], factor=None) == []
    assert alarms([0.002, 0.6], factor=None) == [2]  # the bound holds all the same


def test_the_trend_goes_on_from_a_checkpoint():
    before = SamplerGap()
    for gap in (0.002, 0.003):
        before.watch.judge(ENGINE, gap)
    after = SamplerGap()
    after.load_state_dict(json.loads(json.dumps(before.state_dict())))
    assert after.watch.judge(ENGINE, 0.009) == f"{ENGINE} factor"
    assert SamplerGap().watch.judge(ENGINE, 0.009) is None  # here it is the first gap


def test_a_bound_is_positive():
    with pytest.raises(ValueError, match="bound=0 must be positive"):
        SamplerGap(bound=0)
    assert torch.tensor(SamplerGap(bound=0.5).bound) == 0.5
