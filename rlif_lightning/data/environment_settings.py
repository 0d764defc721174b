"""The environment of a data set's problems, and the limits of an episode."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rlif_lightning.setting_types import check_types

PLACE = "{observation}"
THOUGHTS = ("keep", "fork")


@dataclass(frozen=True)
class EnvironmentSettings:
    """An environment that answers the policy's turns, and the limits of an episode.

    ``sampling.max_new_tokens`` bounds all tokens that the policy draws in an episode, and a turn
    ends as a completion does: by an end of sequence, or by one of ``sampling.stop``.

    Args:
        make: import path of a class or function that makes an environment.
        arguments: of it.
        template: text around an observation where there is no chat; ``{observation}`` is its place.
        max_turns: most turns of the policy in an episode.
        max_turn_tokens: tokens after which a turn ends by itself, and the environment gets what
            there is; null = as many as the episode has left.
        thoughts: keep | fork: what becomes of a turn's ids where the chat template shows less of
            that turn later, as those of reasoning models do: they stay, or the episode continues in
            a new context, whose prompt is what the template shows.
        max_observation_tokens: most tokens of an episode's observations, the first one excepted,
            with what the chat template puts around them, and of the prompts of its new contexts.
            An observation that does not fit is dropped, and the episode ends.
        workers: environments that work at the same time, in each process.
        step_seconds: longest time of a reset or step; the episode has failed then.
        processes: run each environment in a process of its own.
        max_failed: largest share of a rollout's episodes that may fail; the run stops above it.

    Raises:
        ValueError: a number out of range, an unknown name, or a template without the observation.
    """

    make: str
    arguments: dict[str, Any] = field(default_factory=dict)
    template: str = f"\n{PLACE}\n"
    max_turns: int = 8
    max_turn_tokens: int | None = None
    thoughts: str = "keep"
    max_observation_tokens: int = 512
    workers: int = 8
    step_seconds: float = 60.0
    processes: bool = False
    max_failed: float = 0.1

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("max_turns", "max_turn_tokens", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"environment.{name}={value} must be at least 1")
        if self.thoughts not in THOUGHTS:
            raise ValueError(
                f"environment.thoughts={self.thoughts!r} is unknown; use one of"
                f" {', '.join(THOUGHTS)}"
            )
        if self.max_observation_tokens < 0:
            raise ValueError(
                f"environment.max_observation_tokens={self.max_observation_tokens} must be at"
                " least 0"
            )
        if self.step_seconds <= 0 or not 0 <= self.max_failed <= 1:
            raise ValueError(
                f"environment.step_seconds={self.step_seconds}, max_failed={self.max_failed}: need"
                " step_seconds > 0 and max_failed in [0, 1]"
            )
        if self.template.count(PLACE) != 1:
            raise ValueError(
                f"environment.template={self.template!r} must have {PLACE} once, where the"
                " observation goes"
            )
