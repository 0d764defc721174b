"""``PromptTable``: what a run remembers of each problem, kept in its checkpoints.

A column belongs to one owner, a reward head or a callback. Its rows are those of the training data
set (``Prompts.index``). What a rollout writes is read from the next rollout on. So nothing that
is read depends on the number of data ranks, or on which of them works on a problem.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlif_lightning.processes.collectives import all_process_objects, is_distributed

LONGEST_TEXT = 64  # characters: a table is no place for completions
Value = tuple[float, ...] | str


@dataclass(frozen=True)
class Visit:
    """The rollout of training that is being drawn and scored.

    Attributes:
        rollout_number: of the run, from 0.
        epoch: of the trainer, from 0.
    """

    rollout_number: int
    epoch: int


class PromptColumn:
    """One column: a problem has ``width`` numbers, or a short text, or nothing.

    :meth:`PromptTable.column` makes it.

    Attributes:
        name: of the column.
        owner: who may write it.
        width: numbers of a problem; 0 = the column holds texts.
    """

    def __init__(self, name: str, owner: str, width: int):
        self.name, self.owner, self.width = name, owner, width
        self.values: dict[int, Value] = {}
        self.written: dict[int, Value] = {}  # by this process, in this rollout

    def put(self, row: int, value: Sequence[float] | float | str) -> None:
        """Write a problem's value; it is read after the rollout.

        Args:
            row: of the data set; once in a rollout, on the data rank that has the problem.
            value: ``width`` finite numbers, one number if ``width`` is 1, or a text.

        Raises:
            ValueError: a value of another kind, or a row that was written in this rollout.
        """
        if row in self.written:
            raise ValueError(
                f"column {self.name!r}: problem {row} was written twice in one rollout, so the"
                " order of completions would decide; write each problem once"
            )
        self.written[row] = self._checked(value)

    def numbers(self, rows: Sequence[int], default: Sequence[float]) -> Tensor:
        """Return the numbers of some problems, ``[len(rows), width]`` float64 on the CPU.

        Args:
            rows: of the data set.
            default: the ``width`` numbers of a problem without a value.
        """
        found = [self.values.get(row, tuple(default)) for row in rows]
        return torch.tensor(found, dtype=torch.float64).view(len(rows), self.width)

    def texts(self, rows: Sequence[int]) -> list[str | None]:
        """Return the texts of some problems; None where a problem has none."""
        found = [self.values.get(row) for row in rows]
        return [None if value is None else str(value) for value in found]

    def _checked(self, value: Any) -> Value:
        if self.width == 0:
            if isinstance(value, str) and len(value) <= LONGEST_TEXT:
                return value
        elif not isinstance(value, str):
            given = value if isinstance(value, Sequence) else [value]
            numbers = tuple(float(number) for number in given)
            if len(numbers) == self.width and all(map(math.isfinite, numbers)):
                return numbers
        kind = f"{self.width} finite numbers" if self.width else f"{LONGEST_TEXT} characters"
        raise ValueError(
            f"column {self.name!r} of {self.owner} holds up to {kind} of each problem, not"
            f" {value!r:.100}"
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the column as tensors and plain values, rows ascending."""
        rows = sorted(self.values)
        values: Any = self.texts(rows)
        if self.width:
            values = self.numbers(rows, ())
        return {"owner": self.owner, "width": self.width, "rows": torch.tensor(rows).long()} | {
            "values": values
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take a checkpoint's column, and drop what this rollout wrote.

        Raises:
            ValueError: the checkpoint's column has another owner or width.
        """
        if (state["owner"], state["width"]) != (self.owner, self.width):
            raise ValueError(
                f"the checkpoint's column {self.name!r} is of {state['owner']} with width"
                f" {state['width']}, this run's of {self.owner} with width {self.width}: resume"
                " with the same settings, or begin a new run with its weights (fork_from instead"
                " of ckpt_path)"
            )
        values = state["values"]
        values = map(tuple, values.tolist()) if self.width else values
        self.values = dict(zip(state["rows"].tolist(), values, strict=True))
        self.written = {}


class PromptTable:
    """The columns of a run; every process holds the same table.

    Attributes:
        visit: the rollout that is being scored; None outside of training, as in an evaluation.
    """

    def __init__(self) -> None:
        self.columns: dict[str, PromptColumn] = {}
        self.visit: Visit | None = None
        self._loaded: Mapping[str, Any] = {}

    def column(self, name: str, owner: str, width: int = 1) -> PromptColumn:
        """Return the column of this name, which is made where it is not there.

        Args:
            name: of the column.
            owner: who writes it; the same owner gets the same column again.
            width: numbers of a problem; 0 = a short text.

        Raises:
            ValueError: the column has another owner or width, here or in the checkpoint.
        """
        column = self.columns.setdefault(name, PromptColumn(name, owner, width))
        if (column.owner, column.width) != (owner, width):
            raise ValueError(
                f"column {name!r} belongs to {column.owner} with width {column.width}; {owner}"
                f" cannot have it with width {width}: choose another name"
            )
        if not column.values and name in self._loaded:
            column.load_state_dict(self._loaded[name])
        return column

    @contextmanager
    def visiting(self, rollout_number: int, epoch: int) -> Iterator[None]:
        """Set :attr:`visit` while a rollout of training is drawn and scored."""
        self.visit = Visit(rollout_number, epoch)
        try:
            yield
        finally:
            self.visit = None

    def forget_unread(self) -> None:
        """Drop what was written and not taken over: of a rollout that was broken off."""
        for column in self.columns.values():
            column.written = {}

    def gather(self) -> None:
        """Take over what all data ranks wrote in this rollout (a collective).

        The module calls it at the end of a training step. Under tensor parallelism the first
        process's values are everybody's.

        Raises:
            ValueError: two data ranks wrote the same problem.
        """
        if not self.columns:
            return
        parts = all_process_objects({name: it.written for name, it in self.columns.items()})
        for name, column in self.columns.items():
            column.written = {}
            new: dict[int, Value] = {}
            for part in parts if is_distributed() else parts[:1]:
                if twice := sorted(new.keys() & part[name].keys()):
                    raise ValueError(
                        f"column {name!r}: problem {twice[0]} was written by two data ranks in one"
                        " rollout; give each problem of a batch to one data rank"
                    )
                new |= part[name]
            column.values |= new

    def state_dict(self) -> dict[str, Any]:
        """Return every column."""
        return {name: column.state_dict() for name, column in self.columns.items()}

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Take a checkpoint's columns; a column that it lacks begins empty.

        A column without an owner yet is taken when its owner asks for it.

        Raises:
            ValueError: a column has another owner or width.
        """
        self._loaded = state or {}
        for name, column in self.columns.items():
            column.values, column.written = {}, {}
            if name in self._loaded:
                column.load_state_dict(self._loaded[name])
