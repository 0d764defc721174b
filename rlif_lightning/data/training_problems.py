"""``TrainingProblems``: another source's training problems, to predict or evaluate on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlif_lightning.data.sources import ProblemSource, Split

if TYPE_CHECKING:
    from datasets import Dataset


class TrainingProblems(ProblemSource):
    """The training problems of a source in both splits, under their own numbers.

    ``predict`` and ``validate`` work on the validation split. With this source they work on the
    problems that another run trains on. Do not train with it: its evaluations would be of the
    problems that it trains on.

    Args:
        source: the source of the run that trains.
    """

    def __init__(self, source: ProblemSource) -> None:
        self.source = source

    def load(self, split: Split) -> Dataset:
        """Return the source's training split, whichever split is asked for."""
        return self.source.load("train")
