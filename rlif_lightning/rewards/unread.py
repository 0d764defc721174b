"""Texts that are longer than a model can read: they have no score, and are told once."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def unread(faults: Sequence[str], device: torch.device) -> Tensor:
    """Return ``[B]`` bool: which completions were not read; an empty fault = it was read."""
    return torch.tensor([bool(fault) for fault in faults], dtype=torch.bool, device=device)


def tell_unread(owner: Any, faults: Sequence[str], does: str = "gives no score to") -> None:
    """Warn of the first text that could not be read in this process's run.

    Args:
        owner: whose text it was, such as a head; it remembers that this was told.
        faults: of each completion, with the remedy; empty where it was read.
        does: what the owner does with such a text.
    """
    found = next(filter(None, faults), None)
    if found is not None and not getattr(owner, "_told_unread", False):
        object.__setattr__(owner, "_told_unread", True)
        name = type(owner).__name__
        warnings.warn(f"{name} {does} what it cannot read: {found}", stacklevel=3)
