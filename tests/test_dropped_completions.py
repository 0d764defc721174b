"""Completions that a head takes out have no part in options of rewards, spreads or figures."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from callbacks.kl_cov_scheduler import Schedule
from callbacks.symptoms import symptoms
from harness.rollouts import handmade
from harness.runs import ONE as ONE_ROLLOUT
from harness.runs import TINY, adding, fit, marked
from rlif_lightning.learning.advantages import GDPO
from rlif_lightning.learning.baselines import ReinforcePlusPlus
from rlif_lightning.learning.rollout_advantages import score_rollout, without_dropped
from rlif_lightning.records import RewardOutput
from rlif_lightning.rewards import DropTruncated, Gate, RewardHead, RewardSet, WeightedReward

ONE = torch.ones(1)


class Fixed(RewardHead):
    """Scores that are given, one per completion."""

    def __init__(self, scores: list[float]):
        super().__init__()
        self.scores = scores

    def forward(self, rollout):
        return RewardOutput(torch.tensor(self.scores))


def score(texts, group_size, ended, **rewards):
    rollout = replace(handmade(texts, group_size), ended=torch.tensor(ended))
    drop = WeightedReward(DropTruncated())
    return RewardSet({**rewards, "drop": drop})(rollout)


def test_a_spread_floor_is_of_the_completions_that_stay():
    """Groups 1, 0, (9) and 1, 0, 0.5: spreads 0.707 and 0.5, usual 0.604."""
    head = WeightedReward(Fixed([1, 0, 9, 1, 0, 0.5]), spread_floor=1.0)
    outputs = score(["1"] * 6, 3, [True, True, False, True, True, True], head=head)
    usual = (math.sqrt(0.5) + 0.5) / 2
    expected = torch.tensor([1.0, 0.5 / usual], dtype=torch.float64)
    torch.testing.assert_close(outputs["head"].group_weight_factor, expected)


def test_the_line_of_a_neutral_length_is_of_the_completions_that_stay():
    """Scores 1, 2, 3 at lengths 1, 2, 3 are linear: their mean is left, whatever the fourth has."""
    head = WeightedReward(Fixed([1, 2, 3, -9]), length="neutral")
    outputs = score(["1", "11", "111", "1111"], 4, [True, True, True, False], head=head)
    torch.testing.assert_close(outputs["head"].scores[:3], torch.full((3,), 2.0))


@pytest.mark.parametrize(("ended", "passes"), [(True, True), (False, False)])
def test_a_gate_asks_whether_those_that_stay_are_unanimous(ended, passes):
    gated = WeightedReward(Fixed([1, 2, 3]), gate=Gate("vote", unanimous="zero"))
    vote = WeightedReward(Fixed([1, 1, 0]))
    outputs = score(["1"] * 3, 3, [True, True, ended], vote=vote, gated=gated)
    assert (~outputs["gated"].scores[:2].isnan()).tolist() == [passes, passes]


@pytest.mark.parametrize("estimator", [GDPO("sample"), ReinforcePlusPlus("sample")], ids=str)
def test_the_batch_is_of_the_completions_that_stay(estimator):
    """A dropped completion changes no advantage of the others, as if the batch lacked it."""
    kept = torch.tensor([[[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]]])
    longer = torch.cat([kept, torch.full((1, 2, 2), torch.nan)], -1)
    lengths = torch.tensor([[2, 1, 1, 0, 0], [1, 3, 4, 0, 0]])
    expected = estimator(kept, ONE, lengths[:, :3])
    torch.testing.assert_close(estimator(longer, ONE, lengths)[:, :3], expected)


def test_the_entropy_of_no_completion_is_not_zero():
    rollout = handmade(["1", "2"], 2)
    outputs = {"a": RewardOutput(torch.arange(2.0), keep_mask=torch.zeros(2, dtype=torch.bool))}
    rollout, outputs = without_dropped(rollout, outputs)
    figures = score_rollout(rollout, outputs, GDPO(), ONE)[1]
    assert math.isnan(figures["policy/entropy"])


def test_a_schedule_rests_where_no_entropy_was_measured():
    schedule = Schedule(start=0.05, target=(0.5, 1.0), bounds=(0.01, 1.0))
    assert schedule.value(3, 0.1, math.nan) == 0.1
    assert schedule.value(3, 0.1, 0.2) > 0.1


def test_a_run_that_drops_every_completion_goes_on(tmp_path):
    """No entropy is measured, so nobody takes it for a collapse."""
    heads = {
        "vote": {"head": "ClusterVote", "weight": 1.0},
        "drop": {"head": "DropTruncated", "weight": 1.0},
    }
    weight = {"start": 0.05, "target": [0.5, 1.0], "bounds": [0.01, 1.0]}
    run = fit(
        tmp_path,
        f"--model.rewards={json.dumps(heads)}",
        "--model.sampling.max_new_tokens=2",
        "--model.sampling.min_new_tokens=2",
        "--trainer.limit_val_batches=0",
        adding("EntropyMonitor"),
        adding("KLCovScheduler", weight=weight),
        adding("CollapseGuard", baseline=1),
    )
    figures = {name: float(value) for name, value in run.trainer.callback_metrics.items()}
    assert math.isnan(figures["policy/entropy"])
    assert math.isnan(figures["entropy/p50"])
    assert figures["kl_cov/weight"] == pytest.approx(0.05)
    assert figures["rollout/tokens_per_second"] > 0
    assert {event["kind"] for event in marked(tmp_path)} <= {"schedule"}


def test_the_alignment_of_the_guard_is_of_the_completions_that_stay():
    """Advantages 1, 1, -2 follow the votes 2/4, 2/4, 1/4 exactly; a dropped fourth says nothing."""
    rollout = handmade(["1"] * 4, 4)
    kept = replace(rollout, mask=rollout.mask & torch.tensor([[True], [True], [True], [False]]))
    advantages = torch.tensor([1.0, 1.0, -2.0, 0.0]).unsqueeze(1).expand(kept.mask.shape)
    figures = symptoms(kept, ["1", "1", "2", "3"], advantages)
    assert figures["guard/vote_alignment"] == pytest.approx(1.0)
    nobody = replace(rollout, mask=torch.zeros_like(rollout.mask))
    assert math.isnan(symptoms(nobody, ["1", "1", "2", "3"], advantages)["guard/vote_alignment"])


@pytest.mark.slow
def test_completion_files_have_the_length_and_the_log_probs_of_what_was_dropped(tmp_path):
    """A mean log-prob of 0 would be that of a completion which is certain."""
    drop = '--model.rewards.drop={"head": "DropTruncated", "weight": 0}'
    fit(tmp_path, drop, *TINY, *ONE_ROLLOUT, adding("CompletionWriter", groups=4))
    lines = next(tmp_path.rglob("completions.jsonl")).read_text().splitlines()
    found = [record for record in map(json.loads, lines) if not record["ended"]]
    assert found
    for record in found:
        assert (record["length"], record["advantage"]) == (8, 0.0)
        assert record["mean_logprob"] < 0 < record["mean_entropy"]
        assert record["scores"] == {"vote": None, "certainty": None, "drop": None}
