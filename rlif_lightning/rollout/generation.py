"""The loop that draws completions: rows come from waiting prompts, draw tokens, and leave as they end.

Rows have places. What a decoding step reads and writes lies on the device, at the same addresses
from step to step: hidden states, tokens, counters, uniforms, statistics. The host keeps a copy of
what it needs to plan, which the step's tokens keep up to date. On a CPU rows that ended leave
before their token is computed. On a GPU the tokens are read while it computes; an ended row costs
one wasted token, and its place is filled by the next row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rlif_lightning.model.packing import upload
from rlif_lightning.records import Prompts
from rlif_lightning.rollout.drawing import Drawer, TokenReading
from rlif_lightning.rollout.places import Places, close_gaps
from rlif_lightning.rollout.stop_strings import StopStrings
from rlif_lightning.sampling import Sampling, counter_uniforms

if TYPE_CHECKING:
    from rlif_lightning.rollout.native import NativeEngine

ADMISSIONS = 32  # on a GPU rows wait until one in so many places is free, for their prompts take a pass of their own


@dataclass(frozen=True)
class Completions:
    """All B completions of a rollout.

    Attributes:
        ids: ``[B, T]`` int64 on the CPU.
        stats: ``[B, T, 3]`` on the device: the figures of ``TokenStats``, 0 where there is no
            token.
        lengths, ended: ``[B]`` on the CPU.
    """

    ids: Tensor
    stats: Tensor
    lengths: Tensor
    ended: Tensor


class Generation:
    """One call of ``generate``.

    ``run`` does it all. To drive it by hand: ``admit``, then ``plan``, ``step`` and ``settle``
    until ``done``. Between two plans of the same ``bucket``, ``step`` runs the same operations on
    the same addresses; it waits for nothing and uploads nothing, so ``torch.cuda.graph`` can
    capture it (after a warm-up step, in which autocast casts the weights).

    Attributes:
        places: of rows (their numbers); the length of a place is the number of tokens drawn.
    """

    def __init__(
        self,
        engine: NativeEngine,
        prompts: Prompts,
        group_size: int,
        sampling: Sampling,
        rollout_number: int,
    ):
        self.engine, self.prompts, self.group_size, self.sampling = (
            engine,
            prompts,
            group_size,
            sampling,
        )
        self.policy, self.number = engine.policy, rollout_number
        self.device, tokens = prompts.token_ids[0].device, sampling.max_new_tokens
        self.total = len(prompts) * group_size
        self.max_rows, self.next_row = min(engine.max_rows, self.total), 0
        self.decoder = engine.decoder(prompts, group_size, sampling)
        self.drawer = Drawer(self.policy, sampling, self.device)
        self.stops = StopStrings(self.policy.tokenizer, sampling.stop)
        size = self.decoder.num_places(self.max_rows)
        self.places, self.closing = Places(size), torch.zeros(size, dtype=torch.bool)
        self.ids = torch.zeros((self.total, tokens), dtype=torch.int64)
        self.lengths = torch.zeros(self.total, dtype=torch.int64)
        self.ended = torch.zeros(self.total, dtype=torch.bool)
        dtype = torch.promote_types(self.policy.causal_lm.dtype, torch.float32)
        # One more row, where empty places write.
        self.stats = torch.zeros((self.total + 1, tokens, 3), dtype=dtype, device=self.device)
        self.table = torch.zeros(
            (4, size), dtype=torch.int64, device=self.device
        )  # row, drawn, live, closing
        self.tokens = torch.zeros(size, dtype=torch.int64, device=self.device)
        self.uniforms = torch.zeros((size, tokens), dtype=torch.float64, device=self.device)
        self.hidden: Tensor | None = None  # [size, H]
        self.reading = TokenReading(size, self.device)
        self.changed = True

    @property
    def done(self) -> bool:
        """Whether no row is left."""
        return self.places.used == 0

    @property
    def bucket(self) -> tuple[object, ...]:
        """What decides the operations of a step, their shapes and their addresses."""
        return (self.n, self.early, self.closes, *self.decoder.bucket)

    def run(self) -> Completions:
        """Draw all completions."""
        self.admit()
        while not self.done:
            self.plan()
            if self.decoder.exact:
                self.draw()
                self.leave(self.ends(self.tokens[: self.n]))
                if not self.done:
                    self.n = self.places.used
                    self.decoder.prepare()
                    self.feed()
                self.admit()
            else:
                self.draw()
                self.reading.start(self.tokens[: self.n])
                self.feed()
                self.settle(self.reading.finish())
        self.decoder.finish()
        return Completions(self.ids, self.stats[:-1], self.lengths, self.ended)

    def admit(self) -> None:
        """Let waiting rows in where there is room."""
        live = int(self.places.live().sum())
        free = self.max_rows - live
        number = min(self.total - self.next_row, free)
        if number == 0 or (live and not self.decoder.can_join):
            return
        if live and not self.decoder.exact and free < self.max_rows // ADMISSIONS:
            return
        rows = range(self.next_row, self.next_row + number)
        self.next_row += number
        owners, members = (
            [row // self.group_size for row in rows],
            [row % self.group_size for row in rows],
        )
        places = self.places.take(rows, [0] * number)
        hidden = self.decoder.admit(owners, places)
        index = self.prompts.index.tolist()
        counters = ([index[owner] for owner in owners], members, self.sampling.max_new_tokens)
        if self.hidden is None:
            self.hidden = hidden.new_zeros((len(self.tokens), hidden.shape[1]))
        where = upload(torch.tensor(places), self.device)
        self.hidden[where] = hidden
        self.uniforms[where] = upload(
            counter_uniforms(self.engine.seed, self.number, *counters), self.device
        )
        self.changed = True

    def plan(self) -> None:
        """Prepare the next step on the host; uploads something only after rows came or left."""
        used, live = self.places.used, self.places.live()
        self.n = self.decoder.num_places(used)
        drawn = self.places.length[:used]
        self.early = bool((live & (drawn < self.sampling.min_new_tokens)).any())
        self.closes = bool(self.closing[:used].any())
        if self.changed:
            row = torch.where(self.places.owner >= 0, self.places.owner, self.total)
            table = torch.stack(
                [row, self.places.length, (self.places.owner >= 0).long(), self.closing.long()]
            )
            self.table = upload(table, self.device, self.table)
            self.changed = False
        if not self.decoder.exact:
            self.decoder.prepare()

    def step(self) -> None:
        """One decoding step of all places over static tensors: draw a token of each, write it down, compute it.

        Reads ``hidden``, ``table`` and ``uniforms``; writes ``tokens``, ``stats``, the keys and
        values, and ``hidden``.
        """
        self.draw()
        self.feed()

    def draw(self) -> None:
        """The first half of a step: each place's next token, from its hidden state, and the token's statistics."""
        assert self.hidden is not None
        row, drawn, live, closing = (line[: self.n] for line in self.table)
        uniforms = self.uniforms[: self.n].gather(1, drawn.unsqueeze(1)).squeeze(1)
        may_end = drawn >= self.sampling.min_new_tokens if self.early else None
        closes = closing.bool() if self.closes else None
        tokens, stats = self.drawer.draw(self.hidden[: self.n], uniforms, may_end, closes)
        self.tokens[: self.n] = tokens
        self.stats[row, drawn] = stats.to(self.stats.dtype)
        drawn.add_(live)

    def feed(self) -> None:
        """The second half: the hidden states of what comes after the tokens."""
        assert self.hidden is not None
        self.hidden[: self.n] = self.decoder.advance(self.tokens[: self.n])

    def settle(self, tokens: Tensor) -> None:
        """After a step, with its tokens ``[n]`` on the CPU: ended rows leave and waiting ones take their places."""
        self.leave(self.ends(tokens))
        self.admit()

    def ends(self, tokens: Tensor) -> Tensor:
        """Write down the drawn tokens ``[n]`` (on the CPU); ``[used]`` bool: which places stay."""
        live = self.places.live()
        at = live.nonzero().squeeze(1)
        rows, drawn, tokens = self.places.owner[at], self.places.length[at], tokens.cpu()[at]
        self.ids[rows, drawn] = tokens
        ended = self.engine.ends(tokens, rows, drawn) | self.closing[at]
        self.places.lengthen(1)
        drawn = drawn + 1
        stopped = self.stops.found(self.ids, rows, drawn)
        if self.sampling.train_stop:
            closing = stopped & ~ended & (drawn < self.sampling.max_new_tokens)
            self.changed |= bool((closing | self.closing[at]).any())
            self.closing[at] = closing
            stopped &= ~closing
        ended |= stopped
        finished = ended | (drawn == self.sampling.max_new_tokens)
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
        waiting = self.next_row // self.group_size if self.next_row < self.total else None
        self.decoder.arrange(arrangement, waiting)
        self.changed = True
