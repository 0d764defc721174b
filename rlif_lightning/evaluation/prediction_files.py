"""PredictionFiles: what `predict` draws, as a data set that grows by batches and can be resumed.

Read `Predictions` (the settings) and `PredictionFiles` (the callback), then the two formats. A
batch holds whole groups and is on disk before the next one is drawn; only Parquet keeps the
completions of one file in memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities import rank_zero_info

from rlif_lightning.data.prompts import PromptData
from rlif_lightning.evaluation.completion_rows import NESTED, with_json
from rlif_lightning.processes.collectives import all_process_attempt
from rlif_lightning.processes.ranks import writes_completions
from rlif_lightning.running.former_settings import present_settings
from rlif_lightning.running.plain_json import json_lines
from rlif_lightning.running.run_folder import check_place, naming, run_folder
from rlif_lightning.running.run_settings import prediction_settings
from rlif_lightning.setting_types import check_types
from rlif_lightning.whole_files import replaced

COLUMNS = {
    "index": "int64",
    "completion_number": "int64",
    "prompt": "string",
    "completion": "string",
    "length": "int64",
    "ended": "bool",
    "mean_logprob": "float64",
    "mean_entropy": "float64",
}
# Completions in a Parquet file; they are lost if predict ends before it is full.
ROWS_PER_FILE = 4096


@dataclass(frozen=True)
class Predictions:
    """Where and how `predict` writes.

    Args:
        folder: of the data set; null = `predictions` in the run's new folder. A folder that an
            interrupted predict with the same settings began is gone on with: finished prompts are
            left out, so none is there twice.
        format: jsonl (one file per process) | parquet (a file for every 4096 completions, which are
            lost if predict ends before it is full).
    """

    folder: str | None = None
    format: Literal["jsonl", "parquet"] = "jsonl"

    def __post_init__(self) -> None:
        check_types(self)


class PredictionFiles(BasePredictionWriter):
    """Writes one record per completion; ``datasets.load_dataset(folder)`` reads the folder back.

    Besides the data files it holds a data set card (``README.md``, with the columns' types) and
    ``settings.json``: what the completions depend on, so that a folder is only gone on with under
    the same settings.

    Args:
        predictions: where and how.
    """

    def __init__(self, predictions: Predictions):
        super().__init__(write_interval="batch")
        self.predictions = predictions
        self.settings: dict[str, Any] = {}

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Open the folder, cut torn ends off, and leave finished prompts out (a collective).

        Raises:
            ValueError: the folder was begun with other settings or not by predict, or the data
                are no PromptData.
        """
        data = getattr(trainer, "datamodule", None)
        if not isinstance(data, PromptData):
            raise ValueError(
                f"PredictionFiles needs the data module PromptData, not {type(data).__name__}"
            )
        self.settings, run = prediction_settings(trainer, pl_module), run_folder(trainer)
        given = self.predictions.folder
        self.folder = check_place("predictions.folder", given) if given else run / "predictions"
        # Every process has read the folder before one writes.
        self.done = all_process_attempt(lambda: self._open(trainer.global_rank, data, pl_module))
        all_process_attempt(lambda: self._begin() if trainer.is_global_zero else None)
        if self.done.any():
            rank_zero_info(
                f"{self.folder}: {int(self.done.sum())} prompts are finished; going on with the"
                " others"
            )
            data.skip_predicted(self.done)

    def _open(self, rank: int, data: PromptData, module: Any) -> np.ndarray:
        """Find this process's files and return which rows are finished."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._check_settings()
        kind = {"jsonl": _Jsonl, "parquet": _Parquet}[self.predictions.format]
        self.output = kind(self.folder, rank, module.rewards.names)
        return self.output.finished(data.num_predicted_rows, data.group_size)

    def _begin(self) -> None:
        for half in self.folder.glob("completions-*.tmp"):  # of a process that was killed
            half.unlink()
        self._write("settings.json", json.dumps(self.settings, indent=1))
        self._write("README.md", self.output.card())

    def _write(self, name: str, text: str) -> None:
        with naming(self.folder / name):
            (self.folder / name).write_text(text)

    def _check_settings(self) -> None:
        path = self.folder / "settings.json"
        written = [path, self.folder / "README.md", *self.folder.glob("completions-*")]
        if strange := [
            file for file in written if file.is_symlink() or (file.exists() and not path.exists())
        ]:
            raise ValueError(
                f"predictions.folder={str(self.folder)!r} has {strange[0].name!r}, which predict"
                " did not write; give"
                " a new folder"
            )
        if not path.exists():
            return
        begun = present_settings(json.loads(path.read_text()))
        now = json.loads(json.dumps(self.settings))
        for name in sorted(begun.keys() | now.keys()):
            if begun.get(name) != now.get(name):
                raise ValueError(
                    f"predictions.folder={str(self.folder)!r} was begun with"
                    f" {name}={begun.get(name)}, not"
                    f" {now.get(name)}; use the same settings, or another folder"
                )

    def write_on_batch_end(
        self, trainer, pl_module, prediction, batch_indices, batch, batch_idx, dataloader_idx
    ) -> None:
        """Append one batch, but for prompts that were drawn only to fill a process's batch."""
        if writes_completions():
            records = [record for record in prediction if not self.done[record["index"]]]
            if self.output.finds_nested(records) and trainer.is_global_zero:
                self._write("README.md", self.output.card())
            self.output.write(records)

    def on_predict_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Write what is left and say where it is."""
        all_process_attempt(self.output.close)
        if trainer.is_global_zero:
            print(f"completions: {self.folder} (datasets.load_dataset reads it)")


class _Output:
    """The data files of one process in a folder.

    Args:
        folder: shared by all processes.
        rank: this process.
        heads: names of the reward heads.

    Attributes:
        nested: those of ``NESTED`` that rows have.
    """

    suffix = ""

    def __init__(self, folder: Path, rank: int, heads: list[str]):
        self.folder, self.rank = folder, rank
        self.heads, self.nested = heads, set[str]()
        other = {"jsonl": "parquet", "parquet": "jsonl"}[self.suffix]
        if list(folder.glob(f"completions-*.{other}")):
            raise ValueError(
                f"predictions.format={self.suffix}: {str(folder)!r} was begun as {other}; use"
                " that, or another folder"
            )

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob(f"completions-*.{self.suffix}"))

    def finds_nested(self, records: Iterable[Iterable[str]]) -> bool:
        """Note which of ``NESTED`` some records have; return whether one is new."""
        found = {name for name in NESTED if any(name in record for record in records)}
        is_new, self.nested = not found <= self.nested, self.nested | found
        return is_new

    def card(self) -> str:
        """Return a data set card with the columns' types, which nulls in a file may hide."""
        scores = [{"name": head, "dtype": "float64"} for head in self.heads]
        features: list[dict[str, Any]] = [
            {"name": name, "dtype": kind} for name, kind in COLUMNS.items()
        ]
        features.append({"name": "scores", "struct": scores})
        features += [{"name": name, "dtype": "json"} for name in sorted(self.nested)]
        data_files = f"completions-*.{self.suffix}"
        head = {"configs": [{"config_name": "default", "data_files": data_files}]}
        head |= {"dataset_info": {"features": features}}
        return (
            f"---\n{json.dumps(head, indent=1)}\n---\nCompletions drawn by `rlif predict`; see"
            " settings.json.\n"
        )


class _Jsonl(_Output):
    suffix = "jsonl"

    def finished(self, num_rows: int, group_size: int) -> np.ndarray:
        """Return which rows are complete; cut each file after its last whole group."""
        done = np.zeros(num_rows, dtype=bool)
        for path in self._paths():
            whole = self._whole_groups(path, group_size, done)
            if whole < path.stat().st_size:
                with path.open("r+b") as file:
                    file.truncate(whole)
        return done

    def _whole_groups(self, path: Path, group_size: int, done: np.ndarray) -> int:
        """Mark the rows of whole groups in ``done``; return the number of bytes of all of them."""
        whole, place, seen, current = 0, 0, 0, -1
        with path.open("rb") as file:
            for line in file:
                place += len(line)
                try:
                    record = json.loads(line) if line.endswith(b"\n") else None
                except ValueError as error:
                    raise ValueError(
                        f"{path}: the line that ends at byte {place} is no JSON: {error}"
                    ) from error
                if record is None:  # torn: the last line of a file that was being written
                    break
                self.finds_nested([record])
                index = record["index"]
                seen, current = (seen + 1 if index == current else 1), index
                if seen == group_size:
                    done[index], whole = True, place
        return whole

    def write(self, records: list[dict[str, Any]]) -> None:
        """Append, so that an interruption can tear the last line only."""
        path = self.folder / f"completions-{self.rank:05d}.jsonl"
        with naming(path), path.open("a", encoding="utf-8") as file:
            file.write(json_lines(records))

    def close(self) -> None:
        """Do nothing: nothing is left to write."""


class _Parquet(_Output):
    suffix = "parquet"

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.records: list[dict[str, Any]] = []

    def finished(self, num_rows: int, group_size: int) -> np.ndarray:
        """Return which rows are in a file; files appear whole or not at all."""
        import pyarrow.parquet as pq

        done = np.zeros(num_rows, dtype=bool)
        for path in self._paths():
            done[pq.read_table(path, columns=["index"])["index"].to_numpy()] = True
            self.finds_nested([pq.read_schema(path).names])
        return done

    def write(self, records: list[dict[str, Any]]) -> None:
        """Keep the records, and write a file once there are enough."""
        self.records += records
        if len(self.records) >= ROWS_PER_FILE:
            self.close()

    def close(self) -> None:
        """Write what is kept as one file, named by its first row."""
        if not self.records:
            return
        import pyarrow as pa
        import pyarrow.parquet as pq

        scores = pa.struct([(head, pa.float64()) for head in self.heads])
        columns = [(name, pa.type_for_alias(kind)) for name, kind in COLUMNS.items()]
        nested = sorted(self.nested)
        columns += [("scores", scores), *((name, pa.string()) for name in nested)]
        rows = [with_json(row, nested) for row in self.records]
        name = f"completions-{self.rank:05d}-{self.records[0]['index']:012d}"
        path, unfinished = self.folder / f"{name}.parquet", self.folder / f"{name}.tmp"
        with naming(unfinished), replaced(path, unfinished):
            pq.write_table(pa.Table.from_pylist(rows, pa.schema(columns)), unfinished)
        self.records = []
