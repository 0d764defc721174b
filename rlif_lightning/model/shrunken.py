"""A small copy of a model's configuration: every kind of layer once, narrow, with the same scalings and rotary kinds.

``shrunken`` takes a Hugging Face configuration to one whose model has some ten thousand random numbers, so that what
this library computes can be compared with the model's own forward before any weights are read
(``rollout/self_check.py``). Widths become the values of ``SIZES``, windows become 4, and only the first layers stay:
as many as it takes to have each kind of layer. Multipliers, caps and ways to extend positions are not touched.
"""

from __future__ import annotations

import copy
import re
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig

VOCABULARY = 96  # tokens; more than the special ones that tokenizers begin with
WINDOW = 4  # positions that a windowed layer sees
REACH = 10  # positions that a model with extended rotary angles was first trained on
SPREAD = 0.3  # standard deviation of the random weights: large enough that a fault changes log-probs by nats
NOISE = 0.5  # of whatever dropout or jitter the configuration asks for: large enough to show in a few tokens
DEEPEST = 40  # layers; where each kind of layer is not found within these, the copy is not worth its time

# The width of what configurations name; those of one model fit each other (hidden size = heads x head size, and so on).
SIZES: dict[str, int] = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input", "decoder_vocab_size"), VOCABULARY),
    **dict.fromkeys(
        ("hidden_size", "d_model", "n_embd", "emb_dim", "embedding_size", "embedding_dim", "word_embed_proj_dim"), 32
    ),
    **dict.fromkeys(("input_embedding_size", "output_embedding_size", "lru_width", "dim_model"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "dff", "ffn_hidden_size", "decoder_ffn_dim"), 64),
    **dict.fromkeys(("intermediate_size_mlp", "dense_intermediate_size", "prefix_dense_intermediate_size"), 64),
    **dict.fromkeys(("encoder_ffn_dim", "dim_ff", "d_inner", "attention_hidden_size", "feed_forward_size"), 64),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size"), 32),
    **dict.fromkeys(("shared_experts_intermediate_size", "moe_shared_expert_intermediate_size"), 32),
    **dict.fromkeys(("expert_ffn_hidden_size", "moe_latent_size", "router_hidden_size"), 32),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads", "swa_num_attention_heads"), 4),
    **dict.fromkeys(("num_encoder_attention_heads", "num_decoder_attention_heads", "linear_num_heads"), 4),
    **dict.fromkeys(("head_dim", "kv_channels", "swa_head_dim", "attention_head_size", "d_head", "dim_head"), 8),
    **dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim", "linear_key_head_dim", "linear_value_head_dim"), 8),
    **dict.fromkeys(("index_head_dim", "indexer_head_dim", "linear_head_dim", "hidden_size_per_layer_input"), 8),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "o_lora_rank", "qk_head_dim"), 16),
    **dict.fromkeys(("rotary_dim", "index_topk", "adapter_rank", "laurel_rank", "hc_lowrank", "d_rel"), 4),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("n_group", "topk_group", "num_expert_group", "mamba_n_groups", "n_groups", "mamba_ngroups"), 1),
    **dict.fromkeys(("index_n_heads", "indexer_n_heads", "linear_num_key_heads", "o_groups", "zero_expert_num"), 2),
    **dict.fromkeys(("mamba_n_heads", "linear_num_value_heads", "mamba_num_heads"), 4),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim", "mamba_headdim", "attention_head_dim"), 16),
    **dict.fromkeys(("mamba_d_state", "ssm_state_size", "state_size", "mamba_dt_rank", "time_step_rank"), 8),
    **dict.fromkeys(("chunk_size", "mamba_chunk_size", "block_size", "index_block_size"), 8),
    **dict.fromkeys(("mamba_d_ssm",), 64),
    "v_head_dim": 12,  # not the keys': what keeps both apart is tried
}
AT_MOST = {  # of experts, how many are chosen; the real number if it is smaller
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts"), 2),
    **dict.fromkeys(("n_shared_experts", "num_shared_experts", "moe_num_shared_experts"), 1),
}
HEADS = ("num_attention_heads", "n_head", "n_heads")
KEY_HEADS = ("num_key_value_heads", "num_kv_heads", "swa_num_key_value_heads", "num_query_groups")
WINDOWS = ("sliding_window", "attention_window_size", "window_size", "attention_chunk_size", "sliding_window_size")
WINDOWS += ("local_attention", "keep_window_size")
POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "context_length", "model_max_length")
DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_blocks", "decoder_layers", "encoder_layers")
DEPTHS += ("num_decoder_layers", "num_encoder_layers", "num_layers_per_stack")
OF_LAYERS = re.compile(r"(idxs|indices|layer_ids|only_layers|moe_layers)$")  # lists of layers' numbers
NUMBERS = re.compile(r"(idx|index|layer_id|layer_number|number|num.*layers)$")  # attributes that say which layer it is


class NotShrinkable(Exception):
    """There is no small copy of this configuration."""


def shrunken(config: PreTrainedConfig) -> PreTrainedConfig:
    """A small copy of a configuration that Transformers knows.

    Raises:
        NotShrinkable: no model can be built of the small copy, or no few layers have every kind.
    """
    small = copy.deepcopy(config)
    try:
        text = small.get_text_config()
        for part in _parts(small):
            _narrow(part)
            if part is not text:
                _cut(part, vars(part).get("num_hidden_layers", 0), 2)
        _keep_every_kind(small, text)
    except NotShrinkable:
        raise
    except Exception as error:  # whatever an architecture's own code raises on sizes that it was not made for
        raise NotShrinkable(f"{type(error).__name__}: {error}") from error
    return small


@torch.no_grad()
def random_model(config: PreTrainedConfig) -> Any:
    """The model of a small configuration in float32 on the CPU, with weights that depend on the configuration alone.

    The global random state stays as it was.

    Raises:
        NotShrinkable: Transformers cannot build it.
    """
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = copy.deepcopy(config)
        try:
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
        except Exception as error:
            raise NotShrinkable(f"{type(error).__name__}: {error}") from error
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=SPREAD)
            else:  # a bias or a norm: those that begin as zeros or ones would hide that they are not used
                parameter += SPREAD / 3 * torch.randn_like(parameter)
    return model.eval()


def _parts(config: PreTrainedConfig) -> list[Any]:
    """The configuration and those inside it."""
    inner = [value for value in vars(config).values() if isinstance(value, PreTrainedConfig)]
    return [config, *(part for each in inner for part in _parts(each))]


def _narrow(config: Any) -> None:
    """Small widths, windows and positions in place; what is None or absent stays so."""
    before = dict(vars(config))
    heads = next((before[name] for name in HEADS if before.get(name) is not None), None)
    for name, value in before.items():
        if isinstance(value, float) and value > 0 and re.search("drop|jitter", name):
            vars(config)[name] = NOISE
        elif type(value) is int and (small := _small(name, value)) is not None:
            vars(config)[name] = small
    for name in KEY_HEADS:
        if before.get(name) is not None:
            vars(config)[name] = 4 if before[name] == heads else min(before[name], 2)
    overrides = getattr(before.get("_heterogeneity_spec"), "per_layer_overrides", {})
    for each in overrides.values():  # of single layers: as much larger or smaller than the others as they were
        for name, value in each.items():
            if type(value) is int and before.get(name):
                each[name] = max(1, vars(config)[name] * value // before[name])
    _shorten_rotary(config)


def _small(name: str, value: int) -> int | None:
    """The small value of a field; None = it stays."""
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


def _shorten_rotary(config: Any) -> None:
    """Tables of rotary angles as long as the small heads need, and extended from a length that is soon passed."""
    rope = vars(config).get("rope_parameters")
    if not isinstance(rope, dict):
        return
    for part in (rope, *(each for each in rope.values() if isinstance(each, dict))):
        half = int(SIZES["head_dim"] * (part.get("partial_rotary_factor") or 1.0)) // 2
        for name in ("short_factor", "long_factor"):
            if name in part:
                part[name] = part[name][:half]
        if "mrope_section" in part:
            part["mrope_section"] = [half - 2 * (half // 3), half // 3, half // 3]
        if part.get("rope_type") in ("longrope", "dynamic"):
            if "original_max_position_embeddings" in part:
                part["original_max_position_embeddings"] = REACH
            if hasattr(config, "original_max_position_embeddings"):
                config.original_max_position_embeddings = REACH
            config.max_position_embeddings = REACH if part["rope_type"] == "dynamic" else 4 * REACH


def _keep_every_kind(config: PreTrainedConfig, text: Any) -> None:
    """Cut the language model, in place, to the fewest layers that have every kind of layer which the whole one has."""
    shared = vars(text).get("num_kv_shared_layers") or 0
    stacks = _stacks(config, text)
    kinds = _kinds(config, stacks)
    whole = len(kinds)
    if shared:  # the last ones take the keys of those before them: as many again as it takes to have all kinds
        depth = min(2 * _prefix(kinds[: whole - shared]), whole)
        text.num_kv_shared_layers = shared if depth == whole else depth // 2
    else:
        once = kinds[:-1] if kinds.count(kinds[-1]) == 1 else kinds  # a last layer of its own kind will be so again
        depth = _prefix(once) + whole - len(once)
    depth = max(depth, min(2, whole))
    if depth > DEEPEST:
        raise NotShrinkable(f"{depth} layers are needed to have every kind")
    _cut(text, whole, depth)
    if len(set(_kinds(config, stacks))) < len(set(kinds)):
        raise NotShrinkable("its first layers do not have every kind of layer")


def _shape(config: PreTrainedConfig) -> Any:
    """The model without numbers."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation="eager")


def _stacks(config: PreTrainedConfig, text: Any) -> list[str]:
    """Paths of the model's lists of decoder layers."""
    depths = {getattr(text, name, None) for name in DEPTHS}
    lists = {path: len(part) for path, part in _shape(config).named_modules() if isinstance(part, nn.ModuleList)}
    longest = max((length for length in lists.values() if length in depths), default=0)
    if not longest:
        raise NotShrinkable("no list of layers was found")
    return [path for path, length in lists.items() if length == longest]


def _kinds(config: PreTrainedConfig, stacks: list[str]) -> list[str]:
    """The kind of every decoder layer."""
    model = _shape(config)
    layers = [model.get_submodule(path).children() for path in stacks]
    return ["\n".join(map(_kind, each)) for each in zip(*layers, strict=False)]


def _prefix(kinds: list[str]) -> int:
    """Length of the shortest beginning that has every kind of layer."""
    return max(kinds.index(kind) for kind in set(kinds)) + 1


def _kind(layer: nn.Module) -> str:
    """What tells a layer from others: its modules' classes, shapes, and the values of plain attributes."""
    lines = []
    for path, module in layer.named_modules():
        plain = {
            name: value if isinstance(value, (bool, str, int, type(None))) else type(value).__name__
            for name, value in vars(module).items()
            if not name.startswith("_") and not NUMBERS.search(name)
        }
        shapes = [tuple(parameter.shape) for parameter in module.parameters(recurse=False)]
        lines.append(f"{path} {type(module).__name__} {shapes} {sorted(plain.items())}")
    return "\n".join(lines)


def _cut(config: Any, whole: int, depth: int) -> None:
    """Keep the first layers: in place, with every list that has an entry or a number for each layer."""
    for name, value in list(vars(config).items()):
        if name in DEPTHS and type(value) is int and whole and value % whole == 0:
            vars(config)[name] = value // whole * depth  # some count each layer more than once
        elif isinstance(value, list) and OF_LAYERS.search(name):
            vars(config)[name] = [number for number in value if number < depth]
        elif isinstance(value, list) and len(value) == whole > 1:
            vars(config)[name] = value[:depth]
    overrides = getattr(vars(config).get("_heterogeneity_spec"), "per_layer_overrides", {})
    for number in [number for number in overrides if number >= depth]:
        del overrides[number]
