"""What happened in a run: ``events.jsonl`` in its folder, for people, reports and ``status``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlif_lightning.running.plain_json import json_lines
from rlif_lightning.running.run_folder import naming, run_folder

FILE = "events.jsonl"


def record_event(
    trainer: Any,
    module: Any,
    source: str,
    kind: str,
    message: str,
    values: Mapping[str, float | str] | None = None,
) -> None:
    """Append one event, which the first process writes (a collective).

    A line holds ``step`` (optimiser steps so far), ``rollout`` (rollouts so far), ``source``,
    ``kind``, ``message`` and ``values``; numbers that are not finite become null.

    Args:
        trainer: its ``log_dir`` is where the file is.
        module: counts the rollouts.
        source: name of the callback.
        kind: one word for what happened: ``warning``, ``alarm``, ``rollback``, ``schedule``, ...
        message: one sentence for people.
        values: the numbers and names it rests on.
    """
    folder = run_folder(trainer)
    if trainer.is_global_zero:
        place = {"step": trainer.global_step, "rollout": int(module.num_rollouts)}
        append_event(
            folder, {**place, "source": source, "kind": kind, "message": message}, values or {}
        )


def append_event(folder: Path, event: Mapping[str, Any], values: Mapping[str, float | str]) -> None:
    """Append one event from this process alone; see :func:`record_event`."""
    folder.mkdir(parents=True, exist_ok=True)
    with naming(folder / FILE), (folder / FILE).open("a", encoding="utf-8") as file:
        file.write(json_lines([{**event, "values": dict(values)}]))


def read_events(folder: Path) -> list[dict[str, Any]]:
    """Return the events of a run's folder in their order, without a torn last line."""
    path, events = folder / FILE, []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    for line in lines:
        try:
            events.append(json.loads(line))
        except ValueError:  # it was being written when the process died
            continue
    return [event for event in events if isinstance(event, dict)]
