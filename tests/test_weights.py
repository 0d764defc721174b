"""What is handed to a sampler with a copy of the weights: loads into a plain model and gives the
policy's logits.
"""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from harness.models import ARCHITECTURES
from rlif_lightning.model.loading import LoRA, Policy, resolve_model
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


@pytest.fixture(scope="module")
def experts(tmp_path_factory):
    """Mixtures of four experts, whose checkpoints have a weight per expert and whose models have
    one per layer.
    """
    tokenizer = AutoTokenizer.from_pretrained(resolve_model("rlif-arithmetic"))
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    sizes |= {"num_key_value_heads": 2, "num_experts_per_tok": 2, "max_position_embeddings": 256}
    torch.manual_seed(0)
    models = {
        "qwen3_moe": Qwen3MoeForCausalLM(
            Qwen3MoeConfig(
                **sizes, head_dim=8, moe_intermediate_size=16, num_experts=4, intermediate_size=64
            )
        ),
        "mixtral": MixtralForCausalLM(
            MixtralConfig(**sizes, num_local_experts=4, intermediate_size=16)
        ),
    }
    folders = {}
    for name, model in models.items():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.3)
        model.generation_config.eos_token_id = tokenizer.eos_token_id
        folders[name] = tmp_path_factory.mktemp(name)
        model.save_pretrained(folders[name])
        tokenizer.save_pretrained(folders[name])
    return folders


# peft asks for a rank of its own on fused experts and warns where there are none; and it reads a
# renamed property.
@pytest.mark.filterwarnings(
    "ignore:The following (rank|alpha)_pattern keys", "ignore:`is_gradient_checkpointing`"
)
@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("name", ["qwen3_moe", "mixtral"])
def test_experts_go_by_the_names_of_their_checkpoint_with_their_adapters(
    experts, tmp_path, name, lora
):
    """Names and values of a checkpoint that Hugging Face and peft write; logits of a model that is
    loaded from it.
    """
    policy = changed_policy(experts[name], lora)
    adapted = [
        each for each, _ in policy.named_parameters() if "experts" in each and "lora_" in each
    ]
    assert bool(adapted) == lora
    ids = torch.arange(4, 20).unsqueeze(0)
    with torch.no_grad():
        expected = policy.model(input_ids=ids).logits
        weights = {key: value.contiguous().clone() for key, value in merged_weights(policy)}
        base = AutoModelForCausalLM.from_pretrained(experts[name])
        assert float((expected - base(input_ids=ids).logits).abs().max()) > 0.1
        base.save_pretrained(tmp_path / "ours")
        save_file(weights, tmp_path / "ours" / "model.safetensors", {"format": "pt"})
        found = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")(input_ids=ids).logits
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        (policy.model.merge_and_unload() if lora else policy.model).save_pretrained(
            tmp_path / "theirs"
        )
    theirs = load_file(tmp_path / "theirs" / "model.safetensors")
    assert set(weights) == set(theirs)
    assert any("experts.3." in key for key in theirs)
    for key, value in theirs.items():
        torch.testing.assert_close(
            weights[key], value, rtol=1e-5, atol=1e-6, msg=lambda text, k=key: f"{k}: {text}"
        )


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
