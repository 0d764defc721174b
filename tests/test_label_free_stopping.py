"""LabelFreeStopping: the rule on numbers worked by hand, the same rule on a metrics.csv, and real
runs.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from callbacks import LabelFreeStopping
from callbacks.detectors import Watch
from callbacks.events import read_events
from callbacks.label_free_stopping import first_stop, stop_detectors
from harness.runs import callback_of, column, run_with

NONE = {"agreement": None, "diversity": None, "entropy": None}


def stops(values: list[float], window: int, patience: int, **limit: float) -> int | None:
    """After how many values of the one watched signal the rule stops."""
    watch = Watch(stop_detectors({**NONE, **limit}, window, patience))
    (name,) = watch.detectors
    return next((n for n, value in enumerate(values, 1) if added(watch, {name: value})), None)


def added(watch: Watch, values: dict[str, float]) -> list[str]:
    """The limits that one more value of each signal is beyond."""
    watch.update(values)
    return watch.active


def test_agreement_is_absolute_and_needs_patience():
    values = [0.5, 0.5, 0.9, 0.96, 0.94, 0.96, 0.97, 0.98, 0.99]
    assert stops(values, agreement=0.95, window=1, patience=3) == 8
    assert stops(values, agreement=0.95, window=1, patience=1) == 4
    assert stops(values, agreement=0.99, window=1, patience=1) is None


def test_diversity_and_entropy_are_relative_to_the_first_window():
    values = [12, 8, 10, 5, 3, 3, 3]  # first window of 2: mean 10; means after it 9, 7.5, 4, 3, 3
    assert stops(values, diversity=0.5, window=2, patience=1) == 5
    assert stops(values, diversity=0.5, window=2, patience=3) == 7
    assert stops(values, entropy=0.3, window=2, patience=1) is None
    assert stops(values, entropy=0.31, window=2, patience=1) == 6


def test_nothing_stops_in_the_first_window():
    assert stops([1.0] * 9, agreement=0.9, window=5, patience=1) == 6


def test_any_limit_stops_and_the_reason_names_it():
    watch = Watch(stop_detectors({"agreement": 0.9, "diversity": 0.5, "entropy": 0.5}, 1, 1))
    assert not added(watch, {"agreement": 0.5, "diversity": 10, "entropy": 1.0})
    (name,) = added(watch, {"agreement": 0.5, "diversity": 10, "entropy": 0.4})
    assert watch.detectors[name].describe(watch.states[name]) == (
        "policy/entropy, 0.4, is below 0.5 (at the start of the run it was 1)."
    )


def test_state_goes_on():
    rule = stop_detectors(NONE | {"entropy": 0.5}, window=2, patience=2)
    values = [1.0, 1.0, 0.6, 0.4, 0.4, 0.4]
    whole = stops(values, entropy=0.5, window=2, patience=2)
    watch = Watch(rule)
    for value in values[: whole - 1]:
        assert not added(watch, {"entropy": value})
    resumed = Watch(rule)
    resumed.load_state_dict(watch.state_dict())
    assert added(resumed, {"entropy": values[whole - 1]})
    assert not added(Watch(rule), {"entropy": values[whole - 1]})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"limits": NONE}, "all null"),
        ({"limits": {"agreement": 95}}, "limits.agreement=95 must lie in"),
        ({"limits": {"entropy": 0}}, "limits.entropy=0 must lie in"),
        ({"limits": {"length": 0.5}}, "limits='length' is unknown; use one of agreement"),
        ({"window": 0}, "window=0"),
        ({"patience": 0}, "patience=0"),
        ({"signals": "test"}, "signals='test' is unknown; choose one of"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        LabelFreeStopping(**settings)


LIMITS = {"agreement": 0.01, "diversity": None, "entropy": None}
QUICK = {"window": 1, "patience": 1, "limits": LIMITS}  # stops at the second value


def test_a_run_ends_early_and_keeps_its_checkpoint(tmp_path):
    run = run_with(tmp_path, "LabelFreeStopping", rollouts=8, **QUICK)
    assert int(run.model.num_rollouts) == 2
    assert column(tmp_path, "stopping/stopped") == [0.0, 1.0]
    assert list(tmp_path.rglob("*.ckpt"))
    assert callback_of(run, LabelFreeStopping).reason.startswith("agreement: ")
    stop, end = read_events(Path(run.trainer.log_dir))[-2:]
    assert (stop["kind"], stop["values"]["detector"], stop["values"]["limit"]) == (
        "stop", "agreement", 0.01,
    )  # fmt: skip
    assert (end["values"]["reason"], end["values"]["exit_code"]) == ("label_free_stop", 0)
    detectors = stop_detectors(**QUICK)
    assert first_stop(next(tmp_path.rglob("metrics.csv")), detectors) == (2, "agreement")


@pytest.mark.full  # the detectors: above
def test_a_run_that_stays_inside_its_limits_is_left_alone(tmp_path):
    run = run_with(
        tmp_path,
        "LabelFreeStopping",
        rollouts=4,
        window=1,
        patience=1,
        limits={"agreement": 1.0, "diversity": None},
    )
    assert int(run.model.num_rollouts) == 4
    detectors = stop_detectors({"agreement": 1.0, "diversity": None}, 1, 1)
    assert first_stop(next(tmp_path.rglob("metrics.csv")), detectors) is None


@pytest.mark.full  # the run that ends early decides on rollouts
def test_validations_between_steps_can_decide(tmp_path):
    arguments = [
        "--trainer.val_check_interval=1",
        "--trainer.check_val_every_n_epoch=1",
        "--compare=true",
    ]
    run = run_with(
        tmp_path, "LabelFreeStopping", *arguments, rollouts=8, signals="validation", **QUICK
    )
    assert int(run.model.num_rollouts) == 2  # the validation before training does not count
    assert run.before is not None


def test_a_finished_run_is_judged_by_the_validations_between_its_steps(tmp_path):
    """As the callback judges it. Rows as a run leaves them: before training, two rollouts with a
    validation each, after training.
    """
    path = tmp_path / "metrics.csv"
    rows = ["step,policy/entropy,val/agreement", "0,,0.9"]
    rows += ["0,1.0,", "0,,0.1", "1,1.0,", "1,,0.2", "2,,0.9"]
    path.write_text("\n".join([*rows, ""]))
    detectors = stop_detectors({**LIMITS, "agreement": 0.15}, 1, 1, "validation")
    assert first_stop(path, detectors) == (2, "agreement")
    detectors = stop_detectors({**LIMITS, "agreement": 0.5}, 1, 1, "validation")
    assert first_stop(path, detectors) is None


@pytest.mark.slow
def test_the_state_travels_in_checkpoints(tmp_path):
    settings = {**QUICK, "limits": {**LIMITS, "agreement": 1.0}}
    first = run_with(tmp_path / "a", "LabelFreeStopping", rollouts=2, **settings)
    (checkpoint,) = (tmp_path / "a").rglob("*.ckpt")
    again = run_with(
        tmp_path / "b",
        "LabelFreeStopping",
        f"--ckpt_path={checkpoint}",
        rollouts=4,
        **QUICK,
    )
    assert (
        int(again.model.num_rollouts) == 3
    )  # stopped by the first new rollout: the start was known
    starts = [
        callback_of(run, LabelFreeStopping).watch.states["agreement"].first
        for run in (first, again)
    ]
    assert len(starts[0]) == 1
    assert starts[0] == starts[1]


def test_signals_that_are_not_logged_are_an_error_with_a_remedy(tmp_path, capsys):
    rewards = '--model.rewards={"certainty": {"head": "MeanLogprob"}}'
    with pytest.raises(SystemExit):
        run_with(tmp_path, "LabelFreeStopping", rewards)
    assert "add a ClusterVote reward (weight 0 measures only)" in capsys.readouterr().err
    path = Path(tmp_path) / "metrics.csv"
    path.write_text("policy/entropy\n1.0\n")
    with pytest.raises(ValueError, match="no column 'vote/distinct_answers'"):
        first_stop(path)
    with pytest.raises(ValueError, match="val_check_interval"):
        first_stop(path, stop_detectors(signals="validation"))
