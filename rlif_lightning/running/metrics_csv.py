"""metrics.csv: its rows survive a crash at any moment, and it is read as far as it is whole."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from rlif_lightning.metric_names import VALIDATION
from rlif_lightning.running.run_folder import naming
from rlif_lightning.whole_files import replaced

PLACE = ("epoch", "step")  # columns that are no figures


@dataclass(frozen=True)
class MetricsFile:
    """What a ``metrics.csv`` holds.

    Attributes:
        columns: the figures' names, ``epoch`` and ``step`` among them.
        rows: the cells of each row as text, the empty ones left out.
        torn: the last line was not whole, and is left out: the run was killed, or is still writing.
    """

    columns: list[str]
    rows: list[dict[str, str]]
    torn: bool


def read_logged(path: Path) -> MetricsFile:
    """Read a ``metrics.csv``, but for zero bytes, which a power cut leaves.

    Raises:
        OSError: there is no such file, or it cannot be read.
    """
    # Neither the csv module's line ends nor those inside of a quoted name are those of
    # str.splitlines.
    text = path.read_bytes().decode("utf-8", errors="replace").replace("\0", "")
    whole = text[: text.rfind("\n") + 1]
    reader = csv.DictReader(io.StringIO(whole, newline=""))
    rows = [{name: cell for name, cell in row.items() if name and cell} for row in reader]
    return MetricsFile(list(reader.fieldnames or []), rows, len(whole) < len(text))


class MetricsTable(CSVLogger):
    """Lightning's CSVLogger, with new columns added by a file that is put in place whole."""

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """Return the writer."""
        if self._experiment is None:
            os.makedirs(self.root_dir, exist_ok=True)
            self._experiment = _Writer(log_dir=self.log_dir)
        return self._experiment


class RolloutBoard(TensorBoardLogger):
    """TensorBoard with the rollouts done on its axis, as everywhere else.

    Lightning numbers a rollout by those before it, and an evaluation in either way.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._done: int | None = None  # rollouts, after the last one that was logged

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Log figures at the number of rollouts done."""
        trained = [name for name in metrics if not name.startswith((*VALIDATION, "test", *PLACE))]
        if step is not None and trained:
            self._done = step = step + 1
        elif self._done is not None:
            step = self._done
        super().log_metrics(metrics, step)


def usual_loggers(folder: Any) -> list[Any]:
    """Return the loggers of a run that names none: metrics.csv and TensorBoard in a new folder.

    Args:
        folder: of runs; None = the current one.
    """
    root = folder or "."
    table = MetricsTable(root, name="", flush_logs_every_n_steps=1)
    return [table, RolloutBoard(root, name="", version=table.version)]


def with_table(given: Any, folder: Any) -> list[Any]:
    """Return a run's loggers with one that writes metrics.csv at their head.

    A run's files go where the first logger's go, and a report is made of its metrics.csv.

    Args:
        given: a logger or several.
        folder: where a table goes if none of them writes one.
    """
    loggers = list(given) if isinstance(given, Iterable) else [given]
    tables = [logger for logger in loggers if isinstance(logger, CSVLogger)]
    if not tables:
        tables = [MetricsTable(folder or ".", name="", flush_logs_every_n_steps=1)]
    return tables + [logger for logger in loggers if logger not in tables]


class _Writer(ExperimentWriter):
    def save(self) -> None:
        """Save as Lightning does; an error names the file."""
        with naming(Path(self.metrics_file_path)):
            super().save()

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        """Write the file anew and put it in place whole; Lightning would empty it first."""
        path = Path(self.metrics_file_path)
        with (
            replaced(path) as unfinished,
            path.open(newline="") as old,
            unfinished.open("w", newline="") as new,
        ):
            writer = csv.DictWriter(new, fieldnames=fieldnames)
            writer.writeheader()
            writer.writerows(csv.DictReader(old))
