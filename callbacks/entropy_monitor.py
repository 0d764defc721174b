"""EntropyMonitor: the distribution of token entropy, its trend, and a warning when it leaves a band."""

from __future__ import annotations

import warnings
from collections import deque
from typing import Any

import numpy as np
from lightning.pytorch import Callback, Trainer

from callbacks.events import record_event
from rlif_lightning.data.described import Described
from rlif_lightning.module import RLIFModule

PERCENTILES = (10, 50, 90)


class EntropyMonitor(Described, Callback):
    """Logs percentiles of token entropy and its slope, and warns below a floor and above a ceiling.

    A run collapses both ways: under certainty rewards entropy falls to nothing, under a vote alone
    it may explode. Logged per rollout: ``entropy/p10``, ``entropy/p50``, ``entropy/p90`` (nats,
    this step's tokens) and ``entropy/slope`` (nats per rollout, least squares over the window of
    mean entropies). The module itself logs the means, ``policy/entropy`` of all tokens and
    ``policy/entropy_picked`` of those that the objective picked; the warning names both. Warnings
    and recoveries are written to ``events.jsonl``.

    Args:
        floor: warn once the mean entropy (nats) is below this; null = never.
        ceiling: warn once the mean entropy (nats) is above this; null = never.
        window: rollouts that the slope is fitted to, at least 2.

    Raises:
        ValueError: a window below 2, or a floor that is not below the ceiling.
    """

    def __init__(self, floor: float | None = None, ceiling: float | None = None, window: int = 20):
        if window < 2:
            raise ValueError(
                f"window={window} must be at least 2 rollouts: a slope needs two points"
            )
        if floor is not None and ceiling is not None and floor >= ceiling:
            raise ValueError(f"floor={floor} must be below ceiling={ceiling}")
        self.floor, self.ceiling = floor, ceiling
        self.history: deque[float] = deque(maxlen=window)
        self.outside = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: RLIFModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log, and warn when the band is left (once each time)."""
        rollout = outputs["rollout"]
        entropies = rollout.stats.entropy[rollout.mask]
        points = np.percentile(
            entropies.cpu().numpy(), PERCENTILES
        )  # torch.quantile refuses over 16 million tokens
        for percentile, value in zip(PERCENTILES, points.tolist(), strict=True):
            pl_module.log(f"entropy/p{percentile}", value, sync_dist=True, batch_size=1)
        mean = float(trainer.callback_metrics["policy/entropy"])
        self.history.append(mean)
        slope = 0.0
        if len(self.history) > 1:
            slope = float(np.polyfit(np.arange(len(self.history)), np.array(self.history), 1)[0])
            pl_module.log("entropy/slope", slope, batch_size=1)
        self._check(trainer, pl_module, mean, slope)

    def _check(self, trainer: Trainer, pl_module: RLIFModule, mean: float, slope: float) -> None:
        low = self.floor is not None and mean < self.floor
        high = self.ceiling is not None and mean > self.ceiling
        was_outside, self.outside = self.outside, low or high
        if self.outside == was_outside:
            return
        picked = float(trainer.callback_metrics["policy/entropy_picked"])
        values = {"entropy": mean, "entropy_picked": picked, "slope": slope}
        if not self.outside:
            text = f"mean token entropy {mean:.3f} nats is back inside the band"
            record_event(trainer, pl_module, "EntropyMonitor", "recovery", text, values)
            return
        bound = f"below floor={self.floor}" if low else f"above ceiling={self.ceiling}"
        text = (
            f"mean token entropy {mean:.3f} nats is {bound} (picked tokens {picked:.3f}, slope"
            f" {slope:+.4f} a rollout)"
        )
        record_event(trainer, pl_module, "EntropyMonitor", "warning", text, values)
        if trainer.is_global_zero:
            warnings.warn(
                f"EntropyMonitor: {text} at optimiser step {trainer.global_step}; the policy may"
                " be collapsing. Look at"
                " completions; lower the learning rate or raise KL-Cov's weight",
                stacklevel=2,
            )

    def state_dict(self) -> dict[str, Any]:
        """The window and whether the band was left."""
        return {"history": list(self.history), "outside": self.outside}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the checkpoint was made."""
        self.history.extend(state_dict["history"])
        self.outside = state_dict["outside"]
