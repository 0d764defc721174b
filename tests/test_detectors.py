"""Detectors on series of numbers, symptoms on hand-made completions."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from callbacks.detectors import Baseline, Detector, DetectorState
from callbacks.guard_detectors import DETECTORS, GuardDetector, verdict, with_changes
from callbacks.symptoms import alignment, answer_counts, repeated_ngrams, symptoms
from harness.rollouts import handmade

LOW = Detector("x", "below", factor=0.5, window=2, release=0.2)
HIGH = Detector("x", "above", gap=0.3, window=1, release=0.2)


def active(detector: Detector, values: list[float], baseline: int = 2) -> list[bool]:
    detector = replace(detector, baseline=Baseline(baseline))
    state, told = DetectorState(), []
    for value in values:
        state = detector.update(state, value)
        told.append(state.active)
    return told


def test_the_baseline_is_the_mean_of_the_first_rollouts_and_nothing_is_judged_in_it():
    """Mean of 8 and 12 is 10, so the limit is 5."""
    assert active(LOW, [8, 12, 4.9, 4.9]) == [False, False, False, True]
    assert active(LOW, [8, 12, 5.0, 5.0]) == [False] * 4
    assert active(LOW, [1, 19, 4.9, 4.9])[-1]  # a 1 inside the baseline is no symptom


def test_a_bound_alone_is_judged_from_the_first_full_window():
    """And tells of no start, which it did not measure."""
    bound = Detector("x", "below", bound=3.0, window=2)
    assert active(bound, [1, 1, 4, 4], baseline=5) == [False, True, True, False]
    state = bound.update(bound.update(DetectorState(), 1.0), 2.0)
    assert bound.describe(state) == "x, 1.5 in the median of 2 rollouts, is below 3."


def test_the_median_is_judged_so_a_lone_outlier_is_no_alarm():
    three = Detector("x", "below", factor=0.5, window=3)
    assert not any(active(three, [10, 10, 1, 10, 10, 1, 10, 10]))
    assert active(three, [10, 10, 1, 10, 1, 10, 1]) == [False] * 4 + [True, False, True]
    assert not any(active(three, [10, 10, 1, 1]))  # not before the window is full


def test_an_alarm_ends_only_when_the_figure_is_clearly_back():
    """Limit 5, release 0.2: it is over at 6, not at 5.5."""
    one = Detector("x", "below", factor=0.5, window=1, release=0.2)
    assert active(one, [10, 10, 4, 5.5, 5.9, 6.0, 5.5, 4]) == [False] * 2 + [True] * 3 + [
        False,
        False,
        True,
    ]


def test_whether_the_last_figure_is_beyond():
    state, low, high = (
        DetectorState((8.0, 12.0)),
        *(replace(each, baseline=Baseline(2)) for each in (LOW, HIGH)),
    )
    assert not low.is_beyond(state)
    assert low.is_beyond(low.update(state, 4.9))
    assert not low.is_beyond(low.update(state, 5.0))
    assert high.is_beyond(high.update(DetectorState((0.5, 0.5)), 0.66))


def test_a_gap_is_a_share_of_the_way_to_one():
    """Baseline 0.5: limit 0.5 + 0.3 * 0.5 = 0.65; over below 0.65 * 0.8 = 0.52."""
    assert active(HIGH, [0.5, 0.5, 0.65, 0.66, 0.53, 0.51]) == [False] * 3 + [True, True, False]


def test_beside_a_relative_limit_a_bound_must_be_passed_too():
    both = Detector("x", "above", factor=5.0, bound=0.5, window=1)
    assert active(both, [0.01, 0.01, 0.4, 0.51]) == [False, False, False, True]
    assert Detector("x", "below", factor=0.5, bound=3.0).limit(DetectorState((10.0,))) == 3.0
    assert Detector("x", "above", bound=3.0).limit(DetectorState((10.0,))) == 3.0


def test_nothing_to_measure_changes_nothing():
    assert active(LOW, [10, math.nan, 10, 4, math.nan, 4]) == [False] * 5 + [True]


@given(st.lists(st.floats(0.71, 1.5), min_size=8, max_size=60))
def test_noise_around_the_baseline_is_no_alarm(values):
    """Figures of 10 and more at the start that later stay above seven are never below a limit of
    half of at most 14.
    """
    assert not any(active(LOW, [10, *(10 * min(value, 1.4) for value in values)], baseline=4))


def test_shipped_detectors_cover_the_symptoms():
    metrics = {detector.metric for detector in DETECTORS.values()}
    assert {
        "policy/entropy",
        "rollout/length",
        "rollout/ended",
        "rollout/parseable",
        "rollout/repetition",
        "vote/top_answer",
        "vote/distinct_answers",
        "vote/unanimous",
        "guard/certainty_share",
        "policy/log_ratio",
    } <= metrics
    assert all(detector.meaning for detector in DETECTORS.values())
    notices = {name for name, d in DETECTORS.items() if d.severity == "notice"}
    assert notices == {"log_ratio", "consensus", "flips"}
    assert {name: d.runs for name, d in DETECTORS.items() if d.runs != "all"} == {
        "entropy_low": "label_free",
        "alignment": "label_free",
        "conflict": "vote",
        "certainty_share": "certainty",
        "consensus": "vote",
        "unanimous": "vote",
    }


def test_the_verdict_tells_the_two_collapses_apart():
    assert verdict({"token"}).startswith("token-space")
    assert verdict({"answer"}).startswith("answer-space")
    assert "token space and in answer space" in verdict({"token", "answer", "drive"})
    assert "not yet clear" in verdict({"any", "drive"})
    assert verdict({"token", "any"}).startswith("token-space")
    assert "no collapse yet" in verdict({"drive"})


def test_describe_names_figure_limit_and_baseline():
    state = DetectorState((8.0, 12.0), (4.0, 3.0, 9.0), 1, True)
    assert DETECTORS["length_low"].describe(state) == (
        "rollout/length, 4 in the median of 3 rollouts, is below 6 (at the start of the run it was"
        " 10). Completions"
        " lose their reasoning: short ones look certain."
    )


def test_changes_replace_remove_and_add():
    changed = with_changes(
        DETECTORS,
        {
            "entropy_low": {"factor": 0.2},
            "length_high": None,
            "mine": {"metric": "y", "side": "above", "bound": 1.0},
        },
    )
    assert changed["entropy_low"].factor == 0.2
    assert changed["entropy_low"].metric == "policy/entropy"
    assert set(changed) == set(DETECTORS) - {"length_high"} | {"mine"}
    assert DETECTORS["entropy_low"].factor != 0.2
    for changes, message in [
        ({"entropy": None}, "takes nothing out; detectors: entropy_low"),
        ({"entropy_low": {"share": 1}}, r"has no setting \['share'\]; settings: metric, side"),
        ({"mine": {"factor": 0.1}}, "is new, so it needs metric and side"),
    ]:
        with pytest.raises(ValueError, match=message):
            with_changes(DETECTORS, changes)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"side": "left", "factor": 1.0}, "side='left' is unknown; use one of below, above"),
        ({"side": "below"}, "has no limit"),
        ({"side": "below", "gap": 0.5}, "gap=0.5"),
        ({"side": "above", "gap": 1.0}, "gap=1.0"),
        ({"side": "above", "gap": 0.5, "factor": 2.0}, "without a factor"),
        ({"side": "above", "factor": 0.0}, "factor=0.0"),
        ({"side": "above", "factor": 2.0, "window": 0}, "window=0"),
        ({"side": "above", "factor": 2.0, "space": "outer"}, "space='outer'"),
        ({"side": "above", "factor": 2.0, "severity": "loud"}, "severity='loud'"),
        (
            {"side": "above", "factor": 2.0, "runs": "gold"},
            "runs='gold' is unknown; use one of all, label_free",
        ),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        GuardDetector("x", **settings)


def test_repeated_ngrams():
    """1 2 1 2 1: the pairs 12 21 12 21, two of them repeated.

    7 7 7: 77 77, one repeated. 5: no pair.
    """
    ids = torch.tensor([[1, 2, 1, 2, 1], [7, 7, 7, 0, 0], [5, 0, 0, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]], dtype=torch.bool)
    assert repeated_ngrams(ids, mask, 2).tolist() == [3, 6]
    assert repeated_ngrams(ids, mask, 4).tolist() == [0, 2]
    assert repeated_ngrams(ids, mask, 6).tolist() == [0, 0]


@given(
    st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=9), min_size=1, max_size=4),
    st.integers(1, 4),
)
def test_repeated_ngrams_match_a_count_by_hand(rows, n):
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.arange(width) < torch.tensor([len(row) for row in rows]).unsqueeze(1)
    grams = [[tuple(row[i : i + n]) for i in range(len(row) - n + 1)] for row in rows]
    expected = [sum(len(g) - len(set(g)) for g in grams), sum(map(len, grams))]
    assert repeated_ngrams(ids, mask, n).tolist() == expected


def test_answers_are_counted_over_the_whole_batch():
    counts = answer_counts(["7", "7.0", "3", None, "7"])
    assert sorted(counts[counts > 0].tolist()) == [1, 3]
    rollout = handmade(["x"] * 5, 1)
    flat = torch.zeros(5, 3)
    measured = symptoms(rollout, ["7", "7.0", "3", None, "7"], flat)
    assert measured["vote/top_answer"] == pytest.approx(3 / 5)
    assert symptoms(rollout, [None] * 5, flat)["vote/top_answer"] == 0
    assert measured["rollout/repetition"] == 0  # at most three tokens each


def test_alignment_is_a_correlation_inside_mixed_groups():
    """Votes of the first group minus their mean: 1/4 1/4 -1/4 -1/4; the second group is unanimous
    and left out.
    """
    votes = torch.tensor([[0.5, 0.5, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    advantages = torch.tensor([[1.0, 0.0, -1.0, 0.0], [9.0, -9.0, 3.0, 0.0]])
    assert alignment(advantages, votes).tolist() == [0.5, 2.0, 0.25]
    rollout = handmade(["x"] * 8, 4)
    answers = ["7", "7", None, None, "3", "3", "3", "3"]
    tokens = advantages.flatten().unsqueeze(1).expand(8, 3)
    measured = symptoms(rollout, answers, tokens)["guard/vote_alignment"]
    assert measured == pytest.approx(0.5 / math.sqrt(2.0 * 0.25))
    assert symptoms(rollout, answers, -tokens)["guard/vote_alignment"] == pytest.approx(-measured)
    assert math.isnan(symptoms(rollout, ["3"] * 8, tokens)["guard/vote_alignment"])
