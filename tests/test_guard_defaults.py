"""The guard's defaults on figures of real runs: silent where it is healthy, early where it falls.

``tests/data/guard_curves.csv`` has the figures of each rollout, rounded, of the quickstart (seeds 0
to 5, whole) and of arms of the collapse study that lost their accuracy (first 16 rollouts).
"""

from __future__ import annotations

import csv
import math
from itertools import groupby

import pytest

from callbacks import CollapseGuard
from callbacks.detectors import Detector, DetectorState, Watch
from harness.files import ROOT

KINDS = {
    "quickstart": {"all", "label_free", "vote", "certainty"},
    "vote": {"all", "label_free", "vote"},
    "logprob": {"all", "label_free", "vote", "certainty"},
    "stable_no_guard": {"all", "label_free", "vote", "certainty"},
    "paper": {"all", "label_free", "vote", "certainty"},
}


def alarms(rows: list[dict[str, str]], kinds: set[str]) -> dict[str, int]:
    """Alarm -> the rollout of its first."""
    watch, found = Watch(CollapseGuard().detectors), {}
    for row in rows:
        values = {
            name: float(row.get(d.metric, "nan")) if d.runs in kinds else math.nan
            for name, d in CollapseGuard().detectors.items()
        }
        for name in watch.update(values)[0]:
            if CollapseGuard().detectors[name].severity == "alarm":
                found.setdefault(name, int(row["rollout"]))
    return found


def recorded() -> dict[tuple[str, str], list[dict[str, str]]]:
    with (ROOT / "tests/data/guard_curves.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {key: list(rows) for key, rows in groupby(rows, lambda row: (row["run"], row["kind"]))}


def test_a_healthy_run_raises_no_alarm_and_one_that_falls_raises_it_early():
    runs = recorded()
    assert sum(kind == "healthy" for _, kind in runs) == 6
    assert len(runs) == 15
    for (name, kind), rows in runs.items():
        found = alarms(rows, KINDS[name.split()[0]])
        assert bool(found) == (kind == "falls"), (name, found)


def test_within_by_hand():
    """Beyond 5 at the figures 3 and 6: of the first four only the former counts, until it ends."""
    early = Detector("x", "above", bound=5.0, window=1, within=4, release=0.0)
    found, state = [], DetectorState()
    for value in (1, 1, 9, 9, 9, 1, 9, 9):
        state = early.update(state, float(value))
        found.append(state.active)
    assert found == [False, False, True, True, True, False, False, False]
    assert state.count == 8
    assert "x, 9, is above 5, within the first 4 rollouts." in early.describe(state)
    with pytest.raises(ValueError, match="within=0 must be at least 1, or null"):
        Detector("x", "above", bound=5.0, within=0)


def test_within_goes_on_after_a_resume():
    """A state of before figures were counted is not early any more."""
    watch = Watch({"a": Detector("x", "above", bound=5.0, window=1, within=2)})
    watch.update({"a": 1.0})
    saved = watch.state_dict()
    for state, expected in ((saved, ["a"]), ({"a": {**saved["a"]}}, [])):
        if not expected:
            del state["a"]["count"]
        again = Watch(watch.detectors)
        again.load_state_dict(state)
        assert again.update({"a": 9.0})[0] == expected
