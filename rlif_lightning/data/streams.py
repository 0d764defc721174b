"""Training problems as a stream, for data that no memory holds: read a window of rows at a time.

Which rows make a batch is in ``stream_loader.py``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlif_lightning.data.local_files import is_saved, open_saved
from rlif_lightning.data.sources import HubDataset, LocalFiles, ProblemSource, Split

if TYPE_CHECKING:
    from datasets import Dataset

COMPARED = 100  # rows that are read twice, to see that a stream can be read again
Row = dict[str, Any]


def dataset_of(rows: Sequence[Mapping[str, Any]], where: str) -> Dataset:
    """Return rows with every column that any of them has.

    Args:
        rows: one problem each.
        where: the rows in words.

    Raises:
        ValueError: a column has values of several types.
    """
    from datasets import Dataset

    names = dict.fromkeys(name for row in rows for name in row)
    try:
        return Dataset.from_list([{name: row.get(name) for name in names} for row in rows])
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{where} do not fit together: {' '.join(str(error).split()):.300}; make each column"
            " one type"
        ) from error


class Streamed(ProblemSource):
    """The training problems of another source, of which a window of rows is in memory at a time.

    Each window is shuffled for itself, by a counter: a pass over the stream has every problem once,
    on any number of processes, and a resumed run goes on with the very next one. It reads the rows
    before it again, without tokenising them. An epoch of the trainer has as many problems as the
    first window, wherever in the stream it is. Checks of the data in setup see the first window
    only. Validation problems are loaded whole.

    Args:
        source: `LocalFiles` of JSON lines, or a `HubDataset`; in Python also an
            ``IterableDataset``, which must give the same rows each time that it is read.
        buffer: rows of a window, at least the prompts of a rollout.

    Raises:
        ValueError: a buffer below 1, or a source that cannot be streamed.
    """

    def __init__(self, source: ProblemSource, buffer: int = 10_000) -> None:
        source = source if isinstance(source, ProblemSource) else GivenStream(source)
        self.remember(source=source, buffer=buffer)
        if buffer < 1:
            raise ValueError(f"buffer={buffer} must be at least 1 row")
        if not isinstance(source, (LocalFiles, HubDataset, GivenStream)):
            raise ValueError(
                f"source={type(source).__name__} cannot be streamed; use LocalFiles of JSON lines"
                " or HubDataset, or name it as data.source itself"
            )
        self.source, self.buffer = source, buffer
        self._rows: Iterator[Row] = iter(())
        self._next = -1  # number of the window that `_rows` goes on with

    def has(self, split: Split) -> bool:
        """Return whether the source has the split."""
        return self.source.has(split)

    def load(self, split: Split) -> Dataset:
        """Return the validation problems.

        Raises:
            ValueError: the training problems are asked for, which nobody can load whole.
        """
        if split == "train":
            raise ValueError(
                "Streamed has no training problems to load whole; name it as data.source itself,"
                " not inside of another source"
            )
        return self.source.load(split)

    def window(self, number: int) -> Dataset | None:
        """Return the rows of a window; None behind the end of the stream.

        Raises:
            ValueError: a row that is none, or a stream that gives other rows when it is read again.
        """
        if number != self._next:
            self._rows = stream_rows(self.source, number * self.buffer)
        rows, self._next = list(islice(self._rows, self.buffer)), number + 1
        if number == 0:
            self._compare(rows[:COMPARED])
        if not rows:
            return None
        first = number * self.buffer
        return dataset_of(rows, f"rows {first} to {first + len(rows) - 1} of the stream")

    def _compare(self, rows: list[Row]) -> None:
        again = list(islice(stream_rows(self.source, 0), len(rows)))
        if again != rows:
            raise ValueError(
                f"{type(self.source).__name__} gives other rows when it is read again, so that no"
                " run could be resumed; do not shuffle it (Streamed does), and make it of something"
                " that can be read twice"
            )


class GivenStream(ProblemSource):
    """An ``IterableDataset`` of training problems, which no YAML can name.

    Raises:
        ValueError: it is shuffled or divided between processes.
    """

    def __init__(self, dataset: Any) -> None:
        # datasets has no public name for either; without them a checksum finds it on a resume.
        step, divided = (getattr(dataset, name, None) for name in ("_ex_iterable", "_distributed"))
        while step is not None and "Shuffled" not in type(step).__name__:
            step = getattr(step, "ex_iterable", None)
        if step is not None or divided is not None:
            raise ValueError(
                "source: the IterableDataset is shuffled or divided between processes, so that"
                " processes, or a resumed run, would see other rows; pass it as it was before:"
                " Streamed shuffles and divides"
            )
        self.dataset = dataset
        self.remember(dataset=type(dataset).__name__)

    def has(self, split: Split) -> bool:
        """Return whether it is the training split."""
        return split == "train"

    def load(self, split: Split) -> Dataset:
        """Refuse: a stream has no rows to load whole."""
        raise ValueError(f"source: no {split} problems were given beside the stream")


def stream_rows(source: Any, start: int) -> Iterator[Row]:
    """Yield the training rows of a source from a row on, in their order.

    Raises:
        ValueError: it cannot be streamed, or a line is no JSON object; names it.
    """
    if isinstance(source, GivenStream):
        return iter(source.dataset.skip(start) if start else source.dataset)
    if isinstance(source, LocalFiles):
        given = source.paths["train"]
        return islice(_json_lines([given] if isinstance(given, str) else given or []), start, None)
    wanted = source.splits["train"]
    if is_saved(Path(source.name)):
        saved = open_saved(Path(source.name), wanted)
        return (saved[row] for row in range(start, len(saved)))
    return _hub_rows(source, wanted, start)


def _hub_rows(source: HubDataset, wanted: str, start: int) -> Iterator[Row]:
    from datasets import load_dataset

    try:
        found: Any = load_dataset(
            source.name, source.subset, split=wanted, revision=source.revision, streaming=True
        )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"name={source.name!r}, train_split={wanted!r} cannot be streamed: {error}; a stream"
            " takes whole splits, no slices"
        ) from error
    return iter(found.skip(start))


def _json_lines(paths: list[str]) -> Iterator[Row]:
    for path in paths:
        if Path(path).suffix != ".jsonl":
            raise ValueError(
                f"train={path!r} cannot be streamed: only JSON lines (.jsonl) can; load it whole"
                " (LocalFiles as data.source), or write it as JSON lines"
            )
        with Path(path).open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _row(line, f"{path}, line {number}")


def _row(line: str, where: str) -> Row:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where}: not JSON: {error}") from error
    if not isinstance(row, dict):
        raise ValueError(f"{where}: {row!r:.60} is no JSON object; write one problem a line")
    return row


def first_rows(source: ProblemSource, split: Split) -> Dataset:
    """Return a split: of a stream's training problems the first window."""
    if split == "validation" or not isinstance(source, Streamed):
        return source.load(split)
    found = source.window(0)
    if found is None:
        raise ValueError("source: the stream has no rows; give it problems")
    return found
