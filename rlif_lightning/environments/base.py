"""``Environment``: text in, ``Step`` out; and ``Episode``, what is remembered of one.

An environment plays one episode at a time. A factory makes it, and ``reset`` makes it ready for the
next episode. Other shapes are adapted by ``adapters.py``; ``pool.py`` runs many at once.
"""

from __future__ import annotations

import math
import sysconfig
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

Message: TypeAlias = dict[str, Any]
Observation: TypeAlias = str | list[Message]
MAX_CHARACTERS = 2**16  # of an observation; the rest is cut


@dataclass(frozen=True)
class Step:
    """What came of one action.

    Attributes:
        observation: the next text of the user or a tool, or chat messages; "" when done.
        reward: of this step: a difference, never a running score.
        done: whether the task ended.
        truncated: whether a limit of the environment ended it.
        info: figures and words about the step. ``action`` names what was done (a symbol such as
            ADD), ``success`` says at the end whether the task is solved.

    Example:
        >>> Step("higher"), Step("", reward=1.0, done=True).ends
        (Step(observation='higher', reward=0.0, done=False, truncated=False, info={}), True)
    """

    observation: Observation = ""
    reward: float = 0.0
    done: bool = False
    truncated: bool = False
    info: Mapping[str, float | str] = field(default_factory=dict)

    @property
    def ends(self) -> bool:
        """Say whether the episode is over."""
        return self.done or self.truncated


@runtime_checkable
class Environment(Protocol):
    """Plays one episode at a time, and is reused through ``reset``.

    Found by name, where an environment has them: ``close()``, called once at its end;
    ``metrics()``, figures of the episode; ``tools``, JSON schemas for the chat template;
    ``get_reward()``, a reward for the whole episode, asked once at its end.
    """

    def reset(self, seed: int | None = None, **row: Any) -> Observation | None:
        """Begin an episode.

        Args:
            seed: of all that is random in it.
            row: the problem's columns.

        Returns:
            What the policy sees after the prompt; None = nothing.
        """
        ...

    def step(self, action: str) -> Step:
        """Take the text that the policy wrote in its turn."""
        ...


@dataclass(frozen=True)
class Turn:
    """One action of an episode and what came of it; the fields are those of ``Step``."""

    action: str
    reward: float = 0.0
    info: Mapping[str, float | str] = field(default_factory=dict)
    observation: Observation = ""


# How an episode ended: by the environment, by a limit of the run, or by a failure.
ENDED = ("completed", "truncated")
LIMITED = ("max_turns", "max_sampled_tokens", "max_observation_tokens")
FAILED = ("environment_error", "environment_timeout")
STOPS = (*ENDED, *LIMITED, *FAILED)
SOLVED = 1.0  # the reward from which an episode counts as solved, if the environment does not say


@dataclass(frozen=True)
class Episode:
    """What is remembered of one episode.

    Attributes:
        turns: of the policy, in their order. One that a limit cut is among them.
        stop: one of ``STOPS``.
        max_turns: most turns that it could have had.
        final_reward: of the whole episode, beside the turns' own.
        metrics: the environment's own figures.
        failure: the error that ended it; "" = none.

    Example:
        >>> Episode((Turn("5"), Turn("7", 1.0)), "completed", 8).reward
        1.0
    """

    turns: Sequence[Turn]
    stop: str
    max_turns: int
    final_reward: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)
    failure: str = ""

    @property
    def reward(self) -> float:
        """The sum of all rewards; NaN for an episode that failed."""
        if self.failure:
            return math.nan
        return math.fsum([*(turn.reward for turn in self.turns), self.final_reward])

    @property
    def is_solved(self) -> bool:
        """Whether the last step says so by ``success``; without it, whether the reward is >= 1.

        A turn that a limit cut was no step of the environment.
        """
        steps = [*self.turns]
        if steps and self.stop == "max_sampled_tokens" and steps[-1] == Turn(steps[-1].action):
            steps.pop()  # nothing answered it
        said = steps[-1].info.get("success") if steps else None
        if said is None or self.failure:
            return self.reward >= SOLVED
        return float(said) >= SOLVED


def cut(observation: Observation) -> Observation:
    """Return an observation of at most ``MAX_CHARACTERS``, and a word on what was cut."""
    if not isinstance(observation, str):
        if any(not isinstance(each.get("role"), str) for each in observation):
            raise TypeError(f"a message of {observation!r:.100} has no role that is a text")
        return [{**each, "content": cut(str(each.get("content") or ""))} for each in observation]
    if len(observation) <= MAX_CHARACTERS:
        return observation
    kept = MAX_CHARACTERS - 50  # a cut text can be cut again, and stays
    return f"{observation[:kept]}\n[{len(observation) - kept} more characters]"


def described(error: BaseException) -> str:
    """Return an error's type and words, and the line of the environment's own code it comes from.

    Own code is the innermost that is neither installed nor in this folder. Without any it is the
    innermost that is not in this folder, such as a line of an installed game.
    """
    here, installed = str(Path(__file__).parent), (sysconfig.get_path("stdlib"), *_packages())
    frames = [each for each in traceback.extract_tb(error.__traceback__)
              if not each.filename.startswith((here, "<"))]  # fmt: skip
    own = [each for each in frames if not each.filename.startswith(installed)] or frames
    said = f"{type(error).__name__}: {error}"
    return f"{said} ({own[-1].filename}:{own[-1].lineno})" if own else said


def _packages() -> tuple[str, str]:
    return sysconfig.get_path("purelib"), sysconfig.get_path("platlib")
