"""What this library uses of Transformers that Transformers does not offer: each private name once, with the reason.

A new version may rename them. They were read in the version ``READ_IN``;
``tests/test_internals.py`` says which of them another version lacks. One more thing stays where it
is: ``own_logits.py`` gives modules of a model another ``forward`` while the model computes its
logits, since no argument hands last hidden states to a causal LM.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers.utils.hub import cached_file

READ_IN = "5.23.0"


def attention_of(model: Any) -> str:
    """The name of the attention that a model runs; ``set_attn_implementation`` has no counterpart that reads it."""
    return model.config._attn_implementation


def takes_other_attention(model: Any) -> bool:
    """Whether a model's code calls attention by name; without it ``set_attn_implementation`` is taken and ignored."""
    return bool(model._supports_attention_backend)


def layer_classes(model: Any) -> set[str]:
    """The class names of a model's decoder layers, or none where the model does not say; nothing public names them."""
    return set(getattr(model, "_no_split_modules", None) or ())


def mark_as_loaded(parameter: nn.Parameter) -> None:
    """Let ``initialize_weights`` leave a parameter as it is; it has no argument for computing buffers alone."""
    parameter._is_hf_initialized = True  # pyright: ignore[reportAttributeAccessIssue]


def cached_or_none(name: str, file: str, revision: str) -> str | None:
    """The path of a file of a model, None where the model has none; ``cached_file`` raises by default."""
    return cached_file(name, file, revision=revision, _raise_exceptions_for_missing_entries=False)
