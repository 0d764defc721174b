"""Teacher-forced log-probs of given texts (door 7), and the reward that is made of them."""

from __future__ import annotations

import math
import random

import pytest
import torch

from harness.forked import on_two_ranks
from harness.rollouts import handmade
from rlif_lightning import TargetLogprob
from rlif_lightning.judges.base import RunModels
from rlif_lightning.model.loading import Policy
from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.parallel.targets import measure_targets
from rlif_lightning.rewards import RewardSet, WeightedReward

SIZES = [(3, 0, 4), (3, 5, 1), (1, 2, 0), (1, 0, 0), (6, 1, 7), (6, 3, 3)]  # G = 2


def drawn(size: int, draw: random.Random) -> torch.Tensor:
    return torch.tensor([draw.randrange(4, 100) for _ in range(size)], dtype=torch.int64)


def texts(seed: int = 0) -> tuple[list[torch.Tensor], ...]:
    draw = random.Random(seed)
    prompts = [drawn(size, draw) for size, _, _ in SIZES[::2]]
    return prompts, *([drawn(each[part], draw) for each in SIZES] for part in (1, 2))


@torch.no_grad()
def naive(policy: PolicyModel, prompt, prefix, target) -> torch.Tensor:
    """One plain forward pass of the Hugging Face model, and torch's log-softmax."""
    ids = torch.cat([prompt, prefix, target])
    logprobs = policy.model(input_ids=ids[None]).logits[0].log_softmax(-1)
    start = len(prompt) + len(prefix)
    places = range(start, len(ids))
    return torch.stack([logprobs[t - 1, ids[t]] for t in places]) if places else torch.zeros(0)


@pytest.fixture(scope="module")
def policy() -> PolicyModel:
    return PolicyModel(Policy("rlif-arithmetic"))


@pytest.mark.parametrize("max_tokens", [1, 12, 8192])
def test_log_probs_are_those_of_a_naive_forward_pass(policy, max_tokens):
    prompts, prefixes, targets = texts()
    found = measure_targets(policy, prompts, prefixes, targets, max_tokens)
    assert [len(each) for each in found] == [size for _, _, size in SIZES]
    for number, each in enumerate(found):
        expected = naive(policy, prompts[number // 2], prefixes[number], targets[number])
        torch.testing.assert_close(each, expected, rtol=1e-5, atol=1e-5)
        assert not each.requires_grad


@pytest.mark.parametrize("architecture", ["gpt2", "gemma3"])
def test_other_architectures_too(tiny_models, architecture):
    policy = PolicyModel(Policy(str(tiny_models[architecture])))
    prompts, prefixes, targets = texts()
    for number, each in enumerate(measure_targets(policy, prompts, prefixes, targets)):
        expected = naive(policy, prompts[number // 2], prefixes[number], targets[number])
        torch.testing.assert_close(each, expected, rtol=1e-4, atol=1e-4)


def test_a_uniform_model_gives_minus_log_v(policy):
    """The hand number: with a head of zeros every token has log-prob -log V."""
    weight = policy.model.get_input_embeddings().weight  # tied to the head
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.zero_()
    prompts, prefixes, targets = texts()
    found = measure_targets(policy, prompts, prefixes, targets)
    with torch.no_grad():
        weight.copy_(kept)
    assert torch.cat(found).tolist() == pytest.approx([-math.log(121)] * 15)


def test_numbers_that_do_not_fit_are_refused(policy):
    prompts, prefixes, targets = texts()
    with pytest.raises(ValueError, match="3 prompts, 5 prefixes and 5 targets"):
        measure_targets(policy, prompts, prefixes[:5], targets[:5])


@pytest.mark.slow
def test_two_processes_are_one(tmp_path):
    """The first one has one prompt and the second one two; a lone process measures all."""
    policy = PolicyModel(Policy("rlif-arithmetic")).double()
    prompts, prefixes, targets = texts()
    whole = measure_targets(policy, prompts, prefixes, targets, 12)

    def work(rank: int) -> list[list[float]]:
        mine, rows = [slice(0, 1), slice(1, 3)][rank], [slice(0, 2), slice(2, 6)][rank]
        found = measure_targets(policy, prompts[mine], prefixes[rows], targets[rows], 12)
        return [each.tolist() for each in found]

    first, second = on_two_ranks(work, tmp_path)
    for one, other in zip(whole, [*first, *second], strict=True):
        assert one.tolist() == pytest.approx(other, abs=1e-9)


def of_policy(policy: PolicyModel, texts: list[str], **settings):
    head = TargetLogprob(**settings)
    head.bind(RunModels(policy, policy.settings, lambda _: policy, torch.device("cpu"), 0))
    rollout = handmade(texts, 2, reply=["7+8=15"] * (len(texts) // 2))
    return RewardSet({"target": WeightedReward(head)})(rollout)["target"].scores


def test_the_reward_is_the_mean_log_prob_after_the_reasoning(policy):
    texts = ["<reasoning>a 1</reasoning> [HUMAN]: 1", "<reasoning>a 1+2</reasoning>[HUMAN]: no"]
    scores = of_policy(policy, texts, lowest=-50.0)
    encode = policy.tokenizer
    for score, reasoning in zip(scores.tolist(), ("a 1", "a 1+2"), strict=True):
        before = f"<reasoning>{reasoning}</reasoning>\n[HUMAN]:"
        ids = [
            torch.tensor(encode(text, add_special_tokens=False)["input_ids"])
            for text in (before, " 7+8=15")
        ]
        expected = naive(policy, torch.tensor([1, 2]), *ids).mean() + 0.1
        assert score == pytest.approx(float(expected), abs=1e-5)
    assert scores[0] != scores[1]


def test_it_is_bounded_and_a_completion_without_reasoning_has_the_bound(policy):
    texts = ["<reasoning>a</reasoning>[HUMAN]: 1", "no marker"]
    assert of_policy(policy, texts, lowest=-0.01).tolist() == pytest.approx([0.09, -0.01])
    with pytest.raises(ValueError, match="lowest=0 must be below 0"):
        TargetLogprob(lowest=0)
