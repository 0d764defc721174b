"""Lightning's callbacks that cannot do here what they promise, each with what to use instead."""

from __future__ import annotations

from collections.abc import Iterable

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelPruning,
    SpikeDetection,
    StochasticWeightAveraging,
    WeightAveraging,
)

from rlif_lightning.running.lightning_internals import averages_buffers

AVERAGING = "EMAWeightAveraging(use_buffers=False)"
REFUSED: dict[type[Callback], str] = {
    BatchSizeFinder: "memory is model.update.micro_batch_tokens, halved where it runs out",
    GradientAccumulationScheduler: "an update is cut up by model.update.micro_batch_tokens; raise"
    " data.prompts_per_rollout for larger ones",
    LearningRateFinder: "a policy's loss does not tell how good a learning rate is; compare runs"
    " with several model.optimizer.lr",
    ModelPruning: "a rollout would be drawn by other weights than those that are trained",
    SpikeDetection: "a policy's loss does not tell whether a step was good; use CollapseGuard",
    StochasticWeightAveraging: "it averages once an epoch, and sets the learning rate by epochs;"
    f" use {AVERAGING}, and model.schedule",
}


def refuse_unusable(callbacks: Iterable[Callback]) -> None:
    """Refuse callbacks that cannot be used; some fail in their own setup, before the module's.

    Raises:
        ValueError: names the callback and what to use instead.
    """
    for callback in callbacks:
        for kind, remedy in REFUSED.items():
            if isinstance(callback, kind):
                raise ValueError(
                    f"trainer.callbacks={type(callback).__name__} is not used: {remedy}"
                )


def check_callbacks(callbacks: Iterable[Callback], is_divided: bool) -> None:
    """Refuse callbacks that would fail later, or change a run silently.

    Args:
        callbacks: those of the trainer.
        is_divided: whether the policy's weights are divided between processes.

    Raises:
        ValueError: names the callback and what to use instead.
    """
    callbacks = list(callbacks)
    refuse_unusable(callbacks)
    for callback in callbacks:
        name = f"trainer.callbacks={type(callback).__name__}"
        if not isinstance(callback, WeightAveraging):
            continue
        if averages_buffers(callback):
            raise ValueError(
                f"{name}(use_buffers=True) would average the run's counters with the weights; set"
                " use_buffers=False"
            )
        if is_divided:
            raise ValueError(
                f"{name} copies whole weights, and trainer.strategy divides them between processes;"
                " leave one of the two out"
            )
