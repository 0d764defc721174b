"""Many architectures, tiny and random: sampling and packed scoring against the model's own
evaluation forward.
"""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch

from harness.architectures import COMPOSITE, SPECIAL, check, load, save_tiny, tiny_config
from harness.scoring import HOT, PLAIN, assert_same_gradients, gradients, score, score_plainly
from rlif_lightning.rollout.decoders import cache_is_right

# Hugging Face's own forward fails in float64, mostly since grouped products of experts do not know
# it.
SINGLE = {
    "granitemoe",
    "phimoe",
    "mixtral",
    "gpt_oss",
    "deepseek_v2",
    "deepseek_v3",
    "llama4_text",
    "xglm",
    "mpt",
}
OWN_ROWS = {
    "mpt",
    "falcon",
    "gptj",
    "gpt_neo",
    "xglm",
    "biogpt",
    "llama4_text",
    "doge",
}  # no plan, but a cache
WHOLE_ROWS = {"lfm2", "qwen3_5_text", "openai-gpt"}  # not even that
EAGER = [
    "granite",
    "cohere2",
    "gemma2",
    "phimoe",
    "mistral",
    "phi3",
    "starcoder2",
    "gpt_neo",
    "mpt",
    "opt",
    "deepseek_v3",
]


# What makes these special makes another one special as well, which is in the fast tier.
ALIKE = {
    *("granitemoe", "phimoe", "cohere", "nemotron", "phi3", "starcoder2", "minicpm3"),
    *("deepseek_v2", "gptj", "gpt_bigcode", "biogpt", "xglm"),
}


# test_native.py and test_self_check.py draw and score with these two in the fast tier.
ELSEWHERE = {"gemma3", "mixtral"}
ELSEWHERE |= {"qwen3_5_text"}  # lfm2 has neither a plan nor a cache as well


def each(kinds: Iterable[str]) -> list:
    marks = dict.fromkeys(ALIKE, pytest.mark.full) | dict.fromkeys(ELSEWHERE, pytest.mark.slow)
    return [pytest.param(kind, marks=marks.get(kind, ())) for kind in kinds]


@pytest.mark.parametrize("kind", each([*SPECIAL, *COMPOSITE]))
def test_log_probs_are_the_model_s_own(tmp_path, kind):
    folder = save_tiny(tiny_config(kind), tmp_path)
    policy = load(folder, dtype="float32" if kind in SINGLE else "float64")
    assert policy.training
    assert policy.shares_prompts == (kind not in OWN_ROWS | WHOLE_ROWS)
    if not policy.shares_prompts:
        with torch.no_grad():
            assert cache_is_right(policy, torch.device("cpu")) == (kind in OWN_ROWS)
    check(
        folder, policy, "eager" if kind == "doge" else None
    )  # Hugging Face's sdpa of Doge sees later tokens


# The first test scores each kind by the other attention; these have scales, caps, biases, windows.
ENOUGH = ("gemma2", "mpt", "gpt_neo")


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [pytest.param(k, marks=() if k in ENOUGH else pytest.mark.full) for k in EAGER],
)
def test_eager_attention_keeps_windows_biases_and_scales(tmp_path, kind):
    folder = save_tiny(tiny_config(kind), tmp_path)
    check(folder, load(folder, attention="eager"), "eager")


# The marks: granite scales logits too, gemma2 has windows, opt neither rotary positions.
PLAINER = [pytest.param(k, marks=pytest.mark.full) for k in ("cohere2", "nemotron", "mpt")]


@pytest.mark.parametrize(
    "kind", ["granite", "gemma2", "deepseek_v2", "gpt_oss", "opt", "lfm2", *PLAINER]
)
def test_gradients_are_those_of_plain_sequences(tmp_path, kind):
    """Through scales and caps of logits and of scores, sinks, latent keys, and rows that are
    recomputed.
    """
    folder = save_tiny(tiny_config(kind), tmp_path)
    policy = load(folder)
    expected = gradients(policy, score_plainly(policy, HOT))
    for settings in ({}, {"gradient_checkpointing": True}):
        other = load(folder, **settings)
        assert_same_gradients(gradients(other, score(other, HOT)), expected, 2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["opt", "xglm", "falcon", "seed_oss"])
def test_nothing_is_drawn_at_random_while_activations_are_recomputed(tmp_path, kind):
    """Recomputing layers are in training mode, and drop nothing; the config that an export writes
    still does.
    """
    policy = load(save_tiny(tiny_config(kind), tmp_path), gradient_checkpointing=True)
    config = policy.causal_lm.config
    assert 0.3 in (getattr(config, name, None) for name in ("dropout", "attention_dropout"))
    first, second = (score(policy, PLAIN).logprobs for _ in range(2))
    assert any(module.training for module in policy.causal_lm.modules())
    assert torch.equal(first, second)
    assert torch.equal(first, score(policy.eval(), PLAIN).logprobs)


def test_a_model_whose_tokens_see_later_ones_is_refused(tmp_path):
    folder = save_tiny(tiny_config("bert"), tmp_path)
    with pytest.raises(
        ValueError, match=r"in BertLMHeadModel tokens see later ones, .*is_decoder=true"
    ):
        load(folder)
