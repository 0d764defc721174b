"""Packed scoring against the plain model, one sequence at a time: values, gradients, and what
loading promises.
"""

from __future__ import annotations

import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

import rlif_lightning.model.policy as policy_module
from harness.models import ARCHITECTURES
from harness.scoring import (
    HOT,
    PLAIN,
    assert_same_gradients,
    completions_of,
    gradients,
    score,
    score_plainly,
)
from rlif_lightning.model.loading import LoRA, Policy
from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.records import TokenStats


def assert_close(left: TokenStats, right: TokenStats, tolerance: float = 1e-4) -> None:
    for name, value in vars(left).items():
        torch.testing.assert_close(
            value,
            getattr(right, name),
            rtol=tolerance,
            atol=tolerance,
            msg=lambda m, n=name: f"{n}: {m}",
        )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("sampling", [PLAIN, HOT], ids=["plain", "hot"])
def test_packed_scoring_is_one_sequence_at_a_time(tiny_models, architecture, sampling):
    policy = PolicyModel(Policy(str(tiny_models[architecture]))).double()
    policy.eos_ids = list(
        range(2, 20)
    )  # so that a minimum length takes a good part of the distribution away
    plain = score_plainly(policy, sampling)
    expected = gradients(policy, plain)
    packed = score(policy, sampling)
    assert_close(packed, plain, 1e-5)  # the library's norms and rotary angles stay in float32
    assert_same_gradients(gradients(policy, packed), expected, 1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_eager_attention_and_gradient_checkpointing_change_nothing(tiny_models, architecture):
    folder = str(tiny_models[architecture])
    policy = PolicyModel(Policy(folder))
    stats = score(policy, HOT)
    expected = gradients(policy, stats)
    for settings in ({"attention": "eager"}, {"gradient_checkpointing": True}):
        other = PolicyModel(Policy(folder, **settings))
        found = score(other, HOT)
        assert_close(found, stats)
        assert_same_gradients(gradients(other, found), expected, 1e-3)


def test_the_budget_and_the_chunks_of_the_head_change_nothing(tiny_models, monkeypatch):
    policy = PolicyModel(Policy(str(tiny_models["llama"])))
    whole = score(policy, HOT, budget=1000)
    expected = gradients(policy, whole)
    monkeypatch.setattr(
        policy_module, "KEPT_LOGITS", {"cpu": 0}
    )  # none are kept: chunks, recomputed in the backward pass
    monkeypatch.setattr(policy_module, "MAX_LOGITS", {"cpu": 5 * policy.vocab_size})
    parts = score(policy, HOT, budget=15)
    assert_close(parts, whole)
    assert_same_gradients(gradients(policy, parts), expected, 1e-3)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_bfloat16_models_give_float32_statistics(tiny_models, architecture):
    policy = PolicyModel(Policy(str(tiny_models[architecture]), dtype="bfloat16"))
    with torch.no_grad():
        stats, exact = (
            score(p, PLAIN) for p in (policy, PolicyModel(Policy(str(tiny_models[architecture]))))
        )
    assert policy.model.dtype == torch.bfloat16
    assert {value.dtype for value in vars(stats).values()} == {torch.float32}
    mask = completions_of(policy.vocab_size).mask
    assert float((stats.logprobs - exact.logprobs)[mask].abs().mean()) < 0.1


def test_dropout_is_off(tiny_models):
    """GPT-2's configuration has three dropouts of 0.1, and a policy is in training mode."""
    policy = PolicyModel(Policy(str(tiny_models["gpt2"])))
    assert policy.training
    assert policy.model.config.resid_pdrop == 0.1
    first = score(policy, PLAIN)
    assert torch.equal(first.logprobs, score(policy, PLAIN).logprobs)
    assert torch.equal(first.logprobs, score(policy.eval(), PLAIN).logprobs)


# peft reads a name that transformers 5.23 deprecates, and tells that GPT-2's layers are stored
# transposed.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_lora_with_its_adapters_off_is_the_base_model(tiny_models, architecture):
    pytest.importorskip("peft")
    folder = str(tiny_models[architecture])
    policy = PolicyModel(Policy(folder, lora=LoRA(rank=2, alpha=4)))
    base = score(PolicyModel(Policy(folder)), PLAIN)
    torch.manual_seed(0)
    for name, parameter in policy.named_parameters():
        assert parameter.requires_grad == ("lora_" in name)
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted = score(policy, PLAIN)
    assert float((adapted.logprobs - base.logprobs).abs().max()) > 0.1
    with policy.adapters_off():
        assert_close(score(policy, PLAIN), base, 1e-6)
    assert_close(score(policy, PLAIN), adapted, 0.0)
    assert_close(score_plainly(policy, PLAIN), adapted)


def test_a_frozen_model_has_no_gradient(tiny_models):
    policy = PolicyModel(Policy(str(tiny_models["llama"])), frozen=True)
    assert not any(parameter.requires_grad for parameter in policy.parameters())
    assert not score(policy, PLAIN).logprobs.requires_grad


def test_a_model_that_cannot_end_is_refused(tiny_models, tmp_path):
    policy = PolicyModel(Policy(str(tiny_models["gpt2"])))
    policy.tokenizer.eos_token = None
    policy.tokenizer.save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tiny_models["llama"])
    model.generation_config.eos_token_id = model.config.eos_token_id = None
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="names an end-of-sequence token"):
        PolicyModel(Policy(str(tmp_path)))


def test_a_missing_model_is_named():
    with pytest.raises(
        ValueError, match=r"policy.name='no/such/folder' is neither a model folder nor a hub model"
    ):
        PolicyModel(Policy("no/such/folder"))


@pytest.mark.parametrize("settings", [{"dtype": "int8"}, {"attention": "flash_attention_2"}])
def test_unknown_settings_list_the_known_ones(settings):
    (name,) = settings
    with pytest.raises(ValueError, match=f"policy.{name}='.*use one of"):
        Policy("rlif-arithmetic", **settings)


def test_lora_without_peft_names_the_extra(tiny_models, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match=r'pip install "rlif-lightning\[lora\]"'):
        PolicyModel(Policy(str(tiny_models["llama"]), lora=LoRA()))


def test_pickled_weights_are_refused(tiny_models, tmp_path):
    """A checkpoint of torch.save could run code when loaded."""
    model = AutoModelForCausalLM.from_pretrained(tiny_models["llama"])
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"policy\.name="):
        PolicyModel(Policy(str(tmp_path)))
