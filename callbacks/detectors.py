"""Detectors of collapse: each watches one figure of a run and needs no label.

Pure: numbers in, numbers out.

A detector with a relative limit learns what is normal from the run's first rollouts (the baseline);
one with a bound alone judges from the start. It speaks when the median of its last few figures is
beyond its limit and then keeps quiet until that is clearly back. ``DETECTORS`` at the end are the
symptoms that https://arxiv.org/abs/2605.22620 describes, and a few of ours; all limits are ours.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from statistics import median
from typing import Any

SIDES = ("below", "above")
SPACES = ("token", "answer", "any", "drive")
SEVERITIES = ("alarm", "notice")
RUNS = ("all", "label_free", "vote", "certainty")


@dataclass(frozen=True)
class DetectorState:
    """What a detector remembers between rollouts.

    Attributes:
        total: sum of the figure over the baseline's rollouts.
        count: rollouts in the baseline so far.
        recent: the last figures after the baseline.
        active: whether it has spoken and the figure is not back yet.
    """

    total: float = 0.0
    count: int = 0
    recent: tuple[float, ...] = ()
    active: bool = False

    @property
    def baseline(self) -> float:
        return self.total / max(self.count, 1)


@dataclass(frozen=True)
class Detector:
    """One symptom: the median of a figure's last ``window`` values is beyond its limit.

    Args:
        metric: name of the figure, as logged.
        side: below | above: on which side of the limit the trouble is.
        factor: the limit is this times the baseline.
        gap: the limit is this share of the way from the baseline to 1, for shares that rise (above
            only).
        bound: an absolute limit; beside a relative one both must be passed.
        window: rollouts whose median is judged: a lone outlier is no symptom.
        release: it is over once the median is back inside by this share of the limit.
        space: token (as certainty alone does) | answer (as a vote alone does) | any | drive: no
            symptom yet, but what pushes the policy; not judged where a strong reference KL holds
            it.
        severity: alarm (acted upon) | notice (told only).
        runs: all | label_free | vote | certainty: which runs are judged; the last two are those
            that reward it.
        meaning: what it tells, for the message.
    """

    metric: str
    side: str
    factor: float | None = None
    gap: float | None = None
    bound: float | None = None
    window: int = 3
    release: float = 0.1
    space: str = "token"
    severity: str = "alarm"
    runs: str = "all"
    meaning: str = ""

    def __post_init__(self) -> None:
        for name, known in (
            ("side", SIDES),
            ("space", SPACES),
            ("severity", SEVERITIES),
            ("runs", RUNS),
        ):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is unknown; use one of {', '.join(known)}"
                )
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
        if self.window < 1 or self.release < 0:
            raise ValueError(
                f"window={self.window}, release={self.release}: need window >= 1 and release >= 0"
            )

    @property
    def is_relative(self) -> bool:
        """Whether the limit depends on the run's start."""
        return self.factor is not None or self.gap is not None

    def limit(self, baseline: float) -> float:
        """The limit in units of the figure."""
        limits = [] if self.bound is None else [self.bound]
        if self.factor is not None:
            limits.append(self.factor * baseline)
        if self.gap is not None:
            limits.append(baseline + self.gap * (1 - baseline))
        return min(limits) if self.side == "below" else max(limits)

    def update(self, state: DetectorState, value: float, baseline: int) -> DetectorState:
        """The state after one more rollout.

        Args:
            state: the state before it.
            value: the figure; NaN (nothing to measure) changes nothing.
            baseline: rollouts of the baseline; while it fills, nothing is judged by a relative
                limit.

        Returns:
            The new state; ``active`` turning True is the alarm.
        """
        if math.isnan(value):
            return state
        if self.is_relative and state.count < baseline:
            return replace(state, total=state.total + value, count=state.count + 1)
        recent = (*state.recent, value)[-self.window :]
        limit, middle = self.limit(state.baseline), median(recent)
        margin = self.release * abs(limit) if state.active else 0.0
        outside = middle < limit + margin if self.side == "below" else middle > limit - margin
        return replace(state, recent=recent, active=outside and len(recent) == self.window)

    def is_beyond(self, state: DetectorState) -> bool:
        """Whether the last figure itself is beyond the limit."""
        if not state.recent:
            return False
        limit = self.limit(state.baseline)
        return state.recent[-1] < limit if self.side == "below" else state.recent[-1] > limit

    def describe(self, state: DetectorState) -> str:
        """In words: the figure, its limit and where that comes from."""
        told = (
            f"{self.metric}, {median(state.recent):.4g} in the median of {self.window}"
            " rollouts,"
            f" is {self.side}"
        )
        told += f" {self.limit(state.baseline):.4g}"
        told += (
            f" (at the start of the run it was {state.baseline:.4g})." if self.is_relative else "."
        )
        return f"{told} {self.meaning}".strip()


def with_changes(
    detectors: dict[str, Detector], changes: dict[str, dict[str, Any] | None] | None
) -> dict[str, Detector]:
    """Detectors with some of their settings changed, some taken out (null) and new ones added.

    Raises:
        ValueError: an unknown setting, a new detector without metric and side, or one that takes
            out nothing.
    """
    changed = dict(detectors)
    known = [field.name for field in fields(Detector)]
    for name, settings in (changes or {}).items():
        if settings is None:
            if changed.pop(name, None) is None:
                raise ValueError(
                    f"detectors.{name}=null takes nothing out; detectors: {', '.join(detectors)}"
                )
            continue
        unknown = sorted(set(settings) - set(known))
        if unknown:
            raise ValueError(
                f"detectors.{name} has no setting {unknown}; settings: {', '.join(known)}"
            )
        merged = {**(asdict(changed[name]) if name in changed else {}), **settings}
        if not {"metric", "side"} <= set(merged):
            raise ValueError(
                f"detectors.{name} is new, so it needs metric and side (and a limit); those that"
                " exist:"
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
    if "any" in spaces:
        return "collapse, not yet clear of which kind"
    return "no collapse yet, but a risk of one"


DETECTORS = {
    "entropy_low": Detector(  # with gold answers a policy may be that sure because it is right
        "policy/entropy",
        "below",
        factor=0.05,
        runs="label_free",
        meaning="The policy has all but stopped to explore.",
    ),
    "entropy_high": Detector(
        "policy/entropy",
        "above",
        factor=2.0,
        space="any",
        meaning="The policy dissolves into noise.",
    ),
    "length_low": Detector(
        "rollout/length",
        "below",
        factor=0.6,
        meaning="Completions lose their reasoning: short ones look certain.",
    ),
    "length_high": Detector(
        "rollout/length", "above", factor=2.5, space="any", meaning="Completions run on."
    ),
    "ended": Detector(
        "rollout/ended", "below", factor=0.75, meaning="Completions no longer end by themselves."
    ),
    "parseable": Detector(
        "rollout/parseable", "below", factor=0.7, meaning="Completions no longer give an answer."
    ),
    "repetition": Detector(
        "rollout/repetition", "above", gap=0.12, meaning="Completions repeat themselves."
    ),
    "agreement": Detector(
        "vote/largest_cluster",
        "below",
        factor=0.8,
        meaning="Answers to one problem scatter more than at the start.",
    ),
    "alignment": Detector(
        "guard/vote_alignment",
        "below",
        bound=0.05,
        window=5,
        runs="label_free",
        meaning="Updates no longer favour what a group agrees on.",
    ),
    "conflict": Detector(
        "guard/vote_alignment",
        "below",
        bound=0.8,
        window=5,
        space="drive",
        runs="vote",
        meaning="A vote is rewarded, but updates follow it weakly: another reward works against"
        " it.",
    ),
    "certainty_share": Detector(
        "guard/certainty_share",
        "above",
        bound=0.9,
        space="drive",
        runs="certainty",
        meaning="Almost the whole advantage comes from the policy's own certainty.",
    ),
    "top_answer": Detector(
        "vote/top_answer",
        "above",
        gap=0.3,
        space="answer",
        meaning="Different problems get the same answer.",
    ),
    "distinct_answers": Detector(
        "vote/distinct_answers",
        "below",
        factor=0.25,
        space="answer",
        meaning="Few different answers are left.",
    ),
    "consensus": Detector(
        "policy/entropy",
        "below",
        factor=0.33,
        space="drive",
        runs="vote",
        meaning="The vote hardens: answers are given up while only agreement, right or wrong,"
        " decides"
        " which.",
    ),
    "unanimous": Detector(
        "vote/unanimous",
        "above",
        gap=0.4,
        window=5,
        space="drive",
        runs="vote",
        meaning="The vote is about to confirm itself: right or wrong, it has little left to"
        " correct.",
    ),
    "log_ratio": Detector(
        "policy/log_ratio",
        "above",
        factor=5.0,
        bound=0.5,
        space="any",
        severity="notice",
        meaning="The policy moves far within one rollout; the learning rate may be too high.",
    ),
}
