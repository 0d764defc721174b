"""Curricula by what a run remembers of each problem: an epoch's order follows the scores so far."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from rlif_lightning.data.mixed_sources import by_difficulty, refuse_order
from rlif_lightning.data.prompt_table import PromptColumn, PromptTable
from rlif_lightning.data.sources import ProblemSource, Split
from rlif_lightning.records import RewardOutput, Rollout

if TYPE_CHECKING:
    from datasets import Dataset


class Curriculum(ProblemSource):
    """A source whose order of an epoch depends on the run's own state of each problem.

    Subclass it with ``load``, ``order``, ``use_table`` and ``observe``. ``order`` is asked once an
    epoch, when the epoch's first batch is made; checkpoints keep the answer.

    Attributes:
        reward: name of the reward that decides.
    """

    reward: str

    @abstractmethod
    def use_table(self, table: PromptTable) -> None:
        """Ask the run's table for columns, before the first rollout."""

    @abstractmethod
    def observe(self, rollout: Rollout, outputs: Mapping[str, RewardOutput]) -> None:
        """Put what a rollout of training says about its problems into the table."""


class LearnableFirst(Curriculum):
    """The problems of another source, each epoch those first from which most can be learned.

    A problem is remembered by the mean score of its last group. Those with a mean next to
    ``target``, and those without one yet, come first, and at last what is always or never right.

    Args:
        source: where the problems come from.
        reward: name of the reward whose scores decide; it may have weight 0.
        target: the mean score that comes first.
        jitter: how far a problem moves from its place, as for :class:`EasyFirst`.

    Raises:
        ValueError: a source with an order of its own, or a jitter below 0.
    """

    def __init__(
        self, source: ProblemSource, reward: str, target: float = 0.5, jitter: float = 0.1
    ) -> None:
        refuse_order(source)
        if not 0 <= jitter < np.inf or not np.isfinite(target):
            raise ValueError(
                f"jitter={jitter} must be a number of at least 0, and target={target} finite"
            )
        self.source, self.reward, self.target, self.jitter = source, reward, target, jitter
        self.column: PromptColumn | None = None

    def has(self, split: Split) -> bool:
        """Return whether the source has the split."""
        return self.source.has(split)

    def load(self, split: Split) -> Dataset:
        """Load the split."""
        return self.source.load(split)

    def use_table(self, table: PromptTable) -> None:
        """Ask for the column of mean scores."""
        self.column = table.column(f"curriculum/{self.reward}", "LearnableFirst")

    def observe(self, rollout: Rollout, outputs: Mapping[str, RewardOutput]) -> None:
        """Remember the mean score of each group with a score."""
        assert self.column is not None, "use_table comes first"
        scores = outputs[self.reward].scores.double().view(rollout.num_prompts, -1)
        rows, means = rollout.prompts.index.tolist(), scores.nanmean(1).tolist()
        for row, mean in zip(rows, means, strict=True):
            if np.isfinite(mean):
                self.column.put(row, mean)

    def order(self, rows: np.ndarray, seed: int, epoch: int) -> np.ndarray:
        """Return an epoch's order by what is remembered now."""
        if self.column is None:  # outside of training, as in preflight: nothing is known
            return by_difficulty(np.zeros(len(rows)), self.jitter, seed, epoch)
        means = self.column.numbers(rows.tolist(), [self.target]).flatten().numpy()
        return by_difficulty(np.abs(means - self.target), self.jitter, seed, epoch)
