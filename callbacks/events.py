"""Events of a run: what callbacks write into ``events.jsonl`` and show in the terminal."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

from lightning.pytorch import Trainer

from rlif_lightning.module import RLIFModule
from rlif_lightning.running.events import FILE, read_events, record_event

__all__ = ["FILE", "read_events", "record_alarm", "record_event"]


def record_alarm(
    trainer: Trainer,
    module: RLIFModule,
    source: str,
    message: str,
    values: Mapping[str, float | str],
) -> None:
    """Record an event of kind ``alarm`` (a collective), and warn on rank 0.

    Args:
        trainer: as for ``record_event``.
        module: as for ``record_event``.
        source: name of the callback.
        message: a sentence for people.
        values: the evidence of a detector, and what else belongs to it.
    """
    record_event(trainer, module, source, "alarm", message, values)
    if trainer.is_global_zero:
        warnings.warn(f"{source}, rollout {int(module.num_rollouts)}: {message}", stacklevel=3)
