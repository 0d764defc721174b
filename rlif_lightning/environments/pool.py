"""``EnvironmentPool``: many episodes at once, each in an instance that is used again.

Environments work in threads, so that a slow one holds no other. What goes wrong in one ends its
episode and no other. An instance that failed is closed and never used again.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from rlif_lightning.environments.adapters import as_environment
from rlif_lightning.environments.base import STOPS, Environment, Episode, Step, Turn, cut, described
from rlif_lightning.environments.child import ChildEnvironment
from rlif_lightning.environments.workers import Answer, Live, Workers, close_all, close_apart
from rlif_lightning.processes.collectives import all_rank_objects, all_rank_sum
from rlif_lightning.sampling import purpose_seeds
from rlif_lightning.setting_types import imported

CLOSING_SECONDS = 5.0  # that all instances together have to close


def episode_seed(seed: int, rollout_number: int, index: int, completion: int) -> int:
    """Return the seed of an episode, from these counters alone.

    Args:
        seed: of the run.
        rollout_number: of the run.
        index: the problem's number in its data set.
        completion: its number in the group; 0 where a whole group plays the same game.

    Returns:
        A seed in [0, 2**31): every generator takes one.
    """
    seeds = purpose_seeds("episode", seed, rollout_number, index, completion)
    return int(seeds.generate_state(1, np.uint32)[0] >> np.uint32(1))


class FailedEpisodes(RuntimeError):
    """Too many episodes failed; says why, and what remains."""


class EnvironmentPool:
    """Plays many episodes at once.

    ``start``, ``act`` and ``end`` return at once; ``answers`` gives what came of them.

    Args:
        factory: import path of a class or function that makes an environment; in Python also the
            function. Each call makes another one.
        arguments: of the factory.
        max_turns: of an episode; it ends then.
        workers: environments that work at the same time.
        step_seconds: longest time for one reset or step. Then the episode has failed.
        processes: run every environment in a process of its own, which is killed if it hangs. It
            also has Python's and NumPy's own generators for itself.
        max_failed: largest share of a rollout's episodes that may fail, over all data ranks.

    Raises:
        ValueError: the factory cannot be imported.
    """

    def __init__(
        self,
        factory: str | Callable[..., Any],
        arguments: Mapping[str, Any] | None = None,
        max_turns: int = 8,
        workers: int = 8,
        step_seconds: float = 60.0,
        processes: bool = False,
        max_failed: float = 0.1,
    ):
        self.factory, self.arguments = factory, dict(arguments or {})
        self.make = imported(factory, "data.environment.make")
        self.max_turns, self.step_seconds, self.max_failed = max_turns, step_seconds, max_failed
        self.processes = processes
        self._workers = Workers(workers)
        self._free: list[Any] = []  # instances; threads take from it, and append to it
        self._live: dict[int, Live] = {}
        self._tools: list[dict[str, Any]] | None = None

    def __enter__(self) -> EnvironmentPool:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def check(self) -> None:
        """Make one instance, which is used later.

        Raises:
            ValueError: it cannot be made; names the factory, its arguments and the error.
        """
        if self._free:
            return
        try:
            self._free.append(self._made())
        except Exception as error:
            raise ValueError(
                f"data.environment.make={self.factory!r} with arguments={self.arguments}: no"
                f" environment could be made ({described(error)}); correct them, or install what it"
                " needs"
            ) from error

    @property
    def tools(self) -> list[dict[str, Any]]:
        """JSON schemas of the environment's tools, for the chat template; empty without tools."""
        if self._tools is None:
            self.check()
            self._tools = list(getattr(self._free[0], "tools", None) or [])
        return self._tools

    def start(self, number: int, seed: int, row: Mapping[str, Any]) -> None:
        """Begin an episode.

        Args:
            number: of the episode; no other that goes on has it.
            seed: of the episode.
            row: the problem's columns.
        """
        live = self._live[number] = Live(number, self.max_turns)
        self._submit(live, lambda: self._reset(live, seed, row))

    def act(self, number: int, action: str) -> None:
        """Give an episode the text of the policy's turn."""
        live = self._live[number]
        self._submit(live, lambda: self._step(live, action))

    def end(self, number: int, stop: str, unfinished: str | None = None) -> None:
        """End an episode at a limit of the run.

        Args:
            number: of the episode.
            stop: one of ``STOPS``.
            unfinished: text of a turn that the limit cut. The environment never sees it.
        """
        assert stop in STOPS, stop
        live = self._live[number]
        if unfinished is not None:
            live.turns.append(Turn(unfinished))
        self._submit(live, lambda: self._over(live, stop))

    def answers(self, wait: bool = True) -> list[Answer]:
        """Return what came since the last call, by number.

        Args:
            wait: until there is an answer; there always is one after ``step_seconds``.
        """
        while True:
            found = self._too_late()
            pause = self._pause() if wait and self._live and not found else 0.0
            found += [self._kept(*pair) for pair in self._workers.found(pause)]
            if found or not wait or not self._live:
                return sorted(found, key=lambda answer: answer.number)

    def check_failures(
        self, episodes: Sequence[Episode], device: torch.device | str = "cpu"
    ) -> float:
        """Return the share of failed episodes of a rollout over all data ranks (a collective).

        Args:
            episodes: of this data rank.
            device: of the collective; NCCL has none on the CPU.

        Raises:
            FailedEpisodes: on every data rank, if it is above ``max_failed``.
        """
        failures = [episode.failure for episode in episodes if episode.failure]
        counts = [len(failures), len(episodes)]
        counts = torch.tensor(counts, dtype=torch.float64, device=device)
        failed, all_of_them = all_rank_sum(counts).tolist()
        if failed > self.max_failed * all_of_them:
            reasons = dict.fromkeys(each for rank in all_rank_objects(failures) for each in rank)
            raise FailedEpisodes(
                f"data.environment.make={self.factory!r}: {failed:.0f} of {all_of_them:.0f}"
                f" episodes of this rollout failed, more than max_failed={self.max_failed:g}:"
                f" {'; '.join([*reasons][:3])}."
                " The run is saved up to its last step: put the environment right and resume"
                " (--ckpt_path=auto)"
            )
        return failed / max(all_of_them, 1)

    def abandon(self) -> None:
        """Drop every episode that goes on; their instances are closed."""
        for live in self._live.values():
            self._workers.give_up(live)
        self._live.clear()

    def close(self) -> None:
        """Close all instances; the pool cannot be used afterwards."""
        self.abandon()
        free, self._free = self._free, []
        close_all(free, CLOSING_SECONDS)
        self._workers.close()

    def _submit(self, live: Live, work: Callable[[], Answer]) -> None:
        self._workers.submit(live, work, len(self._live))

    def _kept(self, live: Live, answer: Answer) -> Answer:
        """Return an answer; the instance of an episode that is over is free, or closed."""
        if answer.episode is not None:
            del self._live[live.number]
            if answer.episode.failure:
                close_apart(live.environment)
            else:
                self._free.append(live.environment)
        return answer

    def _too_late(self) -> list[Answer]:
        """Give up what has worked for too long."""
        oldest = time.monotonic() - self.step_seconds
        late = [live for live in self._live.values() if live.since < oldest]
        for live in late:
            self._workers.give_up(live)
            del self._live[live.number]
        self._workers.add_threads(len(self._live))
        reason = f"no answer within step_seconds={self.step_seconds:g}"
        return [live.failed(reason, "environment_timeout") for live in late]

    def _pause(self) -> float:
        """Return for how long nothing can be too late, seconds."""
        first = min(live.since for live in self._live.values())
        return min(max(first + self.step_seconds - time.monotonic(), 1e-3), 1.0)

    def _made(self) -> Environment:
        if self.processes:
            return ChildEnvironment(self.factory, self.arguments)
        return as_environment(self.make(**self.arguments))

    def _reset(self, live: Live, seed: int, row: Mapping[str, Any]) -> Answer:
        with contextlib.suppress(IndexError):  # another thread may have taken the last one
            live.environment = self._free.pop()
        if live.environment is None:
            live.environment = self._made()
        seen = live.environment.reset(seed=seed, **{k: v for k, v in row.items() if k != "seed"})
        return Answer(live.number, cut(seen or ""))

    def _step(self, live: Live, action: str) -> Answer:
        live.turns.append(Turn(action))  # kept where the step fails
        step = live.environment.step(action)
        if not isinstance(step, Step):
            raise TypeError(f"step returned {type(step).__name__}; return a Step")
        seen = cut(step.observation)
        live.turns[-1] = Turn(action, _number(step.reward), _info(step), seen)
        if step.ends:
            return self._over(live, "completed" if step.done else "truncated")
        if len(live.turns) >= self.max_turns:
            return self._over(live, "max_turns")
        return Answer(live.number, seen)

    def _over(self, live: Live, stop: str) -> Answer:
        asked = getattr(live.environment, "get_reward", None)
        final = _number(asked()) if callable(asked) else 0.0
        ask: Any = getattr(live.environment, "metrics", None)
        figures: Any = ask() if callable(ask) else {}
        metrics = {k: float(v) for k, v in figures.items()}
        episode = Episode(tuple(live.turns), stop, self.max_turns, final, metrics)
        return Answer(live.number, "", episode)


def _info(step: Step) -> dict[str, float | str]:
    """Return a copy, since an environment may use one record for all of its steps."""
    info = dict(step.info)
    said = info.get("success")
    try:
        float(said or 0)
    except (TypeError, ValueError) as error:
        raise ValueError(f"success={said!r} in info: it must be a number or a bool") from error
    return info


def _number(reward: Any) -> float:
    number = float(reward)
    if not math.isfinite(number):
        raise ValueError(f"reward={reward!r}: it must be a finite number")
    return number
