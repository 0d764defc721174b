"""Random policies in the shapes of published models: speed needs no trained weights."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LlamaConfig,
    PretrainedConfig,
    Qwen2Config,
)

from rlif_lightning.model.loading import Policy, prepare_model
from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.records import Prompts

# Sources: the config.json of HuggingFaceTB/SmolLM2-135M and of Qwen/Qwen2.5-1.5B.
SHAPES: dict[str, PretrainedConfig] = {
    "tiny28": Qwen2Config(
        vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=28,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
    ),
    "SmolLM2-135M": LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
        num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=8192,
        tie_word_embeddings=True,
    ),
    "Qwen2.5-1.5B": Qwen2Config(
        vocab_size=151936, hidden_size=1536, intermediate_size=8960, num_hidden_layers=28,
        num_attention_heads=12, num_key_value_heads=2, max_position_embeddings=32768,
        tie_word_embeddings=True,
    ),
}  # fmt: skip


def random_model(shape: str, device: torch.device | str, dtype: torch.dtype = torch.float32) -> Any:
    """Build a model of a shape; weights are the same in every call on one device."""
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(SHAPES[shape], dtype=dtype)
    model.generation_config = GenerationConfig(eos_token_id=0, pad_token_id=0)
    return model.eval()


def random_policy(shape: str, device: torch.device | str, **settings: Any) -> PolicyModel:
    """Build a policy of a shape with the embedded tokenizer; ``embedded`` is that model."""
    policy = Policy("rlif-arithmetic", **settings)
    if shape == "embedded":
        return PolicyModel(policy).to(device)
    dtype = getattr(torch, policy.dtype)
    return PolicyModel(
        policy, load=lambda given: prepare_model(random_model(shape, device, dtype), given)
    ).to(device)


def random_prompts(count: int, length: int, vocabulary: int, device: torch.device | str) -> Prompts:
    """Draw prompts of random tokens, all of one length."""
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(1, vocabulary, (length,), generator=generator) for _ in range(count)]
    return Prompts(ids, [""] * count, {}, torch.arange(count)).to(device)


def tried(work: Callable[[], Any]) -> Any:
    """Return a measurement, or its error, so that the next one still runs."""
    try:
        return work()
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"[:300]}
