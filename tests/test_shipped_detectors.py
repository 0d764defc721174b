"""The limits of the shipped detectors: just inside each is silence, just beyond it an alarm."""

from __future__ import annotations

import pytest

from callbacks import CollapseGuard
from callbacks.detectors import DetectorState
from callbacks.guard_detectors import DETECTORS

# Name -> figure in the first rollouts, limit that follows from it, rollouts whose median is judged.
LIMITS = {
    "entropy_low": (1.2, 0.024, 3),  # a fiftieth of the start
    "entropy_high": (0.6, 1.2, 3),  # twice the start
    "length_low": (50.0, 30.0, 3),
    "length_high": (20.0, 50.0, 3),
    "ended": (0.8, 0.6, 3),
    "parseable": (0.9, 0.63, 3),
    "repetition": (0.5, 0.56, 3),  # 12 per cent of the way to 1
    "agreement": (0.5, 0.4, 3),
    "alignment": (0.7, 0.05, 5),  # bounds do not depend on the start
    "conflict": (0.9, 0.8, 5),
    "certainty_share": (0.5, 0.9, 3),
    "top_answer": (0.2, 0.44, 3),  # 30 per cent of the way to 1
    "distinct_answers": (40.0, 10.0, 3),
    "consensus": (1.0, 0.33, 3),  # a third of the start
    "unanimous": (0.5, 0.7, 5),  # 40 per cent of the way to 1
    "flips": (0.1, 0.3, 5),
    "log_ratio": (0.2, 1.0, 3),
}


def is_active(name: str, start: float, value: float, rollouts: int) -> bool:
    """Whether the guard's detector is active after a baseline of five rollouts and some more."""
    detector, state = CollapseGuard().detectors[name], DetectorState()
    for figure in [start] * 5 + [value] * rollouts:
        state = detector.update(state, figure)
    return state.active


@pytest.mark.parametrize("name", DETECTORS)
def test_the_limit_is_where_it_is_documented(name):
    start, limit, window = LIMITS[name]
    beyond = -1 if DETECTORS[name].side == "below" else 1
    assert is_active(name, start, limit * (1 + 0.01 * beyond), window)
    assert not is_active(name, start, limit * (1 - 0.01 * beyond), window)


@pytest.mark.parametrize("name", [name for name, d in DETECTORS.items() if d.is_relative])
def test_one_rollout_less_than_the_window_is_no_alarm(name):
    start, limit, window = LIMITS[name]
    value = limit * (0.5 if DETECTORS[name].side == "below" else 2.0)
    assert is_active(name, start, value, window)
    assert not is_active(name, start, value, window - 1)


@pytest.mark.parametrize("name", DETECTORS)
def test_a_lone_outlier_is_no_alarm(name):
    """The median of the window is judged, not its mean, however far the outlier is."""
    start, limit, window = LIMITS[name]
    beyond = -1 if DETECTORS[name].side == "below" else 1
    inside, far = limit * (1 - 0.01 * beyond), 1000 * beyond
    for outlier in range(window):
        detector, state = CollapseGuard().detectors[name], DetectorState()
        figures = [far if k == outlier else inside for k in range(window)]
        for figure in [start] * 5 + figures:
            state = detector.update(state, figure)
        assert not state.active


def test_a_relative_limit_beside_a_bound_is_the_stricter_one():
    """`log_ratio` needs 0.5 nats, however small it was at the start."""
    assert not is_active("log_ratio", 0.01, 0.49, 3)
    assert is_active("log_ratio", 0.01, 0.51, 3)
