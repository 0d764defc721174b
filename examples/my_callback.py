"""A callback of your own: stop the run once almost every group votes unanimously.

A unanimous vote says nothing about which completion is better, so from then on the certainty reward
alone would drive the policy. Name it by its class path, from the root of this repository:

    python -m rlif_lightning fit --config configs/quickstart.yaml \\
        --trainer.callbacks+=examples.my_callback.UnanimityStop --trainer.callbacks.limit=0.9

A callback reads ``trainer.callback_metrics`` or the step's ``outputs``, and steers by one public
write.
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class UnanimityStop(Callback):
    """Stops training after ``patience`` rollouts in a row with nearly all groups unanimous.

    Args:
        limit: share of unanimous groups above which a rollout counts, in (0, 1].
        patience: rollouts in a row.

    Raises:
        ValueError: a number out of range.
    """

    def __init__(self, limit: float = 0.9, patience: int = 3):
        if not 0 < limit <= 1 or patience < 1:
            raise ValueError(
                f"limit={limit}, patience={patience}: need 0 < limit <= 1 and patience >= 1"
            )
        self.limit, self.patience, self.seen = limit, patience, 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count, and ask the trainer to stop.

        The metric is the same on all ranks, so all of them stop together.
        """
        unanimous = float(trainer.callback_metrics["vote/unanimous"])
        self.seen = self.seen + 1 if unanimous >= self.limit else 0
        trainer.should_stop = trainer.should_stop or self.seen >= self.patience

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"seen": self.seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where the checkpoint was made."""
        self.seen = state_dict["seen"]
