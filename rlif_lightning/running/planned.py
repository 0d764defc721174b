"""How many rollouts a run is planned to make, before its first one."""

from __future__ import annotations

import math
from typing import Any


def planned_rollouts(trainer: Any, module: Any, batches: int) -> int | None:
    """Return the rollouts of a whole run, those before a resume included; None without an end.

    ``trainer.max_time`` and callbacks that stop a run are not known here.

    Args:
        trainer: gives max_epochs, max_steps and limit_train_batches.
        module: gives the optimiser steps of a rollout.
        batches: of the training data's epoch, before limit_train_batches.
    """
    epochs, epoch = trainer.max_epochs, rollouts_of_epoch(trainer, batches)
    total = math.inf if epochs is None or epochs < 0 else epochs * epoch
    if trainer.max_steps >= 0:
        total = min(total, -(-trainer.max_steps // module.plan.num_updates))
    return None if total == math.inf else int(total)


def rollouts_of_epoch(trainer: Any, batches: int) -> int:
    """Return the rollouts of an epoch of so many batches."""
    limit = trainer.fast_dev_run or trainer.limit_train_batches
    limit = 1.0 if limit is None else limit
    return min(int(limit), batches) if isinstance(limit, int) else int(batches * limit)


def planned_of(trainer: Any, module: Any) -> int | None:
    """Return the planned rollouts by the loaded training data; None where they are not known."""
    data: Any = getattr(trainer, "datamodule", None)
    split = data.split("train") if hasattr(data, "split") else None
    if split is not None:
        return planned_rollouts(trainer, module, len(split) // data.prompts_per_rollout)
    batches = trainer.num_training_batches
    return planned_rollouts(trainer, module, batches) if 0 < batches < math.inf else None
