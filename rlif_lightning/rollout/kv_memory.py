"""Keys and values for decoding: each prompt is stored once, each completion's own tokens apart.

A completion attends to two stretches of keys: its prompt's and its own. The queries of a prompt's
completions are multiplied with its keys in one matrix product, so nothing is copied per completion.
One softmax runs over both stretches.

Example: prompts p (three tokens) and q (two), two completions each. Completion b has ended, and d
has moved to b's place. Each of the three others computes its second token:

    prompts, place 0   p0 p1 p2        own, place 0   a0 a1        owner of place 0   0
             place 1   q0 q1 --             place 1   d0 d1        owner of place 1   1
                       width = 3            place 2   c0 c1        owner of place 2   1
                                            reach = 2
    queries by prompt  [a .] x p^T and [d c] x q^T      grid  [0 0 | 1 2]   "." repeats a query
    back by place      a d c                            place [0 2 3]
    softmax of place 1 over [q0 q1 --, d0 d1]           -- is masked: q has two tokens

What a pass reads of the places is on the device at fixed addresses. ``prepare`` plans a pass on the
host and uploads only after completions have come or gone. Between two calls of ``prepare`` nothing
is uploaded, and the host waits for nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlif_lightning.model.attention import Block
from rlif_lightning.model.packing import upload
from rlif_lightning.model.scores import Scores
from rlif_lightning.rollout.layer_memory import LayerMemory
from rlif_lightning.rollout.places import Arrangement, Places, close_gaps, meeting_points, rounded

FIRST_ROOM = 64  # own tokens per row that are allocated at first; doubled when they are full
# On a GPU numbers of rows, prompt tokens and own tokens are rounded up to multiples of these.
ROW_UNIT, PROMPT_UNIT, OWN_UNIT = 8, 16, 64


class SharedPrefixMemory:
    """Memory and attention of decoding: an ``AttentionPlan`` for some new tokens of each row.

    A row is a completion that is being decoded.

    Args:
        max_rows: most rows at a time. It also bounds the prompts: each stored prompt has a row, or
            the next row to be admitted.
        first_prompts: prompts that memory is allocated for at first; doubled when more are needed.
        max_prompt, max_own: tokens of the longest prompt, and most own tokens of a row.
        device: of the model.

    Attributes:
        exact: whether sizes are those in use and no place is empty (on a CPU, where wasted work
            costs more than a new shape).
        room, prompt_room: own tokens per row, and prompts, that memory is allocated for.
        n, p: rows and prompts that the prepared pass computes, empty places included.
        width, reach: prompt tokens and own tokens that it attends to, padding included.
        most: most rows of one prompt, rounded up.
    """

    def __init__(
        self, max_rows: int, first_prompts: int, max_prompt: int, max_own: int, device: torch.device
    ):
        self.device, self.exact = device, device.type == "cpu"
        self.max_rows = self._size(max_rows, ROW_UNIT)
        self.max_prompt = self._size(max_prompt, PROMPT_UNIT)
        self.max_own = self._size(max_own, OWN_UNIT)
        self.room = min(FIRST_ROOM, self.max_own)
        self.prompt_room = min(self._size(first_prompts, 1), self.max_rows)
        self.layers: dict[int, LayerMemory] = {}
        self.rows = Places(self.max_rows)  # the owner of a row's place is its prompt's place
        # The owner is the prompt's number in the rollout. One more has no tokens (``restart``).
        self.prompts = Places(self.max_rows + 1)
        # 0, 1, 2, ...: made once, since an arange in every step would be one more kernel.
        self.counting = torch.arange(
            max(self.max_rows, self.max_prompt, self.max_own), device=device
        )
        self.buffers: dict[tuple[int, ...], Tensor] = {}
        self.changed = True

    def _size(self, number: int, unit: int) -> int:
        return number if self.exact else rounded(number, unit)

    def num_places(self, rows: int) -> int:
        """Return how many rows a pass computes when the first ``rows`` places are in use."""
        return min(self._size(rows, ROW_UNIT), self.max_rows)

    def add_prompts(self, numbers: Sequence[int], lengths: Sequence[int]) -> None:
        """Reserve places for prompts; :meth:`keep_prompts` stores their keys in the same order."""
        places = self.prompts.take(numbers, lengths)
        if self.prompts.used > self.prompt_room:
            larger = max(2 * self.prompt_room, self.prompts.used)
            most = max(self.max_rows, self.prompts.used)
            self._enlarge("prompts", places=min(larger, most))
        self.new, self.seen, self.changed = upload(torch.tensor(places), self.device), {}, True

    def add_rows(self, places: Sequence[int], numbers: Sequence[int]) -> None:
        """Put rows of the prompts with these numbers in empty places."""
        where, self.changed = self.prompts.where(), True
        self.rows.put(places, [where[number] for number in numbers])

    def restart(self, places: Sequence[int], number: int) -> None:
        """Empty rows, and give them a prompt without tokens, which all such rows share.

        Args:
            places: of the rows.
            number: of that prompt, which no other has.
        """
        if number not in self.prompts.where():
            self.add_prompts([number], [0])
        self.rows.owner[list(places)] = self.prompts.where()[number]
        self.rows.length[list(places)] = 0
        self.changed = True

    def keep_prompts(self, layer: int, block: Block, keys: Tensor, values: Tensor) -> None:
        """Store keys and values ``[K, L, heads, d]`` of the K prompts of a prefill's next block."""
        if layer not in self.layers:
            self.layers[layer] = self._allocate(keys, values)
        start = self.seen.get(layer, 0)  # prompts that earlier blocks have stored in this layer
        self.seen[layer] = start + len(keys)
        pairs = torch.cat([keys, values], -1).transpose(1, 2)  # [K, heads, L, k + v]
        self.layers[layer].prompts[self.new[start : start + len(keys)], :, : keys.shape[1]] = pairs

    def _allocate(self, keys: Tensor, values: Tensor) -> LayerMemory:
        """Allocate a layer in the precision that its keys and values have (``model/scores.py``)."""
        heads, size = keys.shape[2], keys.shape[3] + values.shape[3]
        # Zeros and not ``new_empty``: what stands beyond a prompt's end is multiplied by a
        # probability of 0, and 0 * nan is nan.
        prompts = values.new_zeros((self.prompt_room, heads, self.max_prompt, size))
        own = values.new_zeros((self.max_rows, heads, self.room, size))
        return LayerMemory(prompts, own, keys.shape[3])

    def _enlarge(self, name: str, places: int | None = None, room: int | None = None) -> None:
        for memory in self.layers.values():
            old = getattr(memory, name)
            old_places, heads, old_room, size = old.shape
            new = old.new_zeros((places or old_places, heads, room or old_room, size))
            new[:old_places, :, :old_room] = old
            setattr(memory, name, new)
        self.room, self.prompt_room = room or self.room, places or self.prompt_room

    def arrange(self, arrangement: Arrangement, kept: int | None) -> None:
        """Rearrange the rows, and free the place of each prompt that has no row left.

        Args:
            arrangement: of the rows.
            kept: number of the prompt whose rows are admitted next; it stays even without a row.
        """
        longest = self.rows.longest()
        self.rows.arrange(arrangement)
        for memory in self.layers.values():
            arrangement.move(memory.own[:, :, :longest])
        stays = torch.zeros(self.prompts.used, dtype=torch.bool)
        stays[self.rows.owner[: self.rows.used][self.rows.live()]] = True
        if kept is not None:
            stays |= self.prompts.owner[: self.prompts.used] == kept
        moved = close_gaps(stays, self.exact, self.device)
        self.prompts.arrange(moved)
        for memory in self.layers.values():
            moved.move(memory.prompts)
        self.rows.rename(moved)
        self.changed = True

    def prepare(self, tokens: int = 1) -> None:
        """Plan the next pass on the host: memory, sizes, and changes to upload. Call once per pass.

        Args:
            tokens: new tokens of each row.
        """
        reach = self.rows.longest() + tokens
        self.make_room(reach)
        self.tokens, self.reach = tokens, min(self._size(reach, OWN_UNIT), self.room)
        if self.changed:
            self._renew()
        # A single new token sees every key where all prompts and all rows have one length. On a GPU
        # the mask is always applied: the operations of a step must stay the same.
        lengths, prompts = self.rows.length[: self.n], self.prompt_lengths
        self.needs_mask = not self.exact or tokens > 1
        if not self.needs_mask:
            self.needs_mask = bool((prompts != self.width).any() or (lengths + 1 != reach).any())
        self.rows.lengthen(tokens)

    def make_room(self, reach: int) -> None:
        """Allocate memory for so many own tokens of each row."""
        if reach > self.room:
            larger = max(2 * self.room, self._size(reach, OWN_UNIT))
            self._enlarge("own", room=min(larger, self.max_own))

    @property
    def bucket(self) -> tuple[int, ...]:
        """Return the sizes of the prepared pass; they decide its operations and addresses."""
        sizes = (self.n, self.p, self.most, self.width, self.reach)
        return (*sizes, self.tokens, self.room, self.prompt_room)

    def _renew(self) -> None:
        """Upload lengths and meeting points after rows or prompts have come or gone."""
        self.n = self.num_places(self.rows.used)
        self.p = min(self._size(self.prompts.used, 1), self.prompt_room)
        longest = max(self.prompts.longest(), 1)
        self.width = min(self._size(longest, PROMPT_UNIT), self.max_prompt)
        owner = self.rows.owner[: self.n]  # [n]
        live = owner >= 0
        self.prompt_lengths = torch.where(live, self.prompts.length[owner], 0)
        heads = sorted({memory.own.shape[1] for memory in self.layers.values()})
        counts = owner[live].bincount(minlength=self.p)  # [p], each prompt's rows
        most = int(counts.max())
        # A power of two on a GPU: few values, so that few different shapes occur.
        self.most = most if self.exact else rounded(most, 1 << (most - 1).bit_length())
        # Layers may differ in their number of key heads.
        pairs = [meeting_points(owner, counts, self.most, number) for number in heads]
        lengths = self.rows.length[: self.n]
        parts = [self.prompt_lengths, lengths, live.long(), *(x for pair in pairs for x in pair)]
        # One upload, into the same buffer whenever the sizes are the same: a captured step reads
        # fixed addresses.
        state = upload(torch.cat(parts), self.device, self.buffers.get((self.n, self.p, self.most)))
        self.buffers[self.n, self.p, self.most] = state
        split = state.split([len(part) for part in parts])
        self.starts, self.lengths, self.live = split[:3]
        self.meetings = {number: split[3 + 2 * i : 5 + 2 * i] for i, number in enumerate(heads)}
        self.changed = False

    def start_step(self) -> Tensor:
        """Return positions ``[n, tokens]`` of the next tokens, on the device.

        Everything from here to :meth:`end_step` can be captured.
        """
        self.at = self.lengths.unsqueeze(1)  # [n, tokens], positions among a row's own tokens
        if self.tokens > 1:
            self.at = self.at + self.counting[: self.tokens]
        self.unseen: dict[int | None, Tensor | None] = {}  # by window: layers share their masks
        return self.at + self.starts.unsqueeze(1)

    def end_step(self) -> None:
        """Add the new tokens to every row's length on the device."""
        self.lengths.add_(self.live, alpha=self.tokens)

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scores: Scores
    ) -> Tensor:
        """Store keys and values of the newest tokens, and compute their attention.

        Results are written into tensors of the memory's precision, so that autocast casts nothing.

        Args:
            layer: number of the layer.
            query, key, value: ``[n, heads, tokens, d]``; keys and values may have fewer heads.
            scores: of the layer.

        Returns:
            ``[n, tokens, heads, d]``.
        """
        memory, (n, heads, tokens, size), kv = self.layers[layer], query.shape, key.shape[1]
        pairs = torch.cat([key, value], -1)  # [n, kv, tokens, k + v]
        memory.own[self.counting[:n].unsqueeze(1), :, self.at] = pairs.transpose(1, 2)
        place, grid = self.meetings[kv]  # [n * kv], [p * kv * most]
        keys, values = memory.halves("own", n, self.reach)  # [n * kv, reach, k or v]
        prompt_keys, prompt_values = memory.halves("prompts", self.p, self.width)
        # Lines are the queries that share one key head: r = heads / kv query heads, all new tokens.
        lines, own = heads // kv * tokens, slice(self.width, None)
        scale = size**-0.5 if scores.scaling is None else scores.scaling
        query = query.reshape(-1, lines, size)  # [n * kv, lines, k]
        products = value.new_empty((n * kv, lines, self.width + self.reach))
        # The queries of a prompt's rows, one below the other: one product with the prompt's keys.
        met = query.index_select(0, grid).view(len(prompt_keys), -1, size)
        met = _product(met, prompt_keys.transpose(1, 2), scale)  # [p * kv, most * lines, width]
        met = met.view(-1, lines, self.width)
        torch.index_select(met, 0, place, out=products[..., : self.width])
        if self.exact:  # on a CPU a strided result would be computed one matrix at a time
            products[..., own].copy_(_product(query, keys.transpose(1, 2), scale))
        else:
            products[..., own].baddbmm_(query, keys.transpose(1, 2), beta=0, alpha=scale)
        by_head = products.view(n, kv, -1, tokens, products.shape[-1])  # [n, kv, r, tokens, keys]
        probs = self._softmax(by_head, scores).view_as(products)
        # Back the same way: one product with each prompt's values, and each row's own added to it.
        of_prompts = probs[..., : self.width].index_select(0, grid)
        of_prompts = of_prompts.view(len(prompt_keys), -1, self.width)
        met = _product(of_prompts, prompt_values).view(-1, lines, values.shape[2])
        output = met.index_select(0, place).baddbmm_(probs[..., own], values)  # [n * kv, lines, v]
        return output.view(n, heads, tokens, -1).transpose(1, 2)  # [n, tokens, heads, v]

    def _softmax(self, products: Tensor, scores: Scores) -> Tensor:
        """Return the softmax of ``[n, kv, r, tokens, keys]`` over the keys that are seen."""
        unseen = self._unseen_keys(scores.window)
        if scores.plain:
            products = products if unseen is None else products.masked_fill_(unseen, -torch.inf)
            return torch.softmax(products, -1, out=torch.empty_like(products))
        unseen = None if unseen is None else unseen[:, 0]
        # Each query head has a sink of its own: key heads and their query heads in one dimension.
        weights = scores.weights(products.flatten(1, 2), unseen).to(products.dtype)
        return weights.unflatten(1, products.shape[1:3])

    def _unseen_keys(self, window: int | None) -> Tensor | None:
        """Return ``[n, 1, 1, tokens, width + reach]`` bool, the keys to mask; None for no mask."""
        if window not in self.unseen:
            cuts = window is not None and window < self.width + self.reach
            mask = self._mask(window if cuts else None) if cuts or self.needs_mask else None
            self.unseen[window] = None if mask is None else mask[:, None, None]
        return self.unseen[window]

    def _mask(self, window: int | None) -> Tensor:
        """Return what ``masks.seen_by_completions`` negates, ``[n, tokens, width + reach]``.

        That function compares positions of all keys at once, which takes more kernels in each step.
        """
        in_prompt, in_own = self.counting[: self.width], self.counting[: self.reach]
        starts, at = self.starts[:, None, None], self.at.unsqueeze(-1)  # [n, 1, 1], [n, tokens, 1]
        unseen = torch.cat([(in_prompt >= starts).expand(-1, self.tokens, -1), in_own > at], -1)
        if window is None:
            return unseen
        distance = torch.cat([starts + at - in_prompt, at - in_own], -1)
        return unseen | (distance >= window)


def _product(one: Tensor, other: Tensor, scale: float = 1.0) -> Tensor:
    """Multiply batches of matrices in the precision of the factors, also under autocast."""
    return one.new_empty((len(one), one.shape[1], other.shape[2])).baddbmm_(
        one, other, beta=0, alpha=scale
    )
