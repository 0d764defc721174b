"""Attention of packed trees in pieces of PyTorch's fused kernel, so that no token is padded and no N x N mask exists.

A prompt attends to itself, causally; the completions of a tree attend to their prompt and each to
itself. Trees of similar shape share one call. ``plan_hook.py`` brings this to the attention layers
of Hugging Face models; the engine's decoding plugs in the same way, see ``rollout/kv_memory.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from rlif_lightning.model.masks import as_bias, seen_by_completions, seen_keys
from rlif_lightning.model.packing import Tree, upload_together
from rlif_lightning.model.scores import Scores

WASTE = 1.25  # trees are joined in one call while padding makes at most this many times their own query-key pairs,
SMALL = 2**15  # or while there are so few pairs that starting another call costs more,
LARGEST = 2**24  # and never beyond this many: their mask is stored
KeepPrompts = Callable[[int, "Block", Tensor, Tensor], None]


class Layout:
    """Grids of the line's positions, all on the CPU: K prompts of up to L tokens, B completions of up to T.

    Attributes:
        trees: in the order of the line.
        prompt_grid, prompt_valid: ``[K, L]`` positions, each prompt's last one repeated, and which
            are no repetition.
        grid, valid: ``[B, T]`` the same of the completions that have tokens.
        owners: ``[B]`` number of each completion's tree.
        prompt_lengths: ``[K]`` tokens.
    """

    def __init__(self, trees: Sequence[Tree]):
        rows = [
            (start, length, number)
            for number, tree in enumerate(trees)
            for start, length in zip(tree.starts(), tree.lengths, strict=True)
            if length > 0
        ]
        starts, lengths, self.owners = torch.tensor(rows, dtype=torch.int64).view(-1, 3).unbind(1)
        self.trees = trees
        self.prompt_lengths = torch.tensor([tree.prompt_length for tree in trees])
        self.prompt_grid, self.prompt_valid = _grid(
            torch.tensor([tree.start for tree in trees]), self.prompt_lengths
        )
        self.grid, self.valid = _grid(starts, lengths)

    def indices(self) -> list[Tensor]:
        """What :class:`Block` needs on the device."""
        return [self.prompt_grid, self.grid, self.owners, self.prompt_lengths[self.owners]]


class Block:
    """Some trees of a line, attended to in two calls: K prompts of up to L tokens, B completions of up to T.

    Args:
        layout: where they lie.
        indices: of the layout, on the model's device.
    """

    def __init__(self, layout: Layout, indices: Sequence[Tensor]):
        self.trees = layout.trees
        self.prompt_grid, self.grid, self.owners, self.lengths = indices
        self.even = bool((layout.prompt_lengths == self.prompt_grid.shape[1]).all())
        self.masks: dict[tuple[int | None, torch.dtype], tuple[Any, Any]] = {}

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, scores: Scores
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """Attention of the block's tokens.

        Args:
            query, key, value: ``[N, heads, d]`` of the whole line.

        Returns:
            Output pieces ``[K * L, heads, d]`` and, with completions, ``[B * T, heads, d]``; the
            prompts' keys and values ``[K, L, heads, d]``.
        """
        prompt_mask, mask = self.masks_of(
            scores.window, query.dtype if scores.plain else torch.bool
        )
        q, k, v = (self._prompts(x) for x in (query, key, value))
        pieces = [attention(q, k, v, prompt_mask, scores).flatten(0, 1)]
        if len(self.grid):
            own_q, own_k, own_v = (_lines(x, self.grid) for x in (query, key, value))
            keys = torch.cat([self._of_rows(k), own_k], 1)
            values = torch.cat([self._of_rows(v), own_v], 1)
            pieces.append(attention(own_q, keys, values, mask, scores).flatten(0, 1))
        return pieces, k, v

    def _prompts(self, values: Tensor) -> Tensor:
        if len(self.trees) == 1:
            tree = self.trees[0]
            return values[tree.start : tree.start + tree.prompt_length].unsqueeze(0)
        return _lines(values, self.prompt_grid)

    def _of_rows(self, prompts: Tensor) -> Tensor:
        if len(self.trees) == 1:
            return prompts.expand(len(self.grid), -1, -1, -1)
        return prompts.index_select(0, self.owners)

    def masks_of(self, window: int | None, dtype: torch.dtype) -> tuple[Any, Any]:
        """What the prompts and what the completions see: ``[L, L]``, and ``[T, L + T]`` or ``[B, 1, T, L + T]``.

        Made once, on the device. Bool on request, else what is added to scores of this type; None
        where nothing but the order of tokens counts.
        """
        if (window, dtype) not in self.masks:
            prompts, rows = self._prompt_mask(window), self._completion_mask(window, dtype)
            if dtype != torch.bool:
                prompts, rows = (
                    as_bias(x, dtype) if type(x) is Tensor else x for x in (prompts, rows)
                )
            self.masks[window, dtype] = prompts, rows
        return self.masks[window, dtype]

    def _prompt_mask(self, window: int | None) -> Tensor | None:
        width = self.prompt_grid.shape[1]
        if window is None or window >= width:
            return None
        places = torch.arange(width, device=self.grid.device)
        return seen_keys(places, places, window)

    def _completion_mask(self, window: int | None, dtype: torch.dtype) -> Any:
        if not len(self.grid):
            return None
        width, steps = self.prompt_grid.shape[1], self.grid.shape[1]
        if self.even and (window is None or window >= width + steps):
            if self.grid.is_cuda and dtype != torch.bool:  # fused there without a mask
                return causal_lower_right(steps, width + steps)
            window = None
        seen = seen_by_completions(
            self.lengths[:1] if self.even else self.lengths, width, steps, window
        )
        return seen[0] if self.even else seen.unsqueeze(1)


def _lines(values: Tensor, grid: Tensor) -> Tensor:
    """``[N, ...] -> [rows, longest, ...]``: the tokens at a grid's positions."""
    return values.index_select(0, grid.flatten()).unflatten(0, grid.shape)


def _grid(starts: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Positions ``[rows, longest]`` of each row's tokens, the last one repeated, and which are no repetition."""
    steps = torch.arange(int(lengths.max()) if len(lengths) else 0)
    last = (lengths - 1).unsqueeze(1)
    return starts.unsqueeze(1) + torch.minimum(steps, last), steps <= last


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Any, scores: Scores) -> Tensor:
    """Attention of ``[B, tokens, heads, d]``; causal without a mask; key heads may be fewer.

    Scores that no fused kernel knows take their products into memory; their mask is bool.
    """
    if scores.plain:
        return fused_attention(query, key, value, mask, scores.scaling)
    return scores.attend(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), mask)


def fused_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Any, scaling: float | None
) -> Tensor:
    """PyTorch's fused attention of ``[B, tokens, heads, d]``; causal without a mask; key heads may be fewer."""
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    if key.shape[1] != query.shape[1] and not _takes_grouped(query, key, value, mask):
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    return scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=mask is None,
        scale=scaling,
        enable_gqa=key.shape[1] != query.shape[1],
    ).transpose(1, 2)


@contextmanager
def _for_any_shape() -> Iterator[None]:
    """Inside, CUDA's kernels are those that take every shape as it comes.

    cuDNN's, which newer versions of PyTorch try first on an H100, are built anew for every shape
    (https://github.com/pytorch/pytorch/pull/155958), and hardly two micro-batches have the same.
    """
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def _takes_grouped(query: Tensor, key: Tensor, value: Tensor, mask: Any) -> bool:
    """Whether a fused kernel takes fewer heads of keys: on CUDA flash attention alone, which knows no mask."""
    if not key.is_cuda:
        return True
    given = torch.backends.cuda.SDPAParams(query, key, value, None, 0.0, False, True)
    return type(mask) is not Tensor and torch.backends.cuda.can_use_flash_attention(given)


class TreePlan:
    """Attention of a whole line of trees; one plan serves all layers of a forward pass.

    Args:
        trees: of the line, in order.
        device: of the model.
        keep_prompts: called with (layer, block, keys, values ``[K, L, heads, d]``) of every block:
            the engine's memory.
    """

    def __init__(
        self, trees: Sequence[Tree], device: torch.device, keep_prompts: KeepPrompts | None = None
    ):
        layouts = [Layout(part) for part in _join_similar(trees)]
        where, offset = torch.empty(sum(tree.size for tree in trees), dtype=torch.int64), 0
        for layout in layouts:
            for grid, valid in (
                (layout.prompt_grid, layout.prompt_valid),
                (layout.grid, layout.valid),
            ):
                where[grid[valid]] = torch.arange(offset, offset + grid.numel()).view(grid.shape)[
                    valid
                ]
                offset += grid.numel()
        in_order = torch.equal(where, torch.arange(offset))
        *indices, where = upload_together(
            [*(x for layout in layouts for x in layout.indices()), where], device
        )
        self.where = None if in_order else where
        self.blocks = [
            Block(layout, indices[4 * i : 4 * i + 4]) for i, layout in enumerate(layouts)
        ]
        self.keep_prompts = keep_prompts

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scores: Scores
    ) -> Tensor:
        """Attention output ``[1, N, heads, d]`` of one layer; query, key and value are ``[1, heads, N, d]``."""
        query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))
        pieces = []
        for block in self.blocks:
            with _for_any_shape() if query.is_cuda else nullcontext():
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
