"""Settings of low-rank adapters, by peft's names."""

from __future__ import annotations

import math
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from rlif_lightning.setting_types import check_types

# What else of peft's LoraConfig a policy can have. Others draw at random, change the base weights,
# or train more than adapters: then the base model would be no reference, or scores would differ.
OPTIONS = ("use_rslora", "use_dora", "target_modules", "exclude_modules", "layers_to_transform")
OPTIONS += ("layers_pattern",)
NAMES = {"r": "rank", "lora_alpha": "alpha"}
# What peft sets by itself, or what says nothing about the adapters.
IGNORED = ("task_type", "peft_type", "base_model_name_or_path", "revision", "inference_mode")
IGNORED += ("auto_mapping", "fan_in_fan_out", "peft_version", "runtime_config", "bias")


@dataclass(frozen=True)
class LoRA:
    """Settings of low-rank adapters instead of full fine-tuning (package peft, extra `lora`).

    Args:
        rank: r of the adapters.
        alpha: scale; the adapter's output is multiplied by alpha / rank.
        options: what else peft's LoraConfig takes, by its names: target_modules (names of the
            layers to adapt, or a regular expression; without it every linear layer but the head),
            use_rslora (the scale is alpha / sqrt(rank)), use_dora, exclude_modules,
            layers_to_transform, layers_pattern.

    Raises:
        ValueError: an unknown option, or one that a policy cannot have.
    """

    rank: int = 16
    alpha: int = 32
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_types(self)
        for name, value in self.options.items():
            if name == "lora_dropout":
                raise ValueError(
                    f"lora.options.lora_dropout={value} would have no effect: a policy must compute"
                    " the same log-probs twice, so that nothing is dropped; take it out"
                )
            if name.startswith(("load_in_", "bnb_4bit_")):
                raise ValueError(
                    f"lora.options.{name}={value!r:.60}: QLoRA is not supported, because"
                    " bitsandbytes' kernel for single tokens has no gradient, which PyTorch warns"
                    " may be silently wrong; set policy.dtype=bfloat16 for half the weights"
                )
            if name in NAMES:
                raise ValueError(f"lora.options.{name} is lora.{NAMES[name]}")
            if name not in OPTIONS:
                raise ValueError(
                    f"lora.options.{name}={value!r:.60} is not supported; use one of"
                    f" {', '.join(OPTIONS)}"
                )

    @property
    def scale(self) -> float:
        """Return what multiplies the adapters' output."""
        return lora_scale(self.rank, self.alpha, bool(self.options.get("use_rslora")))

    @classmethod
    def of(cls, peft_config: Any) -> LoRA:
        """Return the settings that a ``LoraConfig`` of peft has.

        Raises:
            ValueError: it sets what a policy cannot have; names it.
        """
        found: dict[str, Any] = {}
        for each in fields(peft_config):
            value = getattr(peft_config, each.name)
            default = each.default if each.default_factory is MISSING else each.default_factory()
            if value != default and each.name not in IGNORED:
                found[each.name] = sorted(value) if isinstance(value, set) else value
        options = {name: found[name] for name in found if name not in NAMES}
        given = {now: found[name] for name, now in NAMES.items() if name in found}
        defaults = {"rank": peft_config.r, "alpha": peft_config.lora_alpha}
        if getattr(peft_config, "bias", "none") != "none":
            options["bias"] = peft_config.bias
        return cls(**{**defaults, **given}, options=options)


def lora_scale(rank: float, alpha: float, is_rank_stabilised: bool) -> float:
    """Return alpha / r or, rank-stabilised, alpha / sqrt(r) (https://arxiv.org/abs/2312.03732)."""
    return alpha / (math.sqrt(rank) if is_rank_stabilised else rank)
