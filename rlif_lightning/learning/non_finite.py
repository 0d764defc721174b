"""A gradient that is not finite: the error that ends the run, and its message."""

from __future__ import annotations

from collections.abc import Mapping

from rlif_lightning.records import RewardOutput, Rollout


class NonFiniteGradient(RuntimeError):
    """A gradient is not finite; the parameters were not stepped."""


def non_finite_message(
    rollout_number: int, rollout: Rollout, outputs: Mapping[str, RewardOutput]
) -> str:
    """Say why a step was stopped: the sampled statistics, and every head's range of scores."""
    broken = [name for name, values in vars(rollout.stats).items() if not values.isfinite().all()]
    sampled = (
        f"the sampled {', '.join(broken)} were not finite either"
        if broken
        else "what was sampled was finite"
    )
    ranges = []
    for name, output in outputs.items():
        valid = output.scores[~output.scores.isnan()].tolist() or [0.0]
        ranges.append(f"{name} in [{min(valid):.4g}, {max(valid):.4g}]")
    return (
        f"the gradient of rollout {rollout_number} is not finite; {sampled}; scores:"
        f" {', '.join(ranges)}. The parameters were left as they are. Lower model.optimizer.lr or"
        " the weight of a head with huge scores, or train in float32"
    )
