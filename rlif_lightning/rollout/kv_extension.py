"""Several new tokens for some rows: the attention of observations that continue kept rows.

Nothing of a row is computed again. Its new tokens attend to its prompt, to its own tokens in the
memory, and to those before them. Two rows of different lengths, with two and three new tokens:

    prompts, width 3    own, reach 5           new tokens, padded to 3
    p0 p1 p2            a0 a1 [a2 a3] .        a2 a3 --      positions 5 6 6
    q0 q1 --            c0 c1 [c2 c3 c4]       c2 c3 c4      positions 4 5 6

``[..]`` is stored by this pass, layer by layer, before it is read. Padding is stored nowhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlif_lightning.model.attention import attention
from rlif_lightning.model.masks import NOWHERE, as_bias, seen_keys
from rlif_lightning.model.packing import upload
from rlif_lightning.model.scores import Scores
from rlif_lightning.rollout.kv_memory import SharedPrefixMemory


class RowExtension:
    """An ``AttentionPlan`` for a different number of new tokens of some rows.

    Args:
        memory: of all rows; it gets longer where needed.
        places: of the k rows, on the host.
        counts: their numbers of new tokens, at least 1.

    Attributes:
        position_ids: ``[k, tokens]`` int64; padding repeats the last position.
    """

    def __init__(self, memory: SharedPrefixMemory, places: Sequence[int], counts: Sequence[int]):
        self.memory, self.places, self.counts = memory, torch.tensor(places), torch.tensor(counts)
        rows, number = self.places, self.counts
        lengths, owners = memory.rows.length[rows], memory.rows.owner[rows]
        starts = memory.prompts.length[owners]
        self.reach = int((lengths + number).max())
        self.width = int(starts.max())
        memory.make_room(self.reach)
        steps = torch.arange(int(number.max()))
        own = lengths.unsqueeze(1) + torch.minimum(steps, number.unsqueeze(1) - 1)  # [k, tokens]
        slots, columns = (steps < number.unsqueeze(1)).nonzero().unbind(1)  # [M] each
        parts = (rows, owners, starts, own, slots, columns, lengths[slots] + columns)
        self.rows, self.owners, self.starts, self.own, *stored = (
            upload(part, memory.device) for part in parts
        )
        self.slots, self.columns, self.at = stored
        self.position_ids = self.own + self.starts.unsqueeze(1)
        self.masks: dict[tuple[int | None, torch.dtype], Tensor] = {}

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scores: Scores
    ) -> Tensor:
        """Store the new keys and values of a layer, and compute the new tokens' attention.

        Args:
            layer: number of the layer.
            query, key, value: ``[k, heads, tokens, d]``; keys and values may have fewer heads.
            scores: of the layer.

        Returns:
            ``[k, tokens, heads, d]``.
        """
        memory = self.memory.layers[layer]
        pairs = torch.cat([key, value], -1)[self.slots, :, self.columns]  # [M, kv, k + v]
        memory.own[self.rows[self.slots], :, self.at] = pairs
        kept = memory.prompts[:, :, : self.width].index_select(0, self.owners)
        own = memory.own[:, :, : self.reach].index_select(0, self.rows)
        stored = torch.cat([kept, own], 2).transpose(1, 2)  # [k, width + reach, kv, k + v]
        keys, values = stored[..., : memory.key_size], stored[..., memory.key_size :]
        mask = self._mask(scores.window, query.dtype if scores.plain else torch.bool)
        return attention(query.transpose(1, 2), keys, values, mask, scores)

    def _mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """Return which keys are seen, ``[k, 1, tokens, width + reach]``, once for all layers."""
        if (window, dtype) not in self.masks:
            device, starts = self.starts.device, self.starts.unsqueeze(1)  # [k, 1]
            in_prompt = torch.arange(self.width, device=device).expand(len(starts), -1)
            of_prompt = in_prompt.where(in_prompt < starts, NOWHERE)  # [k, width]
            own = starts + torch.arange(self.reach, device=device)  # [k, reach]
            seen = seen_keys(self.position_ids, torch.cat([of_prompt, own], 1), window)
            seen = seen.unsqueeze(1)  # for every head
            self.masks[window, dtype] = seen if dtype == torch.bool else as_bias(seen, dtype)
        return self.masks[window, dtype]

    def finish(self) -> None:
        """Add the new tokens to the rows' lengths on the host; the next pass uploads these."""
        self.memory.rows.length[self.places] += self.counts
        self.memory.changed = True
