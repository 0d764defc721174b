"""Settings of low-rank adapters, by peft's names."""

from __future__ import annotations

import math
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any

from rlif_lightning.setting_types import check_types

# What else of peft's LoraConfig a policy can have. Others draw at random, change the base weights,
# or train more than adapters: then the base model would be no reference, or scores would differ.
OPTIONS = ("use_rslora", "use_dora", "target_modules", "exclude_modules", "layers_to_transform")
OPTIONS += ("layers_pattern",)
# How the base weights are stored, by the names of transformers' BitsAndBytesConfig, and what holds
# without a word. The quantisation is NF4, as in QLoRA and as TRL's ModelConfig has it.
FOUR_BITS = {
    "load_in_4bit": False,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": False,
}
# What else a BitsAndBytesConfig lists, and is not read here.
READ_ELSEWHERE = ("bnb_4bit_compute_dtype", "quant_method", "_load_in_4bit", "_load_in_8bit")
QUANT_TYPES = ("nf4", "fp4")
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
            layers_to_transform, layers_pattern. Also `load_in_4bit: true` (QLoRA, package
            bitsandbytes, extra `qlora`), with bnb_4bit_quant_type (nf4 | fp4) and
            bnb_4bit_use_double_quant: the base's linear layers are stored in 4 bits and computed
            in policy.dtype.

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
            if name in NAMES:
                raise ValueError(f"lora.options.{name} is lora.{NAMES[name]}")
            if name == "bnb_4bit_compute_dtype":
                raise ValueError(f"lora.options.{name}={value} is policy.dtype; set it there")
            if name not in (*OPTIONS, *FOUR_BITS):
                raise ValueError(
                    f"lora.options.{name}={value!r:.60} is not supported; use one of"
                    f" {', '.join((*OPTIONS, *FOUR_BITS))}"
                )
        self._check_four_bits()

    def _check_four_bits(self) -> None:
        given = {name: value for name, value in self.options.items() if name in FOUR_BITS}
        for name, value in given.items():
            known = QUANT_TYPES if name == "bnb_4bit_quant_type" else (True, False)
            if value not in known or type(value) is not type(known[0]):
                shown = f"lora.options.{name}={value!r:.60}"
                raise ValueError(f"{shown} is unknown; use one of {known}")
        idle = [name for name in given if name != "load_in_4bit"]
        if idle and self.four_bits is None:
            raise ValueError(
                f"lora.options.{idle[0]} has no effect without load_in_4bit=true; add that, or take"
                " it out"
            )

    @property
    def four_bits(self) -> dict[str, Any] | None:
        """Return the 4 bits of the base weights, as BitsAndBytesConfig names them; None = whole."""
        found = {name: self.options.get(name, default) for name, default in FOUR_BITS.items()}
        return found if found["load_in_4bit"] else None

    @property
    def in_full(self) -> LoRA:
        """Return the same adapters on base weights that are not in 4 bits."""
        kept = {name: value for name, value in self.options.items() if name not in FOUR_BITS}
        return replace(self, options=kept)

    @property
    def scale(self) -> float:
        """Return what multiplies the adapters' output."""
        return lora_scale(self.rank, self.alpha, bool(self.options.get("use_rslora")))

    @classmethod
    def of(cls, peft_config: Any, quantization_config: Any = None) -> LoRA:
        """Return the settings that a ``LoraConfig`` of peft has.

        Args:
            peft_config: of the adapters.
            quantization_config: a ``BitsAndBytesConfig`` of transformers; None = no 4 bits. Its
                dtype to compute in is ``Policy.dtype``, and not read here.

        Raises:
            ValueError: one of them sets what a policy cannot have; names it.
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
        if quantization_config is not None:
            bits = quantization_config.to_diff_dict()
            options |= {name: bits[name] for name in bits if name not in READ_ELSEWHERE}
            options |= {name: getattr(quantization_config, name) for name in FOUR_BITS}
        return cls(**{**defaults, **given}, options=options)


def lora_scale(rank: float, alpha: float, is_rank_stabilised: bool) -> float:
    """Return alpha / r or, rank-stabilised, alpha / sqrt(r) (https://arxiv.org/abs/2312.03732)."""
    return alpha / (math.sqrt(rank) if is_rank_stabilised else rank)
