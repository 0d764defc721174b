"""Batches of a stream: windows of rows, each shuffled by a counter, whose place is three numbers.

Example with a buffer of 3 and batches of 2, over a stream of 7 rows:

    rows      0 1 2 | 3 4 5 | 6
    order     2 0 1 | 4 3 5 | 6
    batches   2 0   1 4   3 5   (6 is left out: the pass ends with an incomplete batch)
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import torch

from rlif_lightning.data.encoding import SplitEncoder
from rlif_lightning.data.loaders import EncodedSplit, TrainLoader
from rlif_lightning.data.streams import Streamed
from rlif_lightning.records import Prompts
from rlif_lightning.sampling import purpose_seeds

Place = tuple[int, int, int]  # pass over the stream, window, problems of the window that were drawn


class Windows:
    """The tokenised windows of a stream; the last two stay in memory.

    Args:
        source: the stream.
        encoder: tokenises a window.
        first: the first window.
    """

    def __init__(self, source: Streamed, encoder: SplitEncoder, first: EncodedSplit):
        self.source, self.encoder = source, replace(encoder, is_quiet=True)
        self._kept = {0: first}

    def __call__(self, number: int) -> EncodedSplit | None:
        """Return a window; None behind the end of the stream.

        Raises:
            ValueError: a row is no problem; names it by its place in the window.
        """
        if number not in self._kept:
            dataset = self.source.window(number)
            if dataset is None:
                return None
            try:
                found = self.encoder.split(dataset, "train", keep=True)
            except ValueError as error:
                first = number * self.source.buffer
                raise ValueError(
                    f"window {number} of the stream, from row {first} on: {error}"
                ) from error
            self._kept = {kept: self._kept[kept] for kept in [*self._kept][-1:]} | {number: found}
        return self._kept[number]


class StreamLoader(TrainLoader):
    """Endless batches of a stream; each window is shuffled by (seed, pass, window).

    Args:
        split: the first window.
        prompts_per_rollout, seed, num_replicas, rank: as for :class:`TrainLoader`.
        windows: returns a window by its number, None behind the last one.
        buffer: rows of a window.
    """

    def __init__(
        self,
        split: EncodedSplit,
        prompts_per_rollout: int,
        seed: int,
        num_replicas: int,
        rank: int,
        *,
        windows: Callable[[int], EncodedSplit | None],
        buffer: int,
    ) -> None:
        super().__init__(split, prompts_per_rollout, seed, num_replicas, rank)
        self.windows, self.buffer = windows, buffer
        self._begin((0, 0, 0), 0)

    def _begin(self, place: Place, batches_drawn: int) -> None:
        self.batches_drawn = batches_drawn
        self._places = {batches_drawn - 1: place}  # by batch, the place behind it
        self._batches: dict[int, Prompts] = {}
        self._sequence = self._from(place)

    def upcoming(self, ahead: int) -> Prompts:
        """Return the batch so many after the one that was drawn last; the place does not change."""
        last = self.batches_drawn - 1
        while (number := max(self._places)) < last + ahead:
            self._places[number + 1], self._batches[number + 1] = next(self._sequence)
        for made in [made for made in self._places if made < last]:
            del self._places[made]
            self._batches.pop(made, None)
        return self._batches[last + ahead]

    def _from(self, place: Place) -> Iterator[tuple[Place, Prompts]]:
        """Yield this process's share of each batch from a place on, with the place behind it."""
        batch: list[tuple[int, int]] = []
        for behind, problem in self._problems(place):
            if behind[0] != place[0]:
                batch = []  # of the pass before, which ended within it
            place = behind
            batch.append(problem)
            if len(batch) == self.prompts_per_rollout:
                yield place, self._prompts(batch[self.rank :: self.num_replicas])
                batch = []

    def _problems(self, place: Place) -> Iterator[tuple[Place, tuple[int, int]]]:
        """Yield (window, problem in it) in the order of drawing, with the place behind each."""
        passed, number, taken = place
        while True:
            split = self.windows(number)
            if split is None:
                passed, number, taken = passed + 1, 0, 0
                continue
            counters = purpose_seeds("stream", self.seed, passed, number)
            order = np.random.default_rng(counters).permutation(len(split))
            for count, position in enumerate(order[taken:].tolist(), taken + 1):
                yield (passed, number, count), (number, position)
            number, taken = number + 1, 0

    def _prompts(self, chosen: list[tuple[int, int]]) -> Prompts:
        parts = []
        for number in dict.fromkeys(number for number, _ in chosen):
            split = self.windows(number)
            assert split is not None
            made = split.batch([position for window, position in chosen if window == number])
            parts.append(replace(made, index=made.index + number * self.buffer))
        return parts[0] if len(parts) == 1 else _joined(parts)

    def state_dict(self) -> dict[str, Any]:
        """Return the place in the stream, and a checksum of the window that it is in."""
        place = self._places[self.batches_drawn - 1]
        window = {"place": list(place), "buffer": self.buffer, "checksum": self._checksum(place[1])}
        return {**super().state_dict(), **window}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after the last batch drawn.

        Raises:
            ValueError: the checkpoint is of no stream, or of another one, or of batches or windows
                of another size.
        """
        now = {**super().state_dict(), "buffer": self.buffer}
        for name in ("seed", "prompts_per_rollout", "buffer"):
            if state_dict.get(name) != now[name]:
                raise ValueError(
                    f"{name}={now[name]}, but the checkpoint was made with {state_dict.get(name)}:"
                    " its place in the stream cannot be found again; resume with the same data"
                    " settings, or begin a new run with its weights (fork_from instead of"
                    " ckpt_path)"
                )
        passed, number, taken = state_dict["place"]
        if self._checksum(number) != state_dict["checksum"]:
            raise ValueError(
                f"the rows from {number * self.buffer} on are not those that the checkpoint was"
                " made with: the stream has changed, and its order cannot be continued; begin a new"
                " run with its weights (fork_from instead of ckpt_path)"
            )
        self._begin((passed, number, taken), state_dict["batches_drawn"])

    def _checksum(self, number: int) -> int:
        split, found = self.windows(number), 0
        for ids in (split.token_ids or ()) if split is not None else ():
            found = zlib.crc32(ids.tobytes() + b"|", found)
        return found


def _joined(parts: list[Prompts]) -> Prompts:
    """Return the prompts of neighbouring windows as one batch; a column that one lacks is empty."""
    names = dict.fromkeys(name for part in parts for name in part.columns)
    lists = [[part.columns.get(name, [None] * len(part)) for part in parts] for name in names]
    chats = [part.messages for part in parts if part.messages is not None]
    return Prompts(
        token_ids=[ids for part in parts for ids in part.token_ids],
        texts=[text for part in parts for text in part.texts],
        columns={name: [*chain(*found)] for name, found in zip(names, lists, strict=True)},
        index=torch.cat([part.index for part in parts]),
        messages=[each for chat in chats for each in chat] if chats else None,
        environment=parts[0].environment,
    )
