"""Curricula by the run's own scores: the order by hand, and a resume in the middle of an epoch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from harness.command_line import base, refused
from harness.runs import LONG, ONE, assert_same, fit, parameters
from rlif_lightning import (
    ArithmeticProblems,
    ClusterVote,
    EasyFirst,
    GoldAnswer,
    LearnableFirst,
    PromptData,
    PromptTable,
    RewardOutput,
    RLIFModule,
    WeightedReward,
)
from rlif_lightning.evaluation.label_checks import label_uses


@dataclass
class Seen:
    """What a curriculum reads of a rollout."""

    index: torch.Tensor

    @property
    def prompts(self) -> Seen:
        return self

    @property
    def num_prompts(self) -> int:
        return len(self.index)


def remembering(scores: dict[int, list[float]], **settings) -> LearnableFirst:
    source = LearnableFirst(ArithmeticProblems(size=6), "vote", **settings)
    table = PromptTable()
    source.use_table(table)
    rows = torch.tensor(list(scores))
    flat = torch.tensor([score for group in scores.values() for score in group])
    source.observe(Seen(rows), {"vote": RewardOutput(flat)})  # pyright: ignore
    table.gather()
    return source


NAN = float("nan")


def test_the_order_by_hand():
    """Means 1, 0.75, 0.5, 0.1 and none twice: distances 0.5, 0.25, 0, 0.4, 0, 0 from 0.5."""
    scores = {0: [1.0, 1.0], 1: [1.0, 0.5], 2: [0.5, 0.5], 3: [0.1, NAN], 4: [NAN, NAN]}
    source = remembering(scores, jitter=0.0)
    order = source.order(np.arange(6), 0, 1).tolist()
    assert sorted(order[:3]) == [2, 4, 5]
    assert order[3:] == [1, 3, 0]
    assert {tuple(source.order(np.arange(6), seed, 1)[:3]) for seed in range(20)} != {(2, 4, 5)}
    assert source.order(np.array([0, 1, 3]), 0, 1).tolist() == [1, 2, 0]  # places, not rows


def test_another_target_and_jitter():
    scores = {0: [1.0], 1: [0.6], 2: [0.2], 3: [0.9], 4: [0.0], 5: [0.5]}
    assert remembering(scores, target=1.0, jitter=0.0).order(np.arange(6), 0, 0).tolist() == [
        0, 3, 1, 5, 2, 4,
    ]  # fmt: skip
    moved = remembering(scores, target=1.0, jitter=1.0).order(np.arange(6), 0, 0).tolist()
    assert sorted(moved) == list(range(6))


def loader(source: LearnableFirst):
    data = PromptData(source, "rlif-arithmetic", prompts_per_rollout=2)
    data.setup("fit")
    return data.train_dataloader()


def test_an_epoch_that_has_begun_keeps_its_order():
    scores = {0: [1.0], 1: [0.6], 2: [0.2], 3: [0.9], 4: [0.0], 5: [0.5]}
    whole = [batch.index.tolist() for batch in loader(remembering(scores))]
    begun = loader(remembering(scores))
    first = next(iter(begun)).index.tolist()
    # What the rollout was worth has changed the table since.
    again = loader(remembering({5: [1.0], 0: [0.5]}))
    again.load_state_dict(begun.state_dict())
    assert [first, *([batch.index.tolist() for batch in again][:2])] == whole


def given(*more: str) -> list[str]:
    problems = {"class_path": "ArithmeticProblems", "init_args": {"size": 16, "validation_size": 8}}
    settings = {"reward": "vote", "source": problems}
    source = json.dumps({"class_path": "LearnableFirst", "init_args": settings})
    return [f"--data.source={source}", "--data.prompts_per_rollout=4", *more]


@pytest.fixture(autouse=True)
def _no_generated_sizes(monkeypatch):
    import harness.runs

    kept = [each for each in harness.runs.BASE if "data.source.init_args" not in each]
    monkeypatch.setattr(harness.runs, "BASE", kept)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The dirpath has changed from:UserWarning")
def test_a_run_that_was_stopped_within_an_epoch_is_the_uninterrupted_one(tmp_path):
    epochs = [*given("--model.update.updates_per_rollout=2"), "--trainer.limit_train_batches=1.0"]
    whole = fit(tmp_path / "whole", *LONG, *epochs)
    fit(tmp_path / "parts", *LONG, *epochs, "--trainer.max_steps=12")
    resumed = fit(tmp_path / "parts", *LONG, *epochs, "--ckpt_path=auto")
    assert int(resumed.model.num_rollouts) == int(whole.model.num_rollouts) == 8
    assert_same(parameters(whole), parameters(resumed))
    column = whole.model.prompt_table.columns["curriculum/vote"]
    assert len(column.values) == 16
    assert column.values == resumed.model.prompt_table.columns["curriculum/vote"].values


def test_a_problem_that_was_replaced_is_remembered_too(tmp_path):
    """Otherwise what is always right would be new, and come first, in every epoch."""
    draws = '--model.dynamic_sampling={"heads": ["vote"], "max_draws": 3}'
    cool = ["--model.sampling.temperature=0.3", "--trainer.limit_val_batches=0"]
    run = fit(tmp_path, *ONE, *given(draws), *cool)
    figures = {name: float(value) for name, value in run.trainer.callback_metrics.items()}
    assert figures["dynamic/extra_groups"] > 1
    values = run.model.prompt_table.columns["curriculum/vote"].values
    assert len(values) == 4 + figures["dynamic/extra_groups"]
    assert (1.0,) in values.values()


def test_an_unknown_reward_and_a_source_with_an_order_are_refused(tmp_path, capsys):
    arguments = ["fit", *base("data.source"), *given("--data.source.init_args.reward=votes")]
    told = refused(capsys, *arguments, f"--trainer.default_root_dir={tmp_path}")
    assert "data.source.reward='votes' is none of the rewards vote, certainty" in told
    with pytest.raises(ValueError, match="source=EasyFirst has an order of its own"):
        LearnableFirst(EasyFirst(ArithmeticProblems(), "level"), "vote")
    with pytest.raises(ValueError, match="jitter=-1"):
        LearnableFirst(ArithmeticProblems(), "vote", jitter=-1)


def test_an_order_by_gold_answers_is_a_use_of_labels():
    rewards = {"vote": ClusterVote(), "gold": WeightedReward(GoldAnswer(), weight=0.0)}
    module = RLIFModule("rlif-arithmetic", rewards, group_size=4)
    for source, told in (
        (LearnableFirst(ArithmeticProblems(), "vote"), []),
        (
            LearnableFirst(ArithmeticProblems(), "gold"),
            ["problems are ordered by `gold`, which reads gold answers"],
        ),
        (EasyFirst(ArithmeticProblems(), "level"), []),
        (
            EasyFirst(ArithmeticProblems(), "meta.answer"),
            ["problems are ordered by the column `meta.answer` of gold answers"],
        ),
    ):
        module._trainer = SimpleNamespace(datamodule=SimpleNamespace(source=source))
        assert label_uses(module) == told
