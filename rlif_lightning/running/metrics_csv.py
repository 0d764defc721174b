"""metrics.csv: its rows survive a crash at any moment, and it is read as far as it is whole."""

from __future__ import annotations

import csv
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from rlif_lightning.running.run_folder import naming
from rlif_lightning.whole_files import replaced


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
