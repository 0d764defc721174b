"""The condition under which one reward head's score counts, stated by another head's score."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlif_lightning.setting_types import check_types

UNANIMOUS = ("keep", "zero")


@dataclass(frozen=True)
class Gate:
    """Counts a head only where another head's scores allow it.

    Args:
        head: name of the other head.
        at_least: lowest score of the other head at which this one counts; null = any.
        unanimous: keep | zero: zero = not in groups to which the other head gives one and the same
            score, such as those whose vote is unanimous: there this head alone would train the
            policy.

    Raises:
        ValueError: an unknown name, or a gate that lets everything pass.
    """

    head: str
    at_least: float | None = None
    unanimous: str = "keep"

    def __post_init__(self) -> None:
        check_types(self)
        if self.unanimous not in UNANIMOUS:
            raise ValueError(
                f"unanimous={self.unanimous!r} is unknown; use one of {', '.join(UNANIMOUS)}"
            )
        if self.at_least is None and self.unanimous == "keep":
            raise ValueError(
                f"the gate on {self.head!r} lets everything pass: set at_least or unanimous=zero"
            )

    def passes(self, scores: Tensor, group_size: int) -> Tensor:
        """Return where the gated head counts, ``[B]`` bool.

        ``scores`` are the other head's, ``[B]``; NaN never passes.
        """
        passes = ~scores.isnan() if self.at_least is None else scores >= self.at_least
        if self.unanimous == "zero":
            groups = scores.view(-1, group_size)
            lowest = groups.nan_to_num(torch.inf, torch.inf, -torch.inf).amin(-1)
            highest = groups.nan_to_num(-torch.inf, torch.inf, -torch.inf).amax(-1)
            passes = passes & (highest > lowest).repeat_interleave(group_size)
        return passes
