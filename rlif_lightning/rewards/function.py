"""Plain functions as reward heads, with the signature that TRL's reward functions have.

https://huggingface.co/docs/trl/main/en/grpo_trainer#using-a-custom-reward-function
"""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, ClassVar

from rlif_lightning.data.loaders import EncodedSplit
from rlif_lightning.masked import extents
from rlif_lightning.records import RewardOutput, Rollout
from rlif_lightning.rewards.base import RewardHead
from rlif_lightning.rewards.received import as_numbers
from rlif_lightning.setting_types import imported

if TYPE_CHECKING:
    FunctionLike = str | Callable[..., Any]
else:  # the command line knows import paths alone
    FunctionLike = str
# What every function may ask for; other parameters are columns of the data set.
GIVEN = ("prompts", "completions", "completion_ids", "log_extra", "log_metric")
UNKNOWN = ("trainer_state", "environments")  # of TRL's, which a head does not have
GOLD_NAMES = ("answer", "answers", "solution", "solutions", "ground_truth", "gold", "gold_answer")


class RewardFunction(RewardHead):
    """Scores by a plain function: ``f(completions, prompts, **columns) -> list[float | None]``.

    The function is called once a rollout, with those of these keyword arguments that it takes:
    ``prompts``, ``completions``, ``completion_ids``, ``log_extra(column, values)``,
    ``log_metric(name, value)``, and columns of the data set by name; each is a list with B items.
    It returns B numbers; None = does not apply. It may be a coroutine function; those of several
    rewards run at the same time.

    A completion is a text. It is a list with one message, ``{role, content}``, and a prompt is a
    list of messages, where the prompts are conversations (``data.format.chat``) or the function's
    own annotation of ``completions`` has ``dict``.

    Args:
        function: import path of the function, as seen from the folder where you start Python; in
            Python also the function.
        needs_gold: whether it reads gold answers; it then sees every column.
        columns: columns that a function without needs_gold reads out of its ``**kwargs``.

    Attributes:
        optional: columns of gold answers that the function can do without.

    Raises:
        TypeError: what is named is no function.
        ValueError: the path leads nowhere, or the function has a parameter that it cannot be given.

    Example:
        >>> def brevity(completions, **kwargs):
        ...     return [-float(len(text)) for text in completions]
        >>> RewardFunction(brevity).columns
        ()
    """

    names_code: ClassVar[bool] = True  # no checkpoint may have it imported

    def __init__(
        self, function: FunctionLike, needs_gold: bool = False, columns: Sequence[str] = ()
    ):
        super().__init__()
        self.function = imported(function, "function")
        if not callable(self.function) or isinstance(self.function, type):
            raise TypeError(f"function={self.function!r:.100} is no function; pass one")
        self.name = getattr(self.function, "__name__", type(self.function).__name__)
        self.takes = inspect.signature(self.function).parameters
        named = [name for name, it in self.takes.items() if it.kind in _NAMED]
        own = [name for name in named if name not in GIVEN]
        self.needs_gold, self.columns = needs_gold, tuple(dict.fromkeys([*own, *columns]))
        required = [name for name in own if self.takes[name].default is inspect.Parameter.empty]
        self.required = required
        self._check_parameters(own, columns)
        self.optional = [name for name in own if name in GOLD_NAMES and name not in required]
        if needs_gold:
            gold = [name for name in required if name in GOLD_NAMES] or required
            self.gold_columns = (*gold, *self.optional)
        self._running: Future[Any] | None = None

    def _check_parameters(self, own: Sequence[str], columns: Sequence[str]) -> None:
        """Refuse what the function asks for and cannot get."""
        if unknown := [name for name in self.required if name in UNKNOWN]:
            raise ValueError(
                f"function={self.name}: its parameter {unknown[0]!r} cannot be given to a reward"
                " head; give it a default"
            )
        gold = [name for name in own if name in GOLD_NAMES]
        if gold and not self.needs_gold:
            raise ValueError(
                f"function={self.name} reads gold answers by its parameter {gold[0]!r}: register it"
                f" with needs_gold, as in RewardFunction({self.name}, needs_gold=True)"
            )
        if columns and not self._takes_any:
            raise ValueError(
                f"columns={list(columns)}: {self.name} has no **kwargs to read them from; take"
                " columns out, and name them as parameters"
            )

    @property
    def _takes_any(self) -> bool:
        return any(it.kind is inspect.Parameter.VAR_KEYWORD for it in self.takes.values())

    @property
    def _is_async(self) -> bool:
        called = getattr(self.function, "func", self.function)  # of a functools.partial
        return inspect.iscoroutinefunction(called) or inspect.iscoroutinefunction(
            getattr(called, "__call__", None)  # noqa: B004
        )

    def check(self, problems: EncodedSplit, group_size: int) -> None:
        """Refuse problems without a column that the function cannot do without."""
        for name in self.required:
            remedy = "rename a column, or give it a default"
            problems.check_column(f"parameter {name!r} of function={self.name} ({remedy})", name)

    @property
    def waits(self) -> bool:
        return self._running is not None

    def start(self, rollout: Rollout) -> None:
        """Start a coroutine, which runs while other heads score."""
        if self._is_async:
            log = _Log()
            pool = ThreadPoolExecutor(1)  # a notebook's own thread has a running loop already
            work = pool.submit(lambda: asyncio.run(self.function(**self._keywords(rollout, log))))
            self._running = work
            self._log = log
            pool.shutdown(wait=False)

    def forward(self, rollout: Rollout) -> RewardOutput:
        if self._is_async:
            if self._running is None:
                self.start(rollout)
            assert self._running is not None
            running, self._running = self._running, None
            scores, log = running.result(), self._log
        else:
            log = _Log()
            try:
                scores = self.function(**self._keywords(rollout, log))
            except KeyError as error:
                raise self._hidden_or(error, rollout) from error
        return RewardOutput(as_numbers(scores), log=log.means(), columns=log.columns)

    def _hidden_or(self, error: KeyError, rollout: Rollout) -> Exception:
        hidden = getattr(rollout.prompts.columns, "hidden", ())
        found = error.args and error.args[0] in hidden
        return ValueError(hidden_message(str(error.args[0]))) if found else error

    def _keywords(self, rollout: Rollout, log: _Log) -> dict[str, Any]:
        """Return the keyword arguments, each list with B items."""
        columns = rollout.prompts.columns
        given: dict[str, Any] = {name: rollout.column(name) for name in [*columns.keys()]}
        if self._takes_any:
            given |= {name: HiddenColumn(name) for name in getattr(columns, "hidden", ())}
        lengths = extents(rollout.mask).tolist()  # observations are among a completion's ids
        ids = rollout.completion_ids.tolist()
        given |= self._texts(rollout)
        given |= {
            "completion_ids": [row[:n] for row, n in zip(ids, lengths, strict=True)],
            "log_extra": log.add_column,
            "log_metric": log.add_metric,
        }
        known = {name for name, it in self.takes.items() if it.kind in _NAMED}
        return {k: value for k, value in given.items() if k in known or self._takes_any}

    def _texts(self, rollout: Rollout) -> dict[str, list[Any]]:
        """Return prompts and completions, as texts or as messages."""
        prompts: Sequence[Any] = rollout.prompts.texts
        completions: list[Any] = list(rollout.texts)
        chats, hint = rollout.prompts.messages, str(self._annotation).lower()
        if "dict" in hint or (chats is not None and "list[str]" not in hint):
            prompts = chats or [[{"role": "user", "content": text}] for text in prompts]
            completions = [[{"role": "assistant", "content": text}] for text in completions]
        repeated = [prompt for prompt in prompts for _ in range(rollout.group_size)]
        return {"prompts": repeated, "completions": completions}

    @property
    def _annotation(self) -> Any:
        parameter = self.takes.get("completions")
        return "" if parameter is None else parameter.annotation


_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


class _Log:
    """What a function logs in one call."""

    def __init__(self) -> None:
        self.columns: dict[str, list[Any]] = {}
        self.metrics: dict[str, list[float]] = {}

    def add_column(self, column: str, values: Sequence[Any]) -> None:
        """Add values of a column of the completions' table."""
        self.columns.setdefault(column, []).extend(values)

    def add_metric(self, name: str, value: float) -> None:
        """Add a value of a figure."""
        self.metrics.setdefault(name, []).append(float(value))

    def means(self) -> dict[str, float]:
        """Return the mean of each figure."""
        return {name: math.fsum(each) / len(each) for name, each in self.metrics.items()}


def hidden_message(name: str) -> str:
    """Return why a function may not read a column, and the remedy."""
    return (
        f"the column {name!r} is hidden from a reward function: register the function with"
        f" needs_gold=True if it reads gold answers, or with columns=[{name!r}] if this column"
        " holds none"
    )


class HiddenColumn(Sequence[Any]):
    """A column that a function may not read; to look into it is an error.

    Raises:
        ValueError: on any reading.
    """

    def __init__(self, name: str):
        self.name = name

    def __getitem__(self, index: Any) -> Any:
        raise ValueError(hidden_message(self.name))

    def __len__(self) -> int:
        raise ValueError(hidden_message(self.name))
