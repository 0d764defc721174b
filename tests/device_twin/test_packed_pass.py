"""The packed pass on what answers to ``cuda``: its branches give the CPU's numbers, in float32 and bf16-mixed."""

from __future__ import annotations

import pytest
import torch
from conftest import ARCHITECTURES
from test_policy import GROUP, HOT, NAMES, assert_same_gradients, gradients
from torch import Tensor

from rlif_lightning.model.loading import Policy
from rlif_lightning.model.packing import pack
from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.records import TokenStats
from rlif_lightning.sampling import Sampling

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU or its twin")
SHAPES = {
    "one tree": ([9], [12, 7, 5]),  # its attention needs no mask
    "even": ([6, 6], [12, 1, 7, 5, 2, 9]),
    "ragged": ([9, 4], [12, 1, 7, 5, 2, 9]),
}


def line(vocab_size: int, prompt_lengths: list[int], lengths: list[int]) -> tuple[list[Tensor], Tensor, Tensor]:
    """Prompts ``[L_p]``, completions ``[B, T]`` and their mask."""
    generator = torch.Generator().manual_seed(5)
    prompts = [torch.randint(4, vocab_size, (length,), generator=generator) for length in prompt_lengths]
    mask = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)
    return prompts, torch.randint(20, vocab_size, mask.shape, generator=generator).where(mask, 0), mask


def scored(policy: PolicyModel, shape: str, device: str, halved: bool, sampling: Sampling = HOT) -> TokenStats:
    """``[B, T]`` statistics of a whole line on a device, with a graph."""
    prompts, ids, mask = line(policy.vocab_size, *SHAPES[shape])
    given = [prompt.to(device) for prompt in prompts], ids.to(device), mask.to(device)
    (packed,) = pack(*given, GROUP, 1000)
    with torch.autocast(device, torch.bfloat16, enabled=halved):
        stats = policy.to(device)(packed, sampling)
    order = packed.rows.argsort()
    return TokenStats(*(getattr(stats, name)[order] for name in NAMES))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("halved", [False, True], ids=["float32", "bf16-mixed"])
@pytest.mark.parametrize("settings", [{}, {"gradient_checkpointing": True}], ids=["kept", "recomputed"])
def test_numbers_and_gradients_are_those_of_the_cpu(tiny_models, architecture, shape, halved, settings):
    policy = PolicyModel(Policy(str(tiny_models[architecture]), **settings))
    found = {}
    for device in ("cpu", "cuda"):
        stats = scored(policy, shape, device, halved)
        loss = {name: value.cpu() for name, value in gradients(policy, stats.map(Tensor.cpu)).items()}
        found[device] = stats.map(lambda value: value.detach().cpu()), loss
    (expected, of_cpu), (other, of_cuda) = found.values()
    tolerance = 0.1 if halved else 1e-4
    for name, value in vars(expected).items():
        torch.testing.assert_close(getattr(other, name), value, rtol=tolerance, atol=tolerance)
    assert_same_gradients(of_cuda, of_cpu, 0.2 if halved else 1e-3)
