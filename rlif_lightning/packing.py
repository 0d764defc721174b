"""From groups of completions to packed micro-batches by token budget, the prompt stored once per group. Pure functions.

One packed row is a tree: the prompt, then its completions one after the other. Every completion sees its prompt and
itself; positions restart after the prompt for each of them. A completion's last token is never an input (nothing is
predicted from it), so it takes no room.

    tokens     p0 p1 p2 | a0 a1 | b0 b1 b2       completions a = a0 a1 a2, b = b0 b1 b2 b3
    positions   0  1  2 |  3  4 |  3  4  5
    segments    0  0  0 |  1  1 |  2  2  2       padding is -1
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

PADDING = -1


@dataclass(frozen=True)
class Packed:
    """K trees, padded to the longest; together they hold M completion tokens of b rows.

    Attributes:
        rows: ``[b]`` int64, which rows of the update (or rollout) are here.
        input_ids, position_ids, segments: ``[K, N]`` int64.
        source: ``[M]`` int64, position in the flattened ``[K * N]`` whose logits produced each completion token.
        tokens: ``[M]`` int64, the completion tokens.
        target: ``[M]`` int64, where each belongs in the flattened ``[b, T]``.
        shape: ``(b, T)``.
    """

    rows: Tensor
    input_ids: Tensor
    position_ids: Tensor
    segments: Tensor
    source: Tensor
    tokens: Tensor
    target: Tensor
    shape: tuple[int, int]

    @property
    def steps(self) -> Tensor:
        """``[M]`` int64: each completion token's position in its completion."""
        return self.target % self.shape[1]

    def unpack(self, values: Tensor) -> Tensor:
        """Put per-token values ``[M]`` back to ``[b, T]`` (0 elsewhere); differentiable."""
        flat = values.new_zeros(self.shape[0] * self.shape[1])
        return flat.index_copy(0, self.target, values).view(self.shape)


def tree_mask(segments: Tensor, position_ids: Tensor, window: int | None = None) -> Tensor:
    """Which position may attend to which.

    Args:
        segments, position_ids: ``[K, N]`` as in :class:`Packed`.
        window: sliding-window layers see the last ``window`` positions only, the current one included.

    Returns:
        ``[K, 1, N, N]`` bool (query, key). Padding attends to itself, so that no row is empty.
    """
    num_positions = segments.shape[1]
    query, key = segments.unsqueeze(2), segments.unsqueeze(1)
    order = torch.arange(num_positions, device=segments.device)
    allowed = (order.unsqueeze(1) >= order) & ((key == query) | (key == 0)) & (key != PADDING)
    if window is not None:
        allowed = allowed & (position_ids.unsqueeze(2) - position_ids.unsqueeze(1) < window)
    return (allowed | torch.eye(num_positions, dtype=torch.bool, device=segments.device)).unsqueeze(1)


def pack(
    prompt_ids: Sequence[Tensor], completion_ids: Tensor, mask: Tensor, group_size: int, max_tokens: int
) -> Iterator[Packed]:
    """Cut groups into micro-batches of at most ``max_tokens`` tokens, padding included.

    Trees of similar size go together. A group that does not fit is split between its completions (its prompt is then
    stored once per part); a single completion longer than the budget gets a micro-batch of its own.

    Args:
        prompt_ids: P tensors ``[L_p]``.
        completion_ids, mask: ``[B, T]`` with B = P * group_size; rows without any token are left out.
        group_size: G.
        max_tokens: budget of one micro-batch.

    Yields:
        Packed micro-batches, the largest trees first (so that running out of memory shows at once).
    """
    lengths = mask.sum(-1).tolist()
    trees: list[tuple[int, int, list[int]]] = []
    for p, prompt in enumerate(prompt_ids):
        rows = [row for row in range(p * group_size, (p + 1) * group_size) if lengths[row] > 0]
        trees += [(size, p, part) for size, part in _split(rows, lengths, len(prompt), max_tokens)]
    trees.sort(key=lambda tree: -tree[0])
    batch: list[tuple[int, int, list[int]]] = []
    for tree in trees:
        if batch and batch[0][0] * (len(batch) + 1) > max_tokens:
            yield _build(batch, prompt_ids, completion_ids, lengths)
            batch = []
        batch.append(tree)
    if batch:
        yield _build(batch, prompt_ids, completion_ids, lengths)


def _split(rows: list[int], lengths: list[int], prompt_length: int, max_tokens: int) -> Iterator[tuple[int, list[int]]]:
    """Parts of one group that fit the budget, each with its number of tokens."""
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
    batch: list[tuple[int, int, list[int]]], prompt_ids: Sequence[Tensor], completion_ids: Tensor, lengths: list[int]
) -> Packed:
    width, num_steps = batch[0][0], completion_ids.shape[1]
    rows = [row for _, _, part in batch for row in part]
    slots = iter(range(len(rows)))
    lines, sources, targets = [], [], []
    for k, (_, p, part) in enumerate(batch):
        num_prompt = len(prompt_ids[p])
        pieces = [(num_prompt, 0, 0)]  # (tokens, first position, segment)
        last_of_prompt, end = k * width + num_prompt - 1, k * width + num_prompt
        for segment, row in enumerate(part, start=1):
            inputs = lengths[row] - 1
            pieces.append((inputs, num_prompt, segment))
            sources.append(torch.tensor([last_of_prompt, *range(end, end + inputs)]))
            targets.append(torch.arange(lengths[row]) + next(slots) * num_steps)
            end += inputs
        tokens = torch.cat([prompt_ids[p], *(completion_ids[row, : lengths[row] - 1] for row in part)])
        lines.append((tokens, pieces))
    device = completion_ids.device
    target = torch.cat(targets)
    row_index = torch.tensor(rows, device=device)
    return Packed(
        rows=row_index,
        input_ids=torch.stack([_pad(tokens, width, 0) for tokens, _ in lines]),
        position_ids=_stack(lines, width, 0, lambda n, first, _: torch.arange(first, first + n)).to(device),
        segments=_stack(lines, width, PADDING, lambda n, _, segment: torch.full((n,), segment)).to(device),
        source=torch.cat(sources).to(device),
        tokens=completion_ids[row_index].flatten()[target.to(device)],
        target=target.to(device),
        shape=(len(rows), num_steps),
    )


def _stack(lines, width: int, fill: int, piece) -> Tensor:
    return torch.stack([_pad(torch.cat([piece(*p) for p in pieces]), width, fill) for _, pieces in lines])


def _pad(values: Tensor, width: int, fill: int) -> Tensor:
    return torch.nn.functional.pad(values, (0, width - len(values)), value=fill)
