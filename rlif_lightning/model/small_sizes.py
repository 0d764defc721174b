"""Widths, windows and positions of a small copy of a model's configuration (``shrunken.py``).

Different architectures give the same size different names. The tables have all names, with values
that fit each other (hidden size = heads x head size, and so on). Multipliers and caps are in no
table.
"""

from __future__ import annotations

import re
from typing import Any

VOCABULARY = 96  # tokens; more than the special ones that tokenizers begin with
WINDOW = 4  # positions that a windowed layer sees
# The length beyond which rotary angles change, in models whose angles depend on the length.
REACH = 24
# Dropout and jitter, where a configuration has them: large enough to show in a few tokens.
NOISE = 0.5

SIZES: dict[str, int] = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input", "decoder_vocab_size"), VOCABULARY),
    **dict.fromkeys(
        (
            "hidden_size",
            "d_model",
            "n_embd",
            "emb_dim",
            "embedding_size",
            "embedding_dim",
            "word_embed_proj_dim",
        ),
        32,
    ),
    **dict.fromkeys(
        ("input_embedding_size", "output_embedding_size", "lru_width", "dim_model"), 32
    ),
    **dict.fromkeys(
        ("intermediate_size", "ffn_dim", "n_inner", "dff", "ffn_hidden_size", "decoder_ffn_dim"), 64
    ),
    **dict.fromkeys(
        ("intermediate_size_mlp", "dense_intermediate_size", "prefix_dense_intermediate_size"), 64
    ),
    **dict.fromkeys(
        ("encoder_ffn_dim", "dim_ff", "d_inner", "attention_hidden_size", "feed_forward_size"), 64
    ),
    **dict.fromkeys(
        ("moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size"), 32
    ),
    **dict.fromkeys(
        ("shared_experts_intermediate_size", "moe_shared_expert_intermediate_size"), 32
    ),
    **dict.fromkeys(("expert_ffn_hidden_size", "moe_latent_size", "router_hidden_size"), 32),
    **dict.fromkeys(
        ("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads"), 4
    ),
    **dict.fromkeys(
        ("encoder_attention_heads", "decoder_attention_heads", "swa_num_attention_heads"), 4
    ),
    **dict.fromkeys(
        ("num_encoder_attention_heads", "num_decoder_attention_heads", "linear_num_heads"), 4
    ),
    **dict.fromkeys(
        ("head_dim", "kv_channels", "swa_head_dim", "attention_head_size", "d_head", "dim_head"), 8
    ),
    **dict.fromkeys(
        ("qk_nope_head_dim", "qk_rope_head_dim", "linear_key_head_dim", "linear_value_head_dim"), 8
    ),
    **dict.fromkeys(
        ("index_head_dim", "indexer_head_dim", "linear_head_dim", "hidden_size_per_layer_input"), 8
    ),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "o_lora_rank", "qk_head_dim"), 16),
    **dict.fromkeys(("rotary_dim", "adapter_rank", "laurel_rank", "hc_lowrank", "d_rel"), 4),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(
        (
            "n_group",
            "topk_group",
            "num_expert_group",
            "mamba_n_groups",
            "n_groups",
            "mamba_ngroups",
        ),
        1,
    ),
    **dict.fromkeys(
        ("index_n_heads", "indexer_n_heads", "linear_num_key_heads", "o_groups", "zero_expert_num"),
        2,
    ),
    **dict.fromkeys(("mamba_n_heads", "linear_num_value_heads", "mamba_num_heads"), 4),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim", "mamba_headdim", "attention_head_dim"), 16),
    **dict.fromkeys(
        ("mamba_d_state", "ssm_state_size", "state_size", "mamba_dt_rank", "time_step_rank"), 8
    ),
    **dict.fromkeys(("chunk_size", "mamba_chunk_size", "block_size", "index_block_size"), 8),
    **dict.fromkeys(("mamba_d_ssm",), 64),
    **dict.fromkeys(
        ("index_topk", "keep_window_size", "indexer_budget"), 64
    ),  # more than is compared: contexts
    # in which such a layer leaves tokens out are refused when they come up (``context.py``)
    **dict.fromkeys(("n_mamba_heads",), 4),
    "v_head_dim": 12,  # not the keys': what keeps both apart is tried
}
AT_MOST = {  # of experts, how many are chosen; the real number if it is smaller
    **dict.fromkeys(
        ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts"), 2
    ),
    **dict.fromkeys(("n_shared_experts", "num_shared_experts", "moe_num_shared_experts"), 1),
}
HEADS = ("num_attention_heads", "n_head", "n_heads")
KEY_HEADS = (
    "num_key_value_heads",
    "num_kv_heads",
    "swa_num_key_value_heads",
    "num_query_groups",
    "kv_n_heads",
)
WINDOWS = (
    "sliding_window",
    "attention_window_size",
    "window_size",
    "attention_chunk_size",
    "sliding_window_size",
)
WINDOWS += ("local_attention",)
POSITIONS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "n_ctx",
    "context_length",
    "model_max_length",
)


def narrow(config: Any) -> None:
    """Make widths, windows and positions small, in place; what is None or absent stays so."""
    before = dict(vars(config))
    for name, value in before.items():
        if isinstance(value, float) and value > 0 and re.search("drop|jitter", name):
            vars(config)[name] = NOISE
        elif type(value) is int and (small := _small(name, value)) is not None:
            vars(config)[name] = small
    _narrow_heads(config, before)
    _narrow_single_layers(config, before)
    rope = before.get("rope_parameters")
    if isinstance(rope, dict):  # one rule for all layers, or one for each type of layer
        for part in (rope, *(each for each in rope.values() if isinstance(each, dict))):
            _shorten_rotary(config, part)


def _narrow_heads(config: Any, before: dict[str, Any]) -> None:
    """Set the key heads: as many as query heads, one, or half as many, like the model's."""
    heads = next((before[name] for name in HEADS if before.get(name) is not None), None)
    for name in KEY_HEADS:
        if before.get(name) is not None:
            vars(config)[name] = (
                SIZES["num_heads"] if before[name] == heads else min(before[name], 2)
            )
    if "expand" in before and "head_dim" in before:  # Mamba 2: the factor of all heads' width
        width = vars(config)["hidden_size"] * before["expand"]
        vars(config)["head_dim"] = width // SIZES["num_heads"]


def _narrow_single_layers(config: Any, before: dict[str, Any]) -> None:
    """Scale the widths of single layers by the same factor as those of the other layers."""
    for own in overrides(config).values():
        for name, value in own.items():
            if type(value) is int and before.get(name):
                own[name] = max(1, vars(config)[name] * value // before[name])


def overrides(config: Any) -> dict[int, dict[str, Any]]:
    """Return the fields that single layers override: number of the layer -> field -> value."""
    return getattr(vars(config).get("_heterogeneity_spec"), "per_layer_overrides", {})


def _small(name: str, value: int) -> int | None:
    """Return the small value of a field; None = it stays."""
    if name in SIZES:
        return SIZES[name] if value else value
    if name in AT_MOST:
        return min(value, AT_MOST[name])
    if name in WINDOWS:
        return WINDOW if value else value
    if name in POSITIONS:
        return 256
    if name.endswith("token_id") and value >= VOCABULARY:
        return {"bos": 1, "eos": 2}.get(name.split("_")[0], 0)
    return None


def _shorten_rotary(config: Any, rope: dict[str, Any]) -> None:
    """Cut tables of rotary angles to the small heads, and let angles change beyond ``REACH``."""
    half = int(SIZES["head_dim"] * (rope.get("partial_rotary_factor") or 1.0)) // 2
    for name in ("short_factor", "long_factor"):
        if name in rope:
            rope[name] = rope[name][:half]
    if "mrope_section" in rope:
        rope["mrope_section"] = [half - 2 * (half // 3), half // 3, half // 3]
    if rope.get("rope_type") not in ("longrope", "dynamic"):
        return
    for owner in (rope, vars(config)):
        if "original_max_position_embeddings" in owner:
            owner["original_max_position_embeddings"] = REACH
    config.max_position_embeddings = REACH if rope["rope_type"] == "dynamic" else 4 * REACH
