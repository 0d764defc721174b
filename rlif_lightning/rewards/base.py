"""Reward heads: each sees whole groups and returns one score per completion."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from rlif_lightning.data.described import Described
from rlif_lightning.data.loaders import EncodedSplit
from rlif_lightning.data.prompt_table import PromptTable
from rlif_lightning.judges.base import RunModels
from rlif_lightning.records import RewardOutput, Rollout
from rlif_lightning.rewards.gate import Gate
from rlif_lightning.setting_types import check_types

LENGTH = ("keep", "neutral")


class RewardHead(Described, nn.Module, ABC):
    """Scores the completions of a rollout. Subclass it, write ``forward``, name the class in YAML.

    State that must survive a restart goes into buffers. A head may hold a model of its own.

    Attributes:
        needs_gold: whether the head reads the gold answers; it then sees every column.
        columns: the columns that a head without ``needs_gold`` reads, as dotted paths; all others
            are hidden from it, because any of them may hold an answer.
        gold_columns: the columns of gold answers that it reads; no prompt may show them, and no
            label-free head may name them.
        gives_scores: whether the head can give scores; False for one that only takes completions
            out.
        gives_steps: whether its output has scores of steps, which ``StepDelta`` reads.
        weighs_groups: whether its output has weights of groups.
        reads_one_text: whether it would misread a completion of several turns, so that it is
            refused beside an environment.
        scalable: names of the head's numbers that a callback may change during a run.
    """

    needs_gold: bool = False
    columns: Sequence[str] = ()
    gold_columns: Sequence[str] = ()
    gives_scores: bool = True
    gives_steps: bool = False
    weighs_groups: bool = False
    reads_one_text: bool = False
    scalable: Sequence[str] = ()

    @property
    def label_free_columns(self) -> Sequence[str]:
        """The columns that may hold no gold answers."""
        return () if self.needs_gold else self.columns

    def check(self, problems: EncodedSplit, group_size: int) -> None:
        """Refuse training problems, or a group size, that could not be scored.

        Called before anything is sampled.

        Raises:
            ValueError: names what is wrong.
        """

    def start(self, rollout: Rollout) -> None:
        """Start what may run while other heads score; ``forward`` or ``abandon`` follows."""

    @property
    def waits(self) -> bool:
        """Whether ``start`` began something: such heads score after all others."""
        return False

    def abandon(self) -> None:
        """End what ``start`` began and ``forward`` has not taken: another head raised."""

    def check_visits(self, most: float) -> None:
        """Refuse a run of at most so many visits of a problem, as :meth:`check` refuses data."""

    def use_table(self, table: PromptTable, name: str) -> None:
        """Ask the run's table for columns of this head, whose name in ``rewards`` is given."""

    def bind(self, models: RunModels) -> None:
        """Take the run's models, for a head that asks one; called before the first rollout."""

    def check_contexts(self, problems: EncodedSplit, models: RunModels) -> None:
        """Refuse training problems that the run's models could not read, as :meth:`check` does.

        Called once the models are loaded; a head that another one holds is called too.
        """

    @abstractmethod
    def forward(self, rollout: Rollout) -> RewardOutput:
        """Score all ``[B]`` completions of whole groups; NaN = does not apply."""

    def check_gold(self, column: str, values: Iterable[tuple[int, Any]], where: str) -> str | None:
        """Check a column of ``gold_columns`` in setup; see :meth:`Checker.check_gold`."""


@dataclass(frozen=True)
class WeightedReward:
    """A reward head with its place in the total.

    Args:
        head: the reward head.
        weight: of its normalised score in the advantage; 0 = measured and logged, not trained on.
        gate: count it only where another head allows it.
        length: keep | neutral: neutral = subtract what is linear in the completion's length inside
            each group.
        spread_floor: where a group's spread is below this share of the head's usual spread (mean
            over the run's groups that have one), the reward weighs less there: under GDPO as if
            divided by that floor instead of the spread; in [0, 1], 0 = off.

    Raises:
        ValueError: a weight that is not finite, an unknown name, or a number out of range.
    """

    head: RewardHead
    weight: float = 1.0
    gate: Gate | None = None
    length: str = "keep"
    spread_floor: float = 0.0

    def __post_init__(self) -> None:
        check_types(self)
        if "_modules" not in vars(self.head):
            raise TypeError(
                f"head={type(self.head).__name__}: its __init__ has to call super().__init__()"
            )
        if not math.isfinite(self.weight):
            raise ValueError(f"weight={self.weight} of a reward must be a finite number")
        if self.length not in LENGTH:
            raise ValueError(f"length={self.length!r} is unknown; use one of {', '.join(LENGTH)}")
        if not 0 <= self.spread_floor <= 1:
            raise ValueError(
                f"spread_floor={self.spread_floor} must lie in [0, 1]: a share of the head's usual"
                " spread"
            )


def seen_by(part: Any, rollout: Rollout) -> Rollout:
    """Return a rollout with the columns that a head, or a criterion of a rubric, may see."""
    if part.needs_gold:
        return rollout
    return replace(rollout, prompts=rollout.prompts.only(part.columns))
