"""QLoRA: base weights stored in 4 bits (bitsandbytes), under adapters (arXiv:2305.14314).

A layer computes with what its 4 bits stand for, in ``Policy.dtype``. Its backward pass does the
same, so log-probs and gradients are those of a model with these values as ordinary weights
(``tests/test_four_bits.py``). Checkpoints hold the adapters alone, and a checksum of what they were
trained on.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from zlib import crc32

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rlif_lightning.model.adapters import is_adapter

CHECKSUM = "base_checksum"
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
BLOCK, OUTER_BLOCK = 64, 256  # numbers that share a scale, and scales that share one
SINGLE, DOUBLE = 4, 1  # bytes of a scale


@contextmanager
def quantizing(wanted: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """Give the arguments of ``from_pretrained`` that quantise a model as `LoRA.four_bits` says.

    Weights are quantised on the CPU, so that they are the same on any device.

    Raises:
        ValueError: a package is missing.
    """
    if wanted is None:
        yield {}
        return
    try:
        import accelerate  # noqa: F401
        import bitsandbytes  # noqa: F401 # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError(
            "policy.lora.options.load_in_4bit needs the package bitsandbytes: pip install"
            ' "rlif-lightning[qlora]"'
        ) from error
    from transformers import BitsAndBytesConfig

    with warnings.catch_warnings():
        # Files that are quantised already are compared with the settings in `finish_quantized`.
        warnings.filterwarnings("ignore", "You passed `quantization_config`")
        settings = BitsAndBytesConfig(**wanted)
        yield {"quantization_config": settings, "device_map": {"": "cpu"}}


def finish_quantized(model: Any, wanted: dict[str, Any] | None, name: str) -> None:
    """Make a quantised model fit for training, in place; refuse one that nobody asked for.

    Raises:
        ValueError: the files of the model are quantised otherwise than the settings say, or its
            layers have transposed weights.
    """
    found: Any = getattr(model.config, "quantization_config", None)
    if found is None:
        return
    if wanted is None or any(getattr(found, key, None) != value for key, value in wanted.items()):
        raise ValueError(
            f"policy.name={name!r}: its files are quantised ({type(found).__name__}), and"
            f" policy.lora.options says {wanted or 'nothing of it'}; use the model's files that are"
            " not quantised, with load_in_4bit under policy.lora.options"
        )
    for layer in four_bit_layers(model):
        if issubclass(getattr(layer, "source_cls", nn.Linear), Conv1D):
            # They are transposed before they are quantised, and no export would turn them back.
            kind = type(model).__name__
            raise ValueError(
                f"policy.name={name!r} with policy.lora.options.load_in_4bit: {kind} has layers"
                " of GPT-2's kind (Conv1D), whose weights in 4 bits cannot be exported;"
                " set policy.dtype=bfloat16 for half the weights, or use another model"
            )
        layer.compute_dtype, layer.compute_type_is_set = model.dtype, True
        # On a CPU with AVX512-BF16 bitsandbytes would pack the weights for good in the first
        # evaluation. Packed ones are multiplied in bfloat16 by a kernel that has no gradient.
        layer.support_avx512bf16_for_cpu = False


def four_bit_layers(model: nn.Module) -> list[Any]:
    """Return the layers whose weights are in 4 bits."""
    return [each for each in model.modules() if hasattr(each, "compute_type_is_set")]


def num_elements(weight: Tensor) -> int:
    """Return how many numbers a weight stands for, which in 4 bits are two a byte."""
    state = getattr(weight, "quant_state", None)
    return weight.numel() if state is None else state.shape.numel()


def dequantized(weight: Tensor) -> Tensor:
    """Return a weight as ordinary numbers."""
    if (state := getattr(weight, "quant_state", None)) is None:
        return weight
    from bitsandbytes.functional import dequantize_4bit  # pyright: ignore[reportMissingImports]

    return dequantize_4bit(weight.data, state)


def quantized_bytes(elements: int, is_double: bool) -> int:
    """Return the bytes of a weight in 4 bits, its scales included.

    For example, 64 * 256 numbers take 8192 bytes, and 256 scales of 4 bytes or, quantised twice,
    256 of 1 byte with one of 4 bytes for all.
    """
    scales = -(-elements // BLOCK)
    outer = -(-scales // OUTER_BLOCK) * SINGLE
    return -(-elements // 2) + (scales * DOUBLE + outer if is_double else scales * SINGLE)


def hold_adapters_only(policy: nn.Module) -> None:
    """Leave all but adapters out of a policy's state dict, and load none but them."""
    policy.register_buffer(CHECKSUM, base_checksum(policy))
    policy.register_state_dict_post_hook(_drop_base)
    policy.register_load_state_dict_pre_hook(_keep_base)


@torch.no_grad()
def base_checksum(policy: Any) -> Tensor:
    """Return an integer that tells base models, and ways of quantising them, apart.

    It is the sum of the bits of ordinary weights and of the scales of weights in 4 bits. Another
    processor may round a weight in 4 bits otherwise, or a scale that is quantised too. These are
    left out.
    """
    total = torch.tensor(crc32(repr(policy.settings.four_bits).encode()), dtype=torch.int64)
    for name, weight in policy.named_parameters():
        state = getattr(weight, "quant_state", None)
        if not is_adapter(name) and not (state is not None and state.nested):
            exact = (weight if state is None else state.absmax).detach().contiguous()
            bits = exact.view(INTEGERS[exact.element_size()])
            total += bits.sum(dtype=torch.int64).cpu()
    return total


def _drop_base(policy: Any, state: dict[str, Any], prefix: str, _: Any) -> None:
    for name in [name for name in state if name.startswith(prefix)]:
        if not is_adapter(name) and name != prefix + CHECKSUM:
            del state[name]


def _keep_base(policy: Any, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Load the base's own tensors onto themselves, where the adapters are of this base."""
    refuse_another_base(policy, state.get(prefix + CHECKSUM))
    for path, module in policy.named_modules():
        tensors = {**module._parameters, **module._buffers}
        for name, value in tensors.items():
            whole = f"{path}.{name}".lstrip(".")
            is_saved = value is not None and name not in module._non_persistent_buffers_set
            if is_saved and not is_adapter(whole) and whole != CHECKSUM:
                state.setdefault(prefix + whole, value)


def refuse_another_base(policy: Any, checksum: Tensor | None) -> None:
    """Refuse adapters that were trained on another base model.

    Raises:
        ValueError: names the policy.
    """
    if checksum is not None and int(checksum) != int(policy.base_checksum):
        raise ValueError(
            "the checkpoint holds adapters alone, and they were trained on another base model than"
            f" model.policy.name={policy.name!r} in {policy.settings.dtype} with"
            f" {policy.settings.four_bits}; set model.policy as it was"
        )
