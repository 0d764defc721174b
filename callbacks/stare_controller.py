"""STAREController: the entropy gate of the objective STARE, and weights that follow the entropy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import Trainer

from callbacks.objective_values import SetsObjective
from rlif_lightning.data.described import Described
from rlif_lightning.learning.stare import STARE, WEIGHTS
from rlif_lightning.module import RLIFModule
from rlif_lightning.processes.collectives import broadcast_from_first

BOUNDS = (0.5, 1.5)  # lowest negative and highest positive weight with a step; the paper's


class STAREController(Described, SetsObjective):
    """Applies the weights of the objective ``STARE`` while the entropy is below a target.

    https://arxiv.org/abs/2606.19236. The gate of a rollout follows the mean token entropy of that
    same rollout, before its first update. Above the target both weights are 1, which is clipped
    GRPO. A rollout without a finite entropy keeps the gate of the one before; the first gate is
    on.

    With a ``step`` each rollout also moves the weights that the objective gives (other than 1): up
    to the target ``positive_weight`` rises and ``negative_weight`` falls by ``step``, above it the
    other way, between 1 and the paper's bounds, 1.5 and 0.5.

    Logs ``stare/gate`` (0 or 1) and the weights in force, ``stare/positive_weight`` and
    ``stare/negative_weight``.

    Args:
        target: of the mean token entropy, nats (the paper: 0.3). It depends on the model: choose
            it inside the early range of ``policy/entropy`` without STARE.
        step: by which weights move in each rollout; 0 = they stay (the paper's default; its
            ablation 0.01).

    Raises:
        ValueError: a number out of range.
    """

    def __init__(self, target: float = 0.3, step: float = 0.0):
        SetsObjective.__init__(self)
        if not 0 < target < math.inf:
            raise ValueError(f"target={target} must be positive, in nats")
        if not 0 <= step < math.inf:
            raise ValueError(f"step={step} must not be negative; 0 keeps the weights")
        self.target, self.step = target, step
        self.is_on = True
        self.weights: dict[str, float] = {}  # those that a step has moved

    def setup(self, trainer: Trainer, pl_module: RLIFModule, stage: str) -> None:
        """Refuse an objective without weights, or with weights that could not move."""
        if not (stage == "fit" or pl_module.fits_next):
            return
        objective = pl_module.objective
        if not isinstance(objective, STARE):
            raise ValueError(
                f"STAREController needs model.objective=STARE, not {type(objective).__name__}; set"
                " that, or remove the callback"
            )
        self.given = {name: getattr(objective, name) for name in WEIGHTS}
        weights = ", ".join(f"{name}={value}" for name, value in self.given.items())
        if not objective.weighs:
            raise ValueError(
                f"model.objective: fraction={objective.fraction}, {weights} weigh no token, so"
                " STAREController has nothing to switch; set a weight other than 1, or remove it"
            )
        low, high = BOUNDS
        positive, negative = self.given.values()
        if self.step and not (1 <= positive <= high and low <= negative <= 1):
            raise ValueError(
                f"step={self.step} needs 1 <= positive_weight <= {high} and {low} <="
                f" negative_weight <= 1, not {weights}; change the weights, or set step=0"
            )

    def on_rollout_scored(
        self, trainer: Trainer, pl_module: RLIFModule, figures: Mapping[str, Any]
    ) -> None:
        """Set the gate and the weights of this rollout's updates."""
        mean = torch.as_tensor(figures["policy/entropy"])
        self.follow(float(broadcast_from_first(mean)))
        now = self.given | self.weights if self.is_on else dict.fromkeys(WEIGHTS, 1.0)
        pl_module.objective = replace(pl_module.objective, **now)

    def follow(self, entropy: float) -> None:
        """Set gate and weights by a mean token entropy (nats); one that is not finite sets none."""
        if not math.isfinite(entropy):
            return
        self.is_on = entropy < self.target
        move = self.step * ((entropy < self.target) - (entropy > self.target))
        low, high = BOUNDS
        for name, value in self.given.items() if self.step else ():
            last = self.weights.get(name, value)
            if value != 1 and name == "positive_weight":
                self.weights[name] = min(max(last + move, 1.0), high)
            elif value != 1:
                self.weights[name] = min(max(last - move, low), 1.0)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: RLIFModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the gate and the weights that this rollout was trained with."""
        pl_module.log("stare/gate", float(self.is_on), batch_size=1)
        for name in WEIGHTS:
            pl_module.log(f"stare/{name}", getattr(pl_module.objective, name), batch_size=1)

    def state_dict(self) -> dict[str, Any]:
        """Return the last gate, and the weights if they move."""
        return {"is_on": self.is_on, "weights": dict(self.weights)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where the checkpoint was made; weights without a step are the objective's."""
        self.is_on = state_dict["is_on"]
        self.weights = dict(state_dict["weights"]) if self.step else {}
