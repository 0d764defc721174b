"""SCRL: which answers are rewarded and punished, by hand, and against a restatement."""

from __future__ import annotations

import pytest
import torch

from harness.rollouts import handmade
from rlif_lightning.records import TokenStats
from rlif_lightning.rewards import SCRL
from rlif_lightning.rewards.scrl import judged

ANSWERS = ["3", "3", "3", "5", "5", "7", "no", "9"]
ENTROPIES = [0.2, 0.3, 0.4, 0.5, 0.7, 0.9, 1.0, 0.8]  # mean 0.6, that without an answer included


def scored(answers: list[str], entropies: list[float], group: int = 8, **settings):
    values = torch.tensor(entropies).unsqueeze(1)
    stats = TokenStats(-values, values, values)
    return SCRL(**settings)(handmade(answers, group, stats))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # 3 has 3/8 and leads by 1/8. 7 and 9 have 1/8 and are less sure than the group.
        ((0.375, 0.1, 0.15), [1, 1, 1, 0, 0, -1, -1, -1]),
        ((0.375, 0.125, 0.15), [0, 0, 0, 0, 0, -1, -1, -1]),  # it must lead by more
        ((0.5, 0.1, 0.15), [0, 0, 0, 0, 0, -1, -1, -1]),
        ((0.375, 0.1, 0.125), [1, 1, 1, 0, 0, 0, -1, 0]),  # no share is below 1/8
        ((0.375, 0.1, 0.3), [1, 1, 1, -1, -1, -1, -1, -1]),  # 5 is as unsure as the group
    ],
)
def test_binary_scores_by_hand(settings, expected):
    names = ("positive_share", "margin", "negative_share")
    output = scored(ANSWERS, ENTROPIES, **dict(zip(names, settings, strict=True)))
    assert output.scores.tolist() == expected
    assert output.answers == ["3", "3", "3", "5", "5", "7", None, "9"]
    assert output.log["vote/positive"] == float(expected[0] == 1)
    assert output.log["vote/negative"] == (expected.count(-1) - 1) / 8
    assert output.log["vote/largest_cluster"] == 3 / 8
    assert output.log["vote/distinct_answers"] == 4
    assert output.log["rollout/parseable"] == 7 / 8


def test_continuous_scores_by_hand():
    """Of 3: 0 - 0.1 (0.3 - 0.6). Of 7: 0.125 - 0.15 - 0.1 (0.9 - 0.6). Of 9: -0.025 - 0.02."""
    given = {"scores": "continuous", "positive_share": 0.375, "negative_share": 0.15}
    found = scored(ANSWERS, ENTROPIES, margin=0.1, **given).scores
    assert found.tolist() == pytest.approx([0.03] * 3 + [0, 0, -0.055, -1, -0.045], abs=1e-6)
    without = scored(ANSWERS, ENTROPIES, margin=0.125, **given).scores  # no answer is positive
    assert without.tolist() == pytest.approx([0.03] * 3 + [0, 0, -0.055, -1, -0.045], abs=1e-6)
    higher = scored(ANSWERS, ENTROPIES, margin=0.1, **{**given, "positive_share": 0.25}).scores
    assert higher[0].item() == pytest.approx(0.155)  # 0.375 - 0.25 + 0.03
    flat = scored(ANSWERS, ENTROPIES, margin=0.1, **given, entropy_weight=0.0).scores
    assert flat.tolist() == pytest.approx([0] * 5 + [-0.025, -1, -0.025], abs=1e-6)


def test_a_lone_answer_needs_no_margin_and_equal_answers_have_none():
    alone = scored(["3", "3", "no", "no"], [0.1] * 4, 4, margin=1.0)
    assert alone.scores.tolist() == [1, 1, -1, -1]
    equal = scored(["3", "3", "5", "5"], [0.1] * 4, 4, margin=0.0)
    assert equal.scores.tolist() == [0, 0, 0, 0]
    nothing = scored(["no"] * 4, [0.1] * 4, 4)
    assert nothing.scores.tolist() == [-1] * 4
    assert (nothing.log["vote/positive"], nothing.log["vote/negative"]) == (0, 0)


def test_a_margin_that_no_float_holds_is_not_exceeded_by_itself():
    """2/5 exceeds 1/4 by 0.15000000000000002 in floats, which is not more than 0.15."""
    ids = [0] * 8 + [1] * 5 + [None] * 7
    assert 8 / 20 - 5 / 20 > 0.15
    assert judged(ids, [0.0] * 20, (0.4, 0.15, 0.1)).positive is None
    assert judged(ids, [0.0] * 20, (0.4, 0.149, 0.1)).positive == 0


def test_an_independent_restatement_on_random_groups():
    """By shares, not counts; thresholds that no share of six comes near."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(0, 5, (100, 6), generator=generator).tolist()  # 0: no answer
    entropies = torch.rand(100, 6, generator=generator)
    settings = {"positive_share": 0.4, "margin": 0.2, "negative_share": 0.3}
    texts = [str(value) if value else "no" for group in drawn for value in group]
    found = scored(texts, entropies.flatten().tolist(), 6, **settings).scores.view(-1, 6)
    for group, own, scores in zip(drawn, entropies.tolist(), found.tolist(), strict=True):
        share = {a: group.count(a) / 6 for a in set(group) - {0}}
        order = sorted(share.values(), reverse=True)
        is_clear = bool(order) and order[0] >= 0.4 and (len(order) < 2 or order[0] - order[1] > 0.2)
        for answer, score in zip(group, scores, strict=True):
            entropy = [h for h, a in zip(own, group, strict=True) if a == answer]
            is_unsure = sum(entropy) / len(entropy) >= sum(own) / 6
            if answer == 0:
                assert score == -1
            elif is_clear and share[answer] == order[0]:
                assert score == 1
            else:
                assert score == (-1 if share[answer] < 0.3 and is_unsure else 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scores": "soft"}, "scores='soft' is unknown; use one of binary, continuous"),
        ({"margin": 1.5}, "margin=1.5.*need shares in"),
        ({"entropy_weight": -0.1, "scores": "continuous"}, "entropy_weight >= 0"),
        ({"entropy_weight": 0.5}, "entropy_weight=0.5 has no effect with scores='binary'"),
        ({"entropy_weight": float("nan"), "scores": "continuous"}, "entropy_weight=nan"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SCRL(**settings)
