"""Sources made of other sources: several mixed by weight, and one from easy to hard."""

from __future__ import annotations

import math
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_info

from rlif_lightning.data.columns import check_column, column_values
from rlif_lightning.data.sources import ProblemSource, Split

if TYPE_CHECKING:
    from datasets import Dataset

NAME_COLUMN = "source"  # of a problem's source in a mixture


class MixedProblems(ProblemSource):
    """Problems of several sources, each with its share of an epoch.

    Every training problem of every source is in an epoch at least once. A source whose share is
    larger than its size is repeated: with sizes 100 and 300 and weights 1 and 1, each problem of
    the first one comes three times. Validation has every problem once, in an order of which any
    beginning (``data.validation_prompts``) has the same mixture; a source that has no validation
    problems is left out, and is named. The column ``source`` names a problem's source, so that
    ``model.evaluation.subset_column=source`` measures each.

    Args:
        sources: name -> source. Prompts and answers need the same columns in each; a column that
            only some have is empty in the others.
        weights: name -> the source's share, in any unit; null = as their sizes are.

    Raises:
        ValueError: no source, one with an order of its own, or weights that are not one positive
            number for each.
    """

    def __init__(
        self, sources: dict[str, ProblemSource], weights: dict[str, float] | None = None
    ) -> None:
        if not sources:
            raise ValueError("sources={}: give at least one, as name: source")
        if weights is not None and (
            weights.keys() != sources.keys()
            or not all(0 < weight < math.inf for weight in weights.values())
        ):
            raise ValueError(
                f"weights={weights} must have one positive number for each of {sorted(sources)}"
            )
        for name, source in sources.items():
            if type(source).order is not ProblemSource.order:
                kind = type(source).__name__
                raise ValueError(
                    f"sources: {name!r} is {kind}, whose order of an epoch a mixture does not keep;"
                    f" put {kind} around the mixture instead"
                )
        self.sources, self.weights = sources, weights

    def has(self, split: Split) -> bool:
        """Return whether every source has the training split, or any has validation problems."""
        combine = all if split == "train" else any
        return combine(source.has(split) for source in self.sources.values())

    def load(self, split: Split) -> Dataset:
        """Load and mix one split.

        Raises:
            ValueError: columns of one name and different types, or a column ``source``.
        """
        from datasets import concatenate_datasets

        loaded = {name: source.load(split) for name, source in self._having(split).items()}
        for name, dataset in loaded.items():
            if NAME_COLUMN in dataset.column_names:
                raise ValueError(
                    f"sources: {name!r} has a column {NAME_COLUMN!r}, which names the source in a"
                    " mixture; rename it"
                )
        rows = {name: np.arange(len(dataset)) for name, dataset in loaded.items()}
        if split == "train" and self.weights is not None:
            sizes = {name: len(dataset) for name, dataset in loaded.items()}
            counts = shares(sizes, self.weights)
            rows = {name: _repeated(name, sizes[name], counts[name]) for name in loaded}
        parts = [
            dataset.select(rows[name]).add_column(NAME_COLUMN, [name] * len(rows[name]))
            for name, dataset in loaded.items()
        ]
        try:
            mixed = concatenate_datasets(parts)
        except (ValueError, TypeError) as error:
            kinds = {name: dict(dataset.features) for name, dataset in loaded.items()}
            raise ValueError(
                f"sources: their columns do not fit together: {' '.join(str(error).split()):.300};"
                f" they are {kinds!s:.600}; make a column one type in all of them"
            ) from error
        if split == "train":
            return mixed
        place = np.concatenate([(np.arange(len(part)) + 0.5) / len(part) for part in parts])
        return mixed.select(np.argsort(place, kind="stable"))

    def _having(self, split: Split) -> dict[str, ProblemSource]:
        """Return the sources of a split; where all lack it, each says so itself."""
        if split == "train":
            return self.sources
        having = {name: source for name, source in self.sources.items() if source.has(split)}
        having = having or self.sources
        if without := sorted(self.sources.keys() - having.keys()):
            rank_zero_info(
                f"validation measures {sorted(having)} alone: {without} have no validation problems"
            )
        return having


def shares(sizes: dict[str, int], weights: dict[str, float]) -> dict[str, int]:
    """Return how many problems of each source make an epoch in which none is left out.

    Example:
        >>> shares({"a": 100, "b": 300}, {"a": 1.0, "b": 1.0})
        {'a': 300, 'b': 300}
        >>> shares({"a": 100, "b": 300}, {"a": 1.0, "b": 9.0})
        {'a': 100, 'b': 900}
    """
    unit = max(size / weights[name] for name, size in sizes.items())
    return {name: max(size, round(unit * weights[name])) for name, size in sizes.items()}


def _repeated(name: str, size: int, count: int) -> np.ndarray:
    """Return row numbers: each as often as the others, or once more."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    whole, rest = divmod(count, size)
    return np.concatenate([np.tile(np.arange(size), whole), rng.permutation(size)[:rest]])


class EasyFirst(ProblemSource):
    """The problems of another source, in every epoch from easy to hard.

    Args:
        source: where they come from.
        column: a number for each training problem, larger = harder, such as one minus the share of
            a model's samples that agreed.
        jitter: how far a problem moves from its place, as a share of the epoch: 0 = strictly by
            difficulty, with equal ones in random order; 1 = it may come anywhere behind.

    Raises:
        ValueError: a source with an order of its own, or a jitter below 0.
    """

    def __init__(self, source: ProblemSource, column: str, jitter: float = 0.1) -> None:
        refuse_order(source)
        if not 0 <= jitter < math.inf:
            raise ValueError(f"jitter={jitter} must be a number of at least 0")
        self.source, self.column, self.jitter = source, column, jitter
        self._difficulty = np.empty(0)

    def has(self, split: Split) -> bool:
        """Return whether the source has the split."""
        return self.source.has(split)

    def load(self, split: Split) -> Dataset:
        """Load the split, and read the difficulty of the training problems.

        Raises:
            ValueError: the column is missing, or a value is no finite number; names the row.
        """
        dataset = self.source.load(split)
        if split == "train":
            check_column(f"column={self.column!r}", self.column, dataset, "the train split")
            values = column_values(dataset, self.column, range(len(dataset)))
            self._difficulty = np.array([self._number(row, value) for row, value in values])
        return dataset

    def _number(self, row: int, value: Any) -> float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value):
            raise ValueError(
                f"column={self.column!r}: row {row} of the train split is {value!r:.100}, not a"
                " finite number; correct it, or leave the row out"
            )
        return float(value)

    def order(self, rows: np.ndarray, seed: int, epoch: int) -> np.ndarray:
        """Return the order of an epoch, a function of the arguments alone."""
        return by_difficulty(self._difficulty[rows], self.jitter, seed, epoch)


def refuse_order(source: ProblemSource) -> None:
    """Refuse a source whose order of an epoch would not be kept.

    Raises:
        ValueError: names its class.
    """
    if type(source).order is not ProblemSource.order:
        kind = type(source).__name__
        raise ValueError(f"source={kind} has an order of its own; leave {kind} out")


def by_difficulty(difficulty: np.ndarray, jitter: float, seed: int, epoch: int) -> np.ndarray:
    """Return places from easy to hard, equal ones in random order, each moved by some jitter."""
    size, rng = len(difficulty), np.random.default_rng([seed, epoch])
    ties = rng.permutation(size)
    place = np.empty(size)
    place[np.lexsort((ties, difficulty))] = np.arange(size)
    return np.argsort(place + jitter * size * rng.random(size), kind="stable")
