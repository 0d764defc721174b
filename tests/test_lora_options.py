"""Adapters of other kinds, by peft's names: what they compute, and what a policy cannot have."""

from __future__ import annotations

import math
from importlib.util import find_spec
from typing import Any

import pytest
import torch

from harness.scoring import PLAIN, score, score_plainly
from rlif_lightning import LoRA, Policy
from rlif_lightning.model.adapters import merged
from rlif_lightning.model.export import write_model
from rlif_lightning.model.loading import refuse_other_weights
from rlif_lightning.model.policy import PolicyModel

peft = pytest.importorskip("peft")
FOLDER = "rlif-arithmetic"


def adapted(**settings: Any) -> PolicyModel:
    """A policy whose adapters do something."""
    policy = PolicyModel(Policy(FOLDER, lora=LoRA(rank=4, alpha=8, **settings)))
    torch.manual_seed(0)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return policy


@pytest.mark.parametrize("name", ["use_rslora", "use_dora"])
@torch.no_grad()
def test_adapters_of_other_kinds_are_scored_merged_and_switched_off(name, tmp_path):
    policy = adapted(options={name: True})
    found = score(policy, PLAIN)
    plain = score(PolicyModel(Policy(FOLDER)), PLAIN)
    assert float((found.logprobs - plain.logprobs).abs().max()) > 0.1
    torch.testing.assert_close(found.logprobs, score_plainly(policy, PLAIN).logprobs)
    with policy.adapters_off():
        torch.testing.assert_close(score(policy, PLAIN).logprobs, plain.logprobs)
    write_model(policy, policy.model.state_dict(), tmp_path / "whole", policy.settings)
    whole = score(PolicyModel(Policy(str(tmp_path / "whole"))), PLAIN)
    torch.testing.assert_close(found.logprobs, whole.logprobs, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_scale_is_peft_s():
    """alpha / rank = 8 / 4, or alpha / sqrt(rank) = 8 / 2."""
    for options, scale in (({}, 2.0), ({"use_rslora": True}, 4.0)):
        policy = adapted(options=options)
        assert policy.settings.lora is not None
        assert policy.settings.lora.scale == scale
        weights = merged(policy.model.state_dict(), scale, is_transposed=False)
        base = PolicyModel(Policy(FOLDER))
        base.model.load_state_dict(weights)
        torch.testing.assert_close(
            score(base, PLAIN).logprobs, score(policy, PLAIN).logprobs, rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": r".*\.layers\.0\..*(q|v)_proj"},
        {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [0]},
    ],
)
def test_layers_are_chosen_by_expression_and_number(options):
    policy = adapted(options=options)
    trained = {name for name, each in policy.named_parameters() if each.requires_grad}
    assert len(trained) == 4
    for name in trained:
        assert ".layers.0." in name
        assert ".q_proj." in name or ".v_proj." in name


def test_a_config_of_peft_s_is_taken_over():
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"], use_rslora=True)
    assert LoRA.of(config) == LoRA(4, 8, {"target_modules": ["q_proj"], "use_rslora": True})
    assert LoRA.of(config).scale == 8 / math.sqrt(4)
    assert LoRA.of(peft.LoraConfig()) == LoRA(peft.LoraConfig().r, peft.LoraConfig().lora_alpha)
    for other, message in (
        ({"lora_dropout": 0.1}, "lora_dropout=0.1 would have no effect"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save=.* is not supported; use one of"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' is not supported"),
        ({"bias": "all"}, "bias='all' is not supported"),
    ):
        with pytest.raises(ValueError, match=message):
            LoRA.of(peft.LoraConfig(**other))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora_dropout": 0.1}, "the same log-probs twice, so that nothing is dropped"),
        ({"r": 4}, "lora.options.r is lora.rank"),
        ({"load_in_8bit": True}, "load_in_8bit=True is not supported; use one of use_rslora"),
        ({"load_in_4bit": 1}, r"load_in_4bit=1 is unknown; use one of \(True, False\)"),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf3"}, "'nf3' is unknown; use one of"),
        ({"bnb_4bit_use_double_quant": True}, "has no effect without load_in_4bit=true"),
        ({"load_in_4bit": True, "bnb_4bit_compute_dtype": "bfloat16"}, "=bfloat16 is policy.dtype"),
        ({"use_dorra": True}, "use_dorra=True is not supported; use one of use_rslora, use_dora"),
    ],
)
def test_what_a_policy_cannot_have_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LoRA(options=options)


def test_switching_4_bits_off_says_nothing():
    off = LoRA(options={"load_in_4bit": False})
    assert off.four_bits is None
    assert off.in_full == LoRA()


@pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="bitsandbytes is there")
def test_4_bits_without_bitsandbytes_name_the_extra():
    with pytest.raises(ValueError, match=r'pip install "rlif-lightning\[qlora\]"'):
        PolicyModel(Policy(FOLDER, lora=LoRA(options={"load_in_4bit": True})))


def test_peft_s_own_refusal_names_the_setting():
    with pytest.raises(ValueError, match=r"policy\.lora=LoRA.*peft refuses it: "):
        PolicyModel(Policy(FOLDER, lora=LoRA(options={"target_modules": ["no_such_layer"]})))


def test_a_layer_that_the_model_has_not_is_refused_beside_others():
    """peft adapts the others without a word."""
    match = (
        r"target_modules names \['v_pro'\], which no adapted layer is called; .*q_proj, .*v_proj"
    )
    with pytest.raises(ValueError, match=match):
        adapted(options={"target_modules": ["q_proj", "v_pro"]})
    adapted(options={"target_modules": ["layers.0.self_attn.q_proj", "down_proj"]})


@pytest.mark.filterwarnings("ignore:.*tied:UserWarning")
@pytest.mark.parametrize("layer", ["lm_head", "embed_tokens"])
def test_adapters_on_a_weight_that_head_and_embedding_share_are_refused(layer):
    """Merged into the one matrix, the head's adapters would change the embeddings as well."""
    with pytest.raises(ValueError, match=rf"target_modules adapts {layer}, whose weight .* share"):
        adapted(options={"target_modules": ["q_proj", layer]})


def test_a_folder_of_dora_adapters_is_refused_with_the_remedy():
    tensor = "model.layers.0.self_attn.q_proj.lora_magnitude_vector.default.weight"
    with pytest.raises(ValueError, match="use_dora: merge them into the base model"):
        refuse_other_weights("policy.name='x'", {"mismatched_keys": [], "missing_keys": [tensor]})
