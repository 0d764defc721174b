"""Tools: Python functions and TRL's tool classes, called in the chat template's usual format.

A call is JSON in tags, as Qwen and Hermes templates write it:

    <tool_call>
    {"name": "add", "arguments": {"a": 1, "b": 2}}
    </tool_call>
"""

from __future__ import annotations

import asyncio
import inspect
import json
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlif_lightning.environments.base import Message, Observation, Step
from rlif_lightning.sandbox.pool import Run, Sandbox

CALL = re.compile(r"<tool_call>(.*?)(</tool_call>|\Z)", re.DOTALL)
NO_TOOLS = ("reset", "get_reward", "close", "metrics", "tools")  # public methods with a use


@dataclass(frozen=True)
class ToolCall:
    """One call of a tool; ``fault`` says why the text could not be read as one."""

    name: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    fault: str = ""


def parse_tool_calls(text: str) -> list[ToolCall]:
    """Return the calls in what a policy wrote, in their order; none = it has answered.

    The last one need not be closed: ``</tool_call>`` may be the stop string that ended the turn,
    and a turn's text is cut before that.

    Example:
        >>> parse_tool_calls('<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>')
        [ToolCall(name='add', arguments={'a': 1}, fault='')]
        >>> parse_tool_calls("<tool_call>{add}</tool_call>")[0].fault
        'a call must be JSON: {"name": ..., "arguments": {...}}'
    """
    return [_parsed(found[1], found[2]) for found in CALL.finditer(text)]


def _parsed(text: str, closing: str) -> ToolCall:
    try:
        call = json.loads(text)
        arguments = call.get("arguments", call.get("parameters")) or {}
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
        if isinstance(call["name"], str) and isinstance(arguments, dict):
            return ToolCall(call["name"], arguments)
    except (ValueError, KeyError, AttributeError, RecursionError):
        pass
    if not closing:
        return ToolCall(fault="a call must be closed by </tool_call>")
    return ToolCall(fault='a call must be JSON: {"name": ..., "arguments": {...}}')


class ToolEnvironment:
    """Tools that a policy calls until it answers without a call.

    The policy reads what a tool raises, and that a call was unreadable. Both are counted in
    ``metrics``: ``tools/calls``, ``tools/unreadable``, ``tools/failed``.

    Args:
        made: an object of TRL's shape: public methods are tools (typed, with a docstring),
            ``reset(**row)`` begins and ``get_reward()`` is asked at the end. None = functions only.
        functions: further tools: typed functions with a docstring, as
            ``transformers.utils.get_json_schema`` reads them.

    Raises:
        ValueError: no tool, or one without types or docstring.
    """

    def __init__(self, made: Any = None, functions: Sequence[Callable[..., Any]] = ()):
        self.made = made
        self.functions = {it.__name__: it for it in [*_methods(made), *functions]}
        self.tools = _schemas(self.functions)
        self.counts = dict.fromkeys(("calls", "unreadable", "failed"), 0)

    def reset(self, seed: int | None = None, **row: Any) -> Observation | None:
        """Begin an episode; the seed is one of the columns, for a class that takes it."""
        self.counts = dict.fromkeys(self.counts, 0)
        if not hasattr(self.made, "reset"):
            return None
        parameters = inspect.signature(self.made.reset).parameters
        given = {**row, "seed": seed} if "seed" in parameters else dict(row)
        if not any(it.kind is it.VAR_KEYWORD for it in parameters.values()):
            given = {name: value for name, value in given.items() if name in parameters}
        return self.made.reset(**given)

    def step(self, action: str) -> Step:
        """Run every call of a turn; a turn without one ends the episode."""
        calls = parse_tool_calls(action)
        if not calls:
            return Step(done=True)
        messages = [self._run(call) for call in calls]
        names = {call.name or "unreadable" for call in calls}
        return Step(messages, info={"action": "+".join(sorted(names))})

    def get_reward(self) -> float:
        """Return what the class says of the episode; 0 without ``get_reward``."""
        asked = getattr(self.made, "get_reward", None)
        return 0.0 if asked is None else float(asked())

    def metrics(self) -> dict[str, float]:
        """Return how many calls there were, and how many failed."""
        return {f"tools/{name}": float(count) for name, count in self.counts.items()}

    def close(self) -> None:
        """Close the object, if it can be closed."""
        if callable(close := getattr(self.made, "close", None)):
            close()

    def _run(self, call: ToolCall) -> Message:
        self.counts["calls"] += 1
        if call.fault:
            self.counts["unreadable"] += 1
            return _message("", {"error": call.fault})
        if call.name not in self.functions:
            self.counts["failed"] += 1
            fault = f"there is no tool {call.name!r}; there are {', '.join(self.functions)}"
            return _message(call.name, {"error": fault})
        try:
            found = self.functions[call.name](**call.arguments)
            found = asyncio.run(_awaited(found)) if inspect.isawaitable(found) else found
            return _message(call.name, found)
        except Exception as error:  # wrong arguments, as a rule: the policy reads why
            self.counts["failed"] += 1
            return _message(call.name, {"error": f"{type(error).__name__}: {error}"})


async def _awaited(found: Awaitable[Any]) -> Any:
    return await found


def _message(name: str, result: Any) -> Message:
    text = result if isinstance(result, str) else json.dumps(result, default=str)
    return {"role": "tool", "name": name, "content": text}


def _methods(made: Any) -> list[Callable[..., Any]]:
    names = [name for name, _ in inspect.getmembers(type(made), inspect.isfunction)]
    public = [name for name in names if not name.startswith("_") and name not in NO_TOOLS]
    return [] if made is None else [getattr(made, name) for name in public]


def _schemas(functions: Mapping[str, Callable[..., Any]]) -> list[dict[str, Any]]:
    from transformers.utils import get_json_schema

    if not functions:
        raise ValueError("no tool: public methods, or functions, with types and a docstring")
    found = []
    for name, function in functions.items():
        try:
            found.append(get_json_schema(function))
        except Exception as error:
            raise ValueError(f"tool {name!r}: {error}; give it types and a docstring") from error
    return found


class PythonTool:
    """A Python interpreter in the sandbox, as a tool class.

    Every call is a program of its own: nothing is kept between calls. Answers are rewarded by the
    run's usual heads.

    Args:
        sandbox: where code runs, and within which limits; in YAML its arguments.
    """

    def __init__(self, sandbox: Sandbox | Mapping[str, Any] = Sandbox()):
        self.sandbox = Sandbox(**sandbox) if isinstance(sandbox, Mapping) else sandbox

    def reset(self) -> None:
        """Begin an episode; it reads no column, so that it can show no gold answer."""

    def python(self, code: str) -> str:
        """
        Run a Python program and return what it prints.

        Args:
            code: The program's source text.
        """
        [[outcome]] = self.sandbox.outcomes([Run(code, None, ("",))])
        if outcome.kind == "value":
            return str(outcome.value)
        return f"error: {outcome.reason}"
