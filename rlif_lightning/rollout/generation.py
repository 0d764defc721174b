"""The decoding loop: completions are admitted, draw a token in each step, and leave when they end.

A completion that is being decoded (a row) has a place: an index into the batch of a step. Example:
three prompts, two completions each, ``max_rows=4``, on a CPU. Rows are numbered in the rollout:

    step 0   places  0 1 2 3      row 1 ends with its token; 0, 2 and 3 continue
    step 1   places  0 3 2 4      row 3 has moved to the gap at place 1; row 4 was admitted
    step 2   places  0 3 2 4      ...

On a GPU rows keep their places while more than half of these are in use, so row 4 would be admitted
at place 1. What a step reads and writes is on the device, at the same addresses in every step:
hidden states, tokens, counters, uniforms, statistics. The host keeps a copy of the counters and
updates it with the drawn tokens. On a CPU a row that ended leaves before its last token is
computed. On a GPU the host reads the tokens while the device computes, so an ended row costs one
wasted token.

Under an environment a completion is an episode. A row whose turn has ended keeps its place and its
memory, its observation is computed in a pass of its own, and it draws its next turn beside rows of
other turns. Its columns count drawn tokens and observations (``turn_taking.py``). A row with a new
context keeps its place alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rlif_lightning.model.packing import upload
from rlif_lightning.processes.collectives import all_process_attempt
from rlif_lightning.records import Prompts
from rlif_lightning.rollout.drawing import Drawer, TokenReading
from rlif_lightning.rollout.places import Places, close_gaps
from rlif_lightning.rollout.step_graphs import StepGraphs
from rlif_lightning.rollout.stop_strings import StopStrings
from rlif_lightning.rollout.turn_taking import Turns
from rlif_lightning.sampling import Sampling, counter_uniforms

if TYPE_CHECKING:
    from rlif_lightning.rollout.native import NativeEngine

# On a GPU rows are admitted once 1 in so many places is free: prompts take a pass of their own.
ADMISSIONS = 32
OBSERVED = 8192  # tokens of observations, with padding, that are computed at a time


@dataclass(frozen=True)
class DrawnTokens:
    """The tokens of all B completions of a rollout.

    Attributes:
        ids: ``[B, T]`` int64 on the CPU.
        stats: ``[B, T, 3]`` on the device: the statistics of ``TokenStats``; 0 where there is no
            token.
        lengths, ended: ``[B]`` on the CPU; a length ends with the last drawn token.
        prompts: that the tokens continue.
        turns: of episodes; None = single turns.
    """

    ids: Tensor
    stats: Tensor
    lengths: Tensor
    ended: Tensor
    prompts: Prompts
    turns: Turns | None


class Generation:
    """The state of one call of ``generate``.

    ``run`` draws all completions. To run single steps, call ``admit``, then ``plan``, ``step`` and
    ``settle`` until ``done``. Steps with equal ``bucket`` run the same operations on the same
    addresses. A step uploads nothing and waits for nothing, so ``torch.cuda.graph`` can capture it
    (after a warm-up step, in which autocast casts the weights).

    Attributes:
        places: of rows; the owner of a place is the row's number, its length the tokens drawn.
        table: ``[4, places]`` int64 on the device: row, tokens drawn, whether the place is in use,
            whether the row gets a final ``stop_id`` next.
    """

    def __init__(
        self,
        engine: NativeEngine,
        prompts: Prompts,
        group_size: int,
        sampling: Sampling,
        rollout_number: int,
    ):
        self.engine, self.group_size, self.sampling = engine, group_size, sampling
        self.policy, self.rollout_number = engine.policy, rollout_number
        self.device, self.total = prompts.token_ids[0].device, len(prompts) * group_size
        self.max_rows, self.next_row = min(engine.max_rows, self.total), 0
        driver = engine.episodes(prompts, sampling)
        if driver is not None:
            # A process that raised alone would leave the others in the collectives of a rollout.
            prompts = all_process_attempt(
                lambda: driver.begin(prompts, group_size, engine.seed, rollout_number)
            )
        self.prompts, self.columns = prompts, engine.columns(prompts, sampling)
        tokens = self.columns
        self.decoder = engine.decoder(prompts, group_size, tokens)
        self.graphs = StepGraphs() if engine.cuda_graphs else None
        self.drawer = Drawer(self.policy, sampling, self.device)
        self.stops = StopStrings(self.policy.tokenizer, sampling.stop)
        size = self.decoder.num_places(self.max_rows)
        self.places, self.closing = Places(size), torch.zeros(size, dtype=torch.bool)
        self.ids = torch.zeros((self.total, tokens), dtype=torch.int64)
        taken = sampling, self.stops, self.policy.eos_ids, self.ids
        self.turns = None if driver is None else Turns(driver, *taken)
        self.lengths = torch.zeros(self.total, dtype=torch.int64)
        self.ended = torch.zeros(self.total, dtype=torch.bool)
        dtype = torch.promote_types(self.policy.causal_lm.dtype, torch.float32)
        # Empty places write into one more row, which is cut off in the end.
        self.stats = torch.zeros((self.total + 1, tokens, 3), dtype=dtype, device=self.device)
        self.table = torch.zeros((4, size), dtype=torch.int64, device=self.device)
        self.tokens = torch.zeros(size, dtype=torch.int64, device=self.device)
        self.uniforms = torch.zeros((size, tokens), dtype=torch.float64, device=self.device)
        self.hidden: Tensor | None = None  # [size, H]
        self.reading = TokenReading(size, self.device)
        self.changed = True

    @property
    def done(self) -> bool:
        """Return whether no row is left."""
        return self.places.used == 0

    @property
    def bucket(self) -> tuple[object, ...]:
        """Return what decides the operations of a step, their shapes and their addresses."""
        return (self.n, self.early, self.closes, *self.decoder.bucket)

    def run(self) -> DrawnTokens:
        """Draw all completions."""
        self.admit()
        while not self.done:
            self.plan()
            if self.decoder.exact:
                # Rows that ended leave first, so that their last token is not computed. Rows are
                # admitted afterwards: their hidden states come from their prompts.
                self.draw()
                self.leave(self.ends(self.tokens[: self.n]))
                if not self.done:
                    self.n = self.places.used
                    self.decoder.prepare()
                    self.feed()
                self.observe()
                self.admit()
            else:
                # The copy of the tokens to the host runs while the device computes them.
                self._compute(self.draw)
                self.reading.start(self.tokens[: self.n])
                self._compute(self.feed)
                self.settle(self.reading.finish())
        self.decoder.finish()
        found = self.ids, self.stats[:-1], self.lengths, self.ended
        return DrawnTokens(*found, self.prompts, self.turns)

    def admit(self) -> None:
        """Admit waiting rows while places are free."""
        live = int(self.places.live().sum())
        free = self.max_rows - live  # not len(self.tokens), which is rounded up on a GPU
        number = min(self.total - self.next_row, free)
        if number == 0 or (live and not self.decoder.can_join):
            return
        if live and not self.decoder.exact and free < self.max_rows // ADMISSIONS:
            return
        rows = range(self.next_row, self.next_row + number)
        self.next_row += number
        owners = [row // self.group_size for row in rows]
        members = [row % self.group_size for row in rows]
        places = self.places.take(rows, [0] * number)
        hidden = self.decoder.admit(owners, places)  # [number, H]
        if self.hidden is None:
            self.hidden = hidden.new_zeros((len(self.tokens), hidden.shape[1]))
        # By the prompts' numbers in the data set: a completion gets the same uniforms whatever its
        # place, its process and the number of processes.
        index = self.prompts.index.tolist()
        counters = ([index[owner] for owner in owners], members, self.columns)
        uniforms = counter_uniforms(self.engine.seed, self.rollout_number, *counters)
        where = upload(torch.tensor(places), self.device)
        self.hidden[where] = hidden
        self.uniforms[where] = upload(uniforms, self.device)  # [number, T]
        self.changed = True

    def plan(self) -> None:
        """Prepare the next step on the host; upload the table only after rows came or left."""
        used, live = self.places.used, self.places.live()
        self.n = self.decoder.num_places(used)
        drawn = self.places.length[:used]
        # Most steps have no row before its minimum length and none that gets ``stop_id``, so they
        # skip these masks.
        self.early = bool((live & (drawn < self.sampling.min_new_tokens)).any())
        self.closes = bool(self.closing[:used].any())
        if self.changed:
            in_use = self.places.owner >= 0  # [places]
            row = torch.where(in_use, self.places.owner, self.total)
            lines = [row, self.places.length, in_use.long(), self.closing.long()]
            self.table = upload(torch.stack(lines), self.device, self.table)
            self.changed = False
        if not self.decoder.exact:
            self.decoder.prepare()

    def _compute(self, work: Callable[[], None]) -> None:
        if self.graphs is None:
            work()
        else:
            self.graphs.run((work.__name__, self.bucket), work)

    def step(self) -> None:
        """Draw a token at each place, and compute the hidden states that follow.

        A step reads ``hidden``, ``table`` and ``uniforms``. It writes ``tokens``, ``stats``, keys
        and values, and ``hidden``.
        """
        self.draw()
        self.feed()

    def draw(self) -> None:
        """Draw each place's next token from its hidden state, and store the token's statistics."""
        assert self.hidden is not None
        row, drawn, live, closing = (line[: self.n] for line in self.table)  # [n] each
        uniforms = self.uniforms[: self.n].gather(1, drawn.unsqueeze(1)).squeeze(1)  # [n]
        may_end = drawn >= self.sampling.min_new_tokens if self.early else None
        closes = closing.bool() if self.closes else None
        tokens, stats = self.drawer.draw(self.hidden[: self.n], uniforms, may_end, closes)
        self.tokens[: self.n] = tokens
        self.stats[row, drawn] = stats.to(self.stats.dtype)
        drawn.add_(live)  # in the table itself: the next step needs no upload

    def feed(self) -> None:
        """Compute the hidden states ``[n, H]`` after the drawn tokens."""
        assert self.hidden is not None
        self.hidden[: self.n] = self.decoder.advance(self.tokens[: self.n])

    def settle(self, tokens: Tensor) -> None:
        """Let ended rows leave and admit waiting ones; takes the tokens ``[n]`` on the CPU."""
        self.leave(self.ends(tokens))
        self.observe()
        self.admit()

    def observe(self) -> None:
        """Compute the observations of rows whose turn has ended; their next turn follows."""
        if self.turns is None or not self.turns.waiting:
            return
        assert self.hidden is not None
        waiting, self.turns.waiting = sorted(self.turns.waiting.items()), {}
        place_of, told = self.places.where(), []
        for row, follows in waiting:
            place = place_of[row]
            column = int(self.places.length[place])
            self.places.length[place] = self.turns.continue_row(row, column, follows)
            told += [(place, torch.tensor(follows.ids))] if follows.ids else []
        if anew := [place_of[row] for row, follows in waiting if follows.is_new]:
            self.decoder.restart(anew)
        for some in in_passes(told):
            places, ids = zip(*some, strict=True)
            where = upload(torch.tensor(places), self.device)
            self.hidden[where] = self.decoder.extend(places, ids)
        self.changed = True

    def ends(self, tokens: Tensor) -> Tensor:
        """Record the tokens ``[n]`` (on the CPU); return which places stay, ``[used]`` bool."""
        live = self.places.live()
        at = live.nonzero().squeeze(1)  # places in use; the tokens of empty ones are ignored
        rows, drawn, tokens = self.places.owner[at], self.places.length[at], tokens.cpu()[at]
        self.ids[rows, drawn] = tokens
        ended = self.engine.ends(tokens, rows, drawn) | self.closing[at]
        self.places.lengthen(1)
        drawn = drawn + 1
        turns, limit = self.turns, self.sampling.max_new_tokens
        starts = None if turns is None else turns.started[rows]
        stopped = self.stops.found(self.ids, rows, drawn, starts)
        if self.sampling.train_stop:  # a row with a stop string gets ``stop_id`` in its next step
            room = drawn < limit if turns is None else turns.room(rows, drawn) > 0
            closing = stopped & ~ended & room
            self.changed |= bool((closing | self.closing[at]).any())
            self.closing[at] = closing
            stopped &= ~closing
        ended |= stopped
        if turns is None:
            finished = ended | (drawn == limit)
        else:
            ended, finished = turns.settle(rows, drawn, ended)
        self.lengths[rows[finished]], self.ended[rows[finished]] = drawn[finished], ended[finished]
        live[at] = ~finished
        return live

    def leave(self, stays: Tensor) -> None:
        """Free the places of rows that do not stay."""
        if torch.equal(stays, self.places.live()):
            return
        arrangement = close_gaps(stays, self.decoder.exact, self.device)
        self.places.arrange(arrangement)
        arrangement.apply(self.closing, False)
        for values in (self.tokens, self.uniforms, self.hidden):
            assert values is not None
            arrangement.move(values)
        # A group may be admitted in parts: its prompt stays stored until its last row has come.
        waiting = self.next_row // self.group_size if self.next_row < self.total else None
        self.decoder.arrange(arrangement, waiting)
        self.changed = True


def in_passes(told: list[tuple[int, Tensor]]) -> list[list[tuple[int, Tensor]]]:
    """Split places with their new tokens by the memory of a pass, the longest first."""
    passes: list[list[tuple[int, Tensor]]] = []
    for place, ids in sorted(told, key=lambda each: -len(each[1])):
        if not passes or (len(passes[-1]) + 1) * len(passes[-1][0][1]) > OBSERVED:
            passes.append([])
        passes[-1].append((place, ids))
    return passes
