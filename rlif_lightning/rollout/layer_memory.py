"""Keys and values of one layer during decoding."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class LayerMemory:
    """Keys and values of one layer, concatenated along the last dimension.

    Attributes:
        prompts: ``[prompts, heads, L, k + v]``.
        own: ``[rows, heads, room, k + v]``.
        key_size: k.
    """

    prompts: Tensor
    own: Tensor
    key_size: int

    def halves(self, name: str, places: int, tokens: int) -> tuple[Tensor, Tensor]:
        """Return keys ``[places * heads, tokens, k]`` and values of the first places, as views."""
        stored = getattr(self, name)
        used = stored.flatten(0, 1)[: places * stored.shape[1], :tokens]
        return used[..., : self.key_size], used[..., self.key_size :]
