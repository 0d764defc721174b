"""A module that is used again after a run of it was broken off: as if that had not begun."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor

from harness.python_runs import Run, data, module, sums, trainer, update
from rlif_lightning import Evaluation, MeanLogprob, WeightedReward
from rlif_lightning.data.curriculum import LearnableFirst
from rlif_lightning.learning.loss_inputs import LossInputs
from rlif_lightning.learning.objectives import Clipped

# The policy's own layers are quiet once they have been used; Lightning says so.
pytestmark = pytest.mark.filterwarnings("ignore:Found .* in eval mode")


class Stumbles(Callback):
    def on_validation_batch_end(self, *given: Any) -> None:
        raise ConnectionError("a judge is gone")


def test_an_evaluation_counts_no_problem_of_one_that_was_broken_off(tmp_path):
    whole, again = (module(evaluation=Evaluation(samples=2)) for _ in range(2))
    problems = {"answer_column": "answer", "validation_prompts_per_batch": 2}

    def evaluate(model: Any, *callbacks: Callback) -> dict[str, Any]:
        runs = trainer(tmp_path, 1, *callbacks, limit_val_batches=1.0)
        runs.validate(model, datamodule=data(**problems))
        return model.report.as_dict()

    with pytest.raises(ConnectionError):
        evaluate(again, Stumbles())
    expected = evaluate(whole)
    assert expected["problems"] == 4
    assert evaluate(again) == expected


def test_heads_learn_after_an_evaluation_that_was_broken_off(tmp_path):
    """Their modes too: a spread is learned in training alone."""
    again, fresh = (
        module(rewards={"certainty": WeightedReward(MeanLogprob(), spread_floor=0.5)})
        for _ in range(2)
    )
    with pytest.raises(ConnectionError):
        trainer(tmp_path, 1, Stumbles(), limit_val_batches=1.0).validate(again, datamodule=data())
    found, expected = (
        Run(tmp_path / name, 1, model, data()).state()
        for name, model in (("again", again), ("fresh", fresh))
    )
    assert expected["rewards.spreads"].any()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


@dataclass(frozen=True)
class Stumbling(Clipped):
    """Fails in the second micro-batch of a run, once."""

    micro_batches: ClassVar[int] = 0

    def policy_loss(self, batch: LossInputs, marks: Tensor) -> Tensor:
        Stumbling.micro_batches += 1
        if Stumbling.micro_batches == 2:
            raise RuntimeError("a cable was pulled")
        return super().policy_loss(batch, marks)


def test_training_begins_without_what_one_that_was_broken_off_left(tmp_path):
    """Gradients that were added up, and what was written into the table of problems."""
    settings = {"objective": Stumbling(), "update": update(micro_batch_tokens=8)}
    model = module(**settings)

    def fit(name: str, model: Any) -> dict[str, Tensor]:
        source = LearnableFirst(sums(4), "certainty")
        return Run(tmp_path / name, 1, model, data(source=source)).state()

    with pytest.raises(RuntimeError, match="a cable was pulled"):
        fit("broken off", model)
    again, fresh = fit("again", model), fit("fresh", module(**settings))
    assert all(torch.equal(value, again[name]) for name, value in fresh.items())
