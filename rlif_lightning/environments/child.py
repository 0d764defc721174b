"""An environment in a process of its own, which can be killed and shares no generator."""

from __future__ import annotations

import contextlib
import multiprocessing
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from rlif_lightning.environments.adapters import as_environment
from rlif_lightning.environments.base import Observation, Step, cut, described
from rlif_lightning.setting_types import imported

CALLS = ("reset", "step", "get_reward", "metrics")


class ChildEnvironment:
    """Passes calls to an environment that a child process has made.

    Args:
        factory: import path, or a function that can be pickled.
        arguments: of the factory.

    Raises:
        RuntimeError: the environment raised there, or its process is gone.
    """

    def __init__(self, factory: str | Callable[..., Any], arguments: Mapping[str, Any]):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        given = (theirs, factory, dict(arguments))
        self._process = context.Process(target=_serve, args=given, daemon=True)
        self._process.start()
        theirs.close()
        self.tools: list[dict[str, Any]] = self._answer()

    def reset(self, seed: int | None = None, **row: Any) -> Observation | None:
        """Begin an episode; the process's generators are seeded too."""
        return self._ask("reset", seed=seed, **row)

    def step(self, action: str) -> Step:
        """Pass the policy's text on."""
        return self._ask("step", action)

    def get_reward(self) -> float:
        """Return the episode's reward; 0 where the environment gives rewards by step alone."""
        return self._ask("get_reward")

    def metrics(self) -> dict[str, float]:
        """Return the environment's own figures."""
        return self._ask("metrics")

    def close(self) -> None:
        """Have the environment closed, then end the process."""
        with contextlib.suppress(OSError, EOFError):
            self._pipe.send(None)
            self._pipe.poll(1.0)
        self.give_up()

    def give_up(self) -> None:
        """End the process, whatever it is doing."""
        self._process.kill()
        self._process.join(1.0)

    def _ask(self, name: str, *arguments: Any, **named: Any) -> Any:
        self._pipe.send((name, arguments, named))
        return self._answer()

    def _answer(self) -> Any:
        try:
            is_value, found = self._pipe.recv()
        except (EOFError, OSError) as error:
            self._process.join(10.0)  # it may be about to end
            code = self._process.exitcode
            raise RuntimeError(f"the environment's process ended (exit code {code})") from error
        if not is_value:
            raise RuntimeError(found)
        return found


def _serve(pipe: Connection, factory: Any, arguments: dict[str, Any]) -> None:
    """Make an environment and answer calls until it is to be closed."""
    with pipe:
        try:
            make = imported(factory, "data.environment.make")
            made = as_environment(make(**arguments))
            pipe.send((True, list(getattr(made, "tools", None) or [])))
        except Exception as error:
            pipe.send((False, described(error)))
            return
        with contextlib.suppress(EOFError):
            while (call := pipe.recv()) is not None:
                pipe.send(_done(made, *call))
        if callable(close := getattr(made, "close", None)):
            close()


def _done(made: Any, name: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """Return whether a call gave a value, and the value or the error."""
    assert name in CALLS
    method = getattr(made, name, None)
    if method is None:  # one that an environment need not have
        return True, {"get_reward": 0.0, "metrics": {}}[name]
    try:
        if name == "reset" and named["seed"] is not None:
            random.seed(named["seed"])
            np.random.seed(named["seed"])
        found = method(*arguments, **named)
        if isinstance(found, Step):
            return True, replace(found, observation=cut(found.observation))
        return True, cut(found) if name == "reset" and found else found
    except Exception as error:
        return False, described(error)
