"""Dropout is switched off by probability and by mode: each alone is enough in training mode."""

from __future__ import annotations

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from rlif_lightning.model.noise import set_quiet_mode, switch_noise_off

SIZES = {"vocab_size": 40, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def noisy(kind: str, attention: str):
    """A model that drops half of its attention weights in training mode."""
    torch.manual_seed(0)
    if kind == "gpt2":
        drops = {"attn_pdrop": 0.5, "resid_pdrop": 0.5, "embd_pdrop": 0.5}
        config = GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=16, **SIZES, **drops)
        model = GPT2LMHeadModel._from_config(config, attn_implementation=attention)
    else:
        config = LlamaConfig(
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            attention_dropout=0.5,
            **SIZES,
        )
        model = LlamaForCausalLM._from_config(config, attn_implementation=attention)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.5)
    return model.train()


def logits(model) -> torch.Tensor:
    return model(input_ids=torch.arange(4, 14).unsqueeze(0), use_cache=False).logits.detach()


def is_still(model) -> bool:
    """Whether two passes give the same logits as evaluation mode does."""
    found = [logits(model), logits(model)]
    modes = [module.training for module in model.modules()]
    expected = logits(model.eval())
    for module, mode in zip(model.modules(), modes, strict=True):
        module.training = mode
    return all(torch.equal(each, expected) for each in found)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_each_switch_alone_stops_attention_dropout(kind, attention):
    model = noisy(kind, attention)
    assert not is_still(model)  # the model does drop in training mode
    set_quiet_mode(model, training=True)
    assert is_still(model)
    model = noisy(kind, attention)
    switch_noise_off(model)
    assert all(module.training for module in model.modules())
    assert is_still(model)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_only_what_recomputes_activations_stays_in_training_mode(kind):
    model = noisy(kind, "eager")
    for module in model.modules():
        if hasattr(module, "gradient_checkpointing"):
            module.gradient_checkpointing = True
    set_quiet_mode(model, training=True)
    training = {type(module) for module in model.modules() if module.training}
    assert training
    assert all(module.gradient_checkpointing for module in model.modules() if module.training)
    set_quiet_mode(model, training=False)
    assert not any(module.training for module in model.modules())


def test_a_layer_that_drops_by_its_configuration_is_stopped_and_the_exported_one_keeps_it():
    """Layers that read the probability from ``config`` get a quiet copy."""
    model = noisy("llama", "eager")
    layer = model.model.layers[0].self_attn
    switch_noise_off(model)
    assert layer.attention_dropout == 0
    assert layer.config.attention_dropout == 0
    assert model.config.attention_dropout == 0.5
