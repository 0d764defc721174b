"""The steps of a LightningModule that measure and do not train: validate, test, predict."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning import LightningModule

from rlif_lightning.evaluation.completion_rows import completion_records
from rlif_lightning.records import Prompts
from rlif_lightning.rewards.reward_set import RewardSet
from rlif_lightning.rollout.engine import RolloutEngine
from rlif_lightning.sampling import PREDICTION_ROLLOUT, Sampling

if TYPE_CHECKING:
    from rlif_lightning.evaluation.evaluator import Evaluator
    from rlif_lightning.evaluation.report import Report


class EvaluationSteps(LightningModule):
    """The steps that sample and measure, on the parts that a subclass sets.

    Attributes:
        report: what the last evaluation measured.
    """

    engine: RolloutEngine
    evaluator: Evaluator
    rewards: RewardSet
    sampling: Sampling
    group_size: int
    answer_column: str | None
    report: Report

    def on_validation_epoch_start(self) -> None:
        """Drop what an evaluation that was broken off has counted."""
        self.evaluator.reset()

    on_test_epoch_start = on_validation_epoch_start

    def validation_step(self, prompts: Prompts, batch_idx: int) -> dict[str, Any]:
        """Sample and decode greedily for the evaluation; return the completions with verdicts."""
        return {
            "completions": self.evaluator.measure(
                prompts, self.engine, self.sampling, self.answer_column
            )
        }

    def on_validation_epoch_end(self) -> None:
        """Log ``val/...``, and the bounds of its intervals as ``val_low/...``, ``val_high/...``."""
        self._log_evaluation("val")

    def test_step(self, prompts: Prompts, batch_idx: int) -> dict[str, Any]:
        """Evaluate as :meth:`validation_step` does."""
        return self.validation_step(prompts, batch_idx)

    def on_test_epoch_end(self) -> None:
        """Log as :meth:`on_validation_epoch_end` does, under ``test``."""
        self._log_evaluation("test")

    def _log_evaluation(self, prefix: str) -> None:
        self.report = self.evaluator.compute(labelled=self.answer_column is not None)
        for name, (value, low, high) in self.report.figures().items():
            self.log_dict(
                {
                    f"{prefix}/{name}": value,
                    f"{prefix}_low/{name}": low,
                    f"{prefix}_high/{name}": high,
                }
            )

    def predict_step(self, prompts: Prompts, batch_idx: int) -> list[dict[str, Any]]:
        """Return one record per completion, with the score of every reward head."""
        rollout = self.engine.generate(prompts, self.group_size, self.sampling, PREDICTION_ROLLOUT)
        return completion_records(rollout, self.rewards(rollout))
