"""The native engine: its statistics against a scoring pass, independence of the batch, greedy decoding, endings."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from conftest import ARCHITECTURES
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Gemma3PreTrainedModel, LlamaPreTrainedModel, PreTrainedModel

from rlif_lightning.batch import Prompts, Rollout, TokenStats
from rlif_lightning.packing import pack
from rlif_lightning.policy import LoRA, Policy, PolicyModel
from rlif_lightning.rollout.kv_memory import SharedPrefixMemory
from rlif_lightning.rollout.native import NativeEngine
from rlif_lightning.rollout.sampling import Sampling, counter_uniforms

QUESTIONS = ["3+4+5=", "1+2=", "12+34+56+78+9+1=", "7+7+7="]
GROUP = 4
SAMPLINGS = {
    "plain": Sampling(max_new_tokens=16),
    "hot": Sampling(temperature=1.6, max_new_tokens=16, min_new_tokens=5),
    "cold": Sampling(temperature=0.5, max_new_tokens=16, min_new_tokens=1),
}


def load(folder, eager_to_end: bool = True, **settings) -> PolicyModel:
    """A policy; with many tokens that end a completion, so that rows leave at all times."""
    policy = PolicyModel(Policy(str(folder), **settings))
    if eager_to_end:
        policy.eos_ids = list(range(2, 12))
    return policy


def prompts_of(policy: PolicyModel, rows: list[int]) -> Prompts:
    texts = [QUESTIONS[row] for row in rows]
    ids = [torch.tensor(policy.tokenizer(text, add_special_tokens=False).input_ids) for text in texts]
    return Prompts(ids, texts, {}, torch.tensor(rows))


def generate(policy: PolicyModel, rows: list[int], sampling: Sampling, max_rows: int = 512, step: int = 0) -> Rollout:
    engine = NativeEngine(max_rows)
    engine.setup(policy, seed=7)
    return engine.generate(prompts_of(policy, rows), GROUP, sampling, step)


def completions(rollout: Rollout) -> list[list[int]]:
    return [ids[keep].tolist() for ids, keep in zip(rollout.completion_ids, rollout.mask, strict=True)]


@torch.no_grad()
def rescored(policy: PolicyModel, rollout: Rollout, sampling: Sampling) -> TokenStats:
    stats = TokenStats(*torch.zeros(3, *rollout.mask.shape))
    for packed in pack(rollout.prompts.token_ids, rollout.completion_ids, rollout.mask, GROUP, 60):
        part = policy(packed, sampling)
        for field in fields(TokenStats):
            getattr(stats, field.name)[packed.rows] = getattr(part, field.name).float()
    return stats


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", SAMPLINGS)
def test_statistics_of_sampling_are_those_of_scoring(tiny_models, architecture, name):
    policy, sampling = load(tiny_models[architecture]), SAMPLINGS[name]
    rollout = generate(policy, [0, 1, 2, 3], sampling)
    assert len(set(rollout.lengths.tolist())) > 2  # rows left at different times
    assert rollout.lengths.min() > sampling.min_new_tokens
    scored = rescored(policy, rollout, sampling)
    for field in fields(TokenStats):
        sampled = getattr(rollout.stats, field.name)
        assert sampled.dtype == torch.float32
        assert not sampled[~rollout.mask].any()
        torch.testing.assert_close(sampled, getattr(scored, field.name), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_completion_does_not_depend_on_its_batch(tiny_models, architecture):
    policy, sampling = load(tiny_models[architecture]), SAMPLINGS["hot"]
    together = completions(generate(policy, [0, 1, 2, 3], sampling))
    assert completions(generate(policy, [3, 1], sampling)) == together[12:] + together[4:8]
    assert completions(generate(policy, [0, 1, 2, 3], sampling, max_rows=GROUP)) == together
    assert completions(generate(policy, [0, 1, 2, 3], sampling, max_rows=1)) == together
    assert completions(generate(policy, [0, 1, 2, 3], sampling, step=1)) != together


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_longer_limit_only_appends(tiny_models, architecture):
    policy = load(tiny_models[architecture])
    short = generate(policy, [0, 1, 2], Sampling(max_new_tokens=6))
    long = generate(policy, [0, 1, 2], Sampling(max_new_tokens=20))
    assert not short.ended.all()
    pairs = zip(completions(short), completions(long), short.ended.tolist(), strict=True)
    for few, many, ended in pairs:
        assert many[: len(few)] == few
        assert (len(many) == len(few)) == ended or not ended


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_is_the_library_s_greedy(tiny_models, architecture):
    policy = load(tiny_models[architecture], eager_to_end=False)
    rollout = generate(policy, [0, 1, 2, 3], Sampling(temperature=0, max_new_tokens=16))
    found = completions(rollout)
    for p, ids in enumerate(rollout.prompts.token_ids):
        batch = ids.unsqueeze(0)
        output = policy.model.eval().generate(
            input_ids=batch, attention_mask=torch.ones_like(batch), do_sample=False, max_new_tokens=16, pad_token_id=0
        )
        assert found[p * GROUP : (p + 1) * GROUP] == [output[0, len(ids) :].tolist()] * GROUP


def test_ended_is_true_where_the_last_token_ends(tiny_models):
    policy = load(tiny_models["llama"])
    rollout = generate(policy, [0, 1, 2, 3], Sampling(max_new_tokens=8))
    assert 0 < int(rollout.ended.sum()) < len(rollout.ended)
    for ids, ended in zip(completions(rollout), rollout.ended.tolist(), strict=True):
        assert (ids[-1] in policy.eos_ids) == ended
        assert ended or len(ids) == 8
        assert not set(ids[:-1]) & set(policy.eos_ids)


@pytest.mark.parametrize("stop", [["=", "+"], ["7"], ["#"]])
def test_a_stop_string_ends_a_completion_and_is_cut_from_its_text(tiny_models, stop):
    policy = load(tiny_models["qwen2"], eager_to_end=False)
    rollout = generate(policy, [0, 1, 2, 3], Sampling(temperature=3.0, max_new_tokens=48, stop=stop))
    decode = policy.tokenizer.decode
    stopped = 0
    for ids, text, ended in zip(completions(rollout), rollout.texts, rollout.ended.tolist(), strict=True):
        whole = decode(ids, skip_special_tokens=True)
        assert not any(string in decode(ids[:-1], skip_special_tokens=True) for string in stop)
        cuts = [whole.find(string) for string in stop if string in whole]
        assert text == (whole[: min(cuts)] if cuts else whole)
        assert ended == (bool(cuts) or ids[-1] in policy.eos_ids)
        stopped += bool(cuts)
    assert stopped


def test_bfloat16_sampling_gives_float32_statistics(tiny_models):
    policy = load(tiny_models["gemma3"], dtype="bfloat16")
    rollout = generate(policy, [0, 1, 2], SAMPLINGS["plain"])
    scored = rescored(policy, rollout, SAMPLINGS["plain"])
    assert rollout.stats.logprobs.dtype == torch.float32
    assert float((rollout.stats.logprobs - scored.logprobs)[rollout.mask].abs().mean()) < 0.1


@pytest.mark.parametrize("settings", [{"gradient_checkpointing": True}, {"attention": "eager"}])
def test_how_the_model_is_run_does_not_change_completions(tiny_models, settings):
    plain = generate(load(tiny_models["llama"]), [0, 1, 2], SAMPLINGS["plain"])
    policy = load(tiny_models["llama"], **settings)
    assert completions(generate(policy, [0, 1, 2], SAMPLINGS["plain"])) == completions(plain)
    assert policy.training  # put back, or gradient checkpointing would stay off


def test_max_rows_is_checked():
    with pytest.raises(ValueError, match="max_rows=0 must be at least 1"):
        NativeEngine(0)


PROMPT_LENGTHS = [1, 17, 4, 9, 2, 30, 3, 3, 12, 7, 21, 5]


def many_prompts(policy: PolicyModel) -> Prompts:
    """Twelve prompts of 1 to 30 tokens, around Gemma's window of 6."""
    generator = torch.Generator().manual_seed(4)
    vocabulary = policy.causal_lm.config.vocab_size
    ids = [torch.randint(12, vocabulary, (length,), generator=generator) for length in PROMPT_LENGTHS]
    return Prompts(ids, [""] * len(ids), {}, torch.arange(len(ids)))


def generate_many(policy: PolicyModel, max_rows: int, sampling: Sampling, group_size: int = GROUP) -> Rollout:
    engine = NativeEngine(max_rows)
    engine.setup(policy, seed=11)
    return engine.generate(many_prompts(policy), group_size, sampling, 3)


def watched(monkeypatch, name: str) -> list:
    """What a method of the shared memory was called on, call by call, beside what it does."""
    calls = []
    original = getattr(SharedPrefixMemory, name)

    def record(memory, *args):
        calls.append((memory.num_groups, memory.num_rows))
        return original(memory, *args)

    monkeypatch.setattr(SharedPrefixMemory, name, record)
    return calls


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rows_that_join_and_leave_do_not_change_a_completion(tiny_models, monkeypatch, architecture):
    """Completions of 1 to 48 tokens; memories of 1, 3 and 5 groups, in which single rows linger."""
    policy, sampling = load(tiny_models[architecture]).double(), Sampling(temperature=1.2, max_new_tokens=48)
    whole = generate_many(policy, 512, sampling)
    assert whole.lengths.min() < 4
    assert whole.lengths.max() > 30
    joined = watched(monkeypatch, "add")
    for groups in (1, 3, 5):
        joined.clear()
        rollout = generate_many(policy, groups * GROUP + GROUP - 1, sampling)
        assert completions(rollout) == completions(whole)
        assert torch.equal(rollout.ended, whole.ended)
        for name, values in vars(rollout.stats).items():
            torch.testing.assert_close(values, getattr(whole.stats, name), rtol=1e-5, atol=1e-5)
        assert any(under_way > 0 for under_way, _ in joined) == (groups > 1)  # some joined rows under way


@torch.no_grad()
def sampled_plainly(policy: PolicyModel, prompts: Prompts, sampling: Sampling) -> list[list[int]]:
    """Each completion alone and without any cache: one forward of the whole sequence per token."""
    done = []
    for p, prompt in enumerate(prompts.token_ids):
        for g in range(GROUP):
            uniforms = counter_uniforms(11, 3, [p], [g], sampling.max_new_tokens)[0].tolist()
            ids = prompt.tolist()
            for step in range(sampling.max_new_tokens):
                logits = policy.model(input_ids=torch.tensor([ids])).logits[0, -1] / sampling.temperature
                if step < sampling.min_new_tokens:
                    logits[policy.eos_ids] = -torch.inf
                reached = logits.softmax(-1).cumsum(-1)
                ids.append(int((reached <= uniforms[step]).sum()))
                if ids[-1] in policy.eos_ids:
                    break
            done.append(ids[len(prompt) :])
    return done


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_shared_prompts_give_plain_generation_token_for_token(tiny_models, architecture):
    policy = load(tiny_models[architecture]).double().eval()
    sampling = Sampling(temperature=1.2, max_new_tokens=12, min_new_tokens=2)
    prompts = many_prompts(policy)
    assert completions(generate_many(policy, 5 * GROUP, sampling)) == sampled_plainly(policy, prompts, sampling)


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_a_model_whose_attention_cannot_be_replaced_falls_back_and_says_so(tiny_models, monkeypatch, architecture):
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
    torch.testing.assert_close(scored.logprobs, rollout.stats.logprobs.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rollouts_of_adapters_are_those_of_the_adapted_model(tiny_models, architecture):
    pytest.importorskip("peft")
    policy = load(tiny_models[architecture], lora=LoRA(rank=2, alpha=4)).double().eval()
    base = generate_many(policy, 512, SAMPLINGS["plain"])
    torch.manual_seed(0)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    prompts, sampling = many_prompts(policy), Sampling(max_new_tokens=5)
    assert completions(generate_many(policy, 3 * GROUP, sampling)) == sampled_plainly(policy, prompts, sampling)
    with policy.adapters_off():
        assert completions(generate_many(policy, 512, SAMPLINGS["plain"])) == completions(base)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("how", ["weights", "autocast"])
def test_bfloat16_rollouts_stay_close_to_exact_scoring(tiny_models, architecture, how):
    """Rows join and leave; statistics in float32; under autocast rotary keys and values differ in precision."""
    policy = load(tiny_models[architecture], dtype="bfloat16" if how == "weights" else "float32")
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast", cache_enabled=False):
        rollout = generate_many(policy, 3 * GROUP, SAMPLINGS["plain"])
    exact = rescored(policy.float(), rollout, SAMPLINGS["plain"])
    assert rollout.stats.logprobs.dtype == torch.float32
    assert float((rollout.stats.logprobs - exact.logprobs)[rollout.mask].abs().mean()) < 0.1


def test_autocast_casts_weights_once_and_forgets_them(tiny_models):
    """A cache that outlived the rollout would hide later changes of the weights, and their gradients."""
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
        torch.testing.assert_close(torch.nn.functional.linear(inputs, weight), 2 * before)


class CastsOf(TorchDispatchMode):
    """Counts the casts of one tensor."""

    def __init__(self, tensor: torch.Tensor):
        super().__init__()
        self.pointer, self.count = tensor.data_ptr(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._to_copy.default and args[0].data_ptr() == self.pointer:
            self.count += 1
        return func(*args, **(kwargs or {}))


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
    engine.generate(prompts, GROUP, Sampling(max_new_tokens=20, min_new_tokens=19), 0)
    monkeypatch.setattr(SharedPrefixMemory, "__init__", original)
    (memory,) = memories
    return sum(tensor.numel() for layer in memory.layers.values() for tensor in vars(layer).values())


def test_memory_is_bounded_by_max_rows_and_not_by_prompts(tiny_models, monkeypatch):
    """Two layers, keys and values, two heads of 8: per group 9 prompt tokens, per row 19 of its own."""
    policy = load(tiny_models["llama"])
    sizes = [stored_elements(policy, prompts, 3 * GROUP, monkeypatch) for prompts in (3, 12, 48)]
    assert sizes == [2 * 2 * 16 * (3 * 9 + 3 * GROUP * 19)] * 3
    assert stored_elements(policy, 12, 6 * GROUP, monkeypatch) == 2 * sizes[0]
