"""What users' heads, advantages and objectives hand over: moved and converted once, or refused
under their names.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.rollouts import handmade
from rlif_lightning.learning.advantages import GDPO
from rlif_lightning.learning.loss_inputs import LossInputs
from rlif_lightning.learning.objectives import Clipped
from rlif_lightning.learning.rollout_advantages import score_rollout
from rlif_lightning.learning.updater import checked_marks
from rlif_lightning.records import RewardOutput, Rollout
from rlif_lightning.rewards import RewardHead, RewardSet, WeightedReward

SCORES = torch.tensor([0.0, 1.0])


class Returns(RewardHead):
    """Returns whatever it was given."""

    def __init__(self, output: Any):
        super().__init__()
        self.output = output

    def forward(self, rollout: Rollout) -> RewardOutput:
        return self.output


def ask(output: Any) -> RewardOutput:
    """What a set makes of a head's answer for one prompt with two completions."""
    return RewardSet({"mine": WeightedReward(Returns(output))})(handmade(["first", "second"], 2))[
        "mine"
    ]


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (
            "good",
            "'mine' returned scores of type str; a tensor, an array or a list of real numbers",
        ),
        (
            RewardOutput([0.0, "1"]),
            "'mine' returned scores of type list with '1'; a tensor, an array or a list of real",
        ),  # type: ignore[arg-type]
        (RewardOutput(SCORES + 1j), "scores of type torch.complex64"),
        (
            RewardOutput(torch.tensor([1.0, 1e300], dtype=torch.float64)),
            "'mine' returned an infinite score for 'sec",
        ),
        (
            RewardOutput(SCORES, torch.tensor([1, 0])),
            "'mine' returned keep_mask of torch.int64; it must be bool",
        ),
        (
            RewardOutput(SCORES, torch.tensor(True)),
            r"keep_mask of shape \(\); one per completion, \(2,\), is needed",
        ),
        (
            RewardOutput(SCORES, group_weight_factor=SCORES),
            r"group_weight_factor of shape \(2,\); one per prompt, \(1,\), is needed",
        ),
        (
            RewardOutput(SCORES, group_weight_factor=torch.tensor([torch.nan])),
            r"group_weight_factor=\[nan\]; all must be finite",
        ),
        (
            RewardOutput(SCORES, answers=["1"]),
            "'mine' returned 1 answers; one per completion, 2, is needed",
        ),
        (
            RewardOutput(SCORES, log={"mine/kind": "good"}),
            "'mine' logs 'mine/kind': 'good'; a log maps names to",
        ),  # type: ignore[arg-type]
        (RewardOutput(SCORES, log={"mine/each": SCORES}), "'mine' logs 'mine/each': tensor"),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_answer_is_refused_under_the_head_s_name(output, message):
    with pytest.raises(RuntimeError, match=message):
        ask(output)


def test_what_is_one_comes_out_in_one_form():
    log: dict = {"mine/longest": torch.tensor(2), "mine/share": 0.5}
    found = ask(
        RewardOutput(
            torch.tensor([3, 4]), torch.tensor([True, False]), log, torch.tensor([1]), ["a", None]
        )
    )
    assert found.scores.tolist() == pytest.approx([3.0, math.nan], nan_ok=True)  # dropped
    assert found.scores.dtype == torch.float32
    assert found.group_weight_factor is not None
    assert found.group_weight_factor.dtype == torch.float64
    assert found.keep_mask is not None
    assert (found.keep_mask.tolist(), found.answers, found.log) == ([True, False], ["a", None], log)
    learned = ask(RewardOutput(torch.ones(2, requires_grad=True)))
    assert not learned.scores.requires_grad


class Flat(GDPO):
    """An estimator that forgot the groups."""

    def total(self, parts: Tensor, lengths: Tensor | None = None) -> Tensor:
        return super().total(parts, lengths).flatten()


def test_advantages_of_a_wrong_shape_are_refused_under_the_estimator_s_name():
    rollout = handmade(["first", "second"] * 2, 2)
    outputs = {"mine": RewardOutput(torch.arange(4.0))}
    with pytest.raises(
        ValueError,
        match=r"advantage Flat returned shape \(4,\); one per completion, \(2, 2\), or one",
    ):
        score_rollout(rollout, outputs, Flat(), torch.ones(1))


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("stats.logprobs", lambda rollout: rollout.stats.logprobs.clamp_(min=-1)),
        ("stats.entropy", lambda rollout: rollout.stats.entropy.mul_(rollout.mask)),
        ("mask", lambda rollout: rollout.mask[:, 0].fill_(False)),
        ("texts", lambda rollout: rollout.texts.sort(reverse=True)),
    ],
)
def test_a_head_that_changes_the_rollout_in_place_is_refused(field, change):
    """Its log-probs are those that the update compares with; the run went on with other ones."""

    class Changes(Returns):
        def forward(self, rollout: Rollout) -> RewardOutput:
            change(rollout)
            return self.output

    heads = {"mine": WeightedReward(Changes(SCORES))}
    with pytest.raises(RuntimeError, match=rf"head 'mine' changed rollout\.{field} in place"):
        RewardSet(heads)(handmade(["first", "second"], 2))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"log": None}, r"'mine' returned log=None; a dictionary is needed"),
        ({"log": [("a", 1)]}, r"'mine' returned log=\[\('a', 1\)\]; a dictionary is needed"),
        ({"columns": None}, r"'mine' returned columns=None; a dictionary is needed"),
        ({"columns": {"a": 1}}, r"'mine' returned int values in the column 'a'; one per"),
        ({"answers": 7}, r"'mine' returned int answers; one per completion, 2, is needed"),
    ],
)
def test_what_stands_beside_the_scores_is_refused_under_the_head_s_name(given, message):
    with pytest.raises(RuntimeError, match=message):
        ask(RewardOutput(SCORES, **given))


@dataclass(frozen=True)
class Weighs(Clipped):
    """Marks with whole numbers, which could be places as well."""

    def select(self, update: LossInputs) -> Tensor:
        return update.mask.long()


def test_marks_that_are_neither_bools_nor_floats_are_refused_under_the_objective_s_name():
    values, mask = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(
        ValueError,
        match=r"objective Weighs.select returned torch.int64 of shape \(2, 3\); one bool or",
    ):
        checked_marks(Weighs(), LossInputs(values, values, values, mask, torch.arange(2)))


def test_a_policy_loss_that_is_no_loss_per_token_is_refused():
    """A mean, or a loss per completion, would be spread over all tokens without a word."""
    mask, values = torch.ones(2, 3, dtype=torch.bool), torch.zeros(2, 3)
    update = LossInputs(values, values, values, mask, torch.arange(2))
    for shape, found in (((), r"\(\)"), ((2, 1), r"\(2, 1\)")):

        class Means(Clipped):
            def policy_loss(self, batch: LossInputs, marks: torch.Tensor) -> torch.Tensor:
                return torch.zeros(shape)  # noqa: B023

        match = rf"Means.policy_loss returned shape {found}; one loss per token, \(2, 3\)"
        with pytest.raises(ValueError, match=match):
            Means().token_loss(update, mask)
