"""SamplerGap: an alarm when the policy that is trained is not the one that sampled."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from callbacks.events import record_event
from rlif_lightning.module import RLIFModule

# Rounding alone, by the policy's dtype: below 1e-5 in float32 (tests); half precision rounds at 2^-8 and 2^-11.
BOUNDS = {torch.bfloat16: 0.1, torch.float16: 0.1}
BOUND = 1e-3


class SamplerGap(Callback):
    """Warns, and writes an event, where ``policy/sampler_gap`` is above a bound.

    The figure is the mean of |log-prob now - log-prob when sampled| (nats) over the tokens of a rollout's first
    mini-batch, at which the policy has not moved: what is left is rounding, unless the sampler has other weights,
    another temperature or another numerical precision than the trainer. The command line adds this to every run.

    Args:
        bound: nats; null = 0.001, or 0.1 where the run computes in bfloat16 or float16.

    Raises:
        ValueError: a bound that is not positive.
    """

    def __init__(self, bound: float | None = None):
        if bound is not None and bound <= 0:
            raise ValueError(f"bound={bound} must be positive, in nats")
        self.bound = bound
        self.above = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: RLIFModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Judge the rollout; tell when the bound is passed, once each time."""
        gap, bound = float(trainer.callback_metrics["policy/sampler_gap"]), self._bound(trainer, pl_module)
        was, self.above = self.above, gap > bound
        if not self.above or was:
            return
        text = (
            f"the trained policy's log-probs are {gap:.2g} nats from those that were sampled with, above bound={bound}:"
            " the sampler does not have the trained weights, or computes otherwise"
        )
        record_event(trainer, pl_module, "SamplerGap", "alarm", text, {"gap": gap, "bound": bound})
        if trainer.is_global_zero:
            warnings.warn(f"SamplerGap, rollout {int(pl_module.num_rollouts)}: {text}", stacklevel=2)

    def _bound(self, trainer: Trainer, module: RLIFModule) -> float:
        if self.bound is not None:
            return self.bound
        assert module.policy is not None
        dtypes = [parameter.dtype for parameter in module.policy.parameters()]
        mixed = "16" in str(trainer.precision)  # pyright: ignore[reportAttributeAccessIssue]
        return max(0.1 if mixed else 0.0, *(BOUNDS.get(dtype, BOUND) for dtype in dtypes))

    def state_dict(self) -> dict[str, Any]:
        """Whether the bound was passed."""
        return {"above": self.above}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the checkpoint was made."""
        self.above = state_dict["above"]
