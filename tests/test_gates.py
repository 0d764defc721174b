"""Gates between heads: each reads the score that the other head gave, before gate and length."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from harness.rollouts import Given, handmade
from rlif_lightning.rewards import Gate, RewardSet, WeightedReward

NAN = math.nan


def scores_of(names: str) -> dict[str, Tensor]:
    """Scores of three heads in this order: `format` gates `vote`, `vote` gates `certainty`."""
    heads = {
        "format": WeightedReward(Given(torch.tensor([0.0, 1.0, 1.0, 0.0]))),
        "vote": WeightedReward(Given(torch.tensor([0.9, 0.9, 0.1, 0.1])), gate=Gate("format", 1.0)),
        "certainty": WeightedReward(
            Given(torch.tensor([1.0, 2.0, 3.0, 4.0])), gate=Gate("vote", 0.5)
        ),
    }
    outputs = RewardSet({name: heads[name] for name in names.split()})(handmade(["x"] * 4, 2))
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
        "raw": WeightedReward(Given(torch.tensor([1.0, 2.0, 3.0])), length="neutral"),
        "gated": WeightedReward(Given(torch.tensor([5.0, 6.0, 7.0])), gate=Gate("raw", 2.5)),
    }
    outputs = RewardSet(heads)(handmade(["x"] * 3, 3))  # lengths 1, 2, 3
    scores = {name: output.scores for name, output in outputs.items()}
    assert scores["raw"].tolist() == pytest.approx([2.0, 2.0, 2.0])
    assert scores["gated"].tolist() == pytest.approx([NAN, NAN, 7.0], nan_ok=True)
