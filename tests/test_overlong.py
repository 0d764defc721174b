"""Completions at the length limit: the penalty by hand, and what taking them out does to a run."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from harness.files import ROOT
from harness.rollouts import handmade
from harness.runs import ONE, fit
from rlif_lightning.learning.advantages import GRPO
from rlif_lightning.learning.rollout_advantages import without_dropped
from rlif_lightning.records import RewardOutput
from rlif_lightning.rewards import DropTruncated, OverlongPenalty


def of_lengths(lengths: list[int], ended: list[bool]):
    rollout = handmade(["1"] * len(lengths), len(lengths))
    mask = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)
    ids = torch.ones_like(mask, dtype=torch.int64)
    stats = rollout.stats.map(lambda values: torch.zeros(mask.shape))
    return replace(rollout, completion_ids=ids, mask=mask, stats=stats, ended=torch.tensor(ended))


def test_the_penalty_by_hand():
    """Limit 20, buffer 8: 0 up to 12 tokens, -1/8 at 13, -1/2 at 16, -1 from 20 on."""
    rollout = of_lengths([1, 12, 13, 16, 20, 30], [True] * 6)
    scores = OverlongPenalty(limit=20, buffer=8)(rollout).scores
    torch.testing.assert_close(scores, torch.tensor([0.0, 0.0, -0.125, -0.5, -1.0, -1.0]))


@pytest.mark.parametrize(("limit", "buffer"), [(10, 0), (10, 11), (0, 0)])
def test_bad_limits_are_refused(limit, buffer):
    with pytest.raises(ValueError, match=f"limit={limit}, buffer={buffer}: need 0 < buffer"):
        OverlongPenalty(limit, buffer)


def test_truncated_completions_count_nowhere():
    rollout = of_lengths([3, 5, 2], [True, False, True])
    output = DropTruncated()(rollout)
    assert output.scores.isnan().all()
    other = RewardOutput(torch.tensor([1.0, 9.0, 0.0]))
    kept, outputs = without_dropped(rollout, {"drop": output, "other": other})
    assert kept.mask.sum(1).tolist() == [3, 0, 2]
    assert outputs["other"].scores.isnan().tolist() == [False, True, False]


@pytest.mark.slow
def test_a_run_that_drops_truncated_completions(tmp_path):
    """Of completions of at most 6 tokens most are cut; training goes on with the others."""
    heads = {
        "vote": {"head": "ClusterVote", "weight": 1.0},
        "drop": {"head": "DropTruncated", "weight": 1.0},
        "overlong": {
            "head": {"class_path": "OverlongPenalty", "init_args": {"limit": 6, "buffer": 3}},
            "weight": 0.5,
        },
    }
    run = fit(
        tmp_path,
        f"--model.rewards={json.dumps(heads)}",
        "--model.sampling.max_new_tokens=6",
        *ONE,
    )
    figures = run.trainer.callback_metrics
    ended, length = float(figures["rollout/ended"]), float(figures["rollout/length"])
    assert 0 < ended < 1
    assert 0 < length <= 6
    assert float(figures["reward/drop/share"]) == 0
    assert run.trainer.global_step == 4


def test_the_overlay_trains_on_its_own_rewards(tmp_path):
    """Its penalty ends at its limit of generation, and a completion at it is left out."""
    overlay = f"--config={ROOT / 'configs' / 'objectives' / 'overlong.yaml'}"
    run = fit(tmp_path, overlay, *ONE)
    settings = run.model.rewards.settings
    assert set(settings) == {"vote", "cut", "overlong"}
    penalty = settings["overlong"].head
    assert (penalty.limit, penalty.buffer) == (run.model.sampling.max_new_tokens, 12)
    assert isinstance(settings["cut"].head, DropTruncated)
    assert run.model.advantage == GRPO()
    assert run.trainer.global_step == 4
    assert float(run.trainer.callback_metrics["policy/grad_norm"]) > 0
