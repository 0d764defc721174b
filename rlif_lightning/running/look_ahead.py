"""The prompts of coming rollouts, for an engine that draws them ahead."""

from __future__ import annotations

import math
from typing import Any

from rlif_lightning.records import Prompts
from rlif_lightning.sampling import VALIDATION_STEP


def upcoming_prompts(module: Any, rollout_number: int) -> Prompts | None:
    """Return the prompts of a coming rollout, this process's share.

    Args:
        module: the ``RLIFModule``, within a training step.
        rollout_number: of a rollout after the present one.

    Returns:
        The prompts; None where the run ends before, or where the number is not of a coming rollout.
    """
    ahead = rollout_number - int(module.num_rollouts)
    if rollout_number >= VALIDATION_STEP:
        return None  # a run without end has no other bound
    if not 0 < ahead <= rollouts_left(module.trainer, module.plan.num_updates):
        return None
    return module.trainer.datamodule.upcoming(ahead)


def rollouts_left(trainer: Any, num_updates: int) -> float:
    """Return how many rollouts come after the present one, by the trainer's limits.

    Args:
        trainer: within a training step, before the step's first update.
        num_updates: optimiser steps of a rollout.
    """
    loop, in_epoch = trainer.fit_loop, trainer.num_training_batches
    has_end = loop.max_epochs not in (None, -1)
    epochs = loop.max_epochs - trainer.current_epoch - 1 if has_end else math.inf
    by_epochs = in_epoch - loop.batch_idx - 1 + epochs * in_epoch
    if trainer.max_steps == -1:
        return by_epochs
    return min(by_epochs, math.ceil((trainer.max_steps - trainer.global_step) / num_updates) - 1)
