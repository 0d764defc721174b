"""EntropyMonitor and KLCovScheduler in real runs of the command line."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from callbacks import EntropyMonitor, KLCovScheduler
from callbacks.guard_detectors import DETECTORS
from callbacks.kl_cov_scheduler import Schedule
from harness.runs import TINY, adding, callback_of, column, marked, run_with, whole_and_resumed
from rlif_lightning.learning.objectives import KLCov

LOOP = {"start": 0.1, "target": (1.0, 2.0), "bounds": (0.01, 1.0)}


@pytest.mark.slow
def test_entropy_monitor_logs_percentiles_and_slope(tmp_path, monkeypatch):
    monkeypatch.setattr("callbacks.entropy_monitor.WINDOW", 3)
    run_with(tmp_path, "EntropyMonitor", *TINY, rollouts=4)
    means = column(tmp_path, "policy/entropy")
    low, middle, high = (column(tmp_path, f"entropy/p{percentile}") for percentile in (10, 50, 90))
    assert len(means) == len(low) == 4
    assert all(0 <= a <= b <= c for a, b, c in zip(low, middle, high, strict=True))
    assert low != high
    windows = [means[max(0, end - 3) : end] for end in (2, 3, 4)]
    expected = [float(np.polyfit(range(len(window)), window, 1)[0]) for window in windows]
    expected = pytest.approx([math.nan, *expected], abs=1e-6, nan_ok=True)
    assert column(tmp_path, "entropy/slope") == expected


def test_a_detector_can_watch_the_trend_though_one_rollout_has_none(tmp_path):
    falls = {"metric": "entropy/slope", "side": "below", "bound": 1e9, "window": 2}
    others = dict.fromkeys(DETECTORS)
    guard = adding("CollapseGuard", detectors={**others, "falls": {**falls, "severity": "notice"}})
    run_with(tmp_path, "EntropyMonitor", *TINY, guard, rollouts=3)
    [event] = [each for each in marked(tmp_path / "version_0") if "falls" in each["message"]]
    assert event["rollout"] == 3  # the second slope is that of the third rollout


@pytest.mark.full  # test_update.py has the figures of picked tokens by hand
def test_the_entropy_of_picked_tokens_is_theirs(tmp_path):
    """Nothing picked: 0.

    Nearly everything picked: the mean of all, but for one token in each update.

    (The tiny bonus has groups of advantage 0 trained on, and so counted, as well.)
    """
    picked = "--model.objective=" + json.dumps(
        {"class_path": "KLCov", "init_args": {"fraction": 0.999, "entropy_bonus": 1e-9}}
    )
    run_with(tmp_path / "all", "EntropyMonitor", picked, "--model.optimizer.lr=1e-9", rollouts=1)
    run_with(tmp_path / "none", "EntropyMonitor", "--model.objective=Clipped", rollouts=1)
    run_with(tmp_path / "few", "EntropyMonitor", rollouts=1)
    (mean,), (everything,) = (
        column(tmp_path / "all", f"policy/{name}") for name in ("entropy", "entropy_picked")
    )
    assert everything == pytest.approx(mean, rel=0.1)
    assert column(tmp_path / "none", "policy/entropy_picked") == [0.0]
    (few,) = column(tmp_path / "few", "policy/entropy_picked")
    assert few > 0
    assert abs(few / mean - 1) > 0.1


@pytest.mark.full  # two schedules of a run: below, and the shapes by hand
@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_schedules_reach_their_end_and_stay(tmp_path, shape):
    run = run_with(
        tmp_path,
        "KLCovScheduler",
        *TINY,
        rollouts=4,
        weight={"start": 0.05, "points": [[2, 0.45]], "shape": shape},
    )
    assert column(tmp_path, "kl_cov/weight") == pytest.approx([0.05, 0.25, 0.45, 0.45])
    assert run.model.objective == KLCov()  # another run in this process begins with its own
    events = marked(next(tmp_path.rglob("events.jsonl")).parent)
    assert [(event["rollout"], event["message"].split()[2]) for event in events] == [
        (0, "rests"),
        (1, "rises"),
        (3, "rests"),
    ]


@pytest.mark.slow
def test_weight_and_fraction_have_schedules_of_their_own(tmp_path):
    points = [[2, 0.2], [3, 0.0]]
    run = run_with(
        tmp_path,
        "KLCovScheduler",
        *TINY,
        rollouts=4,
        weight={"start": 0.3},
        fraction={"start": 0.1, "points": points},
    )
    assert column(tmp_path, "kl_cov/weight") == pytest.approx([0.3] * 4)
    assert column(tmp_path, "kl_cov/fraction") == pytest.approx([0.1, 0.15, 0.2, 0.0])
    picked = column(tmp_path, "policy/picked_fraction")
    assert min(picked[:3]) > 0.09  # of the tokens trained on, which are fewer than those ranked
    assert picked[3] == 0
    assert run.model.objective == KLCov()  # another run in this process begins with its own


def test_shapes_by_hand():
    """Cosine is not linear, and both stay at their end."""
    schedule = Schedule(0.0, [(4, 1.0)], "cosine")
    assert schedule.value(1, None, None) == pytest.approx(0.5 - 0.25 * math.sqrt(2))
    linear = Schedule(0.0, [(4, 1.0)])
    assert linear.value(1, None, None) == pytest.approx(0.25)
    assert linear.value(9, None, None) == schedule.value(9, None, None) == 1.0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "target", "factor"),
    [
        ("weight", (8.0, 9.0), 1),
        pytest.param("fraction", (1e-3, 2e-3), -1, marks=pytest.mark.full),
        pytest.param("weight", (1e-3, 2e-3), -1, marks=pytest.mark.full),
        pytest.param("fraction", (8.0, 9.0), 1, marks=pytest.mark.full),
    ],
)
def test_the_closed_loop_moves_the_right_way(tmp_path, name, target, factor):
    """Entropy below the band raises the value, above it lowers it, by the stated amount."""
    loop = {"start": 0.1, "target": target, "gain": 0.01, "bounds": (0.01, 0.9)}
    run_with(tmp_path, "KLCovScheduler", *TINY, **{name: loop})
    first, second = column(tmp_path, f"kl_cov/{name}")
    entropy = column(tmp_path, "policy/entropy")[0]
    error = (8.0 - entropy) / 8.0 if factor > 0 else -(entropy - 2e-3) / 2e-3
    assert first == pytest.approx(0.1)
    assert second == pytest.approx(min(max(0.1 * math.exp(0.01 * error), 0.01), 0.9), rel=1e-4)
    assert (second > first) == (factor > 0)


def test_the_closed_loop_respects_its_bounds_and_rests_inside_the_band():
    schedule = Schedule(start=0.5, target=(1.0, 2.0), gain=10.0, bounds=(0.4, 0.6))
    assert schedule.value(5, 0.5, 1.5) == 0.5
    assert schedule.value(5, 0.5, 0.1) == 0.6
    assert schedule.value(5, 0.5, 9.0) == 0.4


# Every run logs into a new folder, so Lightning finds another folder of checkpoints than the one it
# resumes from.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The dirpath has changed from:UserWarning")
def test_both_go_on_from_a_checkpoint(tmp_path):
    """Two rollouts, and two more in another process, are four in one."""
    monitor = "--trainer.callbacks+=EntropyMonitor"
    settings = {"weight": {"start": 0.0, "points": [[4, 0.4]]}}
    _, resumed = whole_and_resumed(tmp_path, "KLCovScheduler", monitor, **settings)
    assert column(tmp_path / "second", "kl_cov/weight") == pytest.approx([0.2, 0.3])
    means = column(tmp_path / "first", "policy/entropy") + column(
        tmp_path / "second", "policy/entropy"
    )
    assert list(callback_of(resumed, EntropyMonitor).history) == pytest.approx(means)
    slopes = [float(np.polyfit(range(end), means[:end], 1)[0]) for end in (3, 4)]
    assert column(tmp_path / "second", "entropy/slope") == pytest.approx(slopes, abs=1e-6)
    assert means == pytest.approx(column(tmp_path / "whole", "policy/entropy"), abs=1e-5)


def test_entropy_monitor_forgets_what_it_saw_before_a_checkpoint_is_loaded():
    monitor = EntropyMonitor()
    monitor.history.extend([3.0, 2.0])
    monitor.load_state_dict({"history": [1.0]})
    assert monitor.state_dict() == {"history": [1.0]}


def test_an_objective_without_kl_cov_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        run_with(tmp_path, "KLCovScheduler", "--model.objective=Clipped", weight={"start": 0.1})
    assert "KLCovScheduler needs model.objective=KLCov, not Clipped" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (Schedule, {"start": 0.1, "shape": "steps"}, "shape='steps' is unknown; use one of linear"),
        (Schedule, {"start": 0.1, "shape": "cosine"}, "shape=cosine has no effect without points"),
        (Schedule, {"start": 0.1, "points": [(0, 0.1)]}, "rising rollouts > 0"),
        (Schedule, {"start": -0.1}, "start=-0.1"),
        (Schedule, {"start": 0.1, "points": [(2, 0.1), (1, 0.2)]}, "rising rollouts"),
        (Schedule, {"start": 0.1, "points": []}, "rising rollouts"),
        (Schedule, {"start": 0.1, "points": [(2, -0.1)]}, "no value may be negative"),
        (Schedule, {**LOOP, "points": [(2, 0.1)]}, "give one of them"),
        (Schedule, {"start": 0.1, "gain": 0.2}, "gain=0.2, bounds=None have no effect"),
        (Schedule, {"start": 0.1, "target": (1.0, 2.0)}, "bounds=None, start=0.1"),
        (Schedule, {**LOOP, "target": (2.0, 1.0)}, "target="),
        (Schedule, {**LOOP, "gain": 0.0}, "gain=0.0"),
        (Schedule, {**LOOP, "bounds": (0.2, 1.0)}, "start=0.1"),
        (KLCovScheduler, {}, "needs a schedule"),
        (KLCovScheduler, {"fraction": Schedule(start=1.0)}, "fraction can reach 1.0"),
        (KLCovScheduler, {"fraction": Schedule(**LOOP)}, "fraction can reach 1.0"),
    ],
)
def test_settings_are_checked(kind, settings, message):
    with pytest.raises(ValueError, match=message):
        kind(**settings)
