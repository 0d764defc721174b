"""How rows come and go: joining and leaving, the fallback, adapters, precisions, and memory that
does not grow.
"""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from transformers import Gemma3PreTrainedModel, LlamaPreTrainedModel, PreTrainedModel

from harness.decoding import (
    GROUP,
    SAMPLINGS,
    CastsOf,
    completions,
    generate_many,
    load,
    many_prompts,
    rescored,
)
from harness.models import EACH_ARCHITECTURE
from rlif_lightning.model.loading import LoRA
from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.records import Prompts
from rlif_lightning.rollout import native
from rlif_lightning.rollout.kv_memory import SharedPrefixMemory
from rlif_lightning.rollout.native import NativeEngine
from rlif_lightning.sampling import Sampling, counter_uniforms


def watched(monkeypatch, name: str) -> list:
    """What a method of the shared memory was called on, call by call, beside what it does."""
    calls = []
    original = getattr(SharedPrefixMemory, name)

    def record(memory, *args):
        calls.append((memory.prompts.used, memory.rows.used))
        return original(memory, *args)

    monkeypatch.setattr(SharedPrefixMemory, name, record)
    return calls


@pytest.mark.full  # test_native.py draws with few rows at a time
@pytest.mark.parametrize("architecture", EACH_ARCHITECTURE)
def test_rows_that_join_and_leave_do_not_change_a_completion(
    tiny_models, monkeypatch, architecture
):
    """Completions of 1 to 48 tokens; as many rows at a time as 1 and 4 groups have, of up to so
    many prompts.
    """
    policy, sampling = (
        load(tiny_models[architecture]).double(),
        Sampling(temperature=1.2, max_new_tokens=48),
    )
    whole = generate_many(policy, 512, sampling)
    assert whole.lengths.min() < 4
    assert whole.lengths.max() > 30
    joined = watched(monkeypatch, "add_rows")
    for groups in (1, 4):
        joined.clear()
        rollout = generate_many(policy, groups * GROUP + GROUP - 1, sampling)
        assert completions(rollout) == completions(whole)
        assert torch.equal(rollout.ended, whole.ended)
        for name, values in vars(rollout.stats).items():
            torch.testing.assert_close(values, getattr(whole.stats, name), rtol=1e-5, atol=1e-5)
        assert (
            sum(under_way > 0 for _, under_way in joined) > 10
        )  # rows joined others, one or a few at a time
        assert (
            max(prompts for prompts, _ in joined) > groups + 1
        )  # of more prompts than there were at first


@torch.no_grad()
def sampled_plainly(policy: PolicyModel, prompts: Prompts, sampling: Sampling) -> list[list[int]]:
    """Each completion alone and without any cache: one forward of the whole sequence per token."""
    done = []
    for p, prompt in enumerate(prompts.token_ids):
        for g in range(GROUP):
            uniforms = counter_uniforms(11, 3, [p], [g], sampling.max_new_tokens)[0].tolist()
            ids = prompt.tolist()
            for step in range(sampling.max_new_tokens):
                logits = (
                    policy.model(input_ids=torch.tensor([ids])).logits[0, -1] / sampling.temperature
                )
                if step < sampling.min_new_tokens:
                    logits[policy.eos_ids] = -torch.inf
                reached = logits.softmax(-1).cumsum(-1)
                ids.append(int((reached <= uniforms[step]).sum()))
                if ids[-1] in policy.eos_ids:
                    break
            done.append(ids[len(prompt) :])
    return done


@pytest.mark.parametrize("architecture", EACH_ARCHITECTURE)
def test_shared_prompts_give_plain_generation_token_for_token(tiny_models, architecture):
    policy = load(tiny_models[architecture]).double().eval()
    sampling = Sampling(temperature=1.2, max_new_tokens=12, min_new_tokens=2)
    prompts = many_prompts(policy)
    assert completions(generate_many(policy, 5 * GROUP, sampling)) == sampled_plainly(
        policy, prompts, sampling
    )


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [pytest.param("llama", marks=pytest.mark.full), "gemma3"])
def test_a_model_whose_attention_cannot_be_replaced_falls_back_and_says_so(
    tiny_models, monkeypatch, architecture
):
    sampling = SAMPLINGS["hot"]
    whole = generate_many(load(tiny_models[architecture]).double(), 512, sampling)
    monkeypatch.setattr(PreTrainedModel, "_supports_attention_backend", False)
    for kind in (LlamaPreTrainedModel, Gemma3PreTrainedModel):
        monkeypatch.setattr(kind, "_supports_attention_backend", False)
    with pytest.warns(UserWarning, match="does not let its attention be replaced") as caught:
        policy = load(tiny_models[architecture]).double()
    assert len(caught) == 1
    rollout = generate_many(policy, 3 * GROUP, sampling)  # a second warning would be an error
    scored = rescored(policy, rollout, sampling)
    assert not policy.shares_prompts
    assert completions(rollout) == completions(whole)
    torch.testing.assert_close(
        scored.logprobs, rollout.stats.logprobs.float(), rtol=1e-4, atol=1e-4
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_a_rollout_of_adapters_has_the_statistics_of_scoring(tiny_models):
    pytest.importorskip("peft")
    policy = load(tiny_models["llama"], lora=LoRA(rank=2, alpha=4))
    torch.manual_seed(0)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    rollout = generate_many(policy, 3 * GROUP, SAMPLINGS["plain"])
    scored = rescored(policy, rollout, SAMPLINGS["plain"])
    torch.testing.assert_close(rollout.stats.logprobs, scored.logprobs, rtol=1e-4, atol=1e-4)
    with policy.adapters_off():
        base = rescored(policy, rollout, SAMPLINGS["plain"])
    assert float((base.logprobs - scored.logprobs).abs().max()) > 0.1


@pytest.mark.full  # the statistics of a rollout of adapters: above
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("architecture", EACH_ARCHITECTURE)
def test_rollouts_of_adapters_are_those_of_the_adapted_model(tiny_models, architecture):
    pytest.importorskip("peft")
    policy = load(tiny_models[architecture], lora=LoRA(rank=2, alpha=4)).double().eval()
    base = generate_many(policy, 512, SAMPLINGS["plain"])
    torch.manual_seed(0)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    prompts, sampling = many_prompts(policy), Sampling(max_new_tokens=5)
    assert completions(generate_many(policy, 3 * GROUP, sampling)) == sampled_plainly(
        policy, prompts, sampling
    )
    with policy.adapters_off():
        assert completions(generate_many(policy, 512, SAMPLINGS["plain"])) == completions(base)


@pytest.mark.parametrize("architecture", EACH_ARCHITECTURE)
@pytest.mark.full  # test_native.py has bfloat16 weights; rollouts under autocast: below
@pytest.mark.parametrize("how", ["weights", "autocast"])
def test_bfloat16_rollouts_stay_close_to_exact_scoring(tiny_models, architecture, how):
    """Rows join and leave; statistics in float32; under autocast rotary keys and values differ in
    precision.
    """
    policy = load(tiny_models[architecture], dtype="bfloat16" if how == "weights" else "float32")
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast", cache_enabled=False):
        rollout = generate_many(policy, 3 * GROUP, SAMPLINGS["plain"])
    exact = rescored(policy.float(), rollout, SAMPLINGS["plain"])
    assert rollout.stats.logprobs.dtype == torch.float32
    assert float((rollout.stats.logprobs - exact.logprobs)[rollout.mask].abs().mean()) < 0.1


@pytest.mark.full  # test_autocasting.py: frozen weights are cast once, and stay frozen
def test_autocast_casts_frozen_weights_once_too(tiny_models):
    """LoRA's base, and the input that queries, keys and values read; what is drawn stays
    the same.
    """
    pytest.importorskip("peft")
    policy = load(tiny_models["llama"], lora=LoRA(rank=2, alpha=4))
    weight = policy.causal_lm.model.layers[0].mlp.up_proj.base_layer.weight
    casts, frozen = (
        CastsOf(weight),
        [name for name, each in policy.named_parameters() if not each.requires_grad],
    )
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False), casts:
        rollout = generate_many(policy, 512, SAMPLINGS["plain"])
    assert casts.count == 1
    assert [name for name, each in policy.named_parameters() if not each.requires_grad] == frozen
    with (
        torch.autocast("cpu", torch.bfloat16, cache_enabled=False),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(native, "cast_once", lambda *_: nullcontext())
        plain = generate_many(policy, 512, SAMPLINGS["plain"])
    assert completions(plain) == completions(rollout)
    assert torch.equal(plain.stats.logprobs, rollout.stats.logprobs)


def test_autocast_casts_weights_once_and_forgets_them(tiny_models):
    """A cache that outlived the rollout would hide later changes of the weights, and their
    gradients.
    """
    policy = load(tiny_models["llama"])
    weight = policy.causal_lm.model.layers[0].mlp.up_proj.weight
    casts = CastsOf(weight)
    inputs = torch.randn(3, weight.shape[1])
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        with casts:
            rollout = generate_many(policy, 512, SAMPLINGS["plain"])
        assert rollout.lengths.max() > 5
        assert casts.count == 1
        assert not torch.is_autocast_cache_enabled()
        before = torch.nn.functional.linear(inputs, weight)
        assert before.requires_grad
        with torch.no_grad():
            weight.mul_(2)
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=True):  # as the next rollout will
            torch.testing.assert_close(torch.nn.functional.linear(inputs, weight), 2 * before)


def stored_elements(policy: PolicyModel, num_prompts: int, max_rows: int, monkeypatch) -> int:
    """Elements of keys and values that a rollout has at its end."""
    memories = []
    original = SharedPrefixMemory.__init__

    def remember(memory, *args):
        memories.append(memory)
        original(memory, *args)

    monkeypatch.setattr(SharedPrefixMemory, "__init__", remember)
    engine = NativeEngine(max_rows)
    engine.setup(policy, seed=0)
    ids = [torch.full((9,), 20)] * num_prompts
    prompts = Prompts(ids, [""] * num_prompts, {}, torch.arange(num_prompts))
    engine.generate(prompts, GROUP, Sampling(max_new_tokens=7, min_new_tokens=6), 0)
    monkeypatch.setattr(SharedPrefixMemory, "__init__", original)
    (memory,) = memories
    return sum(layer.prompts.numel() + layer.own.numel() for layer in memory.layers.values())


def test_memory_is_bounded_by_max_rows_and_not_by_prompts(tiny_models, monkeypatch):
    """Two layers, keys and values, two heads of 8: 6 tokens of its own for a row, 9 for a prompt.

    Completions of nearly one length: as many prompts are under way as whole groups of rows fit.
    """
    policy = load(tiny_models["llama"])
    sizes = [stored_elements(policy, prompts, 2 * GROUP, monkeypatch) for prompts in (2, 6)]
    assert sizes == [2 * 2 * 16 * (2 * 9 + 2 * GROUP * 6)] * 2
    assert stored_elements(policy, 6, 4 * GROUP, monkeypatch) == 2 * sizes[0]
