"""Keys and values of rows that share their prompts: each prompt's once, each row's own in pre-allocated room.

A row attends to two stretches of keys, its prompt's and its own. The queries of a prompt's rows
meet its keys in one product, nothing is copied per row; one softmax runs over both. Rows and
prompts have places in the memory (``places.py``). What a pass reads of them lies on the device at
fixed addresses, and is uploaded only when rows come or go: between ``prepare``, which plans on the
host, and the next one there are no uploads and no waits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlif_lightning.model.attention import Block
from rlif_lightning.model.packing import upload
from rlif_lightning.model.scores import Scores
from rlif_lightning.rollout.places import Arrangement, Places, close_gaps, meeting_points, rounded

FIRST_ROOM = 64  # tokens of its own that a row has room for at first; doubled when they are full
ROW_UNIT, PROMPT_UNIT, OWN_UNIT = (
    8,
    16,
    64,
)  # on a GPU rows, tokens of prompts and own tokens are multiples of these


@dataclass
class LayerMemory:
    """Keys, and behind them values, of one layer: ``[prompts, heads, L, k + v]`` and ``[rows, heads, room, k + v]``."""

    prompts: Tensor
    own: Tensor
    key_size: int

    def halves(self, name: str, lines: int, tokens: int) -> tuple[Tensor, Tensor]:
        """Keys ``[lines * heads, tokens, k]`` and values of the first places, without a copy."""
        stored = getattr(self, name)
        used = stored.flatten(0, 1)[: lines * stored.shape[1], :tokens]
        return used[..., : self.key_size], used[..., self.key_size :]


class SharedPrefixMemory:
    """The memory and the attention of decoding; an ``AttentionPlan`` for some new tokens of each row.

    Args:
        max_rows: at a time; also bounds the prompts, each of which has at least one row or the next
            one to come.
        first_prompts: prompts that there is room for at first; doubled when more are under way.
        max_prompt, max_own: tokens of the longest prompt, and of a row's own.
        device: of the model.

    Attributes:
        exact: whether sizes are those in use and no place is empty: on a CPU, where work costs more
            than a new shape.
    """

    def __init__(
        self, max_rows: int, first_prompts: int, max_prompt: int, max_own: int, device: torch.device
    ):
        self.device, self.exact = device, device.type == "cpu"
        self.max_rows, self.max_prompt = (
            self._size(max_rows, ROW_UNIT),
            self._size(max_prompt, PROMPT_UNIT),
        )
        self.max_own = self._size(max_own, OWN_UNIT)
        self.room, self.prompt_room = (
            min(FIRST_ROOM, self.max_own),
            min(self._size(first_prompts, 1), self.max_rows),
        )
        self.layers: dict[int, LayerMemory] = {}
        self.rows, self.prompts = (
            Places(self.max_rows),
            Places(self.max_rows),
        )  # a row's owner is its prompt's place
        self.counting = torch.arange(
            max(self.max_rows, self.max_prompt, self.max_own), device=device
        )
        self.buffers: dict[tuple[int, ...], Tensor] = {}
        self.changed = True

    def _size(self, number: int, unit: int) -> int:
        return number if self.exact else rounded(number, unit)

    def num_places(self, rows: int) -> int:
        """Rows that a pass computes when the first ``rows`` places are in use."""
        return min(self._size(rows, ROW_UNIT), self.max_rows)

    def add_prompts(self, numbers: Sequence[int], lengths: Sequence[int]) -> None:
        """Make prompts known by their numbers; their keys come by :meth:`keep_prompts`, in the same order."""
        places = self.prompts.take(numbers, lengths)
        if self.prompts.used > self.prompt_room:
            self._enlarge(
                "prompts", places=min(max(2 * self.prompt_room, self.prompts.used), self.max_rows)
            )
        self.new, self.seen, self.changed = upload(torch.tensor(places), self.device), {}, True

    def add_rows(self, places: Sequence[int], numbers: Sequence[int]) -> None:
        """Put rows of these prompts in empty places."""
        where = self.prompts.where()
        self.rows.put(places, [where[number] for number in numbers])
        self.changed = True

    def keep_prompts(self, layer: int, block: Block, keys: Tensor, values: Tensor) -> None:
        """Store the prompts' ``[K, L, heads, d]`` of one block of a prefill whose blocks come in order."""
        if layer not in self.layers:
            self.layers[layer] = self._allocate(keys, values)
        start = self.seen.get(layer, 0)
        self.seen[layer] = start + len(keys)
        pairs = torch.cat([keys, values], -1).transpose(1, 2)
        self.layers[layer].prompts[self.new[start : start + len(keys)], :, : keys.shape[1]] = pairs

    def _allocate(self, keys: Tensor, values: Tensor) -> LayerMemory:
        """In the precision that keys and values come in (``model/scores.py``)."""
        heads, size = keys.shape[2], keys.shape[3] + values.shape[3]
        # Zeros, since what lies beyond a prompt's end is multiplied by a probability of 0: it must
        # be finite.
        prompts = values.new_zeros((self.prompt_room, heads, self.max_prompt, size))
        return LayerMemory(
            prompts, values.new_zeros((self.max_rows, heads, self.room, size)), keys.shape[3]
        )

    def _enlarge(self, name: str, places: int | None = None, room: int | None = None) -> None:
        for memory in self.layers.values():
            old = getattr(memory, name)
            new = old.new_zeros(
                (places or old.shape[0], old.shape[1], room or old.shape[2], old.shape[3])
            )
            new[: old.shape[0], :, : old.shape[2]] = old
            setattr(memory, name, new)
        self.room, self.prompt_room = room or self.room, places or self.prompt_room

    def arrange(self, arrangement: Arrangement, kept: int | None) -> None:
        """Rows that left give their places up, to others that move or to nobody; their prompts go with the last row.

        Args:
            arrangement: of the rows.
            kept: number of a prompt that stays though no row may have it now; others are to come.
        """
        longest = self.rows.longest()
        self.rows.arrange(arrangement)
        for memory in self.layers.values():
            arrangement.move(memory.own[:, :, :longest])
        stays = torch.zeros(self.prompts.used, dtype=torch.bool)
        stays[self.rows.owner[: self.rows.used][self.rows.live()]] = True
        stays |= self.prompts.owner[: self.prompts.used] == (-2 if kept is None else kept)
        moved = close_gaps(stays, self.exact, self.device)
        self.prompts.arrange(moved)
        for memory in self.layers.values():
            moved.move(memory.prompts)
        self.rows.rename(moved)
        self.changed = True

    def prepare(self, tokens: int = 1) -> None:
        """Plan the next pass on the host: room, sizes, and what changed for the device; once for each pass.

        Args:
            tokens: that each row gets.
        """
        reach = self.rows.longest() + tokens
        if reach > self.room:
            self._enlarge(
                "own", room=min(max(2 * self.room, self._size(reach, OWN_UNIT)), self.max_own)
            )
        self.tokens, self.reach = tokens, min(self._size(reach, OWN_UNIT), self.room)
        if self.changed:
            self._renew()
        lengths, prompts = self.rows.length[: self.n], self.prompt_lengths
        self.ragged = not self.exact or tokens > 1
        self.ragged = self.ragged or bool(
            (prompts != self.width).any() or (lengths + 1 != reach).any()
        )
        self.rows.lengthen(tokens)

    @property
    def bucket(self) -> tuple[int, ...]:
        """Sizes and, by them, addresses of the prepared pass."""
        return (
            self.n,
            self.p,
            self.most,
            self.width,
            self.reach,
            self.tokens,
            self.room,
            self.prompt_room,
        )

    def _renew(self) -> None:
        """Where rows and prompts meet, anew: one upload into buffers that each size has once."""
        self.n = self.num_places(self.rows.used)
        self.p = min(self._size(self.prompts.used, 1), self.prompt_room)
        self.width = min(self._size(self.prompts.longest(), PROMPT_UNIT), self.max_prompt)
        owner = self.rows.owner[: self.n]
        live = owner >= 0
        self.prompt_lengths = torch.where(live, self.prompts.length[owner], 0)
        heads = sorted({memory.own.shape[1] for memory in self.layers.values()})
        counts = owner[live].bincount(minlength=self.p)
        self.most = int(counts.max())
        self.most = (
            self.most if self.exact else rounded(self.most, 1 << (self.most - 1).bit_length())
        )
        pairs = [meeting_points(owner, counts, self.most, number) for number in heads]
        parts = [
            self.prompt_lengths,
            self.rows.length[: self.n],
            live.long(),
            *(x for pair in pairs for x in pair),
        ]
        state = upload(torch.cat(parts), self.device, self.buffers.get((self.n, self.p, self.most)))
        self.buffers[self.n, self.p, self.most] = state
        split = state.split([len(part) for part in parts])
        self.starts, self.lengths, self.live = split[:3]
        self.meetings = {number: split[3 + 2 * i : 5 + 2 * i] for i, number in enumerate(heads)}
        self.changed = False

    def start_step(self) -> Tensor:
        """Positions ``[n, tokens]`` of the rows' next tokens, on the device; what follows can be captured."""
        self.at = self.lengths.unsqueeze(1)
        if self.tokens > 1:
            self.at = self.at + self.counting[: self.tokens]
        self.unseen: dict[int | None, Tensor | None] = {}
        return self.at + self.starts.unsqueeze(1)

    def end_step(self) -> None:
        """Count the tokens that every row has now."""
        self.lengths.add_(self.live, alpha=self.tokens)

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scores: Scores
    ) -> Tensor:
        """Attention ``[n, tokens, heads, d]`` of the newest tokens, from ``[n, heads, tokens, d]`` (fewer for keys).

        Results go into tensors of the memory's precision, which also keeps autocast from casting
        again.
        """
        memory, (n, heads, tokens, size), kv = self.layers[layer], query.shape, key.shape[1]
        pairs = torch.cat([key, value], -1)
        memory.own[self.counting[:n].unsqueeze(1), :, self.at] = pairs.transpose(1, 2)
        place, grid = self.meetings[kv]
        (keys, values), (prompt_keys, prompt_values) = (
            memory.halves("own", n, self.reach),
            memory.halves("prompts", self.p, self.width),
        )
        lines, own = heads // kv * tokens, slice(self.width, None)
        scale = size**-0.5 if scores.scaling is None else scores.scaling
        query = query.reshape(-1, lines, size)
        products = value.new_empty((n * kv, lines, self.width + self.reach))
        met = query.index_select(0, grid).view(len(prompt_keys), -1, size)
        met = _product(met, prompt_keys.transpose(1, 2), scale)
        torch.index_select(
            met.view(-1, lines, self.width), 0, place, out=products[..., : self.width]
        )
        if self.exact:  # a CPU multiplies matrix by matrix where the result has gaps
            products[..., own].copy_(_product(query, keys.transpose(1, 2), scale))
        else:
            products[..., own].baddbmm_(query, keys.transpose(1, 2), beta=0, alpha=scale)
        probs = self._weights(products.view(n, kv, -1, tokens, products.shape[-1]), scores).view_as(
            products
        )
        of_prompts = (
            probs[..., : self.width].index_select(0, grid).view(len(prompt_keys), -1, self.width)
        )
        met = _product(of_prompts, prompt_values).view(-1, lines, values.shape[2])
        output = met.index_select(0, place).baddbmm_(probs[..., own], values)
        output = output.view(n, heads, tokens, -1)
        return output.transpose(1, 2)

    def _weights(self, products: Tensor, scores: Scores) -> Tensor:
        """Softmax of ``[n, kv, r, tokens, keys]``; sinks belong to the heads one by one."""
        unseen = self._hidden(scores.window)
        if scores.plain:
            products = products if unseen is None else products.masked_fill_(unseen, -torch.inf)
            return torch.softmax(products, -1, out=torch.empty_like(products))
        unseen = None if unseen is None else unseen[:, 0]
        return (
            scores.weights(products.flatten(1, 2), unseen)
            .to(products.dtype)
            .unflatten(1, products.shape[1:3])
        )

    def _hidden(self, window: int | None) -> Tensor | None:
        """``[n, 1, 1, tokens, width + reach]`` bool: what each row may not see; None if that is nothing."""
        if window not in self.unseen:
            far = window is not None and window < self.width + self.reach
            mask = self._unseen(window if far else None) if far or self.ragged else None
            self.unseen[window] = None if mask is None else mask[:, None, None]
        return self.unseen[window]

    def _unseen(self, window: int | None) -> Tensor:
        in_prompt, in_own = self.counting[: self.width], self.counting[: self.reach]
        starts, at = self.starts[:, None, None], self.at.unsqueeze(-1)
        unseen = torch.cat([(in_prompt >= starts).expand(-1, self.tokens, -1), in_own > at], -1)
        if window is None:
            return unseen
        distance = torch.cat([starts + at - in_prompt, at - in_own], -1)
        return unseen | (distance >= window)


def _product(one: Tensor, other: Tensor, scale: float = 1.0) -> Tensor:
    """Scaled batched matrix product in the precision of its factors, also under autocast."""
    return one.new_empty((len(one), one.shape[1], other.shape[2])).baddbmm_(
        one, other, beta=0, alpha=scale
    )
