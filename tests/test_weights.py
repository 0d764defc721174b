"""What is handed to a sampler with a copy of the weights: loads into a plain model and gives the policy's logits."""

from __future__ import annotations

import pytest
import torch
from conftest import ARCHITECTURES
from transformers import AutoModelForCausalLM

from rlif_lightning.model.loading import LoRA, Policy
from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.rollout.vllm_weights import fingerprint, merged_weights


def changed_policy(folder, lora: bool) -> PolicyModel:
    """A policy whose trained weights are not those on disk."""
    policy = PolicyModel(Policy(str(folder), lora=LoRA(rank=2, alpha=4) if lora else None))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return policy


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_merged_weights_are_the_policy(tiny_models, architecture, lora):
    folder = tiny_models[architecture]
    policy = changed_policy(folder, lora)
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    plain = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.arange(4, 20).unsqueeze(0)
    with torch.no_grad():
        expected, base = policy.model(input_ids=ids).logits, plain(input_ids=ids).logits
        weights = dict(merged_weights(policy))
        missing, unexpected = plain.load_state_dict(weights, strict=False)
        plain.tie_weights()
        found = plain(input_ids=ids).logits
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}  # tied: yielded once
    assert float((expected - base).abs().max()) > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())


def test_a_fingerprint_changes_with_any_weight_however_it_is_written(tiny_models):
    policy = PolicyModel(Policy(str(tiny_models["llama"]), lora=LoRA(rank=2, alpha=4)))
    start = fingerprint(policy)
    assert torch.equal(start, fingerprint(policy))
    for parameter in (next(policy.parameters()), list(policy.parameters())[-1]):
        old = parameter.data.clone()
        parameter.data.view(-1)[0] += 1e-6  # not seen by autograd's version counter
        assert not torch.equal(start, fingerprint(policy))
        parameter.data.copy_(old)
        assert torch.equal(start, fingerprint(policy))
