"""The optimiser and its learning-rate schedule, counted in optimiser steps."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from torch.distributed.tensor import DTensor
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from rlif_lightning.learning.muon import works_on_matrices
from rlif_lightning.setting_types import check_types

NEED_A_METRIC = ("reduce_lr_on_plateau", "greedy")  # at every step; a rollout has no such figure
CONSTANT = "constant"
STEPS = ("num_warmup_steps", "num_training_steps")
OWN = {"optimizer", "last_epoch", *STEPS}  # arguments of a schedule's function that are no options


@cache
def schedules() -> dict[str, Callable[..., Any]]:
    """Return transformers' schedules by name, without those that need a figure at every step."""
    # This module of transformers imports peft, which takes a second of every start.
    from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION

    found = {kind.value: function for kind, function in TYPE_TO_SCHEDULER_FUNCTION.items()}
    return {name: function for name, function in found.items() if name not in NEED_A_METRIC}


@dataclass(frozen=True)
class LearningRateSchedule:
    """The learning rate as a factor over optimiser steps, by transformers' ``get_scheduler``.

    https://huggingface.co/docs/transformers/main_classes/optimizer_schedules

    Args:
        name: constant | constant_with_warmup | linear | cosine | cosine_with_min_lr |
            cosine_warmup_with_min_lr | cosine_with_restarts | polynomial | inverse_sqrt |
            warmup_stable_decay.
        warmup_steps: optimiser steps of warm-up. The first of them has learning rate 0.
        steps: optimiser steps of the whole schedule, warm-up included; null = trainer.max_steps.
            After them the learning rate stays where it is.
        options: what else the named schedule takes, such as ``min_lr`` of cosine_with_min_lr.

    Raises:
        ValueError: an unknown name or option, a number out of range, or a setting without effect.
    """

    name: str = "constant"
    warmup_steps: int = 0
    steps: int | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_types(self)
        if self._is_plain:
            return
        if self.name in NEED_A_METRIC:
            raise ValueError(
                f"schedule.name={self.name} needs a figure at every optimiser step, which training"
                " does not have; use CollapseGuard to lower the learning rate, or another schedule"
            )
        if self.name not in schedules():
            raise ValueError(
                f"schedule.name={self.name!r} is unknown; use one of {', '.join(schedules())}"
            )
        if self.warmup_steps < 0:
            raise ValueError(f"schedule.warmup_steps={self.warmup_steps} may not be negative")
        if self.warmup_steps and not self._takes("num_warmup_steps"):
            raise ValueError(
                f"schedule.warmup_steps={self.warmup_steps} has no effect with name={self.name};"
                f" use name={self.name}_with_warmup, or take it out"
            )
        known = sorted(set(inspect.signature(schedules()[self.name]).parameters) - OWN)
        if unknown := sorted(set(self.options) - set(known)):
            raise ValueError(
                f"schedule.options={self.options}: {unknown[0]!r} is no option of name={self.name};"
                f" it takes {', '.join(known) or 'none'}"
            )
        if self.steps is not None and not self._has_length:
            raise ValueError(
                f"schedule.steps={self.steps} has no effect with name={self.name} and"
                f" options={self.options}; use a schedule with an end, such as cosine, or take it"
                " out"
            )

    @property
    def _is_plain(self) -> bool:
        """Return whether the learning rate never moves, which needs no library."""
        given = self.warmup_steps or self.steps is not None or self.options
        return self.name == CONSTANT and not given

    def _takes(self, argument: str) -> bool:
        return (
            not self._is_plain and argument in inspect.signature(schedules()[self.name]).parameters
        )

    @property
    def _has_length(self) -> bool:
        return self._takes("num_training_steps") and "num_stable_steps" not in self.options

    def length(self, max_steps: int) -> int | None:
        """Return the optimiser steps of the schedule; None where it has no end.

        Args:
            max_steps: optimiser steps of the run, -1 if they are not known.

        Raises:
            ValueError: the end is needed and not known, or comes before the schedule has begun.
        """
        if not self._has_length:
            return None
        total = max_steps if self.steps is None else self.steps
        least = self.warmup_steps + self.options.get("num_decay_steps", 0)
        if total <= least:
            raise ValueError(
                f"schedule.name={self.name} needs its length: set trainer.max_steps or"
                f" model.schedule.steps (got {total}) to more than {least}, the steps of its"
                " warm-up and decay"
            )
        return total

    def build(self, optimizer: Optimizer, max_steps: int) -> LambdaLR:
        """Return the schedule of an optimiser.

        Args:
            optimizer: as :func:`build_optimizer` returns it.
            max_steps: as for :meth:`length`.

        Raises:
            ValueError: as :meth:`length`, or the library refuses an option.
        """
        if self._is_plain:
            return LambdaLR(optimizer, lambda step: 1)
        from transformers import get_scheduler

        total = self.length(max_steps)
        try:
            schedule: Any = get_scheduler(
                self.name, optimizer, self.warmup_steps, total, self.options
            )
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"schedule.name={self.name}, options={self.options}: transformers refuses it:"
                f" {error}"
            ) from error
        if total is not None:  # the library's cosine rises again after its end
            factors = schedule.lr_lambdas
            schedule.lr_lambdas = [_until(factor, total) for factor in factors]
        return schedule


def _until(factor: Callable[[int], float], end: int) -> Callable[[int], float]:
    return lambda step: factor(min(step, end))


OptimizerFactory = Callable[[Iterable[Parameter]], Optimizer]


def _remedy(make: Any, error: Exception) -> str:
    if isinstance(make, Optimizer):
        name = type(make).__name__
        return f"pass its class, or with arguments functools.partial({name}, lr=...)"
    if not callable(make):
        return "pass a class such as torch.optim.AdamW, or functools.partial of one"
    if "Muon only supports 2D" in str(error):
        return "use rlif_lightning.MuonAdamW, which has AdamW for the others"
    return "correct its arguments"


def build_optimizer(make: OptimizerFactory, parameters: Iterable[Parameter]) -> Optimizer:
    """Return the optimiser over parameters, fused where its class can be and nobody said otherwise.

    A fused step passes over the parameters once and makes no temporary copies.

    Args:
        make: ``model.optimizer``, which makes an optimiser of parameters.
        parameters: those to train.

    Raises:
        ValueError: the optimiser refuses its arguments, is none, needs a closure, or has a learning
            rate that is not positive.
    """
    trained = list(parameters)
    try:
        optimizer = make(trained)
    except (ValueError, TypeError, NotImplementedError, AssertionError) as error:
        raise ValueError(f"model.optimizer: {error}; {_remedy(make, error)}") from error
    if not isinstance(optimizer, Optimizer) or isinstance(optimizer, torch.optim.LBFGS):
        raise ValueError(
            f"model.optimizer makes {type(optimizer).__name__}, not an optimiser that can step"
            " without computing the loss again; use one such as torch.optim.AdamW"
        )
    for settings in (optimizer.defaults, *optimizer.param_groups):
        settings |= {name: _without_numpy(value) for name, value in settings.items()}
    for group in optimizer.param_groups:
        rate = group.get("lr")  # transformers' Adafactor computes one of its own without
        if rate is None or not 0 < float(rate) < math.inf:
            raise ValueError(f"model.optimizer.lr={rate} must be positive and finite")
        if _may_be_fused(optimizer, group):
            group["fused"] = True
    return optimizer


def only_optimizer(optimizers: Sequence[Optimizer]) -> Optimizer:
    """Return the one optimiser of a run.

    Raises:
        ValueError: ``configure_optimizers`` returned several, or none.
    """
    if len(optimizers) != 1:
        raise ValueError(
            f"configure_optimizers returned {len(optimizers)} optimisers; an update makes the steps"
            " of one: return one with groups of parameters"
        )
    return optimizers[0]


def only_schedule(schedules: Any) -> Any:
    """Return the one schedule that Lightning holds for a module, or None without one.

    Whatever its interval, it is stepped once for each optimiser step.

    Raises:
        ValueError: there are several, or one that needs a figure.
    """
    if isinstance(schedules, list):
        raise ValueError(
            f"configure_optimizers returned {len(schedules)} schedules; return one, such as"
            " torch.optim.lr_scheduler.ChainedScheduler"
        )
    if isinstance(schedules, ReduceLROnPlateau):
        raise ValueError(
            "configure_optimizers returned ReduceLROnPlateau, which needs a figure at every"
            " optimiser step; use CollapseGuard to lower the learning rate, or another schedule"
        )
    return schedules


def switch_weights(optimizer: Any, trains: bool) -> None:
    """Let a schedule-free optimiser hold the weights that are trained, or those that are used.

    https://arxiv.org/abs/2405.15682. Gradients are taken at one point, and the result is another
    one, so such an optimiser has methods ``train`` and ``eval``. Other optimisers have one point.
    """
    switch = getattr(optimizer, "train" if trains else "eval", None)
    if callable(switch):
        switch()


def _without_numpy(value: Any) -> Any:
    """Return a value of Python's own type: with numpy's a checkpoint could not be read again."""
    if isinstance(value, tuple):
        return tuple(map(_without_numpy, value))
    return value.item() if isinstance(value, np.generic) else value


def _may_be_fused(optimizer: Optimizer, group: dict[str, Any]) -> bool:
    """Return whether the choice is open, and no state has been made by another choice."""
    is_open = "fused" in group and group["fused"] is None and not group.get("foreach")
    devices = {parameter.device.type for parameter in group["params"]}
    # Of fused steps PyTorch has those of Adam alone on sharded parameters.
    is_adam = isinstance(optimizer, torch.optim.Adam)  # AdamW is one
    is_known = is_adam or not any(isinstance(each, DTensor) for each in group["params"])
    return (
        is_open
        and is_known
        and not optimizer.state
        and not group.get("differentiable")
        and devices <= {"cpu", "cuda"}
    )


def starting_rate(make: OptimizerFactory) -> float:
    """Return the learning rate that an optimiser starts with.

    Raises:
        ValueError: as :func:`build_optimizer`.
    """
    return float(_probe(make).param_groups[0]["lr"])


def check_optimizer(
    make: OptimizerFactory, schedule: LearningRateSchedule, max_steps: int, is_divided: bool = False
) -> None:
    """Refuse an optimiser or a schedule that could not be built once the policy is loaded.

    Args:
        make: as for :func:`build_optimizer`.
        schedule: of its learning rate.
        max_steps: as for :meth:`LearningRateSchedule.length`.
        is_divided: whether each process has a part of every matrix.

    Raises:
        ValueError: as :func:`build_optimizer` and :meth:`LearningRateSchedule.build`; or the
            optimiser needs whole matrices where they are divided.
    """
    optimizer = _probe(make)
    if is_divided and works_on_matrices(optimizer):
        raise ValueError(
            f"model.optimizer={type(optimizer).__name__} orthogonalises whole matrices, and"
            " trainer.strategy divides them between processes; use another optimiser, or --config"
            " configs/strategy/ddp.yaml"
        )
    schedule.build(optimizer, max_steps)


def _probe(make: OptimizerFactory) -> Optimizer:
    return build_optimizer(make, [Parameter(torch.zeros(1, 1))])
