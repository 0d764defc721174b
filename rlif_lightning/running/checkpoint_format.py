"""The format of checkpoints, a number that rises when an older version cannot read them."""

from __future__ import annotations

from typing import Any

FORMAT, NEWEST = "format", 1  # checkpoints from before the number have none


def newer_format(checkpoint: Any) -> str | None:
    """Return why a checkpoint of a newer version cannot be read, or None."""
    found = checkpoint.get(FORMAT, 0)
    if not isinstance(found, int) or found > NEWEST:
        return (
            f"it has the format {found}, of a newer version of rlif-lightning; this one reads"
            f" formats up to {NEWEST}: upgrade the package"
        )
    return None
