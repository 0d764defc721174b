"""Load a Hugging Face causal LM as a policy: settings, weights, checkpointing and adapters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from rlif_lightning.data.tokenizer import EMBEDDED_MODELS, resolve_model
from rlif_lightning.model.four_bits import finish_quantized, quantizing
from rlif_lightning.model.lora import LoRA
from rlif_lightning.model.out_of_memory import is_out_of_memory
from rlif_lightning.setting_types import check_types

__all__ = [
    "EMBEDDED_MODELS",
    "LoRA",
    "Policy",
    "PolicyLike",
    "load_pretrained",
    "own_attention",
    "prepare_model",
    "reading",
    "refuse_other_weights",
    "resolve_model",
]

DTYPES = ("float32", "bfloat16", "float16", "float64", "auto")
ATTENTIONS = ("sdpa", "eager")
VOCABULARIES = ("model", "tokenizer")


@dataclass(frozen=True)
class Policy:
    """Settings of the model that is trained, and of how it is loaded.

    Args:
        name: hub name, folder, or `rlif-arithmetic` (the small model in this package).
        dtype: float32 | bfloat16 | float16 | float64 | auto: of the weights. Train in float32 (with
            trainer.precision bf16-mixed if you like): small learning rates vanish in bfloat16
            weights.
        attention: sdpa | eager. sdpa uses PyTorch's fused kernels, shares prompts and pads nothing.
            eager is the model's own code, with one padded sequence per completion and a standard
            cache; it is slower. A model that sdpa cannot serve falls back to its own code with a
            warning.
        gradient_checkpointing: recompute activations in the backward pass: less memory, more time.
        lora: adapters instead of full fine-tuning; null = full.
        revision: branch, tag or commit on the hub.
        vocabulary: model | tokenizer: tokenizer = ids beyond the tokenizer's last (embeddings are
            often padded) have probability 0, and V in self-certainty counts the others.
        trust_remote_code: run model code that comes with the weights. Off unless you trust the
            author.
    """

    name: str
    dtype: str = "float32"
    attention: str = "sdpa"
    gradient_checkpointing: bool = False
    lora: LoRA | None = None
    revision: str | None = None
    vocabulary: str = "model"
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        if self.vocabulary not in VOCABULARIES:
            raise ValueError(
                f"policy.vocabulary={self.vocabulary!r} is unknown; use one of"
                f" {', '.join(VOCABULARIES)}"
            )
        if self.dtype not in DTYPES:
            raise ValueError(
                f"policy.dtype={self.dtype!r} is unknown; use one of {', '.join(DTYPES)}"
            )
        if self.in_4bit and self.dtype == "float64":
            raise ValueError(
                "policy.dtype='float64' with policy.lora.options.load_in_4bit: bitsandbytes"
                " computes in float32, bfloat16 or float16; use one of these"
            )
        if self.attention not in ATTENTIONS:
            raise ValueError(
                f"policy.attention={self.attention!r} is not supported; use one of"
                f" {', '.join(ATTENTIONS)}"
            )

    @property
    def four_bits(self) -> dict[str, Any] | None:
        """Return how the base weights under adapters are stored in 4 bits; None = they are not."""
        return None if self.lora is None else self.lora.four_bits

    @property
    def in_4bit(self) -> bool:
        """Return whether they are."""
        return self.four_bits is not None


if TYPE_CHECKING:
    PolicyLike = Policy | str | nn.Module | tuple[nn.Module, Any]
else:  # the command line knows the settings alone
    PolicyLike = Policy


def load_pretrained(policy: Policy) -> Any:
    """Load the model with its weights.

    Raises:
        ValueError: no such folder or hub model, a file in it cannot be read, its weights are not
            those that its config asks for, or the extra `lora` or `qlora` is missing.
    """
    return prepare_model(read_base(policy), policy)


def load_in_full(policy: Policy) -> Any:
    """Load the same model with what its 4 bits stand for as ordinary weights.

    Raises:
        ValueError: as for :func:`load_pretrained`.
    """
    assert policy.lora is not None
    return prepare_model(read_base(policy).dequantize(), replace(policy, lora=policy.lora.in_full))


def read_base(policy: Policy) -> Any:
    """Return the model as its files have it, or quantised to 4 bits."""
    _renew_thread_pool()
    with quantizing(policy.four_bits) as quantized, reading(policy):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            resolve_model(policy.name),
            **quantized,
            dtype=policy.dtype if policy.dtype == "auto" else getattr(torch, policy.dtype),
            attn_implementation=own_attention(policy),
            revision=policy.revision or "main",
            trust_remote_code=policy.trust_remote_code,
            use_safetensors=True,  # pickled weights could run code
            ignore_mismatched_sizes=True,  # they are refused below, with their names
            output_loading_info=True,
        )
    model, found = loaded
    refuse_other_weights(f"policy.name={policy.name!r}", found)
    finish_quantized(model, policy.four_bits, policy.name)
    return model


def _renew_thread_pool() -> None:
    """Let one thread replace PyTorch's pool, which a fork leaves behind broken.

    The first two users of it would otherwise race for the new one, and the loser fails with
    "Invalid thread pool"; Transformers reads weights in several threads. Notebooks fork.
    """
    torch.set_num_threads(torch.get_num_threads())


@contextmanager
def reading(policy: Policy) -> Iterator[None]:
    """Raise any error of reading a model as one line that names it.

    A broken file makes the library raise errors of any kind.

    Raises:
        ValueError: names the model. Errors of code that came with the weights, and of memory, stay
            as they are.
    """
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"policy.name={policy.name!r} is neither a model folder nor a hub model that can be"
            f" reached (current folder: {Path.cwd()}): {error}"
        ) from error
    except Exception as error:
        if policy.trust_remote_code or is_out_of_memory(error):
            raise
        said = f"{type(error).__name__}: {' '.join(str(error).split()):.300}"
        raise ValueError(
            f"policy.name={policy.name!r}: its files cannot be read as a model: {said}"
        ) from error


def refuse_other_weights(named: str, found: dict[str, Any]) -> None:
    """Refuse a model of which some weights would be initialised at random.

    Args:
        named: the setting with its value, for the message.
        found: what transformers says about its files.

    Raises:
        ValueError: names the setting and a tensor.
    """
    remedy = "use the weights and the config.json of one model"
    if other := sorted(found["mismatched_keys"]):
        tensor, stored, needed = other[0]
        raise ValueError(
            f"{named}: the tensor {tensor!r} has the shape {list(stored)} in its file,"
            f" and its config.json asks for {list(needed)} ({len(other)} such tensors); {remedy}"
        )
    if missing := sorted(found["missing_keys"]):
        if "lora_magnitude_vector" in missing[0]:
            remedy = (
                "transformers cannot read adapters with use_dora: merge them into the base model"
                " (PeftModel.from_pretrained, then merge_and_unload) and save that"
            )
        raise ValueError(
            f"{named}: its files have no tensor {missing[0]!r} ({len(missing)} are"
            f" missing), which would be initialised at random; {remedy}"
        )


def own_attention(policy: Policy) -> str | None:
    """Return the attention implementation that a model is built with; None = transformers' choice.

    Not every model has sdpa.
    """
    return "eager" if policy.attention == "eager" else None


def prepare_model(model: Any, policy: Policy) -> Any:
    """Return the model with what the settings add: gradient checkpointing and adapters."""
    if model.dtype == torch.float64:
        # PyTorch has no grouped matrix product in float64.
        model.set_experts_implementation("eager")
    if policy.gradient_checkpointing:
        # transformers 5.20 renamed the method; vLLM 0.32 needs an earlier one.
        new = getattr(model, "activation_checkpointing_enable", None)
        (new or model.gradient_checkpointing_enable)({"use_reentrant": False})
    return model if policy.lora is None else _add_lora(model, policy.lora)


def _add_lora(model: Any, lora: LoRA) -> Any:
    try:
        from peft import LoraConfig, get_peft_model
        from peft.tuners.lora import LoraLayer
    except ImportError as error:
        raise ValueError(
            'policy.lora needs the package peft: pip install "rlif-lightning[lora]"'
        ) from error
    # Without it gradient checkpointing would find no input that requires a gradient.
    model.enable_input_require_grads()
    transposed = any(isinstance(module, Conv1D) for module in model.modules())  # GPT-2's layers
    settings = {"target_modules": "all-linear", "fan_in_fan_out": transposed}
    settings |= lora.in_full.options
    try:
        config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, **settings)
        adapted = get_peft_model(model, config)
    except (ValueError, TypeError) as error:
        raise ValueError(f"policy.lora={lora}: peft refuses it: {error}") from error
    _refuse_unmatched(adapted, LoraLayer, lora.options.get("target_modules"))
    _refuse_shared(adapted, LoraLayer)
    return _with_drawn_adapters(adapted, LoraLayer)


def _refuse_unmatched(model: Any, kind: type, targets: Any) -> None:
    """Refuse names of which some match no layer: peft adapts the others without a word.

    Raises:
        ValueError: names them, and the model's linear layers.
    """
    layers = [f".{name}" for name, layer in model.named_modules() if isinstance(layer, kind)]
    names = [] if isinstance(targets, str) or targets is None else list(targets)
    if lost := [name for name in names if not any(it.endswith(f".{name}") for it in layers)]:
        linear = (nn.Linear, Conv1D)
        base = [name for name, layer in model.named_modules() if isinstance(layer, linear)]
        known = {name.removesuffix(".base_layer").rpartition(".")[2] for name in base}
        known = sorted(each for each in known if not each.startswith("lora_") and each != "default")
        raise ValueError(
            f"policy.lora.options.target_modules names {lost}, which no adapted layer is called;"
            f" linear layers are called {', '.join(known)}"
        )


def _refuse_shared(model: Any, kind: type) -> None:
    """Refuse adapters on a matrix that is embedding and head: no merged one could be both.

    Raises:
        ValueError: names the layer.
    """
    base = model.get_base_model()
    embedding, head = base.get_input_embeddings(), base.get_output_embeddings()
    if embedding is None or head is None or embedding.weight is not head.weight:
        return
    for name, layer in model.named_modules():
        if isinstance(layer, kind) and layer in (embedding, head):
            raise ValueError(
                f"policy.lora.options.target_modules adapts {name.rpartition('.')[2]}, whose weight"
                " embedding and head share: merged into it (an export, a fork, vLLM), the adapters"
                " of the one would change the other too; leave it out"
            )


def _with_drawn_adapters(model: Any, kind: type) -> Any:
    """Initialise the adapters from the run's seed alone.

    A model on the meta device, whose weights come later, gets the same adapters, and so does one on
    a GPU, whose generator would draw others.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch.initial_seed())
        for module in model.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                if parameter.is_meta and parameter.requires_grad:
                    setattr(module, name, nn.Parameter(torch.empty_like(parameter, device="cpu")))
        for layer in model.modules():
            if isinstance(layer, kind):
                drawn = [
                    (parameter, parameter.device)
                    for name, parameter in layer.named_parameters()
                    if name.startswith("lora_") and "magnitude" not in name
                ]
                for parameter, _ in drawn:
                    parameter.data = parameter.data.cpu()
                layer.reset_lora_parameters("default", init_lora_weights=True)  # type: ignore[operator]
                for parameter, device in drawn:
                    parameter.data = parameter.data.to(device)
    return model
