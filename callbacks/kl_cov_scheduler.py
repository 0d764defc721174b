"""KLCovScheduler: KL-Cov's weight by step, or in a closed loop on the measured entropy."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from lightning.pytorch import Callback, Trainer

from rlif_lightning.module import RLIFModule
from rlif_lightning.objectives import KLCov

SCHEDULES = ("linear", "cosine", "entropy")


class KLCovScheduler(Callback):
    """Sets the weight of the objective ``KLCov`` before each rollout, and logs it as ``kl_cov/weight``.

    ``linear`` and ``cosine`` go from ``start`` to ``end`` in ``steps`` rollouts and stay there. ``entropy`` is a closed
    loop: after a rollout whose mean entropy H is below ``target[0]`` the weight is multiplied by
    ``exp(gain * (target[0] - H) / target[0])``, above ``target[1]`` by ``exp(-gain * (H - target[1]) / target[1])``,
    inside the band it stays; it never leaves ``bounds``.

    Args:
        schedule: linear | cosine | entropy.
        start: weight of the first rollout.
        end: weight from rollout `steps` on (linear, cosine).
        steps: rollouts from `start` to `end` (linear, cosine).
        target: band of mean token entropy in nats, low and high (entropy).
        gain: how strongly a relative deviation acts (entropy).
        bounds: lowest and highest weight (entropy).

    Raises:
        ValueError: an unknown schedule, or one whose arguments are missing or out of range.
    """

    def __init__(
        self,
        schedule: str = "linear",
        start: float = 0.05,
        end: float | None = None,
        steps: int | None = None,
        target: tuple[float, float] | None = None,
        gain: float = 0.1,
        bounds: tuple[float, float] = (1e-3, 10.0),
    ):
        if schedule not in SCHEDULES:
            raise ValueError(f"schedule={schedule!r} is unknown; use one of {', '.join(SCHEDULES)}")
        if schedule == "entropy" and (target is None or not 0 < target[0] <= target[1]):
            raise ValueError(f"target={target}: schedule=entropy needs a band [low, high] in nats, 0 < low <= high")
        if schedule != "entropy" and (end is None or steps is None or steps < 1):
            raise ValueError(f"end={end}, steps={steps}: schedule={schedule} needs an end weight and steps >= 1")
        if start < 0 or not 0 < bounds[0] <= bounds[1]:
            raise ValueError(f"start={start}, bounds={bounds}: need start >= 0 and 0 < low <= high")
        self.schedule, self.start, self.end, self.steps = schedule, start, end, steps
        self.target, self.gain, self.bounds = target, gain, bounds
        self.weight, self.rollouts = start, 0

    def on_train_start(self, trainer: Trainer, pl_module: RLIFModule) -> None:
        """Refuse an objective that has nothing to schedule."""
        if not isinstance(pl_module.objective, KLCov):
            raise ValueError(
                f"KLCovScheduler needs model.objective=KLCov, not {type(pl_module.objective).__name__}; change the"
                " objective or take the callback out"
            )

    def on_train_batch_start(self, trainer: Trainer, pl_module: RLIFModule, batch: Any, batch_idx: int) -> None:
        """Set this rollout's weight."""
        if self.schedule != "entropy":
            self.weight = self._planned()
        pl_module.objective = replace(pl_module.objective, weight=self.weight)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: RLIFModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the weight that was used; in the closed loop, find the next."""
        pl_module.log("kl_cov/weight", self.weight, batch_size=1)
        self.rollouts += 1
        if self.schedule == "entropy":
            self.weight = self._controlled(float(trainer.callback_metrics["policy/entropy"]))

    def _planned(self) -> float:
        assert self.end is not None
        assert self.steps is not None
        progress = min(1.0, self.rollouts / self.steps)
        share = progress if self.schedule == "linear" else 0.5 * (1 - math.cos(math.pi * progress))
        return self.start + share * (self.end - self.start)

    def _controlled(self, entropy: float) -> float:
        assert self.target is not None
        low, high = self.target
        error = (low - min(entropy, low)) / low - (max(entropy, high) - high) / high
        return min(max(self.weight * math.exp(self.gain * error), self.bounds[0]), self.bounds[1])

    def state_dict(self) -> dict[str, Any]:
        """The weight and the number of rollouts so far."""
        return {"weight": self.weight, "rollouts": self.rollouts}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the checkpoint was made."""
        self.weight, self.rollouts = state_dict["weight"], state_dict["rollouts"]
