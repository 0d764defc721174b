"""What callbacks saw and did, as lines of JSON: ``events.jsonl`` in the run's folder, for people and run reports."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from rlif_lightning.module import RLIFModule
from rlif_lightning.running.run_folder import run_folder

FILE = "events.jsonl"


def record_event(
    trainer: Trainer,
    module: RLIFModule,
    source: str,
    kind: str,
    message: str,
    values: Mapping[str, float | str] | None = None,
) -> None:
    """Append one event; rank 0 writes (a collective: every rank must call it).

    A line holds ``step`` (optimiser steps so far), ``rollout`` (rollouts so far), ``source``, ``kind``, ``message`` and
    ``values``; numbers that are not finite become null.

    Args:
        trainer: its ``log_dir`` is where the file lies.
        module: counts the rollouts.
        source: name of the callback.
        kind: one word for what happened: ``warning``, ``alarm``, ``rollback``, ``schedule``, ...
        message: one sentence for people.
        values: the numbers and names it rests on.
    """
    path = run_folder(trainer) / FILE
    if not trainer.is_global_zero:
        return
    plain = {name: _plain(value) for name, value in (values or {}).items()}
    event = {"step": trainer.global_step, "rollout": int(module.num_rollouts), "source": source, "kind": kind}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({**event, "message": message, "values": plain}, allow_nan=False) + "\n")


def read_events(folder: Path) -> list[dict[str, Any]]:
    """The events of a run's folder in the order they happened; none if there is no file."""
    path = folder / FILE
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def _plain(value: float | str) -> float | str | None:
    return value if isinstance(value, str) or math.isfinite(value) else None
