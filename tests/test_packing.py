"""Packing: the tree of the module's docstring, the token budget, split groups, the way back, and the tree mask."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlif_lightning.packing import PADDING, Packed, pack, tree_mask

LENGTHS = st.lists(st.integers(0, 6), min_size=6, max_size=6)


def rows_of(lengths: list[int], width: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Completions whose token t of row b has the id 100 * (b + 1) + t, garbage in the padding."""
    steps = torch.arange(width)
    mask = steps < torch.tensor(lengths).unsqueeze(1)
    ids = 100 * (torch.arange(len(lengths)).unsqueeze(1) + 1) + steps
    return ids.where(mask, -7), mask


def prompts_of(lengths: list[int]) -> list[torch.Tensor]:
    return [torch.arange(length) + 10 * (p + 1) for p, length in enumerate(lengths)]


def test_the_tree_of_the_docstring():
    ids, mask = rows_of([3, 4], width=4)
    (packed,) = pack(prompts_of([3]), ids, mask, 2, 100)
    assert packed.input_ids.tolist() == [[10, 11, 12, 100, 101, 200, 201, 202]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 3, 4, 3, 4, 5]]
    assert packed.segments.tolist() == [[0, 0, 0, 1, 1, 2, 2, 2]]
    assert packed.source.tolist() == [2, 3, 4, 2, 5, 6, 7]
    assert packed.tokens.tolist() == [100, 101, 102, 200, 201, 202, 203]
    assert packed.target.tolist() == [0, 1, 2, 4, 5, 6, 7]
    assert packed.steps.tolist() == [0, 1, 2, 0, 1, 2, 3]
    assert packed.shape == (2, 4)


def test_shorter_trees_are_padded_and_marked():
    ids, mask = rows_of([2, 4], width=4)
    (packed,) = pack(prompts_of([1, 2]), ids, mask, 1, 100)
    assert packed.rows.tolist() == [1, 0]  # the largest tree comes first
    assert packed.segments.tolist() == [[0, 0, 1, 1, 1], [0, 1, PADDING, PADDING, PADDING]]


def check_micro_batch(packed: Packed, prompts, ids, mask, group_size: int, budget: int) -> None:
    num_trees, width = packed.input_ids.shape
    assert num_trees * width <= budget or (num_trees == 1 and len(packed.rows) == 1)
    restored = packed.unpack(packed.tokens)
    kept = mask[packed.rows]
    assert torch.equal(restored, ids[packed.rows].where(kept, 0))
    lengths = torch.tensor([len(prompts[row // group_size]) for row in packed.rows.tolist()])
    before = packed.unpack(packed.position_ids.flatten()[packed.source])
    assert torch.equal(before, (lengths.unsqueeze(1) - 1 + torch.arange(ids.shape[1])).where(kept, 0))
    seen = packed.unpack(packed.input_ids.flatten()[packed.source])
    for b, row in enumerate(packed.rows.tolist()):
        previous = torch.cat([prompts[row // group_size][-1:], ids[row][mask[row]][:-1]])
        assert torch.equal(seen[b][mask[row]], previous)


@settings(deadline=None, max_examples=150)
@given(lengths=LENGTHS, prompt_lengths=st.lists(st.integers(1, 5), min_size=3, max_size=3), budget=st.integers(1, 40))
def test_each_completion_is_packed_once_within_the_budget(lengths, prompt_lengths, budget):
    prompts, (ids, mask) = prompts_of(prompt_lengths), rows_of(lengths)
    packs = list(pack(prompts, ids, mask, 2, budget))
    for packed in packs:
        check_micro_batch(packed, prompts, ids, mask, 2, budget)
    rows = [row for packed in packs for row in packed.rows.tolist()]
    assert sorted(rows) == [row for row, length in enumerate(lengths) if length > 0]
    widths = [packed.input_ids.shape[1] for packed in packs]
    assert widths == sorted(widths, reverse=True)


@pytest.mark.parametrize(("budget", "parts"), [(11, [[0, 1, 2]]), (10, [[0, 1], [2]]), (4, [[0], [1], [2]]), (1, None)])
def test_a_group_is_split_only_where_it_must_be(budget, parts):
    ids, mask = rows_of([4, 4, 4])
    packs = list(pack(prompts_of([2]), ids, mask, 3, budget))
    assert [packed.rows.tolist() for packed in packs] == (parts or [[0], [1], [2]])
    assert all(packed.input_ids[0, :2].tolist() == [10, 11] for packed in packs)


def test_unpack_is_differentiable():
    ids, mask = rows_of([2, 3])
    (packed,) = pack(prompts_of([2]), ids, mask, 2, 100)
    values = torch.arange(5.0, requires_grad=True)
    unpacked = packed.unpack(values)
    (unpacked * torch.arange(12.0).view(2, 6)).sum().backward()
    assert unpacked[~mask].tolist() == [0.0] * 7
    assert values.grad.tolist() == [0, 1, 6, 7, 8]


def naive_mask(segments: list[int], positions: list[int], window: int | None) -> list[list[bool]]:
    def sees(query: int, key: int) -> bool:
        if query == key:
            return True
        related = segments[key] in (0, segments[query]) and segments[key] != PADDING
        near = window is None or positions[query] - positions[key] < window
        return key < query and related and near

    return [[sees(query, key) for key in range(len(segments))] for query in range(len(segments))]


@pytest.mark.parametrize("window", [None, 1, 2, 3, 50])
@pytest.mark.parametrize("lengths", [[3, 4, 1, 5, 0, 2], [6, 6, 6, 6, 6, 6], [1, 1, 1, 1, 0, 1]])
def test_tree_mask_is_the_naive_loop(lengths, window):
    ids, mask = rows_of(lengths)
    for packed in pack(prompts_of([3, 1, 2]), ids, mask, 2, 60):
        allowed = tree_mask(packed.segments, packed.position_ids, window)
        assert allowed.shape == (len(packed.segments), 1, *[packed.segments.shape[1]] * 2)
        rows = zip(packed.segments.tolist(), packed.position_ids.tolist(), strict=True)
        assert allowed[:, 0].tolist() == [naive_mask(*row, window) for row in rows]
