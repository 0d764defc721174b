"""The packed pass on ``cuda``: its branches give the CPU's numbers, in float32 and bf16-mixed, by
the fused kernels.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.bias import CausalBias

import rlif_lightning.model.attention as attention
import rlif_lightning.model.policy as policy_module
from device_twin.backend import attention_calls
from device_twin.counting import watched
from harness.models import ARCHITECTURES
from harness.scoring import GROUP, HOT, NAMES, assert_same_gradients, gradients
from harness.trees import SHAPES as TREES
from harness.trees import line as tensors
from harness.trees import line_of, naive_mask, plain_attention, with_gradients
from rlif_lightning.model.attention import TreePlan
from rlif_lightning.model.loading import Policy
from rlif_lightning.model.masks import ALIGNED
from rlif_lightning.model.packing import pack
from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.model.scores import Scores
from rlif_lightning.records import Completions, TokenStats

CUDA = torch.device("cuda", 0)
SHAPES = {
    "one tree": ([9], [12, 7, 5]),  # its attention needs no mask
    "even": ([6, 6], [12, 1, 7, 5, 2, 9]),
    "ragged": ([9, 4], [12, 1, 7, 5, 2, 9]),
}


def line(
    vocab_size: int, prompt_lengths: list[int], lengths: list[int], device: str
) -> Completions:
    """Random completions of some lengths, on a device."""
    generator = torch.Generator().manual_seed(5)
    prompts = [
        torch.randint(4, vocab_size, (length,), generator=generator) for length in prompt_lengths
    ]
    mask = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)
    ids = torch.randint(20, vocab_size, mask.shape, generator=generator).where(mask, 0)
    prompts = [prompt.to(device) for prompt in prompts]
    return Completions(prompts, ids.to(device), mask.to(device), GROUP)


def scored(policy: PolicyModel, shape: str, device: str, mixed: bool) -> TokenStats:
    """``[B, T]`` statistics of a whole line on a device, with a graph."""
    (packed,) = pack(line(policy.vocab_size, *SHAPES[shape], device), 1000)
    with torch.autocast(device, torch.bfloat16, enabled=mixed, cache_enabled=False):
        stats = policy.to(device)(packed, HOT)
    order = packed.rows.argsort()
    return TokenStats(*(getattr(stats, name)[order] for name in NAMES))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mixed", [False, True], ids=["float32", "bf16-mixed"])
@pytest.mark.parametrize("recomputed", [False, True], ids=["kept", "recomputed"])
def test_numbers_and_gradients_are_those_of_the_cpu(
    tiny_models, architecture, shape, mixed, recomputed, monkeypatch
):
    policy = PolicyModel(Policy(str(tiny_models[architecture]), gradient_checkpointing=recomputed))
    if recomputed:  # the head's chunks as well
        for name, rows in (("KEPT_LOGITS", 0), ("MAX_LOGITS", 5)):
            sizes = dict.fromkeys(("cpu", "cuda"), rows * policy.vocab_size)
            monkeypatch.setattr(policy_module, name, sizes)
    found = []
    for device in ("cpu", "cuda"):
        stats = scored(policy, shape, device, mixed)
        loss = {
            name: value.cpu() for name, value in gradients(policy, stats.map(Tensor.cpu)).items()
        }
        found.append((stats.map(lambda value: value.detach().cpu()), loss))
    (expected, of_cpu), (other, of_cuda) = found
    tolerance = 0.1 if mixed else 1e-4
    for name, value in vars(expected).items():
        torch.testing.assert_close(getattr(other, name), value, rtol=tolerance, atol=tolerance)
    assert_same_gradients(of_cuda, of_cpu, 0.2 if mixed else 1e-3)


@settings(deadline=None, max_examples=60)
@given(
    shapes=TREES,
    window=st.none() | st.integers(1, 9),
    key_heads=st.sampled_from([1, 2, 4]),
    softcap=st.sampled_from([None, 0.8]),
    sinks=st.sampled_from([None, torch.tensor([0.5, -1.0, 2.0, 0.0], dtype=torch.float64)]),
    together=st.booleans(),
)
def test_attention_is_softmax_under_the_tree_mask(
    shapes, window, key_heads, softcap, sinks, together
):
    """In float64, whole blocks and single trees; windows, soft caps, sinks; ragged and even."""
    trees = line_of(shapes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "SMALL", 2**15 if together else 0)
        plan = TreePlan(trees, CUDA)
    inputs = tensors(sum(tree.size for tree in trees), key_heads, 0)
    on_cuda = [x.detach().to(CUDA).requires_grad_() for x in inputs]
    scores = Scores(0.7, window, softcap, None if sinks is None else sinks.to(CUDA))
    found = plan.attend(0, *on_cuda, scores)
    expected = plain_attention(
        *inputs, torch.tensor(naive_mask(trees, window)), Scores(0.7, window, softcap, sinks)
    )
    ramp = torch.linspace(-1, 2, found.numel(), dtype=found.dtype).view(found.shape).to(CUDA)
    given_back = [found.detach(), *torch.autograd.grad((found * ramp).sum(), on_cuda)]
    for one, other in zip(given_back, with_gradients(expected, inputs), strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("shape", "mixed", "kernel"),
    [
        ("one tree", True, "flash"),
        ("even", True, "flash"),
        ("ragged", True, "efficient"),  # of the completions; the prompts' is flash
        ("one tree", False, "efficient"),
        ("ragged", False, "efficient"),
    ],
)
def test_keys_are_repeated_and_masks_made_only_where_a_kernel_wants_it(
    tiny_models, monkeypatch, shape, mixed, kernel
):
    """Llama here has two heads of keys for four of queries; a kernel of the slow kind is never
    taken.
    """
    policy, seen = PolicyModel(Policy(str(tiny_models["llama"]))).to(CUDA), []
    fused = torch.nn.functional.scaled_dot_product_attention

    def noted(query: Tensor, key: Tensor, value: Tensor, attn_mask=None, **options) -> Tensor:
        assert not torch.backends.cuda.cudnn_sdp_enabled()  # whose kernels are built for one shape
        seen.append((key.shape[1], attn_mask))
        return fused(query, key, value, attn_mask=attn_mask, **options)

    monkeypatch.setattr(attention, "scaled_dot_product_attention", noted)
    before = attention_calls()
    with torch.no_grad():
        scored(policy, shape, "cuda", mixed)
    assert torch.backends.cuda.cudnn_sdp_enabled()
    taken = {name: number - before[name] for name, number in attention_calls().items()}
    assert (taken["math"], taken[kernel] > 0, len(seen)) == (
        0,
        True,
        2 * 2,
    )  # two layers: prompts, completions
    for heads, mask in seen:
        masked = type(mask) is Tensor
        assert heads == (2 if mixed and not masked else 4)
        assert masked == (
            shape == "ragged" and mask is not None and not isinstance(mask, CausalBias)
        )
        if masked:
            assert mask.dtype == (torch.bfloat16 if mixed else torch.float32)
            assert all(stride % ALIGNED == 0 for stride in mask.stride()[:-1])
    assert len({id(mask) for _, mask in seen if type(mask) is Tensor}) == (
        1 if shape == "ragged" else 0
    )


def test_a_plan_is_one_upload_and_its_masks_are_made_on_the_device():
    trees = line_of([(40, [30, 20]), (7, [9]), (300, [200, 100])])
    with watched() as watch:
        plan = TreePlan(trees, CUDA)
        for block in plan.blocks:
            for dtype in (torch.bool, torch.bfloat16, torch.float32):
                block.masks_of(None, dtype)
                block.masks_of(5, dtype)
    assert len(plan.blocks) > 1
    assert watch.totals()[1:] == (0, 1), (watch.waits, watch.uploads)
