"""The vote: shares against numbers worked by hand, invariants, majority answers, the reward
head.
"""

from __future__ import annotations

import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlif_lightning.answers.final_answers import AnswerExtractor
from rlif_lightning.records import Prompts, Rollout, TokenStats
from rlif_lightning.rewards.voting import ClusterVote, majority_answers, vote_metrics, vote_shares

GOLDEN = ["3", "3", "5", None]
GROUPS = st.lists(st.sampled_from(["1", "2", "2.0", "3", "4/2", None]), min_size=5, max_size=5)
SETTINGS = [("soft", None), ("hard", None), ("gated", (0.1, 1.0))]


@pytest.mark.parametrize(
    ("mode", "denominator", "expected"),
    [
        ("soft", "parseable", [2 / 3, 2 / 3, 1 / 3, 0]),
        ("soft", "group", [1 / 2, 1 / 2, 1 / 4, 0]),
        ("hard", "parseable", [1, 1, 0, 0]),
        ("hard", "group", [1, 1, 0, 0]),
    ],
)
def test_golden(mode, denominator, expected):
    shares = vote_shares(GOLDEN, 4, mode, denominator)
    assert shares.dtype == torch.float32
    torch.testing.assert_close(shares, torch.tensor(expected, dtype=torch.float32))


def test_groups_vote_apart():
    shares = vote_shares(["1", "1", "1", "2"], 2)
    torch.testing.assert_close(shares, torch.tensor([1.0, 1.0, 0.5, 0.5]))


def test_equivalent_answers_vote_together():
    shares = vote_shares(["1/2", "0.5", r"\frac{2}{4}", "2"], 4)
    torch.testing.assert_close(shares, torch.tensor([0.75, 0.75, 0.75, 0.25]))


def test_hard_ties_give_one_to_all_the_largest():
    assert vote_shares(["1", "2", "1", "2", "3"], 5, "hard").tolist() == [1, 1, 1, 1, 0]


def test_min_parseable():
    lone = ["3", None, None, None]
    for mode in ("soft", "hard"):
        assert vote_shares(lone, 4, mode).tolist() == [0, 0, 0, 0]
        assert vote_shares(lone, 4, mode, min_parseable=1).tolist() == [1, 0, 0, 0]
    assert vote_shares(GOLDEN, 4, min_parseable=4).tolist() == [0, 0, 0, 0]
    assert vote_shares(["3"], 1).tolist() == [0]
    assert vote_shares([], 4).shape == (0,)


def test_gated_by_answer_entropy():
    """Entropy of 2/3, 1/3 is 0.6365 nats, of a unanimous group 0."""
    entropy = math.log(3) - 2 / 3 * math.log(2)
    soft = vote_shares(GOLDEN, 4)
    assert torch.equal(
        vote_shares(GOLDEN, 4, "gated", entropy_range=(entropy - 1e-6, entropy + 1e-6)), soft
    )
    for missed in [(0.0, entropy - 1e-6), (entropy + 1e-6, 2.0)]:
        assert not vote_shares(GOLDEN, 4, "gated", entropy_range=missed).any()
    unanimous = ["3", "3", "3", "3"]
    assert vote_shares(unanimous, 4, "gated", entropy_range=(0.0, 1.0)).tolist() == [1, 1, 1, 1]
    assert not vote_shares(unanimous, 4, "gated", entropy_range=(0.1, 1.0)).any()


@settings(deadline=None)
@given(
    GROUPS,
    GROUPS,
    st.sampled_from(SETTINGS),
    st.sampled_from(["parseable", "group"]),
    st.integers(0, 999),
)
def test_shares_follow_the_rows(first, second, mode_and_range, denominator, seed):
    mode, entropy_range = mode_and_range
    order = random.Random(seed).sample(range(5), 5)
    share = lambda group: vote_shares(group, 5, mode, denominator, entropy_range=entropy_range)  # noqa: E731
    scores = share(first)
    assert torch.equal(share([first[i] for i in order]), scores[order])
    assert torch.equal(share(first + second), torch.cat([scores, share(second)]))
    assert ((scores >= 0) & (scores <= 1)).all()
    assert all(score == 0 for score, answer in zip(scores, first, strict=True) if answer is None)


@settings(deadline=None)
@given(GROUPS)
def test_hard_marks_where_soft_is_largest(group):
    soft, hard = vote_shares(group, 5), vote_shares(group, 5, "hard")
    assert torch.equal(hard, ((soft == soft.max()) & (soft > 0)).float())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "loud"}, "mode='loud'.*soft"),
        ({"denominator": "all"}, "denominator='all'.*parseable"),
        ({"min_parseable": 0}, "min_parseable=0"),
        ({"mode": "gated"}, "entropy_range=None"),
        ({"entropy_range": (0.0, 1.0)}, "mode='gated' only"),
        ({"mode": "gated", "entropy_range": (1.0, 0.5)}, "low <= high"),
        ({"mode": "gated", "entropy_range": (math.nan, 0.5)}, "low <= high"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        vote_shares(GOLDEN, 4, **settings)
    with pytest.raises(ValueError, match=message):
        ClusterVote(**settings)


@pytest.mark.parametrize("group_size", [0, 3])
@pytest.mark.parametrize("function", [vote_shares, vote_metrics, majority_answers])
def test_group_size_must_divide(function, group_size):
    with pytest.raises(ValueError, match=f"group_size={group_size}"):
        function(GOLDEN, group_size)


def test_vote_metrics():
    batch = [
        "3",
        "3.0",
        "5",
        None,
        "7",
        "7",
        "7",
        "7",
        "2",
        None,
        None,
        None,
        None,
        None,
        None,
        None,
    ]
    expected = {
        "vote/largest_cluster": (2 / 3 + 1 + 0 + 0) / 4,
        "vote/unanimous": 1 / 4,
        "vote/distinct_answers": 4.0,
        "vote/undecided": 0.0,
        "rollout/parseable": 8 / 16,
    }
    assert vote_metrics(batch, 4) == pytest.approx(expected)
    by_group = vote_metrics(batch, 4, "group", min_parseable=1)
    assert by_group["vote/largest_cluster"] == pytest.approx((2 / 4 + 1 + 1 / 4 + 0) / 4)
    assert by_group["vote/unanimous"] == 2 / 4
    with pytest.raises(ValueError, match="empty"):
        vote_metrics([], 4)


def test_majority_answers():
    assert majority_answers(["3.0", "5", "3", None], 4) == ["3"]
    assert majority_answers(["7", "10", None, None], 2) == ["10", None]
    # three spellings of one half outvote the most frequent string
    assert majority_answers(["2", "2", "0.5", "1/2", r"\frac{1}{2}"], 5) == ["0.5"]


def rollout_of(texts: list[str], group_size: int) -> Rollout:
    prompts = len(texts) // group_size
    ones = torch.ones(len(texts), 3)
    return Rollout(
        prompts=Prompts([torch.tensor([1])] * prompts, ["?"] * prompts, {}, torch.arange(prompts)),
        completion_ids=ones.long(),
        mask=ones.bool(),
        stats=TokenStats(ones, ones, ones),
        texts=texts,
        ended=torch.ones(len(texts), dtype=torch.bool),
        group_size=group_size,
    )


def test_head_scores_and_logs():
    rollout = rollout_of([r"\boxed{3}", "The answer is 3.", "5", "no idea"], 4)
    output = ClusterVote()(rollout)
    torch.testing.assert_close(output.scores, torch.tensor([2 / 3, 2 / 3, 1 / 3, 0]))
    assert output.log == vote_metrics(GOLDEN, 4)
    hard = ClusterVote(AnswerExtractor("boxed"), mode="hard", min_parseable=1)(rollout)
    assert hard.scores.tolist() == [1, 0, 0, 0]
    assert hard.log["rollout/parseable"] == 0.25
    assert hard.log["vote/unanimous"] == 1
    assert not ClusterVote(mode="gated", entropy_range=(0.7, 1.0))(rollout).scores.any()
    assert ClusterVote(denominator="group")(rollout).scores[0] == 0.5
