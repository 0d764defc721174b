"""What a run left in its folder, read as far as it is whole.

The last line of a killed run may be torn, and figures may be missing.

Nothing here is trusted: files may be cut off, empty or absent, numbers may be NaN, completions may
hold anything. What is missing becomes a note for the reader of the report.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from rlif_lightning.metric_names import VALIDATION
from rlif_lightning.running.metrics_csv import read_logged

PLACE = ("epoch", "step")


@dataclass(frozen=True)
class Curves:
    """Figures over rollouts.

    ``columns[name][k]`` was measured when ``x[k]`` rollouts were done; NaN = not measured.
    """

    x: np.ndarray
    columns: dict[str, np.ndarray]

    def get(self, name: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Return x and y of one figure; None without a finite value.

        NaN stands where the line has a gap.
        """
        if name not in self.columns:
            return None
        y = self.columns[name]
        known = np.isfinite(y)
        return (self.x, y) if known.any() else None


@dataclass(frozen=True)
class Run:
    """One run: its figures of training and evaluation, and the other files of its folder.

    Training has a row for each rollout, counted from 1.

    Attributes:
        label: its name in legends.
        training: what was logged in training.
        evaluation: the ``val/...`` figures.
        events: records of ``events.jsonl``: step, rollout, source, kind, message, values.
        completions: records of CompletionWriter.
        config: the text of ``config.yaml``.
        versions: what ``versions.json`` says.
        notes: what could not be read.
        end: the last event ``end``: why the run ended; None while it runs, and if it was killed.
    """

    label: str
    training: Curves
    evaluation: Curves
    events: list[dict[str, Any]]
    completions: list[dict[str, Any]]
    config: str
    versions: dict[str, str]
    notes: list[str]
    end: dict[str, Any] | None = None


def read_run(folder: Path, label: str | None = None) -> Run:
    """Read the folder that a run wrote ``metrics.csv`` into.

    Raises:
        ValueError: there is no metrics.csv; names the run folders below, if there are any.
    """
    if not (folder / "metrics.csv").is_file():
        below = (
            sorted(str(path.parent) for path in folder.rglob("metrics.csv"))
            if folder.is_dir()
            else []
        )
        hint = f"; runs below it: {', '.join(below)}" if below else ""
        raise ValueError(f"{folder} is no run's folder: it has no metrics.csv{hint}")
    notes: list[str] = []
    training, evaluation = read_metrics(folder / "metrics.csv", notes)
    events = [
        event
        for event in read_jsonl(folder / "events.jsonl", notes)
        if _number(event.get("rollout")) is not None
    ]
    config = folder / "config.yaml"
    return Run(
        label or str(folder),
        training,
        evaluation,
        sorted(
            (event for event in events if event.get("kind") != "end"),
            key=lambda event: event["rollout"],
        ),
        read_completions(folder, notes),
        config.read_text(encoding="utf-8", errors="replace") if config.is_file() else "",
        read_versions(folder / "versions.json", notes),
        notes,
        next((event for event in reversed(events) if event.get("kind") == "end"), None),
    )


def read_metrics(path: Path, notes: list[str]) -> tuple[Curves, Curves]:
    """Read the training and evaluation figures of a ``metrics.csv``.

    Lightning numbers a rollout's row by the rollouts before it. It numbers an evaluation's row
    sometimes by all rollouts so far, sometimes by one less. Here x is always the number of rollouts
    that were done.
    """
    logged = read_logged(path)
    if logged.torn:
        notes.append(_torn(path))
    training: list[dict[str, float]] = []
    evaluation: list[dict[str, float]] = []
    for cells in logged.rows:
        row = {name: _as_float(cell) for name, cell in cells.items()}
        step = row.get("step", math.nan)
        if not math.isfinite(step):
            continue
        figures = {
            name: value
            for name, value in row.items()
            if name not in PLACE and not math.isnan(value)
        }
        measured = {name: value for name, value in figures.items() if name.startswith(VALIDATION)}
        trained = {
            name: value
            for name, value in figures.items()
            if not name.startswith((*VALIDATION, "test"))
        }
        if trained:
            training.append({"x": step + 1, **trained})
        if measured:
            evaluation.append({"x": training[-1]["x"] if training else step, **measured})
    return _curves(training), _curves(evaluation)


def _curves(rows: list[dict[str, float]]) -> Curves:
    """Turn rows into columns.

    Where x goes back (a run that was rolled back), a row of NaN breaks the line.
    """
    broken: list[dict[str, float]] = []
    for row in rows:
        if broken and row["x"] < broken[-1]["x"]:
            broken.append({"x": row["x"]})
        broken.append(row)
    names = {name for row in rows for name in row} - {"x"}
    columns = {
        name: np.array([row.get(name, math.nan) for row in broken]) for name in sorted(names)
    }
    return Curves(np.array([row["x"] for row in broken]), columns)


def _whole_lines(path: Path, notes: list[str]) -> list[str]:
    """Return the file's lines but for one that was being written when the run was killed."""
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8", errors="replace").replace("\0", "")
    lines = text.splitlines()
    if text and not text.endswith("\n"):
        notes.append(_torn(path))
        lines.pop()
    return lines


def _torn(path: Path) -> str:
    return (
        f"The last line of {path.name} is torn and left out: the run was killed, or is still"
        " writing."
    )


def read_jsonl(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    """Return the records of a JSON Lines file but for damaged ones; none without a file."""
    records, damaged = [], 0
    for line in _whole_lines(path, notes):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if isinstance(record, dict):
            records.append(record)
        else:
            damaged += 1
    if damaged:
        notes.append(f"{damaged} lines of {path.name} are not JSON records and are left out.")
    return records


def read_completions(folder: Path, notes: list[str]) -> list[dict[str, Any]]:
    """Return CompletionWriter's records of rank 0 in order.

    Of a completion that was written twice the later record counts.
    """
    records = read_jsonl(folder / "completions.jsonl", notes)
    parts = sorted((folder / "completions").glob("rollout-*.parquet"))
    for part in (part for part in parts if ".rank" not in part.name):
        import pyarrow.parquet

        records += pyarrow.parquet.read_table(part).to_pylist()
    known = [record for record in records if _number(record.get("rollout")) is not None]
    latest = {
        tuple(str(record.get(name)) for name in ("rollout", "index", "completion_number")): record
        for record in known
    }
    return sorted(latest.values(), key=lambda record: record["rollout"])


def read_versions(path: Path, notes: list[str]) -> dict[str, str]:
    """Return what RunReport noted when the run began; empty without it."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except ValueError:
        notes.append(f"{path.name} is damaged.")
        return {}
    return (
        {str(name): str(value) for name, value in content.items()}
        if isinstance(content, dict)
        else {}
    )


def settings(run: Run) -> dict[str, str]:
    """Return the run's config as dotted names with values as text; empty without one."""
    try:
        content = yaml.safe_load(run.config)
    except yaml.YAMLError:
        return {}
    flat: dict[str, str] = {}
    pending: list[tuple[str, Any]] = [("", content)]
    while pending:
        name, value = pending.pop()
        if isinstance(value, dict) and value:
            pending += [(f"{name}.{key}".lstrip("."), child) for key, child in value.items()]
        elif name:
            flat[name] = str(value)
    return dict(sorted(flat.items()))


def _as_float(cell: Any) -> float:
    try:
        return float(cell)
    except (TypeError, ValueError):
        return math.nan


def _number(value: Any) -> float | None:
    return (
        value
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        else None
    )
