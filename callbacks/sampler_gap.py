"""SamplerGap: an alarm when the policy that is trained is not the one that sampled."""

from __future__ import annotations

import math
import statistics
import warnings
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from callbacks.events import record_event
from rlif_lightning.module import RLIFModule

# Rounding alone, by the policy's dtype: below 1e-5 in float32 (tests); half precision rounds at
# 2^-8 and 2^-11.
BOUNDS = {torch.bfloat16: 0.1, torch.float16: 0.1}
BOUND = 1e-3
ENGINE_FLOOR = 1e-3  # nats; an engine of another precision differs by more from the start
FIRST = 3  # rollouts that the later ones are compared with
OWN, ENGINE = "policy/sampler_gap", "rollout/engine_gap"


class GapTrend:
    """One figure's history: above its bound, or far above the run's own first rollouts and rising.

    A gap is too large above ``bound``, or where it is more than ``factor`` times the median of the
    first three (of two the smaller, so that the second rollout can be judged) and more than
    ``floor``. The second kind is told only of a gap larger than all before it. A gap that was too
    large is not one of the first three.

    Args:
        bound: nats; infinite = none.
        floor: nats, below which all is rounding; null = a tenth of the bound.
        factor: see above; null = the bound alone.

    Attributes:
        told: whether the last gap is news: it is too large, and the one before it was not.
    """

    def __init__(self, bound: float, floor: float | None = None, factor: float | None = 4.0):
        self.bound, self.factor = bound, factor
        self.floor = bound / 10 if floor is None else floor
        self.first: list[float] = []
        self.largest, self.above, self.told = 0.0, False, False

    def see(self, gap: float) -> None:
        """Judge the next gap; one that is no number is passed over."""
        self.told = False
        if math.isnan(gap):
            return
        limit = self.limit()
        was, rising = self.above, gap > self.largest
        self.above = gap > limit
        self.told = self.above and not was and (rising or gap > self.bound)
        if len(self.first) < FIRST and not self.above:
            self.first.append(gap)
        self.largest = max(gap, self.largest)

    def limit(self) -> float:
        """What the next gap is compared with, nats."""
        if self.factor is None or not self.first:
            return self.bound
        return min(self.bound, max(self.floor, self.factor * statistics.median_low(self.first)))


class SamplerGap(Callback):
    """Warns, and writes an event, where the log-probs that completions were sampled with are not the trained policy's.

    Two figures are watched. ``policy/sampler_gap`` is the mean of |log-prob now - log-prob when
    sampled| (nats) over the tokens of a rollout's first mini-batch, at which the policy has not
    moved: what is left is rounding, unless the sampler has other weights, another temperature or
    another numerical precision than the trainer. An engine such as vLLM has log-probs of its own;
    ``rollout/engine_gap`` compares those with the policy's. Its size depends on the engine's
    precision, so it is judged by the run's first rollouts (the engine's ``max_gap`` bounds it as
    well). The command line adds this to every run.

    Args:
        bound: of policy/sampler_gap, nats; null = 0.001, or 0.1 where the run computes in bfloat16
            or float16.
        factor: a figure is also told where it is larger than all before and than this many times
            the median of the run's first three rollouts, if it is above a tenth of the bound
            (engine_gap: 0.001 nats); null = not.

    Raises:
        ValueError: a bound that is not positive, a factor of 1 or less.
    """

    def __init__(self, bound: float | None = None, factor: float | None = 4.0):
        if bound is not None and bound <= 0:
            raise ValueError(f"bound={bound} must be positive, in nats")
        if factor is not None and factor <= 1:
            raise ValueError(f"factor={factor} must be more than 1, or null")
        self.bound, self.factor = bound, factor
        self.trends: dict[str, GapTrend] = {}
        self.loaded: dict[str, Any] = {}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: RLIFModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Judge the rollout; tell when a figure becomes too large, once each time."""
        sampling = pl_module.sampling
        whole = sampling.temperature > 0 and not sampling.top_k and sampling.top_p == 1
        figures = {OWN: self._bound(trainer, pl_module)}
        if (
            whole and ENGINE in trainer.callback_metrics
        ):  # else the engine's log-probs are of a truncated distribution
            figures[ENGINE] = math.inf
        for figure, bound in figures.items():
            gap, trend = float(trainer.callback_metrics[figure]), self.trend(figure, bound)
            limit = trend.limit()
            trend.see(gap)
            if trend.told:
                self._tell(trainer, pl_module, figure, (gap, limit, bound))

    def trend(self, figure: str, bound: float) -> GapTrend:
        """A figure's history, begun or gone on with."""
        if figure not in self.trends:
            self.trends[figure] = trend = GapTrend(
                bound, ENGINE_FLOOR if figure == ENGINE else None, self.factor
            )
            for name, value in self.loaded.get(figure, {}).items():
                setattr(trend, name, value)
        return self.trends[figure]

    def _tell(
        self, trainer: Trainer, module: RLIFModule, figure: str, numbers: tuple[float, float, float]
    ) -> None:
        gap, limit, bound = numbers
        if gap > bound:
            text = (
                f"the trained policy's log-probs are {gap:.2g} nats from those that were"
                " sampled"
                f" with, above {bound=}"
            )
        else:
            text = (
                f"{figure} is {gap:.2g} nats, more than {self.factor:g} times what this run"
                " began"
                " with, and rising"
            )
        text += ": the sampler does not have the trained weights, or computes otherwise"
        values = {"figure": figure, "gap": gap, "bound": limit}
        record_event(trainer, module, "SamplerGap", "alarm", text, values)
        if trainer.is_global_zero:
            warnings.warn(f"SamplerGap, rollout {int(module.num_rollouts)}: {text}", stacklevel=2)

    def _bound(self, trainer: Trainer, module: RLIFModule) -> float:
        if self.bound is not None:
            return self.bound
        assert module.policy is not None
        dtypes = [parameter.dtype for parameter in module.policy.parameters()]
        mixed = "16" in str(trainer.precision)  # pyright: ignore[reportAttributeAccessIssue]
        return max(0.1 if mixed else 0.0, *(BOUNDS.get(dtype, BOUND) for dtype in dtypes))

    def state_dict(self) -> dict[str, Any]:
        """Each figure's first gaps, its largest one, and whether the last was too large."""
        own = {
            figure: {"first": list(trend.first), "largest": trend.largest, "above": trend.above}
            for figure, trend in self.trends.items()
        }
        return {"figures": self.loaded | own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the checkpoint was made; one of before the figures' histories begins them anew."""
        self.loaded, self.trends = state_dict.get("figures", {}), {}
