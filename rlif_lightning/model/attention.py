"""Attention of a packed line in a few calls of PyTorch's fused kernel, without an N x N mask.

A prompt attends to itself causally. Each completion attends to its prompt and to itself. Trees of
similar shape share two calls, one for the prompts and one for the completions (a block).

Example: a line of N = 11 tokens, tree p with completions a and b, tree q with completion c. Both
trees are in one block of K = 2 prompts and B = 3 completions:

    line         p0 p1 p2 a0 a1 b0 b1 b2 q0 q1 c0     indices 0 1 2 ... 10
    prompt_grid  [0 1 2], [8 9 9]                     K x L, a last token is repeated as padding
    grid         [3 4 4], [5 6 7], [10 10 10]         B x T
    owners       0 0 1                                the tree of a, b and c
    keys of c    q0 q1 q1 | c0 c0 c0                  L + T; c0 sees q0, q1 and the first c0
    where        0 1 2 6 7 9 10 11 3 4 12             each token's row in the K L + B T = 15 outputs

``plan_hook.py`` passes this to the attention layers of Hugging Face models. Decoding uses the same
hook with a plan of its own (``rollout/kv_memory.py``).
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

# Trees share a call while padding makes at most WASTE times as many query-key pairs as are needed,
# or while there are at most SMALL pairs (starting another call would cost more). There are never
# more than LARGEST, since their mask is stored.
WASTE, SMALL, LARGEST = 1.25, 2**15, 2**24
KeepPrompts = Callable[[int, "Block", Tensor, Tensor], None]


class Layout:
    """The padded grids of some trees, on the CPU: K prompts of up to L, B completions of up to T.

    Attributes:
        trees: in the order of the line.
        prompt_grid, prompt_valid: ``[K, L]``: indices into the line, each prompt's last one
            repeated; and which of them are no repetition.
        grid, valid: ``[B, T]``: the same for the completions that have tokens.
        owners: ``[B]``: number of each completion's tree.
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
        """Return what :class:`Block` needs on the device."""
        return [self.prompt_grid, self.grid, self.owners, self.prompt_lengths[self.owners]]


class Block:
    """Some trees of a line, whose attention is computed in two calls.

    Args:
        layout: of the trees.
        indices: ``layout.indices()`` on the model's device.
    """

    def __init__(self, layout: Layout, indices: Sequence[Tensor]):
        self.trees = layout.trees
        self.prompt_grid, self.grid, self.owners, self.lengths = indices
        self.even = bool((layout.prompt_lengths == self.prompt_grid.shape[1]).all())
        self.masks: dict[tuple[int | None, torch.dtype], tuple[Any, Any]] = {}

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, scores: Scores
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """Compute the attention of the block's tokens.

        Args:
            query, key, value: ``[N, heads, d]`` of the whole line.
            scores: of the layer.

        Returns:
            Output pieces ``[K * L, heads, d]`` and, with completions, ``[B * T, heads, d]``; the
            prompts' keys and values ``[K, L, heads, d]``.
        """
        dtype = query.dtype if scores.plain else torch.bool
        prompt_mask, mask = self.masks_of(scores.window, dtype)
        q, k, v = (self._prompts(x) for x in (query, key, value))  # [K, L, heads, d]
        pieces = [attention(q, k, v, prompt_mask, scores).flatten(0, 1)]
        if len(self.grid):
            own_q, own_k, own_v = (_lines(x, self.grid) for x in (query, key, value))
            keys = torch.cat([self._of_completions(k), own_k], 1)  # [B, L + T, heads, d]
            values = torch.cat([self._of_completions(v), own_v], 1)
            pieces.append(attention(own_q, keys, values, mask, scores).flatten(0, 1))
        return pieces, k, v

    def _prompts(self, values: Tensor) -> Tensor:
        if len(self.trees) == 1:  # a view: nothing is copied
            tree = self.trees[0]
            return values[tree.start : tree.start + tree.prompt_length].unsqueeze(0)
        return _lines(values, self.prompt_grid)

    def _of_completions(self, prompts: Tensor) -> Tensor:
        """Repeat what belongs to prompts, ``[K, L, ...]``, for each completion: ``[B, L, ...]``."""
        if len(self.trees) == 1:
            return prompts.expand(len(self.grid), -1, -1, -1)
        return prompts.index_select(0, self.owners)

    def masks_of(self, window: int | None, dtype: torch.dtype) -> tuple[Any, Any]:
        """Return the masks of the prompts' and of the completions' call, made once.

        Args:
            window: tokens that each one sees; None = all.
            dtype: bool = True where a key is seen; else the type of the scores that the mask is
                added to.

        Returns:
            ``[L, L]``; ``[T, L + T]`` or ``[B, 1, T, L + T]``. None = causal.
        """
        if (window, dtype) not in self.masks:
            one, two = self._prompt_mask(window), self._completion_mask(window, dtype)
            if dtype != torch.bool:
                one, two = (as_bias(x, dtype) if type(x) is Tensor else x for x in (one, two))
            self.masks[window, dtype] = one, two
        return self.masks[window, dtype]

    def _prompt_mask(self, window: int | None) -> Tensor | None:
        width = self.prompt_grid.shape[1]
        if window is None or window >= width:
            return None
        positions = torch.arange(width, device=self.grid.device)
        return seen_keys(positions, positions, window)

    def _completion_mask(self, window: int | None, dtype: torch.dtype) -> Any:
        if not len(self.grid):
            return None
        width, longest = self.prompt_grid.shape[1], self.grid.shape[1]
        if self.even and (window is None or window >= width + longest):
            if self.grid.is_cuda and dtype != torch.bool:  # CUDA has this rule as a fused kernel
                return causal_lower_right(longest, width + longest)
            window = None
        # Where all prompts have one length, all completions share a mask.
        lengths = self.lengths[:1] if self.even else self.lengths
        seen = seen_by_completions(lengths, width, longest, window)  # [1 or B, T, L + T]
        return seen[0] if self.even else seen.unsqueeze(1)


def _lines(values: Tensor, grid: Tensor) -> Tensor:
    """Return the tokens at a grid's indices: ``[N, ...] -> [rows, longest, ...]``."""
    return values.index_select(0, grid.flatten()).unflatten(0, grid.shape)


def _grid(starts: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Return a padded grid ``[rows, longest]`` of indices, and which of them are no padding."""
    offsets = torch.arange(int(lengths.max()) if len(lengths) else 0)
    last = (lengths - 1).unsqueeze(1)
    return starts.unsqueeze(1) + torch.minimum(offsets, last), offsets <= last


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Any, scores: Scores) -> Tensor:
    """Compute attention of ``[B, tokens, heads, d]``, causal without a mask.

    Keys and values may have fewer heads. Scores that no fused kernel computes (a soft cap, sinks)
    store all products; their mask is bool.
    """
    if scores.plain:
        return fused_attention(query, key, value, mask, scores.scaling)
    return scores.attend(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), mask)


def fused_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Any, scaling: float | None
) -> Tensor:
    """Compute PyTorch's fused attention of ``[B, tokens, heads, d]``, causal without a mask."""
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))  # [B, heads, tokens, d]
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
    """Leave out CUDA kernels that are compiled for each shape.

    On an H100, newer versions of PyTorch try cuDNN's kernels first. These are compiled for each
    shape (https://github.com/pytorch/pytorch/pull/155958), and hardly two micro-batches have the
    same.
    """
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def _takes_grouped(query: Tensor, key: Tensor, value: Tensor, mask: Any) -> bool:
    """Return whether a fused kernel takes fewer key heads than query heads."""
    if not key.is_cuda:
        return True
    # On CUDA only flash attention does, and it takes no mask.
    given = torch.backends.cuda.SDPAParams(query, key, value, None, 0.0, False, True)
    return type(mask) is not Tensor and torch.backends.cuda.can_use_flash_attention(given)


class TreePlan:
    """The attention of a whole line of trees; one plan serves all layers of a forward pass.

    Args:
        trees: of the line, in order.
        device: of the model.
        keep_prompts: called with (layer, block, keys, values ``[K, L, heads, d]``) of every block,
            so that the engine can store them.
    """

    def __init__(
        self, trees: Sequence[Tree], device: torch.device, keep_prompts: KeepPrompts | None = None
    ):
        layouts = [Layout(part) for part in _join_similar(trees)]
        where, offset = torch.empty(sum(tree.size for tree in trees), dtype=torch.int64), 0
        for layout in layouts:
            prompts = layout.prompt_grid, layout.prompt_valid
            for grid, valid in (prompts, (layout.grid, layout.valid)):
                places = torch.arange(offset, offset + grid.numel()).view(grid.shape)
                where[grid[valid]] = places[valid]
                offset += grid.numel()
        in_order = torch.equal(where, torch.arange(offset))
        parts = [x for layout in layouts for x in layout.indices()]
        *indices, where = upload_together([*parts, where], device)
        self.where = None if in_order else where  # [N], each token's row in the outputs
        self.blocks = [
            Block(layout, indices[4 * i : 4 * i + 4]) for i, layout in enumerate(layouts)
        ]
        self.keep_prompts = keep_prompts

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scores: Scores
    ) -> Tensor:
        """Compute one layer's attention: ``[1, heads, N, d]`` -> ``[1, N, heads, d]``."""
        query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))  # [N, heads, d]
        pieces = []
        for block in self.blocks:
            with _for_any_shape() if query.is_cuda else nullcontext():
                outputs, keys, values = block.attend(query, key, value, scores)
            pieces += outputs
            if self.keep_prompts is not None:
                self.keep_prompts(layer, block, keys, values)
        merged = torch.cat(pieces)  # [sum of K L + B T, heads, d]
        return (merged if self.where is None else merged.index_select(0, self.where)).unsqueeze(0)


def _join_similar(trees: Sequence[Tree]) -> list[list[Tree]]:
    """Join neighbouring trees whose attention is cheaper in one call than in two."""
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
    """Count the query-key pairs of trees that share a block, padding included."""
    width = max(tree.prompt_length for tree in trees)
    longest = max((length for tree in trees for length in tree.lengths), default=0)
    completions = sum(len(tree.lengths) for tree in trees)
    return len(trees) * width**2 + completions * longest * (width + longest)
