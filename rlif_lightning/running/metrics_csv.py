"""metrics.csv, whose rows survive a crash at any moment."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from rlif_lightning.running.run_folder import naming
from rlif_lightning.whole_files import replaced


class MetricsTable(CSVLogger):
    """Lightning's CSVLogger; a figure logged for the first time adds its column by a file put in place whole."""

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The writer."""
        if self._experiment is None:
            os.makedirs(self.root_dir, exist_ok=True)
            self._experiment = _Writer(log_dir=self.log_dir)
        return self._experiment


class _Writer(ExperimentWriter):
    def save(self) -> None:
        """As Lightning's; an error names the file."""
        with naming(Path(self.metrics_file_path)):
            super().save()

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        """Lightning empties the file and writes it again: a process killed in between would lose every row."""
        path = Path(self.metrics_file_path)
        with replaced(path) as unfinished, path.open(newline="") as old, unfinished.open("w", newline="") as new:
            writer = csv.DictWriter(new, fieldnames=fieldnames)
            writer.writeheader()
            writer.writerows(csv.DictReader(old))
