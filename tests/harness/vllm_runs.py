"""Runs with vLLM's engine, and what they need."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from rlif_lightning.model.loading import Policy
from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.records import Prompts, Rollout
from rlif_lightning.sampling import Sampling

INSTALLED = importlib.util.find_spec("vllm") is not None
needs_vllm = pytest.mark.skipif(not INSTALLED, reason="vllm is not installed")
GROUP = 4
PLAIN = Sampling(max_new_tokens=24)


def changed(folder: str = "rlif-arithmetic", scale: float = 0.05, **settings) -> PolicyModel:
    """A policy whose weights are not those on disk; its tied embedding is changed as well."""
    policy = PolicyModel(Policy(folder, **settings))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad and parameter.dim() == 2:
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return policy


def prompts_of(
    policy: PolicyModel, texts: tuple[str, ...] = ("3+4+5=", "1+2=", "12+34=", "7+7+7=")
) -> Prompts:
    ids = [
        torch.tensor(policy.tokenizer(text, add_special_tokens=False).input_ids) for text in texts
    ]
    return Prompts(ids, list(texts), {}, torch.arange(len(texts)) + 5)


def gap_of(rollout: Rollout) -> float:
    assert rollout.engine_logprobs is not None
    return float((rollout.engine_logprobs - rollout.stats.logprobs)[rollout.mask].abs().max())


# vLLM warns of its own accord; the command line is tested with warnings as errors elsewhere.
with_vllm = [needs_vllm, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def vllm_test(function):
    for mark in with_vllm:
        function = mark(function)
    return function
