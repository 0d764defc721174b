"""EntropyMonitor: the distribution of token entropy and its trend."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import numpy as np
from lightning.pytorch import Callback, Trainer

from rlif_lightning.data.described import Described
from rlif_lightning.module import RLIFModule
from rlif_lightning.processes.percentiles import all_rank_percentiles

PERCENTILES = (10, 50, 90)
NAMES = tuple(f"entropy/p{each}" for each in PERCENTILES)
WINDOW = 20  # rollouts that the slope is fitted to


class EntropyMonitor(Described, Callback):
    """Logs percentiles and the slope of token entropy.

    A run collapses both ways: under certainty rewards entropy falls to nothing, under a vote alone
    it may explode. Logged per rollout: ``entropy/p10``, ``entropy/p50``, ``entropy/p90`` (nats,
    this rollout's tokens on all ranks) and ``entropy/slope`` (nats per rollout, least squares over
    the mean entropies of the last 20 rollouts). The module itself logs the means,
    ``policy/entropy`` of all tokens and ``policy/entropy_picked`` of those that the objective
    picked. A detector of CollapseGuard warns outside a band.
    """

    def __init__(self) -> None:
        self.history: deque[float] = deque(maxlen=WINDOW)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: RLIFModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the rollout's figures."""
        rollout = outputs["rollout"]
        points = all_rank_percentiles(rollout.stats.entropy[rollout.mask], PERCENTILES)
        for name, value in zip(NAMES, points.float(), strict=True):
            pl_module.log(name, value, batch_size=1)
        mean = float(trainer.callback_metrics["policy/entropy"])
        self.history.extend([] if math.isnan(mean) else [mean])
        slope = math.nan  # of one rollout there is none, and a detector may watch it
        if len(self.history) > 1:
            slope = float(np.polyfit(np.arange(len(self.history)), np.array(self.history), 1)[0])
        pl_module.log("entropy/slope", slope, batch_size=1)

    def state_dict(self) -> dict[str, Any]:
        """Return the slope's mean entropies."""
        return {"history": list(self.history)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where the checkpoint was made."""
        self.history = deque(state_dict["history"], maxlen=WINDOW)
