"""Criteria of a rubric: each gives a verdict on every completion.

``Criterion`` is what to subclass. A criterion by another reward head, such as gold answers, unit
tests or a judge, is :class:`Scored`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import regex
import torch
from torch import Tensor, nn

from rlif_lightning.answers.extraction import AnswerExtractor, FindsAnswers, compiled, pattern_found
from rlif_lightning.answers.readers import read
from rlif_lightning.answers.spelling import normalise
from rlif_lightning.data.described import Described
from rlif_lightning.data.loaders import EncodedSplit
from rlif_lightning.data.prompt_table import PromptTable
from rlif_lightning.judges.base import RunModels
from rlif_lightning.records import RewardOutput, Rollout
from rlif_lightning.rewards.base import RewardHead
from rlif_lightning.rewards.held_head import HoldsHead
from rlif_lightning.setting_types import check_types


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

    def judged(self, rollout: Rollout) -> tuple[Tensor, RewardOutput | None]:
        """Return the verdicts, and the output of the head that they are made of, if there is one.

        The rubric logs and shows what the output does.
        """
        return self.verdicts(rollout), None

    def check(self, problems: EncodedSplit, group_size: int) -> None:
        """Refuse problems that could not be judged, as :meth:`RewardHead.check` does."""

    def check_gold(self, column: str, values: Iterable[tuple[int, Any]], where: str) -> str | None:
        """Check a column of ``gold_columns``, as :meth:`RewardHead.check_gold` does."""

    def check_visits(self, most: float) -> None:
        """Refuse a number of visits, as :meth:`RewardHead.check_visits` does."""

    def use_table(self, table: PromptTable, name: str) -> None:
        """Ask the run's table for columns, as :meth:`RewardHead.use_table` does."""

    def bind(self, models: RunModels) -> None:
        """Take the run's models, as :meth:`RewardHead.bind` does."""

    def start(self, rollout: Rollout) -> None:
        """Start what may run while others judge, as :meth:`RewardHead.start` does."""

    @property
    def waits(self) -> bool:
        """Whether ``start`` began something, as :attr:`RewardHead.waits`."""
        return False

    def abandon(self) -> None:
        """End what ``start`` began, as :meth:`RewardHead.abandon` does."""


@dataclass(frozen=True)
class WeightedCriterion:
    """A criterion with its place in a rubric.

    Args:
        criterion: what is judged.
        weight: its points. Negative ones mean that it should not hold: a verdict of 1 becomes 0,
            and 0 becomes 1, with positive points.
        category: criteria of one name share a category; all categories count alike
            (``weighting=category`` and ``pow3r``).
        required: strict completion needs it, and dropout never leaves it out. Where no criterion is
            required, strict completion needs all.

    Raises:
        ValueError: a weight that is 0 or not finite.
    """

    criterion: Criterion
    weight: float = 1.0
    category: str = ""
    required: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        if not self.weight or not math.isfinite(self.weight):
            raise ValueError(
                f"weight={self.weight} of a criterion must be finite and not 0; to measure it only,"
                " put it into a second rubric whose reward has the weight 0"
            )


class Matches(Criterion):
    r"""Holds where a pattern is found in the completion's text.

    A fixed text is a pattern too, and so is a script: ``\p{Han}`` finds a Chinese character.

    Args:
        pattern: as of the head ``Format``.
    """

    def __init__(self, pattern: str):
        super().__init__()
        compiled(pattern, regex.DOTALL)  # refuses one that is none
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
        problems.check_column(f"Contains.column={self.column!r}", self.column)

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


class Scored(HoldsHead, Within):
    """Holds where another reward head's score lies between two bounds; NaN stays NaN.

    So gold answers (``GoldAnswer``), unit tests (``CodeTests``), a length in tokens (``Length``), a
    function (``RewardFunction``), a vote or a judge become criteria.

    Args:
        head: the reward head.
        low, high: as for :class:`Within`.
    """

    def __init__(self, head: RewardHead, low: float | None = 1.0, high: float | None = None):
        Within.__init__(self, low, high)
        HoldsHead.__init__(self, head)

    def verdicts(self, rollout: Rollout) -> Tensor:
        return self.judged(rollout)[0]

    def judged(self, rollout: Rollout) -> tuple[Tensor, RewardOutput]:
        output = self.ask_head(rollout)
        return self.holds(output.scores), output


def _number(answer: str) -> float:
    """Return the number that an answer stands for, whatever its unit; NaN where it is none."""
    key = read(normalise(answer)).bare
    try:
        return float(key[1]) if key[0] == "value" and len(key) == 2 else torch.nan
    except OverflowError:
        return torch.inf if key[1] > 0 else -torch.inf
