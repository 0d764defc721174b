"""LearningRateFactors: the learning rate by rollout, given as steps or taken from another run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer

from callbacks.events import record_event
from callbacks.guard import Guard
from rlif_lightning.data.described import Described
from rlif_lightning.module import RLIFModule
from rlif_lightning.running.lightning_internals import configured_optimizer
from rlif_lightning.running.metrics_csv import read_logged

RATE = "policy/learning_rate"
Steps = Sequence[tuple[int, float]]


def factors_of_run(path: str | Path) -> list[tuple[int, float]]:
    """Return another run's learning rates as factors of its first, one for each rollout.

    A rate that was halved is half of it exactly, though ``metrics.csv`` holds 32-bit numbers.

    Args:
        path: its folder, or its ``metrics.csv``.

    Returns:
        [rollout, factor] pairs, for the rollouts 0, 1, 2, ...

    Raises:
        ValueError: no such file, no learning rate in it, or not every rollout from the first on.
    """
    file = Path(path) / "metrics.csv" if Path(path).is_dir() else Path(path)
    try:
        rows = [row for row in read_logged(file).rows if RATE in row]
    except OSError as error:
        raise ValueError(
            f"factors={str(path)!r}: {error}; give the folder of a run that has a metrics.csv"
        ) from error
    if [row.get("step") for row in rows] != [str(number) for number in range(len(rows))]:
        raise ValueError(
            f"factors={str(path)!r}: {file} has not every rollout once from the first on (a resumed"
            " run goes on in another folder); give a run that was made in one go"
        )
    rates = [float(row[RATE]) for row in rows]
    if not rates or not rates[0] > 0:
        raise ValueError(
            f"factors={str(path)!r}: {file} has no positive {RATE} of a first rollout; give a run"
            " that has trained, without warm-up"
        )
    return [(number, rate / rates[0]) for number, rate in enumerate(rates)]


def factor_at(steps: Steps, rollout: int) -> float:
    """Return the factor of the last step up to a rollout; 1 before the first step.

    Example:
        >>> [factor_at([(2, 0.5), (3, 0.25)], rollout) for rollout in range(5)]
        [1.0, 1.0, 0.5, 0.25, 0.25]
    """
    return next((factor for begin, factor in reversed(steps) if begin <= rollout), 1.0)


class LearningRateFactors(Described, Callback):
    """Multiplies the learning rate by a factor that depends on the number of the rollout.

    Two controls of a guard that lowers the learning rate need it: the same rates without its
    information (those of another seed's guarded run, *yoked*), and halving at fixed rollouts. The
    rate is that of ``model.optimizer`` times the factor; ``policy/learning_rate`` shows it.
    Needs ``model.schedule.name=constant``. A change of the factor is an event ``schedule`` in
    ``events.jsonl``.

    Args:
        factors: [rollout, factor] pairs with rising rollouts, counted from 0: each factor holds
            from its rollout on, and before the first it is 1. Or the folder, or the metrics.csv,
            of another run: its rates divided by its first, by rollout. The last factor stays.

    Raises:
        ValueError: no factor, rollouts that do not rise, a factor that is not positive and finite,
            or a run whose rates cannot be read (:func:`factors_of_run`).
    """

    def __init__(self, factors: list[tuple[int, float]] | str):
        steps = factors_of_run(factors) if isinstance(factors, str) else factors
        if not steps or any(not later > begin for (begin, _), (later, _) in pairwise(steps)):
            raise ValueError(
                f"factors={factors} must be [rollout, factor] pairs of rising rollouts"
            )
        if steps[0][0] < 0 or any(not 0 < factor < math.inf for _, factor in steps):
            raise ValueError(
                f"factors={factors}: rollouts count from 0, and each factor must be positive"
            )
        self.steps = [(int(begin), float(factor)) for begin, factor in steps]
        self.rates: list[float] = []

    def setup(self, trainer: Trainer, pl_module: RLIFModule, stage: str) -> None:
        """Refuse a run in which something else sets the learning rate as well."""
        if not (stage == "fit" or pl_module.fits_next):
            return
        if pl_module.schedule.name != "constant":
            raise ValueError(
                f"model.schedule.name={pl_module.schedule.name}: LearningRateFactors needs"
                " constant; set that, or remove the callback"
            )
        callbacks = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
        guards = [each for each in callbacks if isinstance(each, Guard)]
        steering = [each for each in guards if each.acts and "learning_rate" in each.scale]
        if steering:
            raise ValueError(
                f"LearningRateFactors and {steering[0].name} would both set the learning rate: set"
                " the guard's action=warn, or its scale to something else, or remove one of them"
            )

    def on_train_start(self, trainer: Trainer, pl_module: RLIFModule) -> None:
        """Remember the optimiser's own rates, which a checkpoint has replaced by those in force."""
        groups = configured_optimizer(pl_module).param_groups
        self.rates = [float(group["lr"]) for group in groups]

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: RLIFModule, batch: Any, batch_idx: int
    ) -> None:
        """Set this rollout's rate."""
        number = int(pl_module.num_rollouts)
        factor = factor_at(self.steps, number)
        rates = [rate * factor for rate in self.rates]
        (optimizer,), (config,) = trainer.optimizers, trainer.lr_scheduler_configs
        config.scheduler.base_lrs = list(rates)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = group["initial_lr"] = rate
        if factor != (factor_at(self.steps, number - 1) if number else 1.0):
            text = f"the learning rate is {factor:.4g} times the optimiser's from now on"
            values = {"factor": factor}
            record_event(trainer, pl_module, "LearningRateFactors", "schedule", text, values)
