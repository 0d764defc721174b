"""The vote of arXiv 2605.22620: its format reward inside the channel, and its matchers."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.rollouts import handmade
from rlif_lightning.answers.checkers import AnswerChecker
from rlif_lightning.answers.final_answers import AnswerExtractor, Budget, cluster, equivalent
from rlif_lightning.answers.library import ROLLOUT_SECONDS
from rlif_lightning.learning.advantages import GDPO
from rlif_lightning.learning.rollout_advantages import score_rollout
from rlif_lightning.records import RewardOutput
from rlif_lightning.rewards import ClusterVote

BOXED = AnswerExtractor("boxed")
# Three say 3 and one 5; an empty box, an open one and a text without one are not parseable.
TEXTS = [
    r"\boxed{3}",
    r"so \boxed{3.0}",
    r"\fbox{3}",
    r"\boxed{5}",
    r"\boxed{}",
    r"\boxed{3",
    "the answer is 3",
]
ANSWERS = ["1/2", "0.5", r"\frac{2}{4}", "2", "2 km", "2 m", "x=2", "x+1", "1+x", "50%", "A", "a"]


def test_the_format_reward_is_added_inside_the_channel():
    """4 are parseable: 3/4 and 1/4, and .1 for each box that holds an answer."""
    vote = ClusterVote(BOXED, format_weight=0.1)(handmade(TEXTS, 7))
    expected = [0.85, 0.85, 0.85, 0.35, 0.0, 0.0, 0.0]
    assert vote.scores.tolist() == pytest.approx(expected, abs=1e-6)
    assert vote.log["rollout/parseable"] == 4 / 7
    assert vote.log["vote/largest_cluster"] == 0.75  # of the vote alone


def test_an_answer_without_a_box_has_a_vote_and_no_format():
    """Two of three answers are 3; one of these stands in no box."""
    found = ClusterVote(format_weight=0.1)(handmade([r"\boxed{3}", "answer: 3", r"\boxed{4}"], 3))
    assert found.scores.tolist() == pytest.approx([2 / 3 + 0.1, 2 / 3, 1 / 3 + 0.1])


@pytest.mark.parametrize("mode", [("soft", None), ("hard", None), ("gated", (0.0, 2.0))])
def test_no_format_weight_is_the_vote_bit_for_bit(mode):
    name, entropy_range = mode
    plain = ClusterVote(BOXED, name, entropy_range=entropy_range)(handmade(TEXTS, 7))
    null = ClusterVote(BOXED, name, entropy_range=entropy_range, format_weight=0.0)(
        handmade(TEXTS, 7)
    )
    assert torch.equal(null.scores, plain.scores)
    assert null.log == plain.log


def papers_advantage(texts: list[str], certainty: list[float], eps: float) -> list[float]:
    """Eq. 2 to 5 restated on numbers whose answers are integers in plain boxes, in one group."""
    answers = [int(text[7:-1]) if text.startswith(r"\boxed{") else None for text in texts]
    parseable = [answer for answer in answers if answer is not None]
    cluster_format = [
        0.0 if answer is None else parseable.count(answer) / len(parseable) + 0.1
        for answer in answers
    ]
    channels = [np.array(cluster_format), np.array(certainty)]
    parts = [0.5 * (c - c.mean()) / (c.std(ddof=1) + eps) for c in channels]
    return (parts[0] + parts[1]).tolist()


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.one_of(st.none(), st.integers(0, 3)), min_size=7, max_size=7),
    st.lists(st.floats(0.1, 9.0), min_size=7, max_size=7, unique=True),
)
def test_two_channels_give_the_papers_advantage(answers, certainty):
    """Two z-scores, not three: the format reward is in the vote's mean and spread."""
    texts = ["nothing" if answer is None else rf"\boxed{{{answer}}}" for answer in answers]
    rollout = handmade(texts, 7)
    outputs = {
        "vote": ClusterVote(BOXED, min_parseable=1, format_weight=0.1, equivalence="numeric")(
            rollout
        ),
        "certainty": RewardOutput(torch.tensor(certainty)),
    }
    weights = torch.tensor([0.5, 0.5])
    advantages, _ = score_rollout(rollout, outputs, GDPO(), weights)
    if len(set(answers)) > 1 and np.std(certainty) > 1e-3:
        expected = papers_advantage(texts, outputs["certainty"].scores.tolist(), 1e-4)
        assert advantages[:, 0].tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("a", "b", "string", "numeric", "exact", "math_verify"),
    [
        ("3", "3.0", True, True, True, True),  # the same spelling after normalisation
        ("1/2", "0.5", False, True, True, True),
        ("2 km", "2", False, True, True, True),
        ("2 km", "2 m", False, True, False, False),
        ("x=2", "2", False, True, True, True),
        ("x+1", "1+x", False, False, True, True),
        ("(1,2)", "(1.0,2)", False, False, True, True),
        ("yes", "no", False, False, False, False),
        ("1/3", "0.333333", False, False, False, True),
        (r"\sqrt{8}", r"2\sqrt{2}", False, True, True, True),
    ],
)
def test_what_each_matcher_calls_equal(a, b, string, numeric, exact, math_verify):
    for name, equal in {
        "string": string,
        "numeric": numeric,
        "exact": exact,
        "math_verify": math_verify,
    }.items():
        assert equivalent(a, b, name) is equivalent(b, a, name) is equal, name
        assert (cluster([a, b], None, name) == [0, 0]) is equal, name
        assert (AnswerChecker(equivalence=name).cluster([a, b])[0] == [0, 0]) is equal, name


@pytest.mark.parametrize("name", ["string", "numeric"])
def test_the_papers_matchers_are_equivalence_relations(name):
    """Clusters of a group are the classes of pairs: one relation, reflexive and transitive."""
    ids = cluster(ANSWERS, None, name)
    for i, j in combinations(range(len(ANSWERS)), 2):
        assert equivalent(ANSWERS[i], ANSWERS[j], name) == (ids[i] == ids[j])
    assert all(equivalent(answer, answer, name) for answer in ANSWERS)


@pytest.mark.parametrize("name", ["string", "numeric", "exact", "math_verify"])
@settings(deadline=None, max_examples=25)
@given(st.permutations(range(6)))
def test_clusters_do_not_depend_on_the_order(name, order):
    """Under math_verify 0.333333 joins 1/3; the most frequent string represents both."""
    group = ["1/3", "0.333333", "0.333333", "2 km", "2", "0.33"]
    ids, turned = cluster(group, None, name), cluster([group[i] for i in order], None, name)
    assert turned == [ids[i] for i in order]


def test_numbers_that_no_rounding_joins_are_not_asked_about():
    budget = Budget()
    numbers = ["1", "2", "1/3", "0.5", r"\sqrt{2}", "10^{400}"]
    assert len(set(cluster(numbers, budget, "math_verify"))) == 6
    assert budget.rollout == ROLLOUT_SECONDS
    assert not budget.undecided


def test_the_matcher_counts_distinct_answers_too():
    texts = [rf"\boxed{{{answer}}}" for answer in ("1/2", "0.5", "2 km", "2 m")]
    expected = {"string": 4, "numeric": 2, "exact": 2, "math_verify": 2}
    for name, number in expected.items():
        log = ClusterVote(equivalence=name)(handmade(texts, 4)).log
        assert log["vote/distinct_answers"] == number, name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"format_weight": -0.1}, "format_weight=-0.1.*negative weight"),
        ({"format_weight": math.nan}, "format_weight=nan"),
        ({"format_weight": math.inf}, "format_weight=inf"),
        ({"equivalence": "loose"}, "equivalence='loose'.*numeric"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        ClusterVote(**settings)
