"""``Turns``: what the host knows of the turns of a rollout's rows while they are being drawn.

Example, a row with ``max_turns`` 2 whose environment answers "higher" (h i):

    column      0  1  2  3  4  5
    ids         5 <e> h  i  7 <e>
    turn_ids    0  0 -1 -1  1  1      drawn tokens; observations have no turn
    started     0 .. .. ..  4 ..      the column where the present turn began

The prompt of a new context (``thoughts: fork``) stands there as an observation does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rlif_lightning.data.turns import Continuation, Observation
from rlif_lightning.environments.base import ENDED
from rlif_lightning.rollout.stop_strings import StopStrings
from rlif_lightning.sampling import Sampling

if TYPE_CHECKING:
    from rlif_lightning.rollout.episodes import EpisodeDriver

WHOLE = (*ENDED, "max_turns")  # stops after a turn that nothing has cut
OUT_OF_TOKENS, NO_ROOM = "max_sampled_tokens", "max_observation_tokens"


class Turns:
    """The turns of B rows of at most T columns.

    Args:
        driver: of their environments.
        sampling: how turns are drawn.
        stops: finds stop strings, and makes texts of ids.
        eos_ids: ids that end a turn.
        ids: ``[B, T]`` int64 on the CPU, all tokens of the rows, which the caller fills.

    Attributes:
        turn_ids: ``[B, T]`` int64, -1 where nothing was drawn.
        started: ``[B]`` int64, the column where each row's present turn began.
        context_starts: ``[B, T]`` bool, the columns where new contexts begin.
        observed: ``[B]`` int64, tokens of observations so far, prompts of new contexts included.
        texts: of each row's turns.
        waiting: row -> what it goes on with.
    """

    def __init__(
        self,
        driver: EpisodeDriver,
        sampling: Sampling,
        stops: StopStrings,
        eos_ids: Sequence[int],
        ids: Tensor,
    ):
        self.driver, self.sampling, self.stops, self.eos_ids = driver, sampling, stops, eos_ids
        self.ids, self.settings = ids, driver.task.settings
        self.turn_ids = torch.full_like(ids, -1)
        self.context_starts = torch.zeros_like(ids, dtype=torch.bool)
        self.started, self.observed = torch.zeros((2, len(ids)), dtype=torch.int64)
        self.texts: list[list[str]] = [[] for _ in ids]
        self.waiting: dict[int, Continuation] = {}

    def drawn(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Return how many tokens rows have drawn in their episodes, at these columns."""
        return columns - self.observed[rows]

    def room(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Return how many more tokens the present turns of rows can have, ``[n]``."""
        room = self.sampling.max_new_tokens - self.drawn(rows, columns)
        limit = self.settings.max_turn_tokens
        return room if limit is None else room.clamp(max=limit - (columns - self.started[rows]))

    def settle(self, rows: Tensor, columns: Tensor, over: Tensor) -> tuple[Tensor, Tensor]:
        """Step the environments of the rows whose turn is over.

        Rows may have drawn one token or many since they were settled last.

        Args:
            rows: ``[n]`` int64.
            columns: ``[n]`` int64, tokens of each row, the newest drawn one included.
            over: ``[n]`` bool: whose turn has ended by itself.

        Returns:
            ``[n]`` bool twice: which episodes have ended with a whole turn, and which are over.
        """
        is_out = self.drawn(rows, columns) >= self.sampling.max_new_tokens
        if (limit := self.settings.max_turn_tokens) is not None:
            over = over | (columns - self.started[rows] >= limit)
        turns, limits = {}, {}
        for row, end, ended, out in zip(
            *(each.tolist() for each in (rows, columns, over, is_out)), strict=True
        ):
            if ended:
                turns[row] = self._finish_turn(row, end)
            elif out:
                limits[row] = OUT_OF_TOKENS, self._finish_turn(row, end)
        seen = self.driver.act(turns)
        for row, end, out in zip(*(each.tolist() for each in (rows, columns, is_out)), strict=True):
            if row in seen and (stop := self._answer(row, end, out, seen[row])):
                limits[row] = stop, None
        self.driver.end(limits)
        episodes = [self.driver.episodes.get(row) for row in rows.tolist()]
        finished = torch.tensor([row in self.driver.episodes for row in rows.tolist()])
        # A row whose reset failed has an episode from the beginning, and ends with its turn.
        finished &= over | is_out
        whole = torch.tensor([each is not None and each.stop in WHOLE for each in episodes])
        return whole & finished, finished

    def _finish_turn(self, row: int, end: int) -> str:
        """Keep a row's present turn, which ends before a column; return its text."""
        start, texts = int(self.started[row]), self.texts[row]
        self.turn_ids[row, start:end] = len(texts)
        texts.append(self.stops.text(self.ids[row, start:end]))
        return texts[-1]

    def _answer(self, row: int, column: int, is_out: bool, seen: Observation) -> str | None:
        """Let a row wait for its observation; return how it stops where there is no room."""
        last = int(self.ids[row, column - 1])
        follows = self.driver.follow(row, self.texts[row][-1], seen, last, self.eos_ids)
        if int(self.observed[row]) + len(follows.ids) > self.settings.max_observation_tokens:
            return NO_ROOM
        if is_out:
            return OUT_OF_TOKENS
        self.waiting[row] = follows
        return None

    def context(self, row: int, columns: int, prompt: list[int]) -> list[int]:
        """Return the ids that a row's next token is drawn behind.

        Args:
            row: of an episode.
            columns: tokens of the row so far.
            prompt: of the row, which its first context begins with.
        """
        begun = self.context_starts[row, :columns].nonzero()[:, 0].tolist()
        return [*(() if begun else prompt), *self.ids[row, max([0, *begun]) : columns].tolist()]

    def continue_row(self, row: int, column: int, follows: Continuation) -> int:
        """Put undrawn ids after a row's tokens; return the column where its turn begins."""
        end = column + len(follows.ids)
        self.ids[row, column:end] = torch.tensor(follows.ids, dtype=torch.int64)
        self.context_starts[row, column] = follows.is_new
        self.observed[row] += len(follows.ids)
        self.started[row] = end
        return end
