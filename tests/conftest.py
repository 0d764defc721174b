"""Shared fixtures: offline, one thread, and tiny models of every supported architecture made on the spot."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoTokenizer,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from rlif_lightning.model.loading import resolve_model

torch.set_num_threads(1)

ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma3", "gpt2")


def make_model(architecture: str, vocab_size: int):
    """A random two-layer model with heads of 8, grouped keys, and (Gemma 3) a sliding window and a logit soft cap."""
    common = {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if architecture == "llama":
        return LlamaForCausalLM(LlamaConfig(**common))
    if architecture == "qwen2":
        return Qwen2ForCausalLM(Qwen2Config(**common))
    if architecture == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(**common, head_dim=8))
    if architecture == "gpt2":
        return GPT2LMHeadModel(
            GPT2Config(vocab_size=vocab_size, n_embd=32, n_layer=2, n_head=4, n_positions=256)
        )
    config = Gemma3TextConfig(
        **common,
        head_dim=8,
        sliding_window=6,
        layer_types=["sliding_attention", "full_attention"],
        final_logit_softcapping=5.0,
    )
    return Gemma3ForCausalLM(config)


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory) -> dict[str, Path]:
    """Architecture -> folder of a random tiny model with the embedded model's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(resolve_model("rlif-arithmetic"))
    folders = {}
    for architecture in ARCHITECTURES:
        torch.manual_seed(0)
        model = make_model(architecture, len(tokenizer))
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.3)  # so that logits are far from uniform
        model.generation_config.eos_token_id = tokenizer.eos_token_id
        folders[architecture] = tmp_path_factory.mktemp(architecture)
        model.save_pretrained(folders[architecture])
        tokenizer.save_pretrained(folders[architecture])
    return folders
