"""Pack groups of completions into micro-batches by token budget, each prompt once per group.

Pure functions. A micro-batch is one line of tokens without padding. A line is a sequence of trees:
a prompt, then its completions. Every completion sees its prompt and itself; the positions of each
completion continue its prompt's. A completion's last token is no input, since nothing is predicted
from it. Tokens of an observation between its turns are inputs, and nothing predicts them.

    tokens     p0 p1 p2 | a0 a1 | b0 b1 b2       completions a = a0 a1 a2, b = b0 b1 b2 b3
    positions   0  1  2 |  3  4 |  3  4  5       Tree(start=0, prompt_length=3, lengths=(2, 3))

A completion may have several contexts (``Completions.context_starts``). The first one follows the
group's prompt. Each later one is a tree of its own in the same line, whose prompt are the tokens
before the first that is predicted. With c = c0 c1 [q0 q1] c4 c5, whose second context begins at q0:

    tokens     p0 p1 p2 | c0 | q0 q1 | c4        Tree(0, 3, (1,)), Tree(4, 2, (1,))
    positions   0  1  2 |  3 |  0  1 |  2
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from rlif_lightning.masked import extents

if TYPE_CHECKING:
    from rlif_lightning.records import Completions


class Context(NamedTuple):
    """A part of a completion that is read by itself, in columns of ``[B, T]``.

    Attributes:
        begin, first: of its prompt and of what follows that; both 0 in a completion's first
            context, which follows the group's prompt.
        end: one more than the last predicted token; ``first`` without any.
        predicted: ``[m]`` int64 on the CPU.
    """

    begin: int
    first: int
    end: int
    predicted: Tensor

    @property
    def inputs(self) -> int:
        """Return the number of input tokens behind the prompt."""
        return max(self.end - 1 - self.first, 0)


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
        contexts, steps: ``[M]`` int64: the number of each token's context in the line, and its
            position in that context; of completions with one context as ``slots, positions``.
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
    contexts: Tensor
    steps: Tensor

    def unpack(self, values: Tensor) -> Tensor:
        """Put per-token values ``[M, ...]`` in ``[b, T, ...]`` (0 elsewhere); differentiable."""
        shape = (*self.shape, *values.shape[1:])
        # The result is no view, of which FSDP would warn.
        return values.new_zeros(shape).index_put((self.slots, self.positions), values)

    def pick(self, values: Tensor) -> Tensor:
        """Return the per-token values ``[M, ...]`` of an update's ``[B, T, ...]``."""
        return values[self.rows[self.slots], self.positions]


def own_rows(packed: Packed) -> tuple[Tensor, Tensor]:
    """Give each context a prompt of its own, for models whose attention follows no plan.

    Returns:
        ``[contexts, L]`` int64 token ids, padded with 0 at the end, where no token sees it; ``[M]``
        int64, the indices in the flattened rows whose logits predict each completion token.
    """
    rows, prompt_lengths = [], []
    for tree in packed.trees:
        prompt = packed.input_ids[tree.start : tree.start + tree.prompt_length]
        for start, length in zip(tree.starts(), tree.lengths, strict=True):
            rows.append(torch.cat([prompt, packed.input_ids[start : start + length]]))
            prompt_lengths.append(tree.prompt_length)
    width = max(map(len, rows))
    ids = torch.stack([torch.nn.functional.pad(row, (0, width - len(row))) for row in rows])
    before = upload(torch.tensor(prompt_lengths) - 1, ids.device)[packed.contexts]  # [M]
    return ids, packed.contexts * width + before + packed.steps


def pack(completions: Completions, max_tokens: int) -> Iterator[Packed]:
    """Cut groups into micro-batches of at most ``max_tokens`` tokens.

    Trees of similar size go together. A group that does not fit is split between its completions
    (its prompt is then stored once per part); a single completion longer than the budget, with all
    of its contexts, gets a micro-batch of its own.

    Args:
        completions: of P prompts; those without any token are left out.
        max_tokens: budget of one micro-batch.

    Yields:
        Packed micro-batches, the largest trees first (so that running out of memory shows at once).
    """
    size, contexts = completions.group_size, _contexts(completions)
    parts: list[tuple[int, int, list[int]]] = []  # (tokens, prompt, rows)
    for p, prompt in enumerate(completions.prompt_ids):
        rows = [row for row in range(p * size, (p + 1) * size) if contexts[row]]
        needs = {
            row: sum(each.first - each.begin + each.inputs for each in contexts[row])
            for row in rows
        }
        parts += [(tokens, p, part) for tokens, part in _split(needs, len(prompt), max_tokens)]
    parts.sort(key=lambda part: -part[0])
    batch: list[tuple[int, list[int]]] = []
    total = 0
    for tokens, p, rows in parts:
        if batch and total + tokens > max_tokens:
            yield _build(batch, completions, contexts)
            batch, total = [], 0
        batch.append((p, rows))
        total += tokens
    if batch:
        yield _build(batch, completions, contexts)


def _contexts(completions: Completions) -> list[list[Context]]:
    """Return each completion's first context, and later ones with a predicted token."""
    mask, starts = completions.mask, completions.context_starts
    lengths, counts = torch.stack([extents(mask), mask.sum(-1)]).tolist()
    known = None if lengths == counts else mask.cpu()  # observations lie between drawn tokens
    begins = None if starts is None else starts.cpu()
    found = []
    for row, length in enumerate(lengths):
        own = torch.arange(length) if known is None else known[row, :length].nonzero()[:, 0]
        later = () if begins is None else begins[row, :length].nonzero()[:, 0].tolist()
        whole = [Context(0, 0, length, own)] if length else []
        found.append(_cut(own, [0, *later]) if later else whole)
    return found


def _cut(predicted: Tensor, begins: list[int]) -> list[Context]:
    """Cut a completion's predicted columns into contexts, by the columns where these begin."""
    found = []
    number = torch.bucketize(predicted, torch.tensor(begins), right=True) - 1  # [m]
    for context, begin in enumerate(begins):
        own = predicted[number == context]
        first = int(own[0]) if context and len(own) else begin
        if not context or len(own):
            found.append(Context(begin, first, int(own[-1]) + 1 if len(own) else first, own))
    return found


def _split(
    needs: dict[int, int], prompt_length: int, max_tokens: int
) -> Iterator[tuple[int, list[int]]]:
    """Yield parts of one group that fit the budget, each with its number of tokens."""
    part, size = [], prompt_length
    for row, tokens in needs.items():
        if part and size + tokens > max_tokens:
            yield size, part
            part, size = [], prompt_length
        part.append(row)
        size += tokens
    if part:
        yield size, part


def _build(
    batch: list[tuple[int, list[int]]], completions: Completions, contexts: list[list[Context]]
) -> Packed:
    completion_ids = completions.completion_ids
    rows = [row for _, part in batch for row in part]
    slot_of = {row: slot for slot, row in enumerate(rows)}
    trees: list[Tree] = []
    tokens, sources, places, end = [], [], [], 0  # places: slot, position, context and step
    for prompt, members in _plots(batch, completions, contexts):
        tree = Tree(end, len(prompt), tuple(each.inputs for _, each in members))
        trees.append(tree)
        tokens.append(prompt)
        last_of_prompt, end = end + tree.prompt_length - 1, end + tree.size
        for (row, each), start in zip(members, tree.starts(), strict=True):
            tokens.append(completion_ids[row, each.first : each.first + each.inputs])
            step = each.predicted - each.first
            # The prompt's last token predicts the first token of each of its completions.
            sources.append(torch.where(step == 0, last_of_prompt, start - 1 + step))
            slot, number = (torch.full_like(step, n) for n in (slot_of[row], len(places)))
            places.append(torch.stack([slot, each.predicted, number, step]))
    # One upload of all index tensors: the time of a small copy hardly depends on its size.
    indices = (torch.tensor(rows), positions(trees), torch.cat(sources), torch.cat(places, 1))
    row_index, position_ids, source, place = upload_together(indices, completion_ids.device)
    slots, within, number, steps = place
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
        contexts=number,
        steps=steps,
    )


def _plots(
    batch: list[tuple[int, list[int]]], completions: Completions, contexts: list[list[Context]]
) -> Iterator[tuple[Tensor, list[tuple[int, Context]]]]:
    """Yield the prompt of each tree of a line, and the rows' contexts that follow it."""
    for p, part in batch:
        yield completions.prompt_ids[p], [(row, contexts[row][0]) for row in part]
        for row in part:
            for each in contexts[row][1:]:
                prompt = completions.completion_ids[row, each.begin : each.first]
                yield prompt, [(row, each)]


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
