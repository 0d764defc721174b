"""Attention of packed trees in pieces of PyTorch's fused kernel, so that no token is padded and no N x N mask exists.

A prompt attends to itself, causally; the completions of a tree attend to their prompt and each to itself. Trees of
similar shape share one call. ``plan_hook.py`` brings this to the attention layers of Hugging Face models; the engine's
decoding plugs in the same way, see ``rollout/kv_memory.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from rlif_lightning.model.packing import Tree
from rlif_lightning.model.scores import Scores

WASTE = 1.25  # trees are joined in one call while padding makes at most this many times their own query-key pairs,
SMALL = 2**15  # or while there are so few pairs that starting another call costs more,
LARGEST = 2**24  # and never beyond this many: their mask is stored
KeepPrompts = Callable[[int, "Block", Tensor, Tensor], None]


class Block:
    """Some trees of a line, attended to in two calls: K prompts of up to L tokens, B completions of up to T."""

    def __init__(self, trees: Sequence[Tree], device: torch.device):
        self.trees, self.device = trees, device
        starts, lengths, owners = [], [], []
        for number, tree in enumerate(trees):
            for start, length in zip(tree.starts(), tree.lengths, strict=True):
                if length > 0:
                    starts.append(start)
                    lengths.append(length)
                    owners.append(number)
        self.prompt_lengths = torch.tensor([tree.prompt_length for tree in trees])
        self.lengths = torch.tensor(lengths, dtype=torch.int64)
        self.num_rows = len(lengths)
        self.prompt_grid, self.prompt_valid = _grid(torch.tensor([tree.start for tree in trees]), self.prompt_lengths)
        self.grid, self.valid = _grid(torch.tensor(starts, dtype=torch.int64), self.lengths)
        self.owner = torch.tensor(owners, dtype=torch.int64, device=device)
        self.prompt_index, self.index = self.prompt_grid.flatten().to(device), self.grid.flatten().to(device)
        self.masks: dict[int | None, tuple[Any, Any]] = {}

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> tuple[list[Tensor], Tensor, Tensor]:
        """Attention of the block's tokens.

        Args:
            query, key, value: ``[N, heads, d]`` of the whole line.

        Returns:
            Output pieces ``[K * L, heads, d]`` and, with completions, ``[B * T, heads, d]``; the prompts' keys and
            values ``[K, L, heads, d]``.
        """
        prompt_mask, mask = self._masks(scores.window)
        q, k, v = (self._prompts(x) for x in (query, key, value))
        pieces = [attention(q, k, v, prompt_mask, scores).flatten(0, 1)]
        if self.num_rows:
            own_q, own_k, own_v = (
                x.index_select(0, self.index).unflatten(0, self.grid.shape) for x in (query, key, value)
            )
            keys = torch.cat([self._of_rows(k), own_k], 1)
            values = torch.cat([self._of_rows(v), own_v], 1)
            pieces.append(attention(own_q, keys, values, mask, scores).flatten(0, 1))
        return pieces, k, v

    def _prompts(self, values: Tensor) -> Tensor:
        if len(self.trees) == 1:
            tree = self.trees[0]
            return values[tree.start : tree.start + tree.prompt_length].unsqueeze(0)
        return values.index_select(0, self.prompt_index).unflatten(0, self.prompt_grid.shape)

    def _of_rows(self, prompts: Tensor) -> Tensor:
        if len(self.trees) == 1:
            return prompts.expand(self.num_rows, -1, -1, -1)
        return prompts.index_select(0, self.owner)

    def _masks(self, window: int | None) -> tuple[Any, Any]:
        """What the prompts and what the completions see: ``[L, L]``, ``[T, L + T]`` or ``[B, 1, T, L + T]`` bool."""
        if window not in self.masks:
            self.masks[window] = self._prompt_mask(window), self._completion_mask(window)
        return self.masks[window]

    def _prompt_mask(self, window: int | None) -> Any:
        width = self.prompt_grid.shape[1]
        if window is None or window >= width:
            return None
        return _causal(torch.arange(width), torch.arange(width), window).to(self.device)

    def _completion_mask(self, window: int | None) -> Any:
        if not self.num_rows:
            return None
        width, steps = self.prompt_grid.shape[1], torch.arange(self.grid.shape[1])
        even = bool((self.prompt_lengths == width).all())
        reach = width + len(steps)
        if even and (window is None or window >= reach):
            if self.device.type == "cuda":  # fused there without a mask
                return causal_lower_right(len(steps), reach)
            window = None
        lengths = self.prompt_lengths[:1] if even else self.prompt_lengths[self.owner.cpu()]
        keys = torch.cat([torch.arange(width).expand(len(lengths), -1), lengths.unsqueeze(1) + steps], 1)
        real = (torch.arange(reach) < lengths.unsqueeze(1)) | (torch.arange(reach) >= width)
        seen = _causal(lengths.unsqueeze(1) + steps, keys, window) & real.unsqueeze(1)
        return (seen[0] if even else seen.unsqueeze(1)).to(self.device)


def _grid(starts: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Positions ``[rows, longest]`` of each row's tokens, the last one repeated, and which are no repetition."""
    steps = torch.arange(int(lengths.max()) if len(lengths) else 0)
    last = (lengths - 1).unsqueeze(1)
    return starts.unsqueeze(1) + torch.minimum(steps, last), steps <= last


def _causal(queries: Tensor, keys: Tensor, window: int | None) -> Tensor:
    """``[..., Q] , [..., S] -> [..., Q, S]`` bool: positions that are not later, and inside the window."""
    distance = queries.unsqueeze(-1) - keys.unsqueeze(-2)
    return distance >= 0 if window is None else (distance >= 0) & (distance < window)


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Any, scores: Scores) -> Tensor:
    """Attention of ``[B, tokens, heads, d]``; causal without a mask; key heads may be fewer.

    Scores that no fused kernel knows take their products into memory.
    """
    if scores.plain:
        return fused_attention(query, key, value, mask, scores.scaling)
    # CUDA's lower right bias is no plain tensor, and says what no mask says.
    mask = mask if type(mask) is Tensor else None
    return scores.attend(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), mask)


def fused_attention(query: Tensor, key: Tensor, value: Tensor, mask: Any, scaling: float | None) -> Tensor:
    """PyTorch's fused attention of ``[B, tokens, heads, d]``; causal without a mask; key heads may be fewer."""
    if key.shape[2] != query.shape[2] and key.device.type != "cpu":
        # With a mask, CUDA's kernels take grouped keys in their slowest form only.
        key, value = (x.repeat_interleave(query.shape[2] // x.shape[2], 2) for x in (key, value))
    return scaled_dot_product_attention(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        attn_mask=mask,
        is_causal=mask is None,
        scale=scaling,
        enable_gqa=key.shape[2] != query.shape[2],
    ).transpose(1, 2)


class TreePlan:
    """Attention of a whole line of trees; one plan serves all layers of a forward pass.

    Args:
        trees: of the line, in order.
        device: of the model.
        keep_prompts: called with (layer, block, keys, values ``[K, L, heads, d]``) of every block: the engine's memory.
    """

    def __init__(self, trees: Sequence[Tree], device: torch.device, keep_prompts: KeepPrompts | None = None):
        self.blocks = [Block(part, device) for part in _join_similar(trees)]
        self.keep_prompts = keep_prompts
        where = torch.empty(sum(tree.size for tree in trees), dtype=torch.int64)
        offset = 0
        for block in self.blocks:
            for grid, valid in ((block.prompt_grid, block.prompt_valid), (block.grid, block.valid)):
                where[grid[valid]] = torch.arange(offset, offset + grid.numel()).view(grid.shape)[valid]
                offset += grid.numel()
        in_order = torch.equal(where, torch.arange(offset))
        self.where = None if in_order else where.to(device)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
        """Attention output ``[1, N, heads, d]`` of one layer; query, key and value are ``[1, heads, N, d]``."""
        query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))
        pieces = []
        for block in self.blocks:
            outputs, keys, values = block.attend(query, key, value, scores)
            pieces += outputs
            if self.keep_prompts is not None:
                self.keep_prompts(layer, block, keys, values)
        merged = torch.cat(pieces)
        return (merged if self.where is None else merged.index_select(0, self.where)).unsqueeze(0)


def _join_similar(trees: Sequence[Tree]) -> list[list[Tree]]:
    """Neighbouring trees that are cheaper in one call than in two."""
    joined: list[list[Tree]] = []
    useful = 0
    for tree in trees:
        alone = _pairs([tree])
        if joined:
            together = _pairs([*joined[-1], tree])
            if together <= min(max(WASTE * (useful + alone), SMALL), LARGEST):
                joined[-1].append(tree)
                useful += alone
                continue
        joined.append([tree])
        useful = alone
    return joined


def _pairs(trees: Sequence[Tree]) -> int:
    """Query-key pairs of trees in one call, padding included."""
    width = max(tree.prompt_length for tree in trees)
    steps = max((length for tree in trees for length in tree.lengths), default=0)
    num_rows = sum(len(tree.lengths) for tree in trees)
    return len(trees) * width**2 + num_rows * steps * (width + steps)
