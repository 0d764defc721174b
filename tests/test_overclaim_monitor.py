"""OverclaimMonitor: trends by hand, overclaims in real runs, the alarm, and a resume."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from callbacks import OverclaimMonitor
from callbacks.overclaim_monitor import WINDOW, trend
from harness.runs import callback_of, column, run_with, whole_and_resumed
from rlif_lightning.records import RewardOutput

REWARDS = "--model.rewards=" + json.dumps(
    {
        "steps": {"head": {"class_path": "Format", "init_args": {"pattern": ";"}}},
        "gold": {"head": "GoldAnswer", "weight": 0.0},
    }
)
NAMES = {"proxy": "steps", "gold": "gold"}


def test_a_trend_by_hand_and_by_numpy():
    """1, 2, 4: slope 1.5; rest 1/6 -1/3 1/6, error sqrt((1/6) / 1 / 2) = 0.288675."""
    slope, errors = trend([1.0, 2.0, 4.0])
    assert slope == pytest.approx(1.5)
    assert errors == pytest.approx(1.5 / math.sqrt(1 / 12))
    values = np.random.default_rng(0).normal(size=20)
    fitted, covariance = np.polyfit(np.arange(20), values, 1, cov=True)
    found = trend(values.tolist())
    assert found == pytest.approx((fitted[0], fitted[0] / math.sqrt(covariance[0, 0])))
    assert trend([1.0, 2.0]) == (0, 0)
    assert trend([3.0] * 5) == (0, 0)
    assert trend([1.0, 2.0, 3.0]) == (1, math.inf)
    assert trend([3.0, 2.0, 1.0]) == (-1, -math.inf)


class Stage:
    """What the callback sees of a trainer and a module."""

    def __init__(self, monkeypatch) -> None:
        self.logged: dict[str, float] = {}
        self.said: list[tuple[str, str]] = []
        self.module = SimpleNamespace(
            log=lambda name, value, **_: self.logged.update({name: value})
        )
        for name, place in (("record_alarm", 0), ("record_event", 1)):
            kind = lambda *given, place=place: self.said.append(  # noqa: E731
                ("alarm" if not place else given[3], given[3 + place])
            )
            monkeypatch.setattr(f"callbacks.overclaim_monitor.{name}", kind)

    def rollout(self, monitor: OverclaimMonitor, steps: list[float], gold: list[float]) -> None:
        scores = {n: torch.tensor(v).float() for n, v in (("steps", steps), ("gold", gold))}
        means = {f"reward/{name}/mean": value.nanmean() for name, value in scores.items()}
        trainer = SimpleNamespace(callback_metrics=means)
        outputs = {"rewards": {name: RewardOutput(value) for name, value in scores.items()}}
        monitor.on_train_batch_end(trainer, self.module, outputs, None, 0)


def test_overclaims_are_counted_where_both_have_said_something(monkeypatch):
    stage, monitor = Stage(monkeypatch), OverclaimMonitor(**NAMES)
    stage.rollout(monitor, [1, 1, 0, 1, math.nan, 0.5], [0, 1, 0, math.nan, 0, 0.4])
    assert stage.logged["overclaim/share"] == 2 / 4
    stage.rollout(monitor, [math.nan], [1])
    assert math.isnan(stage.logged["overclaim/share"])
    assert len(monitor.history["proxy"]) == 1


def test_the_alarm_begins_and_ends_with_two_clear_trends(monkeypatch):
    stage, monitor = Stage(monkeypatch), OverclaimMonitor(**NAMES)
    for n in range(WINDOW - 1):
        stage.rollout(monitor, [n / 40 + n % 2 / 100], [1 - n / 40 + n % 2 / 100])
    assert stage.said == []  # the window is not full
    stage.rollout(monitor, [0.5], [0.5])
    assert [kind for kind, _ in stage.said] == ["alarm"]
    assert "'steps' rises by +0.025 a rollout and 'gold' falls by -0.025" in stage.said[0][1]
    state = json.loads(json.dumps(monitor.state_dict()))
    for n in range(WINDOW):
        stage.rollout(monitor, [0.5 + n % 2 / 100], [0.5 + n / 40])
    assert [kind for kind, _ in stage.said] == ["alarm", "recovery"]
    resumed = OverclaimMonitor(**NAMES)
    resumed.load_state_dict(state)
    assert resumed.is_parting
    assert resumed.state_dict() == state


def test_noise_is_no_alarm(monkeypatch):
    stage, monitor = Stage(monkeypatch), OverclaimMonitor(**NAMES)
    draw = np.random.default_rng(3)
    for _ in range(3 * WINDOW):
        stage.rollout(monitor, draw.random(8).tolist(), draw.random(8).tolist())
    assert stage.said == []


@pytest.mark.slow
def test_it_logs_in_a_run_and_goes_on_after_a_resume(tmp_path):
    whole, again = whole_and_resumed(tmp_path, "OverclaimMonitor", REWARDS, **NAMES)
    shares = column(tmp_path / "whole", "overclaim/share")
    assert len(shares) == 4
    assert all(0 < share < 1 for share in shares)
    states = [callback_of(run, OverclaimMonitor).state_dict() for run in (whole, again)]
    assert states[0] == states[1]
    assert len(states[0]["history"]["gold"]) == 4


def test_rewards_that_are_not_there_are_refused(tmp_path, capfd):
    with pytest.raises(ValueError, match="give two rewards"):
        OverclaimMonitor("a", "a")
    with pytest.raises(SystemExit):
        run_with(tmp_path, "OverclaimMonitor", proxy="steps", gold="gold")
    assert "proxy='steps' of OverclaimMonitor is no reward of this run" in capfd.readouterr().err
    moved = "--model.rewards.certainty.length=neutral"
    with pytest.raises(SystemExit):
        run_with(tmp_path, "OverclaimMonitor", moved, proxy="vote", gold="certainty")
    assert "rewards.certainty.length=neutral moves scores" in capfd.readouterr().err
