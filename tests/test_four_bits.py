"""QLoRA: what a base in 4 bits computes, restated from the paper, and what a run keeps of it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig

from harness.python_runs import NAME, Run, at, data, module
from harness.scoring import NAMES, PLAIN, assert_same_gradients, gradients, score, score_plainly
from rlif_lightning import LoRA, Policy
from rlif_lightning.evaluation.memory_need import held_by
from rlif_lightning.judges.base import RunModels
from rlif_lightning.judges.policy_judge import PolicyJudge
from rlif_lightning.model.adapters import is_adapter
from rlif_lightning.model.export import write_model
from rlif_lightning.model.four_bits import four_bit_layers, num_elements, quantized_bytes
from rlif_lightning.model.loading import read_base, resolve_model
from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.rollout.autocasting import cast_once
from rlif_lightning.rollout.vllm_weights import merged_weights
from rlif_lightning.running.fork import take_weights
from rlif_lightning.running.strategies import ShardedStrategy, build_policy
from rlif_lightning.running.teachers import follow

peft = pytest.importorskip("peft")
pytest.importorskip("bitsandbytes", reason="QLoRA needs the extra qlora")
QLORA = LoRA(rank=4, alpha=8, options={"load_in_4bit": True})
# The sixteen numbers of NF4 (arXiv:2305.14314, appendix E).
NF4 = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
]  # fmt: skip


def rounded(weight: Tensor) -> Tensor:
    """What NF4 makes of a weight: the nearest of sixteen numbers, times the largest of 64."""
    blocks = weight.reshape(-1, 64)
    scale = blocks.abs().amax(1, keepdim=True)
    nearest = (blocks[..., None] / scale[..., None] - torch.tensor(NF4)).abs().argmin(-1)
    return (torch.tensor(NF4)[nearest] * scale).view(weight.shape)


def adapted(lora: LoRA, **settings: Any) -> PolicyModel:
    """A policy whose adapters do something."""
    torch.manual_seed(0)
    policy = PolicyModel(Policy(NAME, lora=lora, **settings))
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return policy


def restated(lora: LoRA = QLORA, **settings: Any) -> PolicyModel:
    """The same policy with ordinary weights, which are rounded here."""
    policy = adapted(lora.in_full, **settings)
    head = policy.causal_lm.get_output_embeddings()
    for name, layer in policy.named_modules():
        if isinstance(layer, nn.Linear) and layer is not head and not is_adapter(name):
            layer.weight.data = rounded(layer.weight.data)
    return policy


def assert_same_scores(left: PolicyModel, right: PolicyModel) -> None:
    for name in NAMES:
        found = [getattr(score(each, PLAIN), name) for each in (left, right)]
        torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


# The mark: test_architectures.py recomputes layers.
@pytest.mark.slow
@pytest.mark.parametrize(
    "checkpointing",
    [False, pytest.param(True, marks=pytest.mark.full)],
    ids=["kept", "recomputed"],
)
def test_log_probs_and_gradients_are_those_of_the_rounded_weights(checkpointing):
    policy = adapted(QLORA, gradient_checkpointing=checkpointing)
    plain = restated(gradient_checkpointing=checkpointing)
    assert len(four_bit_layers(policy)) == 14
    with torch.no_grad():  # an evaluation comes first, in which bitsandbytes would pack weights
        own = score_plainly(policy, PLAIN).logprobs
        assert_same_scores(policy, plain)
    torch.testing.assert_close(own, score(plain, PLAIN).logprobs.detach(), rtol=1e-4, atol=1e-4)
    both = [gradients(each, score(each, PLAIN)) for each in (policy, plain)]
    assert len(both[0]) == 28
    assert_same_gradients(both[0], both[1], 1e-4)
    with policy.adapters_off(), plain.adapters_off(), torch.no_grad():
        assert_same_scores(policy, plain)


@pytest.mark.slow
@torch.no_grad()
def test_the_rounding_is_felt_and_bfloat16_is_computed_in():
    whole, policy = adapted(QLORA.in_full), adapted(QLORA)
    off = (score(whole, PLAIN).logprobs - score(policy, PLAIN).logprobs).abs()
    assert float(off.max()) > 0.05
    half = adapted(QLORA, dtype="bfloat16")
    assert {layer.compute_dtype for layer in four_bit_layers(half)} == {torch.bfloat16}
    trained = {each.dtype for each in half.parameters() if each.requires_grad}
    assert trained == {torch.float32}


@torch.no_grad()
def test_a_merged_export_computes_what_was_trained(tmp_path):
    lora = replace(QLORA, options=QLORA.options | {"bnb_4bit_use_double_quant": True})
    policy = adapted(lora)
    write_model(policy, policy.model.state_dict(), tmp_path / "whole", policy.settings)
    whole = PolicyModel(Policy(str(tmp_path / "whole")))
    assert_same_scores(policy, whole)
    for name, weight in merged_weights(policy):  # what a vLLM engine would be given
        torch.testing.assert_close(weight, whole.model.state_dict()[name])


@torch.no_grad()
def test_adapters_are_written_alone_and_read_by_peft_on_the_same_base(tmp_path):
    policy = adapted(QLORA)
    write_model(policy, policy.model.state_dict(), tmp_path / "adapters")
    written = safetensors.torch.load_file(tmp_path / "adapters" / "adapter_model.safetensors")
    assert len(written) == 28
    assert not (tmp_path / "adapters" / "model.safetensors").exists()
    read = peft.PeftModel.from_pretrained(read_base(policy.settings), tmp_path / "adapters")
    own = policy.model.state_dict()
    for name, value in read.state_dict().items():
        assert torch.equal(value, own[name])


def qlora_run(folder: Any, rollouts: int, **way: Any) -> Run:
    return Run(folder, rollouts, module(policy=Policy(NAME, lora=QLORA)), data(), **way)


@pytest.mark.slow
def test_a_resumed_run_is_the_uninterrupted_one_and_holds_adapters_alone(tmp_path):
    whole = qlora_run(tmp_path / "whole", 2)
    first = at(whole.folder / "checkpoints", 1)
    saved = torch.load(first, weights_only=True)["state_dict"]
    kept = {name for name in saved if name.startswith("policy.")}
    assert len(kept) == 29
    assert {name for name in kept if not is_adapter(name)} == {"policy.base_checksum"}
    resumed = qlora_run(tmp_path / "resumed", 2, ckpt_path=first)
    now, then = resumed.state(), whole.state()
    assert now.keys() == then.keys()
    assert all(torch.equal(now[name], then[name]) for name in now)
    start = module(policy=Policy(NAME, lora=QLORA))
    start.configure_model()
    moved = [name for name, each in start.state_dict().items() if not torch.equal(each, now[name])]
    assert sum(is_adapter(name) for name in moved) == 28
    take_weights(first, start)
    assert all(torch.equal(start.state_dict()[name], saved[name]) for name in kept)
    refused = "set model.policy as it was"
    half = module(policy=Policy(NAME, dtype="bfloat16", lora=QLORA))
    half.configure_model()
    with pytest.raises(ValueError, match=refused):
        half.load_state_dict(torch.load(first, weights_only=True)["state_dict"])
    with pytest.raises(ValueError, match=f"fork_from=.*{refused}"):
        take_weights(first, half)
    others = module(policy=Policy(NAME, lora=replace(QLORA, alpha=4)))
    others.configure_model()
    with pytest.raises(ValueError, match=r"fork_from=.*takes adapters of its own settings"):
        take_weights(first, others)
    plain = module(policy=Policy(NAME, lora=QLORA.in_full))
    plain.configure_model()
    with pytest.raises(ValueError, match=r"fork_from=.*there is no model\.layers"):
        take_weights(first, plain)


# The mark: fp4 is another option of the base as well.
@pytest.mark.parametrize("other", ["fp4", pytest.param("double", marks=pytest.mark.full), "layers"])
def test_adapters_are_refused_on_a_base_that_computes_otherwise(tmp_path, other):
    """Also where embeddings and norms are those of the base, as in a merged fine-tune of it."""
    name, given = NAME, {"bnb_4bit_quant_type": "fp4"}
    if other == "double":
        given = {"bnb_4bit_use_double_quant": True}
    if other == "layers":
        name, given = str(shutil.copytree(resolve_model(NAME), tmp_path / "other")), {}
        file = tmp_path / "other" / "model.safetensors"
        weights = safetensors.torch.load_file(file)
        weights["model.layers.1.mlp.up_proj.weight"] *= 1.25
        safetensors.torch.save_file(weights, file, {"format": "pt"})
    start = PolicyModel(Policy(NAME, lora=QLORA)).state_dict()
    moved = PolicyModel(Policy(name, lora=replace(QLORA, options=QLORA.options | given)))
    with pytest.raises(ValueError, match="trained on another base model"):
        moved.load_state_dict(start)


@pytest.mark.slow
@torch.no_grad()
def test_a_teacher_follows_the_adapters_and_a_judge_is_the_base_in_4_bits():
    policy, teacher = adapted(QLORA), PolicyModel(Policy(NAME, lora=QLORA), frozen=True)
    before = {name: each.clone() for name, each in teacher.state_dict().items()}
    follow(teacher, policy, 0.25)
    for name, value in policy.state_dict().items():
        expected = before[name] + 0.25 * (value - before[name]) if is_adapter(name) else value
        torch.testing.assert_close(teacher.state_dict()[name], expected)
    judge = PolicyJudge()
    load = partial(PolicyModel, frozen=True)
    judge.bind(RunModels(policy, policy.settings, load, torch.device("cpu"), 0))
    assert judge._model is not None
    assert len(four_bit_layers(judge._model)) == 14
    with policy.adapters_off():
        assert_same_scores(policy, judge._model)


@torch.no_grad()
def test_a_rollout_under_autocast_computes_as_autocast_does():
    policy = adapted(QLORA)
    layer, x = four_bit_layers(policy)[0], torch.randn(3, 128)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        expected = layer(x)
        with cast_once(policy, torch.device("cpu")):
            assert torch.equal(layer(x), expected)


def test_a_model_whose_weights_are_stored_transposed_is_refused(tiny_models):
    with pytest.raises(ValueError, match=r"load_in_4bit: GPT2LMHeadModel has .* \(Conv1D\)"):
        PolicyModel(Policy(str(tiny_models["gpt2"]), lora=QLORA))


def test_divided_strategies_are_refused():
    with pytest.raises(
        ValueError, match=r"load_in_4bit=true: .* ShardedStrategy divides them; use"
    ):
        build_policy(Policy(NAME, lora=QLORA), ShardedStrategy())


# The mark: scales of scales are the harder count.
@pytest.mark.parametrize("double", [pytest.param(False, marks=pytest.mark.full), True])
def test_the_memory_that_preflight_counts_is_what_is_held(double):
    """128 x 128 numbers: 8192 bytes and 256 scales of 4 bytes, or 256 of 1 with one of 4."""
    lora = replace(QLORA, options=QLORA.options | {"bnb_4bit_use_double_quant": double})
    assert quantized_bytes(128 * 128, double) == 8192 + (256 + 4 if double else 1024)
    model = module(policy=Policy(NAME, lora=lora))
    model.configure_model()
    assert model.policy is not None
    held = 0
    for weight in model.policy.parameters():
        held += weight.numel() * weight.element_size()
        if (state := getattr(weight, "quant_state", None)) is not None:
            scales = [state.absmax, state.state2.absmax] if double else [state.absmax]
            held += sum(each.numel() * each.element_size() for each in scales)
    assert held_by(model)[0].weights == held
    plain = PolicyModel(Policy(NAME, lora=lora.in_full))
    assert sum(map(num_elements, model.policy.parameters())) == sum(
        each.numel() for each in plain.parameters()
    )


def test_a_folder_that_is_quantised_already_is_read_as_the_settings_say(tmp_path):
    policy = PolicyModel(Policy(NAME, lora=QLORA))
    base = read_base(policy.settings)
    base.save_pretrained(tmp_path)
    policy.tokenizer.save_pretrained(tmp_path)
    again = PolicyModel(Policy(str(tmp_path), lora=QLORA))
    for own, other in zip(four_bit_layers(policy), four_bit_layers(again), strict=True):
        assert torch.equal(own.weight, other.weight)
    for lora in (None, QLORA.in_full, LoRA(options=QLORA.options | {"bnb_4bit_quant_type": "fp4"})):
        with pytest.raises(ValueError, match=r"its files are quantised .*; use the model's files"):
            PolicyModel(Policy(str(tmp_path), lora=lora))


def test_4_bits_are_taken_over_from_a_config_of_transformers():
    def taken(**bits: Any) -> LoRA:
        return LoRA.of(peft.LoraConfig(r=4, lora_alpha=8), BitsAndBytesConfig(**bits))

    wanted = {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
    }
    assert taken(**wanted, bnb_4bit_compute_dtype=torch.bfloat16).four_bits == wanted
    assert taken(load_in_4bit=True).options["bnb_4bit_quant_type"] == "fp4"
    assert taken(**wanted).in_full == LoRA(4, 8)
    for bits, said in (
        ({"load_in_8bit": True}, "load_in_8bit=True is not supported; use one of"),
        (wanted | {"llm_int8_skip_modules": ["lm_head"]}, "llm_int8_skip_modules=.* not supported"),
        ({}, "bnb_4bit_quant_type has no effect without load_in_4bit=true"),
    ):
        with pytest.raises(ValueError, match=said):
            taken(**bits)
    with pytest.raises(ValueError, match=r"float64' with policy\.lora\.options.load_in_4bit"):
        Policy(NAME, dtype="float64", lora=taken(**wanted))
