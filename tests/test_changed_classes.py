"""Changed settings on resume, of users' own classes, other optimisers, and defaults spelled out."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.python_runs import NAME, Run, adamw, at, data, module, rewards, sums
from rlif_lightning import PromptData, RLIFModule
from rlif_lightning.answers.checkers import AnswerChecker
from rlif_lightning.data.described import describe
from rlif_lightning.evaluation.evaluator import Evaluation
from rlif_lightning.rollout.native import NativeEngine


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> Path:
    """The checkpoints of a run after one and two rollouts."""
    return Run(tmp_path_factory.mktemp("first"), 2, module(), data()).folder / "checkpoints"


def resumed(folder: Path, before: Any, after: Any, rollout: int = 2, **settings: Any) -> Run:
    """Train for two rollouts, then resume with what ``after`` makes for a third one."""
    source = Run(folder / "before", 2, *before()).folder / "checkpoints"
    return Run(folder / "after", 3, *after(), ckpt_path=at(source, rollout), **settings)


def names(run: Run) -> list[str]:
    return [text.split(" (")[0] for text in run.said() if not text.startswith("trainer.max_steps")]


@pytest.mark.slow
def test_a_default_that_is_spelled_out_is_no_change(first, tmp_path):
    evaluation = Evaluation(checker=AnswerChecker())
    model = module(engine=NativeEngine(), evaluation=evaluation)
    spelled = model, data(validation_prompts_per_batch=2)
    assert names(Run(tmp_path, 3, *spelled, ckpt_path=at(first, 2))) == []


@pytest.mark.slow
def test_rewards_in_another_order_are_taken(first, tmp_path):
    other = module(rewards=rewards("length", "certainty"))
    run = Run(tmp_path, 3, other, data(), ckpt_path=at(first, 2))
    assert names(run) == ["model.rewards: [certainty, length] -> [length, certainty]"]


class Passing(RLIFModule):
    def __init__(self, **given: Any):
        super().__init__(**given)


class PassingData(PromptData):
    def __init__(self, **given: Any):
        super().__init__(**given)


@pytest.mark.slow
def test_the_optimizer_of_a_class_that_passes_its_arguments_on_is_compared(tmp_path):
    given = dict(module()._arguments)
    del given["optimizer"]
    run = resumed(
        tmp_path,
        lambda: (Passing(**given), data()),
        lambda: (Passing(**given, optimizer=adamw(1e-5)), data()),
    )
    assert names(run) == ["model.optimizer.init_args.lr: 1e-06 -> 1e-05"]
    assert run.group["lr"] == 1e-5


def test_the_place_in_the_data_of_a_class_that_passes_its_arguments_on_is_moved(tmp_path):
    given = {"source": sums(64), "tokenizer": NAME, "group_size": 2}
    run = resumed(
        tmp_path,
        lambda: (module(), PassingData(**given)),
        lambda: (module(), PassingData(**given, prompts_per_rollout=8)),
    )
    [text] = [text for text in run.said() if text.startswith("data.prompts_per_rollout")]
    assert "goes on with batch 5 of epoch 1; no problem is skipped or repeated" in text
    loaded: Any = run.trainer
    assert loaded.datamodule.state_dict()["train"]["batches_drawn"] == 5


class InDicts(RLIFModule):
    def configure_optimizers(self) -> Any:
        (optimizer,), (schedule,) = super().configure_optimizers()
        return {"optimizer": optimizer, "lr_scheduler": schedule}


@pytest.mark.slow
def test_a_new_rate_is_taken_in_every_form_of_configure_optimizers(tmp_path):
    given = dict(module()._arguments)
    run = resumed(
        tmp_path,
        lambda: (InDicts(**given), data()),
        lambda: (InDicts(**given | {"optimizer": adamw(1e-5)}), data()),
    )
    assert run.group["lr"] == 1e-5


def two_groups(matrices: float, others: float) -> Any:
    def make(parameters: Any) -> torch.optim.Optimizer:
        every = list(parameters)
        groups = [
            {"params": [each for each in every if each.ndim > 1], "lr": matrices},
            {"params": [each for each in every if each.ndim <= 1]},
        ]
        return torch.optim.AdamW(groups, lr=others)

    return make


@pytest.mark.slow
def test_the_rate_of_one_group_of_parameters_is_compared_and_taken(tmp_path):
    run = resumed(
        tmp_path,
        lambda: (module(optimizer=two_groups(1e-3, 1e-4)), data()),
        lambda: (module(optimizer=two_groups(5e-3, 1e-4)), data()),
    )
    assert names(run) == ["model.optimizer.param_groups.0.lr: 0.001 -> 0.005"]
    assert [group["lr"] for group in run.trainer.optimizers[0].param_groups] == [5e-3, 1e-4]


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        *(pytest.param(kind, marks=pytest.mark.full) for kind in (np.float64, np.float32)),
        torch.tensor,
    ],
)
def test_rates_of_numpy_and_tensors_can_be_saved_and_compared(tmp_path, kind):
    run = resumed(
        tmp_path,
        lambda: (module(optimizer=adamw(kind(0.5), np.float64(0.25))), data()),
        lambda: (module(optimizer=adamw(kind(0.125), np.float64(0.25))), data()),
    )
    assert names(run) == ["model.optimizer.init_args.lr: 0.5 -> 0.125"]
    assert run.group["lr"] == 0.125


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", [pytest.param(torch.optim.RMSprop, marks=pytest.mark.full), torch.optim.SGD]
)
def test_momentum_that_was_not_there_is_refused(tmp_path, kind):
    make = partial(kind, lr=1e-3)
    with pytest.raises(ValueError, match=r"init_args\.momentum: 0 -> 0\.9\); set it as before"):
        resumed(
            tmp_path,
            lambda: (module(optimizer=make), data()),
            lambda: (module(optimizer=partial(make, momentum=0.9)), data()),
        )


def test_a_set_of_values_of_several_types_is_described():
    assert describe({1, "a", None}, "x") == {"x": ["a", 1, None]}
