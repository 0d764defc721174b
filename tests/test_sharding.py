"""Sharded models in one process (a group of one): read, gathered, let go. Several:
tests/test_distributed.py.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from harness.architectures import TOKENIZER, save_tiny, tiny_config
from rlif_lightning.learning.divided_steps import fault_on_shards
from rlif_lightning.learning.optimizer import build_optimizer
from rlif_lightning.masked import masked_sum
from rlif_lightning.model.loading import LoRA, Policy, load_pretrained
from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.parallel.fsdp import (
    Sharding,
    sharded_modules,
    sharded_policy,
    whole_state_dict,
    whole_weights,
)
from rlif_lightning.parallel.partial_loading import empty_model
from rlif_lightning.parallel.passes import equal_passes, filler
from rlif_lightning.rollout.vllm_weights import fingerprint, merged_weights
from rlif_lightning.running.strategies import ShardedStrategy
from rlif_lightning.sampling import Sampling

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def sharding(tmp_path_factory):
    store = tmp_path_factory.mktemp("group") / "rendezvous"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield Sharding(init_device_mesh("cpu", (1,)), CPU)
    dist.destroy_process_group()


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "gemma3", "gpt2"])
def test_an_empty_model_differs_from_a_loaded_one_in_its_parameters_only(tiny_models, architecture):
    policy = Policy(str(tiny_models[architecture]), dtype="float64")
    empty, loaded = empty_model(policy), load_pretrained(policy)
    assert all(parameter.is_meta for parameter in empty.parameters())
    buffers = dict(empty.named_buffers())
    for name, value in loaded.named_buffers():
        assert torch.equal(buffers[name], value), name
    shapes = {name: (p.shape, p.dtype) for name, p in empty.named_parameters()}
    assert shapes == {name: (p.shape, p.dtype) for name, p in loaded.named_parameters()}
    assert empty.generation_config.eos_token_id == loaded.generation_config.eos_token_id


# The marks: Qwen's models differ from Llama's in biases and norms alone.
@pytest.mark.parametrize("lora", [None, LoRA(rank=2)], ids=["full", "lora"])
@pytest.mark.parametrize(
    "architecture",
    ["llama", "gemma3", "gpt2"]
    + [pytest.param(name, marks=pytest.mark.full) for name in ("qwen2", "qwen3")],
)
def test_a_sharded_policy_has_the_weights_of_the_whole_one(
    tiny_models, sharding, architecture, lora
):
    policy = Policy(str(tiny_models[architecture]), lora=lora)
    sharded, whole = sharded_policy(policy, sharding), PolicyModel(policy)
    gathered = whole_state_dict(sharded)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(gathered[name], value), name
    trained = {name for name, p in sharded.named_parameters() if p.requires_grad}
    assert trained == {name for name, p in whole.named_parameters() if p.requires_grad}
    line = filler(whole, CPU)
    torch.testing.assert_close(sharded(line, Sampling()).logprobs, whole(line, Sampling()).logprobs)


@pytest.mark.parametrize("lora", [None, LoRA(rank=2)], ids=["full", "lora"])
@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2"])
def test_a_sampler_gets_the_whole_weights_of_a_sharded_policy(
    tiny_models, sharding, architecture, lora
):
    policy = Policy(str(tiny_models[architecture]), lora=lora)
    sharded, whole = sharded_policy(policy, sharding), PolicyModel(policy)
    start = fingerprint(sharded)
    with torch.no_grad():
        for each in (sharded, whole):
            for parameter in each.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1)  # adapters start at zero
    found, expected = dict(merged_weights(sharded)), dict(merged_weights(whole))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert type(found[name]) is torch.Tensor
        torch.testing.assert_close(found[name], value, msg=name)
    assert not torch.equal(start, fingerprint(sharded))
    torch.testing.assert_close(fingerprint(sharded), fingerprint(whole))


@pytest.mark.parametrize(
    ("kind", "buffer"), [("apertus", "act_fn.beta"), ("gemma4_text", "layer_scalar")]
)
def test_buffers_that_files_hold_are_read(sharding, tmp_path, kind, buffer):
    policy = Policy(save_tiny(tiny_config(kind), tmp_path))
    weights = load_file(tmp_path / "model.safetensors")
    changed = {name: value + 0.25 for name, value in weights.items() if name.endswith(buffer)}
    assert len(changed) == 2  # one a layer
    save_file(weights | changed, tmp_path / "model.safetensors", {"format": "pt"})
    gathered = whole_state_dict(sharded_policy(policy, sharding))
    for name, value in load_pretrained(policy).state_dict().items():
        assert torch.equal(gathered[name], value), name


def test_a_tied_head_stays_tied(sharding):
    model = sharded_policy(Policy("rlif-arithmetic"), sharding).causal_lm
    assert model.config.tie_word_embeddings
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_offloaded_parameters_wait_on_the_cpu(sharding):
    policy = Policy("rlif-arithmetic")
    model = sharded_policy(policy, replace(sharding, cpu_offload=True))
    line = filler(model, CPU)
    model(line, Sampling()).logprobs.sum().backward()
    assert all(p.device.type == "cpu" and p.grad is not None for p in model.parameters())
    whole = PolicyModel(policy)
    torch.testing.assert_close(model(line, Sampling()).logprobs, whole(line, Sampling()).logprobs)


def test_weights_are_gathered_in_low_precision_and_kept_in_full(sharding):
    model = sharded_policy(
        Policy("rlif-arithmetic"), replace(sharding, low_precision=torch.bfloat16)
    )
    with whole_weights(model):
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    stats = model(filler(model, CPU), Sampling())
    stats.logprobs.sum().backward()
    assert {p.grad.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("keep", [False, True])
def test_whole_weights_are_let_go_again(sharding, keep):
    model = sharded_policy(Policy("rlif-arithmetic"), replace(sharding, keep_sharded=keep))
    divided = {name for name, p in model.named_parameters() if hasattr(p, "placements")}
    line = filler(model, CPU)
    with whole_weights(model), torch.no_grad():
        model.completion_hidden(line)
        inside = {name for name, p in model.named_parameters() if hasattr(p, "placements")}
        assert inside == ({name for name in divided if "layers" in name} if keep else set())
    assert {name for name, p in model.named_parameters() if hasattr(p, "placements")} == divided
    assert len(sharded_modules(model)) == 1 + model.causal_lm.config.num_hidden_layers


@pytest.mark.parametrize(
    ("settings", "whole"),
    [
        ({}, True),
        ({"keep_sharded": True}, False),
        ({"reshard_gradients": True}, False),
        ({"keep_sharded": True, "reshard_gradients": False}, True),
    ],
)
def test_gradients_between_micro_batches_are_whole_or_divided(sharding, settings, whole):
    """Of this process: float32 gradients as large as the model that wait for the sum, or its part,
    summed already.
    """
    model = sharded_policy(
        Policy("rlif-arithmetic"), replace(sharding, low_precision=torch.bfloat16)
    )
    strategy = ShardedStrategy(**settings)
    strategy.model = model
    with strategy.block_backward_sync():
        model(filler(model, CPU), Sampling()).logprobs.sum().backward()
    waiting = [
        parameter.unsharded_accumulated_grad
        for module in sharded_modules(model)
        for parameter in module._get_fsdp_state()._fsdp_param_group.fsdp_params
        if parameter.unsharded_accumulated_grad is not None
    ]
    held = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    number = sum(parameter.numel() for parameter in model.parameters())
    assert sum(each.numel() for each in waiting) == (number if whole else 0)
    assert sum(each.numel() for each in held) == (0 if whole else number)
    assert {each.dtype for each in [*waiting, *held]} == {torch.float32}


@pytest.mark.parametrize(("kind", "fused"), [("SGD", False), ("Adam", True), ("AdamW", True)])
def test_optimizers_step_on_shards(sharding, kind, fused):
    """PyTorch knows no fused step of SGD on shards."""
    model = sharded_policy(Policy("rlif-arithmetic"), sharding)
    optimizer = build_optimizer(partial(getattr(torch.optim, kind), lr=0.1), model.parameters())
    before = whole_state_dict(model)["model.norm.weight"].clone()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert bool(optimizer.param_groups[0]["fused"]) == fused
    moved = before - whole_state_dict(model)["model.norm.weight"]
    torch.testing.assert_close(moved, torch.full_like(moved, 0.1), rtol=0, atol=2e-3)


def test_missing_passes_are_filled_up():
    policy = PolicyModel(Policy("rlif-arithmetic"))
    line = filler(policy, CPU)
    assert [own for _, own in equal_passes(policy, [line, line], CPU)] == [True, True]
    assert [own for _, own in equal_passes(policy, [], CPU, at_least=1)] == [False]
    stats = policy(line, Sampling())
    assert stats.logprobs.shape == (1, 1)
    assert float(masked_sum(stats.logprobs, torch.ones(1, 1, dtype=torch.bool)).detach()) < 0


def test_files_saved_as_a_refusal_says_are_read(sharding, tmp_path):
    save_tiny(tiny_config("gpt_neox"), tmp_path)  # its files have names of their own
    with pytest.raises(ValueError, match=r"save_pretrained\(FOLDER, save_original_format=False\)"):
        sharded_policy(Policy(str(tmp_path)), sharding)
    model = load_pretrained(Policy(str(tmp_path)))
    again = str(tmp_path / "again")
    model.save_pretrained(again, save_original_format=False)
    TOKENIZER.save_pretrained(again)
    gathered = whole_state_dict(sharded_policy(Policy(again), sharding))
    for name, value in model.state_dict().items():
        assert torch.equal(gathered[name], value), name


def test_weights_under_other_names_are_refused(tiny_models, sharding, tmp_path):
    from safetensors.torch import load_file, save_file

    source = tiny_models["llama"]
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((source / name).read_bytes())
    tensors = load_file(source / "model.safetensors")
    bare = {name.removeprefix("model."): value for name, value in tensors.items()}
    save_file(bare, tmp_path / "model.safetensors", {"format": "pt"})
    sharded_policy(Policy(str(tmp_path)), sharding)  # files of a base model leave its prefix out
    save_file(
        {f"other.{name}": value for name, value in tensors.items()}, tmp_path / "model.safetensors"
    )
    with pytest.raises(ValueError, match=r"no tensor 'model.embed_tokens.weight'.*save_pretrained"):
        sharded_policy(Policy(str(tmp_path)), sharding)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="a sharded run reads safetensors only"):
        sharded_policy(Policy(str(tmp_path)), sharding)


class HalvesItsPart(torch.optim.SGD):
    """Reads the part of a process as if it were the whole."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for parameter in self.param_groups[0]["params"]:
            local = parameter.to_local() if isinstance(parameter, DTensor) else 2 * parameter
            local.mul_(0.5)


@pytest.mark.parametrize("name", ["AdamW", "SGD", "NAdam", "Adagrad", "RMSprop"])
def test_optimizers_that_step_sharded_weights_as_whole_ones(sharding, name):
    assert fault_on_shards(getattr(torch.optim, name), sharding.mesh) is None


def test_optimizers_that_do_not(sharding):
    """Operations that PyTorch cannot divide, and another step; found by trying."""
    found = fault_on_shards(torch.optim.Adafactor, sharding.mesh)
    assert found is not None
    assert found.startswith("its step ends with RuntimeError: aten.pow_")
    found = fault_on_shards(partial(torch.optim.Rprop, lr=1e-6), sharding.mesh)
    assert found is not None
    assert "aten.index_put_" in found
    assert fault_on_shards(HalvesItsPart, sharding.mesh) == "its step is another one there"
