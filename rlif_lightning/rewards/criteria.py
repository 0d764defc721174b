"""Criteria of a rubric: each gives a verdict on every completion.

``Criterion`` is what to subclass. A criterion by another reward head, such as gold answers, unit
tests or a judge, is :class:`Scored`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import regex
import torch
from torch import Tensor, nn

from rlif_lightning.answers.extraction import AnswerExtractor, FindsAnswers, pattern_found
from rlif_lightning.answers.readers import read
from rlif_lightning.answers.spelling import normalise
from rlif_lightning.data.columns import check_column
from rlif_lightning.data.described import Described
from rlif_lightning.data.loaders import EncodedSplit
from rlif_lightning.data.prompt_table import PromptTable
from rlif_lightning.records import Rollout
from rlif_lightning.rewards.base import RewardHead
from rlif_lightning.rewards.received import received

TRAIN = "the train split"


class Criterion(Described, nn.Module, ABC):
    """What can be judged of a completion. Subclass it, write ``verdicts``, name the class in YAML.

    Attributes:
        needs_gold: whether it reads gold answers; it then sees every column.
        columns: the columns that it reads otherwise, as of a reward head.
        gold_columns: the columns of gold answers that it reads, as of a reward head.
    """

    needs_gold: bool = False
    columns: Sequence[str] = ()
    gold_columns: Sequence[str] = ()

    @abstractmethod
    def verdicts(self, rollout: Rollout) -> Tensor:
        """Return ``[B]``: 1 = holds, 0 = does not hold, NaN = could not be judged."""

    def check(self, problems: EncodedSplit, group_size: int) -> None:
        """Refuse problems that could not be judged, as :meth:`RewardHead.check` does."""

    def check_gold(self, column: str, values: Iterable[tuple[int, Any]], where: str) -> str | None:
        """Check a column of ``gold_columns``, as :meth:`RewardHead.check_gold` does."""

    def use_table(self, table: PromptTable, name: str) -> None:
        """Ask the run's table for columns, as :meth:`RewardHead.use_table` does."""


class Matches(Criterion):
    r"""Holds where a pattern is found in the completion's text.

    A fixed text is a pattern too, and so is a script: ``\p{Han}`` finds a Chinese character.

    Args:
        pattern: as of the head ``Format``.
    """

    def __init__(self, pattern: str):
        super().__init__()
        try:
            regex.compile(pattern, regex.DOTALL)
        except regex.error as error:
            raise ValueError(f"pattern={pattern!r} is not a regular expression: {error}") from error
        self.pattern = pattern

    def verdicts(self, rollout: Rollout) -> Tensor:
        found = [pattern_found(self.pattern, text) for text in rollout.texts]
        return torch.tensor(found, dtype=torch.float64)


class Contains(Criterion):
    """Holds where the completion has the text of a column, whatever its case.

    NaN where a problem has no such text.

    Args:
        column: the data set's column, or a dotted path; no column of gold answers.
    """

    def __init__(self, column: str):
        super().__init__()
        self.column = column
        self.columns = (column,)

    def check(self, problems: EncodedSplit, group_size: int) -> None:
        """Refuse a column that the data set does not have."""
        check_column(f"Contains.column={self.column!r}", self.column, problems.dataset, TRAIN)

    def verdicts(self, rollout: Rollout) -> Tensor:
        wanted = rollout.column(self.column)
        return torch.tensor(
            [
                float(str(part).casefold() in text.casefold())
                if part not in (None, "")
                else torch.nan
                for part, text in zip(wanted, rollout.texts, strict=True)
            ],
            dtype=torch.float64,
        )


class Within(Criterion):
    """A criterion that holds where a number lies between two bounds.

    Args:
        low: the lowest number; null = no bound.
        high: the highest number; null = no bound.

    Raises:
        ValueError: no bound, or a lower one above the upper one.
    """

    def __init__(self, low: float | None = None, high: float | None = None):
        super().__init__()
        if low is None and high is None:
            raise ValueError(f"low=null, high=null of {type(self).__name__}: give one of them")
        self.low = -torch.inf if low is None else low
        self.high = torch.inf if high is None else high
        if self.low > self.high:
            raise ValueError(f"low={low} of {type(self).__name__} is above high={high}")

    def holds(self, numbers: Tensor) -> Tensor:
        """Return the verdicts on ``[B]`` numbers; NaN stays NaN."""
        numbers = numbers.detach().double().cpu()
        inside = (numbers >= self.low) & (numbers <= self.high)
        return torch.where(numbers.isnan(), torch.nan, inside.double())


class NumberWithin(FindsAnswers, Within):
    """Holds where the final answer is a number between two bounds, not where there is none.

    Args:
        low, high: as for :class:`Within`.
        extractor: finds the final answer of a completion.
    """

    def __init__(
        self,
        low: float | None = None,
        high: float | None = None,
        extractor: AnswerExtractor = AnswerExtractor(),
    ):
        Within.__init__(self, low, high)
        FindsAnswers.__init__(self, extractor)

    def verdicts(self, rollout: Rollout) -> Tensor:
        answers = [self.extractor(text) for text in rollout.texts]
        numbers = [torch.nan if each is None else _number(each) for each in answers]
        return self.holds(torch.tensor(numbers, dtype=torch.float64)).nan_to_num(0.0)


class Scored(Within):
    """Holds where another reward head's score lies between two bounds; NaN stays NaN.

    So gold answers (``GoldAnswer``), unit tests (``CodeTests``), a length in tokens (``Length``), a
    vote or a judge become criteria.

    Args:
        head: the reward head.
        low, high: as for :class:`Within`.
    """

    def __init__(self, head: RewardHead, low: float | None = 1.0, high: float | None = None):
        super().__init__(low, high)
        if not head.gives_scores:
            raise ValueError(f"head={type(head).__name__} gives no scores; use one that does")
        self.head = head
        self.needs_gold, self.columns = head.needs_gold, head.columns
        self.gold_columns = head.gold_columns

    def check(self, problems: EncodedSplit, group_size: int) -> None:
        self.head.check(problems, group_size)

    def check_gold(self, column: str, values: Iterable[tuple[int, Any]], where: str) -> str | None:
        return self.head.check_gold(column, values, where)

    def use_table(self, table: PromptTable, name: str) -> None:
        self.head.use_table(table, name)

    def verdicts(self, rollout: Rollout) -> Tensor:
        output = received(type(self.head).__name__, self.head(rollout), rollout)
        scores = output.scores
        if output.keep_mask is not None:  # what a head takes out has no verdict
            scores = scores.masked_fill(~output.keep_mask, torch.nan)
        return self.holds(scores)


class Calls(Criterion):
    """Asks a function: ``function(completions, prompts, **columns) -> list[float | None]``.

    Both arguments are B texts; a column is B values. The function returns B verdicts from 0 to 1,
    or None where it cannot judge.

    Args:
        function: in YAML its import path.
        columns: the columns that it gets, by name.
        needs_gold: whether one of them may hold gold answers.
    """

    def __init__(
        self,
        function: Callable[..., Sequence[float | None]],
        columns: Sequence[str] = (),
        needs_gold: bool = False,
    ):
        super().__init__()
        self.function, self.columns, self.needs_gold = function, tuple(columns), needs_gold

    def check(self, problems: EncodedSplit, group_size: int) -> None:
        """Refuse a column that the data set does not have."""
        for column in self.columns:
            check_column(f"Calls.columns: {column!r}", column, problems.dataset, TRAIN)

    def verdicts(self, rollout: Rollout) -> Tensor:
        prompts = [text for text in rollout.prompts.texts for _ in range(rollout.group_size)]
        columns = {name: rollout.column(name) for name in self.columns}
        found = self.function(list(rollout.texts), prompts, **columns)
        return torch.tensor(
            [torch.nan if verdict is None else float(verdict) for verdict in found],
            dtype=torch.float64,
        )


def _number(answer: str) -> float:
    """Return the number that an answer stands for, whatever its unit; NaN where it is none."""
    key = read(normalise(answer)).bare
    try:
        return float(key[1]) if key[0] == "value" and len(key) == 2 else torch.nan
    except OverflowError:
        return torch.inf if key[1] > 0 else -torch.inf
