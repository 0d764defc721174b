"""Lightning's callbacks: an average of weights is that of the recursion, others are refused."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelPruning,
    SpikeDetection,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.tuner import Tuner

from harness.python_runs import Run, at, data, module, trainer
from rlif_lightning.running.stock_callbacks import REFUSED, check_callbacks

DECAY = 0.75
# A validation after each rollout, which is measured with the average.
VALIDATING = {"limit_val_batches": 1, "val_check_interval": 1, "check_val_every_n_epoch": None}
REFUSALS = [
    (lambda: BatchSizeFinder(), "BatchSizeFinder is not used: .*update.micro_batch_tokens"),
    (lambda: GradientAccumulationScheduler({0: 2}), "data.prompts_per_rollout"),
    (lambda: LearningRateFinder(), "LearningRateFinder is not used: .* several model.optimizer.lr"),
    (lambda: ModelPruning("l1_unstructured"), "drawn by other weights"),
    (lambda: SpikeDetection(), "SpikeDetection is not used: .*use CollapseGuard"),
    (lambda: StochasticWeightAveraging(0.1), r"use EMAWeightAveraging\(use_buffers=False\), and"),
    (lambda: EMAWeightAveraging(), r"use_buffers=True\) would average .*; set use_buffers=False"),
]


class Weights(Callback):
    """Keeps the policy's weights at the ends of rollouts, and at the beginnings of validations."""

    def __init__(self) -> None:
        self.trained: list[dict[str, torch.Tensor]] = []
        self.validated: list[dict[str, torch.Tensor]] = []

    def on_train_batch_end(self, *given: Any) -> None:
        self.trained.append(weights(given[1]))

    def on_validation_batch_start(self, *given: Any) -> None:
        self.validated.append(weights(given[1]))


def weights(trained: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in trained.policy.named_parameters()}


def run(folder: Any, *callbacks: Callback, **way: Any) -> tuple[Run, Weights]:
    kept = Weights()
    return Run(folder, 3, module(), data(), *callbacks, kept, trainer=VALIDATING, **way), kept


def averages(trained: list[dict[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
    """The first weights, then ``DECAY`` of the average and the rest of the new weights."""
    found = [trained[0]]
    for new in trained[1:]:
        old = found[-1]
        found.append({name: DECAY * old[name] + (1 - DECAY) * new[name] for name in new})
    return found


def ema() -> EMAWeightAveraging:
    return EMAWeightAveraging(use_buffers=False, decay=DECAY)


@pytest.mark.filterwarnings("ignore:You're using the WeightAveraging callback with a model")
def test_an_average_of_weights_is_validated_and_left_at_the_end(tmp_path):
    _, plain = run(tmp_path / "plain")
    averaged, kept = run(tmp_path / "ema", ema())
    assert len(kept.trained) == 3
    assert all(old[name].ne(new[name]).any() for old, new in pairwise(kept.trained) for name in old)
    torch.testing.assert_close(kept.trained, plain.trained, rtol=0, atol=0)
    expected = averages(kept.trained)
    torch.testing.assert_close(kept.validated, expected)
    torch.testing.assert_close(weights(averaged.module), expected[-1])
    assert int(averaged.module.num_rollouts) == 3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:You're using the WeightAveraging callback with a model")
def test_an_average_of_weights_goes_on_from_a_checkpoint(tmp_path):
    whole, kept = run(tmp_path / "whole", ema())
    checkpoint = at(whole.folder / "checkpoints", 1)
    resumed, later = run(tmp_path / "resumed", ema(), ckpt_path=checkpoint)
    torch.testing.assert_close(later.trained, kept.trained[1:], rtol=0, atol=0)
    torch.testing.assert_close(weights(resumed.module), weights(whole.module), rtol=0, atol=0)


@pytest.mark.parametrize(("build", "message"), REFUSALS)
def test_what_cannot_work_is_refused_with_what_to_use(build, message):
    with pytest.raises(ValueError, match=message):
        check_callbacks([build()], is_divided=False)


def test_every_refused_callback_is_tested():
    assert {type(build()) for build, _ in REFUSALS} == {*REFUSED, EMAWeightAveraging}


def test_an_average_of_weights_that_are_divided_is_refused():
    check_callbacks([Callback(), WeightAveraging(use_buffers=False)], is_divided=False)
    with pytest.raises(ValueError, match=r"copies whole weights, and trainer\.strategy divides"):
        check_callbacks([WeightAveraging(use_buffers=False)], is_divided=True)


def test_a_run_and_the_tuner_refuse_them(tmp_path):
    with pytest.raises(ValueError, match="StochasticWeightAveraging is not used"):
        Run(tmp_path / "swa", 1, module(), data(), StochasticWeightAveraging(0.1))
    with pytest.raises(ValueError, match="BatchSizeFinder is not used"):  # before its own setup
        Run(tmp_path / "size", 1, module(), data(), BatchSizeFinder())
    tuner = Tuner(trainer(tmp_path / "tuner", 1))
    with pytest.raises(ValueError, match="LearningRateFinder is not used"):
        tuner.lr_find(module(), datamodule=data())
