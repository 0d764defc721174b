"""Index tensors on their way to a device: made on the CPU, moved together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def to_device(parts: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Several tensors of one type, on a device, in one copy for which the host does not wait.

    Args:
        parts: on the CPU, of any shapes.
        device: where they are needed.

    Returns:
        The same tensors there, views of one.
    """
    if device.type == "cpu":
        return list(parts)
    line = torch.cat([part.flatten() for part in parts])
    if device.type == "cuda":
        line = line.pin_memory()
    moved = line.to(device, non_blocking=True).split([part.numel() for part in parts])
    return [values.view(part.shape) for values, part in zip(moved, parts, strict=True)]
