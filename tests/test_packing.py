"""Packing: the tree of the module's docstring, the token budget, split groups, the way back, and
rows of their own.
"""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.trees import SHAPES, line_of
from rlif_lightning.model.packing import Packed, Tree, own_rows, pack, positions
from rlif_lightning.records import Completions

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
    (packed,) = pack(Completions(prompts_of([3]), ids, mask, 2), 100)
    assert packed.input_ids.tolist() == [10, 11, 12, 100, 101, 200, 201, 202]
    assert packed.position_ids.tolist() == [0, 1, 2, 3, 4, 3, 4, 5]
    assert packed.trees == (Tree(0, 3, (2, 3)),)
    assert packed.trees[0].size == 8
    assert packed.trees[0].starts() == [3, 5]
    assert packed.source.tolist() == [2, 3, 4, 2, 5, 6, 7]
    assert packed.tokens.tolist() == [100, 101, 102, 200, 201, 202, 203]
    assert packed.slots.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert packed.positions.tolist() == [0, 1, 2, 0, 1, 2, 3]
    assert packed.shape == (2, 4)


def test_trees_follow_each_other_without_padding():
    ids, mask = rows_of([2, 4, 1], width=4)
    (packed,) = pack(Completions(prompts_of([1, 2, 2]), ids, mask, 1), 100)
    assert packed.rows.tolist() == [1, 0, 2]  # the largest tree comes first
    assert packed.trees == (Tree(0, 2, (3,)), Tree(5, 1, (1,)), Tree(7, 2, (0,)))
    assert packed.input_ids.tolist() == [20, 21, 200, 201, 202, 10, 100, 30, 31]
    assert packed.position_ids.tolist() == [0, 1, 2, 3, 4, 0, 1, 0, 1]
    assert packed.source.tolist() == [1, 2, 3, 4, 5, 6, 8]


def check_micro_batch(packed: Packed, prompts, ids, mask, group_size: int, budget: int) -> None:
    (size,) = packed.input_ids.shape
    needed = sum(tree.size for tree in packed.trees)  # nothing but trees, one after the other
    assert packed.position_ids.shape == (size,)
    assert size == needed
    assert [tree.start for tree in packed.trees] == [
        sum(t.size for t in packed.trees[:k]) for k in range(len(packed.trees))
    ]
    assert size <= budget or len(packed.rows) == 1
    restored = packed.unpack(packed.tokens)
    kept = mask[packed.rows]
    assert torch.equal(restored, ids[packed.rows].where(kept, 0))
    lengths = torch.tensor([len(prompts[row // group_size]) for row in packed.rows.tolist()])
    before = packed.unpack(packed.position_ids[packed.source])
    assert torch.equal(
        before, (lengths.unsqueeze(1) - 1 + torch.arange(ids.shape[1])).where(kept, 0)
    )
    seen = packed.unpack(packed.input_ids[packed.source])
    for b, row in enumerate(packed.rows.tolist()):
        previous = torch.cat([prompts[row // group_size][-1:], ids[row][mask[row]][:-1]])
        assert torch.equal(seen[b][mask[row]], previous)
    check_trees(packed, prompts, ids, mask, group_size)


def check_trees(packed: Packed, prompts, ids, mask, group_size: int) -> None:
    """Every tree is one prompt and then its rows' inputs, in the order of ``rows``."""
    rows = iter(packed.rows.tolist())
    for tree in packed.trees:
        own = [next(rows) for _ in tree.lengths]
        assert own
        (group,) = {row // group_size for row in own}
        expected = torch.cat([prompts[group], *(ids[row][mask[row]][:-1] for row in own)])
        assert torch.equal(packed.input_ids[tree.start : tree.start + tree.size], expected)
        assert [length + 1 for length in tree.lengths] == [int(mask[row].sum()) for row in own]
    assert next(rows, None) is None


@settings(deadline=None, max_examples=150)
@given(
    lengths=LENGTHS,
    prompt_lengths=st.lists(st.integers(1, 5), min_size=3, max_size=3),
    budget=st.integers(1, 40),
)
def test_each_completion_is_packed_once_within_the_budget(lengths, prompt_lengths, budget):
    prompts, (ids, mask) = prompts_of(prompt_lengths), rows_of(lengths)
    packs = list(pack(Completions(prompts, ids, mask, 2), budget))
    for packed in packs:
        check_micro_batch(packed, prompts, ids, mask, 2, budget)
    rows = [row for packed in packs for row in packed.rows.tolist()]
    assert sorted(rows) == [row for row, length in enumerate(lengths) if length > 0]
    sizes = [tree.size for packed in packs for tree in packed.trees]
    assert sizes == sorted(sizes, reverse=True)
    for packed, following in pairwise(packs):  # none is cut off early
        assert len(packed.input_ids) + following.trees[0].size > budget


@pytest.mark.parametrize("budget", [11, 10, 8, 7, 4, 1])
def test_a_group_is_split_only_where_it_must_be(budget):
    """A prompt of 2 and three completions of 3 inputs each: 11 tokens; parts of two take 8, of one
    5.
    """
    parts = {11: [[0, 1, 2]], 10: [[0, 1], [2]], 8: [[0, 1], [2]]}
    ids, mask = rows_of([4, 4, 4])
    packs = list(pack(Completions(prompts_of([2]), ids, mask, 3), budget))
    assert [packed.rows.tolist() for packed in packs] == parts.get(budget, [[0], [1], [2]])
    assert all(packed.input_ids[:2].tolist() == [10, 11] for packed in packs)


def test_a_completion_over_the_budget_gets_a_micro_batch_of_its_own():
    ids, mask = rows_of([6, 2, 2])
    packs = list(pack(Completions(prompts_of([3]), ids, mask, 3), 6))
    assert [packed.rows.tolist() for packed in packs] == [[0], [1, 2]]
    assert [len(packed.input_ids) for packed in packs] == [8, 5]


def test_nothing_to_pack_gives_no_micro_batch():
    ids, mask = rows_of([0, 0])
    assert list(pack(Completions(prompts_of([3]), ids, mask, 2), 6)) == []


def test_unpack_is_differentiable():
    ids, mask = rows_of([2, 3])
    (packed,) = pack(Completions(prompts_of([2]), ids, mask, 2), 100)
    values = torch.arange(5.0, requires_grad=True)
    unpacked = packed.unpack(values)
    (unpacked * torch.arange(12.0).view(2, 6)).sum().backward()
    assert unpacked[~mask].tolist() == [0.0] * 7
    assert values.grad.tolist() == [0, 1, 6, 7, 8]


@settings(deadline=None, max_examples=100)
@given(
    lengths=LENGTHS,
    prompt_lengths=st.lists(st.integers(1, 5), min_size=3, max_size=3),
    budget=st.integers(1, 40),
)
def test_rows_of_their_own_have_every_token_behind_its_whole_context(
    lengths, prompt_lengths, budget
):
    prompts, (ids, mask) = prompts_of(prompt_lengths), rows_of(lengths)
    for packed in pack(Completions(prompts, ids, mask, 2), budget):
        own, source = own_rows(packed)
        expected = [
            torch.cat([prompts[row // 2], ids[row][mask[row]][:-1]]) for row in packed.rows.tolist()
        ]
        assert own.shape == (len(expected), max(map(len, expected)))
        for row, line in zip(own, expected, strict=True):
            assert torch.equal(row, torch.nn.functional.pad(line, (0, own.shape[1] - len(line))))
        places = packed.unpack(source % own.shape[1])
        lengths_before = torch.tensor(
            [len(prompts[row // 2]) for row in packed.rows.tolist()]
        ).unsqueeze(1)
        kept = mask[packed.rows]
        assert torch.equal(places, (lengths_before - 1 + torch.arange(ids.shape[1])).where(kept, 0))
        owners = packed.unpack(source // own.shape[1])
        assert torch.equal(
            owners, torch.arange(len(expected)).unsqueeze(1).expand_as(kept).where(kept, 0)
        )


@settings(deadline=None, max_examples=100)
@given(shapes=SHAPES)
def test_positions_go_on_where_the_prompt_ends(shapes):
    expected = [
        [*range(p)] + [p + t for length in lengths for t in range(length)] for p, lengths in shapes
    ]
    assert positions(line_of(shapes)).tolist() == [place for tree in expected for place in tree]
