"""The sampling policy is the trained one: shown by the log-probs of a rollout's first mini-batch, in real runs."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from test_callbacks import marked
from test_run import fit, metrics

from callbacks import SamplerGap
from rlif_lightning.rollout.native import NativeEngine


class StaleEngine(NativeEngine):
    """Samples with the weights that training began with: a weight sync that was forgotten."""

    def setup(self, policy: Any, seed: int) -> None:
        if getattr(self, "policy", None) is None:
            super().setup(copy.deepcopy(policy), seed)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_policy_that_samples_is_the_trained_one_up_to_rounding(tmp_path, dtype):
    fit(tmp_path, f"--model.policy.dtype={dtype}")
    gaps = [float(row["policy/sampler_gap"]) for row in metrics(tmp_path)]
    assert len(gaps) == 2
    assert all(0 <= gap < 1e-5 for gap in gaps)
    assert not marked(tmp_path / "version_0")


def test_stale_weights_trip_the_alarm(tmp_path):
    with pytest.warns(UserWarning, match=r"SamplerGap, rollout 2: the trained policy's log-probs are"):
        fit(tmp_path, "--model.engine=test_sampler_gap.StaleEngine")
    gaps = [float(row["policy/sampler_gap"]) for row in metrics(tmp_path)]
    assert gaps[0] < 1e-5  # nothing has moved yet
    assert gaps[1] > 1e-3
    assert [event["kind"] for event in marked(tmp_path / "version_0")] == ["alarm"]


def test_half_precision_rounds_below_its_bound(tmp_path):
    fit(tmp_path, "--trainer.precision=bf16-mixed", "--trainer.limit_train_batches=1")  # a warning would be an error
    assert float(metrics(tmp_path)[0]["policy/sampler_gap"]) < 0.1


def test_a_bound_is_positive():
    with pytest.raises(ValueError, match="bound=0 must be positive"):
        SamplerGap(bound=0)
    assert torch.tensor(SamplerGap(bound=0.5).bound) == 0.5
