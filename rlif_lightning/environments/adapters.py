"""Environments of other shapes, told apart by their methods and results; nothing is imported.

| shape | known by |
| --- | --- |
| ours | ``step`` returns a ``Step`` |
| gymnasium, gem | ``step`` returns (observation, reward, terminated, truncated, info) |
| TextWorld | ``step`` returns (observation, score, done, infos); the score is a running one |
| Jericho, ScienceWorld | the same with a reward of the step; ``infos`` has the running ``score`` |
| OpenEnv, AgentGym | ``step`` returns an object with ``observation`` or ``state``, and ``done`` |
| SkyRL | ``step`` returns a dict with ``observations``, ``reward``, ``done``; ``init`` begins |
| TextArena | ``get_observation()``; ``step`` returns (done, info), ``close()`` the rewards |
| TRL's tool classes | no ``step``: public methods are tools (``tools.py``) |
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rlif_lightning.environments.base import Environment, Observation, Step
from rlif_lightning.environments.text_arena import TextArenaGame
from rlif_lightning.environments.tools import ToolEnvironment

TEXTS = ("observations", "observation", "state")  # where objects and dicts keep what is seen
NO_TEXT = {"done", "reward", "metadata"}  # fields of an observation that nobody is shown


def as_environment(made: Any) -> Environment:
    """Return what a factory made as an :class:`Environment`.

    Raises:
        TypeError: it has none of the known shapes.
    """
    if callable(getattr(made, "get_observation", None)):
        return TextArenaGame(made)
    if callable(getattr(made, "step", None)) and _beginning(made) is not None:
        return SteppedEnvironment(made)
    if isinstance(made, Sequence) and made and all(map(callable, made)):
        return ToolEnvironment(functions=made)
    if not hasattr(made, "step") and callable(getattr(made, "reset", None)):
        return ToolEnvironment(made)
    raise TypeError(
        f"{type(made).__name__} is no environment: it needs reset(seed, **row) and step(text), or"
        " reset(**row) and public methods that are tools; a list of functions is one too"
    )


class SteppedEnvironment:
    """An environment whose ``step`` takes a text, whatever shape its result has."""

    def __init__(self, made: Any):
        self.made = made
        self.score = 0.0  # the running score of an environment that gives one

    def reset(self, seed: int | None = None, **row: Any) -> Observation | None:
        """Begin an episode with those of seed and columns that the environment takes."""
        self.score = 0.0
        begin = _beginning(self.made)
        assert begin is not None
        takes_seed = "seed" in inspect.signature(begin).parameters
        if not takes_seed and callable(apart := getattr(self.made, "seed", None)):
            apart(seed)  # TextWorld
        first = _call(begin, seed, row)
        first = first[0] if isinstance(first, tuple) else _seen(first)
        if not callable(getattr(self.made, "reset", None)):
            first = _beyond(row.get("prompt"), first)
        if first is None and callable(observe := getattr(self.made, "observe", None)):
            first = observe()
        return None if first is None else shown(first)

    def step(self, action: str) -> Step:
        """Return one result as a ``Step``.

        Raises:
            TypeError: of no known shape.
        """
        found = self.made.step(action)
        if isinstance(found, Step):
            return found
        if isinstance(found, tuple) and len(found) == 5:
            seen, reward, done, truncated, info = found
            return _step(seen, reward, done, truncated, info)
        if isinstance(found, tuple) and len(found) == 4:
            seen, score, done, info = found
            said = (info or {}).get("score")  # of Jericho and ScienceWorld, which pay by the step
            running = said if isinstance(said, int | float | np.number) else score
            before, self.score = self.score, float(running)
            return _step(seen, self.score - before, done, False, info)
        values = found if isinstance(found, Mapping) else _Fields(found)
        if "reward" not in values or "done" not in values:
            raise TypeError(
                f"{type(self.made).__name__}.step returned {found!r:.200}, of no known shape;"
                " return Step(observation, reward, done)"
            )
        rest = values["reward"], values["done"], False, values.get("metadata")
        return _step(_seen(found), *rest)

    def __getattr__(self, name: str) -> Any:
        """Return the environment's own ``close``, ``metrics``, ``tools`` or ``get_reward``."""
        if name == "metrics":
            return getattr(self.made, "get_metrics", None) or self.made.metrics
        if name in ("close", "tools", "get_reward"):
            return getattr(self.made, name)
        raise AttributeError(name)


class _Fields(Mapping[str, Any]):
    """An object's attributes, read as a mapping."""

    def __init__(self, of: Any):
        self.of = of

    def __getitem__(self, name: str) -> Any:
        try:
            return getattr(self.of, name)
        except AttributeError as error:
            raise KeyError(name) from error

    def __iter__(self) -> Any:
        return iter(dir(self.of))

    def __len__(self) -> int:
        return len(dir(self.of))


def _seen(found: Any) -> Any:
    """Return what an object or a dictionary says is seen; itself where it does not say."""
    values = found if isinstance(found, Mapping) else _Fields(found)
    return next((values[name] for name in TEXTS if name in values), found)


def shown(observation: Any) -> Observation:
    """Return an observation as text or messages; an object's fields as JSON."""
    if isinstance(observation, str):
        return observation
    if observation is None:
        return ""
    if isinstance(observation, list) and all(isinstance(each, dict) for each in observation):
        return observation
    for name in TEXTS:
        if isinstance(inner := getattr(observation, name, None), str):
            return inner
    return _fields_text(observation)


def _fields_text(observation: Any) -> str:
    """Return a record as JSON; of one with a single text, that text."""
    dump: Any = getattr(observation, "model_dump", None)
    if callable(dump):
        fields: Any = dump()
        observation = {name: value for name, value in fields.items() if name not in NO_TEXT}
        if len(observation) == 1 and isinstance(only := next(iter(observation.values())), str):
            return only
    if isinstance(observation, (dict, list)):
        return json.dumps(observation, ensure_ascii=False, default=str)
    return str(observation)


def _step(seen: Any, reward: Any, done: Any, truncated: Any, info: Any) -> Step:
    plain = {
        name: value.item() if isinstance(value, np.generic) else value
        for name, value in (info or {}).items()
    }
    kept = {
        name: value
        for name, value in plain.items()
        if isinstance(name, str) and isinstance(value, (str, bool, int, float))
    }
    ends = bool(done) or bool(truncated)
    reward = 0.0 if reward is None else float(reward)
    text = "" if ends else shown(seen)
    return Step(text, reward, bool(done), bool(truncated), kept)


def _beginning(made: Any) -> Callable[..., Any] | None:
    """Return what begins an episode: ``reset``, or SkyRL's ``init``."""
    for name in ("reset", "init"):
        if callable(found := getattr(made, name, None)):
            return found
    return None


def _beyond(prompt: Any, first: Any) -> Any:
    """Return what SkyRL's ``init`` adds to the prompt, which it returns as it was given.

    The policy sees the problem's prompt anyhow.
    """
    said = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if not first or first == prompt:
        return None
    if not said or not isinstance(first, list) or first[: len(said)] != said:
        return first
    return first[len(said) :] or None


def _call(begin: Callable[..., Any], seed: int | None, row: Mapping[str, Any]) -> Any:
    """Call with those of seed and columns that a method takes; gymnasium takes ``options``."""
    parameters = inspect.signature(begin).parameters
    given: dict[str, Any] = {**row, "seed": seed}
    if "options" in parameters and "options" not in row:
        given["options"] = dict(row)
    if not any(it.kind is it.VAR_KEYWORD for it in parameters.values()):
        given = {name: value for name, value in given.items() if name in parameters}
    return begin(**given)
