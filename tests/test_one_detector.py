"""One detector decides for three callbacks: on which figures, by the rule that each had alone.

The three rules are restated here as they were before they became one, in plain Python.
"""

from __future__ import annotations

import json
import math
from statistics import median, median_low

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from callbacks.detectors import Baseline, Detector, Watch
from callbacks.guard_detectors import GuardDetector
from callbacks.label_free_stopping import stop_detectors
from callbacks.sampler_gap import GapWatch, gap_detectors

# Few different values, so that ties with limits and repeated outliers are common; NaN = nothing
# was measured.
FIGURES = st.sampled_from([0.0, 0.01, 0.05, 0.1, 0.2, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9, 1.0])
GAPS = st.sampled_from([1e-7, 1e-4, 4e-4, 1e-3, 2e-3, 5e-3, 8e-3, 0.02, 0.05, 0.3, 0.7, math.nan])
FREE = st.floats(0.001, 2.0)


def series(values: st.SearchStrategy[float]) -> st.SearchStrategy[list[float]]:
    return st.one_of(st.lists(values, max_size=40), st.lists(FREE, max_size=40))


def round_trip(watch: Watch, fresh: Watch) -> Watch:
    """A watch that goes on from another one's state, as it stands in a checkpoint."""
    fresh.load_state_dict(json.loads(json.dumps(watch.state_dict())))
    return fresh


def guard_rule(values: list[float], limits: dict, side: str, window: int, baseline: int) -> list:
    """CollapseGuard: the median of the last figures after a baseline, with a margin to come
    back.
    """
    total, count, recent, active, rule = 0.0, 0, [], False, []
    relative = bool({"factor", "gap"} & set(limits))
    for value in values:
        if math.isnan(value):
            pass
        elif relative and count < baseline:
            total, count = total + value, count + 1
        else:
            recent = [*recent, value][-window:]
            start = total / max(count, 1)
            found = [limits["bound"]] if "bound" in limits else []
            found += [limits["factor"] * start] if "factor" in limits else []
            found += [start + limits["gap"] * (1 - start)] if "gap" in limits else []
            limit = min(found) if side == "below" else max(found)
            margin = 0.1 * abs(limit) if active else 0.0
            middle = median(recent)
            outside = middle < limit + margin if side == "below" else middle > limit - margin
            active = outside and len(recent) == window
        rule.append(active)
    return rule


@pytest.mark.slow
@settings(deadline=None, max_examples=150)
@given(
    series(st.one_of(FIGURES, st.just(math.nan))),
    st.sampled_from(
        [
            ({"factor": 0.6}, "below"), ({"factor": 2.0}, "above"), ({"gap": 0.3}, "above"),
            ({"bound": 0.2}, "below"), ({"factor": 5.0, "bound": 0.5}, "above"),
            ({"factor": 0.5, "bound": 0.3}, "below"),
        ]
    ),
    st.integers(1, 5),
    st.integers(1, 5),
)  # fmt: skip
def test_the_guard_fires_on_the_same_rollouts(values, kind, window, baseline):
    limits, side = kind
    detector = GuardDetector("x", side, window=window, baseline=Baseline(baseline), **limits)
    watch, told = Watch({"x": detector}), []
    for value in values:
        watch.update({"x": value})
        told.append(bool(watch.active))
        watch = round_trip(watch, Watch({"x": detector}))
    assert told == guard_rule(values, limits, side, window, baseline)


def stop_rule(values: list[tuple], limits: tuple, window: int, patience: int) -> list:
    """LabelFreeStopping: means of the last values, several in a row beyond a limit."""
    kept, starts, streaks, rule = ([], [], []), [None] * 3, [0] * 3, []
    for each in values:
        for i, limit in enumerate(limits):
            if limit is None:
                continue
            kept[i].append(each[i])
            last = kept[i][-window:]
            mean = sum(last) / len(last)
            if len(last) < window:
                continue
            if starts[i] is None:
                starts[i] = mean
                continue
            crossed = mean > limit if i == 0 else mean < limit * starts[i]
            streaks[i] = streaks[i] + 1 if crossed else 0
        rule.append([i for i in range(3) if streaks[i] >= patience])
    return rule


LIMITS = st.tuples(
    *(st.sampled_from([None, 0.1, 0.4, 0.5, 0.9]) for _ in range(3)),
).filter(any)


@pytest.mark.slow
@settings(deadline=None, max_examples=150)
@given(
    st.one_of(*(st.lists(st.tuples(v, v, v), max_size=30) for v in (FIGURES, FREE))),
    LIMITS,
    st.integers(1, 5),
    st.integers(1, 4),
)
def test_runs_are_stopped_after_the_same_rollouts(values, limits, window, patience):
    names = ("agreement", "diversity", "entropy")
    detectors = stop_detectors(dict(zip(names, limits, strict=True)), window, patience)
    watch, told = Watch(detectors), []
    for each in values:
        watch.update({name: each[names.index(name)] for name in detectors})
        told.append([names.index(name) for name in watch.active])
        watch = round_trip(watch, Watch(detectors))
    assert told == stop_rule(values, limits, window, patience)


def gap_rule(gaps: list[float], bound: float, floor: float, factor: float | None) -> list:
    """SamplerGap: above a bound, or far above the first three and larger than all before."""
    first, largest, above, rule = [], 0.0, False, []
    for gap in gaps:
        if math.isnan(gap):
            rule.append(False)
            continue
        limit = bound
        if factor is not None and first:
            limit = min(bound, max(floor, factor * median_low(first)))
        was, rising = above, gap > largest
        above = gap > limit
        rule.append(above and not was and (rising or gap > bound))
        if len(first) < 3 and not above:
            first.append(gap)
        largest = max(gap, largest)
    return rule


@pytest.mark.slow
@settings(deadline=None, max_examples=250)
@given(
    series(GAPS),
    st.sampled_from([(1e-3, 1e-4), (0.1, 0.01), (0.5, 1e-3), (math.inf, 1e-3)]),
    st.sampled_from([None, 1.5, 4.0]),
)
def test_gaps_are_news_in_the_same_rollouts(gaps, limits, factor):
    bound, floor = limits
    detectors = gap_detectors("x", bound, floor, factor)
    watch, told = GapWatch(detectors), []
    for gap in gaps:
        told.append(watch.judge("x", gap) is not None)
        largest = watch.largest
        watch = round_trip(watch, GapWatch(detectors))
        watch.largest = largest
    assert told == gap_rule(gaps, bound, floor, factor)


def test_patience_is_judgements_in_a_row():
    """The limit is 5; of 4 4 6 4 4 4 only the last is the third in a row."""
    patient = GuardDetector("x", "below", bound=5.0, window=1, patience=3, release=0.0)
    watch, told = Watch({"x": patient}), []
    for value in (4, 4, 6, 4, 4, 4, 6):
        watch.update({"x": float(value)})
        told.append(bool(watch.active))
    assert told == [False] * 5 + [True, False]
    assert patient.describe(watch.states["x"]) == "x, 6, is below 5, 3 times in a row."


def test_events_of_all_have_one_form():
    watch = Watch({"x": GuardDetector("y", "below", factor=0.5, window=1, baseline=Baseline(2))})
    began = [watch.update({"x": value}) for value in (8.0, 12.0, 4.0, 9.0)]
    assert began == [([], []), ([], []), (["x"], []), ([], ["x"])]
    assert watch.evidence("x", 9.0) == {
        "detector": "x", "metric": "y", "value": 9.0, "limit": 5.0, "baseline": 10.0
    }  # fmt: skip
    absolute = Watch({"x": Detector("y", "below", bound=0.1)})
    assert math.isnan(absolute.evidence("x", 1.0)["baseline"])


def test_patience_is_checked():
    with pytest.raises(ValueError, match="patience=0"):
        GuardDetector("x", "below", bound=1.0, patience=0)


@pytest.mark.parametrize(("side", "expected"), [("below", [0, 0, 0, 0, 1]), ("above", [0] * 5)])
def test_an_infinite_figure_is_no_part_of_the_baseline(side, expected):
    """The baseline is 10, of two finite figures; a limit of infinity would always be passed."""
    factor = 0.5 if side == "below" else 2.0
    watch = Watch({"x": Detector("x", side, factor=factor, window=1, baseline=Baseline(2))})
    found = []
    for value in (math.inf, 10.0, 10.0, 6.0, 4.0):
        watch.update({"x": value})
        found.append(len(watch.active))
    assert found == expected
    watch.update({"x": math.inf})
    assert bool(watch.active) == (side == "above")
