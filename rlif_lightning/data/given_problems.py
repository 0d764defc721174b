"""Problems that are in memory: data sets and lists of rows that a person passes in Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.utilities import rank_zero_info

from rlif_lightning.data.local_files import is_saved
from rlif_lightning.data.sources import HubDataset, LocalFiles, ProblemSource, Split
from rlif_lightning.data.streams import Streamed, dataset_of

if TYPE_CHECKING:
    from datasets import Dataset

    ProblemSourceLike = (
        ProblemSource | Dataset | Sequence[Mapping[str, Any]] | Mapping[str, Any] | str | Path
    )
else:  # the command line knows the class alone
    ProblemSourceLike = ProblemSource
VALIDATION_NAMES = ("validation", "test")


class GivenProblems(ProblemSource):
    """Data sets in memory, which no YAML can name: ``train`` and perhaps ``validation``.

    Example:
        >>> GivenProblems(train=[{"question": "1+1="}]).load("train")[0]
        {'question': '1+1='}
    """

    def __init__(self, **given: Any) -> None:
        self.splits = {
            name: _as_dataset(name, rows) for name, rows in given.items() if rows is not None
        }
        # A run's settings name the sizes; a checksum of the tokens tells the problems themselves.
        sizes = {name: len(dataset) for name, dataset in self.splits.items()}
        self.remember(train=sizes.get("train"), validation=sizes.get("validation"))

    def has(self, split: Split) -> bool:
        """Return whether the split was given."""
        return split in self.splits

    def load(self, split: Split) -> Dataset:
        """Return the split.

        Raises:
            ValueError: it was not given.
        """
        if split not in self.splits:
            raise ValueError(
                f'source: no {split} problems were given; pass {{"train": ..., "validation": ...}}'
            )
        return self.splits[split]


def as_source(given: Any) -> ProblemSource:
    """Return the source of problems that a person passed in Python.

    Args:
        given: a source; a data set, an ``IterableDataset`` (it is streamed) or a list of rows: the
            training problems; a mapping of splits such as a ``DatasetDict``, of which
            ``validation``, or else ``test``, is for validation; a path of a file or of a folder
            that ``save_to_disk`` wrote; a data set of the hub.

    Raises:
        TypeError: anything else.
        ValueError: a mapping with other names than those of splits.
    """
    if isinstance(given, ProblemSource):
        return given
    if isinstance(given, (str, Path)):
        return _named(Path(given).expanduser())
    if _is_stream(given):
        return Streamed(given)
    if isinstance(given, Mapping):
        names = ("train", *VALIDATION_NAMES)
        if unknown := sorted(map(str, {*given} - {*names})) or not given:
            raise ValueError(
                f"source: {unknown or 'no split'} of {sorted(map(str, given))} is none of"
                f" {', '.join(names)}; pass"
                ' {"train": ..., "validation": ...}'
            )
        held_out = [name for name in VALIDATION_NAMES if given.get(name) is not None]
        if len(held_out) > 1:
            rank_zero_info(
                "source: 'test' is not used: validate, test and predict all read 'validation';"
                " to measure 'test', pass it as \"validation\""
            )
        found = given[held_out[0]] if held_out else None
        return GivenProblems(train=given.get("train"), validation=found)
    return GivenProblems(train=given)


def _named(path: Path) -> ProblemSource:
    if path.suffix in LocalFiles.FORMATS or path.is_file():
        return LocalFiles(train=str(path))
    if is_saved(path):
        from datasets import load_from_disk

        loaded: Any = load_from_disk(str(path))
        return as_source(loaded)
    return HubDataset(str(path))


def _is_stream(given: Any) -> bool:
    if not type(given).__module__.startswith("datasets."):
        return False
    from datasets import IterableDataset

    return isinstance(given, IterableDataset)


def _as_dataset(split: str, given: Any) -> Dataset:
    from datasets import Dataset, IterableDataset

    if isinstance(given, Dataset):
        return given
    is_list = isinstance(given, Sequence) and not isinstance(given, (str, bytes))
    rows: list[Any] = list(given) if is_list else []
    if rows and all(isinstance(row, Mapping) for row in rows):
        return dataset_of(rows, f"source: the {split} problems")
    remedy = "pass a datasets.Dataset, a list of dicts with one problem each, or a ProblemSource"
    if isinstance(given, IterableDataset):
        remedy = "pass it alone, to be streamed, or Dataset.from_list(list(...)) of it"
    shown = "an empty list" if is_list else type(given).__name__
    shown = f"a list with {rows[0]!r:.60}" if rows else shown
    raise TypeError(f"source: {split} problems of {shown} are not supported: {remedy}")
