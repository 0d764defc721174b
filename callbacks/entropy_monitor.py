"""EntropyMonitor: the distribution of token entropy, its trend, and an alarm outside a band."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import numpy as np
from lightning.pytorch import Callback, Trainer

from callbacks.detectors import Detector, Watch
from callbacks.events import record_alarm, record_event
from rlif_lightning.data.described import Described
from rlif_lightning.module import RLIFModule

PERCENTILES = (10, 50, 90)
WINDOW = 20  # rollouts that the slope is fitted to
MEANING = (
    "The policy may be collapsing. Look at completions; lower the learning rate or raise KL-Cov's"
    " weight."
)


def band(floor: float | None, ceiling: float | None) -> dict[str, Detector]:
    """Return the detectors of a mean token entropy (nats) outside a band; null = no limit."""
    limits = {"floor": ("below", floor), "ceiling": ("above", ceiling)}
    return {
        name: Detector("policy/entropy", side, bound=bound, window=1, release=0.0, meaning=MEANING)
        for name, (side, bound) in limits.items()
        if bound is not None
    }


class EntropyMonitor(Described, Callback):
    """Logs percentiles and the slope of token entropy, and warns outside a band.

    A run collapses both ways: under certainty rewards entropy falls to nothing, under a vote alone
    it may explode. Logged per rollout: ``entropy/p10``, ``entropy/p50``, ``entropy/p90`` (nats,
    this rollout's tokens) and ``entropy/slope`` (nats per rollout, least squares over the mean
    entropies of the last 20 rollouts). The module itself logs the means, ``policy/entropy`` of all
    tokens and ``policy/entropy_picked`` of those that the objective picked; alarms name both.
    Alarms and recoveries are written to ``events.jsonl``.

    Args:
        floor: warn once the mean entropy (nats) is below this; null = never.
        ceiling: warn once the mean entropy (nats) is above this; null = never.

    Raises:
        ValueError: a floor that is not below the ceiling.
    """

    def __init__(self, floor: float | None = None, ceiling: float | None = None):
        if floor is not None and ceiling is not None and floor >= ceiling:
            raise ValueError(f"floor={floor} must be below ceiling={ceiling}")
        self.history: deque[float] = deque(maxlen=WINDOW)
        self.watch = Watch(band(floor, ceiling))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: RLIFModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the rollout's figures, and warn once each time that the band is left."""
        rollout = outputs["rollout"]
        entropies = rollout.stats.entropy[rollout.mask].cpu().numpy()
        if not entropies.size:  # heads dropped every completion of this process
            entropies = np.array([np.nan])
        # torch.quantile refuses more than 16 million tokens.
        points = np.percentile(entropies, PERCENTILES)
        for percentile, value in zip(PERCENTILES, points.tolist(), strict=True):
            pl_module.log(f"entropy/p{percentile}", value, sync_dist=True, batch_size=1)
        mean = float(trainer.callback_metrics["policy/entropy"])
        self.history.extend([] if math.isnan(mean) else [mean])
        slope = 0.0
        if len(self.history) > 1:
            slope = float(np.polyfit(np.arange(len(self.history)), np.array(self.history), 1)[0])
            pl_module.log("entropy/slope", slope, batch_size=1)
        self._judge(trainer, pl_module, mean, slope)

    def _judge(self, trainer: Trainer, pl_module: RLIFModule, mean: float, slope: float) -> None:
        was_outside = bool(self.watch.active)
        began, ended = self.watch.update(dict.fromkeys(self.watch.detectors, mean))
        active = self.watch.active
        if bool(active) == was_outside:
            return
        name = began[0] if active else ended[0]
        picked = float(trainer.callback_metrics["policy/entropy_picked"])
        values = self.watch.evidence(name, mean) | {"entropy_picked": picked, "slope": slope}
        if active:
            text = f"{name}: {self.watch.detectors[name].describe(self.watch.states[name])}"
            text += f" Picked tokens have {picked:.4g} nats; the slope is {slope:+.4g} a rollout."
            record_alarm(trainer, pl_module, "EntropyMonitor", text, values)
            return
        text = f"{name}: policy/entropy is back at {mean:.4g}"
        record_event(trainer, pl_module, "EntropyMonitor", "recovery", text, values)

    def state_dict(self) -> dict[str, Any]:
        """Return the slope's mean entropies and the detectors' states."""
        return {"history": list(self.history), "detectors": self.watch.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where the checkpoint was made."""
        self.history.extend(state_dict["history"])
        self.watch.load_state_dict(state_dict["detectors"])
