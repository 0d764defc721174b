"""Embeddings beyond the tokenizer: under ``vocabulary: tokenizer`` every engine and every pass
leaves them out.
"""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness.decoding import GROUP, completions, generate, prompts_of, rescored
from harness.models import make_model
from rlif_lightning.learning.old_logprobs import reference_logprobs
from rlif_lightning.model.loading import Policy, resolve_model
from rlif_lightning.model.packing import pack
from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.records import TokenStats
from rlif_lightning.rollout.external_samples import Drawn, Draws, as_rollout
from rlif_lightning.rollout.vllm_engine import VLLMEngine
from rlif_lightning.sampling import Sampling

PADDING = 39
SAMPLING = Sampling(temperature=1.4, max_new_tokens=12, min_new_tokens=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random tiny model with 39 embeddings that the tokenizer has no token for; an end token
    among them.
    """
    tokenizer = AutoTokenizer.from_pretrained(resolve_model("rlif-arithmetic"))
    torch.manual_seed(0)
    model = make_model("llama", len(tokenizer) + PADDING)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, len(tokenizer) + 3]
    path = tmp_path_factory.mktemp("padded")
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def load(folder, vocabulary: str) -> PolicyModel:
    return PolicyModel(Policy(str(folder), vocabulary=vocabulary))


def test_only_the_tokenizer_s_tokens_are_drawn_and_only_they_count(folder):
    """Statistics of sampler and scorer, and the model's own logits without the padding."""
    policy = load(folder, "tokenizer")
    number = len(policy.tokenizer)
    assert policy.num_tokens == number
    assert policy.eos_ids == [policy.tokenizer.eos_token_id]
    rollout = generate(policy, [0, 1, 2, 3], SAMPLING)
    assert int(rollout.completion_ids.max()) < number
    scored = rescored(policy, rollout, SAMPLING)
    for field in fields(TokenStats):
        torch.testing.assert_close(
            getattr(rollout.stats, field.name), getattr(scored, field.name), rtol=1e-4, atol=1e-4
        )
    own = AutoModelForCausalLM.from_pretrained(folder)
    for row, ids in enumerate(completions(rollout)):
        prompt = rollout.prompts.token_ids[row // GROUP]
        with torch.no_grad():
            logits = own(input_ids=torch.cat([prompt, torch.tensor(ids)])[None]).logits[
                0, len(prompt) - 1 : -1
            ]
        logp = (logits[3:, :number] / SAMPLING.temperature).log_softmax(
            -1
        )  # from where the completion may end
        expected = (
            logp.gather(1, torch.tensor(ids[3:])[:, None])[:, 0],
            -(logp.exp() * logp).sum(-1),
            -logp.mean(-1),
        )
        found = [
            getattr(rollout.stats, field.name)[row, 3 : len(ids)] for field in fields(TokenStats)
        ]
        for value, other in zip(
            found, (*expected[:2], expected[2] - torch.tensor(number).log()), strict=True
        ):
            torch.testing.assert_close(value, other, rtol=1e-4, atol=1e-4)


def test_by_default_every_id_of_the_model_is_a_token(folder):
    policy = load(folder, "model")
    assert policy.num_tokens is None
    rollout = generate(policy, [0, 1, 2, 3], SAMPLING)
    assert int(rollout.completion_ids.max()) >= len(policy.tokenizer)


@pytest.mark.parametrize("kept_logits", [2**28, 0])
def test_nothing_pulls_at_what_is_no_token(folder, monkeypatch, kept_logits):
    """Gradients of the head's rows: exactly 0 in the padding, whether logits are kept or
    recomputed.
    """
    monkeypatch.setattr("rlif_lightning.model.policy.KEPT_LOGITS", {"cpu": kept_logits})
    policy = load(folder, "tokenizer")
    rollout = generate(policy, [0, 1], SAMPLING)
    with torch.enable_grad():
        gradient = head_gradient(policy, rollout)
    number = len(policy.tokenizer)
    assert gradient[:number].abs().sum() > 0
    assert not gradient[number:].any()


def head_gradient(policy: PolicyModel, rollout) -> torch.Tensor:
    for packed in pack(rollout.completions, 10_000):
        stats = policy(packed, SAMPLING)
        (stats.logprobs.sum() + stats.entropy.sum() + stats.self_certainty.sum()).backward()
    return policy.causal_lm.lm_head.weight.grad


def test_the_reference_model_leaves_them_out_too(folder):
    policy = load(folder, "tokenizer")
    rollout = generate(policy, [0, 1], SAMPLING)
    reference = PolicyModel(Policy(str(folder), vocabulary="tokenizer"), frozen=True)
    found = reference_logprobs(policy, reference, rollout.completions, SAMPLING, 10_000)
    torch.testing.assert_close(found, rollout.stats.logprobs, rtol=1e-4, atol=1e-4)


def test_vllm_is_told_what_is_no_token_and_is_not_believed_if_it_draws_it(folder):
    engine = VLLMEngine()
    engine.setup(load(folder, "tokenizer"), 0)
    number = len(engine.policy.tokenizer)
    assert engine.request(SAMPLING, 2, 0)["logit_bias"] == dict.fromkeys(
        range(number, number + PADDING), -100.0
    )
    drawn = [Drawn([5, number], [-1.0, -1.0], False)] * GROUP
    draws = Draws(drawn, prompts_of(engine.policy, [0]))
    with pytest.raises(
        RuntimeError, match=f"the engine drew token {number}, beyond the tokenizer's {number}"
    ):
        as_rollout(engine.policy, draws, SAMPLING, 1000, None)
    engine.setup(load(folder, "model"), 0)
    assert engine.request(SAMPLING, 2, 0)["logit_bias"] is None


def test_an_unknown_vocabulary_is_refused():
    with pytest.raises(
        ValueError, match=r"policy\.vocabulary='both' is unknown; use one of model, tokenizer"
    ):
        replace(Policy("x"), vocabulary="both")
