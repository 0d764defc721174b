"""The detectors of guards, and those of CollapseGuard: the symptoms of collapse, without labels.

``DETECTORS`` at the end are the symptoms that https://arxiv.org/abs/2605.22620 describes, and a few
of ours; all limits are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from callbacks.detectors import Detector, check_known

SPACES = ("token", "answer", "any", "drive", "reward")
SEVERITIES = ("alarm", "notice")
RUNS = ("all", "label_free", "vote", "certainty")


@dataclass(frozen=True)
class GuardDetector(Detector):
    """A symptom of collapse: a `Detector` that says where, how badly and in which runs.

    The settings metric, side, factor, gap, bound, window, patience, release, within and meaning are
    those of `Detector`. The baseline is the guard's.

    Args:
        space: token (as certainty alone does) | answer (as a vote alone does) | any | drive: no
            symptom yet, but what pushes the policy; not judged where a strong reference KL holds
            it | reward: a reward that has no signal, or is gamed.
        severity: alarm (acted upon) | notice (written down only).
        runs: all | label_free | vote | certainty: which runs are judged; the last two are those
            that reward it.
    """

    space: str = "token"
    severity: str = "alarm"
    runs: str = "all"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_known("space", self.space, SPACES)
        check_known("severity", self.severity, SEVERITIES)
        check_known("runs", self.runs, RUNS)


# What a configuration can change; windows and baselines are averaged in one way.
SETTINGS = [
    field.name for field in fields(GuardDetector) if field.name not in ("average", "baseline")
]


def with_changes(
    detectors: Mapping[str, GuardDetector], changes: Mapping[str, dict[str, Any] | None] | None
) -> dict[str, GuardDetector]:
    """Return detectors with settings changed, detectors taken out (null) and new ones added.

    Args:
        detectors: name -> detector.
        changes: name -> settings, or null; null = no changes.

    Raises:
        ValueError: an unknown setting, a new detector without metric and side, or a null that
            takes out nothing.
    """
    changed = dict(detectors)
    for name, settings in (changes or {}).items():
        if settings is not None:
            changed[name] = _changed(name, settings, detectors)
        elif changed.pop(name, None) is None:
            raise ValueError(
                f"detectors.{name}=null takes nothing out; detectors: {', '.join(detectors)}"
            )
    return changed


def _changed(
    name: str, settings: dict[str, Any], detectors: Mapping[str, GuardDetector]
) -> GuardDetector:
    if unknown := sorted(set(settings) - set(SETTINGS)):
        raise ValueError(
            f"detectors.{name} has no setting {unknown}; settings: {', '.join(SETTINGS)}"
        )
    if name in detectors:
        return replace(detectors[name], **settings)
    if not {"metric", "side"} <= set(settings):
        raise ValueError(
            f"detectors.{name} is new, so it needs metric and side (and a limit); those that exist:"
            f" {', '.join(detectors)}"
        )
    return GuardDetector(**settings)


def verdict(spaces: set[str]) -> str:
    """Say which kind of collapse the active alarms add up to.

    Args:
        spaces: the ``space`` of each active alarm.
    """
    if {"token", "answer"} <= spaces:
        return "collapse in token space and in answer space"
    if "token" in spaces:
        return "token-space collapse (as certainty rewards alone bring about)"
    if "answer" in spaces:
        return "answer-space collapse (as a vote alone brings about)"
    if "reward" in spaces:
        return "a fault of the reward: it has no signal, or it is gamed"
    if "any" in spaces:
        return "collapse, not yet clear of which kind"
    return "no collapse yet, but a risk of one"


DETECTORS = {
    # A policy may be certain because it is right. With gold answers no limit tells; without them a
    # run that is right in 98 per cent of its answers has a twentieth of its first entropy.
    "entropy_low": GuardDetector(
        "policy/entropy",
        "below",
        factor=0.02,
        runs="label_free",
        meaning="The policy has almost stopped exploring.",
    ),
    "entropy_high": GuardDetector(
        "policy/entropy",
        "above",
        factor=2.0,
        space="any",
        meaning="Completions become noise.",
    ),
    "length_low": GuardDetector(
        "rollout/length",
        "below",
        factor=0.6,
        meaning="Completions lose their reasoning: short ones look certain.",
    ),
    "length_high": GuardDetector(
        "rollout/length", "above", factor=2.5, space="any", meaning="Completions become very long."
    ),
    "ended": GuardDetector(
        "rollout/ended", "below", factor=0.75, meaning="Completions no longer end by themselves."
    ),
    "parseable": GuardDetector(
        "rollout/parseable", "below", factor=0.7, meaning="Completions no longer give an answer."
    ),
    "repetition": GuardDetector(
        "rollout/repetition", "above", gap=0.12, meaning="Completions repeat themselves."
    ),
    "agreement": GuardDetector(
        "vote/largest_cluster",
        "below",
        factor=0.8,
        meaning="Answers to one problem scatter more than at the start.",
    ),
    "alignment": GuardDetector(
        "guard/vote_alignment",
        "below",
        bound=0.05,
        window=5,
        runs="label_free",
        meaning="Updates no longer favour what a group agrees on.",
    ),
    "conflict": GuardDetector(
        "guard/vote_alignment",
        "below",
        bound=0.8,
        window=5,
        space="drive",
        runs="vote",
        meaning="A vote is rewarded, but another reward works against it.",
    ),
    "certainty_share": GuardDetector(
        "guard/certainty_share",
        "above",
        bound=0.9,
        space="drive",
        runs="certainty",
        meaning="Almost the whole advantage comes from the policy's own certainty.",
    ),
    "top_answer": GuardDetector(
        "vote/top_answer",
        "above",
        gap=0.3,
        space="answer",
        meaning="Different problems get the same answer.",
    ),
    "distinct_answers": GuardDetector(
        "vote/distinct_answers",
        "below",
        factor=0.25,
        space="answer",
        meaning="Few different answers are left.",
    ),
    # A right consensus looks like a wrong one. So that it is there is a notice. That it came within
    # a few rollouts is an alarm: the steps are too large for the vote to correct itself.
    "consensus": GuardDetector(
        "policy/entropy",
        "below",
        factor=0.33,
        space="drive",
        severity="notice",
        runs="vote",
        meaning="Answers disappear, and only agreement, right or wrong, decides which ones remain.",
    ),
    "unanimous": GuardDetector(
        "vote/unanimous",
        "above",
        gap=0.4,
        window=5,
        within=16,
        space="drive",
        runs="vote",
        meaning="Most groups agree so early, right or wrong: the learning rate may be too high.",
    ),
    # The bound is that of https://arxiv.org/abs/2605.19444's code, whose share is over two visits.
    "flips": GuardDetector(
        "vote/flip_rate",
        "above",
        bound=0.3,
        window=5,
        space="answer",
        severity="notice",
        meaning="Many problems have another majority than at their last visit.",
    ),
    "log_ratio": GuardDetector(
        "policy/log_ratio",
        "above",
        factor=5.0,
        bound=0.5,
        space="any",
        severity="notice",
        meaning="The policy moves far within one rollout; the learning rate may be too high.",
    ),
}
