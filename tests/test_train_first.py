"""TrainFirst: a vote of the whole group, and advantages and gradients of its first completions."""

from __future__ import annotations

import json

import pytest
import torch

from harness.command_line import refused
from harness.rollouts import handmade
from harness.runs import BASE, ONE, TINY, fit
from rlif_lightning.learning.advantages import GRPO
from rlif_lightning.learning.rollout_advantages import score_rollout, without_dropped
from rlif_lightning.rewards import ClusterVote, RewardSet, TrainFirst, WeightedReward

FIRST = {"head": {"class_path": "TrainFirst", "init_args": {"count": 2}}}


def test_the_whole_group_votes_and_the_first_completions_are_compared():
    """By hand: 5 has four votes of six, of which one is among the first three, 3 has two."""
    texts = ["3", "5", "3", "5", "5", "5"]
    rewards = RewardSet(
        {"vote": WeightedReward(ClusterVote(mode="hard")), "first": WeightedReward(TrainFirst(3))}
    )
    rollout = handmade(texts, 6)
    kept, outputs = without_dropped(rollout, rewards(rollout))
    assert kept.mask.any(-1).tolist() == [True] * 3 + [False] * 3
    assert outputs["vote"].scores[:3].tolist() == [0, 1, 0]
    assert outputs["vote"].scores[3:].isnan().all()
    advantages, _ = score_rollout(kept, outputs, GRPO(eps=0.0), rewards.weights)
    root = 3**0.5  # of 0 1 0: mean 1/3, standard deviation 1/sqrt(3)
    expected = [-1 / root, 2 / root, -1 / root, 0, 0, 0]
    assert advantages[:, 0].tolist() == pytest.approx(expected)


def test_each_group_keeps_its_first():
    output = TrainFirst(2)(handmade(["1"] * 8, 4))
    assert output.keep_mask is not None
    assert output.keep_mask.tolist() == [True, True, False, False] * 2
    assert output.scores.isnan().all()


def test_what_leaves_nothing_out_or_nothing_to_compare_is_refused(tmp_path, capsys):
    with pytest.raises(ValueError, match="count=1 must be at least 2"):
        TrainFirst(1)
    given = ["fit", *BASE, *TINY, f"--trainer.default_root_dir={tmp_path}"]
    said = refused(capsys, *given, f"--model.rewards.first={json.dumps(FIRST)}")
    assert "count=2 leaves out nothing of data.group_size=2" in said


@pytest.mark.slow
def test_a_run_trains_on_them_alone(tmp_path):
    """What the update counts: the tokens of half the completions."""
    given = [*ONE, "--trainer.limit_val_batches=0", f"--model.rewards.first={json.dumps(FIRST)}"]
    run = fit(tmp_path, *given)
    assert torch.isfinite(torch.tensor(float(run.trainer.callback_metrics["policy/entropy"])))
