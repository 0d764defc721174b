"""FlipWeight: the weights of a problem's visits by hand, and against a restatement."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from harness.command_line import refused
from harness.rollouts import handmade
from harness.runs import BASE, TINY, column, fit
from rlif_lightning.data.prompt_table import PromptTable
from rlif_lightning.learning.advantages import GDPO
from rlif_lightning.learning.rollout_advantages import score_rollout
from rlif_lightning.learning.scored_rollouts import evaluating
from rlif_lightning.rewards import ClusterVote, FlipWeight

VOTE = {"class_path": "ClusterVote", "init_args": {"mode": "hard"}}
FLIPS = {"head": {"class_path": "FlipWeight", "init_args": {"head": VOTE}}, "weight": 1.0}


def group(majority: str, votes: int, size: int = 10) -> list[str]:
    """Completions of which so many give the majority, and each other one its own answer."""
    return [majority] * votes + [str(100 + n) for n in range(size - votes)]


def visits(groups: list[list[str]], **settings) -> tuple[list[float], list[float]]:
    """The weights and the flips of one problem's visits."""
    head, table = FlipWeight(ClusterVote(mode="hard"), **settings), PromptTable()
    head.use_table(table, "vote")
    weights, flips = [], []
    for number, texts in enumerate(groups):
        with table.visiting(number, 0):
            output = head(handmade(texts, len(texts)))
        table.gather()
        assert output.group_weight_factor is not None
        weights += output.group_weight_factor.tolist()
        flips.append(output.log["vote/flips"])
        assert output.log["vote/flip_weight"] == weights[-1]
    return weights, flips


def test_by_hand():
    """Of 3 3 5 3 3 the third and the fourth visit flip, and the fourth has a large majority."""
    shown = [group("3", 4), group("3.0", 4), group("5", 4), group("3", 7), group("3", 4)]
    weights, flips = visits(shown)
    assert flips == [0, 0, 1, 1, 0]
    assert weights == pytest.approx([1, 1, 0.5, 0.35, 1])


def test_a_majority_that_never_flips_counts_less_five_times():
    weights, flips = visits([group("3", 7)] * 12)
    assert not any(flips)
    assert weights == pytest.approx([1] * 4 + [0.85] * 5 + [1] * 3)
    assert visits([group("3", 6)] * 6)[0] == [1.0] * 6  # 0.6 is not above 0.6
    after_a_flip = [group("5", 7)] + [group("3", 7)] * 8
    assert visits(after_a_flip)[0] == pytest.approx([1, 0.35] + [1] * 7)


def test_no_answer_is_a_majority_of_its_own_and_a_weight_has_a_floor():
    nothing = ["no"] * 10
    weights, flips = visits([nothing, group("3", 7), nothing, nothing], flip_cost=1.0)
    assert flips == [0, 1, 1, 0]
    assert weights == pytest.approx([1, 0.1, 0.1, 1])


def restated(labels: list[int], shares: list[float]) -> list[float]:
    """The weights by the rules' own words, from the whole history at each visit."""
    weights, times = [], 0
    for now in range(len(labels)):
        flips = [a != b for a, b in pairwise(labels[: now + 1])]
        weight = 1.0
        if now and flips[-1]:
            weight = 0.5 * (0.7 if shares[now] > 0.6 else 1.0)
        recent = shares[max(0, now - 4) : now + 1]
        if not any(flips) and now >= 4 and sum(recent) / len(recent) > 0.6 and times < 5:
            weight, times = weight * 0.85, times + 1
        weights.append(max(weight, 0.1))
    return weights


@pytest.mark.parametrize("seed", range(6))
def test_a_restatement_on_random_visits(seed):
    rng = random.Random(seed)
    labels = [int(rng.random() < 0.15 * (seed % 3)) for _ in range(20)]
    votes = [rng.choice([5, 7, 8, 9]) for _ in labels]
    weights, _ = visits([group(str(a), n) for a, n in zip(labels, votes, strict=True)])
    assert weights == pytest.approx(restated(labels, [n / 10 for n in votes]))


def test_outside_of_training_it_is_the_vote():
    head, table = FlipWeight(ClusterVote()), PromptTable()
    head.use_table(table, "vote")
    rollout = handmade(group("3", 4), 10)
    output, vote = head(rollout), ClusterVote()(rollout)
    assert torch.equal(output.scores, vote.scores)
    assert (output.group_weight_factor, output.log) == (None, vote.log)
    table.gather()
    assert not table.columns["vote/flips"].values


def test_further_draws_of_a_rollout_are_weighed_and_not_remembered():
    """Dynamic sampling may draw the same problem twice in one rollout."""
    head, table = FlipWeight(ClusterVote(mode="hard")), PromptTable()
    head.use_table(table, "vote")
    weights = []
    for number, majority in enumerate(("3", "3")):
        with table.visiting(number, 0):
            head(handmade(group(majority, 4), 10))
            with evaluating(head):
                further = head(handmade(group("5", 4), 10)).group_weight_factor
        table.gather()
        assert further is not None
        weights += further.tolist()
    assert weights == [1.0, 0.5]
    assert table.columns["vote/flips"].numbers([0], [0.0] * 8)[0, 1] == 0  # it has not flipped


def test_advantages_are_those_of_the_vote_times_the_weight():
    rollout = handmade([*group("3", 5), *group("4", 5)], 10)
    vote = {"vote": replace(ClusterVote()(rollout), group_weight_factor=torch.tensor([1.0, 0.35]))}
    plain = {"vote": ClusterVote()(rollout)}
    advantages, _ = score_rollout(rollout, vote, GDPO(), torch.ones(1))
    expected, _ = score_rollout(rollout, plain, GDPO(), torch.ones(1))
    torch.testing.assert_close(advantages[:10], expected[:10])
    torch.testing.assert_close(advantages[10:], expected[10:] * 0.35)


def test_what_would_have_no_effect_is_refused(tmp_path, capsys):
    rewards = f"--model.rewards={json.dumps({'vote': FLIPS})}"
    given = ["fit", *BASE, *TINY, f"--trainer.default_root_dir={tmp_path}"]
    assert "this run visits each problem once" in refused(capsys, *given, rewards)
    given += ["--trainer.max_epochs=2", "--model.advantage=GRPO"]
    said = "rewards.vote.head=FlipWeight has no effect: vote is the only reward"
    assert said in refused(capsys, *given, rewards)
    with pytest.raises(ValueError, match=r"flip_cost=1\.5.*must lie in"):
        FlipWeight(ClusterVote(), flip_cost=1.5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The dirpath has changed from:UserWarning")
def test_it_goes_on_from_a_checkpoint(tmp_path):
    """Five visits of the same four problems, whole and as two and three."""
    rewards = f"--model.rewards={json.dumps({'vote': FLIPS})}"
    few = [*TINY, rewards, "--data.source.init_args.size=4", "--data.group_size=4"]
    fit(tmp_path / "whole", *few, "--trainer.max_epochs=5")
    first = fit(tmp_path / "first", *few, "--trainer.max_epochs=2")
    path = tmp_path / "middle.ckpt"
    first.trainer.save_checkpoint(path)
    fit(tmp_path / "second", *few, "--trainer.max_epochs=5", f"--ckpt_path={path}")
    for name in ("vote/flips", "vote/flip_weight"):
        whole = column(tmp_path / "whole", name)
        parts = column(tmp_path / "first", name) + column(tmp_path / "second", name)
        assert len(whole) == 5
        assert parts == pytest.approx(whole)
    flips = column(tmp_path / "whole", "vote/flips")
    assert max(flips) > flips[0] == 0
