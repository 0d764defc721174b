"""Detectors of collapse: each watches one figure of a run and needs no label. Pure: numbers in, numbers out.

A detector learns what is normal from the run's first rollouts (the baseline) and speaks when the figure has been beyond
its limit for some rollouts in a row; it then keeps quiet until the figure is clearly back. ``DETECTORS`` at the end are
the symptoms that https://arxiv.org/abs/2605.22620 describes, and a few of ours; all limits are ours.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

SIDES = ("below", "above")
SPACES = ("token", "answer", "drive")
SEVERITIES = ("alarm", "notice")


@dataclass(frozen=True)
class DetectorState:
    """What a detector remembers between rollouts.

    Attributes:
        total: sum of the figure over the baseline's rollouts.
        count: rollouts in the baseline so far.
        streak: rollouts in a row beyond the limit.
        active: whether it has spoken and the figure is not back yet.
    """

    total: float = 0.0
    count: int = 0
    streak: int = 0
    active: bool = False

    @property
    def baseline(self) -> float:
        return self.total / max(self.count, 1)


@dataclass(frozen=True)
class Detector:
    """One symptom: a figure beyond its limit for ``patience`` rollouts in a row.

    Args:
        metric: name of the figure, as logged.
        side: below | above: on which side of the limit the trouble is.
        factor: the limit is this times the baseline.
        gap: the limit is this share of the way from the baseline to 1, for shares that rise (above only).
        bound: an absolute limit; beside a relative one both must be passed.
        patience: rollouts in a row beyond the limit before it speaks.
        release: it is over once the figure is back inside by this share of the limit.
        space: token (as certainty alone does) | answer (as a vote alone does) | drive (what pushes the policy).
        severity: alarm (acted upon) | notice (told only).
        meaning: what it tells, for the message.
    """

    metric: str
    side: str
    factor: float | None = None
    gap: float | None = None
    bound: float | None = None
    patience: int = 3
    release: float = 0.1
    space: str = "token"
    severity: str = "alarm"
    meaning: str = ""

    def __post_init__(self) -> None:
        for name, known in (("side", SIDES), ("space", SPACES), ("severity", SEVERITIES)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; use one of {', '.join(known)}")
        if self.factor is None and self.gap is None and self.bound is None:
            raise ValueError(f"detector of {self.metric!r} has no limit: give factor, gap or bound")
        if self.gap is not None and (self.factor is not None or self.side == "below" or not 0 < self.gap < 1):
            raise ValueError(f"gap={self.gap} must lie in (0, 1), with side=above and without a factor")
        if self.factor is not None and self.factor <= 0:
            raise ValueError(f"factor={self.factor} must be positive")
        if self.patience < 1 or self.release < 0:
            raise ValueError(f"patience={self.patience}, release={self.release}: need patience >= 1 and release >= 0")

    def limit(self, baseline: float) -> float:
        """The limit in units of the figure."""
        limits = [] if self.bound is None else [self.bound]
        if self.factor is not None:
            limits.append(self.factor * baseline)
        if self.gap is not None:
            limits.append(baseline + self.gap * (1 - baseline))
        return min(limits) if self.side == "below" else max(limits)

    def update(self, state: DetectorState, value: float, window: int) -> DetectorState:
        """The state after one more rollout.

        Args:
            state: the state before it.
            value: the figure; NaN (nothing to measure) changes nothing.
            window: rollouts of the baseline; while it fills nothing is judged.

        Returns:
            The new state; ``active`` turning True is the alarm.
        """
        if math.isnan(value):
            return state
        if state.count < window:
            return replace(state, total=state.total + value, count=state.count + 1)
        limit = self.limit(state.baseline)
        margin = self.release * abs(limit) if state.active else 0.0
        outside = value < limit + margin if self.side == "below" else value > limit - margin
        streak = state.streak + 1 if outside else 0
        return replace(state, streak=streak, active=outside and (state.active or streak >= self.patience))

    def describe(self, state: DetectorState, value: float) -> str:
        """In words: the figure, its limit and where that comes from."""
        limit, baseline = self.limit(state.baseline), state.baseline
        told = f"{self.metric} {value:.4g} is {self.side} {limit:.4g} (mean of the first {state.count} rollouts"
        return f"{told}: {baseline:.4g}) for {state.streak} rollouts. {self.meaning}".strip()


def with_changes(
    detectors: dict[str, Detector], changes: dict[str, dict[str, Any] | None] | None
) -> dict[str, Detector]:
    """Detectors with some of their settings changed, some taken out (null) and new ones added.

    Raises:
        ValueError: an unknown setting, a new detector without metric and side, or one that takes out nothing.
    """
    changed = dict(detectors)
    known = [field.name for field in fields(Detector)]
    for name, settings in (changes or {}).items():
        if settings is None:
            if changed.pop(name, None) is None:
                raise ValueError(f"detectors.{name}=null takes nothing out; detectors: {', '.join(detectors)}")
            continue
        unknown = sorted(set(settings) - set(known))
        if unknown:
            raise ValueError(f"detectors.{name} has no setting {unknown}; settings: {', '.join(known)}")
        merged = {**(asdict(changed[name]) if name in changed else {}), **settings}
        if not {"metric", "side"} <= set(merged):
            raise ValueError(
                f"detectors.{name} is new, so it needs metric and side (and a limit); those that exist:"
                f" {', '.join(detectors)}"
            )
        changed[name] = Detector(**merged)
    return changed


def verdict(spaces: set[str]) -> str:
    """Which kind of collapse the active alarms add up to."""
    if {"token", "answer"} <= spaces:
        return "collapse in token space and in answer space"
    if "token" in spaces:
        return "token-space collapse (as certainty rewards alone bring about)"
    if "answer" in spaces:
        return "answer-space collapse (as a vote alone brings about)"
    return "no collapse yet, but a risk of one"


DETECTORS = {
    "entropy_low": Detector(
        "policy/entropy", "below", factor=0.1, meaning="The policy has all but stopped to explore."
    ),
    "entropy_high": Detector(
        "policy/entropy", "above", factor=2.0, space="answer", meaning="The policy dissolves into noise."
    ),
    "length_low": Detector(
        "rollout/length", "below", factor=0.6, meaning="Completions lose their reasoning: short ones look certain."
    ),
    "length_high": Detector("rollout/length", "above", factor=2.5, space="answer", meaning="Completions run on."),
    "ended": Detector("rollout/ended", "below", factor=0.7, meaning="Completions no longer end by themselves."),
    "parseable": Detector("rollout/parseable", "below", factor=0.7, meaning="Completions no longer give an answer."),
    "repetition": Detector("rollout/repetition", "above", gap=0.2, meaning="Completions repeat themselves."),
    "agreement": Detector(
        "vote/largest_cluster", "below", factor=0.7, meaning="Answers to one problem scatter more than at the start."
    ),
    "top_answer": Detector(
        "vote/top_answer", "above", gap=0.3, space="answer", meaning="Different problems get the same answer."
    ),
    "distinct_answers": Detector(
        "vote/distinct_answers", "below", factor=0.25, space="answer", meaning="Few different answers are left."
    ),
    "unanimous": Detector(
        "vote/unanimous",
        "above",
        gap=0.9,
        space="drive",
        severity="notice",
        meaning="A unanimous vote has no gradient: what else is rewarded drives the policy alone.",
    ),
    "certainty_share": Detector(
        "guard/certainty_share",
        "above",
        gap=0.8,
        space="drive",
        severity="notice",
        meaning="Almost the whole advantage comes from the policy's own certainty.",
    ),
    "log_ratio": Detector(
        "policy/log_ratio",
        "above",
        factor=5.0,
        bound=0.5,
        space="drive",
        severity="notice",
        meaning="The policy moves far within one rollout; the learning rate may be too high.",
    ),
}
