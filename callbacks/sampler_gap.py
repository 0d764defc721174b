"""SamplerGap: an alarm when the policy that is trained is not the one that sampled."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from callbacks.detectors import Baseline, Detector, Watch
from callbacks.events import record_alarm
from rlif_lightning.module import RLIFModule

# Rounding alone, by the policy's dtype: below 1e-5 in float32 (tests); half precision rounds at
# 2^-8 and 2^-11.
BOUNDS = {torch.bfloat16: 0.1, torch.float16: 0.1}
BOUND = 1e-3
FACTOR = 4.0  # a gap that is so many times the run's first ones has grown
ENGINE_FLOOR = 1e-3  # nats; an engine of another precision differs by more from the start
# The first three figures. Of two, the smaller is the baseline, so that the second rollout can be
# judged.
FIRST = Baseline(3, "median", is_early=True)
OWN, ENGINE = "policy/sampler_gap", "rollout/engine_gap"
MEANING = "The sampler does not have the trained weights, or computes otherwise."


def gap_detectors(
    metric: str, bound: float, floor: float, factor: float | None
) -> dict[str, Detector]:
    """Return the detectors of one gap, under the names ``<metric> bound`` and ``<metric> factor``.

    Args:
        metric: name of the figure.
        bound: nats; a gap above it is too large; infinite = none.
        floor: nats, below which every difference is rounding.
        factor: a gap above the floor and this many times the first three is too large; null = the
            bound alone.
    """
    settings: dict[str, Any] = {"window": 1, "release": 0.0, "meaning": MEANING}
    limits: dict[str, dict[str, Any]] = {
        **({"bound": {"bound": bound}} if math.isfinite(bound) else {}),
        **({"factor": {"factor": factor, "bound": floor, "baseline": FIRST}} if factor else {}),
    }
    return {
        f"{metric} {name}": Detector(metric, "above", **limit, **settings)
        for name, limit in limits.items()
    }


class GapWatch(Watch):
    """The detectors of gaps, and what of their activity is news.

    A gap above its bound is not shown to the relative detector: it is not one of the first three.
    The relative detector is news only at a gap larger than all before it.

    Attributes:
        largest: metric -> its largest gap so far, nats.
    """

    def __init__(self, detectors: dict[str, Detector]):
        super().__init__(detectors)
        self.largest: dict[str, float] = {}

    def judge(self, metric: str, gap: float) -> str | None:
        """Judge a figure's next gap (nats; NaN = not measured).

        Returns:
            The name of the detector that is news; None where the gap is not too large, or the gap
            before it was.
        """
        if math.isnan(gap):
            return None
        largest = self.largest.get(metric, 0.0)
        self.largest[metric] = max(gap, largest)
        bound, factor = (f"{metric} {name}" for name in ("bound", "factor"))
        was_active = bool({bound, factor} & set(self.active))
        if bound in self.detectors:
            self.update({bound: gap})
            if self.states[bound].active:
                return None if was_active else bound
        if factor in self.detectors:
            self.update({factor: gap})
            if self.states[factor].active and not was_active and gap > largest:
                return factor
        return None


class SamplerGap(Callback):
    """Warns where completions' log-probs when sampled are not those of the trained policy.

    Two figures are watched. ``policy/sampler_gap`` is the mean of |log-prob now - log-prob when
    sampled| (nats) over the tokens of a rollout's first mini-batch, at which the policy has not
    moved: what is left is rounding, unless the sampler has other weights, another temperature or
    another numerical precision than the trainer. An engine such as vLLM has log-probs of its own;
    ``rollout/engine_gap`` compares those with the policy's. Its size depends on the engine's
    precision, so it is judged by the run's first rollouts (the engine's ``max_gap`` bounds it as
    well), and not where a rollout was drawn ahead with older weights. An alarm is also raised where
    a figure is larger than all before and than 4 times the median of the run's first three
    rollouts, if it is above a tenth of the bound (engine_gap: 0.001 nats). The command line adds
    this to every run.

    Args:
        bound: of policy/sampler_gap, nats; null = 0.001, or 0.1 where the run computes in bfloat16
            or float16.

    Raises:
        ValueError: a bound that is not positive.
    """

    def __init__(self, bound: float | None = None):
        if bound is not None and bound <= 0:
            raise ValueError(f"bound={bound} must be positive, in nats")
        self.bound = bound
        self.watch = GapWatch(self._detectors(BOUND if bound is None else bound))

    def _detectors(self, bound: float) -> dict[str, Detector]:
        own = gap_detectors(OWN, bound, bound / 10, FACTOR)
        return own | gap_detectors(ENGINE, math.inf, ENGINE_FLOOR, FACTOR)

    def on_train_start(self, trainer: Trainer, pl_module: RLIFModule) -> None:
        """Take the bound of the policy's precision, which is known now."""
        if self.bound is None:
            self.watch.detectors = self._detectors(_bound(trainer, pl_module))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: RLIFModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Judge the rollout; warn once each time that a figure becomes too large."""
        sampling = pl_module.sampling
        metrics = [OWN]
        # With top_k or top_p the engine's log-probs are of a truncated distribution, and those of a
        # rollout that was drawn ahead are of older weights.
        is_stale = float(trainer.callback_metrics.get("rollout/staleness", 0.0)) > 0
        is_whole = sampling.temperature > 0 and not sampling.top_k and sampling.top_p == 1
        if is_whole and not is_stale and ENGINE in trainer.callback_metrics:
            metrics.append(ENGINE)
        for metric in metrics:
            gap = float(trainer.callback_metrics[metric])
            name = self.watch.judge(metric, gap)
            if name is not None:
                text = f"{name}: {self.watch.detectors[name].describe(self.watch.states[name])}"
                values = self.watch.evidence(name, gap)
                record_alarm(trainer, pl_module, "SamplerGap", text, values)

    def state_dict(self) -> dict[str, Any]:
        """Return the detectors' states and each figure's largest gap."""
        return {"detectors": self.watch.state_dict(), "largest": dict(self.watch.largest)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where the checkpoint was made."""
        self.watch.load_state_dict(state_dict["detectors"])
        self.watch.largest = dict(state_dict["largest"])


def _bound(trainer: Trainer, module: RLIFModule) -> float:
    """Return the bound of rounding alone, nats, for the precision that the run computes in."""
    assert module.policy is not None
    dtypes = [parameter.dtype for parameter in module.policy.parameters()]
    mixed = "16" in str(trainer.precision)  # pyright: ignore[reportAttributeAccessIssue]
    return max(0.1 if mixed else 0.0, *(BOUNDS.get(dtype, BOUND) for dtype in dtypes))
