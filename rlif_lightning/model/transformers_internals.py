"""Private names of Transformers that this library uses: each one once, with the reason.

A new version may rename them. They were read in the version ``READ_IN``, and
``tests/test_internals.py`` names those that another version lacks. One more use of internals is in
``own_logits.py``: it replaces the ``forward`` of modules while a model computes its logits, since a
causal LM has no argument for last hidden states.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers.utils.hub import cached_file

READ_IN = "5.23.0"


def attention_of(model: Any) -> str:
    """Return the name of the attention that a model runs.

    ``set_attn_implementation`` has no public counterpart that reads it.
    """
    return model.config._attn_implementation


def takes_other_attention(model: Any) -> bool:
    """Return whether a model's code calls attention by name.

    If it does not, ``set_attn_implementation`` has no effect and raises nothing.
    """
    return bool(model._supports_attention_backend)


def layer_classes(model: Any) -> set[str]:
    """Return the class names of a model's decoder layers; an empty set if the model names none.

    Nothing public names them.
    """
    return set(getattr(model, "_no_split_modules", None) or ())


def mark_as_loaded(parameter: nn.Parameter) -> None:
    """Keep ``initialize_weights`` from changing a parameter.

    That function has no argument for computing buffers alone.
    """
    parameter._is_hf_initialized = True  # pyright: ignore[reportAttributeAccessIssue]


def cached_or_none(name: str, file: str, revision: str) -> str | None:
    """Return the path of a file of a model, or None; ``cached_file`` raises for a missing file."""
    return cached_file(name, file, revision=revision, _raise_exceptions_for_missing_entries=False)
