"""Attention of packed trees: against plain float64 softmax under the dense tree mask, joined or
not.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right

import rlif_lightning.model.attention as attention
from harness.trees import (
    HEADS,
    SHAPES,
    SIZE,
    line,
    line_of,
    naive_mask,
    plain_attention,
    with_gradients,
)
from rlif_lightning.model.attention import Block, Layout, TreePlan, fused_attention
from rlif_lightning.model.masks import as_bias
from rlif_lightning.model.packing import Tree
from rlif_lightning.model.scores import Scores

CPU = torch.device("cpu")
JOINING = {
    "alone": (0.0, 0, 2**24),
    "similar": (1.25, 0, 2**24),
    "small": (0.0, 2**15, 2**24),
    "always": (1e9, 0, 2**60),
}


def block_of(trees: list[Tree]) -> Block:
    """All trees in one block."""
    layout = Layout(trees)
    return Block(layout, layout.indices())


def assert_all_close(found: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@settings(
    deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    shapes=SHAPES,
    window=st.none() | st.integers(1, 9),
    key_heads=st.sampled_from([1, 2, 4]),
    scaling=st.sampled_from([None, 0.7]),
    softcap=st.sampled_from([None, 0.8]),
    sinks=st.sampled_from([None, torch.tensor([0.5, -1.0, 2.0, 0.0], dtype=torch.float64)]),
    joining=st.sampled_from(sorted(JOINING)),
    seed=st.integers(0, 99),
)
def test_pieces_are_softmax_under_the_tree_mask(
    shapes, window, key_heads, scaling, softcap, sinks, joining, seed
):
    trees = line_of(shapes)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in zip(("WASTE", "SMALL", "LARGEST"), JOINING[joining], strict=True):
            patch.setattr(attention, name, value)
        plan = TreePlan(trees, CPU)
    if joining in ("alone", "always"):
        assert len(plan.blocks) == (1 if joining == "always" else len(trees))
    inputs = line(sum(tree.size for tree in trees), key_heads, seed)
    scores = Scores(scaling, window, softcap, sinks)
    output = plan.attend(0, *inputs, scores)
    allowed = torch.tensor(naive_mask(trees, window))
    expected = plain_attention(*inputs, allowed, scores)
    assert_all_close(with_gradients(output, inputs), with_gradients(expected, inputs))
    wide = Scores(scaling)  # of another layer, by the same plan
    assert_all_close(
        [plan.attend(1, *inputs, wide)], [TreePlan(trees, CPU).attend(0, *inputs, wide)]
    )


def test_trees_join_only_while_padding_stays_small(monkeypatch):
    """Equal trees join up to LARGEST pairs; one of another shape stays alone where starting a call
    is cheap.
    """
    same, long = Tree(0, 4, (3, 3)), Tree(0, 40, (3,))
    pairs = 16 + 2 * 3 * 7  # of one of the equal trees
    monkeypatch.setattr(attention, "SMALL", 0)
    sizes = lambda trees: [len(block) for block in attention._join_similar(trees)]  # noqa: E731
    assert sizes([same] * 6) == [6]
    assert sizes([same, same, long, same]) == [2, 1, 1]
    # Squares 1600, 1296, 1024, 784: three calls of 40 cost 4800 <= 1.25 * 3920, a fourth 6400 >
    # 1.25 * 4704.
    assert sizes([Tree(0, length) for length in (40, 36, 32, 28)]) == [3, 1]
    monkeypatch.setattr(attention, "LARGEST", 2 * pairs)
    assert sizes([same] * 6) == [2, 2, 2]
    monkeypatch.setattr(attention, "LARGEST", 2 * pairs - 1)
    assert sizes([same] * 3) == [1, 1, 1]
    monkeypatch.setattr(attention, "LARGEST", 2**24)
    monkeypatch.setattr(attention, "SMALL", 2**15)
    assert sizes([same, same, long, same]) == [4]


@settings(deadline=None, max_examples=40)
@given(shapes=SHAPES, joining=st.sampled_from(sorted(JOINING)))
def test_each_prompt_s_keys_are_kept_once_and_in_order(shapes, joining):
    trees, kept = line_of(shapes), []

    def keep(layer: int, block: Block, keys: Tensor, values: Tensor) -> None:
        assert keys.shape[0] == values.shape[0] == len(block.trees)
        for tree, one, other in zip(block.trees, keys, values, strict=True):
            kept.append((layer, tree, one[: tree.prompt_length], other[: tree.prompt_length]))

    with pytest.MonkeyPatch.context() as patch:
        for name, value in zip(("WASTE", "SMALL", "LARGEST"), JOINING[joining], strict=True):
            patch.setattr(attention, name, value)
        plan = TreePlan(trees, CPU, keep)
    query, key, value = line(sum(tree.size for tree in trees), 2, 0)
    plan.attend(5, query, key, value, Scores())
    assert [(layer, tree) for layer, tree, _, _ in kept] == [(5, tree) for tree in trees]
    for _, tree, keys, values in kept:
        span = slice(tree.start, tree.start + tree.prompt_length)
        assert torch.equal(keys, key[0, :, span].transpose(0, 1))
        assert torch.equal(values, value[0, :, span].transpose(0, 1))


@pytest.mark.parametrize("lengths", [(4, 4), (5, 2, 1)])
def test_the_lower_right_bias_is_the_mask(lengths):
    """What CUDA takes instead of a mask of even prompts says the same."""
    mask = block_of([Tree(0, 6, lengths)]).masks_of(None, torch.float32)[1]
    generator = torch.Generator().manual_seed(0)
    steps, reach = max(lengths), 6 + max(lengths)
    shapes = [
        (len(lengths), steps, HEADS, SIZE),
        (len(lengths), reach, HEADS, SIZE),
        (len(lengths), reach, HEADS, SIZE),
    ]
    inputs = [torch.randn(shape, generator=generator) for shape in shapes]
    biased = fused_attention(*inputs, causal_lower_right(steps, reach), None)
    torch.testing.assert_close(biased, fused_attention(*inputs, mask, None))


def test_even_prompts_share_one_mask_and_plain_prompts_need_none():
    """Masks of even prompts have no batch dimension; ragged ones have one row each, heads never."""
    even = block_of(line_of([(5, [3, 2]), (5, [3])]))
    for dtype in (torch.bool, torch.float32, torch.bfloat16):
        assert even.masks_of(None, dtype)[0] is None
        assert even.masks_of(None, dtype)[1].shape == even.masks_of(4, dtype)[1].shape == (3, 5 + 3)
        assert even.masks_of(4, dtype)[0].shape == (5, 5)
        assert even.masks_of(5, dtype)[0] is None  # the window is as wide as the prompt
        assert even.masks_of(4, dtype)[0].dtype == even.masks_of(4, dtype)[1].dtype == dtype
    ragged = block_of(line_of([(5, [3, 2]), (4, [3])]))
    assert ragged.masks_of(None, torch.float32)[1].shape == (3, 1, 3, 5 + 3)
    assert ragged.masks_of(None, torch.float32) is ragged.masks_of(
        None, torch.float32
    )  # made once for all layers
    assert block_of(line_of([(5, []), (4, [0])])).masks_of(None, torch.float32)[1] is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_bias_is_the_mask_in_another_form(dtype):
    seen = torch.rand(3, 1, 5, 19, generator=torch.Generator().manual_seed(0)) < 0.5
    bias = as_bias(seen, dtype)
    assert bias.dtype == dtype
    assert torch.equal(bias, torch.where(seen, 0.0, -torch.inf).to(dtype))


def test_a_single_tree_is_neither_copied_nor_put_in_order():
    plan = TreePlan([Tree(0, 5, (3, 3))], CPU)
    assert plan.where is None
    key = torch.randn(11, 2, SIZE)
    prompts = plan.blocks[0]._prompts(key)
    assert prompts.data_ptr() == key.data_ptr()
    assert plan.blocks[0]._of_completions(prompts).stride(0) == 0
    assert plan.blocks[0]._of_completions(prompts).shape == (2, 5, 2, SIZE)
