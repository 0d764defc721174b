"""Gates between heads: each reads the score that the other head gave, before gate and length."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rlif_lightning.records import Prompts, RewardOutput, Rollout, TokenStats
from rlif_lightning.rewards import Gate, RewardHead, RewardSet, WeightedReward

NAN = math.nan


class Fixed(RewardHead):
    """Gives the same scores each time."""

    def __init__(self, scores: list[float]):
        super().__init__()
        self.scores = torch.tensor(scores)

    def forward(self, rollout: Rollout) -> RewardOutput:
        return RewardOutput(self.scores)


def rollout_of(rows: int, group_size: int) -> Rollout:
    ones = torch.ones(rows, 2)
    count = rows // group_size
    prompts = Prompts([torch.tensor([1])] * count, [""] * count, {}, torch.arange(count))
    stats, ended = TokenStats(ones, ones, ones), torch.ones(rows, dtype=torch.bool)
    return Rollout(prompts, ones.long(), ones.bool(), stats, ["x"] * rows, ended, group_size)


def scores_of(names: str) -> dict[str, Tensor]:
    """Scores of three heads in this order: `format` gates `vote`, `vote` gates `certainty`."""
    heads = {
        "format": WeightedReward(Fixed([0.0, 1.0, 1.0, 0.0])),
        "vote": WeightedReward(Fixed([0.9, 0.9, 0.1, 0.1]), gate=Gate("format", 1.0)),
        "certainty": WeightedReward(Fixed([1.0, 2.0, 3.0, 4.0]), gate=Gate("vote", 0.5)),
    }
    outputs = RewardSet({name: heads[name] for name in names.split()})(rollout_of(4, 2))
    return {name: output.scores for name, output in outputs.items()}


@pytest.mark.parametrize("order", ["format vote certainty", "certainty vote format"])
def test_a_gate_reads_the_score_before_its_own_gate(order):
    """Completion 0's vote is gated away, but it was 0.9: its certainty counts, in any order."""
    scores = scores_of(order)
    assert scores["vote"].tolist() == pytest.approx([NAN, 0.9, 0.1, NAN], nan_ok=True)
    assert scores["certainty"].tolist() == pytest.approx([1.0, 2.0, NAN, NAN], nan_ok=True)


def test_a_gate_reads_the_score_with_its_length_left_in():
    """Scores 1, 2, 3 of lengths 1, 2, 3 become 2, 2, 2; the gate reads 1, 2, 3."""
    heads = {
        "raw": WeightedReward(Fixed([1.0, 2.0, 3.0]), length="neutral"),
        "gated": WeightedReward(Fixed([5.0, 6.0, 7.0]), gate=Gate("raw", 2.5)),
    }
    rollout = rollout_of(3, 3)
    mask = torch.arange(3) <= torch.arange(3).unsqueeze(1)  # lengths 1, 2, 3
    ones = torch.ones(3, 3)
    longer = Rollout(
        rollout.prompts,
        ones.long(),
        mask,
        TokenStats(ones, ones, ones),
        rollout.texts,
        rollout.ended,
        3,
    )
    scores = {name: output.scores for name, output in RewardSet(heads)(longer).items()}
    assert scores["raw"].tolist() == pytest.approx([2.0, 2.0, 2.0])
    assert scores["gated"].tolist() == pytest.approx([NAN, NAN, 7.0], nan_ok=True)
