"""Figures of a rollout where heads drop completions, or log what another head logs too."""

from __future__ import annotations

import pytest
import torch

from harness.rollouts import handmade
from rlif_lightning.learning.advantages import GDPO
from rlif_lightning.learning.rollout_advantages import score_rollout, without_dropped
from rlif_lightning.records import RewardOutput
from rlif_lightning.rewards import ClusterVote


def figures(rollout, outputs):
    rollout, outputs = without_dropped(rollout, outputs)
    return score_rollout(rollout, outputs, GDPO(), torch.ones(len(outputs)))[1]


def test_the_mean_length_is_of_the_completions_that_are_kept():
    rollout = handmade(["1", "2", "3", "4"], 2)
    lengths = rollout.lengths.tolist()
    keep = torch.tensor([True, False, True, False])
    dropping = {"a": RewardOutput(torch.arange(4.0), keep_mask=keep)}
    assert float(figures(rollout, dropping)["rollout/length"]) == (lengths[0] + lengths[2]) / 2
    everything = {"a": RewardOutput(torch.arange(4.0))}
    assert float(figures(rollout, everything)["rollout/length"]) == sum(lengths) / 4
    nothing = {"a": RewardOutput(torch.arange(4.0), keep_mask=torch.zeros(4, dtype=torch.bool))}
    assert figures(rollout, nothing)["rollout/length"].isnan()


def test_a_head_does_not_replace_what_another_one_logged():
    """The second vote counts over the group: 2 of 4, not 2 of 3."""
    rollout = handmade([r"\boxed{1}", r"\boxed{1}", r"\boxed{2}", "nothing"], 4)
    heads = {"first": ClusterVote(), "second": ClusterVote(denominator="group")}
    outputs = {name: head(rollout) for name, head in heads.items()}
    greedy = RewardOutput(torch.ones(4), log={"policy/entropy": -1.0, "reward/first/mean": -2.0})
    found = figures(rollout, outputs | {"greedy": greedy})
    assert found["vote/largest_cluster"] == pytest.approx(2 / 3)
    assert found["reward/second/vote/largest_cluster"] == pytest.approx(2 / 4)
    assert found["reward/second/rollout/parseable"] == 3 / 4
    assert found["policy/entropy"] > 0
    assert found["reward/greedy/policy/entropy"] == -1
    assert found["reward/greedy/reward/first/mean"] == -2


def test_a_head_does_not_replace_what_the_run_logs_later():
    """Nor moves the axis of the loggers, which Lightning takes from a figure called step."""
    names = ["policy/clip_fraction", "time/update", "val/accuracy", "guard/alarms", "step", "epoch"]
    log = dict.fromkeys(names, -1.0)
    found = figures(
        handmade(["1", "2"], 2), {"mine": RewardOutput(torch.ones(2), log=log | {"mine/x": 2.0})}
    )
    assert not found.keys() & set(names)
    assert [found[f"reward/mine/{name}"] for name in names] == [-1] * len(names)
    assert found["mine/x"] == 2
