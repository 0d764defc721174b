"""The hook in Hugging Face's attention: what masks tell it, what it refuses, and that every layer
asks once.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from transformers.masking_utils import (
    and_masks,
    bidirectional_mask_function,
    causal_mask_function,
    chunked_causal_mask_function,
    padding_mask_function,
    sliding_window_causal_mask_function,
)

from harness.trees import line, plain_attention
from rlif_lightning.model.plan_hook import PlanError, attend, following, plan_mask, window_of
from rlif_lightning.model.scores import Scores

CAUSAL = {"mask_function": causal_mask_function}
WINDOW = {"mask_function": sliding_window_causal_mask_function(7), "local_size": 7}


class Echo:
    """A plan that tells what it was asked."""

    def attend(self, *asked):
        return asked


def layer(number: int = 3) -> SimpleNamespace:
    return SimpleNamespace(layer_idx=number, is_causal=True, num_key_value_groups=2, training=False)


def allowed(tokens: int = 5) -> Tensor:
    return torch.ones(tokens, tokens, dtype=torch.bool).tril()


@pytest.mark.parametrize(("mask", "window"), [(CAUSAL, None), (WINDOW, 7)])
def test_the_hook_hands_everything_to_the_plan(mask, window):
    query, key, value = line(5, 2, 0)
    sinks = torch.ones(4)
    with following(Echo(), {3: "the layer"}):
        given = plan_mask(1, 5, 5, **mask)
        asked, weights = attend(
            layer(), query, key, value, given, scaling=0.3, softcap=2.0, s_aux=sinks
        )
    assert weights is None
    assert asked == (3, query, key, value, Scores(0.3, window, 2.0, sinks))


@pytest.mark.parametrize(
    ("given", "autocast", "expected"),
    [
        (
            [torch.float32] * 2 + [torch.bfloat16],
            True,
            torch.bfloat16,
        ),  # what rotary angles leave under autocast
        ([torch.float32] * 3, True, torch.bfloat16),
        ([torch.float32] * 2 + [torch.bfloat16], False, torch.bfloat16),
        ([torch.float32] * 3, False, torch.float32),
        ([torch.float64] * 3, True, torch.float64),
    ],
)
def test_a_plan_gets_queries_keys_and_values_in_one_precision(given, autocast, expected):
    """Not every kernel is reached by autocast: CUDA's lower right bias refuses float32 keys of
    bfloat16 values.
    """
    inputs = [values.to(dtype) for values, dtype in zip(line(5, 2, 0), given, strict=True)]
    with (
        following(Echo(), {3: "the layer"}),
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
    ):
        (_, *asked, _), _ = attend(layer(), *inputs, plan_mask(1, 5, 5, **CAUSAL))
    assert [values.dtype for values in asked] == [expected] * 3
    assert all(
        one is other for one, other in zip(asked, inputs, strict=True) if other.dtype == expected
    )


def test_a_layer_that_is_recomputed_after_its_forward_still_follows_the_plan():
    inputs = line(5, 2, 0)
    with following(Echo(), {3: "the layer"}):
        given = plan_mask(1, 5, 5, **WINDOW)
        attend(layer(), *inputs, given)
    asked, _ = attend(layer(), *inputs, given)
    assert asked[-1] == Scores(None, 7)


def ask(layers: list[int], mask: Tensor | None, expected: dict[int, str], **extra) -> None:
    """One planned forward in which layers ask, under the plan's mask if none is given."""
    with following(Echo(), expected):
        given = plan_mask(1, 5, 5, **CAUSAL) if mask is None else mask
        for number in layers:
            attend(layer(number), *line(5, 2, 0), given, **extra)


@pytest.mark.parametrize("times", [0, 2])
def test_a_layer_that_does_not_ask_once_is_named(times):
    with pytest.raises(
        PlanError,
        match=rf"layers.1 .* {times} times .* instead of once; set model.policy.attention",
    ):
        ask([0, *[1] * times], None, {0: "layers.0 (Attention)", 1: "layers.1 (Attention)"})


def test_in_a_planned_forward_a_mask_without_the_plan_is_refused():
    with pytest.raises(PlanError, match="SimpleNamespace 3 attends under a mask of its own"):
        ask([3], torch.ones((1, 1, 5, 5), dtype=torch.bool), {})


def test_only_a_layer_that_uses_an_unreadable_mask_is_refused():
    """Qwen 2 MoE makes a mask with a window of 0 that no layer uses."""
    with following(Echo(), {}):
        unreadable = plan_mask(1, 5, 5, mask_function=bidirectional_mask_function)
    with pytest.raises(
        PlanError,
        match="attends under a mask that is neither causal nor a sliding window; set model",
    ):
        ask([3], unreadable, {})


EXTRAS = [{"position_bias": torch.zeros(1)}, {"indices": torch.zeros(1)}, {"is_causal": False}]


@pytest.mark.parametrize("extra", EXTRAS, ids=lambda extra: next(iter(extra)))
def test_what_no_plan_knows_is_refused(extra):
    (name,) = extra
    with pytest.raises(PlanError, match=f"uses {name}"):
        ask([3], None, {3: "the layer"}, **extra)
    ask([3], None, {3: "the layer"}, **{name: None})


@pytest.mark.parametrize("window", [1, 2, 3, 63, 64, 65, 4096])
def test_windows_are_read_from_the_rule(window):
    assert window_of(causal_mask_function, window) is None
    assert window_of(sliding_window_causal_mask_function(window), window) == window


def test_rules_are_read_while_another_device_is_the_default():
    """Lightning loads models with the GPU as the default device."""
    with torch.device("meta"):
        assert window_of(causal_mask_function, 7) is None
        assert window_of(sliding_window_causal_mask_function(7), 7) == 7


@pytest.mark.parametrize("size", [None, 1, 4, 100])
@pytest.mark.parametrize(
    "rule",
    [
        bidirectional_mask_function,
        chunked_causal_mask_function(4, torch.zeros(1, dtype=torch.int64)),
        sliding_window_causal_mask_function(9),
        and_masks(
            causal_mask_function, padding_mask_function(torch.ones((1, 4), dtype=torch.bool))
        ),
    ],
    ids=["bidirectional", "chunked", "another window", "padding"],
)
def test_other_rules_are_refused(rule, size):
    with pytest.raises(PlanError, match=r"neither causal nor a sliding window|rule cannot be read"):
        window_of(rule, size)


@pytest.mark.parametrize(
    "scores", [Scores(0.7), Scores(0.7, None, 0.8), Scores(0.7, None, None, torch.arange(4.0))]
)
@pytest.mark.parametrize("masked", [False, True])
def test_without_a_plan_the_hook_is_the_model_s_own_attention(masked, scores):
    inputs = line(5, 2, 0)
    seen = allowed()
    if masked:
        seen[4, 0] = False
    mask = seen[None, None] if masked else plan_mask(1, 5, 5, **CAUSAL)
    output, _ = attend(
        layer(), *inputs, mask, scaling=0.7, softcap=scores.softcap, s_aux=scores.sinks
    )
    torch.testing.assert_close(output, plain_attention(*inputs, seen, scores))
