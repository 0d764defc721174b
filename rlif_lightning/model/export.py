"""A policy as an ordinary Hugging Face folder."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlif_lightning.model.adapters import is_adapter
from rlif_lightning.model.loading import Policy, load_in_full, load_pretrained
from rlif_lightning.model.policy import PolicyModel

MADE_BY = "made_by.json"  # in an exported folder: which run wrote it
CARD = "README.md"  # the model card


def write_model(
    policy: PolicyModel,
    weights: dict[str, Tensor],
    folder: Path,
    merged: Policy | None = None,
    dtype: str | None = None,
    maker: dict[str, str] | None = None,
    card: str | None = None,
) -> None:
    """Write model and tokenizer to ``folder``, which is replaced as a whole.

    Args:
        policy: gives the architecture and the tokenizer; its own parameters are not read.
        weights: of ``policy.model``, whole.
        folder: where to.
        merged: how the policy was loaded, to merge its adapters into the weights; None = as they
            are.
        dtype: of the floating-point weights; None = as they are.
        maker: which run this is; None = not recorded.
        card: the text of README.md; None = whatever the model's own class writes there.
    """
    unfinished, old = (
        folder.with_name(f".{folder.name}.{state}") for state in ("unfinished", "old")
    )
    if old.exists() and not folder.exists():
        os.replace(old, folder)  # an earlier process was killed between the two renames below
    for left in (unfinished, old):  # or between the second one and its removal of the old folder
        shutil.rmtree(left, ignore_errors=True)
    unfinished.mkdir(parents=True)
    model = policy.model
    if merged is not None:
        # Merging changes weights in place, so the base model is loaded again and merged.
        model = _merged(weights, merged)
        weights = model.state_dict()
    try:
        model.save_pretrained(unfinished, state_dict=_cast(weights, dtype))
        policy.tokenizer.save_pretrained(unfinished)
        _name_dtype(unfinished / "config.json", dtype)
        if maker is not None:
            (unfinished / MADE_BY).write_text(json.dumps(maker, indent=1) + "\n")
        if card is not None:
            (unfinished / CARD).write_text(card, encoding="utf-8")
    except BaseException:
        # On a full disk a half-written folder would take the space that is left.
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    if folder.exists():
        os.replace(folder, old)
    os.replace(unfinished, folder)
    shutil.rmtree(old, ignore_errors=True)


def _merged(weights: dict[str, Tensor], settings: Policy) -> Any:
    """Return the model without adapters that computes the same; no weight of it is in 4 bits."""
    if settings.in_4bit:
        whole: Any = load_in_full(settings)
        weights = {name: each for name, each in weights.items() if is_adapter(name)}
        whole.load_state_dict(weights, strict=False)
    else:
        whole = load_pretrained(settings)
        whole.load_state_dict(weights)
    return whole.merge_and_unload()


def _cast(weights: dict[str, Tensor], dtype: str | None) -> dict[str, Tensor]:
    if dtype is None:
        return weights
    return {
        name: w.to(getattr(torch, dtype)) if w.is_floating_point() else w
        for name, w in weights.items()
    }


def _name_dtype(config: Path, dtype: str | None) -> None:
    if dtype is not None and config.exists():
        named = {**json.loads(config.read_text()), "dtype": dtype}
        config.write_text(json.dumps(named, indent=2) + "\n")
