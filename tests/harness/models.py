"""Random tiny models of the main architectures."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile

import make_nli_classifier
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
    LlamaForSequenceClassification,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from rlif_lightning.model.loading import resolve_model

ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma3", "gpt2")
# For tests that take long: one with a window, a layer without one and a soft cap stands for all;
# `make test` adds the one without rotary positions.
TIERS = {"gemma3": (), "gpt2": pytest.mark.slow}
EACH_ARCHITECTURE = [
    pytest.param(name, marks=TIERS.get(name, pytest.mark.full)) for name in ARCHITECTURES
]


@functools.cache
def classifier_folder(labels: int = 1, pad_token_id: int | None = 0) -> str:
    """A folder with a random two-layer reward model and the embedded model's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(resolve_model("rlif-arithmetic"))
    torch.manual_seed(labels)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        num_labels=labels,
        pad_token_id=pad_token_id,
    )
    folder = tempfile.mkdtemp(prefix="classifier")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@functools.cache
def nli_folder() -> str:
    """A folder with what ``scripts/make_nli_classifier.py`` makes, without its training."""
    torch.manual_seed(0)
    tokenizer = make_nli_classifier.nli_tokenizer()
    folder = tempfile.mkdtemp(prefix="nli")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    make_nli_classifier.nli_model(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_model(architecture: str, vocab_size: int):
    """A random two-layer model with heads of 8, grouped keys, and (Gemma 3) a sliding window and a
    logit soft cap.
    """
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
