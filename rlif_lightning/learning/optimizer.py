"""AdamW and its learning-rate schedule, counted in optimiser steps."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch.nn import Parameter
from torch.optim.lr_scheduler import LambdaLR

LR_SCHEDULES = ("constant", "cosine")


@dataclass(frozen=True)
class OptimizerPlan:
    """How parameters move; the arguments are those of :class:`~rlif_lightning.module.RLIFModule`."""

    learning_rate: float
    lr_schedule: str = "constant"
    warmup_steps: int = 0
    schedule_steps: int | None = None
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    max_grad_norm: float | None = 1.0

    def __post_init__(self) -> None:
        if self.lr_schedule not in LR_SCHEDULES:
            raise ValueError(
                f"lr_schedule={self.lr_schedule!r} is unknown; use one of {', '.join(LR_SCHEDULES)}"
            )
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate={self.learning_rate} must be positive")
        if self.warmup_steps < 0 or self.weight_decay < 0:
            raise ValueError(
                f"warmup_steps={self.warmup_steps}, weight_decay={self.weight_decay}: neither may"
                " be negative"
            )
        if self.max_grad_norm is not None and self.max_grad_norm <= 0:
            raise ValueError(
                f"max_grad_norm={self.max_grad_norm} must be positive, or null for no clipping"
            )

    def check(self, max_steps: int) -> None:
        """Refuse a cosine without a length, and a length without a cosine.

        Args:
            max_steps: optimiser steps of the run, -1 if open; the cosine's length unless
                ``schedule_steps`` is set.

        Raises:
            ValueError: names the settings.
        """
        total = self._total(max_steps)
        if self.lr_schedule != "cosine" and self.schedule_steps is not None:
            raise ValueError(
                f"schedule_steps={self.schedule_steps} has no effect with"
                f" lr_schedule={self.lr_schedule}; set"
                " lr_schedule=cosine, or take it out"
            )
        if self.lr_schedule == "cosine" and total <= self.warmup_steps:
            raise ValueError(
                "lr_schedule=cosine needs its length: set trainer.max_steps or"
                f" model.schedule_steps (got {total}) to"
                f" more than warmup_steps={self.warmup_steps}"
            )

    def _total(self, max_steps: int) -> int:
        return max_steps if self.schedule_steps is None else self.schedule_steps

    def build(
        self, parameters: Iterable[Parameter], max_steps: int
    ) -> tuple[torch.optim.AdamW, LambdaLR]:
        """The optimiser (fused: one pass over the parameters, no temporary copies) and its schedule.

        Args:
            parameters: those to train.
            max_steps: as for :meth:`check`, which this calls.
        """
        self.check(max_steps)
        trained = list(parameters)
        optimizer = torch.optim.AdamW(
            trained,
            lr=self.learning_rate,
            weight_decay=self.weight_decay,
            betas=self.betas,
            fused=trained[0].device.type in ("cpu", "cuda"),
        )
        total = self._total(max_steps)
        return optimizer, LambdaLR(optimizer, lambda step: self.factor(step, total))

    def factor(self, step: int, total: int) -> float:
        """The learning rate at an optimiser step, as a share of ``learning_rate``."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.lr_schedule == "constant":
            return 1.0
        progress = min(1.0, (step - self.warmup_steps) / (total - self.warmup_steps))
        return 0.5 * (1 + math.cos(math.pi * progress))
