"""VoteBand: groups kept by the share of their largest cluster, and what becomes of the others."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch

from harness.rollouts import handmade
from harness.runs import ONE, assert_same, column, fit, parameters
from rlif_lightning.learning.advantages import GDPO
from rlif_lightning.learning.dynamic_sampling import groups_with_signal
from rlif_lightning.learning.rollout_advantages import score_rollout, without_dropped
from rlif_lightning.model.loading import Policy
from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.rewards import ClusterVote, RewardSet, VoteBand, WeightedReward

GROUPS = {  # largest share; larger than each other one; more than half
    "7 7 7 7": (1.0, True, True),
    "7 7 7 8": (0.75, True, True),
    "7 7 8 9": (0.5, True, False),
    "7 7 8 8": (0.5, False, False),
    "7 7.0 8 no": (2 / 3, True, True),  # of three answers
    "6 7 8 9": (0.25, False, False),
    "7 no no no": (0.0, False, False),  # one answer is no vote
    "no no no no": (0.0, False, False),
}
TEXTS = [text for group in GROUPS for text in group.split()]


def kept(**settings) -> list[bool]:
    output = VoteBand(**settings)(handmade(TEXTS, 4))
    assert output.scores.isnan().all()
    assert output.keep_mask is not None
    groups = output.keep_mask.view(-1, 4)
    assert torch.equal(groups.all(-1), groups.any(-1))  # whole groups
    whole = groups.all(-1).tolist()
    assert output.log == {"vote/kept": sum(whole) / len(whole)}
    return whole


def test_hand_worked_groups():
    facts = list(GROUPS.values())
    assert kept() == [True] * len(GROUPS)
    assert kept(majority="unique") == [unique for _, unique, _ in facts]
    assert kept(majority="half") == [half for _, _, half in facts]
    for low, high in ((0.5, 0.75), (0.75, 1.0), (0.0, 0.25), (2 / 3, 2 / 3)):
        expected = [low <= share <= high for share, _, _ in facts]
        assert kept(share=(low, high)) == expected
    assert kept(share=(0.5, 0.8), majority="half") == [
        False, True, False, False, True, False, False, False,
    ]  # fmt: skip


def test_an_independent_restatement_on_random_groups():
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(0, 4, (200, 6), generator=generator).tolist()  # 0: no answer
    texts = [str(value) if value else "no" for group in drawn for value in group]
    for majority, ratio in (("unique", 1.0), ("half", None)):
        band = VoteBand((0.3, 0.7), majority)(handmade(texts, 6))
        assert band.keep_mask is not None
        for group, found in zip(drawn, band.keep_mask.view(-1, 6)[:, 0].tolist(), strict=True):
            votes = sorted(Counter(value for value in group if value).values(), reverse=True)
            total = sum(votes)
            wins = len(votes) == 1 or (len(votes) > 1 and votes[0] > votes[1])
            if ratio is None:
                wins = total > 0 and votes[0] > total - votes[0]
            expected = total >= 2 and wins and 0.3 <= votes[0] / total <= 0.7
            assert found == expected


def test_a_group_that_is_left_out_is_as_if_it_were_not_there():
    """Of three groups the middle one has no majority: advantages are those of the two others."""
    texts = ["1", "1", "2", "7", "8", "9", "4", "5", "5"]
    rewards = {"vote": WeightedReward(ClusterVote()), "band": WeightedReward(VoteBand((0.5, 1.0)))}
    rollout = handmade(texts, 3)
    dropped, outputs = without_dropped(rollout, RewardSet(rewards)(rollout))
    assert dropped.mask.view(3, 3, -1).any(-1).any(-1).tolist() == [True, False, True]
    advantages, _ = score_rollout(dropped, outputs, GDPO(), torch.tensor([1.0, 1.0]))
    rest = texts[:3] + texts[6:]
    vote = RewardSet({"vote": WeightedReward(ClusterVote())})
    alone = handmade(rest, 3)
    expected, _ = score_rollout(alone, vote(alone), GDPO(), torch.ones(1))
    assert torch.equal(advantages[[0, 1, 2, 6, 7, 8]], expected)
    assert not advantages[3:6].any()
    assert groups_with_signal(outputs, ["vote"], 3).tolist() == [True, False, True]


QUICK = [*ONE, "--trainer.limit_val_batches=0"]


def band(**settings) -> str:
    part = {"head": {"class_path": "VoteBand", "init_args": settings}}
    return f"--model.rewards.band={json.dumps(part)}"


@pytest.mark.full  # a band keeps every group: above, and advantages without it
def test_a_band_of_everything_changes_nothing(tmp_path):
    plain, banded = fit(tmp_path / "plain", *QUICK), fit(tmp_path / "band", *QUICK, band())
    assert_same(parameters(banded), parameters(plain))
    assert column(tmp_path / "band", "vote/kept") == [1.0]


@pytest.mark.slow
def test_groups_beyond_the_band_teach_nothing(tmp_path):
    """No group of four agrees by 0.3 of its answers: 1, 3/4, 2/3, 1/2, 1/3 and 1/4 there are."""
    run = fit(tmp_path, *QUICK, band(share=[0.28, 0.3]))
    assert column(tmp_path, "vote/kept") == [0.0]
    assert_same(parameters(run), PolicyModel(Policy("rlif-arithmetic")).state_dict())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"share": (0.6, 0.5)}, r"share=\(0.6, 0.5\) must be \(low, high\)"),
        ({"share": (-0.1, 0.5)}, "0 <= low"),
        ({"share": (0.5, 1.5)}, "high <= 1"),
        ({"majority": "most"}, "majority='most' is unknown; use one of any, unique, half"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        VoteBand(**settings)
