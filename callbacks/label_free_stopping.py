"""LabelFreeStopping: end a run when its own samples say that nothing good is left to learn.

No label is used. Read `stop_detectors` (the rule), then `first_stop` (the same rule on a finished
run's metrics.csv) and the callback. What the rule cannot see: a model that agrees with itself on
wrong answers looks like one that agrees on right ones. The rule stops both where the vote has no
more to say. That is early for wrong answers and harmless for right ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info

from callbacks.detectors import Baseline, Detector, Watch, check_known
from callbacks.events import record_event
from rlif_lightning.data.described import Described
from rlif_lightning.metric_names import VALIDATION
from rlif_lightning.module import RLIFModule
from rlif_lightning.running.metrics_csv import read_logged

# What each limit is about: in training, and on the held-out prompts of a validation.
SIGNALS = {
    "train": {
        "agreement": "vote/largest_cluster",
        "diversity": "vote/distinct_answers",
        "entropy": "policy/entropy",
    },
    "validation": {
        "agreement": "val/agreement",
        "diversity": "val/diversity",
        "entropy": "val/entropy",
    },
}
LIMITS = {"agreement": 0.95, "diversity": 0.4, "entropy": 0.1}
UNITS = {"train": "rollouts", "validation": "validations"}


def stop_detectors(
    limits: Mapping[str, float | None] | None = None,
    window: int = 5,
    patience: int = 3,
    signals: str = "train",
) -> dict[str, Detector]:
    """Return the detectors that end a run: one for each limit, over means of the last values.

    Agreement is absolute. Diversity and entropy are relative to their mean over the first
    ``window`` values, so that one rule fits models and tasks of any kind. Nothing is judged in
    that first window.

    Args:
        limits: changes to ``{agreement: 0.95, diversity: 0.4, entropy: 0.1}``, each in (0, 1];
            null = no such limit. Stop above this mean share of the largest cluster, below this
            fraction of the distinct answers at the start, below this fraction of the token entropy
            at the start.
        window: values that a mean is taken over, at least 1.
        patience: means in a row beyond a limit, at least 1.
        signals: train | validation.

    Raises:
        ValueError: a number out of range, an unknown kind of signals, or no limit at all.
    """
    if signals not in SIGNALS:
        raise ValueError(f"signals={signals!r} is unknown; choose one of {sorted(SIGNALS)}")
    for name, limit in (limits or {}).items():
        check_known("limits", name, (*LIMITS,))
        if limit is not None and not 0 < limit <= 1:
            raise ValueError(f"limits.{name}={limit} must lie in (0, 1], or be null for no limit")
    chosen = {**LIMITS, **(limits or {})}
    if not any(chosen.values()):
        raise ValueError(f"limits={chosen} are all null: the rule could never stop")
    shared: dict[str, Any] = {
        "window": window, "average": "mean", "patience": patience, "release": 0.0,
        "baseline": Baseline(window, in_window=True),
    }  # fmt: skip
    kinds = {
        "agreement": {"side": "above", "bound": chosen["agreement"]},
        "diversity": {"side": "below", "factor": chosen["diversity"]},
        "entropy": {"side": "below", "factor": chosen["entropy"]},
    }
    return {
        name: Detector(SIGNALS[signals][name], **kinds[name], **shared)
        for name, limit in chosen.items()
        if limit is not None
    }


def first_stop(
    metrics: str | Path, detectors: Mapping[str, Detector] | None = None
) -> tuple[int, str] | None:
    """Find where detectors would have stopped a finished run.

    Args:
        metrics: the run's ``metrics.csv``.
        detectors: when to stop; null = `stop_detectors` as shipped.

    Returns:
        The number of values seen (rollouts, or validations) and the name of the detector; None
        where the run would not have been stopped.

    Raises:
        ValueError: the file lacks a watched column; names the column.
    """
    watch = Watch(stop_detectors() if detectors is None else detectors)
    columns = {name: detector.metric for name, detector in watch.detectors.items()}
    logged = read_logged(Path(metrics))
    if missing := sorted(set(columns.values()) - set(logged.columns)):
        raise ValueError(f"{metrics} has no column {missing[0]!r}; {_remedy(missing[0])}")
    for seen, row in enumerate(_judged(logged.rows, set(columns.values())), 1):
        watch.update({name: float(row[column]) for name, column in columns.items()})
        if watch.active:
            return seen, watch.active[0]
    return None


def _judged(rows: Iterable[dict[str, str]], columns: set[str]) -> Iterator[dict[str, str]]:
    """Yield the rows that the callback judges: no validation before or after training."""
    rollout = None  # whose row came last; a validation that follows in training has its number
    for row in rows:
        rollout = rollout if any(name.startswith(VALIDATION) for name in row) else row.get("step")
        if row.keys() >= columns and row.get("step") == rollout:
            yield row


def _remedy(column: str) -> str:
    if column.startswith("val/"):
        return "validate between steps (trainer.val_check_interval), or use signals=train"
    if column.startswith("vote/"):
        return (
            "add a ClusterVote reward (weight 0 measures only), or set limits={agreement: null,"
            " diversity: null}"
        )
    return "choose other signals"


class LabelFreeStopping(Described, Callback):
    """Stops training by agreement, diversity and entropy of the policy's own samples.

    With ``signals: train`` it looks at every rollout, with ``signals: validation`` at every
    validation between steps (their figures without labels). Logs ``stopping/stopped``: 0, and 1 on
    the rollout that stops. Writes an event of kind ``stop``. Its state is in checkpoints.

    Args:
        limits: changes to ``{agreement: 0.95, diversity: 0.4, entropy: 0.1}``; null = no such
            limit. Stop above this share of the largest cluster, below this fraction of the
            starting number of distinct answers, below this fraction of the starting token entropy.
        window: values that a mean is taken over.
        patience: means in a row beyond a limit.
        signals: train | validation.

    Raises:
        ValueError: a number out of range, an unknown kind of signals, or a signal that the run does
            not log.
    """

    def __init__(
        self,
        limits: dict[str, float | None] | None = None,
        window: int = 5,
        patience: int = 3,
        signals: str = "train",
    ):
        self.signals = signals
        self.watch = Watch(stop_detectors(limits, window, patience, signals))
        self.reason: str | None = None

    def setup(self, trainer: Trainer, pl_module: RLIFModule, stage: str) -> None:
        """Refuse to wait for validations that never come."""
        if self.signals == "validation" and trainer.limit_val_batches == 0:
            raise ValueError(
                "signals=validation looks at validations, and trainer.limit_val_batches=0 makes"
                " none; validate, or use signals=train"
            )

    def on_train_start(self, trainer: Trainer, pl_module: RLIFModule) -> None:
        """Keep a run stopped that is started again (without this callback it goes on)."""
        trainer.should_stop = trainer.should_stop or self.reason is not None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: RLIFModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Judge the rollout."""
        if self.signals == "train":
            self._judge(trainer, pl_module)
        pl_module.log("stopping/stopped", float(self.reason is not None), batch_size=1)

    def on_validation_end(self, trainer: Trainer, pl_module: RLIFModule) -> None:
        """Judge a validation between steps (not those before and after training)."""
        fitting = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        if self.signals == "validation" and fitting:
            self._judge(trainer, pl_module)

    def _judge(self, trainer: Trainer, pl_module: RLIFModule) -> None:
        columns = {name: detector.metric for name, detector in self.watch.detectors.items()}
        metrics = trainer.callback_metrics
        if missing := sorted(set(columns.values()) - set(metrics)):
            raise ValueError(
                f"LabelFreeStopping: the run does not log {missing[0]!r}; {_remedy(missing[0])}"
            )
        values = {name: float(metrics[column]) for name, column in columns.items()}
        self.watch.update(values)
        active = self.watch.active
        # The figures are the same on all ranks but for rounding, so one rank decides for all.
        if not trainer.strategy.reduce_boolean_decision(bool(active), all=False):
            return
        self.reason, evidence = "another process's figures", {}
        if active:
            detector, state = self.watch.detectors[active[0]], self.watch.states[active[0]]
            self.reason = f"{active[0]}: {detector.describe(state, UNITS[self.signals])}"
            evidence = self.watch.evidence(active[0], values[active[0]])
        trainer.should_stop = True
        record_event(trainer, pl_module, "LabelFreeStopping", "stop", self.reason, evidence)
        rank_zero_info(f"LabelFreeStopping at optimiser step {trainer.global_step}: {self.reason}")

    def why_stopped(self) -> tuple[str, str] | None:
        """Return why it ended the run (``running/endings.py``), None if it did not."""
        return None if self.reason is None else ("label_free_stop", self.reason)

    def state_dict(self) -> dict[str, Any]:
        """Return the detectors' states, and why the run was stopped."""
        return {"detectors": self.watch.state_dict(), "reason": self.reason}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where the checkpoint was made."""
        self.watch.load_state_dict(state_dict["detectors"])
        self.reason = state_dict["reason"]
