"""EvaluationFiles: ``evaluation.json`` and every evaluation's completions, in the run's folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer

from rlif_lightning.evaluation.bootstrap import CONFIDENCE
from rlif_lightning.processes.ranks import data_rank, num_data_ranks, writes_completions
from rlif_lightning.running.plain_json import json_lines, json_text
from rlif_lightning.running.run_folder import run_folder
from rlif_lightning.whole_files import replaced


class EvaluationFiles(Callback):
    """Writes what validate and test measured, between the steps of a run as well.

    ``evaluation.json`` holds one entry per evaluation: stage, rollouts and optimiser steps so far,
    and the figures with their intervals, of each subset too.
    ``evaluated/<stage>-rollout-<n>.jsonl`` holds every completion with its answer and verdict, one
    file per evaluation and rank; an evaluation repeated at the same rollout (the last one between
    steps and the one after training) takes the earlier one's place. Nothing is written in a
    fast_dev_run.
    """

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.completions: Path | None = None

    def _start(self, trainer: Trainer, module: Any, stage: str) -> None:
        if trainer.sanity_checking or trainer.fast_dev_run:  # pyright: ignore[reportAttributeAccessIssue]
            return
        self.folder = run_folder(trainer)
        if not (module.evaluator.evaluation.save_completions and writes_completions()):
            return
        suffix = f".rank{data_rank()}" if num_data_ranks() > 1 else ""
        name = f"{stage}-rollout-{int(module.num_rollouts):06d}{suffix}.jsonl"
        self.completions = self.folder / "evaluated" / name
        self.completions.parent.mkdir(parents=True, exist_ok=True)
        self.completions.write_text("")

    def _add(self, outputs: Any) -> None:
        if self.completions is not None:
            with self.completions.open("a", encoding="utf-8") as file:
                file.write(json_lines(outputs["completions"]))

    def _end(self, trainer: Trainer, module: Any, stage: str) -> None:
        if self.folder is not None and trainer.is_global_zero:
            entry = {
                "stage": stage,
                "rollouts": int(module.num_rollouts),
                "optimizer_steps": trainer.global_step,
            }
            samples = module.evaluator.evaluation.samples
            entry |= {"samples": samples, "confidence": CONFIDENCE}
            self._write(self.folder / "evaluation.json", entry | module.report.as_dict())
        self.folder, self.completions = None, None

    @staticmethod
    def _write(path: Path, entry: dict[str, Any]) -> None:
        entries = json.loads(path.read_text()) if path.exists() else []
        place = (entry["stage"], entry["rollouts"])
        entries = [old for old in entries if (old["stage"], old["rollouts"]) != place]
        path.parent.mkdir(parents=True, exist_ok=True)
        with replaced(path, path.with_suffix(".tmp")) as unfinished:
            unfinished.write_text(json_text([*entries, entry], indent=1))

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Open the file of completions."""
        self._start(trainer, pl_module, "val")

    def on_validation_batch_end(
        self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0
    ) -> None:
        """Append a batch's completions."""
        self._add(outputs)

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Write the figures."""
        self._end(trainer, pl_module, "val")

    def on_test_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Do as in validation."""
        self._start(trainer, pl_module, "test")

    def on_test_batch_end(
        self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0
    ) -> None:
        """Do as in validation."""
        self._add(outputs)

    def on_test_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Do as in validation."""
        self._end(trainer, pl_module, "test")
