"""Tiny random models of many architectures, with the settings that make each of them special."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from harness.decoding import GROUP, generate, rescored
from rlif_lightning.model.loading import Policy, resolve_model
from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.records import Rollout
from rlif_lightning.sampling import Sampling

TOKENIZER = AutoTokenizer.from_pretrained(resolve_model("rlif-arithmetic"))
COMMON = {
    "vocab_size": len(TOKENIZER),
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
LATENT = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
    "num_key_value_heads": 4,
    "first_k_dense_replace": 1,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "n_group": 1,
    "topk_group": 1,
}
KINDS = ["sliding_attention", "full_attention"]
DELTA = {
    f"linear_{name}": size
    for name, size in (("key_head_dim", 8), ("value_head_dim", 8), ("num_key_heads", 2))
}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
SPECIAL: dict[str, dict[str, Any]] = {
    "granite": {"logits_scaling": 4.0, "embedding_multiplier": 2.0, "attention_multiplier": 0.3},
    "granitemoe": {"logits_scaling": 4.0, **EXPERTS},
    "cohere": {"logit_scale": 0.25},
    "cohere2": {"logit_scale": 0.25, "sliding_window": 5, "layer_types": KINDS},
    "gemma2": {
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 5.0,
        "head_dim": 8,
        "sliding_window": 5,
        "layer_types": KINDS,
    },
    "modernbert-decoder": {"local_attention": 6, "layer_types": KINDS},
    "nemotron": {},
    "phimoe": {
        "sliding_window": 5,
        "router_jitter_noise": 0.05,
        "input_jitter_noise": 0.05,
        **EXPERTS,
    },
    "mixtral": {"router_jitter_noise": 0.3, **EXPERTS},
    "gpt_oss": {"head_dim": 8, "sliding_window": 5, "layer_types": KINDS, **EXPERTS},
    "mistral": {"sliding_window": 5},
    "phi3": {"sliding_window": 5},
    "starcoder2": {"sliding_window": 5},
    "seed_oss": {"head_dim": 8, "attention_dropout": 0.3, "residual_dropout": 0.3},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.3, "layerdrop": 0.3},
    "biogpt": {"hidden_dropout_prob": 0.3, "layerdrop": 0.3},
    "gpt_bigcode": {**GPT, "attn_pdrop": 0.3, "resid_pdrop": 0.3, "embd_pdrop": 0.3},
    "xglm": {
        "d_model": 32,
        "ffn_dim": 48,
        "num_layers": 2,
        "attention_heads": 4,
        "dropout": 0.3,
        "layerdrop": 0.3,
    },
    "gpt_neo": {
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 5,
    },
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64, "expansion_ratio": 2},
    "falcon": {"alibi": True, "attention_dropout": 0.3, "hidden_dropout": 0.3},
    "gptj": {**GPT, "rotary_dim": 4},
    "deepseek_v2": {**LATENT, "topk_method": "greedy"},
    "deepseek_v3": LATENT,
    "minicpm3": {"dim_model_base": 32, **{name: LATENT[name] for name in list(LATENT)[:6]}},
    "llama4_text": {
        "attention_chunk_size": 5,
        "head_dim": 8,
        "num_local_experts": 4,
        "intermediate_size_mlp": 48,
    },
    "doge": {"sliding_window": 5, "keep_window_size": 64},
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_multiple_of": 8},
    "qwen3_5_text": {
        "layer_types": ["linear_attention", "full_attention"],
        "linear_num_value_heads": 4,
        **DELTA,
    },
    "openai-gpt": GPT,
}


TEXT = {"sliding_window": 5, "layer_types": KINDS, "head_dim": 8}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
COMPOSITE = {
    "gemma3": {
        "text_config": {**COMMON, **TEXT},
        "vision_config": {**VISION, "image_size": 28, "patch_size": 14},
        "mm_tokens_per_image": 4,
        "image_token_index": 120,
        "boi_token_index": 119,
        "eoi_token_index": 118,
    }
}


def tiny_config(kind: str, **settings: Any) -> Any:
    """The configuration of a tiny model of a type (its name in transformers)."""
    if kind in COMPOSITE:
        return CONFIG_MAPPING[kind](**COMPOSITE[kind] | settings)
    return CONFIG_MAPPING[kind](**COMMON | SPECIAL.get(kind, {}) | settings)


def save_tiny(config: Any, folder: Path) -> str:
    """Make a random model whose logits are far from uniform; its folder, with a tokenizer."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.generation_config.eos_token_id = TOKENIZER.eos_token_id
    model.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return str(folder)


SAMPLED, GREEDY = Sampling(max_new_tokens=14), Sampling(temperature=0, max_new_tokens=8)


def load(folder: str, **settings) -> PolicyModel:
    """A policy, in training mode as during an update; what cannot share prompts says so."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not let its attention be replaced")
        return PolicyModel(Policy(folder, **settings))


def sample(policy: PolicyModel, sampling: Sampling) -> Rollout:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*cannot be decoded with the standard cache")
        return generate(policy, [0, 1, 2, 3], sampling, max_rows=2 * GROUP)


@torch.no_grad()
def own_logprobs(folder: str, rollout: Rollout, **settings) -> tuple[Tensor, Tensor]:
    """Of each completion token, by the whole sequence alone, and whether the token is the
    likeliest; ``[B, T]``.
    """
    model = AutoModelForCausalLM.from_pretrained(folder, **settings).eval()
    logprobs, highest = (
        torch.zeros(rollout.mask.shape, dtype=torch.float64),
        torch.ones_like(rollout.mask),
    )
    for row, keep in enumerate(rollout.mask):
        completion, prompt = (
            rollout.completion_ids[row][keep],
            rollout.prompts.token_ids[row // GROUP],
        )
        logits = (
            model(input_ids=torch.cat([prompt, completion])[None], use_cache=False)
            .logits[0]
            .double()
        )
        logits = logits[len(prompt) - 1 : -1]
        logprobs[row, keep] = logits.log_softmax(-1).gather(1, completion[:, None])[:, 0]
        highest[row, keep] = logits.argmax(-1) == completion
    return logprobs, highest


def check(folder: str, policy: PolicyModel, own: str | None = None) -> None:
    """Sampler, scorer (twice) and greedy decoding agree with the model itself, by its own attention
    code or ``own``.
    """
    dtype = policy.causal_lm.dtype
    settings = {"dtype": dtype, "attn_implementation": own}
    policy.eos_ids = list(range(2, 45))  # so that rows leave at all times
    tolerance = (
        2e-3 if dtype == torch.float32 else 1e-4
    )  # the library's norms and rotary angles stay in float32
    rollout = sample(policy, SAMPLED)
    assert len(set(rollout.lengths.tolist())) > 1
    expected, _ = own_logprobs(folder, rollout, **settings)
    torch.testing.assert_close(rollout.stats.logprobs.double(), expected, rtol=0, atol=tolerance)
    scored = rescored(policy, rollout, SAMPLED)
    torch.testing.assert_close(scored.logprobs.double(), expected, rtol=0, atol=tolerance)
    assert torch.equal(scored.logprobs, rescored(policy, rollout, SAMPLED).logprobs)
    assert own_logprobs(folder, sample(policy, GREEDY), **settings)[1].all()
