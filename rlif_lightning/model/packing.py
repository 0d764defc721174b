"""Pack groups of completions into micro-batches by token budget, each prompt once per group.

Pure functions. A micro-batch is one line of tokens without padding. A line is a sequence of trees:
a prompt, then its completions. Every completion sees its prompt and itself; the positions of each
completion continue its prompt's. A completion's last token is no input, since nothing is predicted
from it. Tokens of an observation between its turns are inputs, and nothing predicts them.

    tokens     p0 p1 p2 | a0 a1 | b0 b1 b2       completions a = a0 a1 a2, b = b0 b1 b2 b3
    positions   0  1  2 |  3  4 |  3  4  5       Tree(start=0, prompt_length=3, lengths=(2, 3))
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rlif_lightning.masked import extents

if TYPE_CHECKING:
    from rlif_lightning.records import Completions


@dataclass(frozen=True)
class Tree:
    """The place of a prompt and its completions in the line.

    Attributes:
        start: index of the prompt's first token in the line.
        prompt_length: tokens of the prompt.
        lengths: input tokens of each completion, one after the other after the prompt; may be 0.
    """

    start: int
    prompt_length: int
    lengths: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        """Return the number of tokens."""
        return self.prompt_length + sum(self.lengths)

    def starts(self) -> list[int]:
        """Return the index of each completion's first token in the line."""
        found, position = [], self.start + self.prompt_length
        for length in self.lengths:
            found.append(position)
            position += length
        return found


@dataclass(frozen=True)
class Packed:
    """A line of N tokens with the M tokens of b completions.

    Attributes:
        rows: ``[b]`` int64, the numbers of these completions in the update (or rollout).
        input_ids, position_ids: ``[N]`` int64.
        trees: the trees of the line, in order.
        source: ``[M]`` int64, the index in the line whose logits predict each completion token
            that is in the mask.
        tokens: ``[M]`` int64, these tokens.
        slots, positions: ``[M]`` int64, where each token belongs in ``[b, T]``: its completion
            among ``rows``, and its position in that completion.
        shape: ``(b, T)``.
    """

    rows: Tensor
    input_ids: Tensor
    position_ids: Tensor
    trees: tuple[Tree, ...]
    source: Tensor
    tokens: Tensor
    slots: Tensor
    positions: Tensor
    shape: tuple[int, int]

    def unpack(self, values: Tensor) -> Tensor:
        """Put per-token values ``[M, ...]`` in ``[b, T, ...]`` (0 elsewhere); differentiable."""
        shape = (*self.shape, *values.shape[1:])
        # The result is no view, of which FSDP would warn.
        return values.new_zeros(shape).index_put((self.slots, self.positions), values)

    def pick(self, values: Tensor) -> Tensor:
        """Return the per-token values ``[M, ...]`` of an update's ``[B, T, ...]``."""
        return values[self.rows[self.slots], self.positions]


def own_rows(packed: Packed) -> tuple[Tensor, Tensor]:
    """Give each completion a prompt of its own, for models whose attention follows no plan.

    Returns:
        ``[b, L]`` int64 token ids, padded with 0 at the end, where no token sees it; ``[M]`` int64,
        the indices in the flattened rows whose logits predict each completion token.
    """
    rows, prompt_lengths = [], []
    for tree in packed.trees:
        prompt = packed.input_ids[tree.start : tree.start + tree.prompt_length]
        for start, length in zip(tree.starts(), tree.lengths, strict=True):
            rows.append(torch.cat([prompt, packed.input_ids[start : start + length]]))
            prompt_lengths.append(tree.prompt_length)
    width = max(map(len, rows))
    ids = torch.stack([torch.nn.functional.pad(row, (0, width - len(row))) for row in rows])
    before = upload(torch.tensor(prompt_lengths) - 1, ids.device)[packed.slots]  # [M]
    return ids, packed.slots * width + before + packed.positions


def pack(completions: Completions, max_tokens: int) -> Iterator[Packed]:
    """Cut groups into micro-batches of at most ``max_tokens`` tokens.

    Trees of similar size go together. A group that does not fit is split between its completions
    (its prompt is then stored once per part); a single completion longer than the budget gets a
    micro-batch of its own.

    Args:
        completions: of P prompts; those without any token are left out.
        max_tokens: budget of one micro-batch.

    Yields:
        Packed micro-batches, the largest trees first (so that running out of memory shows at once).
    """
    mask, group_size = completions.mask, completions.group_size
    lengths, counts = torch.stack([extents(mask), mask.sum(-1)]).tolist()
    gaps = None if lengths == counts else mask.cpu()  # observations lie between drawn tokens
    parts: list[tuple[int, int, list[int]]] = []  # (tokens, prompt, rows)
    for p, prompt in enumerate(completions.prompt_ids):
        rows = [row for row in range(p * group_size, (p + 1) * group_size) if lengths[row] > 0]
        parts += [(size, p, part) for size, part in _split(rows, lengths, len(prompt), max_tokens)]
    parts.sort(key=lambda part: -part[0])
    batch: list[tuple[int, list[int]]] = []
    total = 0
    for size, p, rows in parts:
        if batch and total + size > max_tokens:
            yield _build(batch, completions, lengths, gaps)
            batch, total = [], 0
        batch.append((p, rows))
        total += size
    if batch:
        yield _build(batch, completions, lengths, gaps)


def _split(
    rows: list[int], lengths: list[int], prompt_length: int, max_tokens: int
) -> Iterator[tuple[int, list[int]]]:
    """Yield parts of one group that fit the budget, each with its number of tokens."""
    part, size = [], prompt_length
    for row in rows:
        if part and size + lengths[row] - 1 > max_tokens:
            yield size, part
            part, size = [], prompt_length
        part.append(row)
        size += lengths[row] - 1
    if part:
        yield size, part


def _build(
    batch: list[tuple[int, list[int]]],
    completions: Completions,
    lengths: list[int],
    mask: Tensor | None,
) -> Packed:
    prompt_ids, completion_ids = completions.prompt_ids, completions.completion_ids
    rows = [row for _, part in batch for row in part]
    trees: list[Tree] = []
    tokens, sources, places, end = [], [], [], 0
    for p, part in batch:
        tree = Tree(end, len(prompt_ids[p]), tuple(lengths[row] - 1 for row in part))
        trees.append(tree)
        tokens += [prompt_ids[p], *(completion_ids[row, : lengths[row] - 1] for row in part)]
        last_of_prompt, end = end + tree.prompt_length - 1, end + tree.size
        for row, start in zip(part, tree.starts(), strict=True):
            length = lengths[row]
            within = torch.arange(length) if mask is None else mask[row, :length].nonzero()[:, 0]
            # The prompt's last token predicts the first token of each of its completions.
            sources.append(torch.where(within == 0, last_of_prompt, start - 1 + within))
            places.append(within)
    slots = torch.cat([torch.full((len(each),), slot) for slot, each in enumerate(places)])
    within = torch.cat(places)
    # One upload of all index tensors: the time of a small copy hardly depends on its size.
    indices = (torch.tensor(rows), positions(trees), torch.cat(sources), slots, within)
    row_index, position_ids, source, slots, within = upload_together(indices, completion_ids.device)
    return Packed(
        rows=row_index,
        input_ids=torch.cat(tokens),
        position_ids=position_ids,
        trees=tuple(trees),
        source=source,
        tokens=completion_ids[row_index[slots], within],
        slots=slots,
        positions=within,
        shape=(len(rows), completion_ids.shape[1]),
    )


def positions(trees: Sequence[Tree]) -> Tensor:
    """Return the positions ``[N]`` int64 of a line of trees, on the CPU.

    The positions of each completion continue its prompt's.
    """
    pieces = []
    for tree in trees:
        pieces.append(torch.arange(tree.prompt_length))
        pieces += [
            torch.arange(tree.prompt_length, tree.prompt_length + length) for length in tree.lengths
        ]
    return torch.cat(pieces)


def upload(values: Tensor, device: torch.device, into: Tensor | None = None) -> Tensor:
    """Copy a tensor to a device; for a GPU from pinned memory, so that the host does not wait.

    Args:
        values: on the CPU, or on the device already.
        device: where it is needed.
        into: a tensor on the device that is overwritten, so that its address stays; ignored on a
            CPU.
    """
    if device.type == "cpu":
        return values
    # From unpinned memory the host waits, since it could change the values during the copy.
    pinned = device.type == "cuda" and not values.is_cuda
    values = values.pin_memory() if pinned else values
    if into is not None:
        return into.copy_(values, non_blocking=pinned)
    return values.to(device, non_blocking=pinned)


def upload_together(parts: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Copy tensors of one type and any shapes to a device in one copy; return views of it."""
    if device.type == "cpu":
        return list(parts)
    line = upload(torch.cat([part.flatten() for part in parts]), device)
    moved = line.split([part.numel() for part in parts])
    return [values.view(part.shape) for values, part in zip(moved, parts, strict=True)]
