"""Keys and values of rows that share their prompts: each prompt's once, each row's own in pre-allocated room.

A row attends to two stretches of keys, its prompt's and its own. The queries of a group meet their prompt's keys in one
product, nothing is copied per row; one softmax runs over both. Rows and groups that leave are replaced by the last
ones, so that what is in use is always the first ``num_rows`` rows and ``num_groups`` prompts of the memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlif_lightning.model.attention import Block
from rlif_lightning.model.scores import Scores

FIRST_ROOM = 64  # tokens of its own that a row has room for at first; doubled when they are full


@dataclass
class LayerMemory:
    """Keys and values of one layer: prompts ``[groups, heads, L, d]``, own ``[rows, heads, room, d]``."""

    prompt_keys: Tensor
    prompt_values: Tensor
    own_keys: Tensor
    own_values: Tensor


class SharedPrefixMemory:
    """The memory and the attention of decoding; an ``AttentionPlan`` for one token per row.

    Args:
        max_groups, max_rows: prompts and rows in use at a time.
        max_prompt, max_own: tokens of the longest prompt, and of a row's own.
        device: of the model.
    """

    def __init__(self, max_groups: int, max_rows: int, max_prompt: int, max_own: int, device: torch.device):
        self.max_groups, self.max_rows, self.max_prompt, self.max_own = max_groups, max_rows, max_prompt, max_own
        self.device = device
        self.layers: dict[int, LayerMemory] = {}
        self.room = min(FIRST_ROOM, max_own)
        self.num_groups = self.num_rows = 0
        self.prompt_lengths = torch.zeros(max_groups, dtype=torch.int64)  # on the CPU, as all bookkeeping
        self.group = torch.zeros(max_rows, dtype=torch.int64)
        self.lengths = torch.zeros(max_rows, dtype=torch.int64)

    def add(self, prompt_lengths: Sequence[int], group_size: int) -> None:
        """Make prompts and their rows known; their keys come by :meth:`keep_prompts`, in the same order."""
        groups = torch.arange(self.num_groups, self.num_groups + len(prompt_lengths))
        num_rows = len(groups) * group_size
        self.prompt_lengths[groups] = torch.tensor(prompt_lengths)
        self.group[self.num_rows : self.num_rows + num_rows] = groups.repeat_interleave(group_size)
        self.lengths[self.num_rows : self.num_rows + num_rows] = 0
        self.first_new, self.num_groups, self.num_rows = self.num_groups, int(groups[-1]) + 1, self.num_rows + num_rows
        self.seen = {}

    def keep_prompts(self, layer: int, block: Block, keys: Tensor, values: Tensor) -> None:
        """Store the prompts' ``[K, L, heads, d]`` of one block of a prefill whose blocks come in order."""
        if layer not in self.layers:
            self.layers[layer] = self._allocate(keys, values)
        start = self.first_new + self.seen.get(layer, 0)
        self.seen[layer] = self.seen.get(layer, 0) + len(keys)
        memory, groups = self.layers[layer], slice(start, start + len(keys))
        memory.prompt_keys[groups, :, : keys.shape[1]] = keys.transpose(1, 2)
        memory.prompt_values[groups, :, : keys.shape[1]] = values.transpose(1, 2)

    def _allocate(self, keys: Tensor, values: Tensor) -> LayerMemory:
        """In the values' precision: under autocast, rotary angles make keys float32, to be cast in each product."""
        rooms = [(self.max_groups, self.max_prompt), (self.max_rows, self.room)]
        shapes = [(rows, each.shape[2], room, each.shape[3]) for rows, room in rooms for each in (keys, values)]
        # Zeros, since what lies beyond a prompt's end is multiplied by a probability of 0: it must be finite.
        return LayerMemory(*(values.new_zeros(shape) for shape in shapes))

    def start_step(self) -> Tensor:
        """Prepare one decoding step; positions ``[n, 1]`` of the rows' next tokens, on the device."""
        groups, n = self.group[: self.num_rows], self.num_rows
        if n and int(self.lengths[:n].max()) >= self.room:
            self._grow()
        counts = groups.bincount(minlength=self.num_groups)
        order = groups.argsort(stable=True)
        within = torch.arange(n) - (counts.cumsum(0) - counts)[groups[order]]
        place = torch.empty_like(order)
        place[order] = groups[order] * int(counts.max()) + within
        grid = torch.zeros(self.num_groups * int(counts.max()), dtype=torch.int64)
        grid[place] = torch.arange(n)
        self.most, self.even = int(counts.max()), torch.equal(grid, torch.arange(n))
        self.grid, self.place = grid.to(self.device), place.to(self.device)
        self.slots = (torch.arange(n).to(self.device), self.lengths[:n].to(self.device))
        self.width = int(self.prompt_lengths[: self.num_groups].max())
        self.reach = int(self.lengths[:n].max()) + 1
        self.hidden: dict[int | None, Tensor | None] = {}
        return (self.prompt_lengths[groups] + self.lengths[:n]).unsqueeze(1).to(self.device)

    def end_step(self) -> None:
        """Count the token that every row has now."""
        self.lengths[: self.num_rows] += 1

    def _grow(self) -> None:
        room = min(2 * self.room, self.max_own)
        for memory in self.layers.values():
            for name in ("own_keys", "own_values"):
                old = getattr(memory, name)
                new = old.new_zeros((*old.shape[:2], room, old.shape[3]))
                new[: self.num_rows, :, : self.room] = old[: self.num_rows]
                setattr(memory, name, new)
        self.room = room

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
        """Attention ``[n, 1, heads, d]`` of the newest tokens, from ``[n, heads, 1, d]`` (fewer heads for keys)."""
        memory, (n, heads, _, size) = self.layers[layer], query.shape
        rows, lengths = self.slots
        memory.own_keys[rows, :, lengths] = key[:, :, 0].to(memory.own_keys.dtype)
        memory.own_values[rows, :, lengths] = value[:, :, 0]
        own_keys, own_values = (x[:n, :, : self.reach] for x in (memory.own_keys, memory.own_values))
        groups = slice(0, self.num_groups)
        prompt_keys = memory.prompt_keys[groups, :, : self.width]
        prompt_values = memory.prompt_values[groups, :, : self.width]
        query = query.reshape(n, key.shape[1], heads // key.shape[1], size)
        query = query * (size**-0.5 if scores.scaling is None else scores.scaling)
        to_prompt = self._by_row(self._by_group(query) @ prompt_keys.transpose(-1, -2), query.shape[2])
        products = torch.cat([to_prompt, query @ own_keys.transpose(-1, -2)], -1)
        probs = self._weights(products, scores).to(value.dtype)
        output = probs[..., self.width :] @ own_values
        output = output + self._by_row(self._by_group(probs[..., : self.width]) @ prompt_values, query.shape[2])
        return output.reshape(n, 1, heads, value.shape[3])

    def _weights(self, products: Tensor, scores: Scores) -> Tensor:
        """Softmax of ``[n, kv, r, keys]``; sinks belong to the heads one by one."""
        unseen = self._hidden(scores.window)
        if scores.sinks is None:
            return scores.weights(products, unseen)
        unseen = None if unseen is None else unseen[:, 0]
        return scores.weights(products.flatten(1, 2), unseen).unflatten(1, products.shape[1:3])

    def _by_group(self, values: Tensor) -> Tensor:
        """``[n, kv, r, x]`` of rows to ``[groups, kv, most * r, x]``; places without a row repeat row 0."""
        lines = values if self.even else values.index_select(0, self.grid)
        return lines.unflatten(0, (self.num_groups, self.most)).transpose(1, 2).flatten(2, 3)

    def _by_row(self, values: Tensor, repeats: int) -> Tensor:
        """``[groups, kv, most * r, x]`` back to ``[n, kv, r, x]``."""
        lines = values.unflatten(2, (self.most, repeats)).transpose(1, 2).flatten(0, 1)
        return lines if self.even else lines.index_select(0, self.place)

    def _hidden(self, window: int | None) -> Tensor | None:
        """``[n, 1, 1, width + reach]`` bool: what each row may not see; None if that is nothing."""
        if window not in self.hidden:
            prompts, own = self.prompt_lengths[self.group[: self.num_rows]], self.lengths[: self.num_rows]
            far = window is not None and window < self.width + self.reach
            ragged = bool((prompts != self.width).any() or (own + 1 != self.reach).any())
            mask = self._unseen(prompts.unsqueeze(1), own.unsqueeze(1), window) if far or ragged else None
            self.hidden[window] = None if mask is None else mask[:, None, None].to(self.device)
        return self.hidden[window]

    def _unseen(self, prompts: Tensor, own: Tensor, window: int | None) -> Tensor:
        in_prompt, in_own = torch.arange(self.width), torch.arange(self.reach)
        unseen = torch.cat([in_prompt >= prompts, in_own > own], 1)
        if window is None:
            return unseen
        distance = torch.cat([prompts + own - in_prompt, own - in_own], 1)
        return unseen | (distance >= window)

    def leave(self, holes: Tensor, movers: Tensor, num_left: int) -> None:
        """Rows ``movers`` (the last ones) take the places ``holes`` of rows that left; ``num_left`` rows stay."""
        for state in (self.group, self.lengths):
            state[holes] = state[movers]
        room = int(self.lengths[: self.num_rows].max())
        for memory in self.layers.values():
            for values in (memory.own_keys, memory.own_values):
                values[holes.to(self.device), :, :room] = values[movers.to(self.device), :, :room]
        self.num_rows = num_left
        self._leave_groups()

    def _leave_groups(self) -> None:
        counts = self.group[: self.num_rows].bincount(minlength=self.num_groups)
        holes, movers, left = moves(counts > 0)
        if left == self.num_groups:
            return
        self.prompt_lengths[holes] = self.prompt_lengths[movers]
        for memory in self.layers.values():
            for values in (memory.prompt_keys, memory.prompt_values):
                values[holes.to(self.device)] = values[movers.to(self.device)]
        renamed = torch.arange(self.num_groups)
        renamed[movers] = holes
        self.group[: self.num_rows] = renamed[self.group[: self.num_rows]]
        self.num_groups = left


def moves(stays: Tensor) -> tuple[Tensor, Tensor, int]:
    """How the places of those that leave are filled by the last that stay.

    Args:
        stays: ``[n]`` bool, on the CPU.

    Returns:
        holes, movers (int64, of the same length) and the number that stay, which then are the first ones.
    """
    left = int(stays.sum())
    return (~stays[:left]).nonzero().squeeze(1), stays[left:].nonzero().squeeze(1) + left, left
