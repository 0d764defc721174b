"""What callbacks share that set values of the objective while a run trains."""

from __future__ import annotations

from dataclasses import replace

from lightning.pytorch import Callback, Trainer

from rlif_lightning.module import RLIFModule


class SetsObjective(Callback):
    """Gives the objective back its own values at the end of training, for another run.

    Attributes:
        given: the objective's own values, by name; empty before ``setup``.
    """

    def __init__(self) -> None:
        self.given: dict[str, float] = {}

    def on_train_end(self, trainer: Trainer, pl_module: RLIFModule) -> None:
        """Give them back."""
        pl_module.objective = replace(pl_module.objective, **self.given)

    def on_exception(
        self, trainer: Trainer, pl_module: RLIFModule, exception: BaseException
    ) -> None:
        """Give them back, as at the end of training."""
        self.on_train_end(trainer, pl_module)
