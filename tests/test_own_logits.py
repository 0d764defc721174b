"""From hidden states to logits by the model's own forward: values, a gradient without a copy, and
no trace left.
"""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from harness.architectures import tiny_config
from rlif_lightning.model.own_logits import body, own_logits

ROWS = 5


def model_of(kind: str, **settings):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(tiny_config(kind, **settings)).eval()


def test_scales_and_caps_are_applied():
    """By hand: Granite divides by its scaling, Cohere multiplies, Gemma 2 caps by c tanh(z / c)."""
    hidden = torch.randn(ROWS, 32, generator=torch.Generator().manual_seed(0))
    expected = {
        "llama": lambda z: z,
        "granite": lambda z: z / 4,
        "cohere": lambda z: z * 0.25,
        "gemma2": lambda z: 5 * torch.tanh(z / 5),
    }
    for kind, rule in expected.items():
        model = model_of(kind)
        torch.testing.assert_close(
            own_logits(model, hidden), rule(hidden @ model.lm_head.weight.T), msg=kind
        )


@pytest.mark.parametrize(
    "kind", ["llama", "gpt2", "opt", "modernbert-decoder", "gemma3", "llama4_text"]
)
def test_they_are_the_logits_of_a_whole_forward(kind):
    model = model_of(kind)
    ids = torch.arange(3, 3 + ROWS)[None]
    with torch.no_grad():
        hidden = body(model)(input_ids=ids, use_cache=False).last_hidden_state[0]
        expected = model(input_ids=ids, use_cache=False).logits[0]
        assert torch.equal(own_logits(model, hidden), expected)
        assert torch.equal(model(input_ids=ids, use_cache=False).logits[0], expected)


def test_a_plain_head_gives_its_product_and_takes_its_gradient_without_a_copy():
    model = model_of("llama")
    received = []
    hook = model.lm_head.register_forward_hook(
        lambda _, __, output: output.register_hook(received.append) and None
    )
    logits = own_logits(model, torch.randn(ROWS, 32, requires_grad=True))
    hook.remove()
    gradient = torch.ones_like(logits)
    logits.backward(gradient)
    assert received[0].data_ptr() == gradient.data_ptr()


def test_the_base_model_is_itself_again_after_an_error():
    model = model_of("llama")
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        own_logits(model, torch.randn(ROWS, 31))
    assert "forward" not in vars(model.model)


def test_a_model_without_a_base_model_is_refused():
    model = model_of("llama").model
    with pytest.raises(ValueError, match="LlamaModel has no base model"):
        own_logits(model, torch.randn(ROWS, 32))
