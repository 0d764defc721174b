"""Detectors: each watches one figure of a run and says whether it is beyond a limit.

Pure: numbers in, numbers out. CollapseGuard, LabelFreeStopping and SamplerGap decide by this code.

A worked example: ``Detector("x", "below", factor=0.5, window=3, patience=1, baseline=Baseline(2))``
is given 8, 12, 9, 4, 3. The baseline is 10, the mean of 8 and 12, so the limit is 5. The first full
window is 9, 4, 3. Its median, 4, is below 5: the detector becomes active.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from statistics import median, median_low
from typing import Any

SIDES = ("below", "above")
AVERAGES = ("mean", "median")
_MANY = 2**31


@dataclass(frozen=True)
class Baseline:
    """A run's first figures, which relative limits are relative to.

    Args:
        size: number of figures.
        average: mean | median (of an even number, the smaller of the two in the middle).
        is_early: a figure is judged while the baseline fills, by what it holds; a figure beyond the
            limit is not added to it.
        in_window: windows reach back into the baseline; an absolute limit waits for it as well.
    """

    size: int = 5
    average: str = "mean"
    is_early: bool = False
    in_window: bool = False

    def value(self, first: tuple[float, ...]) -> float:
        """Return the average of the first figures, NaN where there are none."""
        if not first:
            return math.nan
        return sum(first) / len(first) if self.average == "mean" else median_low(first)


@dataclass(frozen=True)
class DetectorState:
    """What a detector remembers between figures.

    Attributes:
        first: the figures of the baseline.
        recent: the last figures, at most a window of them.
        streak: how many judgements in a row were beyond the limit.
        active: whether the figure is beyond the limit, and has been for ``patience`` judgements.
        count: how many figures there were.
    """

    first: tuple[float, ...] = ()
    recent: tuple[float, ...] = ()
    streak: int = 0
    active: bool = False
    count: int = 0


@dataclass(frozen=True)
class Detector:
    """A figure whose average over a window is beyond a limit, several times in a row.

    Args:
        metric: name of the figure, as logged.
        side: below | above: the side of the limit on which the figure is in trouble.
        factor: the limit is this times the baseline.
        gap: the limit is this share of the way from the baseline to 1, for shares that rise (above
            only).
        bound: an absolute limit; beside a relative one both must be passed.
        window: figures whose average is judged.
        average: mean | median, of a window.
        patience: judgements in a row beyond the limit before the detector is active.
        release: an active detector ends once the average is back inside by this share of the limit.
        within: the detector becomes active in the run's first so many figures only, for what is a
            symptom if it comes early; null = at any time.
        baseline: what relative limits are relative to. Nothing is judged while it fills.
        meaning: what the detector's activity means, for its message.

    Raises:
        ValueError: an unknown name, a number out of range, or no limit.
    """

    metric: str
    side: str
    factor: float | None = None
    gap: float | None = None
    bound: float | None = None
    window: int = 3
    average: str = "median"
    patience: int = 1
    release: float = 0.1
    within: int | None = None
    baseline: Baseline = Baseline()
    meaning: str = ""

    def __post_init__(self) -> None:
        check_known("side", self.side, SIDES)
        for average in (self.average, self.baseline.average):
            check_known("average", average, AVERAGES)
        if self.factor is None and self.gap is None and self.bound is None:
            raise ValueError(f"detector of {self.metric!r} has no limit: give factor, gap or bound")
        if self.gap is not None and (
            self.factor is not None or self.side == "below" or not 0 < self.gap < 1
        ):
            raise ValueError(
                f"gap={self.gap} must lie in (0, 1), with side=above and without a factor"
            )
        if self.factor is not None and self.factor <= 0:
            raise ValueError(f"factor={self.factor} must be positive")
        if self.within is not None and self.within < 1:
            raise ValueError(f"within={self.within} must be at least 1, or null for any time")
        if self.window < 1 or self.patience < 1 or self.release < 0:
            raise ValueError(
                f"window={self.window}, patience={self.patience}, release={self.release}: need"
                " window >= 1, patience >= 1 and release >= 0"
            )

    @property
    def is_relative(self) -> bool:
        """Whether the limit depends on the run's start."""
        return self.factor is not None or self.gap is not None

    def limit(self, state: DetectorState) -> float:
        """Return the limit, in units of the figure."""
        baseline = self.baseline.value(state.first)
        limits = [] if self.bound is None else [self.bound]
        if self.factor is not None:
            limits.append(self.factor * baseline)
        if self.gap is not None:
            limits.append(baseline + self.gap * (1 - baseline))
        return min(limits) if self.side == "below" else max(limits)

    def update(self, state: DetectorState, value: float) -> DetectorState:
        """Return the state after one more figure.

        Args:
            state: the state before it.
            value: the figure; NaN (nothing was measured) changes nothing, nor does an infinite one
                while the baseline fills.
        """
        if math.isnan(value):
            return state
        state = replace(state, count=state.count + 1)
        baseline, first = self.baseline, (*state.first, value)
        waits = self.is_relative or baseline.in_window
        fills = waits and len(state.first) < baseline.size
        if fills and not (baseline.is_early and state.first):
            if math.isinf(value):  # every limit relative to it would be infinite
                return state
            recent = self._window(state, value) if baseline.in_window else state.recent
            return replace(state, first=first, recent=recent)
        judged = self._judged(state, self._window(state, value))
        return replace(judged, first=first) if fills and not judged.streak else judged

    def _window(self, state: DetectorState, value: float) -> tuple[float, ...]:
        return (*state.recent, value)[-self.window :]

    def _judged(self, state: DetectorState, recent: tuple[float, ...]) -> DetectorState:
        limit = self.limit(state)
        margin = self.release * abs(limit) if state.active else 0.0
        limit += margin if self.side == "below" else -margin
        beyond = len(recent) == self.window and self._passes(self._average(recent), limit)
        may_begin = self.within is None or state.active or state.count <= self.within
        streak = state.streak + 1 if beyond and may_begin else 0
        return replace(state, recent=recent, streak=streak, active=streak >= self.patience)

    def _average(self, recent: tuple[float, ...]) -> float:
        return median(recent) if self.average == "median" else sum(recent) / len(recent)

    def _passes(self, value: float, limit: float) -> bool:
        return value < limit if self.side == "below" else value > limit

    def is_beyond(self, state: DetectorState) -> bool:
        """Return whether the last figure alone is beyond the limit."""
        return bool(state.recent) and self._passes(state.recent[-1], self.limit(state))

    def describe(self, state: DetectorState, unit: str = "rollouts") -> str:
        """Say in words what the figure is, and what its limit is relative to.

        Args:
            state: the present state, with at least one judged figure.
            unit: what one figure is of.
        """
        text = f"{self.metric}, {self._average(state.recent):.4g}"
        text += f" in the {self.average} of {self.window} {unit}" if self.window > 1 else ""
        text += f", is {self.side} {self.limit(state):.4g}"
        text += f", {self.patience} times in a row" if self.patience > 1 else ""
        text += "" if self.within is None else f", within the first {self.within} {unit}"
        if self.is_relative:
            start = self.baseline.value(state.first)
            text += f" (at the start of the run it was {start:.4g})"
        return f"{text}. {self.meaning}".strip()


class Watch:
    """Detectors by name, with their states.

    Args:
        detectors: name -> detector.

    Attributes:
        states: name -> state.
    """

    def __init__(self, detectors: Mapping[str, Detector]):
        self.detectors = dict(detectors)
        self.states = {name: DetectorState() for name in detectors}

    @property
    def active(self) -> list[str]:
        """The names of the detectors that are active."""
        return [name for name, state in self.states.items() if state.active]

    def update(self, values: Mapping[str, float]) -> tuple[list[str], list[str]]:
        """Give detectors one more figure each.

        Args:
            values: name of a detector -> figure.

        Returns:
            The names of those that became active, and of those that ended.
        """
        before = self.active
        for name, value in values.items():
            self.states[name] = self.detectors[name].update(self.states[name], value)
        after = self.active
        began = [name for name in after if name not in before]
        return began, [name for name in before if name not in after]

    def evidence(self, name: str, value: float) -> dict[str, float | str]:
        """Return what an event about a detector rests on: its figure, limit and baseline."""
        detector, state = self.detectors[name], self.states[name]
        return {
            "detector": name,
            "metric": detector.metric,
            "value": value,
            "limit": detector.limit(state),
            "baseline": detector.baseline.value(state.first),
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the states as plain values."""
        return {name: asdict(state) for name, state in self.states.items()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from saved states; a detector without one begins now."""
        for name in self.states.keys() & state_dict.keys():
            saved = state_dict[name]
            lists = {key: tuple(saved[key]) for key in ("first", "recent")}
            # A state of before figures were counted is none of a run's first ones.
            self.states[name] = DetectorState(**{"count": _MANY, **saved, **lists})


def check_known(name: str, value: str, known: tuple[str, ...]) -> None:
    """Refuse an unknown name.

    Raises:
        ValueError: names the setting and what is known.
    """
    if value not in known:
        raise ValueError(f"{name}={value!r} is unknown; use one of {', '.join(known)}")
